"""One layer of a candidate, replayed on its own history under the model's parameters or changed ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.findings import within
from dalif_deploy.equivalence.judge import Arithmetic, judged_bound
from dalif_deploy.equivalence.replay import NeuronStep, Replay, Tracked
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Array, Neuron, Node
from dalif_deploy.operators import Values
from dalif_deploy.recording import SpikeTrain

Currents = Sequence[Tracked]
"""X of one layer with its error, timestep by timestep."""


@dataclass(frozen=True, eq=False)
class LayerRun:
    """A layer over all timesteps, in the graph's own units; arrays are [batch, T, *shape].

    `potential`: V, or what of it is compared with the threshold; `margin`: that less v_th; `bound`: what rounding can
    do to it; `fires`: what the (changed) model fires there; `spikes`: what the candidate fired. `known`: bool [T], the
    steps at which the candidate's spikes are known.
    """

    neuron: Neuron
    potential: Array
    margin: Array
    bound: Array
    fires: NDArray[np.bool_]
    spikes: NDArray[np.bool_]
    known: NDArray[np.bool_]

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        """Where the candidate contradicts V beyond rounding."""
        steps = self.known.reshape(-1, *(1,) * (self.fires.ndim - 2))
        return np.asarray((self.fires != self.spikes) & ~within(self.margin, self.bound) & steps)

    @property
    def contradictions(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.wrong))


class Layer:
    """The layer `name` of what a candidate fired. `graph`: what the candidate computes. `spikes`: by layer."""

    def __init__(
        self, graph: SpikingGraph, name: str, batch: NDArray[np.generic], spikes: Mapping[str, SpikeTrain],
        arithmetic: Arithmetic,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.name = name
        self._batch = batch
        self._spikes = spikes
        self._arithmetic = arithmetic

    @property
    def neuron(self) -> Neuron:
        """The model's."""
        node = self.graph[self.name]
        assert isinstance(node, Neuron)
        return node

    @cached_property
    def cone(self) -> frozenset[str]:
        """What lies between the layer and the neurons and inputs that feed it, these included, itself not."""
        return _cone(self.graph, self.name)

    @cached_property
    def recorded(self) -> NDArray[np.bool_]:
        """What the candidate's layer fired, [batch, T, *shape]."""
        return self._spikes[self.name].unpack()

    @cached_property
    def own_currents(self) -> Currents:
        """The model's X on what the candidate's earlier layers fired."""
        return self.currents(self.graph)

    @cached_property
    def inputs(self) -> Mapping[str, Values]:
        """By node of the cone, its values on what the candidate fired, [batch, T, *shape] or, static, T = 1."""
        return self._replay(self.graph, None).all_values()

    def currents(self, graph: SpikingGraph) -> Currents:
        """X where `graph` stands in the model's place."""
        return self._replay(graph, None).currents()

    def run(self, neuron: Neuron | None = None, currents: Currents | None = None, *, late: int = 0) -> LayerRun:
        """The layer with another neuron, or other currents. `late`: how many timesteps later than it should the
        candidate fires; negative where it fires earlier."""
        neuron = neuron or self.neuron
        graph = self.graph if neuron is self.neuron else self.graph.replaced({self.name: neuron})
        currents = currents or self.own_currents
        spikes, known = _moved(self.recorded, late)
        if late >= 0:
            return self._run(graph, neuron, currents, spikes, known)
        for t in range(-late):  # what it should have fired before its record begins is its own doing
            spikes[:, t] = self._run(graph, neuron, currents, spikes, known).fires[:, t]
        return self._run(graph, neuron, currents, spikes, known)

    def with_nodes(self, *nodes: Node) -> LayerRun:
        """The layer where nodes of its cone are others of the same name."""
        return self.run(currents=self.currents(self.graph.replaced({node.name: node for node in nodes})))

    def _run(
        self, graph: SpikingGraph, neuron: Neuron, currents: Currents, spikes: NDArray[np.bool_],
        known: NDArray[np.bool_],
    ) -> LayerRun:  # fmt: skip
        replay = self._replay(graph, {**self._spikes, self.name: SpikeTrain.pack(spikes)})
        exact = self._arithmetic.exact_steps(graph, self._batch)
        steps = list(replay.membrane_steps(neuron, currents))
        bounds = [judged_bound(step, exact, spikes[:, t], self._arithmetic.share) for t, step in enumerate(steps)]
        potential = np.stack([step.compared for step in steps], axis=1)
        fires = np.stack([step.fires for step in steps], axis=1)
        return LayerRun(
            neuron, potential, potential - neuron.v_threshold, np.stack(bounds, axis=1), fires, spikes, known
        )

    def _replay(self, graph: SpikingGraph, history: Mapping[str, SpikeTrain] | None) -> _LayerReplay:
        return _LayerReplay(graph, self.name, self._batch, history or self._spikes, self._arithmetic)


