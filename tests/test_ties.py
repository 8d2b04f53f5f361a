"""V == v_th: every simulator, on a file in its own dialect, decides it as the network does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dalif_deploy import DALIF, Code, DalifError, export, save
from dalif_deploy.dialects import DIALECTS
from dalif_deploy.equivalence import Arithmetic, judge
from dalif_deploy.equivalence.replay import NeuronStep, replay, simulate
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.nodes import Array, Conv2d, Edge, Flatten, Linear, SumPool2d, ThresholdRule, frozen
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.norse import NorseRuntime
from dalif_deploy.runtimes.registry import runtime_kind
from dalif_deploy.runtimes.sinabs import SinabsRuntime
from dalif_deploy.runtimes.snntorch import SnnTorchRuntime
from dalif_deploy.runtimes.spikingjelly import SpikingJellyRuntime
from tests.graphs import GRAPHS, Build, Case
from tests.nir_graphs import changed, one_layer, write

RUNTIMES = {
    "norse": NorseRuntime, "spikingjelly": SpikingJellyRuntime, "snntorch": SnnTorchRuntime, "sinabs": SinabsRuntime,
}  # fmt: skip
STRICT = {"norse", "snntorch"}
"""The simulators that fire at v > v_threshold only."""

simulators = pytest.mark.simulators
per_simulator = pytest.mark.parametrize("simulator", RUNTIMES)
per_rule = pytest.mark.parametrize("rule", ["ge", "gt"])


# ---- over all bit patterns


@pytest.fixture(scope="module")
def patterns() -> NDArray[np.int64]:
    """Of all 2^32 bit patterns in float32: how many are at least 1, and how many contradict each of three rules."""
    stored = to_nir(one_layer(1.0, 0.5, [0.0])[0], dialect="snntorch").nodes["sn"].v_threshold
    below = stored.astype(np.float32)[0]
    assert below == stored[0]
    chunk = 2**19  # all arrays of a chunk stay in the cache
    bits = np.arange(chunk, dtype=np.uint32)
    meant, rule, shifted, reads = (np.empty(chunk, np.bool_) for _ in range(4))
    moved = np.empty(chunk, np.float32)
    counts = np.zeros(4, np.int64)
    with np.errstate(all="ignore"):
        for _ in range(2**32 // chunk):
            v = bits.view(np.float32)
            np.greater_equal(v, np.float32(1.0), out=meant)
            np.greater(v, below, out=rule)
            np.greater(np.subtract(v, below, out=moved), np.float32(0.0), out=shifted)  # how the packages compare
            np.greater(np.subtract(v, np.float32(1.0), out=moved), np.float32(0.0), out=reads)
            counts += [
                np.count_nonzero(meant),
                np.count_nonzero(meant != rule),
                np.count_nonzero(meant != shifted),
                np.count_nonzero(meant != reads),
            ]
            bits += np.uint32(chunk)  # comes round to 0 at the end
    return counts


def test_greater_than_the_number_below_is_at_least_for_every_float32(patterns: NDArray[np.int64]) -> None:
    """V > nextafter(1, -inf) and V >= 1 for all 2^32 bit patterns, NaN among them, for which both are false."""
    at_least_one, differing, differing_as_difference, plain = patterns
    assert at_least_one == 0x7F800000 - 0x3F800000 + 1  # from 1 to infinity
    assert (differing, differing_as_difference) == (0, 0)
    assert plain == 1  # V > 1 misses V = 1: the sweep sees single numbers


# ---- one step from rest


BETAS = [-0.9, -0.25, 0.0, 1e-6, 1 / 3, 0.5, 0.7615941762924194, 0.9, 0.999, 1.0]
THRESHOLDS = [1.0, 0.7, 1.3130352854993312, 1e-3]
"""1.313... is 1 / tanh(1), as scaled thresholds are; a float32 potential meets its float32 neighbour."""


def leaks_of(simulator: str) -> list[float]:
    """The leaks that a file in this dialect can hold, as float32 numbers."""
    least = {"norse": -1.0, "spikingjelly": 1e-9, "snntorch": 0.0, "sinabs": 0.0}[simulator]
    return [float(np.float32(beta)) for beta in BETAS if beta >= least]


@simulators
@per_rule
@per_simulator
def test_the_first_step_at_the_threshold(simulator: str, rule: ThresholdRule, tmp_path: Path) -> None:
    """X = v_th fires where the rule says >=, and only there; two numbers of the last place away it is clear."""
    for beta in leaks_of(simulator):
        for threshold in THRESHOLDS:
            tie = np.float32(threshold)
            values = [tie, tie * np.float32(1 - 2**-22), tie * np.float32(1 + 2**-22)]
            case = changed(one_layer(threshold, beta, [float(v) for v in values]), "sn", fires_at=rule)
            found = RUNTIMES[simulator](write(case, tmp_path, dialect=simulator)).run(case[1]).spikes["sn"]
            assert found.step(0)[0].tolist() == [rule == "ge", False, True], (beta, threshold)


# ---- networks


@dataclass(frozen=True)
class Grid:
    """Weights and biases on a grid of 1/64, spikes in: sums are exact, and potentials meet the threshold often."""

    rng: np.random.Generator

    def __call__(self, *shape: int) -> Array:
        values = self.rng.normal(0.03, 1.2 / np.sqrt(np.prod(shape[1:])), shape)
        return frozen(np.round(values * 64) / 64)


TIMESTEPS = 16


def chain(rules: dict[str, object]) -> Case:
    """affine - neuron - affine - neuron."""
    build, grid = Build(51, (24,), temporal=True, kind="spike"), Grid(np.random.default_rng(52))
    bias = frozen(np.round(grid.rng.normal(0.1, 0.1, 32) * 64) / 64)
    x = build.add(Linear(name="fc1", inputs=(Edge("input"),), weight=grid(32, 24), bias=bias))
    x = build.neuron("sn1", x, alpha=1.0, **rules)
    x = build.add(Linear(name="fc2", inputs=(Edge(x),), weight=grid(16, 32)))
    return finished(build, build.neuron("sn2", x, alpha=1.0, **rules), (48, TIMESTEPS, 24))


def pooled(rules: dict[str, object]) -> Case:
    """conv - neuron - sum pool - affine - neuron."""
    build, grid = Build(53, (2, 6, 6), temporal=True, kind="spike"), Grid(np.random.default_rng(54))
    x = build.add(Conv2d(name="conv", inputs=(Edge("input"),), weight=grid(6, 2, 3, 3), padding=(1, 1)))
    x = build.neuron("sn1", x, alpha=1.0, **rules)
    x = build.add(SumPool2d(name="pool", inputs=(Edge(x),), kernel=(2, 2), stride=(2, 2)))
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    x = build.add(Linear(name="fc", inputs=(Edge(x),), weight=grid(16, 54)))
    return finished(build, build.neuron("sn2", x, alpha=1.0, **rules), (10, TIMESTEPS, 2, 6, 6))


def skipped(rules: dict[str, object]) -> Case:
    """conv - neuron - conv - neuron, with an identity shortcut over the second convolution."""
    build, grid = Build(55, (2, 6, 6), temporal=True, kind="spike"), Grid(np.random.default_rng(56))
    x = build.add(Conv2d(name="conv1", inputs=(Edge("input"),), weight=grid(6, 2, 3, 3), padding=(1, 1)))
    stem = build.neuron("sn1", x, alpha=1.0, **rules)
    x = build.add(Conv2d(name="conv2", inputs=(Edge(stem),), weight=grid(6, 6, 3, 3), padding=(1, 1)))
    x = build.neuron("sn2", build.plus("add", x, stem), alpha=1.0, **rules)
    return finished(build, build.add(Flatten(name="flatten", inputs=(Edge(x),))), (8, TIMESTEPS, 2, 6, 6))


def finished(build: Build, source: str, shape: tuple[int, ...]) -> Case:
    batch = (build.rng.random(shape) < 0.4).astype(np.float32)
    return fold(build.finish(source, timesteps=TIMESTEPS, mode="sum")), batch


NETWORKS: dict[str, Callable[[dict[str, object]], Case]] = {"chain": chain, "pooled": pooled, "skipped": skipped}


@dataclass(frozen=True)
class Reference:
    """A network with one leak and rule, its spikes in float64, and at how many neuron-steps V is v_th there."""

    case: Case
    spikes: Recording
    ties: int


@cache
def network(name: str, beta: float, rule: str) -> Reference:
    case = NETWORKS[name]({"beta": beta, "fires_at": rule})
    return Reference(case, simulate(*case), ties(case))


def ties(case: Case) -> int:
    met: list[int] = []

    def visit(step: NeuronStep) -> None:
        met.append(int(np.count_nonzero(step.potential == step.neuron.v_threshold)))

    replay(*case, visit)
    return sum(met)


def differing(expected: Recording, found: Recording) -> int:
    return sum(int(train.differing(found.spikes[name]).sum()) for name, train in expected.spikes.items())


DYADIC = [-0.25, 0.0, 0.25, 0.5, 0.75, 0.875, 1.0]
HELD = [(name, beta) for name in RUNTIMES for beta in DYADIC if (name, beta) not in {
    ("spikingjelly", -0.25), ("spikingjelly", 0.0), ("snntorch", -0.25), ("sinabs", -0.25),
}]  # fmt: skip
"""Leaks that neither float32 nor a simulator rounds the potentials of, where the simulator's dialect holds them."""


