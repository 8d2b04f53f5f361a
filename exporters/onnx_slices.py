"""Exact sums as float32 slices: W = W_high + W_low (+ W_lowest), every sum of one slice exact in float32.

    Conv [N, C, H, W] -> [N, slices * out, H, W]     one convolution, whatever its order of summation
    Split axis 1, Add                               two exact float32 numbers: their sum is rounded once

Three slices, and two where the membrane is float64, are added in float64, where their sum is exact. Two
convolutions with an addition would not do: an optimiser may sum the one into the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.onnx_builder import DOUBLE, FLOAT, Builder, ElementType
from dalif_deploy.exporters.onnx_sums import Sum
from dalif_deploy.exporters.onnx_values import Moment, Shape
from dalif_deploy.lattice import Integers
from dalif_deploy.nodes import Array, Conv2d, Linear, Node, frozen


def write_weights(
    builder: Builder,
    node: Conv2d | Linear,
    digits: Sequence[Integers],
    planned: Sum,
    moment: Moment,
    x: str,
    out: Shape,
) -> str:
    """The slices' sums, [batch, slices * channels, ...] float32, highest first. `x`: float32, channels first."""
    prefix, shape = moment.prefix(node.name), (len(digits) * out[0], *out[1:])
    inputs = [x, _joined(builder, node, "slices", digits, planned)]
    if planned.biases is not None:
        inputs.append(_joined(builder, node, "slices_bias", planned.biases, planned))
    if isinstance(node, Linear):
        return builder.node("Gemm", inputs, f"{prefix}/slices", name=prefix, shape=shape, batch=moment.batch, transB=1)
    groups = node.groups
    if groups > 1:  # every slice needs all groups: the input once a slice, the groups of the slices behind each other
        inputs[0] = builder.node("Concat", [x] * len(digits), f"{prefix}/repeated", axis=1)
        groups *= len(digits)
    return builder.node(
        "Conv",
        inputs,
        f"{prefix}/slices",
        name=prefix,
        shape=shape,
        batch=moment.batch,
        kernel_shape=node.weight.shape[2:],
        strides=node.stride,
        pads=(*node.padding, *node.padding),
        dilations=node.dilation,
        group=groups,
    )


def split(builder: Builder, root: str, count: int, joined: str) -> list[str]:
    """The slices of a value of `count` of them, highest first."""
    return builder.split(joined, [f"{root}/slice{i}" for i in range(count)], name=f"{root}/split_slices", axis=1)


def combine(builder: Builder, root: str, slices: Sequence[str], membrane: ElementType, shape: Shape, batch: str) -> str:
    """The sum of all slices, rounded to the membrane's type once; the value `<root>/output`."""
    output = f"{root}/output"

    def add(terms: Sequence[str], last: str, element: ElementType) -> str:
        total, *rest = terms
        for i, term in enumerate(rest):
            name = last if i + 1 == len(rest) else f"{root}/sum{i}"
            total = builder.node("Add", [total, term], name, shape=shape, batch=batch, element=element)
        return total

    if len(slices) == 1:
        return builder.node("Cast", slices, output, shape=shape, batch=batch, element=membrane, to=membrane)
    if len(slices) == 2 and membrane == FLOAT:
        return add(slices, output, FLOAT)
    wide = [builder.node("Cast", [value], f"{value}/float64", to=DOUBLE) for value in slices]
    if membrane == DOUBLE:
        return add(wide, output, DOUBLE)
    total = add(wide, f"{root}/total", DOUBLE)
    return builder.node("Cast", [total], output, shape=shape, batch=batch, element=membrane, to=membrane)


def slice_values(node: Node, digit: Integers, base: int, exponents: Integers, rank: int) -> Array:
    """One slice of a node's weights: digit * base * 2^-exponent, which float32 holds.

    `exponents`: (channels,), along the first of `rank` axes. Raises `DalifError` (BAD_GRAPH).
    """
    aligned = digit.reshape((1,) * (rank - digit.ndim) + digit.shape)
    places = (base.bit_length() - 1) - exponents.reshape(-1, *(1,) * (rank - 1))
    values = np.ldexp(
        aligned.astype(np.float64), np.broadcast_to(places, np.broadcast_shapes(aligned.shape, places.shape))
    )
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    if (rounded != values).any():
        raise DalifError(
            Code.BAD_GRAPH, f"node '{node.name}' ({type(node).__name__}): a slice has values that float32 cannot hold"
        )
    return frozen(values)


def _joined(builder: Builder, node: Node, field: str, digits: Sequence[Integers], planned: Sum) -> str:
    values = [
        slice_values(node, digit, base, planned.exponents, digit.ndim)
        for digit, base in zip(digits, planned.bases, strict=True)
    ]
    return builder.parameter(node, field, frozen(np.concatenate(values)))
