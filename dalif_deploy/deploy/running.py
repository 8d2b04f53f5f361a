"""run: data through a model or an exported file, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.deploy.data import Data, Progress, as_data, check_labels
from dalif_deploy.deploy.exported import default_runtime, is_exported, open_exported
from dalif_deploy.deploy.files import written_whole
from dalif_deploy.deploy.model import LoadOptions, Model, open_model, refuse_nir_options
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording, SpikeTrain
from dalif_deploy.runtimes.protocol import Runtime
from dalif_deploy.runtimes.registry import open_runtime, runtime_kind


@dataclass(frozen=True, eq=False)
class Opened:
    """Something that can be run, ready. `class_names`: by index of the logits, where they are known."""

    runtime: Runtime
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def open_for_run(
    source: str | Path | torch.nn.Module | SpikingGraph | Model,
    *,
    runtime: str | None = None,
    options: LoadOptions | None = None,
    data: Data | None = None,
) -> Opened:
    """Open a model or an exported file in a runtime.

    `runtime`: a name; None takes events for a model or a .nir, onnxruntime for an .onnx. `data`: what it will be run
    on, as for `open_model`. Raises `DalifError`:
    what opening raises; BAD_OPTION where the runtime does not run this, MISSING_PACKAGE.
    """
    if isinstance(source, str | Path) and is_exported(Path(source)):
        if options is not None:
            refuse_nir_options(source, options)
        file = open_exported(Path(source))
        kind = default_runtime(file) if runtime is None else runtime_kind(runtime)
        return Opened(file.open(kind), file.metadata.class_names)
    model = open_model(source, options or LoadOptions(), data)
    kind = runtime_kind(runtime or "events")
    if kind.takes == "nir" and model.answers:
        raise DalifError(
            Code.BAD_OPTION,
            f"--runtime {kind.name}: runs .nir files of dalif-export; make one of this file with dalif-export --to nir",
        )
    if kind.takes not in ("training", "folded"):
        raise DalifError(Code.BAD_OPTION, f"--runtime {kind.name}: runs .{kind.takes} files; export the model first")
    graph = fold(model.graph) if kind.takes == "folded" else model.graph
    return Opened(open_runtime(kind, graph), model.graph.class_names, model.notes)


@dataclass(frozen=True, eq=False)
class RunResult:
    """What a whole run gave. `logits` [N, K], `predictions` [N]; `rates`: the share of neuron-steps that fired,
    by layer; `spikes`: bool [N, T, ...] by layer, where they were kept; `accuracy`: where there are labels;
    `synaptic_operations`: per sample, of runtimes that count them."""

    runtime: str
    logits: NDArray[np.floating]
    predictions: NDArray[np.int64]
    rates: Mapping[str, float]
    spikes: Mapping[str, NDArray[np.bool_]]
    class_names: tuple[str, ...]
    accuracy: float | None
    synaptic_operations: float | None

    def as_json(self, output: Path | None = None) -> dict[str, Any]:
        """Plain types only, without logits and spikes."""
        return {
            "output": None if output is None else str(output),
            "runtime": self.runtime,
            "samples": len(self.predictions),
            "predictions": self.predictions.tolist(),
            "rates": dict(self.rates),
            "accuracy": self.accuracy,
            "synaptic_operations": self.synaptic_operations,
        }


def summarised(opened: Opened, data: Data, *, keep_spikes: bool, progress: Progress | None = None) -> RunResult:
    """Run all of `data`. Spikes are kept bit-packed while it runs, and only where `keep_spikes`."""
    logits: list[NDArray[np.floating]] = []
    kept: dict[str, list[SpikeTrain]] = {}
    fired: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    synaptic: int | None = None
    done = 0
    for batch in data.batches():
        recording = opened.runtime.run(batch)
        logits.append(recording.logits.reshape(len(batch), -1))
        if not done:
            check_labels(data, logits[0].shape[1])
        for name, train in recording.spikes.items():
            fired[name] += train.count()
            steps[name] += train.neuron_steps
            if keep_spikes:
                kept.setdefault(name, []).append(train)
        if recording.operations is not None:
            synaptic = (synaptic or 0) + sum(recording.operations.synaptic.values())
        done += len(batch)
        if progress is not None:
            progress(done, len(data.inputs))
    joined = np.concatenate(logits)
    predictions = joined.argmax(axis=1)
    return RunResult(
        runtime=opened.runtime.name,
        logits=joined,
        predictions=predictions,
        rates={name: fired[name] / steps[name] for name in fired},
        spikes={name: np.concatenate([train.unpack() for train in trains]) for name, trains in kept.items()},
        class_names=opened.class_names,
        accuracy=None if data.labels is None else float(np.mean(predictions == data.labels)),
        synaptic_operations=None if synaptic is None else synaptic / done,
    )


def write_results(result: RunResult, path: Path, *, spikes: bool = True) -> None:
    """`logits`, `predictions`, `rates.<layer>` and, where `spikes`, `spikes.<layer>`: an .npz, whole or not at all."""
    arrays: dict[str, Any] = {"logits": result.logits, "predictions": result.predictions}
    arrays.update({f"rates.{name}": np.asarray(rate) for name, rate in result.rates.items()})
    if spikes:
        arrays.update({f"spikes.{name}": train for name, train in result.spikes.items()})
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def run(
    model_or_file: str | Path | torch.nn.Module | SpikingGraph | Model,
    data: Data | Any,
    *,
    runtime: str | None = None,
    options: LoadOptions | None = None,
) -> Iterator[Recording]:
    """The recordings of one batch after another; arguments as for `open_for_run` and `verify`."""
    batches = as_data(data).batches()
    opened = open_for_run(model_or_file, runtime=runtime, options=options)
    return (opened.runtime.run(batch) for batch in batches)
