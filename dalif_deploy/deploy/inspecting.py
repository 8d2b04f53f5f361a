"""inspect: the layers of a model or an exported file, what they cost, and on data how often they fire.

Without data nothing is run: a graph's shapes say what it costs, and a model.pt holds the spikes that the module
fired on its own samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.cost import (
    EventCounter,
    Events,
    NodeOperations,
    acs_of,
    cost_of,
    event_driven_of,
    neurobench_counts,
    operations_of,
    syops_counts,
)
from dalif_deploy.cost.operations import Form
from dalif_deploy.deploy.data import BATCH, Data, Progress, as_data
from dalif_deploy.deploy.exported import ExportedFile, default_runtime, open_exported
from dalif_deploy.deploy.files import kind_of, sha256
from dalif_deploy.deploy.inspected import InspectedLayer, Inspection, Kind
from dalif_deploy.deploy.model import LoadOptions, Model, open_model
from dalif_deploy.encoding import InputSpec
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nir_io import written_elsewhere
from dalif_deploy.nodes import Neuron, frozen
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording, SpikeTrain
from dalif_deploy.runtimes.torch import TorchRuntime

ELEMENTS = 25_000_000
"""How many numbers of all layers together a batch may have at one timestep."""

Batch = tuple[NDArray[np.float32], Mapping[str, SpikeTrain]]
"""What the module takes, and the spikes that were fired on it."""


def inspect(
    source: str | Path | torch.nn.Module | SpikingGraph | Model,
    *,
    data: Data | Any = None,
    samples: int | None = None,
    options: LoadOptions | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Look into a model or an exported file.

    `source`: whatever `export` takes, or a file that it wrote. `data`: inputs [N, ...] or [N, T, ...], on which
    firing rates and ACs are measured: of a model.pt or .nir by its graph in float64, of code by the module itself,
    of an .onnx by ONNX Runtime. None takes the spikes that a model.pt stores with its samples; without those there
    are no rates. `samples`: at most so many of them. `options`: how to read the model.
    Raises `DalifError`: what opening the source raises; BAD_OPTION; WRONG_SHAPE, BAD_DATA, NOT_FINITE.
    """
    given = None if data is None else as_data(data)
    if samples is not None and samples < 1:
        raise DalifError(Code.BAD_OPTION, f"samples = {samples}: give a whole number from 1")
    given = None if given is None else given.first(samples)
    options = options or LoadOptions()
    kind: Kind = "model"
    if isinstance(source, str | Path):
        path = Path(source)
        found = kind_of(path)
        if found == "onnx":
            if options != LoadOptions():
                raise DalifError(Code.BAD_OPTION, f"{path}: an .onnx says itself how it is read; leave those options")
            return _of_file(open_exported(path), given, progress)
        kind = "nir" if found == "hdf5" and not written_elsewhere(path) else "model"
    # What a module fires is asked of the module itself: its capture has no spikes to prove.
    model = open_model(source, replace(options, structure_only=True), None if kind == "nir" else given)
    return _of_model(model, kind, given, samples, progress)


@dataclass(frozen=True, eq=False)
class _Fired:
    """What a run or stored spikes gave: where the data come from, and what was counted, on either graph."""

    origin: str
    events: Events
    folded: Events | None


