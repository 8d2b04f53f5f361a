"""Dense evaluation of the stateless node kinds in NumPy, in the dtype of their input.

This is what replays a network for judging it and what the event-driven runtime uses where a layer is fed
by real values. Arrays are [batch, *feature shape].

With `magnitude=True` an operator returns, instead of its value, the sum of the absolute values of all
terms of its sum, given the magnitudes of its inputs: |W| |x| + |b| for a layer with weights. Rounding
errors of the value, in any order of summation, are proportional to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Node,
    Pair,
    Pool2d,
    ReadoutMode,
    Reshape,
    Scale,
    SumPool2d,
)

Values = NDArray[np.floating]


def evaluate(node: Node, inputs: Sequence[Values], *, magnitude: bool = False) -> Values:
    """The output of a stateless `node`, [batch, *shape], in the dtype of the first input.

    Raises `DalifError` (RUNTIME_CANNOT_RUN) for a node kind that has no dense evaluation.
    """
    operator = _OPERATORS.get(type(node))
    if operator is None:
        raise DalifError(
            Code.RUNTIME_CANNOT_RUN, f"node '{node.name}' ({type(node).__name__}): no dense evaluation exists"
        )
    return operator(node, inputs, magnitude)


def windows(x: Values, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Values:
    """A view of all windows of `x` [..., height, width] as [..., rows, columns, kernel h, kernel w]."""
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    view = sliding_window_view(x, extent, axis=(-2, -1))
    return view[..., :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def pad(x: Values, padding: Sequence[tuple[int, int]], value: float = 0.0) -> Values:
    """`x` [..., height, width] with (before, after) rows and columns of `value` added."""
    if not any(n for pair in padding for n in pair):
        return x
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + list(padding), constant_values=value)


def _parameter(values: NDArray[np.float64], like: Values, magnitude: bool) -> Values:
    cast: Values = values.astype(like.dtype)
    return np.abs(cast) if magnitude else cast


def _conv2d(node: Conv2d, inputs: Sequence[Values], magnitude: bool) -> Values:
    (x,) = inputs
    weight = _parameter(node.weight, x, magnitude)
    kernel = (weight.shape[2], weight.shape[3])
    padded = pad(x, [(p, p) for p in node.padding])
    patches = windows(padded, kernel, node.stride, node.dilation)
    batch, channels, rows, columns = patches.shape[:4]
    grouped = patches.reshape(batch, node.groups, channels // node.groups, rows, columns, *kernel)
    weights = weight.reshape(node.groups, -1, *weight.shape[1:])
    parts = [
        np.tensordot(weights[g], grouped[:, g], axes=((1, 2, 3), (1, 4, 5))).transpose(1, 0, 2, 3)
        for g in range(node.groups)
    ]
    out: Values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if node.bias is not None:
        out = out + _parameter(node.bias, x, magnitude)[:, None, None]
    return out


def _linear(node: Linear, inputs: Sequence[Values], magnitude: bool) -> Values:
    (x,) = inputs
    out: Values = x @ _parameter(node.weight, x, magnitude).T
    return out if node.bias is None else out + _parameter(node.bias, x, magnitude)


def _batch_norm(node: BatchNorm, inputs: Sequence[Values], magnitude: bool) -> Values:
    (x,) = inputs
    spread = (slice(None),) + (None,) * (x.ndim - 2)
    gain = _parameter(node.gain(), x, magnitude)[spread]
    mean = _parameter(node.mean, x, magnitude)[spread]
    bias = _parameter(node.bias, x, magnitude)[spread]
    return gain * (x + mean if magnitude else x - mean) + bias


def _scale(node: Scale, inputs: Sequence[Values], magnitude: bool) -> Values:
    (x,) = inputs
    return _parameter(node.factor, x, magnitude) * x + _parameter(node.offset, x, magnitude)


def _pool_windows(node: Pool2d, x: Values, fill: float) -> Values:
    size = x.shape[-2:]
    # ceil_mode may let the last window reach beyond the padding; those places are filled as well.
    beyond = [
        max(0, (count - 1) * s + k - (n + 2 * p))
        for count, n, k, s, p in zip(node.windows(size), size, node.kernel, node.stride, node.padding, strict=True)
    ]
    padded = pad(x, [(p, p + extra) for p, extra in zip(node.padding, beyond, strict=True)], fill)
    rows, columns = node.windows(size)
    return windows(padded, node.kernel, node.stride)[..., :rows, :columns, :, :]


def _sum_pool(node: SumPool2d, inputs: Sequence[Values], magnitude: bool) -> Values:
    return np.asarray(_pool_windows(node, inputs[0], 0.0).sum(axis=(-2, -1)))


def average_divisors(node: AvgPool2d, size: Sequence[int]) -> NDArray[np.float64]:
    """How many places each window divides by, [rows, columns]: torch's count_include_pad rule."""
    return node.divisors(size)


def _avg_pool(node: AvgPool2d, inputs: Sequence[Values], magnitude: bool) -> Values:
    (x,) = inputs
    total = _pool_windows(node, x, 0.0).sum(axis=(-2, -1))
    return np.asarray(total / average_divisors(node, x.shape[-2:]).astype(x.dtype))


def _max_pool(node: MaxPool2d, inputs: Sequence[Values], magnitude: bool) -> Values:
    # A maximum is no sum, but its error is at most the largest of its inputs' errors.
    return np.asarray(_pool_windows(node, inputs[0], -np.inf).max(axis=(-2, -1)))


def _flatten(node: Flatten, inputs: Sequence[Values], magnitude: bool) -> Values:
    return inputs[0].reshape(len(inputs[0]), -1)


def _reshape(node: Reshape, inputs: Sequence[Values], magnitude: bool) -> Values:
    return inputs[0].reshape(len(inputs[0]), *node.shape)


def _add(node: Add, inputs: Sequence[Values], magnitude: bool) -> Values:
    total = inputs[0]
    for term in inputs[1:]:
        total = total + term
    return total


def _concat(node: Concat, inputs: Sequence[Values], magnitude: bool) -> Values:
    return np.concatenate(inputs, axis=1)


_OPERATORS: Mapping[type[Node], Callable[[Any, Sequence[Values], bool], Values]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    BatchNorm: _batch_norm,
    Scale: _scale,
    AvgPool2d: _avg_pool,
    SumPool2d: _sum_pool,
    MaxPool2d: _max_pool,
    Flatten: _flatten,
    Reshape: _reshape,
    Add: _add,
    Concat: _concat,
}


def reduce_time(values: Values, mode: ReadoutMode) -> Values:
    """[batch, T, ...] per-step outputs -> [batch, ...], summed in the order of time, divided once.

    The definition that all runtimes share which receive an output per step.
    """
    if mode == "last":
        return np.asarray(values[:, -1])
    if mode == "max":
        return np.asarray(values.max(axis=1))
    total = values[:, 0]
    for t in range(1, values.shape[1]):
        total = total + values[:, t]
    return np.asarray(total / values.dtype.type(values.shape[1])) if mode == "mean" else np.asarray(total)
