"""A small network for recordings of event cameras, and recordings made by loops of plain Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

import dalif_deploy


class EventNet(nn.Module):
    """One step: [B, 2, H, W] in, 10 logits out. Its weights are seeded, mostly positive, so that events make it fire.
    H and W are at least 8."""

    def __init__(self, height: int = 34, width: int = 34, gain: float = 3.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 5, stride=4, padding=2)
        self.sn1 = dalif_deploy.DALIF(alpha_init=0.9, beta_init=0.9)
        self.fc1 = nn.Linear(4 * ((height + 3) // 4) * ((width + 3) // 4), 16)
        self.sn2 = dalif_deploy.DALIF(alpha_init=0.9, beta_init=0.9)
        self.fc2 = nn.Linear(16, 10)
        rng = np.random.default_rng(5)
        with torch.no_grad():
            for parameter in (self.conv.weight, self.fc1.weight, self.fc2.weight):
                size = gain / float(np.sqrt(parameter[0].numel()))
                parameter.copy_(torch.from_numpy(rng.normal(0.3 * size, size, tuple(parameter.shape))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.sn1(self.conv(x))
        return self.fc2(self.sn2(self.fc1(x.flatten(1))))


def saved(
    path: Path, *, timesteps: int, sensor: tuple[int, int] = (34, 34), encoding: dalif_deploy.Encoding | None = None
) -> Path:
    """An `EventNet` as a model.pt that runs `timesteps` steps of `sensor` (height, width)."""
    height, width = sensor
    example = np.zeros((1, timesteps, 2, height, width), np.float32)
    dalif_deploy.save(
        EventNet(height, width), path, example_input=example, timesteps=timesteps, layout="step", temporal=True,
        encoding=encoding or dalif_deploy.Encoding(),
    )  # fmt: skip
    return path
