"""The levels of proof, on two trained networks and real held-out digits, at T = 4 and T = 16.

L1, semantic: the training graph and the folded graph, in float64 with the trained alpha and beta, fire the same
spikes on every sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy import fold
from dalif_deploy.deploy import LoadOptions, open_model
from dalif_deploy.equivalence import simulate
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Conv2d, frozen
from dalif_deploy.recording import Recording

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLES = 64
CASES = [(model, timesteps) for model in ("digits", "resnet20_digits") for timesteps in (4, 16)]


@pytest.fixture(scope="module", autouse=True)
def _example_scripts() -> Iterator[None]:
    """The examples import their neighbours as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield


@cache
def digits(model: str) -> NDArray[np.uint8]:
    """The first 64 held-out digits, pixel codes 0..16, in the size that the network takes."""
    from digits_data import load_split
    from train_resnet_digits import enlarged

    _, _, images, _ = load_split()
    images = images[:SAMPLES]
    return enlarged(images) if model == "resnet20_digits" else images


@dataclass(frozen=True)
class Trained:
    """A trained network at some T, its data, and its float64 reference."""

    graph: SpikingGraph
    folded: SpikingGraph
    data: NDArray[np.uint8]
    reference: Recording


@cache
def trained(model: str, timesteps: int) -> Trained:
    graph = open_model(EXAMPLES / "models" / f"{model}.pt", LoadOptions(timesteps=timesteps)).graph
    return Trained(graph, fold(graph), digits(model), simulate(graph, digits(model)))


def differing(one: Recording, other: Recording) -> int:
    """In how many neuron-steps two recordings of the same layers differ."""
    assert one.spikes.keys() == other.spikes.keys()
    return sum(int(train.differing(other.spikes[name]).sum()) for name, train in one.spikes.items())


@pytest.mark.parametrize(("model", "timesteps"), CASES)
def test_the_networks_fire(model: str, timesteps: int) -> None:
    case = trained(model, timesteps)
    assert case.graph.timesteps == timesteps
    trains = case.reference.spikes
    assert len(trains) == {"digits": 3, "resnet20_digits": 19}[model]
    assert all(train.bits.shape[:2] == (SAMPLES, timesteps) for train in trains.values())
    rates = {name: train.count() / train.neuron_steps for name, train in trains.items()}
    assert all(0.02 <= rate <= 0.4 for rate in rates.values()), rates


@pytest.mark.parametrize(("model", "timesteps"), CASES)
def test_level_1_folding_changes_no_spike(model: str, timesteps: int) -> None:
    case = trained(model, timesteps)
    folded = simulate(case.folded, case.data)
    assert differing(case.reference, folded) == 0
    np.testing.assert_allclose(folded.logits, case.reference.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("model", "layer"), [("digits", "conv2"), ("resnet20_digits", "layer3.0.conv1")])
def test_level_1_can_fail(model: str, layer: str) -> None:
    # One filter of one layer 1 % too large shows as spikes.
    case = trained(model, 4)
    conv = case.folded[layer]
    assert isinstance(conv, Conv2d)
    weight = conv.weight.copy()
    weight[0] *= 1.01
    changed = simulate(case.folded.replaced({layer: replace(conv, weight=frozen(weight))}), case.data)
    assert differing(case.reference, changed) > 0
