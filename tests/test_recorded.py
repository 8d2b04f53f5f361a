"""Spikes that were recorded elsewhere are judged like those of a runtime, whatever wrote them, and read in parts."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.deploy import verify
from dalif_deploy.equivalence import Outcome, RuntimeComparison
from dalif_deploy.errors import Code
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.recorded import RecordedRuntime
from tests.results import (
    ANSWERS,
    DIVERGENT,
    EXACT,
    ROUNDING,
    SIZE,
    candidate,
    data,
    model_graph,
    recorded_verdict,
    refusal,
)


def run_file(folder: Path, case: str, **changes: Any) -> Path:
    """What a device would hand over: `logits` and `spikes.<layer>`; `changes` by name, None to leave one out."""
    inputs, run = data().inputs, candidate(case)
    recording = Recording.joined([run(inputs[start : start + SIZE]) for start in range(0, len(inputs), SIZE)])
    arrays: dict[str, Any] = {"logits": recording.logits.astype(np.float32)}
    arrays |= {f"spikes.{name}": train.unpack() for name, train in recording.spikes.items()}
    arrays |= changes
    path = folder / "run.npz"
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: values for name, values in arrays.items() if values is not None})
    return path


def judged(path: Path) -> RuntimeComparison:
    (runtime,) = verify(model_graph(), data=data(), runtimes=(), recordings=[path]).runtimes
    return runtime


@pytest.mark.parametrize("case", [EXACT, ROUNDING, DIVERGENT, ANSWERS])
def test_a_recording_is_judged_like_the_runtime_itself(case: str, tmp_path: Path) -> None:
    path = run_file(tmp_path, case)
    found, expected = judged(path), recorded_verdict(case).runtimes[0]
    assert found.comparison.outcome is expected.comparison.outcome
    assert found.comparison.origins == expected.comparison.origins
    assert found.comparison.spikes_differing == expected.comparison.spikes_differing
    assert found.comparison.logits_beyond == expected.comparison.logits_beyond
    assert (found.accuracy, found.file) == (expected.accuracy, str(path))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_spikes_may_be_numbers_but_only_two(dtype: type, tmp_path: Path) -> None:
    spikes = candidate(EXACT)(data().inputs).spikes["sn1"].unpack().astype(dtype)
    assert judged(run_file(tmp_path, EXACT, **{"spikes.sn1": spikes})).outcome is Outcome.EXACT
    spikes[2, 1].flat[7] = 2
    path = run_file(tmp_path, EXACT, **{"spikes.sn1": spikes})
    assert "0 and 1" in refusal(Code.BAD_DATA, lambda: judged(path))


def test_a_spike_that_is_no_number_is_refused(tmp_path: Path) -> None:
    spikes = candidate(EXACT)(data().inputs).spikes["sn1"].unpack().astype(np.float32)
    spikes.flat[0] = np.nan
    path = run_file(tmp_path, EXACT, **{"spikes.sn1": spikes})
    refusal(Code.BAD_DATA, lambda: judged(path))


def test_arrays_in_fortran_order_are_read(tmp_path: Path) -> None:
    recording = candidate(ROUNDING)(data().inputs)
    spikes = {f"spikes.{name}": np.asfortranarray(train.unpack()) for name, train in recording.spikes.items()}
    found = judged(run_file(tmp_path, ROUNDING, **spikes)).comparison
    assert found.origins == recorded_verdict(ROUNDING).runtimes[0].comparison.origins


def ones(*shape: int) -> NDArray[np.bool_]:
    return np.ones(shape, np.bool_)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"spikes.sn1": None, "spikes.sn2": None}, Code.BAD_DATA, "--spikes"),
        ({"logits": None}, Code.BAD_DATA, "--spikes"),
        ({"spikes.sn1": None}, Code.OTHER_MODEL, "lacks spikes.sn1"),
        ({"spikes.sn9": ones(6, 6, 16)}, Code.OTHER_MODEL, "sn9"),
        ({"spikes.sn2": ones(6, 6, 15)}, Code.OTHER_MODEL, "[6, 6, 15]"),
        ({"spikes.sn2": ones(6, 5, 16)}, Code.OTHER_MODEL, "[6, 5, 16]"),
        ({"spikes.sn2": ones(5, 6, 16)}, Code.OTHER_MODEL, "[5, 6, 16]"),
        ({"spikes.sn2": np.full((6, 6, 16), "a")}, Code.BAD_DATA, "0 and 1"),
        ({"spikes.sn2": np.zeros((6, 6, 16), np.complex64)}, Code.BAD_DATA, "complex64"),
        ({"spikes.sn2": np.zeros(())}, Code.BAD_DATA, "spikes.sn2"),
        ({"spikes.sn2": np.array([{}])}, Code.PICKLED, "spikes.sn2"),
        ({"logits": np.zeros((6, 4), np.int32)}, Code.BAD_DATA, "int32"),
        ({"logits": np.zeros((6, 3))}, Code.OTHER_MODEL, "logits"),
    ],
)
def test_a_recording_of_something_else_is_named(
    changes: dict[str, Any], code: Code, words: str, tmp_path: Path
) -> None:
    path = run_file(tmp_path, EXACT, **changes)
    assert words in refusal(code, lambda: judged(path))


def test_a_recording_cut_anywhere_is_damaged(tmp_path: Path) -> None:
    content = run_file(tmp_path, EXACT).read_bytes()
    path = tmp_path / "cut.npz"
    for size in np.linspace(1, len(content) - 1, 20, dtype=int):
        path.write_bytes(content[:size])
        refusal(Code.FILE_DAMAGED, lambda: judged(path))


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    def peak(samples: int) -> int:
        path = tmp_path / f"{samples}.npz"
        spikes = np.random.default_rng(0).random((samples, 4, 500)) < 0.2
        np.savez_compressed(path, logits=np.zeros((samples, 3)), **{"spikes.sn": spikes})
        del spikes
        tracemalloc.start()
        runtime = RecordedRuntime(path, {"sn": (4, 500)})
        for _ in range(0, samples, 32):
            runtime.run(np.zeros(32))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(32)  # imports and caches
    assert peak(32 * 40) < 1.2 * peak(32 * 4) + 50_000
