"""Augmentation of single images, codes uint8 [C, H, W], and of frames of events [T, C, H, W].

Random numbers are torch's, so that a run can be resumed. Only AutoAugment and pictures of any size need torchvision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dalif_deploy import Code, DalifError, Encoding

Transform = Callable[[Tensor], Tensor]


def torchvision() -> Any:
    """The package torchvision. Raises `DalifError` (MISSING_PACKAGE).

    The build on the Python Package Index is for CUDA: beside a CPU-only torch its compiled operators do not load,
    and the import then fails where it describes two of them. Nothing here calls them. They are declared, and the
    import goes on.
    """
    try:
        import torchvision
    except ImportError as error:
        raise DalifError(
            Code.MISSING_PACKAGE,
            f'this needs torchvision ({error}); install it with: pip install "dalif_deploy[train]", '
            "or beside a CPU-only torch with: pip install --no-deps torchvision",
        ) from error
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )  # fmt: skip
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left
        import torchvision
    import torchvision.datasets
    import torchvision.transforms

    return torchvision


@dataclass(frozen=True)
class Augmentation:
    """How training samples are varied; the fields are those of `Recipe`. The default varies nothing."""

    crop: int = 0
    flip: bool = False
    autoaugment: bool = False
    cutout: int = 0
    roll: int = 0


class Normalise:
    """Codes uint8 [C, H, W] become what the network takes, float32: the very numbers that `encoding` defines."""

    def __init__(self, encoding: Encoding, channels: int) -> None:
        codes = np.broadcast_to(np.arange(256, dtype=np.uint8), (1, channels, 256))
        self._table = torch.from_numpy(encoding.module_input(codes, feature_axis=1)[0])

    def __call__(self, codes: Tensor) -> Tensor:
        return torch.stack([row[plane.long()] for row, plane in zip(self._table, codes, strict=True)])


def image_transform(augmentation: Augmentation, normalise: Transform, policy: str) -> Transform:
    """Codes uint8 [C, H, W] to the network's input: crop, flip, AutoAugment, normalise, cutout, in this order.

    `policy`: of AutoAugment, "cifar10" or "imagenet". Raises `DalifError` (MISSING_PACKAGE).
    """
    steps: list[Transform] = []
    if augmentation.crop:
        steps.append(partial(_random_crop, padding=augmentation.crop))
    if augmentation.flip:
        steps.append(_random_flip)
    if augmentation.autoaugment:
        steps.append(autoaugment(policy))
    steps.append(normalise)
    if augmentation.cutout:
        steps.append(partial(_cutout, side=augmentation.cutout))
    return _Chain(steps)


def frames_transform(augmentation: Augmentation) -> Transform:
    """Counts of events [T, C, H, W] to the network's input, float32: flip, then roll; all steps alike."""
    steps: list[Transform] = [Tensor.float]
    if augmentation.flip:
        steps.append(_random_flip)
    if augmentation.roll:
        steps.append(partial(_random_roll, most=augmentation.roll))
    return _Chain(steps)


def autoaugment(policy: str) -> Transform:
    """torchvision's AutoAugment with the policy "cifar10" or "imagenet"."""
    transforms = torchvision().transforms
    made: Transform = transforms.AutoAugment(transforms.AutoAugmentPolicy(policy))
    return made


class _Chain:
    """One transform after the other. (A class, so that it can be sent to worker processes.)"""

    def __init__(self, steps: list[Transform]) -> None:
        self._steps = steps

    def __call__(self, sample: Tensor) -> Tensor:
        for step in self._steps:
            sample = step(sample)
        return sample


def _random_crop(codes: Tensor, padding: int) -> Tensor:
    """A window of the image's own size, out of the image with `padding` black pixels around it."""
    height, width = codes.shape[-2:]
    padded = nn.functional.pad(codes, [padding] * 4)
    top, left = torch.randint(2 * padding + 1, (2,)).tolist()
    return padded[..., top : top + height, left : left + width]


def _random_flip(image: Tensor) -> Tensor:
    return image.flip(-1) if torch.rand(()) < 0.5 else image


def _random_roll(frames: Tensor, most: int) -> Tensor:
    down, right = (torch.randint(2 * most + 1, (2,)) - most).tolist()
    return frames.roll((down, right), dims=(-2, -1))


def _cutout(image: Tensor, side: int) -> Tensor:
    """The image with a square of zeros, the mean, around a random pixel; it may reach over the edge."""
    height, width = image.shape[-2:]
    top = int(torch.randint(height, ())) - side // 2
    left = int(torch.randint(width, ())) - side // 2
    blotted = image.clone()
    blotted[..., max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0.0
    return blotted
