"""Exact sums: weights as whole numbers in units of a power of two, and how far the sums of them can reach.

A node is whole where its values are whole numbers from 0 up to a known maximum: input codes, spikes, and what
pools, sums and flattening make of them. What weights make of whole values is a sum: in units of 2^-k, one k for
every output channel, it is a whole number too. All terms of one sum lie on one grid, also across the branches
that add into one neuron. Where neither the positive nor the negative terms of a sum can add up to more than an
arithmetic holds exactly, every partial sum in every order is exact, with or without fused multiply-add.

To reach further than 2^24, what float32 holds, a whole number is written in digits: float32 slices, or planes
of int8. Then the sum of every digit is exact, and the digits' sums are put together in float64, which is exact
up to 2^53, or where there are just two slices in one float32 addition of exact numbers, which rounds once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    Add,
    Array,
    AvgPool2d,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Readout,
    Scale,
    SumPool2d,
    Zeros,
    frozen,
)

Form = Literal["slices2", "slices3", "planes3", "planes4"]
Precision = Literal["exact", "exact64"]
Integers = NDArray[np.int64]
Weighted = Conv2d | Linear | Scale
"""The kinds that make a sum of whole values."""

DIGITS: Mapping[Form, int] = {"slices2": 2, "slices3": 3, "planes3": 3, "planes4": 4}
LARGEST_CODE = 255
SLICE_LIMIT = 2**24
"""float32 holds every whole number up to here."""
INT32_LIMIT = 2**31 - 1
SUM_LIMIT = 2**53
"""float64 holds every whole number up to here: the limit of every whole sum."""
PLANE_INPUT_LIMIT = 127
"""The largest input of int8 planes: AVX2 adds pairs of products in int16, and 2 * 127 * 128 <= 32767."""
_NO_GRID = -2000
"""The exponent of a channel without a value that is not 0."""
GRIDS = (-100, 126)
"""The k between which 2^-k, and sums of it, are normal float32 numbers."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """The whole numbers of one snapped node with weights (Conv2d, Linear or Scale).

    weight = (sum_i digits[i] * bases[i]) * 2^-exponents, bias likewise. `exponents`: int64 (output channels,),
    along the first axis of the weights. `digits`: highest first, each int64 in the shape of the weights (of a
    Scale, its factor); `bias_digits`: likewise of the bias (the offset), or None. `inputs_maximum`: the largest
    value of the input.

    `largest`: how far the positive or the negative terms of a sum that this node is part of can reach, the
    largest over all output channels, with all branches and biases: of slices, the largest over the slices,
    each in units of its own base; of planes, that of the whole sum in units of 2^-k. `limit`: what it must not
    exceed, 2^24 or 2^53.
    """

    node: str
    form: Form
    exponents: Integers
    bases: tuple[int, ...]
    digits: tuple[Integers, ...]
    bias_digits: tuple[Integers, ...] | None
    inputs_maximum: int
    largest: int
    limit: int

    @property
    def weight(self) -> Integers:
        """The weights in units of 2^-exponents."""
        return joined(self.digits, self.bases)

    @property
    def bias(self) -> Integers | None:
        """The bias in units of 2^-exponents."""
        return None if self.bias_digits is None else joined(self.bias_digits, self.bases)

    def digit(self, place: int) -> Lattice:
        """The digit at `place` alone, on its own grid."""
        bias_digits = None if self.bias_digits is None else (self.bias_digits[place],)
        grid = self.exponents - (self.bases[place].bit_length() - 1)
        return replace(self, exponents=grid, bases=(1,), digits=(self.digits[place],), bias_digits=bias_digits)


def joined(digits: Sequence[Integers], bases: Sequence[int]) -> Integers:
    """sum_i digits[i] * bases[i]."""
    return np.asarray(sum(digit * np.int64(base) for digit, base in zip(digits, bases, strict=True)))


@dataclass(frozen=True, eq=False)
class Sums:
    """Which nodes of a graph are whole, which are sums, and which sums lie on one grid.

    `whole`: the largest value of every whole node. `groups`: the sums, each group on one grid of its own and in
    an order in which terms come before what adds them up.
    """

    graph: SpikingGraph
    whole: Mapping[str, int]
    groups: tuple[tuple[Node, ...], ...]

    def shape(self, node: Node) -> tuple[int, ...]:
        """The node's shape, (channels, ...)."""
        return self.graph.types[node.name].shape

    def inputs_maximum(self, node: Weighted) -> int:
        """The largest value of the whole node that a node with weights reads."""
        return self.whole[node.inputs[0].source]

    def has_identity(self, group: Sequence[Node]) -> bool:
        """Whether something whole is added as it is."""
        return any(self.whole.get(edge.source) for node in group if isinstance(node, Add) for edge in node.inputs)

    def reach(
        self,
        group: Sequence[Node],
        weights: Mapping[str, NDArray[Any]],
        biases: Mapping[str, NDArray[Any] | None],
        one: NDArray[Any],
    ) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """For every sum of a group, how far its positive and its negative terms can reach, (channels,) each.

        `weights`, `biases`: by node, arrays whose first axis is the channels'. `one`: what a whole value is
        multiplied with that is added as it is, (channels,). Whole numbers are added as whole numbers, in int64
        where that holds them and as Python's integers elsewhere.
        """
        found: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        for node in group:
            if not isinstance(node, Add):
                assert isinstance(node, Weighted)
                found[node.name] = _reach(node, weights[node.name], biases[node.name], self.inputs_maximum(node))
                continue
            positive, negative = np.zeros_like(one), np.zeros_like(one)
            for edge in node.inputs:
                if edge.source in found:
                    more, less = found[edge.source]
                    positive, negative = positive + more, negative + less
                else:
                    positive = positive + one * self.whole[edge.source]
            found[node.name] = positive, negative
        return found


