"""The judgement: a divergence is never called rounding, and rounding never divergence.

Spikes are flipped, networks with chosen margins are built, and the judge must name exactly what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dalif_deploy.equivalence import (
    Arithmetic,
    Comparer,
    Comparison,
    Gains,
    NeuronStep,
    NeuronStepFinding,
    Outcome,
    ParameterDifference,
    RuntimeComparison,
    Verdict,
    compare_parameters,
    judge,
    replay,
    simulate,
)
from dalif_deploy.equivalence.judge import SHARE
from dalif_deploy.equivalence.verdict import worst
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Add, Edge, Linear, Neuron, StateVariable, frozen
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording, SpikeTrain
from dalif_deploy.runtimes.torch import TorchRuntime
from tests.graphs import GRAPHS, Build
from tests.oracle import DALIFLayer

Array = NDArray[np.float64]
Batch = NDArray[np.generic]
Place = tuple[str, int, int, tuple[int, ...]]
"""Layer, timestep, sample, index."""

U = 2.0**-24


# --- candidates: what a runtime would record that decides otherwise at given places, and goes on from there


def candidate(graph: SpikingGraph, batch: Batch, *flips: Place) -> Recording:
    """The spikes of a run that decides otherwise at `flips`, with everything that follows from it.

    The run is repeated from the start for each timestep, on the spikes decided until then: replay is asked for
    potentials only, and every decision is made here.
    """
    recording = simulate(graph, batch)
    spikes = {name: train.unpack().copy() for name, train in recording.spikes.items()}
    order = [neuron.name for neuron in graph.neurons]
    for t in range(graph.timesteps):
        for layer in order:
            if not flips:
                break
            history = {name: SpikeTrain.pack(values) for name, values in spikes.items()}

            def visit(step: NeuronStep, t: int = t, layer: str = layer) -> None:
                if (step.t, step.neuron.name) == (t, layer):
                    spikes[layer][:, t] = step.fires

            replay(graph, batch, visit, history=history)
            for name, step, sample, index in flips:
                if (name, step) == (layer, t):
                    spikes[layer][(sample, t, *index)] ^= True
    packed = {name: SpikeTrain.pack(values) for name, values in spikes.items()}
    return Recording(packed, recording.logits)


def flipped(recording: Recording, *flips: Place) -> Recording:
    """The recording with single spikes turned round and nothing that would follow from it."""
    spikes = {name: train.unpack().copy() for name, train in recording.spikes.items()}
    for layer, t, sample, index in flips:
        spikes[layer][(sample, t, *index)] ^= True
    return Recording({name: SpikeTrain.pack(values) for name, values in spikes.items()}, recording.logits)


def places(found: Sequence[NeuronStepFinding]) -> list[Place]:
    return [(step.layer, step.t, step.sample, step.index) for step in found]


def answering(graph: SpikingGraph, batch: Batch, found: Recording) -> Recording:
    """The recording with the logits that its own spikes amount to."""
    return Recording(found.spikes, replay(graph, batch, lambda _: None, history=found.spikes))


def compared(graph: SpikingGraph, batch: Batch, found: Recording, **options: Any) -> Comparison:
    """`found` against the reference; where its spikes were changed and its logits not, they follow the spikes."""
    comparer = Comparer("candidate", graph, **options)
    reference = simulate(options.get("reference", graph), batch)
    if np.array_equal(found.logits, reference.logits) and found.spikes.keys() == reference.spikes.keys():
        found = answering(graph, batch, found)
    comparer.add(batch, reference, found)
    return comparer.result()


def one_neuron(weight: float, *, beta: float = 0.5, timesteps: int = 1, **rules: Any) -> SpikingGraph:
    """input [1] - weight - neuron - readout; V[0] = weight for an input of 1."""
    build = Build(0, (1,))
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[weight]])))
    return build.finish(build.neuron("sn", "fc", alpha=1.0, beta=beta, **rules), timesteps=timesteps)


ONE = np.ones((1, 1), np.float32)


# --- replay against the equations, by scalar loops


@dataclass
class Layer:
    """One fully connected layer and its neurons, and the weights by which it hears itself `delay` steps ago."""

    weight: Array
    bias: Array
    back: Array
    alpha: Array
    beta: Array
    v_th: Array
    v_reset: Array
    leak: Array
    hard: bool
    ge: bool
    delay: int
    initial: float


def by_hand(layers: Sequence[Layer], x: Array) -> list[tuple[Array, Array]]:
    """Potentials and spikes [T, n] of every layer for one sample `x` [T, n], one number at a time."""
    timesteps = len(x)
    found = [(np.zeros((timesteps, len(layer.bias))), np.zeros((timesteps, len(layer.bias)))) for layer in layers]
    held = [[layer.initial] * len(layer.bias) for layer in layers]
    for t in range(timesteps):
        heard = [float(v) for v in x[t]]
        for number, layer in enumerate(layers):
            potentials, spikes = found[number]
            for i in range(len(layer.bias)):
                current = float(layer.bias[i])
                for j, value in enumerate(heard):
                    current += float(layer.weight[i, j]) * value
                if t >= layer.delay:
                    for j in range(len(layer.bias)):
                        current += float(layer.back[i, j]) * float(spikes[t - layer.delay, j])
                v = layer.leak[i] + layer.beta[i] * (held[number][i] - layer.leak[i]) + layer.alpha[i] * current
                fires = v >= layer.v_th[i] if layer.ge else v > layer.v_th[i]
                potentials[t, i], spikes[t, i] = v, float(fires)
                held[number][i] = (layer.v_reset[i] if layer.hard else v - layer.v_th[i]) if fires else v
            heard = [float(v) for v in spikes[t]]
    return found


def recurrent(layers: Sequence[Layer], features: int, timesteps: int) -> SpikingGraph:
    """The same network as a graph; what a layer hears of itself comes over a delayed edge."""
    build = Build(0, (features,), temporal=True)
    x = "input"
    for number, layer in enumerate(layers):
        name = f"sn{number}"
        fc = Linear(name=f"fc{number}", inputs=(Edge(x),), weight=frozen(layer.weight), bias=frozen(layer.bias))
        build.add(fc)
        build.add(Add(name=f"add{number}", inputs=(Edge(fc.name), Edge(f"back{number}", layer.delay))))
        build.add(
            Neuron(
                name=name, inputs=(Edge(f"add{number}"),), alpha=frozen(layer.alpha), beta=frozen(layer.beta),
                v_threshold=frozen(layer.v_th), v_reset=frozen(layer.v_reset), leak_target=frozen(layer.leak),
                reset="hard" if layer.hard else "subtract", fires_at="ge" if layer.ge else "gt",
                state=(StateVariable("membrane", layer.initial),),
            )
        )  # fmt: skip
        build.add(Linear(name=f"back{number}", inputs=(Edge(name),), weight=frozen(layer.back)))
        x = name
    return build.finish(x, timesteps=timesteps, mode="sum")


def random_layers(seed: int, sizes: Sequence[int]) -> list[Layer]:
    """Dyadic parameters, one a neuron, so that everything is exact and ties are frequent."""
    rng = np.random.default_rng(seed)

    def grid(*shape: int, scale: int = 4) -> Array:
        return rng.integers(-3, 5, shape) / scale

    return [
        Layer(
            weight=grid(n, m), bias=grid(n), back=grid(n, n), alpha=rng.choice([0.5, 1.0, -0.5, 0.0, 2.0], n),
            beta=rng.choice([0.5, 0.0, 1.0, -0.5, 0.75], n), v_th=rng.choice([0.5, 1.0], n),
            v_reset=rng.choice([0.0, -0.25, 0.25], n), leak=rng.choice([0.0, 0.25], n),
            hard=bool(rng.integers(2)), ge=bool(rng.integers(2)), delay=int(rng.integers(1, 4)),
            initial=float(rng.choice([0.0, 0.25, -0.5])),
        )
        for m, n in pairwise(sizes)
    ]  # fmt: skip


@given(st.integers(0, 10**6))
@settings(max_examples=80, deadline=None)
def test_replay_computes_the_equations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    timesteps = int(rng.integers(1, 6))
    layers = random_layers(seed, (4, 5, 3))
    graph = recurrent(layers, 4, timesteps)
    batch = (rng.integers(-2, 5, (2, timesteps, 4)) / 4).astype(np.float32)
    potentials: dict[tuple[str, int], Array] = {}

    def visit(step: NeuronStep) -> None:
        potentials[step.neuron.name, step.t] = step.potential

    replay(graph, batch, visit)
    recording = simulate(graph, batch)
    for sample in range(2):
        for number, (v, spikes) in enumerate(by_hand(layers, batch[sample].astype(np.float64))):
            name = f"sn{number}"
            np.testing.assert_array_equal(recording.spikes[name].unpack()[sample], spikes == 1)
            for t in range(timesteps):
                np.testing.assert_array_equal(potentials[name, t][sample], v[t])
        np.testing.assert_array_equal(recording.logits[sample], spikes.sum(axis=0))


def test_replay_on_its_own_spikes_is_the_papers_layer() -> None:
    rng = np.random.default_rng(3)
    build = Build(0, (6,), temporal=True)
    sn = build.neuron("sn", build.linear("fc", "input", (6, 20), bias=False), alpha=0.8, beta=0.7, v_reset=-0.1)
    graph = build.finish(sn, timesteps=8)
    weight = graph["fc"].arrays()["weight"]
    batch = rng.normal(0.5, 1.0, (3, 8, 6)).astype(np.float32)
    found = simulate(graph, batch).spikes["sn"].unpack()
    assert 0.02 < found.mean() < 0.6
    for sample in range(3):
        layer = DALIFLayer(alpha=0.8, beta=0.7, v_reset=-0.1)
        for t in range(8):
            current = np.array(
                [sum(w * float(x) for w, x in zip(row, batch[sample, t], strict=True)) for row in weight]
            )
            np.testing.assert_array_equal(found[sample, t], layer(current) == 1)
        assert layer.closest > 1e-9, "no near tie decides this"


def test_replay_on_another_history_resets_by_it_and_not_by_its_own() -> None:
    graph = one_neuron(0.75, beta=1.0, timesteps=4)
    history = np.array([[True, False, False, False]]).reshape(1, 4, 1)
    seen: list[tuple[float, bool, float]] = []

    def visit(step: NeuronStep) -> None:
        seen.append((step.potential.item(), step.fires.item(), step.held.item()))

    replay(graph, ONE, visit, history={"sn": SpikeTrain.pack(history)})
    # It recorded a spike at 0.75, which it should not have fired, and none at 1.5, which it should have.
    assert seen == [(0.75, False, 0.0), (0.75, False, 0.75), (1.5, True, 1.5), (2.25, True, 2.25)]


def test_a_network_that_takes_spikes_is_replayed_on_nothing_else() -> None:
    """Its bounds, and its counts, rest on 0 and 1, whatever the encoding lets through."""
    build = Build(0, (1,), temporal=True, kind="spike")
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[1.0]])))
    graph = build.finish(build.neuron("sn", "fc"), timesteps=1)
    assert simulate(graph, np.ones((1, 1, 1), np.float32)).spikes["sn"].neuron_steps == 1
    with pytest.raises(DalifError, match="takes spikes, so every value must be 0 or 1") as caught:
        simulate(graph, np.full((1, 1, 1), 0.5, np.float32))
    assert caught.value.code is Code.BAD_DATA


def test_the_readout_of_a_replay_follows_the_history() -> None:
    graph = one_neuron(0.75, beta=1.0, timesteps=4)
    history = {"sn": SpikeTrain.pack(np.array([True, True, False, True]).reshape(1, 4, 1))}
    assert replay(graph, ONE, lambda step: None, history=history).tolist() == [[0.75]]


# --- flipped spikes are found, exactly where they are

FLIPPED = [
    "plain", "alpha negative", "beta negative", "subtract reset", "strict threshold", "identity residual",
    "identity residual, alpha negative", "two-branch residual", "per channel", "temporal spikes", "shared producer",
    "uint8 codes",
]  # fmt: skip


def one_flip_everywhere(graph: SpikingGraph, batch: Batch, seed: int) -> list[Place]:
    """A place in every layer at every timestep, in the order in which the judge reports."""
    rng = np.random.default_rng(seed)
    return [
        (
            neuron.name, t, int(rng.integers(len(batch))),
            tuple(int(rng.integers(n)) for n in graph.types[neuron.name].shape),
        )
        for t in range(graph.timesteps)
        for neuron in graph.neurons
    ]  # fmt: skip


@pytest.mark.parametrize("name", FLIPPED)
def test_what_follows_from_a_flip_is_no_contradiction_and_every_flip_is(name: str) -> None:
    graph, batch = GRAPHS[name]()
    flips = one_flip_everywhere(graph, batch, 1)
    found = candidate(graph, batch, *flips)
    assert sum(train.differing(simulate(graph, batch).spikes[layer]).sum() for layer, train in found.spikes.items()) > (
        len(flips)
    ), "something follows"
    for judged in (graph, fold(graph)):
        judgement = judge(judged, batch, found.spikes, Arithmetic())
        assert places(judgement.contradictions) == flips
        for origin in judgement.contradictions:
            assert origin.fired == found.spikes[origin.layer].unpack()[(origin.sample, origin.t, *origin.index)]
            assert origin.fired != (origin.margin >= 0.0)
            assert origin.margin == pytest.approx(origin.potential - origin.threshold, rel=1e-9, abs=1e-12)
    comparison = compared(graph, batch, found)
    assert comparison.outcome is Outcome.DIVERGENT
    assert sorted(places(comparison.origins)) == sorted(flips)


@pytest.mark.parametrize("name", ["plain", "temporal spikes", "identity residual", "subtract reset"])
def test_a_single_flip_is_named_alone(name: str) -> None:
    graph, batch = GRAPHS[name]()
    for flip in one_flip_everywhere(graph, batch, 2):
        comparison = compared(graph, batch, candidate(graph, batch, flip))
        assert places(comparison.origins) == [flip]
        assert comparison.samples_differing == 1
        assert comparison.outcome is Outcome.DIVERGENT


@pytest.mark.parametrize("name", ["plain", "temporal spikes", "identity residual", "subtract reset", "per channel"])
def test_a_flip_whose_consequences_are_missing_is_the_first_contradiction(name: str) -> None:
    """A recording that was changed afterwards: the flip comes first, and nothing is found before or beside it."""
    graph, batch = GRAPHS[name]()
    reference = simulate(graph, batch)
    order = {neuron.name: place for place, neuron in enumerate(graph.neurons)}
    for flip in one_flip_everywhere(graph, batch, 3):
        layer, t, sample, _ = flip
        found = judge(graph, batch, flipped(reference, flip).spikes, Arithmetic()).contradictions
        assert places(found)[0] == flip
        assert {step.sample for step in found} == {sample}
        assert all((step.t, order[step.layer]) > (t, order[layer]) for step in found[1:])


def test_an_early_divergence_excuses_no_later_independent_one() -> None:
    graph, batch = GRAPHS["plain"]()
    early, late = ("sn1", 0, 2, (0, 0, 0)), ("sn3", 3, 2, (5,))
    comparison = compared(graph, batch, candidate(graph, batch, early, late))
    assert places(comparison.origins) == [early, late]
    assert all(not origin.within_bound for origin in comparison.origins)


def test_recurrent_flips_are_found_too() -> None:
    layers = random_layers(5, (4, 6, 5))
    graph = recurrent(layers, 4, 5)
    batch = np.random.default_rng(5).normal(0.3, 1.0, (3, 5, 4)).astype(np.float32)
    flips = one_flip_everywhere(graph, batch, 5)
    assert places(judge(graph, batch, candidate(graph, batch, *flips).spikes, Arithmetic()).contradictions) == flips


@pytest.mark.parametrize("name", ["plain", "temporal spikes", "shared producer"])
def test_contradictions_come_by_timestep_layer_sample_and_index(name: str) -> None:
    graph, batch = GRAPHS[name]()
    rng = np.random.default_rng(0)
    random = {
        neuron.name: SpikeTrain.pack(rng.random((len(batch), graph.timesteps, *graph.types[neuron.name].shape)) < 0.5)
        for neuron in graph.neurons
    }
    order = {neuron.name: place for place, neuron in enumerate(graph.neurons)}
    found = judge(graph, batch, random, Arithmetic(), first_sample=10).contradictions
    keys = [(step.t, order[step.layer], step.sample, step.index) for step in found]
    assert len(keys) > 1000
    assert keys == sorted(keys)
    assert {step.sample for step in found} == set(range(10, 10 + len(batch)))


# --- near ties


@pytest.mark.parametrize("miss", [1e-8, 1e-9, 1e-12, 2.0**-52])
def test_a_spike_that_misses_the_threshold_by_less_than_float32_can_tell_is_rounding(miss: float) -> None:
    graph = one_neuron(1.0 - miss)
    assert not simulate(graph, ONE).spikes["sn"].count()
    comparison = compared(graph, ONE, candidate(graph, ONE, ("sn", 0, 0, (0,))))
    assert comparison.outcome is Outcome.ROUNDING
    (origin,) = comparison.origins
    assert origin.fired
    assert origin.margin == pytest.approx(-miss, rel=1e-6)
    assert (origin.potential, origin.threshold) == (1.0 - miss, 1.0)


@pytest.mark.parametrize("miss", [1e-6, 1e-5, 1e-3, 0.5])
@pytest.mark.parametrize("side", [1, -1])
def test_a_spike_that_misses_it_by_more_is_divergent_on_either_side(miss: float, side: int) -> None:
    graph = one_neuron(1.0 + side * miss)
    comparison = compared(graph, ONE, candidate(graph, ONE, ("sn", 0, 0, (0,))))
    assert comparison.outcome is Outcome.DIVERGENT
    assert comparison.origins[0].fired == (side < 0)


def test_what_float32_itself_decides_otherwise_is_rounding() -> None:
    """1 - 1e-8 is 1 in float32: this is no built recording but what PyTorch fires."""
    graph = one_neuron(1.0 - 1e-8)
    found = TorchRuntime(graph, dtype="float32").run(ONE)
    assert found.spikes["sn"].count() == 1
    assert compared(graph, ONE, found).outcome is Outcome.ROUNDING
    assert compared(graph, ONE, TorchRuntime(graph, dtype="float64").run(ONE)).outcome is Outcome.EXACT


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("side", [1, -1])
def test_the_boundary_is_the_bound(precision: Any, side: int) -> None:
    arithmetic = Arithmetic(precision)

    def origin(miss: float) -> NeuronStepFinding:
        graph = one_neuron(1.0 + side * miss)
        found = candidate(graph, ONE, ("sn", 0, 0, (0,)))
        return judge(graph, ONE, found.spikes, arithmetic).contradictions[0]

    bound = origin(2.0**-50).bound
    # A product's, a sum's and the threshold's rounding, and the weight's own: a few units, no more and no less.
    assert U * SHARE[precision] < bound < 8 * U * SHARE[precision]
    steps = 1e-6 if precision == "float32" else 0.06  # near 1 float64 has only so many numbers
    assert origin(bound * (1 - steps)).within_bound
    assert not origin(bound * (1 + steps)).within_bound
    graph = one_neuron(1.0 + side * bound * (1 - steps))
    found = candidate(graph, ONE, ("sn", 0, 0, (0,)))
    assert compared(graph, ONE, found, arithmetic=arithmetic).outcome is Outcome.ROUNDING
    graph = one_neuron(1.0 + side * bound * (1 + steps))
    found = candidate(graph, ONE, ("sn", 0, 0, (0,)))
    assert compared(graph, ONE, found, arithmetic=arithmetic).outcome is Outcome.DIVERGENT


def test_a_margin_equal_to_the_bound_is_within_it() -> None:
    step = NeuronStepFinding(0, "sn", 0, (0,), True, 1.0, 1.0, -0.25, 0.25)
    assert step.within_bound
    assert replace(step, margin=0.25).within_bound
    assert not replace(step, margin=np.nextafter(0.25, 1.0)).within_bound
    assert not replace(step, margin=-np.nextafter(0.25, 1.0)).within_bound
    assert not replace(step, margin=float("nan")).within_bound


def test_float64_is_held_to_float64() -> None:
    graph = one_neuron(1.0 - 1e-12)
    found = candidate(graph, ONE, ("sn", 0, 0, (0,)))
    assert compared(graph, ONE, found, arithmetic=Arithmetic("float32")).outcome is Outcome.ROUNDING
    assert compared(graph, ONE, found, arithmetic=Arithmetic("float64")).outcome is Outcome.DIVERGENT


def test_an_exact_tie_is_uncertain_whoever_wins() -> None:
    graph = one_neuron(0.75, leak_target=0.5)  # V = 0.5 * (0 - 0.5) + 0.5 + 0.75, in more roundings than are followed
    exact = compared(graph, ONE, simulate(graph, ONE))
    assert (exact.outcome, exact.certified_samples, len(exact.uncertain)) == (Outcome.EXACT, 0, 1)
    assert exact.uncertain[0].margin == 0.0
    other = compared(graph, ONE, candidate(graph, ONE, ("sn", 0, 0, (0,))))
    assert other.outcome is Outcome.ROUNDING
    assert not other.origins[0].fired


def test_where_nothing_rounds_a_tie_is_decided_in_one_way_only() -> None:
    graph = one_neuron(1.0)
    exact = compared(graph, ONE, simulate(graph, ONE))
    assert (exact.outcome, exact.certified_samples, exact.uncertain) == (Outcome.EXACT, 1, ())
    other = compared(graph, ONE, candidate(graph, ONE, ("sn", 0, 0, (0,))))
    assert other.outcome is Outcome.DIVERGENT
    assert (other.origins[0].margin, other.origins[0].bound) == (0.0, 0.0)


def test_another_formula_may_round_where_the_sum_does_not() -> None:
    """v + k (x - v) takes 1 - beta and divides by it: the same tie is in doubt."""
    graph = one_neuron(1.0)
    for arithmetic in (Arithmetic(update="decay"), Arithmetic(update="own")):
        exact = compared(graph, ONE, simulate(graph, ONE), arithmetic=arithmetic)
        assert (exact.outcome, exact.certified_samples, len(exact.uncertain)) == (Outcome.EXACT, 0, 1)
        other = compared(graph, ONE, candidate(graph, ONE, ("sn", 0, 0, (0,))), arithmetic=arithmetic)
        assert other.outcome is Outcome.ROUNDING


def test_a_near_tie_excuses_nothing_elsewhere() -> None:
    """One sample misses by rounding, another by a fault: the verdict is the worse, and the fault comes first."""
    graph = one_neuron(1.0 - 1e-8, timesteps=2, beta=0.0)
    batch = np.array([[1.0], [1.0], [0.5]], np.float32)
    flips: list[Place] = [("sn", 0, 0, (0,)), ("sn", 1, 1, (0,)), ("sn", 1, 2, (0,))]
    comparison = compared(graph, batch, candidate(graph, batch, *flips))
    assert comparison.outcome is Outcome.DIVERGENT
    assert places(comparison.origins) == [flips[2], flips[0], flips[1]]
    assert [origin.within_bound for origin in comparison.origins] == [False, True, True]
    assert comparison.samples_by_outcome == {
        Outcome.EXACT: 0, Outcome.ROUNDING: 2, Outcome.UNPROVED: 0, Outcome.DIVERGENT: 1,
    }  # fmt: skip


def test_an_error_carried_by_the_membrane_is_rounding() -> None:
    """Large terms cancel at the first step; what float32 lost there decides a later one, whose own terms are small."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0.0, 300.0, (500, 32)).astype(np.float32).astype(np.float64)
    first = rng.random(32).astype(np.float32)
    weight[:, 0] -= (weight @ first.astype(np.float64) - 0.5) / float(first[0])
    weight = weight.astype(np.float32).astype(np.float64)
    last = (1.0 - weight @ first.astype(np.float64)).astype(np.float32).astype(np.float64)
    batch = np.zeros((1, 2, 33), np.float32)
    batch[0, 0, :32], batch[0, 1, 32] = first, 1.0
    build = Build(0, (33,), temporal=True)
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen(np.concatenate([weight, last[:, None]], 1))))
    graph = build.finish(build.neuron("sn", "fc", alpha=1.0, beta=1.0), timesteps=2)
    comparison = compared(graph, batch, TorchRuntime(graph, dtype="float32").run(batch))
    assert comparison.spikes_differing > 10
    assert comparison.outcome is Outcome.ROUNDING


