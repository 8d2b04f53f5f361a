"""Judges every neuron-step of a candidate on the candidate's own history.

The reference potential V64 of a neuron at a timestep is recomputed from the spikes that the candidate itself
recorded: those of the layers before it, and its own earlier ones through its resets. A spike (or silence)
that disagrees with V64 is a contradiction. So an early difference does not excuse what follows from it: what
follows from it is no contradiction, and what does not is one.

With V64 comes a bound on what rounding can do to the candidate's margin V - v_th. A contradiction within the
bound is rounding. A neuron-step whose margin is beyond the bound is certified: no evaluation in this
precision and form can decide it otherwise, whatever the order of its sums. Where nothing rounds (see
`exact_steps`) the bound is 0, and even V64 == v_th can be decided in one way only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.exact_steps import ExactSteps
from dalif_deploy.equivalence.findings import ROW, Findings, NeuronStepFinding, Shapes, within
from dalif_deploy.equivalence.membrane import U64, Update
from dalif_deploy.equivalence.replay import NeuronStep, replay
from dalif_deploy.equivalence.rounding import Grids, Pools, U
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.operators import Values
from dalif_deploy.recording import SpikeTrain

Precision = Literal["float32", "float64"]

SHARE: Mapping[Precision, float] = {"float32": 1.0 + 2.0**-20, "float64": 2.0**-25}
"""What the float32 bound is multiplied by. float64 rounds 2^29 times finer; 2^-25 leaves room for the roundings
of folding. The excess over 1 for float32 is the replay's own rounding."""


@dataclass(frozen=True)
class Arithmetic:
    """How a candidate computes: in which precision, by which membrane formula (see `membrane`), and, where its
    weights were snapped so that its sums are exact, on which grids; `precision` is then its membrane's. `pools`:
    whether it computes sum pools as sums, or as means times the size of the window (see `rounding`). `codes`: whether
    it takes the data's codes as they are, where the graph takes the float32 numbers that they become."""

    precision: Precision = "float32"
    update: Update = "sum"
    grids: Grids | None = None
    pools: Pools = "sum"
    codes: bool = False

    @classmethod
    def of_module(cls, graph: SpikingGraph, precision: Precision) -> Self:
        """Of the module that `graph` was captured from: every neuron by its own formula."""
        return cls(precision, "own" if any(neuron.update != "sum" for neuron in graph.neurons) else "sum")

    def on_reference(self) -> Arithmetic:
        """The same where the graph is the reference, of a candidate that fires as its own graph does.

        Of snapped content, what is between the two graphs are roundings of float64, and of the inputs.
        """
        return self if self.grids is None else Arithmetic("float64", codes=True)

    @property
    def share(self) -> float:
        """What the replay's bound is multiplied by."""
        return SHARE["float32" if self.grids is not None else self.precision]

    @property
    def unit(self) -> float:
        """The unit roundoff that the replay's bound counts in."""
        return U64 if self.grids is not None and self.precision == "float64" else U

    def exact_steps(self, graph: SpikingGraph, batch: NDArray[np.generic]) -> ExactSteps:
        """What tells of a replay of `graph` on `batch` where nothing rounds."""
        inputs: Values = graph.input_spec.module_input(batch).astype(np.float64)
        rounds = self.grids is not None or bool(self.input_error(graph, batch).any())
        return ExactSteps(graph, inputs, None if rounds else self.update, self.pools)

    def input_error(self, graph: SpikingGraph, batch: NDArray[np.generic]) -> Values:
        """How far its inputs can lie from the graph's, in the measure of the replay's bound; of the batch's shape."""
        return graph.input_spec.input_rounding(batch) / self.share if self.codes else np.zeros(batch.shape)


@dataclass(frozen=True, eq=False)
class Judgement:
    """What judging one batch found.

    `contradictions`: spikes or silences that disagree with V64. `uncertain`: neuron-steps whose margin lies
    within the bound, contradictions among them included. `certified`: bool [batch], samples without any.
    `logits`: what the recorded spikes amount to, [batch, ...], and `logits_bound`, how far rounding can take a
    candidate's from it. `closest`: the neuron-step of the smallest |margin|. All in the order of replay: by
    timestep, then layer.
    """

    contradictions: Findings
    uncertain: Findings
    certified: NDArray[np.bool_]
    closest: NeuronStepFinding | None
    logits: NDArray[np.float64]
    logits_bound: NDArray[np.floating]


