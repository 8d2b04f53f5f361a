"""Feature maps side by side: joined channels, channels of zeros, and every n-th row or column."""

from __future__ import annotations

import torch

from dalif_deploy.capturing.call import Call, Result
from dalif_deploy.capturing.values import Op, Val
from dalif_deploy.errors import Code


def channels(call: Call, dim: int) -> Result:
    """torch.cat along the channels, dimension 1 of [batch, channels, ...]; of constants only zeros."""
    vals = [call.recorder.val(tensor) for tensor in call.args[0]]
    if dim != 1 or any(val is not None and val.d is not None for val in vals):
        raise call.refuse(
            "joins feature maps along an axis that is neither the channels of [batch, channels, ...] nor time; join "
            "channels, or timesteps"
        )
    parts = [_zeros(call, tensor) if val is None else val.node for tensor, val in zip(call.args[0], vals, strict=True)]
    return call.op("concat", parts, call.out.shape[1:])


def pad(call: Call) -> Result:
    """Zeros before or behind the channels, as in an identity shortcut to more channels."""
    x, sizes = call.node(), [int(n) for n in call.args[1]]
    before, behind = sizes[-2:]
    rest = sizes[:-2]
    if any(rest) or len(sizes) // 2 != len(x.shape) or min(before, behind) < 0 or call.arg(2, "value", 0):
        raise call.refuse(
            "pads with something else than zeros, or axes other than the channels; let the layer that follows pad "
            "(padding=...), or pad the channels with zeros"
        )
    parts = [x]
    if before:
        parts.insert(0, call.op("zeros", [], (before, *x.shape[1:])).node)
    if behind:
        parts.append(call.op("zeros", [], (behind, *x.shape[1:])).node)
    return call.op("concat", parts, call.shape()) if len(parts) > 1 else Val((x,))


def every(call: Call, dim: int) -> Result | None:
    """x[:, :, ::2, ::2]: every n-th row or column, from the first; None for any other slice.

    A pool whose windows are single places is just that.
    """
    x = call.recorder.val(call.args[0])
    step, size = int(call.arg(4, "step", 1)), call.args[0].shape[dim]
    whole = not call.arg(2, "start") and (call.arg(3, "end") is None or call.arg(3, "end") >= size)
    if x is None or x.d is not None or len(x.node.shape) != 3 or dim not in (2, 3) or not whole:
        return None
    node, stride = x.node, (step, 1) if dim == 2 else (1, step)
    if node.kind == "sum_pool" and node.attrs[0] == (1, 1) and node.attrs[2] == (0, 0):
        inner = node.attrs[1]
        node, stride = node.inputs[0], (stride[0] * inner[0], stride[1] * inner[1])
    return call.op("sum_pool", [node], call.shape(), [], [(1, 1), stride, (0, 0), False])


def _zeros(call: Call, tensor: torch.Tensor) -> Op:
    if bool((tensor != 0).any()):
        raise call.refuse(
            "joins a constant that is not 0 with values computed from the input; only zeros can stand beside them",
            Code.UNSUPPORTED_LAYER,
        )
    return call.op("zeros", [], tuple(tensor.shape[1:])).node
