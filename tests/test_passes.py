"""Folding: every rule of every pass on the smallest graph that shows it, run before and after in float64.

Parameters are small multiples of powers of two, so nothing is rounded, ties included: spikes must be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dalif_deploy.equivalence import NeuronStep, replay, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    Add,
    Array,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Edge,
    Flatten,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Readout,
    Scale,
    StateVariable,
    SumPool2d,
    Zeros,
    frozen,
)
from dalif_deploy.passes import FOLDING, Pass, fold, fold_alpha, fold_batchnorm, fold_comparison, sum_pools
from dalif_deploy.passes.contract import NO_BATCH_NORM, OWN_COMPARISON, UNIT_ALPHA, Property
from tests.graphs import GRAPHS, SPECIAL_GRAPHS, Build

CHANNELS = 4


class Exact(Build):
    """Builds graphs of parameters that float64 adds and multiplies without rounding."""

    def __init__(self, seed: int = 0, shape: tuple[int, ...] = (CHANNELS, 4, 4)) -> None:
        super().__init__(seed, shape, temporal=True)
        self.input_shape = shape

    def weights(self, *shape: int) -> Array:
        return frozen(self.rng.integers(-3, 5, shape) / 4)

    def square(self, name: str, source: str, **options: Any) -> str:
        """A 3x3 convolution that keeps the shape."""
        return self.conv(name, source, (CHANNELS, CHANNELS), bias=True, **options)

    def linear(self, name: str, source: str, features: tuple[int, int], *, bias: bool = True) -> str:
        weight, shift = self.weights(features[1], features[0]), self.weights(features[1]) if bias else None
        return self.add(Linear(name=name, inputs=(Edge(source),), weight=weight, bias=shift))

    def exact_norm(self, name: str, *sources: Edge | str, channels: int = CHANNELS) -> str:
        """A BatchNorm whose standard deviations are 1/2, 1 or 2; gamma of both signs."""
        edges = tuple(source if isinstance(source, Edge) else Edge(source) for source in sources)
        return self.add(
            BatchNorm(
                name=name, inputs=edges, weight=frozen(self.rng.choice([-0.5, 0.5, 1.0], channels)),
                bias=frozen(self.rng.integers(-2, 5, channels) / 8),
                mean=frozen(self.rng.integers(-2, 3, channels) / 4),
                variance=frozen(self.rng.choice([0.25, 1.0, 4.0], channels) - 2.0**-10), epsilon=2.0**-10,
            )
        )  # fmt: skip

    def scale(self, name: str, source: str, factor: object = -0.5, offset: object = 0.25) -> str:
        return self.add(Scale(name=name, inputs=(Edge(source),), factor=frozen(factor), offset=frozen(offset)))

    def graph(self, *ends: str, timesteps: int = 4) -> SpikingGraph:
        """The graph that reads out the sum of `ends`, none of which is changed by reading it."""
        return self.finish(self.plus("ends", *ends), timesteps=timesteps)

    def batch(self, timesteps: int = 4) -> NDArray[np.float32]:
        return (self.rng.integers(-2, 5, (3, timesteps, *self.input_shape)) / 2).astype(np.float32)


def check(build: Exact, graph: SpikingGraph, transform: Callable[[SpikingGraph], SpikingGraph] = fold) -> SpikingGraph:
    """The transformed graph, which fires as `graph` and has its logits, bit for bit, on data on which it fires."""
    after = transform(graph)
    batch = build.batch(graph.timesteps)
    expected, found = simulate(graph, batch), simulate(after, batch)
    assert list(found.spikes) == list(expected.spikes)
    for name, train in expected.spikes.items():
        np.testing.assert_array_equal(found.spikes[name].unpack(), train.unpack(), err_msg=name)
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert any(0.0 < train.count() / train.neuron_steps < 1.0 for train in expected.spikes.values())
    if not any((sn.norm_gain == 0.0).any() for sn in graph.neurons):  # those keep no potential
        potentials_are_kept(graph, after, batch)
    return after


def potentials_are_kept(before: SpikingGraph, after: SpikingGraph, batch: NDArray[np.generic]) -> None:
    """V_trained = potential_scale * V at every neuron-step; where alpha is 0 for a channel as well."""

    def potentials(graph: SpikingGraph) -> dict[tuple[str, int], Array]:
        seen: dict[tuple[str, int], Array] = {}

        def visit(step: NeuronStep) -> None:
            seen[step.neuron.name, step.t] = np.asarray(step.neuron.potential_scale * step.potential)

        replay(graph, batch, visit)
        return seen

    expected, found = potentials(before), potentials(after)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=1e-12, atol=1e-12, err_msg=str(key))


def kinds(graph: SpikingGraph) -> dict[str, str]:
    return {node.name: type(node).__name__ for node in graph.nodes}


def neuron(graph: SpikingGraph, name: str) -> Neuron:
    node = graph[name]
    assert isinstance(node, Neuron)
    return node


def weighted(graph: SpikingGraph, name: str) -> Conv2d | Linear:
    node = graph[name]
    assert isinstance(node, Conv2d | Linear)
    return node


def scale_node(graph: SpikingGraph, name: str) -> Scale:
    node = graph[name]
    assert isinstance(node, Scale)
    return node


def history(graph: SpikingGraph) -> str:
    return "\n".join(graph.history)


# --- alpha, rule (a): every branch ends in weights that nothing else reads


@pytest.mark.parametrize("alpha", [0.5, -0.5, 2.0])
def test_alpha_goes_into_the_one_convolution_before_the_neuron(alpha: float) -> None:
    build = Exact()
    before = build.graph(build.neuron("sn", build.square("conv", "input"), alpha=alpha, beta=0.5, v_reset=-0.25))
    after = check(build, before)
    np.testing.assert_array_equal(weighted(after, "conv").weight, alpha * weighted(before, "conv").weight)
    np.testing.assert_array_equal(weighted(after, "conv").bias, alpha * np.asarray(weighted(before, "conv").bias))
    sn = neuron(after, "sn")
    assert (sn.alpha, sn.trained_alpha, sn.v_threshold, sn.v_reset, sn.potential_scale) == (1, alpha, 1, -0.25, 1)
    assert sn.beta == 0.5
    assert after.history == (f"sn: alpha {alpha:.4g} folded into the weights of conv",)
    assert kinds(after) == kinds(before)


def test_alpha_goes_into_a_linear_layer_without_bias() -> None:
    build = Exact(shape=(6,))
    before = build.graph(build.neuron("sn", build.linear("fc", "input", (6, 5), bias=False), alpha=-0.5))
    after = check(build, before)
    assert weighted(after, "fc").bias is None
    np.testing.assert_array_equal(weighted(after, "fc").weight, -0.5 * weighted(before, "fc").weight)


def test_a_bias_of_zeros_stays_one() -> None:
    """What has a bias keeps it, what has none gets none without need: exporters write what they find."""
    build = Exact(shape=(6,))
    fc = Linear(name="fc", inputs=(Edge("input"),), weight=build.weights(5, 6), bias=frozen(np.zeros(5)))
    after = check(build, build.graph(build.neuron("sn", build.add(fc), alpha=0.5)))
    np.testing.assert_array_equal(weighted(after, "fc").bias, np.zeros(5))


def test_alpha_goes_into_every_branch_of_nested_sums() -> None:
    build = Exact()
    inner = build.plus("inner", build.square("c", "input"), build.scale("d", "input"))
    total = build.plus("outer", build.square("a", "input"), inner, build.square("b", "input"))
    before = build.graph(build.neuron("sn", total, alpha=-0.5, beta=0.5))
    after = check(build, before)
    for name in "abc":
        np.testing.assert_array_equal(weighted(after, name).weight, -0.5 * weighted(before, name).weight)
    d = scale_node(after, "d")
    assert (float(d.factor), float(d.offset)) == (0.25, -0.125)
    assert neuron(after, "sn").potential_scale == 1.0
    assert after.history == ("sn: alpha -0.5 folded into the weights of a, c, d, b",)


def test_alpha_per_channel_goes_into_the_channels_of_the_weights() -> None:
    alpha = np.array([0.5, 2.0, -1.0, 0.0]).reshape(4, 1, 1)
    build = Exact()
    before = build.graph(build.neuron("sn", build.square("conv", "input"), alpha=alpha, beta=0.5))
    after = check(build, before)
    np.testing.assert_array_equal(
        weighted(after, "conv").weight, alpha.reshape(4, 1, 1, 1) * weighted(before, "conv").weight
    )
    np.testing.assert_array_equal(neuron(after, "sn").trained_alpha, alpha)
    assert after.history == ("sn: alpha -1 to 2 folded into the weights of conv",)


def test_a_sum_that_others_read_too_is_a_branch_of_its_own() -> None:
    build = Exact()
    total = build.plus("sum", build.square("a", "input"), build.square("b", "input"))
    before = build.graph(build.neuron("sn", total, alpha=0.5), total)
    after = check(build, before)
    for name in "ab":
        assert weighted(after, name) is weighted(before, name)
    assert neuron(after, "sn").v_threshold == 2.0


# --- alpha, rule (b): positive, something in the way: threshold and reset are divided


def test_a_positive_alpha_before_an_identity_goes_into_threshold_reset_and_leak_target() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0, beta=0.5)
    total = build.plus("sum", build.square("c1", stem), stem)
    before = build.graph(
        build.neuron("sn", total, alpha=0.5, beta=0.25, v_threshold=0.75, v_reset=-0.25, leak_target=0.125)
    )
    after = check(build, before)
    sn = neuron(after, "sn")
    assert (sn.v_threshold, sn.v_reset, sn.leak_target, sn.potential_scale) == (1.5, -0.5, 0.25, 0.5)
    assert (sn.alpha, sn.trained_alpha, sn.beta) == (1.0, 0.5, 0.25)
    assert sn.inputs == (Edge("sum"),)
    assert weighted(after, "c1") is weighted(before, "c1")
    assert after.history == ("sn: alpha 0.5 folded into threshold and reset",)


@pytest.mark.parametrize(
    "rules", [{"reset": "subtract"}, {"fires_at": "gt"}, {"reset": "subtract", "v_threshold": 0.5}]
)
@pytest.mark.parametrize("alpha", [0.5, -2.0])
def test_a_rescaled_threshold_keeps_the_reset_and_threshold_rules(alpha: float, rules: dict[str, Any]) -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    sn = build.neuron("sn", build.plus("sum", build.square("c1", stem), stem), alpha=alpha, beta=0.5, **rules)
    after = check(build, build.graph(sn))
    assert neuron(after, "sn").reset == rules.get("reset", "hard")
    assert neuron(after, "sn").fires_at == rules.get("fires_at", "ge")


def test_a_convolution_that_others_read_keeps_its_weights_under_a_positive_alpha() -> None:
    build = Exact()
    conv = build.square("conv", "input")
    before = build.graph(build.neuron("left", conv, alpha=0.5), build.neuron("right", conv, alpha=2.0))
    after = check(build, before)
    assert weighted(after, "conv") is weighted(before, "conv")
    assert (neuron(after, "left").v_threshold, neuron(after, "right").v_threshold) == (2.0, 0.5)


def test_a_scaled_potential_scales_the_scale_that_was_there() -> None:
    build = Exact()
    sn = build.neuron("sn", build.plus("sum", "input", "input"), alpha=0.5, potential_scale=frozen(4.0))
    after = fold(build.graph(sn))
    assert neuron(after, "sn").potential_scale == 2.0


def test_alpha_per_neuron_goes_into_thresholds_per_neuron() -> None:
    build = Exact()
    alpha = build.rng.choice([0.5, 1.0, 2.0], (CHANNELS, 4, 4))
    after = check(build, build.graph(build.neuron("sn", build.square("conv", "input"), alpha=alpha, beta=0.5)))
    np.testing.assert_array_equal(neuron(after, "sn").v_threshold, 1.0 / alpha)


# --- alpha, rule (c): negative, something in the way: the sign goes into the branches


def test_a_negative_alpha_negates_what_is_its_own_copies_what_is_shared_and_scales_what_has_no_weights() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    own, shared = build.square("own", stem), build.square("shared", stem)
    other = build.neuron("other", shared, alpha=1.0, beta=0.5)
    sn = build.neuron("sn", build.plus("sum", own, shared, stem), alpha=-0.5, beta=0.5, v_reset=-0.25)
    before = build.graph(sn, other)
    after = check(build, before)
    np.testing.assert_array_equal(weighted(after, "own").weight, -weighted(before, "own").weight)
    assert weighted(after, "shared") is weighted(before, "shared")
    assert after["other"].inputs == (Edge("shared"),)
    copy = weighted(after, "shared.negated.sn")
    np.testing.assert_array_equal(copy.weight, -weighted(before, "shared").weight)
    np.testing.assert_array_equal(copy.bias, -np.asarray(weighted(before, "shared").bias))
    assert copy.inputs == (Edge("stem"),)
    minus = scale_node(after, "stem.negated.sn")
    assert (minus.factor, minus.offset, minus.inputs) == (-1.0, 0.0, (Edge("stem"),))
    assert after["sum"].inputs == (Edge("own"), Edge("shared.negated.sn"), Edge("stem.negated.sn"))
    assert neuron(after, "sn").v_threshold == 2.0
    assert neuron(after, "sn").potential_scale == 0.5
    assert after.history == ("sn: alpha -0.5 folded into threshold and reset, its sign into the branches",)


@pytest.mark.parametrize("alpha", [0.5, -0.5])
def test_one_source_added_twice_counts_twice(alpha: float) -> None:
    build = Exact()
    conv = build.square("conv", "input")
    before = build.graph(build.neuron("sn", build.plus("sum", conv, conv), alpha=alpha, beta=0.5))
    after = check(build, before)
    source = after["sum"].inputs[0].source
    assert after["sum"].inputs == (Edge(source), Edge(source))
    np.testing.assert_array_equal(weighted(after, source).weight, np.sign(alpha) * weighted(before, "conv").weight)


def test_an_identity_added_twice_gets_one_scale() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    after = check(build, build.graph(build.neuron("sn", build.plus("sum", stem, stem), alpha=-1.0, beta=0.5)))
    assert [name for name, kind in kinds(after).items() if kind == "Scale"] == ["stem.negated.sn"]


def test_an_identity_through_a_scale_is_negated_in_that_scale() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    scaled = build.scale("half", stem, 0.5, 0.25)
    before = build.graph(build.neuron("sn", build.plus("sum", scaled, stem), alpha=-0.5, beta=0.5))
    after = check(build, before)
    assert (scale_node(after, "half").factor, scale_node(after, "half").offset) == (-0.5, -0.25)
    assert "half.negated.sn" not in after


def test_a_shared_scale_stays_and_gets_a_negating_one_behind_it() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    scaled = build.scale("half", stem, 0.5, 0.25)
    other = build.neuron("other", build.plus("s2", scaled, stem), alpha=1.0)
    before = build.graph(build.neuron("sn", build.plus("sum", scaled, stem), alpha=-0.5, beta=0.5), other)
    after = check(build, before)
    assert scale_node(after, "half") is scale_node(before, "half")
    assert scale_node(after, "half.negated.sn").inputs == (Edge("half"),)
    assert scale_node(after, "half.negated.sn").factor == -1.0


def test_a_neuron_that_reads_another_directly_is_negated_by_a_scale() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    after = check(build, build.graph(build.neuron("sn", stem, alpha=-0.5, beta=-0.5, v_threshold=0.25), stem))
    assert after["sn"].inputs == (Edge("stem.negated.sn"),)


def test_mixed_signs_and_zeros_per_channel_with_an_identity() -> None:
    alpha = np.array([0.5, 0.0, -2.0, -0.0]).reshape(4, 1, 1)
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    total = build.plus("sum", build.square("own", stem), stem)
    before = build.graph(build.neuron("sn", total, alpha=alpha, beta=0.5, v_reset=-0.25))
    after = check(build, before)
    sign = np.array([1.0, 0.0, -1.0, 0.0]).reshape(4, 1, 1)
    np.testing.assert_array_equal(scale_node(after, "stem.negated.sn").factor, sign)
    np.testing.assert_array_equal(
        weighted(after, "own").weight, sign.reshape(4, 1, 1, 1) * weighted(before, "own").weight
    )
    sn = neuron(after, "sn")
    np.testing.assert_array_equal(sn.v_threshold.ravel(), [2.0, 1.0, 0.5, 1.0])
    np.testing.assert_array_equal(sn.potential_scale.ravel(), [0.5, 1.0, 2.0, 1.0])


def test_mixed_signs_per_neuron_become_a_scale_per_neuron() -> None:
    build = Exact()
    alpha = build.rng.choice([0.5, -1.0, 0.0], (CHANNELS, 4, 4))
    after = check(build, build.graph(build.neuron("sn", build.square("conv", "input"), alpha=alpha, beta=0.5)))
    np.testing.assert_array_equal(scale_node(after, "conv.negated.sn").factor, np.sign(alpha))


def test_a_negative_alpha_reaches_through_nested_sums() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    inner = build.plus("inner", build.square("a", stem), stem)
    outer = build.plus("outer", inner, build.square("b", stem), stem)
    before = build.graph(build.neuron("sn", outer, alpha=-0.5, beta=0.5))
    after = check(build, before)
    assert after["inner"].inputs == (Edge("a"), Edge("stem.negated.sn"))
    assert after["outer"].inputs == (Edge("inner"), Edge("b"), Edge("stem.negated.sn"))
    for name in "ab":
        np.testing.assert_array_equal(weighted(after, name).weight, -weighted(before, name).weight)


def test_two_negative_neurons_share_nothing_that_one_of_them_changes() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    conv = build.square("conv", stem)
    left = build.neuron("left", build.plus("s1", conv, stem), alpha=-0.5, beta=0.5)
    right = build.neuron("right", build.plus("s2", conv, stem), alpha=-1.0, beta=0.5)
    after = check(build, build.graph(left, right))
    assert {"stem.negated.left", "stem.negated.right"} <= set(kinds(after))


def test_a_shared_sum_before_a_negative_alpha_is_negated_as_a_whole() -> None:
    build = Exact()
    total = build.plus("sum", build.square("a", "input"), build.square("b", "input"))
    before = build.graph(build.neuron("sn", total, alpha=-0.5, beta=0.5), total)
    after = check(build, before)
    assert after["sn"].inputs == (Edge("sum.negated.sn"),)
    assert weighted(after, "a") is weighted(before, "a")


def test_new_nodes_do_not_take_names_that_are_taken() -> None:
    build = Exact()
    stem = build.neuron("stem", build.square("c0", "input"), alpha=1.0)
    taken = build.square("stem.negated.sn", stem)
    after = check(build, build.graph(build.neuron("sn", stem, alpha=-1.0, v_threshold=-0.5), taken))
    assert kinds(after)["stem.negated.sn"] == "Conv2d"
    assert after["sn"].inputs == (Edge("stem.negated.sn2"),)


@pytest.mark.parametrize("alpha", [0.5, -0.5])
def test_recurrence_is_folded_with_its_delay(alpha: float) -> None:
    """A layer that hears itself through weights, and directly."""
    build = Exact()
    conv = build.square("conv", "input")
    total = build.add(Add(name="sum", inputs=(Edge(conv), Edge("back", 1), Edge("sn", 2))))
    build.neuron("sn", total, alpha=alpha, beta=0.5)
    build.square("back", "sn")
    after = check(build, build.graph("sn", timesteps=6))
    delays = [edge.delay for edge in after["sum"].inputs]
    assert delays == [0, 1, 2]
    if alpha < 0:
        assert after["sum"].inputs[2] == Edge("sn.negated.sn", 2)


@pytest.mark.parametrize("alpha", [0.5, -0.5])
def test_a_delayed_branch_with_a_bias_is_folded_into_its_weights(alpha: float) -> None:
    build = Exact()
    conv = build.square("conv", "input")
    build.add(Neuron(name="sn", inputs=(Edge(conv, 2),), alpha=frozen(alpha), beta=frozen(0.5)))
    after = check(build, build.graph("sn"))
    assert after["sn"].inputs == (Edge("conv", 2),)
    assert neuron(after, "sn").potential_scale == 1.0


def test_a_state_that_starts_elsewhere_is_rescaled_with_the_layer() -> None:
    build = Exact()
    state = (StateVariable("membrane", 0.5),)
    sn = build.neuron("sn", build.plus("sum", "input", "input"), alpha=0.25, beta=0.5, state=state)
    after = check(build, build.graph(sn))
    assert neuron(after, "sn").state == (StateVariable("membrane", 2.0),)


def test_a_state_that_starts_elsewhere_cannot_be_rescaled_by_channel_and_is_refused() -> None:
    build = Exact()
    state = (StateVariable("membrane", 0.5),)
    alpha = np.linspace(0.25, 0.75, CHANNELS).reshape(-1, 1, 1)
    sn = build.neuron("sn", build.plus("sum", "input", "input"), alpha=alpha, state=state)
    with pytest.raises(DalifError, match=r"'sn' \(Neuron\): a state that does not start at 0") as caught:
        fold(build.graph(sn))
    assert caught.value.code is Code.BAD_GRAPH


def test_a_state_that_starts_elsewhere_is_kept_where_the_weights_take_alpha() -> None:
    build = Exact()
    state = (StateVariable("membrane", 0.5),)
    sn = build.neuron("sn", build.square("conv", "input"), alpha=-0.5, beta=0.5, state=state)
    assert neuron(check(build, build.graph(sn)), "sn").state == state


# --- alpha, rule (d): zero


def test_a_layer_with_alpha_0_is_fed_zeros_and_its_branches_go() -> None:
    build = Exact()
    dead = build.neuron("dead", build.square("only_for_dead", "input"), alpha=0.0, beta=0.5)
    live = build.neuron("live", build.square("conv", "input"), alpha=0.5)
    after = check(build, build.graph(dead, live))
    assert after["dead"].inputs == (Edge("dead.zeros"),)
    assert isinstance(after["dead.zeros"], Zeros)
    assert after.types["dead.zeros"].shape == (CHANNELS, 4, 4)
    assert "only_for_dead" not in after
    assert (neuron(after, "dead").alpha, neuron(after, "dead").trained_alpha) == (1.0, 0.0)
    assert after.history[0] == "dead: alpha is 0, its input is dropped"


def test_a_layer_with_alpha_0_still_leaks_and_may_fire() -> None:
    """Its potential moves to the leak target, which lies above the threshold."""
    build = Exact()
    dead = build.neuron("dead", build.square("conv", "input"), alpha=0.0, beta=0.5, leak_target=1.5, v_reset=-0.5)
    after = check(build, build.graph(dead))
    fired = simulate(after, build.batch()).spikes["dead"].unpack()
    assert fired[:, 1].all()
    assert not fired[:, 0].any()


def test_alpha_0_for_every_channel_is_alpha_0() -> None:
    build = Exact()
    dead = build.neuron("dead", build.square("conv", "input"), alpha=np.array([0.0, -0.0, 0.0, 0.0]).reshape(4, 1, 1))
    live = build.neuron("live", build.square("c2", "input"), alpha=0.5)
    assert "dead.zeros" in check(build, build.graph(dead, live))


def test_alpha_1_is_left_as_it_is() -> None:
    build = Exact()
    before = build.graph(build.neuron("sn", build.square("conv", "input"), alpha=1.0))
    after = fold(before)
    assert after["conv"] is before["conv"]
    assert after["sn"] is before["sn"]
    assert after.history == ()


# --- BatchNorm


def test_batchnorm_goes_into_the_convolution_that_only_it_reads() -> None:
    build = Exact()
    before = build.graph(build.neuron("sn", build.exact_norm("bn", build.square("conv", "input")), alpha=1.0))
    after = check(build, before, fold_batchnorm)
    assert kinds(after) == {k: v for k, v in kinds(before).items() if k != "bn"}
    assert after["sn"].inputs == (Edge("conv"),)
    norm = before["bn"]
    assert isinstance(norm, BatchNorm)
    gain = norm.weight / np.sqrt(norm.variance + norm.epsilon)
    conv = weighted(before, "conv")
    np.testing.assert_array_equal(weighted(after, "conv").weight, conv.weight * gain.reshape(-1, 1, 1, 1))
    np.testing.assert_array_equal(weighted(after, "conv").bias, gain * (np.asarray(conv.bias) - norm.mean) + norm.bias)
    assert after.history == ("bn: BatchNorm folded into the weights of conv",)


def test_batchnorm_gives_a_layer_without_bias_its_offset() -> None:
    build = Exact(shape=(6,))
    x = build.exact_norm("bn", build.linear("fc", "input", (6, 5), bias=False), channels=5)
    after = check(build, build.graph(build.neuron("sn", x, alpha=0.5)))
    assert weighted(after, "fc").bias is not None


def test_a_chain_of_batchnorms_and_scales_goes_into_one_convolution() -> None:
    build = Exact()
    x = build.exact_norm("bn1", build.square("conv", "input"))
    x = build.exact_norm("bn2", build.scale("scale", x, np.array([0.5, -1.0, 2.0, 1.0]).reshape(4, 1, 1), 0.25))
    after = check(build, build.graph(build.neuron("sn", x, alpha=-0.5)))
    assert list(kinds(after)) == ["input", "conv", "sn", "ends", "readout"]
    assert [line.split(":")[0] for line in after.history] == ["bn1", "scale", "bn2", "sn"]
    assert "scale: Scale folded into the weights of conv" in after.history


def test_batchnorms_of_one_convolution_become_copies_of_it() -> None:
    build = Exact()
    conv = build.square("conv", "input")
    left = build.neuron("left", build.exact_norm("bn1", conv), alpha=0.5)
    right = build.neuron("right", build.exact_norm("bn2", conv), alpha=-0.5)
    after = check(build, build.graph(left, right))
    assert kinds(after)["bn1"] == kinds(after)["bn2"] == "Conv2d"
    assert "conv" not in after, "nobody reads the original any more"
    assert "bn1: BatchNorm folded into a copy of conv, which others read too" in after.history


def test_a_batchnorm_beside_a_plain_reader_is_a_copy_and_the_original_stays() -> None:
    build = Exact()
    conv = build.square("conv", "input")
    left = build.neuron("left", build.exact_norm("bn", conv), alpha=1.0)
    right = build.neuron("right", conv, alpha=1.0)
    before = build.graph(left, right)
    after = check(build, before)
    assert after["conv"] is before["conv"]
    assert after["right"].inputs == (Edge("conv"),)


def test_a_batchnorm_with_two_batchnorms_behind_it() -> None:
    build = Exact()
    first = build.exact_norm("bn0", build.square("conv", "input"))
    left = build.neuron("left", build.exact_norm("bn1", first), alpha=0.5)
    right = build.neuron("right", build.exact_norm("bn2", first), alpha=1.0)
    after = check(build, build.graph(left, right, first))
    assert {name: kind for name, kind in kinds(after).items() if name.startswith(("bn", "conv"))} == {
        "conv": "Conv2d",
        "bn1": "Conv2d",
        "bn2": "Conv2d",
    }


def test_a_batchnorm_before_padding_stays_a_scale() -> None:
    """Zero padding comes after it: an offset moved into the next layer's bias would be wrong at the borders."""
    build = Exact()
    x = build.square("conv", build.exact_norm("bn", "input"))
    after = check(build, build.graph(build.neuron("sn", x, alpha=0.5, beta=0.5)))
    assert kinds(after)["bn"] == "Scale"
    assert after["conv"].inputs == (Edge("bn"),)
    assert "bn: BatchNorm kept as a scale, since no weights before it can hold it" in after.history


