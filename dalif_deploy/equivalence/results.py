"""What a verification leaves behind, as data, and the verdict that follows from it without running anything.

A results file holds, for every link and runtime, the spikes and logits that were compared, and of every
neuron-step that contradicts the reference or could be decided either way its margin and bound. Whether that is
exact, rounding or divergent is decided from these again, whenever it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.contents import ContentDifference
from dalif_deploy.equivalence.cause import Cause
from dalif_deploy.equivalence.findings import COLUMNS, ROW, Findings, NeuronStepFinding, Shapes
from dalif_deploy.equivalence.judge import Arithmetic, Precision
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
    outcomes_of,
    worst,
)
from dalif_deploy.nodes import frozen
from dalif_deploy.recording import Recording

FORMAT = "dalif_deploy results"
VERSION = 1
REFERENCE = "reference"
FOLDING = "links.folding"
MODULE = "links.module"


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


def to_columns(findings: Findings, layers: Shapes) -> dict[str, NDArray[Any]]:
    """Findings as arrays of one length, by column."""
    rows = findings.about(layers).rows
    return {column: np.ascontiguousarray(rows[column]) for column in COLUMNS}


def from_columns(columns: Mapping[str, NDArray[Any]], layers: Shapes, samples: int) -> Findings:
    """The inverse of `to_columns`. Raises ValueError or KeyError for columns that are none."""
    lengths = {len(columns[column]) for column in COLUMNS}
    if len(lengths) > 1 or any(columns[c].dtype != ROW[c] or columns[c].ndim != 1 for c in COLUMNS):
        raise ValueError("columns of other types or lengths")
    rows = np.zeros(lengths.pop(), ROW)
    for column in COLUMNS:
        rows[column] = columns[column]
    within = (rows["sample"] >= 0) & (rows["sample"] < samples) & (rows["layer"] >= 0) & (rows["layer"] < len(layers))
    if not within.all() or not (rows["bound"] >= 0.0).all():
        raise ValueError("a finding out of range")
    sizes = np.array([math.prod(shape) for shape in layers.values()], np.int64)[rows["layer"]]
    if not ((rows["index"] >= 0) & (rows["index"] < sizes)).all():
        raise ValueError("a finding of a neuron that is none")
    if not all(np.isfinite(rows[number]).all() for number in ("potential", "threshold", "margin")):
        raise ValueError("a finding that is no number")
    return Findings(layers, rows)


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
    origins: Findings
    uncertain: Findings
    logits_beyond: tuple[int, ...]
    tally: Tally | None
    ties_tell: bool = True

    def decide(self, bound_factor: float) -> Comparison:
        """The comparison, decided again. `bound_factor`: what the bounds are
        multiplied by, at most 1, since no neuron-step further from its threshold than the bounds is stored.

        Raises ValueError where the spikes and the findings do not belong together, KeyError or TypeError where facts
        are missing.
        """
        origins = self.origins.with_bounds_times(bound_factor)
        uncertain = self.uncertain.with_bounds_times(bound_factor)
        uncertain = uncertain.kept(uncertain.within_bound)
        samples, places = np.unique(origins.rows["sample"], return_inverse=True)
        found = np.zeros(len(samples), np.int64)
        np.maximum.at(found, places, outcomes_of(origins))
        outcomes = {int(sample): Outcome(int(outcome)) for sample, outcome in zip(samples, found, strict=True)}
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
        suspected = suspect(origins, uncertain) if self.ties_tell else None
        return Comparison(
            name=self.facts["name"],
            outcome=settled(worst(outcomes.values()), suspected),
            samples=tally.samples,
            spikes_compared=tally.compared,
            spikes_differing=sum(tally.differing.values()),
            samples_differing=len(tally.differing),
            origins=origins.ordered(),
            uncertain=uncertain,
            certified_samples=tally.samples - len(outcomes.keys() | set(uncertain.rows["sample"].tolist())),
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
