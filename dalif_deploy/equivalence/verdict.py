"""The verdict: what was compared, what was found, and what it amounts to. Data only, and its JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.contents import ContentDifference
from dalif_deploy.equivalence.cause import Cause
from dalif_deploy.equivalence.findings import Findings, NeuronStepFinding
from dalif_deploy.equivalence.parameters import ParameterDifference
from dalif_deploy.equivalence.schema import SCHEMA_VERSION
from dalif_deploy.nodes import Array


class Outcome(IntEnum):
    """What a comparison amounts to, from best to worst.

    EXACT: no spike differs. ROUNDING: spikes differ, and rounding explains every one. UNPROVED: rounding might
    explain it, but no bound is known for a node kind, or together the differences look like another rule (see
    `Comparison.suspect`). DIVERGENT: rounding does not explain it.
    """

    EXACT = 0
    ROUNDING = 1
    UNPROVED = 2
    DIVERGENT = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Comparison:
    """A candidate's spikes against a reference's.

    `origins`: every contradiction, those outside the bound first, then by (t, layer, sample, index);
    `uncertain`: every neuron-step whose margin lies within the bound, likewise. `certified_samples`: how many
    samples fired exactly and have no uncertain neuron-step, so that no evaluation in this precision and form
    can differ. `samples_by_outcome`: every sample by its own outcome. `closest`: the neuron-step nearest to
    its threshold. `logits_beyond`: samples whose logits are not what the candidate's own spikes amount to, within
    rounding, by index; any makes the comparison divergent. `prediction_changes`: samples whose largest logit is
    another. Differences of logits are absolute. `suspect`: "threshold rule" where every contradiction is a tie that
    rounding alone could explain, but all ties were decided against the model's rule (see `suspicion`).
    """

    name: str
    outcome: Outcome
    samples: int
    spikes_compared: int
    spikes_differing: int
    samples_differing: int
    origins: Findings
    uncertain: Findings
    certified_samples: int
    samples_by_outcome: Mapping[Outcome, int]
    closest: NeuronStepFinding | None
    max_logit_difference: float
    logits_beyond: tuple[int, ...]
    prediction_changes: int
    suspect: str | None = None

    @property
    def logits_beyond_bound(self) -> int:
        """How many samples' logits do not follow from their spikes."""
        return len(self.logits_beyond)

    def as_json(self) -> dict[str, Any]:
        """Plain types, with the keys of the verdict's schema; a difference of logits that is no number is null."""
        return {
            "name": self.name,
            "verdict": str(self.outcome),
            "samples": self.samples,
            "spikes_compared": self.spikes_compared,
            "spikes_differing": self.spikes_differing,
            "samples_differing": self.samples_differing,
            "origins": [origin.as_json() for origin in self.origins],
            "uncertain": [step.as_json() for step in self.uncertain],
            "certified_samples": self.certified_samples,
            "samples_by_verdict": {str(outcome): count for outcome, count in self.samples_by_outcome.items()},
            "closest": None if self.closest is None else self.closest.as_json(),
            "max_logit_difference": self.max_logit_difference if math.isfinite(self.max_logit_difference) else None,
            "logits_beyond_bound": self.logits_beyond_bound,
            "prediction_changes": self.prediction_changes,
            "suspect": self.suspect,
        }


