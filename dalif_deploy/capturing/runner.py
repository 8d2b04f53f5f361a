"""Running the user's own module: one step at a time or through its own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.capturing.double import Double
from dalif_deploy.capturing.record import intercepted
from dalif_deploy.capturing.rollback import Layout
from dalif_deploy.capturing.state import NeuronStates, as_found
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import ReadoutMode
from dalif_deploy.recording import Recording, SpikeTrain


@dataclass(frozen=True)
class Form:
    """How a module is driven: who loops over time, and whether the input has a time axis."""

    layout: Layout
    temporal: bool

    def __str__(self) -> str:
        return f"layout='{self.layout}', temporal={self.temporal}"


def drive(module: torch.nn.Module, x: torch.Tensor, form: Form, timesteps: int) -> list[Any]:
    """What forward returns: once for its own loop, else once a step. `x`: [B, ...], or [B, T, ...] if temporal."""
    if form.layout == "loop":
        return [module(x)]
    return [module(x[:, t] if form.temporal else x) for t in range(timesteps)]


@dataclass(frozen=True)
class Runner:
    """The user's module, how it is driven, and what is known of its result.

    `neurons`: its neuron layers by name. `per_step`: whether forward's results are per timestep and are reduced
    here, by `readout`; `time_axis`: where a loop's result has its time axis, if it has one. `potentials`: by layer,
    the attribute that holds the potential after the reset, where the reader names one.
    """

    module: torch.nn.Module
    neurons: Mapping[str, torch.nn.Module]
    potentials: Mapping[str, str]
    form: Form
    timesteps: int
    readout: ReadoutMode
    per_step: bool
    time_axis: int | None
    device: torch.device
    dtype: torch.dtype

    def run(self, inputs: NDArray[np.float32], *, float64: bool = False) -> Recording:
        """Spikes and logits in the module's own dtype, or in float64 with its own gains.

        Raises `DalifError` (CAPTURE_MISMATCH, WRONG_SHAPE, CAPTURE_REFUSED).
        """
        fired: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in self.neurons}

        def called(name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = forward(*args, **kwargs)
            fired[name].append(self._spikes(name, out))
            return out

        results = self._drive(inputs, called, Double(self.dtype) if float64 else None)
        logits = self._logits(results)
        trains = {name: SpikeTrain.pack(np.stack(steps, axis=1)) for name, steps in fired.items()}
        return Recording(trains, logits)

    def currents(self, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """What every neuron receives, float64 [B, T, *shape], evaluated in float64 with the module's own gains."""
        heard: dict[str, list[NDArray[np.float64]]] = {name: [] for name in self.neurons}

        def called(name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            current = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            heard[name].append(current.detach().cpu().numpy().astype(np.float64))
            return forward(*args, **kwargs)

        self._drive(inputs, called, Double(self.dtype))
        return {name: np.stack(steps, axis=1) for name, steps in heard.items()}

    def membranes(self, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """The potential after every step's reset, of the layers whose readers name it, float64 [B, T, *shape]."""
        held: dict[str, list[NDArray[np.float64]]] = {name: [] for name in self.potentials}

        def called(name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = forward(*args, **kwargs)
            if name in held:
                value = getattr(self.neurons[name], self.potentials[name], None)
                if not isinstance(value, torch.Tensor) or value.shape != out.shape:
                    raise DalifError(
                        Code.UNKNOWN_NEURON,
                        f"'{name}' ({type(self.neurons[name]).__name__}): its reader says that the potential is in "
                        f"'{self.potentials[name]}', which holds no tensor of the layer's shape",
                    )
                held[name].append(value.detach().cpu().numpy().astype(np.float64))
            return out

        self._drive(inputs, called, Double(self.dtype))
        return {name: np.stack(steps, axis=1) for name, steps in held.items()}

    def _drive(self, inputs: NDArray[np.float32], called: Callable[..., Any], double: Double | None) -> list[Any]:
        dtype = self.dtype if double is None else torch.float64
        x = torch.tensor(inputs, dtype=dtype, device=self.device)
        with as_found(self.module):
            states = NeuronStates(self.neurons)
            states.reset()
            try:
                with intercepted(self.neurons, called), double or nullcontext():
                    return drive(self.module, x, self.form, self.timesteps)
            except DalifError:
                raise
            except Exception as error:
                raise wrong_shape(x, error, states) from error

    def _spikes(self, name: str, out: torch.Tensor) -> NDArray[np.bool_]:
        values: NDArray[Any] = out.detach().cpu().numpy()
        spikes = np.asarray(values != 0)
        if not (values[spikes] == 1).all():
            raise DalifError(
                Code.CAPTURE_MISMATCH,
                f"'{name}' ({type(self.neurons[name]).__name__}): returns values other than 0 and 1; a neuron layer "
                "returns spikes",
            )
        return spikes

    def _logits(self, results: list[torch.Tensor]) -> NDArray[np.floating]:
        values = [result.detach().cpu().numpy() for result in results]
        if not self.per_step:
            return np.asarray(values[0])
        if self.time_axis is not None:
            values = list(np.moveaxis(values[0], self.time_axis, 0))
        return _reduced(values, self.readout)


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