def find_sums(graph: SpikingGraph) -> Sums:
    """The sums of a folded graph that takes codes or spikes.

    Raises `DalifError` (TARGET_CANNOT_HOLD), naming the node, where something is neither whole nor a sum.
    """
    whole = _whole_nodes(graph)
    sums = [node for node in graph.nodes if node.name not in whole and not isinstance(node, Readout)]
    for node in sums:
        _check_kind(graph, node, whole)
    ordered: list[Node] = []
    known = set(whole)
    while len(ordered) < len(sums):
        ready = [n for n in sums if n.name not in known and all(edge.source in known for edge in n.inputs)]
        if not ready:
            stuck = next(node for node in sums if node.name not in known)
            raise refusal(stuck, "adds to itself through a delayed edge, so that its sum has no largest value")
        ordered += ready
        known |= {node.name for node in ready}
    return Sums(graph, whole, _groups(ordered))


def require_exact(graph: SpikingGraph) -> None:
    """Every sum of the graph's weights, in every order, must be exact in float64.

    Raises `DalifError`: BAD_GRAPH, naming the node, where one is not, as in a graph that is not snapped, or whose
    input is made of codes by a scale; TARGET_CANNOT_HOLD as `find_sums`.
    """
    if graph.encoding.kind == "uint8" and graph.encoding != Encoding(kind="uint8"):
        raise _not_snapped(graph.input)
    sums = find_sums(graph)
    for group in sums.groups:
        weighted = [node for node in group if isinstance(node, Weighted)]
        parameters = {node.name: parameters_of(node, sums.shape(node)) for node in weighted}
        arrays = [array for pair in parameters.values() for array in pair if array is not None]
        grid = np.max([_finest(array) for array in arrays], axis=0, initial=0 if sums.has_identity(group) else _NO_GRID)
        for node in weighted:
            for array in parameters[node.name]:
                # What has more than 53 bits above the grid cannot be summed, and would not fit into 64 bits.
                if array is not None and (np.abs(_on_grid(array, grid)) > SUM_LIMIT).any():
                    raise _not_snapped(node)
        integers = {
            name: tuple(None if array is None else _on_grid(array, grid).astype(np.int64) for array in pair)
            for name, pair in parameters.items()
        }
        one = np.array([2 ** max(int(k), 0) for k in grid], dtype=object)
        weights = {name: pair[0] for name, pair in integers.items() if pair[0] is not None}
        biases = {name: pair[1] for name, pair in integers.items()}
        for name, (positive, negative) in sums.reach(group, weights, biases, one).items():
            if (positive > SUM_LIMIT).any() or (negative > SUM_LIMIT).any():
                raise _not_snapped(graph[name])