@pytest.mark.parametrize("between", ["pool", "neuron", "sum of spikes"])
def test_a_batchnorm_behind_something_without_weights_stays_a_scale(between: str) -> None:
    build = Exact()
    x = build.square("conv", "input")
    if between == "pool":
        x = build.add(MaxPool2d(name="pool", inputs=(Edge(x),), kernel=(2, 2), stride=(2, 2)))
    elif between == "neuron":
        x = build.neuron("sn0", x, alpha=0.5)
    else:
        x = build.plus("sum", build.neuron("sn0", x, alpha=0.5), "input")
    after = check(build, build.graph(build.neuron("sn", build.exact_norm("bn", x), alpha=-0.5, beta=0.5)))
    assert kinds(after)["bn"] == "Scale"


def test_a_batchnorm_behind_a_sum_goes_into_its_branches_once() -> None:
    """g (a + b + c) + o: every branch gets the gain, one of them the offset; what has no weights gets a scale."""
    build = Exact()
    total = build.plus("inner", build.square("conv1", "input"), build.square("conv2", "input"))
    total = build.plus("sum", "input", total, build.square("shared", "input"))
    sn = build.neuron("sn", build.exact_norm("bn", total), alpha=-0.5, beta=0.5)
    graph = build.graph(sn, build.neuron("other", "shared", alpha=0.5))
    check(build, graph)
    after = check(build, graph, fold_batchnorm)
    assert "bn" not in after
    assert kinds(after)["input.scaled.sum"] == kinds(after)["shared.scaled.sum"] == "Scale"
    assert "bn: BatchNorm folded through sum into conv1, conv2" in after.history
    offsets = [np.any(after[name].offset) for name in ("input.scaled.sum", "shared.scaled.sum")]  # type: ignore[attr-defined]
    # The inner convolutions have biases of their own; only one node gets the offset beside them.
    norm = build.nodes[[node.name for node in build.nodes].index("bn")]
    before = {node.name: node for node in build.nodes}
    gained = [
        not np.array_equal(weighted(after, name).bias, norm.gain() * before[name].bias)  # type: ignore[attr-defined]
        for name in ("conv1", "conv2")
    ]
    assert sum([*offsets, *gained]) == 1


