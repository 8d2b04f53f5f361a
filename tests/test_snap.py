"""Snapping: the grids meet their condition, are no coarser than it asks, and every partial sum is exact.

The oracle of exactness knows nothing of reaches: it adds the digits of a snapped sum up in float32 (planes in
int32 and float64), in random orders, for adversarial inputs, and compares every partial sum with Python's integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence import replay, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import Lattice, Precision, find_sums, require_exact
from dalif_deploy.nodes import (
    Add,
    Array,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Readout,
    Scale,
    SumPool2d,
    frozen,
)
from dalif_deploy.passes import fold
from dalif_deploy.passes.input_codes import CODES, take_codes
from dalif_deploy.passes.snap import snap
from tests.graphs import GRAPHS

Draw = Callable[[st.SearchStrategy[Any]], Any]
PRECISIONS: tuple[Precision, ...] = ("exact", "exact64")


def refused(node: str, why: str, code: Code = Code.TARGET_CANNOT_HOLD) -> Any:
    return pytest.raises(DalifError, match=rf"\[{code.identifier}\] node '{node}' .*{why}")


def neuron(name: str, source: str, **rules: Any) -> Neuron:
    return Neuron(name=name, inputs=(Edge(source),), alpha=frozen(1.0), beta=frozen(0.5), **rules)


def finished(*nodes: Node, **options: Any) -> SpikingGraph:
    readout = Readout(name="readout", inputs=(Edge(nodes[-1].name),), mode="mean")
    return SpikingGraph([*nodes, readout], output="readout", timesteps=2, **options)


# Weights of every kind that could break a grid.


def equal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return frozen(np.full(shape, rng.normal()))


def mixed(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return frozen(rng.normal(size=shape) * 2.0 ** rng.integers(-60, 60, shape))


def cancelling(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Pairs w and -w (1 + a little): sums of large terms that nearly vanish, residuals of one sign."""
    values = rng.normal(size=shape).reshape(-1)
    values[1::2] = -values[: len(values) - len(values[::2])] * (1 + 2.0**-40)
    return frozen(values.reshape(shape))


