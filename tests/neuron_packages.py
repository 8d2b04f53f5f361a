"""Networks of other packages' neurons, calibrated so that every layer fires. The packages are imported where asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

T = 6
MakeNeuron = Callable[[int], nn.Module]
"""A neuron layer of so many channels."""


def package(name: str) -> ModuleType:
    """An installed package's module; the test is skipped where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: ModuleType = pytest.importorskip(name)
    return found


class OneStep(nn.Module):
    """conv - BN - neuron - pool - linear - BN - neuron - linear: one timestep, on neurons that hold their state."""

    def __init__(self, neuron: MakeNeuron) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.lif1 = neuron(6)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(6 * 9, 16)
        self.bn2 = nn.BatchNorm1d(16)
        self.lif2 = neuron(16)
        self.head = nn.Linear(16, 4)

    def first(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn1(self.conv(x))
        return out

    def second(self, spikes: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.fc(self.pool(spikes).flatten(1)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lif2(self.second(self.lif1(self.first(x)))))
        return out


def frames(batch: int = 4, *, seed: int = 1) -> Tensor:
    """Input [batch, T, 2, 6, 6] that changes from step to step."""
    return torch.rand((batch, T, 2, 6, 6), generator=torch.Generator().manual_seed(seed))


def calibrated(net: nn.Module, *, mean: float = 0.3, spread: float = 0.5, seed: int = 2) -> nn.Module:
    """Weights drawn from `seed`; BatchNorm that gives currents of about this mean and spread, by running statistics
    of a few passes, the neurons starting anew for each."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for child in net.modules():
            if isinstance(child, nn.Conv2d | nn.Linear):
                child.reset_parameters()
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                child.momentum = None
                nn.init.normal_(child.weight, spread, 0.1 * spread)
                nn.init.normal_(child.bias, mean, 0.1)
        net.train()
        with torch.no_grad():
            for number in range(3):
                restart(net)
                run(net, frames(8, seed=number))
    restart(net)
    return net.eval()


def run(net: nn.Module, x: Tensor) -> Any:
    """All timesteps of `x` [B, T, ...]."""
    return [net(x[:, t]) for t in range(T)] if type(net) is OneStep else net(x)


def restart(net: nn.Module) -> None:
    """Every neuron as before its first step, by the packages' own methods."""
    for child in net.modules():
        for method in ("reset_mem", "reset"):
            own = getattr(child, method, None)
            if callable(own):
                own()
