"""A network of snnTorch's neurons on 8 x 8 digits, as its tutorials write it: nothing here knows of an export.

    python examples/digits_snntorch.py digits_snn.pt           # trains for some seconds, writes a state_dict
    dalif-export --to onnx digits_snn.pt --model digits_snntorch:DigitsNet -T 8 --input-shape 64

Run the second command in this folder. Needs snntorch and scikit-learn.
"""

from __future__ import annotations

import sys

import snntorch as snn
import torch
from digits_data import load_split
from snntorch import surrogate
from torch import Tensor, nn

TIMESTEPS = 8


class DigitsNet(nn.Module):
    """One timestep: pixels [B, 64] with values 0..1 in, the output layer's spikes [B, 10] out; they are counted."""

    def __init__(self) -> None:
        super().__init__()
        slope = surrogate.fast_sigmoid(slope=25)
        self.fc1 = nn.Linear(64, 128)
        self.lif1 = snn.Leaky(beta=0.9, spike_grad=slope, init_hidden=True, learn_beta=True)
        self.fc2 = nn.Linear(128, 64)
        self.lif2 = snn.Leaky(beta=torch.full((64,), 0.7), spike_grad=slope, init_hidden=True, reset_mechanism="zero")
        self.fc3 = nn.Linear(64, 10)
        self.lif3 = snn.Leaky(beta=0.8, spike_grad=slope, init_hidden=True, reset_delay=False)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.lif3(self.fc3(self.lif2(self.fc2(self.lif1(self.fc1(x))))))
        return spikes


def counts(net: DigitsNet, x: Tensor) -> Tensor:
    """How often each output fires on `x` [B, 64], as a share of the timesteps."""
    for layer in (net.lif1, net.lif2, net.lif3):
        layer.reset_mem()
    return torch.stack([net(x) for _ in range(TIMESTEPS)]).mean(dim=0)


def train(net: DigitsNet, *, epochs: int = 8) -> float:
    """Trains `net` in place on 1,437 digits; its accuracy on the 360 that are held out."""
    x_train, y_train, x_test, y_test = load_split()
    images, targets = torch.from_numpy(x_train).flatten(1) / 16, torch.from_numpy(y_train)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(4 * counts(net, images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        predicted = counts(net, torch.from_numpy(x_test).flatten(1) / 16).argmax(dim=1)
    return float((predicted == torch.from_numpy(y_test)).float().mean())


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = DigitsNet()
    print(f"accuracy on held-out digits: {train(digits):.1%}")
    torch.save(digits.state_dict(), sys.argv[1])