@pytest.mark.parametrize("name", NETWORKS)
@per_rule
@pytest.mark.parametrize("beta", DYADIC)
def test_the_networks_meet_their_thresholds(beta: float, rule: str, name: str) -> None:
    reference = network(name, beta, rule)
    assert reference.ties > 20
    assert all(0.02 < train.count() / train.neuron_steps < 0.6 for train in reference.spikes.spikes.values())
    graph, batch = reference.case
    assert differing(reference.spikes, EventsRuntime(graph, dtype="float32").run(batch)) == 0


@simulators
@pytest.mark.parametrize("name", NETWORKS)
@per_rule
@pytest.mark.parametrize(("simulator", "beta"), HELD)
def test_no_spike_differs(simulator: str, beta: float, rule: str, name: str, tmp_path: Path) -> None:
    reference = network(name, beta, rule)
    path = write(reference.case, tmp_path, dialect=simulator)
    assert differing(reference.spikes, RUNTIMES[simulator](path).run(reference.case[1])) == 0


@simulators
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("simulator", "rule"), [("norse", "ge"), ("snntorch", "ge"), ("spikingjelly", "gt")])
def test_a_canonical_file_misses_them(simulator: str, rule: str, name: str, tmp_path: Path) -> None:
    """The comparison is no comparison of networks without ties."""
    reference = network(name, 0.5, rule)
    path = write(reference.case, tmp_path)
    assert differing(reference.spikes, RUNTIMES[simulator](path).run(reference.case[1])) > reference.ties


