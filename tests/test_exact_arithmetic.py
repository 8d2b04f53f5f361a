"""Exact arithmetic: events in any order and PyTorch give the same bits of V, spikes and logits.

What they give is the definition's: an oracle with rational numbers, which shares nothing with them, computes a
snapped graph term by term and rounds where the definition says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import Precision
from dalif_deploy.nodes import (
    Add,
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
from dalif_deploy.passes import fold
from dalif_deploy.passes.snap import snap
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.torch import TorchRuntime
from tests.graphs import GRAPHS, SPECIAL_GRAPHS, Build

PRECISIONS: tuple[Precision, ...] = ("exact", "exact64")
DTYPES = {"exact": np.float32, "exact64": np.float64}
Batch = NDArray[np.generic]


def recurrent() -> tuple[SpikingGraph, Batch]:
    """Delayed edges, a shortcut from the past, and spikes that are read out as they are."""
    build = Build(21, (3, 4, 4), temporal=True, kind="spike")
    build.conv("conv", "input", (3, 4), bias=True)
    build.nodes.append(Conv2d(name="back", inputs=(Edge("sn", 1),), weight=build.weights(4, 4, 3, 3), padding=(1, 1)))
    build.nodes.append(Add(name="sum", inputs=(Edge("conv"), Edge("back", 1), Edge("sn", 2))))
    build.neuron("sn", "sum", alpha=1.0, v_threshold=0.9)
    build.add(Flatten(name="flat", inputs=(Edge("sn"),)))
    batch = (np.random.default_rng(22).random((5, 6, 3, 4, 4)) < 0.4).astype(np.float32)
    return build.finish("flat", timesteps=6, mode="last"), batch


def wide() -> tuple[SpikingGraph, Batch]:
    """Convolutions of 32 channels and more, on planes, with a shortcut of each kind."""
    build = Build(23, (32, 3, 3), temporal=True, kind="spike")
    build.conv("conv1", "input", (32, 34), bias=True)
    build.neuron("sn1", "conv1", alpha=1.0, v_threshold=0.3, leak_target=0.1, v_reset=-0.1)
    build.conv("conv2", "sn1", (34, 34), stride=1)
    build.add(Scale(name="scaled", inputs=(Edge("sn1"),), factor=frozen(0.3), offset=frozen(-0.01)))
    build.plus("sum", "conv2", "scaled", "sn1")
    build.neuron("sn2", "sum", alpha=1.0, beta=np.linspace(-0.5, 0.9, 34).reshape(34, 1, 1), reset="subtract")
    build.add(SumPool2d(name="pool", inputs=(Edge("sn2"),), kernel=(2, 2), stride=(2, 2)))
    build.add(Flatten(name="flat", inputs=(Edge("pool"),)))
    build.linear("fc", "flat", (34, 6))
    batch = (np.random.default_rng(24).random((8, 2, 32, 3, 3)) < 0.3).astype(np.float32)
    return build.finish("fc", timesteps=2, mode="max"), batch


MAKERS = {**GRAPHS, **SPECIAL_GRAPHS, "recurrent": recurrent, "wide": wide}


@cache
def folded(name: str) -> tuple[SpikingGraph, Batch]:
    """A graph that takes codes or spikes, folded, and its data."""
    graph, batch = MAKERS[name]()
    if graph.encoding.kind == "real" and graph.input.kind == "real":
        encoding = Encoding(kind="uint8", scale=1 / 255)
        graph = SpikingGraph(graph.nodes, output=graph.output, timesteps=graph.timesteps, encoding=encoding)
        batch = np.round(np.asarray(batch, dtype=np.float64) * 255.0).astype(np.uint8)
    return fold(graph), batch


@cache
def snapped(name: str, precision: Precision) -> tuple[SpikingGraph, Batch]:
    graph, batch = folded(name)
    return snap(graph, precision)[0], batch


@dataclass
class Run:
    """One runtime's recording of a batch, and the potentials, [T, batch, *shape] by layer."""

    recording: Recording
    potentials: dict[str, NDArray[np.floating]]


