"""A graph without one of its nodes: something that every target takes stands in its place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import DalifError
from dalif_deploy.graph import SpikingGraph, rename_inputs
from dalif_deploy.nodes import Conv2d, Edge, Input, Linear, Neuron, Node, Scale, SumPool2d, frozen

WEIGHT = 2.0**-6
"""Any number that every precision holds."""


def isolated(graph: SpikingGraph, name: str) -> SpikingGraph | None:
    """`graph` with a neutral node of the same shape for the one called `name`; None where there is none.

    Delayed edges are kept, so what is said of them is said again.
    """
    if name not in graph:
        return None
    node = graph[name]
    if isinstance(node, Input):
        return _of_codes(graph)
    if len(node.inputs) != 1:
        return None
    try:
        if node.name in graph.after_readout:
            return _without(graph, node)
        nodes = _neutral(graph, node)
        if nodes is None:
            return None
        return graph.with_nodes([new for old in graph.nodes for new in (nodes if old.name == name else [old])])
    except DalifError:  # nothing that fits
        return None


def guarded(graph: SpikingGraph, name: str) -> SpikingGraph | None:
    """`graph` with a plain neuron before the node called `name`, for one that is named again though it is neutral:
    then it is what it reads that is minded. None where there is no place for one."""
    before = f"{name} guarded"
    if name not in graph or before in graph or len(graph[name].inputs) != 1 or name in graph.after_readout:
        return None
    (edge,) = graph[name].inputs
    one, half = frozen(1.0), frozen(0.5)
    neuron = Neuron(name=before, inputs=(edge,), alpha=one, beta=half, v_threshold=one, v_reset=frozen(0.0))
    reading = replace(graph[name], inputs=(Edge(before),))
    try:
        return graph.with_nodes([*(node for node in graph.nodes if node.name != name), neuron, reading])
    except DalifError:
        return None


def _of_codes(graph: SpikingGraph) -> SpikingGraph | None:
    """The graph on plain codes, which every precision takes, where its input is something else."""
    codes = Encoding(kind="uint8")
    if graph.encoding == codes:
        return None
    return SpikingGraph(
        [replace(node, kind="real") if isinstance(node, Input) else node for node in graph.nodes],
        output=graph.output, timesteps=graph.timesteps, encoding=codes, class_names=graph.class_names,
        history=graph.history,
    )  # fmt: skip


def _without(graph: SpikingGraph, node: Node) -> SpikingGraph | None:
    """What stands after the readout is left out, where that leaves the shapes of what follows as they are."""
    (edge,) = node.inputs
    if node.name == graph.readout.name:
        return None
    rest = [rename_inputs(other, {node.name: edge.source}) for other in graph.nodes if other.name != node.name]
    return graph.with_nodes(rest, output=edge.source if graph.output == node.name else graph.output)


def _neutral(graph: SpikingGraph, node: Node) -> list[Node] | None:
    name, inputs = node.name, node.inputs
    shape, before = graph.types[name].shape, graph.types[inputs[0].source].shape
    if isinstance(node, Neuron):
        one, half = frozen(1.0), frozen(0.5)
        return [Neuron(name=name, inputs=inputs, alpha=one, beta=half, v_threshold=one, v_reset=frozen(0.0))]
    if isinstance(node, Linear):
        return [replace(node, weight=frozen(np.full(node.weight.shape, WEIGHT)), bias=None)]
    if shape == before:
        return [Scale(name=name, inputs=inputs, factor=frozen(0.5), offset=frozen(0.0))]
    if len(shape) != 3 or len(before) != 3:
        return None
    nodes: list[Node] = []
    grow = [max(0, (out - size + 1) // 2) for out, size in zip(shape[1:], before[1:], strict=True)]
    sizes = [size + 2 * extra for size, extra in zip(before[1:], grow, strict=True)]
    rows, columns = (size - out + 1 for size, out in zip(sizes, shape[1:], strict=True))
    pooled = (rows, columns) != (1, 1)
    if any(grow) or shape[0] != before[0]:
        weight = frozen(np.full((shape[0], before[0], 1, 1), WEIGHT))
        first = f"{name} sized" if pooled else name
        nodes.append(Conv2d(name=first, inputs=inputs, weight=weight, padding=(grow[0], grow[1])))
        inputs = (Edge(first),)
    if pooled:
        nodes.append(SumPool2d(name=name, inputs=inputs, kernel=(rows, columns), stride=(1, 1)))
    return nodes