def _of_model(
    model: Model, kind: Kind, data: Data | None, samples: int | None, progress: Progress | None
) -> Inspection:
    graph = model.graph
    form: Form = "folded" if kind == "nir" else "trained"
    notes = [*(data.notes if data else ()), *model.notes]
    folded: SpikingGraph | None = None
    try:
        folded = graph if form == "folded" else fold(graph)
    except DalifError as error:
        notes.append(f"what it costs when it is folded is not known: {error.message}")
    fired = _fired(model, folded, data, samples, progress)
    if model.captured is not None:
        notes.append("the capture was not proved spike for spike; dalif-export does that")
    events = None if fired is None else fired.events
    operations = operations_of(graph, form)
    unknown = [f"{node.name} ({node.kind})" for node in operations if not node.counted]
    if unknown:
        notes.append(f"not counted, since the rule has no number for its kind: {', '.join(unknown)}")
    if any((neuron.potential_scale != 1.0).any() for neuron in graph.neurons):
        notes.append("thresholds and resets are the file's own: where alpha is in them, its potentials are V / alpha")
    owners = _owners(graph)
    cost = cost_of(graph, form, events)
    counted = None if fired is None else fired.folded
    path = model.path
    return Inspection(
        source=str(path) if path is not None else "graph" if model.layout == "graph" else "module",
        kind=kind,
        sha256=model.sha256,
        input=graph.input_spec,
        readout=graph.readout.mode,
        class_names=graph.class_names,
        layers=tuple(_layer(graph, neuron, operations, owners, events) for neuron in graph.neurons),
        params=cost.params,
        nodes=operations,
        after_layers=tuple(name for name, owner in owners.items() if owner is None),
        origin=None if fired is None else fired.origin,
        samples=None if events is None else events.samples,
        cost=cost,
        folded=None if folded is None else cost_of(folded, "folded", counted),
        event_driven=None if folded is None else event_driven_of(folded, counted),
        # They count modules of the trained network, of which a .nir has none left.
        syops=syops_counts(graph, events) if form == "trained" else None,
        neurobench=neurobench_counts(graph, events) if form == "trained" else None,
        file=_file_facts(open_exported(path)) if kind == "nir" and path is not None else None,
        notes=tuple(notes),
    )


def _fired(
    model: Model, folded: SpikingGraph | None, data: Data | None, samples: int | None, progress: Progress | None
) -> _Fired | None:
    """Counted on the data, else on the spikes stored with a model.pt, else nothing."""
    graph = model.graph
    batches: Iterator[Batch]
    if data is not None:
        origin, count = data.origin, len(data.inputs)
        batches = _run(model, data)
    elif model.samples is not None and model.captured is None:
        stored = model.data(samples)
        origin, count = f"{stored.origin}, as the module itself fired on them", len(stored.inputs)
        batches = _stored(graph, stored, model.samples.recording)
    else:
        return None
    counter = EventCounter(graph)
    same = folded is None or folded is graph
    after = None if same else EventCounter(folded)  # type: ignore[arg-type]  # `same` says it is a graph
    for inputs, spikes in batches:
        counter.add(inputs, spikes)
        if after is not None:
            after.add(inputs, spikes)
        if progress is not None:
            progress(counter.samples, count)
    events = counter.events()
    return _Fired(origin, events, events if after is None and same else after.events() if after else None)


def _run(model: Model, data: Data) -> Iterator[Batch]:
    graph = model.graph
    run = TorchRuntime(graph).run if model.captured is None else model.captured.run
    for batch in data.batches(_batch_size(graph)):
        inputs = graph.input_spec.module_input(batch)
        yield inputs, run(batch).spikes


def _stored(graph: SpikingGraph, data: Data, recording: Recording) -> Iterator[Batch]:
    size = _batch_size(graph)
    for number, batch in enumerate(data.batches(size)):
        start = number * size
        yield graph.input_spec.module_input(batch), recording.part(start, start + len(batch)).spikes


