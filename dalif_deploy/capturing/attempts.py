"""Which of the forms a module can have is the right one: it is recorded in one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dalif_deploy.capturing.aten import interpret
from dalif_deploy.capturing.record import Recorder, intercepted
from dalif_deploy.capturing.rollback import Numbering, Rolled, roll
from dalif_deploy.capturing.runner import Form, drive, wrong_shape
from dalif_deploy.capturing.state import NeuronStates, as_found
from dalif_deploy.capturing.values import Site, Val
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph


@dataclass(frozen=True, eq=False)
class Recorded:
    """One time step, and where a loop's result has its time axis, if it has one."""

    rolled: Rolled
    time_axis: int | None


class Attempts:
    """Records a module in one form after the other, until one fits."""

    def __init__(self, module: torch.nn.Module, neurons: Mapping[str, torch.nn.Module], timesteps: int) -> None:
        self._module, self._neurons, self._timesteps = module, neurons, timesteps
        self._states = NeuronStates(neurons)
        self._progress = -1

    def first(
        self,
        example: torch.Tensor,
        layout: str | None,
        temporal: bool | None,
        graph_of: Callable[[Form, Recorded], SpikingGraph],
    ) -> tuple[Form, Recorded, SpikingGraph]:
        """The first form in which the module can be captured, among those that the arguments and a trial allow.

        Where none fits, the error of the attempt that got furthest is the one worth reading.
        """
        furthest: tuple[int, DalifError] | None = None
        for form in self._candidates(example, layout, temporal):
            try:
                recorded = self._record_twice(example, form)
                return form, recorded, graph_of(form, recorded)
            except DalifError as error:
                if furthest is None or self._progress > furthest[0]:
                    furthest = (self._progress, error)
        assert furthest is not None
        raise furthest[1]

    def _candidates(self, example: torch.Tensor, layout: str | None, temporal: bool | None) -> list[Form]:
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
        whole: Mapping[str, int] | None = None
        try:
            whole = self._trial(example)
        except DalifError as error:
            failure = error
        if whole is not None:
            forms += self._of_counts(whole, layout, has_time)
            if has_time and layout is None:  # last, for what it then says of time axes that neurons receive
                forms.append(Form("loop", True))
        if has_time and layout != "loop" and temporal is not False:
            try:
                if set(self._trial(example[:, 0]).values()) <= {0, 1}:
                    forms.append(Form("step", True))
            except DalifError as error:
                failure = failure or error
        forms = [form for form in dict.fromkeys(forms) if temporal in (None, form.temporal)]
        if not forms and failure is not None:
            raise failure
        if not forms:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"the module fits neither reading of layout={layout!r}, temporal={temporal!r} with an example of shape "
                f"{list(example.shape)} and timesteps={timesteps}; leave them out, or give an example of shape "
                f"[batch, {timesteps}, ...]",
            )
        return forms

    def _of_counts(self, counts: Mapping[str, int], layout: str | None, has_time: bool) -> list[Form]:
        """The forms that a forward on the whole example allows, from how often it calls each neuron."""
        timesteps = self._timesteps
        called = {name: n for name, n in counts.items() if n}
        loop = [Form("loop", True), Form("loop", False)] if has_time else [Form("loop", False)]
        if not called:  # the recording finds the class that fires without being known
            return loop if layout == "loop" else [Form("step", False)]
        if timesteps == 1 and set(called.values()) == {1}:
            return [Form("step", False), *loop] if layout != "loop" else loop
        if set(called.values()) == {1} and layout != "loop":
            return [Form("step", False)]
        if set(called.values()) == {timesteps} and layout != "step":
            return loop
        expected = {"step": {1}, "loop": {timesteps}}.get(layout or "", {1, timesteps})
        odd = {name: n for name, n in called.items() if n not in expected} or called
        name, n = max(odd.items(), key=lambda item: item[1])
        where = f"'{name}' ({type(self._neurons[name]).__name__})"
        others = expected & set(called.values())
        if any(n > usual and n % usual == 0 for usual in others):
            why = "one neuron module that is used at several places shares its state between them; give each its own"
        else:
            why = "a neuron is called once per forward (layout='step') or once per timestep (layout='loop')"
        listed = ", ".join(f"'{key}' {value}" for key, value in list(called.items())[:4])
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"{where}: called {n} times in one forward for timesteps={timesteps} (calls: {listed}); {why}",
        )

    def _trial(self, x: torch.Tensor) -> Mapping[str, int]:
        """How often one forward on `x` calls each neuron."""
        counts = dict.fromkeys(self._neurons, 0)

        def called(name: str, forward: Any, args: Any, kwargs: Any) -> Any:
            counts[name] += 1
            return forward(*args, **kwargs)

        with as_found(self._module):
            self._states.reset()
            try:
                with intercepted(self._neurons, called):
                    self._module(x.clone())
            except DalifError:
                raise
            except Exception as error:
                raise wrong_shape(x, error, self._states) from error
        return counts

    def _record_twice(self, example: torch.Tensor, form: Form) -> Recorded:
        """One time step. Two recordings, on other data and another batch size, must agree on it."""
        numbering = Numbering()
        self._progress = -1
        first = self._record(_batch_of(example, 2), form, numbering)
        second = self._record(_other_data(example, 3), form, numbering)
        if first.rolled.signature != second.rolled.signature:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{root_site(self._module)}: does something else on other data, or a value computed from the input "
                "became a constant on its way through Python or NumPy; forward must do the same on every input",
            )
        return first

    def _record(self, x: torch.Tensor, form: Form, numbering: Numbering) -> Recorded:
        recorder = Recorder(self._module, self._neurons, interpret)
        steps = range(self._timesteps)
        site = root_site(self._module)
        shape = tuple(x.shape[2 if form.temporal else 1 :])
        sources = [recorder.table.op("input", shape, site, attrs=(t,)) for t in (steps if form.temporal else (None,))]
        with as_found(self._module):
            self._states.reset()
            x = x.clone()
            recorder.track(x, Val(tuple(sources), 1) if form.temporal else Val(tuple(sources)))
            try:
                with recorder.watching():
                    results = drive(self._module, x, form, self._timesteps)
            except DalifError:
                raise
            except Exception as error:
                raise wrong_shape(x, error, self._states) from error
            finally:
                self._progress = len(recorder.table)
        outputs = [_output(recorder, result) for result in results]
        heard = {name: nodes for name, nodes in recorder.heard.items() if nodes}
        if not heard:
            raise DalifError(
                Code.UNKNOWN_NEURON,
                f"{site}: forward calls no neuron of a known class; build it with dalif_deploy.DALIF, or register its "
                "neuron class: register_neuron(cls, reader) from dalif_deploy",
            )
        for name, nodes in heard.items():
            if len(nodes) != self._timesteps:
                raise DalifError(
                    Code.CAPTURE_REFUSED,
                    f"'{name}' ({type(self._neurons[name]).__name__}): called {len(nodes)} times for "
                    f"timesteps={self._timesteps}; a neuron is called once per timestep, and one that is used at "
                    "several places shares its state between them: give each its own",
                )
        if form.layout == "loop":
            (output,) = outputs
            return Recorded(roll(heard, output, self._timesteps, numbering), output.d)
        if any(output.d is not None for output in outputs):
            raise DalifError(Code.CAPTURE_REFUSED, f"{site}: forward's result has an axis before the batch")
        return Recorded(roll(heard, [output.node for output in outputs], self._timesteps, numbering), None)


def _output(recorder: Recorder, result: Any) -> Val:
    site = recorder.site()
    if not isinstance(result, torch.Tensor):
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"{site}: forward returns a {type(result).__name__}; return the logits only, one tensor",
        )
    val = recorder.val(result)
    if val is None:
        raise DalifError(Code.CAPTURE_REFUSED, f"{site}: forward's result does not depend on the input")
    return val


def root_site(module: torch.nn.Module) -> Site:
    """The place of what concerns the whole module."""
    return Site("", type(module).__name__, False)


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
