"""A network that sinabs trained and wrote, on real N-MNIST recordings, in every runtime that reads its exports."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from dalif_deploy import Data, export, verify

RECORDINGS, STEPS = 100, 300
RUNTIMES = ("events", "onnxruntime", "norse", "spikingjelly")


def recordings(path: Path) -> Data:
    """Event counts of 1 ms, [100, 300, 2, 34, 34], and labels."""
    events = np.load(path)
    binned = np.zeros((RECORDINGS, STEPS, 2, 34, 34), dtype=np.float32)
    for i in range(RECORDINGS):
        some = slice(events["offsets"][i], events["offsets"][i + 1])
        step = events["t_us"][some] // 1000
        within = step < STEPS
        np.add.at(binned[i], (step[within], *(events[key][some][within] for key in ("p", "y", "x"))), 1.0)
    return Data(binned, events["label"][:RECORDINGS].astype(np.int64), f"{RECORDINGS} N-MNIST recordings")


def nmnist() -> tuple[list[str], bool]:
    """The table, and whether every spike is the reference's; nothing is claimed without $DALIF_TEST_DATA."""
    folder = os.environ.get("DALIF_TEST_DATA")
    if not folder:
        return ["Not measured: $DALIF_TEST_DATA does not name the folder of the recordings."], True
    model = Path(folder) / "nir_graphs" / "cnn_sinabs.nir"
    data = recordings(Path(folder) / "nmnist" / "nmnist_events_300.npz")
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"cnn.{to}" for to in ("onnx", "nir")]
        for file in files:
            export(model, file, to=file.suffix[1:], data=data, samples=1, verified=False)
        verdict = verify(model, *files, data=data, runtimes=RUNTIMES)
    lines = ["| compared | verdict | spikes differing | of neuron-steps | accuracy |", "|---|---|---|---|---|"]
    lines.append(f"| reference, float64 | | | | {verdict.accuracy:.1%} |")
    for runtime in verdict.runtimes:
        found = runtime.comparison
        file = f", {Path(runtime.file).suffix[1:]} file" if runtime.file else ""
        lines.append(
            f"| {found.name}{file} | {runtime.outcome} | {found.spikes_differing:,} | {found.spikes_compared:,} | "
            f"{runtime.accuracy:.1%} |"
        )
    return lines, str(verdict.outcome) in ("exact", "rounding")
