"""A network that sinabs trained and wrote, on real N-MNIST recordings, in every runtime that reads its exports."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dalif_deploy import Binning, LoadOptions, export, read_events, verify

RECORDINGS, STEPS = 100, 300
RUNTIMES = ("events", "onnxruntime", "norse", "spikingjelly")


def nmnist() -> tuple[list[str], bool]:
    """The table, and whether every spike is the reference's; nothing is claimed without $DALIF_TEST_DATA."""
    folder = os.environ.get("DALIF_TEST_DATA")
    if not folder:
        return ["Not measured: $DALIF_TEST_DATA does not name the folder of the recordings."], True
    model = Path(folder) / "nir_graphs" / "cnn_sinabs.nir"
    data = read_events(
        Path(folder) / "nmnist" / "nmnist_events_300.npz", Binning.parse("duration:1000", start="zero"), model,
        options=LoadOptions(timesteps=STEPS, input_shape=(2, 34, 34)), samples=RECORDINGS,
    )  # fmt: skip
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