def identity_digits(exponents: Integers, bases: Sequence[int]) -> tuple[Integers, ...]:
    """The number 1 in units of 2^-exponents, (channels,) for every base: all of it in the highest digit that can
    hold it. Exponents are 0 or more."""
    digits = []
    left = np.ones(exponents.shape, dtype=bool)
    for base in bases:
        above = exponents - (base.bit_length() - 1)
        here = left & (above >= 0)
        digits.append(np.where(here, np.int64(1) << np.where(here, above, 0), 0))
        left &= ~here
    return tuple(digits)


def certificate_of(lattices: Mapping[str, Lattice], graph: SpikingGraph) -> str:
    """The certificate of an exact file, JSON: a list with one object for each convolution and linear layer.

    All numbers follow from the snapped values alone, so that anyone can recompute them. They are about the sums
    that a neuron or the readout reads, with all branches, identities and biases. A digit's grid is the coarsest
    on which all terms of its sum lie; planes count as one digit, put together.

    "node"; "form"; "exponents": for every output channel, the k of the finest of its digits' grids 2^-k, or 0
    where all is zero; "largest": how far the positive or the negative terms of a digit's sum can reach, in units
    of its grid, the largest over digits and channels; "limit": what it must not exceed, 2^24 of slices and 2^53
    of planes; "inputs_maximum": the largest value that the layer reads; "weights": the SHA-256 of the snapped weights
    that are not 0, output channel by output channel: how many there are, as little-endian int64, and they, as
    little-endian float64 in ascending order; and of the biases, where one is not 0.
    """
    sums = find_sums(graph)
    found: dict[str, tuple[Integers, int]] = {}
    for group in sums.groups:
        for root in _read_by_neurons(graph, group):
            parts = _parts(group, root)
            exponents, largest = _certified(sums, parts, lattices)
            for node in parts:
                other = found.get(node.name, (exponents, 0))
                found[node.name] = np.maximum(exponents, other[0]), max(largest, other[1])
    entries = []
    for node in graph.nodes:
        if isinstance(node, Conv2d | Linear) and node.name in found:
            lattice = lattices[node.name]
            exponents, largest = found[node.name]
            entries.append(
                {
                    "node": node.name,
                    "form": lattice.form,
                    "exponents": np.where(exponents == _NO_GRID, 0, exponents).tolist(),
                    "largest": largest,
                    "limit": SLICE_LIMIT if lattice.form.startswith("slices") else SUM_LIMIT,
                    "inputs_maximum": sums.inputs_maximum(node),
                    "weights": _digest(node),
                }
            )
    return json.dumps(entries)