@pytest.mark.parametrize("reset", ["hard", "subtract"])
def test_a_thousand_small_errors_are_rounding(reset: str) -> None:
    weight = np.random.default_rng(1).uniform(0.9, 1.1, (2000, 1)).astype(np.float32) / 512
    build = Build(0, (1,))
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen(weight)))
    graph = build.finish(build.neuron("sn", "fc", alpha=1.0, beta=1.0, reset=reset), timesteps=1024)
    comparison = compared(graph, ONE, TorchRuntime(graph, dtype="float32").run(ONE))
    assert comparison.spikes_differing > 0
    assert comparison.outcome is Outcome.ROUNDING


def at_the_threshold(graph: SpikingGraph, batch: Batch, layer: str, t: int) -> SpikingGraph:
    """The graph in which every neuron of `layer` has for its threshold the potential that it has at `t`."""
    found: list[Array] = []

    def visit(step: NeuronStep) -> None:
        if (step.neuron.name, step.t) == (layer, t):
            found.append(step.potential[0])

    replay(graph, batch, visit)
    node = graph[layer]
    assert isinstance(node, Neuron)
    return graph.replaced({layer: replace(node, v_threshold=frozen(np.maximum(found[0], 0.01)))})


@pytest.mark.parametrize(
    ("name", "layer", "t"),
    [
        ("plain", "sn1", 0), ("plain", "sn2", 1), ("plain", "sn3", 2), ("alpha tanh(1)", "sn1", 1),
        ("beta negative", "sn2", 0), ("subtract reset", "sn2", 3), ("identity residual", "block.sn2", 1),
        ("identity residual, alpha negative", "block.sn2", 1), ("two-branch residual", "block.sn2", 2),
        ("per channel", "sn2", 1), ("temporal spikes", "sn2", 2), ("shared producer", "sn3", 1),
    ],
)  # fmt: skip
def test_a_layer_at_its_threshold_differs_in_float32_by_rounding_only(name: str, layer: str, t: int) -> None:
    """Every neuron of a layer is put onto a tie, so that float32 decides by chance; nothing of it is divergence."""
    graph, batch = GRAPHS[name]()
    graph = at_the_threshold(graph, batch, layer, t)
    reference = simulate(graph, batch)
    for judged in (graph, fold(graph)):
        comparer = Comparer("torch", judged, reference=graph)
        comparer.add(batch, reference, TorchRuntime(judged, dtype="float32").run(batch))
        comparison = comparer.result()
        assert comparison.outcome is Outcome.ROUNDING
        assert comparison.spikes_differing > 0
        assert comparison.certified_samples < len(batch)


