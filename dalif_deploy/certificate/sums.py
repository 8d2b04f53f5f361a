"""What a value of an ONNX graph can be, as far as the checking of a certificate needs to know.

A value is whole (0 to a maximum), a sum of whole values with known weights, what is made of these element by
element, or anything else. A sum's weights are whole numbers in units of 2^-k, one k for each channel, and from
them follows how far its positive and its negative terms can reach.

Nothing here is shared with the code that makes certificates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

LIMITS: Mapping[str, int] = {"float32": 2**24, "float64": 2**53, "int32": 2**31 - 1, "uint8": 255}
"""Up to where a type holds every whole number."""

SMALLEST_EXPONENT: Mapping[str, int] = {"float32": 126, "float64": 1022, "int32": 0}
LARGEST_EXPONENT: Mapping[str, int] = {"float32": 127, "float64": 1023, "int32": 31}


class Inexact(Exception):
    """Something that is not shown to be exact. The message says what."""


@dataclass(frozen=True)
class Whole:
    """Whole numbers from 0 to `maximum`."""

    dtype: str
    maximum: int


@dataclass(frozen=True)
class Mean:
    """Averages over windows of `area` places, a power of two, whose sums reach `maximum`."""

    dtype: str
    area: int
    maximum: int


@dataclass(frozen=True, eq=False)
class Product:
    """Whole numbers up to `maximum`, each multiplied with a constant."""

    dtype: str
    maximum: int
    factor: NDArray[np.float64]


@dataclass(frozen=True)
class Free:
    """Any numbers; what is computed of them, element by element, is the same everywhere."""

    dtype: str


@dataclass(frozen=True, eq=False)
class Term:
    """Whole values up to `maximum` with weights [channels, terms]: all added up or, `single`, one at each place.

    `layer`: whose weights they are. `copies`: what is in it, and how often: a sum may be added to itself, and the
    planes of a layer to each other.
    """

    weights: Integers
    maximum: int
    single: bool = False
    layer: str = ""
    copies: Mapping[str, int] = field(default_factory=dict)

    def plus(self, other: Term) -> Term:
        """Both, of the same values."""
        if (self.weights.shape, self.maximum, self.single) != (other.weights.shape, other.maximum, other.single):
            raise Inexact("two sums are added of which one name stands for different weights")
        copies = {key: self.copies.get(key, 0) + other.copies.get(key, 0) for key in {**self.copies, **other.copies}}
        return replace(self, weights=self.weights + other.weights, copies=copies)

    def once(self) -> Integers:
        """The weights as they are added, each time."""
        return self.weights // math.gcd(*self.copies.values()) if self.copies else self.weights


def constant_term(values: Integers, key: str) -> Term:
    """Biases [channels, places]."""
    return Term(values, 1, single=True, copies={key: 1})


@dataclass(frozen=True, eq=False)
class Sum:
    """(terms + biases) * 2^-exponents, exact, or rounded once.

    `axis`: the channels' in the value, which has `rank` axes with the batch; 0 where every place of `places`, the
    feature axes' sizes, counts as a channel of its own, since no layer tells where channels lie. `exponents`:
    (channels,). `terms`: by what makes them, so that those of one key are of the same values. `biases`: constants, by
    the key of their term or by layer. `layers`: the layers whose weights are in it. `part`: which of how
    many slices it is. `complete`: it is what a neuron or the readout reads.
    """

    dtype: str
    axis: int
    rank: int
    exponents: Integers
    terms: Mapping[str, Term] = field(default_factory=dict)
    biases: Mapping[str, Term] = field(default_factory=dict)
    layers: frozenset[str] = frozenset()
    part: tuple[int, int] | None = None
    places: tuple[int, ...] = ()
    rounded: bool = False
    complete: bool = False

    @property
    def channels(self) -> int:
        """How many output channels there are."""
        return len(self.exponents)

    def reach(self) -> list[int]:
        """For every channel, how far its positive or its negative terms can add up, in units of 2^-exponents."""
        totals = {1: [0] * self.channels, -1: [0] * self.channels}
        for sign, total in totals.items():
            for term in (*self.terms.values(), *self.biases.values()):
                for i, reached in enumerate(_one_sign(term.weights, sign, largest=term.single)):
                    total[i] += reached * term.maximum
        return [max(pair) for pair in zip(*totals.values(), strict=True)]

    def zeros(self) -> list[int | None]:
        """For every channel, how many zero bits all of its weights and biases end in; None where all are 0.

        What is added twice counts as it is each time: twice a weight ends in a zero bit more, and partial sums do not.
        """
        found: list[int | None] = []
        bits = np.zeros(self.channels, dtype=np.int64)
        for term in (*self.terms.values(), *self.biases.values()):
            bits |= np.bitwise_or.reduce(np.abs(term.once()), axis=1)
        for value in bits.tolist():
            found.append((value & -value).bit_length() - 1 if value else None)
        return found

    def arrays(self) -> list[Integers]:
        """All whole numbers, [channels, ...] each."""
        return [term.weights for term in (*self.terms.values(), *self.biases.values())]

    def checked(self) -> Sum:
        """The sum itself, where its type holds it exactly. Raises `Inexact`."""
        limit, worst = LIMITS[self.dtype], 0
        weight = max((int(np.abs(array).max(initial=0)) for array in self.arrays()), default=0)
        reach = self.reach()
        for reached, zeros in zip(reach, self.zeros(), strict=True):
            worst = max(worst, reached >> (zeros or 0))
        if worst > limit:
            raise Inexact(f"its terms add up to {worst} units of its grid, beyond the {limit} that {self.dtype} holds")
        if weight > LIMITS["float64"] and self.dtype != "int32":
            raise Inexact(f"a weight is {weight} units of its grid, beyond what {self.dtype} holds")
        for exponent, reached, zeros in zip(self.exponents.tolist(), reach, self.zeros(), strict=True):
            if zeros is None:
                continue
            if exponent - zeros > SMALLEST_EXPONENT[self.dtype]:
                raise Inexact(f"its grid 2^{zeros - exponent} is finer than {self.dtype}'s normal numbers")
            if reached.bit_length() - exponent > LARGEST_EXPONENT[self.dtype]:
                raise Inexact(f"it reaches beyond {self.dtype}'s largest number")
        return self

    def plus(self, other: Sum) -> Sum:
        """Both added up, on the finer of their grids."""
        if (self.channels, self.axis, self.rank) != (other.channels, other.axis, other.rank):
            raise Inexact("two sums are added whose channels do not lie alike")
        grid = []
        mine, others = self.zeros(), other.zeros()
        for i in range(self.channels):
            known = [int(part.exponents[i]) for part, zeros in ((self, mine), (other, others)) if zeros[i] is not None]
            grid.append(max(known, default=0))
        one, two = self.on(np.array(grid, dtype=np.int64)), other.on(np.array(grid, dtype=np.int64))
        terms = dict(one.terms)
        for key, term in two.terms.items():
            same = terms.get(key)
            terms[key] = term if same is None else same.plus(term)
        biases = dict(one.biases)
        for key, bias in two.biases.items():
            biases[key] = biases[key].plus(bias) if key in biases else bias
        part = self.part if other.part is None else other.part
        return replace(one, terms=terms, biases=biases, layers=self.layers | other.layers, part=part)

    def times(self, factors: NDArray[np.float64]) -> Sum:
        """Every channel multiplied with its own factor, (channels,)."""
        exponents, whole = whole_numbers(factors[:, None])
        terms = {key: replace(term, weights=_multiplied(term.weights, whole)) for key, term in self.terms.items()}
        biases = {key: replace(bias, weights=_multiplied(bias.weights, whole)) for key, bias in self.biases.items()}
        return replace(self, exponents=self.exponents + exponents, terms=terms, biases=biases)

    def on(self, grid: Integers) -> Sum:
        """The same on a finer grid."""
        by = grid - self.exponents
        terms = {key: replace(term, weights=_shifted(term.weights, by)) for key, term in self.terms.items()}
        biases = {key: replace(bias, weights=_shifted(bias.weights, by)) for key, bias in self.biases.items()}
        return replace(self, exponents=grid, terms=terms, biases=biases)

    def values_of(self, layer: str) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """A layer's own weights [channels, terms] and biases (channels,), however often they are in the sum.

        Raises `Inexact` where different weights are called the layer's.
        """
        unit: NDArray[np.float64] = np.ldexp(np.ones(self.channels), -self.exponents)
        found = [self._own(key, term) for key, term in self.terms.items() if term.layer == layer]
        weights, bias = found[0]
        for others, shift in found[1:]:
            same = shift is bias is None or (bias is not None and shift is not None and np.array_equal(bias, shift))
            if not same or not np.array_equal(weights, others):
                raise Inexact(f"different weights are called those of '{layer}'")
        return weights * unit[:, None], None if bias is None else bias * unit

    def _own(self, key: str, term: Term) -> tuple[Integers, Integers | None]:
        """Weights and biases of a term as they are once, in units of 2^-exponents."""
        if len(set(term.copies.values())) != 1:
            raise Inexact(f"not all parts of '{term.layer}' are in a sum equally often")
        bias = self.biases.get(key, self.biases.get(term.layer))
        return term.once(), None if bias is None else bias.once()[:, 0]

    def slices(self, count: int) -> list[Sum]:
        """The channels cut into `count` equal parts."""
        if self.channels % count:
            raise Inexact(f"{self.channels} channels cannot be cut into {count} slices")
        size = self.channels // count
        found = []
        for i in range(count):
            rows = slice(i * size, (i + 1) * size)
            terms = {key: replace(term, weights=term.weights[rows]) for key, term in self.terms.items()}
            biases = {key: replace(bias, weights=bias.weights[rows]) for key, bias in self.biases.items()}
            found.append(replace(self, exponents=self.exponents[rows], terms=terms, biases=biases, part=(i, count)))
        return found


Value = Whole | Mean | Product | Free | Sum


def whole_numbers(values: NDArray[np.floating]) -> tuple[Integers, Integers]:
    """[channels, n] numbers as whole numbers in units of 2^-k, the coarsest that holds a channel's: k, numbers.

    Read from the bits of float64. Raises `Inexact` where a channel spans more than 62 bits.
    """
    wide = np.ascontiguousarray(values, dtype=np.float64)
    raw = wide.view(np.int64)
    field_ = (raw >> 52) & 0x7FF
    mantissa = np.where(field_ > 0, (raw & (2**52 - 1)) | 2**52, raw & (2**52 - 1))
    place = np.where(field_ > 0, field_ - 1075, -1074)  # value = mantissa * 2^place
    lowest = mantissa & -mantissa
    ends = np.zeros_like(mantissa)
    for step in (32, 16, 8, 4, 2, 1):
        more = (lowest >> step) > 0
        ends += np.where(more, step, 0)
        lowest = np.where(more, lowest >> step, lowest)
    mantissa, place = mantissa >> ends, place + ends
    used = mantissa != 0
    grid = -np.where(used, place, 10_000).min(axis=1, initial=10_000)
    grid = np.where(used.any(axis=1), grid, 0)
    return grid, _shifted(np.where(raw < 0, -mantissa, mantissa), place + grid[:, None])


def _shifted(values: Integers, by: Integers) -> Integers:
    """values * 2^by, where `by` is one number for each channel or for each value."""
    places = by[:, None] if by.ndim < values.ndim else by
    places = np.broadcast_to(places, values.shape)
    kept = np.where(values != 0, places, 0)
    if (kept < 0).any():
        dropped = np.minimum(np.maximum(-kept, 0), 63)
        if ((values >> dropped) << dropped != values).any():
            raise Inexact("its terms do not lie on one grid")
        values, kept = values >> dropped, np.maximum(kept, 0)
    _, bits = np.frexp(np.abs(values).astype(np.float64))
    if (np.where(values != 0, bits + kept, 0) > 62).any():
        raise Inexact("the terms of one sum span more than 62 bits")
    return np.asarray(values << kept)


def _multiplied(values: Integers, factor: Integers) -> Integers:
    largest = int(np.abs(values).max(initial=0)) * int(np.abs(factor).max(initial=0))
    if largest >= 2**62:
        raise Inexact("the terms of one sum span more than 62 bits")
    return values * factor


def _one_sign(values: Integers, sign: int, *, largest: bool) -> list[int]:
    """Of every row, the sum (or the largest) of its values of one sign."""
    kept = np.maximum(sign * values, 0)
    if largest:
        return [int(v) for v in kept.max(axis=1, initial=0)]
    if int(kept.max(initial=0)) * max(kept.shape[1], 1) >= 2**62:
        return [sum(row) for row in kept.tolist()]
    return [int(v) for v in kept.sum(axis=1)]
