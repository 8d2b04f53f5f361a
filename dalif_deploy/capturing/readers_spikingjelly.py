"""SpikingJelly's IFNode, LIFNode and ParametricLIFNode, as spikingjelly 2.0.0 computes them.

    IFNode                               V = H + X
    LIFNode, decay_input                 V = H + (X - (H - r)) / tau
    LIFNode, not decay_input             V = H - (H - r) / tau + X
    ParametricLIFNode                    the same with * sigmoid(w) for / tau

r is v_reset, which H starts from too, or 0 where v_reset is None; then the reset subtracts v_threshold. A spike is
V - v_threshold >= 0. Two formulas of one neuron: the second and third are V = r + beta (H - r) + alpha X with
beta = 1 - k, k = 1 / tau, and alpha = k or 1. They round as H + k (X - H) does.
"""

from __future__ import annotations

from typing import Any

import torch

from dalif_deploy.capturing.parameters import NeuronParameters
from dalif_deploy.capturing.readers_common import refuse, rounded, threshold_rule


def read_if(module: Any, dtype: torch.dtype) -> NeuronParameters:
    """IFNode."""
    return NeuronParameters(alpha=1.0, beta=1.0, **_shared(module))


def read_lif(module: Any, dtype: torch.dtype) -> NeuronParameters:
    """LIFNode."""
    return _leaky(module, 1.0 / rounded(module.tau, dtype))


def read_plif(module: Any, dtype: torch.dtype) -> NeuronParameters:
    """ParametricLIFNode: k is the sigmoid that the module itself computes, in its own dtype."""
    with torch.no_grad():
        k = module.w.sigmoid()
    if k.ndim:
        raise refuse(f"its w has the shape {list(k.shape)}; one value is read")
    return _leaky(module, float(k))


def _leaky(module: Any, k: float) -> NeuronParameters:
    shared = _shared(module)
    alpha = k if module.decay_input else 1.0
    return NeuronParameters(
        alpha=alpha, beta=1.0 - k, leak_target=shared["initial"], update="decay", **shared
    )  # fmt: skip


def _shared(module: Any) -> dict[str, Any]:
    if getattr(module, "_neuron_precision", None) is not None:
        raise refuse("a neuron precision is set, and what it computes then is not read; set none")
    soft = module.v_reset is None
    return {
        "v_threshold": module.v_threshold,
        "v_reset": 0.0 if soft else module.v_reset,
        "initial": 0.0 if soft else module.v_reset,
        "reset": "subtract" if soft else "hard",
        "fires_at": threshold_rule(module.surrogate_function, "its surrogate_function"),
        "membrane": "v",
    }
