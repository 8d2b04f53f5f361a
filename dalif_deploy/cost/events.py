"""Which inputs of which weights were not zero, counted from the spikes that a run recorded.

The spikes of the neuron layers say what every other spike or count was: pools, sums and flattening are computed
from them again, without weights. Only what is real-valued and comes out of weights is computed with them, and only
where other weights read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.cost.operations import border_reach
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import WEIGHTED, BatchNorm, Conv2d, Input, Linear, Neuron, Node, Pool2d, Readout, Zeros
from dalif_deploy.operators import Values, evaluate, reduce_time
from dalif_deploy.recording import SpikeTrain

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Events:
    """What was counted over `samples` samples and all timesteps.

    `fired`: by neuron layer, spikes at every timestep, [T]. `places`: by Conv2d or Linear, how often each element
    of its input was not zero, in the input's shape. `total`: by node that reads spikes or counts, their sum.
    """

    samples: int
    fired: Mapping[str, Counts]
    places: Mapping[str, Counts]
    total: Mapping[str, int]


class EventCounter:
    """Counts a recorded run, batch by batch.

    `graph`: training or folded; the recording's layers are its neuron layers. Raises `DalifError`
    (RUNTIME_CANNOT_RUN) for a node kind that cannot be computed where one has to be.
    """

    def __init__(self, graph: SpikingGraph) -> None:
        self._graph = graph
        types = graph.types
        self._weighted = [node for node in graph.nodes if isinstance(node, WEIGHTED)]
        self._summed = [
            node
            for node in graph.nodes
            if isinstance(node, (*WEIGHTED, Pool2d, BatchNorm)) and types[node.inputs[0].source].kind != "real"
        ]
        self._samples = 0
        self._fired = {neuron.name: np.zeros(graph.timesteps, np.int64) for neuron in graph.neurons}
        self._places = {n.name: np.zeros(types[n.inputs[0].source].shape, np.int64) for n in self._weighted}
        self._total = {node.name: 0 for node in self._summed}

    def add(self, inputs: NDArray[np.float32], spikes: Mapping[str, SpikeTrain]) -> None:
        """One batch. `inputs`: what the module takes, [N, *shape] or [N, T, *shape]; `spikes`: by neuron layer."""
        values = _Values(self._graph, inputs, spikes)
        self._samples += len(inputs)
        for t in range(self._graph.timesteps):
            for name, fired in self._fired.items():
                fired[t] += int(np.count_nonzero(values.of(name, t)))
            for node in self._weighted:
                if t and node.name in self._graph.after_readout:
                    continue
                self._places[node.name] += np.count_nonzero(values.into(node, t), axis=0)
            for reader in self._summed:
                self._total[reader.name] += int(values.into(reader, t).sum(dtype=np.float64))
            values.forget()

    @property
    def samples(self) -> int:
        """How many have been counted."""
        return self._samples

    def events(self) -> Events:
        """What has been counted."""
        return Events(self._samples, dict(self._fired), dict(self._places), dict(self._total))


def synapses_reached(node: Conv2d | Linear, places: Counts, shape: tuple[int, ...], *, nonzero: bool) -> int:
    """How many weights are added into outputs that exist when each element of the input is active `places` times.

    `places`: in the shape of the node's input; `shape`: of its output. What a convolution's kernel would reach in
    the padding is no output. `nonzero`: leave out weights that are 0.
    """
    present = (node.weight != 0.0) if nonzero else np.ones(node.weight.shape, np.bool_)
    if isinstance(node, Linear):
        return int(places @ present.sum(axis=0, dtype=np.int64))
    rows, columns = (np.array(axis, np.int64) for axis in border_reach(node, places.shape, shape))
    reached = np.einsum("cyx,iy->cix", places, rows)
    reached = np.einsum("cix,jx->cij", reached, columns)
    # [group, out of the group, in of the group, ...] summed over the outputs: [in, kernel row, kernel column].
    grouped = present.reshape(node.groups, -1, *present.shape[1:]).sum(axis=1, dtype=np.int64)
    return int((reached * grouped.reshape(reached.shape)).sum())


class _Values:
    """The values of a run that are needed, from its spikes; kept for one timestep, what is static for the batch."""

    def __init__(self, graph: SpikingGraph, inputs: NDArray[np.float32], spikes: Mapping[str, SpikeTrain]) -> None:
        self._graph, self._inputs, self._spikes = graph, inputs, spikes
        self._static: dict[str, Values] = {}
        self._step: dict[tuple[str, int], Values] = {}

    def into(self, node: Node, t: int) -> Values:
        """The one input of `node` at timestep `t`, [N, *shape]."""
        return self._read(node, t)[0]

    def of(self, name: str, t: int) -> Values:
        """The output of a node at timestep `t`."""
        static = not self._graph.types[name].temporal
        if static and name in self._static:
            return self._static[name]
        if (name, t) not in self._step:
            found = self._computed(self._graph[name], t)
            if static:
                self._static[name] = found
                return found
            self._step[name, t] = found
        return self._step[name, t]

    def forget(self) -> None:
        """Drop what belongs to one timestep."""
        self._step.clear()

    def _read(self, node: Node, t: int) -> list[Values]:
        read = []
        for edge in node.inputs:
            if edge.delay > t:
                read.append(self._zeros(self._graph.types[edge.source].shape))
            else:
                read.append(self.of(edge.source, t - edge.delay))
        return read

    def _zeros(self, shape: tuple[int, ...]) -> Values:
        return np.zeros((len(self._inputs), *shape), np.float32)

    def _computed(self, node: Node, t: int) -> Values:
        if isinstance(node, Neuron):
            return self._spikes[node.name].step(t).astype(np.float32)
        if isinstance(node, Input):
            return self._inputs[:, t] if self._graph.input.temporal else self._inputs
        if isinstance(node, Zeros):
            return self._zeros(node.shape)
        if isinstance(node, Readout):
            steps = [self._read(node, step)[0] for step in range(self._graph.timesteps)]
            return reduce_time(np.stack(steps, axis=1), node.mode)
        return evaluate(node, self._read(node, t))
