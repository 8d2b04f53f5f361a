"""nn.Module, checkpoint or file -> SpikingGraph.

Names are resolved when they are used: importing this package does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalif_deploy.capturing.module import CapturedModule, capture_module
    from dalif_deploy.capturing.neurons import NeuronParameters, register_neuron

__all__ = ["CapturedModule", "NeuronParameters", "capture_module", "register_neuron"]

_HOMES = {"CapturedModule": "module", "capture_module": "module"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'neurons')}"), name)
