"""Recordings in an .npz: t or t_us, x, y and p, concatenated with `offsets` where there are several."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.archive import Archive
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recordings.events import Events, Recordings, checked_events

TIMES = ("t", "t_us")
LABELS = ("labels", "label")


def is_events(names: tuple[str, ...]) -> bool:
    """Whether an .npz with arrays of these names holds events."""
    return {"x", "y", "p"} <= set(names) and not set(TIMES).isdisjoint(names) and "inputs" not in names


def read_npz(path: Path) -> Recordings:
    """The recordings in an .npz.

    `t` or `t_us` [n] in microseconds, `x`, `y`, `p` [n]; optionally `width` and `height`; `offsets` [N + 1], where
    recording i is the events offsets[i] to offsets[i + 1]; `labels` or `label` [N]. Other arrays are not looked at.
    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, PICKLED; BAD_DATA, NOT_FINITE.
    """
    with Archive(path) as archive:
        time = _one_of(archive, TIMES)
        assert time is not None  # is_events
        columns = {"t": archive.read(time), **{name: archive.read(name) for name in ("x", "y", "p")}}
        sensor = _sensor(archive)
        offsets = archive.read("offsets") if "offsets" in archive.names else None
        label = _one_of(archive, LABELS)
        labels = None if label is None else archive.read(label)
    if offsets is None:
        items = [checked_events(columns, name=str(path), sensor=sensor)]
    else:
        items = _parts(path, columns, sensor, offsets)
    return Recordings(tuple(items), _labels(path, labels, len(items)), path.name)


def _one_of(archive: Archive, names: tuple[str, ...]) -> str | None:
    found = [name for name in names if name in archive.names]
    if len(found) > 1:
        raise DalifError(
            Code.AMBIGUOUS, f"{archive.path}: has both `{found[0]}` and `{found[1]}`; keep the one that is meant"
        )
    return found[0] if found else None


def _parts(
    path: Path, columns: dict[str, NDArray[np.generic]], sensor: tuple[int, int] | None, offsets: NDArray[np.generic]
) -> list[Events]:
    events = len(columns["x"]) if columns["x"].ndim else 0
    bad = offsets.dtype.kind not in "iu" or offsets.ndim != 1 or len(offsets) < 2
    if not bad:
        starts = offsets.astype(np.int64)
        bad = bool(starts[0] != 0 or starts[-1] != events or (np.diff(starts) < 0).any())
    if bad:
        raise DalifError(
            Code.BAD_DATA, f"{path}: `offsets` ({offsets.dtype} {list(offsets.shape)}) do not divide the {events} "
            f"events; they are whole numbers that rise from 0 to {events}, one more than there are recordings",
        )  # fmt: skip
    return [
        checked_events(
            {name: values[start:stop] for name, values in columns.items()},
            name=f"{path}: recording {number}", sensor=sensor,
        )
        for number, (start, stop) in enumerate(pairwise(starts.tolist()))
    ]  # fmt: skip


def _sensor(archive: Archive) -> tuple[int, int] | None:
    sizes = []
    for name in ("height", "width"):
        if name not in archive.names:
            continue
        value = archive.read(name)
        if value.size != 1 or value.dtype.kind not in "iu" or int(value.reshape(())) < 1:
            raise DalifError(
                Code.BAD_DATA, f"{archive.path}: `{name}` is {value.dtype} {list(value.shape)}; one positive whole "
                "number is needed",
            )  # fmt: skip
        sizes.append(int(value.reshape(())))
    if len(sizes) == 1:
        raise DalifError(Code.BAD_DATA, f"{archive.path}: only one of `width` and `height` is there; give both")
    return (sizes[0], sizes[1]) if sizes else None


def _labels(path: Path, labels: NDArray[np.generic] | None, count: int) -> NDArray[np.int64] | None:
    if labels is None:
        return None
    if labels.size != count or labels.ndim > 1 or labels.dtype.kind not in "iu":
        raise DalifError(
            Code.BAD_DATA, f"{path}: labels are {labels.dtype} {list(labels.shape)}; whole numbers [{count}], one a "
            "recording, are needed",
        )  # fmt: skip
    return labels.reshape(count).astype(np.int64)
