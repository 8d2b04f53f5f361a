"""What the differences of a comparison look like, where rounding could explain each of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dalif_deploy.equivalence.findings import NeuronStepFinding
from dalif_deploy.equivalence.verdict import Outcome

Suspect = Literal["threshold rule"]

FEWEST = 2
"""So many ties must have been decided otherwise before they are suspicious."""


def suspect(origins: Sequence[NeuronStepFinding], uncertain: Sequence[NeuronStepFinding]) -> Suspect | None:
    """What a candidate is suspected of that could be rounding at every single neuron-step.

    "threshold rule": all of its contradictions (two at least) are exact ties, V64 == v_th, and in the layers where
    they are no tie at all was decided as the model decides it. Rounding would take some of them either way; a
    candidate that fires at V > v_th, where the model fires at V >= v_th, takes them all one way. `uncertain`: every
    neuron-step within its bound, so that all ties are among them.
    """
    if len(origins) < FEWEST or not all(origin.margin == 0.0 and origin.within_bound for origin in origins):
        return None
    contradicting = {(o.sample, o.layer, o.t, o.index) for o in origins}
    layers = {origin.layer for origin in origins}
    ties = {(u.sample, u.layer, u.t, u.index) for u in uncertain if u.layer in layers and u.margin == 0.0}
    return "threshold rule" if ties <= contradicting else None


def settled(outcome: Outcome, suspected: Suspect | None) -> Outcome:
    """The outcome, or unproved where rounding could explain all but what is suspected explains it better."""
    return max(outcome, Outcome.UNPROVED) if suspected else outcome