def run(kind: type[Any], graph: SpikingGraph, batch: Batch, **options: Any) -> Run:
    seen: dict[str, list[NDArray[np.floating]]] = {neuron.name: [] for neuron in graph.neurons}
    runtime = kind(graph, watch=lambda name, potential: seen[name].append(potential.copy()), **options)
    recording = runtime.run(batch)
    return Run(recording, {name: np.stack(steps) for name, steps in seen.items()})


def assert_same_bits(found: Run, expected: Run) -> None:
    """0.0 and -0.0 are equal; nothing here is NaN."""
    for name, potential in expected.potentials.items():
        assert found.potentials[name].dtype == potential.dtype
        assert (found.potentials[name] == potential).all(), name
    for name, train in expected.recording.spikes.items():
        assert not train.differing(found.recording.spikes[name]).any(), name
    assert found.recording.logits.dtype == expected.recording.logits.dtype
    assert (found.recording.logits == expected.recording.logits).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MAKERS)
def test_events_in_any_order_and_torch_give_the_same_bits(name: str, precision: Precision) -> None:
    graph, batch = snapped(name, precision)
    first = run(EventsRuntime, graph, batch, arithmetic=precision)
    assert first.recording.logits.dtype == DTYPES[precision]
    assert all(potential.dtype == DTYPES[precision] for potential in first.potentials.values())
    for seed in range(3):
        order = np.random.default_rng(seed)
        assert_same_bits(run(EventsRuntime, graph, batch, arithmetic=precision, order=order), first)
    assert_same_bits(run(TorchRuntime, graph, batch, arithmetic=precision), first)
    one_by_one = [run(TorchRuntime, graph, batch[i : i + 1], arithmetic=precision) for i in range(len(batch))]
    for key, potential in first.potentials.items():
        assert (np.concatenate([single.potentials[key] for single in one_by_one], axis=1) == potential).all()


@pytest.mark.parametrize("name", MAKERS)
def test_exact64_is_the_float64_replay_and_exact_fires_likewise(name: str) -> None:
    graph, batch = folded(name)
    expected = simulate(graph, batch)
    if name in ("recurrent", "wide"):  # the others are tested for it where they are made
        for layer, train in expected.spikes.items():
            assert 0.02 <= train.count() / train.neuron_steps <= 0.6, layer
    for precision in PRECISIONS:
        found = run(EventsRuntime, snapped(name, precision)[0], batch, arithmetic=precision).recording
        for layer, train in expected.spikes.items():
            assert not train.differing(found.spikes[layer]).any(), (precision, layer)


def test_another_order_changes_bits_that_are_not_exact() -> None:
    """What the tests above hold equal does differ in float32."""
    graph, batch = folded("temporal spikes")
    first = run(EventsRuntime, graph, batch)
    second = run(EventsRuntime, graph, batch, order=np.random.default_rng(1))
    for name in ("sn1", "sn2"):
        assert (first.potentials[name] != second.potentials[name]).mean() > 0.01
    # Linear layers are summed in another order, too.
    weight = np.random.default_rng(2).normal(size=(20, 30))
    nodes = [
        Input(name="input", shape=(30,), temporal=True, kind="spike"),
        Linear(name="fc", inputs=(Edge("input"),), weight=frozen(weight)),
        Neuron(name="n", inputs=(Edge("fc"),), alpha=frozen(1.0), beta=frozen(0.5)),
        Readout(name="readout", inputs=(Edge("n"),), mode="mean"),
    ]
    linear = SpikingGraph(nodes, output="readout", timesteps=2)
    spikes = np.ones((3, 2, 30), dtype=np.float32)
    one, two = (run(EventsRuntime, linear, spikes, order=np.random.default_rng(seed)) for seed in (3, 4))
    assert (one.potentials["n"] != two.potentials["n"]).any()


# The oracle.

Rational = NDArray[Any]


def rational(values: Any) -> Rational:
    return np.vectorize(lambda value: Fraction(float(value)), otypes=[object])(np.asarray(values, dtype=np.float64))


