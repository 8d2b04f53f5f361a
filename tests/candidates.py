"""Every way to run a training graph, by name: what the conformance suite and the oracle's test go through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nir
import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.equivalence import Precision, simulate
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.exporters.onnx import to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes import norse, snntorch, spikingjelly
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.norse import NorseRuntime
from dalif_deploy.runtimes.onnxruntime import OnnxRuntime
from dalif_deploy.runtimes.snntorch import SnnTorchRuntime
from dalif_deploy.runtimes.spikingjelly import SpikingJellyRuntime
from dalif_deploy.runtimes.torch import TorchRuntime

Run = Callable[[NDArray[np.generic]], Recording]


@dataclass(frozen=True)
class Candidate:
    """One way to run a network. `open`: from a folded graph and a folder to write into, what runs a batch.

    `trained`: it takes the training graph itself. `simulator`: the NIR simulator that it is, by its dialect's
    name, `own` whether the file is in that dialect, and `missing` the command that installs it where it is not
    installed.
    """

    precision: Precision
    open: Callable[[SpikingGraph, Path], Run]
    trained: bool = False
    simulator: str | None = None
    own: bool = False
    missing: str | None = None

    def run(self, graph: SpikingGraph, batch: NDArray[np.generic], folder: Path) -> Recording:
        """One batch through `graph`, a training graph."""
        return self.open(graph if self.trained else fold(graph), folder)(batch)


def written_onnx(graph: SpikingGraph, folder: Path) -> Path:
    """The folded graph as an ONNX file."""
    path = folder / "net.onnx"
    path.write_bytes(to_onnx(graph).SerializeToString())
    return path


def written_nir(graph: SpikingGraph, folder: Path, dialect: str = "canonical") -> Path:
    """The folded graph as a NIR file."""
    path = folder / "net.nir"
    nir.write(str(path), to_nir(graph, dialect=dialect))
    return path


CANDIDATES: dict[str, Candidate] = {
    "replay float64, folded": Candidate("float64", lambda graph, _: lambda batch: simulate(graph, batch)),
    "torch float64": Candidate("float64", lambda graph, _: TorchRuntime(graph).run, trained=True),
    "torch float64, folded": Candidate("float64", lambda graph, _: TorchRuntime(graph).run),
    "torch float32": Candidate("float32", lambda graph, _: TorchRuntime(graph, dtype="float32").run, trained=True),
    "torch float32, folded": Candidate("float32", lambda graph, _: TorchRuntime(graph, dtype="float32").run),
    "events float64": Candidate("float64", lambda graph, _: EventsRuntime(graph, dtype="float64").run),
    "events float32": Candidate("float32", lambda graph, _: EventsRuntime(graph, dtype="float32").run),
    "onnxruntime": Candidate("float32", lambda graph, folder: OnnxRuntime(written_onnx(graph, folder), threads=1).run),
    "onnxruntime, unoptimised": Candidate(
        "float32",
        lambda graph, folder: OnnxRuntime(written_onnx(graph, folder), threads=1, optimization="disable").run,
    ),
    "norse": Candidate(
        "float32", lambda graph, folder: NorseRuntime(written_nir(graph, folder)).run,
        simulator="norse", missing=norse.available(),
    ),
    "spikingjelly": Candidate(
        "float32", lambda graph, folder: SpikingJellyRuntime(written_nir(graph, folder)).run,
        simulator="spikingjelly", missing=spikingjelly.available(),
    ),
    "spikingjelly float64": Candidate(
        # Its weights come from a file that holds them in float32, so the judge's float32 share it is.
        "float32", lambda graph, folder: SpikingJellyRuntime(written_nir(graph, folder), dtype="float64").run,
        simulator="spikingjelly", missing=spikingjelly.available(),
    ),
    "snntorch": Candidate(
        "float32", lambda graph, folder: SnnTorchRuntime(written_nir(graph, folder)).run,
        simulator="snntorch", missing=snntorch.available(),
    ),
    "norse, its dialect": Candidate(
        "float32", lambda graph, folder: NorseRuntime(written_nir(graph, folder, "norse")).run,
        simulator="norse", own=True, missing=norse.available(),
    ),
    "spikingjelly, its dialect": Candidate(
        "float32", lambda graph, folder: SpikingJellyRuntime(written_nir(graph, folder, "spikingjelly")).run,
        simulator="spikingjelly", own=True, missing=spikingjelly.available(),
    ),
    "snntorch, its dialect": Candidate(
        "float32", lambda graph, folder: SnnTorchRuntime(written_nir(graph, folder, "snntorch")).run,
        simulator="snntorch", own=True, missing=snntorch.available(),
    ),
}  # fmt: skip


def parameters(names: list[str] | None = None) -> list[object]:
    """The candidates' names for pytest.mark.parametrize; simulators are marked, and skipped where not installed."""
    found: list[object] = []
    for name in names or CANDIDATES:
        candidate = CANDIDATES[name]
        marks = [pytest.mark.simulators] if candidate.simulator else []
        if candidate.missing:
            marks.append(pytest.mark.skip(reason=f"{candidate.simulator} is not installed; run: {candidate.missing}"))
        found.append(pytest.param(name, marks=marks))
    return found
