"""capture_module: from a user's nn.Module to the training graph of one time step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.capture.lower import lower
from dalif_deploy.capture.neurons import read_parameters, reader_of
from dalif_deploy.capture.record import Recorder, intercepted
from dalif_deploy.capture.rollback import Layout, Numbering, Rolled, roll
from dalif_deploy.capture.runner import Form, Runner, drive, wrong_shape
from dalif_deploy.capture.state import NeuronStates, as_found
from dalif_deploy.capture.values import Site, Val
from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import ReadoutMode
from dalif_deploy.recording import Recording


@dataclass(frozen=True, eq=False)
class CapturedModule:
    """A captured module.

    `graph`: its training graph. `layout`: "step" (forward is one timestep) or "loop" (forward is all of them).
    `notes`: what was inferred rather than given, one line each.
    """

    graph: SpikingGraph
    layout: Layout
    notes: tuple[str, ...]
    _runner: Runner = field(repr=False)

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """The user's own module in its own dtype: spikes by layer, logits [B, K]; the module is left as found.

        `batch` is what the graph's `input_spec` takes. Raises `DalifError` (WRONG_SHAPE, BAD_DATA, NOT_FINITE;
        CAPTURE_MISMATCH where a neuron returns anything but 0 and 1).
        """
        return self._runner.run(self.graph.input_spec.module_input(batch))

    def run_float64(self, batch: NDArray[np.generic]) -> Recording:
        """`run`, evaluated in float64 with the module's own gains, as `currents` does."""
        return self._runner.run(self.graph.input_spec.module_input(batch), float64=True)

    def currents(self, batch: NDArray[np.generic]) -> dict[str, NDArray[np.float64]]:
        """What every neuron layer receives, by name, float64 [B, T, *shape].

        The module's own code, evaluated in float64; gains and weights are the values it holds, so a float32
        tanh stays what it is. Raises as `run`, and CAPTURE_REFUSED where the module writes float64 in place
        into float32.
        """
        return self._runner.currents(self.graph.input_spec.module_input(batch))

    def membranes(self, batch: NDArray[np.generic]) -> dict[str, NDArray[np.float64]]:
        """Every neuron's potential H[t] after the reset, float64 [B, T, *shape], evaluated as `currents`.

        Of the layers whose reader names the attribute that holds it (`NeuronParameters.membrane`; DALIF's does).
        Raises as `currents`, and UNKNOWN_NEURON where that attribute holds no potential.
        """
        return self._runner.membranes(self.graph.input_spec.module_input(batch))


