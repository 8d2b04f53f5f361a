"""Takes concatenations apart: the same network of nodes that have one input, and sums.

For targets that know no concatenation, and for sums that must lie on one grid. Every rule is exact:

1. A Flatten, Scale, BatchNorm or pool of a concatenation is that of each of its parts.
2. A layer with weights is the sum of one for each part, with its slice of the weights:
   W [x; y] = W_x x + W_y y. The bias goes to one of them.
3. Anything else reads a sum of parts that are zero outside their own channels: a layer with weights that only the
   concatenation reads gets zero rows, a sum of such layers likewise, and whatever else is selected by a 1x1
   convolution (or linear layer) of ones and zeros.

The names of neurons, and of whatever is no concatenation or layer on one, stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    Add,
    Array,
    BatchNorm,
    Concat,
    Conv2d,
    Edge,
    Flatten,
    Linear,
    Node,
    Pool2d,
    Scale,
    Zeros,
    frozen,
)


def without_concats(graph: SpikingGraph) -> SpikingGraph:
    """The same graph without a Concat; the graph itself where there is none. Equal in exact arithmetic."""
    if not any(isinstance(node, Concat) for node in graph.nodes):
        return graph
    return _Taking(graph).result()


@dataclass(frozen=True)
class _Part:
    """`edge` delivers the channels from `start` on, of which there are shape[0]."""

    edge: Edge
    start: int
    shape: tuple[int, ...]

    @property
    def channels(self) -> slice:
        return slice(self.start, self.start + self.shape[0])


class _Taking:
    def __init__(self, graph: SpikingGraph) -> None:
        self._graph = graph
        self._nodes: dict[str, Node] = {}
        self._parts: dict[str, tuple[_Part, ...]] = {}

    def result(self) -> SpikingGraph:
        waiting = list(self._graph.nodes)
        # A delayed edge may come before its source, which may be a concatenation, or a layer on one.
        while waiting:
            open_ = {node.name for node in waiting if isinstance(node, Concat) or self._carries(node)}
            ready = (node for node in waiting if not any(edge.source in open_ for edge in node.inputs))
            node = next(ready, waiting[0])
            waiting.remove(node)
            self._take(node)
        while wanted := [name for name in self._parts if name not in self._nodes and self._is_read(name)]:
            for name in wanted:
                self._join(name, wanted)
        notes = [f"{node.name}: concatenation taken apart" for node in self._graph.nodes if isinstance(node, Concat)]
        return self._graph.with_nodes(self._nodes.values(), note=notes)

    def _is_read(self, name: str) -> bool:
        read = any(edge.source == name for node in self._nodes.values() for edge in node.inputs)
        return read or name == self._graph.output

    @staticmethod
    def _carries(node: Node) -> bool:
        return isinstance(node, Flatten | Scale | BatchNorm | Pool2d)

    def _take(self, node: Node) -> None:
        if isinstance(node, Concat):
            self._parts[node.name] = tuple(self._parts_of(node.inputs))
            return
        parts = self._parts.get(node.inputs[0].source) if len(node.inputs) == 1 else None
        if parts is not None and self._carries(node):
            self._each(node, tuple(_later(part, node.inputs[0].delay) for part in parts))
        elif parts is not None and (isinstance(node, Linear) or (isinstance(node, Conv2d) and node.groups == 1)):
            self._sum(node, tuple(_later(part, node.inputs[0].delay) for part in parts))
        else:  # it reads the whole, which is joined at the end
            self._nodes[node.name] = node

    def _parts_of(self, edges: Iterable[Edge]) -> Iterable[_Part]:
        start = 0
        for edge in edges:
            shape = self._graph.types[edge.source].shape
            for part in self._parts.get(edge.source, (_Part(edge, 0, shape),)):
                own = part if part.edge is edge else _later(part, edge.delay)
                yield replace(own, start=start + part.start)
            start += shape[0]

    def _each(self, node: Node, parts: tuple[_Part, ...]) -> None:
        """Rule 1."""
        found = []
        channels = self._graph.types[node.inputs[0].source].shape[0]
        per_channel = self._graph.types[node.name].shape[0] // channels
        for i, part in enumerate(parts):
            name = self._fresh(f"{node.name}.part{i}")
            own = replace(node, name=name, inputs=(part.edge,), **_channels_of(node, part, self._shape_before(node)))
            self._nodes[name] = own
            shape = (part.shape[0] * per_channel, *self._graph.types[node.name].shape[1:])
            found.append(_Part(Edge(name), part.start * per_channel, shape))
        self._parts[node.name] = tuple(found)

    def _shape_before(self, node: Node) -> tuple[int, ...]:
        return self._graph.types[node.inputs[0].source].shape

    def _sum(self, node: Conv2d | Linear, parts: tuple[_Part, ...]) -> None:
        """Rule 2."""
        live = [part for part in parts if not isinstance(self._nodes.get(part.edge.source), Zeros)] or list(parts[:1])
        if len(live) == 1:
            weight = frozen(node.weight[:, live[0].channels])
            self._nodes[node.name] = replace(node, inputs=(live[0].edge,), weight=weight)
            return
        names = []
        for i, part in enumerate(live):
            names.append(self._fresh(f"{node.name}.part{i}"))
            bias = node.bias if i == 0 else None
            weight = frozen(node.weight[:, part.channels])
            self._nodes[names[-1]] = replace(node, name=names[-1], inputs=(part.edge,), weight=weight, bias=bias)
        self._nodes[node.name] = Add(name=node.name, inputs=tuple(Edge(name) for name in names))

    def _join(self, name: str, joined: Sequence[str]) -> None:
        """Rule 3, for whoever reads the whole. `joined`: all names that are read as a whole."""
        shape = self._graph.types[name].shape
        parts = self._parts[name]
        # How often something else, or another part, reads a source.
        readers = Counter(edge.source for node in self._nodes.values() for edge in node.inputs)
        readers.update(part.edge.source for other in joined for part in self._parts[other])
        edges: list[Edge] = []
        for part in parts:
            edges += self._placed(name, part.edge, part.start, shape, readers)
        self._nodes[name] = Add(name=name, inputs=tuple(edges) or (self._zeros(name, shape),))

    def _zeros(self, name: str, shape: tuple[int, ...]) -> Edge:
        zeros = self._fresh(f"{name}.zeros")
        self._nodes[zeros] = Zeros(name=zeros, shape=shape)
        return Edge(zeros)

    def _placed(
        self, reader: str, edge: Edge, start: int, shape: tuple[int, ...], readers: Mapping[str, int]
    ) -> list[Edge]:
        """Edges that add up to what `edge` delivers, at the channels from `start` on of `shape`."""
        node = self._nodes.get(edge.source)
        if isinstance(node, Zeros):
            return []
        if node is not None and readers[node.name] == 1 and node.name != self._graph.output:
            if isinstance(node, Conv2d | Linear):
                self._nodes[node.name] = _with_rows(node, start, shape[0])
                return [edge]
            if isinstance(node, Add) and len({term.source for term in node.inputs}) == len(node.inputs):
                del self._nodes[node.name]
                late = [Edge(term.source, term.delay + edge.delay) for term in node.inputs]
                return [one for term in late for one in self._placed(reader, term, start, shape, readers)]
            if isinstance(node, Scale) and (affine := _per_channel(node, len(shape))) is not None:
                gain, offset = affine
                if not (edge.delay and np.any(offset)):
                    del self._nodes[node.name]
                    source = Edge(node.inputs[0].source, node.inputs[0].delay + edge.delay)
                    return [self._selected(reader, source, start, shape, gain, offset)]
        return [self._selected(reader, edge, start, shape, frozen(1.0), frozen(0.0))]

    def _selected(
        self, reader: str, edge: Edge, start: int, shape: tuple[int, ...], gain: Array, offset: Array
    ) -> Edge:
        """A layer of `shape` that is gain * x + offset at the channels from `start` on, and else 0."""
        channels = self._channels(edge.source)
        own = slice(start, start + channels)
        weight, bias = np.zeros((shape[0], channels)), np.zeros(shape[0])
        weight[own], bias[own] = np.diag(np.broadcast_to(gain, (channels,))), offset
        name = self._fresh(f"{edge.source}.at{start}.{reader}")
        added = frozen(bias) if bias.any() else None
        if len(shape) == 1:
            self._nodes[name] = Linear(name=name, inputs=(edge,), weight=frozen(weight), bias=added)
        else:
            self._nodes[name] = Conv2d(name=name, inputs=(edge,), weight=frozen(weight[:, :, None, None]), bias=added)
        return Edge(name)

    def _channels(self, name: str) -> int:
        if name in self._graph:
            return self._graph.types[name].shape[0]
        return next(part.shape[0] for parts in self._parts.values() for part in parts if part.edge.source == name)

    def _fresh(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self._graph or name in self._nodes:
            name, number = f"{wanted}.{number}", number + 1
        return name


def _later(part: _Part, delay: int) -> _Part:
    return part if not delay else replace(part, edge=Edge(part.edge.source, part.edge.delay + delay))


def _channels_of(node: Node, part: _Part, shape: tuple[int, ...]) -> dict[str, Array]:
    """The parameters of a Scale or BatchNorm for some of its channels."""
    found = {}
    for key, values in node.arrays().items():
        if isinstance(node, BatchNorm):
            found[key] = frozen(values[part.channels])
            continue
        aligned = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
        found[key] = values if aligned.shape[0] == 1 else frozen(aligned[part.channels])
    return found


def _with_rows(node: Conv2d | Linear, start: int, channels: int) -> Conv2d | Linear:
    """`node` with `channels` outputs, of which its own stand at `start` and the others are zero."""
    weight = node.weight
    if isinstance(node, Conv2d) and node.groups > 1:  # zeros between the groups
        out, into = len(weight) // node.groups, weight.shape[1]
        weight = np.zeros((len(weight), into * node.groups, *weight.shape[2:]))
        for g in range(node.groups):
            rows = slice(g * out, (g + 1) * out)
            weight[rows, g * into : (g + 1) * into] = node.weight[rows]
        node = replace(node, groups=1)
    full = np.zeros((channels, *weight.shape[1:]))
    full[start : start + len(weight)] = weight
    if node.bias is None:
        return replace(node, weight=frozen(full))
    bias = np.zeros(channels)
    bias[start : start + len(weight)] = node.bias
    return replace(node, weight=frozen(full), bias=frozen(bias))


def _per_channel(node: Scale, ndim: int) -> tuple[Array, Array] | None:
    """Factor and offset as one number a channel, (channels,) or (), or None where they differ within one."""
    found = []
    for values in (node.factor, node.offset):
        aligned = values.reshape((1,) * (ndim - values.ndim) + values.shape)
        if any(n != 1 for n in aligned.shape[1:]):
            return None
        found.append(aligned.reshape(-1) if aligned.size > 1 else aligned.reshape(()))
    return found[0], found[1]
