"""Exact ONNX files: V, spikes and logits have one value, whatever ONNX Runtime does with the graph.

The graphs are snapped here by hand, by the plainest rules that meet the limits. The oracle evaluates the
snapped graph in float64, where all its sums are exact, and rounds every neuron's input once.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence.replay import simulate
from dalif_deploy.errors import Code
from dalif_deploy.exporters.onnx import parameters, to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import Lattice, certificate_of
from dalif_deploy.metadata import FileMetadata
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
    ReadoutMode,
    Scale,
    StateVariable,
    SumPool2d,
    Zeros,
    frozen,
)
from dalif_deploy.operators import evaluate
from dalif_deploy.passes import fold
from dalif_deploy.passes.snap import snap
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.onnxruntime import OPTIMIZATIONS, OnnxRuntime
from dalif_deploy.runtimes.torch import TorchRuntime
from tests.graphs import GRAPHS
from tests.test_onnx_export import refused

Values = NDArray[np.float64]
Precision = Literal["exact", "exact64"]
Batch = NDArray[np.uint8]


# Snapping by hand.


def input_maxima(graph: SpikingGraph) -> dict[str, int]:
    """The largest value of every whole-numbered node."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        below = [found.get(edge.source, graph.types[edge.source].maximum) for edge in node.inputs]
        if isinstance(node, Input):
            found[node.name] = 255 if graph.encoding.kind == "uint8" else 1
        elif isinstance(node, Zeros):
            found[node.name] = 0
        elif isinstance(node, Neuron):
            found[node.name] = 1
        elif isinstance(node, Flatten | MaxPool2d | SumPool2d | Add) and None not in below:
            factor = node.kernel[0] * node.kernel[1] if isinstance(node, SumPool2d) else 1
            found[node.name] = factor * sum(b for b in below if b is not None)
    return found


def leaves(graph: SpikingGraph, name: str, whole: Mapping[str, int]) -> list[str]:
    node = graph[name]
    if isinstance(node, Add) and name not in whole:
        return [leaf for edge in node.inputs for leaf in leaves(graph, edge.source, whole)]
    return [name]


