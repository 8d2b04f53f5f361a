"""What is said of a module that seems to be a neuron and whose class nobody has registered: the lines to write."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dalif_deploy.errors import Code, DalifError

_PATTERNS: Mapping[str, str] = {
    "alpha": r"alpha|gain|(input|in)_?(gain|scale|weight)|w_in",
    "beta": r"beta|.*decay.*|leak(age|y)?|lam(b?da)?|rho|tau(_?m(em)?)?|alpha_?m(em)?",
    "v_threshold": r".*thresh.*|(v|u)_?th(r)?|thr?|theta|th",
    "v_reset": r"(v|u)_?reset|reset_?(value|potential|v)|v_?rest",
}
_STATE = re.compile(r"v|u|h|vmem|v_mem|mems?|membrane.*|potential.*|state|hidden", re.IGNORECASE)
_SHOWN = 8
_RULES = {"ge": '"ge"', "gt": '"gt"'}


Tracked = Callable[[torch.Tensor], bool]
"""Whether a tensor depends on the network's input."""


def with_registration(
    error: DalifError, running: tuple[torch.nn.Module, ...], tracked: Tracked, operation: str = ""
) -> DalifError:
    """`error`, raised inside the modules in `running` (the outermost first), with the lines that make the neuron
    among them known; as it is where none of them looks like one.

    `operation`: the ATen operation that was refused.
    """
    own = [m for m in reversed(running) if not type(m).__module__.startswith("torch.nn.")]
    module = next((m for m in own if _holds_state(m, tracked)), None)
    if module is None and error.code is Code.UNKNOWN_NEURON:
        # It fires, but its state is passed along or local: the innermost module that has a threshold, or any.
        module = next((m for m in own if _likely(m, "v_threshold")), own[0] if own else None)
        if module is None:
            why = "put the neuron into a module of its own, whose class can be registered"
            return DalifError(error.code, f"{error.message}; {why}")
    if module is None:
        return error
    cls = type(module)
    return DalifError(
        error.code,
        f"{error.message}; if {cls.__name__} is a neuron, register_neuron({cls.__name__}, read) makes it known: "
        "complete these lines, and give them in a file with --adapter FILE.py",
        lines=registration(module, tracked, operation),
    )


def registration(module: torch.nn.Module, tracked: Tracked = lambda _: False, operation: str = "") -> tuple[str, ...]:
    """The lines of an adapter that registers the module's class, with what its attributes are likely to mean.

    What nobody can tell from outside is left as `...`; where that is the leak or the threshold, the attributes whose
    meaning was not guessed are named beside it.
    """
    cls = type(module)
    values = {key: _likely(module, key) for key in _PATTERNS}
    fields = {
        "alpha": values["alpha"] or "1.0",
        "beta": values["beta"] or "...",
        "v_threshold": values["v_threshold"] or "...",
        "v_reset": values["v_reset"] or "0.0",
        "reset": "...",
        "fires_at": _RULES.get(operation, "..."),
    }
    state = [name for name, value in _held(module) if isinstance(value, torch.Tensor) and tracked(value)]
    state = [name for name in state if "." not in name] or [n for n, v in _held(module) if v is None and _is_state(n)]
    if state:
        fields["membrane"] = f'"{min(state, key=lambda name: not _is_state(name))}"'
    missing = "..." in (fields["beta"], fields["v_threshold"])
    names = list(dict.fromkeys(name for name, _ in (*_constants(module), *_held(module)) if name != "training"))
    left = [name for name in names if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in fields.values())]
    hint = f"  # m has {', '.join(left[:_SHOWN])}" if missing and left else ""
    return (
        _import(cls),
        "from dalif_deploy import NeuronParameters, register_neuron",
        'def read(m):  # V = beta * H + alpha * X; reset: "hard", "subtract", "none"; fires_at: "ge" (>=), "gt" (>)',
        f"    return NeuronParameters({', '.join(f'{key}={value}' for key, value in fields.items())}){hint}",
        f"register_neuron({cls.__name__}, read)",
    )


def _holds_state(module: torch.nn.Module, tracked: Tracked) -> bool:
    return any(
        tracked(value) if isinstance(value, torch.Tensor) else value is None and _is_state(name)
        for name, value in _held(module)
    ) or any(_is_state(name) for name, _ in module.named_buffers(recurse=False))


def _held(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """What the module holds beside its parameters: attributes, buffers, and entries of dictionaries."""
    for name, value in [*vars(module).items(), *module._buffers.items()]:
        if isinstance(value, dict) and not name.startswith("_"):
            yield from ((f"{name}.{key}", held) for key, held in value.items())
        elif not name.startswith("_"):
            yield name, value


def _is_state(name: str) -> bool:
    return _STATE.fullmatch(name) is not None


def _likely(module: torch.nn.Module, key: str) -> str | None:
    """The expression for `key`, of the module's attribute whose name says so."""
    for name, value in _constants(module):
        if not re.fullmatch(_PATTERNS[key], name, re.IGNORECASE):
            continue
        # A tau above 1 is a time constant, below it is what is left after a step.
        constant = key == "beta" and bool((torch.as_tensor(value) > 1.0).any())
        return f"1.0 - 1.0 / m.{name}" if constant else f"m.{name}"
    return None


def _constants(module: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The module's numbers and tensors by attribute: its own, parameters and buffers, and its class's."""
    own = [*vars(module).items(), *module._parameters.items(), *module._buffers.items()]
    shared = [item for cls in type(module).__mro__ if cls is not torch.nn.Module for item in vars(cls).items()]
    for name, value in (*own, *shared):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not name.startswith("_") and (number or (isinstance(value, torch.Tensor) and value.is_floating_point())):
            yield name, value


def _import(cls: type) -> str:
    home = cls.__module__
    if home == "__main__":  # what was started as a program is imported by its own name
        spec, file = (getattr(sys.modules[home], key, None) for key in ("__spec__", "__file__"))
        home = spec.name if spec is not None else Path(file or "your_file").stem
    outer, _, name = cls.__qualname__.rpartition(".")
    if outer:
        return f"from {home} import {name}  # it is defined inside {outer}: move it to the top of its file"
    return f"from {home} import {name}"
