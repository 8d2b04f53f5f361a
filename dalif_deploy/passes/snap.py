"""Snaps the weights of a folded graph onto grids of powers of two, on which all of its sums are exact.

For every sum (see `dalif_deploy.lattice`) and output channel the finest grid is taken that meets the condition:
start above it, round, add up in integers, and take the next coarser one until it holds. The sums that are added
together share their grids and their form:

- Slices: rounded to the grid, what is left rounded again to a finer grid, and so on; the sum of every slice
  stays within 2^24, so float32 holds it. The steps from slice to slice are one for all channels.
- Planes: rounded once, and cut into balanced digits to the base 256, which int8 holds. Biases and scales need
  no int8: they are added in int32 or float64.

Forms: int8 planes where every convolution and linear layer has 32 inputs or more (fewer make them slower than
slices), one group, and inputs of at most 127: three for "exact", four for "exact64". Two slices elsewhere, and
three where codes are read, since their 255 steps take eight bits from every slice. A target that adds no more
than two numbers exactly, such as a NIR simulator, gets two slices everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import (
    DIGITS,
    GRIDS,
    INT32_LIMIT,
    LARGEST_CODE,
    PLANE_INPUT_LIMIT,
    SLICE_LIMIT,
    SUM_LIMIT,
    Form,
    Integers,
    Lattice,
    Precision,
    Sums,
    Weighted,
    find_sums,
    identity_digits,
    parameters_of,
    refusal,
    with_values,
)
from dalif_deploy.nodes import Add, Conv2d, Node, Scale
from dalif_deploy.passes.contract import NO_BATCH_NORM, OWN_COMPARISON, UNIT_ALPHA
from dalif_deploy.passes.input_codes import take_codes

FEWEST_PLANE_INPUTS = 32
LARGEST_OF_PLANES: Mapping[Form, int] = {"planes3": 0x7F7F7F, "planes4": 2**31 - 2**25}
"""The largest whole number that three or four balanced digits hold, and for four with room to round."""

Reaches = dict[str, tuple[NDArray[Any], NDArray[Any]]]


def snap(
    graph: SpikingGraph, precision: Precision, *, two_slices: bool = False
) -> tuple[SpikingGraph, dict[str, Lattice]]:
    """The folded `graph` with exact sums, and the whole numbers of every node with weights.

    `precision`: "exact" for a float32 membrane, whose input is the exact sum rounded once, or "exact64" for a
    float64 membrane. `two_slices`: two slices for every sum, and no other form. The snapped graph
    holds the snapped weights as float64, exactly; it takes uint8 codes, or spikes (see `take_codes`). Raises
    `DalifError`: BAD_GRAPH for a graph that is not folded, BAD_OPTION, TARGET_CANNOT_HOLD, naming the node, for what
    has no exact form.
    """
    if precision not in ("exact", "exact64"):
        raise DalifError(Code.BAD_OPTION, f"precision {precision!r}: give 'exact' or 'exact64'")
    for prop in (NO_BATCH_NORM, OWN_COMPARISON, UNIT_ALPHA):
        if (name := prop.violation(graph)) is not None:
            raise DalifError(
                Code.BAD_GRAPH, f"node '{name}': snapping requires that {prop.description}; fold the graph"
            )
    graph = take_codes(graph)
    sums = find_sums(graph)
    lattices: dict[str, Lattice] = {}
    for nodes in sums.groups:
        group = _Group(sums, nodes)
        lattices.update(_snapped(group, "slices2" if two_slices else group.form(precision)))
    snapped = {name: with_values(graph[name], lattice) for name, lattice in lattices.items()}
    notes = [f"{name}: snapped, {lattices[name].form}" for name in (n.name for n in graph.nodes) if name in lattices]
    return graph.replaced(snapped, note=notes), lattices


class _Group:
    """The sums that share a grid, and the parameters of their weighted nodes, channels first."""

    def __init__(self, sums: Sums, nodes: Sequence[Node]) -> None:
        self.sums = sums
        self.nodes = nodes
        self.weighted: list[Weighted] = [node for node in nodes if isinstance(node, Weighted)]
        self.channels = sums.shape(nodes[0])[0]
        parameters = {node.name: parameters_of(node, sums.shape(node)) for node in self.weighted}
        # An identity is a weight of 1.
        one = np.full(self.channels, 1.0 if sums.has_identity(nodes) else 0.0)
        self.values = Terms({n: p[0] for n, p in parameters.items()}, {n: p[1] for n, p in parameters.items()}, one)

    def form(self, precision: Precision) -> Form:
        inputs = [self.sums.inputs_maximum(node) for node in self.weighted]
        layers = [node for node in self.weighted if not isinstance(node, Scale)]
        # With more terms than this the planes' digits could not use all of int8.
        terms = sum(node.weight[0].size * self.sums.inputs_maximum(node) for node in layers)
        planes = (
            layers
            and max(inputs) <= PLANE_INPUT_LIMIT
            and all(node.weight.shape[1] >= FEWEST_PLANE_INPUTS for node in layers)
            and all(node.groups == 1 for node in layers if isinstance(node, Conv2d))
            and 2 * terms * (128 * 256 + 128) <= INT32_LIMIT
        )
        if planes:
            return "planes3" if precision == "exact" else "planes4"
        return "slices3" if max(inputs) >= LARGEST_CODE else "slices2"

    def reach(self, terms: Terms) -> Reaches:
        return self.sums.reach(self.nodes, terms.weights, terms.biases, terms.one)


@dataclass(frozen=True, eq=False)
class Terms:
    """Weights and biases by node, channels first, and the weight of what is added as it is, (channels,)."""

    weights: Mapping[str, NDArray[Any]]
    biases: Mapping[str, NDArray[Any] | None]
    one: NDArray[Any]

    def map(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Terms:
        """`function` of every array."""
        return Terms(
            {name: function(array) for name, array in self.weights.items()},
            {name: None if array is None else function(array) for name, array in self.biases.items()},
            function(self.one),
        )

    def minus(self, other: Terms) -> Terms:
        """The difference of all arrays."""
        return Terms(
            {name: array - other.weights[name] for name, array in self.weights.items()},
            {name: None if array is None else array - other.biases[name] for name, array in self.biases.items()},
            self.one - other.one,
        )

    def arrays(self) -> list[NDArray[Any]]:
        return [*self.weights.values(), *(array for array in self.biases.values() if array is not None), self.one]

    def rounded(self, grid: Integers) -> Terms:
        """Whole numbers of 2^-grid, halves to even."""
        return self.map(lambda array: np.rint(_shifted(array, grid)).astype(np.int64))

    def left(self, whole: Terms, grid: Integers) -> Terms:
        """What rounding left. Exact: no bit of it lies below the last bit of the value."""
        return self.minus(whole.map(lambda array: _shifted(array.astype(np.float64), -grid)))


@dataclass(frozen=True, eq=False)
class _Digits:
    """A group's whole numbers: grids, bases and, highest first, the digits; `reaches`: what is certified."""

    exponents: Integers
    bases: tuple[int, ...]
    digits: tuple[Terms, ...]
    reaches: tuple[Reaches, ...]


