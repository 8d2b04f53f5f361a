"""The three levels of exactness on two trained networks and real digits, at full size; a table for docs/measured.md."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from digits_data import load_split
from numpy.typing import NDArray
from train_resnet_digits import enlarged

from dalif_deploy.deploy import LoadOptions, export, open_model
from dalif_deploy.deploy.content import Content, content_of
from dalif_deploy.equivalence import Arithmetic, Comparer, NeuronStep, Outcome, replay, simulate
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
ORDERS, FULL_ORDERS, FEW = 20, 2, 4
"""Random orders of events, those of them that run on all samples, and on how many the others run."""
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
    for seed in range(ORDERS):
        run = EventsRuntime(folded, order=np.random.default_rng(seed)).run
        runs.append((f"events {seed}", folded, "sum", run, SAMPLES if seed < FULL_ORDERS else FEW))
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


def reached(folded: SpikingGraph, images: Images) -> tuple[float, float]:
    """|V32 - V64| / bound of the events runtime in random orders: of the largest of every layer, the smallest and the
    largest."""
    largest = dict.fromkeys((neuron.name for neuron in folded.neurons), 0.0)
    for seed in range(FULL_ORDERS):
        for batch in batches(images[:SAMPLES]):
            recording, potentials = _watched(EventsRuntime, folded, batch, order=np.random.default_rng(seed))

            def visit(step: NeuronStep, potentials: dict[str, NDArray[np.floating]] = potentials) -> None:
                gap = np.abs(potentials[step.neuron.name][:, step.t].astype(np.float64) - step.potential)
                assert step.bound is not None
                ratio = np.divide(gap, step.bound, out=np.zeros_like(gap), where=gap > 0.0)
                largest[step.neuron.name] = max(largest[step.neuron.name], float(ratio.max()))

            replay(folded, batch, visit, history=recording.spikes, update="sum")
    return min(largest.values()), max(largest.values())


def level3(graph: SpikingGraph, folded: SpikingGraph, images: Images, precision: str, folder: Path) -> tuple[int, int]:
    """How many bits of potentials, spikes and logits differ; in how many samples a spike differs from float64."""
    content = content_of(folded, precision)
    path = folder / f"{precision}.onnx"
    export(graph, path, to="onnx", precision=precision, verified=False, force=True, samples=1)
    bits = 0
    runtimes = [OnnxRuntime(path, threads=threads, optimization=level) for level in OPTIMIZATIONS for threads in (1, 2)]
    for batch in batches(images[:SAMPLES]):
        expected = _watched(EventsRuntime, content.graph, batch, arithmetic=precision)
        found: list[Callable[[], Watched]] = [
            partial(_watched, TorchRuntime, content.graph, batch, arithmetic=precision),
            *(partial(_in_onnxruntime, runtime, batch) for runtime in runtimes),
            *(partial(_in_order, seed, content.graph, batch, precision) for seed in range(FULL_ORDERS)),
        ]
        bits += sum(_bits(run(), expected) for run in found)  # one at a time: potentials are large
    few = images[:FEW]
    expected = _watched(EventsRuntime, content.graph, few, arithmetic=precision)
    bits += sum(_bits(_in_order(seed, content.graph, few, precision), expected) for seed in range(FULL_ORDERS, ORDERS))
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


Watched = tuple[Recording, dict[str, NDArray[np.floating]]]
"""A run, and V by layer, [batch, T, *shape]."""


def _bits(found: Watched, expected: Watched) -> int:
    """How many spikes, logits and potentials of two runs differ."""
    spikes = int(differing(found[0], expected[0]).sum())
    logits = int(np.count_nonzero(found[0].logits != expected[0].logits))
    return spikes + logits + sum(int(np.count_nonzero(found[1][name] != v)) for name, v in expected[1].items())


def _in_onnxruntime(runtime: OnnxRuntime, batch: Images) -> Watched:
    return runtime.run(batch), runtime.potentials(batch)


def _in_order(seed: int, graph: SpikingGraph, batch: Images, precision: str) -> Watched:
    return _watched(EventsRuntime, graph, batch, arithmetic=precision, order=np.random.default_rng(seed))


def _watched(make: Callable[..., object], graph: SpikingGraph, batch: Images, **options: object) -> Watched:
    seen: dict[str, list[NDArray[np.floating]]] = {}
    runtime = make(graph, watch=lambda name, v: seen.setdefault(name, []).append(np.array(v)), **options)
    recording = runtime.run(batch)  # type: ignore[attr-defined]
    return recording, {name: np.stack(steps, axis=1) for name, steps in seen.items()}


def table() -> tuple[list[str], bool]:
    """The table's lines, and whether every claim holds."""
    lines = [
        "| network | T | firing rates | L1 flips | L2 worst | dV / bound | uncertain, ppm | certified of 64 | "
        "L3 `exact`: bits; flipped of 360 | `exact64`: bits; flipped of 360 | `exact` NIR: bits; flipped of 360 | "
        "float32: flipped of 360 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
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
        least, most = reached(folded, images)
        plain = sum(
            int(np.count_nonzero(differing(EventsRuntime(folded).run(b), simulate(graph, b)))) for b in batches(images)
        )
        holds = holds and l1 == 0 and worst in ("exact", "rounding") and ppm <= 20
        holds = holds and exact[0] == exact64[0] == exact64[1] == exact_nir[0] == 0
        holds = holds and max(exact[1], exact_nir[1]) <= plain + 2
        holds = holds and most <= 1.0
        rates = firing_rates(graph, images[:SAMPLES])
        holds = holds and all(0.02 <= rate <= 0.4 for rate in rates)
        lines.append(
            f"| {name} | {timesteps} | {min(rates):.1%} to {max(rates):.1%} | {l1} | {worst} | "
            f"{least:.2f} to {most:.2f} | {ppm:.1f} | "
            f"{certified} | {exact[0]}; {exact[1]} | {exact64[0]}; {exact64[1]} | "
            f"{exact_nir[0]}; {exact_nir[1]} | {plain} |"
        )
        print(lines[-1], flush=True)
    return lines, holds
