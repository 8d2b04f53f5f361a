"""The three levels of exactness on two trained networks and real digits, at full size; a table for docs/measured.md."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from digits_data import load_split
from numpy.typing import NDArray
from train_resnet_digits import enlarged

from dalif_deploy.deploy import LoadOptions, export, open_model
from dalif_deploy.deploy.content import Content, content_of
from dalif_deploy.equivalence import Arithmetic, Comparer, Outcome, simulate
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.norse import NorseRuntime
from dalif_deploy.runtimes.onnxruntime import OPTIMIZATIONS, OnnxRuntime
from dalif_deploy.runtimes.sinabs import SinabsRuntime
from dalif_deploy.runtimes.snntorch import SnnTorchRuntime
from dalif_deploy.runtimes.spikingjelly import SpikingJellyRuntime
from dalif_deploy.runtimes.torch import TorchRuntime

MODELS = Path(__file__).parent.parent / "examples" / "models"
SAMPLES = 64
BATCH, TORCH_BATCH = 16, 32
Images = NDArray[np.uint8]
Run = Callable[[NDArray[np.generic]], Recording]


def cases() -> Iterator[tuple[str, int, Images]]:
    """The networks, their timesteps, and all 360 held-out digits in the size that they take."""
    _, _, images, _ = load_split()
    for name in ("digits", "resnet20_digits"):
        for timesteps in (4, 16):
            yield name, timesteps, images if name == "digits" else enlarged(images)


def batches(images: Images, size: int = BATCH) -> Iterator[Images]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def differing(one: Recording, other: Recording) -> NDArray[np.int64]:
    """Per sample, how many spikes differ."""
    return np.sum([train.differing(other.spikes[name]) for name, train in one.spikes.items()], axis=0)


def firing_rates(graph: SpikingGraph, images: Images) -> list[float]:
    """The share of neuron-steps on which each layer fires."""
    trains = Recording.joined([simulate(graph, batch) for batch in batches(images)]).spikes.values()
    return [train.count() / train.neuron_steps for train in trains]


def in_ones(run: Run) -> Run:
    return lambda batch: Recording.joined([run(sample) for sample in batches(batch, 1)])  # type: ignore[arg-type]


def level2(graph: SpikingGraph, folded: SpikingGraph, images: Images, folder: Path) -> tuple[str, float, int]:
    """The worst outcome over all runtimes, the largest ppm of uncertain neuron-steps, the fewest certified."""
    files = {to: folder / f"net.{to}" for to in ("onnx", "nir")}
    for to, path in files.items():
        export(graph, path, to=to, verified=False, force=True, samples=1)
    runs: list[tuple[str, SpikingGraph, str, Run, int]] = [
        ("torch, batch 1", graph, "sum", in_ones(TorchRuntime(graph, dtype="float32").run), SAMPLES),
        (f"torch, batch {TORCH_BATCH}", graph, "sum", TorchRuntime(graph, dtype="float32").run, SAMPLES),
        ("norse", folded, "decay", NorseRuntime(files["nir"]).run, SAMPLES),
        ("spikingjelly", folded, "decay", SpikingJellyRuntime(files["nir"]).run, SAMPLES),
    ]
    for level in OPTIMIZATIONS:
        runs.append(
            (f"onnxruntime {level}", folded, "sum", OnnxRuntime(files["onnx"], optimization=level).run, SAMPLES)
        )
    for seed in range(20):
        run = EventsRuntime(folded, order=np.random.default_rng(seed)).run
        runs.append((f"events {seed}", folded, "sum", run, SAMPLES if seed < 2 else 4))
    worst, most, fewest = Outcome.EXACT, 0.0, SAMPLES
    for name, judged, update, run, count in runs:
        arithmetic = Arithmetic(update=update, pools="mean" if update == "decay" else "sum")  # type: ignore[arg-type]
        comparer = Comparer(name, judged, arithmetic=arithmetic, reference=graph)
        for batch in batches(images[:count], TORCH_BATCH if name == f"torch, batch {TORCH_BATCH}" else BATCH):
            comparer.add(batch, simulate(graph, batch), run(batch))
        result = comparer.result()
        worst = max(worst, result.outcome)
        most = max(most, 1e6 * len(result.uncertain) / result.spikes_compared)
        if count == SAMPLES:
            fewest = min(fewest, result.certified_samples)
    return str(worst), most, fewest


def level3(graph: SpikingGraph, folded: SpikingGraph, images: Images, precision: str, folder: Path) -> tuple[int, int]:
    """How many bits of potentials, spikes and logits differ; in how many samples a spike differs from float64."""
    content = content_of(folded, precision)
    path = folder / f"{precision}.onnx"
    export(graph, path, to="onnx", precision=precision, verified=False, force=True, samples=1)
    bits = 0
    runtimes = [OnnxRuntime(path, threads=threads, optimization=level) for level in OPTIMIZATIONS for threads in (1, 2)]
    for batch in batches(images[:SAMPLES]):
        expected, potentials = _watched(EventsRuntime, content.graph, batch, arithmetic=precision)
        found = [
            _watched(EventsRuntime, content.graph, batch, arithmetic=precision, order=np.random.default_rng(0)),
            _watched(TorchRuntime, content.graph, batch, arithmetic=precision),
            *((runtime.run(batch), runtime.potentials(batch)) for runtime in runtimes),
        ]
        for recording, values in found:
            bits += int(differing(recording, expected).sum())
            bits += int(np.count_nonzero(recording.logits != expected.logits))
            bits += sum(int(np.count_nonzero(values[name] != potentials[name])) for name in potentials)
    return bits, flipped(graph, content, images)


def level3_nir(graph: SpikingGraph, folded: SpikingGraph, images: Images, folder: Path) -> tuple[int, int]:
    """The same of the exact NIR files of snnTorch and sinabs, whose spikes and logits show."""
    content = content_of(folded, "exact", two_slices=True)
    bits = 0
    for dialect, runtime in (("snntorch", SnnTorchRuntime), ("sinabs", SinabsRuntime)):
        path = folder / f"{dialect}.nir"
        export(graph, path, to="nir", dialect=dialect, precision="exact", verified=False, samples=1)
        simulator = runtime(path)
        for batch in batches(images[:SAMPLES]):
            found, expected = simulator.run(batch), EventsRuntime(content.graph, arithmetic="exact").run(batch)
            bits += int(differing(found, expected).sum()) + int(np.count_nonzero(found.logits != expected.logits))
    return bits, flipped(graph, content, images)


def flipped(graph: SpikingGraph, content: Content, images: Images) -> int:
    """In how many samples a spike of exact content differs from the float64 reference."""
    runtime = content.definition()
    assert runtime is not None
    return sum(
        int(np.count_nonzero(differing(runtime.run(batch), simulate(graph, batch)))) for batch in batches(images)
    )


def _watched(
    make: Callable[..., object], graph: SpikingGraph, batch: Images, **options: object
) -> tuple[Recording, dict]:  # type: ignore[type-arg]
    seen: dict[str, list[NDArray[np.floating]]] = {}
    runtime = make(graph, watch=lambda name, v: seen.setdefault(name, []).append(np.array(v)), **options)
    recording = runtime.run(batch)  # type: ignore[attr-defined]
    return recording, {name: np.stack(steps, axis=1) for name, steps in seen.items()}


def table() -> tuple[list[str], bool]:
    """The table's lines, and whether every claim holds."""
    lines = [
        "| network | T | firing rates | L1 flips | L2 worst | uncertain, ppm | certified of 64 | "
        "L3 `exact`: bits; flipped of 360 | `exact64`: bits; flipped of 360 | `exact` NIR: bits; flipped of 360 | "
        "float32: flipped of 360 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    holds = True
    for name, timesteps, images in cases():
        graph = open_model(MODELS / f"{name}.pt", LoadOptions(timesteps=timesteps)).graph
        folded = fold(graph)
        l1 = sum(int(differing(simulate(graph, b), simulate(folded, b)).sum()) for b in batches(images[:SAMPLES]))
        with tempfile.TemporaryDirectory() as folder:
            worst, ppm, certified = level2(graph, folded, images, Path(folder))
            exact = level3(graph, folded, images, "exact", Path(folder))
            exact64 = level3(graph, folded, images, "exact64", Path(folder))
            exact_nir = level3_nir(graph, folded, images, Path(folder))
        plain = sum(
            int(np.count_nonzero(differing(EventsRuntime(folded).run(b), simulate(graph, b)))) for b in batches(images)
        )
        holds = holds and l1 == 0 and worst in ("exact", "rounding") and ppm <= 20
        holds = holds and exact[0] == exact64[0] == exact64[1] == exact_nir[0] == 0
        holds = holds and max(exact[1], exact_nir[1]) <= plain + 2
        rates = firing_rates(graph, images[:SAMPLES])
        holds = holds and all(0.02 <= rate <= 0.4 for rate in rates)
        lines.append(
            f"| {name} | {timesteps} | {min(rates):.1%} to {max(rates):.1%} | {l1} | {worst} | {ppm:.1f} | "
            f"{certified} | {exact[0]}; {exact[1]} | {exact64[0]}; {exact64[1]} | "
            f"{exact_nir[0]}; {exact_nir[1]} | {plain} |"
        )
        print(lines[-1], flush=True)
    return lines, holds
