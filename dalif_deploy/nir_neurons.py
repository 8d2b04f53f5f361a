"""A folded neuron's numbers in a .nir file, dialect by dialect: what the exporter stores and the reader recovers.

The canonical form keeps what the equations say, in float64. A simulator computes in float32, by its own
formula, and by its own rule at the threshold. So in its dialect the threshold is chosen for it: v', the very
float32 number that the reader has for its potential after one step from rest with X = v_th, where it fires by
the network's rule; else the float32 number next to v' on the side that turns > into >=, or >= into >. No
float32 number lies between the two, so that for every potential v > nextafter(v', -inf) is v >= v'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.dialects import DT, FORGETS, NEVER_LEAKS, Dialect
from dalif_deploy.nodes import Array, ThresholdRule

_Single = NDArray[np.float32]


def is_if(beta: Array, dialect: Dialect) -> bool:
    """Whether a layer with these leaks is an IF in a file of `dialect`."""
    return dialect.potential == "scaled" and bool(np.all(beta == 1.0))


def tau_of(beta: Array, dialect: Dialect, dt: float = DT) -> Array:
    """The time constant of a LIF; infinite for a layer with beta = 1 where the dialect has an IF for that."""
    if dialect.leak == "exponential":
        return _steps_of(np.asarray(beta, dtype=np.float64))
    with np.errstate(divide="ignore"):
        tau: Array = dt / (1.0 - np.asarray(beta))
    return tau if is_if(beta, dialect) else np.where(np.asarray(beta) == 1.0, dt * NEVER_LEAKS, tau)


def _steps_of(beta: Array) -> Array:
    """The tau in steps for which exp(-1 / tau) is beta; NaN for beta below 0, which no tau gives."""
    values, places = np.unique(beta, return_inverse=True)
    # The C library's logarithm, number by number: NumPy's own differs in the last place from processor to processor.
    stand_ins = {0.0: FORGETS, 1.0: NEVER_LEAKS}
    taus = [stand_ins.get(b) or (-1.0 / math.log(b) if b > 0.0 else math.nan) for b in values.tolist()]
    return np.asarray(taus)[places].reshape(beta.shape)


def beta_of(tau: Array, dt: float = DT) -> Array:
    """The leak of a LIF with this time constant, where it is 1 - dt / tau."""
    return np.asarray(1.0 - dt / np.asarray(tau))


def leak_of(tau: Array, dialect: Dialect, dt: float = DT) -> Array:
    """The leak of a LIF with this time constant in a file of `dialect`."""
    return np.exp(-1.0 / np.asarray(tau)) if dialect.leak == "exponential" else beta_of(tau, dt)


def resistance_of(tau: Array, dialect: Dialect, dt: float = DT) -> Array:
    """The r of a LIF."""
    in_seconds = dialect.potential == "unit" and dialect.leak == "euler"
    return np.asarray(tau) / dt if in_seconds else np.ones_like(tau)


def scale_of(beta: Array, dialect: Dialect) -> Array:
    """The file's potential over the folded graph's."""
    beta = np.asarray(beta)
    if dialect.potential == "unit" or is_if(beta, dialect):
        return np.ones_like(beta)
    return _leaks(beta)


def threshold_of(v_threshold: Array, beta: Array, fires_at: ThresholdRule, dialect: Dialect) -> Array:
    """The file's v_threshold, float64, for a neuron that fires by `fires_at`; infinite beyond float32."""
    step = _ONE_STEP.get(dialect.name)
    if step is None:
        return scale_of(beta, dialect) * v_threshold
    with np.errstate(over="ignore", under="ignore"):
        tie = step(np.asarray(v_threshold).astype(np.float32), np.asarray(beta), is_if(beta, dialect))
    return _moved(tie, _side(fires_at, dialect)).astype(np.float64)


def v_threshold_of(threshold: Array, beta: Array, fires_at: ThresholdRule, dialect: Dialect) -> Array:
    """The threshold that a file's v_threshold stands for, up to the roundings of `threshold_of`."""
    step = _ONE_STEP.get(dialect.name)
    if step is None:
        return np.asarray(threshold / scale_of(beta, dialect))
    with np.errstate(over="ignore", under="ignore"):
        tie = _moved(np.asarray(threshold).astype(np.float32), -_side(fires_at, dialect))
        one = step(np.ones((), np.float32), np.asarray(beta), is_if(beta, dialect))
    return np.asarray(tie.astype(np.float64) / one)


def _side(fires_at: ThresholdRule, dialect: Dialect) -> float:
    """Where the stored threshold lies from v': below (-1), above (1) or at it."""
    if fires_at == dialect.fires_at:
        return 0.0
    return -1.0 if fires_at == "ge" else 1.0


def _moved(values: _Single, side: float) -> _Single:
    """The float32 numbers next to finite values on that side."""
    if side == 0.0:
        return values
    return np.where(np.isinf(values), values, np.nextafter(values, np.float32(side * np.inf)))


def _norse(threshold: _Single, beta: Array, integrates: bool) -> _Single:
    """dt (1 / tau) (x - v) from v = 0, multiplied from the left."""
    if integrates:
        return threshold
    tau = (DT / _leaks(beta)).astype(np.float32)
    return np.asarray(np.float32(DT) * (np.float32(1.0) / tau) * threshold, dtype=np.float32)


def _spikingjelly(threshold: _Single, beta: Array, integrates: bool) -> _Single:
    """(x - v) / tau from v = 0, tau in steps."""
    if integrates:
        return threshold
    return np.asarray(threshold / (DT / _leaks(beta) / DT).astype(np.float32), dtype=np.float32)


def _leaks(beta: Array) -> Array:
    """1 - beta, or what stands for 0."""
    return np.where(beta == 1.0, 1.0 / NEVER_LEAKS, 1.0 - beta)


def _unscaled(threshold: _Single, beta: Array, _integrates: bool) -> _Single:
    """beta v + x from v = 0; x is not scaled."""
    return np.broadcast_to(threshold, np.broadcast_shapes(threshold.shape, beta.shape))


_ONE_STEP: Mapping[str, Callable[[_Single, Array, bool], _Single]] = {
    "norse": _norse,
    "spikingjelly": _spikingjelly,
    "snntorch": _unscaled,
    "sinabs": _unscaled,
}
"""By dialect: v', given v_th, beta and whether the layer is an IF. The formulas are the readers' own, operation by
operation; tests hold them against the packages."""
