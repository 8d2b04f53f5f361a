"""The stateless node kinds as ONNX nodes. Their rules are chosen so that ONNX computes what PyTorch does.

Pools whose last window hangs over the end (ceil_mode) are written with explicit padding on the far side:
ONNX's own ceil_mode counts windows and divisors otherwise than PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.onnx_builder import FLOAT, Builder, ElementType
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Node,
    Pool2d,
    Reshape,
    Scale,
    SumPool2d,
    frozen,
)

Shape = tuple[int, ...]


class Place:
    """Where a node is written: its prefix (`conv1`, or `conv1/t3` of one timestep), its output's name and
    shapes. `inputs`: the names of its input values; `shape`: of the first input, without the batch; `element`:
    the type of the output's elements."""

    def __init__(
        self,
        builder: Builder,
        prefix: str,
        output: str,
        inputs: Sequence[str],
        shape: Shape,
        out: Shape,
        batch: str,
        element: ElementType = FLOAT,
    ) -> None:
        self.builder = builder
        self.prefix = prefix
        self.output = output
        self.inputs = list(inputs)
        self.shape = shape
        self._out = out
        self._batch = batch
        self._element = element

    def last(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The node that makes the output."""
        return self.builder.node(
            op,
            inputs,
            self.output,
            name=self.prefix,
            shape=self._out,
            batch=self._batch,
            element=self._element,
            **attributes,
        )

    def inner(self, op: str, inputs: Sequence[str], role: str, **attributes: Any) -> str:
        """A node before the last one."""
        return self.builder.node(op, inputs, f"{self.prefix}/{role}", **attributes)


def write(node: Node, place: Place) -> str:
    """Write a stateless `node` and return its output's name.

    Raises `DalifError` (TARGET_CANNOT_HOLD) for a kind that has no form here.
    """
    writer = _WRITERS.get(type(node))
    if writer is None:
        raise DalifError(
            Code.TARGET_CANNOT_HOLD, f"node '{node.name}' ({type(node).__name__}): the ONNX exporter has no form for it"
        )
    return writer(node, place)


def _conv2d(node: Conv2d, place: Place) -> str:
    inputs = [*place.inputs, place.builder.parameter(node, "weight", node.weight)]
    if node.bias is not None:
        inputs.append(place.builder.parameter(node, "bias", node.bias))
    return place.last(
        "Conv",
        inputs,
        kernel_shape=node.weight.shape[2:],
        strides=node.stride,
        pads=(*node.padding, *node.padding),
        dilations=node.dilation,
        group=node.groups,
    )


def _linear(node: Linear, place: Place) -> str:
    inputs = [*place.inputs, place.builder.parameter(node, "weight", node.weight)]
    if node.bias is not None:
        inputs.append(place.builder.parameter(node, "bias", node.bias))
    return place.last("Gemm", inputs, transB=1)


def _scale(node: Scale, place: Place) -> str:
    factor = place.builder.parameter(node, "factor", node.factor)
    if not node.offset.any():
        return place.last("Mul", [*place.inputs, factor])
    scaled = place.inner("Mul", [*place.inputs, factor], "scaled")
    return place.last("Add", [scaled, place.builder.parameter(node, "offset", node.offset)])


def _pads(node: Pool2d, size: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """ONNX's `pads` for all of torch's windows, and whether the last one hangs over torch's own padding."""
    beyond = [
        max(0, (count - 1) * s + k - (n + 2 * p))
        for count, n, k, s, p in zip(node.windows(size), size, node.kernel, node.stride, node.padding, strict=True)
    ]
    far = [p + extra for p, extra in zip(node.padding, beyond, strict=True)]
    return (*node.padding, *far), any(beyond)


def _windows(node: Pool2d, place: Place) -> dict[str, Any]:
    pads, _ = _pads(node, place.shape[1:])
    return {"kernel_shape": node.kernel, "strides": node.stride, "pads": pads}


def _max_pool(node: MaxPool2d, place: Place) -> str:
    return place.last("MaxPool", place.inputs, **_windows(node, place))


def _ones(node: Pool2d, place: Place) -> str:
    return place.builder.parameter(node, "window", frozen(np.ones((place.shape[0], 1, *node.kernel))))


def _sum_pool(node: SumPool2d, place: Place) -> str:
    # ONNX has no sum pool. An average times the window's area is exact only for a power of two.
    area = node.kernel[0] * node.kernel[1]
    if node.kernel == place.shape[1:] and node.padding == (0, 0):
        return place.last("ReduceSum", [*place.inputs, place.builder.integers(2, 3)], keepdims=1)
    if area & (area - 1) == 0:
        mean = place.inner("AveragePool", place.inputs, "mean", count_include_pad=1, **_windows(node, place))
        return place.last("Mul", [mean, place.builder.parameter(node, "area", frozen(float(area)))])
    return place.last("Conv", [*place.inputs, _ones(node, place)], group=place.shape[0], **_windows(node, place))


def _avg_pool(node: AvgPool2d, place: Place) -> str:
    _, hangs_over = _pads(node, place.shape[1:])
    if not hangs_over:
        return place.last(
            "AveragePool", place.inputs, count_include_pad=int(node.count_include_pad), **_windows(node, place)
        )
    total = place.inner(
        "Conv", [*place.inputs, _ones(node, place)], "sum", group=place.shape[0], **_windows(node, place)
    )
    return place.last("Div", [total, place.builder.parameter(node, "places", _places(node, place.shape[1:]))])


def _places(node: AvgPool2d, size: Sequence[int]) -> Any:
    """How many places each window averages over, (rows, columns): never those beyond torch's own padding."""
    along = []
    for count, n, k, s, p in zip(node.windows(size), size, node.kernel, node.stride, node.padding, strict=True):
        low, high = (-p, n + p) if node.count_include_pad else (0, n)
        starts = np.arange(count) * s - p
        along.append(np.minimum(starts + k, high) - np.maximum(starts, low))
    return frozen(np.multiply.outer(*along))


def _flatten(node: Flatten, place: Place) -> str:
    return place.last("Flatten", place.inputs, axis=1)


def _reshape(node: Reshape, place: Place) -> str:
    return place.last("Reshape", [*place.inputs, place.builder.integers(-1, *node.shape)])


def _add(node: Add, place: Place) -> str:
    # From left to right, two at a time: the order of a sum is part of its meaning in float32.
    total, *rest = place.inputs
    if not rest:
        return place.last("Identity", [total])
    for i, term in enumerate(rest[:-1]):
        total = place.inner("Add", [total, term], f"sum{i}")
    return place.last("Add", [total, rest[-1]])


def _concat(node: Concat, place: Place) -> str:
    return place.last("Concat", place.inputs, axis=1)


_WRITERS: Mapping[type[Node], Callable[[Any, Place], str]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    Scale: _scale,
    AvgPool2d: _avg_pool,
    SumPool2d: _sum_pool,
    MaxPool2d: _max_pool,
    Flatten: _flatten,
    Reshape: _reshape,
    Add: _add,
    Concat: _concat,
}
