"""Running the user's own module: one step at a time or through its own loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import tree_leaves

from dalif_deploy.capturing.answers import Answer
from dalif_deploy.capturing.calls import NeuronCall
from dalif_deploy.capturing.double import Double
from dalif_deploy.capturing.record import intercepted
from dalif_deploy.capturing.state import NeuronStates, as_found
from dalif_deploy.capturing.values import Place
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import ReadoutMode
from dalif_deploy.recording import Recording, SpikeTrain

Look = Callable[[str, NeuronCall, Any], torch.Tensor | None]
"""What is wanted of one call: the module's name, the call, and its arguments or its result."""


@dataclass(frozen=True)
class Form:
    """How a module is driven.

    `whole`: forward runs all timesteps, else one. `time`: the dimension of the input that is time, in what forward
    takes if it runs all of them, None for a static input. `carried`: forward returns a state and takes it again.
    """

    whole: bool
    time: int | None = None
    carried: bool = False

    @property
    def temporal(self) -> bool:
        """Whether the input has a time axis."""
        return self.time is not None


def placed(x: torch.Tensor, form: Form) -> torch.Tensor:
    """`x`, [B, ...] or [B, T, ...], with its time axis where the module takes it."""
    return x.transpose(0, 1).contiguous() if form.time == 0 else x


def drive(module: torch.nn.Module, x: torch.Tensor, form: Form, timesteps: int) -> list[Any]:
    """What forward returns: once for all timesteps, else once a step. `x` as `placed` makes it."""
    if form.whole:
        return [module(x)]
    results: list[Any] = []
    state = [None] * required_states(module) if form.carried else []
    for t in range(timesteps):
        results.append(module(x[:, t] if form.temporal else x, *state))
        if form.carried:
            state = _returned_states(module, results[-1])
    return results


