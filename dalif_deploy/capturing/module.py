"""capture_module: from a user's nn.Module to the training graph of one time step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.capturing.attempts import Attempts, Recorded, root_site
from dalif_deploy.capturing.checks import check_arguments, check_module, example_tensor, place, unwrapped
from dalif_deploy.capturing.lower import lower
from dalif_deploy.capturing.neurons import read_parameters, reader_of
from dalif_deploy.capturing.normalisation import received
from dalif_deploy.capturing.rollback import LAYOUTS, Layout
from dalif_deploy.capturing.runner import Form, Runner
from dalif_deploy.capturing.state import as_found
from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Node, ReadoutMode
from dalif_deploy.recording import Recording


@dataclass(frozen=True, eq=False)
class CapturedModule:
    """A captured module.

    `graph`: its training graph. `layout`: "step" (forward is one timestep), "loop" (forward runs all of them), "TB" or
    "BT" (forward runs all of them in one tensor, time or the batch first). `notes`: what was inferred rather than
    given, one line each. `time_first`: whether the example was [T, B, ...]; data is [B, T, ...] everywhere else.
    """

    graph: SpikingGraph
    layout: Layout
    notes: tuple[str, ...]
    time_first: bool
    _runner: Runner = field(repr=False)
    before_reset: frozenset[str] = frozenset()
    before: Mapping[str, Node] = field(default_factory=dict)
    """By layer, the node that stands for what a neuron module does to its input first."""

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
        """What every neuron layer receives, by name, float64 [B, T, *shape]; after what its module does to it first.

        The module's own code, evaluated in float64; gains and weights are the values it holds, so a float32
        tanh stays what it is. Raises as `run`, and CAPTURE_REFUSED where the module writes float64 in place
        into float32.
        """
        heard = self._runner.currents(self.graph.input_spec.module_input(batch))
        return {name: received(current, self.before.get(name)) for name, current in heard.items()}

    def membranes(self, batch: NDArray[np.generic]) -> dict[str, NDArray[np.float64]]:
        """Every neuron's potential H[t] after the reset, float64 [B, T, *shape], evaluated as `currents`; V[t]
        before the reset for the layers in `before_reset`.

        Of the layers whose reader names the attribute that holds it (`NeuronParameters.membrane` or `.potential`).
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
    example is repeated. It may be [T, B, ...] where forward takes that and T and B differ. `layout`: "step" where
    forward is one timestep; "loop" where it runs all of them, and calls each neuron once a timestep; "TB" or "BT"
    where layers take all timesteps in one tensor, [T, B, ...] or [B, T, ...], or folded into the batch.
    `readout`: how the timesteps' results are reduced, "mean", "sum", "last" or "max"; a one-step module's
    default is "mean", a loop shows it. `temporal`: whether the input has a time axis. What is None is inferred
    and noted, or refused with the argument to give.

    The module runs in eval mode under no_grad and is left as it was found, also after an error. Raises
    `DalifError`: BAD_OPTION, WRONG_SHAPE, NOT_FINITE, AMBIGUOUS, UNKNOWN_NEURON, UNSUPPORTED_LAYER,
    CAPTURE_REFUSED.
    """
    check_arguments(module, timesteps, layout, readout, temporal)
    notes: list[str] = []
    module = unwrapped(module, notes)
    check_module(module)
    device, dtype = place(module)
    example = example_tensor(example_input, device, dtype)
    with as_found(module):
        neurons = _neurons(module)
        parameters = {name: read_parameters(name, child, dtype) for name, child in neurons.items()}
        memoryless = frozenset(name for name, read in parameters.items() if not np.any(read.beta))

        def graph_of(form: Form, recorded: Recorded, example: torch.Tensor) -> SpikingGraph:
            return lower(
                recorded.rolled,
                {layer: parameters[name] for layer, name in recorded.modules.items()},
                input_shape=tuple(example.shape[2 if form.temporal else 1 :]),
                temporal=form.temporal,
                readout=_mode(module, form, recorded.rolled.readout, readout, timesteps),
                timesteps=timesteps,
                encoding=encoding or Encoding(),
                class_names=tuple(class_names),
            )

        attempts = Attempts(module, neurons, timesteps, memoryless)
        form, recorded, graph, time_first = attempts.first(example, layout, temporal, graph_of)
    answer = graph.types[graph.output].shape
    if len(answer) != 1:
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"forward's result has shape [batch, {', '.join(map(str, answer))}]; one row of logits per sample is "
            f"needed: flatten or pool it [{root_site(module).line}]",
        )
    if readout is None:
        why = "the default of a one-step module" if recorded.rolled.readout is None else "seen in forward"
        notes.append(f"readout={graph.readout.mode!r} ({why})")
    kind = recorded.layout(form)
    if recorded.answer.key is not None:
        notes.append(f"the answer is {recorded.answer} of what forward returns")
    _note_form(form, kind, layout, temporal, timesteps, notes)
    if time_first:
        notes.append(f"example_input is [{timesteps}, batch, ...]; data is kept as [batch, {timesteps}, ...]")
    layers = [neuron.name for neuron in graph.neurons]
    used = {recorded.modules[layer] for layer in layers}
    unused = sorted(set(neurons) - used)
    if unused:
        notes.append(f"neuron layers that the result does not depend on are left out: {', '.join(unused)}")
    potentials = {name: where for name in used if (where := parameters[name].membrane or parameters[name].potential)}
    if unseen := [layer for layer in layers if recorded.modules[layer] not in potentials]:
        notes.append(
            f"potentials of {', '.join(unseen)} were not compared, since the reader of their class names no membrane: "
            "a leak that is slightly wrong may change no spike"
        )
    runner = Runner(
        module=module,
        neurons={name: child for name, child in neurons.items() if recorded.schedule[name]},
        schedule=recorded.schedule,
        layers=frozenset(layers),
        potentials=potentials,
        form=form,
        timesteps=timesteps,
        answer=recorded.answer,
        readout=graph.readout.mode,
        per_step=recorded.rolled.readout is None,
        place=recorded.place,
        device=device,
        dtype=dtype,
    )
    before_reset = frozenset(layer for layer in layers if not parameters[recorded.modules[layer]].membrane)
    before = {
        layer: graph[graph[layer].inputs[0].source]
        for layer in layers
        if (p := parameters[recorded.modules[layer]]).norm is not None and p.norm_of != "comparison"
    }
    return CapturedModule(graph, kind, tuple(notes), time_first, runner, before_reset, before)


def _mode(
    module: torch.nn.Module, form: Form, found: ReadoutMode | None, given: str | None, timesteps: int
) -> ReadoutMode:
    chosen: ReadoutMode | None = next((mode for mode in get_args(ReadoutMode) if mode == given), None)
    if found is not None and chosen is not None and chosen != found and timesteps > 1:
        raise DalifError(
            Code.BAD_OPTION, f"readout={given!r}: forward itself takes the {found} over the timesteps; leave it out"
        )
    if chosen is None and found is None and form.whole:
        raise DalifError(
            Code.AMBIGUOUS,
            "forward returns the results of all timesteps; give readout='mean', 'sum', 'last' or 'max' (--readout) "
            f"[{root_site(module).line}]",
        )
    return chosen or found or "mean"


def _note_form(
    form: Form, kind: Layout, layout: str | None, temporal: bool | None, timesteps: int, notes: list[str]
) -> None:
    if timesteps == 1:
        notes.append("timesteps=1: a step and a loop are the same")
    elif layout is None:
        notes.append(f"layout={kind!r} ({LAYOUTS[kind]})")
    if form.carried:
        notes.append("the state that forward returns is given to it again at the next timestep")
    if temporal is None:
        why = f"[batch, {timesteps}, ...]" if form.temporal else "[batch, ...], the same at every timestep"
        notes.append(f"temporal={form.temporal} (the input is {why})")
    if form.time == 0:
        notes.append(f"forward takes the input with time first, [{timesteps}, batch, ...]")


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
