"""Recordings from a file, recognised by its content, or from a folder of them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recordings import aedat
from dalif_deploy.recordings.events import Recordings, checked_events
from dalif_deploy.recordings.nmnist import decode_nmnist, is_nmnist
from dalif_deploy.recordings.npz import is_events, read_npz
from dalif_deploy.recordings.prophesee import decode_prophesee, header_of

Reader = Callable[[Path], Recordings]
HEAD = 4096
LARGEST_NMNIST = 2**24
"""A file without a header that is longer is not looked through: N-MNIST's are below 100 kB."""
KINDS = "an .npz with t (or t_us), x, y and p, AEDAT 4, EVT2, EVT3, DAT, or N-MNIST's .bin"


def holds_events(path: Path) -> bool:
    """Whether a file holds recordings of events, by content; a folder, whether the first file in it or in one of its
    folders does. Raises `DalifError` (FILE_MISSING)."""
    if not path.is_dir():
        return _reader(path) is not None
    files = (entry for pattern in ("*", "*/*") for entry in sorted(path.glob(pattern)) if entry.is_file())
    first = next((entry for entry in files if not _hidden(entry)), None)
    return first is not None and _reader(first) is not None


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def read_recordings(path: str | Path) -> Recordings:
    """All recordings in a file, or in a folder of files.

    A file is recognised by its content: an .npz with t or t_us (microseconds), x, y and p; AEDAT 4, through the package
    faery; EVT2, EVT3 or DAT; N-MNIST's .bin. In a folder, either all recordings lie in it, or in one subfolder a class:
    the labels are then the places of the subfolders in order, of numbers by value. Names that begin with a dot are not
    looked at. All recordings are held in memory, some 32 bytes an event.

    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, PICKLED, MISSING_PACKAGE; AMBIGUOUS; BAD_DATA,
    NOT_FINITE for events that cannot be.
    """
    place = Path(path)
    if place.is_dir():
        return _folder(place)
    reader = _reader(place)
    if reader is None:
        raise DalifError(Code.FOREIGN_FILE, f"{place}: not a recording of events; give {KINDS}")
    return reader(place)


def _reader(path: Path) -> Reader | None:
    """How to read a file's events; None where it holds none."""
    head = _bytes(path, HEAD)
    if head.startswith(b"PK"):
        return read_npz if is_events(_arrays(path)) else None
    if head.startswith(aedat.MAGIC):
        return _read_aedat
    if header_of(head + b"\n") is not None:
        return _read_prophesee
    if head.startswith(b"\x93NUMPY"):
        return None
    if path.suffix.lower() == ".bin":
        return _read_nmnist
    return _read_nmnist if path.stat().st_size <= LARGEST_NMNIST and is_nmnist(_bytes(path)) else None


def _bytes(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the path") from error


def _arrays(path: Path) -> tuple[str, ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):  # told by who reads it as data
        return ()


def _read_aedat(path: Path) -> Recordings:
    columns, sensor = aedat.decode_aedat(path, _bytes(path, HEAD))
    return Recordings((checked_events(columns, name=str(path), sensor=sensor),), None, path.name, (aedat.CAVEAT,))


def _read_prophesee(path: Path) -> Recordings:
    content = _bytes(path)
    header = header_of(content)
    if header is None:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: ends inside its header; the file is truncated: copy it again")
    columns, notes = decode_prophesee(content, header, str(path))
    told = tuple(f"{path}: {note}" for note in notes)
    return Recordings((checked_events(columns, name=str(path), sensor=header.sensor),), None, path.name, told)


def _read_nmnist(path: Path) -> Recordings:
    columns = decode_nmnist(_bytes(path), str(path))
    return Recordings((checked_events(columns, name=str(path), sensor=None),), None, path.name)


def _folder(place: Path) -> Recordings:
    entries = sorted(entry for entry in place.iterdir() if not _hidden(entry))
    folders = [entry for entry in entries if entry.is_dir()]
    if not entries:
        raise DalifError(Code.BAD_DATA, f"{place}: the folder is empty; recordings, or one folder a class, are needed")
    if not folders:
        parts = [read_recordings(entry) for entry in entries]
        return _joined(place, parts, None)
    if len(folders) < len(entries):
        other = next(entry for entry in entries if not entry.is_dir())
        raise DalifError(
            Code.BAD_DATA, f"{place}: holds folders and also {other.name}; put every recording into its class's folder"
        )
    if all(folder.name.isdecimal() for folder in folders):
        folders.sort(key=lambda folder: int(folder.name))
    parts, labels = [], []
    for number, folder in enumerate(folders):
        for entry in sorted(entry for entry in folder.iterdir() if not _hidden(entry)):
            if entry.is_dir():
                raise DalifError(Code.BAD_DATA, f"{entry}: a folder inside a class's folder; only recordings go there")
            parts.append(read_recordings(entry))
            if parts[-1].labels is not None:
                raise DalifError(
                    Code.AMBIGUOUS, f"{entry}: has labels of its own inside a class's folder; give it by itself"
                )
            labels += [number] * len(parts[-1])
    if not parts:
        raise DalifError(Code.BAD_DATA, f"{place}: its folders are empty; recordings are needed")
    names = ", ".join(f"{number} {folder.name}" for number, folder in enumerate(folders[:10]))
    more = ", ..." if len(folders) > 10 else ""
    return _joined(place, parts, labels, f"labels, by folder: {names}{more}")


def _joined(place: Path, parts: list[Recordings], labels: list[int] | None, *notes: str) -> Recordings:
    own = [part.labels for part in parts if part.labels is not None]
    if labels is None and own and len(own) < len(parts):
        raise DalifError(Code.AMBIGUOUS, f"{place}: some of its files have labels and some have none")
    found = np.array(labels) if labels is not None else np.concatenate(own) if own else None
    told = dict.fromkeys((*notes, *(note for part in parts for note in part.notes)))
    return Recordings(tuple(item for part in parts for item in part.items), found, f"{place.name}/", tuple(told))
