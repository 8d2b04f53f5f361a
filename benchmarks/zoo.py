"""The paper's networks at full width, calibrated on seeded data, for benchmarks and full-size proofs.

    python benchmarks/zoo.py                # capture every network and print its size and firing rates
    python benchmarks/zoo.py resnet20 vgg16

They are untrained: their weights are random and their BatchNorm statistics measured (see `networks.calibrate`), so
that every neuron layer fires on 2 to 40 % of neuron-steps. Costs and spikes compared do not depend on accuracy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from dalif_deploy import DALIF, Encoding
from dalif_deploy.deploy import Model
from dalif_deploy.deploy.model import captured_model
from dalif_deploy.networks import calibrate, resnet18, resnet19, resnet20, resnet34, vgg11, vgg16, vggsnn
from dalif_deploy.networks.network import Network

SEED = 20_24
CALIBRATION_SAMPLES = 4
LOWEST, HIGHEST = 0.02, 0.4
"""The share of neuron-steps on which every layer must fire, or comparing spikes shows little."""

IMAGES = Encoding(kind="uint8", scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
EVENTS = Encoding(kind="spikes")


@dataclass(frozen=True)
class Specimen:
    """One network of the paper, the size of its images or event frames, and its T."""

    build: Callable[[], Network]
    size: int
    timesteps: int
    temporal: bool = False

    @property
    def encoding(self) -> Encoding:
        """Event frames hold 0 and 1, images uint8 codes."""
        return EVENTS if self.temporal else IMAGES


ZOO: dict[str, Specimen] = {
    "resnet19": Specimen(resnet19, 32, 4),
    "resnet20": Specimen(resnet20, 32, 4),
    "vgg16": Specimen(vgg16, 32, 4),
    "resnet20-dvs": Specimen(partial(resnet20, num_classes=10, in_channels=2), 64, 10, temporal=True),
    "vggsnn": Specimen(vggsnn, 48, 10, temporal=True),
    "vgg11": Specimen(vgg11, 128, 16, temporal=True),
    "resnet18": Specimen(resnet18, 224, 4),
    "resnet34": Specimen(resnet34, 224, 4),
}


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A network that fires, in evaluation mode, and data for it.

    `data`: uint8 codes [N, 3, H, W], or float32 event frames [N, T, 2, H, W], as the commands take them.
    `rates`: the share of neuron-steps on which each layer fires, on the calibration's samples.
    """

    name: str
    network: Network
    data: NDArray[np.generic]
    timesteps: int
    encoding: Encoding
    rates: dict[str, float]

    @property
    def parameters(self) -> int:
        """How many the network has besides alpha and beta."""
        decays = {id(p) for m in self.network.modules() if isinstance(m, DALIF) for p in m.parameters()}
        return sum(p.numel() for p in self.network.parameters() if id(p) not in decays)

    @property
    def inputs(self) -> NDArray[np.float32]:
        """What the network itself takes."""
        return self.encoding.module_input(self.data, feature_axis=self.data.ndim - 3)

    def captured(self) -> Model:
        """The training graph, captured and proved on the data."""
        return captured_model(
            self.network, example_input=self.inputs[:2], timesteps=self.timesteps, readout="mean",
            temporal=self.data.ndim == 5, encoding=self.encoding, samples=self.data,
        )  # fmt: skip


def calibrated(name: str, *, samples: int = 4, timesteps: int | None = None) -> Calibrated:
    """A network of `ZOO`, from the same seed every time, with `samples` samples; T is the paper's unless given."""
    specimen = ZOO[name]
    steps = timesteps or specimen.timesteps
    rng = np.random.default_rng(SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = specimen.build()
    needed = max(samples, CALIBRATION_SAMPLES)
    shape = (network.in_channels, specimen.size, specimen.size)
    data: NDArray[np.generic]
    if specimen.temporal:
        data = (rng.random((needed, steps, *shape), dtype=np.float32) < 0.1).astype(np.float32)
    else:
        data = rng.integers(0, 256, (needed, *shape), dtype=np.uint8)
    inputs = specimen.encoding.module_input(data, feature_axis=data.ndim - 3)
    rates = calibrate(network, inputs[:CALIBRATION_SAMPLES], steps, temporal=specimen.temporal)
    if not all(LOWEST <= rate <= HIGHEST for rate in rates.values()):
        raise AssertionError(f"{name}: a layer fires on less than 2 or more than 40 % of neuron-steps: {rates}")
    return Calibrated(name, network.eval(), data[:samples], steps, specimen.encoding, rates)


def main() -> None:
    """Calibrate and capture the networks named on the command line, or all."""
    torch.set_num_threads(1)
    table = Table(title="The zoo, batch 1", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("network", "T", "parameters", "layers", "firing rates", "calibrated s", "captured s"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name in sys.argv[1:] or ZOO:
        start = time.perf_counter()
        case = calibrated(name, samples=1)
        made = time.perf_counter()
        case.captured()
        done = time.perf_counter()
        rates = case.rates.values()
        table.add_row(
            name, str(case.timesteps), f"{case.parameters:,}", str(len(rates)), f"{min(rates):.1%} to {max(rates):.1%}",
            f"{made - start:.1f}", f"{done - made:.1f}",
        )  # fmt: skip
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    main()
