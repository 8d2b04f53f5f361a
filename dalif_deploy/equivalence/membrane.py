"""How far a float32 membrane can lie from exact arithmetic, for the update formulas that runtimes use.

A runtime declares its formula, since the same equation rounds differently in another form:

- "sum": fl(fl(beta H) + X), as ONNX Runtime, the events runtime and PyTorch compute it; also fused.
- "decay": v + k (x - v) or v - k v + k x with k = 1 - beta, as NIR simulators compute it; v is then k V.

A module's neurons have each their own formula, which their nodes name: "own".

docs/exactness.md derives both; all bounds here are in the units of V.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.rounding import TINY, U, flushed, unless_overflow
from dalif_deploy.equivalence.rounding import gamma as gamma_of
from dalif_deploy.equivalence.rounding import rounded as float32_rounded
from dalif_deploy.nodes import Array, MembraneForm, Neuron, frozen
from dalif_deploy.operators import Values

Update = Literal["sum", "decay", "own"]

U64 = 2.0**-53
"""The unit roundoff of float64."""


class MembraneError:
    """The error of one neuron layer's potential, carried from step to step.

    `update`: the runtime's formula, "sum" or "decay". `unit`: its unit roundoff, that of float32 or `U64`. Values
    are float64, [batch, *shape] or broadcastable.
    """

    def __init__(self, neuron: Neuron, update: MembraneForm, unit: float = U) -> None:
        self._neuron = neuron
        self._update = update
        self._unit = unit

        def rounded(values: Array) -> tuple[Array, Array]:
            return float32_rounded(values) if unit == U else (values, frozen(np.zeros_like(values)))

        def gamma(roundings: float) -> Values:
            return gamma_of(roundings, unit)

        self._gamma = gamma
        self._beta, self._beta_error = rounded(neuron.beta)
        self._alpha, self._alpha_error = rounded(neuron.alpha)
        self._leak, self._leak_error = rounded(neuron.leak_target)
        _, self._reset_error = rounded(neuron.v_reset)
        _, threshold = rounded(neuron.v_threshold)
        # A NIR file holds k v_th, rounded once more by its reader: three roundings in all.
        decay = np.where(neuron.beta == 1.0, 0.0, gamma(3.0)) * np.abs(neuron.v_threshold)
        self.threshold_error: Array = threshold + (decay if update == "decay" else 0.0)
        """How far the threshold that is compared with lies from the exact one."""
        initial = np.asarray(neuron.state[0].initial, dtype=np.float64)
        self._held: Values
        _, self._held = rounded(initial)
        if update == "decay":  # k H, and k itself, are rounded as well
            self._held = self._held + gamma(3.0) * np.abs(initial)
        self._started = False
        self._integrated: Values = self._held
        self._doubtful: NDArray[np.bool_] = np.zeros((), np.bool_)

    def integrate(self, before: Values, current: Values, current_error: Values, potential: Values) -> Values:
        """The error of V[t], given H[t-1], X[t] with its error, and V[t], all exact values."""
        size = np.abs(current) + current_error
        scaled = np.abs(self._alpha) * current_error + self._alpha_error * size + self._lost(self._neuron.alpha, size)
        if not np.all(self._neuron.alpha == 1.0):
            scaled = scaled + self._unit * np.abs(self._alpha) * size + TINY
        size = np.abs(self._neuron.alpha) * size
        step = self._sum if self._update == "sum" else self._decay
        error = step(before, size, scaled, potential)
        if self._unit != U:
            return error
        return unless_overflow(size + np.abs(before) * np.maximum(np.abs(self._neuron.beta), 1.0), error)

    def _lost(self, parameter: Array, size: Values) -> Values:
        """What a parameter below float32's normal range can lose, times `size`."""
        return flushed(parameter) * size if self._unit == U else np.zeros(())

    def _sum(self, before: Values, _current: Values, scaled: Values, potential: Values) -> Values:
        neuron, held = self._neuron, self._held
        error = np.abs(self._beta) * held + self._beta_error * np.abs(before)
        error = error + self._unit * np.abs(self._beta) * (np.abs(before) + held) + 2 * TINY
        error = error + self._lost(neuron.beta, np.abs(before) + held)
        if np.any(neuron.leak_target):
            gap = np.abs(before - neuron.leak_target) + held + self._leak_error
            error = error + self._gamma(3.0) * (np.abs(self._beta) * gap + np.abs(neuron.leak_target))
            error = error + (1.0 + np.abs(self._beta)) * self._leak_error + 3 * TINY
        total = error + scaled
        return np.asarray(total + self._unit * (np.abs(potential) + total))

    def _decay(self, before: Values, current: Values, scaled: Values, potential: Values) -> Values:
        neuron, held = self._neuron, self._held
        k = np.abs(1.0 - neuron.beta)
        leak = np.abs(neuron.leak_target)
        total = np.abs(neuron.beta) * held + scaled + k * self._leak_error
        total = total + self._gamma(8.0) * (current + scaled + k * (np.abs(before) + leak + held))
        # What holds v = k V is flushed to zero on the scale of v.
        total = total + 8 * TINY / np.where(k == 0.0, 1.0, np.minimum(k, 1.0))
        total = total + self._lost(frozen(k), current + scaled + np.abs(before) + held)
        around = np.abs(potential) + np.abs(neuron.beta) * (np.abs(before) + held) + k * leak + current + total
        return np.asarray(total + self._gamma(2.0) * around)

    def compared(self, potential: Values, error: Values) -> Values:
        """The error of what is compared with the threshold, given V[t] and its error.

        Where V is normalised: gain (V - mean) + bias as a BatchNorm computes it, with a gain that took at most
        five roundings.
        """
        neuron = self._neuron
        if not neuron.normalised:
            return error
        gain = np.abs(neuron.norm_gain)
        terms = gain * (np.abs(potential) + error + np.abs(neuron.norm_mean)) + np.abs(neuron.norm_bias)
        lost = self._lost(neuron.norm_gain, np.abs(potential) + error + np.abs(neuron.norm_mean))
        return np.asarray(gain * error + self._gamma(9.0) * terms + lost + TINY * (4.0 + 2.0 * gain))

    def reset_late(
        self, before: Values, due: NDArray[np.bool_], error: Values, integrated: Values, potential: Values
    ) -> Values:
        """The error of V[t] where the reset that was `due` before this step acts now: V = `potential`, which was
        `integrated`, with its `error`, before it.

        `due` itself is a comparison that rounding may decide otherwise, unless a spike has shown it.
        """
        neuron = self._neuron
        shown = neuron.reset_timing == "next" and self._started
        near = np.abs(before - neuron.v_threshold) <= self._held + self.threshold_error
        self._started, self._integrated = True, error
        self._doubtful = np.zeros_like(due) if shown else near
        if neuron.reset == "hard":
            exact = np.where(due, self._reset_error, error)
            apart = np.abs(integrated - neuron.v_reset) + error + self._reset_error
            return np.where(self._doubtful, apart, exact)
        dropped = error + self.threshold_error
        dropped = dropped + self._unit * (np.abs(potential) + np.abs(neuron.v_threshold) + dropped)
        error = np.where(due | self._doubtful, dropped, error)
        return np.where(self._doubtful, error + np.abs(neuron.v_threshold), error)

    def reset(
        self, spikes: NDArray[np.bool_], potential_error: Values, after: Values, due: NDArray[np.bool_] | None = None
    ) -> None:
        """Carry the error of V[t] over the reset to H[t] = `after`; `spikes` is what the candidate fired, `due` what
        the reset took before, where it comes late."""
        neuron = self._neuron
        if neuron.reset == "none" or neuron.reset_timing == "next":
            self._held = potential_error
        elif neuron.reset_timing == "carry":
            # U - v_th S, whatever was due, in two subtractions: a `due` that was decided otherwise is made up for.
            assert due is not None
            total: Values = self._integrated + self.threshold_error
            total = total + 2 * self._unit * (np.abs(after) + 2 * np.abs(neuron.v_threshold) + total)
            self._held = np.where(spikes | due | self._doubtful, total, self._integrated)
        elif neuron.reset == "hard":
            # The reset is a value of its own, whatever V was: a spike that is certain clears the error.
            scaled = self._reset_error + (
                self._gamma(3.0) * np.abs(self._neuron.v_reset) if self._update == "decay" else 0.0
            )
            self._held = np.where(spikes, scaled, potential_error)
        else:
            subtracted = potential_error + self.threshold_error
            self._held = np.where(spikes, subtracted + self._unit * (np.abs(after) + subtracted), potential_error)
