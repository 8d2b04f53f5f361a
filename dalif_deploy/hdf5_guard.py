"""Reads an HDF5 file once in a process of its own, since HDF5 can end the process that reads a damaged one.

Bytes changed in the middle of a file can send HDF5's C library to addresses that do not exist. That is no exception
that could be caught; so the first reading, of everything in the file, happens where it harms nobody.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from dalif_deploy.errors import Code, DalifError

PATIENCE, SPEED = 20.0, 5e6
"""Seconds after which a reading that does not end is taken for one that never would: so many, and one more for so many
bytes."""

_READ = """
import sys
import h5py

def read(group):
    for key in group:
        item = group[key]
        read(item) if isinstance(item, h5py.Group) else item[()]

with h5py.File(sys.argv[1], "r") as file:
    read(file)
"""


def check_readable(path: Path) -> None:
    """Raises `DalifError` (FILE_DAMAGED) where reading the file crashes or does not end.

    Takes a tenth of a second, once for each state of a file. What raises an exception instead is left to whoever reads
    the file here. Where Python does not say what its own program is, nothing is checked.
    """
    state = path.stat()
    how = _outcome(str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns)
    if how is not None:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: the file is damaged, {how}; write or copy it again")


@lru_cache(maxsize=256)
def _outcome(path: str, _number: int, size: int, _changed: int) -> str | None:
    """What went wrong in the other process, or None."""
    if not sys.executable:
        return None
    # The other process finds the same packages, but nothing that happens to lie in the current folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", _READ, path]
    patience = PATIENCE + size / SPEED
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired:
        return f"reading it does not end within {patience:.0f} seconds"
    except OSError:  # no further process can be started
        return None
    return "and reading it crashes the HDF5 library" if ran.returncode < 0 else None