def state_parameters(module: torch.nn.Module) -> list[inspect.Parameter]:
    """What forward can take by position beside its input."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds][1:]


def required_states(module: torch.nn.Module) -> int:
    """How many arguments beside its input forward cannot do without."""
    return sum(p.default is inspect.Parameter.empty for p in state_parameters(module))


def _returned_states(module: torch.nn.Module, result: Any) -> list[Any]:
    if not isinstance(result, tuple | list) or len(result) < 2:
        return []
    rest = list(result[1:])
    # (out, mem1, mem2) goes back as (x, mem1, mem2), or as (x, (mem1, mem2)).
    return [tuple(rest)] if len(state_parameters(module)) == 1 and len(rest) > 1 else rest


@dataclass(frozen=True)
class Runner:
    """The user's module, how it is driven, and what is known of its result.

    `neurons`: its neuron modules by name. `schedule`: by module, what each of its calls is. `layers`: the neuron
    layers of the graph. `answer`: where forward's result holds the answer. `per_step`: whether that is per timestep
    and is reduced here, by `readout`; `place`: where a whole forward's answer has its timesteps. `potentials`: by
    module, the attribute of it or of the state it returns that holds the potential after the reset, where the
    reader names one.
    """

    module: torch.nn.Module
    neurons: Mapping[str, torch.nn.Module]
    schedule: Mapping[str, Sequence[NeuronCall]]
    layers: frozenset[str]
    potentials: Mapping[str, str]
    form: Form
    timesteps: int
    answer: Answer
    readout: ReadoutMode
    per_step: bool
    place: Place | None
    device: torch.device
    dtype: torch.dtype

    def run(self, inputs: NDArray[np.float32], *, float64: bool = False) -> Recording:
        """Spikes and logits in the module's own dtype, or in float64 with its own gains.

        Raises `DalifError` (CAPTURE_MISMATCH, WRONG_SHAPE, CAPTURE_REFUSED).
        """

        def spikes(name: str, call: NeuronCall, out: Any) -> torch.Tensor:
            return self._spikes(name, tree_leaves(out)[call.spikes])

        fired, results = self._watch(inputs, Double(self.dtype) if float64 else None, after=spikes)
        trains = {layer: SpikeTrain.pack(np.stack(steps, axis=1)) for layer, steps in fired.items()}
        return Recording(trains, self._logits(results))

    def currents(self, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """What every neuron receives, float64 [B, T, *shape], evaluated in float64 with the module's own gains."""

        def current(_: str, call: NeuronCall, arguments: Any) -> torch.Tensor:
            found: torch.Tensor = tree_leaves(arguments)[call.current]
            return found.clone()  # the neuron may write into it

        heard, _ = self._watch(inputs, Double(self.dtype), before=current)
        return {layer: np.stack(steps, axis=1).astype(np.float64) for layer, steps in heard.items()}

    def membranes(self, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """The potential after every step's reset, of the layers whose readers name it, float64 [B, T, *shape].

        Where a layer takes all timesteps in one call and keeps the last potential only, the others are NaN.
        """

        def potential(name: str, call: NeuronCall, out: Any) -> torch.Tensor | None:
            where = self.potentials.get(name)
            if where is None:
                return None
            spikes = tree_leaves(out)[call.spikes]
            value = getattr(self.neurons[name], where, None)
            if not isinstance(value, torch.Tensor):
                value = _returned(out, where, call.spikes)
            if call.place is not None and isinstance(value, torch.Tensor) and value.shape != spikes.shape:
                last = call.place.step(spikes, self.timesteps - 1, self.timesteps)
                if value.shape == last.shape:
                    steps = torch.full((self.timesteps, *last.shape), torch.nan, dtype=torch.float64)
                    steps[-1] = value
                    return call.place.whole(steps)
            if not isinstance(value, torch.Tensor) or value.shape != spikes.shape:
                raise DalifError(
                    Code.UNKNOWN_NEURON,
                    f"'{name}' ({type(self.neurons[name]).__name__}): its reader says that the potential is in "
                    f"'{where}', which holds no tensor of the layer's shape",
                )
            return value

        held, _ = self._watch(inputs, Double(self.dtype), after=potential)
        return {layer: np.stack(steps, axis=1).astype(np.float64) for layer, steps in held.items()}

    def _watch(
        self,
        inputs: NDArray[np.float32],
        double: Double | None,
        *,
        before: Look | None = None,
        after: Look | None = None,
    ) -> tuple[dict[str, list[NDArray[Any]]], list[Any]]:
        """What is seen of every layer, by timestep, and forward's results.

        `before` looks at the arguments of each call, `after` at its result.
        """
        seen: dict[str, list[NDArray[Any]]] = {}
        counts = dict.fromkeys(self.neurons, 0)

        def called(name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            number = counts[name]
            counts[name] += 1
            if number >= len(self.schedule[name]):
                raise DalifError(
                    Code.CAPTURE_MISMATCH,
                    f"'{name}' ({type(self.neurons[name]).__name__}): called more often than when it was captured",
                )
            call = self.schedule[name][number]
            looks = call.layer in self.layers
            value = before(name, call, (args, kwargs)) if before is not None and looks else None
            out = forward(*args, **kwargs)
            if after is not None and looks:
                value = after(name, call, out)
            if value is not None:
                seen.setdefault(call.layer, []).extend(self._steps(value, call.place))
            return out

        return seen, self._drive(inputs, called, double)

    def _steps(self, value: torch.Tensor, place: Place | None) -> list[NDArray[Any]]:
        if place is None:
            return [_array(value)]
        return [_array(place.step(value, t, self.timesteps)) for t in range(self.timesteps)]

    def _drive(self, inputs: NDArray[np.float32], called: Callable[..., Any], double: Double | None) -> list[Any]:
        dtype = self.dtype if double is None else torch.float64
        x = torch.tensor(inputs, dtype=dtype, device=self.device)
        with as_found(self.module):
            states = NeuronStates(self.neurons)
            states.reset()
            try:
                with intercepted(self.neurons, called), double or nullcontext():
                    return drive(self.module, placed(x, self.form), self.form, self.timesteps)
            except DalifError:
                raise
            except Exception as error:
                raise wrong_shape(x, error, states) from error

    def _spikes(self, name: str, out: torch.Tensor) -> torch.Tensor:
        spikes = out != 0
        if not bool((out[spikes] == 1).all()):
            raise DalifError(
                Code.CAPTURE_MISMATCH,
                f"'{name}' ({type(self.neurons[name]).__name__}): returns values other than 0 and 1; a neuron layer "
                "returns spikes",
            )
        return spikes

    def _logits(self, results: list[Any]) -> NDArray[np.floating]:
        answers = [self.answer.of(result) for result in results]
        if not self.per_step:
            return _array(answers[0])
        if self.answer.listed:
            return _reduced([_array(step) for step in answers[0]], self.readout)
        return _reduced([step for answer in answers for step in self._steps(answer, self.place)], self.readout)


def _array(x: torch.Tensor) -> NDArray[Any]:
    values: NDArray[Any] = x.detach().cpu().numpy()
    return values


def _returned(out: Any, where: str, spikes: int) -> Any:
    """The potential in what a neuron returns beside its spikes: the field of that name, or the only tensor."""
    for part in out if isinstance(out, tuple | list) else ():
        if hasattr(part, "_fields") and where in part._fields:
            return getattr(part, where)
    others = [x for i, x in enumerate(tree_leaves(out)) if i != spikes and isinstance(x, torch.Tensor)]
    return others[0] if len(others) == 1 else None


def _reduced(steps: list[NDArray[np.floating]], mode: ReadoutMode) -> NDArray[np.floating]:
    if mode == "last":
        return np.asarray(steps[-1])
    if mode == "max":
        return np.asarray(np.max(steps, axis=0))
    total = steps[0]
    for step in steps[1:]:
        total = total + step
    return np.asarray(total / total.dtype.type(len(steps)) if mode == "mean" else total)


def wrong_shape(x: torch.Tensor, error: Exception, states: NeuronStates) -> DalifError:
    """The module raised on an input, perhaps because of what a neuron still held from an earlier run."""
    held = states.leftovers()
    hint = f" (state found in {held}; give its class a reset() method, or reset it first)" if held else ""
    return DalifError(
        Code.WRONG_SHAPE,
        f"the module raises {type(error).__name__} on an input of shape {list(x.shape)}: {error}{hint}",
    )