def test_a_batchnorm_behind_a_sum_that_others_read_stays_a_scale() -> None:
    build = Exact()
    total = build.plus("sum", build.square("conv1", "input"), build.square("conv2", "input"))
    sn = build.neuron("sn", build.exact_norm("bn", total), alpha=0.5)
    after = check(build, build.graph(sn, build.neuron("other", total, alpha=0.5)))
    assert kinds(after)["bn"] == "Scale"


def test_a_batchnorm_that_two_read_takes_no_other_gain_into_its_convolution() -> None:
    """conv - bn1 is read by a sum, which has a BatchNorm of its own, and by a neuron."""
    build = Exact()
    first = build.exact_norm("bn1", build.square("conv1", "input"))
    total = build.plus("sum", first, build.square("conv2", "input"))
    sn = build.neuron("sn", build.exact_norm("bn2", total), alpha=0.5)
    after = check(build, build.graph(sn, build.neuron("other", first, alpha=0.5)))
    assert kinds(after)["conv1.scaled.sum"] == "Scale"
    assert "bn2: BatchNorm folded through sum into conv1.scaled.sum, conv2" not in after.history
    assert "bn2: BatchNorm folded through sum into conv2" in after.history


def test_the_offset_of_a_sum_does_not_travel_over_a_delayed_edge() -> None:
    build = Exact()
    conv1, conv2 = (build.conv(name, "input", (CHANNELS, CHANNELS)) for name in ("conv1", "conv2"))
    total = build.add(Add(name="sum", inputs=(Edge(conv1, 1), Edge(conv2))))
    after = check(build, build.graph(build.neuron("sn", build.exact_norm("bn", total), alpha=0.5)))
    assert after["conv1"].bias is None  # type: ignore[attr-defined]
    assert after["conv2"].bias is not None  # type: ignore[attr-defined]
    total = (build := Exact()).add(Add(name="sum", inputs=(Edge(build.square("conv1", "input"), 1),)))
    after = check(build, build.graph(build.neuron("sn", build.exact_norm("bn", total), alpha=0.5)))
    assert kinds(after)["bn"] == "Scale"