def _batch_size(graph: SpikingGraph) -> int:
    elements = sum(math.prod(type_.shape) for type_ in graph.types.values())
    return max(1, min(BATCH, ELEMENTS // elements))


def _layer(
    graph: SpikingGraph,
    neuron: Neuron,
    operations: tuple[NodeOperations, ...],
    owners: Mapping[str, str | None],
    events: Events | None,
) -> InspectedLayer:
    own = [node for node in operations if owners.get(node.name) == neuron.name]
    shape = graph.types[neuron.name].shape
    acs = rates = None
    if events is not None:
        acs = acs_of(graph, own, events)
        rates = events.fired[neuron.name] / (events.samples * math.prod(shape))
    return InspectedLayer(
        name=neuron.name,
        shape=shape,
        alpha=neuron.alpha if neuron.trained_alpha is None else neuron.trained_alpha,
        beta=neuron.beta,
        v_threshold=neuron.v_threshold,
        v_reset=neuron.v_reset,
        reset=neuron.reset,
        fires_at=neuron.fires_at,
        potential_scale=neuron.potential_scale,
        feeds=tuple(node.name for node in own if node.name != neuron.name),
        parameters=sum(node.parameters for node in own),
        macs=sum(node.macs for node in own),
        acs=acs,
        rates=rates,
    )


def _owners(graph: SpikingGraph) -> dict[str, str | None]:
    """For every node the first neuron layer that it reaches without passing another; None for the answer's own.

    The input belongs to no layer.
    """
    rank = {neuron.name: number for number, neuron in enumerate(graph.neurons)}
    owners: dict[str, str | None] = {node.name: node.name if node.name in rank else None for node in graph.nodes}
    changed = True
    while changed:  # once for a graph without recurrence, and once more to see it
        changed = False
        for node in reversed(graph.nodes):
            if node.name in rank or node is graph.input:
                continue
            reached = [owner for reader in graph.consumers[node.name] if (owner := owners[reader.name]) is not None]
            first = min(reached, key=rank.__getitem__, default=None)
            if first != owners[node.name]:
                owners[node.name], changed = first, True
    del owners[graph.input.name]
    return owners


def _of_file(file: ExportedFile, data: Data | None, progress: Progress | None) -> Inspection:
    """What an .onnx says of itself, and on data the rates that ONNX Runtime gives."""
    metadata = file.metadata
    spec = metadata.input
    notes = ["an .onnx is not read back as layers: inspect the model for its cost"]
    rates: dict[str, NDArray[np.float64]] = {}
    if data is not None:
        notes += data.notes
        rates = _rates_of_file(file, data, spec, progress)
    layers = tuple(
        InspectedLayer(
            name=layer.name,
            shape=layer.shape,
            alpha=frozen(layer.alpha),
            beta=frozen(layer.beta),
            v_threshold=frozen(layer.v_threshold),
            v_reset=frozen(layer.v_reset),
            potential_scale=frozen(layer.potential_scale),
            reset=layer.reset,
            fires_at=layer.fires_at,
            rates=rates.get(layer.name),
        )
        for layer in metadata.layers
    )
    return Inspection(
        source=str(file.path),
        kind="onnx",
        sha256=sha256(file.path),
        input=spec,
        readout=metadata.readout,
        class_names=metadata.class_names,
        layers=layers,
        params=None,
        origin=None if data is None else data.origin,
        samples=None if data is None else len(data.inputs),
        file=_file_facts(file),
        notes=tuple(notes),
    )


def _rates_of_file(
    file: ExportedFile, data: Data, spec: InputSpec, progress: Progress | None
) -> dict[str, NDArray[np.float64]]:
    runtime = file.open(default_runtime(file))
    fired: dict[str, NDArray[np.int64]] = {}
    neurons: dict[str, int] = {}
    done = 0
    for batch in data.batches():
        for name, train in runtime.run(batch).spikes.items():
            at = np.bitwise_count(train.bits).sum(axis=(0, 2), dtype=np.int64)
            fired[name] = fired.get(name, np.zeros(spec.timesteps, np.int64)) + at
            neurons[name] = train.neurons
        done += len(batch)
        if progress is not None:
            progress(done, len(data.inputs))
    return {name: counts / (len(data.inputs) * neurons[name]) for name, counts in fired.items()}


def _file_facts(file: ExportedFile) -> dict[str, Any]:
    """What a file says of itself, beside its layers; `stored_numbers`: how many its tensors hold."""
    numbers = sum(int(array.size) for array in file.format.parameters(file.content).values())
    return {
        "format": file.format.name,
        "bytes": file.path.stat().st_size,
        "stored_numbers": numbers,
        "fold_log": list(file.metadata.fold_log),
        "metadata": dict(file.metadata.extra),
    }
