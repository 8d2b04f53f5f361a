"""A small convolutional DA-LIF network for 8 x 8 digits: plain PyTorch, with DALIF where a ReLU would be."""

from __future__ import annotations

from torch import Tensor, nn

from dalif_deploy import DALIF


class DigitsNet(nn.Module):
    """One timestep of the network: images [B, 1, 8, 8] with values 0..1 in, logits [B, 10] out.

    The neurons remember their potential from call to call. For one prediction, reset the network, call it
    once a timestep with the same images, and average the logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.sn1 = DALIF()
        self.pool1 = nn.AvgPool2d(2)

        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.sn2 = DALIF()
        self.pool2 = nn.AvgPool2d(2)

        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(32 * 2 * 2, 64)
        self.sn3 = DALIF()
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.sn1(self.bn1(self.conv1(x))))
        x = self.pool2(self.sn2(self.bn2(self.conv2(x))))
        x = self.sn3(self.fc1(self.flatten(x)))
        logits: Tensor = self.fc2(x)
        return logits
