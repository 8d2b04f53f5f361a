"""What a verification leaves behind, as data, and the verdict that follows from it without running anything.

A results file holds, for every link and runtime, the spikes and logits that were compared, and of every
neuron-step that contradicts the reference or could be decided either way its margin and bound. Whether that is
exact, rounding or divergent is decided from these again, whenever it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.contents import ContentDifference
from dalif_deploy.equivalence.cause import Cause
from dalif_deploy.equivalence.judge import Arithmetic, NeuronStepFinding, Precision
from dalif_deploy.equivalence.membrane import Update
from dalif_deploy.equivalence.parameters import ParameterDifference
from dalif_deploy.equivalence.rounding import Grids, Pools
from dalif_deploy.equivalence.suspicion import settled, suspect
from dalif_deploy.equivalence.verdict import (
    Comparison,
    Gains,
    Outcome,
    RuntimeComparison,
    Verdict,
    outcome_of,
    worst,
)
from dalif_deploy.nodes import frozen
from dalif_deploy.recording import Recording

FORMAT = "dalif_deploy results"
VERSION = 1
REFERENCE = "reference"
FOLDING = "links.folding"
MODULE = "links.module"
Shapes = Mapping[str, tuple[int, ...]]
"""The neuron layers in topological order, and their shapes without batch and time."""


def runtime_key(place: int) -> str:
    """The key of the verdict's runtime number `place`, from 0."""
    return f"runtimes.{place}"


def keys_of(verdict: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The comparisons of a verdict's JSON, by key."""
    links = {f"links.{name}": link for name, link in verdict["links"].items() if link is not None}
    return {**links, **{runtime_key(place): runtime for place, runtime in enumerate(verdict["runtimes"])}}


@dataclass(frozen=True)
class Form:
    """How a candidate computes, without its weights: enough to bound its rounding again from the model.

    `graph`: whether it runs the training graph or the folded one. `content`: of a file, "float32", "exact" or
    "exact64". `precision`, `update`, `pools`: as in `Arithmetic`. `two_slices`: whether the exact sums of its file are
    two float32 slices each, in whatever form another file would have them.
    """

    graph: Literal["training", "folded"] = "folded"
    content: Literal["float32", "exact", "exact64"] = "float32"
    precision: Precision = "float32"
    update: Update = "sum"
    pools: Pools = "sum"
    two_slices: bool = False

    def arithmetic(self, grids: Grids | None = None) -> Arithmetic:
        """`grids`: of snapped content."""
        return Arithmetic(self.precision, self.update, grids, self.pools)

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Form:
        """Raises ValueError, KeyError or TypeError for what is none."""
        form = cls(**stored)
        known = {
            "graph": ("training", "folded"), "content": ("float32", "exact", "exact64"),
            "precision": ("float32", "float64"), "update": ("sum", "decay"), "pools": ("sum", "mean"),
            "two_slices": (False, True),
        }  # fmt: skip
        for key, values in known.items():
            if getattr(form, key) not in values:
                raise ValueError(f"{key} {getattr(form, key)!r}")
        return form


# The columns of findings, and their types. `layer` and `index` are numbers: the layer's place, and the neuron's in C
# order.
COLUMNS: Mapping[str, str] = {
    "sample": "<i8", "layer": "<i4", "t": "<i4", "index": "<i8", "fired": "|b1", "potential": "<f8",
    "threshold": "<f8", "margin": "<f8", "bound": "<f8", "proved": "|b1",
}  # fmt: skip


def to_columns(findings: Sequence[NeuronStepFinding], layers: Shapes) -> dict[str, NDArray[Any]]:
    """Findings as arrays of one length, by column."""
    place = {name: number for number, name in enumerate(layers)}
    rows = [
        {**vars(f), "layer": place[f.layer], "index": int(np.ravel_multi_index(f.index, layers[f.layer]))}
        for f in findings
    ]
    return {column: np.array([row[column] for row in rows], np.dtype(dtype)) for column, dtype in COLUMNS.items()}


def from_columns(columns: Mapping[str, NDArray[Any]], layers: Shapes, samples: int) -> tuple[NeuronStepFinding, ...]:
    """The inverse of `to_columns`. Raises ValueError, IndexError or KeyError for columns that are none."""
    names = list(layers)
    lengths = {len(columns[column]) for column in COLUMNS}
    if len(lengths) > 1 or any(
        columns[c].dtype != np.dtype(dtype) or columns[c].ndim != 1 for c, dtype in COLUMNS.items()
    ):
        raise ValueError("columns of other types or lengths")
    found = []
    for row in zip(*(columns[column].tolist() for column in COLUMNS), strict=True):
        entry: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
        if not (0 <= entry["sample"] < samples and entry["layer"] >= 0 and entry["bound"] >= 0.0):
            raise ValueError("a finding out of range")
        if not all(math.isfinite(entry[number]) for number in ("potential", "threshold", "margin")):
            raise ValueError("a finding that is no number")
        entry["layer"] = names[entry["layer"]]
        entry["index"] = tuple(int(i) for i in np.unravel_index(entry["index"], layers[entry["layer"]]))
        found.append(NeuronStepFinding(**entry))
    return tuple(found)


def without_findings(verdict: Verdict) -> dict[str, Any]:
    """The verdict's JSON without the lists that are stored as arrays."""
    content = verdict.as_json()
    for comparison in keys_of(content).values():
        assert isinstance(comparison, dict)
        del comparison["origins"], comparison["uncertain"]
    return content


@dataclass
class Tally:
    """What the spikes and logits of one candidate show, summed over batches.

    `differing`: by sample, in how many neuron-steps it differs from the reference, where that is not 0. `correct`:
    how many predictions are the label.
    """

    samples: int = 0
    compared: int = 0
    differing: dict[int, int] = field(default_factory=dict)
    logit_difference: float = 0.0
    prediction_changes: int = 0
    correct: int = 0

    def add(self, reference: Recording, found: Recording, labels: NDArray[Any] | None) -> None:
        """One batch of the reference and of the candidate, with the same layers and shapes; labels [batch]."""
        rows = len(reference.logits)
        differing = np.zeros(rows, np.int64)
        for name, train in reference.spikes.items():
            differing += train.differing(found.spikes[name])
            self.compared += train.neuron_steps
        self.differing.update({self.samples + int(i): int(differing[i]) for i in np.flatnonzero(differing)})
        self.samples += rows
        gap = np.abs(found.logits.astype(np.float64) - reference.logits)
        self.logit_difference = max(self.logit_difference, float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0)))
        predictions = _predictions(found)
        self.prediction_changes += int(np.count_nonzero(_predictions(reference) != predictions))
        if labels is not None:
            self.correct += int(np.count_nonzero(predictions == labels))


