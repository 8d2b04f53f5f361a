"""Which modules are neurons: a registry of readers, and the reader of DALIF.

Capture treats a neuron module as a leaf: it never looks inside, it asks the reader of its class for the
`NeuronParameters`. Readers are registered by users; those of SpikingJelly's, snnTorch's and norse's classes are
found by the class's name, so that none of the packages is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from dalif_deploy.capturing.parameters import Alignment, NeuronParameters
from dalif_deploy.capturing.readers_norse import read_lif_box_cell
from dalif_deploy.capturing.readers_snntorch import read_leaky
from dalif_deploy.capturing.readers_spikingjelly import read_if, read_lif, read_plif
from dalif_deploy.capturing.unknown import registration
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Array, frozen

__all__ = ["NeuronParameters", "Reader", "fit", "read_parameters", "reader_of", "register_neuron"]

Reader = Callable[[Any], NeuronParameters]

BuiltIn = Callable[[Any, torch.dtype], NeuronParameters]

BUILT_IN: Mapping[str, BuiltIn] = {
    "spikingjelly.activation_based.neuron.integrate_and_fire.IFNode": read_if,
    "spikingjelly.activation_based.neuron.lif.LIFNode": read_lif,
    "spikingjelly.activation_based.neuron.plif.ParametricLIFNode": read_plif,
    "snntorch._neurons.leaky.Leaky": read_leaky,
    "norse.torch.module.lif_box.LIFBoxCell": read_lif_box_cell,
}
"""By class, the reader of its modules and of the dtype that they compute in."""

_READERS: dict[type[torch.nn.Module], Reader] = {}


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


def reader_of(module: torch.nn.Module, dtype: torch.dtype = torch.float32) -> Reader | None:
    """The reader of the module's class, or None. `dtype`: what the module computes in."""
    from dalif_deploy.neuron import DALIF

    own: Any = type(module)
    cls: Any
    for cls in own.__mro__:
        reader = read_dalif if cls is DALIF else _READERS.get(cls)
        if reader is not None:
            # A subclass with a forward of its own computes something that the reader knows nothing of.
            return reader if own.forward is cls.forward else None
        built_in = BUILT_IN.get(f"{cls.__module__}.{cls.__qualname__}")
        if built_in is not None:
            return _with_dtype(built_in, dtype) if _computes_as(own, cls) else None
    return None


def _with_dtype(reader: BuiltIn, dtype: torch.dtype) -> Reader:
    return lambda module: reader(module, dtype)


def _computes_as(own: type, cls: type) -> bool:
    """Whether a subclass replaces nothing of `cls` but how it is built and shown."""
    harmless = {"__init__", "extra_repr", "__repr__"}
    below = own.__mro__[: own.__mro__.index(cls)]
    replaced = {name for child in below for name in vars(child) if hasattr(cls, name)}
    return all(name in harmless or (name.startswith("__") and name != "__call__") for name in replaced)


def read_parameters(name: str, module: torch.nn.Module, dtype: torch.dtype) -> NeuronParameters:
    """The parameters of neuron layer `name`, rounded to the `dtype` that the module computes in.

    A Python number meets float32 tensors as a float32: 0.3 as a threshold is float32(0.3). What already is
    of that type is not changed. Raises `DalifError`, naming the layer and its class.
    """
    reader = reader_of(module, dtype)
    where = f"'{name}' ({type(module).__name__})"
    if reader is None:
        raise DalifError(
            Code.UNKNOWN_NEURON,
            f"{where}: no reader is registered; complete these lines, and give them in a file with --adapter FILE.py",
            lines=registration(module),
        )
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
    return parameters.in_float32() if dtype is torch.float32 else parameters


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


def fit(name: str, key: str, value: Array, shape: tuple[int, ...], aligned: Alignment = "channels") -> Array:
    """`value` so that it broadcasts against the feature `shape`: (C,) becomes (C, 1, 1) where that is meant.

    Raises `DalifError` (WRONG_SHAPE).
    """
    if value.ndim > len(shape) and value.shape[0] == 1:  # a leading batch axis of one
        value = frozen(value[0])
    if value.size == 1:
        return frozen(value.reshape(()))
    if aligned == "channels" and value.ndim == 1 and value.shape[0] == shape[0]:
        return frozen(value.reshape(-1, *[1] * (len(shape) - 1)))
    if value.ndim == len(shape) and all(n in (1, full) for n, full in zip(value.shape, shape, strict=True)):
        return value
    within = value.ndim <= len(shape) and zip(value.shape, shape[-value.ndim :], strict=True)
    if aligned == "last" and within and all(n in (1, full) for n, full in within):
        return value
    raise DalifError(
        Code.WRONG_SHAPE,
        f"neuron layer '{name}': {key} of shape {value.shape} fits neither one value, one per channel nor one per "
        f"neuron of a layer of shape {shape}",
    )
