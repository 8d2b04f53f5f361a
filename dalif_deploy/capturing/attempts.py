"""Which of the forms a module can have is the right one: it is recorded in one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dalif_deploy.capturing.answers import Answer, find_answer
from dalif_deploy.capturing.aten import interpret
from dalif_deploy.capturing.calls import NeuronCall, WrongForm
from dalif_deploy.capturing.record import Recorder, intercepted
from dalif_deploy.capturing.rollback import LAYOUTS, Layout, Numbering, Rolled, roll
from dalif_deploy.capturing.runner import Form, drive, placed, required_states, state_parameters, wrong_shape
from dalif_deploy.capturing.state import NeuronStates, as_found
from dalif_deploy.capturing.values import Op, Place, Site, Val
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph


@dataclass(frozen=True, eq=False)
class Recorded:
    """One time step, and what a run needs to know of the module.

    `order`: how time and batch lie in tensors that layers take whole, None where there are none. `answer`: where
    forward's result holds the answer; `place`: where that has its timesteps, if it has them. `schedule`, `modules`:
    as of `NeuronCalls`.
    """

    rolled: Rolled
    order: Literal["TB", "BT"] | None
    answer: Answer
    place: Place | None
    schedule: Mapping[str, Sequence[NeuronCall]]
    modules: Mapping[str, str]

    def layout(self, form: Form) -> Layout:
        """What the module's way of dealing with time is called."""
        return (self.order or "loop") if form.whole else "step"


