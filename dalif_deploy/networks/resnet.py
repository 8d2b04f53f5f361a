"""Residual networks of DA-LIF neurons: ResNet-18, -19, -20 and -34 as the paper's tables name them.

A block is post-activation: conv3x3(stride) - BN - neuron - conv3x3 - BN - (+ shortcut) - neuron; the second neuron
sits after the sum. Convolutions have no bias. Parameter counts leave out alpha and beta, two per neuron layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from dalif_deploy.networks.network import Network, NeuronFactory, checked_widths, conv, layer, whole_numbers
from dalif_deploy.neuron import DALIF

Shortcut = Callable[[int, int, int], nn.Module]
"""Makes the shortcut of a block that changes shape, from its channels in, channels out and stride."""


def resnet20(
    num_classes: int = 100,
    in_channels: int = 3,
    timesteps: int = 4,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """ResNet-20 of the paper's CIFAR-10, CIFAR-100 and CIFAR10-DVS rows; 11,294,116 parameters at 100 classes.

    Three conv3x3 - BN - neuron, an average pool by 2, eight blocks, a global average pool, a linear layer: 22
    convolutions, 19 neuron layers. Shortcuts that change shape are average pool - conv1x1 - BN. The last BN of
    every block starts with weight 0.

    Parameters:
        num_classes: how many logits.
        in_channels: 3 for CIFAR at 32 x 32; 2 for CIFAR10-DVS, at 64 x 64 with T = 10 or 16.
        timesteps: T, kept as `timesteps`.
        widths: the channels of each stage. The eight blocks are spread over the stages as evenly as can be, the
            surplus to the first: four widths get 2, 2, 2, 2, and three 3, 3, 2. The stem has the first width; every
            stage but the first halves the image. (16, 32, 64) is a narrow network of the same depth.
        neuron: makes one neuron layer.
    Raises `DalifError` (BAD_OPTION).
    """
    widths = checked_widths(widths, 1, 8)
    whole_numbers(num_classes=num_classes, in_channels=in_channels, timesteps=timesteps)
    first = widths[0]
    stem = nn.Sequential(
        layer(in_channels, first, neuron), layer(first, first, neuron), layer(first, first, neuron), nn.AvgPool2d(2)
    )
    blocks = [8 // len(widths) + (stage < 8 % len(widths)) for stage in range(len(widths))]
    network = _resnet(stem, widths, blocks, num_classes, neuron, _pooled, in_channels, timesteps, smallest=2)
    for module in network.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.bn2.weight)
    return network


def resnet19(
    num_classes: int = 100,
    in_channels: int = 3,
    timesteps: int = 4,
    *,
    widths: Sequence[int] = (128, 256, 512),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """ResNet-19 for CIFAR at 32 x 32; 12,615,396 parameters at 100 classes.

    One conv3x3 - BN - neuron, stages of 3, 3 and 2 blocks, a global average pool, a linear layer: 17 neuron layers.
    Shortcuts that change shape are conv1x1 with the stride - BN. Arguments and errors as `resnet20`, with three
    widths.
    """
    widths = checked_widths(widths, 3, 3)
    whole_numbers(num_classes=num_classes, in_channels=in_channels, timesteps=timesteps)
    stem = nn.Sequential(layer(in_channels, widths[0], neuron))
    return _resnet(stem, widths, (3, 3, 2), num_classes, neuron, _strided, in_channels, timesteps)


def resnet18(
    num_classes: int = 1000,
    in_channels: int = 3,
    timesteps: int = 4,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """ResNet-18 for ImageNet at 224 x 224; 11,689,512 parameters at 1000 classes.

    conv7x7 with stride 2 - BN - neuron, AvgPool2d(3, 2, 1), stages of 2, 2, 2 and 2 blocks, a global average pool,
    a linear layer: 17 neuron layers. Shortcuts that change shape are conv1x1 with the stride - BN. Arguments and
    errors as `resnet20`, with four widths.
    """
    return _imagenet(num_classes, in_channels, timesteps, widths, (2, 2, 2, 2), neuron)


def resnet34(
    num_classes: int = 1000,
    in_channels: int = 3,
    timesteps: int = 4,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    neuron: NeuronFactory = DALIF,
) -> Network:
    """ResNet-34 for ImageNet at 224 x 224; 21,797,672 parameters at 1000 classes.

    As `resnet18`, with stages of 3, 4, 6 and 3 blocks: 33 neuron layers.
    """
    return _imagenet(num_classes, in_channels, timesteps, widths, (3, 4, 6, 3), neuron)


class Block(nn.Module):
    """conv3x3(stride) - BN - neuron - conv3x3 - BN - (+ shortcut) - neuron."""

    def __init__(self, into: int, out: int, stride: int, shortcut: nn.Module, neuron: NeuronFactory) -> None:
        super().__init__()
        self.conv1 = conv(into, out, 3, stride)
        self.bn1 = nn.BatchNorm2d(out)
        self.sn1 = neuron()
        self.conv2 = conv(out, out, 3)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = shortcut
        self.sn2 = neuron()

    def forward(self, x: Tensor) -> Tensor:
        """One timestep, [B, into, H, W] to spikes [B, out, H / stride, W / stride] (rounded up)."""
        inner = self.sn1(self.bn1(self.conv1(x)))
        return cast(Tensor, self.sn2(self.bn2(self.conv2(inner)) + self.shortcut(x)))


def _imagenet(
    num_classes: int, in_channels: int, timesteps: int, widths: Sequence[int], blocks: Sequence[int],
    neuron: NeuronFactory,
) -> Network:  # fmt: skip
    widths = checked_widths(widths, 4, 4)
    whole_numbers(num_classes=num_classes, in_channels=in_channels, timesteps=timesteps)
    stem = nn.Sequential(layer(in_channels, widths[0], neuron, kernel=7, stride=2), nn.AvgPool2d(3, 2, 1))
    return _resnet(stem, widths, blocks, num_classes, neuron, _strided, in_channels, timesteps)


def _resnet(
    stem: nn.Module, widths: Sequence[int], blocks: Sequence[int], num_classes: int, neuron: NeuronFactory,
    shortcut: Shortcut, in_channels: int, timesteps: int, smallest: int = 1,
) -> Network:  # fmt: skip
    parts: dict[str, nn.Module] = {"stem": stem}
    into = widths[0]
    for stage, (out, count) in enumerate(zip(widths, blocks, strict=True)):
        made = []
        for number in range(count):
            stride = 2 if stage and not number else 1
            same = stride == 1 and into == out
            made.append(Block(into, out, stride, nn.Identity() if same else shortcut(into, out, stride), neuron))
            into = out
        parts[f"layer{stage + 1}"] = nn.Sequential(*made)
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(into, num_classes)}
    return Network(parts, in_channels=in_channels, timesteps=timesteps, smallest=smallest)


def _pooled(into: int, out: int, stride: int) -> nn.Module:
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, conv(into, out, 1), nn.BatchNorm2d(out))


def _strided(into: int, out: int, stride: int) -> nn.Module:
    return nn.Sequential(conv(into, out, 1, stride), nn.BatchNorm2d(out))
