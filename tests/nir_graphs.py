"""Small folded graphs for the tests of NIR: the shapes of network that the simulators differ in."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nir
import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.equivalence.replay import NeuronStep, replay
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nodes import Add, Edge, Flatten, Input, Linear, Neuron, Node, Readout, SumPool2d, frozen
from dalif_deploy.passes import fold
from tests.graphs import Build, Case, calibrated

TIMESTEPS = 12


def _folded(build: Build, source: str, batch: NDArray[np.generic]) -> Case:
    return fold(calibrated(build.finish(source, timesteps=TIMESTEPS), batch)), batch


def affine_chain(beta: object = 0.625, **rules: object) -> Case:
    """affine - neuron - affine - neuron - affine on vectors, another input at every step."""
    build = Build(21, (12,), temporal=True)
    batch = np.random.default_rng(22).normal(0.3, 0.6, (8, TIMESTEPS, 12)).astype(np.float32)
    x = build.norm_neuron("sn1", build.linear("fc1", "input", (12, 32)), 32, beta=beta, **rules)
    x = build.norm_neuron("sn2", build.linear("fc2", x, (32, 16)), 16, beta=beta, **rules)
    return _folded(build, build.linear("fc3", x, (16, 5)), batch)


def conv_chain(beta: object = 0.625) -> Case:
    """conv - neuron - sum pool - flatten - affine - neuron - linear."""
    build = Build(23, (2, 6, 6))
    batch = np.random.default_rng(24).uniform(0.0, 1.0, (8, 2, 6, 6)).astype(np.float32)
    x = build.norm_neuron("features.sn", build.conv("features.conv", "input", (2, 6)), 6, beta=beta)
    x = build.avg_pool("pool", x)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    x = build.norm_neuron("sn2", build.linear("fc1", x, (54, 16)), 16, beta=beta)
    return _folded(build, build.linear("fc2", x, (16, 5), bias=False), batch)


def residual(beta: object = 0.625, *, downsample: bool = False) -> Case:
    """A block whose shortcut is the identity, or a 1x1 convolution with stride 2."""
    build = Build(25, (2, 6, 6))
    batch = np.random.default_rng(26).uniform(0.0, 1.0, (8, 2, 6, 6)).astype(np.float32)
    stem = build.norm_neuron("stem.sn", build.conv("stem.conv", "input", (2, 8)), 8, beta=beta)
    stride = 2 if downsample else 1
    x = build.norm_neuron("block.sn1", build.conv("block.conv1", stem, (8, 8), stride=stride), 8, beta=beta)
    branch = build.norm("block.bn2", build.conv("block.conv2", x, (8, 8)), 8, mean=0.15, spread=0.4)
    shortcut = stem
    if downsample:
        conv = build.conv("block.shortcut", stem, (8, 8), kernel=1, padding=0, stride=2)
        shortcut = build.norm("block.shortcut_bn", conv, 8, mean=0.15, spread=0.4)
    x = build.neuron("block.sn2", build.plus("block.add", branch, shortcut), beta=beta)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    return _folded(build, build.linear("fc", x, (8 * (9 if downsample else 36), 5)), batch)


NETWORKS: dict[str, Callable[[object], Case]] = {
    "affine chain": affine_chain,
    "conv chain": conv_chain,
    "identity residual": residual,
    "two-branch residual": lambda beta: residual(beta, downsample=True),
}


def changed(case: Case, name: str, **fields: object) -> Case:
    """The case with some fields of one node replaced."""
    graph, batch = case
    return graph.replaced({name: replace(graph[name], **fields)}), batch  # type: ignore[arg-type]


def renamed(case: Case, names: dict[str, str]) -> Case:
    """The case with nodes of other names."""
    graph, batch = case

    def new(name: str) -> str:
        return names.get(name, name)

    nodes: list[Node] = [
        replace(node, name=new(node.name), inputs=tuple(Edge(new(edge.source)) for edge in node.inputs))
        for node in graph.nodes
    ]
    return SpikingGraph(nodes, output=new(graph.output), timesteps=graph.timesteps), batch


def one_layer(threshold: float, beta: float, values: list[float]) -> Case:
    """Each input value straight into a neuron of its own, for one step, the spikes read out."""
    count = len(values)
    nodes: list[Node] = [
        Input(name="input", shape=(count,), temporal=False),
        Linear(name="fc", inputs=(Edge("input"),), weight=frozen(np.eye(count))),
        Neuron(
            name="sn", inputs=(Edge("fc"),), alpha=frozen(1.0), beta=frozen(beta), v_threshold=frozen(threshold)
        ),
        Readout(name="readout", inputs=(Edge("sn"),), mode="sum"),
    ]  # fmt: skip
    return SpikingGraph(nodes, output="readout", timesteps=3), np.array([values], dtype=np.float32)


def padded_pool() -> Case:
    """A sum pool that pads, on spikes."""
    rng = np.random.default_rng(27)
    nodes: list[Node] = [
        Input(name="input", shape=(2, 5, 5), temporal=False),
        Neuron(name="sn1", inputs=(Edge("input"),), alpha=frozen(1.0), beta=frozen(0.5)),
        SumPool2d(name="pool", inputs=(Edge("sn1"),), kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        Neuron(name="sn2", inputs=(Edge("pool"),), alpha=frozen(1.0), beta=frozen(0.5), v_threshold=frozen(3.3)),
        Flatten(name="flatten", inputs=(Edge("sn2"),)),
        Readout(name="readout", inputs=(Edge("flatten"),), mode="sum"),
    ]
    batch = rng.uniform(0.0, 0.9, (4, 2, 5, 5)).astype(np.float32)
    return SpikingGraph(nodes, output="readout", timesteps=6), batch


def three_branches() -> Case:
    """Sums of sums: one is read by two nodes and read out, one adds a source twice."""
    build = Build(28, (10,))
    batch = np.random.default_rng(29).normal(0.2, 0.5, (8, 10)).astype(np.float32)
    x = build.norm_neuron("sn1", build.linear("fc1", "input", (10, 12)), 12)
    y = build.norm_neuron("sn2", build.linear("fc2", x, (12, 12)), 12)
    total = build.plus("add1", x, y, build.linear("fc3", "input", (10, 12)))
    z = build.neuron("sn3", build.norm("bn3", build.linear("fc4", total, (12, 12)), 12))
    w = build.neuron("sn4", total, alpha=1.0, beta=0.5, v_threshold=0.8)
    last = build.add(Add(name="add2", inputs=(Edge(z), Edge(w), Edge(z), Edge(total))))
    return _folded(build, last, batch)


def write(case: Case, folder: Path, name: str = "net.nir", *, dialect: str = "canonical") -> Path:
    """The case's graph as a file."""
    path = folder / name
    nir.write(str(path), to_nir(case[0], dialect=dialect))
    return path


