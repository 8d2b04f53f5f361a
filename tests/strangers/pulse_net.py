"""Somebody's network, as their project has it: their own neuron, the loop over time inside forward.

It knows nothing of the package that exports it; `adapter.py` is all that was written for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return grad * (distance.abs() < 0.5).to(grad.dtype)


class PulseCell(nn.Module):
    """Charge that leaks and is fed, a pulse where it reaches the barrier, and a fall to the floor after it."""

    def __init__(self, drive: float = 1.2, keep: float = 0.5, barrier: float = 1.0, floor: float = 0.0) -> None:
        super().__init__()
        self.drive_raw = nn.Parameter(torch.tensor(math.log(math.expm1(drive))))
        self.keep_raw = nn.Parameter(torch.tensor(math.log(keep / (1.0 - keep))))
        self.barrier, self.floor = barrier, floor
        self.charge: Tensor | None = None

    def drive(self) -> Tensor:
        return nn.functional.softplus(self.drive_raw)

    def keep(self) -> Tensor:
        return torch.sigmoid(self.keep_raw)

    def forward(self, current: Tensor) -> Tensor:
        charge = torch.zeros_like(current) if self.charge is None else self.charge
        charge = self.keep() * charge + self.drive() * current
        pulse = _Step.apply(charge - self.barrier)
        self.charge = self.floor * pulse + charge * (1.0 - pulse)
        return pulse


class PulseNet(nn.Module):
    """8 x 8 images to ten digits in `steps` timesteps."""

    def __init__(self, width: int = 8, steps: int = 4) -> None:
        super().__init__()
        self.steps = steps
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.fire1 = PulseCell()
        self.mix = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.fire2 = PulseCell(drive=0.6, keep=0.3, barrier=1.5)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(width * 16, 10)

    def rest(self) -> None:
        for cell in (self.fire1, self.fire2):
            cell.charge = None

    def forward(self, images: Tensor) -> Tensor:
        self.rest()
        current = self.stem(images)  # the image does not change, so once is enough
        total = torch.zeros(1)
        for _ in range(self.steps):
            first = self.fire1(current)
            second = self.fire2(self.norm(self.mix(first)) + first)
            total = total + self.head(self.pool(second).flatten(1))
        return total / self.steps


def build(width: int = 8, steps: int = 4) -> PulseNet:
    """What they call to make their network."""
    return PulseNet(width, steps)


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(images) - size + 1, size):
        chosen = order[start : start + size]
        yield images[chosen], labels[chosen]


def trained(images: Tensor, labels: Tensor, *, width: int, epochs: int) -> tuple[PulseNet, torch.optim.Optimizer]:
    """Their training. `images` [N, 1, 8, 8] in 0..1, `labels` [N]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(width)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for inputs, targets in batches(images, labels, 64, generator):
            loss = nn.functional.cross_entropy(net(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.rest()
    return net, optimizer
