"""A small VGG of DA-LIF neurons for images of 28 x 28, such as Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dalif_deploy import DALIF, Code, DalifError
from dalif_deploy.networks.network import Network, NeuronFactory, checked_widths, layer, whole_numbers


def vgg_small(
    num_classes: int = 10,
    in_channels: int = 1,
    timesteps: int = 4,
    *,
    size: int = 28,
    widths: Sequence[int] = (24, 48, 96),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """One timestep: images [B, in_channels, size, size] in, logits [B, num_classes] out.

    Three times conv3x3 - BN - neuron and an average pool by 2, then a linear layer on all that is left: 3 neuron
    layers. `size`: from 8. `widths`: the channels of the three. Other arguments and errors as the networks of
    `dalif_deploy.networks`.
    """
    first, second, third = checked_widths(widths, 3, 3)
    whole_numbers(num_classes=num_classes, in_channels=in_channels, timesteps=timesteps, size=size)
    if size < 8:
        raise DalifError(Code.BAD_OPTION, f"size = {size}: three pools by 2 leave nothing of it; give at least 8")
    parts = {
        "layer1": layer(in_channels, first, neuron),
        "pool1": nn.AvgPool2d(2),
        "layer2": layer(first, second, neuron),
        "pool2": nn.AvgPool2d(2),
        "layer3": layer(second, third, neuron),
        "pool3": nn.AvgPool2d(2),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(third * (size // 8) ** 2, num_classes),
    }
    return Network(parts, in_channels=in_channels, timesteps=timesteps, size=size)
