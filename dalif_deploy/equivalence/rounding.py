"""How far a float32 evaluation of a stateless node can lie from exact arithmetic, in any order of summation.

Every value comes with an error: a bound on |computed - exact|. Here a node's error follows from its inputs'
values and errors. With u = 2^-24 and gamma(k) = k u / (1 - k u), a sum of k rounded terms is within gamma(k)
of the sum of their absolute values, in whatever order it is added, and with or without fused
multiply-adds. docs/exactness.md derives the rules; each is named there as here.

Spikes and counts are whole numbers: products with them and their sums are exact, and only terms that are
not zero take part in rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.lattice import mean_gives_back
from dalif_deploy.nodes import (
    Add,
    Array,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Node,
    Reshape,
    Scale,
    SumPool2d,
    TensorType,
    frozen,
)
from dalif_deploy.operators import Values, average_divisors, evaluate

U = 2.0**-24
"""Half a unit in the last place of 1: float32 rounds to nearest within U of what is rounded."""

TINY = 2.0**-126
"""The smallest normal float32. A result below it may be rounded to a multiple of 2^-149, or flushed to zero."""

LARGEST = 2.0**127
"""Beyond half of what float32 holds nothing is promised: a partial sum could overflow."""

EXACT_WHOLE = 2**24
"""Whole numbers up to this are exact in float32."""


_SMALLEST_VARIANCE = 2.0**-100


def gamma(roundings: float | Values, unit: float = U) -> Values:
    """gamma(k) = k u / (1 - k u): the relative error of k roundings in a row."""
    return np.asarray(roundings * unit / (1.0 - roundings * unit))


def flushed(values: Array) -> Array:
    """Of parameters, how far each can lie from itself in float32 beyond u times its size: those below the normal range
    are rounded on a fixed grid, or flushed to zero."""
    size = np.abs(values)
    return frozen(np.where((size > 0.0) & (size < TINY), TINY, 0.0))


def unless_overflow(size: Values, error: Values) -> Values:
    """`error`, infinite where a partial result can be as large as `size` and float32 might overflow."""
    return np.where(size < LARGEST, error, np.inf)


def rounded(values: Array) -> tuple[Array, Array]:
    """What float32 makes of parameters, as float64, and the absolute errors of that."""
    with np.errstate(over="ignore"):  # an infinite error says that float32 cannot hold it
        narrow = values.astype(np.float32).astype(np.float64)
    return frozen(narrow), frozen(np.abs(narrow - values))


Pools = Literal["sum", "mean"]
"""How a runtime computes a sum pool: as a sum, or as the mean of the window times its size."""


def node_error(
    node: Node, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType], value: Values,
    pools: Pools = "sum",
) -> Values | None:  # fmt: skip
    """The error of a stateless node's output, of the shape of `value`; infinite where float32 may overflow.

    `inputs`, `errors`: float64 [batch, *shape] each; `types`: the inputs'; `pools`: the runtime's way. None where no
    bound is derived for this kind of node.
    """
    rule = _RULES.get(type(node))
    if rule is None:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        error: Values = rule(node, inputs, errors, types, value)
        if pools == "mean" and isinstance(node, SumPool2d):
            error = error + _of_the_mean(node, types[0], value, error)
        if pools == "mean" and isinstance(node, AvgPool2d) and error.any():  # or the mean times its size, over its size
            error = error + gamma(2.0) * (np.abs(value) + error) + 2 * TINY
    return unbounded_where_undefined(np.where(np.abs(value) < LARGEST, error, np.inf))


@dataclass(frozen=True, eq=False)
class Grids:
    """The grids of a graph whose weights were snapped so that every sum is exact: by node with weights, the
    spacing of the grid, one number a channel (channels,) or one for all ().

    A weight is off by half a spacing at most, and nothing else rounds before the neuron.
    """

    spacing: Mapping[str, Array]


def snapped_error(
    node: Node, inputs: Sequence[Values], errors: Sequence[Values], value: Values, grids: Grids
) -> Values:
    """The error of a stateless node whose weights lie on a grid and whose sums are exact; the shape of `value`."""
    (x, *_), total = inputs, np.zeros_like(value)
    if node.name in grids.spacing:
        half = 0.5 * grids.spacing[node.name]
        half = half.reshape(half.shape + (1,) * (value.ndim - 2 if half.ndim else 0))
        reach = np.abs(x) if isinstance(node, Scale) else _summed_inputs(node, np.abs(x))
        return np.asarray(total + half * (reach + 1.0) * (1.0 + U))
    if isinstance(node, Concat):
        return np.concatenate(errors, axis=1)
    for error in errors:
        if isinstance(node, Add):
            total = total + error
        elif error.any():
            total = total + evaluate(node, [error])
    return total


def unbounded_where_undefined(error: Values) -> Values:
    """Infinity in place of NaN, which comes of 0 times an error that is not bounded."""
    return np.where(np.isnan(error), np.inf, error)


def _weighted(
    node: Conv2d | Linear, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType],
    value: Values,
) -> Values:  # fmt: skip
    """sum w x + b of n terms, the bias among them: at most n - 1 additions, each of which rounds a partial sum. A
    partial sum, in whatever order, lies between the sum of the negative terms and that of the positive ones, so
    it is at most (A + |y|) / 2 with A the sum of all absolute values. Each weight is within u of itself, and each
    product, unless x is a spike."""
    (x,), (e,), (kind,) = inputs, errors, types
    absolute, linear = _absolute(node)
    terms = _summed_inputs(node, (x != 0.0) | (e != 0.0))
    additions = np.maximum(terms - (1.0 if node.bias is None else 0.0), 0.0)
    once = U if kind.kind == "spike" else 2 * U
    size = evaluate(absolute, [np.abs(x)])
    carried: Values | float = evaluate(linear, [e]) if e.any() else 0.0
    partial = 0.5 * (size + np.abs(value)) + carried
    error = (gamma(additions) * partial + once * (size + carried)) * (1.0 + 8 * U) + carried + TINY * terms
    if (below := _below_normal(node)) is not None:
        error = error + evaluate(below, [np.abs(x) + e])
    return unless_overflow(partial, error)


def _below_normal(node: Conv2d | Linear) -> Conv2d | Linear | None:
    """`node` with what may be lost of weights below the normal range; None where there are none."""
    lost = flushed(node.weight)
    return replace(node, weight=lost, bias=None) if lost.any() else None


def _absolute(node: Conv2d | Linear) -> tuple[Conv2d | Linear, Conv2d | Linear]:
    """`node` with the absolute values of its weights, with and without its bias."""
    if node not in _ABSOLUTE:
        linear = replace(node, weight=frozen(np.abs(node.weight)), bias=None)
        biased = linear if node.bias is None else replace(linear, bias=frozen(np.abs(node.bias)))
        _ABSOLUTE[node] = (biased, linear)
    return _ABSOLUTE[node]


_ABSOLUTE: WeakKeyDictionary[Node, tuple[Conv2d | Linear, Conv2d | Linear]] = WeakKeyDictionary()
"""A cache, since a layer is bounded once a timestep."""


def _summed_inputs(node: Node, x: NDArray[Any]) -> Values:
    """The sum of the inputs that reach each output, as if all weights were 1; broadcasts against the output."""
    assert isinstance(node, Conv2d | Linear)
    if isinstance(node, Linear):
        return np.asarray(x.sum(axis=-1, keepdims=True, dtype=np.float64))
    batch, channels, *size = x.shape
    summed = x.reshape(batch, node.groups, channels // node.groups, *size).sum(axis=2, dtype=np.float64)
    kernel = node.weight.shape[2:]
    ones = Conv2d(
        name=node.name, inputs=node.inputs, weight=frozen(np.ones((node.groups, 1, *kernel))), stride=node.stride,
        padding=node.padding, dilation=node.dilation, groups=node.groups,
    )  # fmt: skip
    counted = evaluate(ones, [summed])
    return counted if node.groups == 1 else np.repeat(counted, len(node.weight) // node.groups, axis=1)


def _batch_norm(
    node: BatchNorm, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType], value: Values
) -> Values:
    """gain (x - mean) + bias, or gain x + (bias - gain mean), with a gain that took at most five roundings."""
    (x,), (e,) = inputs, errors
    spread = (slice(None),) + (None,) * (x.ndim - 2)
    gain = np.abs(node.gain())[spread]
    around = np.abs(x) + e + np.abs(node.mean)[spread]
    terms = gain * around + np.abs(node.bias)[spread]
    variance = node.variance + node.epsilon
    lost = flushed(node.gain()) + flushed(node.weight) / np.sqrt(variance)
    error = gain * e + gamma(9.0) * terms + lost[spread] * around + TINY * (4.0 + 2.0 * gain)
    # Of a variance next to the end of the normal range the root is not what nine roundings make of it.
    return unless_overflow(terms, np.where(variance[spread] > _SMALLEST_VARIANCE, error, np.inf))


def _scale(
    node: Scale, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType], value: Values
) -> Values:
    """factor x + offset: the two parameters', the product's and the sum's roundings."""
    (x,), (e,) = inputs, errors
    factor = np.abs(node.factor)
    if np.all(np.isin(factor, (0.0, 1.0))) and not np.any(node.offset):
        return factor * e  # a change of sign is exact
    around = np.abs(x) + e
    terms = factor * around + np.abs(node.offset)
    error = factor * e + gamma(3.0) * terms + flushed(node.factor) * around + 3 * TINY
    return unless_overflow(terms, error)


