"""How a neuron module says what it computes: parameters, a registry of readers, and the reader of DALIF.

Capture treats a neuron module as a leaf: it never looks inside, it asks the reader registered for its class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch

from dalif_deploy.capturing.normalisation import Normalisation, NormOf
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Array, ResetRule, ThresholdRule, frozen

Reader = Callable[[Any], "NeuronParameters"]

_READERS: dict[type[torch.nn.Module], Reader] = {}


@dataclass(frozen=True, eq=False, kw_only=True)
class NeuronParameters:
    """What one neuron layer computes; see `nodes.Neuron` for the equations.

    Every value is a number, an array or a tensor (detached here, and widened to float64 exactly): one value
    for the layer, (C,) for one per channel (the first feature axis), or the layer's whole feature shape.
    `raw_alpha`, `raw_beta` and `activation` say what alpha and beta were computed from, where that is known.
    `membrane` names the module's attribute that holds the potential after the reset; with it, the proof of a
    capture compares potentials too, and a leak that is slightly wrong is found even where it changes no spike.
    `norm`: a torch BatchNorm that is part of the neuron, and `norm_of` what it normalises: "input",
    V = beta H + alpha norm(X); "potential", V = norm(beta H + alpha X), compared and carried on; or "comparison",
    where V is carried on and norm(V) compared with the threshold.
    Raises `DalifError` (BAD_OPTION, NOT_FINITE).
    """

    alpha: Any
    beta: Any
    v_threshold: Any = 1.0
    v_reset: Any = 0.0
    reset: ResetRule = "hard"
    fires_at: ThresholdRule = "ge"
    raw_alpha: Any = None
    raw_beta: Any = None
    activation: str | None = None
    membrane: str | None = None
    norm: Any = None
    norm_of: NormOf = "comparison"

    def __post_init__(self) -> None:
        for key in ("alpha", "beta", "v_threshold", "v_reset", "raw_alpha", "raw_beta"):
            value = getattr(self, key)
            if value is None and key.startswith("raw_"):
                continue
            object.__setattr__(self, key, _numbers(key, value))
        if self.norm_of not in get_args(NormOf):
            raise DalifError(
                Code.BAD_OPTION,
                f"NeuronParameters: norm_of={self.norm_of!r}; give 'input', 'potential' or 'comparison'",
            )
        if self.norm is not None and not isinstance(self.norm, Normalisation):
            object.__setattr__(self, "norm", Normalisation.of(self.norm))
        if self.reset not in get_args(ResetRule):
            raise DalifError(Code.BAD_OPTION, f"NeuronParameters: reset={self.reset!r}; give 'hard' or 'subtract'")
        if self.fires_at not in get_args(ThresholdRule):
            raise DalifError(Code.BAD_OPTION, f"NeuronParameters: fires_at={self.fires_at!r}; give 'ge' or 'gt'")


def register_neuron(cls: type[torch.nn.Module], reader: Reader) -> None:
    """Make modules of class `cls` neurons: `reader(module)` returns their `NeuronParameters`.

    Holds for `cls` and for subclasses that do not override `forward`. A later registration replaces an
    earlier one. Raises `DalifError` (BAD_OPTION) where `cls` is no module class or `reader` not callable.
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise DalifError(Code.BAD_OPTION, f"register_neuron: {cls!r} is not a subclass of torch.nn.Module")
    if not callable(reader):
        raise DalifError(Code.BAD_OPTION, f"register_neuron: the reader of {cls.__name__} is not callable")
    _READERS[cls] = reader


def reader_of(module: torch.nn.Module) -> Reader | None:
    """The reader registered for the module's class, or None."""
    from dalif_deploy.neuron import DALIF

    own: Any = type(module)
    cls: Any
    for cls in own.__mro__:
        reader = read_dalif if cls is DALIF else _READERS.get(cls)
        if reader is not None:
            # A subclass with a forward of its own computes something that the reader knows nothing of.
            return reader if own.forward is cls.forward else None
    return None


def read_parameters(name: str, module: torch.nn.Module, dtype: torch.dtype) -> NeuronParameters:
    """The parameters of neuron layer `name`, rounded to the `dtype` that the module computes in.

    A Python number meets float32 tensors as a float32: 0.3 as a threshold is float32(0.3). What already is
    of that type is not changed. Raises `DalifError`, naming the layer and its class.
    """
    reader = reader_of(module)
    where = f"'{name}' ({type(module).__name__})"
    if reader is None:
        raise DalifError(Code.UNKNOWN_NEURON, f"{where}: no reader is registered; {registration(type(module))}")
    try:
        parameters = reader(module)
    except DalifError as error:
        raise DalifError(error.code, f"{where}: {error.message}") from error
    except Exception as error:
        raise DalifError(
            Code.UNKNOWN_NEURON, f"{where}: the reader of its class raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(parameters, NeuronParameters):
        raise DalifError(
            Code.BAD_OPTION,
            f"{where}: the reader of its class returned {type(parameters).__name__}; it must return NeuronParameters",
        )
    if dtype is not torch.float32:
        return parameters
    rounded: dict[str, Any] = {
        key: value.astype(np.float32) for key, value in vars(parameters).items() if isinstance(value, np.ndarray)
    }
    return replace(parameters, **rounded)


def registration(cls: type) -> str:
    """The lines a user writes to make `cls` known."""
    return (
        "if it is a neuron, register it: from dalif_deploy import NeuronParameters, register_neuron; "
        f"register_neuron({cls.__name__}, lambda m: NeuronParameters(alpha=..., beta=..., v_threshold=..., "
        "v_reset=..., reset='hard' or 'subtract', fires_at='ge' or 'gt'))"
    )


def read_dalif(module: Any) -> NeuronParameters:
    """A DALIF's frozen gains as the module itself computes them, in its own shape, dtype and device.

    tanh is never recomputed here: float32 gains are widened to float64, which is exact.
    """
    with torch.no_grad():
        return NeuronParameters(
            alpha=module.alpha,
            beta=module.beta,
            v_threshold=module.v_threshold,
            v_reset=module.v_reset,
            raw_alpha=module.a,
            raw_beta=module.b,
            activation=module.activation,
            membrane="v",
        )


def fit(name: str, key: str, value: Array, shape: tuple[int, ...]) -> Array:
    """`value` so that it broadcasts against the feature `shape`: (C,) becomes (C, 1, 1) where that is meant.

    Raises `DalifError` (WRONG_SHAPE).
    """
    if value.ndim > len(shape) and value.shape[0] == 1:  # a leading batch axis of one
        value = frozen(value[0])
    if value.size == 1:
        return frozen(value.reshape(()))
    if value.ndim == 1 and value.shape[0] == shape[0]:
        return frozen(value.reshape(-1, *[1] * (len(shape) - 1)))
    if value.ndim == len(shape) and all(n in (1, full) for n, full in zip(value.shape, shape, strict=True)):
        return value
    raise DalifError(
        Code.WRONG_SHAPE,
        f"neuron layer '{name}': {key} of shape {value.shape} fits neither one value, one per channel nor one per "
        f"neuron of a layer of shape {shape}",
    )


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