def test_a_batchnorm_behind_a_concatenation_goes_into_its_branches_channel_by_channel() -> None:
    build = Exact()
    both = build.add(
        Concat(name="both", inputs=(Edge(build.square("conv1", "input")), Edge("input"), Edge("input", 1)))
    )
    sn = build.neuron("sn", build.exact_norm("bn", both, channels=3 * CHANNELS), alpha=0.5)
    after = check(build, build.graph(sn))
    assert kinds(after)["bn"] == "Scale"  # the offset would have to travel over the delayed edge
    both = (build := Exact()).add(
        Concat(name="both", inputs=(Edge(build.square("conv1", "input")), Edge("input"), Edge("input")))
    )
    after = check(
        build, build.graph(build.neuron("sn", build.exact_norm("bn", both, channels=3 * CHANNELS), alpha=0.5))
    )
    assert "bn" not in after
    assert after["both"].inputs == (Edge("conv1"), Edge("input.scaled.both"), Edge("input.scaled.both.2"))


def test_a_batchnorm_goes_into_a_scale_that_only_it_reads_and_beside_one_that_others_read() -> None:
    build = Exact()
    own, shared = build.scale("own", "input"), build.scale("shared", "input", 2.0)
    left = build.neuron("left", build.exact_norm("bn1", own), alpha=0.5)
    right = build.neuron("right", build.exact_norm("bn2", shared), alpha=0.5)
    after = check(build, build.graph(left, right, shared))
    assert "bn1" not in after
    assert kinds(after)["bn2"] == "Scale"
    assert after["bn2"].inputs == (Edge("shared"),)
    assert "bn1: BatchNorm folded into the factor of own" in after.history


