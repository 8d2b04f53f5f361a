"""The error bound holds for float32 sums in any order, and it is not so wide as to mean nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dalif_deploy import operators
from dalif_deploy.equivalence import Arithmetic, NeuronStep, judge, replay, simulate
from dalif_deploy.equivalence.membrane import MembraneError
from dalif_deploy.equivalence.rounding import node_error
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import BatchNorm, Conv2d, Edge, Flatten, Linear, Neuron, SumPool2d, TensorType, frozen
from dalif_deploy.operators import evaluate
from dalif_deploy.passes import fold
from dalif_deploy.recording import SpikeTrain
from tests.float32 import float32_run
from tests.graphs import GRAPHS, SPECIAL_GRAPHS, Build
from tests.hard_graphs import GRAPHS as HARD_GRAPHS

DECAY = [name for name in GRAPHS if "subtract" not in name and "beta 1" not in name and "uint8" not in name]
"""Graphs that a NIR simulator could run: hard reset, and a leak (an IF has no decay formula)."""


def ratios(
    graph: SpikingGraph, batch: NDArray[np.generic], rng: np.random.Generator | None, update: str = "sum"
) -> dict[str, float]:
    """By layer, the largest |V32 - V64| / bound over all neuron-steps of one float32 run, on its own history."""
    found = float32_run(graph, graph.input_spec.module_input(batch), rng, update=update)
    history = {name: SpikeTrain.pack(spikes) for name, (_, spikes) in found.items()}
    largest: dict[str, float] = dict.fromkeys(found, 0.0)

    def visit(step: NeuronStep) -> None:
        assert step.bound is not None
        bounded = np.isfinite(step.bound)  # float32 may overflow elsewhere
        with np.errstate(invalid="ignore"):
            gap = np.where(bounded, np.abs(found[step.neuron.name][0][:, step.t] - step.potential), 0.0)
        assert (step.bound > 0).all()
        largest[step.neuron.name] = max(largest[step.neuron.name], float((gap / step.bound).max()))

    replay(graph, batch, visit, history=history, update=update)  # type: ignore[arg-type]
    return largest


@pytest.mark.parametrize("name", [*GRAPHS, *SPECIAL_GRAPHS])
def test_no_order_of_summation_exceeds_the_bound(name: str) -> None:
    training, batch = {**GRAPHS, **SPECIAL_GRAPHS}[name]()
    graph = fold(training)
    for seed in range(2):
        for layer, ratio in ratios(graph, batch, np.random.default_rng(seed)).items():
            assert ratio <= 1.0, layer


@pytest.mark.parametrize("name", HARD_GRAPHS)
def test_no_order_of_summation_exceeds_the_bound_on_hard_graphs(name: str) -> None:
    training, batch = HARD_GRAPHS[name]()
    for layer, ratio in ratios(fold(training), batch, np.random.default_rng(0)).items():
        assert ratio <= 1.0, layer


@pytest.mark.parametrize("form", ["gain (v - mean) + bias", "gain v + offset"])
def test_a_normalised_potential_stays_within_its_bound(form: str) -> None:
    """float32 potentials that are off by what their bound says, compared as either form computes it."""
    rng = np.random.default_rng(3)
    shape = (400, 6)
    neuron = Neuron(
        name="sn", inputs=(Edge("x"),), alpha=frozen(1.0), beta=frozen(0.5), norm_gain=frozen(rng.normal(0, 3, 6)),
        norm_mean=frozen(rng.normal(0, 2, 6)), norm_bias=frozen(rng.normal(0, 2, 6)),
    )  # fmt: skip
    exact = rng.normal(0, 1, shape)
    seen = exact.astype(np.float32)
    error = np.abs(seen.astype(np.float64) - exact)
    gain, mean, bias = (values.astype(np.float32) for values in (neuron.norm_gain, neuron.norm_mean, neuron.norm_bias))
    found = gain * (seen - mean) + bias if form.startswith("gain (") else gain * seen + (bias - gain * mean)
    assert found.dtype == np.float32
    expected = neuron.norm_gain * (exact - neuron.norm_mean) + neuron.norm_bias
    gap = np.abs(found.astype(np.float64) - expected)
    bound = MembraneError(neuron, "sum").compared(exact, error)
    assert (gap <= bound).all()
    assert (gap / bound).max() > 0.1
    assert (gap > error).any()  # the bound of V alone would not do


@pytest.mark.parametrize("by", ["division", "reciprocal"])
@pytest.mark.parametrize("side", range(2, 9))
def test_a_sum_pool_that_is_a_mean_times_its_size(side: int, by: str) -> None:
    """Counts of spikes come back exactly from 2x2, 3x3, 4x4 and 8x8 windows; from others within the bound."""
    size = side * side
    pool = SumPool2d(name="pool", inputs=(Edge("x"),), kernel=(side, side), stride=(side, side))
    spikes = (np.arange(size) < np.arange(size + 1)[:, None]).astype(np.float64).reshape(-1, 1, side, side)
    value = evaluate(pool, [spikes])
    types = [TensorType((1, side, side), True, "spike", 1)]
    mean, divisor = value.astype(np.float32), np.float32(size)
    mean = mean / divisor if by == "division" else mean * (np.float32(1.0) / divisor)
    gap = np.abs((mean * divisor).astype(np.float64) - value)
    bounds = {way: node_error(pool, [spikes], [0 * spikes], types, value, way) for way in ("sum", "mean")}
    assert not bounds["sum"].any()  # type: ignore[union-attr]
    assert (gap <= bounds["mean"]).all()
    assert bounds["mean"].any() == (side not in (2, 3, 4, 8))  # type: ignore[union-attr]
    if side in (5, 7):
        assert (gap > bounds["sum"]).any()


def test_a_mean_times_its_size_of_real_values_stays_within_its_bound() -> None:
    rng = np.random.default_rng(4)
    pool = SumPool2d(name="pool", inputs=(Edge("x"),), kernel=(5, 5), stride=(5, 5))
    x = rng.normal(0, 1, (2000, 1, 5, 5)).astype(np.float32)
    total = np.zeros((2000, 1, 1, 1), np.float32)
    for place in rng.permutation(25):
        total[:, 0, 0, 0] += x[:, 0, place // 5, place % 5]
    found = (total / np.float32(25) * np.float32(25)).astype(np.float64)
    wide = x.astype(np.float64)
    value = evaluate(pool, [wide])
    bound = node_error(pool, [wide], [0 * wide], [TensorType((1, 5, 5), True)], value, "mean")
    assert (np.abs(found - value) <= bound).all()


@pytest.mark.parametrize("name", DECAY)
def test_the_decay_formula_stays_within_its_own_bound(name: str) -> None:
    training, batch = GRAPHS[name]()
    for layer, ratio in ratios(fold(training), batch, np.random.default_rng(0), "decay").items():
        assert ratio <= 1.0, layer


def test_the_decay_formula_would_exceed_the_bound_of_the_sum() -> None:
    """Which is why a runtime declares its formula: where little of V is kept, v + k (x - v) still rounds on the
    scale of v."""
    build = Build(1, (8,), temporal=True)
    batch = np.random.default_rng(2).uniform(0.5, 1.0, (4, 6, 8)).astype(np.float32)
    batch[:, 1::2] *= 1e-5
    graph = build.finish(
        build.linear("fc2", build.neuron("sn", build.linear("fc", "input", (8, 400), bias=False), alpha=1.0,
                                         beta=0.001, v_threshold=50.0), (400, 3)), timesteps=6,
    )  # fmt: skip
    found = float32_run(graph, batch, np.random.default_rng(0), update="decay")
    history = {name: SpikeTrain.pack(spikes) for name, (_, spikes) in found.items()}
    beyond = {"sum": 0, "decay": 0}
    for update in beyond:

        def visit(step: NeuronStep, update: str = update) -> None:
            gap = np.abs(found["sn"][0][:, step.t] - step.potential)
            beyond[update] += int(np.count_nonzero(gap > step.bound))

        replay(graph, batch, visit, history=history, update=update)  # type: ignore[arg-type]
    assert beyond["decay"] == 0
    assert beyond["sum"] > 0


@pytest.mark.parametrize("name", ["plain", "beta 1", "identity residual", "two-branch residual", "per channel"])
def test_the_bound_is_reached_to_a_tenth_in_every_layer(name: str) -> None:
    """10^5 neuron-steps or all there are; a bound a hundred times too wide would certify nothing."""
    training, batch = GRAPHS[name]()
    graph = fold(training)
    largest = {neuron.name: 0.0 for neuron in graph.neurons}
    for seed in range(6):
        for layer, ratio in ratios(graph, batch, np.random.default_rng(seed)).items():
            largest[layer] = max(largest[layer], ratio)
    for layer, ratio in largest.items():
        assert ratio >= 0.1, layer


@pytest.mark.parametrize("name", [name for name in GRAPHS if "ties" not in name])
def test_training_graphs_and_folded_graphs_are_both_certified(name: str) -> None:
    training, batch = GRAPHS[name]()
    spikes = simulate(training, batch).spikes
    for graph in (training, fold(training)):
        found = judge(graph, batch, spikes, Arithmetic())
        assert not found.contradictions
        steps = sum(train.neuron_steps for train in spikes.values())
        assert len(found.uncertain) <= 20e-6 * steps + 1
        assert found.certified.sum() >= len(batch) - 1


def test_a_tie_is_uncertain_and_its_sample_not_certified() -> None:
    training, batch = GRAPHS["ties"]()
    training = training.replaced({n.name: replace(n, leak_target=frozen(0.25)) for n in training.neurons})
    found = judge(training, batch, simulate(training, batch).spikes, Arithmetic())
    assert any(step.margin == 0.0 for step in found.uncertain)
    assert not found.certified[sorted({step.sample for step in found.uncertain})].any()


def test_float64_is_bounded_two_to_the_25_times_closer() -> None:
    training, batch = GRAPHS["plain"]()
    spikes = simulate(training, batch).spikes
    wide, narrow = (judge(training, batch, spikes, Arithmetic(precision)) for precision in ("float32", "float64"))
    assert wide.closest is not None
    assert narrow.closest is not None
    assert narrow.closest.bound == pytest.approx(wide.closest.bound * 2.0**-25, rel=1e-5)


@st.composite
def networks(draw: st.DrawFn) -> tuple[SpikingGraph, NDArray[np.float32], int]:
    """Random two-layer networks whose weights are ordinary, subnormal, huge, equal or cancelling, and whose inputs make
    up for the weights' size, or do not."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["normal", "tiny", "huge", "overflowing", "equal", "cancelling", "dyadic"]))
    scale = {"tiny": 1e-41, "huge": 1e30, "overflowing": 8e37}.get(kind, 1.0)
    inputs = draw(st.sampled_from([1.0, {"tiny": 1e30, "huge": 1e-30, "overflowing": 1e-38}.get(kind, 1.0)]))
    weight = rng.normal(0.3, 1.0, (5, 2, 3, 3))
    if kind == "equal":
        weight = np.full_like(weight, rng.normal())
    elif kind in ("cancelling", "overflowing"):
        weight[:, 1] = -weight[:, 0] * (1 + 1e-7 * rng.normal(size=weight[:, 1].shape))
    elif kind == "dyadic":
        weight = np.round(weight * 8) / 8
    bias = scale * rng.normal(0, 0.3, 5) if draw(st.booleans()) else None
    beta = draw(st.sampled_from([0.0, 0.3, 0.7615941762924194, 0.999, 1.0, -0.4, 1 / 3]))
    size = scale * inputs
    neuron = {
        "alpha": frozen(1.0), "beta": frozen(beta), "v_threshold": frozen(size * draw(st.sampled_from([1.0, 0.7]))),
        "v_reset": frozen(size * draw(st.sampled_from([0.0, -0.3]))),
        "reset": draw(st.sampled_from(["hard", "subtract"])), "fires_at": draw(st.sampled_from(["ge", "gt"])),
    }  # fmt: skip
    build = Build(seed, (2, 5, 5), temporal=True)
    build.add(
        Conv2d(
            name="conv", inputs=(Edge("input"),), weight=frozen(scale * weight),
            bias=None if bias is None else frozen(bias), padding=(1, 1),
        )
    )  # fmt: skip
    build.add(Neuron(name="sn", inputs=(Edge("conv"),), **neuron))
    x = build.conv("conv2", "sn", (5, 4))
    if draw(st.booleans()):
        x = build.plus("add", x, build.conv("side", "sn", (5, 4), kernel=1, padding=0))
    x = build.neuron("sn2", x, alpha=1.0, beta=beta, v_threshold=0.6)
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    graph = build.finish(build.linear("fc", x, (100, 3)), timesteps=4)
    return graph, (inputs * rng.normal(0.2, 1.0, (3, 4, 2, 5, 5))).astype(np.float32), seed


