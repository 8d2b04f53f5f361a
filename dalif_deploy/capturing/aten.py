"""Which handler understands which ATen operation, and which operations are refused by name.

`_UNTIMED` handlers work on [batch, ...] tensors and settle axes that stand beside the batch; where an operand
has a time axis, `_TIMED` handlers come first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from dalif_deploy.capturing import arithmetic, layers, lifting, shapes
from dalif_deploy.capturing.call import Call, Handler
from dalif_deploy.capturing.record import Recorder
from dalif_deploy.capturing.values import Val
from dalif_deploy.errors import Code

# fmt: off
_CONSTANT = frozenset({
    "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty",
    "new_empty_strided",
})
_COMPARISONS = frozenset({
    "ge", "gt", "le", "lt", "eq", "ne", "sign", "heaviside", "where", "clamp", "floor", "ceil", "round",
    "masked_fill", "logical_not", "bitwise_not", "trunc", "fix", "sgn", "signbit",
})
_READS = frozenset({
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "allclose", "unique", "argmax", "argmin", "topk",
})
_SAME = frozenset({"clone", "detach", "alias", "contiguous", "lift_fresh"})
# fmt: on


def interpret(
    recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, target: torch.Tensor | None
) -> None:
    """Track the outputs of an operation that had a tracked operand.

    `target`: the tensor an in-place operation wrote; `args` holds what it was before, where that was a constant.
    """
    full = str(func.overloadpacket).removeprefix("aten.")
    call = Call(recorder, full.rstrip("_"), args, kwargs, out)
    if call.name in _CONSTANT:
        return
    _refuse_by_name(call)
    if func._schema.is_mutable and target is None:
        raise call.refuse("an out= argument; write out of place")
    if target is not None and call.name == "copy" and recorder.buffers.written(target, call.val(1)):
        return
    if target is not None and recorder.val(target) is None and target._is_view():
        raise call.refuse(
            "a value computed from the input is written through a view into a buffer, as padding_mode='circular' does "
            "too; collect timesteps in a list and stack them, and pad with zeros",
            Code.CAPTURE_REFUSED,
        )
    vals = [val for val in map(recorder.val, tree_leaves((args, kwargs))) if val is not None]
    timed = any(val.d is not None for val in vals)
    handler = (_TIMED.get(call.name) if timed else None) or _UNTIMED.get(call.name)
    if handler is None:
        raise call.unsupported()
    result = handler(call)
    if target is not None:
        if not isinstance(result, Val):
            raise call.unsupported()
        recorder.track(target, result)
        return
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    results = result if isinstance(result, list) else [result]
    for tensor, val in zip(outputs, results, strict=False):
        if val is not None:
            recorder.track(tensor, val)


def _refuse_by_name(call: Call) -> None:
    name = call.name
    if name in _READS:
        raise call.refuse(
            "Python reads a value computed from the input, so what runs may depend on the data", Code.CAPTURE_REFUSED
        )
    if name in _COMPARISONS:
        raise call.refuse("compares outside every registered neuron", Code.UNKNOWN_NEURON)
    if name in ("_softmax", "softmax", "_log_softmax", "log_softmax"):
        raise call.refuse("softmax is not part of the graph; return the logits")
    if name == "_to_copy":
        before, after = call.args[0].dtype, call.out.dtype
        if before != after and not (before == torch.bool and after in (torch.float32, torch.float64)):
            why = f"changes the type from {before} to {after}; keep one floating-point type"
            raise call.refuse(why, Code.CAPTURE_REFUSED)


_LAYERS: dict[str, Handler] = {
    "convolution": layers.convolution,
    **dict.fromkeys(("linear", "mm", "addmm", "bmm"), layers.linear),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm"),
        layers.batch_norm,
    ),
    **dict.fromkeys(("avg_pool2d", "max_pool2d_with_indices"), layers.pool),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), layers.adaptive),
    "constant_pad_nd": shapes.pad,
}
_REDUCTIONS: dict[str, Handler] = dict.fromkeys(("mean", "sum", "amax"), layers.over_space)
_ARITHMETIC: dict[str, Handler] = dict.fromkeys(
    ("add", "sub", "rsub", "mul", "div", "neg", "maximum"), arithmetic.arithmetic
)
_UNTIMED: dict[str, Handler] = {
    **_LAYERS,
    **_REDUCTIONS,
    **_ARITHMETIC,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "squeeze", "_reshape_alias"), shapes.reshape),
    "unsqueeze": shapes.unsqueeze,
    **dict.fromkeys(("permute", "transpose", "t"), shapes.permute),
    **dict.fromkeys((*_SAME, "_to_copy"), shapes.same),
    "copy": shapes.copy,
    "select": shapes.select,
    "slice": shapes.take_slice,
    "unbind": shapes.unbind,
    "split": shapes.split,
    **dict.fromkeys(("expand", "repeat"), shapes.copies),
    "repeat_interleave": shapes.repeat_interleave,
    "stack": shapes.stack,
    "cat": shapes.cat,
}

_TIMED: dict[str, Handler] = {
    **{name: lifting.layer(handler) for name, handler in _LAYERS.items()},
    **{name: lifting.elementwise(handler) for name, handler in _ARITHMETIC.items()},
    **{name: lifting.reduction(handler, shapes.over_time) for name, handler in _REDUCTIONS.items()},
    "max": shapes.over_time,
    "squeeze": shapes.timed_squeeze,
    **dict.fromkeys(("expand", "repeat"), shapes.timed_copies),
}