@simulators
@pytest.mark.parametrize("beta", [0.76, 0.9, 0.95])
@pytest.mark.parametrize("name", NETWORKS)
@per_rule
@per_simulator
def test_other_leaks(simulator: str, rule: str, name: str, beta: float, tmp_path: Path) -> None:
    """float32 rounds beta H: what is decided otherwise is no tie, but lies so near that rounding decides it."""
    graph, batch = case = network(name, float(np.float32(beta)), rule).case
    found = RUNTIMES[simulator](write(case, tmp_path, dialect=simulator)).run(batch)
    judgement = judge(graph, batch, found.spikes, Arithmetic("float32", runtime_kind(simulator).update))
    assert ties(case) > 20
    assert all(step.margin != 0.0 and step.within_bound for step in judgement.contradictions)


@simulators
@pytest.mark.parametrize("name", ["ties", "ties, strict"])
@per_simulator
def test_a_trained_graph_with_gains(simulator: str, name: str, tmp_path: Path) -> None:
    graph, batch = GRAPHS[name]()
    assert ties((graph, batch)) > 100
    path = write((fold(graph), batch), tmp_path, dialect=simulator)
    assert differing(simulate(graph, batch), RUNTIMES[simulator](path).run(batch)) == 0


@simulators
@per_simulator
def test_rules_that_differ_from_layer_to_layer(simulator: str, tmp_path: Path) -> None:
    graph, batch = chain({"beta": 0.5})
    mixed = graph.replaced({"sn2": replace(graph["sn2"], fires_at="gt")})
    assert differing(simulate(graph, batch), simulate(mixed, batch)) > 0
    found = RUNTIMES[simulator](write((mixed, batch), tmp_path, dialect=simulator)).run(batch)
    assert differing(simulate(mixed, batch), found) == 0


# ---- what is stored


@per_rule
@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "canonical"])
def test_stored_thresholds_are_float32_numbers_beside_those_of_the_other_rule(dialect: str, rule: str) -> None:
    """Of two networks that differ in their rule, one file has the next float32 number above the other's."""

    def stored(fires_at: str) -> Array:
        graph = changed(one_layer(1.3, 0.76, [0.0, 0.0]), "sn", fires_at=fires_at)[0]
        values: Array = to_nir(graph, dialect=dialect).nodes["sn"].v_threshold
        assert np.array_equal(values, values.astype(np.float32))
        return values

    lower, upper = stored("ge"), stored("gt")
    assert np.array_equal(np.nextafter(lower.astype(np.float32), np.float32(np.inf)), upper)
    untouched = "gt" if dialect in STRICT else "ge"
    scale = 0.24 if DIALECTS[dialect].potential == "scaled" else 1.0
    np.testing.assert_allclose(stored(untouched), scale * 1.3, rtol=1e-6)


# ---- what a canonical export says


@simulators
def test_a_canonical_export_that_meets_ties_names_the_dialect(tmp_path: Path) -> None:
    layer, last = nn.Linear(8, 8), nn.Linear(8, 2)
    with torch.no_grad():
        layer.weight.fill_(0.25)  # four spikes, or two and then what is left of them, are the threshold
        layer.bias.zero_()
    net = nn.Sequential(layer, DALIF(activation="identity", beta_init=0.25), last)
    batch = (np.arange(8)[None] < np.arange(1, 9)[:, None]).astype(np.float32)
    save(net, tmp_path / "model.pt", example_input=batch, timesteps=3, encoding="spikes")
    with pytest.raises(DalifError, match=r"(norse|snntorch) writes thresholds") as caught:
        export(tmp_path / "model.pt", tmp_path / "net.nir", to="nir")
    assert caught.value.code is Code.EXPORT_DIVERGES
    assert "--nir-dialect" in str(caught.value)
    assert not (tmp_path / "net.nir").exists()
    export(tmp_path / "model.pt", tmp_path / "net.nir", to="nir", dialect="norse")
