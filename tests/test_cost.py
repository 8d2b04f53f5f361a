"""Costs: the DA-LIF paper's Table III, synapses counted one by one, and what other packages counted."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dalif_deploy import DALIF, DalifError, Encoding, LoadOptions, SpikingGraph, capture, fold, reset
from dalif_deploy.capturing import capture_module
from dalif_deploy.cost import (
    Cost,
    EventCounter,
    Events,
    cost_of,
    event_driven_of,
    neurobench_counts,
    operations_of,
    syops_counts,
)
from dalif_deploy.cost.events import synapses_reached
from dalif_deploy.cost.totals import per_sample
from dalif_deploy.deploy import inspect
from dalif_deploy.deploy.inspected import leak_of, time_constant
from dalif_deploy.equivalence import simulate
from dalif_deploy.networks import resnet18, resnet20
from dalif_deploy.nodes import Add, Conv2d, Edge, Flatten, Input, Linear, Neuron, Node, Readout, frozen
from dalif_deploy.recording import SpikeTrain
from dalif_deploy.runtimes.events import EventsRuntime
from tests.cost_network import SAMPLES, TIMESTEPS, Counted, images
from tests.graphs import GRAPHS


@dataclass(frozen=True)
class Row:
    """A row of Table III as it is printed, in millions and mJ; MACs of the folded network in millions beside it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    timesteps: int
    acs: float
    macs: float
    flops: float
    params: int
    energy: float
    folded: float


TABLE = {
    "CIFAR-100": Row(partial(resnet20, 100), (3, 32, 32), 4, 143.31, 56.55, 873.47, 11_294_116, 0.3891, 52.601),
    "ImageNet": Row(resnet18, (3, 224, 224), 4, 1330.0, 974.86, 7330.0, 11_689_512, 5.6814, 945.762),
    "CIFAR10-DVS": Row(partial(resnet20, 10, 2), (2, 64, 64), 16, 1420.0, 863.85, 13930.0, 11_247_370, 5.2517, 800.670),
}


@cache
def trained(name: str) -> SpikingGraph:
    row = TABLE[name]
    return capture_module(
        row.build(), example_input=torch.zeros(1, *row.shape), timesteps=row.timesteps, layout="step", temporal=False,
        readout="mean",
    ).graph  # fmt: skip


def by_modules(row: Row) -> tuple[int, int, int]:
    """MACs, FLOPs and parameters from the modules' own shapes, nothing computed: PyTorch's meta device."""
    with torch.device("meta"):
        network = row.build().eval()
    macs = flops = 0
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal macs, flops
        if isinstance(module, nn.Conv2d | nn.Linear):
            operations = out.numel() * prod(module.weight.shape[1:])
            if isinstance(module, nn.Linear):
                operations += module.out_features
            flops += operations
            macs += operations if module is first or id(inputs[0]) in pooled else 0
        elif isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.Flatten):
            pooled[id(out)] = out
            flops += 0 if isinstance(module, nn.Flatten) else out.numel()
        else:
            macs += 2 * out.numel()
            flops += 4 * out.numel()

    pooled: dict[int, torch.Tensor] = {}  # kept, so that no other tensor gets the same id
    kinds = (nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.BatchNorm2d, DALIF)
    for module in network.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, *row.shape, device="meta"))
    decays = {id(p) for m in network.modules() if isinstance(m, DALIF) for p in m.parameters()}
    params = sum(p.numel() for p in network.parameters() if id(p) not in decays)
    return row.timesteps * macs, row.timesteps * flops, params


@pytest.mark.parametrize("name", TABLE)
def test_table_iii(name: str) -> None:
    row = TABLE[name]
    cost = cost_of(trained(name), "trained")
    assert (cost.macs, cost.flops, cost.params) == by_modules(row)
    assert round(cost.macs / 1e6, 2) == row.macs
    assert cost.params == row.params
    assert float(f"{cost.flops / 1e6:.{5 if row.flops < 1000 else 3 if row.flops < 10_000 else 4}g}") == row.flops
    assert cost.acs is None
    assert cost.energy_mj is None


