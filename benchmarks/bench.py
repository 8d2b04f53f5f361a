"""Speed, as ratios within one interleaved run: every round times every contender once, in turn.

A contender's figure is the median over rounds of (its time / the baseline's time in the same round), so that
a machine that slows down half-way slows all of them. The baseline is the trained module in PyTorch, called
once a timestep, as its user would run it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from dalif_deploy import DALIF, capture, export, fold, reset
from dalif_deploy.equivalence import Arithmetic, judge, simulate
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.onnxruntime import OnnxRuntime
from dalif_deploy.runtimes.torch import TorchRuntime

TIMESTEPS = 4
ROUNDS = 15
BASELINE = "PyTorch module, a call a step"
REFERENCE, BOUNDED = "float64 reference", "float64 reference with bounds"
"""A run, and the same run with the bound of every neuron-step."""


class SmallVGG(nn.Module):
    """conv - BN - DALIF four times with two pools, and a linear readout; images [B, 3, 32, 32]."""

    def __init__(self, width: int) -> None:
        super().__init__()

        def block(into: int, out: int) -> list[nn.Module]:
            return [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), DALIF()]

        self.layers = nn.Sequential(
            *block(3, width), *block(width, width), nn.AvgPool2d(2),
            *block(width, 2 * width), *block(2 * width, 2 * width), nn.AvgPool2d(2),
            nn.Flatten(), nn.Linear(2 * width * 64, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One timestep: logits [B, 10]."""
        logits: torch.Tensor = self.layers(x)
        return logits


@dataclass
class Case:
    """One network at one batch size."""

    title: str
    module: nn.Module
    batch: NDArray[np.float32]


def calibrated(module: nn.Module, batch: NDArray[np.float32]) -> nn.Module:
    """BatchNorm statistics from the benchmark's own input: an untrained network in evaluation mode is silent."""
    module.train()
    with torch.no_grad():
        for _ in range(20):
            reset(module)
            for _ in range(TIMESTEPS):
                module(torch.from_numpy(batch))
    reset(module)
    return module.eval()


def contenders(case: Case, graph: SpikingGraph, folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed: name -> one run of the whole batch over all timesteps."""
    inputs = torch.from_numpy(case.batch)

    def module_loop() -> object:
        with torch.no_grad():
            reset(case.module)
            return torch.stack([case.module(inputs) for _ in range(TIMESTEPS)]).mean(dim=0)

    path = folder / "net.onnx"
    export(graph, path, to="onnx", verified=False, force=True)
    ort = OnnxRuntime(path, threads=1)
    session, feed = ort._session, {"input": case.batch}
    training = TorchRuntime(graph, dtype="float32")
    events = EventsRuntime(fold(graph))
    fired = simulate(graph, case.batch).spikes
    return {
        BASELINE: module_loop,
        "ONNX Runtime, the exported file": lambda: session.run(["logits"], feed),
        "ONNX Runtime, recording all spikes": lambda: ort.run(case.batch),
        "torch runtime, training graph": lambda: training.run(case.batch),
        "events runtime, folded graph": lambda: events.run(case.batch),
        REFERENCE: lambda: simulate(graph, case.batch),
        BOUNDED: lambda: judge(graph, case.batch, fired, Arithmetic()),
    }


def timed(functions: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """By name: the seconds of every round."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(own: list[float], base: list[float]) -> float:
    """The median over rounds."""
    return statistics.median(t / b for t, b in zip(own, base, strict=True))


def main() -> None:
    """Print one table a case."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console = Console(highlight=False)
    console.print(f"torch {torch.__version__}, one thread, T = {TIMESTEPS}, medians of {ROUNDS} interleaved rounds")
    rng = np.random.default_rng(0)
    for width, size in ((16, 1), (16, 16), (64, 1)):
        batch = rng.random((size, 3, 32, 32), dtype=np.float32)
        module = calibrated(SmallVGG(width), rng.random((16, 3, 32, 32), dtype=np.float32))
        case = Case(f"small VGG, {width} to {2 * width} channels, batch {size}", module, batch)
        start = time.perf_counter()
        graph = capture(module, example_input=batch, timesteps=TIMESTEPS)
        captured = time.perf_counter() - start
        recording = simulate(graph, batch)
        rates = [train.count() / train.neuron_steps for train in recording.spikes.values()]
        with tempfile.TemporaryDirectory() as folder:
            times = timed(contenders(case, graph, Path(folder)))
        table = Table(title=case.title, box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("what")
        table.add_column("ratio", justify="right")
        table.add_column("ms", justify="right")
        for name, own in times.items():
            table.add_row(name, f"{ratio(own, times[BASELINE]):.2f}", f"{statistics.median(own) * 1e3:.1f}")
        console.print(table)
        console.print(f"  bounds: {ratio(times[BOUNDED], times[REFERENCE]):.1f} x the run that they bound")
        console.print(f"  firing rates {min(rates):.1%} to {max(rates):.1%}; capture with its proof {captured:.2f} s\n")


if __name__ == "__main__":
    main()
