"""Operations on tensors that hold all timesteps: each is the same operation on every timestep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from dalif_deploy.capturing.call import Call, Handler, Result
from dalif_deploy.capturing.values import Op, Place, Val
from dalif_deploy.errors import Code


def layer(handler: Handler) -> Handler:
    """A layer without memory: time must be folded into the batch (a normalisation also takes later axes)."""

    def lifted(call: Call) -> Result:
        timed = [(arg, val) for arg, val in _operands(call) if val.d is not None]
        lead, val = timed[0]
        own = val.axis
        if len(val.nodes) == 1 and not val.fold and not (call.recorder.timesteps == 1 and own not in (0, 1)):
            return handler(call)  # an axis of one entry, which the handler settles
        normalises = "batch_norm" in call.name
        if own is not None and not (own >= 2 if normalises else call.name in ("linear", "bmm") and own < lead.ndim - 1):
            raise call.refuse(
                f"works on a tensor of shape {list(lead.shape)} in which time is dimension {own}; fold time into the "
                "batch, x.flatten(0, 1), before layers that know no time, or loop over the timesteps",
                Code.CAPTURE_REFUSED,
            )
        assert val.place is not None
        call.recorder.saw(val.place)
        return _every_step(call, handler, val, val.place, constants=False)

    return lifted


def elementwise(handler: Handler) -> Handler:
    """Arithmetic: time axes line up from the right, as shapes do; constants may lack the time axis."""

    def lifted(call: Call) -> Result:
        operands = _operands(call)
        lead, val = max(((arg, val) for arg, val in operands if val.d is not None), key=lambda pair: len(pair[1].nodes))
        assert val.d is not None
        if len(val.nodes) == 1 and any(other.d is None for _, other in operands):
            return handler(call)
        after = lead.ndim - val.d
        for arg, other in operands:
            fits = other.d is not None and (arg.ndim - other.d, other.fold) == (after, val.fold)
            absent = other.d is None and not val.fold and val.d == 0 and arg.ndim == lead.ndim - 1
            if not (absent or (fits and len(other.nodes) in (1, len(val.nodes)))):
                raise call.refuse(
                    f"arithmetic between tensors whose time axes do not line up, {list(lead.shape)} and "
                    f"{list(arg.shape)}"
                )
        return _every_step(call, handler, val, Place(call.out.ndim - after, val.fold), constants=True)

    return lifted


def reduction(over_space: Handler, over_time: Handler) -> Handler:
    """A sum, mean or maximum: over time alone, or over axes of every timestep."""

    def lifted(call: Call) -> Result:
        val = call.val(0)
        assert val is not None
        named = call.axes()
        if named == {val.axis} or call.name == "max":
            return over_time(call)
        own = val.axis
        if own in named:
            raise call.refuse("reduces time and other axes at once; reduce them one after the other")
        if own is None:
            return layer(over_space)(call)
        assert val.place is not None
        shifted = [d - (d > own) for d in sorted(named)]
        keep = bool(call.arg(2, "keepdim", False))
        place = Place(own if keep else own - sum(d < own for d in named))
        changed = replace(call, args=(call.args[0], shifted, *call.args[2:]))
        return _every_step(changed, over_space, val, place, constants=False)

    return lifted


def _operands(call: Call) -> list[tuple[torch.Tensor, Val]]:
    found = [(arg, call.val_of(arg)) for arg in call.args if isinstance(arg, torch.Tensor)]
    return [(arg, val) for arg, val in found if val is not None]


def _every_step(call: Call, handler: Handler, lead: Val, place: Place, *, constants: bool) -> Result:
    """`handler` on each timestep; `place`: where the result holds time."""
    timesteps = len(lead.nodes)
    results: list[Result] = []
    known: tuple[Op, ...] = ()
    for t in range(timesteps):
        vals: dict[int, Val] = {}
        nodes: list[Op] = []
        args: list[Any] = []
        varies = False
        for arg in call.args:
            val = call.val_of(arg) if isinstance(arg, torch.Tensor) else None
            if val is None:
                part = _constant_step(arg, call, place, timesteps, t) if constants else arg
                varies = varies or part is not arg
            else:
                assert isinstance(arg, torch.Tensor)
                at = val.place
                index = t if len(val.nodes) > 1 else 0
                part = arg if at is None else at.step(arg, index, len(val.nodes))
                nodes.append(val.nodes[index])
                vals[id(part)] = Val((val.nodes[index],))
            args.append(part)
        if results and not varies and all(a is b for a, b in zip(nodes, known, strict=True)):
            results.append(results[-1])  # what is the same at every timestep is computed once
            continue
        known = tuple(nodes)
        out = tree_map(lambda x, t=t: _result_step(x, place, timesteps, t, call.recorder.batch), call.out)
        results.append(handler(Call(call.recorder, call.name, tuple(args), call.kwargs, out, vals)))
    if isinstance(results[0], list):
        columns = zip(*(result for result in results if isinstance(result, list)), strict=True)
        return [_joined(list(column), place) for column in columns]
    return _joined([result for result in results if not isinstance(result, list)], place)


def _joined(vals: list[Val | None], place: Place) -> Val | None:
    return Val(tuple(val.node for val in vals if val is not None), place.d, place.fold)


def _constant_step(arg: Any, call: Call, place: Place, timesteps: int, t: int) -> Any:
    """What of a constant meets timestep `t`."""
    if not isinstance(arg, torch.Tensor):
        return arg
    dim = arg.ndim - (call.out.ndim - place.d)
    if dim < 0 or (place.fold and arg.shape[0] == 1):
        return arg
    if place.fold:
        return place.step(arg, t, timesteps)
    return arg.select(dim, t if arg.shape[dim] > 1 else 0)


def _result_step(out: Any, place: Place, timesteps: int, t: int, batch: int) -> Any:
    if not isinstance(out, torch.Tensor) or out.ndim <= place.d:
        return out
    size = timesteps * (batch if place.fold else 1)
    return place.step(out, t, timesteps) if out.shape[place.d] == size else out