def _snapped(group: _Group, form: Form) -> dict[str, Lattice]:
    for node in group.weighted:
        for array in (group.values.weights[node.name], group.values.biases[node.name]):
            if array is not None and np.abs(array).max(initial=0.0) >= 2.0 ** -GRIDS[0]:
                raise refusal(node, f"has values beyond 2^{-GRIDS[0]}, whose sums float32 does not hold")
    found = _slices(group, DIGITS[form]) if form.startswith("slices") else _planes(group, form)
    root = group.nodes[-1]
    if (found.exponents < GRIDS[0]).any():
        raise refusal(root, f"its sums reach too far: their grid would be coarser than 2^{-GRIDS[0]}")
    if group.sums.has_identity(group.nodes) and (found.exponents < 0).any():
        raise refusal(root, "its grid would be coarser than the whole numbers that an identity branch adds")
    largest = _largest(group, found.reaches)
    lattices = {}
    for node in group.weighted:
        biases = [terms.biases[node.name] for terms in found.digits]
        lattices[node.name] = Lattice(
            node=node.name,
            form=form,
            exponents=found.exponents,
            bases=found.bases,
            digits=tuple(terms.weights[node.name] for terms in found.digits),
            bias_digits=None if biases[0] is None else tuple(bias for bias in biases if bias is not None),
            inputs_maximum=group.sums.inputs_maximum(node),
            largest=largest[node.name],
            limit=SLICE_LIMIT if form.startswith("slices") else SUM_LIMIT,
        )
    return lattices