def test_a_scale_beside_other_readers_stays_one() -> None:
    build = Exact()
    conv = build.square("conv", "input")
    sn = build.neuron("sn", build.plus("sum", build.scale("scale", conv), conv), alpha=1.0)
    before = build.graph(sn)
    after = check(build, before)
    assert after["scale"] is before["scale"]


def test_a_scale_per_neuron_does_not_fit_into_a_convolution() -> None:
    build = Exact()
    factor = build.rng.choice([0.5, 1.0, -1.0], (CHANNELS, 4, 4))
    before = build.graph(build.neuron("sn", build.scale("scale", build.square("conv", "input"), factor), alpha=1.0))
    assert check(build, before)["conv"] is before["conv"]


def test_a_batchnorm_over_a_delayed_edge_stays_a_scale() -> None:
    """Before the first value comes it sees zeros, and its offset is not zero then, whatever the bias says."""
    build = Exact()
    x = build.exact_norm("bn", Edge(build.square("conv", "input"), 1))
    before = build.graph(build.neuron("sn", x, alpha=0.5, beta=0.5))
    after = check(build, before)
    assert kinds(after)["bn"] == "Scale"
    assert after["bn"].inputs == (Edge("conv", 1),)


def test_a_folded_batchnorm_may_be_read_later() -> None:
    build = Exact()
    norm = build.exact_norm("bn", build.square("conv", "input"))
    total = build.add(Add(name="sum", inputs=(Edge(norm), Edge("sn", 1))))
    build.add(Neuron(name="sn", inputs=(Edge(total),), alpha=frozen(-0.5), beta=frozen(0.5)))
    build.add(Neuron(name="late", inputs=(Edge(norm, 2),), alpha=frozen(0.5), beta=frozen(0.5)))
    after = check(build, build.graph("sn", "late", timesteps=6))
    assert "bn" not in after
    assert after["late"].inputs == (Edge("conv", 2),)


def test_a_batchnorm_in_a_delayed_loop_is_renamed_wherever_it_is_read() -> None:
    build = Exact()
    total = build.add(Add(name="sum", inputs=(Edge("input"), Edge("bn", 1))))
    build.neuron("sn", total, alpha=0.5, beta=0.5)
    build.exact_norm("bn", build.square("conv", "sn"))
    after = check(build, build.graph("sn", timesteps=6))
    assert after["sum"].inputs == (Edge("input"), Edge("conv", 1))


def test_a_batchnorm_that_is_the_output_hands_its_place_to_the_layer_it_went_into() -> None:
    build = Exact(shape=(6,))
    sn = build.neuron("sn", build.linear("fc", "input", (6, 5)), alpha=1.0)
    build.add(Readout(name="readout", inputs=(Edge(sn),), mode="sum"))
    build.exact_norm("bn", build.linear("head", "readout", (5, 3)), channels=3)
    before = SpikingGraph(build.nodes, output="bn", timesteps=4)
    after = check(build, before)
    assert after.output == "head"
    assert "bn" not in after


def test_the_output_is_not_changed_for_a_batchnorm_that_does_not_lead_to_it() -> None:
    build = Exact(shape=(6,))
    sn = build.neuron("sn", build.linear("fc", "input", (6, 5)), alpha=1.0)
    build.add(Readout(name="readout", inputs=(Edge(sn),), mode="sum"))
    build.exact_norm("bn", build.linear("head", "readout", (5, 3)), channels=3)
    before = SpikingGraph(build.nodes, output="head", timesteps=4)
    assert check(build, before)["head"] is before["head"]


