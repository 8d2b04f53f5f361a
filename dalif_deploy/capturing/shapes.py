"""Operations that only reshape, and those that place, select and reduce time."""

from __future__ import annotations

import torch

from dalif_deploy.capturing import joins
from dalif_deploy.capturing.call import Call, Result, reshaped, second
from dalif_deploy.capturing.values import Val
from dalif_deploy.errors import Code


def reshape(call: Call) -> Result:
    x = call.node()
    return reshaped(call, x, call.shape())


def unsqueeze(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    dim = call.args[1] % call.out.ndim
    # A new axis in front, or next to the batch, is how time axes are built; it is settled when it is used.
    return Val(val.nodes, dim) if dim <= 1 else reshaped(call, val.node, call.shape())


def permute(call: Call) -> Result:
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


def same(call: Call) -> Result:
    return call.recorder.val(call.args[0])


def copy(call: Call) -> Result:
    if tuple(call.args[0].shape) != tuple(call.args[1].shape) or call.args[0].dtype != call.args[1].dtype:
        raise call.unsupported()
    val = call.recorder.val(call.args[1])
    if val is None:
        raise call.refuse("a constant is written over a value computed from the input", Code.CAPTURE_REFUSED)
    return val


def select(call: Call) -> Result:
    val, dim = call.val(0), call.args[1] % call.args[0].ndim
    assert val is not None
    if val.d == dim:
        return Val((val.nodes[call.args[2]],))
    if val.d is None and dim > 0 and call.args[0].shape[dim] == 1:
        return reshaped(call, val.node, call.shape())
    raise call.refuse("selects part of a feature map or of the batch; only timesteps can be selected")


def take_slice(call: Call) -> Result:
    val, dim = call.val(0), call.arg(1, "dim", 0) % call.args[0].ndim
    assert val is not None
    if val.d == dim:
        step = call.arg(4, "step", 1)
        return Val(val.nodes[slice(call.arg(2, "start"), call.arg(3, "end"), step)], dim)
    if call.out.shape == call.args[0].shape:
        return val
    if (every := joins.every(call, dim)) is not None:
        return every
    raise call.refuse("takes a slice of a feature map or of the batch; only timesteps can be selected")


def unbind(call: Call) -> Result:
    val, dim = call.val(0), call.arg(1, "dim", 0) % call.args[0].ndim
    assert val is not None
    if val.d != dim:
        raise call.refuse("takes a feature map or the batch apart; only timesteps can be selected")
    return [Val((node,)) for node in val.nodes]


def split(call: Call) -> Result:
    val, dim = call.val(0), call.arg(2, "dim", 0) % call.args[0].ndim
    assert val is not None
    if val.d != dim:
        raise call.refuse("takes a feature map or the batch apart; only timesteps can be selected")
    sizes = [part.shape[dim] for part in call.out]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [Val(val.nodes[start : start + n], dim) for start, n in zip(starts, sizes, strict=True)]


def timed_squeeze(call: Call) -> Result:
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


def timed_copies(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    before, after = tuple(call.args[0].shape), tuple(call.out.shape)
    changed = [d for d in range(len(before)) if before[d] != after[d]] if len(before) == len(after) else None
    if changed is None or changed not in ([], [val.d]) or (changed and len(val.nodes) != 1):
        raise call.refuse("copies a feature map or the batch; only timesteps can be repeated")
    return Val(val.nodes * after[val.d], val.d) if changed and val.d is not None else val


def copies(call: Call) -> Result:
    if tuple(call.args[0].shape) != tuple(call.out.shape):
        # x.repeat(T, 1, 1, 1, 1) and x.expand(T, ...) make their new axis themselves.
        before, after = tuple(call.args[0].shape), tuple(call.out.shape)
        val = call.val(0)
        if val is not None and after[1:] == before and len(after) == len(before) + 1:
            return Val(val.nodes * after[0], 0)
        raise call.refuse("copies a feature map or the batch; only timesteps can be repeated")
    return call.val(0)


def stack(call: Call) -> Result:
    vals = [call.recorder.val(tensor) for tensor in call.args[0]]
    dim = call.arg(1, "dim", 0) % call.out.ndim
    if any(val is None for val in vals):
        raise call.refuse("stacks constants with values computed from the input", Code.CAPTURE_REFUSED)
    nodes = [val.node for val in vals if val is not None and val.d is None]
    if len(nodes) != len(vals):
        raise call.refuse("stacks tensors that already have a time axis")
    return Val(tuple(nodes), dim)


def cat(call: Call) -> Result:
    vals = [call.recorder.val(tensor) for tensor in call.args[0]]
    dim = call.arg(1, "dim", 0) % call.out.ndim
    if any(val is None or val.d != dim for val in vals):
        return joins.channels(call, dim)
    return Val(tuple(node for val in vals if val is not None for node in val.nodes), dim)


def over_time(call: Call) -> Result:
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
    return [result, second(call, Val((node,)))]
