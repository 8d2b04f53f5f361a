"""verify: whether exported files, and every runtime, fire the same spikes as the trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.deploy.content import Content, content_of
from dalif_deploy.deploy.data import Data, Progress, as_data, check_labels, check_samples, rounded_inputs
from dalif_deploy.deploy.differing import ALL_ALIKE, FileDifferences, check_recording, compared_with_export, explained
from dalif_deploy.deploy.exported import READ_BACK, ExportedFile, answered_by_files, open_exported
from dalif_deploy.deploy.model import LoadOptions, Model, as_path, open_model, precision_of
from dalif_deploy.deploy.results import ResultsWriter, writing_results
from dalif_deploy.equivalence import (
    Arithmetic,
    Comparer,
    Comparison,
    Gains,
    Known,
    RuntimeComparison,
    Verdict,
    simulate,
)
from dalif_deploy.equivalence.results import FOLDING, MODULE, Form, runtime_key
from dalif_deploy.equivalence.results import REFERENCE as REFERENCE_KEY
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.protocol import Runtime
from dalif_deploy.runtimes.recorded import RecordedRuntime
from dalif_deploy.runtimes.registry import RuntimeKind, Takes, open_runtime, runtime_kind, runtime_kinds

REFERENCE = "training graph, float64, frozen alpha and beta"
READ_BACK_ONLY = "read back by dalif_deploy only"
"""How the note ends on a file that no simulator ran."""


@dataclass
class _Candidate:
    """One runtime on one file or on the model, and what it did so far."""

    runtime: Runtime
    comparer: Comparer
    form: Form
    file: Path | None = None
    differing: FileDifferences = ALL_ALIKE
    definition: Runtime | None = None
    bits: int = 0
    correct: int = 0
    synaptic: int | None = None

    def result(self, samples: int, labelled: bool) -> RuntimeComparison:
        return RuntimeComparison(
            comparison=self.comparer.result(),
            description=self.runtime.description,
            file=None if self.file is None else str(self.file),
            tensors_differing=self.differing.tensors,
            contents_differing=self.differing.contents,
            definition_differing=None if self.definition is None else self.bits,
            notes=tuple(dict.fromkeys(getattr(self.runtime, "notes", ()))),
            accuracy=self.correct / samples if labelled else None,
            synaptic_operations=None if self.synaptic is None else self.synaptic / samples,
            cause=self.comparer.cause(),
        )


@dataclass
class _Candidates:
    """The runtimes that take part, and remarks on those that do not."""

    found: list[_Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    model: str | Path | torch.nn.Module | SpikingGraph | Model,
    *files: str | Path,
    data: Data | Any = None,
    samples: int | None = None,
    runtimes: str | Sequence[str] | None = None,
    recordings: str | Path | Sequence[str | Path] = (),
    options: LoadOptions | None = None,
    progress: Progress | None = None,
    results: str | Path | None = None,
    keep_inputs: bool = False,
    force: bool = False,
) -> Verdict:
    """Compare, spike by spike, everything that runs the model with the training graph in float64.

    `files`: exported .onnx and .nir files, recognised by content. `data`: inputs [N, ...] or [N, T, ...] as an array,
    a tensor or lists, or `Data` with labels; else the samples stored with the model, else seeded ones; `samples`: at
    most so many. `runtimes`: a name or names; None takes torch and events on the model, and every installed runtime
    that reads a file. `recordings`: .npz files of runs on the same data elsewhere, for instance on a chip (see
    `RecordedRuntime`); they are judged as float32 runs of the folded graph. `results`: where to store what was
    compared (see `deploy.results`), with the inputs themselves where `keep_inputs`; `force`: replace an existing file.
    Raises `DalifError`: what opening the model and files raises; BAD_OPTION, MISSING_PACKAGE, WRONG_SHAPE, BAD_DATA,
    OTHER_MODEL; FILE_DAMAGED where a file cannot be run because of something in it that the model does not export to;
    OUTPUT_EXISTS, OUTPUT_IS_INPUT, NO_FOLDER.
    A divergence is no error: it is in the verdict.
    """
    check_samples(samples)
    names = (runtimes,) if isinstance(runtimes, str) else runtimes
    if names is not None and not isinstance(names, Sequence):
        raise DalifError(Code.BAD_OPTION, f"runtimes = {names!r}: give the names of runtimes")
    recordings = (recordings,) if isinstance(recordings, str | Path) else recordings
    given = None if data is None else as_data(data)
    opened = open_model(model, answered_by_files(model, options or LoadOptions(), files), given)
    graph = opened.graph
    folded = fold(graph)
    chosen = opened.data(samples) if given is None else given.first(samples)
    graph.input_spec.module_input(chosen.inputs[:1])  # a wrong shape is told before anything is opened
    check_labels(chosen, math.prod(graph.types[graph.output].shape))
    candidates = _candidates(opened, folded, [as_path(file, "files") for file in files], names)
    shapes = {neuron.name: (graph.timesteps, *graph.types[neuron.name].shape) for neuron in graph.neurons}
    for path in map(Path, recordings):
        comparer = Comparer(RecordedRuntime.name, folded, reference=graph)
        candidates.found.append(_Candidate(RecordedRuntime(path, shapes), comparer, Form(), path))
    folding = Comparer("folding", graph, arithmetic=Arithmetic("float64"), ties_tell=False)
    module = None
    if opened.captured:
        module = Comparer("module", graph, arithmetic=Arithmetic.of_module(graph, _module_precision(opened)))
    fired = {neuron.name: 0 for neuron in graph.neurons}
    steps = dict(fired)
    correct = done = 0
    writing: AbstractContextManager[ResultsWriter | None] = nullcontext()
    if results is not None:
        inputs = [Path(file) for file in (*files, *recordings)]
        writing = writing_results(
            results, model=opened, data=chosen, others=inputs, keep_inputs=keep_inputs, force=force
        )
    with writing as writer:
        for batch in chosen.batches():
            reference = simulate(graph, batch)
            known: Known = {}
            recorded = {REFERENCE_KEY: reference, FOLDING: simulate(folded, batch)}
            folding.add(batch, reference, recorded[FOLDING], known)
            if module is not None and opened.captured is not None:
                recorded[MODULE] = opened.captured.run(graph.input_spec.module_input(batch))
                module.add(batch, reference, recorded[MODULE], known)
            labels = None if chosen.labels is None else chosen.labels[done : done + len(batch)]
            for place, candidate in enumerate(candidates.found):
                with explained(candidate.file, candidate.differing):
                    recording = recorded[runtime_key(place)] = candidate.runtime.run(batch)
                if candidate.file is not None:
                    check_recording(candidate.file, candidate.differing, recording, reference)
                candidate.comparer.add(batch, reference, recording, known)
                if candidate.definition is not None:
                    candidate.bits += _differing_bits(recording, candidate.definition.run(batch))
                candidate.correct += _correct(recording, labels)
                if recording.operations is not None:
                    candidate.synaptic = (candidate.synaptic or 0) + sum(recording.operations.synaptic.values())
            correct += _correct(reference, labels)
            for name, train in reference.spikes.items():
                fired[name] += train.count()
                steps[name] += train.neuron_steps
            if writer is not None:
                writer.add(batch, labels, recorded)
            done += len(batch)
            if progress is not None:
                progress(done, len(chosen.inputs))
        labelled = chosen.labels is not None
        verdict = Verdict(
            samples=done,
            timesteps=graph.timesteps,
            reference=REFERENCE,
            links={"module": module.result() if module else _stored_module(opened), "folding": folding.result()},
            rates={name: fired[name] / steps[name] for name in fired},
            gains={
                neuron.name: Gains(neuron.alpha if neuron.trained_alpha is None else neuron.trained_alpha, neuron.beta)
                for neuron in graph.neurons
            },
            runtimes=tuple(candidate.result(done, labelled) for candidate in candidates.found),
            accuracy=correct / done if labelled else None,
            notes=tuple(
                dict.fromkeys(
                    (f"data: {chosen.origin}", *chosen.notes, *rounded_inputs(chosen), *opened.notes, *candidates.notes)
                )
            ),
        )
        if writer is not None:
            writer.finish(verdict, {runtime_key(i): candidate.form for i, candidate in enumerate(candidates.found)})
    return verdict


def _differing_bits(found: Recording, expected: Recording) -> int:
    """How many spikes and logits of two recordings are not equal; 0.0 and -0.0 are."""
    spikes = sum(int(train.differing(expected.spikes[name]).sum()) for name, train in found.spikes.items())
    return spikes + int(np.count_nonzero(found.logits != expected.logits))


def _correct(recording: Recording, labels: NDArray[np.integer] | None) -> int:
    if labels is None:
        return 0
    predictions = recording.logits.reshape(len(labels), -1).argmax(axis=1)
    return int(np.count_nonzero(predictions == labels))


def _module_precision(model: Model) -> Any:
    return precision_of(model.samples.dtype if model.samples else "float32")


def _stored_module(model: Model) -> Comparison | None:
    """The spikes that the user's module fired when it was saved, against the training graph."""
    if model.samples is None:
        return None
    comparer = Comparer("module", model.graph, arithmetic=Arithmetic.of_module(model.graph, _module_precision(model)))
    recorded = model.samples.recording
    start = 0
    for batch in Data(model.samples.inputs, None, "").batches():
        comparer.add(batch, simulate(model.graph, batch), recorded.part(start, start + len(batch)))
        start += len(batch)
    return comparer.result()


