"""Compares the parameters that a file holds with those that it should hold, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ParameterDifference:
    """One tensor that differs. `problem`: one phrase. `elements`: how many values differ, 0 where the tensor
    is missing, unexpected or of another shape. `largest`: the largest absolute difference. `index`: where."""

    name: str
    problem: str
    elements: int = 0
    largest: float = 0.0
    index: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain types only; a difference that is no finite number is null."""
        largest = self.largest if math.isfinite(self.largest) else None
        return {**vars(self), "largest": largest, "index": list(self.index)}


def compare_parameters(
    expected: Mapping[str, NDArray[np.generic]], found: Mapping[str, NDArray[np.generic]]
) -> tuple[ParameterDifference, ...]:
    """All tensors of `found` that are not those of `expected`, by name. 0.0 and -0.0 are equal; NaN is not."""
    differences = []
    for name in sorted({*expected, *found}):
        if name not in found:
            differences.append(ParameterDifference(name, "missing in the file"))
        elif name not in expected:
            differences.append(ParameterDifference(name, "not expected in the file"))
        elif expected[name].shape != found[name].shape or expected[name].dtype != found[name].dtype:
            want, have = expected[name], found[name]
            problem = f"is {have.dtype} {list(have.shape)}, should be {want.dtype} {list(want.shape)}"
            differences.append(ParameterDifference(name, problem))
        else:
            unequal = np.asarray(expected[name] != found[name])
            if count := int(np.count_nonzero(unequal)):
                # Where both hold the same infinity the difference is no number, but nothing differs there either.
                with np.errstate(invalid="ignore", over="ignore"):
                    gap = np.abs(found[name].astype(np.float64) - expected[name].astype(np.float64))
                gap = np.where(unequal, np.where(np.isnan(gap), np.inf, gap), -1.0)
                place = tuple(int(i) for i in np.unravel_index(int(np.argmax(gap)), gap.shape))
                differences.append(ParameterDifference(name, "values differ", count, float(gap[place]), place))
    return tuple(differences)
