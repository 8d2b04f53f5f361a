"""Turns an average pool that feeds weights into a sum pool, with 1 / (window size) in those weights.

The sum of spikes in a window is a whole number, exact in every arithmetic, while their mean rounds. Rules:

1. Every reader of the pool, seen through Flatten, is a Conv2d or Linear, and every window lies whole within
   the input: the pool becomes a SumPool2d and every one of those weights is divided by the window's size.
2. Every reader, seen through Flatten, is a Linear, and windows hang over or hold padding that is not counted: the
   pool becomes a SumPool2d all the same, and every weight is divided by the number of places of its own window.
3. Otherwise the average pool stays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import WEIGHTED, Array, AvgPool2d, Conv2d, Flatten, Linear, Node, SumPool2d, frozen
from dalif_deploy.passes.contract import Pass


def _transform(graph: SpikingGraph) -> SpikingGraph:
    for pool in graph.nodes:
        if not isinstance(pool, AvgPool2d):
            continue
        readers = _readers(graph, pool)
        shape = graph.types[pool.inputs[0].source].shape
        if readers is None:
            continue
        changes: dict[str, Node] = {}
        if pool.whole_windows(shape[1:]):
            size: Array | int = pool.kernel[0] * pool.kernel[1]
            divisor = f"1/{size}"
        elif all(isinstance(node, Linear) for node in readers):
            divisors = pool.divisors(shape[1:])
            size = np.broadcast_to(divisors, (shape[0], *divisors.shape)).reshape(-1)
            divisor = f"1/{int(divisors.min())} to 1/{int(divisors.max())}"
        else:
            continue
        changes = {node.name: replace(node, weight=frozen(node.weight / size)) for node in readers}
        changes[pool.name] = SumPool2d(
            name=pool.name, inputs=pool.inputs, kernel=pool.kernel, stride=pool.stride, padding=pool.padding,
            ceil_mode=pool.ceil_mode and not pool.whole_windows(shape[1:]),
        )  # fmt: skip
        names = ", ".join(node.name for node in readers)
        graph = graph.replaced(changes, note=[f"{pool.name}: average pool to sum pool, {divisor} into {names}"])
    return graph


def _readers(graph: SpikingGraph, pool: Node) -> list[Conv2d | Linear] | None:
    """The layers with weights that read `pool`, or None where something else reads it."""
    found: list[Conv2d | Linear] = []
    for node in graph.consumers[pool.name]:
        if isinstance(node, Flatten):
            behind = _readers(graph, node)
            if behind is None:
                return None
            found.extend(behind)
        elif isinstance(node, WEIGHTED):
            found.append(node)
        else:
            return None
    return found or None


sum_pools = Pass("sum_pools", _transform)
