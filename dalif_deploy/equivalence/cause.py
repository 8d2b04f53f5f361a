"""Where a candidate first goes wrong, and why: data only, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from dalif_deploy.equivalence.findings import NeuronStepFinding

Keyword = Literal[
    "threshold rule", "reset rule", "shift in time", "missing branch", "missing bias", "flattened in the wrong order",
    "wrong alpha", "leak", "threshold", "scaled weights", "permuted channels", "unexplained",
]  # fmt: skip
"""The names of causes; docs/verdicts.md says what each is and how it is tested."""


@dataclass(frozen=True)
class Explanation:
    """One cause that explains every contradiction of a layer: its keyword, and one line with its numbers in the
    trained model's units."""

    name: Keyword
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return dict(vars(self))


@dataclass(frozen=True)
class TrajectoryStep:
    """One neuron at one timestep: the reference potential on the candidate's own history and the threshold, in the
    trained model's units, what the model fires at that potential, and what the candidate fired."""

    t: int
    potential: float
    threshold: float
    reference: bool
    candidate: bool

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return dict(vars(self))


@dataclass(frozen=True)
class Cause:
    """Why a candidate diverges.

    `explanation`: the simplest that explains all, or "unexplained". `also`: others that explain it as well.
    `layer`: the first one, in topological order, that contradicts the model on its own recorded input. Looked at were
    the samples `samples`; `contradictions`: how many there are in that layer beyond rounding; `earliest`: the first of
    them, by timestep, sample and index. `trajectory`: of the neuron of `earliest[0]`, every timestep.
    """

    explanation: Explanation
    layer: str
    contradictions: int
    samples: tuple[int, ...]
    earliest: tuple[NeuronStepFinding, ...]
    trajectory: tuple[TrajectoryStep, ...]
    also: tuple[Explanation, ...] = ()

    @property
    def explained(self) -> bool:
        """Whether a cause was found."""
        return self.explanation.name != "unexplained"

    def as_json(self) -> dict[str, Any]:
        """Plain types, with the keys of the verdict's schema."""
        return {
            **self.explanation.as_json(),
            "layer": self.layer,
            "contradictions": self.contradictions,
            "samples": list(self.samples),
            "earliest": [step.as_json() for step in self.earliest],
            "trajectory": [step.as_json() for step in self.trajectory],
            "also": [other.as_json() for other in self.also],
        }

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`. Raises KeyError, TypeError or ValueError for what is none."""
        return cls(
            explanation=_explanation(stored),
            layer=str(stored["layer"]),
            contradictions=int(stored["contradictions"]),
            samples=tuple(int(sample) for sample in stored["samples"]),
            earliest=tuple(_finding(step) for step in stored["earliest"]),
            trajectory=tuple(TrajectoryStep(**step) for step in stored["trajectory"]),
            also=tuple(_explanation(other) for other in stored["also"]),
        )


def _explanation(stored: Mapping[str, Any]) -> Explanation:
    if stored["name"] not in get_args(Keyword):
        raise ValueError(f"a cause named {stored['name']!r}")
    return Explanation(stored["name"], str(stored["detail"]))


def _finding(stored: Mapping[str, Any]) -> NeuronStepFinding:
    entry = {key: value for key, value in stored.items() if key != "within_bound"}
    entry["index"] = tuple(entry["index"])
    entry["bound"] = math.inf if entry["bound"] is None else entry["bound"]
    return NeuronStepFinding(**entry)
