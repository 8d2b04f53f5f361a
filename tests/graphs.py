"""Small training graphs of every kind, calibrated so that every neuron layer fires.

A graph is built node by node with `Build`, its BatchNorm statistics are then set from the test's own input,
as a few forward passes in training mode would. Untrained networks in evaluation mode are silent, and a
comparison of silent networks proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence.replay import simulate
from dalif_deploy.graph import SpikingGraph
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
    ReadoutMode,
    Scale,
    TensorKind,
    Zeros,
    frozen,
)
from dalif_deploy.operators import evaluate

Case = tuple[SpikingGraph, NDArray[np.generic]]


class Build:
    """Collects nodes; every method adds one and returns its name."""

    def __init__(self, seed: int, shape: tuple[int, ...], *, temporal: bool = False, kind: TensorKind = "real") -> None:
        self.rng = np.random.default_rng(seed)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.nodes: list[Node] = []
        self.add(Input(name="input", shape=shape, temporal=temporal, kind=kind))

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def weights(self, *shape: int) -> Array:
        """float32-representable weights of the usual initial size."""
        scale = 1.0 / np.sqrt(np.prod(shape[1:]))
        return frozen(self.rng.normal(0.0, scale, shape).astype(np.float32))

    def conv(
        self, name: str, source: str, channels: tuple[int, int], *, kernel: int = 3, stride: int = 1,
        padding: int = 1, dilation: int = 1, groups: int = 1, bias: bool = False,
    ) -> str:  # fmt: skip
        into, out = channels
        weight = self.weights(out, into // groups, kernel, kernel)
        return self.add(
            Conv2d(
                name=name, inputs=(Edge(source),), weight=weight, bias=self.weights(out) if bias else None,
                stride=(stride, stride), padding=(padding, padding), dilation=(dilation, dilation), groups=groups,
            )
        )  # fmt: skip

    def linear(self, name: str, source: str, features: tuple[int, int], *, bias: bool = True) -> str:
        into, out = features
        return self.add(
            Linear(
                name=name, inputs=(Edge(source),), weight=self.weights(out, into),
                bias=frozen(0.1 * self.weights(out)) if bias else None,
            )
        )  # fmt: skip

    def norm(self, name: str, source: str, channels: int, *, mean: float = 0.3, spread: float = 0.5) -> str:
        """A BatchNorm whose output, once calibrated, has about this mean and spread; gamma of both signs."""
        signs = np.where(np.arange(channels) % 5 == 3, -1.0, 1.0)
        gamma = (signs * spread * self.rng.uniform(0.8, 1.2, channels)).astype(np.float32)
        shift = self.rng.normal(mean, 0.1, channels).astype(np.float32)
        return self.add(
            BatchNorm(
                name=name, inputs=(Edge(source),), weight=frozen(gamma), bias=frozen(shift),
                mean=frozen(np.zeros(channels)), variance=frozen(np.ones(channels)), epsilon=1e-5,
            )
        )  # fmt: skip

    def neuron(self, name: str, source: str, *, alpha: object = 0.75, beta: object = 0.625, **rules: object) -> str:
        parameters = {
            key: frozen(value) if key in ("v_threshold", "v_reset", "leak_target") else value
            for key, value in rules.items()
        }
        return self.add(
            Neuron(name=name, inputs=(Edge(source),), alpha=frozen(alpha), beta=frozen(beta), **parameters)  # type: ignore[arg-type]
        )

    def norm_neuron(self, name: str, source: str, channels: int, **rules: object) -> str:
        """BatchNorm and neuron; the mean is divided by alpha so that the layer fires whatever alpha is."""
        alpha = rules.get("alpha", 0.75)
        gain = float(np.mean(np.asarray(alpha, dtype=float))) or 1.0
        return self.neuron(
            name, self.norm(f"{name}_bn", source, channels, mean=0.3 / gain, spread=0.5 / abs(gain)), **rules
        )

    def plus(self, name: str, *sources: str) -> str:
        return self.add(Add(name=name, inputs=tuple(Edge(source) for source in sources)))

    def avg_pool(self, name: str, source: str, kernel: int = 2) -> str:
        pair = (kernel, kernel)
        return self.add(AvgPool2d(name=name, inputs=(Edge(source),), kernel=pair, stride=pair))

    def finish(
        self, source: str, *, timesteps: int = 4, mode: ReadoutMode = "mean", encoding: Encoding | None = None
    ) -> SpikingGraph:
        self.add(Readout(name="readout", inputs=(Edge(source),), mode=mode))
        return SpikingGraph(self.nodes, output="readout", timesteps=timesteps, encoding=encoding)


def calibrated(graph: SpikingGraph, batch: NDArray[np.generic]) -> SpikingGraph:
    """The graph with BatchNorm statistics measured on `batch`, layer after layer."""
    for norm in [node for node in graph.nodes if isinstance(node, BatchNorm)]:
        values = _values_of(graph, norm.inputs[0].source, batch)
        axes = (0, *range(2, values.ndim))
        measured = replace(
            norm,
            mean=frozen(values.mean(axis=axes).astype(np.float32)),
            variance=frozen(np.maximum(values.var(axis=axes), 1e-3).astype(np.float32)),
        )
        graph = graph.replaced({norm.name: measured})
    return graph


def _values_of(graph: SpikingGraph, name: str, batch: NDArray[np.generic]) -> NDArray[np.float64]:
    """The values of a stateless node over all timesteps, [N * T, *shape], from replayed spikes."""
    spikes = {key: train.unpack() for key, train in simulate(graph, batch).spikes.items()}
    inputs = graph.input_spec.module_input(batch).astype(np.float64)
    found = []
    for t in range(graph.timesteps):
        known: dict[str, NDArray[np.floating]] = {key: train[:, t].astype(np.float64) for key, train in spikes.items()}
        known[graph.input.name] = inputs[:, t] if graph.input.temporal else inputs
        for node in graph.nodes:
            if isinstance(node, Zeros):
                known[node.name] = np.zeros((len(batch), *node.shape))
            elif node.name not in known and node.name not in graph.after_readout:
                known[node.name] = evaluate(node, [known[edge.source] for edge in node.inputs])
        found.append(known[name])
    return np.concatenate(found)


def firing_rates(graph: SpikingGraph, batch: NDArray[np.generic]) -> dict[str, float]:
    """The share of neuron-steps that fired, by layer, in the float64 reference."""
    return {name: train.count() / train.neuron_steps for name, train in simulate(graph, batch).spikes.items()}


def _pixels(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.0, 1.0, shape).astype(np.float32)


def _plain(**rules: object) -> Case:
    """conv - BN - neuron - pool - conv - BN - neuron - flatten - linear - neuron - linear."""
    build = Build(1, (2, 8, 8))
    batch = _pixels(2, 6, 2, 8, 8)
    x = build.norm_neuron("sn1", build.conv("conv1", "input", (2, 8)), 8, **rules)
    x = build.avg_pool("pool1", x)
    x = build.norm_neuron("sn2", build.conv("conv2", x, (8, 12)), 12, **rules)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    x = build.linear("fc1", x, (12 * 16, 24))
    x = build.norm_neuron("sn3", x, 24, **rules)
    return calibrated(build.finish(build.linear("fc2", x, (24, 5))), batch), batch


def _residual(*, alpha: float = 0.75, downsample: bool = False) -> Case:
    """A block whose shortcut is the identity, or a 1x1 convolution with stride 2 and its own BatchNorm."""
    build = Build(3, (2, 8, 8))
    batch = _pixels(4, 6, 2, 8, 8)
    stem = build.norm_neuron("stem.sn", build.conv("stem.conv", "input", (2, 8)), 8, alpha=alpha)
    stride = 2 if downsample else 1
    x = build.norm_neuron("block.sn1", build.conv("block.conv1", stem, (8, 8), stride=stride), 8, alpha=alpha)
    mean, spread = 0.15 / (alpha or 1.0), 0.4 / abs(alpha or 1.0)
    branch = build.norm("block.bn2", build.conv("block.conv2", x, (8, 8)), 8, mean=mean, spread=spread)
    shortcut = stem
    if downsample:
        conv = build.conv("block.shortcut", stem, (8, 8), kernel=1, padding=0, stride=2)
        shortcut = build.norm("block.shortcut_bn", conv, 8, mean=mean, spread=spread)
    x = build.neuron("block.sn2", build.plus("block.add", branch, shortcut), alpha=alpha)
    x = build.avg_pool("pool", x, 4 if downsample else 8)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    return calibrated(build.finish(build.linear("fc", x, (8, 5))), batch), batch


def _per_channel() -> Case:
    build = Build(5, (3, 6, 6))
    batch = _pixels(6, 6, 3, 6, 6)
    spread = np.linspace(0.5, 1.0, 8).reshape(8, 1, 1).astype(np.float32)
    leak = np.linspace(-0.25, 0.95, 8).reshape(8, 1, 1).astype(np.float32)
    x = build.norm_neuron("sn1", build.conv("conv1", "input", (3, 8)), 8, alpha=spread, beta=leak)
    x = build.norm_neuron("sn2", build.conv("conv2", x, (8, 8), groups=2), 8, alpha=spread, beta=leak)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    return calibrated(build.finish(build.linear("fc", x, (8 * 36, 5))), batch), batch


def _temporal() -> Case:
    """Event frames: 0 or 1 at every timestep."""
    build = Build(7, (2, 8, 8), temporal=True, kind="spike")
    batch = (np.random.default_rng(8).random((6, 5, 2, 8, 8)) < 0.2).astype(np.float32)
    x = build.norm_neuron("sn1", build.conv("conv1", "input", (2, 8), stride=2, bias=True), 8)
    x = build.norm_neuron("sn2", build.conv("conv2", x, (8, 8), padding=2, dilation=2), 8)
    x = build.add(MaxPool2d(name="pool", inputs=(Edge(x),), kernel=(2, 2), stride=(2, 2)))
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    graph = build.finish(build.linear("fc", x, (8 * 4, 5)), timesteps=5, mode="sum", encoding=Encoding(kind="spikes"))
    return calibrated(graph, batch), batch


def _ties(fires_at: str = "ge") -> Case:
    """Weights, gains and input on a coarse dyadic grid: potentials meet the threshold exactly, often."""
    build = Build(9, (2, 6, 6), temporal=True, kind="spike")
    batch = (np.random.default_rng(10).random((6, 6, 2, 6, 6)) < 0.3).astype(np.float32)
    grid = np.random.default_rng(11)
    x = build.add(
        Conv2d(
            name="conv1", inputs=(Edge("input"),), weight=frozen(grid.integers(-2, 4, (6, 2, 3, 3)) / 4),
            padding=(1, 1),
        )
    )  # fmt: skip
    x = build.neuron("sn1", x, alpha=0.5, beta=0.5, fires_at=fires_at)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    x = build.add(Linear(name="fc1", inputs=(Edge(x),), weight=frozen(grid.integers(-2, 4, (16, 216)) / 16)))
    x = build.neuron("sn2", x, alpha=0.5, beta=0.75, fires_at=fires_at)
    return build.finish(build.linear("fc2", x, (16, 4)), timesteps=6, encoding=Encoding(kind="spikes")), batch


def _shared_producer() -> Case:
    """One convolution feeds two BatchNorms and their neurons; a scaled branch; a BatchNorm without producer."""
    build = Build(12, (2, 6, 6))
    batch = _pixels(13, 6, 2, 6, 6)
    first = build.norm("input_bn", "input", 2, mean=0.2, spread=0.6)
    conv = build.conv("conv1", first, (2, 8))
    left = build.norm_neuron("left", conv, 8, alpha=0.5)
    right = build.norm_neuron("right", conv, 8, alpha=-0.75)
    scaled = build.add(
        Scale(name="scaled", inputs=(Edge(left),), factor=frozen(np.float32(0.70710678)), offset=frozen(0.0))
    )
    x = build.neuron("both", build.plus("add", scaled, right), alpha=0.875)
    x = build.norm_neuron("sn3", build.conv("conv2", x, (8, 6)), 6)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    return calibrated(build.finish(build.linear("fc", x, (6 * 36, 5))), batch), batch


def _codes() -> Case:
    """uint8 codes with a mean and a standard deviation per channel."""
    build = Build(14, (3, 6, 6))
    batch = np.random.default_rng(15).integers(0, 256, (6, 3, 6, 6)).astype(np.uint8)
    x = build.norm_neuron("sn1", build.conv("conv1", "input", (3, 8)), 8)
    x = build.norm_neuron("sn2", build.conv("conv2", x, (8, 8)), 8, reset="subtract")
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    encoding = Encoding(kind="uint8", scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
    return calibrated(build.finish(build.linear("fc", x, (8 * 36, 5)), encoding=encoding), batch), batch


GRAPHS: dict[str, Callable[[], Case]] = {
    "plain": _plain,
    "alpha negative": lambda: _plain(alpha=-0.75),
    "alpha tanh(1)": lambda: _plain(alpha=0.7615941762924194),
    "beta 0": lambda: _plain(beta=0.0),
    "beta 1": lambda: _plain(beta=1.0),
    "beta negative": lambda: _plain(beta=-0.25),
    "beta tanh(1)": lambda: _plain(beta=0.7615941762924194),
    "subtract reset": lambda: _plain(reset="subtract"),
    "strict threshold": lambda: _plain(fires_at="gt"),
    "threshold and reset": lambda: _plain(v_threshold=0.8, v_reset=-0.2),
    "identity residual": _residual,
    "identity residual, alpha negative": lambda: _residual(alpha=-0.75),
    "two-branch residual": lambda: _residual(downsample=True),
    "per channel": _per_channel,
    "temporal spikes": _temporal,
    "ties": _ties,
    "ties, strict": lambda: _ties("gt"),
    "shared producer": _shared_producer,
    "uint8 codes": _codes,
}
"""Calibrated graphs and a batch of data for each; every neuron layer fires on 2 to 40 % of neuron-steps."""


def _alpha_zero() -> Case:
    """A layer with alpha = 0 never fires; the rest of the network lives on another path."""
    build = Build(16, (2, 6, 6))
    batch = _pixels(17, 6, 2, 6, 6)
    x = build.norm_neuron("sn1", build.conv("conv1", "input", (2, 8)), 8)
    dead = build.norm_neuron("dead", build.conv("conv2", x, (8, 8)), 8, alpha=0.0)
    live = build.norm_neuron("live", build.conv("conv3", x, (8, 8)), 8)
    x = build.plus("add", dead, live)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    return calibrated(build.finish(build.linear("fc", x, (8 * 36, 5))), batch), batch


SPECIAL_GRAPHS: dict[str, Callable[[], Case]] = {"alpha zero": _alpha_zero}
"""Graphs that are silent somewhere on purpose."""