def rounded(values: Rational, dtype: type[np.floating]) -> NDArray[np.floating]:
    """Every exact sum rounded once, to nearest, ties to even."""

    def one(value: Fraction) -> Any:
        double = float(value)  # correctly rounded by Python
        if dtype == np.float64 or Fraction(double) == value:
            return dtype(double)
        raise AssertionError("a sum needs more bits than float64 has")

    return np.vectorize(one, otypes=[dtype])(values)


def spread(values: Rational, rank: int) -> Rational:
    return values.reshape(-1, *(1,) * (rank - 1))


def oracle_value(node: Node, inputs: list[Rational]) -> Rational:
    """One sample's value of a stateless node, in rational numbers."""
    x = inputs[0]
    if isinstance(node, Add):
        return sum(inputs[1:], start=inputs[0])
    if isinstance(node, Flatten):
        return x.reshape(-1)
    if isinstance(node, Scale):
        return rational(node.factor) * x + rational(node.offset)
    if isinstance(node, Linear):
        total = rational(node.weight) @ x
        return total if node.bias is None else total + rational(node.bias)
    if isinstance(node, Conv2d):
        return oracle_conv(node, x)
    assert isinstance(node, SumPool2d | MaxPool2d)
    assert node.padding == (0, 0)
    height, width = (n - k + 1 for n, k in zip(x.shape[1:], node.kernel, strict=True))
    windows = [
        x[:, i : i + height : node.stride[0], j : j + width : node.stride[1]] for i, j in np.ndindex(*node.kernel)
    ]
    return sum(windows[1:], start=windows[0]) if isinstance(node, SumPool2d) else np.maximum.reduce(windows)


def oracle_conv(node: Conv2d, x: Rational) -> Rational:
    (top, left), (down, right), (dy, dx) = node.padding, node.stride, node.dilation
    padded = np.pad(x, ((0, 0), (top, top), (left, left)), constant_values=Fraction(0))
    out, per_group, height, width = node.weight.shape
    rows = (padded.shape[1] - (height - 1) * dy - 1) // down + 1
    columns = (padded.shape[2] - (width - 1) * dx - 1) // right + 1
    weight = rational(node.weight)
    found = np.full((out, rows, columns), Fraction(0), dtype=object)
    for o, c, i, j in np.ndindex(out, per_group, height, width):
        source = o // (out // node.groups) * per_group + c
        seen = padded[source, i * dy :: down, j * dx :: right][:rows, :columns]
        found[o] = found[o] + weight[o, c, i, j] * seen
    return found if node.bias is None else found + spread(rational(node.bias), 3)


def oracle(graph: SpikingGraph, sample: Batch, dtype: type[np.floating]) -> tuple[dict[str, list[Any]], Any]:
    """The potentials of one sample, step by step, and its logits, by the definition."""
    held = {n.name: np.full(graph.types[n.name].shape, n.state[0].initial, dtype=dtype) for n in graph.neurons}
    potentials: dict[str, list[Any]] = {n.name: [] for n in graph.neurons}
    past: list[Mapping[str, Rational]] = []
    outputs: list[NDArray[np.floating]] = []
    for t in range(graph.timesteps):
        values: dict[str, Rational] = {}
        for node in graph.nodes:
            if node.name == graph.output:
                continue
            inputs = [
                values[e.source] if not e.delay
                else past[t - e.delay][e.source] if t >= e.delay
                else np.full(graph.types[e.source].shape, Fraction(0))
                for e in node.inputs
            ]  # fmt: skip
            if isinstance(node, Input):
                values[node.name] = rational(sample[t] if node.temporal else sample)
            elif isinstance(node, Zeros):
                values[node.name] = np.full(node.shape, Fraction(0))
            elif isinstance(node, Neuron):
                current = rounded(inputs[0], dtype)
                beta, target = node.beta.astype(dtype), node.leak_target.astype(dtype)
                before = held[node.name]
                leak = (target + (beta * (before - target)).astype(dtype)) if target.any() else beta * before
                v = leak.astype(dtype) + current
                threshold = node.v_threshold.astype(dtype)
                fires = v >= threshold if node.fires_at == "ge" else v > threshold
                after = np.broadcast_to(node.v_reset.astype(dtype) if node.reset == "hard" else v - threshold, v.shape)
                held[node.name] = np.where(fires, after, v)
                potentials[node.name].append(v)
                values[node.name] = rational(fires)
            else:
                values[node.name] = oracle_value(node, inputs)
        outputs.append(rounded(values[graph.readout.inputs[0].source], dtype))
        past.append(values)
    mode = graph.readout.mode
    total = outputs[0]
    for step in outputs[1:]:
        total = np.maximum(total, step) if mode == "max" else total + step
    logits = {"mean": total / dtype(graph.timesteps), "last": outputs[-1]}.get(mode, total)
    return potentials, logits


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name", ["uint8 codes", "identity residual, alpha negative", "per channel", "temporal spikes", "shared producer",
             "recurrent", "wide"],
)  # fmt: skip
def test_the_bits_are_those_of_the_definition(name: str, precision: Precision) -> None:
    graph, batch = snapped(name, precision)
    found = run(EventsRuntime, graph, batch[:1], arithmetic=precision)
    potentials, logits = oracle(graph, batch[0], DTYPES[precision])
    for layer, steps in potentials.items():
        assert (found.potentials[layer][:, 0] == np.stack(steps)).all(), layer
    assert found.recording.logits.dtype == logits.dtype
    assert (found.recording.logits[0] == logits).all()


