"""The events of a recording, as every file format is read into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError

LATEST = 2**53
"""Time stamps lie below it: 285 years in microseconds, more than any clock of a camera counts."""


@dataclass(frozen=True, eq=False)
class Events:
    """One recording.

    `t`: int64 [n], microseconds, never decreasing; `x` (column), `y` (row): int64 [n], pixels; `p`: int64 [n], the
    polarity, 0 or 1. `sensor`: (height, width), where the file says it. `name`: for errors. `notes`: what was left
    out of the file, one line each.
    """

    t: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    p: NDArray[np.int64]
    sensor: tuple[int, int] | None
    name: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings of one file or folder. `labels`: int64 [N] where there are any. `origin`: one phrase on where they
    come from. `notes`: what is to be said of them, one line each."""

    items: tuple[Events, ...]
    labels: NDArray[np.int64] | None
    origin: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int | None) -> Recordings:
        """At most the first `count`."""
        if count is None or count >= len(self.items):
            return self
        labels = None if self.labels is None else self.labels[:count]
        return Recordings(self.items[:count], labels, f"the first {count} of {self.origin}", self.notes)


def checked_events(
    columns: Mapping[str, NDArray[np.generic]],
    *,
    name: str,
    sensor: tuple[int, int] | None,
    notes: tuple[str, ...] = (),
) -> Events:
    """`Events` from the columns t, x, y and p of any whole-number type, p also bool.

    Raises `DalifError`: NOT_FINITE for NaN; BAD_DATA for another type, columns of different lengths, an event outside
    the sensor, a polarity that is neither 0 nor 1, a time stamp that is negative or earlier than the one before.
    """
    for column, values in columns.items():
        _check_type(column, values, name)
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} {column}" for column, length in lengths.items())
        raise DalifError(Code.BAD_DATA, f"{name}: columns of different lengths, {told}; every event has all four")
    t, x, y, p = (columns[column].astype(np.int64) for column in ("t", "x", "y", "p"))
    # Unsigned times that are too large for int64 are negative now.
    unsigned = columns["t"].dtype.kind == "u"
    if len(beyond := np.flatnonzero((t >= LATEST) | (unsigned & (t < 0)))):
        raise _at(name, beyond, f"time stamp {columns['t'][beyond[0]]} is beyond 2**53 microseconds")
    if len(negative := np.flatnonzero(t < 0)):
        raise _at(name, negative, f"time stamp {t[negative[0]]} is negative; time is in microseconds from 0 on")
    if len(back := np.flatnonzero(np.diff(t) < 0) + 1):
        raise _at(
            name, back, f"time stamp {t[back[0]]} comes after {t[back[0] - 1]}; sort the events by time",
        )  # fmt: skip
    if len(wrong := np.flatnonzero((p != 0) & (p != 1))):
        raise _at(name, wrong, f"polarity {p[wrong[0]]}; 0 and 1 are needed: save (p > 0)")
    check_pixels(x, y, name=name, sensor=sensor)
    return Events(t, x, y, p, sensor, name, notes)


def check_pixels(
    x: NDArray[np.int64], y: NDArray[np.int64], *, name: str, sensor: tuple[int, int] | None, of: str = "the sensor"
) -> None:
    """Raises `DalifError` (BAD_DATA) for the first event outside `sensor` (height, width); `of`: what has that size."""
    height, width = sensor or (LATEST, LATEST)
    outside = np.flatnonzero((x < 0) | (y < 0) | (x >= width) | (y >= height))
    if not len(outside):
        return
    size = "" if sensor is None else f", {of} has {width} x {height} (width x height)"
    raise _at(name, outside, f"pixel x = {x[outside[0]]}, y = {y[outside[0]]} does not exist{size}")


def _at(name: str, indices: NDArray[np.intp], what: str) -> DalifError:
    more = f" ({len(indices)} such events)" if len(indices) > 1 else ""
    return DalifError(Code.BAD_DATA, f"{name}: event {indices[0]}: {what}{more}")


def _check_type(column: str, values: NDArray[np.generic], name: str) -> None:
    if values.ndim != 1:
        raise DalifError(
            Code.BAD_DATA, f"{name}: `{column}` has shape {list(values.shape)}; one number an event is needed, [n]"
        )
    if values.dtype.kind in "iu" or (values.dtype.kind == "b" and column == "p"):
        return
    if values.dtype.kind == "f" and not np.isfinite(values.astype(np.float64)).all():
        raise DalifError(Code.NOT_FINITE, f"{name}: `{column}` holds NaN or infinite values; whole numbers are needed")
    unit = "whole microseconds" if column == "t" else "whole numbers"
    raise DalifError(
        Code.BAD_DATA, f"{name}: `{column}` is {values.dtype}; {unit} are needed: convert to an integer type"
    )
