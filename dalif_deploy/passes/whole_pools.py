"""Turns every average pool that can be into a sum pool, so that spikes stay whole numbers up to the next weights.

Where `sum_pools` asks that only weights read the pool, this pass moves the factor 1 / (window size) on through
whatever keeps it a factor, and puts it into a Scale where nothing else can hold it. Rules, in topological order:

1. An average pool that divides by one number everywhere becomes a SumPool2d; its output carries the factor.
2. Flatten, SumPool2d and MaxPool2d pass the factor on; a further average pool multiplies it.
3. Conv2d, Linear and Scale take it into their weights or factor (a bias is not scaled).
4. Any other reader gets a Scale with the factor in between, one for all such readers of a node.

An average pool whose windows hang over (ceil_mode), or hold padding that is not counted, divides by another number at
each place: it becomes a SumPool2d and a Scale, which no weights behind it can hold.
"""

from __future__ import annotations

from dataclasses import replace

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    WEIGHTED,
    AvgPool2d,
    Edge,
    Flatten,
    MaxPool2d,
    Node,
    Scale,
    SumPool2d,
    frozen,
)
from dalif_deploy.passes.contract import Pass


def _transform(graph: SpikingGraph) -> SpikingGraph:
    sizes: dict[str, int] = {}  # by node: what its values are still to be divided by
    nodes: list[Node] = []
    scales: dict[str, str] = {}
    notes: list[str] = []
    for original in graph.nodes:
        node = original
        size = sizes.get(node.inputs[0].source, 1) if node.inputs else 1
        if isinstance(node, AvgPool2d) and _divides_evenly(node, graph.types[node.inputs[0].source].shape):
            sizes[node.name] = size * node.kernel[0] * node.kernel[1]
            node = SumPool2d(
                name=node.name, inputs=node.inputs, kernel=node.kernel, stride=node.stride, padding=node.padding
            )
            notes.append(f"{node.name}: average pool to sum pool, 1/{sizes[node.name]} into what reads it")
        elif isinstance(node, AvgPool2d):
            total = f"{node.name}.total"
            while total in graph:
                total += "_"
            divisors = node.divisors(graph.types[node.inputs[0].source].shape[1:])
            nodes.append(
                SumPool2d(
                    name=total, inputs=node.inputs, kernel=node.kernel, stride=node.stride, padding=node.padding,
                    ceil_mode=node.ceil_mode,
                )
            )  # fmt: skip
            notes.append(f"{node.name}: average pool to sum pool, and a scale for each place")
            node = Scale(
                name=node.name, inputs=(Edge(total),), factor=frozen(1.0 / (size * divisors)), offset=frozen(0.0)
            )
        elif isinstance(node, Flatten | SumPool2d | MaxPool2d):
            sizes[node.name] = size
        elif isinstance(node, WEIGHTED):
            node = replace(node, weight=frozen(node.weight / size))
        elif isinstance(node, Scale):
            node = replace(node, factor=frozen(node.factor / size))
        else:
            node = replace(node, inputs=tuple(_divided(edge, sizes, scales, nodes) for edge in node.inputs))
        nodes.append(node)
    return graph.with_nodes(nodes, note=notes) if notes else graph


def _divides_evenly(pool: AvgPool2d, shape: tuple[int, ...]) -> bool:
    """Whether every window is divided by the kernel's size."""
    if pool.whole_windows(shape[1:]):
        return True
    return pool.count_include_pad and pool.closed_windows(shape[1:]) == pool.windows(shape[1:])


def _divided(edge: Edge, sizes: dict[str, int], scales: dict[str, str], nodes: list[Node]) -> Edge:
    size = sizes.get(edge.source, 1)
    if size == 1:
        return edge
    if edge.source not in scales:
        scales[edge.source] = f"{edge.source}.mean"
        nodes.append(
            Scale(name=scales[edge.source], inputs=(Edge(edge.source),), factor=frozen(1.0 / size), offset=frozen(0.0))
        )
    return replace(edge, source=scales[edge.source])


whole_pools = Pass("whole_pools", _transform)