def halves(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Halfway between two grid points, for many grids."""
    return frozen(rng.choice([-1.0, 1.0], shape) * (1 + 2.0 ** -rng.integers(1, 50, shape)))


WEIGHTS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: frozen(rng.normal(size=shape)),
    "float32": lambda rng, shape: frozen(rng.normal(size=shape).astype(np.float32)),
    "subnormal": lambda rng, shape: frozen(rng.integers(-5, 6, shape) * 5e-324),
    "below float32": lambda rng, shape: frozen(rng.normal(size=shape) * 1e-43),
    "tiny": lambda rng, shape: frozen(rng.normal(size=shape) * 1e-20),
    "huge": lambda rng, shape: frozen(rng.normal(size=shape) * 1e25),
    "equal": equal,
    "dyadic": lambda rng, shape: frozen(rng.integers(-9, 10, shape) / 8),
    "ternary": lambda rng, shape: frozen(rng.integers(-1, 2, shape) * 0.1),
    "cancelling": cancelling,
    "mixed": mixed,
    "halves": halves,
    "zero": lambda rng, shape: frozen(np.zeros(shape)),
    "one": lambda rng, shape: frozen((np.arange(math.prod(shape)) == 0).reshape(shape) * rng.normal()),
    "positive": lambda rng, shape: frozen(np.abs(rng.normal(size=shape))),
}


def random_graph(draw: Draw) -> SpikingGraph:
    """Branches of every kind into one neuron, from spikes, counts or codes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels, wide = draw(st.sampled_from([1, 2, 6])), draw(st.sampled_from([2, 3, 32, 40]))
    names = st.sampled_from(sorted(WEIGHTS))
    codes = draw(st.booleans())
    nodes: list[Node] = [Input(name="input", shape=(wide, 3, 3), temporal=True, kind="real" if codes else "spike")]
    source = "input"
    if draw(st.booleans()):
        kind = draw(st.sampled_from([SumPool2d, MaxPool2d]))
        nodes.append(kind(name="pool", inputs=(Edge("input"),), kernel=(2, 2), stride=(1, 1), padding=(1, 1)))
        source = "pool"
    size = 4 if source == "pool" else 3
    channelwise = (channels, size, size)

    def weights(shape: tuple[int, ...]) -> Array:
        return WEIGHTS[draw(names)](rng, shape)

    branches: list[str] = []
    for i in range(draw(st.integers(1, 3))):
        name = f"conv{i}"
        nodes.append(
            Conv2d(
                name=name, inputs=(Edge(source),), weight=weights((channels, wide, 1, 1)),
                bias=weights((channels,)) if draw(st.booleans()) else None,
            )
        )  # fmt: skip
        branches.append(name)
    if draw(st.booleans()):
        shape = draw(st.sampled_from([(), (channels, 1, 1), channelwise]))
        nodes.append(Conv2d(name="feed", inputs=(Edge(source),), weight=frozen(np.ones((channels, wide, 1, 1)))))
        nodes.append(neuron("spikes", "feed"))
        nodes.append(Scale(name="scale", inputs=(Edge("spikes"),), factor=weights(shape), offset=weights(shape)))
        branches.append("scale")
        branches += ["spikes"] * draw(st.integers(0, 2))
    nodes.append(Add(name="sum", inputs=tuple(Edge(b, draw(st.integers(0, 1))) for b in branches)))
    nodes.append(neuron("n", "sum"))
    return finished(*nodes, encoding=CODES if codes else None)


# The oracle.

Terms = tuple[NDArray[Any], NDArray[Any]]


def channel_terms(
    g: SpikingGraph, lattices: dict[str, Lattice], root: str, c: int, digit: int | None,
    extreme: Callable[[list[int]], int] = max,
) -> Terms:  # fmt: skip
    """All terms of one channel's sum, in units of the digit's base (None: of the whole): weights, largest inputs.

    A bias is a term whose input is 1 at most. Of places that differ, one is taken: the largest or the smallest.
    """
    whole = find_sums(g).whole
    weights: list[int] = []
    largest: list[int] = []

    def follow(name: str) -> None:
        node = g[name]
        if name in whole:
            first = next(iter(lattices[leaf] for leaf in lattices if leaf in under))
            one = 2 ** int(first.exponents[c])
            if digit is not None:
                held = [i for i, base in enumerate(first.bases) if one >= base]
                one = one // first.bases[digit] if held[0] == digit else 0
            weights.append(one)
            largest.append(whole[name])
        elif isinstance(node, Add):
            for edge in node.inputs:
                follow(edge.source)
        else:
            cut = lattices[name]
            for values, top in ((cut.digits, whole[node.inputs[0].source]), (cut.bias_digits, 1)):
                if values is None:
                    continue
                rows = [v.reshape(len(v), -1)[c].tolist() for v in values]
                mine = rows[digit] if digit is not None else [
                    sum(d * b for d, b in zip(ds, cut.bases, strict=True)) for ds in zip(*rows, strict=True)
                ]  # fmt: skip
                if isinstance(node, Scale):
                    mine = [extreme(mine)]
                weights.extend(mine)
                largest.extend([top] * len(mine))

    under = leaves(g, root, whole)
    follow(root)
    return np.array(weights, dtype=object), np.array(largest, dtype=object)


def leaves(g: SpikingGraph, name: str, whole: Any) -> list[str]:
    node = g[name]
    if name in whole:
        return []
    return [x for e in node.inputs for x in leaves(g, e.source, whole)] if isinstance(node, Add) else [name]


def assert_exact_in_any_order(terms: Terms, exponent: int, dtype: type[np.floating], rng: np.random.Generator) -> None:
    """Adds up in `dtype` what all inputs of one sign, and random inputs, make of the terms."""
    weights, largest = terms
    unit = Fraction(2) ** -exponent
    values = np.array([float(w * unit) for w in weights]).astype(dtype)
    assert all(Fraction(float(v)) == w * unit for v, w in zip(values, weights, strict=True)), "a weight is rounded"
    for inputs in (
        np.where(weights > 0, largest, 0),
        np.where(weights < 0, largest, 0),
        largest,
        np.array([rng.integers(0, top + 1) for top in largest], dtype=object),
    ):
        order = rng.permutation(len(weights))
        products = values[order] * inputs[order].astype(dtype)
        partial = np.cumsum(products, dtype=dtype)
        exact = np.cumsum((weights * inputs)[order])
        assert all(Fraction(float(p)) == e * unit for p, e in zip(partial, exact, strict=True))


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(PRECISIONS))
def test_every_partial_sum_in_every_order_is_exact(data: st.DataObject, precision: Precision) -> None:
    g = random_graph(data.draw)
    try:
        snapped, lattices = snap(g, precision)
    except DalifError as error:
        assert "coarser than the whole numbers" in error.message  # noqa: PT017
        return
    require_exact(snapped)
    rng = np.random.default_rng(0)
    for root in ("feed", "sum"):
        if root not in snapped:
            continue
        under = [lattices[name] for name in leaves(snapped, root, find_sums(snapped).whole)]
        first = under[0]
        assert all((cut.form, cut.bases) == (first.form, first.bases) for cut in under)
        assert all((cut.exponents == first.exponents).all() for cut in under)
        for c in range(len(first.exponents)):
            k = int(first.exponents[c])
            for extreme in (max, min):
                terms = channel_terms(snapped, lattices, root, c, None, extreme)
                assert_exact_in_any_order(terms, k, np.float64, rng)
                if first.form.startswith("slices"):
                    for i, base in enumerate(first.bases):
                        digit = channel_terms(snapped, lattices, root, c, i, extreme)
                        assert_exact_in_any_order(digit, k - (base.bit_length() - 1), np.float32, rng)
                else:
                    assert_int32_planes(snapped, lattices, root, c, extreme)
        for cut in under:
            assert_values(g, snapped, cut)


