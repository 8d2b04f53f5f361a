"""Faults are put into networks one at a time, at every depth, and must be located and named; more must not be.

The faulty candidate is the model's graph with one thing changed, run by itself; the diagnosis sees its spikes only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dalif_deploy.deploy import load, verify
from dalif_deploy.equivalence import Arithmetic, Comparer, Comparison, Outcome, judge, simulate
from dalif_deploy.equivalence.cause import Cause
from dalif_deploy.equivalence.estimate import shortest
from dalif_deploy.equivalence.evidence import MOST
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Array, Conv2d, Edge, Flatten, Linear, Neuron, Node, frozen
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording, SpikeTrain
from tests.commands import DIGITS, dalif, done, stored_samples
from tests.float32 import float32_run
from tests.graphs import GRAPHS, Build, Case, calibrated, firing_rates

# --- networks


def _residuals() -> Case:
    """Three layers, each the sum of a convolution and a 1x1 shortcut from the same place."""
    build = Build(21, (2, 6, 6))
    batch = np.random.default_rng(22).uniform(0.0, 1.0, (6, 2, 6, 6)).astype(np.float32)
    x, channels = "input", 2
    for layer in ("sn1", "sn2", "sn3"):
        main = build.norm(f"{layer}.bn", build.conv(f"{layer}.conv", x, (channels, 8)), 8, mean=0.1, spread=0.4)
        side = build.conv(f"{layer}.side", x, (channels, 8), kernel=1, padding=0)
        side = build.norm(f"{layer}.side_bn", side, 8, mean=0.1, spread=0.3)
        x, channels = build.neuron(layer, build.plus(f"{layer}.add", main, side)), 8
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    return calibrated(build.finish(build.linear("fc", x, (8 * 36, 5))), batch), batch


def _flattened(place: int) -> Case:
    """Three layers, the first `place` of them convolutions, the next behind a flattening."""
    build = Build(23 + place, (4, 5, 6))
    batch = np.random.default_rng(30).uniform(0.0, 1.0, (16, 4, 5, 6)).astype(np.float32)
    x, features = "input", 0
    for number in range(3):
        name = f"sn{number + 1}"
        if number < place:
            x = build.conv(f"{name}.in", x, (4, 4))
            x = build.norm_neuron(name, x, 4)
            continue
        if number == place:
            x, features = build.add(Flatten(name="flatten", inputs=(Edge(x),))), 4 * 5 * 6
        x = build.linear(f"{name}.in", x, (features, 32))
        x, features = build.norm_neuron(name, x, 32), 32
    return calibrated(build.finish(build.linear("fc", x, (features, 5))), batch), batch


def _on_a_grid(leak_target: float = 0.0) -> Case:
    """Three layers with weights on a coarse dyadic grid: float32 rounds nowhere, and potentials meet the threshold."""
    build = Build(40, (2, 6, 6), temporal=True, kind="spike")
    batch = (np.random.default_rng(41).random((6, 6, 2, 6, 6)) < 0.3).astype(np.float32)
    grid = np.random.default_rng(42)
    x, channels = "input", 2
    for name, low, high, parts in (("sn1", -2, 4, 8), ("sn2", -3, 6, 16), ("sn3", -3, 6, 16)):
        weight = frozen(grid.integers(low, high, (6, channels, 3, 3)) / parts)
        x = build.add(Conv2d(name=f"{name}.in", inputs=(Edge(x),), weight=weight, padding=(1, 1)))
        x, channels = build.neuron(name, x, alpha=1.0, beta=0.5, leak_target=leak_target), 6
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    return build.finish(build.linear("fc", x, (216, 4)), timesteps=6), batch


@cache
def case(name: str) -> Case:
    """The network `name`, folded, as what runs a file computes it, and a batch of data."""
    if name == "digits":
        return fold(load(DIGITS)), stored_samples(8)
    if name == "residuals":
        graph, batch = _residuals()
    elif name == "grid":
        graph, batch = _on_a_grid()
    elif name.startswith("flattened"):
        graph, batch = _flattened(int(name[-1]))
    else:
        graph, batch = GRAPHS[name]()
    return fold(graph), batch


LAYERS = ("sn1", "sn2", "sn3")
NETWORKS = ("threshold and reset", "digits")
per_layer = pytest.mark.parametrize("layer", LAYERS)


@pytest.mark.parametrize("name", [*NETWORKS, "residuals", "flattened 0", "flattened 1", "flattened 2", "grid"])
def test_every_layer_of_the_networks_fires(name: str) -> None:
    graph, batch = case(name)
    rates = firing_rates(graph, batch)
    assert list(rates) == list(LAYERS)
    assert all(0.02 <= rate <= 0.4 for rate in rates.values()), rates


# --- the diagnosis


def compared(name: str | Case, candidate: Recording, arithmetic: Arithmetic | None = None) -> Comparer:
    graph, batch = case(name) if isinstance(name, str) else name
    comparer = Comparer("candidate", graph, arithmetic=arithmetic)
    comparer.add(batch, simulate(graph, batch), candidate)
    return comparer


def diagnosed(name: str, *changes: Node) -> Cause:
    """The cause that is named for a network with these nodes in the place of those of the same names."""
    graph, batch = case(name)
    comparer = compared(name, simulate(graph.replaced({node.name: node for node in changes}), batch))
    assert comparer.result().outcome is Outcome.DIVERGENT
    cause = comparer.cause()
    assert cause is not None
    return cause


def neuron(name: str, layer: str) -> Neuron:
    node = case(name)[0][layer]
    assert isinstance(node, Neuron)
    return node


def weights(name: str, layer: str) -> Conv2d | Linear:
    """The weights that feed a layer."""
    node = case(name)[0][layer]
    while not isinstance(node, Conv2d | Linear):
        node = case(name)[0][node.inputs[0].source]
    return node


@dataclass(frozen=True)
class Fault:
    """What is put in the place of a node, the keyword it must be given, and how the detail must begin."""

    keyword: str
    change: Callable[[str, str], Node]
    detail: Callable[[str, str], str] = lambda name, layer: ""


def trained(values: Array) -> float:
    return float(values.ravel()[0])


def shuffled(count: int) -> NDArray[np.intp]:
    return np.random.default_rng(count).permutation(count)


def rows_shuffled(name: str, layer: str) -> Node:
    node = weights(name, layer)
    order = shuffled(len(node.weight))
    bias = None if node.bias is None else frozen(node.bias[order])
    return replace(node, weight=frozen(node.weight[order]), bias=bias)


def other_reset(name: str, layer: str) -> Node:
    return replace(neuron(name, layer), reset="subtract")


def alpha_left_out(name: str, layer: str) -> Node:
    node = neuron(name, layer)
    assert node.trained_alpha is not None
    return replace(node, alpha=frozen(1.0 / node.trained_alpha))


FAULTS: dict[str, Fault] = {
    "fires late": Fault(
        "shift in time",
        lambda net, at: replace(neuron(net, at), inputs=(Edge(neuron(net, at).inputs[0].source, 1),)),
        lambda net, at: "fires 1 timestep late",
    ),
    "takes its input late": Fault(
        "shift in time",
        lambda net, at: replace(weights(net, at), inputs=(Edge(weights(net, at).inputs[0].source, 1),)),
        lambda net, at: "what '",
    ),
    "threshold": Fault(
        "threshold",
        lambda net, at: replace(neuron(net, at), v_threshold=frozen(neuron(net, at).v_threshold + 0.1)),
        lambda net, at: f"v_th is {trained(neuron(net, at).v_threshold) + 0.1:.6g} in place of ",
    ),
    "no leak": Fault(
        "leak",
        lambda net, at: replace(neuron(net, at), beta=frozen(1.0)),
        lambda net, at: "beta is 1 in place of",
    ),
    "leak": Fault(
        "leak",
        lambda net, at: replace(neuron(net, at), beta=frozen(0.9)),
        lambda net, at: "beta is 0.9 in place of ",
    ),
    "reset rule": Fault("reset rule", other_reset, lambda net, at: "resets by subtracting v_th, the model resets to "),
    "missing bias": Fault(
        "missing bias",
        lambda net, at: replace(weights(net, at), bias=None),
        lambda net, at: f"the bias of '{weights(net, at).name}'",
    ),
    "scaled weights": Fault(
        "scaled weights",
        lambda net, at: replace(weights(net, at), weight=frozen(4.0 * weights(net, at).weight)),
        lambda net, at: f"the weights of '{weights(net, at).name}' times 4 ",
    ),
    "permuted channels": Fault("permuted channels", rows_shuffled, lambda net, at: "the layer's channels stand "),
    "alpha left out": Fault("wrong alpha", alpha_left_out, lambda net, at: "alpha is 1 in place of "),
}  # fmt: skip


@per_layer
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_located_and_named(fault: str, name: str, layer: str) -> None:
    put = FAULTS[fault]
    cause = diagnosed(name, put.change(name, layer))
    assert (cause.layer, cause.explanation.name) == (layer, put.keyword)
    assert cause.explained
    assert cause.explanation.detail.startswith(put.detail(name, layer)), cause.explanation.detail
    assert cause.contradictions >= len(cause.earliest) > 0
    assert all(not step.within_bound and step.layer == layer for step in cause.earliest)


RESETS = [
    ({"reset": "none"}, "never resets, the model resets to "),
    ({"reset_timing": "next"}, " one timestep later, the model resets to "),
    ({"reset": "subtract", "reset_timing": "next"}, "resets by subtracting v_th one timestep later, the model "),
]


@per_layer
@pytest.mark.parametrize(("rules", "words"), RESETS)
def test_other_resets_are_told_apart(rules: dict[str, Any], words: str, layer: str) -> None:
    cause = diagnosed("digits", replace(neuron("digits", layer), **rules))
    assert (cause.layer, cause.explanation.name) == (layer, "reset rule")
    assert words in cause.explanation.detail


@per_layer
def test_a_missing_branch_is_named(layer: str) -> None:
    add = case("residuals")[0][f"{layer}.add"]
    for kept in (0, 1):
        cause = diagnosed("residuals", replace(add, inputs=add.inputs[kept : kept + 1]))
        assert (cause.layer, cause.explanation.name) == (layer, "missing branch")
        assert cause.explanation.detail == f"'{layer}.add' is without its branch from '{add.inputs[1 - kept].source}'"


@per_layer
def test_a_branch_that_comes_late_is_named(layer: str) -> None:
    add = case("residuals")[0][f"{layer}.add"]
    cause = diagnosed("residuals", replace(add, inputs=(add.inputs[0], Edge(add.inputs[1].source, 1))))
    assert (cause.layer, cause.explanation.name) == (layer, "shift in time")
    assert "arrives 1 timestep late" in cause.explanation.detail


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("axes", "words"), [((1, 2, 0), "height, width, channels"), ((0, 2, 1), "channels, width, ")])
def test_another_order_of_flattening_is_named(place: int, axes: tuple[int, ...], words: str) -> None:
    name, layer = f"flattened {place}", LAYERS[place]
    node = weights(name, layer)
    order = np.arange(node.weight.shape[1]).reshape(4, 5, 6).transpose(axes).ravel()
    weight = np.empty_like(node.weight)
    weight[:, order] = node.weight
    cause = diagnosed(name, replace(node, weight=frozen(weight)))
    assert (cause.layer, cause.explanation.name) == (layer, "flattened in the wrong order")
    assert cause.explanation.detail.startswith(f"'flatten' runs over {words}")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_weights_that_stand_for_another_order_are_named(place: int) -> None:
    """As converted for a runtime whose channels lie last, and run where they lie first."""
    name, layer = f"flattened {place}", LAYERS[place]
    node = weights(name, layer)
    order = np.arange(node.weight.shape[1]).reshape(4, 5, 6).transpose(1, 2, 0).ravel()
    cause = diagnosed(name, replace(node, weight=frozen(node.weight[:, order])))
    assert (cause.layer, cause.explanation.name) == (layer, "flattened in the wrong order")
    stated = f"the weights of '{node.name}' stand for height, width, channels, and 'flatten' runs over channels, "
    assert cause.explanation.detail.startswith(stated)


@pytest.mark.parametrize(("name", "layer"), [("digits", "sn2"), ("residuals", "sn2"), ("residuals", "sn3")])
@pytest.mark.parametrize("order", [lambda n: np.arange(n)[::-1], shuffled])
def test_channels_that_are_taken_in_another_order_are_named(
    name: str, layer: str, order: Callable[[int], NDArray[np.intp]]
) -> None:
    node = weights(name, layer)
    cause = diagnosed(name, replace(node, weight=frozen(node.weight[:, order(node.weight.shape[1])])))
    assert (cause.layer, cause.explanation.name) == (layer, "permuted channels")
    assert cause.explanation.detail.startswith(f"the channels that '{node.name}' takes stand in the order ")


def test_channels_of_one_branch_are_told_from_those_of_the_layer() -> None:
    node = weights("residuals", "sn2")
    assert node.bias is not None
    order = shuffled(len(node.weight))
    cause = diagnosed("residuals", replace(node, weight=frozen(node.weight[order]), bias=frozen(node.bias[order])))
    assert cause.explanation.name == "permuted channels"
    stated = f"the channels that '{node.name}' makes stand in the order [{', '.join(map(str, order))}]"
    assert cause.explanation.detail == stated


# --- more than one explanation, more than one fault, none


def test_what_no_spike_can_tell_apart_is_said() -> None:
    """With a reset to 0, twice the gain and half the threshold are the same neuron; the shorter number is named."""
    threshold = replace(neuron("digits", "sn2"), v_threshold=frozen(1.1))
    alpha = replace(neuron("digits", "sn2"), alpha=frozen(1.2))
    one, other = diagnosed("digits", threshold), diagnosed("digits", alpha)
    assert (one.explanation.name, [found.name for found in one.also]) == ("threshold", ["wrong alpha"])
    assert (other.explanation.name, [found.name for found in other.also]) == ("wrong alpha", ["threshold"])
    assert ", 1.2 times that (" in other.explanation.detail


def test_an_estimate_lies_in_the_interval_that_is_told_with_it() -> None:
    for layer in LAYERS:
        cause = diagnosed("digits", replace(neuron("digits", layer), beta=frozen(0.8123)))
        words = cause.explanation.detail.replace(")", "").split()
        low, high = float(words[words.index("(between") + 1]), float(words[-1])
        assert low < 0.8123 < high
        assert high - low < 0.1
        assert low < float(words[2]) < high


PAIRS = [("leak", "missing bias"), ("threshold", "no leak"), ("reset rule", "scaled weights"), ("leak", "fires late")]


@per_layer
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_faults_in_a_layer_are_not_named_as_one(one: str, other: str, layer: str) -> None:
    name = "digits"
    first = FAULTS[one].change(name, layer)
    second = FAULTS[other].change(name, layer)
    if first.name == second.name:  # both change the neuron: what the second changed is put into the first
        changed = {key: value for key, value in vars(second).items() if value is not getattr(neuron(name, layer), key)}
        changes = [replace(first, **changed)]
    else:
        changes = [first, second]
    cause = diagnosed(name, *changes)
    assert cause.layer == layer
    assert (cause.explanation.name, cause.explained) == ("unexplained", False)
    assert cause.also == ()


def test_of_two_faulty_layers_the_first_is_named() -> None:
    changes = [replace(neuron("digits", layer), beta=frozen(1.0)) for layer in ("sn3", "sn2")]
    cause = diagnosed("digits", *changes)
    assert (cause.layer, cause.explanation.name) == ("sn2", "leak")


def test_one_weight_that_is_another_is_unexplained() -> None:
    node = weights("digits", "sn2")
    weight = node.weight.copy()
    weight[5, 3] += 3.0
    assert diagnosed("digits", replace(node, weight=frozen(weight))).explanation.name == "unexplained"


def test_spikes_turned_at_random_are_unexplained() -> None:
    graph, batch = case("digits")
    spikes = {name: train.unpack() for name, train in simulate(graph, batch).spikes.items()}
    rng = np.random.default_rng(3)
    for _ in range(20):
        spikes["sn1"][tuple(rng.integers(0, size) for size in spikes["sn1"].shape)] ^= True
    packed = {name: SpikeTrain.pack(train) for name, train in spikes.items()}
    cause = compared("digits", Recording(packed, simulate(graph, batch).logits)).cause()
    assert cause is not None
    assert (cause.layer, cause.explanation.name) == ("sn1", "unexplained")


def test_what_is_exact_has_no_cause() -> None:
    graph, batch = case("digits")
    assert compared("digits", simulate(graph, batch)).cause() is None


def one_neuron(weight: float, timesteps: int = 4, **rules: Any) -> SpikingGraph:
    build = Build(0, (1,))
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[weight]])))
    return build.finish(build.neuron("sn", "fc", alpha=1.0, beta=0.5, **rules), timesteps=timesteps)


ONE = np.ones((1, 1), np.float32)


def test_what_is_rounding_has_no_cause() -> None:
    graph, near = one_neuron(1.0 - 1e-8, 1), one_neuron(1.0, 1)
    comparer = compared((graph, ONE), simulate(near, ONE))
    assert comparer.result().outcome is Outcome.ROUNDING
    assert comparer.cause() is None
    assert comparer.result().suspect is None


def test_an_answer_that_is_wrong_where_all_spikes_are_right_has_no_cause_here() -> None:
    graph, batch = case("digits")
    right = simulate(graph, batch)
    comparer = compared("digits", Recording(right.spikes, right.logits + 1.0))
    assert comparer.result().outcome is Outcome.DIVERGENT
    assert comparer.cause() is None


# --- trajectories and earliest contradictions


def test_the_trajectory_is_the_models_on_the_candidates_history() -> None:
    """X = 0.625 at every step, beta = 1/2; the candidate does not leak, so it fires at steps 1 and 3."""
    graph = one_neuron(0.625)
    faulty = graph.replaced({"sn": replace(graph["sn"], beta=frozen(1.0))})
    cause = compared((graph, ONE), simulate(faulty, ONE)).cause()
    assert cause is not None
    steps = [(s.t, s.potential, s.threshold, s.reference, s.candidate) for s in cause.trajectory]
    # by hand: 0.625; 0.3125 + 0.625, where the candidate fires and resets; and the same again
    assert steps == [
        (0, 0.625, 1.0, False, False), (1, 0.9375, 1.0, False, True),
        (2, 0.625, 1.0, False, False), (3, 0.9375, 1.0, False, True),
    ]  # fmt: skip
    assert [(step.t, step.index, step.fired, step.margin) for step in cause.earliest] == [
        (1, (0,), True, -0.0625), (3, (0,), True, -0.0625),
    ]  # fmt: skip
    assert (cause.contradictions, cause.samples) == (2, (0,))


def test_numbers_are_in_the_units_of_the_trained_model() -> None:
    """Folded, the second layer of the block holds V / alpha; its threshold is 1 all the same in what is told."""
    graph, batch = GRAPHS["identity residual"]()
    folded = fold(graph)
    last = folded["block.sn2"]
    assert isinstance(last, Neuron)
    faulty = folded.replaced({last.name: replace(last, v_threshold=frozen(1.1 * last.v_threshold))})
    cause = compared((folded, batch), simulate(faulty, batch)).cause()
    assert cause is not None
    assert cause.explanation.name == "threshold"
    assert cause.explanation.detail.startswith("v_th is 1.1 in place of 1 ")
    assert {step.threshold for step in cause.trajectory} == {1.0}


def test_samples_that_go_wrong_in_the_earliest_layer_are_kept() -> None:
    """Of 40 samples the last two go wrong in the second layer, all others in the third; few are kept, those two first.

    The leak would explain the two, but not that the others fire rightly there.
    """
    graph, _ = case("digits")
    images = stored_samples(40)
    late, early = (
        graph.replaced({layer: replace(neuron("digits", layer), beta=frozen(1.0))}) for layer in ("sn3", "sn2")
    )
    comparer = Comparer("candidate", graph)
    for start in range(0, 40, 8):
        batch = images[start : start + 8]
        found = simulate(late, batch)
        if start == 32:
            other = simulate(early, batch)
            found = Recording.joined([found.part(0, 6), other.part(6, 8)])
        comparer.add(batch, simulate(graph, batch), found)
        assert len(comparer._evidence.kept().samples) <= MOST
    cause = comparer.cause()
    assert cause is not None
    assert (cause.layer, cause.explanation.name) == ("sn2", "unexplained")
    assert {step.sample for step in cause.earliest} <= {38, 39}
    assert len(cause.samples) == MOST


def test_the_training_graphs_own_nodes_are_named() -> None:
    graph, batch = GRAPHS["plain"]()
    norm = graph["sn2_bn"]
    faulty = graph.replaced({norm.name: replace(norm, bias=frozen(np.zeros(12)))})  # type: ignore[call-arg]
    cause = compared((graph, batch), simulate(faulty, batch)).cause()
    assert cause is not None
    assert (cause.layer, cause.explanation.name) == ("sn2", "missing bias")
    assert cause.explanation.detail.startswith("the bias of 'sn2_bn'")


def test_a_cause_comes_back_from_its_json() -> None:
    cause = diagnosed("digits", FAULTS["threshold"].change("digits", "sn2"))
    assert Cause.of_json(json.loads(json.dumps(cause.as_json(), allow_nan=False))) == cause
    with pytest.raises(ValueError, match="bad luck"):
        Cause.of_json({**cause.as_json(), "name": "bad luck"})


# --- the threshold rule


@per_layer
def test_where_nothing_rounds_another_threshold_rule_is_divergent_and_named(layer: str) -> None:
    cause = diagnosed("grid", replace(neuron("grid", layer), fires_at="gt"))
    assert (cause.layer, cause.explanation.name) == (layer, "threshold rule")
    assert cause.explanation.detail == "fires at V > v_th, the model at V >= v_th"
    assert all((step.margin, step.bound) == (0.0, 0.0) for step in cause.earliest)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_called_free_of_rounding_is_equal_in_any_order(seed: int) -> None:
    """Every potential whose bound is 0 is, in float32 sums of random orders, V64 bit for bit."""
    build = Build(seed, (2, 5, 5), temporal=True, kind="spike")
    rng = np.random.default_rng(seed)
    batch = (rng.random((3, 8, 2, 5, 5)) < 0.4).astype(np.float32)
    x = build.add(
        Conv2d(
            name="conv", inputs=(Edge("input"),), weight=frozen(rng.integers(-90, 120, (4, 2, 3, 3)) / 256),
            bias=frozen(rng.integers(-9, 9, 4) / 2**10), padding=(1, 1),
        )
    )  # fmt: skip
    x = build.neuron("sn1", x, alpha=1.0, beta=[0.5, 0.8125, 0.8125, 0.75][seed], v_reset=[0.0, -0.25, 0.1, 0.0][seed],
                     reset="subtract" if seed == 3 else "hard")  # fmt: skip
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    fine = rng.integers(-900, 1300, (6, 100)) / 2 ** (12 + 9 * (seed % 2))
    x = build.neuron("sn2", build.add(Linear(name="fc", inputs=(Edge(x),), weight=frozen(fine))), alpha=1.0, beta=0.5)
    graph = build.finish(x, timesteps=8)
    run = float32_run(graph, batch, rng)
    train = {name: SpikeTrain.pack(spikes) for name, (_, spikes) in run.items()}
    compared_steps = 0
    for name, t, exact, potential in exact_potentials(graph, batch, train):
        assert np.array_equal(run[name][0][:, t][exact], potential[exact])
        compared_steps += int(exact.sum())
    assert compared_steps > 500


def exact_potentials(
    graph: SpikingGraph, batch: NDArray[np.float32], spikes: dict[str, SpikeTrain]
) -> Iterator[tuple[str, int, NDArray[np.bool_], Array]]:
    """Layer, timestep, where nothing is said to round, and V64."""
    from dalif_deploy.equivalence import NeuronStep, replay

    follower = Arithmetic().exact_steps(graph, batch)
    steps: list[NeuronStep] = []
    replay(graph, batch, steps.append, history=spikes, update="sum")
    for step in steps:
        mask = follower.mask(step, spikes[step.neuron.name].step(step.t))
        yield step.neuron.name, step.t, np.zeros_like(step.fires) if mask is None else mask, step.potential


def test_trained_weights_are_never_called_free_of_rounding() -> None:
    graph, batch = case("digits")
    spikes = dict(simulate(graph, batch).spikes)
    assert not any(exact.any() for _, _, exact, _ in exact_potentials(graph, batch.astype(np.float32), spikes))


def inexact_ties() -> Case:
    """Ties in float64, and sums of which float32 rounding is not excluded."""
    return _on_a_grid(leak_target=0.25)


def test_ties_that_all_fall_against_the_rule_are_suspected() -> None:
    graph, batch = inexact_ties()
    strict = graph.replaced({n.name: replace(n, fires_at="gt") for n in graph.neurons})
    comparer = compared((graph, batch), simulate(strict, batch))
    result = comparer.result()
    assert len(result.origins) > 20
    assert all(origin.margin == 0.0 and origin.within_bound for origin in result.origins)
    assert (result.suspect, result.outcome) == ("threshold rule", Outcome.UNPROVED)
    assert result.samples_by_outcome[Outcome.ROUNDING] == result.samples_differing
    assert comparer.cause() is None


def test_a_graph_whose_rule_is_known_is_not_suspected() -> None:
    """One rounded threshold of a folded graph moves all ties of a layer one way."""
    graph, batch = inexact_ties()
    above = {n.name: replace(n, v_threshold=frozen(np.nextafter(1.0, 2.0))) for n in graph.neurons}
    folded = simulate(graph.replaced(above), batch)
    assert compared((graph, batch), folded).result().outcome == Outcome.UNPROVED
    comparer = Comparer("folding", graph, arithmetic=Arithmetic("float64"), ties_tell=False)
    comparer.add(batch, simulate(graph, batch), folded)
    result = comparer.result()
    assert len(result.origins) > 20
    assert (result.suspect, result.outcome) == (None, Outcome.ROUNDING)


def test_ties_that_fall_either_way_are_rounding() -> None:
    graph, batch = inexact_ties()
    mixed = graph
    for node in graph.neurons:
        shape = graph.types[node.name].shape
        above = np.where(np.arange(math.prod(shape)).reshape(shape) % 7 == 0, np.nextafter(1.0, 2.0), 1.0)
        mixed = mixed.replaced({node.name: replace(node, v_threshold=frozen(above))})
    result = compared((graph, batch), simulate(mixed, batch)).result()
    assert len(result.origins) > 5
    assert (result.suspect, result.outcome) == (None, Outcome.ROUNDING)


def test_one_tie_raises_no_suspicion() -> None:
    graph = one_neuron(0.75, 1, leak_target=0.5)
    strict = graph.replaced({"sn": replace(graph["sn"], fires_at="gt")})
    result = compared((graph, ONE), simulate(strict, ONE)).result()
    assert (len(result.origins), result.suspect, result.outcome) == (1, None, Outcome.ROUNDING)


# --- numbers


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(1e-6, 10.0))
def test_the_shortest_decimal_lies_between(low: float, width: float) -> None:
    high = low + max(width, abs(low) * 1e-9)
    value, places = shortest(low, high)
    assert low < value < high
    assert round(value, places) == pytest.approx(value, abs=1e-12)
    if 0 < places < 9:  # with one place fewer there is none
        step = 10.0 ** (1 - places)
        assert not low + 1e-12 < (math.floor(low / step) + 1) * step < high - 1e-12


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1.0999, 1.1002, (1.1, 1)), (-0.3, 0.2, (0.0, 0)), (3.5, math.inf, (4.0, 0)), (-1.26, -1.24, (-1.25, 2)),
     (0.0, 0.002, (0.001, 3)), (0.93, 0.98, (0.94, 2)), (3.9, 4.1, (4.0, 0))],
)  # fmt: skip
def test_shortest_decimals(low: float, high: float, expected: tuple[float, int]) -> None:
    assert shortest(low, high) == expected


# --- from the command line


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network exported to ONNX, with another leak written into the file."""
    folder = tmp_path_factory.mktemp("altered")
    done("export", "--to", "onnx", DIGITS, "-o", folder / "net.onnx", "--no-verify", "-q")
    model = onnx.load(folder / "net.onnx")
    (beta,) = [tensor for tensor in model.graph.initializer if tensor.name == "sn2.beta"]
    beta.CopyFrom(onnx.numpy_helper.from_array(np.array(0.9, np.float32), beta.name))
    onnx.save(model, folder / "net.onnx")
    return folder


