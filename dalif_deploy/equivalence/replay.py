"""Replays a network in float64, on its own spikes or on spikes that somebody else recorded.

On its own spikes this is the reference that everything is compared with. On a candidate's recorded spikes
it tells, for every neuron and timestep, the potential that the candidate should have had, given what the
candidate itself had fired until then. Both are one piece of code: a candidate whose every spike agrees
with the replayed potential is, by induction, the reference itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Array, Edge, Input, Neuron, Node, Readout, Zeros
from dalif_deploy.operators import Values, evaluate, reduce_time
from dalif_deploy.recording import Recording, SpikeTrain


@dataclass(frozen=True, eq=False)
class NeuronStep:
    """One neuron layer at one timestep, in the graph's own units.

    `current`: X[t], the input, float64 [batch, *shape]. `potential`: V[t] before the reset. `fires`: whether V
    reaches the threshold, bool. `held`: H[t], after the reset. `magnitude`: sum |w s| + |b| + |beta H| +
    |threshold|, the scale of V's rounding error, and `current_magnitude` that of X alone; None where they were
    not asked for.
    """

    neuron: Neuron
    t: int
    current: Values
    potential: Array
    fires: NDArray[np.bool_]
    held: Values
    magnitude: Values | None
    current_magnitude: Values | None


Visitor = Callable[[NeuronStep], None]


def replay(
    graph: SpikingGraph,
    batch: NDArray[np.generic],
    visit: Visitor,
    *,
    history: Mapping[str, SpikeTrain] | None = None,
    magnitudes: bool = False,
) -> Array:
    """Run `graph` in float64 and show every layer at every timestep to `visit`; returns the logits.

    `batch`: data as for any runtime. `history`: the spikes to follow, by layer; None follows the graph's
    own. `magnitudes`: compute `NeuronStep.magnitude` too, which costs a second evaluation.
    Raises `DalifError` (WRONG_SHAPE, BAD_DATA, NOT_FINITE, RUNTIME_CANNOT_RUN).
    """
    return _Replay(graph, batch, visit, history, magnitudes).run()


def simulate(graph: SpikingGraph, batch: NDArray[np.generic]) -> Recording:
    """`graph` in float64 on its own spikes. The reference of every comparison. Raises as `replay`."""
    fired: dict[str, list[NDArray[np.bool_]]] = {neuron.name: [] for neuron in graph.neurons}
    logits = replay(graph, batch, lambda step: fired[step.neuron.name].append(step.fires))
    return Recording({name: SpikeTrain.pack(np.stack(steps, axis=1)) for name, steps in fired.items()}, logits)


class _Replay:
    def __init__(
        self,
        graph: SpikingGraph,
        batch: NDArray[np.generic],
        visit: Visitor,
        history: Mapping[str, SpikeTrain] | None,
        magnitudes: bool,
    ) -> None:
        for neuron in graph.neurons:
            names = [variable.name for variable in neuron.state]
            if names != ["membrane"]:
                raise DalifError(
                    Code.RUNTIME_CANNOT_RUN,
                    f"node '{neuron.name}' (Neuron): has the state variables {', '.join(names)}; "
                    "only neurons whose only state is 'membrane' can be replayed",
                )
        self.graph = graph
        self.inputs = graph.input_spec.module_input(batch).astype(np.float64)
        self.visit = visit
        self.history = history
        # Pairs of (value, magnitude): one evaluation each, magnitude only on demand.
        self.magnitudes = magnitudes
        self.values: dict[str, tuple[Values, Values | None]] = {}
        self.past: dict[str, list[tuple[Values, Values | None]]] = {
            edge.source: [] for node in graph.nodes for edge in node.inputs if edge.delay
        }
        self.membrane: dict[str, Array] = {}
        self.per_step: list[Values] = []

    def run(self) -> Array:
        for t in range(self.graph.timesteps):
            for node in self.graph.nodes:
                if node.name in self.graph.after_readout:
                    continue
                if t == 0 or self.graph.types[node.name].temporal:
                    self.values[node.name] = self._step(node, t)
            self.per_step.append(self.values[self.graph.readout.inputs[0].source][0])
            for name, steps in self.past.items():
                steps.append(self.values[name])
        for node in self.graph.nodes:
            if node.name in self.graph.after_readout:
                self.values[node.name] = self._once(node)
        return np.asarray(self.values[self.graph.output][0])

    def _step(self, node: Node, t: int) -> tuple[Values, Values | None]:
        if isinstance(node, Input):
            x = self.inputs[:, t] if node.temporal else self.inputs
            return x, np.abs(x) if self.magnitudes else None
        if isinstance(node, Zeros):
            return self._zeros(node.shape)
        sources = [self._source(edge, t) for edge in node.inputs]
        if isinstance(node, Neuron):
            spikes = self._integrate(node, *sources[0], t)
            return spikes, spikes if self.magnitudes else None
        return self._evaluate(node, sources)

    def _once(self, node: Node) -> tuple[Values, Values | None]:
        if isinstance(node, Readout):
            return reduce_time(np.stack(self.per_step, axis=1), node.mode), None
        return evaluate(node, [self.values[edge.source][0] for edge in node.inputs]), None

    def _source(self, edge: Edge, t: int) -> tuple[Values, Values | None]:
        if not edge.delay:
            return self.values[edge.source]
        if t >= edge.delay:
            return self.past[edge.source][t - edge.delay]
        return self._zeros(self.graph.types[edge.source].shape)

    def _zeros(self, shape: tuple[int, ...]) -> tuple[Values, Values | None]:
        zeros = np.zeros((len(self.inputs), *shape))
        return zeros, zeros if self.magnitudes else None

    def _evaluate(self, node: Node, sources: list[tuple[Values, Values | None]]) -> tuple[Values, Values | None]:
        value = evaluate(node, [value for value, _ in sources])
        magnitudes = [magnitude for _, magnitude in sources if magnitude is not None]
        return value, evaluate(node, magnitudes, magnitude=True) if magnitudes else None

    def _integrate(self, node: Neuron, current: Values, current_magnitude: Values | None, t: int) -> Values:
        before = self.membrane.get(node.name)
        if before is None:
            before = np.full(current.shape, node.state[0].initial)
        leak = node.beta * (before - node.leak_target) + node.leak_target
        potential = leak + node.alpha * current
        fires = potential >= node.v_threshold if node.fires_at == "ge" else potential > node.v_threshold
        magnitude: Values | None = None
        if current_magnitude is not None:
            magnitude = np.abs(node.alpha) * current_magnitude + np.abs(node.beta * (before - node.leak_target))
            magnitude = magnitude + np.abs(node.leak_target) + np.abs(node.v_threshold)
        spikes = fires if self.history is None else self.history[node.name].step(t)
        if node.reset == "hard":
            held = np.where(spikes, node.v_reset, potential)
        else:
            held = potential - node.v_threshold * spikes
        self.membrane[node.name] = held
        self.visit(NeuronStep(node, t, current, potential, fires, held, magnitude, current_magnitude))
        return spikes.astype(np.float64)
