"""Prophesee's files: EVT2 and EVT3 (.raw), and DAT.

Layouts: docs.prophesee.ai, "Data encoding formats" and "File formats". They are decoded here, since decoders at hand
quietly raise a time stamp that goes back to the one before, where it is to be refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError

Columns = dict[str, NDArray[np.int64]]
RAW = ("EVT2", "EVT3")


@dataclass(frozen=True)
class Header:
    """What the lines that begin with % say. `kind`: DAT1, DAT2, EVT2, EVT3, or a text that is none of these.
    `sensor`: (height, width). `start`: what is added to all times, microseconds. `size`: of the header, bytes."""

    kind: str
    sensor: tuple[int, int] | None
    start: int
    size: int


def header_of(content: bytes) -> Header | None:
    """The header of a Prophesee file; None where `content` begins with none that says what it is."""
    lines, size = [], 0
    while content[size : size + 2] == b"% ":
        end = content.find(b"\n", size)
        if end < 0:
            return None
        lines.append(content[size + 2 : end].decode("ascii", "replace").strip())
        size = end + 1
        if lines[-1] == "end":
            break
    text = "\n".join(lines)
    kind = None
    if found := re.search(r"^format\s+(\w+)", text, re.MULTILINE | re.IGNORECASE):
        kind = found[1].upper()
    elif found := re.search(r"^evt\s+(\d+)\.(\d+)", text, re.MULTILINE | re.IGNORECASE):
        kind = f"EVT{found[1]}" + ("" if found[2] == "0" else found[2])
    elif found := re.search(r"^version\s+(\d+)", text, re.MULTILINE | re.IGNORECASE):
        kind = f"DAT{found[1]}"
    if kind is None:
        return None
    start = re.search(r"^t0\s+(\d+)\s*$", text, re.MULTILINE | re.IGNORECASE)
    return Header(kind, _sensor(text), int(start[1]) if start else 0, size)


def decode_prophesee(content: bytes, header: Header, name: str) -> tuple[Columns, tuple[str, ...]]:
    """The columns t, x, y and p, and what was left out, in words.

    Triggers and other words that are no pixel's event are passed over, as the format intends. Raises `DalifError`:
    FOREIGN_FILE for another version or kind of event; FILE_DAMAGED where the file ends inside a word.
    """
    body = content[header.size :]
    notes: tuple[str, ...] = ()
    if header.kind in ("DAT1", "DAT2"):
        columns = _dat(body, header.kind, name)
    elif header.kind in RAW:
        size = 4 if header.kind == "EVT2" else 2
        _check_whole(body, size, name)
        columns, notes = (_evt2 if header.kind == "EVT2" else _evt3)(body)
    else:
        raise DalifError(
            Code.FOREIGN_FILE, f"{name}: is {header.kind}, which is not read here; convert it to EVT2, EVT3 or DAT"
        )
    columns["t"] += header.start
    return columns, notes


def _sensor(text: str) -> tuple[int, int] | None:
    if found := re.search(r"^geometry\s+(\d+)x(\d+)", text, re.MULTILINE | re.IGNORECASE):
        return int(found[2]), int(found[1])
    sizes = [re.search(rf"(?:^|[;\s]){name}[=\s]\s*(\d+)", text, re.IGNORECASE) for name in ("height", "width")]
    return None if None in sizes else (int(sizes[0][1]), int(sizes[1][1]))  # type: ignore[index]


def _check_whole(body: bytes, size: int, name: str) -> None:
    if len(body) % size:
        raise DalifError(
            Code.FILE_DAMAGED, f"{name}: ends inside a word of {size} bytes; the file is truncated: copy it again"
        )


def _unwrapped(counter: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    """A counter that starts again at 0 after `period` - 1, as one that does not. A step back of less than half the
    period is none of that: it stays, and is refused by whoever checks the time stamps."""
    return counter + period * np.cumsum(np.diff(counter, prepend=counter[:1]) < -(period // 2))


def _dat(body: bytes, kind: str, name: str) -> Columns:
    if len(body) < 2:
        raise DalifError(Code.FILE_DAMAGED, f"{name}: ends after its header; the file is truncated: copy it again")
    if body[0] not in (0x00, 0x0C) or body[1] != 8:
        raise DalifError(
            Code.FOREIGN_FILE, f"{name}: holds events of type {body[0]} and {body[1]} bytes, not change detection (0 "
            "or 12, 8 bytes)",
        )  # fmt: skip
    _check_whole(body[2:], 8, name)
    words = np.frombuffer(body, "<u4", offset=2).reshape(-1, 2).astype(np.int64)
    t, cell = _unwrapped(words[:, 0], 2**32), words[:, 1]
    if kind == "DAT1":
        return {"t": t, "x": cell & 0x1FF, "y": cell >> 9 & 0xFF, "p": cell >> 17 & 1}
    return {"t": t, "x": cell & 0x3FFF, "y": cell >> 14 & 0x3FFF, "p": cell >> 28}


def _latest(is_set: NDArray[np.bool_]) -> NDArray[np.intp]:
    """At every word, the place of the last word up to it where `is_set`; -1 before the first."""
    places = np.where(is_set, np.arange(len(is_set)), -1)
    return np.maximum.accumulate(places)


def _early(count: int) -> tuple[str, ...]:
    """What is said of events that stand before the words that give their time, row or column."""
    return (f"events left out: {count}, before the first words that say their time and place",) if count else ()


def _evt2(body: bytes) -> tuple[Columns, tuple[str, ...]]:
    words = np.frombuffer(body, "<u4").astype(np.int64)
    kind = words >> 28
    timed = kind == 8
    place = _latest(timed)
    high = np.zeros(len(words), np.int64)
    high[timed] = _unwrapped(words[timed] & 0xFFFFFFF, 2**28)
    is_event = kind <= 1
    events = np.flatnonzero(is_event & (place >= 0))
    word = words[events]
    t = high[place[events]] << 6 | word >> 22 & 0x3F
    columns = {"t": t, "x": word >> 11 & 0x7FF, "y": word & 0x7FF, "p": word >> 28}
    return columns, _early(int(is_event.sum()) - len(events))


def _evt3(body: bytes) -> tuple[Columns, tuple[str, ...]]:
    words = np.frombuffer(body, "<u2").astype(np.int64)
    kind, value = words >> 12, words & 0xFFF
    single, base = kind == 2, kind == 3
    width = np.select([kind == 4, kind == 5], [12, 8], 0)
    # A vector's pixels go on where the vector before it ended, since the last base.
    ends = np.cumsum(width)
    row, high, low, origin = (_latest(kind == wanted) for wanted in (0, 8, 6, 3))
    mask = np.where(kind == 5, value & 0xFF, value) * (width > 0)
    bits = (mask[:, None] >> np.arange(12) & 1).astype(bool)
    bits[single, 0] = True
    place, bit = np.nonzero(bits)
    timed = (row[place] >= 0) & (high[place] >= 0) & (single[place] | (origin[place] >= 0))
    left_out = int((~timed).sum())
    place, bit = place[timed], bit[timed]
    periods = np.zeros(len(words), np.int64)
    periods[kind == 8] = _unwrapped(value[kind == 8], 2**12)
    start = np.where(base, value & 0x7FF, 0)[origin[place]] + ends[place] - width[place] - ends[origin[place]]
    alone = single[place]
    source = np.where(alone, place, origin[place])
    columns = {
        # The upper half of the time sets the lower one to 0.
        "t": periods[high[place]] << 12 | np.where(low[place] > high[place], value[low[place]], 0),
        "x": np.where(alone, value[place] & 0x7FF, start + bit),
        "y": value[row[place]] & 0x7FF,
        "p": value[source] >> 11,
    }
    return columns, _early(left_out)