FAULTS: dict[str, Callable[[Neuron], Neuron]] = {
    "beta by a thousandth": lambda sn: replace(sn, beta=frozen(sn.beta + 0.001)),
    "alpha by a thousandth": lambda sn: replace(sn, alpha=frozen(sn.alpha * 1.001)),
    "threshold by a thousandth": lambda sn: replace(sn, v_threshold=frozen(sn.v_threshold * 1.001)),
    "the other reset": lambda sn: replace(sn, reset="subtract"),
    "another reset value": lambda sn: replace(sn, v_reset=frozen(0.01)),
    "a leak target": lambda sn: replace(sn, leak_target=frozen(0.01)),
    "a start": lambda sn: replace(sn, state=(StateVariable("membrane", 0.1),)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layer", ["sn1", "sn2"])
def test_a_runtime_of_other_parameters_is_divergent(fault: str, layer: str) -> None:
    graph, batch = GRAPHS["plain"]()
    node = graph[layer]
    assert isinstance(node, Neuron)
    wrong = graph.replaced({layer: FAULTS[fault](node)})
    comparison = compared(graph, batch, TorchRuntime(wrong, dtype="float32").run(batch))
    assert comparison.outcome is Outcome.DIVERGENT
    assert {origin.layer for origin in comparison.origins} == {layer}, "no other layer is blamed"


def test_one_changed_weight_is_divergent_in_the_layer_that_it_feeds() -> None:
    graph, batch = GRAPHS["plain"]()
    conv = graph["conv2"]
    weight = conv.arrays()["weight"].copy()
    place = np.unravel_index(np.abs(weight).argmax(), weight.shape)
    weight[place] *= 1.1
    wrong = graph.replaced({"conv2": replace(conv, weight=frozen(weight))})  # type: ignore[call-arg]
    comparison = compared(graph, batch, simulate(wrong, batch))
    assert comparison.outcome is Outcome.DIVERGENT
    assert {(origin.layer, origin.index[0]) for origin in comparison.origins} == {("sn2", place[0])}


def test_where_float32_overflows_nothing_is_proved() -> None:
    """An infinite bound is no bound: what lies within it is not called rounding."""
    graph = one_neuron(2.0**127 * 1.5)
    comparison = compared(graph, ONE, candidate(graph, ONE, ("sn", 0, 0, (0,))))
    assert comparison.outcome is Outcome.UNPROVED
    assert not comparison.origins[0].proved
    assert comparison.origins[0].as_json()["bound"] is None
    large = one_neuron(1.0, v_threshold=1e300)
    assert compared(large, ONE, candidate(large, ONE, ("sn", 0, 0, (0,)))).outcome is Outcome.UNPROVED


def test_the_start_of_a_state_is_rounded_too() -> None:
    def bound(initial: float) -> float:
        seen: list[float] = []
        graph = one_neuron(0.25, beta=1.0, state=(StateVariable("membrane", initial),))
        replay(graph, ONE, lambda step: seen.append(step.bound.item()), update="sum")  # type: ignore[union-attr]
        return seen[0]

    held = float(np.float32(0.1))
    assert bound(0.1) - bound(held) >= 0.99 * abs(held - 0.1)


# --- units


@pytest.mark.parametrize("name", ["identity residual", "identity residual, alpha negative", "shared producer", "plain"])
def test_what_is_reported_is_in_the_trained_models_units(name: str) -> None:
    """The folded graph computes V / |alpha|; a person reads V."""
    graph, batch = GRAPHS[name]()
    folded = fold(graph)
    flips = one_flip_everywhere(graph, batch, 4)
    spikes = candidate(graph, batch, *flips).spikes
    trained, found = (judge(g, batch, spikes, Arithmetic()) for g in (graph, folded))
    assert places(found.contradictions) == places(trained.contradictions)
    for one, other in zip(trained.contradictions, found.contradictions, strict=True):
        for key in ("potential", "threshold", "margin"):
            assert getattr(other, key) == pytest.approx(getattr(one, key), rel=1e-9, abs=1e-12)
    assert trained.closest is not None
    assert found.closest is not None
    assert replace(found.closest, bound=0.0, potential=0.0, margin=0.0) == (
        replace(trained.closest, bound=0.0, potential=0.0, margin=0.0)
    )


def test_a_rescaled_layer_has_rescaled_potentials_thresholds_and_bounds() -> None:
    graph = one_neuron(0.75)
    spikes = candidate(graph, ONE, ("sn", 0, 0, (0,))).spikes
    node = graph["sn"]
    assert isinstance(node, Neuron)
    scaled = graph.replaced({"sn": replace(node, potential_scale=frozen([4.0]))})
    (plain,), (found,) = (judge(g, ONE, spikes, Arithmetic()).contradictions for g in (graph, scaled))
    assert (found.potential, found.threshold, found.margin) == (3.0, 4.0, -1.0)
    assert found.bound == 4.0 * plain.bound


def test_the_closest_of_a_layer_is_closest_in_trained_units() -> None:
    build = Build(0, (1,))
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[0.9], [0.8]])))
    graph = build.finish(build.neuron("sn", "fc", alpha=1.0, beta=0.5, potential_scale=frozen([8.0, 1.0])), timesteps=1)
    closest = compared(graph, ONE, simulate(graph, ONE)).closest
    assert closest is not None
    assert (closest.index, closest.margin) == ((1,), pytest.approx(-0.2))


