"""What every runtime offers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.recording import Recording


class Runtime(Protocol):
    """Runs one network, batch by batch.

    `name`: as the user gives it to --runtime. `description`: the package and version that computes, and
    whatever was steered round. `run`: one batch of data, [N, ...] static or [N, T, ...] temporal, holding
    what the trained module takes or uint8 codes where the encoding is uint8 (the runtime applies it);
    state is reset before every batch. Raises `DalifError` (WRONG_SHAPE, BAD_DATA, NOT_FINITE).
    """

    @property
    def name(self) -> str: ...

    @property
    def description(self) -> str: ...

    def run(self, batch: NDArray[np.generic]) -> Recording: ...