def _sum_pool(
    node: SumPool2d, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType], value: Values
) -> Values:
    """Sums of spikes are exact; of real values they round like any sum."""
    (x,), (e,), (kind,) = inputs, errors, types
    size = node.kernel[0] * node.kernel[1]
    if kind.maximum is not None and kind.maximum * size <= EXACT_WHOLE and not e.any():
        return np.zeros_like(value)
    reach = evaluate(node, [np.abs(x) + e])
    return unless_overflow(reach, evaluate(node, [e]) + gamma(size + 1.0) * reach + size * TINY)


def _of_the_mean(node: SumPool2d, kind: TensorType, value: Values, error: Values) -> Values:
    """What a division by the window's size and a multiplication with it add to the error of a sum: one rounding
    each, or three where a rounded reciprocal stands for the division. Nothing where they give back every whole
    number that the sum can be."""
    size = node.kernel[0] * node.kernel[1]
    if kind.maximum is not None and not error.any() and mean_gives_back(kind.maximum, size):
        return np.zeros_like(value)
    return np.asarray(gamma(3.0) * (np.abs(value) + error) + 2 * TINY)


def _avg_pool(
    node: AvgPool2d, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType], value: Values
) -> Values:
    """A sum, then a division, or a multiplication by a rounded reciprocal."""
    (x,), (e,), (kind,) = inputs, errors, types
    size = node.kernel[0] * node.kernel[1]
    whole = kind.maximum is not None and kind.maximum * size <= EXACT_WHOLE and not e.any()
    divisors = average_divisors(node, x.shape[-2:])
    if whole and np.all(np.log2(divisors) % 1.0 == 0.0):
        return np.zeros_like(value)  # division by a power of two is exact
    mean_size = evaluate(node, [np.abs(x) + e])
    error = evaluate(node, [e]) + gamma(3.0 if whole else size + 3.0) * mean_size + 2 * TINY
    return unless_overflow(mean_size * size, error)


