"""The exact sums of a snapped graph as the ONNX writer needs them: on which grids, in which digits, how large.

The limits under which the sums are exact are checked here once more, in integers, whatever chose the grids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.lattice import (
    GRIDS,
    INT32_LIMIT,
    PLANE_INPUT_LIMIT,
    SLICE_LIMIT,
    SUM_LIMIT,
    Form,
    Integers,
    Lattice,
    Sums,
    Weighted,
    joined,
    refusal,
)
from dalif_deploy.nodes import Node, Scale

SLICES = ("slices2", "slices3")


@dataclass(frozen=True, eq=False)
class Sum:
    """The sum that one node puts out: sum_i digit_i * base_i in units of 2^-exponent, of every output channel.

    `exponents`: (channels,). `reaches`: how far the positive or the negative terms of each digit's sum can reach,
    in units of its base, the largest of all channels; `reach`: the same of the whole sum. `biases`: what a node
    with weights adds to each digit; None without a bias.
    """

    form: Form
    bases: tuple[int, ...]
    exponents: Integers
    reaches: tuple[int, ...]
    reach: int
    biases: tuple[Integers, ...] | None = None

    @property
    def sliced(self) -> bool:
        """Whether digits are float32 slices, rather than int8 planes."""
        return self.form in SLICES

    @property
    def fits_int32(self) -> bool:
        """Whether int32 holds a sum of planes, and what it is without its lowest digit while it is put together."""
        return not self.sliced and self.reach + self.reaches[-1] <= INT32_LIMIT

    def reach_of(self, digits: Sequence[int]) -> int:
        """How far the sum of neighbouring digits can reach at most, in units of the lowest one's base."""
        return sum(self.reaches[i] * self.bases[i] for i in digits) // self.bases[digits[-1]]


def plan(sums: Sums, lattices: Mapping[str, Lattice]) -> dict[str, Sum]:
    """Every sum of a graph, by node.

    Raises `DalifError`, naming the node: BAD_GRAPH for a weighted node without a lattice and for a sum whose terms
    lie on different grids, TARGET_CANNOT_HOLD for a sum beyond the limits.
    """
    found: dict[str, Sum] = {}
    for group in sums.groups:
        weighted = [node for node in group if isinstance(node, Weighted)]
        for node in weighted:
            _check_lattice(sums, node, weighted[0], lattices)
        first = lattices[weighted[0].name]
        biases = {node.name: _biases(sums, node, lattices[node.name]) for node in weighted}
        one = identity_digits(first, weighted[0]) if sums.has_identity(group) else tuple(
            np.zeros_like(first.exponents) for _ in first.bases
        )  # fmt: skip
        by_digit = [
            _largest(sums, group, {n.name: _spread(sums, n, lattices[n.name].digits[i]) for n in weighted},
                     {n.name: None if (b := biases[n.name]) is None else b[i] for n in weighted}, one[i])
            for i in range(len(first.bases))
        ]  # fmt: skip
        whole = _largest(
            sums, group, {n.name: _spread(sums, n, lattices[n.name].weight) for n in weighted},
            {n.name: None if (b := biases[n.name]) is None else joined(b, first.bases) for n in weighted},
            joined(one, first.bases),
        )  # fmt: skip
        for summed in group:
            planned = Sum(
                first.form, first.bases, first.exponents, tuple(digit[summed.name] for digit in by_digit),
                whole[summed.name], biases.get(summed.name),
            )  # fmt: skip
            _check_limits(summed, planned)
            found[summed.name] = planned
    return found


def identity_digits(grid: Lattice | Sum, node: Node) -> tuple[Integers, ...]:
    """The number 1 in units of 2^-k of every channel, as digits, each (channels,)."""
    if (grid.exponents < 0).any():
        raise refusal(node, "its grid is coarser than the whole numbers that its identity branch adds")
    digits = []
    left = np.ones(grid.exponents.shape, dtype=bool)
    for base in grid.bases:
        place = grid.exponents - (base.bit_length() - 1)
        here = left & (place >= 0)
        left &= ~here
        if (here & (place > 40)).any():
            raise refusal(node, "its grid is too fine for the whole numbers that its identity branch adds")
        digits.append(np.where(here, np.int64(1) << np.where(here, place, 0), 0))
    return tuple(digits)