def spread(values: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """(channels,) against an array whose first axis is the channels."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def snapped(graph: SpikingGraph, forms: Callable[[str], str]) -> tuple[SpikingGraph, dict[str, Lattice]]:
    """The graph on grids, and its lattices. `forms`: the form of the sum that a node reads, by that node's name."""
    whole = input_maxima(graph)
    lattices: dict[str, Lattice] = {}
    changes: dict[str, Node] = {}
    for reader in graph.nodes:
        if not isinstance(reader, Neuron | Readout) or reader.inputs[0].source in whole:
            continue
        channels = graph.types[reader.name].shape[0]
        names = leaves(graph, reader.inputs[0].source, whole)
        terms: list[tuple[str | None, Values, Values | None, int]] = []
        for name in names:
            node = graph[name]
            if name in whole:
                terms.append((None, np.ones((channels, 1)), None, whole[name]))
                continue
            reach = whole[node.inputs[0].source]
            if isinstance(node, Scale):
                factor = np.broadcast_to(node.factor.reshape(-1, *(1,) * 2), (channels, 1, 1))
                offset = np.array(np.broadcast_to(node.offset.reshape(-1, 1, 1), (channels, 1, 1)))
                terms.append((name, np.array(factor), offset if offset.any() else None, reach))
            else:
                assert isinstance(node, Conv2d | Linear)
                terms.append((name, node.weight, node.bias, reach))
        form = forms(reader.name)
        for name, digits, bias_digits, bases, exponents in grids(form, terms, channels):
            node = graph[name]
            total = sum(d.astype(object) * b for d, b in zip(digits, bases, strict=True))
            weight = np.array([[float(v)] for v in total.reshape(-1)]).reshape(total.shape)
            weight = np.ldexp(weight, -spread(exponents, weight))
            bias = None
            if bias_digits is not None:
                whole_bias = sum(d.astype(object) * b for d, b in zip(bias_digits, bases, strict=True))
                bias = np.ldexp(whole_bias.astype(np.float64), -spread(exponents, whole_bias))
            if isinstance(node, Scale):
                offset = node.offset if bias is None else frozen(bias)
                changes[name] = replace(node, factor=frozen(weight), offset=offset)
            else:
                changes[name] = replace(node, weight=frozen(weight), bias=None if bias is None else frozen(bias))  # type: ignore[call-arg]
            lattices[name] = Lattice(
                node=name, form=form, exponents=exponents, digits=digits, bases=bases, bias_digits=bias_digits,
                inputs_maximum=whole[node.inputs[0].source], largest=0, limit=0,
            )  # fmt: skip
    return graph.replaced(changes), lattices


def grids(form: str, terms: Any, channels: int) -> list[Any]:
    """(node, digits, bias digits, bases, exponents) for every term that is a node."""
    bound = np.zeros(channels)
    fan_in = 1
    largest = np.zeros(channels)
    for _, weight, bias, reach in terms:
        rows = np.abs(weight.reshape(channels, -1))
        bound += rows.sum(axis=1) * reach + (0 if bias is None else np.abs(bias.reshape(-1)))
        fan_in += rows.shape[1] * reach + 1
        largest = np.maximum(largest, rows.max(axis=1))
        if bias is not None and form.startswith("slices"):
            largest = np.maximum(largest, np.abs(bias.reshape(-1)))
    bound = np.maximum(bound, 1e-6)
    found = []
    if form.startswith("slices"):
        count = int(form[-1])
        first = np.floor(np.log2(2.0**24 / bound)).astype(np.int64) - 1
        # A residual is at most half a unit of the slice above it.
        step = math.floor(math.log2(2.0**24 / fan_in)) - 1
        bases = tuple(2 ** (step * (count - 1 - i)) for i in range(count))
        exponents = first + step * (count - 1)

        def cut(values: Values) -> tuple[NDArray[np.int64], ...]:
            digits = []
            for i in range(count):
                place = spread(first + step * i, values)
                digit = np.rint(np.ldexp(values, place))
                values = values - np.ldexp(digit, -place)
                digits.append(digit.astype(np.int64))
            return tuple(digits)
    else:
        count = int(form[-1])
        highest = 8_355_711 if count == 3 else 2**31 - 2**25
        exponents = np.floor(np.log2(highest / np.maximum(largest, 1e-6))).astype(np.int64)
        bases = tuple(256 ** (count - 1 - i) for i in range(count))

        def cut(values: Values) -> tuple[NDArray[np.int64], ...]:
            left = np.rint(np.ldexp(values, spread(exponents, values))).astype(np.int64)
            digits = []
            for i in range(count):
                low = ((left + 128) & 255) - 128 if i + 1 < count else left
                left = (left - low) >> 8
                digits.append(low)
            return tuple(reversed(digits))

    for name, weight, bias, _ in terms:
        if name is not None:
            found.append((name, cut(weight), None if bias is None else cut(bias), bases, exponents))
    return found


# The oracle.


def oracle(
    graph: SpikingGraph, batch: Batch, precision: Precision
) -> tuple[dict[str, Values], dict[str, Values], Values]:
    """Potentials and spikes [N, T, *shape] by layer, and the logits, by the definition."""
    dtype = np.float32 if precision == "exact" else np.float64
    held: dict[str, Any] = {}
    potentials: dict[str, list[Any]] = {n.name: [] for n in graph.neurons}
    spikes: dict[str, list[Any]] = {n.name: [] for n in graph.neurons}
    past: list[dict[str, Any]] = []
    logits = []
    for t in range(graph.timesteps):
        now: dict[str, Any] = {}
        for node in graph.nodes:
            sources = []
            for edge in node.inputs:
                if not edge.delay:
                    sources.append(now.get(edge.source))
                elif t >= edge.delay:
                    sources.append(past[t - edge.delay][edge.source])
                else:
                    sources.append(np.zeros((len(batch), *graph.types[edge.source].shape)))
            if isinstance(node, Input):
                now[node.name] = (batch[:, t] if node.temporal else batch).astype(np.float64)
            elif isinstance(node, Zeros):
                now[node.name] = np.zeros((len(batch), *node.shape))
            elif isinstance(node, Neuron):
                current = sources[0].astype(dtype)
                before = held.get(node.name, np.full(current.shape, node.state[0].initial, dtype=dtype))
                beta, target = node.beta.astype(dtype), node.leak_target.astype(dtype)
                kept = beta * before if not target.any() else target + beta * (before - target)
                potential = kept + current
                threshold = node.v_threshold.astype(dtype)
                fired = potential >= threshold if node.fires_at == "ge" else potential > threshold
                after = node.v_reset.astype(dtype) if node.reset == "hard" else potential - threshold
                held[node.name] = np.where(fired, after, potential)
                assert potential.dtype == dtype
                potentials[node.name].append(potential)
                spikes[node.name].append(fired)
                now[node.name] = fired.astype(np.float64)
            elif not isinstance(node, Readout):
                now[node.name] = evaluate(node, sources)
        logits.append(now[graph.readout.inputs[0].source].astype(dtype))
        past.append(now)
    mode = graph.readout.mode
    if mode in ("last", "max"):
        result = logits[-1] if mode == "last" else np.max(logits, axis=0)
    else:
        result = logits[0]
        for step in logits[1:]:
            result = result + step
        result = result / dtype(graph.timesteps) if mode == "mean" else result
    stacked = lambda found: {name: np.stack(steps, axis=1) for name, steps in found.items()}  # noqa: E731
    return stacked(potentials), stacked(spikes), result


# The graphs.


class Net:
    """Folded graphs, node by node; every method adds one and returns its name."""

    def __init__(self, seed: int, shape: tuple[int, ...], *, spikes: bool = False, temporal: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.temporal, self.spikes = temporal, spikes
        self.shape = shape
        self.nodes: list[Node] = [
            Input(name="input", shape=shape, temporal=temporal, kind="spike" if spikes else "real")
        ]

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def conv(self, name: str, source: str, into: int, out: int, *, gain: float = 1.0, bias: bool = True, delay: int = 0,
             kernel: tuple[int, int] = (3, 3), **rules: Any) -> str:  # fmt: skip
        rules.setdefault("padding", (kernel[0] // 2, kernel[1] // 2))
        shape = (out, into // rules.get("groups", 1), *kernel)
        weight = gain * self.rng.normal(0.0, 1 / math.sqrt(math.prod(shape[1:])), shape)
        shift = gain * self.rng.normal(0.2, 0.1, out) if bias else None
        return self.add(Conv2d(
            name=name, inputs=(Edge(source, delay),), weight=frozen(weight),
            bias=None if shift is None else frozen(shift), **rules,
        ))  # fmt: skip

    def linear(self, name: str, source: str, into: int, out: int, *, gain: float = 1.0, bias: bool = True) -> str:
        weight = gain * self.rng.normal(0.0, 1 / math.sqrt(into), (out, into))
        shift = frozen(self.rng.normal(0.1, 0.1, out)) if bias else None
        return self.add(Linear(name=name, inputs=(Edge(source),), weight=frozen(weight), bias=shift))

    def neuron(self, name: str, source: str, *, beta: object = 0.7615941762924194, delay: int = 0, **rules: Any) -> str:
        for key in ("v_threshold", "v_reset", "leak_target"):
            if key in rules:
                rules[key] = frozen(rules[key])
        return self.add(Neuron(name=name, inputs=(Edge(source, delay),), alpha=frozen(1.0), beta=frozen(beta), **rules))

    def plus(self, name: str, *sources: str) -> str:
        return self.add(Add(name=name, inputs=tuple(Edge(source) for source in sources)))

    def flatten(self, source: str, name: str = "flatten") -> str:
        return self.add(Flatten(name=name, inputs=(Edge(source),)))

    def pool(self, kind: type[SumPool2d] | type[MaxPool2d], name: str, source: str, size: int, **rules: Any) -> str:
        return self.add(
            kind(name=name, inputs=(Edge(source),), kernel=(size, size), **{"stride": (size, size), **rules})
        )

    def finish(
        self, source: str, *, timesteps: int = 4, mode: ReadoutMode = "mean", samples: int = 3
    ) -> tuple[SpikingGraph, Batch]:
        self.add(Readout(name="readout", inputs=(Edge(source),), mode=mode))
        encoding = Encoding(kind="spikes" if self.spikes else "uint8")
        graph = SpikingGraph(self.nodes, output="readout", timesteps=timesteps, encoding=encoding)
        shape = (samples, timesteps, *self.shape) if self.temporal else (samples, *self.shape)
        high = self.rng.random(shape) < 0.3 if self.spikes else self.rng.integers(0, 256, shape)
        return graph, high.astype(np.uint8)


Case = tuple[SpikingGraph, Batch]
CODES = 1 / 128  # about what makes the codes 0..255 a current of order 1


def plain(channels: int = 40, **rules: Any) -> Case:
    """conv, conv, sum pool, conv, linear; the input static codes."""
    net = Net(1, (3, 8, 8))
    x = net.neuron("sn1", net.conv("conv1", "input", 3, channels, gain=CODES), **rules)
    x = net.neuron("sn2", net.conv("conv2", x, channels, 12), **rules)
    x = net.pool(SumPool2d, "pool", x, 2)
    x = net.neuron("sn3", net.conv("conv3", x, 12, channels, gain=0.6, stride=(2, 2)), **rules)
    x = net.neuron("sn4", net.linear("fc1", net.flatten(x), channels * 4, 20), **rules)
    return net.finish(net.linear("fc2", x, 20, 5))


def residual(channels: int) -> Case:
    """An identity, a 1x1 convolution and a Scale as shortcuts, and an identity of a count."""
    net = Net(2, (2, 6, 6), spikes=True, temporal=True)
    stem = net.neuron("stem", net.conv("conv0", "input", 2, channels, gain=2.0))
    x = net.neuron("sn1", net.conv("conv1", stem, channels, channels))
    x = net.neuron("sn2", net.plus("add1", net.conv("conv2", x, channels, channels, gain=0.7), stem), v_threshold=1.3)
    y = net.neuron("sn3", net.conv("conv3", x, channels, channels + 4, stride=(2, 2)))
    main = net.conv("conv4", y, channels + 4, channels + 4, gain=0.7)
    short = net.conv("short", x, channels, channels + 4, kernel=(1, 1), stride=(2, 2), bias=False)
    z = net.neuron("sn4", net.plus("add2", main, short))
    factor = net.rng.uniform(0.3, 1.1, (channels + 4, 1, 1))
    scaled = net.add(Scale(name="scaled", inputs=(Edge(z),), factor=frozen(factor), offset=frozen(0.0)))
    w = net.neuron("sn5", net.plus("add3", net.conv("conv5", z, channels + 4, channels + 4, gain=0.5), scaled))
    count = net.plus("count", w, z)
    v = net.neuron(
        "sn6", net.plus("add4", net.conv("conv6", w, channels + 4, channels + 4, gain=0.4), count), v_threshold=1.7
    )
    x = net.pool(SumPool2d, "pool", v, 3)
    return net.finish(net.linear("fc", net.flatten(x), channels + 4, 5), timesteps=5, mode="sum")


def per_channel(channels: int) -> Case:
    net = Net(3, (3, 7, 7))
    line = np.linspace(-0.3, 0.95, channels).reshape(-1, 1, 1)
    rules: dict[str, Any] = {"beta": line, "v_threshold": 0.8 + 0.2 * line, "v_reset": -0.1 * line}
    x = net.neuron("sn1", net.conv("conv1", "input", 3, channels, gain=CODES), **rules)
    full = 0.5 + 0.01 * np.arange(channels * 49).reshape(channels, 7, 7) / 49
    x = net.neuron("sn2", net.conv("conv2", x, channels, channels, padding=(2, 2), dilation=(2, 2)), beta=full)
    x = net.pool(MaxPool2d, "pool", x, 3, stride=(2, 2), padding=(1, 1))
    x = net.neuron("sn3", net.conv("conv3", x, channels, channels, kernel=(1, 3), padding=(0, 1)), leak_target=0.1,
                   reset="subtract", state=(StateVariable("membrane", 0.3),), beta=line)  # fmt: skip
    x = net.neuron("sn4", net.conv("conv4", x, channels, channels, kernel=(1, 1), stride=(2, 2)), fires_at="gt")
    return net.finish(net.linear("fc", net.flatten(x), channels * 4, 5), mode="max")


def grouped() -> Case:
    """Depthwise and grouped convolutions, which are slices whatever their width."""
    net = Net(4, (2, 6, 6), temporal=True)
    x = net.neuron("sn1", net.conv("conv1", "input", 2, 12, gain=CODES, groups=2))
    x = net.neuron("sn2", net.conv("conv2", x, 12, 12, groups=12, gain=1.5))
    x = net.neuron("sn3", net.conv("conv3", x, 12, 8, groups=4))
    return net.finish(net.linear("fc", net.flatten(x), 8 * 36, 5), mode="last")


def recurrent(channels: int) -> Case:
    """A layer that reads its own spikes of the step before, one that is fed late, and delayed branches."""
    net = Net(5, (2, 5, 5), spikes=True, temporal=True)
    forward = net.conv("conv1", "input", 2, channels, gain=1.5)
    back = net.conv("back", "sn1", channels, channels, gain=0.6, delay=1)
    x = net.neuron("sn1", net.plus("add", forward, back))
    # All of these deliver zeros at first, biases and offsets too.
    inner = net.plus("inner", net.conv("conv2", x, channels, channels), x)
    offset = net.rng.normal(0.3, 0.1, (channels, 1, 1))
    scaled = net.add(Scale(name="scaled", inputs=(Edge(x, 1),), factor=frozen(0.4), offset=frozen(offset)))
    alone = net.neuron("sn4", net.add(Add(name="alone", inputs=(Edge(scaled, 1),))))
    branches = (Edge(net.conv("conv4", x, channels, channels)), Edge(inner, 2), Edge(scaled, 1))
    y = net.neuron("sn2", net.add(Add(name="late", inputs=branches)), delay=1)
    z = net.neuron("sn3", net.conv("conv3", net.plus("count", y, alone), channels, channels))
    return net.finish(net.linear("fc", net.flatten(z), channels * 25, 5), timesteps=7)


def rates() -> Case:
    """Spikes read out as they are, one step, a layer that hears nothing, and a neuron that hears spikes alone."""
    net = Net(6, (2, 4, 4))
    silent = net.add(Zeros(name="zeros", shape=(4, 4, 4)))
    x = net.neuron("sn1", net.plus("add", net.conv("conv1", "input", 2, 4, gain=CODES), silent))
    nothing = net.neuron("dead", net.add(Zeros(name="nothing", shape=(4, 4, 4))))
    y = net.neuron("sn2", net.plus("both", x, nothing), v_threshold=0.9)
    return net.finish(net.flatten(y), timesteps=1)


CASES: dict[str, Callable[[], Case]] = {
    "plain": plain,
    "plain, narrow": lambda: plain(10),
    "reset to a value": lambda: plain(reset="hard", v_reset=-0.2, v_threshold=0.8),
    "reset by subtraction": lambda: plain(reset="subtract"),
    "beta 0": lambda: plain(10, beta=0.0),
    "residual": lambda: residual(36),
    "residual, narrow": lambda: residual(6),
    "per channel": lambda: per_channel(34),
    "per channel, narrow": lambda: per_channel(5),
    "grouped": grouped,
    "recurrent": lambda: recurrent(33),
    "recurrent, narrow": lambda: recurrent(4),
    "rates": rates,
}


def firing(case: Case) -> Case:
    """The case with thresholds at which every layer fires, set layer after layer from its own potentials.

    A little beside them: many neurons share the potential that their bias alone gives them.
    """
    graph, batch = case
    for neuron in graph.neurons:
        potentials = oracle(graph, batch, "exact64")[0][neuron.name]
        level = 1.001 * np.quantile(potentials / neuron.v_threshold, 0.88)
        if neuron.name != "dead":
            graph = graph.replaced({neuron.name: replace(neuron, v_threshold=frozen(neuron.v_threshold * level))})
    return graph, batch


def forms_of(graph: SpikingGraph, precision: Precision, policy: str) -> Callable[[str], str]:
    """Per sum: "slices" throughout, "planes" wherever they are possible, or "chosen", planes from 32 channels on."""
    whole = input_maxima(graph)

    def form(reader: str) -> str:
        names = leaves(graph, graph[reader].inputs[0].source, whole)
        nodes = [graph[name] for name in names if isinstance(graph[name], Conv2d | Linear)]
        sources = [node.inputs[0].source for node in nodes]
        fed = any(isinstance(graph[source], Input) and whole[source] == 255 for source in sources)
        grouped = any(isinstance(node, Conv2d) and node.groups > 1 for node in nodes)
        narrow = min((graph.types[source].shape[0] for source in sources), default=0) < 32
        if fed:
            return "slices3"
        if grouped or policy == "slices" or (policy == "chosen" and narrow):
            return "slices2"
        return "planes3" if precision == "exact" else "planes4"

    return form


def written(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def assert_same(runtime: OnnxRuntime, batch: Batch, wanted: tuple[Any, Any, Any]) -> None:
    potentials, spikes, logits = wanted
    recording = runtime.run(batch)
    found = runtime.potentials(batch)
    assert set(found) == set(potentials) == set(recording.spikes)
    for layer, values in potentials.items():
        assert found[layer].dtype == values.dtype
        assert np.count_nonzero(found[layer] != values) == 0, layer
        assert np.array_equal(recording.spikes[layer].unpack(), spikes[layer]), layer
    assert recording.logits.dtype == logits.dtype
    assert np.array_equal(recording.logits, logits)
    assert runtime.notes == []


@pytest.mark.parametrize("policy", ["slices", "planes", "snap"])
@pytest.mark.parametrize("precision", ["exact", "exact64"])
@pytest.mark.parametrize("name", CASES)
def test_no_bit_differs(name: str, precision: Precision, policy: str, tmp_path: Path) -> None:
    folded, batch = firing(CASES[name]())
    if policy == "snap":
        graph, lattices = snap(folded, precision)
    else:
        graph, lattices = snapped(folded, forms_of(folded, precision, policy))
    wanted = oracle(graph, batch, precision)
    for layer, fired in wanted[1].items():
        assert layer == "dead" or 0.02 < fired.mean() < 0.6, (layer, fired.mean())
    path = written(tmp_path / "net.onnx", to_onnx(graph, precision=precision, lattices=lattices))
    for optimization in OPTIMIZATIONS:
        for threads in (1, 2):
            assert_same(OnnxRuntime(path, threads=threads, optimization=optimization), batch, wanted)
    if policy == "snap":
        for other in (EventsRuntime, TorchRuntime):
            assert_runtimes_agree(other, graph, precision, batch, wanted)


def assert_runtimes_agree(
    kind: type[EventsRuntime] | type[TorchRuntime], graph: SpikingGraph, precision: Precision, batch: Batch, wanted: Any
) -> None:
    seen: dict[str, list[Any]] = {neuron.name: [] for neuron in graph.neurons}
    runtime = kind(graph, arithmetic=precision, watch=lambda layer, values: seen[layer].append(np.array(values)))
    recording = runtime.run(batch)
    for layer, values in wanted[0].items():
        assert np.count_nonzero(np.stack(seen[layer], axis=1) != values) == 0, layer
        assert np.array_equal(recording.spikes[layer].unpack(), wanted[1][layer]), layer
    assert np.array_equal(recording.logits, wanted[2])


@pytest.mark.parametrize("name", ["plain", "plain, narrow", "residual", "per channel, narrow", "grouped", "recurrent"])
def test_exact64_fires_as_the_float64_reference(name: str, tmp_path: Path) -> None:
    """The folded graph as it was before it was snapped."""
    folded, _ = firing(CASES[name]())
    shape = (16, folded.timesteps, *folded.input.shape) if folded.input.temporal else (16, *folded.input.shape)
    high = 2 if folded.encoding.kind == "spikes" else 256
    batch = np.random.default_rng(7).integers(0, high, shape).astype(np.uint8)
    graph, lattices = snap(folded, "exact64")
    path = written(tmp_path / "net.onnx", to_onnx(graph, precision="exact64", lattices=lattices))
    recording, reference = OnnxRuntime(path, threads=1).run(batch), simulate(folded, batch)
    for layer, train in reference.spikes.items():
        assert not recording.spikes[layer].differing(train).any()
    assert np.allclose(recording.logits, reference.logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["exact", "exact64"])
@pytest.mark.parametrize("name", ["uint8 codes", "temporal spikes", "ties", "ties, strict"])
def test_calibrated_training_graphs(name: str, precision: Precision, tmp_path: Path) -> None:
    """From the training graph on: folding, codes with a mean at zero-padded borders, snapping."""
    trained, batch = GRAPHS[name]()
    graph, lattices = snap(fold(trained), precision)
    path = written(tmp_path / "net.onnx", to_onnx(graph, precision=precision, lattices=lattices))
    codes = batch.astype(np.uint8)
    assert_same(OnnxRuntime(path, threads=1), batch, oracle(graph, codes, precision))
    reference = simulate(trained, batch)
    for layer, train in OnnxRuntime(path, threads=1).run(batch).spikes.items():
        assert train.count() > 0
        assert not train.differing(reference.spikes[layer]).any()


def small(
    precision: Precision = "exact", policy: str = "snap", **rules: Any
) -> tuple[SpikingGraph, dict[str, Lattice], Batch]:
    folded, batch = firing(plain(**rules))
    graph, lattices = (
        snap(folded, precision) if policy == "snap" else snapped(folded, forms_of(folded, precision, policy))
    )
    return graph, lattices, batch


def forms(lattices: Mapping[str, Lattice]) -> dict[str, str]:
    return {name: lattice.form for name, lattice in lattices.items()}


# What the file is.


def test_the_forms_as_nodes() -> None:
    graph, lattices, _ = small()
    assert forms(lattices) == {
        "conv1": "slices3", "conv2": "planes3", "conv3": "slices2", "fc1": "planes3", "fc2": "slices2",
    }  # fmt: skip
    model = to_onnx(graph, precision="exact", lattices=lattices)
    found = Counter(node.op_type for node in model.graph.node)
    assert (found["Conv"], found["Gemm"], found["MatMulInteger"]) == (2, 1, 6)
    made = {output: node for node in model.graph.node for output in node.output}
    for conv, channels in (("conv1", 3 * 40), ("conv3", 2 * 40)):
        node = made[f"{conv}/slices"]
        weight = next(t for t in model.graph.initializer if t.name == node.input[1])
        assert (node.op_type, weight.name, weight.dims[0]) == ("Conv", f"{conv}.slices", channels)
        readers = [n for n in model.graph.node if f"{conv}/slices" in n.input]
        assert [n.op_type for n in readers] == ["Split"]
    # No sum of float32 numbers is added up by more than one convolution.
    assert not [
        n
        for n in model.graph.node
        if n.op_type == "Add" and all(made[i].op_type == "Conv" for i in n.input if i in made)
    ]


def test_what_is_static_is_computed_once() -> None:
    graph, lattices, _ = small()
    model = to_onnx(graph, precision="exact", lattices=lattices)
    shapes = {value.name: value for value in model.graph.value_info}
    assert shapes["conv1/slices"].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert shapes["conv2/plane0"].type.tensor_type.shape.dim[0].dim_param == "timesteps*batch"
    (moved,) = [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] == "conv1/output"]
    assert sum(moved.output[0] in node.input for node in model.graph.node) == graph.timesteps


@pytest.mark.parametrize("precision", ["exact", "exact64"])
def test_types_and_metadata(precision: Precision) -> None:
    graph, lattices, _ = small(precision)
    model = to_onnx(graph, precision=precision, lattices=lattices, metadata={"tool": "x"})
    element = TensorProto.FLOAT if precision == "exact" else TensorProto.DOUBLE
    (given,), (answer,) = model.graph.input, model.graph.output
    assert (given.name, given.type.tensor_type.elem_type) == ("input", TensorProto.UINT8)
    assert (answer.name, answer.type.tensor_type.elem_type) == ("logits", element)
    strings = {entry.key: entry.value for entry in model.metadata_props}
    assert strings["precision"] == precision
    assert strings["certificate"] == certificate_of(lattices, graph)
    assert json.loads(strings["channels_last"]) == ["sn1", "sn2"]
    assert strings["tool"] == "x"
    metadata = FileMetadata.from_strings(strings, source="x")
    assert metadata.input.encoding == Encoding(kind="uint8")
    assert "precision" not in {entry.key for entry in to_onnx(graph).metadata_props}


def test_the_same_graph_gives_the_same_bytes() -> None:
    graph, lattices, _ = small()
    again, others, _ = small()
    one, two = (to_onnx(g, precision="exact", lattices=x) for g, x in ((graph, lattices), (again, others)))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_parameters_hold_every_digit() -> None:
    graph, lattices, _ = small()
    found = parameters(to_onnx(graph, precision="exact", lattices=lattices))
    assert {"conv1.slices", "conv1.slices_bias", "conv2.plane0", "conv2.plane1", "conv2.plane2", "conv2.unit"} <= set(
        found
    )
    assert {"sn1.beta", "sn1.v_threshold", "conv2.bias0"} <= set(found)
    assert not {"conv2.bias1", "conv2.bias2"} & set(found)  # it fits into one addition
    assert found["conv2.plane0"].dtype == np.int8
    whole = sum(256**i * found[f"conv2.plane{i}"].astype(np.int64) for i in range(3))
    conv = graph["conv2"]
    assert isinstance(conv, Conv2d)
    expected = conv.weight.transpose(2, 3, 1, 0).reshape(-1, 12)
    assert np.array_equal(whole * found["conv2.unit"].astype(np.float64).reshape(1, -1), expected)
    slices = found["conv1.slices"].astype(np.float64).reshape(3, *graph["conv1"].arrays()["weight"].shape)
    assert np.array_equal(slices.sum(axis=0), graph["conv1"].arrays()["weight"])
    assert {found[name].dtype for name in found} == {np.dtype(t) for t in ("float32", "int8", "int32")}


@pytest.mark.parametrize("precision", ["exact", "exact64"])
def test_spikes_as_outputs(precision: Precision) -> None:
    graph, lattices, batch = small(precision)
    model = to_onnx(graph, precision=precision, lattices=lattices, outputs="spikes")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    assert names == ["logits", "sn1/spikes", "sn2/spikes", "sn3/spikes", "sn4/spikes"]
    _, *found = session.run(names, {"input": batch})
    for name, values in zip(names[1:], found, strict=True):
        assert values.dtype == np.float32
        assert np.array_equal(values, oracle(graph, batch, precision)[1][name.removesuffix("/spikes")])


def test_one_of_its_sums_needs_float64_to_be_put_together(tmp_path: Path) -> None:
    """int32 holds most sums of planes; these it does not."""
    net = Net(8, (64,), spikes=True, temporal=True)
    graph, batch = firing(net.finish(net.neuron("sn", net.linear("fc", "input", 64, 20, gain=4.0)), samples=8))
    weight = graph["fc"].arrays()["weight"]
    graph = graph.replaced(
        {"fc": replace(graph["fc"], weight=frozen(np.sign(weight) * (0.9 + 0.1 * np.abs(np.tanh(weight)))))}
    )  # type: ignore[call-arg]
    graph, batch = firing((graph, batch))
    sizes = {}
    for repeated in (1, 8):
        fc = graph["fc"]
        assert isinstance(fc, Linear)
        wide = Linear(name="fc", inputs=fc.inputs, weight=frozen(np.tile(fc.weight, (1, repeated))), bias=fc.bias)
        nodes: list[Node] = [
            Input(name="input", shape=(64 * repeated,), temporal=True, kind="spike"), wide, *graph.nodes[2:],
        ]  # fmt: skip
        grown = SpikingGraph(nodes, output="readout", timesteps=4, encoding=Encoding(kind="spikes"))
        exact, lattices = snapped(grown, lambda _: "planes3")
        model = to_onnx(exact, precision="exact", lattices=lattices)
        sizes[repeated] = any(t.name == "fc.high_unit" for t in model.graph.initializer)
        data = np.tile(batch, (1, 1, repeated))
        assert_same(OnnxRuntime(written(tmp_path / "net.onnx", model), threads=1), data, oracle(exact, data, "exact"))
    assert sizes == {1: False, 8: True}


# What is refused.


def test_options() -> None:
    graph, lattices, _ = small()
    with refused(Code.BAD_OPTION, "exact16", "exact64"):
        to_onnx(graph, precision="exact16", lattices=lattices)  # type: ignore[arg-type]
    with refused(Code.BAD_OPTION, "exact", "snap"):
        to_onnx(graph, precision="exact")
    with refused(Code.BAD_OPTION, "float32", "no lattices"):
        to_onnx(graph, lattices=lattices)
    with refused(Code.BAD_OPTION, "certificate"):
        to_onnx(graph, precision="exact", lattices=lattices, metadata={"certificate": ""})


def test_lattices_that_do_not_fit() -> None:
    graph, lattices, _ = small()
    with refused(Code.BAD_GRAPH, "conv2", "no lattice"):
        to_onnx(graph, precision="exact", lattices={k: v for k, v in lattices.items() if k != "conv2"})

    def export(name: str, **changes: Any) -> None:
        to_onnx(graph, precision="exact", lattices={**lattices, name: replace(lattices[name], **changes)})

    def doubled(name: str, i: int, factor: int) -> tuple[Any, ...]:
        return tuple(digit * factor if k == i else digit for k, digit in enumerate(lattices[name].digits))

    with refused(Code.TARGET_CANNOT_HOLD, "conv1", "digit 0"):
        export("conv1", digits=doubled("conv1", 0, 4))
    with refused(Code.TARGET_CANNOT_HOLD, "conv2", "int8"):
        export("conv2", digits=doubled("conv2", 2, 2))
    with refused(Code.TARGET_CANNOT_HOLD, "conv3", "grid"):
        export("conv3", exponents=lattices["conv3"].exponents + 200)
    with refused(Code.TARGET_CANNOT_HOLD, "conv3", "bases"):
        export("conv3", bases=(3, 1))
    with refused(Code.TARGET_CANNOT_HOLD, "conv1", "127"):
        planes = lattices["conv2"]
        export("conv1", form=planes.form, bases=planes.bases)


def test_limits_of_planes() -> None:
    def export(channels: int, reach: int, digits: tuple[int, ...], form: str = "planes4", **changes: Any) -> None:
        """One linear layer whose weights all have these digits, that counts up to `reach` reach."""
        net = Net(9, (channels, 2, 2), spikes=True, temporal=True)
        pooled = net.flatten(net.pool(SumPool2d, "pool", "input", 2))
        graph, _ = net.finish(net.neuron("sn", net.linear("fc", pooled, channels, 3, bias=False)))
        bases = tuple(256**i for i in reversed(range(len(digits))))
        lattice = Lattice(
            node="fc", form=form, exponents=np.full(3, 20), bases=bases,  # type: ignore[arg-type]
            digits=tuple(np.full((3, channels), digit) for digit in digits), bias_digits=None, inputs_maximum=reach,
            largest=0, limit=0,
        )  # fmt: skip
        to_onnx(graph, precision="exact64", lattices={"fc": replace(lattice, **changes)})

    export(40, 4, (100, 127, 0, 0))
    with refused(Code.TARGET_CANNOT_HOLD, "fc", "planes", "int32"):
        export(40_000, 4, (127, 127, 1, 1))
    with refused(Code.TARGET_CANNOT_HOLD, "fc", r"2\^53"):
        export(40_000, 4, (127, 1, 1, 1), bases=(2**32, 2**8, 2**8, 1))
    with refused(Code.TARGET_CANNOT_HOLD, "fc", "int8"):
        export(40, 4, (128, 1, 1, 1))


def test_slices_that_float32_cannot_hold() -> None:
    graph, lattices, _ = small()
    high = replace(lattices["conv3"], bases=(2**28, 1), exponents=np.full_like(lattices["conv3"].exponents, -90))
    with refused(Code.BAD_GRAPH, "conv3", "float32"):
        to_onnx(graph, precision="exact", lattices={**lattices, "conv3": high})


def test_planes_are_not_grouped() -> None:
    graph, _ = firing(grouped())
    graph, lattices = snap(graph, "exact")
    digits = tuple(np.clip(digit, -100, 100) for digit in lattices["conv3"].digits)
    planes = replace(
        lattices["conv3"], form="planes3", digits=(*digits, digits[0]), bases=(65536, 256, 1), bias_digits=None
    )
    with refused(Code.TARGET_CANNOT_HOLD, "conv3", "grouped"):
        to_onnx(graph, precision="exact", lattices={**lattices, "conv3": planes})


def test_an_identity_needs_a_grid_that_holds_one() -> None:
    graph, _ = firing(residual(6))
    graph, lattices = snap(graph, "exact")
    coarse = replace(lattices["conv2"], exponents=np.full_like(lattices["conv2"].exponents, -1))
    with refused(Code.TARGET_CANNOT_HOLD, "identity"):
        to_onnx(graph, precision="exact", lattices={**lattices, "conv2": coarse})


def test_branches_on_different_grids() -> None:
    graph, _ = firing(residual(6))
    graph, lattices = snap(graph, "exact")
    other = replace(lattices["short"], exponents=lattices["short"].exponents + 1)
    with refused(Code.BAD_GRAPH, "short", "grid"):
        to_onnx(graph, precision="exact", lattices={**lattices, "short": other})


def test_data(tmp_path: Path) -> None:
    graph, lattices, batch = small()
    runtime = OnnxRuntime(
        written(tmp_path / "net.onnx", to_onnx(graph, precision="exact", lattices=lattices)), threads=1
    )
    with refused(Code.BAD_DATA, "uint8 codes", "float32"):
        runtime.run(batch.astype(np.float32) / 255)
    with refused(Code.WRONG_SHAPE):
        runtime.run(batch[:, :2])
    graph, batch = firing(recurrent(4))
    graph, lattices = snap(graph, "exact")
    runtime = OnnxRuntime(
        written(tmp_path / "net.onnx", to_onnx(graph, precision="exact", lattices=lattices)), threads=1
    )
    wanted = runtime.run(batch)
    for dtype in (np.float32, np.float64, np.int64, np.bool_):
        assert np.array_equal(runtime.run(batch.astype(dtype)).logits, wanted.logits)
    with refused(Code.BAD_DATA, "0 or 1"):
        runtime.run(batch * np.uint8(2))


def test_only_exact_files_name_their_potentials(tmp_path: Path) -> None:
    graph, _, batch = small()
    with refused(Code.FOREIGN_FILE, "sn1/t0/potential", "exact"):
        OnnxRuntime(written(tmp_path / "net.onnx", to_onnx(graph)), threads=1).potentials(batch)


def test_metadata_that_is_damaged(tmp_path: Path) -> None:
    graph, lattices, _ = small()
    model = to_onnx(graph, precision="exact", lattices=lattices)
    for entry in model.metadata_props:
        if entry.key == "channels_last":
            entry.value = "["
    with refused(Code.FILE_DAMAGED, "net.onnx"):
        OnnxRuntime(written(tmp_path / "net.onnx", model))