@settings(max_examples=60, deadline=None)
@given(networks())
def test_random_networks_give_no_counter_example(network: tuple[SpikingGraph, NDArray[np.float32], int]) -> None:
    graph, batch, seed = network
    with np.errstate(under="ignore", over="ignore", invalid="ignore"):
        for layer, ratio in ratios(graph, batch, np.random.default_rng(seed)).items():
            assert ratio <= 1.0, layer


def bound_of(weights: list[float], inputs: list[float]) -> tuple[float, float]:
    """The exact sum of weights times inputs, and the bound on a float32 program's."""
    node = Linear(name="fc", inputs=(Edge("x"),), weight=frozen(np.array([weights])))
    x = np.array([inputs])
    value = evaluate(node, [x])
    error = node_error(node, [x], [0 * x], [TensorType((len(inputs),), True)], value)
    assert error is not None
    return value.item(), error.item()


def test_a_sum_that_may_overflow_on_the_way_has_no_bound() -> None:
    """Its value is far from overflow, and another order gives the opposite infinity."""
    weights = np.float32([3e38, 3e38, -3e38, -2.9e38])
    with np.errstate(over="ignore"):
        up = ((weights[0] + weights[1]) + weights[2]) + weights[3]
        down = ((weights[2] + weights[3]) + weights[0]) + weights[1]
    assert (up, down) == (np.inf, -np.inf)
    value, error = bound_of(weights.tolist(), [1.0] * 4)
    assert 9e36 < value < 2e37
    assert error == np.inf
    assert bound_of((weights / 8).tolist(), [1.0] * 4)[1] < 1e32