def test_a_batchnorm_straight_behind_the_readout_is_a_scale() -> None:
    build = Exact(shape=(6,))
    sn = build.neuron("sn", build.linear("fc", "input", (6, 5)), alpha=1.0)
    build.add(Readout(name="readout", inputs=(Edge(sn),), mode="sum"))
    build.exact_norm("bn", "readout", channels=5)
    after = check(build, SpikingGraph(build.nodes, output="bn", timesteps=4))
    assert (after.output, kinds(after)["bn"]) == ("bn", "Scale")


def test_the_input_stays_even_if_nobody_reads_it_any_more() -> None:
    build = Exact()
    dead = build.neuron("dead", build.square("conv", "input"), alpha=0.0, leak_target=1.5, beta=0.5)
    assert "input" in check(build, build.graph(dead))


# --- average pools


def pool(name: str, source: str, kernel: int = 2, stride: int | None = None, **options: Any) -> AvgPool2d:
    pair = (kernel, kernel)
    step = kernel if stride is None else stride
    return AvgPool2d(name=name, inputs=(Edge(source),), kernel=pair, stride=(step, step), **options)


def stem(build: Exact) -> str:
    return build.neuron("stem", build.square("c0", "input"), alpha=1.0, beta=0.5)


def test_an_average_pool_before_weights_becomes_a_sum_pool_of_counts() -> None:
    build = Exact()
    x = build.square("conv", build.add(pool("pool", stem(build))))
    before = build.graph(build.neuron("sn", x, alpha=1.0, beta=0.5))
    after = check(build, before)
    assert kinds(after)["pool"] == "SumPool2d"
    assert (after.types["pool"].kind, after.types["pool"].maximum) == ("count", 4)
    np.testing.assert_array_equal(weighted(after, "conv").weight, weighted(before, "conv").weight / 4)
    assert weighted(after, "conv").bias is weighted(before, "conv").bias
    assert after.history == ("pool: average pool to sum pool, 1/4 into conv",)


def test_an_average_pool_reaches_its_weights_through_flatten() -> None:
    build = Exact()
    build.add(pool("pool", stem(build)))
    x = build.linear("fc", build.add(Flatten(name="flatten", inputs=(Edge("pool"),))), (16, 5))
    assert kinds(check(build, build.graph(build.neuron("sn", x, alpha=0.5))))["pool"] == "SumPool2d"


def test_all_weights_that_read_the_pool_are_divided() -> None:
    build = Exact()
    build.add(pool("pool", stem(build)))
    ends = [build.square(name, "pool") for name in ("a", "b")]
    before = build.graph(build.neuron("sn", build.plus("sum", *ends), alpha=1.0))
    after = check(build, before)
    for name in "ab":
        np.testing.assert_array_equal(weighted(after, name).weight, weighted(before, name).weight / 4)
    assert after.history == ("pool: average pool to sum pool, 1/4 into a, b",)


def test_overlapping_whole_windows_are_whole() -> None:
    build = Exact()
    x = build.square("conv", build.add(pool("pool", stem(build), 2, 1)))
    assert kinds(check(build, build.graph(build.neuron("sn", x, alpha=1.0))))["pool"] == "SumPool2d"


def test_windows_that_leave_a_border_out_are_whole() -> None:
    build = Exact(shape=(CHANNELS, 5, 5))
    x = build.square("conv", build.add(pool("pool", stem(build))))
    assert kinds(check(build, build.graph(build.neuron("sn", x, alpha=1.0))))["pool"] == "SumPool2d"


def test_ceil_mode_is_whole_where_it_divides_evenly() -> None:
    build = Exact()
    x = build.square("conv", build.add(pool("pool", stem(build), ceil_mode=True)))
    assert kinds(check(build, build.graph(build.neuron("sn", x, alpha=1.0))))["pool"] == "SumPool2d"


@pytest.mark.parametrize("options", [{"padding": (1, 1)}, {"padding": (1, 1), "count_include_pad": False}])
def test_an_average_pool_with_padding_stays(options: dict[str, Any]) -> None:
    build = Exact()
    x = build.square("conv", build.add(pool("pool", stem(build), **options)))
    before = build.graph(build.neuron("sn", x, alpha=1.0))
    after = check(build, before)
    assert after["pool"] is before["pool"]
    assert after["conv"] is before["conv"]


def test_padding_is_not_whole_even_where_the_last_window_ends_inside() -> None:
    build = Exact(shape=(CHANNELS, 5, 5))
    x = build.square("conv", build.add(pool("pool", stem(build), 2, 3, padding=(1, 1))))
    assert kinds(check(build, build.graph(build.neuron("sn", x, alpha=1.0))))["pool"] == "AvgPool2d"


def test_an_average_pool_with_an_open_last_window_stays() -> None:
    build = Exact(shape=(CHANNELS, 5, 5))
    x = build.square("conv", build.add(pool("pool", stem(build), ceil_mode=True)))
    assert kinds(check(build, build.graph(build.neuron("sn", x, alpha=1.0))))["pool"] == "AvgPool2d"


@pytest.mark.parametrize("reader", ["neuron", "sum", "readout through flatten", "another pool"])
def test_an_average_pool_that_something_without_weights_reads_too_stays(reader: str) -> None:
    build = Exact()
    build.add(pool("pool", stem(build)))
    sn = build.neuron("sn", build.square("conv", "pool"), alpha=1.0)
    if reader == "neuron":
        other = build.neuron("other", "pool", alpha=1.0, v_threshold=0.5)
    elif reader == "sum":
        other = "pool"
    elif reader == "another pool":
        build.add(pool("small", "pool", 1))
        other = build.square("small_conv", "small")
    else:
        flat = [build.add(Flatten(name=f"flat_{name}", inputs=(Edge(name),))) for name in ("pool", "sn")]
        before = build.graph(*flat)
        after = check(build, before)
        assert after["pool"] is before["pool"]
        return
    before = build.graph(sn, other)
    after = check(build, before)
    assert after["pool"] is before["pool"]
    assert after["conv"] is before["conv"]


def test_of_two_pools_in_a_row_the_second_becomes_a_sum() -> None:
    build = Exact()
    build.add(pool("pool1", stem(build)))
    build.add(pool("pool2", "pool1"))
    after = check(build, build.graph(build.neuron("sn", build.square("conv", "pool2"), alpha=1.0)))
    assert (kinds(after)["pool1"], kinds(after)["pool2"]) == ("AvgPool2d", "SumPool2d")


def test_a_pool_before_a_batchnorm_stays_since_the_scale_reads_it() -> None:
    build = Exact()
    build.add(pool("pool", stem(build)))
    x = build.square("conv", build.exact_norm("bn", "pool"))
    after = check(build, build.graph(build.neuron("sn", x, alpha=1.0)))
    assert (kinds(after)["pool"], kinds(after)["bn"]) == ("AvgPool2d", "Scale")


def test_an_average_pool_read_later_becomes_a_sum_too() -> None:
    build = Exact()
    build.add(pool("pool", stem(build)))
    conv = Conv2d(name="conv", inputs=(Edge("pool", 1),), weight=build.weights(CHANNELS, CHANNELS, 1, 1))
    build.add(conv)
    after = check(build, build.graph(build.neuron("sn", "conv", alpha=1.0)))
    assert isinstance(after["pool"], SumPool2d)
    assert after["conv"].inputs == (Edge("pool", 1),)


