"""Takes a sum pool of a convolution into the convolution: one larger kernel, at a larger stride.

A window of kp x kp outputs of a kernel W at stride s, dilation d adds up W at all places a s, a = 0 .. kp - 1:

    W'[i'] = sum of W[i] over all a, i with a s + i d = i',   stride s sp,   bias kp kp b

so that what stands before the neuron is a sum of products with whole numbers, and no sum of sums. Only for a pool
without padding, of whole windows, that alone reads the convolution; and without a bias over a delayed edge.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Conv2d, Edge, Node, SumPool2d, frozen
from dalif_deploy.passes.contract import Pass


def _transform(graph: SpikingGraph) -> SpikingGraph:
    changes: dict[str, Node] = {}
    notes = []
    for pool in graph.nodes:
        if not isinstance(pool, SumPool2d):
            continue
        (edge,) = pool.inputs
        conv = graph[edge.source]
        alone = isinstance(conv, Conv2d) and len(graph.consumers[edge.source]) == 1
        if isinstance(conv, Conv2d) and alone and pool.whole_windows(graph.types[edge.source].shape[1:]):
            if edge.delay and conv.bias is not None:
                continue
            changes[pool.name] = _together(pool, conv, edge.delay)
            notes.append(f"{pool.name}: sum pool taken into the weights of {conv.name}")
    return graph.replaced(changes, note=notes) if changes else graph


def _together(pool: SumPool2d, conv: Conv2d, delay: int) -> Conv2d:
    kernel = conv.weight.shape[2:]
    size = [
        (k - 1) * d + (kp - 1) * s + 1
        for k, d, kp, s in zip(kernel, conv.dilation, pool.kernel, conv.stride, strict=True)
    ]
    weight = np.zeros((*conv.weight.shape[:2], *size))
    for i, j, a, b in np.ndindex(kernel[0], kernel[1], *pool.kernel):
        row, column = a * conv.stride[0] + i * conv.dilation[0], b * conv.stride[1] + j * conv.dilation[1]
        weight[:, :, row, column] += conv.weight[:, :, i, j]
    area = pool.kernel[0] * pool.kernel[1]
    return replace(
        conv,
        name=pool.name,
        inputs=(Edge(conv.inputs[0].source, conv.inputs[0].delay + delay),),
        weight=frozen(weight),
        bias=None if conv.bias is None else frozen(area * conv.bias),
        stride=(conv.stride[0] * pool.stride[0], conv.stride[1] * pool.stride[1]),
        dilation=(1, 1),
    )


pooled_weights = Pass("pooled_weights", _transform)
