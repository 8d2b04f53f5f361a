"""A run that was recorded elsewhere, for instance on a chip, as the file that dalif-run writes with --spikes."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.archive import Archive, RowStream
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recording import Recording, SpikeTrain

PREFIX = "spikes."
LOGITS = "logits"


class RecordedRuntime:
    """Serves a recorded run batch by batch, in the order in which the data is given; memory holds one batch.

    `path`: an .npz with `logits` [N, ...] and, for every neuron layer, `spikes.<layer>` bool [N, T, *shape].
    `shapes`: the layers that there must be, by name, as (T, *shape). The data must be those that were run, from
    the first sample on. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, PICKLED, BAD_DATA (no spikes),
    OTHER_MODEL (layers or shapes that are not the model's).
    """

    name = "recorded"

    def __init__(self, path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path = Path(path)
        archive = Archive(self.path)
        weakref.finalize(self, archive.close)
        names = archive.names
        if not any(name.startswith(PREFIX) for name in names) or LOGITS not in names:
            raise DalifError(
                Code.BAD_DATA, f"{self.path}: holds no recorded spikes and logits; record them with dalif-run --spikes"
            )
        self._logits = archive.stream(LOGITS)
        if self._logits.header.dtype.kind != "f":
            raise DalifError(
                Code.BAD_DATA, f"{self.path}: logits are {self._logits.header.dtype}, floating-point numbers are needed"
            )
        self._samples = self._logits.header.shape[0]
        self._spikes = {name: self._layer(archive, name, shape) for name, shape in shapes.items()}
        found = {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}
        if unknown := sorted(found - shapes.keys()):
            raise DalifError(Code.OTHER_MODEL, f"{self.path}: has the layers {', '.join(unknown)}, the model has not")
        self._next = 0

    @property
    def description(self) -> str:
        """Where the spikes come from."""
        return f"recorded elsewhere, {self._samples} samples"

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """The recording of the next `len(batch)` samples; the batch itself is not looked at.

        Raises `DalifError`: WRONG_SHAPE where fewer were recorded; BAD_DATA for values other than 0 and 1;
        FILE_DAMAGED.
        """
        count = len(batch)
        if self._next + count > self._samples:
            raise DalifError(
                Code.WRONG_SHAPE,
                f"{self.path}: holds {self._samples} samples, more were asked for; give the data that was run, or "
                "--samples",
            )
        self._next += count
        trains = {name: self._fired(name, stream.take(count)) for name, stream in self._spikes.items()}
        return Recording(trains, self._logits.take(count).astype(np.float64))

    def _fired(self, name: str, values: NDArray[np.generic]) -> SpikeTrain:
        fired = values != 0
        if not np.array_equal(fired, values):
            raise DalifError(Code.BAD_DATA, f"{self.path}: {PREFIX}{name} holds other values than 0 and 1")
        return SpikeTrain.pack(fired)

    def _layer(self, archive: Archive, name: str, shape: tuple[int, ...]) -> RowStream:
        if PREFIX + name not in archive.names:
            raise DalifError(Code.OTHER_MODEL, f"{self.path}: lacks {PREFIX}{name}, a layer of the model")
        stream = archive.stream(PREFIX + name)
        if stream.header.shape != (self._samples, *shape):
            raise DalifError(
                Code.OTHER_MODEL,
                f"{self.path}: {PREFIX}{name} has shape {list(stream.header.shape)}, the model's is "
                f"{[self._samples, *shape]} (samples, timesteps, layer)",
            )
        if stream.header.dtype.kind not in "biuf":
            raise DalifError(Code.BAD_DATA, f"{self.path}: {PREFIX}{name} holds other values than 0 and 1")
        return stream
