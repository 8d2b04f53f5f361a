"""What each ATen operation does to tracked tensors: one small function an operation.

`untimed` operations work on [batch, ...] tensors; where an operand has a time axis, only operations that
place, select or reduce time, and elementwise ones, are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from dalif_deploy.capture.neurons import registration
from dalif_deploy.capture.values import Const, Op, Val
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Array

if TYPE_CHECKING:
    from dalif_deploy.capture.record import Recorder

UNWRITTEN = "unwritten"
"""The kind of a buffer's entries that no timestep has written."""

Result = Val | list[Val | None] | None

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


@dataclass(frozen=True)
class Call:
    """One operation as it was called. `name` is without the trailing underscore of in-place variants."""

    recorder: Recorder
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, index: int, key: str, default: Any = None) -> Any:
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(key, default)

    def val(self, index: int) -> Val | None:
        return self.recorder.val(self.args[index])

    def refuse(self, why: str, code: Code = Code.UNSUPPORTED_LAYER) -> DalifError:
        return self.recorder.refuse(code, f"aten.{self.name}: {why}")

    def unsupported(self) -> DalifError:
        return self.refuse(
            "this operation is not supported; supported are convolutions, linear layers, batch normalisation, pools, "
            "additions, scaling by constants, flattening, and spiking neurons"
        )

    def op(
        self,
        kind: str,
        inputs: Sequence[Op],
        shape: Sequence[int],
        consts: Sequence[Const | None] = (),
        attrs: Sequence[Any] = (),
    ) -> Val:
        """A new untimed value."""
        if any(x.kind == UNWRITTEN for x in inputs):
            raise self.refuse("reads a buffer of which some timesteps were never written", Code.CAPTURE_REFUSED)
        site = self.recorder.site()
        return Val((self.recorder.table.op(kind, tuple(shape), site, tuple(inputs), tuple(consts), tuple(attrs)),))

    def node(self, index: int = 0) -> Op:
        """The untimed node of a tracked operand."""
        val = self.val(index)
        if val is None:
            raise self.refuse("a value computed from the input stands where a constant is needed")
        settled = val if val.d is None else self._without_unit_axis(val)
        return settled.node

    def _without_unit_axis(self, val: Val) -> Val:
        if len(val.nodes) != 1 or val.d == 0:
            raise self.refuse(
                "works on a tensor with a time axis; layouts with time in the tensor (layouts TB, BT) are not captured "
                "yet: write forward as one step, or as a loop over time",
                Code.CAPTURE_REFUSED,
            )
        assert val.d is not None
        shape = list(val.node.shape)
        shape.insert(val.d - 1, 1)
        return reshaped(self, val.node, shape)

    def constant(self, index: int, key: str = "") -> Const | None:
        """The constant an operand is, or None where it is absent."""
        tensor = self.arg(index, key)
        if tensor is None:
            return None
        if self.recorder.val(tensor) is not None:
            raise self.refuse("a value computed from the input stands where a constant is needed")
        return self.recorder.const(tensor)

    def shape(self) -> tuple[int, ...]:
        """The output's shape without batch, which must have stayed in front."""
        return self.features(self.out)

    def features(self, out: torch.Tensor) -> tuple[int, ...]:
        batch = self.args[0].shape[0]
        if out.ndim < 1 or out.shape[0] != batch:
            raise self.refuse(
                "the batch axis does not stay in front; modules that fold time into the batch (layouts TB, BT) are not "
                "captured yet: write forward as one step, or as a loop over time",
                Code.CAPTURE_REFUSED,
            )
        return tuple(out.shape[1:])

    def number(self, value: float) -> float:
        """A Python number as the operation takes it: beside float32 tensors it is a float32."""
        like = next(a for a in tree_leaves((self.args, self.kwargs)) if isinstance(a, torch.Tensor))
        return float(np.float32(value)) if like.dtype == torch.float32 else float(value)