def capture_module(
    module: torch.nn.Module,
    *,
    example_input: torch.Tensor | NDArray[np.generic],
    timesteps: int,
    layout: str | None = None,
    readout: str | None = None,
    temporal: bool | None = None,
    encoding: Encoding | None = None,
    class_names: Sequence[str] = (),
) -> CapturedModule:
    """The training graph of one time step of `module`.

    `example_input`: what the module takes, [B, ...] static or [B, T, ...] temporal, floating point; a single
    example is repeated. `layout`: "step" where forward is one timestep, "loop" where it is all of them.
    `readout`: how the timesteps' results are reduced, "mean", "sum", "last" or "max"; a one-step module's
    default is "mean", a loop shows it. `temporal`: whether the input has a time axis. What is None is inferred
    and noted, or refused with the argument to give.

    The module runs in eval mode under no_grad and is left as it was found, also after an error. Raises
    `DalifError`: BAD_OPTION, WRONG_SHAPE, NOT_FINITE, AMBIGUOUS, UNKNOWN_NEURON, UNSUPPORTED_LAYER,
    CAPTURE_REFUSED.
    """
    _check_arguments(module, timesteps, layout, readout, temporal)
    notes: list[str] = []
    module = _unwrapped(module, notes)
    _check_module(module)
    device, dtype = _place(module)
    example = _example(example_input, device, dtype)
    with as_found(module):
        neurons = _neurons(module)
        parameters = {name: read_parameters(name, child, dtype) for name, child in neurons.items()}

        def graph_of(form: Form, recorded: _Recorded) -> SpikingGraph:
            return lower(
                recorded.rolled,
                parameters,
                input_shape=tuple(example.shape[2 if form.temporal else 1 :]),
                temporal=form.temporal,
                readout=_mode(form, recorded.rolled.readout, readout, timesteps),
                timesteps=timesteps,
                encoding=encoding or Encoding(),
                class_names=tuple(class_names),
            )

        form, recorded, graph = _Attempts(module, neurons, timesteps).first(example, layout, temporal, graph_of)
    answer = graph.types[graph.output].shape
    if len(answer) != 1:
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"forward's result has shape [batch, {', '.join(map(str, answer))}]; one row of logits per sample is "
            "needed: flatten or pool it",
        )
    if readout is None:
        why = "the default of a one-step module" if recorded.rolled.readout is None else "seen in forward"
        notes.append(f"readout={graph.readout.mode!r} ({why})")
    _note_form(form, layout, temporal, timesteps, notes)
    unused = sorted(set(neurons) - {neuron.name for neuron in graph.neurons})
    if unused:
        notes.append(f"neuron layers that the result does not depend on are left out: {', '.join(unused)}")
    layers = [neuron.name for neuron in graph.neurons]
    runner = Runner(
        module=module,
        neurons={name: neurons[name] for name in layers},
        potentials={name: where for name in layers if (where := parameters[name].membrane) is not None},
        form=form,
        timesteps=timesteps,
        readout=graph.readout.mode,
        per_step=recorded.rolled.readout is None,
        time_axis=recorded.time_axis,
        device=device,
        dtype=dtype,
    )
    return CapturedModule(graph, form.layout, tuple(notes), runner)


@dataclass(frozen=True, eq=False)
class _Recorded:
    rolled: Rolled
    time_axis: int | None


class _Attempts:
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
        graph_of: Callable[[Form, _Recorded], SpikingGraph],
    ) -> tuple[Form, _Recorded, SpikingGraph]:
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

    def _record_twice(self, example: torch.Tensor, form: Form) -> _Recorded:
        """One time step. Two recordings, on other data and another batch size, must agree on it."""
        numbering = Numbering()
        self._progress = -1
        first = self._record(_batch_of(example, 2), form, numbering)
        second = self._record(_other_data(example, 3), form, numbering)
        if first.rolled.signature != second.rolled.signature:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{_site(self._module)}: does something else on other data, or a value computed from the input became "
                "a constant on its way through Python or NumPy; forward must do the same on every input",
            )
        return first

    def _record(self, x: torch.Tensor, form: Form, numbering: Numbering) -> _Recorded:
        recorder = Recorder(self._module, self._neurons)
        steps = range(self._timesteps)
        site = _site(self._module)
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
                "neuron class: register_neuron(cls, reader) from dalif_deploy.capture.neurons",
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
            return _Recorded(roll(heard, output, self._timesteps, numbering), output.d)
        if any(output.d is not None for output in outputs):
            raise DalifError(Code.CAPTURE_REFUSED, f"{site}: forward's result has an axis before the batch")
        return _Recorded(roll(heard, [output.node for output in outputs], self._timesteps, numbering), None)


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


def _site(module: torch.nn.Module) -> Site:
    return Site("", type(module).__name__, False)


def _mode(form: Form, found: ReadoutMode | None, given: str | None, timesteps: int) -> ReadoutMode:
    chosen: ReadoutMode | None = next((mode for mode in get_args(ReadoutMode) if mode == given), None)
    if found is not None and chosen is not None and chosen != found and timesteps > 1:
        raise DalifError(
            Code.BAD_OPTION, f"readout={given!r}: forward itself takes the {found} over the timesteps; leave it out"
        )
    if chosen is None and found is None and form.layout == "loop":
        raise DalifError(
            Code.AMBIGUOUS,
            "forward returns the results of all timesteps; give readout='mean', 'sum', 'last' or 'max'",
        )
    return chosen or found or "mean"


