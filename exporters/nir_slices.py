"""A snapped graph with every exact sum in two halves, as NIR can say it: two edges into whatever reads the sum.

    X = fl(X_high + X_low)    two float32 numbers, each an exact sum whatever the order of its terms, are added once

- A layer with weights becomes <layer>.high and <layer>.low, its first and its second slice; a Scale becomes
  <scale>.high_term and <scale>.low_term.
- What is added as it is (spikes, counts) goes into the half whose grid holds it: the high one or, where that is
  coarser than 1, the low one; where it differs from channel to channel, through diagonal 1x1 convolutions of ones and
  zeros, <sum>.high_term<n> and <sum>.low_term<n>.
- A half of several terms is added up by an identity, <sum>.high or <sum>.low, so that whatever reads the sum adds two
  numbers and no more: readers may add three in any order.
- A map that is added as it is, as a mean is at padded borders, is a convolution of a single 1, <input>.one: NIR has no
  offset that differs from place to place.
- A sum pool that a reader cannot compute as the mean of a window times its size (see `lattice.mean_gives_back`) is a
  convolution with ones.

The names of neurons, and of sums that a neuron or the readout reads, stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir_pools import as_convolution
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import Lattice, find_sums, identity_digits, mean_gives_back, with_values
from dalif_deploy.nodes import Add, Array, Conv2d, Edge, Input, Linear, Node, Scale, SumPool2d, frozen

_HALVES = ("high", "low")
ONE = ".one"
"""How the name of the node ends that always gives 1."""

_Terms = tuple[tuple[Edge, ...], tuple[Edge, ...]]
"""What adds up to the high half of a sum, and to its low half."""


def in_halves(graph: SpikingGraph, lattices: Mapping[str, Lattice]) -> SpikingGraph:
    """The snapped `graph`, whose `lattices` have two slices each, with its sums in halves: the same function.

    Raises `DalifError` (TARGET_CANNOT_HOLD), naming the node, where a name that is needed is taken, and as `find_sums`.
    """
    return _Halving(graph, lattices).result()


class _Halving:
    def __init__(self, graph: SpikingGraph, lattices: Mapping[str, Lattice]) -> None:
        self._graph = graph
        self._lattices = lattices
        self._sums = find_sums(graph)
        self._lattice_of = {
            node.name: next(lattices[n.name] for n in group if n.name in lattices)
            for group in self._sums.groups
            for node in group
        }
        self._terms: dict[str, _Terms] = {}
        self._one: Edge | None = None
        self._nodes: list[Node] = []

    def result(self) -> SpikingGraph:
        graph = self._graph
        for node in graph.nodes:
            if node.name in self._lattice_of:
                self._terms[node.name] = self._added_up(node) if isinstance(node, Add) else self._weighted(node)
                if any(reader.name not in self._lattice_of for reader in graph.consumers[node.name]):
                    self._join(node)
            elif isinstance(node, SumPool2d) and not self._is_exact(node):
                self._nodes.append(as_convolution(node, graph.types[node.inputs[0].source].shape))
            else:
                self._nodes.append(node)
        return graph.with_nodes(self._nodes)

    def _weighted(self, node: Node) -> _Terms:
        if isinstance(node, Scale) and self._is_map(node):
            return self._mapped(node)
        role = "_term" if isinstance(node, Scale) else ""
        slices = [with_values(node, self._lattices[node.name].digit(place)) for place in range(len(_HALVES))]
        high, low = (
            self._new(node, replace(slice_, name=f"{node.name}.{half}{role}"))
            for half, slice_ in zip(_HALVES, slices, strict=True)
        )
        return (high,), (low,)

    def _is_map(self, node: Scale) -> bool:
        """Whether a Scale of zeros is a map of offsets."""
        constant = self._sums.whole[node.inputs[0].source] == 0
        return constant and len(self._graph.input.shape) == len(self._sums.shape(node)) == 3

    def _mapped(self, node: Scale) -> _Terms:
        """Two convolutions of a single 1: every output meets that place once."""
        one = self._one or self._new(self._graph.input, _one_of(self._graph.input))
        self._one = one
        shape = self._sums.shape(node)
        ends = []
        for place, half in enumerate(_HALVES):
            half_of = with_values(node, self._lattices[node.name].digit(place))
            assert isinstance(half_of, Scale)
            values = np.broadcast_to(half_of.offset, shape)
            ends.append(self._new(node, _map_conv(f"{node.name}.{half}_term", one, values)))
        return (ends[0],), (ends[1],)

    def _added_up(self, node: Add) -> _Terms:
        high: list[Edge] = []
        low: list[Edge] = []
        for number, edge in enumerate(node.inputs):
            terms = self._terms.get(edge.source) or self._as_it_is(node, number, edge)
            for half, found in zip((high, low), terms, strict=True):
                half += [replace(term, delay=term.delay + edge.delay) for term in found]
        return tuple(high), tuple(low)

    def _as_it_is(self, node: Add, number: int, edge: Edge) -> _Terms:
        """A whole number that is added to a sum, in the half that holds it."""
        lattice = self._lattice_of[node.name]
        digits = identity_digits(np.maximum(lattice.exponents, 0), lattice.bases)
        source = Edge(edge.source)
        if digits[0].all():
            return (source,), ()
        if not digits[0].any():
            return (), (source,)
        shape = self._graph.types[edge.source].shape
        high, low = (
            self._new(
                node, _diagonal(f"{node.name}.{half}_term{number}", (source,), (digit != 0).astype(np.float64), shape)
            )
            for half, digit in zip(_HALVES, digits, strict=True)
        )
        return (high,), (low,)

    def _join(self, node: Node) -> None:
        """The sum itself, for whatever is no sum and reads it."""
        shape = self._graph.types[node.name].shape
        both: list[Edge] = []
        for half, terms in zip(_HALVES, self._terms[node.name], strict=True):
            if len(terms) > 1:
                total = self._new(node, Add(name=f"{node.name}.{half}_terms", inputs=terms))
                terms = (self._new(node, _diagonal(f"{node.name}.{half}", (total,), np.ones(shape[0]), shape)),)
            both += terms
        self._nodes.append(Add(name=node.name, inputs=tuple(both)))

    def _new(self, node: Node, made: Node) -> Edge:
        if made.name in self._graph:
            raise DalifError(
                Code.TARGET_CANNOT_HOLD,
                f"node '{node.name}' ({type(node).__name__}): exact NIR files call a part of it '{made.name}', and the "
                "network has a node of that name; rename that",
            )
        self._nodes.append(made)
        return Edge(made.name)

    def _is_exact(self, node: SumPool2d) -> bool:
        return mean_gives_back(self._sums.whole[node.inputs[0].source], node.kernel[0] * node.kernel[1])


def _one_of(node: Input) -> Conv2d:
    """A map of one place that is always 1."""
    channels, height, width = node.shape
    return Conv2d(
        name=f"{node.name}{ONE}", inputs=(Edge(node.name),), weight=frozen(np.zeros((1, channels, 1, 1))),
        bias=frozen(np.ones(1)), stride=(height, width),
    )  # fmt: skip


def _map_conv(name: str, one: Edge, values: Array) -> Conv2d:
    """A convolution that makes `values`, (channels, height, width), of a single 1.

    Output y reads row padding - stride * y of a kernel over one place with padding all round.

    nir takes kernels for square ones. Where height and width differ by an even number, zeros can make this one square;
    where by an odd one, it is made with a stride of 2 along the shorter side, at which no parity is asked for.
    """
    channels, *size = values.shape
    if (size[0] - size[1]) % 2 == 0:
        padding, weight = (size[0] - 1, size[1] - 1), values[:, None, ::-1, ::-1]
        return Conv2d(name=name, inputs=(one,), weight=frozen(weight), padding=padding)
    short, long = sorted(size)
    side = max(long, 2 * short - 1 + short % 2)  # odd or even as the long side is
    axes = [(2, n - 1 + side // 2) if n == short else (1, (n + side) // 2 - 1) for n in size]
    (down, top), (across, left) = axes
    kernel = np.zeros((channels, 1, side, side))
    rows, columns = top - down * np.arange(size[0]), left - across * np.arange(size[1])
    kernel[:, 0, rows[:, None], columns] = values
    return Conv2d(name=name, inputs=(one,), weight=frozen(kernel), stride=(down, across), padding=(top, left))


def _diagonal(name: str, inputs: Sequence[Edge], values: Array, shape: tuple[int, ...]) -> Node:
    """Every channel multiplied with its own number."""
    weight = np.diag(values)
    if len(shape) == 1:
        return Linear(name=name, inputs=tuple(inputs), weight=frozen(weight))
    return Conv2d(name=name, inputs=tuple(inputs), weight=frozen(weight[:, :, None, None]))
