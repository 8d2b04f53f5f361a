"""What the networks share: the check of their input, the initial weights, and conv - BN - neuron."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dalif_deploy.errors import Code, DalifError

NeuronFactory = Callable[[], nn.Module]
"""Makes one neuron layer: the class DALIF itself, or a function that calls it with other arguments."""


class Network(nn.Sequential):
    """One timestep of a network: images [B, in_channels, H, W] in, logits [B, num_classes] out, float.

    Its neurons keep their potential from call to call: call `dalif_deploy.reset` before a sequence, then the
    network once a timestep, and average the logits. `timesteps` is how many the network is meant for; a step
    computes the same whatever it is. `smallest` is the least H and W, `size` the only one, where there is one.

    Raises `DalifError` (WRONG_SHAPE) for an input that does not fit.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        *,
        in_channels: int,
        timesteps: int,
        smallest: int = 1,
        size: int | None = None,
    ) -> None:
        super().__init__(OrderedDict(parts))
        self.in_channels = in_channels
        self.timesteps = timesteps
        self.smallest = smallest
        self.size = size
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Logits of one timestep."""
        self._check(input.shape)
        x = input
        for part in self:
            x = part(x)
        return x

    def _check(self, shape: torch.Size) -> None:
        if self.size is not None:
            sizes, fits = f"{self.size}, {self.size}", tuple(shape[2:]) == (self.size, self.size)
        else:
            sizes = "height, width" + (f" of at least {self.smallest}" if self.smallest > 1 else "")
            fits = min(shape[2:], default=0) >= self.smallest
        if len(shape) != 4 or shape[1] != self.in_channels or not fits:
            raise DalifError(
                Code.WRONG_SHAPE,
                f"input of shape {list(shape)}: this network takes [batch, {self.in_channels}, {sizes}]",
            )


def layer(
    into: int, out: int, neuron: NeuronFactory, *, kernel: int = 3, stride: int = 1, bias: bool = False
) -> nn.Sequential:
    """conv - BN - neuron; the convolution keeps the image's size at stride 1."""
    return nn.Sequential(OrderedDict(conv=conv(into, out, kernel, stride, bias), bn=nn.BatchNorm2d(out), sn=neuron()))


def conv(into: int, out: int, kernel: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution with as much padding as keeps the image's size at stride 1."""
    return nn.Conv2d(into, out, kernel, stride=stride, padding=kernel // 2, bias=bias)


def whole_numbers(**values: int) -> None:
    """Raises `DalifError` (BAD_OPTION) for the first of `values` that is not a whole number from 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DalifError(Code.BAD_OPTION, f"{name} = {value!r}: give a whole number from 1")


def checked_widths(widths: Sequence[int], least: int, most: int) -> tuple[int, ...]:
    """`widths` as a tuple. Raises `DalifError` (BAD_OPTION) unless it has `least` to `most` whole numbers from 1."""
    found = tuple(widths)
    if not least <= len(found) <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise DalifError(Code.BAD_OPTION, f"widths = {found}: give the channels of {wanted} stages")
    whole_numbers(**{f"widths[{index}]": width for index, width in enumerate(found)})
    return found