# What exact arithmetic refuses.

RUNTIMES: tuple[type[Any], ...] = (EventsRuntime, TorchRuntime)


@pytest.mark.parametrize("kind", RUNTIMES)
def test_an_unknown_arithmetic_is_refused(kind: type[Any]) -> None:
    with pytest.raises(DalifError, match=r"E0101.*'float16'"):
        kind(snapped("ties", "exact")[0], arithmetic="float16")


@pytest.mark.parametrize("kind", RUNTIMES)
def test_a_graph_that_is_not_snapped_is_refused(kind: type[Any]) -> None:
    with pytest.raises(DalifError, match=r"E0113.*'conv1'.*passes\.snap") as caught:
        kind(folded("temporal spikes")[0], arithmetic="exact64")
    assert caught.value.code == Code.BAD_GRAPH


@pytest.mark.parametrize("kind", RUNTIMES)
def test_an_unfolded_graph_is_refused(kind: type[Any]) -> None:
    graph, _ = snapped("ties", "exact")
    neuron = graph.neurons[0]
    alpha = Neuron(name=neuron.name, inputs=neuron.inputs, alpha=frozen(0.5), beta=neuron.beta)
    with pytest.raises(DalifError, match=r"E0113.*alpha"):
        kind(graph.replaced({neuron.name: alpha}), arithmetic="exact")


@pytest.mark.parametrize("kind", RUNTIMES)
def test_data_that_are_no_codes_are_refused(kind: type[Any]) -> None:
    graph, batch = snapped("uint8 codes", "exact")
    with pytest.raises(DalifError, match=r"E0114.*as uint8"):
        kind(graph, arithmetic="exact").run(batch.astype(np.float32))
    kind(graph).run(batch.astype(np.float32))  # in float arithmetic they are whatever they are


@pytest.mark.parametrize("kind", RUNTIMES)
def test_data_that_are_no_spikes_are_refused(kind: type[Any]) -> None:
    graph, batch = snapped("recurrent", "exact")
    kind(graph, arithmetic="exact").run(batch)
    with pytest.raises(DalifError, match=r"E0114.*0 or 1"):
        kind(graph, arithmetic="exact").run(batch * 2)


@pytest.mark.parametrize("kind", RUNTIMES)
def test_the_description_says_how_it_computes(kind: type[Any]) -> None:
    graph, _ = snapped("ties", "exact")
    assert "exact sums, rounded once to float32" in kind(graph, arithmetic="exact").description
    assert "exact sums, rounded once to float64" in kind(graph, arithmetic="exact64").description
    assert "exact" not in kind(graph, dtype="float32").description
