"""Verifications whose outcome is known, and results files of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.deploy.data import Data
from dalif_deploy.deploy.model import LoadOptions, Model, open_model
from dalif_deploy.deploy.results import writing_results
from dalif_deploy.equivalence import Comparer, Gains, RuntimeComparison, Verdict, simulate
from dalif_deploy.equivalence.results import FOLDING, REFERENCE, Form, runtime_key
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Linear, frozen
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording
from tests.graphs import GRAPHS

EXACT, ROUNDING, DIVERGENT, ANSWERS = "exact", "rounding", "divergent", "other answers"
SIZE = 4
"""Samples a batch: the graphs' six samples are two batches, the second not a full one."""

Run = Callable[[NDArray[np.generic]], Recording]


def candidate(case: str) -> Run:
    """What runs the network of `model_graph`: rightly, with the other decision at the ties of every second neuron, with
    other weights, or with the right spikes and other logits for every third sample."""
    graph = model_graph()
    if case == ROUNDING:
        for neuron in graph.neurons:
            shape = graph.types[neuron.name].shape
            second = np.arange(np.prod(shape)).reshape(shape) % 2
            above = np.where(second, np.nextafter(1.0, 2.0), 1.0)
            graph = graph.replaced({neuron.name: replace(neuron, v_threshold=frozen(above))})
    if case == DIVERGENT:
        layer = graph["fc1"]
        assert isinstance(layer, Linear)
        weight = np.array(layer.weight)
        weight[3, ::7] += 0.5
        graph = graph.replaced({"fc1": replace(layer, weight=frozen(weight))})
    if case == ANSWERS:
        return lambda batch: _other_logits(simulate(graph, batch))
    return lambda batch: simulate(graph, batch)


def refusal(code: Code, call: Callable[[], object]) -> str:
    """The one line with which `call` is refused."""
    with pytest.raises(DalifError) as caught:
        call()
    assert caught.value.code is code, caught.value
    assert "\n" not in caught.value.message
    return caught.value.message


def _other_logits(recording: Recording) -> Recording:
    logits = recording.logits.copy()
    logits[::3] = 1.0 - logits[::3]
    return Recording(recording.spikes, logits)


def model_graph() -> SpikingGraph:
    """A network whose potentials often meet the threshold exactly. They leak towards 1/4, and no sum with a leak target
    is counted as free of rounding: the ties are uncertain."""
    graph = GRAPHS["ties"]()[0]
    return graph.replaced({neuron.name: replace(neuron, leak_target=frozen(0.25)) for neuron in graph.neurons})


def data() -> Data:
    """Six samples of it, with labels."""
    batch = GRAPHS["ties"]()[1]
    return Data(batch, np.array([0, 1, 2, 3, 0, 1]), "six samples")


@dataclass(frozen=True)
class Candidate:
    """What takes part in a verification: what runs, and how it computes."""

    run: Run
    form: Form


def recorded_verdict(
    *cases: str,
    path: Path | None = None,
    model: Model | Path | SpikingGraph | None = None,
    chosen: Data | None = None,
    keep_inputs: bool = False,
    candidates: Mapping[str, Candidate] | None = None,
    changed: Callable[[Verdict], Verdict] = lambda verdict: verdict,
) -> Verdict:
    """Verify the candidates of `cases`, or `candidates`, and store the results at `path`: what verify does, short.
    `changed`: what is done to the verdict before it is stored."""
    opened = open_model(model or model_graph(), LoadOptions())
    chosen = chosen or data()
    graph = opened.graph
    folded = fold(graph)
    taking_part = candidates or {case: Candidate(candidate(case), Form()) for case in cases}
    link = Comparer("folding", graph)
    comparers = [
        Comparer(name, folded, arithmetic=found.form.arithmetic(), reference=graph)
        for name, found in taking_part.items()
    ]
    correct = [0] * (len(comparers) + 1)
    fired = {neuron.name: 0 for neuron in graph.neurons}
    steps = dict(fired)
    writing = writing_results(path, model=opened, data=chosen, keep_inputs=keep_inputs) if path else nullcontext()
    with writing as writer:
        for number, batch in enumerate(chosen.batches(SIZE)):
            reference = simulate(graph, batch)
            recordings = {REFERENCE: reference, FOLDING: simulate(folded, batch)}
            link.add(batch, reference, recordings[FOLDING])
            for place, (found, comparer) in enumerate(zip(taking_part.values(), comparers, strict=True)):
                recordings[runtime_key(place)] = found.run(batch)
                comparer.add(batch, reference, recordings[runtime_key(place)])
            labels = None if chosen.labels is None else chosen.labels[number * SIZE :][: len(batch)]
            if labels is not None:
                for place, key in enumerate([REFERENCE, *(runtime_key(i) for i in range(len(comparers)))]):
                    correct[place] += int(np.sum(recordings[key].logits.argmax(axis=1) == labels))
            for name, train in reference.spikes.items():
                fired[name] += train.count()
                steps[name] += train.neuron_steps
            if writer is not None:
                writer.add(batch, labels, recordings)
        samples = len(chosen.inputs)
        shares = [None if chosen.labels is None else right / samples for right in correct]
        verdict = Verdict(
            samples=samples,
            timesteps=graph.timesteps,
            reference="training graph",
            links={"module": None, "folding": link.result()},
            rates={name: fired[name] / steps[name] for name in fired},
            gains={neuron.name: Gains(neuron.alpha, neuron.beta) for neuron in graph.neurons},
            runtimes=tuple(
                RuntimeComparison(
                    comparer.result(),
                    f"ran {comparer.name}",
                    notes=("a note",),
                    accuracy=share,
                    cause=comparer.cause(),
                )
                for comparer, share in zip(comparers, shares[1:], strict=True)
            ),
            accuracy=shares[0],
            notes=("data: six samples",),
        )
        verdict = changed(verdict)
        if writer is not None:
            writer.finish(verdict, {runtime_key(i): found.form for i, found in enumerate(taking_part.values())})
    return verdict
