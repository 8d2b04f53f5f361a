"""Finds the layer in which a candidate first goes wrong, and the cause that explains all of it there.

Layers are looked at on the candidate's own recorded history, so that what goes wrong before a layer, or after it, does
not matter: the first layer in topological order with a contradiction beyond rounding is where something is wrong,
and what is wrong there stands between the layers that feed it and its own spikes. One change at a time is made to the
model, and the layer replayed under it. A change explains the candidate only if not a single contradiction beyond
rounding is left, in the samples that go wrong and in those kept beside them. Of several that do, the simplest is
named: first changes without any number to be found, in the order of `hypotheses`, then those of one estimated
number, that of the shortest decimal first, then orders of channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dalif_deploy.equivalence.cause import Cause, Explanation, TrajectoryStep
from dalif_deploy.equivalence.evidence import Kept
from dalif_deploy.equivalence.findings import NeuronStepFinding
from dalif_deploy.equivalence.hypotheses import hypotheses
from dalif_deploy.equivalence.judge import Arithmetic
from dalif_deploy.equivalence.layer_replay import Layer, LayerRun
from dalif_deploy.equivalence.parameters_sought import sought
from dalif_deploy.equivalence.permutations import permuted
from dalif_deploy.graph import SpikingGraph

SHOWN = 5
"""So many of the earliest contradictions are listed."""

NEURON_STEPS = 2**19
"""About so many neuron-steps of a layer are looked at, at least those of one sample."""

UNEXPLAINED = Explanation("unexplained", "no single change that is known explains all of it")


def find_cause(graphs: Sequence[SpikingGraph], kept: Kept, arithmetic: Arithmetic) -> Cause | None:
    """Why a candidate diverges; None where, in these samples, nothing contradicts the model beyond rounding.

    `graphs`: what the candidate computes, and the reference if that is another graph; the first that is contradicted
    is the one that is looked at.
    """
    for graph in graphs:
        for neuron in graph.neurons:
            count = max(1, NEURON_STEPS // int(np.prod((graph.timesteps, *graph.types[neuron.name].shape))))
            part = kept.first(count)
            how = arithmetic if graph is graphs[0] else arithmetic.on_reference()
            layer = Layer(graph, neuron.name, part.batch, part.spikes, how)
            own = layer.run()
            if own.contradictions:
                return _cause(layer, own, part)
    return None


def _cause(layer: Layer, own: LayerRun, kept: Kept) -> Cause:
    explanations = explain(layer)
    earliest = _earliest(layer, own, kept.samples)
    row = kept.samples.index(earliest[0].sample)
    return Cause(
        explanation=explanations[0] if explanations else UNEXPLAINED,
        layer=layer.name,
        contradictions=own.contradictions,
        samples=tuple(sorted(kept.samples)),
        earliest=earliest,
        trajectory=_trajectory(layer, own, (row, *earliest[0].index)),
        also=tuple(explanations[1:]),
    )


def explain(layer: Layer) -> list[Explanation]:
    """Everything known that explains all contradictions of a layer, the simplest first."""
    found: list[Explanation] = []
    for hypothesis in hypotheses(layer):
        shifted = hypothesis.name == "shift in time" and any(known.name == "shift in time" for known in found)
        # Where no bias stands between them, a delay here and a delay there are one.
        if not shifted and hypothesis.run().contradictions == 0:
            found.append(hypothesis.explanation)
    estimated = []
    for parameter in sought(layer):
        if any(explanation.name == parameter.name for explanation in found):
            continue  # a known value of it explains all
        if (result := parameter.found()) is not None:
            estimated.append(result)
    found += [explanation for _, explanation in sorted(estimated, key=lambda result: result[0])]
    return found or list(permuted(layer))


def _earliest(layer: Layer, own: LayerRun, samples: Sequence[int]) -> tuple[NeuronStepFinding, ...]:
    def order(place: Sequence[int]) -> tuple[int, ...]:
        return (place[1], samples[place[0]], *place[2:])

    places = sorted((tuple(int(i) for i in place) for place in np.argwhere(own.wrong)), key=order)
    return tuple(_finding(layer, own, place, samples) for place in places[:SHOWN])


def _finding(layer: Layer, own: LayerRun, place: tuple[int, ...], samples: Sequence[int]) -> NeuronStepFinding:
    unit, threshold = _unit(own, place)
    return NeuronStepFinding(
        sample=samples[place[0]],
        layer=layer.name,
        t=place[1],
        index=place[2:],
        fired=bool(own.spikes[place]),
        potential=unit * float(own.potential[place]),
        threshold=threshold,
        margin=unit * float(own.margin[place]),
        bound=abs(unit) * float(own.bound[place]),
    )


def _unit(own: LayerRun, place: tuple[int, ...]) -> tuple[float, float]:
    """What turns the layer's units into the trained model's, and the threshold in those."""
    shape = own.fires.shape[2:]
    unit = float(np.broadcast_to(own.neuron.potential_scale, shape)[place[2:]])
    return unit, unit * float(np.broadcast_to(own.neuron.v_threshold, shape)[place[2:]])


def _trajectory(layer: Layer, own: LayerRun, neuron: tuple[int, ...]) -> tuple[TrajectoryStep, ...]:
    row, *index = neuron
    steps = []
    for t in range(layer.graph.timesteps):
        place = (row, t, *index)
        unit, threshold = _unit(own, place)
        steps.append(
            TrajectoryStep(
                t, unit * float(own.potential[place]), threshold, bool(own.fires[place]), bool(own.spikes[place])
            )
        )
    return tuple(steps)
