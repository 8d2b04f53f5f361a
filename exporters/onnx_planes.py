"""Exact sums as int8 planes: W = (256^2 A2 + 256 A1 + A0) 2^-k, every plane's sum exact in int32.

uint8 spikes [N, H, W, C] -> Pad -> Reshape [N, H * W, C] -> Gather the places under every window
    -> Reshape [N, rows, columns, kernel * C] -> a MatMulInteger with int8 weights for every plane
256 (256 A2 + A1) + A0                    in int32, where that holds the sum; Cast to float32 rounds once
float64(256 A2 + A1) * 256 + A0           elsewhere, exact in float64; Cast to float32 rounds once
float64(256 A3 + A2) * 65536 + float64(256 A1 + A0)            four planes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from dalif_deploy.exporters.onnx_builder import DOUBLE, INT32, UINT8, Builder, ElementType
from dalif_deploy.exporters.onnx_sums import Sum
from dalif_deploy.exporters.onnx_values import Moment, Shape, constant_lying, lying
from dalif_deploy.lattice import INT32_LIMIT, Integers, refusal
from dalif_deploy.nodes import Conv2d, Linear, Node


def write_weights(
    builder: Builder,
    node: Conv2d | Linear,
    digits: Sequence[Integers],
    planned: Sum,
    moment: Moment,
    x: str,
    source: Shape,
    out: Shape,
) -> list[str]:
    """The planes' sums, each int32 [batch, ..., channels], highest first. `x`: uint8, channels last."""
    prefix = moment.prefix(node.name)
    columns = _columns(builder, node, prefix, x, source, out, moment.batch) if isinstance(node, Conv2d) else x
    lies = lying(out, len(out) > 1)
    found = []
    for i, digit in enumerate(digits):
        power = len(digits) - 1 - i
        value = f"{prefix}/plane{power}"
        bias = None if planned.biases is None or not planned.biases[i].any() else planned.biases[i]
        inputs = [columns, builder.constant(f"{node.name}.plane{power}", _matrix(node, digit))]
        product = value if bias is None else f"{value}/product"
        builder.node("MatMulInteger", inputs, product, shape=lies, batch=moment.batch, element=INT32)
        if bias is not None:
            shift = builder.constant(f"{node.name}.bias{power}", _int32(node, bias))
            builder.node("Add", [product, shift], value, shape=lies, batch=moment.batch, element=INT32)
        found.append(value)
    return found


def combine(
    builder: Builder,
    root: Node,
    prefix: str,
    planes: Sequence[str],
    terms: Sequence[tuple[int, str, Integers, Integers | None]],
    planned: Sum,
    membrane: ElementType,
    out: Shape,
    batch: str,
) -> str:
    """The sum of all planes and terms, times 2^-k, rounded to the membrane's type once; `<prefix>/output`.

    `terms`: what else is added: its number, a whole-numbered value, its weight and its offset in units of 2^-k.
    The value lies as the planes do, in int32 where `planned` fits int32 and else in float64.
    """
    last, rank = len(out) > 1, len(out)
    writer = _Combiner(builder, root, prefix, planned, lying(out, last), batch)
    arithmetic = INT32 if planned.fits_int32 else DOUBLE
    unit = np.ldexp(1.0, -planned.exponents).reshape(-1, *(1,) * (rank - 1))

    def constant(name: str, values: Integers) -> str:
        aligned = values.reshape((1,) * (rank - values.ndim) + values.shape)
        if arithmetic == INT32:
            return builder.constant(name, constant_lying(_int32(root, aligned), rank, last))
        return builder.constant(name, constant_lying(aligned * unit, rank, last))

    total = None
    if planes:
        total = writer.int32(planes) if arithmetic == INT32 else writer.double(planes, unit, last)
    for i, value, weight, offset in terms:
        if weight.any() or total is None:
            term = writer.node("Mul", [value, constant(f"{root.name}.term{i}", weight)], f"term{i}", arithmetic)
            total = term if total is None else writer.node("Add", [total, term], f"with_term{i}", arithmetic)
        if offset is not None and offset.any():
            total = writer.node(
                "Add", [total, constant(f"{root.name}.term{i}_offset", offset)], f"with_offset{i}", arithmetic
            )
    assert total is not None
    if arithmetic == DOUBLE:
        return writer.cast(total, membrane)
    return writer.scaled(total, membrane, constant_lying(_scalar_if_equal(unit), rank, last))


