"""norse's LIFBoxCell, as norse 1.1.0 computes it.

    V = H + dt tau_mem_inv (X + v_leak - H);  S = V - v_th > 0;  H = (1 - S) V + S v_reset
    reset_subtract: H = (1 - S) V + S (V - v_th)

H starts at v_leak. With k = dt tau_mem_inv this is V = v_leak + (1 - k) (H - v_leak) + k X.
"""

from __future__ import annotations

from typing import Any

import torch

from dalif_deploy.capturing.parameters import NeuronParameters
from dalif_deploy.capturing.readers_common import refuse, threshold_rule
from dalif_deploy.nodes import ResetRule

_RESETS: dict[str, ResetRule] = {"reset_value": "hard", "reset_subtract": "subtract"}
_HOME = "norse.torch.functional.reset"


def read_lif_box_cell(module: Any, dtype: torch.dtype) -> NeuronParameters:
    """LIFBoxCell; its state, a tuple that is passed along, holds the potential."""
    p = module.p
    reset = getattr(p, "reset_method", None)
    name = getattr(reset, "__name__", repr(reset))
    if name not in _RESETS or getattr(reset, "__module__", "") != _HOME:
        raise refuse(f"reset_method is {name}; {' and '.join(_RESETS)} of {_HOME} are read")
    with torch.no_grad():
        # As the module multiplies them: in float32 unless both are Python numbers, which meet the input later.
        product = module.dt * p.tau_mem_inv
        k = product if isinstance(product, torch.Tensor) else torch.tensor(product, dtype=dtype)
    k = k.to(torch.float64)
    leak = torch.as_tensor(p.v_leak)
    if not bool((leak == leak.reshape(-1)[0]).all()):
        raise refuse("v_leak differs within the layer, and the potential starts from it; one value is read")
    return NeuronParameters(
        alpha=k,
        beta=1.0 - k,
        v_threshold=p.v_th,
        v_reset=p.v_reset,
        leak_target=p.v_leak,
        initial=leak.reshape(-1)[0],
        reset=_RESETS[name],
        fires_at=threshold_rule(lambda x: _fires(x, p), "its threshold method"),
        update="decay",
        membrane="v",
        aligned="last",
    )


def _fires(x: torch.Tensor, p: Any) -> torch.Tensor:
    from norse.torch.functional.threshold import threshold

    fired: torch.Tensor = threshold(x, p.method, p.alpha)
    return fired
