"""Runs an exported .nir file on snnTorch: it reads the file itself and computes with its own neurons."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.dialects import SNNTORCH
from dalif_deploy.nir_rules import sanitized
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.nir_file import (
    NirFile,
    Step,
    Stepper,
    importing,
    installed_version,
    missing,
    qualified_names,
    require,
    stateless,
)


def available() -> str | None:
    """None if snnTorch is installed, else the command that installs it."""
    return missing("snntorch", "nirtorch")


class SnnTorchRuntime:
    """snnTorch, float32, reading the file at `path`.

    Raises `DalifError`: MISSING_PACKAGE; FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE; RUNTIME_CANNOT_RUN for what
    snnTorch would misread (beta below 0, a v_reset other than 0, a padded sum pool) or refuses (an IF, thresholds
    that differ within a layer), and for a file in another simulator's dialect.
    """

    name = "snntorch"
    update: Literal["sum", "decay"] = "sum"

    def __init__(self, path: str | Path) -> None:
        require(self.name, available())
        file = NirFile.open(path)
        file.check(SNNTORCH)
        with importing(file, self.name), _as_it_was(), redirect_stdout(io.StringIO()):  # it prints what it does
            from snntorch.import_nir import import_from_nir

            network = import_from_nir(nir.read(str(path)))
            modules = {
                name: network.get_submodule(sanitized(name))
                for name, node in file.graph.nodes.items()
                if not isinstance(node, nir.Input | nir.Output)
            }
        neurons = {layer.name: modules[layer.name] for layer in file.metadata.layers}
        self.neuron_class: str = qualified_names(list(neurons.values()))
        """The class, or classes, of the neurons that run."""
        self.notes: tuple[str, ...] = (
            "nodes are wired by dalif_deploy, since nirtorch adds three branches or more in an order that varies",
        )
        """What is steered round."""
        steps: dict[str, Step] = {
            name: _stepped(module) if isinstance(file.graph.nodes[name], nir.LIF | nir.IF) else stateless(module)
            for name, module in modules.items()
        }
        self._stepper = Stepper(file, steps, torch.float32)

    @property
    def description(self) -> str:
        """The package that computes, its dtype, and what is steered round."""
        return f"snnTorch {installed_version('snntorch')}, float32, CPU; {'; '.join(self.notes)}"

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """One batch, [N, ...] static or [N, T, ...] temporal; see `Stepper.run`."""
        return self._stepper.run(batch)


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