class _Combiner:
    """Writes the nodes that put planes together."""

    def __init__(self, builder: Builder, root: Node, prefix: str, planned: Sum, lies: Shape, batch: str) -> None:
        self._builder, self._root, self._prefix, self._planned = builder, root, prefix, planned
        self._lies, self._batch = lies, batch

    def node(self, op: str, inputs: Sequence[str], role: str, element: ElementType, **attributes: Any) -> str:
        return self._builder.node(
            op, inputs, f"{self._prefix}/{role}", shape=self._lies, batch=self._batch, element=element, **attributes
        )

    def int32(self, planes: Sequence[str], lowest: int = 0) -> str:
        """sum_i 256^i A_i in int32, Horner's rule, of planes down to `lowest`, whose weight is taken for 1."""
        radix = self._builder.constant("constants/256", np.array(256, dtype=np.int32))
        total, *rest = planes
        for i, plane in enumerate(rest):
            power = lowest + len(rest) - 1 - i
            shifted = self.node("Mul", [total, radix], f"shifted{power}", INT32)
            total = self.node("Add", [shifted, plane], f"planes_to{power}", INT32)
        return total

    def double(self, planes: Sequence[str], unit: NDArray[np.float64], last: bool) -> str:
        """The same in float64, of int32 sums of the upper two planes and of the rest, times 2^-k."""
        planned, parts = self._planned, []
        for name, digits in (("high", range(2)), ("low", range(2, len(planes)))):
            base = planned.bases[digits[-1]]
            whole = self.int32([planes[i] for i in digits], lowest=len(planes) - 1 - digits[-1])
            wide = self.node("Cast", [whole], f"{name}/float64", DOUBLE, to=DOUBLE)
            factor = constant_lying(_scalar_if_equal(unit * base), unit.ndim, last)
            factor_name = self._builder.constant(f"{self._root.name}.{name}_unit", factor)
            parts.append(self.node("Mul", [wide, factor_name], name, DOUBLE))
        return self.node("Add", parts, "total", DOUBLE)

    def cast(self, value: str, membrane: ElementType) -> str:
        """float64 as the membrane's type: rounded once, or as it is."""
        if membrane == DOUBLE:
            return self.node("Identity", [value], "output", membrane)
        return self.node("Cast", [value], "output", membrane, to=membrane)

    def scaled(self, value: str, membrane: ElementType, unit: NDArray[Any]) -> str:
        # The cast rounds; a power of two then changes no digit.
        whole = self.node("Cast", [value], "whole", membrane, to=membrane)
        rounded = unit.astype(helper.tensor_dtype_to_np_dtype(membrane))
        return self.node("Mul", [whole, self._builder.constant(f"{self._root.name}.unit", rounded)], "output", membrane)


def _columns(builder: Builder, node: Conv2d, prefix: str, x: str, source: Shape, out: Shape, batch: str) -> str:
    """What lies under every window, uint8 [batch, rows, columns, kernel * channels]."""
    channels, height, width = source
    kernel = node.weight.shape[2:]
    if node.groups != 1:
        raise refusal(node, "int8 planes have no grouped form; use slices")
    if kernel == (1, 1) and node.stride == (1, 1) and node.padding == (0, 0):
        return x
    (top, left) = node.padding
    if top or left:
        pads = builder.integers(0, top, left, 0, 0, top, left, 0)
        x = builder.node("Pad", [x, pads], f"{prefix}/padded")
    height, width = height + 2 * top, width + 2 * left
    places = builder.node("Reshape", [x, builder.integers(-1, height * width, channels)], f"{prefix}/places")
    rows, columns = (
        np.add.outer(np.arange(count) * stride, np.arange(k) * dilation)
        for count, stride, k, dilation in zip(out[1:], node.stride, kernel, node.dilation, strict=True)
    )
    # [row, column, kernel row, kernel column] -> the place in the padded map
    indices = rows[:, None, :, None] * width + columns[None, :, None, :]
    name = f"places/{height}x{width}_{'_'.join(f'{a}x{b}' for a, b in (kernel, node.stride, node.dilation))}"
    chosen = builder.constant(name, indices.reshape(-1).astype(np.int64))
    gathered = builder.node("Gather", [places, chosen], f"{prefix}/windows", axis=1)
    shape = (*out[1:], kernel[0] * kernel[1] * channels)
    return builder.node(
        "Reshape",
        [gathered, builder.integers(-1, *shape)],
        f"{prefix}/columns",
        shape=shape,
        batch=batch,
        element=UINT8,
    )


def _matrix(node: Conv2d | Linear, digit: Integers) -> NDArray[Any]:
    """One plane's weights as int8 [kernel * in, out], in the order of the columns."""
    if np.abs(digit).max(initial=0) > 128 or digit.max(initial=0) > 127:
        raise refusal(node, "a digit of its planes does not fit int8")
    order = (2, 3, 1, 0) if isinstance(node, Conv2d) else (1, 0)
    return np.ascontiguousarray(digit.transpose(order).reshape(-1, digit.shape[0]).astype(np.int8))


def _int32(node: Node, values: Integers) -> NDArray[Any]:
    if np.abs(values).max(initial=0) > INT32_LIMIT:
        raise refusal(node, "a whole number that it adds does not fit int32")
    return values.astype(np.int32)


def _scalar_if_equal(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(-1)[0].reshape(()) if (values == values.reshape(-1)[0]).all() else values
