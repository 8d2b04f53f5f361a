"""A small VGG of DA-LIF neurons for images of 28 x 28, such as Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dalif_deploy import DALIF
from dalif_deploy.networks.network import Network, NeuronFactory, checked_widths, layer, whole_numbers


def vgg_small(
    num_classes: int = 10,
    in_channels: int = 1,
    timesteps: int = 4,
    *,
    widths: Sequence[int] = (16, 32, 64),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """One timestep: images [B, in_channels, H, W] of at least 4 x 4 in, logits [B, num_classes] out.

    conv3x3 - BN - neuron, an average pool by 2, the same again, then conv3x3 - BN - neuron, a global average pool
    and a linear layer: 3 neuron layers. `widths`: the channels of the three. Other arguments and errors as the
    networks of `dalif_deploy.networks`.
    """
    first, second, third = checked_widths(widths, 3, 3)
    whole_numbers(num_classes=num_classes, in_channels=in_channels, timesteps=timesteps)
    parts = {
        "layer1": layer(in_channels, first, neuron),
        "pool1": nn.AvgPool2d(2),
        "layer2": layer(first, second, neuron),
        "pool2": nn.AvgPool2d(2),
        "layer3": layer(second, third, neuron),
        "pool3": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(third, num_classes),
    }
    return Network(parts, in_channels=in_channels, timesteps=timesteps, smallest=4)