def _check_lattice(sums: Sums, node: Weighted, first: Weighted, lattices: Mapping[str, Lattice]) -> None:
    for each in (first, node):
        if each.name not in lattices:
            raise DalifError(
                Code.BAD_GRAPH,
                f"node '{each.name}' ({type(each).__name__}): there is no lattice for it; snap the graph",
            )
    own, other = lattices[node.name], lattices[first.name]
    same = (own.form, own.bases) == (other.form, other.bases) and np.array_equal(own.exponents, other.exponents)
    if not same or own.exponents.shape != sums.shape(node)[:1]:
        raise DalifError(
            Code.BAD_GRAPH,
            f"node '{node.name}' ({type(node).__name__}): lies on another grid than '{first.name}', which is added to "
            "it; snap the graph",
        )
    if any(base < 1 or base & (base - 1) for base in own.bases) or own.bases[-1] != 1:
        raise refusal(node, f"the bases {own.bases} of its digits are no powers of two down to 1")
    if not ((own.exponents >= GRIDS[0]) & (own.exponents <= GRIDS[1])).all():
        raise refusal(node, f"its grid lies outside 2^{-GRIDS[1]} to 2^{-GRIDS[0]}, beyond float32's normal numbers")
    if own.form not in SLICES and sums.inputs_maximum(node) > PLANE_INPUT_LIMIT:
        raise refusal(
            node,
            f"int8 planes take inputs up to {PLANE_INPUT_LIMIT}, and its input reaches {sums.inputs_maximum(node)}",
        )


def _biases(sums: Sums, node: Weighted, lattice: Lattice) -> tuple[Integers, ...] | None:
    """What is added to the sum of each digit, with channels along the first axis.

    The biases of planes need not be cut into int8: int32 sums take them, whole where that fits, else in 16 bits
    and the rest.
    """
    if lattice.bias_digits is None:
        return None
    if lattice.form in SLICES:
        return tuple(_spread(sums, node, digit) for digit in lattice.bias_digits)
    bias = _spread(sums, node, joined(lattice.bias_digits, lattice.bases))
    none = np.zeros_like(bias)
    room = INT32_LIMIT - int(np.abs(lattice.digits[-1]).max(initial=0)) * _terms(node) * sums.inputs_maximum(node)
    if np.abs(bias).max(initial=0) <= room // 2:
        return (*(none for _ in lattice.bases[1:]), bias)
    low = ((bias + 2**15) & 0xFFFF) - 2**15
    return tuple({0: low, 16: (bias - low) >> 16}.get(base.bit_length() - 1, none) for base in lattice.bases)


def _terms(node: Weighted) -> int:
    weight = node.arrays().get("weight")
    return 1 if weight is None else weight[0].size


def _spread(sums: Sums, node: Node, values: Integers) -> Integers:
    """A Scale's numbers with the channels along their first axis; others have them there."""
    shape = sums.shape(node)
    if not isinstance(node, Scale):
        return values
    aligned = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    return np.broadcast_to(aligned, (shape[0], *aligned.shape[1:]))


def _largest(
    sums: Sums,
    group: Sequence[Node],
    weights: Mapping[str, Integers],
    biases: Mapping[str, Integers | None],
    one: Integers,
) -> dict[str, int]:
    reaches = sums.reach(group, weights, biases, one)
    return {name: int(max(positive.max(), negative.max())) for name, (positive, negative) in reaches.items()}


def _check_limits(node: Node, planned: Sum) -> None:
    limit = SLICE_LIMIT if planned.sliced else INT32_LIMIT
    for i, reach in enumerate(planned.reaches):
        if reach > limit:
            raise refusal(node, f"digit {i} of its sums reaches {reach}, beyond {limit}")
    if planned.reach > SUM_LIMIT:
        raise refusal(node, f"its sums reach {planned.reach}, beyond 2^53")
    if not planned.sliced and not planned.fits_int32:
        for digits in ((0, 1), range(2, len(planned.bases))):
            if planned.reach_of(digits) > INT32_LIMIT:
                raise refusal(node, f"two of its planes sum up to {planned.reach_of(digits)}, beyond int32")
