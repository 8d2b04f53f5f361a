"""The event-driven runtime: it touches only what events reach, counts that, and computes what a dense one does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence.replay import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Pool2d,
    Readout,
    Scale,
    StateVariable,
    SumPool2d,
    TensorType,
    Zeros,
    frozen,
)
from dalif_deploy.operators import evaluate
from dalif_deploy.runtimes.events import EventsRuntime, available
from dalif_deploy.runtimes.torch import TorchRuntime

Spikes = NDArray[np.float32]
Place = tuple[int, ...]


def _at(source: str, delay: int = 0) -> tuple[Edge, ...]:
    return (Edge(source, delay),)


def _spikes_in(*shape: int, temporal: bool = True) -> Input:
    return Input(name="input", shape=shape, temporal=temporal, kind="spike")


def _graph(*nodes: Node, timesteps: int = 3, mode: str = "sum", encoding: str = "spikes") -> SpikingGraph:
    """The nodes, the last of them read out."""
    readout = Readout(name="readout", inputs=_at(nodes[-1].name), mode=mode)  # type: ignore[arg-type]
    return SpikingGraph(
        [*nodes, readout], output="readout", timesteps=timesteps, encoding=Encoding(kind=encoding)  # type: ignore[arg-type]
    )  # fmt: skip


def _random_spikes(seed: int, *shape: int, rate: float = 0.25) -> Spikes:
    return (np.random.default_rng(seed).random(shape) < rate).astype(np.float32)


def _dyadic(seed: int, *shape: int) -> NDArray[np.float64]:
    """Multiples of 1/8 between -2 and 2: their sums are exact, so any order gives the same bits."""
    return frozen(np.random.default_rng(seed).integers(-16, 17, shape) / 8)


def _neuron(name: str, source: str, *, beta: object = 0.5, **rules: object) -> Neuron:
    return Neuron(name=name, inputs=_at(source), alpha=frozen(1.0), beta=frozen(beta), **rules)  # type: ignore[arg-type]


def _synapses(node: Conv2d, shape: tuple[int, ...]) -> Iterator[tuple[Place, Place]]:
    """Every synapse of a convolution that exists, output by output: (its place in the weight, its source)."""
    out_channels, per_group, kernel_h, kernel_w = node.weight.shape
    rows, columns = node.infer([TensorType(shape, True)]).shape[1:]
    for o, row, column in itertools.product(range(out_channels), range(rows), range(columns)):
        for c, i, j in itertools.product(range(per_group), range(kernel_h), range(kernel_w)):
            y = row * node.stride[0] - node.padding[0] + i * node.dilation[0]
            x = column * node.stride[1] - node.padding[1] + j * node.dilation[1]
            if 0 <= y < shape[1] and 0 <= x < shape[2]:
                yield (o, c, i, j), (o // (out_channels // node.groups) * per_group + c, y, x)


# --- what no event reaches is never read ----------------------------------------------------------------------


def _partly_silent() -> tuple[SpikingGraph, Spikes]:
    """Layers fed by spikes and by counts; neurons and inputs that stay silent on this batch; places at borders
    that no input meets."""
    first, second = np.ones((6, 1, 1)), np.ones((5, 1, 1))
    first[[1, 4]] = second[2] = 1e6
    graph = _graph(
        _spikes_in(4, 7, 7),
        Conv2d(
            name="conv1", inputs=_at("input"), weight=_dyadic(1, 6, 2, 3, 3), bias=frozen(np.full(6, 0.125)),
            stride=(2, 2), padding=(1, 1), groups=2,
        ),
        _neuron("sn1", "conv1", v_threshold=frozen(first)),
        SumPool2d(name="pool", inputs=_at("sn1"), kernel=(2, 2), stride=(1, 1)),
        Conv2d(name="conv2", inputs=_at("pool"), weight=_dyadic(2, 5, 6, 2, 2), dilation=(2, 2)),
        _neuron("sn2", "conv2", v_threshold=frozen(second)),
        Flatten(name="flatten", inputs=_at("sn2")),
        Linear(name="fc", inputs=_at("flatten"), weight=_dyadic(3, 3, 5)),
    )  # fmt: skip
    spikes = _random_spikes(4, 6, 3, 4, 7, 7)
    spikes[:, :, 1] = 0.0
    return graph, spikes


def _sources(graph: SpikingGraph, batch: Spikes) -> dict[str, NDArray[np.float64]]:
    """What feeds each weighted layer of `_partly_silent`, [samples and steps, *shape]."""
    spikes = {name: train.unpack().astype(np.float64) for name, train in simulate(graph, batch).spikes.items()}
    sn1, sn2 = (np.concatenate(list(spikes[name])) for name in ("sn1", "sn2"))
    pooled = sn1[..., :-1, :-1] + sn1[..., :-1, 1:] + sn1[..., 1:, :-1] + sn1[..., 1:, 1:]
    return {"conv1": np.concatenate(list(batch)), "conv2": pooled, "fc": sn2.reshape(len(sn2), -1)}


def _met(node: Node, source: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which weights an event ever meets, by plain loops."""
    assert isinstance(node, Conv2d | Linear)
    active = (source != 0).any(axis=0)
    met = np.zeros(node.weight.shape, np.bool_)
    if isinstance(node, Linear):
        met[:, active] = True
    else:
        for weight, place in _synapses(node, source.shape[1:]):
            met[weight] |= active[place]
    return met


