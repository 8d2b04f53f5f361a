"""From T unrolled repeats back to one time step, by value numbering.

`H(node, t)` names a neuron or an input of step t by its name, and everything else by what it computes of
such names. Two steps do the same where the same names come out; no graph is ever searched for isomorphism.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dalif_deploy.capturing.values import Op, Val
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import ReadoutMode

Names = dict[tuple[Any, ...], int]
Form = dict[int, float]


@dataclass(frozen=True, eq=False)
class Rolled:
    """One time step. `currents`: each neuron's input node; `step`: what the readout reads; all of the last step.

    `readout`: how time is reduced, None where the module leaves it open. `output`: the node of the network's
    answer; `reduced`: the node that the readout stands for (`output` itself where nothing follows it).
    `signature`: equal for two recordings of the same network.
    """

    currents: Mapping[str, Op]
    step: Op
    readout: ReadoutMode | None
    reduced: Op
    output: Op
    signature: tuple[Any, ...]


class Numbering:
    """Interned names, shared by the recordings that are to be compared."""

    def __init__(self) -> None:
        self._names: Names = {}

    def at(self, t: int) -> StepNumbering:
        """Names as seen from step `t`."""
        return StepNumbering(self._names, t)


class StepNumbering:
    """H(., t)."""

    def __init__(self, names: Names, t: int) -> None:
        self._names, self._t = names, t
        self._memo: dict[int, int] = {}

    def __call__(self, node: Op) -> int:
        stack = [node]
        while stack:
            top = stack[-1]
            if id(top) in self._memo:
                stack.pop()
                continue
            key: tuple[Any, ...]
            if top.kind in ("neuron", "state"):
                key = (top.kind, *top.attrs[:-1], self._t - top.attrs[-1])
            elif top.kind == "input":
                key = ("input", None if top.attrs[0] is None else self._t - top.attrs[0])
            else:
                missing = [x for x in top.inputs if id(x) not in self._memo]
                if missing:
                    stack.extend(missing)
                    continue
                inputs = tuple(self._memo[id(x)] for x in top.inputs)
                key = (top.kind, inputs, tuple(c and c.key for c in top.consts), top.attrs)
            self._memo[id(top)] = self._names.setdefault(key, len(self._names))
            stack.pop()
        return self._memo[id(node)]


class Spans:
    """Which timesteps a node mixes: those of the neurons and inputs it is computed from, no further back."""

    def __init__(self) -> None:
        self._memo: dict[int, frozenset[int]] = {}

    def __call__(self, node: Op) -> frozenset[int]:
        stack = [node]
        while stack:
            top = stack[-1]
            if id(top) in self._memo:
                stack.pop()
            elif top.kind in ("neuron", "state", "input"):
                t = top.attrs[-1]
                self._memo[id(top)] = frozenset() if t is None else frozenset({t})
            else:
                missing = [x for x in top.inputs if id(x) not in self._memo]
                stack.extend(missing)
                if not missing:
                    self._memo[id(top)] = frozenset().union(*(self._memo[id(x)] for x in top.inputs))
        return self._memo[id(node)]


def roll(heard: Mapping[str, Sequence[Op]], output: Val | Sequence[Op], timesteps: int, numbering: Numbering) -> Rolled:
    """One step of what was recorded.

    `heard`: every neuron's nodes, one a step. `output`: the outputs of the steps where the tool drove them,
    else what the module's own loop returned. Raises `DalifError` (CAPTURE_REFUSED).
    """
    number = [numbering.at(t) for t in range(timesteps)]
    spans = Spans()
    for name, nodes in heard.items():
        for t, node in enumerate(nodes):
            _no_delay(name, node.inputs[0], t, spans)
            if number[t](node.inputs[0]) != number[0](nodes[0].inputs[0]):
                raise _differ(f"the input of '{name}'", nodes[0].inputs[0], 0, node.inputs[0], t, number)
    last = timesteps - 1
    currents = {name: nodes[last].inputs[0] for name, nodes in heard.items()}
    readout: ReadoutMode | None = None
    if isinstance(output, Val) and output.d is None:
        step, readout, reduced = _find_readout(output.node, timesteps, number, spans)
        final = output.node
    else:
        steps = output.nodes if isinstance(output, Val) else tuple(output)
        if len(steps) != timesteps:
            raise DalifError(
                Code.CAPTURE_REFUSED, f"forward returns {len(steps)} timesteps; timesteps={timesteps} was given"
            )
        for t, node in enumerate(steps):
            _no_delay("forward's result", node, t, spans)
            if number[t](node) != number[0](steps[0]):
                raise _differ("forward's result", steps[0], 0, node, t, number)
        step = reduced = final = steps[last]
    signature = (
        tuple((name, number[last](node)) for name, node in currents.items()),
        number[last](step),
        readout,
        number[last](final),
    )
    return Rolled(currents, step, readout, reduced, final, signature)


def _no_delay(name: str, node: Op, t: int, spans: Spans) -> None:
    others = spans(node) - {t}
    if others:
        s = min(others)
        source = _source_at(node, s)
        what = "the input" if source.kind == "input" else f"'{source.attrs[0]}'"
        reader = node
        while reader is not source and not any(source is x for x in reader.inputs):
            reader = next(x for x in reader.inputs if s in spans(x))
        line = f" [{reader.site.line}]" if reader.site.line else ""
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"{what} of step {s} is used in step {t}, in the input of '{name}': recurrent or delayed connections "
            f"are not captured; every layer must read the present timestep only{line}",
        )


def _source_at(node: Op, t: int) -> Op:
    stack, seen = [node], set()
    while stack:
        top = stack.pop()
        if top.kind in ("neuron", "state", "input"):
            if top.attrs[-1] == t:
                return top
        elif id(top) not in seen:
            seen.add(id(top))
            stack.extend(top.inputs)
    raise AssertionError("no source at that timestep")


def _find_readout(
    output: Op, timesteps: int, number: Sequence[StepNumbering], spans: Spans
) -> tuple[Op, ReadoutMode, Op]:
    """(the per-step node, the mode, the node that is the readout) of what a loop returned."""
    found: dict[int, tuple[Op, ReadoutMode, Op]] = {}
    stack, seen = [output], set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        reduction = _reduction(node, timesteps, number, spans)
        if reduction is not None:
            found[id(node)] = (*reduction, node)
        elif len(spans(node)) > 1:
            stack.extend(node.inputs)
        elif spans(node) or not node.inputs:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{output.site}: forward's result is neither the mean, the sum, the maximum nor the last of all "
                f"{timesteps} steps' values (at {node.kind} in {node.site}); reduce the timesteps in one of these ways"
                + (f" [{output.site.line}]" if output.site.line else ""),
            )
        else:
            stack.extend(node.inputs)
    if len(found) != 1:
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"{output.site}: forward reduces the timesteps in {len(found)} places; one is supported"
            + (f" [{output.site.line}]" if output.site.line else ""),
        )
    return next(iter(found.values()))


def _reduction(
    node: Op, timesteps: int, number: Sequence[StepNumbering], spans: Spans
) -> tuple[Op, ReadoutMode] | None:
    last = timesteps - 1
    if spans(node) == {last}:
        return (node, "last") if timesteps > 1 else (node, "mean")
    if len(spans(node)) != timesteps:
        return None
    if node.kind == "max_of":
        leaves = _maximum(node, spans)
        return (leaves[last], "max") if _one_a_step(leaves, timesteps, number, spans) else None
    # A running mean scales what it has so far, so the factors on single timesteps are taken apart too.
    return _sum_of_steps(node, timesteps, number, spans) or _sum_of_steps(node, timesteps, number, spans, apart=True)


def _sum_of_steps(
    node: Op, timesteps: int, number: Sequence[StepNumbering], spans: Spans, *, apart: bool = False
) -> tuple[Op, ReadoutMode] | None:
    form: dict[int, tuple[Op, float]] = {}
    if not _linear_form(node, form, spans, apart=apart):
        return None
    last = timesteps - 1
    leaves = sorted((leaf for leaf, _ in form.values()), key=lambda leaf: min(spans(leaf)))
    factors = [factor for _, factor in form.values()]
    # A running mean's factors are equal but for the rounding of their own computation.
    if not _one_a_step(leaves, timesteps, number, spans) or max(factors) - min(factors) > 1e-14 * abs(factors[0]):
        return None
    factor = 1.0 / timesteps if abs(factors[0] * timesteps - 1.0) < 1e-14 else factors[0]
    leaf = leaves[last]
    if factor == 1.0:
        # o / T added up: the division belongs to the readout.
        inner, c = _scaled(leaf)
        if c == 1.0 / timesteps:
            return inner, "mean"
        return leaf, "sum"
    return (leaf, "mean") if factor == 1.0 / timesteps else None


def _one_a_step(leaves: Sequence[Op], timesteps: int, number: Sequence[StepNumbering], spans: Spans) -> bool:
    if [spans(leaf) for leaf in leaves] != [{t} for t in range(timesteps)]:
        return False
    return len({number[t](leaf) for t, leaf in enumerate(leaves)}) == 1


def _maximum(node: Op, spans: Spans) -> list[Op]:
    leaves: dict[int, Op] = {}
    stack = [node]
    while stack:
        top = stack.pop()
        if top.kind == "max_of" and len(spans(top)) > 1:
            stack.extend(top.inputs)
        else:
            leaves[id(top)] = top
    return sorted(leaves.values(), key=lambda leaf: min(spans(leaf), default=-1))


def _linear_form(node: Op, form: dict[int, tuple[Op, float]], spans: Spans, *, apart: bool) -> bool:
    """Write `node` as a sum of factors times nodes of one timestep each; False where it is no such sum.

    `apart`: a factor on one timestep counts as a factor, not as part of the node.
    """
    stack = [(node, 1.0)]
    while stack:
        top, c = stack.pop()
        if len(spans(top)) == 1:
            inner, scale = _scaled(top)
            if apart and inner is not top:
                stack.append((inner, c * scale))
                continue
            leaf, before = form.get(id(top), (top, 0.0))
            form[id(top)] = (leaf, before + c)
        elif top.kind in ("add", "sum_of"):
            stack.extend((x, c) for x in top.inputs)
        elif top.kind == "mean_of":
            stack.extend((x, c / len(top.inputs)) for x in top.inputs)
        else:
            inner, scale = _scaled(top)
            if inner is top:
                return False
            stack.append((inner, c * scale))
    return True


def _scaled(node: Op) -> tuple[Op, float]:
    """(x, c) where the node is c * x for one number c, else (node, 1)."""
    if node.kind == "affine":
        factor, offset = (const.array() for const in node.consts if const is not None)
        if factor.shape == () and offset.shape == () and offset == 0.0:
            return node.inputs[0], float(factor)
    return node, 1.0


def _differ(what: str, a: Op, s: int, b: Op, t: int, number: Sequence[StepNumbering]) -> DalifError:
    """Where two steps part, by the first thing on which they do not agree."""
    where = f"{what}: step {t} computes something other than step {s}"
    while True:
        if a.kind != b.kind:
            detail = f"{a.kind} in {a.site} against {b.kind} in {b.site}"
        elif a.kind in ("neuron", "state", "input"):
            detail = f"{a.kind} {a.attrs[0]!r} against {b.attrs[0]!r}"
        elif len(a.inputs) != len(b.inputs) or a.attrs != b.attrs:
            detail = f"{a.kind} with other attributes in {a.site} and {b.site}"
        elif (other := _other_constant(a, b)) is not None:
            detail = f"{a.kind} in {a.site} with {other}"
        else:
            pairs = zip(a.inputs, b.inputs, strict=True)
            a, b = next((x, y) for x, y in pairs if number[s](x) != number[t](y))
            continue
        line = f" [{b.site.line}]" if b.site.line else ""
        return DalifError(Code.CAPTURE_REFUSED, f"{where} ({detail}); every timestep must do the same{line}")


def _other_constant(a: Op, b: Op) -> str | None:
    for x, y in zip(a.consts, b.consts, strict=True):
        if (x and x.key) != (y and y.key):
            names = [const.name or _shown(const.array()) for const in (x, y) if const is not None]
            return "other constants: " + " against ".join(names)
    return None


def _shown(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    return f"{float(values):g}" if values.shape == () else f"an unnamed tensor {list(values.shape)}"


Layout = Literal["step", "loop", "TB", "BT"]
LAYOUTS: Mapping[str, str] = {
    "step": "forward is one timestep",
    "loop": "forward runs all timesteps and calls every neuron once a timestep",
    "TB": "layers take all timesteps in one tensor, [T, batch, ...] or [T * batch, ...]",
    "BT": "layers take all timesteps in one tensor, [batch, T, ...] or [batch * T, ...]",
}