def test_alpha_batchnorm_and_pool_meet_in_one_convolution() -> None:
    build = Exact()
    x = build.exact_norm("bn", build.square("conv", build.add(pool("pool", stem(build)))))
    before = build.graph(build.neuron("sn", x, alpha=-0.5, beta=0.5))
    after = check(build, before)
    norm = before["bn"]
    assert isinstance(norm, BatchNorm)
    expected = weighted(before, "conv").weight * norm.gain().reshape(-1, 1, 1, 1) * -0.5 / 4
    np.testing.assert_array_equal(weighted(after, "conv").weight, expected)
    assert [line.split(":")[0] for line in after.history] == ["bn", "sn", "pool"]


# --- what every pass promises


def test_a_pass_refuses_a_graph_against_its_requirement_and_names_the_node() -> None:
    build = Exact()
    graph = build.graph(build.neuron("sn", build.exact_norm("bn", build.square("conv", "input")), alpha=0.5))
    demanding = Pass("demanding", lambda graph: graph, requires=(UNIT_ALPHA, NO_BATCH_NORM))
    with pytest.raises(DalifError, match="node 'sn': the pass demanding requires that every neuron has alpha = 1") as e:
        demanding(graph)
    assert e.value.code is Code.BAD_GRAPH
    with pytest.raises(DalifError, match="node 'bn': the pass demanding requires that no BatchNorm is left"):
        demanding(fold_alpha(graph))
    assert demanding(fold(graph)) is not None


def test_a_pass_that_breaks_its_promise_is_a_fault_of_ours() -> None:
    build = Exact()
    graph = build.graph(build.neuron("sn", build.square("conv", "input"), alpha=0.5))
    lazy = Pass("lazy", lambda graph: graph, ensures=(UNIT_ALPHA,))
    with pytest.raises(DalifError, match="node 'sn': after the pass lazy, every neuron has alpha = 1 should hold") as e:
        lazy(graph)
    assert e.value.code is Code.FAULT
    satisfied = Pass("lazy", lambda graph: graph, ensures=(Property("there is a graph", lambda graph: None),))
    assert satisfied(graph) is graph


def test_folding_ensures_what_it_says() -> None:
    assert (fold_batchnorm, fold_comparison, fold_alpha, sum_pools) == FOLDING
    assert fold_comparison.ensures == (OWN_COMPARISON,)
    assert fold_batchnorm.ensures == (NO_BATCH_NORM,)
    assert fold_alpha.ensures == (UNIT_ALPHA,)


def same(one: SpikingGraph, other: SpikingGraph) -> None:
    """Both graphs have the same nodes in the same order, and every parameter is equal bit for bit."""
    assert [type(node) for node in one.nodes] == [type(node) for node in other.nodes]
    for left, right in zip(one.nodes, other.nodes, strict=True):
        assert vars(left).keys() == vars(right).keys()
        for key, value in vars(left).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, vars(right)[key], err_msg=f"{left.name}.{key}")
            else:
                assert value == vars(right)[key], f"{left.name}.{key}"
    assert one.history == other.history


@pytest.mark.parametrize("name", [*GRAPHS, *SPECIAL_GRAPHS])
def test_folding_keeps_every_spike_of_the_calibrated_graphs_and_is_idempotent(name: str) -> None:
    graph, batch = {**GRAPHS, **SPECIAL_GRAPHS}[name]()
    expected = simulate(graph, batch)
    folded = graph
    for step in FOLDING:
        folded = step(folded)
        found = simulate(folded, batch)
        for layer, train in expected.spikes.items():
            np.testing.assert_array_equal(found.spikes[layer].unpack(), train.unpack(), err_msg=f"{step.name}, {layer}")
        np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-12, atol=1e-12, err_msg=step.name)
    potentials_are_kept(graph, folded, batch)
    same(fold(folded), folded)
    assert not any(isinstance(node, BatchNorm) for node in folded.nodes)
    assert (folded.timesteps, folded.encoding, folded.class_names) == (
        graph.timesteps, graph.encoding, graph.class_names,
    )  # fmt: skip


def test_the_graph_that_is_folded_stays_as_it_was() -> None:
    graph, batch = GRAPHS["shared producer"]()
    before = {(node.name, key): value.copy() for node in graph.nodes for key, value in node.arrays().items()}
    logits = simulate(graph, batch).logits
    fold(graph)
    for node in graph.nodes:
        for key, value in node.arrays().items():
            np.testing.assert_array_equal(value, before[node.name, key])
    np.testing.assert_array_equal(simulate(graph, batch).logits, logits)


def test_what_is_done_is_told_by_node_and_rule() -> None:
    graph, _ = GRAPHS["shared producer"]()
    assert fold(graph).history == (
        "input_bn: BatchNorm kept as a scale, since no weights before it can hold it",
        "left_bn: BatchNorm folded into a copy of conv1, which others read too",
        "right_bn: BatchNorm folded into a copy of conv1, which others read too",
        "sn3_bn: BatchNorm folded into the weights of conv2",
        "left: alpha 0.5 folded into the weights of left_bn",
        "right: alpha -0.75 folded into the weights of right_bn",
        "both: alpha 0.875 folded into threshold and reset",
        "sn3: alpha 0.75 folded into the weights of conv2",
    )


# --- the comparison: a potential that is normalised before it


def exact_comparison(build: Exact, gains: Sequence[float] = (-2.0, -0.5, 0.0, 0.5, 1.0)) -> dict[str, Array]:
    """A normalisation per channel, of gains of all signs."""
    shape = (CHANNELS, 1, 1)
    return {
        "norm_gain": frozen(build.rng.choice(gains, shape)),
        "norm_mean": frozen(build.rng.integers(-2, 3, shape) / 4),
        "norm_bias": frozen(build.rng.integers(-2, 8, shape) / 8),
    }


@pytest.mark.parametrize("fires_at", ["ge", "gt"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, -0.5])
@pytest.mark.parametrize("gain", [2.0, -2.0, 0.0, None])
def test_a_normalised_potential_goes_into_the_threshold(gain: float | None, alpha: float, fires_at: str) -> None:
    build = Exact()
    norm = exact_comparison(build) if gain is None else exact_comparison(build, (gain,))
    x = build.neuron("sn0", build.square("conv", "input"), alpha=0.5)
    x = build.neuron("sn", build.square("conv2", x), alpha=alpha, beta=0.5, v_reset=-0.25, fires_at=fires_at, **norm)
    after = neuron(check(build, build.graph(x)), "sn")
    assert not after.normalised
    assert after.fires_at == fires_at
    np.testing.assert_array_equal(after.trained_alpha, alpha)
    if gain == 2.0:
        threshold = (1.0 - (norm["norm_bias"] - 2.0 * norm["norm_mean"])) / 2.0
        np.testing.assert_array_equal(after.v_threshold, threshold)


def test_a_gain_of_zero_fires_always_or_never() -> None:
    """Also where what is compared is the threshold itself, and fires or not by the rule."""
    for fires_at, expected in (("ge", [0.0, 1.0, 1.0, 1.0]), ("gt", [0.0, 0.0, 1.0, 1.0])):
        build = Exact()
        bias = np.array([0.5, 1.0, 1.5, 3.0]).reshape(CHANNELS, 1, 1)
        norm = {"norm_gain": frozen(np.zeros((CHANNELS, 1, 1))), "norm_bias": frozen(bias)}
        sn = build.neuron("sn", build.square("conv", "input"), beta=0.5, v_reset=-0.5, fires_at=fires_at, **norm)
        graph = build.finish(build.square("read", sn))
        for form in (graph, fold(graph)):
            spikes = simulate(form, build.batch()).spikes["sn"].unpack()
            np.testing.assert_array_equal(spikes.mean(axis=(0, 1, 3, 4)), expected)


