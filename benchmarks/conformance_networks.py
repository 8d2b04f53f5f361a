"""The networks of the conformance table, for any leak, and their input: real digits, and seeded noise.

All are folded graphs, as the exporters take them. All but the digits network are untrained, with BatchNorm statistics
measured on the input (see `networks.calibrate`), so that every layer fires.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dalif_deploy import DALIF, capture, fold, load
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.networks import calibrate, resnet20
from dalif_deploy.nodes import frozen

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from digits_data import load_split  # noqa: E402  # the examples are scripts beside each other, no package

SEED = 4
BETAS = (0.0, 0.25, 0.5, 0.9, 1.0, -0.25)
TIMESTEPS = 12
"""Of the small networks; the digits network and ResNet-20 have 4."""


@dataclass(frozen=True, eq=False)
class Specimen:
    """A training graph, the graph folded of it, and a batch of which the first `real` samples are digits and the
    others noise."""

    graph: SpikingGraph
    folded: SpikingGraph
    batch: NDArray[np.generic]
    real: int


def norm(channels: int) -> nn.BatchNorm2d:
    """A BatchNorm whose output has the mean 0.3, so that neurons fire."""
    made = nn.BatchNorm2d(channels)
    nn.init.constant_(made.bias, 0.3)
    return made


class Pooled(nn.Module):
    """convolution - neuron - pool - affine - neuron - affine. The pool's division goes into the affine layer's
    weights: a sum pool."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv, self.bn, self.sn1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), norm(8), neuron()
        self.pool, self.flatten = nn.AvgPool2d(2), nn.Flatten()
        self.fc1, self.bn2, self.sn2 = nn.Linear(128, 24), nn.BatchNorm1d(24), neuron()
        self.fc2 = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flatten(self.pool(self.sn1(self.bn(self.conv(x)))))
        return self.fc2(self.sn2(self.bn2(self.fc1(x))))  # type: ignore[no-any-return]


class Averaged(nn.Module):
    """convolution - average pool - neuron - convolution - neuron - average pool: averages of currents, and of spikes
    that are read out."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1, self.pool1, self.sn1 = nn.Conv2d(1, 8, 3, padding=1), norm(8), nn.AvgPool2d(2), neuron()
        self.conv2, self.bn2, self.sn2 = nn.Conv2d(8, 10, 3, padding=1, bias=False), norm(10), neuron()
        self.pool2, self.flatten = nn.AvgPool2d(4), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.sn1(self.pool1(self.bn1(self.conv1(x))))
        return self.flatten(self.pool2(self.sn2(self.bn2(self.conv2(x)))))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A block whose shortcut is the identity, or a 1x1 convolution with stride 2."""

    def __init__(self, neuron: Callable[[], nn.Module], *, stride: int) -> None:
        super().__init__()
        self.stem, self.bn0, self.sn0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), norm(8), neuron()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, stride=stride, padding=1, bias=False), norm(8)
        self.sn1 = neuron()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8)
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(nn.Conv2d(8, 8, 1, stride, bias=False), norm(8))
        self.sn2, self.flatten, self.fc = neuron(), nn.Flatten(), nn.Linear(8 * (8 // stride) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.sn0(self.bn0(self.stem(x)))
        branch = self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x)))))
        return self.fc(self.flatten(self.sn2(branch + self.shortcut(x))))  # type: ignore[no-any-return]


def frames(samples: int, side: int, timesteps: int) -> NDArray[np.float32]:
    """[2 samples, T, 1, side, side]: held-out digits whose pixels are repeated, one column further on at every step,
    then noise, other at every step; both from 0 to 1."""
    codes = load_split()[2][:samples]
    digits = np.kron(codes / 16, np.ones((1, 1, side // 8, side // 8))).astype(np.float32)
    moving = np.stack([np.roll(digits, t, axis=-1) for t in range(timesteps)], axis=1)
    return np.concatenate([moving, np.random.default_rng(SEED).random(moving.shape, dtype=np.float32)])


def _untrained(
    build: Callable[[Callable[[], nn.Module]], nn.Module], beta: float, samples: int, *, side: int, timesteps: int
) -> Specimen:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = build(partial(DALIF, activation="identity", alpha_init=0.75, beta_init=beta)).eval()
    batch = frames(samples, side, timesteps)
    calibrate(network, batch, timesteps, temporal=True)
    graph = capture(network, example_input=batch[:2], timesteps=timesteps, layout="step", readout="mean")
    return Specimen(graph, fold(graph), batch, samples)


def _small(
    build: Callable[[Callable[[], nn.Module]], nn.Module],
) -> Callable[[float, int], Specimen]:
    return lambda beta, samples: _untrained(build, beta, samples, side=8, timesteps=TIMESTEPS)


def _digits(beta: float, samples: int) -> Specimen:
    """The shipped network, trained but for the leak."""
    trained = load(EXAMPLES / "models" / "digits.pt")
    leaks = {neuron.name: replace(neuron, beta=frozen(np.float32(beta))) for neuron in trained.neurons}
    graph = trained.replaced(leaks)
    codes = np.concatenate(
        [load_split()[2][:samples], np.random.default_rng(SEED).integers(0, 17, (samples, 1, 8, 8), dtype=np.uint8)]
    )
    return Specimen(graph, fold(graph), codes, samples)


NETWORKS: dict[str, Callable[[float, int], Specimen]] = {
    "conv-sumpool": _small(Pooled),
    "conv-avgpool": _small(Averaged),
    "identity residual": _small(partial(Residual, stride=1)),
    "two-branch residual": _small(partial(Residual, stride=2)),
    "digits": _digits,
    "narrow ResNet-20": lambda beta, samples: _untrained(
        lambda neuron: resnet20(10, in_channels=1, widths=(8, 12, 16), neuron=neuron), beta, samples,
        side=16, timesteps=4,
    ),
}  # fmt: skip
"""By name: a network with this leak, and a batch of so many digits and as much noise."""