def parameters_of(node: Weighted, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Weights and bias of a node whose output has `shape`, with the channels along the first axis of both.

    A Scale's factor and offset are spread over the channels; offsets that are all 0 are no bias.
    """
    if not isinstance(node, Scale):
        return node.weight, node.bias

    def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
        aligned = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
        return np.broadcast_to(aligned, (shape[0], *aligned.shape[1:]))

    return spread(node.factor), spread(node.offset) if node.offset.any() else None


def mean_gives_back(maximum: int, size: int) -> bool:
    """Whether the mean of `size` whole numbers up to `maximum`, times `size`, is their sum again in float32, whatever
    the sum; divided by `size`, or multiplied by its rounded reciprocal."""
    if maximum * size > SLICE_LIMIT:
        return False
    counts, count = np.arange(maximum * size + 1, dtype=np.float32), np.float32(size)
    divided, multiplied = counts / count, counts * (np.float32(1.0) / count)
    return np.array_equal(divided * count, counts) and np.array_equal(multiplied * count, counts)


def with_values(node: Node, lattice: Lattice) -> Conv2d | Linear | Scale:
    """The node with the values of its whole numbers, which float64 holds exactly."""

    def values(whole: Integers) -> Array:
        return frozen(_on_grid(whole.astype(np.float64), -lattice.exponents))

    bias = lattice.bias
    if isinstance(node, Scale):
        offset = frozen(np.zeros_like(node.offset)) if bias is None else values(bias)
        return replace(node, factor=values(lattice.weight), offset=offset)
    assert isinstance(node, Conv2d | Linear)
    return replace(node, weight=values(lattice.weight), bias=None if bias is None else values(bias))


def refusal(node: Node, why: str) -> DalifError:
    """What has no exact form, by name."""
    return DalifError(Code.TARGET_CANNOT_HOLD, f"node '{node.name}' ({type(node).__name__}): {why}")


def _reach(
    node: Node, weight: NDArray[Any], bias: NDArray[Any] | None, maximum: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    channels = len(weight)
    # A Scale has one weight an output; a convolution adds up all of a channel's.
    rows = weight.reshape(channels, -1, 1) if isinstance(node, Scale) else weight.reshape(channels, 1, -1)
    if rows.dtype.kind == "i" and int(np.abs(rows).max(initial=0)) * rows.shape[2] * max(maximum, 1) >= 2**61:
        rows = rows.astype(object)
    shifts = None if bias is None else bias.reshape(channels, -1)

    def one_sign(sign: int) -> NDArray[Any]:
        total = np.maximum(sign * rows, 0).sum(axis=2).max(axis=1) * maximum
        return np.asarray(total if shifts is None else total + np.maximum(sign * shifts, 0).max(axis=1))

    return one_sign(1), one_sign(-1)


def _whole_nodes(graph: SpikingGraph) -> dict[str, int]:
    found: dict[str, int] = {}
    # A delayed edge may come before its source, and a count that hears itself has no maximum.
    for _ in range(len(graph.nodes)):
        before = len(found)
        for node in graph.nodes:
            if node.name not in found and (maximum := _whole_maximum(graph, node, found)) is not None:
                found[node.name] = maximum
        if len(found) == before:
            break
    return found


def _whole_maximum(graph: SpikingGraph, node: Node, found: Mapping[str, int]) -> int | None:
    if isinstance(node, Zeros):
        return 0
    if isinstance(node, Neuron):
        return 1
    if isinstance(node, Input):
        if graph.encoding.kind == "uint8":
            return LARGEST_CODE
        return 1 if node.kind == "spike" or graph.encoding.kind == "spikes" else None
    if node.name in graph.after_readout or any(edge.source not in found for edge in node.inputs):
        return None
    maxima = [found[edge.source] for edge in node.inputs]
    if isinstance(node, MaxPool2d | Flatten):
        return maxima[0]
    if isinstance(node, SumPool2d):
        return maxima[0] * node.kernel[0] * node.kernel[1]
    return sum(maxima) if isinstance(node, Add) else None


def _check_kind(graph: SpikingGraph, node: Node, whole: Mapping[str, int]) -> None:
    if isinstance(node, Input):
        raise refusal(
            node, "real-valued input; exact sums need whole numbers: save the model with Encoding(kind='uint8') for "
            "codes or Encoding(kind='spikes') for spikes",
        )  # fmt: skip
    if node.name in graph.after_readout:
        raise refusal(node, "stands after the readout, where there are no whole numbers to sum")
    if isinstance(node, AvgPool2d):
        raise refusal(
            node, "an average is no whole number; exact sums need windows without padding or ceil_mode that only "
            "weights read, so that the division goes into those weights",
        )  # fmt: skip
    if isinstance(node, Weighted):
        source = node.inputs[0].source
        if source not in whole:
            raise refusal(node, f"reads '{source}', which holds no whole numbers: no neuron stands between")
    elif not isinstance(node, Add):
        raise refusal(node, "stands between weights and their neuron, where only sums have an exact form")


def _digest(node: Conv2d | Linear) -> str:
    # Without zeros: some files pad kernels with them, or write a grouped convolution as a dense one.
    digest = sha256()
    for row in node.weight.reshape(len(node.weight), -1):
        used = np.sort(row[row != 0.0]).astype("<f8")
        digest.update(len(used).to_bytes(8, "little") + used.tobytes())
    # Adding 0.0 turns -0.0 into 0.0.
    if node.bias is not None and node.bias.any():
        digest.update((node.bias + 0.0).astype("<f8").tobytes())
    return digest.hexdigest()


def _read_by_neurons(graph: SpikingGraph, group: Sequence[Node]) -> list[Node]:
    return [node for node in group if any(isinstance(n, Neuron | Readout) for n in graph.consumers[node.name])]


def _parts(group: Sequence[Node], root: Node) -> list[Node]:
    """The sums that a sum adds up, and itself, in the group's order."""
    names = {root.name}
    for node in reversed(group):  # whatever adds comes after what it adds
        if node.name in names and isinstance(node, Add):
            names |= {edge.source for edge in node.inputs}
    return [node for node in group if node.name in names]


def _certified(sums: Sums, parts: Sequence[Node], lattices: Mapping[str, Lattice]) -> tuple[Integers, int]:
    """The exponents and the largest reach of one sum; `_NO_GRID` where a channel's terms are all 0."""
    of = {node.name: lattices[node.name] for node in parts if isinstance(node, Weighted)}
    first = next(iter(of.values()))
    one = identity_digits(np.maximum(first.exponents, 0), first.bases)
    # Digit by digit: base, weights and biases by node, and the identity.
    digits: list[tuple[int, dict[str, Integers], dict[str, Integers | None], Integers]]
    if first.form.startswith("slices"):
        digits = [
            (
                base,
                {name: lattice.digits[i] for name, lattice in of.items()},
                {n: None if lattice.bias_digits is None else lattice.bias_digits[i] for n, lattice in of.items()},
                one[i],
            )
            for i, base in enumerate(first.bases)
        ]
    else:
        weights = {name: lattice.weight for name, lattice in of.items()}
        digits = [(1, weights, {name: lattice.bias for name, lattice in of.items()}, joined(one, first.bases))]
    exponents, largest = np.full(len(first.exponents), _NO_GRID), 0
    for base, weights, biases, identity in digits:
        arrays = [*weights.values(), *(bias for bias in biases.values() if bias is not None)]
        if sums.has_identity(parts):
            arrays.append(identity)
        bits = np.zeros(len(exponents), dtype=np.int64)
        for array in arrays:
            bits |= np.bitwise_or.reduce(np.abs(array).reshape(len(bits), -1), axis=1)
        zeros = np.frexp((bits & -bits).astype(np.float64))[1] - 1  # that all terms end in
        grid = first.exponents - (base.bit_length() - 1) - zeros
        exponents = np.maximum(exponents, np.where(bits == 0, _NO_GRID, grid))
        reach = np.maximum(*sums.reach(parts, weights, biases, identity)[parts[-1].name])
        largest = max(largest, *(int(r) >> max(int(z), 0) for r, z in zip(reach, zeros, strict=True)))
    return exponents, largest


def _groups(ordered: Sequence[Node]) -> tuple[tuple[Node, ...], ...]:
    """Sums that are added together, in any way, lie on one grid."""
    group_of: dict[str, int] = {}
    for i, node in enumerate(ordered):
        group_of[node.name] = i
        if isinstance(node, Add):
            merged = {group_of[edge.source] for edge in node.inputs if edge.source in group_of}
            group_of = {name: i if group in merged else group for name, group in group_of.items()}
    groups: dict[int, list[Node]] = {}
    for node in ordered:
        groups.setdefault(group_of[node.name], []).append(node)
    return tuple(tuple(group) for group in groups.values())


def _finest(array: NDArray[np.float64]) -> Integers:
    """For every channel, the smallest k such that all its values are whole in units of 2^-k."""
    mantissa, exponent = np.frexp(array.reshape(len(array), -1))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    lowest = np.frexp((whole & -whole).astype(np.float64))[1] - 1
    places = np.where(whole != 0, 53 - exponent.astype(np.int64) - lowest, _NO_GRID)
    return np.asarray(places.max(axis=1))


def _on_grid(array: NDArray[np.float64], grid: Integers) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.asarray(np.ldexp(array, grid.reshape(-1, *(1,) * (array.ndim - 1))))


def _not_snapped(node: Node) -> DalifError:
    return DalifError(
        Code.BAD_GRAPH,
        f"node '{node.name}' ({type(node).__name__}): its sums are not exact in float64; exact arithmetic takes a "
        "snapped graph (dalif_deploy.passes.snap)",
    )
