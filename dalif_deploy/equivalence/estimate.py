"""Estimates one number from what a candidate fired: V >= v_th at its spikes and V < v_th at its silences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.layer_replay import LayerRun

ROUNDS = 12
DIGITS = 15
"""No decimal of more digits is tried: a float64 holds as many."""


@dataclass(frozen=True)
class Estimate:
    """A number that explains everything, and the interval of those that do, as far as it is known (perhaps without an
    end)."""

    value: float
    low: float
    high: float


def shortest(low: float, high: float) -> tuple[float, int]:
    """The decimal of the fewest places strictly between two numbers (low < high), and how many places it has behind
    the point."""
    if low < 0.0 < high:
        return 0.0, 0
    if high <= 0.0:
        value, places = shortest(-high, -low)
        return -value, places
    # Both are at least 0. The largest power of ten of which a multiple lies between them.
    largest = high if not math.isinf(high) else max(low, 1.0)
    exponent = math.floor(math.log10(largest))
    for place in range(exponent, exponent - DIGITS, -1):
        whole = math.floor(low / 10.0**place) + 1
        value = float(f"{whole}e{place}")
        if low < value < high:
            return value, max(0, -place)
    return (low + high) / 2, DIGITS + 2


def estimate(run: Callable[[float], LayerRun], starts: Sequence[float]) -> Estimate | None:
    """A number under which `run` leaves no contradiction, or None where none is found.

    `run`: the layer with that number; V should depend on it smoothly. From the best of `starts` on, V is taken to be
    linear in the number, so that every neuron-step bounds it from one side; the number in the middle of what is
    left, or else the one that violates the fewest bounds, is tried next. That is exact at once where V is linear in it
    (a threshold, a factor), and converges as Newton's method where it is not (a leak).
    """
    runs = [(run(start), start) for start in starts]
    here, value = min(runs, key=lambda found: found[0].contradictions)
    best, since = here.contradictions, 0
    for _ in range(ROUNDS):
        low, high = _interval(here, _slope(run, here, value))
        if low < high:
            for guess in dict.fromkeys((shortest(value + low, value + high)[0], value + _middle(low, high))):
                tried = run(guess)
                if tried.contradictions == 0:
                    return _settled(run, tried, guess)
            here, value = tried, guess
        else:
            value += _least_violated(here, _slope(run, here, value), 4.0 * max(abs(value), 1.0))
            here = run(value)
        since = 0 if here.contradictions < best else since + 1
        best = min(best, here.contradictions)
        if since >= 3:
            return None
    return None


def _settled(run: Callable[[float], LayerRun], here: LayerRun, value: float) -> Estimate:
    """The interval round a number that explains everything, drawn in where V is not linear."""
    low, high = _interval(here, _slope(run, here, value))
    return Estimate(value, value + _reached(run, value, min(low, 0.0)), value + _reached(run, value, max(high, 0.0)))


def _reached(run: Callable[[float], LayerRun], value: float, change: float) -> float:
    """The largest part of `change` that was seen to explain everything too. The bound on rounding, which changes with
    the number, may take a little off even where V is linear."""
    if math.isinf(change):
        return change
    for part in (1.0 - 1e-6, 1.0 - 1e-3, 0.99, 0.95, 0.8, 0.5, 0.2):
        if run(value + part * change).contradictions == 0:
            return part * change
    return 0.0


def _middle(low: float, high: float) -> float:
    if math.isinf(low) and math.isinf(high):
        return 0.0
    if math.isinf(low):
        return high - 1.0
    return low + 1.0 if math.isinf(high) else (low + high) / 2


def _slope(run: Callable[[float], LayerRun], here: LayerRun, value: float) -> NDArray[np.float64]:
    step = max(abs(value), 1.0) * 2.0**-14
    slope = (run(value + step).margin - here.margin) / step
    return np.where(np.abs(slope) < 1e-9 * np.abs(slope).max(initial=0.0), 0.0, slope)


def _sides(here: LayerRun, slope: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The changes that the number must exceed, and those that it must stay below, one for each neuron-step."""
    steps = here.known.reshape(-1, *(1,) * (slope.ndim - 2))
    used = (slope != 0.0) & steps & np.isfinite(here.bound)
    fired = here.spikes[used]
    rounding = np.where(fired, -here.bound[used], here.bound[used])
    change = (rounding - here.margin[used]) / slope[used]
    rising = (slope[used] > 0.0) == fired
    return change[rising], change[~rising]


def _interval(here: LayerRun, slope: NDArray[np.float64]) -> tuple[float, float]:
    above, below = _sides(here, slope)
    return float(above.max(initial=-np.inf)), float(below.min(initial=np.inf))


def _least_violated(here: LayerRun, slope: NDArray[np.float64], reach: float) -> float:
    above, below = _sides(here, slope)
    above, below = np.sort(above), np.sort(below)
    ends = np.concatenate([above, below])
    ends = np.unique(ends[np.abs(ends) <= reach])
    if len(ends) < 2:
        return 0.0
    middles = (ends[1:] + ends[:-1]) / 2
    violated = (len(above) - np.searchsorted(above, middles)) + np.searchsorted(below, middles)
    return float(middles[int(np.argmin(violated))])
