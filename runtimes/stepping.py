"""The order of computation shared by the runtimes that compute a SpikingGraph step by step.

What is static is computed once, before the first timestep; then every timestep in topological order, with
the past of delayed edges at hand; then, once, the readout and what follows it. What a node computes is the
business of a `Computer`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Edge, Input, Neuron, Node, Readout, Zeros
from dalif_deploy.recording import SpikeTrain

V = TypeVar("V")


class Computer(Protocol[V]):
    """How one runtime computes nodes; a value `V` is [batch, *shape] in the runtime's own array type."""

    def compute(self, node: Node, inputs: Sequence[V]) -> V:
        """The output of a stateless node."""
        ...

    def zeros(self, shape: tuple[int, ...], fill: float = 0.0) -> V:
        """An array of `shape` holding `fill`."""
        ...

    def fire(self, neuron: Neuron, held: V, current: V) -> tuple[V, V, NDArray[np.bool_]]:
        """One step: H[t-1] and the input current -> spikes as values, H[t], spikes as bool."""
        ...

    def read_out(self, node: Readout, steps: Sequence[V]) -> V:
        """Reduces the outputs of all timesteps."""
        ...


def run_steps(
    graph: SpikingGraph, input_at: Callable[[int], V], batch: int, computer: Computer[V]
) -> tuple[dict[str, SpikeTrain], V]:
    """Runs `graph` from its initial state over its timesteps; the spikes by layer, and the output.

    `input_at(t)`: the network's input at step t, [batch, *shape].
    """
    after = graph.after_readout
    computed = [node for node in graph.nodes if node.name not in after and not isinstance(node, Input)]
    once = [node for node in computed if not graph.types[node.name].temporal]
    every_step = [node for node in computed if graph.types[node.name].temporal]
    past: dict[str, deque[V]] = _past(graph)
    held = {n.name: computer.zeros((batch, *graph.types[n.name].shape), n.state[0].initial) for n in graph.neurons}
    values: dict[str, V] = {}
    bits: dict[str, list[NDArray[np.uint8]]] = {neuron.name: [] for neuron in graph.neurons}
    outputs: list[V] = []

    def read(edge: Edge) -> V:
        if not edge.delay:
            return values[edge.source]
        if len(past[edge.source]) < edge.delay:
            return computer.zeros((batch, *graph.types[edge.source].shape))
        return past[edge.source][-edge.delay]

    for t in range(graph.timesteps):
        if t == 0 or graph.input.temporal:
            values[graph.input.name] = input_at(t)
        for node in every_step if t else [*once, *every_step]:
            inputs = [read(edge) for edge in node.inputs]
            if isinstance(node, Neuron):
                values[node.name], held[node.name], fired = computer.fire(node, held[node.name], inputs[0])
                bits[node.name].append(np.packbits(fired.reshape(batch, -1), axis=-1))
            elif isinstance(node, Zeros):
                values[node.name] = computer.zeros((batch, *node.shape))
            else:
                values[node.name] = computer.compute(node, inputs)
        outputs.append(values[graph.readout.inputs[0].source])
        for name, ring in past.items():
            ring.append(values[name])

    for node in graph.nodes:
        if node is graph.readout:
            values[node.name] = computer.read_out(graph.readout, outputs)
        elif node.name in after:
            values[node.name] = computer.compute(node, [read(edge) for edge in node.inputs])
    spikes = {
        neuron.name: SpikeTrain(np.stack(bits[neuron.name], axis=1), graph.types[neuron.name].shape)
        for neuron in graph.neurons
    }
    return spikes, values[graph.output]


def require_membrane_only(graph: SpikingGraph, runtime: str) -> None:
    """Refuses neurons with state beyond the membrane potential. Raises `DalifError` (RUNTIME_CANNOT_RUN)."""
    for neuron in graph.neurons:
        names = [variable.name for variable in neuron.state]
        if names != ["membrane"]:
            raise DalifError(
                Code.RUNTIME_CANNOT_RUN,
                f"node '{neuron.name}' (Neuron): has the state variables {', '.join(names) or 'none'}; the "
                f"{runtime} runtime computes neurons whose only state is 'membrane'",
            )


def rounded_parameters(node: Node, dtype: np.dtype[np.floating], runtime: str) -> dict[str, NDArray[np.floating]]:
    """A node's arrays rounded to `dtype`, once. Raises `DalifError` (RUNTIME_CANNOT_RUN) beyond its range."""
    rounded = {}
    for key, values in node.arrays().items():
        with np.errstate(over="ignore"):
            rounded[key] = values.astype(dtype)
        if (np.isinf(rounded[key]) & np.isfinite(values)).any():
            raise DalifError(
                Code.RUNTIME_CANNOT_RUN,
                f"node '{node.name}' ({type(node).__name__}): {key} has values beyond {dtype}; run the "
                f"{runtime} runtime in float64",
            )
    return rounded


def _past(graph: SpikingGraph) -> dict[str, deque[V]]:
    """For every source of a delayed edge, room for as many past values as its longest delay."""
    longest: dict[str, int] = {}
    for node in graph.nodes:
        for edge in node.inputs:
            if edge.delay:
                longest[edge.source] = max(edge.delay, longest.get(edge.source, 0))
    return {name: deque(maxlen=delay) for name, delay in longest.items()}