def test_the_command_names_the_cause(altered: Path) -> None:
    common = ["verify", DIGITS, altered / "net.onnx", "--samples", "12", "-q"]
    ran = dalif(*common, "--runtime", "onnxruntime", "-o", altered / "results.npz", "--keep-inputs")
    assert ran.status == 1
    assert "layer 'sn2', first at step " in ran.out
    assert ": leak: beta is 0.9 in place of 0.65631 (between 0.89" in ran.out
    (last,) = ran.out.splitlines()[-1:]
    assert last.endswith("cause: sn2: leak")
    content = dalif(*common, "--runtime", "onnxruntime", "--json").json()
    (runtime,) = content["runtimes"]
    cause = runtime["cause"]
    assert (cause["name"], cause["layer"], cause["also"]) == ("leak", "sn2", [])
    assert [step["t"] for step in cause["trajectory"]] == [0, 1, 2, 3]
    first = cause["earliest"][0]
    shown = cause["trajectory"][first["t"]]
    assert (shown["potential"], shown["candidate"]) == (first["potential"], first["fired"])
    assert shown["reference"] is not shown["candidate"]
    for again in (["--from", altered / "results.npz"], [DIGITS, "--from", altered / "results.npz"]):
        assert dalif("verify", *again, "--json").json()["runtimes"] == content["runtimes"]


