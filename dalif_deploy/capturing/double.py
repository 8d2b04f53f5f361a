"""Running a float32 module in float64 without touching it.

`module.double()` would recompute tanh(a), and fails where a surrogate calls `.float()`. Here the module stays
float32: an operation that sees a float64 tensor gets its float32 tensors widened, which is exact; one on
constants alone stays float32, so the gains remain those of the trained module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from dalif_deploy.errors import Code, DalifError

# Beside a float32 tensor a Python number is a float32; the rest (epsilon of a normalisation) is a double anyway.
# Names that are no dunder are those of both torch.f and Tensor.f, and of Tensor.f_.
# fmt: off
_ARITHMETIC = frozenset(
    f"{prefix}{name}{suffix}"
    for name in (
        "add", "sub", "mul", "div", "truediv", "radd", "rsub", "rmul", "rtruediv", "rdiv", "iadd", "isub", "imul",
        "itruediv", "true_divide", "subtract", "multiply", "divide", "pow", "ge", "gt", "le", "lt", "eq", "ne",
        "greater", "greater_equal", "less", "less_equal", "where", "full_like", "masked_fill", "lerp", "fill", "clamp",
        "clip", "clamp_min", "clamp_max", "addcmul", "addcdiv", "setitem", "new_full", "threshold", "hardtanh",
        "index_fill", "fmod", "remainder", "leaky_relu", "elu", "celu", "softplus", "hardshrink", "softshrink",
    )
    for prefix, suffix in (("", ""), ("__", "__"), ("", "_"))
)
_FACTORIES = frozenset({
    "zeros", "ones", "full", "empty", "tensor", "as_tensor", "eye", "arange", "linspace", "scalar_tensor",
})
# fmt: on
_FLOAT = frozenset({"float", "to", "type"})
_OWN_METHODS = frozenset({"new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"})
# Attribute reads and the like take the tensor as it is.
_PASSIVE = frozenset({"__get__", "__set__", "size", "dim", "numel", "stride", "is_floating_point", "__len__"})


class Double(TorchFunctionMode):
    """Evaluates in float64 what depends on float64 tensors. Raises `DalifError` (CAPTURE_REFUSED).

    `dtype`: the module's own. A Python number in a float32 module acts as its float32 value; a float64 module
    takes it as it is.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._narrows = dtype == torch.float32
        self._wide: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name in _FACTORIES and not tensors:
            return _widened(func(*args, **kwargs))
        if name in _FLOAT and tensors and tensors[0].dtype in (torch.float64, torch.bool, torch.int64, torch.int32):
            out = func(*args, **kwargs)
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                return tensors[0].to(device=out.device, dtype=torch.float64)
            return out
        if not any(tensor.dtype == torch.float64 for tensor in tensors):
            return func(*args, **kwargs)
        self._refuse_writes(func, name, args, kwargs)

        def widen(leaf: Any) -> Any:
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32:
                return self._cached(leaf)
            if self._narrows and isinstance(leaf, float) and name in _ARITHMETIC:
                return float(np.float32(leaf))
            return leaf

        if name in _PASSIVE:
            return func(*args, **kwargs)
        out = func(*tree_map(widen, args), **tree_map(widen, kwargs))
        return _widened(out) if name in _OWN_METHODS else out

    def _cached(self, tensor: torch.Tensor) -> torch.Tensor:
        entry = self._wide.get(id(tensor))
        if entry is None or entry[1] != tensor._version:
            entry = self._wide[id(tensor)] = (tensor, tensor._version, tensor.detach().to(torch.float64))
        return entry[2]

    def _refuse_writes(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        target = kwargs.get("out")
        if args and isinstance(args[0], torch.Tensor) and _writes(name):
            target = args[0]
        if isinstance(target, torch.Tensor) and target.dtype == torch.float32:
            raise DalifError(
                Code.CAPTURE_REFUSED,
                f"{resolve_name(func) or name}: a float64 value would be written in place into a float32 tensor; the "
                "module cannot be evaluated in float64 to prove the capture: write out of place",
            )


def _writes(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return name in ("__setitem__", "set_") or (
        name[2:-2] in {"iadd", "isub", "imul", "itruediv", "ipow"} if dunder else name.endswith("_")
    )


def _widened(out: Any) -> Any:
    return out.to(torch.float64) if isinstance(out, torch.Tensor) and out.dtype == torch.float32 else out