# --- comparing batches


def test_batches_add_up_and_samples_are_numbered_through() -> None:
    graph, batch = GRAPHS["plain"]()
    flips: list[Place] = [("sn1", 1, 0, (0, 0, 0)), ("sn2", 0, 4, (1, 0, 0)), ("sn2", 0, 5, (1, 0, 0))]
    reference, found = simulate(graph, batch), answering(graph, batch, candidate(graph, batch, *flips))
    comparer = Comparer("candidate", graph)
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        comparer.add(batch[start:stop], reference.part(start, stop), found.part(start, stop))
    comparison = comparer.result()
    assert places(comparison.origins) == [flips[1], flips[2], flips[0]]
    assert comparison.samples == 6
    assert comparison.samples_differing == 3
    assert comparison.spikes_compared == sum(train.neuron_steps for train in reference.spikes.values())
    assert comparison.spikes_differing == sum(
        int((found.spikes[name].unpack() != train.unpack()).sum()) for name, train in reference.spikes.items()
    )
    assert comparison.samples_by_outcome[Outcome.EXACT] == 3
    assert comparison.samples_by_outcome[Outcome.DIVERGENT] == 3
    assert comparison.certified_samples == 3
    assert compared(graph, batch, found) == comparison


def test_equal_spikes_are_exact_and_the_closest_margin_is_told() -> None:
    graph, batch = GRAPHS["plain"]()
    comparison = compared(graph, batch, simulate(graph, batch))
    assert comparison.outcome is Outcome.EXACT
    assert (comparison.spikes_differing, comparison.origins) == (0, ())
    margins: list[float] = []
    replay(graph, batch, lambda step: margins.append(float(np.abs(step.potential - step.neuron.v_threshold).min())))
    assert comparison.closest is not None
    assert abs(comparison.closest.margin) == min(margins)


