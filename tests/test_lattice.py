"""The integer mathematics of exact sums: what is whole, what is a sum, how far sums reach, what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import (
    Lattice,
    certificate_of,
    find_sums,
    identity_digits,
    joined,
    require_exact,
)
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
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
    Zeros,
    frozen,
)

SHAPE = (2, 4, 4)


def conv(name: str, source: str, *, weight: object = None, bias: object = None, delay: int = 0) -> Conv2d:
    values = np.full((2, 2, 3, 3), 0.5) if weight is None else weight
    return Conv2d(
        name=name, inputs=(Edge(source, delay),), weight=frozen(values), padding=(1, 1),
        bias=None if bias is None else frozen(bias),
    )  # fmt: skip


def neuron(name: str, source: str) -> Neuron:
    return Neuron(name=name, inputs=(Edge(source),), alpha=frozen(1.0), beta=frozen(0.5))


def add(name: str, *sources: str | Edge) -> Add:
    return Add(name=name, inputs=tuple(s if isinstance(s, Edge) else Edge(s) for s in sources))


def graph(*nodes: Node, source: str | None = None, encoding: Encoding | None = None) -> SpikingGraph:
    """From a spike input `input` to a readout that reads the last node."""
    given_input = any(isinstance(node, Input) for node in nodes)
    first = () if given_input else (Input(name="input", shape=SHAPE, temporal=True, kind="spike"),)
    readout = Readout(name="readout", inputs=(Edge(source or nodes[-1].name),), mode="mean")
    return SpikingGraph([*first, *nodes, readout], output="readout", timesteps=3, encoding=encoding)


def pool(kind: type[SumPool2d] | type[MaxPool2d] | type[AvgPool2d], source: str) -> Node:
    return kind(name="pool", inputs=(Edge(source),), kernel=(2, 2), stride=(2, 2))


def group_names(g: SpikingGraph) -> list[list[str]]:
    return [[node.name for node in group] for group in find_sums(g).groups]


def refused(node: str, why: str, code: Code = Code.TARGET_CANNOT_HOLD) -> object:
    return pytest.raises(DalifError, match=rf"\[{code.identifier}\] node '{node}' .*{why}")


# What is whole, and what is a sum.


def test_whole_nodes_and_their_largest_values() -> None:
    g = graph(
        conv("c", "input"),
        neuron("n", "c"),
        pool(SumPool2d, "n"),
        MaxPool2d(name="max", inputs=(Edge("pool"),), kernel=(2, 2), stride=(2, 2)),
        add("twice", "max", Edge("max", 1)),
        Flatten(name="flat", inputs=(Edge("twice"),)),
        Zeros(name="zeros", shape=SHAPE),
        add("silent", "n", "zeros"),
        Linear(name="fc", inputs=(Edge("flat"),), weight=frozen(np.ones((3, 2)))),
        neuron("m", "silent"),
        source="fc",
    )
    assert find_sums(g).whole == {
        "input": 1, "n": 1, "pool": 4, "max": 4, "twice": 8, "flat": 8, "zeros": 0, "silent": 1, "m": 1,
    }  # fmt: skip


def test_codes_reach_255() -> None:
    codes = Input(name="input", shape=SHAPE, temporal=False)
    g = graph(codes, conv("c", "input"), neuron("n", "c"), encoding=Encoding(kind="uint8"))
    sums = find_sums(g)
    (group,) = sums.groups
    assert sums.whole["input"] == 255
    assert sums.inputs_maximum(group[0]) == 255  # type: ignore[arg-type]


def test_zeros_reach_0() -> None:
    g = graph(Zeros(name="z", shape=SHAPE), conv("c", "z"), add("a", "c", "input"), neuron("n", "a"))
    assert find_sums(g).whole["z"] == 0


def test_sums_that_are_added_share_a_group() -> None:
    g = graph(
        conv("a", "input"), conv("b", "input"), conv("c", "input"), conv("d", "input"),
        add("ab", "a", "b"), add("abc", "ab", "c"), neuron("n", "abc"), neuron("m", "ab"), neuron("o", "d"),
        add("spikes", "n", "m", "o"),
    )  # fmt: skip
    groups = group_names(g)
    assert [sorted(group) for group in groups] == [["a", "ab", "abc", "b", "c"], ["d"]]
    assert groups[0].index("ab") > max(groups[0].index("a"), groups[0].index("b"))
    assert groups[0].index("abc") > groups[0].index("ab")


def test_a_delayed_branch_is_in_the_group() -> None:
    g = graph(conv("a", "input"), conv("b", "n", delay=1), add("ab", "a", Edge("b", 2)), neuron("n", "ab"))
    assert [sorted(group) for group in group_names(g)] == [["a", "ab", "b"]]


def test_whether_something_is_added_as_it_is() -> None:
    plain = find_sums(graph(conv("a", "input"), conv("b", "input"), add("ab", "a", "b"), neuron("n", "ab")))
    identity = find_sums(graph(conv("a", "input"), add("ab", "a", "input"), neuron("n", "ab")))
    nothing = find_sums(graph(conv("a", "input"), Zeros(name="z", shape=SHAPE), add("ab", "a", "z"), neuron("n", "ab")))
    assert [sums.has_identity(sums.groups[0]) for sums in (plain, identity, nothing)] == [False, True, False]


# Refusals, by name.


def test_real_input_is_refused() -> None:
    real = Input(name="input", shape=SHAPE, temporal=False)
    with refused("input", "real-valued input"):
        find_sums(graph(real, conv("c", "input"), neuron("n", "c")))


def test_an_average_is_refused() -> None:
    with refused("pool", "an average is no whole number"):
        find_sums(graph(pool(AvgPool2d, "input"), neuron("n", "pool")))


def test_weights_of_sums_are_refused() -> None:
    with refused("b", "reads 'a', which holds no whole numbers"):
        find_sums(graph(conv("a", "input"), conv("b", "a"), neuron("n", "b")))


@pytest.mark.parametrize("kind", [MaxPool2d, SumPool2d])
def test_pools_of_sums_are_refused(kind: type[MaxPool2d] | type[SumPool2d]) -> None:
    with refused("pool", "stands between weights and their neuron"):
        find_sums(graph(conv("a", "input"), pool(kind, "a"), neuron("n", "pool")))


def test_an_integrator_without_a_neuron_is_refused() -> None:
    with refused("total", "adds to itself"):
        find_sums(graph(conv("a", "input"), add("total", "a", Edge("total", 1)), neuron("n", "total")))


def test_a_count_that_grows_is_refused() -> None:
    with refused("total", "adds to itself"):
        find_sums(graph(add("total", "input", Edge("total", 1)), neuron("n", "total")))


def test_what_stands_after_the_readout_is_refused() -> None:
    g = graph(conv("c", "input"), neuron("n", "c"))
    scale = Scale(name="last", inputs=(Edge("readout"),), factor=frozen(2.0), offset=frozen(0.0))
    with refused("last", "after the readout"):
        find_sums(SpikingGraph([*g.nodes, scale], output="last", timesteps=3))


# How far sums reach.


def brute_force(terms: Sequence[tuple[int, int]], bias: int) -> tuple[int, int]:
    """The largest and smallest partial sum over all inputs and orders: of positive terms only, of negative only."""
    sums = [
        sum(w * x for (w, _), x in zip(terms, values, strict=True)) + b
        for values in itertools.product(*([0, top] for _, top in terms))
        for b in (0, bias)
    ]
    return max(0, *sums), max(0, *(-s for s in sums))


whole = st.integers(-(2**20), 2**20)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(whole, min_size=2, max_size=4),
    st.lists(whole, min_size=2, max_size=2),
    whole, whole, st.integers(0, 2**20),
)  # fmt: skip
def test_reach_is_the_largest_partial_sum(
    first: list[int], second: list[int], bias: int, scaled: int, one: int
) -> None:
    features = (len(first),)
    g = SpikingGraph(
        [
            Input(name="input", shape=features, temporal=True, kind="spike"),
            Linear(name="a", inputs=(Edge("input"),), weight=frozen([first]), bias=frozen([bias])),
            neuron("n", "a"),
            add("two", "n", "n"),
            Linear(name="b", inputs=(Edge("two"),), weight=frozen([[second[0]]])),
            Scale(name="s", inputs=(Edge("n"),), factor=frozen(scaled), offset=frozen(second[1])),
            add("all", "b", "s", "two"),
            neuron("m", "all"),
            Readout(name="readout", inputs=(Edge("m"),), mode="mean"),
        ],
        output="readout", timesteps=1,
    )  # fmt: skip
    sums = find_sums(g)
    groups = {group[-1].name: group for group in sums.groups}
    ones = np.array([one])
    found = sums.reach(groups["a"], {"a": np.array([first])}, {"a": np.array([bias])}, ones)["a"]
    assert (found[0][0], found[1][0]) == brute_force([(w, 1) for w in first], bias)
    weights = {"b": np.array([[second[0]]]), "s": np.array([scaled])}
    found = sums.reach(groups["all"], weights, {"b": None, "s": np.array([second[1]])}, ones)["all"]
    assert (found[0][0], found[1][0]) == brute_force([(second[0], 2), (scaled, 1), (one, 2)], second[1])


def test_reach_of_places_is_that_of_the_largest_place() -> None:
    scale = Scale(
        name="s", inputs=(Edge("input"),), factor=frozen(np.arange(-4.0, 28.0).reshape(SHAPE)), offset=frozen(0.0)
    )
    sums = find_sums(graph(scale, neuron("n", "s")))
    factor = np.arange(-4, 28).reshape(SHAPE)
    offset = -np.arange(32).reshape(SHAPE)
    positive, negative = sums.reach(sums.groups[0], {"s": factor}, {"s": offset}, np.array([0, 0]))["s"]
    assert positive.tolist() == [11, 27]
    assert negative.tolist() == [4 + 15, 31]


def test_reach_does_not_overflow() -> None:
    sums = find_sums(graph(conv("c", "input"), neuron("n", "c")))
    weights = np.full((2, 2, 3, 3), 2**60)
    positive, negative = sums.reach(sums.groups[0], {"c": weights}, {"c": None}, np.array([0, 0]))["c"]
    assert positive.tolist() == [18 * 2**60] * 2
    assert negative.tolist() == [0, 0]


def test_identity_digits_put_1_into_the_highest_digit_that_holds_it() -> None:
    digits = identity_digits(np.array([0, 7, 8, 15, 16, 30]), (65536, 256, 1))
    assert joined(digits, (65536, 256, 1)).tolist() == [1, 128, 256, 2**15, 2**16, 2**30]
    assert [digit.tolist() for digit in digits] == [[0, 0, 0, 0, 1, 2**14], [0, 0, 1, 128, 0, 0], [1, 128, 0, 0, 0, 0]]


# Exact in float64, or not.


def linear_graph(weight: object, bias: object = None, *, identity: bool = False) -> SpikingGraph:
    values = np.asarray(weight, dtype=np.float64)
    nodes: list[Node] = [
        Input(name="input", shape=(values.shape[1],), temporal=True, kind="spike"),
        Linear(name="fc", inputs=(Edge("input"),), weight=frozen(values), bias=None if bias is None else frozen(bias)),
    ]
    if identity:
        nodes.append(add("sum", "fc", "input"))
    nodes.append(neuron("n", nodes[-1].name))
    return graph(*nodes)


@pytest.mark.parametrize(
    ("weight", "bias", "identity", "exact"),
    [
        ([[2.0**52, 2.0**52]], None, False, True),
        ([[2.0**52, 2.0**52]], [1.0], False, False),  # 2^53 + 1
        ([[-(2.0**52), -(2.0**52)]], [-1.0], False, False),
        ([[2.0**52, 2.0**52]], [-1.0], False, True),  # the positive and the negative terms apart
        ([[2.0**600, 2.0**600]], None, False, True),
        ([[2.0**-1074, 2.0**-1060]], None, False, True),
        ([[2.0**600, 1.0]], None, False, False),
        ([[0.1, 0.2]], None, False, False),
        ([[0.1, 0.001]], None, False, False),
        ([[0.0, 0.0]], [0.0], False, True),
        ([[2.0**-53, 0.0], [0.0, 0.0]], None, True, False),
        ([[2.0**-52, 0.0], [0.0, 0.0]], None, True, True),
        ([[1.0, 0.0], [2.0**-40, 2.0**10]], None, True, True),
    ],
)
def test_sums_beyond_float64_are_refused(weight: object, bias: object, identity: bool, exact: bool) -> None:
    g = linear_graph(weight, bias, identity=identity)
    if exact:
        require_exact(g)
    else:
        with refused("sum" if identity and weight[0][0] == 2.0**-53 else "fc", "not exact", Code.BAD_GRAPH):  # type: ignore[index]
            require_exact(g)


# The certificate.


def lattice(
    name: str, form: str, exponents: list[int], bases: tuple[int, ...], digits: object, bias: object
) -> Lattice:
    cut = tuple(np.array(digit, dtype=np.int64) for digit in digits)  # type: ignore[attr-defined]
    biases = None if bias is None else tuple(np.array(digit, dtype=np.int64) for digit in bias)  # type: ignore[attr-defined]
    return Lattice(
        node=name, form=form, exponents=np.array(exponents), bases=bases, digits=cut, bias_digits=biases,  # type: ignore[arg-type]
        inputs_maximum=1, largest=0, limit=0,
    )  # fmt: skip


def test_the_certificate_of_slices() -> None:
    # Slice 0, in units of 2^(8-k): 12, 20 | 0, 0. Slice 1: 3, 1 | 8, 0. Biases: 4, -6 | 0, 16.
    g = linear_graph([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0])
    cut = lattice("fc", "slices2", [10, 12], (256, 1), [[[12, 20], [0, 0]], [[3, 1], [8, 0]]], [[4, -6], [0, 16]])
    (entry,) = json.loads(certificate_of({"fc": cut}, g))
    entry.pop("weights")
    # Channel 0: slice 0 reaches 36 of 4 each, slice 1 4. Channel 1: slice 0 reaches 6 of 2 each, slice 1 24 of 8.
    assert entry == {
        "node": "fc", "form": "slices2", "exponents": [10, 9], "largest": 9, "limit": 2**24, "inputs_maximum": 1,
    }  # fmt: skip


def test_the_certificate_of_planes() -> None:
    g = linear_graph([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], identity=True)
    digits = [[[1, 0], [0, 0]], [[-1, 2], [0, 0]], [[0, 0], [0, 0]]]
    cut = lattice("fc", "planes3", [20, 9], (65536, 256, 1), digits, [[0, 0], [0, 0], [-256, 0]])
    (entry,) = json.loads(certificate_of({"fc": cut}, g))
    # Channel 0: 65280 + 512 - 256 and 2^20 for the identity, in units of 2^8. Channel 1: the identity alone.
    assert entry["exponents"] == [12, 0]
    assert entry["largest"] == (65280 + 512 + 2**20) // 256
    assert entry["limit"] == 2**53


def test_the_certificate_counts_all_branches_of_what_a_neuron_reads() -> None:
    ones = np.ones((1, 1))
    g = SpikingGraph(
        [
            Input(name="input", shape=(1,), temporal=True, kind="spike"),
            *(Linear(name=n, inputs=(Edge("input"),), weight=frozen(ones)) for n in "abcd"),
            add("ab", "a", "b"), add("abc", "ab", "c"), neuron("n", "ab"), neuron("m", "abc"), neuron("o", "d"),
            add("spikes", "n", "m", "o"),
            Readout(name="readout", inputs=(Edge("spikes"),), mode="mean"),
        ],
        output="readout", timesteps=1,
    )  # fmt: skip
    cut = {
        name: lattice(name, "slices2", [3], (2, 1), [[[value]], [[0]]], None)
        for name, value in zip("abcd", (1, 2, 4, 8), strict=True)
    }
    entries = {entry["node"]: entry for entry in json.loads(certificate_of(cut, g))}
    assert {name: entry["largest"] for name, entry in entries.items()} == {"a": 7, "b": 7, "c": 7, "d": 1}
    assert {name: entry["exponents"] for name, entry in entries.items()} == {"a": [2], "b": [2], "c": [2], "d": [-1]}
