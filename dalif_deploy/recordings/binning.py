"""Events to timesteps: what falls into which step and pixel, and what is lost on the way, counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dalif_deploy.encoding import InputSpec
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recordings.events import Events, Recordings, check_pixels

Mode = Literal["duration", "count", "split"]
Values = Literal["counts", "binary"]
Start = Literal["first", "zero"]
POLARITIES = 2
MOST = {"uint8": 255, "float32": 2**24}
"""The largest number up to which a type holds every whole number."""


@dataclass(frozen=True)
class Binning:
    """How events become timesteps.

    `mode`: "duration", `size` microseconds a step; "count", `size` events a step, the last one perhaps with fewer;
    "split", the time from the start to the last event in as many equal parts as there are steps. `values`: "counts",
    the number of events of a pixel and polarity in a step, or "binary", 1 where there is any. `start`: the time of
    step 0 is the recording's "first" event, or 0; nothing to a count.
    Raises `DalifError` (BAD_OPTION).
    """

    mode: Mode
    size: int | None = None
    values: Values = "counts"
    start: Start = "first"

    def __post_init__(self) -> None:
        options: tuple[tuple[str, str, Any], ...] = (
            ("--bin", self.mode, Mode), ("--bin-values", self.values, Values), ("--bin-start", self.start, Start),
        )  # fmt: skip
        for option, given, choices in options:
            if given not in get_args(choices):
                raise DalifError(Code.BAD_OPTION, f"{option} {given}: give one of {', '.join(get_args(choices))}")
        if self.mode == "split" and self.size is not None:
            raise DalifError(Code.BAD_OPTION, "--bin split takes no number: the timesteps are the model's")
        if self.mode != "split" and not (isinstance(self.size, int) and 0 < self.size < 2**53):
            raise DalifError(
                Code.BAD_OPTION, f"--bin {self.mode}: give a positive whole number, such as {self.mode}:1000"
            )
        if self.mode == "count" and self.start != "first":
            raise DalifError(Code.BAD_OPTION, "--bin-start: says nothing where steps are counts of events; omit it")

    @classmethod
    def parse(cls, text: str, *, values: str = "counts", start: str = "first") -> Self:
        """From "duration:MICROSECONDS", "count:EVENTS" or "split". Raises `DalifError` (BAD_OPTION)."""
        mode, separator, size = text.partition(":")
        if (separator and not (size.isascii() and size.isdecimal())) or mode not in get_args(Mode):
            raise DalifError(
                Code.BAD_OPTION,
                f"--bin {text}: write duration:MICROSECONDS, count:EVENTS or split",
            )
        return cls(mode, int(size) if separator else None, values, start)  # type: ignore[arg-type]  # checked above

    def steps(self, events: Events, timesteps: int) -> NDArray[np.int64]:
        """The step of every event, int64 [n], from 0 on; where `timesteps` do not suffice they go on.

        Raises `DalifError` (BAD_DATA) where a split is of a longer time than whole numbers hold.
        """
        if not len(events):
            return np.zeros(0, np.int64)
        if self.mode == "count":
            assert self.size is not None
            return np.arange(len(events), dtype=np.int64) // self.size
        since = events.t - (events.t[0] if self.start == "first" else 0)
        if self.mode == "duration":
            assert self.size is not None
            return since // self.size
        span = int(since[-1]) + 1  # the last event is in the last step
        if span > 2**63 // timesteps - 1:
            raise DalifError(Code.BAD_DATA, f"{events.name}: {span} microseconds cannot be split in {timesteps} steps")
        return since * timesteps // span

    def described(self, timesteps: int) -> str:
        """In words."""
        since = "each recording's first event" if self.start == "first" else "time 0"
        steps = {
            "duration": f"{timesteps} steps of {self.size} us, from {since} on",
            "count": f"{timesteps} steps of {self.size} events",
            "split": f"{timesteps} equal parts, from {since} to its last",
        }[self.mode]
        values = "number of events" if self.values == "counts" else "1 where there is an event"
        return f"{steps}; value: {values}, channel 0 for polarity 0"


@dataclass(frozen=True)
class BinningReport:
    """What came of binning, over all recordings.

    `cut_events`, in `cut_recordings`: later than the last step. `padded_steps`, in `padded_recordings`: after the step
    of the last event that is kept, empty. `clipped_events`: further events of a pixel, polarity and step that hold
    one already, where values are binary. `short_recordings`: where steps are counts, with fewer in the last step.
    """

    binning: Binning
    timesteps: int
    recordings: int
    events: int
    cut_events: int = 0
    cut_recordings: int = 0
    padded_steps: int = 0
    padded_recordings: int = 0
    clipped_events: int = 0
    short_recordings: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return {**vars(self), "binning": vars(self.binning)}

    def lines(self) -> tuple[str, ...]:
        """What a person is told: how it was binned, then one line on each thing that was lost or added."""
        told = [
            f"events: {self.events:,} of {_many(self.recordings, 'recording')} in "
            f"{self.binning.described(self.timesteps)}"
        ]
        if self.cut_events:
            told.append(
                f"events cut off: {self.cut_events:,}, later than step {self.timesteps - 1}, in "
                f"{_many(self.cut_recordings, 'recording')}"
            )
        if self.padded_steps:
            told.append(
                f"events padded: {_many(self.padded_steps, 'empty step')} after the last event, in "
                f"{_many(self.padded_recordings, 'recording')}"
            )
        if self.clipped_events:
            told.append(f"events clipped: {self.clipped_events:,} where a pixel and step already had one")
        if self.short_recordings:
            told.append(
                f"events short: fewer than {self.binning.size} in the last step of "
                f"{_many(self.short_recordings, 'recording')}"
            )
        return tuple(told)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


@dataclass(frozen=True, eq=False)
class _Cells:
    """The pixels of one recording that are not 0: places in C order in [T, 2, H, W], and their values."""

    places: NDArray[np.int64]
    values: NDArray[np.int64]


class Binned:
    """Binned recordings, [N, T, 2, H, W], of which only the parts that are asked for are laid out.

    Like an array: `dtype`, `shape`, `ndim`, `len`, a slice of samples, and `numpy.asarray` for all of it.
    """

    def __init__(self, cells: Sequence[_Cells], shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._cells = cells
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape = (len(cells), *shape)
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, samples: slice) -> NDArray[np.generic]:
        chosen = self._cells[samples]
        laid_out = np.zeros((len(chosen), *self.shape[1:]), self.dtype)
        flat = laid_out.reshape(len(chosen), -1)
        for row, cells in zip(flat, chosen, strict=True):
            row[cells.places] = cells.values
        return laid_out

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[np.generic]:
        return self[:] if dtype is None else self[:].astype(dtype)


def bin_recordings(
    recordings: Recordings, binning: Binning | str, spec: InputSpec
) -> tuple[Binned, BinningReport]:  # fmt: skip
    """Every recording as `spec.timesteps` steps of [2, H, W], channel p for polarity p, as the network of `spec` takes
    it: float32 for real input, uint8 for spikes and codes (a count is then a code).

    `binning`: also as `Binning.parse` takes it. Raises `DalifError`: BAD_OPTION; WRONG_SHAPE where the network takes no
    such input or the sensor has another size; BAD_DATA for an event outside it, and for a count that the input cannot
    hold.
    """
    binning = Binning.parse(binning) if isinstance(binning, str) else binning
    if not spec.temporal or len(spec.shape) != 3 or spec.shape[0] != POLARITIES:
        time = f" over {spec.timesteps} timesteps" if spec.temporal else " without a time axis"
        raise DalifError(
            Code.WRONG_SHAPE,
            f"{recordings.origin}: events give [2, H, W], one channel a polarity, over timesteps; the model takes "
            f"{list(spec.shape)}{time}",
        )
    found: list[_Cells] = []
    totals = dict.fromkeys(
        ("cut_events", "cut_recordings", "padded_steps", "padded_recordings", "clipped_events", "short_recordings"), 0
    )
    for events in recordings.items:
        cells, counted = _binned(events, binning, spec)
        found.append(cells)
        for name, count in counted.items():
            totals[name] += count
    report = BinningReport(
        binning, spec.timesteps, len(recordings), sum(map(len, recordings.items)), **totals
    )  # fmt: skip
    return Binned(found, (spec.timesteps, *spec.shape), _dtype(spec)), report


def _dtype(spec: InputSpec) -> Literal["float32", "uint8"]:
    return "float32" if spec.encoding.kind == "real" else "uint8"


def _binned(events: Events, binning: Binning, spec: InputSpec) -> tuple[_Cells, dict[str, int]]:
    _, height, width = spec.shape
    if events.sensor not in (None, (height, width)):
        assert events.sensor is not None
        raise DalifError(
            Code.WRONG_SHAPE,
            f"{events.name}: the sensor has {events.sensor[1]} x {events.sensor[0]} pixels (width x height), the model "
            f"takes {width} x {height}; crop or scale the recording, which is not done here",
        )
    check_pixels(events.x, events.y, name=events.name, sensor=(height, width), of="the model's input")
    step = binning.steps(events, spec.timesteps)
    kept = step < spec.timesteps
    place = ((step * POLARITIES + events.p) * height + events.y) * width + events.x
    places, values = np.unique(place[kept], return_counts=True)
    ended = int(step[kept][-1]) + 1 if kept.any() else 0
    cut = len(events) - int(kept.sum())
    # Nothing is padded where events go on after the last step, even if there are none just before it.
    padded = 0 if cut else spec.timesteps - ended
    counted = {
        "cut_events": cut,
        "cut_recordings": int(cut > 0),
        "padded_steps": padded,
        "padded_recordings": int(padded > 0),
    }
    if binning.mode == "count" and not cut and len(events) % (binning.size or 1):
        counted["short_recordings"] = 1
    if binning.values == "binary":
        counted["clipped_events"] = int(values.sum()) - len(values)
        values = np.ones_like(values)
    _check_values(events, values, spec)
    return _Cells(places, values), counted


def _check_values(events: Events, values: NDArray[np.int64], spec: InputSpec) -> None:
    kind = spec.encoding.kind
    most = 1 if kind == "spikes" else MOST[_dtype(spec)]
    largest = int(values.max(initial=0))
    if largest > most:
        why = "takes spikes, 0 or 1" if kind == "spikes" else f"takes {_dtype(spec)}, at most {most}"
        raise DalifError(
            Code.BAD_DATA,
            f"{events.name}: a pixel has {largest} events in one step, and the model {why}; give --bin-values binary "
            "or shorter steps",
        )
