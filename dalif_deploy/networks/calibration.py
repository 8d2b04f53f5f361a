"""BatchNorm statistics measured on data, so that an untrained network fires.

A deep spiking network with random weights is silent in evaluation mode: its BatchNorm statistics are still 0 and 1,
and what reaches the second layer is far below the threshold. Whatever is compared on a silent network agrees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.neuron import DALIF, reset

Batch = Tensor | NDArray[np.floating]


def calibrate(module: nn.Module, batch: Batch, timesteps: int, *, temporal: bool = False) -> dict[str, float]:
    """Set every BatchNorm's running mean and variance to those of its own input on `batch`, over all timesteps.

    This is no training: weights stay as they are and the network has learned nothing. It makes an untrained network
    fire as a trained one does, for tests, benchmarks and proofs. Layers are measured in the order in which they run,
    each in evaluation mode behind layers that are already set, so that afterwards every BatchNorm's output on
    `batch` has exactly the mean `bias` and the standard deviation |weight| in every channel (but for its epsilon, and
    channels that are constant). A BatchNorm whose weights are all 0 hides the layers before it: they are set to 1.

    `module`: one timestep of a network without recurrence. `batch`: what it takes, [B, ...], the same at every
    timestep, or with `temporal` [B, T, ...]. `timesteps`: T. The mode is left as found, the neurons are reset.
    Returns the share of neuron-steps on which each DALIF layer then fires on `batch`, by name: with the paper's
    initial alpha and beta and weights 1, between 2 and 40 %.
    Raises `DalifError`: BAD_OPTION; WRONG_SHAPE; NOT_FINITE; UNSUPPORTED_LAYER for a BatchNorm that keeps no
    statistics or runs more than once in a timestep.
    """
    inputs = _inputs(module, batch, timesteps, temporal)
    with torch.no_grad(), _evaluating(module):
        norms = _norms_in_order(module, inputs[0])
        for norm in norms:
            if norm.weight is not None and not norm.weight.any():
                norm.weight.fill_(1.0)
        for norm in norms:
            _measure(module, norm, inputs)
    return firing_rates(module, batch, timesteps, temporal=temporal)


def firing_rates(module: nn.Module, batch: Batch, timesteps: int, *, temporal: bool = False) -> dict[str, float]:
    """The share of neuron-steps on which each DALIF layer of `module` fires, by name, in evaluation mode.

    Arguments and errors as `calibrate`.
    """
    inputs = _inputs(module, batch, timesteps, temporal)
    fired: dict[str, list[float]] = {}
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, DALIF):
            steps = fired.setdefault(name, [])
            handles.append(
                layer.register_forward_hook(lambda _module, _inputs, out, steps=steps: steps.append(float(out.mean())))
            )
    try:
        with torch.no_grad(), _evaluating(module):
            for step in inputs:
                module(step)
    finally:
        for handle in handles:
            handle.remove()
    return {name: float(np.mean(steps)) for name, steps in fired.items() if steps}


class _Reached(Exception):
    """The layer that is measured has got its input; the rest of the timestep is not needed."""


def _measure(module: nn.Module, norm: _BatchNorm, inputs: list[Tensor]) -> None:
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].double())
        raise _Reached

    reset(module)
    handle = norm.register_forward_pre_hook(stop)
    try:
        for step in inputs:
            try:
                module(step)
            except _Reached:
                continue
    finally:
        handle.remove()
    values = torch.cat(seen)
    variance, mean = torch.var_mean(values, dim=[0, *range(2, values.ndim)], correction=0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _norms_in_order(module: nn.Module, step: Tensor) -> list[_BatchNorm]:
    """The BatchNorm layers that a timestep runs, in that order."""
    names = {child: name for name, child in module.named_modules() if isinstance(child, _BatchNorm)}
    order: list[_BatchNorm] = []

    def note(norm: nn.Module, _args: object) -> None:
        assert isinstance(norm, _BatchNorm)
        if norm in order:
            raise _refusal(names[norm], "runs more than once in a timestep; give every place a layer of its own")
        order.append(norm)

    handles = [norm.register_forward_pre_hook(note) for norm in names]
    try:
        module(step)
    finally:
        for handle in handles:
            handle.remove()
    for norm in order:
        if norm.running_mean is None or norm.running_var is None:
            raise _refusal(names[norm], "keeps no statistics; build it with track_running_stats=True")
    return order


def _refusal(name: str, why: str) -> DalifError:
    return DalifError(Code.UNSUPPORTED_LAYER, f"layer '{name}' (BatchNorm): {why}")


def _inputs(module: nn.Module, batch: Batch, timesteps: int, temporal: bool) -> list[Tensor]:
    """The input of every timestep, on the module's device and in its dtype."""
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise DalifError(Code.BAD_OPTION, f"timesteps = {timesteps!r}: give a whole number of at least 1")
    like = next(module.parameters(), torch.empty(0))
    values = torch.as_tensor(batch).to(device=like.device, dtype=like.dtype)
    if values.ndim < 2 or not values.numel() or (temporal and values.shape[1] != timesteps):
        wanted = f"[batch, {timesteps}, ...]" if temporal else "[batch, ...]"
        raise DalifError(Code.WRONG_SHAPE, f"batch of shape {list(values.shape)}: {wanted} is needed")
    if not values.isfinite().all():
        raise DalifError(Code.NOT_FINITE, "batch: NaN or infinite values")
    return list(values.unbind(1)) if temporal else [values] * timesteps


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode from fresh neurons; every layer's mode is put back, and the neurons are reset."""
    training = {child: child.training for child in module.modules()}
    module.eval()
    reset(module)
    try:
        yield
    finally:
        for child, was in training.items():
            child.training = was
        reset(module)