@pytest.mark.parametrize("flush", [False, True])
def test_weights_below_the_normal_range_stay_within_the_bound(flush: bool) -> None:
    """Their rounding is not relative, and a backend may take them for zero: large inputs make it count."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        weights, inputs = rng.uniform(1e-41, 1e-38, 6), rng.normal(0, 1e34, 6).astype(np.float32)
        narrow = np.where(flush, 0.0, weights.astype(np.float32)).astype(np.float32)
        found = np.float32(0.0)
        for product in narrow * inputs:
            found = found + product
        value, error = bound_of(weights.tolist(), inputs.astype(np.float64).tolist())
        assert abs(float(found) - value) <= error
        if flush:
            assert abs(float(found) - value) > 1e-6 * np.abs(weights * inputs).sum()


def test_inputs_below_the_normal_range_may_be_taken_for_zero() -> None:
    build = Build(1, (2,))
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[1e38, 0.5]])))
    build.neuron("sn", "fc", alpha=1.0, beta=0.0, v_threshold=0.5)
    graph = build.finish("sn", timesteps=1)
    found: list[NeuronStep] = []
    replay(graph, np.array([[1e-39, 1.0]], np.float32), found.append, update="sum")
    assert found[0].bound is not None
    assert 0.59 < found[0].potential.item() < 0.61
    assert 0.1 < found[0].bound.item() < 0.11


def test_a_membrane_that_may_overflow_has_no_bound_until_a_reset() -> None:
    build = Build(1, (1,), temporal=True)
    build.add(Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[1e38]])))
    build.neuron("sn", "fc", alpha=1.0, beta=1.0, v_threshold=1.0)
    graph = build.finish("sn", timesteps=5)
    found: list[NeuronStep] = []
    replay(graph, np.array([[[-2.0], [-2.0], [3.0], [3.0], [1.0]]], np.float32), found.append, update="sum")
    # In float32 V is minus infinity from step 1 on, and never fires again; exactly it is 2e38 at step 3.
    assert [step.fires.item() for step in found] == [False, False, False, True, True]
    assert [bool(np.isinf(step.bound)) for step in found] == [True, True, True, True, False]  # type: ignore[arg-type]


def test_batch_norm_of_tiny_gains_and_variances() -> None:
    norm = BatchNorm(
        name="bn", inputs=(Edge("x"),), weight=frozen([1e-40, 1e-30, 1.0]), bias=frozen([0.0] * 3),
        mean=frozen([0.0] * 3), variance=frozen([1e-12, 1e16, 1e-35]), epsilon=0.0,
    )  # fmt: skip
    x = np.full((1, 3), 1e35)
    value = evaluate(norm, [x])
    error = node_error(norm, [x], [0 * x], [TensorType((3,), True)], value)
    assert error is not None
    # A weight below the normal range, a gain below it: both may be lost as a whole. A variance next to it: no bound.
    assert (np.abs(value[0, :2]) <= error[0, :2]).all()
    assert error[0, 2] == np.inf


def test_batch_norm_in_float32_stays_within_the_bound() -> None:
    """The training graph's own rounding: (x - mean) / sqrt(variance + epsilon) * weight + bias, as PyTorch has it."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        norm = BatchNorm(
            name="bn", inputs=(Edge("input"),), weight=frozen(rng.normal(0, 2, 6).astype(np.float32)),
            bias=frozen(rng.normal(0, 2, 6).astype(np.float32)), mean=frozen(rng.normal(0, 3, 6).astype(np.float32)),
            variance=frozen(rng.uniform(1e-4, 4, 6).astype(np.float32)), epsilon=1e-5,
        )  # fmt: skip
        x = rng.normal(0, 3, (200, 6)).astype(np.float32)
        value = evaluate(norm, [x.astype(np.float64)])
        error = node_error(norm, [x.astype(np.float64)], [np.zeros_like(value)], [TensorType((6,), False)], value)
        t = {key: torch.from_numpy(v.astype(np.float32)) for key, v in norm.arrays().items()}
        out = torch.nn.functional.batch_norm(
            torch.from_numpy(x), t["mean"], t["variance"], t["weight"], t["bias"], eps=norm.epsilon
        )
        assert error is not None
        assert (np.abs(out.numpy().astype(np.float64) - value) <= error).all()


def test_a_node_kind_without_a_bound_is_unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    class Square(Linear):
        pass

    build = Build(1, (4,))
    build.add(Square(name="odd", inputs=(Edge("input"),), weight=frozen(np.eye(4))))
    build.neuron("sn", "odd", alpha=1.0, beta=0.5, v_threshold=0.5)
    graph = build.finish("sn", timesteps=2)
    monkeypatch.setitem(operators._OPERATORS, Square, operators._OPERATORS[Linear])  # type: ignore[arg-type]
    batch = np.full((1, 4), 0.25, np.float32)
    found = judge(graph, batch, simulate(graph, batch).spikes, Arithmetic())
    assert found.uncertain
    assert not found.uncertain[0].proved
    assert found.uncertain[0].as_json()["bound"] is None
    assert replace(found.uncertain[0], margin=0.0).within_bound
