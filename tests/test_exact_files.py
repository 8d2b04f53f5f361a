"""The third level of proof: exact files of trained networks, on real digits, bit for bit.

Potentials, spikes and logits are equal in every bit (0.0 and -0.0 taken as equal) over ONNX Runtime's optimisation
levels and threads, over the events runtime in random orders, and in PyTorch's evaluation of the same definition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.deploy import export
from dalif_deploy.deploy.content import Content, content_of
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.onnxruntime import OPTIMIZATIONS, OnnxRuntime
from dalif_deploy.runtimes.torch import TorchRuntime
from tests.test_proof_levels import _example_scripts, differing, trained

__all__ = ["_example_scripts"]  # the fixture, for this module too

SAMPLES = {("digits", 4): 64, ("digits", 16): 16, ("resnet20_digits", 4): 8, ("resnet20_digits", 16): 2}
PRECISIONS = ("exact", "exact64")
ORDERS = 3

Bits = tuple[Recording, dict[str, NDArray[np.floating]]]
Case = tuple[str, int]


@cache
def content(case: Case, precision: str) -> Content:
    return content_of(trained(*case).folded, precision)


def data(case: Case) -> NDArray[np.uint8]:
    return trained(*case).data[: SAMPLES[case]]


def watched(make: Callable[..., object], graph: object, batch: NDArray[np.uint8], **options: object) -> Bits:
    """One run of a runtime that shows its potentials: its recording, and V by layer, [batch, T, *shape]."""
    seen: dict[str, list[NDArray[np.floating]]] = {}
    runtime = make(graph, watch=lambda name, v: seen.setdefault(name, []).append(np.array(v)), **options)
    recording = runtime.run(batch)  # type: ignore[attr-defined]
    return recording, {name: np.stack(steps, axis=1) for name, steps in seen.items()}


@cache
def definition(case: Case, precision: str) -> Bits:
    return watched(EventsRuntime, content(case, precision).graph, data(case), arithmetic=precision)


def assert_same_bits(found: Bits, expected: Bits) -> None:
    assert found[1].keys() == expected[1].keys()
    for name, potentials in expected[1].items():
        assert found[1][name].dtype == potentials.dtype, name
        assert (found[1][name] == potentials).all(), name
    assert differing(found[0], expected[0]) == 0
    assert found[0].logits.dtype == expected[0].logits.dtype
    assert (found[0].logits == expected[0].logits).all()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case, str], Path]:
    folder = tmp_path_factory.mktemp("exact")

    @cache
    def file(case: Case, precision: str) -> Path:
        path = folder / f"{case[0]}-{case[1]}-{precision}.onnx"
        export(trained(*case).graph, path, to="onnx", precision=precision, verified=False, samples=1)
        return path

    return file


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_events_in_any_order_and_torch_agree_in_every_bit(case: Case, precision: str) -> None:
    graph, batch, expected = content(case, precision).graph, data(case), definition(case, precision)
    for seed in range(ORDERS):
        order = np.random.default_rng(seed)
        assert_same_bits(watched(EventsRuntime, graph, batch, arithmetic=precision, order=order), expected)
    assert_same_bits(watched(TorchRuntime, graph, batch, arithmetic=precision), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_onnx_runtime_agrees_in_every_bit(case: Case, precision: str, files: Callable[[Case, str], Path]) -> None:
    expected = definition(case, precision)
    for level in OPTIMIZATIONS:
        for threads in (1, 2):
            runtime = OnnxRuntime(files(case, precision), threads=threads, optimization=level)
            found = (runtime.run(data(case)), runtime.potentials(data(case)))
            assert_same_bits(found, expected)
            assert not runtime.notes


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_exact64_fires_as_the_float64_reference(case: Case) -> None:
    reference = trained(*case).reference.part(0, SAMPLES[case])
    assert differing(definition(case, "exact64")[0], reference) == 0


@pytest.mark.parametrize("case", [("digits", 4), ("resnet20_digits", 4)], ids=str)
def test_float32_would_not_agree_in_every_bit(case: Case) -> None:
    """What the exact forms are for: the same network in float32, in two orders, has other potentials."""
    graph, batch = trained(*case).folded, data(case)
    one, other = (watched(EventsRuntime, graph, batch, order=np.random.default_rng(seed))[1] for seed in (0, 1))
    assert any((one[name] != other[name]).any() for name in one)
