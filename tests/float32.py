"""A float32 evaluation of folded graphs that shares no code with the package: sums in any order, step by step.

Every sum of weights is added up one term after the other, in an order drawn at random, or with the positive terms
first, where partial sums, and with them their rounding, are largest; the membrane follows one of the formulas
that runtimes use. It shows what a float32 backend may compute, not what one does.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Pool2d,
    Scale,
    SumPool2d,
    Zeros,
)

F32 = NDArray[np.float32]


def float32_run(
    graph: SpikingGraph, inputs: F32, rng: np.random.Generator | None, *, update: str = "sum"
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """By layer: potentials in the graph's units, and spikes, each [batch, T, *shape].

    `rng`: draws the orders; None adds the positive terms first.
    """
    held: dict[str, F32] = {}
    found: dict[str, list[tuple[F32, NDArray[np.bool_]]]] = {neuron.name: [] for neuron in graph.neurons}
    for t in range(graph.timesteps):
        values: dict[str, F32] = {}
        for node in graph.nodes:
            if node.name in graph.after_readout:
                continue
            if isinstance(node, Input):
                values[node.name] = inputs[:, t] if node.temporal else inputs
            elif isinstance(node, Zeros):
                values[node.name] = np.zeros((len(inputs), *node.shape), np.float32)
            elif isinstance(node, Neuron):
                potential, spikes, held[node.name] = _membrane(
                    node, held.get(node.name), values[node.inputs[0].source], update
                )
                found[node.name].append((potential, spikes))
                values[node.name] = spikes.astype(np.float32)
            else:
                values[node.name] = _stateless(node, [values[edge.source] for edge in node.inputs], rng)
    return {
        name: (np.stack([v for v, _ in steps], axis=1).astype(np.float64), np.stack([s for _, s in steps], axis=1))
        for name, steps in found.items()
    }


def _membrane(node: Neuron, held: F32 | None, x: F32, update: str) -> tuple[F32, NDArray[np.bool_], F32]:
    beta, threshold, reset = (np.asarray(v, np.float32) for v in (node.beta, node.v_threshold, node.v_reset))
    if held is None:
        held = np.zeros_like(x)
    if update == "sum":
        v = (beta * held).astype(np.float32) + x
    else:
        # The file's units: k V. tau is float64 in the file and float32 in its reader.
        k64 = 1.0 - node.beta
        inverse = np.float32(1.0) / np.float32(1e-4 / k64)
        k = np.float32(1e-4) * inverse
        threshold = np.asarray(k64 * node.v_threshold, np.float32)
        reset = np.asarray(k64 * node.v_reset, np.float32)
        v = held + k * (x - held)
    assert v.dtype == np.float32
    spikes = v >= threshold if node.fires_at == "ge" else v > threshold
    after = np.where(spikes, reset, v) if node.reset == "hard" else v - threshold * spikes.astype(np.float32)
    potential = v if update == "sum" else v.astype(np.float64) / (1.0 - node.beta)
    return potential, spikes, after.astype(np.float32)


def _stateless(node: Node, inputs: list[F32], rng: np.random.Generator | None) -> F32:
    x = inputs[0]
    if isinstance(node, Linear):
        return _weighted(node.weight.astype(np.float32), x, node.bias, rng)
    if isinstance(node, Conv2d):
        return _convolved(node, x, rng)
    if isinstance(node, SumPool2d | AvgPool2d):
        total = _summed(_places(node, x, 0.0), rng)
        if isinstance(node, SumPool2d):
            return total
        counted = np.ones((1, 1, *x.shape[2:]), np.float32)
        if node.count_include_pad:
            (top, left) = node.padding
            counted = np.pad(counted, ((0, 0), (0, 0), (top, top), (left, left)))
            counted[...] = 1.0
            divisors = sum(_places(replace(node, padding=(0, 0)), counted, 0.0, node.windows(x.shape[2:])))
        else:
            divisors = sum(_places(node, counted, 0.0))
        return np.asarray(total / divisors, np.float32)
    if isinstance(node, MaxPool2d):
        return np.asarray(np.max(_places(node, x, -np.inf), axis=0))
    if isinstance(node, Concat):
        return np.concatenate(inputs, axis=1)
    if isinstance(node, Flatten):
        return x.reshape(len(x), -1)
    if isinstance(node, Scale):
        return np.asarray(node.factor, np.float32) * x + np.asarray(node.offset, np.float32)
    assert isinstance(node, Add), node
    return _summed(list(inputs), rng)


def _places(node: Pool2d, x: F32, fill: float, count: tuple[int, ...] | None = None) -> list[F32]:
    """For every place of a window, what lies there in all windows."""
    rows, columns = count or node.windows(x.shape[2:])
    ends = [(n - 1) * s + k for n, s, k in zip((rows, columns), node.stride, node.kernel, strict=True)]
    far = [max(0, end - n - p) for end, n, p in zip(ends, x.shape[2:], node.padding, strict=True)]
    pads = [(0, 0), (0, 0), *((p, f) for p, f in zip(node.padding, far, strict=True))]
    padded = np.pad(x, pads, constant_values=np.float32(fill))
    down, right = node.stride
    return [
        padded[:, :, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * right + 1 : right]
        for i in range(node.kernel[0])
        for j in range(node.kernel[1])
    ]


def _convolved(node: Conv2d, x: F32, rng: np.random.Generator | None) -> F32:
    out, per_group, height, width = node.weight.shape
    (top, left), (down, right), (dy, dx) = node.padding, node.stride, node.dilation
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
    rows = (padded.shape[2] - (height - 1) * dy - 1) // down + 1
    columns = (padded.shape[3] - (width - 1) * dx - 1) // right + 1
    parts = []
    for g in range(node.groups):
        patches = np.empty((len(x), per_group, height, width, rows, columns), np.float32)
        for i in range(height):
            for j in range(width):
                moved = padded[:, g * per_group : (g + 1) * per_group, i * dy :, j * dx :]
                patches[:, :, i, j] = moved[:, :, : (rows - 1) * down + 1 : down, : (columns - 1) * right + 1 : right]
        own = slice(g * out // node.groups, (g + 1) * out // node.groups)
        weight = node.weight[own].reshape(out // node.groups, -1).astype(np.float32)
        bias = None if node.bias is None else node.bias[own]
        parts.append(_weighted(weight, patches.reshape(len(x), -1, rows, columns), bias, rng))
    return np.concatenate(parts, axis=1)


def _weighted(weight: F32, x: F32, bias: NDArray[np.float64] | None, rng: np.random.Generator | None) -> F32:
    """sum over k of weight[o, k] * x[:, k], the bias as one more term."""
    if bias is not None:
        weight = np.concatenate([weight, bias.astype(np.float32)[:, None]], axis=1)
        x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
    outputs, terms = weight.shape
    if rng is None:
        order = np.argsort(-weight, axis=1, kind="stable")
    else:
        order = np.broadcast_to(rng.permutation(terms), (outputs, terms))
    total = np.zeros((len(x), outputs, *x.shape[2:]), np.float32)
    spread = (slice(None),) + (None,) * (x.ndim - 2)
    for k in order.T:
        total += x[:, k] * weight[np.arange(outputs), k][spread]
    return total


def _summed(terms: list[F32], rng: np.random.Generator | None) -> F32:
    total = np.zeros_like(terms[0])
    for index in range(len(terms)) if rng is None else rng.permutation(len(terms)):
        total = total + terms[index]
        assert total.dtype == np.float32
    return total
