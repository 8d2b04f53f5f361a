"""The dual adaptive leaky integrate-and-fire neuron as a trainable PyTorch layer.

Source: Zhang et al., "DA-LIF: Dual Adaptive Leaky Integrate-and-Fire Model for Deep Spiking Neural
Networks"; the equation numbers below are that paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dalif_deploy.errors import Code, DalifError

Activation = Literal["tanh", "sigmoid", "identity"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda raw: raw,
}


class DALIF(nn.Module):
    """One layer of DA-LIF neurons; each call is one timestep.

        V[t] = beta * H[t-1] + alpha * X[t]                integrate (eq. 9)
        S[t] = 1 where V[t] >= v_threshold, else 0         fire (eq. 2b; a tie fires)
        H[t] = v_reset * S[t] + V[t] * (1 - S[t])          hard reset (eq. 2c)

    with alpha = act(a) and beta = act(b), learned independently; H[0] = 0, so the first step after a
    reset is V = alpha * X. The gradient of S is the rectangle of eq. 11: 1 / surrogate_width where
    |V - v_threshold| < surrogate_width / 2, strictly, and 0 elsewhere.

    Parameters:
        channels: None for one alpha and one beta per layer (the paper), or the number of channels (axis 1
            of the input) for one pair per channel.
        activation: act, one of "tanh" (the paper's choice, range [-1, 1]), "sigmoid" (its ablation) or
            "identity" (alpha and beta are the raw parameters, unbounded).
        alpha_init, beta_init: initial values of the *raw* parameters a and b, before the activation. The
            paper says both that alpha and beta were "initialized at 1.0 within the range of [-1, 1]" and
            that "the parameters for these functions were initialized to 1". The default follows the second:
            raw 1.0, hence alpha = beta = tanh(1) = 0.7616. For the first, activation="identity".
        v_threshold, v_reset: the firing threshold and what the potential is reset to; both in the
            potential's units, and rounded to the dtype in which the layer computes.
        surrogate_width: the width a of eq. 11, in the potential's units; its height is 1 / a.
        detach_reset: treat S in the reset (eq. 2c) as a constant in the backward pass.

    Special cases (the paper's Fig. 2 and the models it generalises):
        IF      activation="identity", alpha_init=1, beta_init=1, both frozen with requires_grad_(False)
        LIF     activation="identity", alpha_init=1/tau, beta_init=1-1/tau, both frozen
        PLIF    activation="sigmoid", alpha_init=w, beta_init=-w: alpha + beta = 1; training unties them
        alpha only, beta only    activation="identity", the other one's raw parameter at 1 and frozen

    Shapes: forward takes [B, ...] ([B, channels, ...] with `channels`) and returns spikes, 0 or 1, of that
    shape. dtype: the wider of the input's and the parameters' (float32 and float64 are tested).

    Attributes: `a`, `b`, the raw parameters, shape () or (channels,); `alpha`, `beta`, what the layer
    multiplies by, detached; `v`, the potential H after the last step's reset, or None before the first step.

    State: `v` is not in the state_dict. It moves with the module (`.to()`, `.double()`), and `copy.deepcopy`
    and pickle keep its value but not its autograd history. Call `reset(model)` before every new sequence.

    Raises `DalifError`: BAD_OPTION for an unusable argument; WRONG_SHAPE where an input does not fit the
    channels, or its shape changes without a reset.
    """

    def __init__(
        self,
        *,
        channels: int | None = None,
        activation: Activation = "tanh",
        alpha_init: float = 1.0,
        beta_init: float = 1.0,
        v_threshold: float = 1.0,
        v_reset: float = 0.0,
        surrogate_width: float = 1.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise DalifError(Code.BAD_OPTION, f"DALIF: activation {activation!r}: give 'tanh', 'sigmoid' or 'identity'")
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
            raise DalifError(
                Code.BAD_OPTION,
                f"DALIF: channels {channels!r}: give a whole number from 1, or None for one alpha and beta per layer",
            )
        self.channels = channels
        self.activation: Activation = activation
        self.v_threshold = _number("v_threshold", v_threshold)
        self.v_reset = _number("v_reset", v_reset)
        self.surrogate_width = _number("surrogate_width", surrogate_width)
        if self.surrogate_width <= 0.0:
            raise DalifError(Code.BAD_OPTION, f"DALIF: surrogate_width {surrogate_width!r}: give a positive number")
        self.detach_reset = bool(detach_reset)
        shape = () if channels is None else (channels,)
        self.a = nn.Parameter(torch.full(shape, _number("alpha_init", alpha_init)))
        self.b = nn.Parameter(torch.full(shape, _number("beta_init", beta_init)))
        self.v: Tensor | None = None

    @property
    def alpha(self) -> Tensor:
        """The spatial decay act(a) as this module computes it: detached, shape () or (channels,)."""
        return self._activate(self.a).detach().clone()

    @property
    def beta(self) -> Tensor:
        """The temporal decay act(b) as this module computes it: detached, shape () or (channels,)."""
        return self._activate(self.b).detach().clone()

    def reset_state(self) -> None:
        """Forget the potential: the next call is the first step of a new sequence."""
        self.v = None

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of one timestep, 0 or 1, from the input current X; both [B, ...] (see the class)."""
        self._check_shape(x)
        x = x.to(torch.promote_types(x.dtype, self.a.dtype))
        # Two operations, each rounded once: a fused multiply-add rounds differently on other backends.
        v = self._per_channel(self._activate(self.a), x) * x
        if self.v is not None:
            v = self._per_channel(self._activate(self.b), x) * self.v + v
        spikes = cast(Tensor, _Fire.apply(v, self.v_threshold, self.surrogate_width))  # type: ignore[no-untyped-call]
        fired = spikes.detach() if self.detach_reset else spikes
        self.v = self.v_reset * fired + v * (1.0 - fired)
        return spikes

    def extra_repr(self) -> str:
        parts = [f"alpha={_shown(self.alpha)}", f"beta={_shown(self.beta)}"]
        if self.channels is not None:
            parts.append(f"channels={self.channels}")
        parts += [f"activation={self.activation!r}", f"v_threshold={self.v_threshold:g}"]
        if self.v_reset != 0.0:
            parts.append(f"v_reset={self.v_reset:g}")
        if self.detach_reset:
            parts.append("detach_reset=True")
        return ", ".join(parts)

    def _activate(self, raw: Tensor) -> Tensor:
        return _ACTIVATIONS[self.activation](raw)

    def _per_channel(self, gain: Tensor, x: Tensor) -> Tensor:
        return gain if self.channels is None else gain.reshape(-1, *[1] * (x.ndim - 2))

    def _check_shape(self, x: Tensor) -> None:
        if self.channels is not None and (x.ndim < 2 or x.shape[1] != self.channels):
            raise DalifError(
                Code.WRONG_SHAPE,
                f"DALIF: input of shape {list(x.shape)}, but the layer has {self.channels} channels: "
                f"give [batch, {self.channels}, ...], or build the layer with other channels",
            )
        if self.v is not None and self.v.shape != x.shape:
            raise DalifError(
                Code.WRONG_SHAPE,
                f"DALIF: input of shape {list(x.shape)}, but the sequence began with {list(self.v.shape)}: "
                "call dalif_deploy.reset(model) before a new sequence",
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DALIF:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.v is not None:
            self.v = fn(self.v)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Tensors with autograd history can be neither copied nor pickled.
        return {**self.__dict__, "v": None if self.v is None else self.v.detach()}


def reset(model: nn.Module) -> None:
    """Start a new sequence: call `reset_state()` of every module within `model`, itself included, that has it."""
    for module in model.modules():
        reset_state = getattr(module, "reset_state", None)
        if callable(reset_state):
            reset_state()


class _Fire(torch.autograd.Function):
    """Theta(V - v_threshold) of eq. 2b, whose gradient is the rectangle of eq. 11."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, v_threshold: float, width: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.v_threshold, ctx.width = v_threshold, width
        return (v >= v_threshold).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (v,) = ctx.saved_tensors
        (grad,) = grad_outputs
        inside = (v - ctx.v_threshold).abs() < ctx.width / 2
        return grad * inside.to(grad.dtype) / ctx.width, None, None


def _number(name: str, value: float) -> float:
    """`value` as a finite float. Raises `DalifError` (BAD_OPTION)."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DalifError(Code.BAD_OPTION, f"DALIF: {name} {value!r}: give one finite number")
    return number


def _shown(gain: Tensor) -> str:
    if gain.is_meta:
        return "?"
    low, high = float(gain.min()), float(gain.max())
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