def untimed(val: Val) -> Val | None:
    """`val` if it is one value per sample, else None."""
    return val if val.d is None else None


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
    if target is not None and call.name == "copy" and recorder.buffers.written(target, call.node(1)):
        return
    if target is not None and recorder.val(target) is None and target._is_view():
        raise call.refuse(
            "a value computed from the input is written through a view into a buffer; collect the "
            "timesteps in a list and stack them",
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
        cls = call.recorder.running_class()
        raise call.refuse(f"compares outside every registered neuron; {registration(cls)}", Code.UNKNOWN_NEURON)
    if name in ("_softmax", "softmax", "_log_softmax", "log_softmax"):
        raise call.refuse("softmax is not part of the graph; return the logits")
    if name == "_to_copy":
        before, after = call.args[0].dtype, call.out.dtype
        if before != after and not (before == torch.bool and after in (torch.float32, torch.float64)):
            why = f"changes the type from {before} to {after}; keep one floating-point type"
            raise call.refuse(why, Code.CAPTURE_REFUSED)


# -- layers ------------------------------------------------------------------------------------------------


def _convolution(call: Call) -> Result:
    x = call.node()
    stride, padding, dilation, transposed, _, groups = call.args[3:9]
    if transposed or len(x.shape) != 3:
        what = "transposed" if transposed else f"{len(x.shape) - 1}-dimensional"
        raise call.refuse(f"a {what} convolution is not supported; only Conv2d is")
    attrs = [tuple(map(int, values)) for values in (stride, padding, dilation)]
    return call.op("conv", [x], call.shape(), [call.constant(1), call.constant(2)], [*attrs, int(groups)])


def _linear(call: Call) -> Result:
    # addmm and mm hold the transposed weight; aten.linear, where it is not taken apart, the weight itself.
    if call.name == "linear":
        x, weight, bias, transposed = call.node(0), call.constant(1), call.constant(2), False
    elif call.name == "mm":
        x, weight, bias, transposed = call.node(0), call.constant(1), None, True
    else:
        if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
            raise call.unsupported()
        x, bias, weight, transposed = call.node(1), call.constant(0), call.constant(2), True
        if bias is not None and bias.tensor.ndim != 1:
            raise call.refuse("the bias is not one value per output feature")
    if len(x.shape) != 1:
        raise call.refuse(f"a linear layer on {list(x.shape)} features; flatten them first")
    return call.op("linear", [x], tuple(call.out.shape[1:]), [weight, bias], [transposed])


def _batch_norm(call: Call) -> Result:
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


def _pool(call: Call) -> Result:
    x = call.node()
    if len(x.shape) != 3:
        raise call.refuse(f"a pool over {list(x.shape)} features; it needs (channels, height, width)")
    kernel = _pair(call.args[1])
    stride = _pair(call.arg(2, "stride") or kernel)
    padding = _pair(call.arg(3, "padding", 0))
    if call.name == "avg_pool2d":
        if call.arg(6, "divisor_override") is not None:
            raise call.refuse("divisor_override is not supported; scale after the pool")
        attrs = [kernel, stride, padding, bool(call.arg(4, "ceil_mode", False)), bool(call.arg(5, "", True))]
        return call.op("avg_pool", [x], call.shape(), [], attrs)
    if _pair(call.arg(4, "dilation", 1)) != (1, 1):
        raise call.refuse("a max pool with dilation is not supported")
    attrs = [kernel, stride, padding, bool(call.arg(5, "ceil_mode", False))]
    values = call.op("max_pool", [x], call.features(call.out[0]), [], attrs)
    return [values, _second(call, values)]


def _second(call: Call, first: Val) -> Val:
    # Indices: tracked, so that nobody takes them for a constant, and refused where they are used.
    return call.op("unsupported", first.nodes, first.node.shape, [], [call.name])


def _adaptive(call: Call) -> Result:
    x = call.node()
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    size, wanted = x.shape[1:], tuple(out.shape[2:])
    if len(x.shape) != 3 or any(n % k for n, k in zip(size, wanted, strict=True)):
        raise call.refuse(
            f"an adaptive pool from {list(size)} to {list(wanted)} has windows of different sizes; "
            "pool to sizes that divide the input's"
        )
    window = (size[0] // wanted[0], size[1] // wanted[1])
    if call.name == "_adaptive_avg_pool2d":
        return call.op("avg_pool", [x], (x.shape[0], *wanted), [], [window, window, (0, 0), False, True])
    values = call.op("max_pool", [x], (x.shape[0], *wanted), [], [window, window, (0, 0), False])
    return [values, _second(call, values)]


def _over_space(call: Call) -> Result:
    x = call.node()
    rank = call.args[0].ndim
    dims = call.arg(1, "dim")
    named = sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))})
    if call.name in ("mean", "sum", "amax") and 0 in named:
        raise call.refuse("reduces over the batch, which mixes samples", Code.CAPTURE_REFUSED)
    if call.kwargs.get("dtype") not in (None, call.args[0].dtype):
        raise call.unsupported()
    keep = bool(call.arg(2, "keepdim", False))
    if named == [2] and x.kind == "reshape" and not keep:  # [B, C, H, W] seen as [B, C, H * W]
        source = x.inputs[0]
        if len(source.shape) == 3 and x.shape == (source.shape[0], source.shape[1] * source.shape[2]):
            x, named = source, [2, 3]
    if named != [2, 3] or len(x.shape) != 3:
        raise call.refuse(f"a reduction over dimensions {named}; supported are both spatial ones, [2, 3], and time")
    window = x.shape[1:]
    kind = {"mean": "avg_pool", "sum": "sum_pool", "amax": "max_pool"}[call.name]
    attrs: list[Any] = [window, window, (0, 0), False, *([True] if kind == "avg_pool" else [])]
    pooled = call.op(kind, [x], (x.shape[0], 1, 1), [], attrs)
    return pooled if keep else reshaped(call, pooled.node, (x.shape[0],))