def test_a_comparer_without_batches_has_compared_nothing() -> None:
    graph, _ = GRAPHS["plain"]()
    comparison = Comparer("candidate", graph).result()
    assert (comparison.samples, comparison.spikes_compared, comparison.closest) == (0, 0, None)


def test_judgements_are_shared_by_candidates_that_fired_the_reference() -> None:
    graph, batch = GRAPHS["plain"]()
    reference = simulate(graph, batch)
    known: dict[Any, Any] = {}
    one, other, wrong = (Comparer(name, graph) for name in ("one", "other", "wrong"))
    one.add(batch, reference, reference, known)
    assert len(known) == 1
    other.add(batch, reference, reference, known)
    wrong.add(batch, reference, candidate(graph, batch, ("sn1", 0, 0, (0, 0, 0))), known)
    assert len(known) == 1
    assert replace(other.result(), name="one") == one.result()
    assert wrong.result().outcome is Outcome.DIVERGENT


def test_a_judgement_is_not_shared_with_another_arithmetic() -> None:
    graph, batch = GRAPHS["ties"]()
    graph = graph.replaced({n.name: replace(n, leak_target=frozen(0.25)) for n in graph.neurons})  # inexact ties
    reference = simulate(graph, batch)
    known: dict[Any, Any] = {}
    comparers = [Comparer("one", graph, arithmetic=Arithmetic(precision)) for precision in ("float32", "float64")]
    bounds = set()
    for comparer in comparers:
        comparer.add(batch, reference, reference, known)
        bounds.add(comparer.result().uncertain[0].bound)
    assert len(bounds) == 2


