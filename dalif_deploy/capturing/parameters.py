"""What a neuron module computes, in the words of `nodes.Neuron`: what a reader returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch

from dalif_deploy.capturing.normalisation import Normalisation, NormOf
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import (
    UNKNOWN_RESETS,
    Array,
    MembraneForm,
    ResetRule,
    ResetTiming,
    StateVariable,
    ThresholdRule,
    frozen,
)

_ARRAYS = ("alpha", "beta", "v_threshold", "v_reset", "leak_target", "initial", "raw_alpha", "raw_beta")
_RULES = {"reset": ResetRule, "fires_at": ThresholdRule, "reset_timing": ResetTiming, "update": MembraneForm}
Alignment = Literal["channels", "last"]


@dataclass(frozen=True, eq=False, kw_only=True)
class NeuronParameters:
    """What one neuron layer computes; see `nodes.Neuron` for the equations.

    Every value is a number, an array or a tensor (detached here, and widened to float64 exactly): one value
    for the layer, (C,) for one per channel (the first feature axis), or the layer's whole feature shape. With
    `aligned="last"` shapes are read as torch broadcasts them, so that (W,) is one value for each column.
    `initial`: the potential before the first step, one value for the layer.
    `update`: "decay" where the module computes H + k (X - H), so that alpha and beta = 1 - k are values that it never
    holds: they are taken as they are, where all others are rounded to the type that the module computes in.
    `raw_alpha`, `raw_beta` and `activation` say what alpha and beta were computed from, where that is known.
    `membrane` names the module's attribute that holds the potential after the reset, H; `potential` one that holds
    it before, V; where the state is returned, its field of that name, or the only tensor in it. With either, the
    proof of a capture compares potentials too, and a leak that is slightly wrong is found even where it changes no
    spike.
    `norm`: a torch BatchNorm that is part of the neuron, and `norm_of` what it normalises: "input",
    V = beta H + alpha norm(X); "potential", V = norm(beta H + alpha X), compared and carried on; or "comparison",
    where V is carried on and norm(V) compared with the threshold.
    Raises `DalifError` (BAD_OPTION, NOT_FINITE).
    """

    alpha: Any
    beta: Any
    v_threshold: Any = 1.0
    v_reset: Any = 0.0
    leak_target: Any = 0.0
    initial: Any = 0.0
    reset: ResetRule = "hard"
    fires_at: ThresholdRule = "ge"
    reset_timing: ResetTiming = "now"
    update: MembraneForm = "sum"
    raw_alpha: Any = None
    raw_beta: Any = None
    activation: str | None = None
    membrane: str | None = None
    potential: str | None = None
    aligned: Alignment = "channels"
    norm: Any = None
    norm_of: NormOf = "comparison"

    def __post_init__(self) -> None:
        for key in _ARRAYS:
            value = getattr(self, key)
            if value is None and key.startswith("raw_"):
                continue
            object.__setattr__(self, key, _numbers(key, value))
        for key, rule in (*_RULES.items(), ("aligned", Alignment)):
            if getattr(self, key) not in get_args(rule):
                names = [repr(name) for name in get_args(rule)]
                choice = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
                raise DalifError(Code.BAD_OPTION, f"NeuronParameters: {key}={getattr(self, key)!r}; give {choice}")
        if self.norm_of not in get_args(NormOf):
            raise DalifError(
                Code.BAD_OPTION,
                f"NeuronParameters: norm_of={self.norm_of!r}; give 'input', 'potential' or 'comparison'",
            )
        if self.norm is not None and not isinstance(self.norm, Normalisation):
            object.__setattr__(self, "norm", Normalisation.of(self.norm))
        if (self.reset, self.reset_timing) in UNKNOWN_RESETS:
            raise DalifError(
                Code.BAD_OPTION, f"NeuronParameters: there is no reset={self.reset!r} with {self.reset_timing!r} timing"
            )
        if np.size(self.initial) != 1:
            raise DalifError(Code.BAD_OPTION, "NeuronParameters: initial must be one value for the layer")

    def in_float32(self) -> Self:
        """As a float32 module computes with them: a Python number beside float32 tensors is a float32."""
        kept = ("alpha", "beta") if self.update == "decay" else ()
        rounded: dict[str, Any] = {
            key: getattr(self, key).astype(np.float32)
            for key in _ARRAYS
            if key not in kept and getattr(self, key) is not None
        }
        return replace(self, **rounded)

    def state(self) -> tuple[StateVariable, ...]:
        """The state of the graph's neuron."""
        return (StateVariable("membrane", float(np.reshape(self.initial, ()))),)


def _numbers(key: str, value: Any) -> Array:
    if isinstance(value, torch.Tensor):
        value = value.detach().to(device="cpu", dtype=torch.float64).numpy()
    try:
        array = frozen(value)
    except (TypeError, ValueError) as error:
        raise DalifError(Code.BAD_OPTION, f"NeuronParameters: {key}={value!r} is not a number or an array") from error
    if not np.isfinite(array).all():
        raise DalifError(Code.NOT_FINITE, f"neuron parameter {key} has NaN or infinite values")
    return array
