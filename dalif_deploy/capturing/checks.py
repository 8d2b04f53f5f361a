"""What capture asks of its arguments before anything runs."""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.capturing.rollback import LAYOUTS
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import ReadoutMode


def check_arguments(
    module: object, timesteps: object, layout: str | None, readout: str | None, temporal: object
) -> None:
    """Raises `DalifError` (BAD_OPTION, CAPTURE_REFUSED) for arguments that capture cannot use."""
    if not isinstance(module, torch.nn.Module):
        raise DalifError(Code.BAD_OPTION, f"a torch.nn.Module is needed, not a {type(module).__name__}")
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise DalifError(Code.BAD_OPTION, f"timesteps={timesteps!r}: give a whole number of at least 1")
    if layout not in (None, *LAYOUTS):
        raise DalifError(Code.BAD_OPTION, f"layout={layout!r}: give 'step', 'loop', 'TB' or 'BT', or None to infer it")
    if readout not in (None, *get_args(ReadoutMode)):
        raise DalifError(Code.BAD_OPTION, f"readout={readout!r}: give 'mean', 'sum', 'last' or 'max'")
    if temporal not in (None, True, False):
        raise DalifError(Code.BAD_OPTION, f"temporal={temporal!r}: give True, False or None")


def unwrapped(module: torch.nn.Module, notes: list[str]) -> torch.nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile; noted in `notes`."""
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


def check_module(module: torch.nn.Module) -> None:
    """Raises `DalifError` (CAPTURE_REFUSED, NOT_FINITE) for a module, or a mode, that cannot be watched."""
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
    for name, parameter in module.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise DalifError(
                Code.CAPTURE_REFUSED, f"parameter '{name}' of a lazy layer has no shape yet; run the module once"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise DalifError(
                Code.CAPTURE_REFUSED, f"'{name}' is {tensor.dtype}; convert the module to float32 (.float()) first"
            )
        if tensor.is_meta:
            raise DalifError(Code.CAPTURE_REFUSED, f"'{name}' is on the meta device and has no values; load them first")
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise DalifError(Code.NOT_FINITE, f"parameter '{name}' has NaN or infinite values")


def place(module: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the module is and what it computes in."""
    held = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    return (held[0].device, held[0].dtype) if held else (torch.device("cpu"), torch.float32)


def example_tensor(
    example: torch.Tensor | NDArray[np.generic], device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The example as the module takes it. Raises `DalifError` (BAD_DATA, WRONG_SHAPE, NOT_FINITE)."""
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
