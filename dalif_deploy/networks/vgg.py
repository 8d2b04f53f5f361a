"""VGG networks of DA-LIF neurons: VGG-16, VGG-11 and VGGSNN, rows of conv3x3 with bias - BN - neuron.

"A" below is an average pool by 2. Parameter counts leave out alpha and beta, two per neuron layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.networks.network import Network, NeuronFactory, checked_widths, layer, whole_numbers
from dalif_deploy.neuron import DALIF


def vgg16(
    num_classes: int = 100,
    in_channels: int = 3,
    timesteps: int = 4,
    *,
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """VGG-16 for CIFAR at 32 x 32; 14,774,436 parameters at 100 classes.

    64, 64, A, 128, 128, A, 256 x 3, A, 512 x 3, A, 512 x 3, A, a global average pool, a linear layer: 13 neuron
    layers. Images are 32 x 32 or larger.

    Parameters:
        num_classes: how many logits.
        in_channels: of the images.
        timesteps: T, kept as `timesteps`.
        widths: the channels between one pool and the next, five.
        neuron: makes one neuron layer.
    Raises `DalifError` (BAD_OPTION).
    """
    widths = checked_widths(widths, 5, 5)
    whole_numbers(num_classes=num_classes, in_channels=in_channels, timesteps=timesteps)
    return _pooled_vgg(num_classes, in_channels, timesteps, widths, (2, 2, 3, 3, 3), neuron)


def vgg11(
    num_classes: int = 11,
    in_channels: int = 2,
    timesteps: int = 16,
    *,
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """VGG-11 for DVS128 Gesture: frames of 128 x 128 with two polarities, T = 16; 9,231,051 parameters.

    64, A, 128, A, 256, 256, A, 512, 512, A, 512, 512, A, a global average pool, a linear layer: 8 neuron layers.
    Frames are 32 x 32 or larger. Arguments and errors as `vgg16`.
    """
    widths = checked_widths(widths, 5, 5)
    whole_numbers(num_classes=num_classes, in_channels=in_channels, timesteps=timesteps)
    return _pooled_vgg(num_classes, in_channels, timesteps, widths, (1, 1, 2, 2, 2), neuron)


def vggsnn(
    num_classes: int = 10,
    in_channels: int = 2,
    timesteps: int = 10,
    *,
    size: int = 48,
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """VGGSNN for CIFAR10-DVS: frames of 48 x 48 with two polarities, T = 10; 9,271,498 parameters.

    64, 128, A, 256, 256, A, 512, 512, A, 512, 512, A, then a linear layer on all 512 * 3 * 3 features: 8 neuron
    layers. `size`: the frames' height and width, from 16; the linear layer takes no other. `widths`: the first
    layer's channels, then those before each pool, five in all. Other arguments and errors as `vgg16`.
    """
    widths = checked_widths(widths, 5, 5)
    whole_numbers(num_classes=num_classes, in_channels=in_channels, timesteps=timesteps, size=size)
    if size < 16:
        raise DalifError(Code.BAD_OPTION, f"size = {size}: four pools by 2 leave nothing of it; give at least 16")
    first, *others = widths
    plan = [[first, others[0]], *([out, out] for out in others[1:])]
    features = widths[-1] * (size // 16) ** 2
    parts = {
        "features": _features(in_channels, plan, neuron),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(features, num_classes),
    }
    return Network(parts, in_channels=in_channels, timesteps=timesteps, size=size)


def _pooled_vgg(
    num_classes: int, in_channels: int, timesteps: int, widths: Sequence[int], counts: Sequence[int],
    neuron: NeuronFactory,
) -> Network:  # fmt: skip
    plan = [[out] * count for out, count in zip(widths, counts, strict=True)]
    parts = {
        "features": _features(in_channels, plan, neuron),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(widths[-1], num_classes),
    }
    return Network(parts, in_channels=in_channels, timesteps=timesteps, smallest=2 ** len(plan))


def _features(into: int, plan: Sequence[Sequence[int]], neuron: NeuronFactory) -> nn.Sequential:
    """The layers of each entry of `plan`, an average pool by 2 after each."""
    made: list[nn.Module] = []
    for stage in plan:
        for out in stage:
            made.append(layer(into, out, neuron, bias=True))
            into = out
        made.append(nn.AvgPool2d(2))
    return nn.Sequential(*made)
