"""Runs an exported .nir file on snnTorch: it reads the file itself and computes with its own neurons."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import nir
import torch

from dalif_deploy.dialects import SNNTORCH
from dalif_deploy.runtimes.nir_file import (
    NIRTORCH_ORDER,
    NirFile,
    NirSimulator,
    Step,
    importing,
    missing,
    require,
    submodules,
)


def available() -> str | None:
    """None if snnTorch is installed, else the command that installs it."""
    return missing("snntorch", "nirtorch")


class SnnTorchRuntime(NirSimulator):
    """snnTorch, float32, reading the file at `path`.

    Raises `DalifError`: MISSING_PACKAGE; FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE; RUNTIME_CANNOT_RUN for what
    snnTorch would misread (beta below 0, a v_reset other than 0, a padded sum pool) or refuses (an IF, thresholds
    that differ within a layer), and for a file in another simulator's dialect.
    """

    name = "snntorch"
    title = "snnTorch"
    update: Literal["sum", "decay"] = "sum"

    def __init__(self, path: str | Path) -> None:
        require(self.name, available())
        file = NirFile.open(path)
        file.check(SNNTORCH)
        with importing(file, self.name), _as_it_was(), redirect_stdout(io.StringIO()):  # it prints what it does
            from snntorch.import_nir import import_from_nir

            modules = submodules(import_from_nir(nir.read(str(path))), file)
        super().__init__(file, modules, stepped=_stepped, notes=(NIRTORCH_ORDER,))


def _stepped(neuron: Any) -> Step:
    """A neuron that holds its own potential as a step; it starts from rest where there is no state yet."""

    def step(x: torch.Tensor, started: bool | None) -> tuple[torch.Tensor, bool]:
        if not started:
            neuron.reset_mem()
        return neuron(x), True

    return step


@contextmanager
def _as_it_was() -> Iterator[None]:
    """snnTorch keeps every neuron ever made in a list of its own; the caller's is left as it was."""
    from snntorch import SpikingNeuron

    kept = len(SpikingNeuron.instances)
    try:
        yield
    finally:
        del SpikingNeuron.instances[kept:]
