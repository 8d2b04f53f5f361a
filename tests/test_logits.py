"""The answer counts too: logits that do not follow from the spikes are a divergence, though every spike is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest

from dalif_deploy.deploy import export, verify
from dalif_deploy.equivalence import Arithmetic, Comparer, Outcome, judge, simulate
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.torch import TorchRuntime
from tests.graphs import GRAPHS

MODEL = Path(__file__).parent.parent / "examples" / "models" / "digits.pt"


@pytest.mark.parametrize("name", [name for name in GRAPHS if "ties" not in name])
def test_float32_logits_stay_within_their_bound_and_come_near_it(name: str) -> None:
    training, batch = GRAPHS[name]()
    graph = fold(training)
    for runtime in (EventsRuntime(graph), TorchRuntime(graph, dtype="float32")):
        recording = runtime.run(batch)
        found = judge(graph, batch, recording.spikes, Arithmetic())
        gap = np.abs(recording.logits.astype(np.float64) - found.logits)
        assert (gap <= found.logits_bound).all()
        assert (found.logits_bound <= 1e-4 * (np.abs(found.logits) + 1.0)).all()


def altered(recording: Recording, change: Callable[[np.ndarray], np.ndarray]) -> Recording:
    return Recording(recording.spikes, change(np.array(recording.logits)))


@pytest.mark.parametrize(
    "change",
    [lambda y: -y, lambda y: 4 * y, lambda y: y + 1e-3, lambda y: np.full_like(y, np.nan), lambda y: y[:, ::-1]],
    ids=["sign", "sum for mean", "offset", "nan", "permuted"],
)
def test_logits_that_do_not_follow_are_divergent(change: Callable[[np.ndarray], np.ndarray]) -> None:
    training, batch = GRAPHS["plain"]()
    reference = simulate(training, batch)
    comparer = Comparer("x", fold(training), reference=training)
    comparer.add(batch, reference, altered(EventsRuntime(fold(training)).run(batch), change))
    result = comparer.result()
    assert result.outcome is Outcome.DIVERGENT
    assert (result.spikes_differing, result.logits_beyond_bound) == (0, len(batch))
    assert result.as_json()["logits_beyond_bound"] == len(batch)


def test_one_sample_is_one_sample() -> None:
    training, batch = GRAPHS["plain"]()

    def change(logits: np.ndarray) -> np.ndarray:
        logits[2, 1] += 0.01
        return logits

    comparer = Comparer("x", fold(training), reference=training)
    comparer.add(batch, simulate(training, batch), altered(EventsRuntime(fold(training)).run(batch), change))
    result = comparer.result()
    assert result.logits_beyond_bound == 1
    assert result.samples_by_outcome[Outcome.DIVERGENT] == 1


def test_a_file_that_negates_its_answer_is_divergent(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(MODEL, path, to="onnx", samples=2)
    model = onnx.load(path)
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output == "logits":
                node.output[place] = "before"
    model.graph.node.append(onnx.helper.make_node("Neg", ["before"], ["logits"]))
    onnx.save(model, path)
    (found,) = [r for r in verify(MODEL, path, samples=4).runtimes if r.file]
    assert found.outcome is Outcome.DIVERGENT
    assert found.comparison.spikes_differing == 0
    assert found.comparison.logits_beyond_bound == 4


@pytest.mark.simulators
def test_a_file_with_another_readout_is_divergent(tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    export(MODEL, path, to="nir", samples=2)
    with h5py.File(path, "r+") as file:
        entry = file["node/metadata/readout"]
        assert entry[()] == b"mean"
        del file["node/metadata/readout"]
        file["node/metadata/readout"] = "sum"
    for found in [r for r in verify(MODEL, path, samples=4).runtimes if r.file]:
        assert found.outcome is Outcome.DIVERGENT, found.comparison.name
        assert found.comparison.logits_beyond_bound == 4