def assert_int32_planes(
    g: SpikingGraph, lattices: dict[str, Lattice], root: str, c: int, extreme: Callable[[list[int]], int]
) -> None:
    """Weights in int8, every plane and each pair of planes within int32."""
    for name in leaves(g, root, find_sums(g).whole):
        if isinstance(g[name], Conv2d | Linear):
            for digit in lattices[name].digits:
                assert (digit == digit.astype(np.int8)).all()
    bases = lattices[leaves(g, root, find_sums(g).whole)[0]].bases
    reaches = []
    for i in range(len(bases)):
        weights, largest = channel_terms(g, lattices, root, c, i, extreme)
        reaches.append(max(sum(w * x for w, x in zip(weights, largest, strict=True) if w * s > 0) * s for s in (1, -1)))
    assert max(reaches) < 2**31
    for i in (0, 2):
        assert sum(256 ** (1 - j) * reach for j, reach in enumerate(reaches[i : i + 2])) < 2**31 or i + 1 == len(bases)


def assert_values(before: SpikingGraph, after: SpikingGraph, cut: Lattice) -> None:
    """The snapped graph holds exactly what the digits say, within half a grid of what it was."""
    pairs = [("weight", cut.digits), ("bias", cut.bias_digits)]
    if isinstance(after[cut.node], Scale):
        pairs = [("factor", cut.digits), ("offset", cut.bias_digits)]
    for key, digits in pairs:
        if digits is None:
            continue
        was, now = np.asarray(getattr(before[cut.node], key)), np.asarray(getattr(after[cut.node], key))
        was = np.broadcast_to(was.reshape((1,) * (now.ndim - was.ndim) + was.shape), now.shape)
        for c, k in enumerate(cut.exponents.tolist()):
            unit = Fraction(2) ** -k
            whole = [sum(int(d) * b for d, b in zip(ds, cut.bases, strict=True))
                     for ds in zip(*(digit[c].reshape(-1) for digit in digits), strict=True)]  # fmt: skip
            for w, new, old in zip(whole, now[c].reshape(-1), was[c].reshape(-1), strict=True):
                assert Fraction(float(new)) == w * unit
                assert abs(Fraction(float(new)) - Fraction(float(old))) <= unit / 2


