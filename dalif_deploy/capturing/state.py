"""Leaving a module exactly as it was found, and resetting the state of its neurons between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from dalif_deploy.errors import Code, DalifError

# What torch keeps in a module's __dict__ that a forward pass does not change.
_STRUCTURE = frozenset({"_parameters", "_modules", "_buffers", "_non_persistent_buffers_set"})


class Snapshot:
    """The attributes and buffers of one module, with the contents of its tensors, lists and dicts.

    Parameters are left out: a forward pass in evaluation does not write them.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._attributes = {key: value for key, value in vars(module).items() if key not in _STRUCTURE}
        self._buffers = dict(module._buffers)
        held = [*self._attributes.values(), *self._buffers.values()]
        self._tensors = [
            (value, value.detach().clone(), value._version)
            for value in held
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
        ]
        self._containers = [(value, value.copy()) for value in held if isinstance(value, list | dict | set)]

    def plain_tensors(self) -> list[str]:
        """The attributes that hold tensors and are neither parameters nor buffers."""
        return [key for key, value in self._attributes.items() if isinstance(value, torch.Tensor)]

    def restore(self) -> None:
        """Put everything back, the objects and what they held."""
        attributes = vars(self._module)
        for key in [key for key in attributes if key not in _STRUCTURE and key not in self._attributes]:
            del attributes[key]
        attributes.update(self._attributes)
        self._module._buffers.clear()
        self._module._buffers.update(self._buffers)
        with torch.no_grad():
            for tensor, values, version in self._tensors:
                if tensor._version != version:
                    tensor.copy_(values)
        for container, contents in self._containers:
            if not _same_contents(container, contents):
                container.clear()
                if isinstance(container, list):
                    container.extend(contents)
                else:
                    container.update(contents)


def _same_contents(now: Any, before: Any) -> bool:
    # By identity: equality of tensors is no single truth.
    def flat(values: Any) -> list[Any]:
        return [part for item in values.items() for part in item] if isinstance(values, dict) else list(values)

    a, b = flat(now), flat(before)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


@contextmanager
def as_found(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no_grad inside; afterwards every submodule is as it was, also after an error.

    So is the random state: a module that draws numbers is refused, but only once it has drawn some.
    """
    snapshots = [Snapshot(child) for child in module.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if any(child.training for child in module.modules()):
                module.eval()
            yield
    finally:
        for snapshot in snapshots:
            snapshot.restore()


class NeuronStates:
    """Resets neurons to how they start: by their own method, else to how they were when capture began."""

    def __init__(self, neurons: Mapping[str, torch.nn.Module]) -> None:
        self._neurons = dict(neurons)
        self._found = {
            name: [Snapshot(child) for child in module.modules()]
            for name, module in neurons.items()
            if _own_reset(module) is None
        }

    def leftovers(self) -> str | None:
        """A layer that started from a tensor it was found with, as "'name' (Class): attribute", or None."""
        for name, snapshots in self._found.items():
            for snapshot in snapshots:
                for key in snapshot.plain_tensors():
                    return f"'{name}' ({type(self._neurons[name]).__name__}): '{key}'"
        return None

    def reset(self) -> None:
        """Every neuron before its first step."""
        for name, module in self._neurons.items():
            own = _own_reset(module)
            if own is not None:
                try:
                    own()
                except Exception as error:
                    what = f"its {own.__name__}() raised {type(error).__name__}: {error}"
                    raise DalifError(
                        Code.CAPTURE_REFUSED,
                        f"'{name}' ({type(module).__name__}): {what}; it is called without arguments before every run",
                    ) from error
            else:
                for snapshot in self._found[name]:
                    snapshot.restore()


def _own_reset(module: torch.nn.Module) -> Any:
    for name in ("reset_state", "reset", "reset_mem"):  # the last is snnTorch's, whose `reset` is a tensor
        method = getattr(module, name, None)
        if callable(method):
            return method
    return None


Fingerprint = tuple[tuple[str, object, int], ...]


def fingerprint(module: torch.nn.Module) -> Fingerprint:
    """What identifies a neuron's state: every tensor and None it holds outside its parameters, or in a dictionary.

    The tensors are returned themselves, so that an identity cannot be taken by a later tensor.
    """
    held: list[tuple[str, object, int]] = []
    for prefix, child in module.named_modules():
        values = {key: value for key, value in vars(child).items() if key not in _STRUCTURE} | child._buffers
        nested = {f"{key}.{k}": v for key, held in values.items() if isinstance(held, dict) for k, v in held.items()}
        for key, value in (values | nested).items():
            if value is None:
                held.append((f"{prefix}.{key}", None, 0))
            elif isinstance(value, torch.Tensor):
                held.append((f"{prefix}.{key}", value, value._version))
    return tuple(held)


def same_state(before: Fingerprint, after: Fingerprint) -> bool:
    """Whether two fingerprints hold the same objects, written as often."""
    return len(before) == len(after) and all(
        a[0] == b[0] and a[1] is b[1] and a[2] == b[2] for a, b in zip(before, after, strict=True)
    )
