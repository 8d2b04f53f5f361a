"""A network's cost for one sample: the DA-LIF paper's, an event-driven machine's, and two packages' definitions.

What depends on spikes is the mean over the samples that were counted, rounded to a whole number once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalif_deploy.cost.events import Events, synapses_reached
from dalif_deploy.cost.operations import Form, NodeOperations, operations_of
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import WEIGHTED, BatchNorm, Conv2d, Linear, Neuron, Pool2d, Scale

MAC_PICOJOULES = 4.6
AC_PICOJOULES = 0.9
"""45 nm, 32-bit floating point (Horowitz, "Computing's energy problem", ISSCC 2014), as the paper takes them."""


@dataclass(frozen=True)
class Cost:
    """One sample's cost by the paper's rule.

    `acs`: accumulations that spikes caused, each counted with the synapses it really has at the borders;
    `acs_by_rate`: firing rate times dense operations instead, as is often published. Both are None where nothing
    fired yet. `params`: without alpha and beta.
    """

    macs: int
    flops: int
    params: int
    acs: int | None = None
    acs_by_rate: int | None = None

    @property
    def energy_mj(self) -> float | None:
        """4.6 pJ a MAC and 0.9 pJ an AC, in millijoules."""
        return None if self.acs is None else (MAC_PICOJOULES * self.macs + AC_PICOJOULES * self.acs) * 1e-9

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "macs": self.macs,
            "acs": self.acs,
            "flops": self.flops,
            "params": self.params,
            "energy_mj": self.energy_mj,
            "acs_by_rate": self.acs_by_rate,
        }


@dataclass(frozen=True)
class EventDriven:
    """One sample on a machine that computes what is static once, and weights only where an event arrives.

    `macs`: weights fed by real values, and one a neuron and timestep for the leak. `synaptic_operations`: pairs of
    a spike or count that is not zero and a synapse it has, as the `events` runtime counts them.
    """

    macs: int
    synaptic_operations: int | None


@dataclass(frozen=True)
class SyopsCounts:
    """What syops-counter means: `total` operations, `macs`, and `acs`, which are firing rate times operations."""

    total: int
    macs: int
    acs: int | None


@dataclass(frozen=True)
class NeuroBenchCounts:
    """What NeuroBench's SynapticOperations means: inputs and weights that are not zero, without biases."""

    dense: int
    effective_macs: int | None
    effective_acs: int | None


def node_acs(graph: SpikingGraph, operations: NodeOperations, events: Events) -> int:
    """All accumulations that spikes caused in one node, over all samples."""
    node = graph[operations.name]
    if not operations.spike_fed or not isinstance(node, WEIGHTED):
        return 0
    return synapses_reached(node, events.places[node.name], graph.types[node.name].shape, nonzero=False)


def acs_of(graph: SpikingGraph, operations: Sequence[NodeOperations], events: Events) -> int:
    """The accumulations that spikes caused in these nodes, for one sample."""
    return per_sample(sum(node_acs(graph, node, events) for node in operations), events.samples)


def cost_of(graph: SpikingGraph, form: Form, events: Events | None = None) -> Cost:
    """The cost by the paper's rule (see `operations`). `form`: "trained", or "folded" where alpha is gone."""
    operations = operations_of(graph, form)
    macs = sum(node.macs for node in operations)
    flops = sum(node.flops for node in operations)
    params = sum(node.parameters for node in operations)
    if events is None:
        return Cost(macs, flops, params)
    by_rate = sum(
        node.weighted * events.total[node.name] / _size(events, node) for node in operations if node.spike_fed
    )
    return Cost(macs, flops, params, acs_of(graph, operations, events), round(by_rate / events.samples))


def event_driven_of(graph: SpikingGraph, events: Events | None = None) -> EventDriven:
    """What an event-driven machine does with a folded graph; the `events` runtime's counts, and the leak."""
    macs = synaptic = 0
    for node in graph.nodes:
        elements = math.prod(graph.types[node.name].shape)
        once = not graph.types[node.name].temporal
        runs = 1 if once else graph.timesteps
        if isinstance(node, WEIGHTED) and graph.types[node.inputs[0].source].kind == "real":
            macs += runs * elements * math.prod(node.weight.shape[1:])
        elif isinstance(node, WEIGHTED) and events is not None:
            found = synapses_reached(node, events.places[node.name], graph.types[node.name].shape, nonzero=False)
            # What is static was counted at every timestep.
            synaptic += found // graph.timesteps if once and node.name not in graph.after_readout else found
        elif isinstance(node, Neuron | Scale):
            macs += runs * elements
    return EventDriven(macs, None if events is None else per_sample(synaptic, events.samples))


def syops_counts(graph: SpikingGraph, events: Events | None = None) -> SyopsCounts:
    """syops-counter's numbers for a training graph whose layers are modules; it does not know DA-LIF neurons.

    Source: its `ops.py`, version 0.0.5. Which inputs are spikes is taken from the graph; the package looks at
    the values of each batch.
    """
    total = macs = 0
    acs = 0.0
    for node in graph.nodes:
        inside = graph.types[node.inputs[0].source] if node.inputs else None
        runs = 1 if node.name in graph.after_readout else graph.timesteps
        if inside is None:
            continue
        inputs, outputs = math.prod(inside.shape), graph.types[node.name].shape
        if isinstance(node, WEIGHTED):
            operations = math.prod(outputs) * math.prod(node.weight.shape[1:])
            operations += 0 if node.bias is None else math.prod(outputs)
        elif isinstance(node, Pool2d):
            operations = inputs
        elif isinstance(node, BatchNorm):
            operations = 2 * inputs
        else:
            continue
        total += runs * operations
        if inside.kind != "spike":
            macs += runs * operations
        elif events is not None:
            acs += operations * events.total[node.name] / inputs
    return SyopsCounts(total, macs, None if events is None else round(acs / events.samples))


def neurobench_counts(graph: SpikingGraph, events: Events | None = None) -> NeuroBenchCounts:
    """NeuroBench's SynapticOperations for a training graph whose layers are modules.

    Source: its `metrics/workload/synaptic_operations.py`, version 2.3.0. ACs are those of layers whose inputs are
    spikes, MACs all others; a pair of an input and a weight that are not zero is one operation.
    """
    dense = macs = acs = 0
    for node in graph.nodes:
        if not isinstance(node, Conv2d | Linear):
            continue
        inside, shape = graph.types[node.inputs[0].source], graph.types[node.name].shape
        runs = 1 if node.name in graph.after_readout else graph.timesteps
        dense += runs * synapses_reached(node, np.ones(inside.shape, np.int64), shape, nonzero=False)
        if events is None:
            continue
        effective = synapses_reached(node, events.places[node.name], shape, nonzero=True)
        if inside.kind == "spike":
            acs += effective
        else:
            macs += effective
    if events is None:
        return NeuroBenchCounts(dense, None, None)
    return NeuroBenchCounts(dense, per_sample(macs, events.samples), per_sample(acs, events.samples))


def per_sample(total: int, samples: int) -> int:
    """The mean, rounded to the nearest whole number (halves up), in whole numbers throughout."""
    return (2 * total + samples) // (2 * samples)


def _size(events: Events, node: NodeOperations) -> int:
    return events.places[node.name].size