def _slices(group: _Group, count: int) -> _Digits:
    """Every slice's sums within 2^24, and the whole within 2^53."""
    bound = _most(group.reach(group.values))
    room = SUM_LIMIT.bit_length() - SLICE_LIMIT.bit_length() - 1  # bits below the highest slice, 2^28
    grid = _lowered(
        np.minimum(SLICE_LIMIT.bit_length() + 1 - _exponent(bound), GRIDS[1] - room),
        lambda grid: _most(group.reach(group.values.rounded(grid))) <= SLICE_LIMIT,
    )
    digits, steps = [group.values.rounded(grid)], [0]
    left = group.values.left(digits[0], grid)
    while len(digits) < count:
        reach = _shifted(_most(group.reach(left)), grid).max(initial=0.0)
        step = SLICE_LIMIT.bit_length() + 1 - int(_exponent(reach)) if reach else 1
        step = min(step, room - sum(steps) - (count - 1 - len(digits)))  # one bit at least for every slice below
        while step > 0 and (_most(group.reach(left.rounded(grid + step))) > SLICE_LIMIT).any():
            step -= 1
        if step <= 0:
            raise refusal(group.nodes[-1], "adds up too many terms: a slice below the first has no room within 2^24")
        grid = grid + step
        digits.append(left.rounded(grid))
        left = left.left(digits[-1], grid)
        steps.append(step)
    bases = tuple(1 << sum(steps[i + 1 :]) for i in range(count))
    reaches = tuple(group.reach(terms) for terms in digits)
    whole = sum(base * int(_most(reach).max(initial=0)) for base, reach in zip(bases, reaches, strict=True))
    if whole > SUM_LIMIT:  # cannot be: 2^24 * 2^28 and smaller slices below it
        raise DalifError(Code.FAULT, f"node '{group.nodes[-1].name}': slices add up beyond 2^53")
    return _Digits(grid, bases, tuple(digits), reaches)


def _planes(group: _Group, form: Form) -> _Digits:
    """Weights within the planes' digits, pairs of planes within int32, and the whole within 2^53."""
    largest = LARGEST_OF_PLANES[form]
    count = DIGITS[form]
    bases = tuple(1 << 8 * i for i in reversed(range(count)))
    layers = [group.values.weights[node.name] for node in group.weighted if not isinstance(node, Scale)]
    weight = _peak(layers, group.channels)
    highest = np.where(weight > 0.0, weight, _peak(group.values.arrays(), group.channels))

    def cut(grid: Integers) -> tuple[Terms, ...]:
        whole = group.values.rounded(grid)
        weights = {name: _balanced(array, count) for name, array in whole.weights.items()}
        biases = {name: None if array is None else _halves(array, bases) for name, array in whole.biases.items()}
        identity = identity_digits(np.maximum(grid, 0), bases)
        one = [np.where(group.values.one > 0.0, digit, 0) for digit in identity]
        return tuple(
            Terms(
                {name: digits[i] for name, digits in weights.items()},
                {name: None if digits is None else digits[i] for name, digits in biases.items()},
                one[i],
            )
            for i in range(count)
        )

    def holds(grid: Integers) -> NDArray[np.bool_]:
        whole = group.values.rounded(grid)
        layers = [whole.weights[node.name] for node in group.weighted if not isinstance(node, Scale)]
        met = (_peak(layers, group.channels) <= largest) & (_most(group.reach(whole)) <= SUM_LIMIT)
        planes = [_most(group.reach(terms)) for terms in cut(grid)]
        # Two planes are put together in int32; the lower one of a pair gets an eighth of it.
        for upper in planes[0::2]:
            met &= upper * (256 if len(planes) > 1 else 1) <= INT32_LIMIT - 2**28
        for lower in planes[1::2]:
            met &= lower <= 2**28
        return np.asarray(met.astype(bool))

    start = np.minimum(largest.bit_length() - _exponent(highest), GRIDS[1])
    # A bias or scale may be larger than what the planes hold.
    start = np.minimum(start, SUM_LIMIT.bit_length() + 1 - _exponent(_most(group.reach(group.values))))
    grid = _lowered(start, holds)
    digits = cut(grid)
    return _Digits(grid, bases, digits, (group.reach(group.values.rounded(grid)),))


