"""Operations that only reshape, and those that place, select and reduce time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dalif_deploy.capturing import joins
from dalif_deploy.capturing.call import Call, Result, reshaped, second
from dalif_deploy.capturing.values import Fold, Op, Val
from dalif_deploy.errors import Code

_TIMESTEPS_ONLY = "only timesteps can be selected"


def reshape(call: Call) -> Result:
    """A new shape of the same numbers in the same order; time may be folded into the batch or come out of it."""
    val, new = call.val(0), tuple(call.out.shape)
    assert val is not None
    if len(val.nodes) > 1:
        return _with_time(call, val, tuple(call.args[0].shape), new)
    batch = call.recorder.batch
    node = val.node
    if new[:2] == (1, batch) and new[0] != batch:
        return Val(reshaped(call, node, new[2:]).nodes, 0)
    if call.recorder.timesteps == 1 and new == (batch, 1, *node.shape):
        return Val((node,), 1)  # a time axis of one step
    return reshaped(call, node, call.shape())


def _with_time(call: Call, val: Val, old: tuple[int, ...], new: tuple[int, ...]) -> Val:
    """Where time is after a reshape.

    With P numbers before the time factor and S after it, it comes to lie in the dimension j that leaves a
    whole factor of P before it and of S after it; for two timesteps and more there is one at most.
    """
    timesteps, batch = len(val.nodes), call.recorder.batch
    assert val.d is not None
    before = math.prod(old[: val.d]) * (batch if val.fold == "BT" else 1)
    after = math.prod(old) // (before * timesteps)
    for j, size in enumerate(new):
        front, back = math.prod(new[:j]), math.prod(new[j + 1 :])
        if not back or before % front or after % back or size != before // front * timesteps * (after // back):
            continue
        rest = [*new[:j], size // timesteps, *new[j + 1 :]]
        fold: Fold = ""
        if size == timesteps:
            del rest[j]
        elif j == 0 and before == 1 and after // back == batch:
            fold = "TB"
        elif j == 0 and before == batch and after == back:
            fold = "BT"
        else:
            break
        if rest[0] != batch:
            break
        nodes = tuple(reshaped(call, node, rest[1:]).node for node in val.nodes)
        return Val(nodes, j, fold)
    raise call.refuse(
        f"makes {list(new)} of {list(old)} (batch {batch}, {timesteps} timesteps), which mixes timesteps or "
        "samples with features, or takes the batch for time" + call.hint(),
        Code.CAPTURE_REFUSED,
    )


def unsqueeze(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    dim = call.args[1] % call.out.ndim
    if val.d is not None and (len(val.nodes) > 1 or val.fold):
        return _with_time(call, val, tuple(call.args[0].shape), tuple(call.out.shape))
    # A new axis in front, or next to the batch, is how time axes are built; it is settled when it is used.
    return Val(val.nodes, dim) if dim <= 1 and val.d is None else reshaped(call, val.node, call.shape())


def permute(call: Call) -> Result:
    rank = call.args[0].ndim
    order = _order(call, rank)
    val = call.val(0)
    assert val is not None
    if order == list(range(rank)):
        return val
    rest = [d for d in order if d != val.axis]
    if val.axis is None or rest != sorted(rest):
        raise call.refuse("axes of a feature map change places; only time axes may")
    return Val(val.nodes, order.index(val.axis))


def _order(call: Call, rank: int) -> list[int]:
    if call.name == "permute":
        return [d % rank for d in call.args[1]]
    order = list(range(rank))
    i, j = (0, 1) if call.name == "t" else (call.args[1] % rank, call.args[2] % rank)
    order[i], order[j] = order[j], order[i]
    return order


def same(call: Call) -> Result:
    return call.val(0)


def copy(call: Call) -> Result:
    if tuple(call.args[0].shape) != tuple(call.args[1].shape) or call.args[0].dtype != call.args[1].dtype:
        raise call.unsupported()
    val = call.val(1)
    if val is None:
        raise call.refuse("a constant is written over a value computed from the input", Code.CAPTURE_REFUSED)
    return val


def select(call: Call) -> Result:
    val, dim = call.val(0), call.args[1] % call.args[0].ndim
    assert val is not None
    if val.axis == dim:
        return Val((val.nodes[call.args[2]],))
    if val.d is None and dim > 0 and call.args[0].shape[dim] == 1:
        return reshaped(call, val.node, call.shape())
    raise call.refuse("selects part of a feature map or of the batch; " + _TIMESTEPS_ONLY)


def take_slice(call: Call) -> Result:
    val, dim = call.val(0), call.arg(1, "dim", 0) % call.args[0].ndim
    assert val is not None
    size = call.args[0].shape[dim]
    start, end, step = slice(call.arg(2, "start"), call.arg(3, "end"), call.arg(4, "step", 1)).indices(size)
    if call.out.shape == call.args[0].shape:
        return val
    if val.axis == dim:
        return Val(val.nodes[start:end:step], dim)
    if val.fold and dim == 0:
        timesteps, batch = len(val.nodes), call.recorder.batch
        if val.fold == "TB" and step == 1 and start % batch == 0 and end % batch == 0:
            return _folded(val.nodes[start // batch : end // batch])
        if val.fold == "BT" and step == timesteps and start < timesteps and len(call.out) == batch:
            return Val((val.nodes[start],))
    if start == 0 and end == size and (every := joins.every(call, val, dim, step)) is not None:
        return every
    raise call.refuse("takes a slice of a feature map or of the batch; " + _TIMESTEPS_ONLY)


def _folded(nodes: Sequence[Op]) -> Val:
    return Val(tuple(nodes), 0, "TB") if len(nodes) > 1 else Val(tuple(nodes))


def unbind(call: Call) -> Result:
    val, dim = call.val(0), call.arg(1, "dim", 0) % call.args[0].ndim
    assert val is not None
    if val.axis != dim:
        raise call.refuse("takes a feature map or the batch apart; " + _TIMESTEPS_ONLY)
    return [Val((node,)) for node in val.nodes]


def split(call: Call) -> Result:
    val, dim = call.val(0), call.arg(2, "dim", 0) % call.args[0].ndim
    assert val is not None
    sizes = [part.shape[dim] for part in call.out]
    if val.fold == "TB" and dim == 0 and all(n % call.recorder.batch == 0 for n in sizes):
        counts = [n // call.recorder.batch for n in sizes]
    elif val.axis == dim:
        counts = sizes
    elif len(sizes) == 1:
        return [val]
    else:
        raise call.refuse("takes a feature map or the batch apart; " + _TIMESTEPS_ONLY)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    parts = [val.nodes[start : start + n] for start, n in zip(starts, counts, strict=True)]
    return [_folded(part) if val.fold else Val(part, dim) for part in parts]


def timed_squeeze(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    removed = [d for d in call.axes() if call.args[0].shape[d] == 1]
    if removed == [val.axis]:
        return Val(val.nodes)
    if not removed:
        return val
    return reshape(call)


def timed_copies(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    before, after = tuple(call.args[0].shape), tuple(call.out.shape)
    changed = [d for d in range(len(before)) if before[d] != after[d]] if len(before) == len(after) else None
    if changed == []:
        return val
    if changed is None or changed != [val.axis] or len(val.nodes) != 1:
        raise call.refuse("copies a feature map or the batch; only timesteps can be repeated")
    return Val(val.nodes * after[changed[0]], val.d)


def copies(call: Call) -> Result:
    before, after = tuple(call.args[0].shape), tuple(call.out.shape)
    val = call.val(0)
    assert val is not None
    if before == after:
        return val
    # x.repeat(T, 1, 1, 1, 1) and x.expand(T, ...) make their new axis themselves.
    if len(after) == len(before) + 1 and after[1:] == before:
        return Val(val.nodes * after[0], 0)
    # x.repeat(T, 1, 1, 1): the batch T times over.
    if call.name == "repeat" and after[1:] == before[1:] and len(after) == len(before) and before[0] > 0:
        return _folded(val.nodes * (after[0] // before[0]))
    raise call.refuse("copies a feature map or the batch; only timesteps can be repeated")


def repeat_interleave(call: Call) -> Result:
    """x.repeat_interleave(T, 0): every sample T times in a row."""
    val, times, dim = call.val(0), call.arg(1, "repeats"), call.arg(2, "dim")
    assert val is not None
    if isinstance(times, int) and isinstance(dim, int) and dim % call.args[0].ndim == 0 and val.d is None:
        return Val(val.nodes * times, 0, "BT") if times > 1 else val
    raise call.refuse("copies a feature map or the batch; only timesteps can be repeated")


def stack(call: Call) -> Result:
    vals = [call.val_of(tensor) for tensor in call.args[0]]
    dim = call.arg(1, "dim", 0) % call.out.ndim
    if any(val is None for val in vals):
        raise call.refuse("stacks constants with values computed from the input", Code.CAPTURE_REFUSED)
    nodes = [val.node for val in vals if val is not None and val.d is None]
    if len(nodes) != len(vals):
        raise call.refuse("stacks tensors that already have a time axis")
    return Val(tuple(nodes), dim)


def cat(call: Call) -> Result:
    vals = [call.val_of(tensor) for tensor in call.args[0]]
    dim = call.arg(1, "dim", 0) % call.out.ndim
    if dim == 0 and all(val is not None and (val.d is None or val.fold == "TB") for val in vals):
        return _folded([node for val in vals if val is not None for node in val.nodes])
    if any(val is None or val.axis != dim for val in vals):
        return joins.channels(call, vals, dim)
    return Val(tuple(node for val in vals if val is not None for node in val.nodes), dim)


def over_time(call: Call) -> Result:
    val = call.val(0)
    assert val is not None
    named = call.axes()
    if named != {val.axis} or call.kwargs.get("dtype") not in (None, call.args[0].dtype):
        where = "folded into the batch" if val.fold else f"dimension {val.d}"
        raise call.refuse(f"a reduction over dimensions {sorted(named)} of a tensor whose time is {where}")
    kind = {"mean": "mean_of", "sum": "sum_of"}.get(call.name, "max_of")
    node = val.nodes[0] if len(val.nodes) == 1 else call.op(kind, val.nodes, val.nodes[0].shape).node
    result = Val((node,), val.d) if call.arg(2, "keepdim", False) else Val((node,))
    if isinstance(call.out, torch.Tensor):
        return result
    return [result, second(call, Val((node,)))]


def pad(call: Call) -> Result:
    """Zeros around a feature map, as padding='same' makes for even kernels; a convolution takes them in."""
    x, sizes = call.node(), [int(n) for n in call.args[1]]
    if len(sizes) == 2 * len(x.shape):
        return joins.pad(call)
    if call.arg(2, "value", 0) != 0 or len(sizes) not in (2, 4) or len(x.shape) != 3 or min(sizes) < 0:
        raise call.refuse("pads with other values than zero, or other axes than height and width; only zeros around "
                          "the map are supported")  # fmt: skip
    if not any(sizes):
        return Val((x,))
    return call.op("pad", [x], call.shape(), [], [(*sizes, 0, 0)[:4]])
