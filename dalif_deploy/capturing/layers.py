"""Convolutions, linear layers, batch normalisation and pools, as ATen calls them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dalif_deploy.capturing.arithmetic import affine
from dalif_deploy.capturing.call import Call, Result, reshaped, second
from dalif_deploy.capturing.grouping import of_vector
from dalif_deploy.capturing.values import Const, Op, Val
from dalif_deploy.errors import Code


def convolution(call: Call) -> Result:
    x = call.node()
    stride, padding, dilation, transposed, _, groups = call.args[3:9]
    if transposed or len(x.shape) != 3:
        what = "transposed" if transposed else f"{len(x.shape) - 1}-dimensional"
        raise call.refuse(f"a {what} convolution is not supported; only Conv2d is")
    weight, bias = call.constant(1), call.constant(2)
    pads: list[tuple[int, ...]] = [tuple(map(int, values)) for values in (stride, padding, dilation)]
    if x.kind == "pad":
        weight, pads[1] = _padded(call, x, weight, *pads[1:])
        x = x.inputs[0]
    return call.op("conv", [x], call.shape(), [weight, bias], [*pads, int(groups)])


def _padded(
    call: Call, x: Op, weight: Const | None, padding: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Const, tuple[int, int]]:
    """Weight and padding of a convolution with the zeros in front of it taken in.

    More zeros on one side than on the other are the same on both, and weights of zero for what is too much.
    """
    assert weight is not None
    (left, right, top, bottom), (height, width) = x.attrs[0], padding
    both = (max(top, bottom) + height, max(left, right) + width)
    extra = [both[0] - top - height, both[0] - bottom - height, both[1] - left - width, both[1] - right - width]
    if any(n % dilation[i // 2] for i, n in enumerate(extra)):
        raise call.refuse(
            f"zero padding of {[left, right]} columns and {[top, bottom]} rows in front of a convolution with dilation "
            f"{list(dilation)}; pad both sides alike"
        )
    added = [n // dilation[i // 2] for i, n in enumerate(extra)]
    wide = np.pad(weight.array(), ((0, 0), (0, 0), (added[0], added[1]), (added[2], added[3])))
    return call.recorder.table.array_const(wide), both


def linear(call: Call) -> Result:
    # addmm and mm hold the transposed weight; aten.linear, where it is not taken apart, the weight itself.
    if call.name == "linear":
        x, weight, bias, transposed = call.node(0), call.constant(1), call.constant(2), False
    elif call.name == "bmm":  # a Linear on a tensor whose axes changed places
        if call.val(1) is not None or call.args[1].stride(0) != 0:
            raise call.unsupported()
        x, weight, bias, transposed = call.node(0), call.recorder.const(call.args[1][0]), None, True
    elif call.name == "mm":
        x, weight, bias, transposed = call.node(0), call.constant(1), None, True
    else:
        if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
            raise call.unsupported()
        x, bias, weight, transposed = call.node(1), call.constant(0), call.constant(2), True
        if bias is not None and bias.tensor.ndim != 1:
            raise call.refuse("the bias is not one value per output feature")
    if len(x.shape) != 1:
        raise call.refuse(f"a linear layer on {list(x.shape)} features; flatten them to [batch, features] first")
    return call.op("linear", [x], tuple(call.out.shape[1:]), [weight, bias], [transposed])


def batch_norm(call: Call) -> Result:
    x = call.node()
    training = call.name != "_native_batch_norm_legit_no_training" and bool(call.args[5])
    mean, variance = call.arg(3, "running_mean"), call.arg(4, "running_var")
    if training or mean is None or variance is None:
        raise call.refuse(
            "normalises by the statistics of the batch, which mixes samples; use running statistics "
            "(track_running_stats=True) in eval mode",
            Code.CAPTURE_REFUSED,
        )
    epsilon = float(call.args[6] if call.name == "_native_batch_norm_legit_no_training" else call.args[7])
    consts = [call.constant(i) for i in (1, 2, 3, 4)]
    return [call.op("batch_norm", [x], x.shape, consts, [epsilon])]


def _pair(value: Any) -> tuple[int, int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return (values[0], values[-1])


def pool(call: Call) -> Result:
    x = call.node()
    if len(x.shape) != 3:
        raise call.refuse(f"a pool over {list(x.shape)} features; it needs (channels, height, width)")
    kernel = _pair(call.args[1])
    stride = _pair(call.arg(2, "stride") or kernel)
    padding = _pair(call.arg(3, "padding", 0))
    if call.name == "avg_pool2d":
        if (divisor := call.arg(6, "divisor_override")) is not None:  # the sum of a window, divided by this
            attrs = [kernel, stride, padding, bool(call.arg(4, "ceil_mode", False))]
            total = call.op("sum_pool", [x], call.shape(), [], attrs)
            return Val((affine(call, total.node, factor=1.0 / int(divisor)),))
        ceil_mode, count_include_pad = bool(call.arg(4, "ceil_mode", False)), bool(call.arg(5, "", True))
        votes = of_vector(
            call, x, call.shape(),
            lambda units: torch.nn.functional.avg_pool2d(units, kernel, stride, padding, ceil_mode, count_include_pad),
        )  # fmt: skip
        if votes is not None:
            return votes
        attrs = [kernel, stride, padding, ceil_mode, count_include_pad]
        return call.op("avg_pool", [x], call.shape(), [], attrs)
    if _pair(call.arg(4, "dilation", 1)) != (1, 1):
        raise call.refuse("a max pool with dilation is not supported")
    attrs = [kernel, stride, padding, bool(call.arg(5, "ceil_mode", False))]
    values = call.op("max_pool", [x], call.features(call.out[0]), [], attrs)
    return [values, second(call, values)]


def adaptive(call: Call) -> Result:
    x = call.node()
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    size, wanted = x.shape[1:], tuple(out.shape[2:])
    if call.name == "_adaptive_avg_pool2d":
        pooled = torch.nn.functional.adaptive_avg_pool2d
        votes = of_vector(call, x, call.features(out), lambda units: pooled(units, wanted))
        if votes is not None:
            return votes
    if len(x.shape) != 3 or any(n % k for n, k in zip(size, wanted, strict=True)):
        raise call.refuse(
            f"an adaptive pool from {list(size)} to {list(wanted)} has windows of different sizes; "
            "pool to sizes that divide the input's"
        )
    window = (size[0] // wanted[0], size[1] // wanted[1])
    if call.name == "_adaptive_avg_pool2d":
        return call.op("avg_pool", [x], (x.shape[0], *wanted), [], [window, window, (0, 0), False, True])
    values = call.op("max_pool", [x], (x.shape[0], *wanted), [], [window, window, (0, 0), False])
    return [values, second(call, values)]


def over_space(call: Call) -> Result:
    x = call.node()
    named = sorted(call.axes())
    if call.name in ("mean", "sum", "amax") and 0 in named:
        raise call.refuse("reduces over the batch, which mixes samples", Code.CAPTURE_REFUSED)
    if call.kwargs.get("dtype") not in (None, call.args[0].dtype):
        raise call.unsupported()
    keep = bool(call.arg(2, "keepdim", False))
    if named == [2] and x.kind == "reshape" and not keep:  # [B, C, H, W] seen as [B, C, H * W]
        source = x.inputs[0]
        if len(source.shape) == 3 and x.shape == (source.shape[0], source.shape[1] * source.shape[2]):
            x, named = source, [2, 3]
    left = tuple(n for d, n in enumerate(x.shape, 1) if d not in named)
    if call.name in ("mean", "sum"):
        reduce = torch.mean if call.name == "mean" else torch.sum
        shape = tuple(1 if d in named else n for d, n in enumerate(x.shape, 1)) if keep else left
        votes = of_vector(call, x, shape, lambda units: reduce(units, dim=named, keepdim=keep))
        if votes is not None:
            return votes
    if not set(named) <= {2, 3} or len(x.shape) != 3:
        raise call.refuse(f"a reduction over dimensions {named}; supported are the spatial ones, 2 and 3, and time")
    window = (x.shape[1] if 2 in named else 1, x.shape[2] if 3 in named else 1)
    kind = {"mean": "avg_pool", "sum": "sum_pool", "amax": "max_pool"}[call.name]
    attrs: list[Any] = [window, window, (0, 0), False, *([True] if kind == "avg_pool" else [])]
    pooled = call.op(kind, [x], (x.shape[0], x.shape[1] // window[0], x.shape[2] // window[1]), [], attrs)
    return pooled if keep else reshaped(call, pooled.node, left)
