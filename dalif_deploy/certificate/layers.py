"""What the checking of a certificate found of every layer with weights.

Nothing here is shared with the code that makes certificates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.certificate.sums import Inexact, Sum


@dataclass
class LayerSums:
    """What was found of one layer; see `certificate`."""

    form: str
    exponents: list[int | None]
    largest: int
    inputs_maximum: int
    values: dict[int, tuple[NDArray[np.float64], NDArray[np.float64] | None]] = field(default_factory=dict)
    """The weights [channels, terms] and biases of every slice, or of all planes."""

    def digest(self) -> str:
        """SHA-256 of the weights that are not 0, counted and in ascending order within each channel, and of the
        biases."""
        found = hashlib.sha256()
        for row in np.sort(sum(weights for weights, _ in self.values.values()), axis=1):
            used = row[np.flatnonzero(row)]
            found.update(np.array(used.size, dtype="<i8").tobytes())
            found.update(used.astype("<f8").tobytes())
        biases = [bias for _, bias in self.values.values() if bias is not None]
        total = np.asarray(sum(biases) + 0.0)
        if biases and total.any():
            found.update(total.astype("<f8").tobytes())
        return found.hexdigest()


def record(found: dict[str, LayerSums], value: Sum, layers: Mapping[str, tuple[str, int]]) -> None:
    """Note in `found` what a sum that is put together with others shows of its layers.

    `layers`: of each, the form that it is written in and the largest value that it reads. Raises `Inexact`.
    """
    zeros = value.zeros()
    largest = max(reach >> (z or 0) for reach, z in zip(value.reach(), zeros, strict=True))
    exponents = [None if z is None else int(k) - z for k, z in zip(value.exponents, zeros, strict=True)]
    for layer, (form, inputs_maximum) in layers.items():
        known = found.setdefault(layer, LayerSums(form, exponents, 0, inputs_maximum))
        if known.form != form:
            raise Inexact(f"'{layer}' is written as {known.form} and as {form}")
        values = value.values_of(layer)
        if any(values[0].shape != others.shape for others, _ in known.values.values()):
            raise Inexact(f"the parts of '{layer}' differ in their shape")
        known.largest = max(known.largest, largest)
        known.values[0 if value.part is None else value.part[0]] = values
        known.exponents = [
            a if b is None else b if a is None else max(a, b) for a, b in zip(known.exponents, exponents, strict=True)
        ]
