"""Along which axis a neuron integrates, found by calling it: capture never looks inside a neuron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from dalif_deploy.capturing.state import NeuronStates, Snapshot
from dalif_deploy.capturing.values import Val
from dalif_deploy.errors import Code, DalifError

_DRAWS = 32
_ENOUGH = 1024
"""How many random currents a layer is shown at most, and how many are enough."""
_PERIOD = 10007
"""Large layers are shown so many numbers over and over; as a prime it is the size of no feature map."""
_ROUNDING = 1e-3
"""The share of spikes that vector and scalar instructions may round differently when samples change places."""


def check_axes(
    where: str,
    module: torch.nn.Module,
    forward: Callable[..., Any],
    arguments: Any,
    current: int,
    val: Val,
    *,
    memory: bool,
    line: str | None,
) -> None:
    """Raises `DalifError` (CAPTURE_REFUSED) unless the neuron treats every sample alone, and time as time.

    It is run from rest on random currents of many sizes, then on the same with the samples in reverse order,
    and with time reversed: the first must give the same spikes in reverse, the second, where the neuron has
    `memory`, must not. `current`: which leaf of `arguments` is its input, `val` what that holds.
    """
    leaves, spec = tree_flatten(arguments)
    x: torch.Tensor = leaves[current]
    rng = np.random.default_rng(0)

    def run(current_values: torch.Tensor) -> torch.Tensor:
        args, kwargs = tree_unflatten([*leaves[:current], current_values, *leaves[current + 1 :]], spec)
        before = [Snapshot(child) for child in module.modules()]
        try:
            NeuronStates({where: module}).reset()
            out = tree_flatten(forward(*args, **kwargs))[0]
        finally:
            for snapshot in before:
                snapshot.restore()
        return next(leaf for leaf in out if isinstance(leaf, torch.Tensor)) != 0

    samples, times = _reversed_samples(val), _reversed_times(val)
    timed = val.d is not None and len(val.nodes) > 1 and memory
    fires = False
    # A small layer may fire alike by chance: it is asked more often.
    for number in range(1, _DRAWS + 1):
        few = (rng.random(_PERIOD) - 0.25) * 10.0 ** rng.uniform(-1.0, 1.0, _PERIOD)
        probe = torch.from_numpy(np.resize(few, tuple(x.shape))).to(device=x.device, dtype=x.dtype)
        fired = run(probe)
        if fired.shape != probe.shape:
            return  # the call itself will be refused
        fires = fires or 0 < int(fired.sum()) < fired.numel()
        if float((samples(run(samples(probe))) != fired).double().mean()) > _ROUNDING:
            held = NeuronStates({where: module}).leftovers()
            why = "it takes the batch for time" + (", in a call with one timestep" if val.d is None else "")
            if held:
                why += f", or starts from the state that it was found with ({held}); give its class a reset() method"
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{where}: what it fires depends on the other samples of the batch: {why}" + _at(line),
            )
        if timed:
            timed = not bool((times(run(times(probe))) != fired).any())
        if not timed and number * probe.numel() >= _ENOUGH:
            return
    if timed and fires:  # no spikes tell nothing; the proof of the capture will
        raise DalifError(
            Code.CAPTURE_REFUSED,
            f"{where}: receives all timesteps in one tensor, time in dimension {val.d}, and treats them as one "
            "timestep of more samples; call it once a timestep, in order, or with its axes in the order that it takes"
            + _at(line),
        )


Turn = Callable[[torch.Tensor], torch.Tensor]


def _reversed_samples(val: Val) -> Turn:
    n = len(val.nodes)
    if val.fold == "TB":
        return lambda x: x.reshape(n, -1, *x.shape[1:]).flip(1).reshape(x.shape)
    if val.fold == "BT":
        return lambda x: x.reshape(-1, n, *x.shape[1:]).flip(0).reshape(x.shape)
    return lambda x: x.flip(1 if val.d == 0 else 0)


def _reversed_times(val: Val) -> Turn:
    n = len(val.nodes)
    if val.fold == "TB":
        return lambda x: x.reshape(n, -1, *x.shape[1:]).flip(0).reshape(x.shape)
    if val.fold == "BT":
        return lambda x: x.reshape(-1, n, *x.shape[1:]).flip(1).reshape(x.shape)
    return lambda x: x.flip(val.d or 0)


def _at(line: str | None) -> str:
    return f" [{line}]" if line else ""
