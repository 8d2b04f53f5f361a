"""What the readers of foreign neuron classes share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import ThresholdRule

_TINY = 2.0**-126
"""float32's smallest normal number."""


def threshold_rule(function: Callable[[torch.Tensor], Any], what: str) -> ThresholdRule:
    """The rule by which `function` of V - v_threshold fires, found by asking it on both sides of 0 and at 0.

    `what`: names the function in errors. Raises `DalifError` (UNKNOWN_NEURON) where it is no step function.
    """
    asked = torch.tensor([-1e30, -1.0, -_TINY, 0.0, _TINY, 1.0, 1e30])
    with torch.no_grad():
        answer = function(asked)
    found = answer.tolist() if isinstance(answer, torch.Tensor) else None
    if found == [0, 0, 0, 1, 1, 1, 1]:
        return "ge"
    if found == [0, 0, 0, 0, 1, 1, 1]:
        return "gt"
    raise refuse(f"{what} is no step at 0 that gives spikes 0 and 1: at {asked.tolist()} it gives {found}")


def refuse(why: str) -> DalifError:
    """An option of a known class that no graph can say. The layer and its class are named by who asked."""
    return DalifError(Code.UNKNOWN_NEURON, why)


def rounded(value: float, dtype: torch.dtype) -> float:
    """A Python number as a module of `dtype` takes it."""
    return float(np.float32(value)) if dtype == torch.float32 else float(value)
