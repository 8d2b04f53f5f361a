"""A network of SpikingJelly's neurons on 8 x 8 digits, as one writes it: nothing here knows that it will be exported.

    python examples/digits_spikingjelly.py digits_sj.pt        # trains for some seconds, writes a state_dict
    dalif-export --to onnx digits_sj.pt --model digits_spikingjelly:DigitsNet -T 4 --input-shape 1,8,8

Run the second command in this folder, or give --adapter a file beside this one. Needs spikingjelly and scikit-learn.
"""

from __future__ import annotations

import sys

import torch
from digits_data import load_split
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

TIMESTEPS = 4


class DigitsNet(nn.Module):
    """All timesteps of the network: images [B, 1, 8, 8] with values 0..1 in, logits [B, 10] out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            neuron.ParametricLIFNode(surrogate_function=surrogate.ATan()),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            neuron.LIFNode(tau=1.6, v_reset=None, decay_input=False, surrogate_function=surrogate.ATan()),
            nn.AvgPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Linear(128, 64), neuron.IFNode(v_reset=0.0), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        logits = torch.zeros(len(x), 10)
        for _ in range(TIMESTEPS):
            logits = logits + self.classifier(self.features(x))
        return logits / TIMESTEPS


def train(net: nn.Module, *, epochs: int = 4) -> float:
    """Trains `net` in place on 1,437 digits; its accuracy on the 360 that are held out."""
    x_train, y_train, x_test, y_test = load_split()
    images, targets = torch.from_numpy(x_train) / 16, torch.from_numpy(y_train)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(net(images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        predicted = net(torch.from_numpy(x_test) / 16).argmax(dim=1)
    return float((predicted == torch.from_numpy(y_test)).float().mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = DigitsNet()
    print(f"accuracy on held-out digits: {train(digits):.1%}")
    torch.save(digits.state_dict(), sys.argv[1])
