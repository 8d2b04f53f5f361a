"""Judges stored spikes anew against their model: margins and bounds are computed again, what fired them is not run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalif_deploy.deploy.content import content_of
from dalif_deploy.deploy.data import Data, Progress, as_data
from dalif_deploy.deploy.model import LoadOptions, Model, open_model
from dalif_deploy.deploy.results import InputsHash, Results, open_results
from dalif_deploy.deploy.verifying import verify
from dalif_deploy.equivalence import Comparer, Known, Verdict, simulate
from dalif_deploy.equivalence.results import Form, runtime_key
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording


@dataclass
class _Candidate:
    comparer: Comparer
    recordings: Iterator[Recording]
    correct: int = 0


def judge_again(
    path: str | Path,
    model: str | Path | torch.nn.Module | SpikingGraph | Model,
    *,
    data: Data | Any = None,
    options: LoadOptions | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """The verdict on the spikes in a results file, judged against `model` with today's bounds.

    `data`: what was run then; None where the file holds it. The links are computed anew; what a runtime's spikes do not
    tell (parameters that differ, its description) is as it was found then. Raises `DalifError`: FILE_MISSING,
    FILE_DAMAGED, FOREIGN_FILE, PICKLED; BAD_OPTION where the data are needed; OTHER_MODEL, BAD_DATA where model or
    data are not those of the file; what opening the model raises.
    """
    with open_results(path) as results:
        opened = open_model(model, options or LoadOptions())
        _check_model(results, opened)
        if data is None:
            data = Data(results.inputs(), results.labels(), results.data.origin)
        chosen = as_data(data).first(results.samples)
        _check_data(results, chosen)
        return _judged(results, opened, chosen, progress)


def _judged(results: Results, model: Model, data: Data, progress: Progress | None) -> Verdict:
    stored = results.decide()
    candidates = []
    for place, runtime in enumerate(stored.runtimes):
        key = runtime_key(place)
        form = results.recordings[key]
        assert form is not None  # Results has checked it
        candidates.append(_Candidate(_comparer(runtime.comparison.name, model, form), _recordings(results, key)))
    done = 0
    for batch in data.batches(results.batch):
        reference = simulate(model.graph, batch)
        known: Known = {}
        for candidate in candidates:
            found = next(candidate.recordings)
            candidate.comparer.add(batch, reference, found, known)
            if data.labels is not None:
                predictions = found.logits.reshape(len(batch), -1).argmax(axis=1)
                candidate.correct += int(np.count_nonzero(predictions == data.labels[done : done + len(batch)]))
        done += len(batch)
        if progress is not None:
            progress(done, len(data.inputs))
    runtimes = [
        replace(
            runtime,
            comparison=candidate.comparer.result(),
            cause=candidate.comparer.cause(),
            accuracy=None if data.labels is None else candidate.correct / len(data.inputs),
        )
        for runtime, candidate in zip(stored.runtimes, candidates, strict=True)
    ]
    return replace(verify(model, data=data, runtimes=()), runtimes=tuple(runtimes))


def _recordings(results: Results, key: str) -> Iterator[Recording]:
    """In batches as they were run: the float64 replay of another batch size may sum in another order."""
    for found in results.batches([key], results.batch):
        yield found[key]


def _comparer(name: str, model: Model, form: Form) -> Comparer:
    if form.graph == "training":
        return Comparer(name, model.graph, arithmetic=form.arithmetic())
    content = content_of(fold(model.graph), form.content, two_slices=form.two_slices)
    return Comparer(name, content.judged, arithmetic=form.arithmetic(content.grids), reference=model.graph)


def _check_model(results: Results, model: Model) -> None:
    if None not in (results.model_sha256, model.sha256) and results.model_sha256 != model.sha256:
        raise _other(results, f"was written for another model ({results.model_file}, by its SHA-256)")
    graph = model.graph
    wanted = {neuron.name: graph.types[neuron.name].shape for neuron in graph.neurons}
    if results.layers.keys() != wanted.keys():
        raise _other(results, f"has the neuron layers {', '.join(results.layers)}, the model {', '.join(wanted)}")
    if results.timesteps != graph.timesteps:
        raise _other(results, f"is of {results.timesteps} timesteps, the model runs {graph.timesteps}")
    for name, shape in wanted.items():
        if results.layers[name] != shape:
            raise _other(results, f"layer '{name}' has shape {list(results.layers[name])}, the model's {list(shape)}")
    if (found := results.logits_shape) != (expected := graph.types[graph.output].shape):
        raise _other(results, f"has logits of shape {list(found)}, the model {list(expected)}")


def _check_data(results: Results, data: Data) -> None:
    want = results.data
    if (data.inputs.dtype.name, data.inputs.shape) != (want.dtype, want.shape):
        found = f"{data.inputs.dtype} {list(data.inputs.shape)}"
        raise DalifError(
            Code.BAD_DATA, f"{results.path}: was written for data {want.dtype} {list(want.shape)}, not for {found}"
        )
    if InputsHash.of(data) != want.sha256:
        raise DalifError(
            Code.BAD_DATA,
            f"{results.path}: was written for other data ({want.origin}), by their SHA-256; give the same",
        )


def _other(results: Results, how: str) -> DalifError:
    return DalifError(Code.OTHER_MODEL, f"{results.path}: {how}; give the model whose spikes were recorded")
