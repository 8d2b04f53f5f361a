"""The second level of proof: on trained networks and real digits, no runtime's rounding leaves its bound.

Spikes that differ from the reference would have to lie within the bound of their neuron-step, for every runtime
and in every configuration that changes its order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.deploy import export
from dalif_deploy.equivalence import Arithmetic, Comparer, Comparison, NeuronStep, Outcome, judge, replay
from dalif_deploy.recording import Recording, SpikeTrain
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.norse import NorseRuntime
from dalif_deploy.runtimes.onnxruntime import OPTIMIZATIONS, OnnxRuntime
from dalif_deploy.runtimes.spikingjelly import SpikingJellyRuntime
from dalif_deploy.runtimes.torch import TorchRuntime
from tests.float32 import float32_run
from tests.test_proof_levels import Trained, _example_scripts, trained

__all__ = ["_example_scripts"]  # the fixture, for this module too

SAMPLES = {("digits", 4): 64, ("digits", 16): 32, ("resnet20_digits", 4): 8, ("resnet20_digits", 16): 2}
CASES = list(SAMPLES)
MOST_UNCERTAIN = 20e-6
ENOUGH = 100_000
"""Neuron-steps of a layer, of which one comes within a factor of ten of its bound."""

Runs = Callable[[NDArray[np.generic]], Recording]


def part(case: tuple[str, int]) -> tuple[Trained, NDArray[np.uint8], Recording]:
    """A trained network, its data and its reference, as many samples as a test run has time for."""
    found = trained(*case)
    return found, found.data[: SAMPLES[case]], found.reference.part(0, SAMPLES[case])


def in_batches(run: Runs, size: int) -> Runs:
    """The same runtime, `size` samples at a time."""
    return lambda batch: Recording.joined([run(batch[i : i + size]) for i in range(0, len(batch), size)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, int], str], Path]:
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def file(case: tuple[str, int], to: str) -> Path:
        path = folder / f"{case[0]}-{case[1]}.{to}"
        export(trained(*case).graph, path, to=to, verified=False, samples=1)
        return path

    return file


RUNTIMES: dict[str, tuple[str, Callable[[Trained, Callable[[str], Path]], Runs]]] = {
    "torch, batch 1": ("training", lambda case, _: in_batches(TorchRuntime(case.graph, dtype="float32").run, 1)),
    "torch, batch 32": ("training", lambda case, _: in_batches(TorchRuntime(case.graph, dtype="float32").run, 32)),
    "torch, folded": ("folded", lambda case, _: TorchRuntime(case.folded, dtype="float32").run),
    "events": ("folded", lambda case, _: EventsRuntime(case.folded).run),
    **{
        f"events, random order {seed}": (
            "folded",
            lambda case, _, seed=seed: EventsRuntime(case.folded, order=np.random.default_rng(seed)).run,
        )
        for seed in range(3)
    },
    **{
        f"onnxruntime, {level}": (
            "folded",
            lambda case, file, level=level: OnnxRuntime(file("onnx"), threads=1, optimization=level).run,
        )
        for level in OPTIMIZATIONS
    },
    "norse": ("decay", lambda case, file: NorseRuntime(file("nir")).run),
    "spikingjelly": ("decay", lambda case, file: SpikingJellyRuntime(file("nir")).run),
}


@pytest.mark.simulators
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_runtime_leaves_its_bound(
    case: tuple[str, int], runtime: str, files: Callable[[tuple[str, int], str], Path]
) -> None:
    network, batch, reference = part(case)
    form, make = RUNTIMES[runtime]
    graph = network.graph if form == "training" else network.folded
    arithmetic = Arithmetic(update="decay" if form == "decay" else "sum")
    comparer = Comparer(runtime, graph, arithmetic=arithmetic, reference=network.graph)
    comparer.add(batch, reference, make(network, lambda to: files(case, to))(batch))
    result: Comparison = comparer.result()
    assert result.outcome <= Outcome.ROUNDING, result.origins[0]
    assert len(result.uncertain) <= MOST_UNCERTAIN * result.spikes_compared


@pytest.mark.parametrize("case", CASES, ids=str)
def test_potentials_reach_a_tenth_of_the_bound_in_every_layer_and_never_leave_it(case: tuple[str, int]) -> None:
    """With the positive terms first, then in random orders, until every layer has 10^5 neuron-steps."""
    network, batch, _ = part(case)
    batch = batch[: 64 if case[0] == "digits" else 4]
    inputs = network.folded.input_spec.module_input(batch)
    largest = {neuron.name: 0.0 for neuron in network.folded.neurons}
    steps = dict.fromkeys(largest, 0)
    orders = iter((None, *map(np.random.default_rng, range(10))))
    while min(steps.values()) < ENOUGH:
        found = float32_run(network.folded, inputs, next(orders))
        history = {name: SpikeTrain.pack(spikes) for name, (_, spikes) in found.items()}

        def visit(step: NeuronStep, found: dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]] = found) -> None:
            assert step.bound is not None
            gap = np.abs(found[step.neuron.name][0][:, step.t] - step.potential)
            largest[step.neuron.name] = max(largest[step.neuron.name], float((gap / step.bound).max()))
            steps[step.neuron.name] += gap.size

        replay(network.folded, batch, visit, history=history, update="sum")
    for layer, ratio in largest.items():
        assert 0.1 <= ratio <= 1.0, (layer, ratio)


@pytest.mark.parametrize("case", [("digits", 4), ("resnet20_digits", 4)], ids=str)
def test_the_events_runtimes_potentials_stay_within_the_bound_in_random_orders(case: tuple[str, int]) -> None:
    network, batch, _ = part(case)
    batch = batch[:8]
    for seed in range(3):
        seen: dict[str, list[NDArray[np.floating]]] = {}
        runtime = EventsRuntime(
            network.folded, order=np.random.default_rng(seed), watch=lambda n, v, s=seen: s.setdefault(n, []).append(v)
        )
        history = runtime.run(batch).spikes

        def visit(step: NeuronStep, seen: dict[str, list[NDArray[np.floating]]] = seen) -> None:
            gap = np.abs(seen[step.neuron.name][step.t].astype(np.float64) - step.potential)
            assert (gap <= step.bound).all(), step.neuron.name

        replay(network.folded, batch, visit, history=history, update="sum")


def test_some_samples_are_certified_and_some_are_not() -> None:
    """Certification is a statement about samples, not about the network."""
    network, batch, reference = part(("digits", 4))
    certified = judge(network.folded, batch, reference.spikes, Arithmetic()).certified
    assert 0.8 < certified.mean() <= 1.0
