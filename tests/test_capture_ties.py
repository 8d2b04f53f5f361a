"""Ties that float64 rounding decides one way in the module and the other way in the graph are no mismatch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalif_deploy import DALIF, save
from dalif_deploy.capturing import capture_module
from dalif_deploy.equivalence import simulate

TIMESTEPS = 4


def network(neuron: nn.Module) -> nn.Module:
    """Sums of spikes / 9 with weights on a grid of 1/8: multiples of 1/72 in exact arithmetic, and often v_th."""
    torch.manual_seed(1)
    first, last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 16, 3)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.copy_((parameter * 24).round() / 8)
    return nn.Sequential(nn.AvgPool2d(3), first, neuron, nn.Flatten(), last)


def batch() -> NDArray[np.float32]:
    return (np.random.default_rng(1).random((4, 8, 12, 12)) < 0.3).astype(np.float32)


def neuron() -> DALIF:
    return DALIF(activation="identity", beta_init=0.5, v_threshold=0.5)


def test_a_module_that_decides_ties_by_its_own_rounding_is_captured(tmp_path: Path) -> None:
    save(network(neuron()), tmp_path / "model.pt", example_input=batch(), timesteps=TIMESTEPS, encoding="spikes")
    # It is such a module: in float64 it fires otherwise than the graph, at a tie.
    model = capture_module(network(neuron()), example_input=batch(), timesteps=TIMESTEPS)
    ours, theirs = simulate(model.graph, batch()), model.run_float64(batch())
    assert sum(train.differing(theirs.spikes[name]).sum() for name, train in ours.spikes.items()) > 0