def two_weights(first: float, second: float) -> SpikingGraph:
    build = Build(0, (2,))
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[first, second]])))
    return build.finish(build.neuron("sn", "fc", alpha=1.0, beta=0.5), timesteps=1)


def test_a_candidates_own_rounding_excuses_no_difference_of_its_graph() -> None:
    """Sample 0 is a near tie. In sample 1 the candidate does what its own graph says, and the reference does not."""
    reference, own = two_weights(1.0 - 1e-8, 0.5), two_weights(1.0 - 1e-8, 1.5)
    batch = np.eye(2, dtype=np.float32)
    found = answering(own, batch, candidate(own, batch, ("sn", 0, 0, (0,))))
    assert found.spikes["sn"].unpack().ravel().tolist() == [True, True]
    comparison = compared(own, batch, found, reference=reference)
    assert comparison.outcome is Outcome.DIVERGENT
    assert places(comparison.origins) == [("sn", 0, 1, (0,)), ("sn", 0, 0, (0,))]
    assert [origin.potential for origin in comparison.origins] == [0.5, 1.0 - 1e-8]
    assert comparison.samples_by_outcome[Outcome.ROUNDING] == 1


def test_a_graph_that_differs_from_the_reference_is_found_without_any_rounding() -> None:
    reference, own = two_weights(0.5, 0.5), two_weights(0.5, 1.5)
    batch = np.eye(2, dtype=np.float32)
    comparison = compared(own, batch, simulate(own, batch), reference=reference)
    assert comparison.outcome is Outcome.DIVERGENT
    assert places(comparison.origins) == [("sn", 0, 1, (0,))]


def test_a_candidate_that_fires_as_the_reference_is_exact_whatever_its_own_graph_says() -> None:
    """The reference ties; folding moved the candidate's own potential by the last bit of a float64."""
    reference, own = two_weights(1.0, 0.5), two_weights(1.0 - 2.0**-53, 0.5)
    batch = np.eye(2, dtype=np.float32)
    comparison = compared(own, batch, simulate(reference, batch), reference=reference)
    assert (comparison.outcome, comparison.origins, comparison.spikes_differing) == (Outcome.EXACT, (), 0)
    assert comparison.samples_by_outcome[Outcome.EXACT] == 2
    assert comparison.certified_samples == 1
    # The same, beside a sample that does differ.
    second = compared(own, batch, flipped(simulate(reference, batch), ("sn", 0, 1, (0,))), reference=reference)
    assert places(second.origins) == [("sn", 0, 1, (0,))]
    assert second.samples_by_outcome[Outcome.EXACT] == 1