class Attempts:
    """Records a module in one form after the other, until one fits."""

    def __init__(
        self,
        module: torch.nn.Module,
        neurons: Mapping[str, torch.nn.Module],
        timesteps: int,
        memoryless: frozenset[str] = frozenset(),
    ) -> None:
        self._module, self._neurons, self._timesteps = module, neurons, timesteps
        self._memoryless = memoryless
        self._states = NeuronStates(neurons)
        self._explicit: set[str] = set()
        self._progress = -1

    def first(
        self,
        example: torch.Tensor,
        layout: str | None,
        temporal: bool | None,
        graph_of: Callable[[Form, Recorded, torch.Tensor], SpikingGraph],
    ) -> tuple[Form, Recorded, SpikingGraph, bool]:
        """The first form in which the module can be captured, among those that the arguments and a trial allow.

        `example`: [B, ...], [B, T, ...], or [T, B, ...] if nothing else fits; the last item says so. Where no form
        fits, the error of the attempt that got furthest is the one worth reading.
        """
        try:
            return (*self._first(example, layout, temporal, graph_of), False)
        except DalifError as error:
            turned = example.ndim >= 3 and example.shape[0] == self._timesteps != example.shape[1]
            if not turned or temporal is False or layout == "BT":
                raise
            try:
                return (*self._first(example.transpose(0, 1), layout, True, graph_of), True)
            except DalifError as other:
                raise (other if temporal or layout == "TB" else error) from None

    def _first(
        self,
        example: torch.Tensor,
        layout: str | None,
        temporal: bool | None,
        graph_of: Callable[[Form, Recorded, torch.Tensor], SpikingGraph],
    ) -> tuple[Form, Recorded, SpikingGraph]:
        furthest: tuple[int, DalifError] | None = None  # a wrong form says least, wherever it shows
        forms, usual = self._candidates(example, layout, temporal)
        for form in forms:
            try:
                recorded = self._record_twice(example, form)
                self._check_layout(layout, form, recorded)
                return form, recorded, graph_of(form, recorded, example)
            except DalifError as error:
                progress = -1 if isinstance(error, WrongForm) else self._progress
                if furthest is None or progress > furthest[0]:
                    furthest = (progress, error)
        assert furthest is not None
        raise usual if isinstance(furthest[1], WrongForm) and usual is not None else furthest[1]

    def _check_layout(self, given: str | None, form: Form, recorded: Recorded) -> None:
        found = recorded.layout(form)
        fits = {found, "TB" if form.time == 0 else "BT" if form.time == 1 else "loop"} if form.whole else {found}
        if given is not None and given not in fits and self._timesteps > 1:
            raise DalifError(
                Code.BAD_OPTION,
                f"layout={given!r}: {root_site(self._module)} is written in layout {found!r}: "
                f"{LAYOUTS[found]}; leave it out",
            )

    def _candidates(
        self, example: torch.Tensor, layout: str | None, temporal: bool | None
    ) -> tuple[list[Form], DalifError | None]:
        """The forms to try, in order, and the error to raise where none fits, if it is known already."""
        timesteps = self._timesteps
        has_time = example.ndim >= 3 and example.shape[1] == timesteps
        if temporal and not has_time:
            raise DalifError(
                Code.WRONG_SHAPE,
                f"example_input of shape {list(example.shape)}: temporal=True and timesteps={timesteps} need "
                f"[batch, {timesteps}, ...]",
            )
        forms: list[Form] = []
        failure: DalifError | None = None
        usual: DalifError | None = None
        try:
            counts = self._trial(example)
        except DalifError as error:
            failure = error
        else:
            found, usual = self._of_counts(counts, layout, has_time)
            forms += found
        if has_time and layout != "step" and failure is None:  # for what it then says of time axes
            forms.append(Form(True, 1))
        if has_time and layout in (None, "step") and temporal is not False:
            try:
                if set(self._trial(example[:, 0]).values()) <= {0, 1} or self._takes_state():
                    forms += self._steps(1)
            except DalifError as error:
                failure = failure or error
        if has_time and layout != "step" and temporal is not False:
            try:
                self._trial(placed(example, Form(True, 0)))
                forms.insert(0 if layout == "TB" else len(forms), Form(True, 0))
            except DalifError as error:
                failure = failure or error
        forms = [form for form in dict.fromkeys(forms) if temporal in (None, form.temporal)]
        if not forms and (failure or usual) is not None:
            raise failure or usual  # type: ignore[misc]
        if not forms:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"the module fits neither reading of layout={layout!r}, temporal={temporal!r} with an example of shape "
                f"{list(example.shape)} and timesteps={timesteps}; leave them out, or give an example of shape "
                f"[batch, {timesteps}, ...]",
            )
        return forms, usual

    def _takes_state(self) -> bool:
        return bool(state_parameters(self._module))

    def _steps(self, time: int | None) -> list[Form]:
        """One timestep per forward; the second with a state that forward returns and takes again."""
        return [Form(False, time), *([Form(False, time, carried=True)] if self._takes_state() else [])]

    def _of_counts(
        self, counts: Mapping[str, int], layout: str | None, has_time: bool
    ) -> tuple[list[Form], DalifError | None]:
        """The forms that a forward on the whole example allows, from how often it calls each neuron; and the error
        where they are odd."""
        timesteps = self._timesteps
        called = {name: n for name, n in counts.items() if n}
        whole = [Form(True, 1), Form(True)] if has_time else [Form(True)]
        step = self._steps(None)
        if layout is not None:
            forms = step if layout == "step" else whole
        elif not called:  # the recording finds the class that fires without being known
            return step[:1], None
        elif set(called.values()) == {1}:
            forms = [*step, *whole]
        elif self._explicit:
            forms = [*whole, *step]
        else:
            forms = whole
        usual = {"step": {1}}.get(layout or "", {timesteps} if layout else {1, timesteps})
        odd = {name: n for name, n in called.items() if n not in usual and name not in self._explicit}
        if not odd:
            return forms, None
        if layout == "step":
            forms = []
        name, n = max(odd.items(), key=lambda item: item[1])
        where = f"'{name}' ({type(self._neurons[name]).__name__})"
        others = usual & set(called.values())
        if any(n > count and n % count == 0 for count in others):
            why = "one neuron module that is used at several places shares its state between them; give each its own"
        else:
            why = (
                "a neuron is called once per forward (layout='step'), once per timestep (layout='loop'), or once with "
                "all timesteps in one tensor (layouts 'TB' and 'BT')"
            )
        listed = ", ".join(f"'{key}' {value}" for key, value in list(called.items())[:4])
        return forms, DalifError(
            Code.CAPTURE_REFUSED,
            f"{where}: called {n} times in one forward for timesteps={timesteps} (calls: {listed}); {why}",
        )

    def _trial(self, x: torch.Tensor) -> Mapping[str, int]:
        """How often one forward on `x` calls each neuron."""
        counts = dict.fromkeys(self._neurons, 0)
        state = [None] * required_states(self._module)

        def called(name: str, forward: Any, args: Any, kwargs: Any) -> Any:
            counts[name] += 1
            out = forward(*args, **kwargs)
            if not isinstance(out, torch.Tensor):  # calls with a state of their own may be several layers
                self._explicit.add(name)
            return out

        with as_found(self._module):
            self._states.reset()
            try:
                with intercepted(self._neurons, called):
                    self._module(x.clone(), *state)
            except DalifError:
                raise
            except Exception as error:
                raise wrong_shape(x, error, self._states) from error
        return counts

    def _record_twice(self, example: torch.Tensor, form: Form) -> Recorded:
        """One time step. Two recordings, on other data and another batch size, must agree on it."""
        numbering = Numbering()
        self._progress = -1
        # A batch of T samples could be taken for time.
        sizes = [size for size in (2, 3, 5) if size != self._timesteps]
        first = self._record(_batch_of(example, sizes[0]), form, numbering)
        second = self._record(_other_data(example, sizes[1]), form, numbering)
        same = (first.answer, first.place, first.schedule) == (second.answer, second.place, second.schedule)
        if not same or first.rolled.signature != second.rolled.signature:
            site = root_site(self._module)
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{site}: does something else on other data, or a value computed from the input became a constant on "
                f"its way through Python or NumPy; forward must do the same on every input [{site.line}]",
            )
        return first

    def _record(self, x: torch.Tensor, form: Form, numbering: Numbering) -> Recorded:
        timesteps = self._timesteps
        recorder = Recorder(
            self._module, self._neurons, interpret, batch=len(x), timesteps=timesteps, whole=form.whole,
            memoryless=self._memoryless,
        )  # fmt: skip
        site = root_site(self._module)
        shape = tuple(x.shape[2 if form.temporal else 1 :])
        moments = range(timesteps) if form.temporal else (None,)
        sources = tuple(recorder.table.op("input", shape, site, attrs=(t,)) for t in moments)
        with as_found(self._module):
            self._states.reset()
            x = placed(x, form).clone()
            recorder.track(x, Val(sources, form.time) if form.temporal else Val(sources))
            try:
                with recorder.watching():
                    results = drive(self._module, x, form, timesteps)
            except DalifError:
                raise
            except Exception as error:
                raise wrong_shape(x, error, self._states) from error
            finally:
                self._progress = recorder.progress
        neurons = recorder.neurons
        if not neurons.heard:
            raise DalifError(
                Code.UNKNOWN_NEURON,
                f"{site}: forward calls no neuron of a known class; build it with dalif_deploy.DALIF, or register its "
                "neuron class: register_neuron(cls, reader) from dalif_deploy",
            )
        neurons.check(timesteps)
        found = [
            find_answer(result, val_of=recorder.val, site=site, steps=timesteps if form.whole else 0)
            for result in results
        ]
        answer, last = found[-1]
        output: Val | list[Op] = last
        if not form.whole:
            if any(other != answer or val.d is not None for other, val in found):
                raise DalifError(
                    Code.CAPTURE_REFUSED, f"{site}: forward's result is not one row per sample [{site.line}]"
                )
            output = [val.node for _, val in found]
        rolled = roll(neurons.heard, output, timesteps, numbering)
        order = recorder.orders[0] if recorder.orders else None
        return Recorded(rolled, order, answer, last.place, neurons.schedule, neurons.modules)


def root_site(module: torch.nn.Module) -> Site:
    """The place of what concerns the whole module: its forward."""
    code = getattr(type(module).forward, "__code__", None)
    line = None if code is None else f"{Path(code.co_filename).name}:{code.co_firstlineno}: def forward"
    return Site("", type(module).__name__, False, line)


def _batch_of(example: torch.Tensor, size: int) -> torch.Tensor:
    copies = -(-size // len(example))
    return example.repeat(copies, *[1] * (example.ndim - 1))[:size]


def _other_data(example: torch.Tensor, size: int) -> torch.Tensor:
    """Other values in the example's range, whole numbers where it holds whole numbers."""
    low, high = float(example.min()), float(example.max())
    if low == high:
        low, high = min(low, 0.0), max(high, 1.0)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand((size, *example.shape[1:]), generator=generator, dtype=torch.float64) * (high - low) + low
    if bool((example == example.round()).all()):
        values = values.round()
    return values.to(device=example.device, dtype=example.dtype)