def _lowered(grid: Integers, holds: Callable[[Integers], NDArray[np.bool_]]) -> Integers:
    """The first grid at or below `grid`, channel by channel, for which the condition holds."""
    grid = np.array(grid)
    while not (met := holds(grid)).all():
        grid = grid - ~met
    return grid


def _most(reaches: Reaches) -> NDArray[Any]:
    """How far any sum of a group reaches, (channels,)."""
    return np.asarray(np.max([np.maximum(*pair) for pair in reaches.values()], axis=0))


def _largest(group: _Group, reaches: Sequence[Reaches]) -> dict[str, int]:
    """For every weighted node, how far the sums reach that it is part of."""
    parts: dict[str, set[str]] = {}
    found = dict.fromkeys((node.name for node in group.weighted), 0)
    for node in group.nodes:
        sources = [edge.source for edge in node.inputs] if isinstance(node, Add) else []
        parts[node.name] = set().union(*(parts.get(source, set()) for source in sources)) if sources else {node.name}
        reach = max(int(np.maximum(*by_digit[node.name]).max(initial=0)) for by_digit in reaches)
        for name in parts[node.name]:
            found[name] = max(found[name], reach)
    return found


def _balanced(values: Integers, count: int) -> list[Integers]:
    """Digits to the base 256 from -128 to 127, highest first; the highest takes whatever is left."""
    digits = []
    for _ in range(count - 1):
        low = ((values + 128) & 255) - 128
        values = (values - low) >> 8
        digits.append(low)
    return [*reversed([*digits, values])] if digits else [values]


def _halves(values: Integers, bases: Sequence[int]) -> list[Integers]:
    """A bias: 16 balanced bits at the base 1 and the rest at 2^16, since int32 sums need no int8."""
    low = ((values + 2**15) & 0xFFFF) - 2**15
    places = {1: low, 2**16: (values - low) >> 16}
    return [places.get(base, np.zeros_like(values)) for base in bases]


def _peak(arrays: Sequence[NDArray[Any]], channels: int) -> NDArray[Any]:
    """The largest absolute value of every channel."""
    peaks = [np.abs(array.reshape(channels, -1)).max(axis=1, initial=0) for array in arrays]
    return np.asarray(np.max(peaks, axis=0))


def _exponent(values: NDArray[np.float64]) -> Integers:
    """The smallest e with value < 2^e; 25 where the value is 0, for a grid of 1."""
    _, exponents = np.frexp(values)
    return np.asarray(np.where(np.asarray(values) == 0.0, SLICE_LIMIT.bit_length(), exponents), dtype=np.int64)


def _shifted(values: NDArray[np.float64], grid: Integers) -> NDArray[np.float64]:
    """values * 2^grid, channel by channel along the first axis."""
    return np.asarray(np.ldexp(values, grid.reshape(-1, *(1,) * (values.ndim - 1))))