def test_differences_that_contradict_nothing_are_a_fault_of_ours() -> None:
    """The reference's recording is not the reference's: nothing may be concluded from it."""
    graph = one_neuron(1.0 - 1e-8)
    batch = np.ones((2, 1), np.float32)
    true = simulate(graph, batch)
    wrong = flipped(true, ("sn", 0, 1, (0,)))
    for found in (true, flipped(true, ("sn", 0, 0, (0,)))):
        with pytest.raises(DalifError, match="runtime x: spikes differ, but no neuron contradicts") as caught:
            Comparer("x", graph).add(batch, wrong, found)
        assert caught.value.code is Code.FAULT


@pytest.mark.parametrize(
    "change",
    [
        lambda spikes: {k: v for k, v in spikes.items() if k != "sn2"},
        lambda spikes: {**spikes, "sn2": spikes["sn1"]},
        lambda spikes: {**spikes, "sn2": SpikeTrain(spikes["sn2"].bits[:-1], spikes["sn2"].shape)},
        lambda spikes: {**spikes, "sn2": SpikeTrain(spikes["sn2"].bits[:, :-1], spikes["sn2"].shape)},
        lambda spikes: {**spikes, "sn2": SpikeTrain(spikes["sn2"].bits, spikes["sn2"].shape[::-1])},
    ],
    ids=["missing", "another layer's", "fewer samples", "fewer timesteps", "turned"],
)
def test_a_recording_that_does_not_fit_is_refused_by_layer(change: Callable[[Any], Any]) -> None:
    graph, batch = GRAPHS["plain"]()
    reference = simulate(graph, batch)
    found = Recording(change(dict(reference.spikes)), reference.logits)
    with pytest.raises(DalifError, match="runtime x: its recording of layer 'sn2' does not fit the model") as caught:
        Comparer("x", graph).add(batch, reference, found)
    assert caught.value.code is Code.FAULT


def test_a_layer_that_the_model_does_not_have_does_not_matter() -> None:
    graph, batch = GRAPHS["plain"]()
    reference = simulate(graph, batch)
    more = Recording({**reference.spikes, "extra": reference.spikes["sn1"]}, reference.logits)
    assert compared(graph, batch, more).outcome is Outcome.EXACT


def test_differences_of_logits_are_reported() -> None:
    graph, batch = GRAPHS["plain"]()
    reference = simulate(graph, batch)

    def with_logits(logits: NDArray[Any]) -> Comparison:
        return compared(graph, batch, Recording(reference.spikes, logits))

    assert with_logits(reference.logits).max_logit_difference == 0.0
    shifted = reference.logits.copy()
    shifted[3, 1] -= 0.25
    assert with_logits(shifted).max_logit_difference == pytest.approx(0.25)
    turned = with_logits(-reference.logits)
    assert turned.prediction_changes == int((reference.logits.argmax(1) != reference.logits.argmin(1)).sum())
    assert turned.prediction_changes > 0
    nothing = reference.logits.copy()
    nothing[0, 0] = np.nan
    assert with_logits(nothing).max_logit_difference == np.inf
    with pytest.raises(DalifError, match="logits of shape") as caught:
        with_logits(reference.logits[:, :-1])
    assert caught.value.code is Code.FAULT


def test_float32_logits_are_compared_with_the_float64_reference() -> None:
    graph, batch = GRAPHS["plain"]()
    reference = simulate(graph, batch)
    comparison = compared(graph, batch, Recording(reference.spikes, reference.logits.astype(np.float32)))
    assert 0.0 < comparison.max_logit_difference < 1e-6
    assert comparison.prediction_changes == 0


# --- parameters


def parameters(**arrays: Any) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(values) for name, values in arrays.items()}


F32 = np.float32


@pytest.mark.parametrize(
    ("expected", "found", "differences"),
    [
        (parameters(a=F32([1, 2])), parameters(a=F32([1, 2])), []),
        (parameters(), parameters(), []),
        (parameters(a=F32(0.0)), parameters(a=F32(-0.0)), []),
        (parameters(a=F32([np.inf, 1])), parameters(a=F32([np.inf, 1])), []),
        (parameters(a=np.zeros((0, 3))), parameters(a=np.zeros((0, 3))), []),
        (parameters(a=F32([1])), parameters(), [("a", "missing in the file", 0, 0.0, ())]),
        (parameters(), parameters(b=F32([1])), [("b", "not expected in the file", 0, 0.0, ())]),
        (
            parameters(a=F32([1])), parameters(a=np.float64([1])),
            [("a", "is float64 [1], should be float32 [1]", 0, 0.0, ())],
        ),
        (
            parameters(a=F32([[1, 2]])), parameters(a=F32([1, 2])),
            [("a", "is float32 [2], should be float32 [1, 2]", 0, 0.0, ())],
        ),
        (parameters(a=F32([1])), parameters(a=F32(1)), [("a", "is float32 [], should be float32 [1]", 0, 0.0, ())]),
        (
            parameters(a=F32([[1, 2], [3, 4]])), parameters(a=F32([[1, 2.5], [3, 1]])),
            [("a", "values differ", 2, 3.0, (1, 1))],
        ),
        (parameters(a=F32(1)), parameters(a=F32(2)), [("a", "values differ", 1, 1.0, ())]),
        (parameters(a=F32([np.nan, 1])), parameters(a=F32([np.nan, 9])), [("a", "values differ", 2, np.inf, (0,))]),
        (parameters(a=F32([1, 2])), parameters(a=F32([1, np.nan])), [("a", "values differ", 1, np.inf, (1,))]),
        (parameters(a=F32([np.inf, 1])), parameters(a=F32([np.inf, 2])), [("a", "values differ", 1, 1.0, (1,))]),
        (parameters(a=F32([np.inf])), parameters(a=F32([-np.inf])), [("a", "values differ", 1, np.inf, (0,))]),
        (parameters(a=np.int64([5, 6])), parameters(a=np.int64([5, 4])), [("a", "values differ", 1, 2.0, (1,))]),
        (parameters(a=np.array([True])), parameters(a=np.array([False])), [("a", "values differ", 1, 1.0, (0,))]),
        (parameters(a=[1e308]), parameters(a=[-1e308]), [("a", "values differ", 1, np.inf, (0,))]),
        (
            parameters(z=F32(1), a=F32(1), m=F32(1)), parameters(z=F32(2), b=F32(1), m=F32(1)),
            [
                ("a", "missing in the file", 0, 0.0, ()), ("b", "not expected in the file", 0, 0.0, ()),
                ("z", "values differ", 1, 1.0, ()),
            ],
        ),
    ],
)  # fmt: skip
def test_parameters_are_compared_bit_for_bit(
    expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], differences: list[tuple[Any, ...]]
) -> None:
    assert compare_parameters(expected, found) == tuple(ParameterDifference(*fields) for fields in differences)