# The grid is as fine as the condition allows.


def linear_graph(weight: Any, bias: Any = None, *, codes: bool = False) -> SpikingGraph:
    values = frozen(weight)
    kind = "real" if codes else "spike"
    return finished(
        Input(name="input", shape=(values.shape[1],), temporal=True, kind=kind),
        Linear(name="fc", inputs=(Edge("input"),), weight=values, bias=None if bias is None else frozen(bias)),
        neuron("n", "fc"),
        encoding=CODES if codes else None,
    )


def reach_at(weight: NDArray[np.float64], bias: NDArray[np.float64], k: int, top: int) -> int:
    """By Python's integers: how far the positive or the negative terms of a row reach on the grid 2^-k."""
    whole = [round(Fraction(float(w)) * Fraction(2) ** k) * top for w in weight]
    shift = round(Fraction(float(bias)) * Fraction(2) ** k)
    return max(sum(m for m in [*whole, shift] if m * s > 0) * s for s in (1, -1))


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(sorted(set(WEIGHTS) - {"zero", "subnormal", "below float32"})), st.integers(1, 31),
       st.booleans(), st.integers(0, 2**32))  # fmt: skip
def test_the_first_slice_lies_on_the_finest_grid(kind: str, features: int, codes: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = WEIGHTS[kind](rng, (4, features)), WEIGHTS["normal"](rng, (4,))
    _, lattices = snap(linear_graph(weight, bias, codes=codes), "exact")
    cut, top = lattices["fc"], 255 if codes else 1
    gap = cut.bases[0].bit_length() - 1
    for c in range(4):
        k = int(cut.exponents[c]) - gap
        assert reach_at(weight[c], bias[c], k, top) <= 2**24
        assert reach_at(weight[c], bias[c], k + 1, top) > 2**24


@pytest.mark.parametrize(("precision", "limit"), [("exact", 8_355_711), ("exact64", 2**31 - 2**25)])
def test_planes_lie_on_the_finest_grid(precision: Precision, limit: int) -> None:
    weight = np.random.default_rng(3).normal(size=(5, 32)) * np.array([1e-6, 0.3, 1.0, 40.0, 1e9])[:, None]
    _, lattices = snap(linear_graph(weight), precision)
    cut = lattices["fc"]
    for c in range(5):
        largest = max(abs(int(v)) for v in cut.weight[c])
        assert largest == round(Fraction(float(np.abs(weight[c]).max())) * 2 ** int(cut.exponents[c]))
        assert limit / 2 - 1 <= largest <= limit


def test_the_second_slice_is_as_fine_as_its_condition_allows() -> None:
    weight = np.random.default_rng(4).normal(size=(3, 20))
    _, lattices = snap(linear_graph(weight), "exact")
    cut = lattices["fc"]

    def low_reach(k_low: int, c: int) -> int:
        k = int(cut.exponents[c]) - (cut.bases[0].bit_length() - 1)
        high = [round(Fraction(w) * 2**k) for w in weight[c].tolist()]
        left = [Fraction(w) - Fraction(h, 2**k) for w, h in zip(weight[c].tolist(), high, strict=True)]
        whole = [round(x * 2**k_low) for x in left]
        return max(sum(m for m in whole if m * s > 0) * s for s in (1, -1))

    assert max(low_reach(int(cut.exponents[c]), c) for c in range(3)) <= 2**24
    assert max(low_reach(int(cut.exponents[c]) + 1, c) for c in range(3)) > 2**24


def test_largest_is_the_reach_of_the_worst_slice() -> None:
    weight, bias = np.random.default_rng(5).normal(size=(3, 20)), np.array([0.5, -2.0, 0.0])
    _, lattices = snap(linear_graph(weight, bias), "exact")
    cut = lattices["fc"]
    assert cut.bias_digits is not None
    reaches = []
    for digit, shift in zip(cut.digits, cut.bias_digits, strict=True):
        for c in range(3):
            terms = [*digit[c].tolist(), int(shift[c])]
            reaches.append(max(sum(m for m in terms if m * s > 0) * s for s in (1, -1)))
    assert (cut.largest, cut.limit) == (max(reaches), 2**24)


# Forms.


def form_of(inputs: int, precision: Precision, **options: Any) -> str:
    weight = np.random.default_rng(6).normal(size=(4, inputs))
    return snap(linear_graph(weight, **options), precision)[1]["fc"].form


@pytest.mark.parametrize(
    ("inputs", "codes", "exact", "exact64"),
    [
        (31, False, "slices2", "slices2"),
        (32, False, "planes3", "planes4"),
        (31, True, "slices3", "slices3"),
        (32, True, "slices3", "slices3"),  # 255 is beyond what int8 planes take
    ],
)
def test_the_form_follows_from_what_a_layer_reads(inputs: int, codes: bool, exact: str, exact64: str) -> None:
    assert form_of(inputs, "exact", codes=codes) == exact
    assert form_of(inputs, "exact64", codes=codes) == exact64


def pooled_graph(kernel: int, *, groups: int = 1, features: int = 32) -> SpikingGraph:
    rng = np.random.default_rng(7)
    size = kernel
    return finished(
        Input(name="input", shape=(features, size, size), temporal=True, kind="spike"),
        SumPool2d(name="pool", inputs=(Edge("input"),), kernel=(kernel, kernel), stride=(kernel, kernel)),
        Conv2d(
            name="conv", inputs=(Edge("pool"),), weight=frozen(rng.normal(size=(4, features // groups, 1, 1))),
            groups=groups,
        ),
        neuron("n", "conv"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "groups", "form"), [(11, 1, "planes3"), (12, 1, "slices2"), (2, 2, "slices2"), (2, 1, "planes3")]
)
def test_planes_need_small_counts_and_one_group(kernel: int, groups: int, form: str) -> None:
    # Two groups of 32 channels each would be wide enough.
    g = pooled_graph(kernel, groups=groups, features=64 if groups == 2 else 32)
    assert snap(g, "exact")[1]["conv"].form == form


def test_planes_need_room_in_int32() -> None:
    # 2^15 terms of 127 * 32896 would reach beyond int32.
    rng = np.random.default_rng(8)
    g = finished(
        Input(name="input", shape=(2**13,), temporal=True, kind="spike"),
        *(Linear(name=f"fc{i}", inputs=(Edge("input"),), weight=frozen(rng.normal(size=(1, 2**13)))) for i in range(5)),
        Add(name="sum", inputs=tuple(Edge(f"fc{i}") for i in range(5))),
        neuron("n", "sum"),
    )
    assert {cut.form for cut in snap(g, "exact")[1].values()} == {"slices2"}


def test_branches_share_the_form_of_the_narrowest() -> None:
    rng = np.random.default_rng(9)
    g = finished(
        Input(name="input", shape=(32, 2, 2), temporal=True, kind="spike"),
        Conv2d(name="a", inputs=(Edge("input"),), weight=frozen(rng.normal(size=(8, 32, 1, 1)))),
        neuron("n", "a"),
        Conv2d(name="b", inputs=(Edge("input"),), weight=frozen(rng.normal(size=(4, 32, 1, 1)))),
        Conv2d(name="c", inputs=(Edge("n"),), weight=frozen(rng.normal(size=(4, 8, 1, 1)))),
        Add(name="sum", inputs=(Edge("b"), Edge("c"))),
        neuron("m", "sum"),
    )
    forms = {name: cut.form for name, cut in snap(g, "exact")[1].items()}
    assert forms == {"a": "planes3", "b": "slices2", "c": "slices2"}


# Refusals.


def test_an_unfolded_graph_is_refused() -> None:
    norm = BatchNorm(
        name="bn", inputs=(Edge("fc"),), weight=frozen([1.0]), bias=frozen([0.0]), mean=frozen([0.0]),
        variance=frozen([1.0]), epsilon=0.0,
    )  # fmt: skip
    g = finished(
        Input(name="input", shape=(2,), temporal=True, kind="spike"),
        Linear(name="fc", inputs=(Edge("input"),), weight=frozen(np.ones((1, 2)))),
        norm,
        neuron("n", "bn"),
    )
    with pytest.raises(DalifError, match=r"E0113.*'bn'.*fold the graph"):
        snap(g, "exact")
    unfolded = linear_graph(np.ones((1, 2)))
    changed = replace(unfolded.neurons[0], alpha=frozen(0.5))
    with pytest.raises(DalifError, match=r"E0113.*'n'.*alpha = 1"):
        snap(unfolded.replaced({"n": changed}), "exact")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(DalifError, match=r"E0101.*'float32'"):
        snap(linear_graph(np.ones((1, 2))), "float32")  # type: ignore[arg-type]


@pytest.mark.parametrize("features", [2, 32])
def test_weights_beyond_float32_are_refused(features: int) -> None:
    weight = np.ones((2, features))
    weight[1, 1] = 2.0**100
    with refused("fc", "values beyond 2"):
        snap(linear_graph(weight), "exact")
    weight[1, 1] = 2.0**99
    snap(linear_graph(weight), "exact")


def test_a_bias_beyond_float32_is_refused() -> None:
    with refused("fc", "values beyond 2"):
        snap(linear_graph(np.ones((1, 2)), [1e35]), "exact")


@pytest.mark.parametrize("features", [2, 40])
def test_an_identity_below_the_grid_is_refused(features: int) -> None:
    g = finished(
        Input(name="input", shape=(features,), temporal=True, kind="spike"),
        Linear(name="fc", inputs=(Edge("input"),), weight=frozen(np.full((features, features), 1e25))),
        Add(name="sum", inputs=(Edge("fc"), Edge("input"))),
        neuron("n", "sum"),
    )
    with refused("sum", "coarser than the whole numbers"):
        snap(g, "exact")


# The whole graph.


def as_codes(name: str) -> tuple[SpikingGraph, NDArray[np.generic]]:
    """One of the test graphs, folded, for codes where it takes real values; and its data."""
    g, batch = GRAPHS[name]()
    if g.encoding.kind == "real":
        encoding = Encoding(kind="uint8", scale=1 / 255)
        g = SpikingGraph(g.nodes, output=g.output, timesteps=g.timesteps, encoding=encoding)
        batch = np.round(batch * 255.0).astype(np.uint8)
    return fold(g), batch


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_snapped_graph_fires_as_before(name: str, precision: Precision) -> None:
    folded, batch = as_codes(name)
    snapped, lattices = snap(folded, precision)
    require_exact(snapped)
    assert {node.name for node in snapped.nodes if isinstance(node, Conv2d | Linear | Scale)} == lattices.keys()
    for name, cut in lattices.items():
        assert f"{name}: snapped, {cut.form}" in snapped.history
    expected, found = simulate(folded, batch), simulate(snapped, batch)
    for layer, train in expected.spikes.items():
        assert not train.differing(found.spikes[layer]).any(), layer
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-6)


def test_a_snapped_graph_stays_what_it_is() -> None:
    folded, _ = as_codes("uint8 codes")
    once, first = snap(folded, "exact64")
    twice, second = snap(once, "exact64")
    for name, cut in second.items():
        for key in ("weight", "bias", "factor", "offset"):
            if (values := getattr(once[name], key, None)) is not None:
                assert (getattr(twice[name], key) == values).all(), (name, key)
        assert cut.form == first[name].form


# Codes: scale, mean and std go into what reads the input. All numbers are dyadic here, so nothing rounds.

DYADIC = Encoding(kind="uint8", scale=0.25, mean=(0.5, -1.0), std=(2.0, 0.5))


def dyadic(rng: np.random.Generator, *shape: int) -> Array:
    return frozen(rng.integers(-8, 9, shape) / 16)


def code_graph(build: Callable[[np.random.Generator], list[Node]], encoding: Encoding = DYADIC) -> SpikingGraph:
    nodes = build(np.random.default_rng(10))
    return finished(Input(name="input", shape=(2, 5, 4), temporal=False), *nodes, encoding=encoding)


def dyadic_conv(rng: np.random.Generator, source: str, **options: Any) -> Conv2d:
    bias = options.pop("bias", True)
    channels = 2 // options.get("groups", 1)
    return Conv2d(
        name="conv", inputs=(Edge(source, options.pop("delay", 0)),), weight=dyadic(rng, 4, channels, 3, 2),
        bias=dyadic(rng, 4) if bias else None, **options,
    )  # fmt: skip


def with_conv(source: str = "input", before: list[Node] | None = None, **options: Any) -> Callable[..., list[Node]]:
    return lambda rng: [*(before or []), dyadic_conv(rng, source, **options), neuron("n", "conv")]


def scale(factor: Any, offset: Any) -> Scale:
    return Scale(name="scale", inputs=(Edge("input"),), factor=frozen(factor), offset=frozen(offset))


def pool(kind: type[SumPool2d] | type[MaxPool2d], source: str = "input", **options: Any) -> Node:
    return kind(name="pool", inputs=(Edge(source),), kernel=(2, 2), stride=(1, 1), **options)


def flat_linear(rng: np.random.Generator) -> list[Node]:
    flat = Flatten(name="flat", inputs=(Edge("input"),))
    fc = Linear(name="fc", inputs=(Edge("flat"),), weight=dyadic(rng, 5, 40), bias=dyadic(rng, 5))
    return [flat, fc, neuron("n", "fc")]


def shared(rng: np.random.Generator) -> list[Node]:
    """A convolution that two neurons read, one of them through a sum with another branch."""
    conv, other = dyadic_conv(rng, "input", padding=(1, 1)), dyadic_conv(rng, "input", padding=(1, 1))
    return [
        conv, replace(other, name="other"), neuron("n", "conv"),
        Add(name="sum", inputs=(Edge("conv"), Edge("other"))), neuron("m", "sum"),
        Add(name="spikes", inputs=(Edge("n"), Edge("m"))),
    ]  # fmt: skip


CODE_READERS: dict[str, Callable[[np.random.Generator], list[Node]]] = {
    "no padding": with_conv(),
    "no bias": with_conv(bias=False),
    "padding": with_conv(padding=(1, 1)),
    "padding without bias": with_conv(padding=(2, 1), bias=False),
    "stride and dilation": with_conv(padding=(2, 1), stride=(2, 1), dilation=(2, 3)),
    "groups": with_conv(padding=(1, 0), groups=2),
    "scale before padding": with_conv("scale", [scale([[[2.0]], [[-0.5]]], [[[0.25]], [[3.0]]])], padding=(1, 1)),
    "sum pool": with_conv("pool", [pool(SumPool2d)], padding=(1, 1)),
    "max pool": with_conv("pool", [pool(MaxPool2d, padding=(1, 1))], padding=(1, 1)),
    "scale and max pool": with_conv("pool", [scale(2.0, -1.0), pool(MaxPool2d, "scale")]),
    "linear": flat_linear,
    "neuron": lambda rng: [neuron("n", "input", v_threshold=frozen(20.0))],
    "added": lambda rng: [
        dyadic_conv(rng, "input", padding=(1, 1), stride=(1, 1)),
        Conv2d(name="one", inputs=(Edge("input"),), weight=frozen(np.ones((2, 2, 1, 1)) / 4)),
        Add(name="sum", inputs=(Edge("one"), Edge("input"))),
        neuron("n", "sum", v_threshold=frozen(20.0)),
    ],
    "shared": shared,
}


@pytest.mark.parametrize("reader", CODE_READERS)
def test_codes_give_what_the_module_input_gives(reader: str) -> None:
    g = code_graph(CODE_READERS[reader])
    batch = np.random.default_rng(11).integers(0, 256, (7, 2, 5, 4)).astype(np.uint8)
    folded = take_codes(g)
    assert folded.encoding == CODES
    expected: dict[tuple[str, int], NDArray[np.floating]] = {}
    found: dict[tuple[str, int], NDArray[np.floating]] = {}
    logits = replay(g, batch, lambda step: expected.update({(step.neuron.name, step.t): step.current}))
    assert (replay(folded, batch, lambda s: found.update({(s.neuron.name, s.t): s.current})) == logits).all()
    assert found.keys() == expected.keys()
    for key, current in expected.items():
        assert (found[key] == current).all(), key
    find_sums(folded)  # what it became has an exact form


def test_spikes_and_bare_codes_stay_as_they_are() -> None:
    spikes = linear_graph(np.ones((1, 2)))
    codes = linear_graph(np.ones((1, 2)), codes=True)
    assert take_codes(spikes) is spikes
    assert take_codes(codes) is codes


def test_a_mean_of_0_needs_no_map() -> None:
    encoding = Encoding(kind="uint8", scale=0.25, std=(2.0, 0.5))
    folded = take_codes(code_graph(with_conv(padding=(1, 1)), encoding))
    assert [type(node).__name__ for node in folded.nodes] == ["Input", "Conv2d", "Neuron", "Readout"]


def test_real_input_is_refused() -> None:
    g = code_graph(with_conv(), Encoding())
    with refused("input", "real-valued input.*Encoding"):
        take_codes(g)


def test_codes_that_cannot_be_folded_are_refused() -> None:
    negative = Encoding(kind="uint8", scale=-0.25)
    with refused("pool", "largest code"):
        take_codes(code_graph(with_conv("pool", [pool(MaxPool2d)]), negative))
    with refused("pool", "windows that are not all whole"):
        take_codes(code_graph(with_conv("pool", [pool(SumPool2d, padding=(1, 1))])))
    with refused("conv", "delayed edge"):
        take_codes(code_graph(with_conv(delay=1)))
    by_place = np.arange(40.0).reshape(2, 5, 4)
    with refused("conv", "place by place"):
        take_codes(code_graph(with_conv("scale", [scale(by_place, 0.0)])))
    with pytest.raises(DalifError, match="E0106"):
        take_codes(code_graph(with_conv(), Encoding(kind="uint8", mean=(0.0, 1.0, 2.0))))


def test_a_delayed_edge_may_read_codes_whose_mean_is_0() -> None:
    g = code_graph(with_conv(delay=1, padding=(1, 1)), Encoding(kind="uint8", scale=0.25))
    batch = np.random.default_rng(12).integers(0, 256, (3, 2, 5, 4)).astype(np.uint8)
    assert (simulate(take_codes(g), batch).logits == simulate(g, batch).logits).all()


def test_averages_that_stay_are_refused() -> None:
    average = AvgPool2d(name="pool", inputs=(Edge("n"),), kernel=(2, 2), stride=(2, 2), padding=(1, 1))
    g = code_graph(lambda rng: [dyadic_conv(rng, "input"), neuron("n", "conv"), average])
    with refused("pool", "an average is no whole number"):
        snap(fold(g), "exact")
