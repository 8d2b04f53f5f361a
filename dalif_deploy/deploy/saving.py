"""save, load and capture: a module becomes a training graph, in memory or on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy import __version__, checkpoint
from dalif_deploy.deploy.files import check_output, written_whole
from dalif_deploy.deploy.model import LoadOptions, Model, captured_model, open_model
from dalif_deploy.encoding import Encoding
from dalif_deploy.graph import SpikingGraph


def capture(
    module: torch.nn.Module,
    *,
    example_input: torch.Tensor | NDArray[np.generic],
    timesteps: int,
    layout: str | None = None,
    readout: str | None = None,
    temporal: bool | None = None,
) -> SpikingGraph:
    """The training graph of a module: one time step, as it was trained, proved on the example input.

    `example_input`: what the module takes, [B, ...], or [B, T, ...] where the input changes over time.
    `timesteps`: T. `layout`: "step" (forward is one step), "loop" (forward runs all T), "TB" or "BT" (forward runs
    all T in one tensor, [T, B, ...] or [B, T, ...]). `readout`: "mean", "sum", "last" or "max" over the steps'
    outputs. `temporal`: whether the input has a time axis. What is None is inferred (docs/capturing.md). The module
    is run in evaluation mode and left as it was found.
    Raises `DalifError`: CAPTURE_REFUSED, CAPTURE_MISMATCH, UNSUPPORTED_LAYER, UNKNOWN_NEURON, AMBIGUOUS,
    WRONG_SHAPE, NOT_FINITE, BAD_OPTION.
    """
    return captured_model(
        module, example_input=example_input, timesteps=timesteps, layout=layout, readout=readout, temporal=temporal
    ).graph


def save(
    model: torch.nn.Module,
    path: str | Path,
    *,
    example_input: torch.Tensor | NDArray[np.generic],
    timesteps: int,
    layout: str | None = None,
    readout: str | None = None,
    temporal: bool | None = None,
    encoding: Encoding | str | None = None,
    class_names: Sequence[str] = (),
    samples: torch.Tensor | NDArray[np.generic] | None = None,
) -> tuple[str, ...]:
    """Capture a trained module and write it as a model.pt that loads anywhere, without the module's code.

    Arguments as `capture`; `encoding`: how data becomes the module's input, an `Encoding` or its kind;
    `class_names`: by index of the logits, one for each; `samples`: data [N, ...] or [N, T, ...] (codes where the
    encoding is uint8) that is stored together with the spikes that the module fires on it; the example input where
    None. An existing file is replaced, as torch.save does. Returns what was inferred, one line each. Raises
    `DalifError` as `capture`, BAD_DATA, and NO_FOLDER.
    """
    target = Path(path)
    check_output(target, model=None, force=True)
    made = captured_model(
        model, example_input=example_input, timesteps=timesteps, layout=layout, readout=readout,
        temporal=temporal, encoding=encoding, class_names=class_names, samples=samples,
    )  # fmt: skip
    write_model(made, target)
    return made.notes


def write_model(model: Model, path: Path) -> None:
    """Write a model.pt, whole or not at all."""
    stored = checkpoint.Checkpoint(model.graph, model.layout, model.notes, model.samples)
    content = checkpoint.to_bytes(stored, tool_version=__version__)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | Path) -> SpikingGraph:
    """The training graph of a model.pt, or the graph of a .nir file written by this package.

    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, PICKLED, BAD_GRAPH, NOT_FINITE.
    """
    return open_model(path, LoadOptions()).graph