def _max_pool(
    node: MaxPool2d, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType], value: Values
) -> Values:
    """A maximum is one of its inputs, so it is off by no more than the largest error among them."""
    return evaluate(node, [errors[0]])


def _flatten(
    node: Flatten | Reshape, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType],
    value: Values,
) -> Values:  # fmt: skip
    return errors[0].reshape(value.shape)


def _add(
    node: Add, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType], value: Values
) -> Values:
    """Whole numbers add exactly; else k terms take at most k - 1 roundings each."""
    total: Values = np.sum(errors, axis=0) if len(errors) > 1 else errors[0]
    maxima = [kind.maximum for kind in types]
    if all(m is not None for m in maxima) and sum(m or 0 for m in maxima) <= EXACT_WHOLE and not np.any(total):
        return np.zeros_like(value)
    size = np.sum([np.abs(x) + e for x, e in zip(inputs, errors, strict=True)], axis=0)
    return unless_overflow(size, total + gamma(float(len(inputs) - 1)) * size + len(inputs) * TINY)


def _concat(
    node: Concat, inputs: Sequence[Values], errors: Sequence[Values], types: Sequence[TensorType], value: Values
) -> Values:
    """Nothing is computed: every channel has the error that it had."""
    return np.concatenate(errors, axis=1)


_Rule = Callable[[Any, Sequence[Values], Sequence[Values], Sequence[TensorType], Values], Values]
_RULES: Mapping[type[Node], _Rule] = {
    Conv2d: _weighted,
    Linear: _weighted,
    BatchNorm: _batch_norm,
    Scale: _scale,
    SumPool2d: _sum_pool,
    AvgPool2d: _avg_pool,
    MaxPool2d: _max_pool,
    Flatten: _flatten,
    Reshape: _flatten,
    Add: _add,
    Concat: _concat,
}
