"""What a training run needs besides the data: the paper's hyper-parameters for each of its data sets.

Source: Zhang et al., "DA-LIF: Dual Adaptive Leaky Integrate-and-Fire Model for Deep Spiking Neural Networks",
Sec. III-C and IV-A2 and Tables I and II. The paper gives the neuron and its surrogate, SGD with momentum 0.9 and a
rate of 0.1, the epochs, the networks and T. It does not give the schedule, batch size, weight decay, loss or
augmentation; docs/training.md says which values stand here for these, and every one is an option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vgg_small import vgg_small

from dalif_deploy import networks

NETWORKS: Mapping[str, Callable[..., Any]] = {
    "resnet18": networks.resnet18,
    "resnet19": networks.resnet19,
    "resnet20": networks.resnet20,
    "resnet34": networks.resnet34,
    "vgg11": networks.vgg11,
    "vgg16": networks.vgg16,
    "vggsnn": networks.vggsnn,
    "vgg-small": vgg_small,
}


@dataclass(frozen=True)
class Recipe:
    """The defaults of one data set; each field is the option of train.py with that name.

    `epochs`, `timesteps`, `network`, `lr`, `momentum`: the paper's, but for Fashion-MNIST, which it does not use.
    `gain_lr`: what the rate of alpha and beta is of `lr`. `size`: height and width of what the network sees.
    `crop`: pixels of padding before a random crop; for `imagenet` any number means a random resized crop.
    `flip`: mirror half the images. `autoaugment`: the CIFAR-10 or ImageNet policy. `cutout`: side of the square that
    is blotted out. `roll`: by how many pixels frames of events are shifted at most.
    """

    network: str
    timesteps: int
    epochs: int
    batch_size: int
    size: int
    crop: int = 0
    flip: bool = False
    autoaugment: bool = False
    cutout: int = 0
    roll: int = 0
    weight_decay: float = 5e-4
    gain_lr: float = 1.0
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    schedule: str = "cosine"
    loss: str = "ce"
    tet_lambda: float = 0.05
    activation: str = "tanh"
    alpha_init: float = 1.0
    beta_init: float = 1.0
    v_threshold: float = 1.0
    surrogate_width: float = 1.0


_CIFAR = Recipe("resnet20", 4, 1000, 128, 32, crop=4, flip=True, autoaugment=True, cutout=16)

RECIPES: Mapping[str, Recipe] = {
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "fashion-mnist": Recipe("vgg-small", 2, 6, 128, 28, flip=True, gain_lr=0.1),
    "imagenet": Recipe("resnet18", 4, 320, 256, 224, crop=1, flip=True, weight_decay=1e-4),
    "cifar10-dvs": Recipe("resnet20", 16, 1000, 32, 64, flip=True, roll=5),
    "dvs128-gesture": Recipe("vgg11", 16, 200, 16, 128, roll=5),
}
