"""Feature maps side by side: joined channels, channels of zeros, and every n-th row or column."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dalif_deploy.capturing.call import Call, Result
from dalif_deploy.capturing.values import Op, Val
from dalif_deploy.errors import Code


def channels(call: Call, vals: Sequence[Val | None], dim: int) -> Result:
    """torch.cat along the channels, dimension 1 of [batch, channels, ...]; of constants only zeros."""
    timed = next((val for val in vals if val is not None and val.d is not None), None)
    place = None if timed is None else (timed.d, timed.fold, len(timed.nodes))
    alike = all(val is None or val.d is None or (val.d, val.fold, len(val.nodes)) == place for val in vals)
    static = timed is not None and any(val is not None and val.d is None for val in vals)
    if not alike or static or _feature_axis(timed, dim) != 1:
        raise call.refuse(
            "joins feature maps along an axis that is neither the channels of [batch, channels, ...] nor time; join "
            "channels, or timesteps"
        )
    shape = _features(timed, call.out)
    steps = []
    for t in range(1 if timed is None else len(timed.nodes)):
        parts = [
            _zeros(call, timed, tensor) if val is None else val.nodes[t]
            for tensor, val in zip(call.args[0], vals, strict=True)
        ]
        steps.append(call.op("concat", parts, shape).node)
    return Val(tuple(steps)) if timed is None else Val(tuple(steps), timed.d, timed.fold)


def _feature_axis(timed: Val | None, dim: int) -> int:
    """`dim` of a tensor without a time axis of its own."""
    return dim - (timed is not None and timed.axis is not None and dim > timed.axis)


def _features(timed: Val | None, tensor: torch.Tensor) -> tuple[int, ...]:
    """A tensor's shape without batch and time."""
    shape = list(tensor.shape)
    if timed is not None and timed.axis is not None:
        del shape[timed.axis]
    return tuple(shape[1:])


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


def every(call: Call, val: Val, dim: int, step: int) -> Val | None:
    """x[:, :, ::2, ::2]: every n-th row or column, from the first; None for any other axis.

    A pool whose windows are single places is just that.
    """
    axis = _feature_axis(val, dim)
    if axis not in (2, 3) or len(val.nodes[0].shape) != 3 or dim == val.axis:
        return None
    found = []
    for node in val.nodes:
        source, stride = node, (step, 1) if axis == 2 else (1, step)
        if node.kind == "sum_pool" and node.attrs[0] == (1, 1) and node.attrs[2] == (0, 0):
            inner = node.attrs[1]
            source, stride = node.inputs[0], (stride[0] * inner[0], stride[1] * inner[1])
        attrs = [(1, 1), stride, (0, 0), False]
        found.append(call.op("sum_pool", [source], _features(val, call.out), [], attrs).node)
    return Val(tuple(found), val.d, val.fold)


def _zeros(call: Call, timed: Val | None, tensor: torch.Tensor) -> Op:
    if bool((tensor != 0).any()):
        raise call.refuse(
            "joins a constant that is not 0 with values computed from the input; only zeros can stand beside them",
            Code.UNSUPPORTED_LAYER,
        )
    return call.op("zeros", [], _features(timed, tensor)).node