def _moved(spikes: NDArray[np.bool_], late: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The spikes as they would have been fired in time, and at which steps that is known."""
    moved = np.zeros_like(spikes)
    known = np.zeros(spikes.shape[1], np.bool_)
    steps = spikes.shape[1] - abs(late)
    if late >= 0:
        moved[:, :steps] = spikes[:, late:]
        known[:steps] = True
    else:
        moved[:, -late:] = spikes[:, :steps]
        known[-late:] = True
    return moved, known


def _cone(graph: SpikingGraph, name: str) -> frozenset[str]:
    found: set[str] = set()
    stack = [edge.source for edge in graph[name].inputs]
    while stack:
        source = stack.pop()
        if source not in found:
            found.add(source)
            if not isinstance(graph[source], Neuron):
                stack.extend(edge.source for edge in graph[source].inputs)
    return frozenset(found)


class _LayerReplay(Replay):
    """A replay of one layer and its cone; the neurons before it fire what was recorded."""

    def __init__(
        self, graph: SpikingGraph, layer: str, batch: NDArray[np.generic], history: Mapping[str, SpikeTrain],
        arithmetic: Arithmetic,
    ) -> None:  # fmt: skip
        self.shown: list[NeuronStep] = []
        super().__init__(
            graph, batch, self.shown.append, history=history, update=arithmetic.update, grids=arithmetic.grids,
            unit=arithmetic.unit, pools=arithmetic.pools, input_error=arithmetic.input_error(graph, batch),
        )  # fmt: skip
        self.recorded = history
        self.edge = graph[layer].inputs[0]
        self.cone = _cone(graph, layer)

    def currents(self) -> list[Tracked]:
        """X of the layer at every timestep."""
        found = []
        for t in range(self.graph.timesteps):
            self._advance(t)
            found.append(self._source(self.edge, t))
            self._remember()
        return found

    def all_values(self) -> dict[str, Values]:
        """See `Layer.inputs`."""
        found: dict[str, list[Values]] = {name: [] for name in self.cone}
        for t in range(self.graph.timesteps):
            self._advance(t)
            for name, steps in found.items():
                if t == 0 or self.graph.types[name].temporal:
                    steps.append(self.values[name].value)
            self._remember()
        return {name: np.stack(steps, axis=1) for name, steps in found.items()}

    def membrane_steps(self, neuron: Neuron, currents: Currents) -> list[NeuronStep]:
        """The neuron's steps on given currents; the neuron must be the graph's."""
        for t, current in enumerate(currents):
            self._integrate(neuron, current, t)
        return self.shown

    def _advance(self, t: int) -> None:
        for node in self.graph.nodes:
            if node.name not in self.cone or not (t == 0 or self.graph.types[node.name].temporal):
                continue
            if isinstance(node, Neuron):
                self.values[node.name] = self._exact(self.recorded[node.name].step(t).astype(np.float64))
            else:
                self.values[node.name] = self._step(node, t)

    def _remember(self) -> None:
        for name, steps in self.past.items():
            if name in self.cone:
                steps.append(self.values[name])
