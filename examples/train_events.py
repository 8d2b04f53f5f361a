"""Recordings of event cameras, read as they lie on disk, and counted into frames.

Formats: AEDAT 2.0, of CIFAR10-DVS; AEDAT 3.1 with tables of labels, of DVS128 Gesture; and the arrays into which
tonic unpacks DVS128 Gesture. All with NumPy alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy import Code, DalifError

SENSOR = 128
"""Both data sets were recorded with sensors of 128 x 128 pixels."""

Split = Literal["events", "time"]


@dataclass(frozen=True)
class Events:
    """One recording, in the order in which it was written.

    `t`: int64 microseconds; `x`, `y`: int64 column and row, 0..127; `p`: int64, 1 where it got brighter, else 0.
    """

    t: NDArray[np.int64]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    p: NDArray[np.int64]

    def between(self, start: int, end: int) -> Events:
        """Those with start <= t < end."""
        chosen = (self.t >= start) & (self.t < end)
        return Events(self.t[chosen], self.x[chosen], self.y[chosen], self.p[chosen])


def read_aedat2(path: Path) -> Events:
    """The events of an AEDAT 2.0 file of a DVS128 sensor: lines that begin with '#', then pairs of big-endian words.

    A pair is an address (bit 0: 1 is darker; bits 1 to 7 and 8 to 14 the pixel; bit 15: no event of a pixel, left
    out) and a time in microseconds. Column and row are turned as the data set's own tools turn them.
    Raises `DalifError` (FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE).
    """
    content = _read(path)
    if not content.startswith(b"#!AER-DAT2"):
        raise DalifError(Code.FOREIGN_FILE, f"{path}: does not begin as an AEDAT 2 file does; {_OTHER_AEDAT}")
    start = 0
    while content[start : start + 1] == b"#":  # an address of 16 bits begins with a byte of 0
        start = content.find(b"\n", start) + 1 or len(content)
    if (len(content) - start) % 8:
        raise DalifError(
            Code.FILE_DAMAGED,
            f"{path}: {len(content) - start} bytes of events are no whole number of events of 8 bytes; copy it again",
        )
    words = np.frombuffer(content, dtype=">u4", offset=start).astype(np.int64).reshape(-1, 2)
    address, t = words[:, 0], words[:, 1]
    if (address >> 16).any():
        raise DalifError(
            Code.FOREIGN_FILE, f"{path}: holds addresses of more than 16 bits: not a recording of a DVS128 sensor"
        )
    pixel = (address & 0x8000) == 0
    address, t = address[pixel], t[pixel]
    return Events(t, 127 - (address >> 8), 127 - ((address >> 1) & 0x7F), 1 - (address & 1))


def read_aedat3(path: Path) -> Events:
    """The polarity events of an AEDAT 3.1 file; events of other kinds, and invalid ones, are left out.

    A header that ends in the line "#!END-HEADER", then packets of little-endian words: a header of 28 bytes, then
    events of 8 bytes (bit 0 valid, bit 1 brighter, bits 2 to 16 row, bits 17 to 31 column; time in microseconds, to
    which the packet's count of overflows is added as bits 31 and up).
    Raises `DalifError` (FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE).
    """
    content = _read(path)
    if not content.startswith(b"#!AER-DAT3"):
        raise DalifError(Code.FOREIGN_FILE, f"{path}: does not begin as an AEDAT 3 file does; {_OTHER_AEDAT}")
    mark = content.find(b"#!END-HEADER")
    at = content.find(b"\n", mark) + 1
    if mark < 0 or not at:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: the header has no end (#!END-HEADER); copy it again")
    parts: list[NDArray[np.int64]] = []
    while at < len(content):
        if at + 28 > len(content):
            raise DalifError(Code.FILE_DAMAGED, f"{path}: ends within the header of a packet; copy it again")
        kind = int.from_bytes(content[at : at + 2], "little")
        size, _, overflow, capacity, number, _ = np.frombuffer(content, "<i4", 6, at + 4).tolist()
        at += 28
        if min(size, capacity, number, overflow) < 0 or number > capacity or at + size * capacity > len(content):
            raise DalifError(Code.FILE_DAMAGED, f"{path}: a packet is longer than the file; copy it again")
        if kind == 1:
            if size != 8:
                raise DalifError(Code.FILE_DAMAGED, f"{path}: polarity events of {size} bytes, not 8; copy it again")
            words = np.frombuffer(content, "<u4", 2 * number, at).astype(np.int64).reshape(-1, 2)
            parts.append(np.column_stack([words[:, 0], words[:, 1] + (overflow << 31)]))
        at += size * capacity
    words = np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)
    words = words[(words[:, 0] & 1) == 1]
    data, t = words[:, 0], words[:, 1]
    return _on_sensor(Events(t, data >> 17, (data >> 2) & 0x7FFF, (data >> 1) & 1), path)


def read_labels(path: Path) -> list[tuple[int, int, int]]:
    """The trials of a DVS128 Gesture recording: (class from 0, start, end), in microseconds, from its .csv table.

    Raises `DalifError` (FILE_MISSING, FILE_DAMAGED).
    """
    rows = list(csv.reader(_read(path).decode("ascii", "replace").splitlines()))
    try:
        trials = [(int(row[0]) - 1, int(row[1]), int(row[2])) for row in rows[1:] if row]
    except (ValueError, IndexError) as error:
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: rows after the first are class,startTime_usec,endTime_usec ({error})"
        ) from error
    for label, start, end in trials:
        if not 0 <= label <= 10 or start >= end:
            raise DalifError(
                Code.FILE_DAMAGED,
                f"{path}: class {label + 1} from {start} to {end}: classes are 1 to 11, and the end is after the start",
            )
    return trials


def read_unpacked(path: Path) -> Events:
    """The events of one .npy file as tonic unpacks DVS128 Gesture: columns x, y, p, t, with t in milliseconds.

    Raises `DalifError` (FILE_MISSING, FILE_DAMAGED, PICKLED).
    """
    try:
        table = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the path") from error
    except (ValueError, EOFError) as error:
        code = Code.PICKLED if "allow_pickle" in str(error) else Code.FILE_DAMAGED
        raise DalifError(code, f"{path}: cannot be read as an array of numbers ({error})") from error
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype.kind not in "iuf":
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: an array of shape {list(table.shape)}; needed are numbers [N, 4]: x, y, p, t"
        )
    x, y, p, t = table.astype(np.int64).T
    return _on_sensor(Events(t * 1000, x, y, p), path)


def frames(events: Events, *, timesteps: int, size: int, split: Split, what: str) -> NDArray[np.unsignedinteger]:
    """Counts of events [T, 2, size, size]; polarity 1, brighter, is channel 1.

    They are uint8 where every count fits, else uint32. `split`: "events" gives every frame the same number of
    events, but for what does not divide; "time" the same duration. `size`: pixels a side, 1 to 128; an event at
    x falls on column x * size // 128. `what`: names the recording in an error.
    Raises `DalifError` (BAD_DATA) for fewer events than timesteps.
    """
    count = len(events.t)
    if count < timesteps:
        raise DalifError(Code.BAD_DATA, f"{what}: {count} events, for {timesteps} timesteps; leave it out")
    if split == "events":
        step = np.arange(count) * timesteps // count
    else:
        first, last = int(events.t.min()), int(events.t.max())
        step = (events.t - first) * timesteps // (last - first + 1)
    row, column = events.y * size // SENSOR, events.x * size // SENSOR
    place = ((step * 2 + events.p) * size + row) * size + column
    counts = np.bincount(place, minlength=timesteps * 2 * size * size).reshape(timesteps, 2, size, size)
    return counts.astype(np.uint8 if counts.max() <= 255 else np.uint32)


_OTHER_AEDAT = "recordings in another version of AEDAT are not read"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the path") from error


def _on_sensor(events: Events, path: Path) -> Events:
    for name, values, most in (("x", events.x, 127), ("y", events.y, 127), ("p", events.p, 1)):
        if values.size and (values.min() < 0 or values.max() > most):
            raise DalifError(
                Code.FILE_DAMAGED,
                f"{path}: {name} from {values.min()} to {values.max()}, but it is 0 to {most}; is it another sensor?",
            )
    return events