def _note_form(form: Form, layout: str | None, temporal: bool | None, timesteps: int, notes: list[str]) -> None:
    if timesteps == 1:
        notes.append("timesteps=1: a step and a loop are the same")
    elif layout is None:
        why = "once per forward" if form.layout == "step" else f"{timesteps} times per forward"
        notes.append(f"layout={form.layout!r} (every neuron is called {why})")
    if temporal is None:
        why = f"[batch, {timesteps}, ...]" if form.temporal else "[batch, ...], the same at every timestep"
        notes.append(f"temporal={form.temporal} (the input is {why})")


def _check_arguments(
    module: object, timesteps: object, layout: str | None, readout: str | None, temporal: object
) -> None:
    if not isinstance(module, torch.nn.Module):
        raise DalifError(Code.BAD_OPTION, f"a torch.nn.Module is needed, not a {type(module).__name__}")
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise DalifError(Code.BAD_OPTION, f"timesteps={timesteps!r}: give a whole number of at least 1")
    if layout in ("TB", "BT"):
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"layout={layout!r}: modules that fold time into the batch are not captured yet; give a module whose "
            "forward is one step (layout='step') or loops over the timesteps (layout='loop')",
        )
    if layout not in (None, "step", "loop"):
        raise DalifError(Code.BAD_OPTION, f"layout={layout!r}: give 'step' or 'loop', or None to infer it")
    if readout not in (None, *get_args(ReadoutMode)):
        raise DalifError(Code.BAD_OPTION, f"readout={readout!r}: give 'mean', 'sum', 'last' or 'max'")
    if temporal not in (None, True, False):
        raise DalifError(Code.BAD_OPTION, f"temporal={temporal!r}: give True, False or None")


def _unwrapped(module: torch.nn.Module, notes: list[str]) -> torch.nn.Module:
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(module, wrappers):
            inner = module.module
        elif isinstance(getattr(module, "_orig_mod", None), torch.nn.Module):  # torch.compile
            inner = module._orig_mod
        else:
            return module
        notes.append(f"unwrapped {type(module).__name__}")
        assert isinstance(inner, torch.nn.Module)
        module = inner


def _check_module(module: torch.nn.Module) -> None:
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise DalifError(Code.CAPTURE_REFUSED, "autocast is on; run the capture without it")
    if torch.is_inference_mode_enabled():
        raise DalifError(Code.CAPTURE_REFUSED, "inference_mode is on; run the capture without it")
    for name, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule | torch.jit.ScriptFunction):
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"'{name}' ({type(child).__name__}): TorchScript hides its operations; give the original module",
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise DalifError(
                Code.CAPTURE_REFUSED, f"'{name}' is {tensor.dtype}; convert the module to float32 (.float()) first"
            )
        if tensor.is_meta:
            raise DalifError(Code.CAPTURE_REFUSED, f"'{name}' is on the meta device and has no values; load them first")
    for name, tensor in module.named_parameters():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DalifError(Code.NOT_FINITE, f"parameter '{name}' has NaN or infinite values")


def _place(module: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    held = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return (held[0].device, held[0].dtype) if held else (torch.device("cpu"), torch.float32)


def _example(example: torch.Tensor | NDArray[np.generic], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    try:
        x = torch.as_tensor(example).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DalifError(Code.BAD_DATA, f"example_input: {error}") from error
    if x.is_complex() or x.ndim < 2 or not x.numel():
        raise DalifError(
            Code.WRONG_SHAPE,
            f"example_input of shape {list(x.shape)}: give numbers of shape [batch, ...] or [batch, timesteps, ...], "
            "with at least one sample",
        )
    x = x.to(device=device, dtype=dtype)
    if not bool(torch.isfinite(x).all()):
        raise DalifError(Code.NOT_FINITE, "example_input has NaN or infinite values")
    return x


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


def _neurons(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The neuron layers by name; what stands inside a neuron belongs to it."""
    found: dict[str, torch.nn.Module] = {}
    for name, child in module.named_modules():
        if reader_of(child) is None or any(name.startswith(f"{outer}.") for outer in found):
            continue
        found[name or "neuron"] = child
        if "/" in name:
            raise DalifError(Code.CAPTURE_REFUSED, f"'{name}': a neuron layer's name must not hold '/'; rename it")
    return found
