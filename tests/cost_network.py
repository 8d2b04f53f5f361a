"""A network small enough to count by hand, on which other packages' counters were run once."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dalif_deploy import DALIF

TIMESTEPS = 3
SAMPLES = 2


class Counted(nn.Module):
    """One step: 2 x 7 x 7 in, 5 logits out. All values are multiples of 1/16, so that every sum is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4, eps=0.0)
        self.sn1 = DALIF(activation="identity", alpha_init=0.75, beta_init=0.5)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.sn2 = DALIF(activation="identity", alpha_init=1.0, beta_init=0.5)
        self.pool = nn.AvgPool2d(2)
        self.conv3 = nn.Conv2d(6, 4, 1)
        self.sn3 = DALIF(activation="identity", alpha_init=0.5, beta_init=0.75)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16, 6)
        self.sn4 = DALIF(activation="identity", alpha_init=1.0, beta_init=0.5)
        self.fc2 = nn.Linear(6, 5)
        rng = np.random.default_rng(7)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim > 1:
                    values = rng.integers(-8, 13, tuple(parameter.shape)) / 16
                    parameter.copy_(torch.from_numpy(values))
                elif parameter.ndim == 1 and "bn" not in name:
                    parameter.copy_(torch.from_numpy(rng.integers(1, 5, tuple(parameter.shape)) / 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.sn1(self.bn1(self.conv1(x)))
        x = self.pool(self.sn2(self.conv2(x)))
        x = self.flatten(self.sn3(self.conv3(x)))
        return self.fc2(self.sn4(self.fc1(x)))


def images() -> NDArray[np.float32]:
    """The two samples, [2, 2, 7, 7]; some pixels are 0."""
    rng = np.random.default_rng(3)
    values = rng.integers(-4, 9, (SAMPLES, 2, 7, 7)) / 8
    return np.maximum(values, 0.0).astype(np.float32)
