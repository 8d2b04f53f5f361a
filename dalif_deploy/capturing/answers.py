"""Which of the things that forward returns is the network's answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dalif_deploy.capturing.values import Op, Site, Val
from dalif_deploy.errors import Code, DalifError

_NAMES = ("logits", "output", "outputs", "out", "pred", "prediction", "predictions")


@dataclass(frozen=True)
class Answer:
    """How to find the answer in forward's result.

    `key`: the index or key that leads to it, None where it is the result itself; `listed`: whether it is a list
    with one tensor for every timestep.
    """

    key: Any = None
    listed: bool = False

    def of(self, result: Any) -> Any:
        """The tensor, or the list of them."""
        return result if self.key is None else result[self.key]

    def __str__(self) -> str:
        return f"element {self.key!r}"


@dataclass(frozen=True)
class _Candidate:
    answer: Answer
    val: Val


def find_answer(result: Any, *, val_of: Callable[[object], Val | None], site: Site, steps: int) -> tuple[Answer, Val]:
    """The answer in what one call of forward returned, and what it is.

    It is the tensor with one row of values per sample that the others lead to: of (logits, spikes) the logits.
    Potentials, which no graph gives, are none. `steps`: how many timesteps forward runs, 0 where it is
    one of several; a list of so many tensors is one answer. Raises `DalifError` (CAPTURE_REFUSED, AMBIGUOUS).
    """
    line = f" [{site.line}]" if site.line else ""
    named = _named(result, steps)
    whole = _joined(result, val_of) if _is_steps(result, steps) else None
    found = [_Candidate(Answer(listed=True), whole)] if whole is not None else []
    for answer, part in named if not found else ():
        val = _joined(part, val_of) if answer.listed else val_of(part)
        if val is not None:
            found.append(_Candidate(answer, val))
    if not found:
        tensors = any(isinstance(part, torch.Tensor) for _, part in named)
        what = (
            "result does not depend on the input" if tensors else f"result, a {type(result).__name__}, holds no tensor"
        )
        raise DalifError(Code.CAPTURE_REFUSED, f"{site}: forward's {what}; return the logits{line}")
    spikes = [c for c in found if not any(_reads_state(node) for node in c.val.nodes)]
    if not spikes:
        node = next(state for node in found[0].val.nodes if (state := _reads_state(node)) is not None)
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"{site}: forward's result is computed from the potential of '{node.attrs[0]}', and only spikes leave a "
            f"neuron layer; return what is computed from its spikes{line}",
        )
    rows = [c for c in spikes if len(c.val.nodes[0].shape) == 1] or spikes
    last = [c for c in rows if not any(c is not other and _leads_to(c, other) for other in rows)] or rows
    preferred = [c for c in last if c.answer.key in _NAMES] or last
    if len({c.val for c in preferred}) > 1:
        listed = ", ".join(f"{c.answer} [batch, {', '.join(map(str, c.val.nodes[0].shape))}]" for c in preferred)
        raise DalifError(
            Code.AMBIGUOUS,
            f"{site}: forward returns more than one tensor that may be the answer: {listed}; return one of them, or a "
            f"dict that names it 'logits'{line}",
        )
    return preferred[0].answer, preferred[0].val


def _named(result: Any, steps: int) -> list[tuple[Answer, Any]]:
    if isinstance(result, torch.Tensor):
        return [(Answer(), result)]
    parts: Sequence[tuple[Any, Any]] = ()
    if isinstance(result, Mapping):
        parts = list(result.items())
    elif isinstance(result, list | tuple):
        parts = list(enumerate(result))
    tensors = [(Answer(key), part) for key, part in parts if isinstance(part, torch.Tensor)]
    return tensors + [(Answer(key, listed=True), part) for key, part in parts if _is_steps(part, steps)]


def _is_steps(part: Any, steps: int) -> bool:
    """A list with a tensor of the same shape for every timestep. A pair of other things is (logits, spikes)."""
    return (
        isinstance(part, list | tuple)
        and len(part) == steps
        and all(isinstance(x, torch.Tensor) for x in part)
        and len({x.shape for x in part}) == 1
    )


def _joined(part: Sequence[torch.Tensor], val_of: Callable[[object], Val | None]) -> Val | None:
    vals = [val_of(x) for x in part]
    nodes = [val.node for val in vals if val is not None and val.d is None]
    one_each = len(nodes) == len(part) and all(_moments(node) <= {t} for t, node in enumerate(nodes))
    return Val(tuple(nodes), 0) if one_each else None


def _moments(node: Op) -> set[int]:
    """The timesteps of the neurons and inputs that the node is computed from."""
    stack, seen, found = [node], set(), set()
    while stack:
        top = stack.pop()
        if top.kind in ("neuron", "state", "input"):
            found |= set() if top.attrs[-1] is None else {int(top.attrs[-1])}
        elif id(top) not in seen:
            seen.add(id(top))
            stack.extend(top.inputs)
    return found


def _reads_state(node: Op) -> Op | None:
    stack, seen = [node], set()
    while stack:
        top = stack.pop()
        if top.kind == "state":
            return top
        if id(top) not in seen and top.kind != "neuron":
            seen.add(id(top))
            stack.extend(top.inputs)
    return None


def _leads_to(source: _Candidate, other: _Candidate) -> bool:
    """Whether `other` is computed from `source`."""
    wanted = {id(node) for node in source.val.nodes}
    stack, seen = [x for node in other.val.nodes for x in node.inputs], set()
    while stack:
        top = stack.pop()
        if id(top) in wanted:
            return not wanted & {id(node) for node in other.val.nodes}
        if id(top) not in seen:
            seen.add(id(top))
            stack.extend(top.inputs)
    return False
