"""AEDAT4 files, decoded by the package faery in a process of its own: damaged files can end the one that reads them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError

MAGIC = b"#!AER-DAT"
CAVEAT = "AEDAT 4 is read by faery, which raises a time stamp that goes back to the one before it"
"""To be said of every such file: from what faery gives it cannot be told whether there were any."""
_TROUBLE = b"dalif: "

_DECODE = """
import sys
import numpy
from faery import aedat

try:
    with aedat.Decoder(sys.argv[1]) as decoder:
        tracks = [track for track in decoder.tracks() if track.data_type == "events"]
        if len(tracks) != 1:
            raise ValueError(f"holds {len(tracks)} streams of events, one is needed")
        packets = [packet for track, packet in decoder if track.id == tracks[0].id and len(packet)]
        width, height = tracks[0].dimensions
    out = sys.stdout.buffer
    numpy.save(out, numpy.array([height, width]))
    for name in ("t", "x", "y", "p"):
        numpy.save(out, numpy.concatenate([packet[name] for packet in packets]) if packets else numpy.zeros(0, int))
except Exception as error:
    print(f"dalif: {error}", file=sys.stderr)
    sys.exit(1)
"""


def decode_aedat(path: Path, head: bytes) -> tuple[dict[str, NDArray[np.generic]], tuple[int, int]]:
    """The columns t, x, y and p, and the sensor, (height, width).

    `head`: the file's first bytes. Raises `DalifError`: FOREIGN_FILE for another version of AEDAT, MISSING_PACKAGE,
    FILE_DAMAGED.
    """
    if not head.startswith(MAGIC + b"4"):
        version = head[len(MAGIC) :].split(b"\r")[0].split(b"\n")[0].decode("ascii", "replace")
        raise DalifError(
            Code.FOREIGN_FILE, f"{path}: is AEDAT {version}, and only AEDAT 4 is read here; convert it to AEDAT 4"
        )
    if find_spec("faery") is None:
        raise DalifError(
            Code.MISSING_PACKAGE, f"{path}: reading AEDAT 4 needs a package; install it: pip install faery"
        )
    # The other process finds the same packages, but nothing that happens to lie in the current folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", _DECODE, str(path)]
    ran = subprocess.run(command, env=environment, capture_output=True, check=False)
    if ran.returncode != 0:
        told = [line for line in ran.stderr.splitlines() if line.startswith(_TROUBLE)]
        why = told[-1].removeprefix(_TROUBLE).decode(errors="replace") if told else "reading it ends its decoder"
        raise DalifError(Code.FILE_DAMAGED, f"{path}: cannot be read as AEDAT 4 ({why}); copy or write it again")
    stream = io.BytesIO(ran.stdout)
    height, width = np.load(stream).tolist()
    return {name: np.load(stream) for name in ("t", "x", "y", "p")}, (height, width)
