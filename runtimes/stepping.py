"""The order of computation shared by the runtimes that compute a SpikingGraph step by step.

What is static is computed once, before the first timestep; then every timestep in topological order, with
the past of delayed edges at hand; then, once, the readout and what follows it. What a node computes is the
business of a `Computer`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Edge, Input, Neuron, Node, Readout, Zeros
from dalif_deploy.recording import SpikeTrain

V = TypeVar("V")

Arithmetic = Literal["float", "exact", "exact64"]
WatchPotential = Callable[[str, NDArray[np.floating]], None]
"""Shown a layer's name and its potential V [batch, *shape] before the reset, in its own dtype, step by step."""


@dataclass(frozen=True)
class Precisions:
    """In which dtypes a runtime computes.

    "float": everything in one. In exact arithmetic, of a snapped graph, one definition holds for all runtimes:

    - X, a neuron's input, is the exact sum over all of its branches, in whatever order: here in float64, which
      holds it. It is rounded once to the membrane's dtype, float32 for "exact" and float64 for "exact64".
    - P = beta * H and V = P + X are two operations in the membrane's dtype, each rounded; beta, v_th and v_reset
      are rounded to it once.
    - The outputs of the timesteps are rounded like X, summed in the order of time, and divided once.
    """

    exact: bool
    sums: np.dtype[np.floating]
    membrane: np.dtype[np.floating]

    @classmethod
    def of(cls, arithmetic: Arithmetic, dtype: str) -> Self:
        """`dtype`: of "float". Raises `DalifError` (BAD_OPTION) for an unknown arithmetic."""
        if arithmetic not in get_args(Arithmetic):
            raise DalifError(Code.BAD_OPTION, f"arithmetic {arithmetic!r}: give 'float', 'exact' or 'exact64'")
        if arithmetic == "float":
            return cls(False, np.dtype(dtype), np.dtype(dtype))
        return cls(True, np.dtype("float64"), np.dtype("float32" if arithmetic == "exact" else "float64"))

    @property
    def description(self) -> str:
        """One phrase for people."""
        return f"exact sums, rounded once to {self.membrane}" if self.exact else str(self.sums)


def require_codes(encoding: Encoding, batch: NDArray[Any]) -> None:
    """Exact arithmetic takes whole numbers: uint8 codes where the encoding is uint8, else spikes.

    Raises `DalifError` (BAD_DATA)."""
    if encoding.kind == "uint8" and batch.dtype != np.uint8:
        raise DalifError(
            Code.BAD_DATA, f"data of type {batch.dtype}: exact arithmetic takes the codes themselves, as uint8"
        )
    if encoding.kind != "uint8" and not np.isin(batch, (0, 1)).all():
        raise DalifError(Code.BAD_DATA, "data: the model takes spikes, so every value must be 0 or 1")


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
