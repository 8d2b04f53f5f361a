"""What a verification keeps, and how closely it looks at its own folding."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dalif_deploy import Data, load, verify
from dalif_deploy.deploy import verifying
from dalif_deploy.equivalence import Outcome
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Neuron, frozen
from dalif_deploy.passes import fold
from tests.commands import DIGITS, stored_samples
from tests.graphs import Build


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """With 2 and with 8 batches, results written and not: a batch's recordings take 200 kB."""

    def peak(samples: int, results: bool) -> int:
        data = Data(np.concatenate([stored_samples(32)] * (samples // 32)), None, "digits")
        path = tmp_path / f"{samples}.npz" if results else None
        tracemalloc.start()
        verdict = verify(DIGITS, data=data, runtimes=("torch", "events"), results=path, force=True)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (verdict.samples, verdict.outcome) == (samples, Outcome.EXACT)
        return found

    for results in (False, True):
        peak(32, results)  # imports and caches
        assert peak(32 * 8, results) < peak(32 * 2, results) + 300_000


def test_a_contradiction_takes_little(tmp_path: Path) -> None:
    """Of a candidate that is wholly wrong, such as a recording of other data."""
    shapes = {neuron.name: (4, *load(DIGITS).types[neuron.name].shape) for neuron in load(DIGITS).neurons}

    def peak(samples: int) -> tuple[int, int]:
        rng, path = np.random.default_rng(0), tmp_path / f"{samples}.npz"
        spikes = {f"spikes.{name}": rng.random((samples, *shape)) < 0.3 for name, shape in shapes.items()}
        np.savez(path, logits=np.zeros((samples, 10), np.float32), **spikes)
        data = Data(np.concatenate([stored_samples(32)] * (samples // 32)), None, "digits")
        tracemalloc.start()
        comparison = verify(DIGITS, data=data, runtimes=(), recordings=path).runtimes[0].comparison
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, len(comparison.origins)

    peak(32)
    (little, few), (much, many) = peak(32 * 2), peak(32 * 6)
    assert many - few > 100_000
    recorded = sum(int(np.prod(shape)) for shape in shapes.values()) * 32 * 4  # which is read as a whole
    assert much - little < 200 * (many - few) + 2 * recorded


def test_the_link_of_folding_is_held_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold that is off by far less than float32 could tell, where potentials come as near."""

    def off(graph: SpikingGraph) -> SpikingGraph:
        folded = fold(graph)
        neuron = folded["sn"]
        assert isinstance(neuron, Neuron)
        return folded.replaced({"sn": replace(neuron, v_threshold=frozen(neuron.v_threshold * (1.0 + 1e-9)))})

    build = Build(1, (4,))
    graph = build.finish(
        build.linear("fc", build.neuron("sn", "input", alpha=1.0, beta=0.5, v_threshold=1.0 - 5e-10), (4, 2)),
        timesteps=2,
    )
    batch = np.ones((2, 4), np.float32)
    assert verify(graph, data=batch, runtimes=()).outcome is Outcome.EXACT
    monkeypatch.setattr(verifying, "fold", off)
    link = verify(graph, data=batch, runtimes=()).links["folding"]
    assert link is not None
    assert link.outcome is Outcome.DIVERGENT
    assert abs(link.origins[0].margin) < 1e-8