def smallest_margin(case: Case) -> float:
    """The smallest |V - v_th|, relative to the bound on what rounding does to it, over all neuron-steps."""
    graph, batch = case
    margins: list[float] = []

    def visit(step: NeuronStep) -> None:
        assert step.bound is not None
        gap = np.abs(step.potential - step.neuron.v_threshold) / step.bound
        margins.append(float(gap.min()))

    replay(graph, batch, visit, update="decay")
    return min(margins)


def per_step(call: str, path: Path, batch: NDArray[np.float32], file: nir.NIRGraph) -> NDArray[np.floating]:
    """The outputs [batch, T, ...] of a simulator's own network, loaded by the call that the export prints."""
    spec = FileMetadata.from_strings(file.metadata, source="test").input
    inputs = spec.module_input(batch)
    steps = inputs if spec.temporal else np.repeat(inputs[:, None], spec.timesteps, axis=1)
    return stepped(call, path, steps)


def stepped(call: str, path: Path, steps: NDArray[np.float32]) -> NDArray[np.floating]:
    """The outputs [batch, T, ...] of the network that a call loads, on `steps` [batch, T, ...]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the packages' own: deprecations of torch and of nirtorch.load
        import nirtorch
        import norse.torch
        import norse.torch.utils.import_nir
        import sinabs.nir
        import snntorch.import_nir
        import spikingjelly.activation_based.nir_exchange

        import dalif_deploy.runtimes.sinabs

        names = {
            "nir": nir, "nirtorch": nirtorch, "functools": functools, "norse": norse, "snntorch": snntorch,
            "spikingjelly": spikingjelly, "path": str(path), "dalif_deploy": dalif_deploy,
            "sinabs": SimpleNamespace(from_nir=functools.partial(sinabs.nir.from_nir, batch_size=len(steps))),
        }  # fmt: skip
        network = eval(call, names)
        inputs = torch.from_numpy(steps)
        state, outputs = None, []
        with torch.no_grad():
            for t in range(inputs.shape[1]):
                result, state = network(inputs[:, t], state)
                outputs.append(result.numpy().copy())
    return np.stack(outputs, axis=1)