@dataclass(frozen=True)
class StoredComparison:
    """One link or runtime as it was stored. `facts`: its part of the stored verdict's JSON. `tally`: None where no
    spikes were stored: the link to a module that fired when it was saved, on data of its own. `ties_tell`: as of
    `Comparer`."""

    facts: Mapping[str, Any]
    origins: tuple[NeuronStepFinding, ...]
    uncertain: tuple[NeuronStepFinding, ...]
    logits_beyond: tuple[int, ...]
    tally: Tally | None
    ties_tell: bool = True

    def decide(self, layers: Sequence[str], bound_factor: float) -> Comparison:
        """The comparison, decided again. `layers`: in topological order. `bound_factor`: what the bounds are
        multiplied by, at most 1, since no neuron-step further from its threshold than the bounds is stored.

        Raises ValueError where the spikes and the findings do not belong together, KeyError or TypeError where facts
        are missing.
        """
        origins = [_with_bound(origin, bound_factor) for origin in self.origins]
        uncertain = [_with_bound(step, bound_factor) for step in self.uncertain]
        uncertain = [step for step in uncertain if step.within_bound]
        outcomes: dict[int, Outcome] = {}
        for origin in origins:
            outcomes[origin.sample] = max(outcomes.get(origin.sample, Outcome.EXACT), outcome_of(origin))
        tally = _tally_of(self.facts, outcomes) if self.tally is None else self.tally
        if outcomes.keys() != tally.differing.keys():
            sample = min(outcomes.keys() ^ tally.differing.keys())
            raise ValueError(
                f"the spikes of sample {sample} and the contradictions listed for it do not belong together"
            )
        # A contradiction, however near, does not excuse an answer that the spikes do not amount to.
        outcomes.update(dict.fromkeys(self.logits_beyond, Outcome.DIVERGENT))
        by_outcome = {outcome: sum(found == outcome for found in outcomes.values()) for outcome in Outcome}
        by_outcome[Outcome.EXACT] = tally.samples - len(outcomes)
        place = {name: number for number, name in enumerate(layers)}
        suspected = suspect(origins, uncertain) if self.ties_tell else None
        return Comparison(
            name=self.facts["name"],
            outcome=settled(worst(outcomes.values()), suspected),
            samples=tally.samples,
            spikes_compared=tally.compared,
            spikes_differing=sum(tally.differing.values()),
            samples_differing=len(tally.differing),
            origins=tuple(sorted(origins, key=lambda o: (o.within_bound, o.t, place[o.layer], o.sample, o.index))),
            uncertain=tuple(uncertain),
            certified_samples=tally.samples - len(outcomes.keys() | {step.sample for step in uncertain}),
            samples_by_outcome=by_outcome,
            closest=None if self.facts["closest"] is None else _finding(self.facts["closest"], bound_factor),
            max_logit_difference=tally.logit_difference,
            logits_beyond=self.logits_beyond,
            prediction_changes=tally.prediction_changes,
            suspect=suspected,
        )