def _candidates(model: Model, folded: SpikingGraph, files: Sequence[Path], names: Sequence[str] | None) -> _Candidates:
    wanted = None if names is None else [runtime_kind(name) for name in names]
    kinds = list(runtime_kinds().values()) if wanted is None else wanted
    candidates = _Candidates()
    graphs: dict[Takes, SpikingGraph] = {"training": model.graph, "folded": folded}
    for kind in kinds:
        if kind.takes in graphs:
            candidates.found.append(
                _candidate(model, content_of(folded, "float32"), kind, open_runtime(kind, graphs[kind.takes]))
            )
    for file in files:
        _add_file(candidates, model, folded, file, kinds, demanded=wanted is not None)
    if wanted is not None:
        used = {candidate.runtime.name for candidate in candidates.found}
        for kind in wanted:
            if kind.name not in used:
                raise DalifError(
                    Code.BAD_OPTION, f"--runtime {kind.name}: needs an exported .{kind.takes} file, and none was given"
                )
    return candidates


def _candidate(
    model: Model, content: Content, kind: RuntimeKind, runtime: Runtime, file: Path | None = None,
    differing: FileDifferences = ALL_ALIKE,
) -> _Candidate:  # fmt: skip
    graph = model.graph if kind.takes == "training" else content.judged
    arithmetic = content.arithmetic(Arithmetic(kind.precision, kind.update, pools=kind.pools))
    comparer = Comparer(runtime.name, graph, arithmetic=arithmetic, reference=model.graph)
    runs: Literal["training", "folded"] = "training" if kind.takes == "training" else "folded"
    form = Form(runs, content.precision, arithmetic.precision, arithmetic.update, arithmetic.pools, content.two_slices)
    return _Candidate(runtime, comparer, form, file, differing, content.definition())


def _add_file(
    candidates: _Candidates, model: Model, folded: SpikingGraph, path: Path, kinds: Sequence[RuntimeKind],
    *, demanded: bool,
) -> None:  # fmt: skip
    file = open_exported(path)
    format_ = file.format
    content, differing = compared_with_export(file, folded)
    simulated = False
    for kind in kinds:
        reads_back = kind.name == "events" and format_.name in READ_BACK
        if kind.takes != format_.name and not reads_back:
            continue
        if not demanded and (why := _unable(file, kind)) is not None:
            candidates.notes.append(f"{path}: not run in {kind.name}: {why}")
            continue
        with explained(path, differing):
            runtime = file.open(kind)
        candidates.found.append(_candidate(model, content, kind, runtime, path, differing))
        simulated = simulated or not reads_back
    if not simulated and format_.name in READ_BACK:
        candidates.notes.append(f"{path}: {READ_BACK_ONLY}")


def _unable(file: ExportedFile, kind: RuntimeKind) -> str | None:
    """Why a runtime that was not asked for by name is left out, or None."""
    if (command := kind.available()) is not None:
        return f"not installed; {command}"
    return file.format.unfit(file.content, kind.name)
