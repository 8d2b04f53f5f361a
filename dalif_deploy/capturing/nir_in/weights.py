"""Layers with weights: Affine, Linear, Conv1d, Conv2d, and Scale."""

from __future__ import annotations

import numpy as np

from dalif_deploy.capturing.nir_in.rules import Place
from dalif_deploy.nodes import Array, Conv2d, Edge, Linear, Node, Reshape, Scale, TensorType, frozen


def linear(place: Place) -> list[Node]:
    """y = weight x, and + bias for an Affine."""
    weight = place.array("weight")
    if weight.ndim != 2:
        raise place.refuse(f"weight of shape {list(weight.shape)}, (out, in) is needed")
    if place.shape != weight.shape[1:]:
        raise place.refuse(f"weight of shape {list(weight.shape)} does not fit its input {list(place.shape)}")
    bias = place.array("bias") if place.raw.kind == "Affine" else None
    if bias is not None and bias.shape != weight.shape[:1]:
        if bias.size not in (1, len(weight)):
            raise place.refuse(f"bias of shape {list(bias.shape)} does not fit weight {list(weight.shape)}")
        bias = frozen(np.broadcast_to(bias.reshape(-1), weight.shape[:1]))
    return [Linear(name=place.name, inputs=(place.source,), weight=weight, bias=bias)]


def scale(place: Place) -> list[Node]:
    """y = scale x, elementwise."""
    factor = place.parameter("scale")
    return [Scale(name=place.name, inputs=(place.source,), factor=factor, offset=frozen(0.0))]


def conv2d(place: Place) -> list[Node]:
    """Cross-correlation of (channels, height, width)."""
    if len(place.shape) != 3:
        raise place.refuse(f"reads {list(place.shape)}, (channels, height, width) is needed")
    weight = _kernel(place, 4)
    stated = place.raw.fields.get("input_shape")
    if stated is not None and np.asarray(stated).tolist() != list(place.shape[1:]):
        place.rules.say("another input_shape is stated than the layer before gives, which counts", place.name)
    return [_convolution(place, place.name, place.source, weight, 2)]


def conv1d(place: Place) -> list[Node]:
    """Cross-correlation of (channels, length), as one of maps of height 1."""
    if len(place.shape) != 2:
        raise place.refuse(f"reads {list(place.shape)}, (channels, length) is needed")
    channels, length = place.shape
    as_map = Reshape(name=f"{place.name}.map", inputs=(place.source,), shape=(channels, 1, length))
    weight = frozen(_kernel(place, 3)[:, :, None, :])
    conv = _convolution(place, f"{place.name}.conv", Edge(as_map.name), weight, 1)
    out, _, size = conv.infer([TensorType((channels, 1, length), True)]).shape
    return [as_map, conv, Reshape(name=place.name, inputs=(Edge(conv.name),), shape=(out, size))]


def _kernel(place: Place, ndim: int) -> Array:
    weight = place.array("weight")
    if weight.ndim != ndim:
        raise place.refuse(f"weight of shape {list(weight.shape)}, {ndim} axes (out, in / groups, ...) are needed")
    return weight


def _convolution(place: Place, name: str, source: Edge, weight: Array, axes: int) -> Conv2d:
    """`axes`: how many the file speaks of; where it is one, the map's height is 1."""

    def along(key: str, default: int, neutral: int) -> tuple[int, int]:
        numbers = place.whole(key, axes, default)
        return (numbers[0], numbers[1]) if axes == 2 else (neutral, numbers[0])

    stride, dilation = along("stride", 1, 1), along("dilation", 1, 1)
    said = place.raw.fields.get("padding", 0)
    padding = (0, 0)
    if isinstance(said, str) and said in ("same", "valid"):
        if said == "same":
            if stride != (1, 1):
                raise place.refuse("padding 'same' needs a stride of 1")
            weight, dilation, padding = _same(weight, dilation)
    elif isinstance(said, str):
        raise place.refuse(f"padding {said!r}: numbers, 'same' or 'valid' are needed")
    else:
        padding = along("padding", 0, 0)
    bias = place.array("bias", 0.0)
    if bias.shape != weight.shape[:1] and bias.size != 1:
        raise place.refuse(f"bias of shape {list(bias.shape)} does not fit {len(weight)} output channels")
    bias = frozen(np.broadcast_to(bias.reshape(-1), weight.shape[:1]))
    return Conv2d(
        name=name, inputs=(source,), weight=weight, bias=bias if bias.any() else None, stride=stride, padding=padding,
        dilation=dilation, groups=place.whole("groups", 1, 1)[0],
    )  # fmt: skip


def _same(weight: Array, dilation: tuple[int, int]) -> tuple[Array, tuple[int, int], tuple[int, int]]:
    """Weights, dilation and padding on both sides of a convolution whose output has the size of its input.

    Where the padding is odd, the one more is on the far side, as in PyTorch: the kernel then gets a zero in front,
    which takes the near side's extra place, and its dilation is written out as zeros.
    """
    padding = []
    spacing = list(dilation)
    for axis in (0, 1):
        size, step = weight.shape[2 + axis], dilation[axis]
        total = step * (size - 1)
        if total % 2:
            spread = np.zeros((*weight.shape[: 2 + axis], total + 2, *weight.shape[3 + axis :]))
            spread[(slice(None),) * (2 + axis) + (slice(1, None, step),)] = weight
            weight, spacing[axis] = frozen(spread), 1
            total += 1
        padding.append(total // 2)
    return weight, (spacing[0], spacing[1]), (padding[0], padding[1])
