"""Runs a .nir file in sinabs' dialect on sinabs: it reads every node's parameters and computes with its own neurons."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import nir
import numpy as np
import torch

from dalif_deploy.dialects import SINABS
from dalif_deploy.nir_neurons import leak_of
from dalif_deploy.runtimes.nir_file import (
    NirFile,
    NirSimulator,
    Step,
    importing,
    missing,
    require,
)

_RULES = (
    "neurons have sinabs' SingleSpike and MembraneReset, since it imports them to fire several spikes a step and to "
    "subtract the threshold"
)
_LEAK = "leaks are given to it as alpha_mem where exp(-1 / tau) in float32 misses them"
_MAPS = "v_leak is shown to it flat, since its check fails for feature maps"
_WIRING = "nodes are wired by dalif_deploy, since sinabs.from_nir runs them out of order where sums occur"


def available() -> str | None:
    """None if sinabs is installed, else the command that installs it."""
    return missing("sinabs", "nirtorch", "pbr", "matplotlib")


class SinabsRuntime(NirSimulator):
    """sinabs, float32, reading the file at `path`, which is in its dialect.

    Raises `DalifError`: MISSING_PACKAGE; FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE; RUNTIME_CANNOT_RUN for a
    canonical file, whose tau sinabs would take for a number of steps, or one in another simulator's dialect, and for
    what it would misread (a v_reset other than 0, an IF, a padded sum pool) or refuses.
    """

    name = "sinabs"
    title = "sinabs"
    update: Literal["sum", "decay"] = "sum"

    def __init__(self, path: str | Path) -> None:
        require(self.name, available())
        file = NirFile.open(path)
        file.check(SINABS)
        with importing(file, self.name):
            modules = {name: module for name, node in file.graph.nodes.items() if (module := _imported(node))}
        lifs = {name: node for name, node in file.graph.nodes.items() if isinstance(node, nir.LIF)}
        given = [_configured(modules[name], node) for name, node in lifs.items()]
        maps = any(np.ndim(node.v_leak) > 1 for node in lifs.values())
        notes = (_RULES, *([_LEAK] if any(given) else []), *([_MAPS] if maps else []), _WIRING)
        super().__init__(file, modules, stepped=_stepped, notes=notes)


def _imported(node: nir.NIRNode) -> torch.nn.Module | None:
    """sinabs' module for a node, for one timestep at a time; None for input and output."""
    if isinstance(node, nir.Input | nir.Output):
        return None
    from sinabs.nir import _import_sinabs_module

    if isinstance(node, nir.LIF):
        node = copy.copy(node)
        node.v_leak = np.ravel(node.v_leak)
    module: torch.nn.Module | None = _import_sinabs_module(node, batch_size=None, num_timesteps=1)
    if module is None:
        raise ValueError(f"sinabs has no module for nir.{type(node).__name__}")
    return module


def _configured(neuron: Any, node: nir.LIF) -> bool:
    """Give a neuron the network's rules; whether its leak, too, had to be given to it."""
    from sinabs.activation import MembraneReset, SingleSpike

    neuron.spike_fn, neuron.reset_fn = SingleSpike, MembraneReset()
    leak = torch.from_numpy(leak_of(node.tau, SINABS).astype(np.float32))
    if torch.equal(neuron.alpha_mem_calculated, leak):
        return False
    neuron.alpha_mem, neuron.alpha_syn, neuron.train_alphas = torch.nn.Parameter(leak), None, True
    return True


def _stepped(neuron: Any) -> Step:
    """A neuron that holds its own potential as a step; it starts from rest where there is no state yet."""

    def step(x: torch.Tensor, started: bool | None) -> tuple[torch.Tensor, bool]:
        if not started:
            neuron.init_state_with_shape(x.shape)
        return neuron(x), True

    return step
