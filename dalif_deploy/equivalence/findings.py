"""Neuron-steps that a judgement lists: one of them, and any number in columns.

A candidate that is wholly wrong contradicts at every other neuron-step, so that a list of objects would take a
kilobyte for each; in columns one takes 58 bytes, and nothing is built for it until somebody looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.operators import Values

Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of neuron layers, without batch and time, by name."""

COLUMNS: Mapping[str, str] = {
    "sample": "<i8", "layer": "<i4", "t": "<i4", "index": "<i8", "fired": "|b1", "potential": "<f8",
    "threshold": "<f8", "margin": "<f8", "bound": "<f8", "proved": "|b1",
}  # fmt: skip
"""The columns of findings, and their types. `layer` and `index` are numbers: the layer's place, and the neuron's in C
order."""

ROW = np.dtype(list(COLUMNS.items()))


@dataclass(frozen=True)
class NeuronStepFinding:
    """One neuron-step that rounding can decide either way, or that a candidate decided wrongly.

    `sample`: index in the data. `index`: the neuron's place in its layer. `fired`: what the candidate did.
    `potential`, `threshold`, `margin` (potential - threshold) and `bound` are in the trained model's units.
    `proved`: False where the bound is infinite: none is derived for a node kind before this layer, or the
    precision may overflow.
    """

    sample: int
    layer: str
    t: int
    index: tuple[int, ...]
    fired: bool
    potential: float
    threshold: float
    margin: float
    bound: float
    proved: bool = True

    @property
    def within_bound(self) -> bool:
        """Whether rounding can explain it. With a bound of 0 nothing rounds, so that it cannot explain a tie either."""
        return bool(within(self.margin, self.bound))

    @property
    def in_words(self) -> str:
        """Its margin, and where it is."""
        place = f"in layer '{self.layer}', step {self.t}, neuron {list(self.index)} of sample {self.sample}"
        return f"{self.margin:.3g} {place}"

    def as_json(self) -> dict[str, Any]:
        """Plain types only; an infinite bound is null."""
        bound = self.bound if np.isfinite(self.bound) else None
        return {**vars(self), "index": list(self.index), "bound": bound, "within_bound": self.within_bound}


class Findings(Sequence[NeuronStepFinding]):
    """Findings in columns: `rows`, structured as `ROW`, about `layers`, whose order is that of the column `layer`."""

    def __init__(self, layers: Shapes, rows: NDArray[Any] | None = None) -> None:
        self.layers = layers
        self.rows = np.zeros(0, ROW) if rows is None else rows
        self._names = list(layers)

    @classmethod
    def joined(cls, layers: Shapes, parts: Sequence[Findings]) -> Findings:
        """All parts, one behind the other."""
        rows = [part.about(layers).rows for part in parts]
        return cls(layers, np.concatenate(rows) if rows else None)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> NeuronStepFinding: ...

    @overload
    def __getitem__(self, place: slice) -> Findings: ...

    def __getitem__(self, place: int | slice) -> NeuronStepFinding | Findings:
        if isinstance(place, slice):
            return Findings(self.layers, self.rows[place])
        return self._one(self.rows[place].item())

    def __iter__(self) -> Iterator[NeuronStepFinding]:
        return (self._one(row.item()) for row in self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # rows may be changed by whoever holds them

    def __repr__(self) -> str:
        return f"Findings({list(self[:3])!r}{', ...' if len(self) > 3 else ''})"

    @property
    def within_bound(self) -> NDArray[np.bool_]:
        """Of each, whether rounding can explain it."""
        return within(self.rows["margin"], self.rows["bound"])

    def kept(self, which: NDArray[np.bool_]) -> Findings:
        """Those for which `which` is True."""
        return Findings(self.layers, self.rows[which])

    def ordered(self) -> Findings:
        """Those beyond the bound first, then by timestep, layer, sample and index."""
        rows = self.rows
        keys = (rows["index"], rows["sample"], rows["layer"], rows["t"], self.within_bound)
        return Findings(self.layers, rows[np.lexsort(keys)])

    def about(self, layers: Shapes) -> Findings:
        """The same with the layers in another order."""
        if list(layers) == self._names:
            return self
        places = {name: place for place, name in enumerate(layers)}
        rows = self.rows.copy()
        rows["layer"] = np.array([places[name] for name in self._names], np.int32)[rows["layer"]]
        return Findings(layers, rows)

    def with_bounds_times(self, factor: float) -> Findings:
        """The same with their bounds multiplied; infinite ones stay."""
        rows = self.rows.copy()
        rows["bound"][np.isfinite(rows["bound"])] *= factor
        return Findings(self.layers, rows)

    def places(self, timesteps: int) -> NDArray[np.int64]:
        """One number for each neuron-step; the same in `Findings` about the same layers."""
        rows, most = self.rows, max((int(np.prod(shape)) for shape in self.layers.values()), default=1)
        step = (rows["sample"] * len(self.layers) + rows["layer"]) * timesteps + rows["t"]
        return np.asarray(step * most + rows["index"])

    def _one(self, row: Any) -> NeuronStepFinding:
        entry = dict(zip(COLUMNS, row, strict=True))
        name = self._names[entry["layer"]]
        index = tuple(int(i) for i in np.unravel_index(entry["index"], self.layers[name]))
        return NeuronStepFinding(**{**entry, "layer": name, "index": index})


def within(margin: Values | float, bound: Values | float) -> NDArray[np.bool_]:
    """Where rounding can take a margin over the threshold. NaN is nowhere within."""
    return np.asarray((np.abs(margin) <= bound) & (np.asarray(bound) > 0.0))
