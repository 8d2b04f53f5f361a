"""Replays a network in float64, on its own spikes or on spikes that somebody else recorded.

On its own spikes this is the reference that everything is compared with. On a candidate's recorded spikes
it tells, for every neuron and timestep, the potential that the candidate should have had, given what the
candidate itself had fired until then, and how far rounding can have taken the candidate's potential from it.
Both are one piece of code: a candidate whose every spike agrees with the replayed potential is, by induction,
the reference itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.membrane import MembraneError, Update
from dalif_deploy.equivalence.rounding import (
    TINY,
    Grids,
    Pools,
    U,
    gamma,
    node_error,
    snapped_error,
    unbounded_where_undefined,
    unless_overflow,
)
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Array, Edge, Input, Neuron, Node, Readout, Zeros
from dalif_deploy.operators import Values, evaluate, reduce_time
from dalif_deploy.recording import Recording, SpikeTrain


@dataclass(frozen=True, eq=False)
class NeuronStep:
    """One neuron layer at one timestep, in the graph's own units; arrays are float64 [batch, *shape].

    `current`: X[t], the input. `potential`: V[t] before the reset. `compared`: what is compared with the threshold,
    V itself unless the neuron normalises it. `fires`: whether that reaches the threshold, bool. `held`: H[t], after
    the reset. Where bounds were asked for: `current_error` bounds how far a float32 evaluation of X can lie from it,
    `bound` how far one of `compared` - v_th can lie from the exact margin; infinite where a node kind has no derived
    bound, and then `proved` is False.
    """

    neuron: Neuron
    t: int
    current: Values
    potential: Array
    compared: Array
    fires: NDArray[np.bool_]
    held: Values
    current_error: Values | None = None
    bound: Values | None = None
    proved: bool = True


Visitor = Callable[[NeuronStep], None]
Answer = Callable[[Array, Values | None], None]


def replay(
    graph: SpikingGraph,
    batch: NDArray[np.generic],
    visit: Visitor,
    *,
    history: Mapping[str, SpikeTrain] | None = None,
    update: Update | None = None,
    grids: Grids | None = None,
    unit: float = U,
    pools: Pools = "sum",
    answer: Answer | None = None,
    input_error: Values | None = None,
) -> Array:
    """Run `graph` in float64 and show every layer at every timestep to `visit`; returns the logits.

    `batch`: data as for any runtime. `history`: the spikes to follow, by layer; None follows the graph's
    own. `update`: the membrane formula of the runtime whose rounding is to be bounded; None computes no bounds.
    `grids`: of a runtime whose weights were snapped onto them, so that its sums are exact. `unit`: the unit
    roundoff of its membrane. `pools`: how it computes sum pools. `answer`: shown the logits and, with `update`, the
    bound on their error. `input_error`: how far the candidate's inputs lie from the module's, of the batch's shape.
    Raises `DalifError` (WRONG_SHAPE, BAD_DATA, NOT_FINITE, RUNTIME_CANNOT_RUN).
    """
    run = Replay(graph, batch, visit, history, update, grids, unit, pools, input_error)
    logits = run.run()
    if answer is not None:
        answer(logits, run.values[graph.output].error)
    return logits


def simulate(graph: SpikingGraph, batch: NDArray[np.generic]) -> Recording:
    """`graph` in float64 on its own spikes. The reference of every comparison. Raises as `replay`."""
    fired: dict[str, list[NDArray[np.bool_]]] = {neuron.name: [] for neuron in graph.neurons}
    logits = replay(graph, batch, lambda step: fired[step.neuron.name].append(step.fires))
    return Recording({name: SpikeTrain.pack(np.stack(steps, axis=1)) for name, steps in fired.items()}, logits)


@dataclass(frozen=True, eq=False)
class Tracked:
    """A value, and where bounds are computed its error; `proved` is False downstream of an unknown node kind."""

    value: Values
    error: Values | None
    proved: bool = True


class Replay:
    """A run of `replay`, timestep by timestep; the arguments are that function's."""

    def __init__(
        self,
        graph: SpikingGraph,
        batch: NDArray[np.generic],
        visit: Visitor,
        history: Mapping[str, SpikeTrain] | None,
        update: Update | None,
        grids: Grids | None,
        unit: float,
        pools: Pools,
        input_error: Values | None = None,
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
        if graph.input.kind == "spike" and not np.isin(self.inputs, (0.0, 1.0)).all():
            raise DalifError(Code.BAD_DATA, "data: the model takes spikes, so every value must be 0 or 1")
        self.input_error = np.zeros_like(self.inputs) if input_error is None else input_error
        if update is not None and unit == U:
            below = np.abs(self.inputs) < TINY  # which a backend may take for zero
            self.input_error = np.where(below, self.input_error + np.abs(self.inputs), self.input_error)
        self.visit = visit
        self.history = history
        self.bounded = update is not None
        self.grids = grids
        self.unit = unit
        self.pools: Pools = pools
        self.values: dict[str, Tracked] = {}
        self.past: dict[str, list[Tracked]] = {
            edge.source: [] for node in graph.nodes for edge in node.inputs if edge.delay
        }
        self.membrane: dict[str, Values] = {}
        self.errors: dict[str, MembraneError] = {}
        if update is not None:
            self.errors = {
                n.name: MembraneError(n, n.update if update == "own" else update, unit) for n in graph.neurons
            }
        self.fired: dict[str, NDArray[np.bool_]] = {}
        self.per_step: list[Tracked] = []

    def run(self) -> Array:
        for t in range(self.graph.timesteps):
            for node in self.graph.nodes:
                if node.name in self.graph.after_readout:
                    continue
                if t == 0 or self.graph.types[node.name].temporal:
                    self.values[node.name] = self._step(node, t)
            self.per_step.append(self.values[self.graph.readout.inputs[0].source])
            for name, steps in self.past.items():
                steps.append(self.values[name])
        for node in self.graph.nodes:
            if node.name in self.graph.after_readout:
                self.values[node.name] = self._once(node)
        return np.asarray(self.values[self.graph.output].value)

    def _step(self, node: Node, t: int) -> Tracked:
        if isinstance(node, Input):
            value, error = (a[:, t] if node.temporal else a for a in (self.inputs, self.input_error))
            return Tracked(value, error if self.bounded else None)
        if isinstance(node, Zeros):
            return self._zeros(node.shape)
        sources = [self._source(edge, t) for edge in node.inputs]
        if isinstance(node, Neuron):
            return self._exact(self._integrate(node, sources[0], t))
        return self._stateless(node, sources)

    def _stateless(self, node: Node, sources: list[Tracked]) -> Tracked:
        value = evaluate(node, [source.value for source in sources])
        if not self.bounded:
            return Tracked(value, None)
        errors = [source.error for source in sources if source.error is not None]
        types = [self.graph.types[edge.source] for edge in node.inputs]
        inputs = [source.value for source in sources]
        if self.grids is not None:
            return Tracked(value, snapped_error(node, inputs, errors, value, self.grids))
        error = node_error(node, inputs, errors, types, value, self.pools)
        proved = error is not None and all(source.proved for source in sources)
        return Tracked(value, np.full_like(value, np.inf) if error is None else error, proved)

    def _once(self, node: Node) -> Tracked:
        if not isinstance(node, Readout):
            return self._stateless(node, [self.values[edge.source] for edge in node.inputs])
        value = reduce_time(np.stack([step.value for step in self.per_step], axis=1), node.mode)
        if not self.bounded:
            return Tracked(value, None)
        # Every step's output is rounded once where it is taken out, if it was not before.
        errors = [step.error + self.unit * np.abs(step.value) for step in self.per_step if step.error is not None]
        error: Values = errors[-1] if node.mode == "last" else np.max(errors, axis=0)
        if node.mode in ("sum", "mean"):
            steps = len(errors)
            size = np.sum([np.abs(step.value) + e for step, e in zip(self.per_step, errors, strict=True)], axis=0)
            # The sum; and for a mean a division, or a product with a rounded reciprocal.
            error = np.sum(errors, axis=0) + gamma(steps + 3.0, self.unit) * size + steps * TINY
            error = unless_overflow(size, error) if self.unit == U else error
            error = error / steps if node.mode == "mean" else error
        return Tracked(value, error + TINY, all(step.proved for step in self.per_step))

    def _source(self, edge: Edge, t: int) -> Tracked:
        if not edge.delay:
            return self.values[edge.source]
        if t >= edge.delay:
            return self.past[edge.source][t - edge.delay]
        return self._zeros(self.graph.types[edge.source].shape)

    def _zeros(self, shape: tuple[int, ...]) -> Tracked:
        return self._exact(np.zeros((len(self.inputs), *shape)))

    def _exact(self, value: Values) -> Tracked:
        return Tracked(value, np.zeros_like(value) if self.bounded else None)

    def _integrate(self, node: Neuron, source: Tracked, t: int) -> Values:
        current = source.value
        before = self.membrane.get(node.name)
        if before is None:
            before = np.full(current.shape, node.state[0].initial)
        leak = node.beta * (before - node.leak_target) + node.leak_target
        integrated = leak + node.alpha * current
        due = None
        if node.reset_timing == "next" and t:  # a decision of the candidate's, which its spike showed
            due = self.fired[node.name]
        elif node.reset_timing != "now":
            due = _beyond(node, before)
        potential: Array = integrated if due is None else _late(node, integrated, due)
        compared = potential
        if node.normalised:
            compared = node.norm_gain * (potential - node.norm_mean) + node.norm_bias
        fires = _beyond(node, compared)
        spikes = fires if self.history is None else self.history[node.name].step(t)
        held = _reset(node, potential, spikes, due)
        self.membrane[node.name] = held
        self.fired[node.name] = spikes
        bound: Values | None = None
        if source.error is not None:
            input_error = source.error
            if self.grids is not None:  # the exact sum is rounded once, to the membrane's type
                input_error = input_error + self.unit * (np.abs(current) + input_error)
            membrane = self.errors[node.name]
            with np.errstate(invalid="ignore", over="ignore"):
                error = membrane.integrate(before, current, input_error, integrated)
                if due is not None:
                    error = membrane.reset_late(before, due, error, integrated, potential)
                error = unbounded_where_undefined(error)
                membrane.reset(spikes, error, held, due)
            bound = membrane.compared(potential, error) + membrane.threshold_error
        self.visit(NeuronStep(node, t, current, potential, compared, fires, held, source.error, bound, source.proved))
        return spikes.astype(np.float64)


def _beyond(node: Neuron, potential: Values) -> NDArray[np.bool_]:
    return np.asarray(potential >= node.v_threshold if node.fires_at == "ge" else potential > node.v_threshold)


def _late(node: Neuron, integrated: Array, due: NDArray[np.bool_]) -> Array:
    """V[t], where the reset that was `due` before this step acts now."""
    if node.reset == "hard":
        return np.where(due, node.v_reset, integrated)
    return np.asarray(integrated - node.v_threshold * due)


def _reset(node: Neuron, potential: Array, spikes: NDArray[np.bool_], due: NDArray[np.bool_] | None) -> Array:
    """H[t] of V[t]."""
    if node.reset == "none" or node.reset_timing == "next":
        return potential
    if node.reset == "hard":
        return np.where(spikes, node.v_reset, potential)
    paid = spikes if due is None else spikes.astype(np.int8) - due.astype(np.int8)
    return np.asarray(potential - node.v_threshold * paid)
