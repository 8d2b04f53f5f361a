"""Carries gain * x + offset over a sum or a concatenation, back into the branches that it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Add, Array, Concat, Edge, Node, Scale, frozen
from dalif_deploy.passes.affine import scaled


@dataclass
class Carried:
    """What becomes of the branches: nodes that change, and Scales that are added. `into`: where the gain went."""

    changes: dict[str, Node] = field(default_factory=dict)
    added: list[Scale] = field(default_factory=list)
    into: list[str] = field(default_factory=list)


def carry_back(
    graph: SpikingGraph, nodes: Mapping[str, Node], source: str, factor: Array, offset: Array
) -> Carried | None:
    """`source`, an Add or Concat of `nodes`, as if its output were factor * output + offset.

    `graph` tells shapes; `nodes` are its nodes as changed so far, which read nothing that is gone. Only the reader
    that asks may read `source`, and only `source` may read what changes: a branch with weights of its own takes the
    gain into them, any other gets a Scale. The offset goes to one branch of a sum, and to each of a concatenation.
    None where no branch has weights of its own, or an offset would have to travel over a delayed edge, which delivers
    zeros first.
    """
    readers = Counter(edge.source for node in nodes.values() for edge in node.inputs)
    if readers[source] != 1:
        return None
    carried = Carried()
    alone = {name for name, count in readers.items() if count == 1 and name != graph.output}
    walk = _Walk(graph, nodes, alone)
    if not walk.carry(source, _full(factor, graph, source), _full(offset, graph, source), carried):
        return None
    return carried if any(not isinstance(nodes[name], Scale) for name in carried.into) else None


def _full(values: Array, graph: SpikingGraph, name: str) -> Array:
    """`values` with all feature axes, and the channels written out, so that channels can be cut."""
    shape = graph.types[name].shape
    aligned = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    return frozen(np.broadcast_to(aligned, (shape[0], *aligned.shape[1:])))


@dataclass(frozen=True)
class _Walk:
    """`alone`: the nodes that have just one reader."""

    graph: SpikingGraph
    nodes: Mapping[str, Node]
    alone: set[str]

    def carry(self, source: str, factor: Array, offset: Array, carried: Carried) -> bool:
        """Carries over `source`, as if it were factor * output + offset; False where that cannot be."""
        node = self.nodes[source]
        # The offset of a sum goes to a branch that can hold it for nothing, else to the first that is not delayed.
        present = [i for i, edge in enumerate(node.inputs) if not edge.delay]
        takes = next((i for i in present if self._own(node.inputs[i].source)), present[0] if present else None)
        if isinstance(node, Add) and takes is None and np.any(offset):
            return False
        edges: list[Edge] = []
        start = 0
        for i, edge in enumerate(node.inputs):
            gain, shift = factor, offset if i == takes else frozen(np.zeros_like(offset))
            if isinstance(node, Concat):
                stop = start + self._shape(edge.source)[0]
                gain, shift = frozen(factor[start:stop]), frozen(offset[start:stop])
                start = stop
            if edge.delay and np.any(shift):
                return False
            edges.append(self._branch(source, edge, gain, shift, carried))
        if tuple(edges) != node.inputs:
            carried.changes[source] = replace(node, inputs=tuple(edges))
        return True

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a node; a Scale that was added since `graph` was built has its input's."""
        while name not in self.graph:
            name = self.nodes[name].inputs[0].source
        return self.graph.types[name].shape

    def _own(self, name: str) -> bool:
        """Whether a branch has weights that nothing else reads."""
        ndim = len(self._shape(name))
        return name in self.alone and scaled(self.nodes[name], frozen(1.0), frozen(0.0), ndim) is not None

    def _branch(self, reader: str, edge: Edge, gain: Array, shift: Array, carried: Carried) -> Edge:
        name = edge.source
        node = self.nodes[name]
        if name in self.alone:
            folded = scaled(node, gain, shift, len(self._shape(name)))
            if folded is not None:
                carried.changes[name] = folded
                carried.into.append(name)
                return edge
            if isinstance(node, Add | Concat):
                inner = Carried()
                if self.carry(name, gain, shift, inner) and inner.into:
                    carried.changes.update(inner.changes)
                    carried.added.extend(inner.added)
                    carried.into.extend(inner.into)
                    return edge
        fresh, number = f"{name}.scaled.{reader}", 2
        while fresh in self.graph or fresh in self.nodes or any(scale.name == fresh for scale in carried.added):
            fresh, number = f"{name}.scaled.{reader}.{number}", number + 1
        carried.added.append(Scale(name=fresh, inputs=(Edge(name),), factor=_small(gain), offset=_small(shift)))
        return Edge(fresh, edge.delay)


def _small(values: Array) -> Array:
    """One number where all are the same."""
    return frozen(values.flat[0]) if values.size and (values == values.flat[0]).all() else values