def test_a_run_recorded_elsewhere_is_diagnosed(altered: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=stored_samples(12))
    graph, _ = case("digits")
    faulty = graph.replaced({node.name: node for node in [FAULTS["missing bias"].change("digits", "sn3")]})
    found = simulate(faulty, stored_samples(12))
    spikes = {f"spikes.{name}": train.unpack() for name, train in found.spikes.items()}
    np.savez(tmp_path / "chip.npz", logits=found.logits.astype(np.float32), **spikes)
    arguments = ["verify", DIGITS, "--from", tmp_path / "chip.npz", "--data", tmp_path / "data.npz"]
    runtime = dalif(*arguments, "--json").json()["runtimes"][-1]
    assert (runtime["cause"]["layer"], runtime["cause"]["name"]) == ("sn3", "missing bias")
    assert "missing bias: the bias of 'fc1', 0.47" in dalif(*arguments).out


def test_the_command_tells_what_it_suspects(tmp_path: Path) -> None:
    graph, batch = inexact_ties()
    strict = graph.replaced({n.name: replace(n, fires_at="gt") for n in graph.neurons})
    found = simulate(strict, batch)
    spikes = {f"spikes.{name}": train.unpack() for name, train in found.spikes.items()}
    path = tmp_path / "chip.npz"
    np.savez(path, logits=found.logits, **spikes)
    verdict = verify(graph, data=batch, runtimes=(), recordings=[path])
    assert not verdict.passes()
    content = verdict.as_json()
    assert (content["verdict"], content["runtimes"][0]["suspect"]) == ("unproved", "threshold rule")
    assert content["runtimes"][0]["cause"] is None
    from rich.console import Console

    from dalif_deploy.report.terminal import print_verdict

    with (console := Console(width=200, highlight=False)).capture() as told:
        print_verdict(verdict, console)
    assert "suspected: threshold rule: V equals v_th exactly at every one of the" in told.get()
    assert told.get().splitlines()[-1].endswith("suspected: threshold rule")


def test_comparisons_without_suspicion_say_so() -> None:
    graph, batch = case("digits")
    found: Comparison = compared("digits", simulate(graph, batch)).result()
    assert found.as_json()["suspect"] is None
    assert judge(graph, batch, simulate(graph, batch).spikes, Arithmetic()).contradictions == ()


@pytest.mark.parametrize(("large", "exact"), [(2.0**22, True), (2.0**24, False)])
def test_a_sum_is_exact_only_where_float32_holds_every_part_of_it(large: float, exact: bool) -> None:
    """V = large + 1 - large = 1 = v_th; but 2^24 + 1 is no float32 number, and in that order V is 0."""
    build = Build(0, (3,), temporal=True, kind="spike")
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[large, 1.0, -large]])))
    graph = build.finish(build.neuron("sn", "fc", alpha=1.0, beta=0.5), timesteps=1)
    batch = np.ones((1, 1, 3), np.float32)
    ((_, _, mask, potential),) = exact_potentials(graph, batch, dict(simulate(graph, batch).spikes))
    assert potential.item() == 1.0
    assert bool(mask.all()) is exact
    in_order = float(np.float32(large) + np.float32(1.0) - np.float32(large))
    assert (in_order == 1.0) is exact