@dataclass(frozen=True)
class RuntimeComparison:
    """One runtime, and the file it ran where there is one.

    `tensors_differing`, `contents_differing`: parameters of the file, and everything else in it, that are not what an
    export of the model has, exercised by the data or not; any of them makes the outcome divergent, or at best unproved
    where all that differs is structural. `accuracy`: where labels were given.
    `synaptic_operations`: per sample, of runtimes that count them. `definition_differing`: of a file with exact
    sums, how many spikes and logits are not bit for bit what its definition gives; any makes it divergent.
    `cause`: why its spikes diverge, where they do.
    """

    comparison: Comparison
    description: str
    file: str | None = None
    tensors_differing: tuple[ParameterDifference, ...] = ()
    notes: tuple[str, ...] = ()
    accuracy: float | None = None
    synaptic_operations: float | None = None
    definition_differing: int | None = None
    cause: Cause | None = None
    contents_differing: tuple[ContentDifference, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The comparison's, or divergent where the file's contents or exact results differ; where it is merely built
        otherwise, no better than unproved."""
        if self.tensors_differing or self.definition_differing:
            return Outcome.DIVERGENT
        if not self.contents_differing:
            return self.comparison.outcome
        other = Outcome.UNPROVED if self.rewritten else Outcome.DIVERGENT
        return max(self.comparison.outcome, other)

    @property
    def rewritten(self) -> bool:
        """Whether the file is built otherwise than the export, and nothing else differs in it: only the samples speak
        for it."""
        structural = bool(self.contents_differing) and all(found.structural for found in self.contents_differing)
        return structural and not self.tensors_differing

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            **self.comparison.as_json(),
            "verdict": str(self.outcome),
            "file": self.file,
            "description": self.description,
            "tensors_differing": [difference.as_json() for difference in self.tensors_differing],
            "contents_differing": [difference.as_json() for difference in self.contents_differing],
            "notes": list(self.notes),
            "accuracy": self.accuracy,
            "synaptic_operations": self.synaptic_operations,
            "definition_differing": self.definition_differing,
            "cause": None if self.cause is None else self.cause.as_json(),
        }


@dataclass(frozen=True, eq=False)
class Gains:
    """The trained alpha and beta of a layer, () or broadcastable against its shape."""

    alpha: Array
    beta: Array


@dataclass(frozen=True)
class Verdict:
    """All links and runtimes of one verification.

    `links`: "module" (the user's own module against the training graph; None where it cannot be had) and
    "folding" (training graph against folded graph, both float64). `rates`: the share of neuron-steps that fired
    in the reference, by layer; `gains`: alpha and beta, by layer.
    """

    samples: int
    timesteps: int
    reference: str
    links: Mapping[str, Comparison | None]
    rates: Mapping[str, float]
    gains: Mapping[str, Gains]
    runtimes: tuple[RuntimeComparison, ...] = ()
    accuracy: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def outcome(self) -> Outcome:
        """The worst of links and runtimes."""
        return worst([*(link.outcome for link in self.links.values() if link), *(r.outcome for r in self.runtimes)])

    @property
    def vacuous(self) -> tuple[str, ...]:
        """Layers that fired on none or on all neuron-steps: comparing them proves nothing."""
        return tuple(name for name, rate in self.rates.items() if rate in (0.0, 1.0))

    def passes(self, *, strict: bool = False) -> bool:
        """Whether nothing diverged; with `strict`, whether no spike differed at all."""
        return self.outcome <= (Outcome.EXACT if strict else Outcome.ROUNDING)

    def as_json(self) -> dict[str, Any]:
        """Plain types only, as `verdict_schema` describes them."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": str(self.outcome),
            "samples": self.samples,
            "timesteps": self.timesteps,
            "reference": self.reference,
            "links": {name: link.as_json() if link else None for name, link in self.links.items()},
            "rates": dict(self.rates),
            "vacuous": list(self.vacuous),
            "gains": {
                name: {"alpha": gains.alpha.tolist(), "beta": gains.beta.tolist()} for name, gains in self.gains.items()
            },
            "accuracy": self.accuracy,
            "notes": list(self.notes),
            "runtimes": [runtime.as_json() for runtime in self.runtimes],
        }


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of them; exact where there are none."""
    return max(outcomes, default=Outcome.EXACT)


def outcomes_of(origins: Findings) -> NDArray[np.int64]:
    """What each contradiction amounts to, as the numbers of `Outcome`."""
    near = np.where(origins.rows["proved"], int(Outcome.ROUNDING), int(Outcome.UNPROVED))
    return np.where(origins.within_bound, near, int(Outcome.DIVERGENT))
