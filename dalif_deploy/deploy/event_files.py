"""Recordings of events become the data that a model takes, and spike trains a file of event data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.deploy.data import Data
from dalif_deploy.deploy.exported import open_exported
from dalif_deploy.deploy.files import kind_of, written_whole
from dalif_deploy.deploy.model import LoadOptions, Model, needed_timesteps, open_model
from dalif_deploy.encoding import Encoding, InputSpec
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.event_data import event_arrays, to_event_data
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.recordings import Binning, Recordings, bin_recordings, holds_events, read_recordings


def read_events(
    recordings: str | Path | Recordings,
    binning: Binning | str,
    model: str | Path | torch.nn.Module | SpikingGraph | Model,
    *,
    options: LoadOptions | None = None,
    samples: int | None = None,
) -> Data:
    """Recordings, binned to the timesteps that a model or an exported file runs.

    `recordings`: a file or folder, as `read_recordings` takes it, or what that gave. `binning`: also as text,
    "duration:MICROSECONDS", "count:EVENTS" or "split". `options`: as for `verify`; a module that is yet to be captured
    needs `timesteps` there, and `input_shape` where the recordings do not say the sensor's size. `samples`: at most the
    first so many. What was cut off, padded or clipped is in the result's `binning` and `notes`.

    Raises `DalifError`: what `read_recordings`, `bin_recordings` and opening the model raise; BAD_OPTION where the file
    holds no events; AMBIGUOUS.
    """
    options = options or LoadOptions()
    binning = Binning.parse(binning) if isinstance(binning, str) else binning
    path = None
    if not isinstance(recordings, Recordings):
        path = Path(recordings)
        if not path.is_dir() and not holds_events(path):
            raise DalifError(Code.BAD_OPTION, f"{path}: holds no events to be binned; leave out --bin")
        recordings = read_recordings(path)
    recordings = recordings.first(samples)
    inputs, report = bin_recordings(recordings, binning, _input_spec(model, options, recordings))
    notes = (*recordings.notes, *report.lines())
    return Data(inputs, recordings.labels, recordings.origin, path, report, notes)


def write_event_data(spikes: Mapping[str, NDArray[np.bool_]], dt: float, path: Path) -> None:
    """Spike trains, bool [N, T, ...] by layer, as an .npz of `event_arrays`, whole or not at all.

    Raises `DalifError`: BAD_OPTION for a dt that is no duration; NO_FOLDER."""
    arrays: dict[str, Any] = dict(event_arrays(to_event_data(spikes, dt)))
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _input_spec(
    model: str | Path | torch.nn.Module | SpikingGraph | Model, options: LoadOptions, recordings: Recordings
) -> InputSpec:
    if isinstance(model, str | Path):
        if kind_of(Path(model)) == "onnx":
            return open_exported(Path(model)).metadata.input
        captured = options.factory is not None or options.trust_pickle
    else:
        captured = isinstance(model, torch.nn.Module)
    if not captured:
        return open_model(model, options).graph.input_spec
    # It will be captured on the events, so what it takes must be known before.
    sensor = recordings.items[0].sensor
    timesteps = needed_timesteps(options)
    if options.input_shape is None and sensor is None:
        raise DalifError(
            Code.AMBIGUOUS, f"{recordings.origin}: does not say the size of its sensor; give --input-shape, such as "
            "2,34,34",
        )  # fmt: skip
    shape = options.input_shape or (2, *(sensor or ()))
    return InputSpec(shape, options.temporal is not False, timesteps, Encoding())