def test_the_last_bit_of_a_weight_is_seen() -> None:
    one = np.ones(3, np.float32)
    other = one.copy()
    other[1] = np.nextafter(np.float32(1), np.float32(2))
    (difference,) = compare_parameters({"a": one}, {"a": other})
    assert (difference.elements, difference.largest, difference.index) == (1, 2.0**-23, (1,))
    assert json.loads(json.dumps(difference.as_json(), allow_nan=False))["index"] == [1]


# --- verdicts


def test_outcomes_go_from_best_to_worst() -> None:
    assert sorted(Outcome) == [Outcome.EXACT, Outcome.ROUNDING, Outcome.UNPROVED, Outcome.DIVERGENT]
    assert [str(outcome) for outcome in Outcome] == ["exact", "rounding", "unproved", "divergent"]
    assert worst([]) is Outcome.EXACT
    assert worst([Outcome.ROUNDING, Outcome.DIVERGENT, Outcome.EXACT]) is Outcome.DIVERGENT


def comparison_of(outcome: Outcome, name: str = "x") -> Comparison:
    return Comparison(name, outcome, 1, 8, 0, 0, (), (), 1, {outcome: 1}, None, 0.0, (), 0)


def verdict_of(
    *runtimes: RuntimeComparison, module: Outcome | None = Outcome.EXACT, folding: Outcome = Outcome.EXACT,
    rates: Mapping[str, float] | None = None,
) -> Verdict:  # fmt: skip
    links = {"module": None if module is None else comparison_of(module, "module"), "folding": comparison_of(folding)}
    return Verdict(
        1, 4, "reference", links, rates or {"sn": 0.25}, {"sn": Gains(frozen(0.5), frozen([0.25]))}, runtimes
    )


def runtime_of(outcome: Outcome, *tensors: ParameterDifference) -> RuntimeComparison:
    return RuntimeComparison(comparison_of(outcome), "a runtime", "net.onnx", tensors)


@pytest.mark.parametrize("outcome", Outcome)
def test_the_verdict_is_the_worst_of_links_and_runtimes(outcome: Outcome) -> None:
    fine = runtime_of(Outcome.EXACT)
    for verdict in (
        verdict_of(fine, runtime_of(outcome)),
        verdict_of(runtime_of(outcome), fine),
        verdict_of(fine, module=outcome),
        verdict_of(fine, folding=outcome),
        verdict_of(fine, module=None, folding=outcome),
    ):
        assert verdict.outcome is outcome
        assert verdict.passes() == (outcome in (Outcome.EXACT, Outcome.ROUNDING))
        assert verdict.passes(strict=True) == (outcome is Outcome.EXACT)
        assert verdict.as_json()["verdict"] == str(outcome)


@pytest.mark.parametrize("outcome", Outcome)
def test_a_file_of_other_parameters_is_divergent_whatever_it_fired(outcome: Outcome) -> None:
    runtime = runtime_of(outcome, ParameterDifference("w", "values differ", 1, 0.5, (0,)))
    assert runtime.outcome is Outcome.DIVERGENT
    assert runtime.as_json()["verdict"] == "divergent"
    assert not verdict_of(runtime).passes()


def test_layers_that_fired_never_or_always_are_vacuous() -> None:
    rates = {"silent": 0.0, "rare": 1e-9, "often": 0.999, "always": 1.0}
    assert verdict_of(rates=rates).vacuous == ("silent", "always")


ORIGIN_KEYS = {"sample", "layer", "t", "index", "potential", "threshold", "margin", "bound"}
RUNTIME_KEYS = {
    "name", "file", "verdict", "spikes_compared", "spikes_differing", "samples_differing", "origins", "uncertain",
    "certified_samples", "max_logit_difference", "prediction_changes",
}  # fmt: skip
VERDICT_KEYS = {"verdict", "samples", "timesteps", "reference", "links", "rates", "vacuous", "runtimes"}


def test_a_verdict_is_plain_json_with_the_keys_that_are_promised() -> None:
    graph, batch = GRAPHS["ties"]()
    graph = graph.replaced({n.name: replace(n, leak_target=frozen(0.25)) for n in graph.neurons})  # inexact ties
    flip = one_flip_everywhere(graph, batch, 6)[3]
    found = compared(graph, batch, candidate(graph, batch, flip))
    runtime = RuntimeComparison(found, "a runtime", None, (ParameterDifference("w", "values differ", 1, 0.5, (0, 2)),))
    verdict = verdict_of(runtime, module=None)
    back = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    assert back.keys() >= VERDICT_KEYS
    assert back["links"].keys() == {"module", "folding"}
    assert back["links"]["module"] is None
    assert back["gains"] == {"sn": {"alpha": 0.5, "beta": [0.25]}}
    (one,) = back["runtimes"]
    assert one.keys() >= RUNTIME_KEYS
    assert (one["file"], one["verdict"]) == (None, "divergent")
    assert one["tensors_differing"][0]["index"] == [0, 2]
    assert len(one["origins"]) == 1
    assert len(one["uncertain"]) > 100, "ties"
    for step in one["origins"] + one["uncertain"]:
        assert step.keys() >= ORIGIN_KEYS
    origin = one["origins"][0]
    assert (origin["layer"], origin["t"], origin["sample"], tuple(origin["index"])) == flip


def test_logits_that_are_no_numbers_are_null_in_json() -> None:
    graph, batch = GRAPHS["plain"]()
    reference = simulate(graph, batch)
    found = compared(graph, batch, Recording(reference.spikes, np.full_like(reference.logits, np.nan)))
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["max_logit_difference"] is None
    infinite = ParameterDifference("w", "values differ", 1, np.inf, (0,))
    assert json.loads(json.dumps(infinite.as_json(), allow_nan=False))["largest"] is None