# -- shapes ------------------------------------------------------------------------------------------------


def reshaped(call: Call, node: Op, shape: Sequence[int]) -> Val:
    """`node` in another feature shape; a chain of reshapes is one."""
    source = node.inputs[0] if node.kind == "reshape" else node
    if source.shape == tuple(shape):
        return Val((source,))
    return call.op("reshape", [source], shape, [], [tuple(shape)])


def _reshape(call: Call) -> Result:
    x = call.node()
    return reshaped(call, x, call.shape())


def _unsqueeze(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    dim = call.args[1] % call.out.ndim
    # A new axis in front, or next to the batch, is how time axes are built; it is settled when it is used.
    return Val(val.nodes, dim) if dim <= 1 else reshaped(call, val.node, call.shape())


def _permute(call: Call) -> Result:
    rank = call.args[0].ndim
    order = _order(call, rank)
    val = call.val(0)
    assert val is not None
    if val.d is None:
        if order != list(range(rank)):
            raise call.refuse("axes of a feature map change places; only time axes may")
        return val
    rest = [d for d in order if d != val.d]
    if rest != sorted(rest):
        raise call.refuse("axes of a feature map change places; only time axes may")
    return Val(val.nodes, order.index(val.d))


def _order(call: Call, rank: int) -> list[int]:
    if call.name == "permute":
        return [d % rank for d in call.args[1]]
    order = list(range(rank))
    i, j = (0, 1) if call.name == "t" else (call.args[1] % rank, call.args[2] % rank)
    order[i], order[j] = order[j], order[i]
    return order


def _same(call: Call) -> Result:
    return call.recorder.val(call.args[0])


def _copy(call: Call) -> Result:
    if tuple(call.args[0].shape) != tuple(call.args[1].shape) or call.args[0].dtype != call.args[1].dtype:
        raise call.unsupported()
    val = call.recorder.val(call.args[1])
    if val is None:
        raise call.refuse("a constant is written over a value computed from the input", Code.CAPTURE_REFUSED)
    return val


def _select(call: Call) -> Result:
    val, dim = call.val(0), call.args[1] % call.args[0].ndim
    assert val is not None
    if val.d == dim:
        return Val((val.nodes[call.args[2]],))
    if val.d is None and dim > 0 and call.args[0].shape[dim] == 1:
        return reshaped(call, val.node, call.shape())
    raise call.refuse("selects part of a feature map or of the batch; only timesteps can be selected")


def _slice(call: Call) -> Result:
    val, dim = call.val(0), call.arg(1, "dim", 0) % call.args[0].ndim
    assert val is not None
    if val.d == dim:
        step = call.arg(4, "step", 1)
        return Val(val.nodes[slice(call.arg(2, "start"), call.arg(3, "end"), step)], dim)
    if call.out.shape == call.args[0].shape:
        return val
    raise call.refuse("takes a slice of a feature map or of the batch; only timesteps can be selected")


def _unbind(call: Call) -> Result:
    val, dim = call.val(0), call.arg(1, "dim", 0) % call.args[0].ndim
    assert val is not None
    if val.d != dim:
        raise call.refuse("takes a feature map or the batch apart; only timesteps can be selected")
    return [Val((node,)) for node in val.nodes]


def _split(call: Call) -> Result:
    val, dim = call.val(0), call.arg(2, "dim", 0) % call.args[0].ndim
    assert val is not None
    if val.d != dim:
        raise call.refuse("takes a feature map or the batch apart; only timesteps can be selected")
    sizes = [part.shape[dim] for part in call.out]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [Val(val.nodes[start : start + n], dim) for start, n in zip(starts, sizes, strict=True)]


def _timed_squeeze(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    rank = call.args[0].ndim
    dims = call.arg(1, "dim")
    chosen = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    removed = [d for d in chosen if call.args[0].shape[d] == 1]
    if removed == [val.d]:
        return Val(val.nodes)
    if not removed:
        return val
    raise call.unsupported()


def _timed_copies(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    before, after = tuple(call.args[0].shape), tuple(call.out.shape)
    changed = [d for d in range(len(before)) if before[d] != after[d]] if len(before) == len(after) else None
    if changed is None or changed not in ([], [val.d]) or (changed and len(val.nodes) != 1):
        raise call.refuse("copies a feature map or the batch; only timesteps can be repeated")
    return Val(val.nodes * after[val.d], val.d) if changed and val.d is not None else val


def _copies(call: Call) -> Result:
    if tuple(call.args[0].shape) != tuple(call.out.shape):
        # x.repeat(T, 1, 1, 1, 1) and x.expand(T, ...) make their new axis themselves.
        before, after = tuple(call.args[0].shape), tuple(call.out.shape)
        val = call.val(0)
        if val is not None and after[1:] == before and len(after) == len(before) + 1:
            return Val(val.nodes * after[0], 0)
        raise call.refuse("copies a feature map or the batch; only timesteps can be repeated")
    return call.val(0)


def _stack(call: Call) -> Result:
    vals = [call.recorder.val(tensor) for tensor in call.args[0]]
    dim = call.arg(1, "dim", 0) % call.out.ndim
    if any(val is None for val in vals):
        raise call.refuse("stacks constants with values computed from the input", Code.CAPTURE_REFUSED)
    nodes = [val.node for val in vals if val is not None and val.d is None]
    if len(nodes) != len(vals):
        raise call.refuse("stacks tensors that already have a time axis")
    return Val(tuple(nodes), dim)


def _cat(call: Call) -> Result:
    vals = [call.recorder.val(tensor) for tensor in call.args[0]]
    dim = call.arg(1, "dim", 0) % call.out.ndim
    if any(val is None or val.d != dim for val in vals):
        raise call.refuse("joins feature maps or batches; only timesteps can be joined")
    return Val(tuple(node for val in vals if val is not None for node in val.nodes), dim)


def _over_time(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    rank = call.args[0].ndim
    dims = call.arg(1, "dim")
    named = {d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    if named != {val.d} or call.kwargs.get("dtype") not in (None, call.args[0].dtype):
        raise call.refuse(f"a reduction over dimensions {sorted(named)} of a tensor whose time axis is {val.d}")
    kind = {"mean": "mean_of", "sum": "sum_of"}.get(call.name, "max_of")
    node = val.nodes[0] if len(val.nodes) == 1 else call.op(kind, val.nodes, val.nodes[0].shape).node
    result = Val((node,), val.d) if call.arg(2, "keepdim", False) else Val((node,))
    if isinstance(call.out, torch.Tensor):
        return result
    return [result, _second(call, Val((node,)))]


# -- arithmetic --------------------------------------------------------------------------------------------


def _arithmetic(call: Call) -> Result:
    name = call.name
    if call.kwargs.get("rounding_mode") is not None:
        raise call.unsupported()
    a = call.args[0]
    b = call.args[1] if len(call.args) > 1 else None
    alpha = call.number(call.arg(2, "alpha", 1)) if name in ("add", "sub", "rsub") else 1.0
    va, vb = call.recorder.val(a), call.recorder.val(b)
    timed = next((v for v in (va, vb) if v is not None and v.d is not None), None)
    if timed is None:
        return Val((_elementwise(call, va.node if va else a, vb.node if vb else b, alpha),))
    for val, tensor in ((va, a), (vb, b)):
        constant = val is None and not (isinstance(tensor, torch.Tensor) and tensor.ndim > 0)
        fits = val is not None and (val.d, len(val.nodes)) == (timed.d, len(timed.nodes))
        if not (constant or fits):
            raise call.refuse("arithmetic between a tensor with a time axis and one without")
    steps = range(len(timed.nodes))
    return Val(
        tuple(_elementwise(call, va.nodes[t] if va else a, vb.nodes[t] if vb else b, alpha) for t in steps), timed.d
    )


def _elementwise(call: Call, a: Any, b: Any, alpha: float) -> Op:
    """One of add, sub, rsub, mul, div, neg, maximum on nodes, constant tensors and numbers."""
    name = call.name
    if name == "rsub":
        name, a, b = "sub", b, a
        if alpha != 1.0:
            raise call.unsupported()
    if name == "neg":
        return affine(call, a, factor=-1.0)
    if isinstance(a, Op) and isinstance(b, Op):
        if a.shape != b.shape:
            raise call.refuse(f"values of different shapes, {list(a.shape)} and {list(b.shape)}, without batch")
        if name in ("add", "sub"):
            second = affine(call, b, factor=alpha if name == "add" else -alpha)
            return call.op("add", [a, second], a.shape).node
        if name == "maximum":
            return call.op("max_of", [a, b], a.shape).node
        raise call.refuse("a product or quotient of two values computed from the input is not supported")
    if isinstance(a, Op):
        c = constant_features(call, b, a)
        if name in ("add", "sub"):
            return affine(call, a, offset=c * (alpha if name == "add" else -alpha))
        if name == "mul":
            return affine(call, a, factor=c)
        if name == "div":
            if not c.all():
                raise call.refuse("divides by zero")
            return affine(call, a, factor=1.0 / c)
    elif isinstance(b, Op):
        c = constant_features(call, a, b)
        if name in ("add", "sub"):
            return affine(call, b, factor=alpha if name == "add" else -alpha, offset=c)
        if name == "mul":
            return affine(call, b, factor=c)
    raise call.unsupported()


def constant_features(call: Call, value: Any, node: Op) -> Array:
    """A number or an untracked tensor, float64, shaped to broadcast against the node's features."""
    if not isinstance(value, torch.Tensor):
        return np.asarray(call.number(value))
    array = value.detach().to(device="cpu", dtype=torch.float64).numpy()
    if array.ndim == len(node.shape) + 1:
        if not (array == array[:1]).all():
            raise call.refuse("adds or multiplies a constant that differs between samples", Code.CAPTURE_REFUSED)
        array = array[0]
    try:
        fits = np.broadcast_shapes(array.shape, node.shape) == node.shape
    except ValueError:
        fits = False
    if not fits:
        raise call.refuse(f"a constant of shape {list(value.shape)} does not fit {list(node.shape)} features")
    return np.array(array)


def affine(call: Call, node: Op, *, factor: Any = 1.0, offset: Any = 0.0) -> Op:
    """factor * node + offset; nothing where that is the node itself."""
    factor, offset = np.asarray(factor, dtype=np.float64), np.asarray(offset, dtype=np.float64)
    if (factor == 1.0).all() and (offset == 0.0).all():
        return node
    consts = [call.recorder.table.array_const(_smallest(values)) for values in (factor, offset)]
    return call.op("affine", [node], node.shape, consts).node


def _smallest(values: Array) -> Array:
    # A full array of one number is that number: the buffer's size is no property of the network.
    if values.size and (values == values.flat[0]).all():
        return np.asarray(values.flat[0])
    return values


Handler = Callable[[Call], Result]

_UNTIMED: dict[str, Handler] = {
    "convolution": _convolution,
    **dict.fromkeys(("linear", "mm", "addmm"), _linear),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "cudnn_batch_norm"),
        _batch_norm,
    ),
    **dict.fromkeys(("avg_pool2d", "max_pool2d_with_indices"), _pool),
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive),
    **dict.fromkeys(("mean", "sum", "amax"), _over_space),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "squeeze", "_reshape_alias"), _reshape),
    "unsqueeze": _unsqueeze,
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys((*_SAME, "_to_copy"), _same),
    "copy": _copy,
    "select": _select,
    "slice": _slice,
    "unbind": _unbind,
    "split": _split,
    **dict.fromkeys(("expand", "repeat"), _copies),
    "stack": _stack,
    "cat": _cat,
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "neg", "maximum"), _arithmetic),
}

_TIMED: dict[str, Handler] = {
    "squeeze": _timed_squeeze,
    **dict.fromkeys(("expand", "repeat"), _timed_copies),
    **dict.fromkeys(("mean", "sum", "amax", "max"), _over_time),
}
