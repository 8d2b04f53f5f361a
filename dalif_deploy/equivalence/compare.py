"""Compares a candidate with the reference, batch by batch, and decides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.judge import Contradiction, Precision, contradictions
from dalif_deploy.equivalence.verdict import Comparison, Outcome
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.recording import Recording


class Comparer:
    """Accumulates the comparison of one candidate; memory grows with what differs, not with the samples.

    `graph` is the training graph that judges; `precision` is what the candidate computes in.
    """

    def __init__(self, name: str, graph: SpikingGraph, *, precision: Precision) -> None:
        self.name = name
        self.graph = graph
        self.precision: Precision = precision
        self._samples = self._compared = self._differing = self._samples_differing = self._changes = 0
        self._logit_difference = 0.0
        self._origins: list[Contradiction] = []

    def add(self, batch: NDArray[np.generic], reference: Recording, candidate: Recording) -> None:
        """One batch: the data, the reference's recording and the candidate's.

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
        if per_sample.any():
            # The whole batch is replayed, in the shape in which the reference was computed: a matrix product
            # of another shape may sum in another order, and a tie would then be no tie.
            origins = contradictions(self.graph, batch, candidate, precision=self.precision, first_sample=self._samples)
            if not origins:
                raise DalifError(Code.FAULT, f"runtime {self.name}: spikes differ, but no neuron contradicts the model")
            self._origins.extend(origins)
        self._differing += int(per_sample.sum())
        self._samples_differing += int(np.count_nonzero(per_sample))
        self._samples += len(batch)
        self._compare_logits(reference.logits, candidate.logits)

    def _compare_logits(self, reference: NDArray[np.floating], candidate: NDArray[np.floating]) -> None:
        if reference.shape != candidate.shape:
            raise DalifError(
                Code.FAULT, f"runtime {self.name}: logits of shape {candidate.shape}, expected {reference.shape}"
            )
        gap = np.abs(candidate.astype(np.float64) - reference)
        self._logit_difference = max(self._logit_difference, float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0)))
        rows = len(reference)
        changed = reference.reshape(rows, -1).argmax(axis=1) != candidate.reshape(rows, -1).argmax(axis=1)
        self._changes += int(np.count_nonzero(changed))

    def result(self) -> Comparison:
        """What all batches together amount to."""
        order = {neuron.name: place for place, neuron in enumerate(self.graph.neurons)}
        origins = sorted(self._origins, key=lambda o: (o.within_bound, o.t, order[o.layer], o.sample, o.index))
        if not self._differing:
            outcome = Outcome.EXACT
        else:
            outcome = Outcome.ROUNDING if all(o.within_bound for o in origins) else Outcome.DIVERGENT
        return Comparison(
            name=self.name,
            outcome=outcome,
            samples=self._samples,
            spikes_compared=self._compared,
            spikes_differing=self._differing,
            samples_differing=self._samples_differing,
            origins=tuple(origins),
            max_logit_difference=self._logit_difference,
            prediction_changes=self._changes,
        )
