"""Runs an exported .nir file on norse: norse reads every node's parameters and computes with its own neurons."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import nir
import torch

from dalif_deploy.dialects import DT, NORSE
from dalif_deploy.runtimes.nir_file import (
    NirFile,
    NirSimulator,
    importing,
    itself,
    missing,
    require,
)


def available() -> str | None:
    """None if norse is installed, else the command that installs it."""
    return missing("norse", "nirtorch")


class NorseRuntime(NirSimulator):
    """norse, float32, reading the file at `path`.

    Raises `DalifError`: MISSING_PACKAGE; FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE; RUNTIME_CANNOT_RUN for what
    norse would misread (a v_reset other than 0, a padded sum pool) or refuses, and for a file in another
    simulator's dialect.
    """

    name = "norse"
    title = "norse"
    update: Literal["sum", "decay"] = "decay"

    def __init__(self, path: str | Path) -> None:
        require(self.name, available())
        file = NirFile.open(path)
        file.check(NORSE)
        with importing(file, self.name):
            modules = {name: module for name, node in file.graph.nodes.items() if (module := _imported(node))}
        wired = "nodes are wired by dalif_deploy, since norse.torch.from_nir runs them out of order where sums occur"
        pooled = any(isinstance(node, nir.AvgPool2d) for node in file.graph.nodes.values())
        notes = (wired, "average pools are nirtorch's, since norse has none") if pooled else (wired,)
        super().__init__(file, modules, stepped=itself, notes=notes)


def _imported(node: nir.NIRNode) -> torch.nn.Module | None:
    """norse's module for a node; None for input and output."""
    if isinstance(node, nir.Input | nir.Output):
        return None
    with warnings.catch_warnings():
        # norse compiles parts of itself with torch.jit.script, which newer versions of torch warn of.
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        from norse.torch.utils.import_nir import _import_norse_module
    from nirtorch.nir_interpreter import DEFAULT_MAP

    # ignore_warnings: norse would log that it ignores r, which it may (r is 1, or the 1 / dt of an IF).
    module: torch.nn.Module | None = _import_norse_module(node, ignore_warnings=True, dt=DT)
    if module is None:
        if type(node) not in DEFAULT_MAP:
            raise ValueError(f"norse has no module for nir.{type(node).__name__}")
        module = DEFAULT_MAP[type(node)](node)
    return module