def test_table_iii_whole_numbers() -> None:
    """The networks' MACs, digit by digit."""
    found = {name: cost_of(trained(name), "trained").macs for name in TABLE}
    assert found == {"CIFAR-100": 56_549_776, "ImageNet": 974_864_288, "CIFAR10-DVS": 863_846_560}
    page = (Path(__file__).parent.parent / "docs" / "cost.md").read_text()
    for name, row in TABLE.items():
        cost, folded = cost_of(trained(name), "trained"), cost_of(fold(trained(name)), "folded")
        numbers = " | ".join(f"{n:,}" for n in (cost.macs, cost.flops, cost.params, folded.macs))
        assert re.search(rf"^\| {name} \| .* \| {row.timesteps} \| {re.escape(numbers)} \|$", page, re.MULTILINE)


@pytest.mark.parametrize("name", TABLE)
def test_table_iii_energy_is_that_of_its_macs_and_acs(name: str) -> None:
    row = TABLE[name]
    energy = Cost(cost_of(trained(name), "trained").macs, 0, 0, acs=round(row.acs * 1e6)).energy_mj
    assert energy is not None
    # The table prints two ACs with three digits: half a unit of the last is 5 M ACs, 0.0045 mJ.
    assert abs(energy - row.energy) <= (0.00005 if row.acs < 1000 else 0.0045)


@pytest.mark.parametrize("name", TABLE)
def test_folding_leaves_one_mac_a_neuron_and_none_for_batch_norm(name: str) -> None:
    graph = trained(name)
    folded = cost_of(fold(graph), "folded")
    assert round(folded.macs / 1e6, 3) == TABLE[name].folded
    norms = sum(prod(graph.types[n.name].shape) for n in graph.nodes if type(n).__name__ == "BatchNorm")
    neurons = sum(prod(graph.types[n.name].shape) for n in graph.neurons)
    assert cost_of(graph, "trained").macs - folded.macs == graph.timesteps * (2 * norms + neurons)