def test_a_normalisation_and_a_subtracting_reset_are_refused_together() -> None:
    build = Exact()
    sn = build.neuron("sn", "input", reset="subtract", norm_gain=frozen(2.0))
    with pytest.raises(DalifError, match=r"node 'sn' .*only a hard reset is defined beside it") as refused:
        build.graph(sn)
    assert refused.value.code is Code.BAD_GRAPH


@pytest.mark.parametrize("gain", [-1.0, 0.0])
def test_a_state_that_starts_elsewhere_cannot_be_mirrored_and_is_refused(gain: float) -> None:
    build = Exact()
    state = (StateVariable("membrane", 0.5),)
    graph = build.graph(build.neuron("sn", "input", alpha=1.0, state=state, norm_gain=frozen(gain)))
    with pytest.raises(DalifError, match=r"node 'sn' .*cannot be mirrored") as refused:
        fold(graph)
    assert refused.value.code is Code.BAD_GRAPH


# --- random graphs

Choose = Callable[[Sequence[Any]], Any]


def random_graph(choose: Choose, seed: int) -> tuple[Exact, SpikingGraph]:
    """A random network of one feature shape: every node reads any nodes before it, some of them later in time."""
    build = Exact(seed, (CHANNELS, 3, 3))
    names = ["input"]
    alphas = [1.0, 0.5, -0.5, -1.0, 2.0, 0.0]
    for number in range(choose([3, 6, 10])):
        kind = choose(["conv", "conv", "bn", "scale", "plus", "concat", "pool", "neuron", "neuron"])
        name = f"{kind}{number}"
        edge = Edge(choose(names), choose([0, 0, 0, 1]))
        node: Node
        if kind == "conv":
            node = Conv2d(
                name=name, inputs=(edge,), weight=build.weights(CHANNELS, CHANNELS, 3, 3), padding=(1, 1),
                bias=choose([None, build.weights(CHANNELS)]),
            )  # fmt: skip
        elif kind == "bn":
            names.append(build.exact_norm(name, edge))
            continue
        elif kind == "scale":
            shape = choose([(), (CHANNELS, 1, 1), (CHANNELS, 3, 3)])
            factor = build.rng.choice([0.5, -1.0, 0.0, 2.0], shape)
            node = Scale(name=name, inputs=(edge,), factor=frozen(factor), offset=frozen(choose([0.0, 0.25])))
        elif kind == "plus":
            node = Add(name=name, inputs=(edge, Edge(choose(names)), Edge(choose(names))))
        elif kind == "concat":
            both = build.add(Concat(name=name, inputs=(edge, Edge(choose(names)))))
            if choose([True, False]):
                both = build.exact_norm(f"{name}.bn", both, channels=2 * CHANNELS)
            names.append(build.conv(f"{name}.conv", both, (2 * CHANNELS, CHANNELS), kernel=1, padding=0))
            continue
        elif kind == "pool":
            size, padding = choose([(1, 0), (3, 1)])
            if size == 3:  # a ninth is no power of two: a maximum in its place
                node = MaxPool2d(name=name, inputs=(edge,), kernel=(3, 3), stride=(1, 1), padding=(padding, padding))
            else:
                node = AvgPool2d(name=name, inputs=(edge,), kernel=(1, 1), stride=(1, 1))
        else:
            shape = choose([(), (), (CHANNELS, 1, 1), (CHANNELS, 3, 3)])
            alpha = choose(alphas) if shape == () else build.rng.choice(alphas, shape)
            node = Neuron(
                name=name, inputs=(edge,), alpha=frozen(alpha), beta=frozen(choose([0.5, 0.0, 1.0, -0.5])),
                v_threshold=frozen(choose([1.0, 0.5])), v_reset=frozen(choose([0.0, -0.25])),
                leak_target=frozen(choose([0.0, 0.0, 0.25])), reset=choose(["hard", "hard", "subtract"]),
                fires_at=choose(["ge", "ge", "gt"]),
            )  # fmt: skip
            if node.reset == "hard" and choose([True, False]):
                node = replace(node, **exact_comparison(build))
        names.append(build.add(node))
    ends = names[-2:] if choose([True, False]) else names[1:]
    return build, build.finish(build.plus("ends", *ends), timesteps=4, mode=choose(["mean", "last", "max"]))


@given(data=st.data(), seed=st.integers(0, 2**20))
@settings(max_examples=150, deadline=None)
def test_random_graphs_fire_as_before(data: st.DataObject, seed: int) -> None:
    build, graph = random_graph(lambda options: data.draw(st.sampled_from(list(options))), seed)
    batch = build.batch()
    expected = simulate(graph, batch)
    folded = graph
    for step in FOLDING:
        folded = step(folded)
        found = simulate(folded, batch)
        for layer, train in found.spikes.items():
            np.testing.assert_array_equal(
                train.unpack(), expected.spikes[layer].unpack(), err_msg=f"{step.name} {layer}"
            )
        np.testing.assert_array_equal(found.logits, expected.logits, err_msg=step.name)
    np.testing.assert_array_equal(simulate(fold(folded), batch).logits, expected.logits, err_msg="folded twice")
    assert all(np.all(sn.alpha == 1.0) for sn in folded.neurons)
    assert not any(isinstance(node, BatchNorm) for node in folded.nodes)


def test_the_random_graphs_meet_every_rule_and_fire() -> None:
    lines = ""
    rates: list[float] = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        build, graph = random_graph(lambda options, rng=rng: options[rng.integers(len(options))], seed)  # type: ignore[misc]
        lines += history(fold(graph)) + "\n"
        rates += [train.count() / train.neuron_steps for train in simulate(graph, build.batch()).spikes.values()]
    for phrase in (
        "folded into the weights of", "folded into a copy of", "kept as a scale", "folded into the factor of",
        "alpha is 0", "folded into threshold and reset\n", "folded through", " mirrored", " constant",
        "its sign into the branches", "average pool to sum pool",
    ):  # fmt: skip
        assert phrase in lines, phrase
    assert np.mean([0.0 < rate < 1.0 for rate in rates]) > 0.5


def test_folding_a_layer_that_hears_a_dropped_one() -> None:
    """What only a layer with alpha = 0 read is gone, its readers elsewhere are not."""
    build = Exact()
    conv = build.square("conv", "input")
    dead = build.neuron("dead", build.exact_norm("bn", conv), alpha=0.0)
    live = build.neuron("live", build.square("conv2", dead), alpha=-0.5)
    other = build.neuron("other", conv, alpha=0.5)
    after = check(build, build.graph(live, other))
    assert "bn" not in after
    assert after["other"].inputs == (Edge("conv"),)
    assert replace(after["conv"], name="x").inputs == (Edge("input"),)


def test_a_layer_with_alpha_0_keeps_the_layers_that_feed_only_it() -> None:
    build = Build(40, (6,), temporal=True)
    batch = np.random.default_rng(41).uniform(0, 2, (5, 4, 6)).astype(np.float32)
    x = build.neuron("sn1", build.linear("fc1", "input", (6, 8)), alpha=0.5, beta=0.5, v_threshold=0.3)
    x = build.neuron("dead", build.linear("fc2", x, (8, 8)), alpha=0.0, beta=0.5)
    graph = build.finish(build.linear("fc3", x, (8, 3)))
    folded = fold(graph)
    assert [neuron.name for neuron in folded.neurons] == ["sn1", "dead"]
    before, after = simulate(graph, batch), simulate(folded, batch)
    assert before.spikes["sn1"].count() > 0
    for name, train in before.spikes.items():
        assert not train.differing(after.spikes[name]).any()
