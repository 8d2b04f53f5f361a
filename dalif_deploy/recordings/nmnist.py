"""N-MNIST's .bin files: five bytes an event, without a header.

Layout (Orchard et al., "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades", 2015):
x, y, then a bit of polarity and 23 bits of microseconds, the most significant byte first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError

EVENT = 5
SIDE = 34
"""N-MNIST's pixels, along both axes."""


def is_nmnist(content: bytes) -> bool:
    """Whether bytes without a header can be an N-MNIST recording: whole events, inside its pixels, sorted."""
    if not content or len(content) % EVENT:
        return False
    columns = decode_nmnist(content, "")
    inside = columns["x"].max() < SIDE and columns["y"].max() < SIDE
    return bool(inside and (np.diff(columns["t"]) >= 0).all())


def decode_nmnist(content: bytes, name: str) -> dict[str, NDArray[np.int64]]:
    """The columns t, x, y and p. Raises `DalifError` (FILE_DAMAGED) where the last event is cut."""
    if len(content) % EVENT:
        raise DalifError(
            Code.FILE_DAMAGED, f"{name}: {len(content)} bytes are no whole number of events of {EVENT} bytes; the file "
            "is truncated: copy it again",
        )  # fmt: skip
    x, y, high, middle, low = np.frombuffer(content, np.uint8).reshape(-1, EVENT).T.astype(np.int64)
    return {"t": (high & 0x7F) << 16 | middle << 8 | low, "x": x, "y": y, "p": high >> 7}
