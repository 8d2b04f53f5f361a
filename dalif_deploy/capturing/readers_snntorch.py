"""snnTorch's Leaky, as snntorch 1.0.0 computes it.

    R = mem > threshold                   what is held, before the step
    subtract   mem = beta mem + X - R threshold
    zero       mem = beta ((1 - R) mem) + X
    none       mem = beta mem + X
    S = mem > threshold
    not reset_delay, subtract: mem = mem - (S - R) threshold;   zero: mem = mem - (S - R) mem

beta is clamped to 0..1. So "zero" is a hard reset to 0 either way: with reset_delay it only acts when the next step
begins, before the leak. "subtract" with reset_delay acts after the leak of the next step ("next"); without, what is
left above the threshold after a spike is subtracted before the next one can fire ("carry").
"""

from __future__ import annotations

from typing import Any

import torch

from dalif_deploy.capturing.parameters import NeuronParameters
from dalif_deploy.capturing.readers_common import refuse, threshold_rule
from dalif_deploy.nodes import ResetRule, ResetTiming

_FUNCTIONS = {"subtract": "_base_sub", "zero": "_base_zero", "none": "_base_int"}
_RESETS: dict[str, ResetRule] = {"subtract": "subtract", "zero": "hard", "none": "none"}


def read_leaky(module: Any, dtype: torch.dtype) -> NeuronParameters:
    """Leaky, with its state inside (init_hidden) or passed along: both compute the same."""
    if module.inhibition:
        raise refuse("inhibition=True lets one neuron silence the others, which no graph can say")
    if module.state_quant:
        raise refuse("state_quant quantises the potential, which no graph can say")
    if bool((module.graded_spikes_factor != 1.0).any()):
        raise refuse("graded_spikes_factor is not 1, so its output is no spike; scale what the spikes are fed to")
    mechanism = list(_FUNCTIONS)[int(module.reset_mechanism_val)]
    running = getattr(module.state_function, "__name__", "")
    if running != _FUNCTIONS[mechanism]:
        raise refuse(f"reset_mechanism is {mechanism!r}, but was set after the module was built, which runs {running}")
    hard, late = mechanism == "zero", bool(module.reset_delay)
    if hard and not late and bool((module.threshold < 0.0).any()):
        raise refuse("a threshold below 0 with reset_mechanism='zero': what was reset counts as fired")
    timing: ResetTiming = "now"
    if mechanism == "subtract":
        timing = "next" if late else "carry"
    with torch.no_grad():
        beta = module.beta.clamp(0, 1)
    return NeuronParameters(
        alpha=1.0,
        beta=beta,
        v_threshold=module.threshold,
        reset=_RESETS[mechanism],
        fires_at=threshold_rule(module.spike_grad, "its spike_grad"),
        reset_timing=timing,
        membrane=None if hard and late else "mem",
        potential="mem" if hard and late else None,
        aligned="last",
    )
