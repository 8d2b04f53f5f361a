"""Every way in which the package computes a network, held against the paper's equations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.equivalence import simulate
from dalif_deploy.errors import DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Linear,
    Neuron,
    Readout,
    frozen,
)
from tests.candidates import CANDIDATES, parameters
from tests.oracle import DALIFLayer, Network, average_pool, conv


@dataclass
class Setting:
    first: tuple[object, object] = (0.75, 0.625)
    second: tuple[object, object] = (0.5, 0.875)
    stride: int = 1
    padding: int = 1
    temporal: bool = False
    timesteps: int = 4


SETTINGS = {
    "plain": Setting(),
    "stride 2": Setting(stride=2, padding=0),
    "temporal": Setting(temporal=True, timesteps=5),
    "one step": Setting(timesteps=1),
    "alpha negative": Setting(first=(-0.75, 0.5), second=(-0.5, 0.25)),
    "beta negative": Setting(first=(0.75, -0.5), second=(0.5, -0.25)),
    "beta 0 and 1": Setting(first=(0.75, 0.0), second=(0.5, 1.0)),
    "tanh(1)": Setting(first=(0.7615941762924194, 0.7615941762924194), second=(0.7615941762924194, 0.7615941762924194)),
    "per channel": Setting(
        first=(np.linspace(0.5, 1.0, 6).reshape(6, 1, 1), np.linspace(-0.25, 0.9, 6).reshape(6, 1, 1))
    ),
}

REFUSED = {
    ("beta negative", "spikingjelly"): "tau",
    ("beta 0 and 1", "spikingjelly"): "tau",
    ("per channel", "spikingjelly"): "tau",
    ("beta negative", "snntorch"): "beta below 0",
    ("beta 0 and 1", "snntorch"): "an IF",
    ("per channel", "snntorch"): "beta below 0",
}
"""What a NIR simulator cannot read, and a word of why."""

HELD_IN_ITS_DIALECT = {("beta 0 and 1", "snntorch")}


def _network(setting: Setting) -> tuple[Network, NDArray[np.float32]]:
    """Random weights that float32 holds, normalised so that both layers fire."""
    rng = np.random.default_rng(12)

    def draw(*shape: int, scale: float = 1.0) -> NDArray[np.float64]:
        return rng.normal(0.0, scale, shape).astype(np.float32).astype(np.float64)

    samples = rng.uniform(0, 1, (4, 5, 2, 8, 8) if setting.temporal else (4, 2, 8, 8)).astype(np.float32)
    conv_weight, conv_bias = draw(6, 2, 3, 3, scale=0.3), draw(6, scale=0.1)
    flat = samples.reshape(-1, 2, 8, 8).astype(np.float64)
    currents = np.array([conv(x, conv_weight, conv_bias, setting.stride, setting.padding) for x in flat])
    gain = float(np.mean(setting.first[0]))  # type: ignore[arg-type]
    size = 6 * (currents.shape[-1] // 2) ** 2
    sign = np.sign(setting.second[0])  # type: ignore[call-overload]
    network = Network(
        conv_weight=conv_weight, conv_bias=conv_bias, stride=setting.stride, padding=setting.padding,
        gamma=draw(6, scale=0.05) + 0.6 / abs(gain), shift=draw(6, scale=0.1) + 0.3 / gain,
        mean=currents.mean(axis=(0, 2, 3)).astype(np.float32).astype(np.float64),
        variance=currents.var(axis=(0, 2, 3)).astype(np.float32).astype(np.float64), epsilon=1e-5,
        first=setting.first, pool=2,  # type: ignore[arg-type]
        hidden_weight=draw(16, size, scale=8 / np.sqrt(size)), hidden_bias=draw(16, scale=0.3) + 0.5 * sign,
        second=setting.second,  # type: ignore[arg-type]
        out_weight=draw(5, 16), out_bias=draw(5),
    )  # fmt: skip
    return network, samples


def _graph(network: Network, setting: Setting) -> SpikingGraph:
    def neuron(name: str, source: str, gains: tuple[object, object]) -> Neuron:
        return Neuron(name=name, inputs=(Edge(source),), alpha=frozen(gains[0]), beta=frozen(gains[1]))

    pair = (network.pool, network.pool)
    nodes = [
        Input(name="input", shape=(2, 8, 8), temporal=setting.temporal),
        Conv2d(
            name="conv", inputs=(Edge("input"),), weight=frozen(network.conv_weight), bias=frozen(network.conv_bias),
            stride=(setting.stride, setting.stride), padding=(setting.padding, setting.padding),
        ),
        BatchNorm(
            name="norm", inputs=(Edge("conv"),), weight=frozen(network.gamma), bias=frozen(network.shift),
            mean=frozen(network.mean), variance=frozen(network.variance), epsilon=network.epsilon,
        ),
        neuron("first", "norm", network.first),
        AvgPool2d(name="pool", inputs=(Edge("first"),), kernel=pair, stride=pair),
        Flatten(name="flatten", inputs=(Edge("pool"),)),
        Linear(
            name="hidden", inputs=(Edge("flatten"),), weight=frozen(network.hidden_weight),
            bias=frozen(network.hidden_bias),
        ),
        neuron("second", "hidden", network.second),
        Linear(
            name="out", inputs=(Edge("second"),), weight=frozen(network.out_weight), bias=frozen(network.out_bias)
        ),
        Readout(name="readout", inputs=(Edge("out"),), mode="mean"),
    ]  # fmt: skip
    return SpikingGraph(nodes, output="readout", timesteps=setting.timesteps)


@pytest.mark.parametrize("candidate", ["replay float64", *parameters()])
@pytest.mark.parametrize("name", SETTINGS)
def test_fires_the_spikes_of_the_papers_equations(name: str, candidate: str, tmp_path: Path) -> None:
    network, samples = _network(SETTINGS[name])
    first, second, logits, closest = network.run(samples.astype(np.float64), SETTINGS[name].timesteps)
    for spikes in (first, second):
        assert 0.02 <= spikes.mean() <= 0.4, "a network that is silent, or never is, proves nothing"
    # No potential is so near to the threshold that float32 rounding could decide it: all must agree exactly.
    assert closest > 1e-5

    graph = _graph(network, SETTINGS[name])
    if candidate == "replay float64":
        recording = simulate(graph, samples)
    elif (key := (name, CANDIDATES[candidate].simulator)) in REFUSED and not (
        CANDIDATES[candidate].own and key in HELD_IN_ITS_DIALECT
    ):
        with pytest.raises(DalifError, match=REFUSED[key]):
            CANDIDATES[candidate].run(graph, samples, tmp_path)
        return
    else:
        recording = CANDIDATES[candidate].run(graph, samples, tmp_path)

    np.testing.assert_array_equal(recording.spikes["first"].unpack(), first == 1)
    np.testing.assert_array_equal(recording.spikes["second"].unpack(), second == 1)
    # The readout has no threshold: it is one more sum, in the candidate's precision.
    exact = candidate == "replay float64" or CANDIDATES[candidate].precision == "float64"
    tolerance = 1e-12 if exact else 1e-5
    np.testing.assert_allclose(recording.logits, logits, rtol=tolerance, atol=tolerance)


def test_the_oracle_itself_by_hand() -> None:
    layer = DALIFLayer(alpha=0.5, beta=0.25)
    # V: 0.5, 0.125 + 0.875 = 1 (a tie fires), then 0 + 0.5, then 0.125 - 1 = -0.875, then -0.21875 + 1.25
    fired = [layer(np.array([x]))[0] for x in (1.0, 1.75, 1.0, -2.0, 2.5)]
    assert fired == [0, 1, 0, 0, 1]
    assert layer.H == 0.0
    assert layer.closest == 0.0

    image = np.arange(9.0).reshape(1, 3, 3)
    corner = conv(image, np.ones((1, 1, 2, 2)), np.array([0.5]), stride=2, top=1)
    np.testing.assert_array_equal(corner, [[[0.5, 3.5], [9.5, 4 + 5 + 7 + 8 + 0.5]]])
    np.testing.assert_array_equal(average_pool(image, 2), [[[2.0]]])
