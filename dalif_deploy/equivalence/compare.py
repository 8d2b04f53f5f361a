"""Compares a candidate with the reference, batch by batch, and decides."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.cause import Cause
from dalif_deploy.equivalence.causes import find_cause
from dalif_deploy.equivalence.evidence import Evidence
from dalif_deploy.equivalence.findings import Findings, NeuronStepFinding, Shapes
from dalif_deploy.equivalence.judge import Arithmetic, Judgement, judge
from dalif_deploy.equivalence.suspicion import settled, suspect
from dalif_deploy.equivalence.verdict import Comparison, Outcome, outcomes_of
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.recording import Recording

Known = MutableMapping[Hashable, Judgement]
"""Judgements of one batch's reference spikes that several comparers share; a new one for every batch."""


class Comparer:
    """Accumulates the comparison of one candidate; memory grows with what contradicts or is uncertain, by less than
    200 bytes each, not with the samples.

    `graph`: what the candidate computes, training or folded, whose float64 replay judges it. `reference`: the
    training graph, where that is another. `arithmetic`: how the candidate computes. `ties_tell`: whether ties that all
    fall against the threshold rule are suspicious: not of graphs whose rule is known, where one rounding of a folded
    threshold moves all ties of a layer one way; nor, likewise, of snapped content.
    """

    def __init__(
        self, name: str, graph: SpikingGraph, *, arithmetic: Arithmetic | None = None,
        reference: SpikingGraph | None = None, ties_tell: bool = True,
    ) -> None:  # fmt: skip
        self.name = name
        self.graph = graph
        self.reference = graph if reference is None else reference
        self.arithmetic = arithmetic or Arithmetic()
        self._ties_tell = ties_tell and self.arithmetic.grids is None
        self._samples = self._compared = self._differing = self._samples_differing = self._changes = 0
        self._certified = 0
        self._by_outcome = dict.fromkeys(Outcome, 0)
        self._logit_difference = 0.0
        self._logits_beyond: list[int] = []
        self._layers: Shapes = {n.name: self.reference.types[n.name].shape for n in self.reference.neurons}
        self._origins: list[Findings] = []
        self._uncertain: list[Findings] = []
        self._closest: NeuronStepFinding | None = None
        self._evidence = Evidence()

    def add(
        self, batch: NDArray[np.generic], reference: Recording, candidate: Recording, known: Known | None = None
    ) -> None:
        """One batch: the data, the reference's recording and the candidate's. `known` saves judging the
        reference's spikes again for a second candidate that fired them.

        Raises `DalifError` (FAULT) where the candidate lacks a layer or recorded another shape.
        """
        per_sample = np.zeros(len(batch), np.int64)
        for neuron in self.graph.neurons:
            expected = reference.spikes[neuron.name]
            found = candidate.spikes.get(neuron.name)
            if found is None or found.shape != expected.shape or found.bits.shape != expected.bits.shape:
                raise DalifError(
                    Code.FAULT, f"runtime {self.name}: its recording of layer '{neuron.name}' does not fit the model"
                )
            per_sample += expected.differing(found)
            self._compared += expected.neuron_steps
        # The whole batch is replayed, in the shape in which the reference was computed: a matrix product of
        # another shape may sum in another order, and a tie would then be no tie.
        judgement = self._judge(batch, candidate, known, differs=bool(per_sample.any()))
        # A sample without a differing spike is exact, even where the candidate's own graph, not the reference, is
        # of two minds: at a tie of one of them.
        contradictions = judgement.contradictions.about(self._layers)
        origins = contradictions.kept(per_sample[contradictions.rows["sample"] - self._samples] > 0)
        self._origins.append(origins)
        self._uncertain.append(judgement.uncertain)
        if judgement.closest is not None and (
            self._closest is None or abs(judgement.closest.margin) < abs(self._closest.margin)
        ):
            self._closest = judgement.closest
        if reference.logits.shape != candidate.logits.shape:
            raise DalifError(
                Code.FAULT,
                f"runtime {self.name}: logits of shape {candidate.logits.shape}, expected {reference.logits.shape}",
            )
        # The answer is judged like the spikes: by what the candidate's own spikes amount to. NaN is beyond any bound.
        gap = np.abs(candidate.logits.astype(np.float64) - judgement.logits)
        within = (gap <= judgement.logits_bound).reshape(len(batch), -1)
        beyond: NDArray[np.bool_] = ~np.asarray(within.all(axis=1))
        self._logits_beyond.extend((np.flatnonzero(beyond) + self._samples).tolist())
        self._decide_samples(per_sample, origins, judgement.certified, beyond)
        self._evidence.add(batch, candidate, self._earliest(origins, len(batch)), self._samples)
        self._differing += int(per_sample.sum())
        self._samples_differing += int(np.count_nonzero(per_sample))
        self._samples += len(batch)
        self._compare_logits(reference.logits, candidate.logits)

    def _judge(
        self, batch: NDArray[np.generic], candidate: Recording, known: Known | None, *, differs: bool
    ) -> Judgement:
        def judged(graph: SpikingGraph) -> Judgement:
            how = self.arithmetic if graph is self.graph else self.arithmetic.on_reference()
            return judge(graph, batch, candidate.spikes, how, first_sample=self._samples)

        if not differs:
            key = (id(self.graph), self.arithmetic, self._samples)
            known = {} if known is None else known
            if key not in known:
                known[key] = judged(self.graph)
            return known[key]
        found = judged(self.graph)
        if self.reference is self.graph:
            return found
        # Where it fires as its own graph does, and yet not as the reference, the two graphs differ. That its own
        # rounding differs elsewhere in the batch excuses nothing.
        own = found.contradictions.about(self._layers)
        others = judged(self.reference).contradictions.about(self._layers)
        timesteps = self.reference.timesteps
        others = others.kept(~np.isin(others.places(timesteps), own.places(timesteps)))
        return replace(found, contradictions=Findings.joined(self._layers, [own, others]))

    def _decide_samples(
        self, differing: NDArray[np.int64], origins: Findings, certified: NDArray[np.bool_], beyond: NDArray[np.bool_]
    ) -> None:
        rows = origins.rows["sample"] - self._samples
        if not np.isin(np.flatnonzero(differing), rows).all():
            raise DalifError(Code.FAULT, f"runtime {self.name}: spikes differ, but no neuron contradicts the model")
        outcomes = np.where(differing > 0, Outcome.ROUNDING, Outcome.EXACT)
        np.maximum.at(outcomes, rows, outcomes_of(origins))
        outcomes[beyond] = Outcome.DIVERGENT
        for outcome in Outcome:
            self._by_outcome[outcome] += int(np.count_nonzero(outcomes == outcome))
        self._certified += int(np.count_nonzero(certified & (outcomes == Outcome.EXACT)))

    def _earliest(self, origins: Findings, samples: int) -> list[int]:
        """By sample, the place of the first layer that contradicts beyond rounding; behind all layers where none."""
        places = np.full(samples, len(self._layers))
        rows = origins.kept(~origins.within_bound).rows
        np.minimum.at(places, rows["sample"] - self._samples, rows["layer"])
        return [int(place) for place in places]

    def _compare_logits(self, reference: NDArray[np.floating], candidate: NDArray[np.floating]) -> None:
        gap = np.abs(candidate.astype(np.float64) - reference)
        self._logit_difference = max(self._logit_difference, float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0)))
        rows = len(reference)
        changed = reference.reshape(rows, -1).argmax(axis=1) != candidate.reshape(rows, -1).argmax(axis=1)
        self._changes += int(np.count_nonzero(changed))

    def cause(self) -> Cause | None:
        """Why the candidate diverges, from some of the samples; None where no neuron contradicts beyond rounding."""
        if all(origins.within_bound.all() for origins in self._origins):
            return None
        graphs = [self.graph] if self.graph is self.reference else [self.graph, self.reference]
        return find_cause(graphs, self._evidence.kept(), self.arithmetic)

    def result(self) -> Comparison:
        """What all batches together amount to."""
        origins, uncertain = (Findings.joined(self._layers, found) for found in (self._origins, self._uncertain))
        self._origins, self._uncertain = [origins], [uncertain]  # so that they are held once
        outcome = max((outcome for outcome, count in self._by_outcome.items() if count), default=Outcome.EXACT)
        suspected = suspect(origins, uncertain) if self._ties_tell else None
        return Comparison(
            name=self.name,
            outcome=settled(outcome, suspected),
            samples=self._samples,
            spikes_compared=self._compared,
            spikes_differing=self._differing,
            samples_differing=self._samples_differing,
            origins=origins.ordered(),
            uncertain=uncertain.ordered(),
            certified_samples=self._certified,
            samples_by_outcome=dict(self._by_outcome),
            closest=self._closest,
            max_logit_difference=self._logit_difference,
            logits_beyond=tuple(self._logits_beyond),
            prediction_changes=self._changes,
            suspect=suspected,
        )