def synapses(weight: NDArray[np.float64], active: NDArray[np.bool_], conv: Conv2d, out: tuple[int, ...]) -> int:
    """For every output, one by one: how many of its weights stand on an active element of the input."""
    groups, per_group = conv.groups, weight.shape[1]
    found = 0
    for o, row, column in itertools.product(*map(range, out)):
        first = (o // (out[0] // groups)) * per_group
        for i, ky, kx in itertools.product(*map(range, weight.shape[1:])):
            y = row * conv.stride[0] - conv.padding[0] + ky * conv.dilation[0]
            x = column * conv.stride[1] - conv.padding[1] + kx * conv.dilation[1]
            inside = 0 <= y < active.shape[1] and 0 <= x < active.shape[2]
            found += bool(inside and active[first + i, y, x] and weight[o, i, ky, kx] != 0.0)
    return found


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3), (3, 3), (1, 1), (1, 1), (1, 1), 1),
        ((2, 3), (3, 3), (2, 2), (1, 1), (1, 1), 1),
        ((4, 6), (3, 2), (2, 3), (0, 1), (1, 1), 2),
        ((3, 3), (3, 3), (1, 1), (2, 2), (2, 2), 3),
        ((2, 4), (5, 5), (3, 3), (2, 2), (1, 1), 1),
        ((2, 2), (1, 1), (2, 2), (0, 0), (1, 1), 1),
        ((1, 2), (2, 2), (3, 3), (0, 0), (1, 1), 1),
    ],
)
def test_synapses_of_a_convolution_one_by_one(
    channels: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
    dilation: tuple[int, int], groups: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(0)
    source = (channels[0], 7, 8)
    weight = rng.integers(-1, 2, (channels[1], channels[0] // groups, *kernel)).astype(np.float64)
    layer = nn.Conv2d(*channels, kernel, stride, padding, dilation, groups)
    out = tuple(layer(torch.zeros(1, *source)).shape[1:])
    conv = Conv2d(
        name="c", inputs=(Edge("x"),), weight=frozen(weight), stride=stride, padding=padding, dilation=dilation,
        groups=groups,
    )  # fmt: skip
    active = rng.random((3, *source)) < 0.3
    places = active.sum(axis=0, dtype=np.int64)
    ones = np.ones(weight.shape)
    everything = synapses_reached(conv, places, out, nonzero=False)
    assert everything == sum(synapses(ones, sample, conv, out) for sample in active)
    assert everything > 0
    effective = synapses_reached(conv, places, out, nonzero=True)
    assert effective == sum(synapses(weight, sample, conv, out) for sample in active)
    assert effective < everything


def test_a_spike_in_the_corner_has_fewer_synapses() -> None:
    conv = Conv2d(name="c", inputs=(Edge("x"),), weight=frozen(np.ones((5, 1, 3, 3))), padding=(1, 1))
    places = np.zeros((1, 4, 4), np.int64)
    found = []
    for place in ((0, 0), (0, 1), (1, 1)):
        one = places.copy()
        one[0][place] = 1
        found.append(synapses_reached(conv, one, (5, 4, 4), nonzero=False))
    assert found == [4 * 5, 6 * 5, 9 * 5]
    linear = Linear(name="l", inputs=(Edge("x"),), weight=frozen([[0.0, 1.0], [2.0, 3.0], [0.0, 5.0]]))
    assert synapses_reached(linear, np.array([2, 1]), (3,), nonzero=False) == 3 * 2 + 3 * 1
    assert synapses_reached(linear, np.array([2, 1]), (3,), nonzero=True) == 1 * 2 + 3 * 1


@dataclass(frozen=True)
class Seen:
    """One call of one layer: what went in, [samples, ...], and the module."""

    module: nn.Module
    inputs: NDArray[np.float32]
    shape: tuple[int, ...]


def calls_of(network: nn.Module) -> list[Seen]:
    """Every call of every layer while the network runs its timesteps on the images."""
    calls: list[Seen] = []
    handles = [
        module.register_forward_hook(
            lambda m, i, o: calls.append(Seen(m, i[0].numpy().copy(), tuple(o.shape[1:])))
        )
        for module in network.modules()
        if not list(module.children())
    ]  # fmt: skip
    reset(network)
    with torch.no_grad():
        for _ in range(TIMESTEPS):
            network(torch.from_numpy(images()))
    for handle in handles:
        handle.remove()
    return calls


def count_one_by_one(call: Seen, *, nonzero: bool) -> int:
    module = call.module
    assert isinstance(module, nn.Conv2d | nn.Linear)
    weight = module.weight.detach().double().numpy()
    weight = weight if nonzero else np.ones_like(weight)
    active = call.inputs != 0.0
    if isinstance(module, nn.Linear):
        return sum(int((weight[:, sample] != 0.0).sum()) for sample in active)
    conv = Conv2d(
        name="c", inputs=(Edge("x"),), weight=frozen(weight), stride=module.stride, padding=module.padding,
        groups=module.groups,
    )  # fmt: skip
    return sum(synapses(weight, sample, conv, call.shape) for sample in active)


@pytest.fixture(scope="module")
def counted() -> tuple[Counted, SpikingGraph, Events]:
    network = Counted().eval()
    graph = capture(network, example_input=images(), timesteps=TIMESTEPS, layout="step", temporal=False)
    counter = EventCounter(graph)
    counter.add(images(), simulate(graph, images()).spikes)
    return network, graph, counter.events()


def test_acs_of_a_network_one_by_one(counted: tuple[Counted, SpikingGraph, Events]) -> None:
    network, graph, events = counted
    spike_fed = (network.conv2, network.fc1, network.fc2)
    expected = sum(count_one_by_one(call, nonzero=False) for call in calls_of(network) if call.module in spike_fed)
    cost = cost_of(graph, "trained", events)
    assert cost.acs == per_sample(expected, SAMPLES) == 1279
    assert cost.energy_mj == pytest.approx((4.6 * cost.macs + 0.9 * cost.acs) * 1e-9, rel=1e-15)
    # By hand, a sample's operations at a timestep: conv1 4*7*7*2*9, BN and sn1 2*196 each, sn2 2*96, conv3 4*2*2*6,
    # sn3 2*16, sn4 2*6; MACs of T = 3.
    assert cost.macs == 3 * (3528 + 2 * 196 + 2 * 196 + 2 * 96 + 96 + 2 * 16 + 2 * 6)
    # conv1 72, bn1 8, conv2 6*2*9 + 6, conv3 24 + 4, fc1 96 + 6, fc2 30 + 5.
    assert cost.params == 72 + 8 + 114 + 28 + 102 + 35


def test_acs_by_rate_are_rates_times_operations(counted: tuple[Counted, SpikingGraph, Events]) -> None:
    network, graph, events = counted
    dense = {network.conv2: 6 * 4 * 4 * 2 * 9, network.fc1: 16 * 6 + 6, network.fc2: 6 * 5 + 5}
    expected = sum(float(call.inputs[s].mean()) * dense[call.module] for call in calls_of(network)
                   if call.module in dense for s in range(SAMPLES)) / SAMPLES  # fmt: skip
    assert cost_of(graph, "trained", events).acs_by_rate == round(expected)


def test_syops_counts_what_the_package_counted(counted: tuple[Counted, SpikingGraph, Events]) -> None:
    """Recorded: syops 0.0.5 with spikingjelly 0.0.0.0.14, sample by sample (a larger batch counts a linear layer's
    bias once): total 18267.0, ACs 1924.2491693645716, MACs 12096.0."""
    _, graph, events = counted
    counts = syops_counts(graph, events)
    assert (counts.total, counts.acs, counts.macs) == (18267, 1924, 12096)


def test_syops_definition_by_hand(counted: tuple[Counted, SpikingGraph, Events]) -> None:
    """Every convolution with its bias, pools by their inputs, BN twice; no neuron, since DALIF is not known to it."""
    _, graph, events = counted
    real = 3528 + 2 * 196 + (96 + 16)
    by_spikes = (1728 + 96) + 96 + (96 + 6) + (30 + 5)
    counts = syops_counts(graph, events)
    assert counts.macs == 3 * real
    assert counts.total == 3 * (real + by_spikes)


def test_neurobench_counts_what_the_package_counted(counted: tuple[Counted, SpikingGraph, Events]) -> None:
    """Recorded: neurobench 2.3.0: Effective_MACs 5634.5, Effective_ACs 1184.5, Dense 12930.0."""
    network, graph, events = counted
    counts = neurobench_counts(graph, events)
    assert (counts.effective_macs, counts.effective_acs, counts.dense) == (5635, 1185, 12930)
    spike_fed = (network.conv2, network.fc1, network.fc2)
    macs = acs = 0
    for call in calls_of(network):
        if isinstance(call.module, nn.Conv2d | nn.Linear):
            found = count_one_by_one(call, nonzero=True)
            acs, macs = (acs + found, macs) if call.module in spike_fed else (acs, macs + found)
    assert (macs / SAMPLES, acs / SAMPLES) == (5634.5, 1184.5)


@pytest.mark.parametrize("name", GRAPHS)
def test_synaptic_operations_are_those_of_the_events_runtime(name: str) -> None:
    graph, batch = GRAPHS[name]()
    folded = fold(graph)
    recording = EventsRuntime(folded, dtype="float64").run(batch)
    assert recording.operations is not None
    for counted_graph in (graph, folded):  # the training graph has the same spikes, and can be counted on them
        counter = EventCounter(counted_graph)
        inputs = graph.input_spec.module_input(batch)
        counter.add(inputs[:1], {n: SpikeTrain(s.bits[:1], s.shape) for n, s in recording.spikes.items()})
        counter.add(inputs[1:], {n: SpikeTrain(s.bits[1:], s.shape) for n, s in recording.spikes.items()})
        events = counter.events()
        assert events.samples == len(batch)
        for layer, train in recording.spikes.items():
            fired = train.unpack().sum(axis=tuple(i for i in range(train.unpack().ndim) if i != 1))
            assert events.fired[layer].tolist() == fired.tolist()
        neurobench_counts(counted_graph, events)
    driven = event_driven_of(folded, events)
    assert driven.synaptic_operations == per_sample(sum(recording.operations.synaptic.values()), len(batch))
    dense = sum(recording.operations.macs.values()) // len(batch)
    elementwise = sum(
        prod(folded.types[n.name].shape) * (folded.timesteps if folded.types[n.name].temporal else 1)
        for n in folded.nodes
        if type(n).__name__ in ("Neuron", "Scale")
    )
    assert driven.macs == dense + elementwise


def small(*nodes: Node, kind: str = "real", temporal: bool = False, timesteps: int = 2) -> SpikingGraph:
    source = Input(name="input", shape=(2, 4, 4), temporal=temporal, kind=kind)  # type: ignore[arg-type]
    tail = (
        Flatten(name="flat", inputs=(Edge(nodes[-1].name),)),
        Readout(name="readout", inputs=(Edge("flat"),), mode="mean"),
    )
    encoding = Encoding(kind="spikes") if kind == "spike" else None
    return SpikingGraph([source, *nodes, *tail], output="readout", timesteps=timesteps, encoding=encoding)


def neuron(name: str, source: str) -> Neuron:
    return Neuron(name=name, inputs=(Edge(source),), alpha=frozen(1.0), beta=frozen(0.5))


def conv(name: str, source: str) -> Conv2d:
    return Conv2d(name=name, inputs=(Edge(source),), weight=frozen(np.ones((2, 2, 1, 1))), bias=frozen(np.ones(2)))


def test_the_input_is_fed_to_macs_even_where_it_is_spikes() -> None:
    graph = small(conv("c1", "input"), neuron("s1", "c1"), conv("c2", "s1"), neuron("s2", "c2"), kind="spike")
    found = {node.name: (node.spike_fed, node.macs) for node in operations_of(graph, "trained")}
    assert found["c1"] == (False, 2 * 32 * 2)
    assert found["c2"] == (True, 0)


def test_a_static_input_of_spikes_is_an_event_once() -> None:
    """An event-driven machine computes weights once that the same spikes of the input feed at every timestep."""
    graph = small(conv("c1", "input"), neuron("s1", "c1"), kind="spike", timesteps=4)
    batch = np.zeros((2, 2, 4, 4), np.float32)
    batch[0, 0, 1, 1] = batch[1, 1, 2, 2] = batch[1, 0, 0, 0] = 1.0
    counter = EventCounter(graph)
    counter.add(batch, simulate(graph, batch).spikes)
    driven = event_driven_of(graph, counter.events())
    # Three spikes in two samples, each with a synapse in two output channels.
    assert driven.synaptic_operations == 3 * 2 // 2
    recording = EventsRuntime(graph).run(batch)
    assert recording.operations is not None
    assert sum(recording.operations.synaptic.values()) == 6


def test_spikes_that_arrive_late() -> None:
    """Through a delay of two timesteps, the spikes of the last two never arrive."""
    late = Conv2d(name="late", inputs=(Edge("s1", 2),), weight=frozen(np.ones((3, 2, 1, 1))))
    last = Neuron(name="s2", inputs=(Edge("late"),), alpha=frozen(1.0), beta=frozen(0.5))
    graph = small(neuron("s1", "input"), late, last, temporal=True, timesteps=5)
    batch = np.random.default_rng(0).uniform(0.0, 2.0, (2, 5, 2, 4, 4)).astype(np.float32)
    spikes = simulate(graph, batch).spikes
    counter = EventCounter(graph)
    counter.add(batch, spikes)
    fired = spikes["s1"].unpack()
    arrived = int(fired[:, :3].sum())
    assert 0 < arrived < fired.sum()
    assert cost_of(graph, "trained", counter.events()).acs == per_sample(3 * arrived, 2)


def test_weights_that_two_layers_read_belong_to_the_first() -> None:
    shared = (
        conv("c", "input"), neuron("first", "c"), neuron("second", "c"), conv("d", "first"),
        Add(name="sum", inputs=(Edge("d"), Edge("second"))), neuron("third", "sum"),
    )  # fmt: skip
    found = {layer.name: layer.feeds for layer in inspect(small(*shared)).layers}
    assert found == {"first": ("c",), "second": (), "third": ("d", "sum")}


def test_sums_of_spikes_are_fed_to_macs() -> None:
    nodes = (
        conv("c1", "input"), neuron("s1", "c1"), conv("c2", "s1"), neuron("s2", "c2"),
        Add(name="sum", inputs=(Edge("s1"), Edge("s2"))), conv("c3", "sum"),
    )  # fmt: skip
    found = {node.name: node for node in operations_of(small(*nodes), "trained")}
    assert not found["c3"].spike_fed
    assert found["c3"].macs == 2 * 32 * 2


def test_what_follows_the_readout_is_computed_once() -> None:
    nodes = [
        Input(name="input", shape=(3,), temporal=False),
        neuron("s", "input"),
        Readout(name="readout", inputs=(Edge("s"),), mode="mean"),
        Linear(name="fc", inputs=(Edge("readout"),), weight=frozen(np.ones((2, 3))), bias=frozen(np.ones(2))),
    ]
    graph = SpikingGraph(nodes, output="fc", timesteps=5)
    fc = operations_of(graph, "trained")[-1]
    assert (fc.runs, fc.macs) == (1, 8)
    counter = EventCounter(graph)
    batch = np.array([[2.0, 0.0, 2.0]], np.float32)
    counter.add(batch, simulate(graph, batch).spikes)
    # Two of three features are not zero, each with two weights that are not zero.
    assert neurobench_counts(graph, counter.events()).effective_macs == 4


def test_a_kind_without_a_rule_is_named_not_passed_over() -> None:
    class Unknown(Node):
        def infer(self, inputs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            return inputs[0]

    graph = small(neuron("s", "input"), Unknown(name="odd", inputs=(Edge("s"),)))
    assert [node.name for node in operations_of(graph, "trained") if not node.counted] == ["odd"]
    assert any("not counted" in note and "odd (Unknown)" in note for note in inspect(graph).notes)


@pytest.mark.parametrize("name", GRAPHS)
def test_layers_share_out_the_whole_cost(name: str) -> None:
    graph, batch = GRAPHS[name]()
    found = inspect(graph, data=batch)
    assert found.cost is not None
    after = [node for node in found.nodes if node.name in found.after_layers]
    assert sum(layer.macs or 0 for layer in found.layers) + sum(node.macs for node in after) == found.cost.macs
    assert sum(layer.parameters or 0 for layer in found.layers) + sum(n.parameters for n in after) == found.cost.params
    named = [name for layer in found.layers for name in (layer.name, *(layer.feeds or ()))] + list(found.after_layers)
    assert sorted([*named, graph.input.name]) == sorted(node.name for node in graph.nodes)
    reference = simulate(graph, batch)
    for layer in found.layers:
        spikes = reference.spikes[layer.name].unpack()
        assert layer.rate == pytest.approx(spikes.mean(), rel=1e-12)
        assert layer.rates is not None
        steps = spikes.mean(axis=tuple(axis for axis in range(spikes.ndim) if axis != 1))
        assert layer.rates.tolist() == pytest.approx(steps.tolist(), rel=1e-12)


@pytest.mark.parametrize(
    ("beta", "leak", "tau"),
    [
        (0.5, "decays", 1.4426950408889634),
        (np.exp(-0.1), "decays", 10.0),
        (0.0, "forgets", None),
        (1.0, "never decays", None),
        (-0.3, "alternates", None),
        (1.5, "grows", None),
        (-1.5, "grows", None),
    ],
)
def test_time_constants(beta: float, leak: str, tau: float | None) -> None:
    assert leak_of(frozen(beta)) == leak
    found = time_constant(frozen(beta))
    assert (found is None) if tau is None else float(found) == pytest.approx(tau, rel=1e-14)  # type: ignore[arg-type]


def test_after_tau_steps_a_potential_is_1_over_e() -> None:
    tau = time_constant(frozen(np.exp(-1 / 7)))
    assert tau is not None
    potential = 1.0
    for _ in range(round(float(tau))):
        potential *= float(np.exp(-1 / 7))
    assert potential == pytest.approx(np.exp(-1.0), rel=1e-12)


def test_a_layer_with_leaks_of_several_kinds() -> None:
    assert leak_of(frozen([0.5, -0.5])) == "mixed"
    assert time_constant(frozen([0.5, -0.5])) is None
    assert time_constant(frozen([0.5, 0.25])) is not None


@pytest.mark.parametrize(("total", "samples", "mean"), [(5, 2, 3), (4, 2, 2), (0, 3, 0), (10, 3, 3), (11, 3, 4)])
def test_means_are_rounded_in_whole_numbers(total: int, samples: int, mean: int) -> None:
    assert per_sample(total, samples) == mean
    huge = 10**18 + 1  # a float would lose the 1
    assert per_sample(huge * samples, samples) == huge


ROWS: list[int] = []
"""Outside the module, whose own attributes are put back after a capture."""


class Noted(Counted):
    """Notes in `ROWS` how many samples each call is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ROWS.append(len(x))
        return super().forward(x)


def test_without_data_a_module_is_captured_and_no_more() -> None:
    options = LoadOptions(timesteps=TIMESTEPS, input_shape=(2, 7, 7), layout="step", temporal=False, readout="mean")
    network = Noted().eval()
    ROWS.clear()
    assert inspect(network, options=options).samples is None
    captured = list(ROWS)
    assert 0 < sum(captured) < 16 * TIMESTEPS  # a proof alone would take 16 samples
    many = np.concatenate([images()] * 5)
    found = inspect(network, data=many, options=options)
    assert found.samples == len(many)
    # On data it is the module itself that fires.
    assert ROWS[len(captured) :] == captured + [len(many)] * TIMESTEPS
    assert found.cost is not None
    assert found.cost.acs == 1279


def test_samples_must_be_at_least_one() -> None:
    with pytest.raises(DalifError, match="E0101"):
        inspect(small(neuron("s", "input")), samples=0)
