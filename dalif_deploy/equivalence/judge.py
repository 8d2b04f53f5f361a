"""Judges every neuron-step of a candidate on the candidate's own history.

The reference potential V64 of a neuron at a timestep is recomputed from the spikes that the candidate itself
recorded: those of the layers before it, and its own earlier ones through its resets. A spike (or silence)
that disagrees with V64 is a contradiction. So an early difference does not excuse what follows from it: what
follows from it is no contradiction, and what does not is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.replay import NeuronStep, replay
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.recording import Recording

Precision = Literal["float32", "float64"]

NEAR_TIE: dict[Precision, float] = {"float32": 1e-5, "float64": 1e-5 * 2.0**-29}
"""The near-tie rule: a contradiction is within rounding where |V64 - v_th| is at most this share of
sum |w s| + |b| + |beta H| + v_th. float64 has 29 bits more than float32, and the share is as much smaller."""


@dataclass(frozen=True)
class Contradiction:
    """One neuron-step at which a candidate's spike disagrees with the potential it should have had.

    `sample`: index in the data. `index`: the neuron's place in its layer. `fired`: what the candidate did.
    `potential`, `threshold`, `margin` (potential - threshold) and `bound` are in the trained model's units.
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

    @property
    def within_bound(self) -> bool:
        """Whether rounding explains it."""
        return abs(self.margin) <= self.bound

    def as_json(self) -> dict[str, Any]:
        """With the keys of DESIGN's `origins`, plain types only."""
        return {**vars(self), "index": list(self.index), "within_bound": self.within_bound}


def contradictions(
    graph: SpikingGraph,
    batch: NDArray[np.generic],
    candidate: Recording,
    *,
    precision: Precision,
    first_sample: int = 0,
) -> list[Contradiction]:
    """All contradictions of one batch, ordered by (t, layer in topological order, sample, index).

    `graph`: the training graph. `precision`: what the candidate computed in, which sets the bound.
    `first_sample`: the index in the data of the batch's first sample. Raises as `replay`.
    """
    found: list[Contradiction] = []

    def visit(step: NeuronStep) -> None:
        neuron = step.neuron
        fired = candidate.spikes[neuron.name].step(step.t)
        where = np.argwhere(fired != step.fires)
        if not len(where):
            return
        assert step.magnitude is not None
        shape = step.potential.shape
        scale = np.broadcast_to(neuron.potential_scale, shape)
        threshold = np.broadcast_to(neuron.v_threshold, shape)
        for place in map(tuple, where):
            unit = float(scale[place])
            potential, limit = unit * float(step.potential[place]), unit * float(threshold[place])
            found.append(
                Contradiction(
                    sample=first_sample + int(place[0]),
                    layer=neuron.name,
                    t=step.t,
                    index=tuple(int(i) for i in place[1:]),
                    fired=bool(fired[place]),
                    potential=potential,
                    threshold=limit,
                    margin=unit * float(step.potential[place] - threshold[place]),
                    bound=abs(unit) * NEAR_TIE[precision] * float(step.magnitude[place]),
                )
            )

    replay(graph, batch, visit, history=candidate.spikes, magnitudes=True)
    return found
