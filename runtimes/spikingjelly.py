"""Runs an exported .nir file on SpikingJelly: it reads the file itself and computes with its own neurons."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.dialects import CANONICAL, DT, SPIKINGJELLY
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.nir_file import (
    NIRTORCH_ORDER,
    NirFile,
    NirSimulator,
    importing,
    itself,
    missing,
    require,
    submodules,
)

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def available() -> str | None:
    """None if SpikingJelly is installed, else the command that installs it."""
    return missing("spikingjelly", "nirtorch", "loguru")


class SpikingJellyRuntime(NirSimulator):
    """SpikingJelly, reading the file at `path`; `dtype` is what the whole network computes in.

    Raises `DalifError`: MISSING_PACKAGE; BAD_OPTION for another dtype; FILE_MISSING, FILE_DAMAGED,
    FOREIGN_FILE; RUNTIME_CANNOT_RUN for what SpikingJelly would misread (a v_reset other than 0, a padded sum
    pool) or refuses (beta <= 0, parameters that differ within a layer), for a file in another simulator's
    dialect, and for one in its own, whose thresholds are float32's, in float64.
    """

    name = "spikingjelly"
    title = "SpikingJelly"
    update: Literal["sum", "decay"] = "decay"

    def __init__(self, path: str | Path, *, dtype: Literal["float32", "float64"] = "float32") -> None:
        require(self.name, available())
        if dtype not in _DTYPES:
            raise DalifError(Code.BAD_OPTION, f"dtype {dtype!r}: SpikingJelly runs in 'float32' or 'float64'")
        file = NirFile.open(path)
        file.check(SPIKINGJELLY)
        if dtype == "float64" and file.dialect != CANONICAL.name:
            raise DalifError(
                Code.RUNTIME_CANNOT_RUN,
                f"{path}: its thresholds are chosen for float32; run it in float32, or a canonical file in float64",
            )
        with importing(file, self.name), _without_triton_notice():
            from spikingjelly.activation_based.nir_exchange import import_from_nir

            modules: dict[str, Any] = submodules(import_from_nir(str(path), dt=DT, dtype=_DTYPES[dtype]), file)
        super().__init__(
            file, modules, stepped=itself, notes=(NIRTORCH_ORDER,), dtype=_DTYPES[dtype],
            neuron_of=lambda wrapper: wrapper.module,
        )  # fmt: skip

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """One batch, [N, ...] static or [N, T, ...] temporal; see `Stepper.run`."""
        with _without_triton_notice():
            return super().run(batch)


@contextmanager
def _without_triton_notice() -> Iterator[None]:
    """SpikingJelly loads its operators at the first step, and torch then logs that there is no Triton here."""
    logger = logging.getLogger("torch._library.triton")

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Triton not available")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