def _write(graph: SpikingGraph, name: str, where: NDArray[np.bool_], value: float) -> None:
    """Writes into a graph's own array: a graph with NaN cannot be built, so it gets them afterwards."""
    weight = graph[name].weight  # type: ignore[attr-defined]
    weight.flags.writeable = True
    weight[where] = value
    weight.flags.writeable = False


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_that_only_silent_neurons_feed_are_never_read(dtype: str) -> None:
    graph, batch = _partly_silent()
    clean = EventsRuntime(graph, dtype=dtype).run(batch)  # type: ignore[arg-type]
    assert all(0.02 < train.count() / train.neuron_steps < 0.4 for train in clean.spikes.values())
    for name, source in _sources(graph, batch).items():
        met = _met(graph[name], source)
        assert met.any()
        assert not met.all()
        _write(graph, name, ~met, np.nan)

    poisoned = EventsRuntime(graph, dtype=dtype).run(batch)  # type: ignore[arg-type]

    for name, train in clean.spikes.items():
        np.testing.assert_array_equal(poisoned.spikes[name].bits, train.bits)
    np.testing.assert_array_equal(poisoned.logits, clean.logits)
    assert poisoned.operations == clean.operations
    # The poison is real: a dense evaluation of the same graph reads it.
    assert np.isnan(simulate(graph, batch).logits).any()


def test_every_weight_that_an_event_meets_is_read() -> None:
    weight = _dyadic(1, 4, 1, 3, 3)
    conv = Conv2d(name="conv", inputs=_at("input"), weight=weight, stride=(2, 2), padding=(1, 1), groups=2)
    batch = _random_spikes(2, 1, 1, 2, 5, 5, rate=0.15)
    met = _met(conv, batch[0])
    assert met.any()
    assert not met.all()
    for place in np.ndindex(weight.shape):
        graph = _graph(_spikes_in(2, 5, 5), conv, timesteps=1)
        at_place = np.zeros_like(met)
        at_place[place] = True
        kept = float(weight[place])
        _write(graph, "conv", at_place, np.nan)
        read = np.isnan(EventsRuntime(graph).run(batch).logits).any()
        _write(graph, "conv", at_place, kept)
        assert read == met[place]


# --- counting -------------------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "plain": {"weight": (3, 2, 3, 3)},
    "border": {"weight": (3, 2, 3, 3), "padding": (1, 1)},
    "wide padding": {"weight": (2, 2, 3, 3), "padding": (3, 2)},
    "stride": {"weight": (3, 2, 3, 3), "stride": (2, 3), "padding": (1, 0)},
    "stride beyond the kernel": {"weight": (3, 2, 1, 2), "stride": (3, 3)},
    "dilation": {"weight": (3, 2, 2, 3), "dilation": (3, 2), "padding": (2, 1)},
    "groups": {"weight": (4, 1, 3, 3), "groups": 2, "padding": (1, 1)},
    "depthwise, two outputs each": {"weight": (4, 1, 2, 2), "groups": 2, "stride": (2, 2)},
    "all at once": {"weight": (6, 1, 3, 2), "groups": 2, "stride": (2, 1), "padding": (2, 1), "dilation": (1, 3)},
}