def judge(
    graph: SpikingGraph,
    batch: NDArray[np.generic],
    spikes: Mapping[str, SpikeTrain],
    arithmetic: Arithmetic,
    *,
    first_sample: int = 0,
) -> Judgement:
    """Judge one batch of recorded `spikes`, by layer.

    `graph`: what the candidate computes, training or folded. `first_sample`: the index in the data of the
    batch's first sample. Raises as `replay`.
    """
    share = arithmetic.share
    visitor = _Judging(graph, spikes, share, arithmetic.exact_steps(graph, batch), first_sample, len(batch))
    answers: list[tuple[NDArray[np.float64], NDArray[np.floating]]] = []

    def answer(logits: NDArray[np.float64], error: NDArray[np.floating] | None) -> None:
        assert error is not None
        answers.append((logits, share * error))

    replay(
        graph, batch, visitor, history=spikes, update=arithmetic.update, grids=arithmetic.grids,
        unit=arithmetic.unit, pools=arithmetic.pools, answer=answer, input_error=arithmetic.input_error(graph, batch),
    )  # fmt: skip
    contradictions, uncertain = (
        Findings.joined(visitor.layers, found) for found in (visitor.contradictions, visitor.uncertain)
    )
    return Judgement(contradictions, uncertain, visitor.certified, visitor.closest, *answers[0])


def judged_bound(step: NeuronStep, exact: ExactSteps, fired: NDArray[np.bool_], share: float) -> Values:
    """How far rounding can take the margin of a step at which the candidate `fired`; 0 where nothing rounds."""
    assert step.bound is not None
    bound = np.broadcast_to(share * step.bound, step.potential.shape)
    mask = exact.mask(step, fired)
    return bound if mask is None else np.where(mask, 0.0, bound)


class _Judging:
    def __init__(
        self, graph: SpikingGraph, spikes: Mapping[str, SpikeTrain], share: float, exact: ExactSteps, first_sample: int,
        samples: int,
    ) -> None:  # fmt: skip
        self.layers: Shapes = {neuron.name: graph.types[neuron.name].shape for neuron in graph.neurons}
        self.places = {name: place for place, name in enumerate(self.layers)}
        self.spikes = spikes
        self.share = share
        self.exact = exact
        self.first_sample = first_sample
        self.contradictions: list[Findings] = []
        self.uncertain: list[Findings] = []
        self.certified = np.ones(samples, np.bool_)
        self.closest: NeuronStepFinding | None = None

    def __call__(self, step: NeuronStep) -> None:
        fired = self.spikes[step.neuron.name].step(step.t)
        margin = step.compared - step.neuron.v_threshold
        distance = np.abs(margin)
        bound = judged_bound(step, self.exact, fired, self.share)
        uncertain = np.nonzero(within(margin, bound))
        self.contradictions.append(self._findings(step, np.nonzero(fired != step.fires), fired, margin, bound))
        self.uncertain.append(self._findings(step, uncertain, fired, margin, bound))
        self.certified[uncertain[0]] = False
        nearest = np.argmin(distance * np.abs(step.neuron.potential_scale), keepdims=True).reshape(1)
        closest = self._findings(step, np.unravel_index(nearest, distance.shape), fired, margin, bound)[0]
        if self.closest is None or abs(closest.margin) < abs(self.closest.margin):
            self.closest = closest

    def _findings(
        self, step: NeuronStep, places: tuple[NDArray[np.intp], ...], fired: NDArray[np.bool_],
        margin: NDArray[np.floating], bound: NDArray[np.floating],
    ) -> Findings:  # fmt: skip
        """Some neuron-steps of one layer and timestep; `places`: their indices, sample first."""
        neuron = step.neuron
        unit = np.broadcast_to(neuron.potential_scale, margin.shape)[places]
        rows = np.zeros(len(places[0]), ROW)
        rows["sample"] = self.first_sample + places[0]
        rows["layer"] = self.places[neuron.name]
        rows["t"] = step.t
        rows["index"] = np.ravel_multi_index(places[1:], margin.shape[1:])
        rows["fired"] = fired[places]
        rows["potential"] = unit * step.compared[places]
        rows["threshold"] = unit * np.broadcast_to(neuron.v_threshold, margin.shape)[places]
        rows["margin"] = unit * margin[places]
        rows["bound"] = np.abs(unit) * bound[places]
        rows["proved"] = step.proved & np.isfinite(bound[places])
        return Findings(self.layers, rows)