def decided(
    stored: Mapping[str, Any],
    comparisons: Mapping[str, Comparison],
    *,
    rates: Mapping[str, float],
    accuracies: Mapping[str, float],
) -> Verdict:
    """The verdict from comparisons that were decided again, by key.

    `stored`: the JSON of the verdict that was given then, for what no spike tells: descriptions, notes, tensors that
    differ, operations. `rates`: of the reference. `accuracies`: by key, `REFERENCE` among them, where there are labels.
    Raises KeyError, TypeError or ValueError where something is missing.
    """
    runtimes = [
        RuntimeComparison(
            comparison=comparisons[runtime_key(place)],
            description=runtime["description"],
            file=runtime["file"],
            tensors_differing=tuple(_tensor(entry) for entry in runtime["tensors_differing"]),
            notes=tuple(runtime["notes"]),
            accuracy=accuracies.get(runtime_key(place)),
            synaptic_operations=runtime["synaptic_operations"],
            definition_differing=runtime["definition_differing"],
            cause=None if runtime.get("cause") is None else Cause.of_json(runtime["cause"]),
            contents_differing=tuple(ContentDifference(**entry) for entry in runtime.get("contents_differing", ())),
        )
        for place, runtime in enumerate(stored["runtimes"])
    ]
    return Verdict(
        samples=stored["samples"],
        timesteps=stored["timesteps"],
        reference=stored["reference"],
        links={name: comparisons.get(f"links.{name}") for name in stored["links"]},
        rates=rates,
        gains={
            name: Gains(frozen(gains["alpha"]), frozen(gains["beta"])) for name, gains in stored["gains"].items()
        },
        runtimes=tuple(runtimes),
        accuracy=accuracies.get(REFERENCE),
        notes=tuple(stored["notes"]),
    )  # fmt: skip


def _predictions(recording: Recording) -> NDArray[np.intp]:
    return np.asarray(recording.logits.reshape(len(recording.logits), -1).argmax(axis=1))


def _tally_of(facts: Mapping[str, Any], outcomes: Mapping[int, Outcome]) -> Tally:
    """From the stored counts, where there are no spikes to count again."""
    differing = facts["spikes_differing"]
    if facts["samples_differing"] != len(outcomes) or (differing < len(outcomes)) or (differing and not outcomes):
        raise ValueError("the counts and the contradictions do not belong together")
    by_sample = dict.fromkeys(outcomes, 1)
    if outcomes:
        by_sample[min(outcomes)] += differing - len(outcomes)
    largest = facts["max_logit_difference"]
    return Tally(
        samples=facts["samples"],
        compared=facts["spikes_compared"],
        differing=by_sample,
        logit_difference=math.inf if largest is None else float(largest),
        prediction_changes=facts["prediction_changes"],
    )


def _with_bound(step: NeuronStepFinding, factor: float) -> NeuronStepFinding:
    return replace(step, bound=step.bound if math.isinf(step.bound) else step.bound * factor)


def _finding(stored: Mapping[str, Any], factor: float) -> NeuronStepFinding:
    entry = {key: value for key, value in stored.items() if key != "within_bound"}
    entry["index"] = tuple(entry["index"])
    entry["bound"] = math.inf if entry["bound"] is None else entry["bound"]
    return _with_bound(NeuronStepFinding(**entry), factor)


def _tensor(stored: Mapping[str, Any]) -> ParameterDifference:
    entry = dict(stored)
    entry["index"] = tuple(entry["index"])
    entry["largest"] = math.inf if entry["largest"] is None else entry["largest"]
    return ParameterDifference(**entry)
