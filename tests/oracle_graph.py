"""Any network of the paper's neurons, evaluated with loops in float64, from what its nodes say and no code of theirs.

One sample at one timestep, as in `oracle.py`, whose neuron and convolution it uses. A graph's nodes are read as data:
kind, parameters and sources. Nothing of the package is called, not even for the number of a pool's windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracle import conv

Array = NDArray[np.float64]


class Layer:
    """Eq. (9) and (2), and where the potential is normalised before the comparison, U in V's place there."""

    def __init__(self, node: Any) -> None:
        self.node, self.H, self.closest = node, None, np.inf

    def __call__(self, X: Array) -> Array:
        n = self.node
        H = np.zeros_like(X) if self.H is None else self.H
        V = n.beta * H + n.alpha * X
        U = n.norm_gain * (V - n.norm_mean) + n.norm_bias
        # A gain of 0 decides for good, so it is near to no tie.
        self.closest = min(
            self.closest, float(np.abs(U - n.v_threshold)[np.broadcast_to(n.norm_gain != 0, X.shape)].min(initial=9))
        )
        margin = U - n.v_threshold
        S = np.where(margin < 0, 0.0, 1.0) if n.fires_at == "ge" else np.where(margin > 0, 1.0, 0.0)
        self.H = n.v_reset * S + V * (1 - S) if n.reset == "hard" else V - n.v_threshold * S
        return S


def places(n: int, k: int, s: int, p: int, ceil_mode: bool) -> Iterator[tuple[int, int]]:
    """First and last + 1 place of every window along an axis, padding included.

    A window more with ceil_mode, where the ones before leave places over and it begins on the input or before it.
    """
    start = -p
    while True:
        whole = start + k <= n + p
        left_over = start == -p or start - s + k < n + p
        if not (whole or (ceil_mode and left_over and start < n)):
            return
        yield start, start + k
        start += s


def pooled(node: Any, x: Array) -> Array:
    """torch.nn.AvgPool2d, MaxPool2d, and the sum of a window."""
    kind = type(node).__name__
    (height, width), (top, left) = x.shape[1:], node.padding
    rows = list(places(height, node.kernel[0], node.stride[0], top, node.ceil_mode))
    columns = list(places(width, node.kernel[1], node.stride[1], left, node.ceil_mode))
    out = np.empty((len(x), len(rows), len(columns)))
    for c in range(len(x)):
        for i, (y0, y1) in enumerate(rows):
            for j, (z0, z1) in enumerate(columns):
                seen = x[c, max(y0, 0) : min(y1, height), max(z0, 0) : min(z1, width)]
                if kind == "MaxPool2d":
                    out[c, i, j] = seen.max()
                elif kind == "SumPool2d":
                    out[c, i, j] = seen.sum()
                elif node.count_include_pad:
                    out[c, i, j] = seen.sum() / ((min(y1, height + top) - y0) * (min(z1, width + left) - z0))
                else:
                    out[c, i, j] = seen.sum() / seen.size
    return out


def computed(node: Any, inputs: list[Array]) -> Array:
    """A node without memory."""
    kind, x = type(node).__name__, inputs[0] if inputs else np.zeros(0)
    if kind == "Conv2d":
        assert node.dilation == (1, 1)
        assert node.stride[0] == node.stride[1]
        bias = np.zeros(len(node.weight)) if node.bias is None else node.bias
        into, out = len(x) // node.groups, len(node.weight) // node.groups
        parts = [
            conv(x[g * into : (g + 1) * into], node.weight[g * out : (g + 1) * out], bias[g * out : (g + 1) * out],
                 node.stride[0], *node.padding)
            for g in range(node.groups)
        ]  # fmt: skip
        return np.concatenate(parts)
    if kind == "Linear":
        return np.array([(row * x).sum() for row in node.weight]) + (0.0 if node.bias is None else node.bias)
    if kind == "BatchNorm":
        rows = [
            node.weight[c] * (x[c] - node.mean[c]) / np.sqrt(node.variance[c] + node.epsilon) + node.bias[c]
            for c in range(len(x))
        ]
        return np.array(rows)
    if kind == "Scale":
        return node.factor * x + node.offset
    if kind == "Zeros":
        return np.zeros(node.shape)
    if kind == "Flatten":
        return x.reshape(-1)
    if kind == "Add":
        return sum(inputs[1:], inputs[0])
    if kind == "Concat":
        return np.concatenate(inputs)
    return pooled(node, x)


def run(graph: Any, samples: Array) -> tuple[dict[str, Array], Array, float]:
    """Spikes of every layer [N, T, ...], logits [N, ...], and how near to a tie it came."""
    spikes: dict[str, list[Array]] = {}
    logits, closest = [], np.inf
    for sample in samples.astype(np.float64):
        layers = {node.name: Layer(node) for node in graph.nodes if type(node).__name__ == "Neuron"}
        fired: dict[str, list[Array]] = {name: [] for name in layers}
        outputs = []
        for t in range(graph.timesteps):
            values: dict[str, Array] = {}
            for node in graph.nodes:
                kind, inputs = type(node).__name__, [values[edge.source] for edge in node.inputs]
                if kind == "Input":
                    values[node.name] = sample[t] if node.temporal else sample
                elif kind == "Neuron":
                    values[node.name] = layers[node.name](inputs[0])
                    fired[node.name].append(values[node.name])
                elif kind == "Readout":
                    outputs.append(inputs[0])
                else:
                    values[node.name] = computed(node, inputs)
        for name, steps in fired.items():
            spikes.setdefault(name, []).append(np.array(steps))
            closest = min(closest, layers[name].closest)
        assert graph.readout.mode == "mean"
        logits.append(sum(outputs[1:], outputs[0]) / graph.timesteps)
    return {name: np.array(trains) for name, trains in spikes.items()}, np.array(logits), closest