def _convolution(name: str, weight: tuple[int, ...], **options: object) -> Conv2d:
    return Conv2d(name="conv", inputs=_at("input"), weight=_dyadic(5, *weight), bias=_dyadic(6, weight[0]), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_synaptic_operations_of_a_convolution_equal_a_brute_force_count(name: str, temporal: bool) -> None:
    conv = _convolution(name, **CONVOLUTIONS[name])  # type: ignore[arg-type]
    batch = _random_spikes(7, *((3, 4, 2, 6, 7) if temporal else (3, 2, 6, 7)))
    expected = sum(
        bool(image[place]) for image in batch.reshape(-1, 2, 6, 7) for _, place in _synapses(conv, (2, 6, 7))
    )

    run = EventsRuntime(_graph(_spikes_in(2, 6, 7, temporal=temporal), conv, timesteps=4)).run(batch)

    assert run.operations is not None
    assert expected > 0
    # A static layer is computed once, whatever the number of timesteps.
    assert run.operations.synaptic == {"conv": expected}
    assert run.operations.macs == {}


def test_synaptic_operations_of_linear_layers_and_counts() -> None:
    linear = Linear(name="fc", inputs=_at("flatten"), weight=_dyadic(8, 5, 2 * 3 * 3))
    graph = _graph(
        _spikes_in(2, 6, 6),
        SumPool2d(name="pool", inputs=_at("input"), kernel=(2, 2), stride=(2, 2)),
        Flatten(name="flatten", inputs=_at("pool")),
        linear,
    )
    batch = _random_spikes(9, 4, 3, 2, 6, 6, rate=0.4)
    # A count is one event however large it is: one weight is added once, times the count.
    events = sum(
        batch[n, t, c, y : y + 2, x : x + 2].any()
        for n, t, c in itertools.product(range(4), range(3), range(2))
        for y, x in itertools.product((0, 2, 4), (0, 2, 4))
    )
    run = EventsRuntime(graph).run(batch)
    assert run.operations is not None
    assert run.operations.synaptic == {"fc": events * 5}
    assert run.operations.macs == {}


def test_layers_fed_by_real_values_count_dense_macs() -> None:
    nodes = [
        Conv2d(name="conv", inputs=_at("input"), weight=_dyadic(1, 4, 3, 3, 3), padding=(1, 1)),
        _neuron("sn", "conv"),
        AvgPool2d(name="pool", inputs=_at("sn"), kernel=(2, 2), stride=(2, 2)),
        Flatten(name="flatten", inputs=_at("pool")),
        Linear(name="fc", inputs=_at("flatten"), weight=_dyadic(2, 5, 4 * 9)),
    ]
    images = np.random.default_rng(3).uniform(0, 1, (2, 3, 6, 6)).astype(np.float32)
    for temporal, steps in ((False, 1), (True, 4)):
        batch = np.stack([images] * 4, axis=1) if temporal else images
        source = Input(name="input", shape=(3, 6, 6), temporal=temporal)
        run = EventsRuntime(_graph(source, *nodes, timesteps=4, encoding="real")).run(batch)
        assert run.operations is not None
        # output elements x fan-in, padding included; an average pool's output is real
        assert run.operations.macs == {"conv": 2 * steps * (4 * 36) * 27, "fc": 2 * 4 * 5 * 36}
        assert run.operations.synaptic == {}


def test_what_stands_after_the_readout_is_computed_once() -> None:
    graph = SpikingGraph(
        [
            _spikes_in(6),
            _neuron("sn", "input"),
            Readout(name="readout", inputs=_at("sn"), mode="sum"),
            Linear(name="fc", inputs=_at("readout"), weight=_dyadic(1, 3, 6), bias=_dyadic(2, 3)),
            Scale(name="scale", inputs=_at("fc"), factor=frozen(0.5), offset=frozen(1.0)),
        ],
        output="scale",
        timesteps=4,
        encoding=Encoding(kind="spikes"),
    )
    batch = _random_spikes(3, 5, 4, 6, rate=0.5)
    run = EventsRuntime(graph, dtype="float64").run(batch)
    counts = run.spikes["sn"].unpack().sum(axis=1)
    expected = 0.5 * (counts @ graph["fc"].weight.T + graph["fc"].bias) + 1.0  # type: ignore[attr-defined]
    np.testing.assert_array_equal(run.logits, expected)
    assert run.operations is not None
    assert run.operations.macs == {"fc": 5 * 3 * 6}


def test_no_spikes_no_operations() -> None:
    graph, batch = _partly_silent()
    silent = graph.replaced(
        {"conv1": Conv2d(name="conv1", inputs=_at("input"), weight=_dyadic(1, 6, 2, 3, 3), stride=(2, 2),
                         padding=(1, 1), groups=2)}
    )  # fmt: skip
    run = EventsRuntime(silent).run(np.zeros_like(batch))
    assert run.operations is not None
    assert run.operations.synaptic == {"conv1": 0, "conv2": 0, "fc": 0}
    assert run.operations.macs == {}
    assert not run.logits.any()


# --- values ---------------------------------------------------------------------------------------------------


@st.composite
def _any_convolution(draw: st.DrawFn) -> tuple[Conv2d, tuple[int, ...]]:
    small = st.integers(1, 3)
    groups, per_group, out_per_group = draw(small), draw(st.integers(1, 2)), draw(small)
    kernel, stride, dilation = (
        draw(st.tuples(small, small)),
        draw(st.tuples(small, small)),
        draw(st.tuples(small, small)),
    )
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    size = tuple(
        draw(st.integers(max(1, (k - 1) * d + 1 - 2 * p), 8))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )  # fmt: skip
    seed = draw(st.integers(0, 2**16))
    conv = Conv2d(
        name="conv", inputs=_at("input"), weight=_dyadic(seed, groups * out_per_group, per_group, *kernel),
        bias=_dyadic(seed + 1, groups * out_per_group) if draw(st.booleans()) else None,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    return conv, (groups * per_group, *size)


def _counts() -> tuple[Node, ...]:
    """Adds to every input spike the largest around it: counts 0, 1 and 2, by the name "counts"."""
    near = MaxPool2d(name="near", inputs=_at("input"), kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    return near, Add(name="counts", inputs=(Edge("input"), Edge("near")))


@pytest.mark.parametrize("source", ["input", "counts"])
@given(case=_any_convolution(), seed=st.integers(0, 2**16), rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_any_convolution_equals_the_dense_one(
    source: str, case: tuple[Conv2d, tuple[int, ...]], seed: int, rate: float
) -> None:
    conv, shape = case
    batch = _random_spikes(seed, 3, 1, *shape, rate=rate)
    values = {"input": batch[:, 0].astype(np.float64)}
    near, add = _counts()
    values["near"] = evaluate(near, [values["input"]])
    values["counts"] = evaluate(add, [values["input"], values["near"]])
    graph = _graph(_spikes_in(*shape), near, add, replace(conv, inputs=_at(source)), timesteps=1, mode="last")
    run = EventsRuntime(graph, dtype="float64").run(batch)
    np.testing.assert_array_equal(run.logits, evaluate(conv, [values[source]]))
    assert run.operations is not None
    assert run.operations.synaptic["conv"] == sum(bool(x[p]) for x in values[source] for _, p in _synapses(conv, shape))


@st.composite
def _any_pool(draw: st.DrawFn) -> tuple[Pool2d, tuple[int, ...]]:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    options = {
        "name": "pool", "inputs": _at("input"), "kernel": kernel,
        "stride": draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
    }  # fmt: skip
    kind = draw(st.sampled_from([SumPool2d, MaxPool2d, AvgPool2d]))
    if kind is AvgPool2d:
        options["count_include_pad"] = draw(st.booleans())
    return kind(**options), (2, draw(st.integers(kernel[0], 9)), draw(st.integers(kernel[1], 9)))


@pytest.mark.parametrize("source", ["input", "counts"])
@given(case=_any_pool(), seed=st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_any_pool_equals_the_dense_one(source: str, case: tuple[Pool2d, tuple[int, ...]], seed: int) -> None:
    pool, shape = case
    batch = _random_spikes(seed, 3, 1, *shape)
    near, add = _counts()
    values = batch[:, 0].astype(np.float64)
    if source == "counts":
        values = evaluate(add, [values, evaluate(near, [values])])
    graph = _graph(_spikes_in(*shape), near, add, replace(pool, inputs=_at(source)), timesteps=1, mode="last")
    run = EventsRuntime(graph, dtype="float64").run(batch)
    np.testing.assert_array_equal(run.logits, evaluate(pool, [values]))
    np.testing.assert_array_equal(run.logits, TorchRuntime(graph).run(batch).logits)
    assert run.operations is not None
    assert run.operations.synaptic == {}


def test_a_linear_layer_adds_the_weights_of_what_fired() -> None:
    weight, bias = _dyadic(1, 7, 9), _dyadic(2, 7)
    near, add = _counts()
    batch = _random_spikes(3, 8, 1, 1, 3, 3, rate=0.2)
    batch[2] = 0.0
    for source in ("input", "counts"):
        flatten = Flatten(name="flatten", inputs=_at(source))
        fc = Linear(name="fc", inputs=_at("flatten"), weight=weight, bias=bias)
        graph = _graph(_spikes_in(1, 3, 3), near, add, flatten, fc, timesteps=1, mode="last")
        run = EventsRuntime(graph, dtype="float64").run(batch)
        for image, logits in zip(batch[:, 0, 0], run.logits, strict=True):
            around = [[image[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].max() for x in range(3)] for y in range(3)]
            value = (image + around if source == "counts" else image).ravel()
            np.testing.assert_array_equal(logits, sum((weight[:, i] * value[i] for i in np.flatnonzero(value)), bias))


@st.composite
def _any_neuron(draw: st.DrawFn) -> Neuron:
    quarters = st.integers(-4, 4).map(lambda n: n / 4)

    def parameter(values: st.SearchStrategy[float]) -> NDArray[np.float64]:
        shape = draw(st.sampled_from([(), (3, 1, 1), (3, 2, 2)]))
        return frozen(np.array(draw(st.lists(values, min_size=12, max_size=12))[: int(np.prod(shape))]).reshape(shape))

    return Neuron(
        name="sn", inputs=_at("input"), alpha=frozen(1.0), beta=parameter(quarters),
        v_threshold=parameter(st.sampled_from([0.5, 1.0, 1.5])), v_reset=parameter(quarters),
        leak_target=parameter(quarters), reset=draw(st.sampled_from(["hard", "subtract"])),
        fires_at=draw(st.sampled_from(["ge", "gt"])), state=(StateVariable("membrane", draw(quarters)),),
    )  # fmt: skip


@given(_any_neuron(), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_any_neuron_follows_its_equations_one_by_one(neuron: Neuron, seed: int) -> None:
    # Currents on a grid of 1/4 meet thresholds exactly, and every product and sum of four steps is exact.
    batch = (np.random.default_rng(seed).integers(-4, 9, (2, 4, 3, 2, 2)) / 4).astype(np.float32)
    graph = _graph(Input(name="input", shape=(3, 2, 2), temporal=True), neuron, timesteps=4, encoding="real")
    expected = np.zeros(batch.shape, np.bool_)
    for n, c, y, x in itertools.product(range(2), range(3), range(2), range(2)):
        beta, threshold, reset, target = (
            float(np.broadcast_to(values, (3, 2, 2))[c, y, x])
            for values in (neuron.beta, neuron.v_threshold, neuron.v_reset, neuron.leak_target)
        )
        held = neuron.state[0].initial
        for t in range(4):
            v = target + beta * (held - target) + float(batch[n, t, c, y, x])
            fired = v > threshold or (v == threshold and neuron.fires_at == "ge")
            expected[n, t, c, y, x] = fired
            held = v if not fired else reset if neuron.reset == "hard" else v - threshold
    for runtime in (EventsRuntime(graph), EventsRuntime(graph, dtype="float64"), TorchRuntime(graph)):
        np.testing.assert_array_equal(runtime.run(batch).spikes["sn"].unpack(), expected)


def test_currents_are_summed_before_they_meet_the_membrane() -> None:
    # In float32, ((beta H + w) + w) + w rounds three times where beta H + (w + w + w) rounds once.
    weight = frozen(np.full((1, 3), 2.0**-25))
    graph = _graph(
        _spikes_in(3), Linear(name="fc", inputs=_at("input"), weight=weight),
        _neuron("sn", "fc", beta=1.0, v_threshold=frozen(0.5 + 2.0**-24), state=(StateVariable("membrane", 0.5),)),
        timesteps=1,
    )  # fmt: skip
    run = EventsRuntime(graph).run(np.ones((1, 1, 3), np.float32))
    assert run.spikes["sn"].count() == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sample_does_not_depend_on_its_batch(dtype: str) -> None:
    graph, batch = _partly_silent()
    # Weights of full precision: equal bits mean that every current was summed in the same order.
    rng = np.random.default_rng(12)
    for name in ("conv1", "conv2", "fc"):
        node = graph[name]
        _write(graph, name, np.ones(node.weight.shape, np.bool_), 0.0)  # type: ignore[attr-defined]
        node.weight.flags.writeable = True  # type: ignore[attr-defined]
        node.weight[...] = rng.normal(0.2, 0.6, node.weight.shape)  # type: ignore[attr-defined]
    runtime = EventsRuntime(graph, dtype=dtype)  # type: ignore[arg-type]
    together = runtime.run(batch)
    assert together.spikes["sn2"].count() > 10
    order = rng.permutation(len(batch))
    shuffled = runtime.run(batch[order])
    np.testing.assert_array_equal(shuffled.logits, together.logits[order])
    for name, train in together.spikes.items():
        np.testing.assert_array_equal(shuffled.spikes[name].bits, train.bits[order])
    for n in range(len(batch)):
        alone = runtime.run(batch[n : n + 1])
        np.testing.assert_array_equal(alone.logits[0], together.logits[n])
        assert all((alone.spikes[name].bits[0] == train.bits[n]).all() for name, train in together.spikes.items())
    assert together.logits.dtype == np.dtype(dtype)


# --- recurrence -----------------------------------------------------------------------------------------------


def test_delayed_edges_deliver_zeros_first_and_then_the_past() -> None:
    # conv's bias is part of what is delayed: before step 0 nothing comes, not even the bias.
    graph = _graph(
        _spikes_in(2),
        Linear(name="forward", inputs=_at("input"), weight=frozen(np.eye(2)), bias=frozen([0.25, 0.25])),
        Add(name="sum", inputs=(Edge("forward"), Edge("forward", 2), Edge("back", 1))),
        _neuron("sn", "sum", beta=0.5),
        Linear(name="back", inputs=_at("sn"), weight=frozen([[0.0, -0.5], [1.0, 0.0]]), bias=frozen([0.125, 0.0])),
        timesteps=6,
    )
    batch = _random_spikes(21, 5, 6, 2, rate=0.4)
    expected = np.zeros((5, 6, 2), np.bool_)
    for n in range(5):
        held, back, forward = [0.0, 0.0], [0.0, 0.0], []
        for t in range(6):
            forward.append([float(batch[n, t, i]) + 0.25 for i in range(2)])
            past = forward[t - 2] if t >= 2 else [0.0, 0.0]
            v = [0.5 * held[i] + (forward[t][i] + past[i] + back[i]) for i in range(2)]
            s = [1.0 if v[i] >= 1.0 else 0.0 for i in range(2)]
            expected[n, t] = s
            held = [0.0 if s[i] else v[i] for i in range(2)]
            back = [0.125 - 0.5 * s[1], s[0]]
    assert 0.1 < expected.mean() < 0.9
    for runtime in (EventsRuntime(graph), EventsRuntime(graph, dtype="float64"), TorchRuntime(graph)):
        np.testing.assert_array_equal(runtime.run(batch).spikes["sn"].unpack(), expected)
    run = EventsRuntime(graph).run(batch)
    assert run.operations is not None
    # `forward` is fed by spikes, two weights each; `back` by the neurons' own spikes.
    assert run.operations.synaptic == {"forward": int(batch.sum()) * 2, "back": int(expected.sum()) * 2}


def test_a_neuron_that_drives_itself_through_a_delayed_static_source() -> None:
    graph = _graph(
        Input(name="input", shape=(1,), temporal=False),
        Scale(name="late", inputs=_at("input", 2), factor=frozen(1.0), offset=frozen(0.0)),
        _neuron("sn", "late", beta=0.0),
        timesteps=4,
        encoding="real",
    )
    for runtime in (EventsRuntime(graph), TorchRuntime(graph)):
        spikes = runtime.run(np.ones((1, 1), np.float32)).spikes["sn"].unpack()
        np.testing.assert_array_equal(spikes[0, :, 0], [False, False, True, True])


def test_zeros_feed_a_layer_that_has_no_input() -> None:
    graph = _graph(
        _spikes_in(3),
        Zeros(name="none", shape=(3,)),
        _neuron("sn", "none", state=(StateVariable("membrane", 2.5),)),
        Add(name="sum", inputs=(Edge("sn"), Edge("input"))),
    )
    batch = _random_spikes(1, 2, 3, 3)
    for runtime in (EventsRuntime(graph), TorchRuntime(graph)):
        run = runtime.run(batch)
        np.testing.assert_array_equal(run.spikes["sn"].unpack()[:, :, 0], [[True, False, False]] * 2)
        np.testing.assert_array_equal(run.logits, batch.sum(axis=1) + 1)


# --- inputs and refusals --------------------------------------------------------------------------------------


def test_one_timestep() -> None:
    graph, batch = _partly_silent()
    one = SpikingGraph(graph.nodes, output="readout", timesteps=1, encoding=graph.encoding)
    run = EventsRuntime(one).run(batch[:, :1])
    assert run.spikes["sn1"].count() > 0
    for name, train in EventsRuntime(graph).run(batch).spikes.items():
        np.testing.assert_array_equal(run.spikes[name].bits[:, 0], train.bits[:, 0])


def test_a_static_input_fires_as_the_same_input_repeated() -> None:
    nodes = [
        Conv2d(name="conv", inputs=_at("input"), weight=_dyadic(1, 4, 2, 3, 3), padding=(1, 1)),
        _neuron("sn", "conv", beta=0.75),
    ]
    images = np.random.default_rng(3).integers(0, 4, (3, 2, 5, 5)).astype(np.float32) / 8
    static, temporal = (
        _graph(Input(name="input", shape=(2, 5, 5), temporal=temporal), *nodes, timesteps=4, encoding="real")
        for temporal in (False, True)
    )
    once = EventsRuntime(static).run(images)
    again = EventsRuntime(temporal).run(np.stack([images] * 4, axis=1))
    assert once.spikes["sn"].count() > 0
    np.testing.assert_array_equal(once.spikes["sn"].bits, again.spikes["sn"].bits)


def test_uint8_codes_are_encoded_by_the_runtime() -> None:
    nodes = [Input(name="input", shape=(2, 3, 3), temporal=False), _neuron("sn", "input", beta=0.5)]
    encoding = Encoding(kind="uint8", scale=1 / 16, mean=(0.5, 0.25), std=(0.5, 0.25))
    readout = Readout(name="readout", inputs=_at("sn"), mode="mean")
    graph = SpikingGraph([*nodes, readout], output="readout", timesteps=2, encoding=encoding)
    codes = np.random.default_rng(1).integers(0, 17, (3, 2, 3, 3)).astype(np.uint8)
    by_hand = codes / np.float64(16)
    by_hand[:, 0] = (by_hand[:, 0] - 0.5) / 0.5
    by_hand[:, 1] = (by_hand[:, 1] - 0.25) / 0.25
    encoded, plain = EventsRuntime(graph).run(codes), EventsRuntime(graph).run(by_hand.astype(np.float32))
    assert 0 < plain.spikes["sn"].count() < plain.spikes["sn"].neuron_steps
    np.testing.assert_array_equal(encoded.spikes["sn"].bits, plain.spikes["sn"].bits)


def test_the_state_is_reset_before_every_batch() -> None:
    graph, batch = _partly_silent()
    runtime = EventsRuntime(graph)
    first, second = runtime.run(batch), runtime.run(batch)
    np.testing.assert_array_equal(first.logits, second.logits)
    assert first.operations == second.operations


def _refused(code: Code, *words: str) -> object:
    return pytest.raises(DalifError, match=".*".join([f"^\\[{code.identifier}\\]", *words]))


@pytest.mark.parametrize("shape", [(6, 2, 4, 7, 7), (6, 4, 7, 7), (6, 3, 4, 7, 6), (0, 3, 4, 7, 7)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    graph, _ = _partly_silent()
    with _refused(Code.WRONG_SHAPE):  # type: ignore[attr-defined]
        EventsRuntime(graph).run(np.zeros(shape, np.float32))


def test_an_input_of_spikes_takes_nothing_else() -> None:
    graph = _graph(_spikes_in(2), _neuron("sn", "input"), encoding="real")
    with _refused(Code.BAD_DATA, "spikes"):  # type: ignore[attr-defined]
        EventsRuntime(graph).run(np.full((1, 3, 2), 0.5, np.float32))


def test_a_graph_that_is_not_folded_is_refused_by_name() -> None:
    ones = frozen(np.ones(2))
    norm = BatchNorm(name="bn", inputs=_at("input"), weight=ones, bias=ones, mean=ones, variance=ones, epsilon=1e-5)
    with _refused(Code.BAD_GRAPH, "'bn'", "fold"):  # type: ignore[attr-defined]
        EventsRuntime(_graph(_spikes_in(2), norm))
    half = Neuron(name="sn", inputs=_at("input"), alpha=frozen([1.0, 0.5]), beta=frozen(0.5))
    with _refused(Code.BAD_GRAPH, "'sn'", "alpha", "fold"):  # type: ignore[attr-defined]
        EventsRuntime(_graph(_spikes_in(2), half))


@pytest.mark.parametrize("make", [EventsRuntime, TorchRuntime])
def test_what_a_runtime_cannot_compute_it_refuses_by_name(make: type[EventsRuntime] | type[TorchRuntime]) -> None:
    class Doubled(Flatten):
        pass

    with _refused(Code.RUNTIME_CANNOT_RUN, "'odd'", "Doubled"):  # type: ignore[attr-defined]
        make(_graph(_spikes_in(2), Doubled(name="odd", inputs=_at("input"))))
    two = _neuron("sn", "input", state=(StateVariable("membrane"), StateVariable("adaptation")))
    with _refused(Code.RUNTIME_CANNOT_RUN, "'sn'", "adaptation"):  # type: ignore[attr-defined]
        make(_graph(_spikes_in(2), two))
    large = Linear(name="fc", inputs=_at("input"), weight=frozen([[1e300, 1.0]]))
    with _refused(Code.RUNTIME_CANNOT_RUN, "'fc'", "float32", "float64"):  # type: ignore[attr-defined]
        make(_graph(_spikes_in(2), large), dtype="float32")
    with _refused(Code.BAD_OPTION, "float16"):  # type: ignore[attr-defined]
        make(_graph(_spikes_in(2), _neuron("sn", "input")), dtype="float16")  # type: ignore[arg-type]


def test_says_what_it_is() -> None:
    graph, _ = _partly_silent()
    assert EventsRuntime(graph).name == "events"
    assert np.__version__ in EventsRuntime(graph).description
    assert "float32" in EventsRuntime(graph).description
    assert available() is None
