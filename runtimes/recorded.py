"""A run that was recorded elsewhere, for instance on a chip, as the file that dalif-run writes with --spikes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recording import Recording, SpikeTrain

PREFIX = "spikes."


class RecordedRuntime:
    """Serves a recorded run batch by batch, in the order in which the data is given.

    `path`: an .npz with `logits` [N, ...] and, for every neuron layer, `spikes.<layer>` bool [N, T, *shape].
    `shapes`: the layers that there must be, by name, as (T, *shape). The data must be those that were run, from
    the first sample on. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, BAD_DATA (no spikes, or
    values other than 0 and 1), OTHER_MODEL (layers or shapes that are not the model's).
    """

    name = "recorded"

    def __init__(self, path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.path = Path(path)
        arrays = _read(self.path)
        if not any(name.startswith(PREFIX) for name in arrays) or "logits" not in arrays:
            raise DalifError(
                Code.BAD_DATA, f"{self.path}: holds no recorded spikes and logits; record them with dalif-run --spikes"
            )
        self._logits: NDArray[np.floating] = arrays["logits"].astype(np.float64)
        self._spikes = {name: self._layer(arrays, name, shape) for name, shape in shapes.items()}
        found = {name.removeprefix(PREFIX) for name in arrays if name.startswith(PREFIX)}
        if unknown := sorted(found - shapes.keys()):
            raise DalifError(Code.OTHER_MODEL, f"{self.path}: has the layers {', '.join(unknown)}, the model has not")
        self._next = 0

    @property
    def description(self) -> str:
        """Where the spikes come from."""
        return f"recorded elsewhere, {len(self._logits)} samples"

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """The recording of the next `len(batch)` samples; the batch itself is not looked at.

        Raises `DalifError` (WRONG_SHAPE) where fewer were recorded.
        """
        start, stop = self._next, self._next + len(batch)
        if stop > len(self._logits):
            raise DalifError(
                Code.WRONG_SHAPE,
                f"{self.path}: holds {len(self._logits)} samples, more were asked for; give the data that was run, or "
                "--samples",
            )
        self._next = stop
        return Recording(
            {name: SpikeTrain.pack(train[start:stop]) for name, train in self._spikes.items()},
            self._logits[start:stop],
        )

    def _layer(self, arrays: Mapping[str, NDArray[np.generic]], name: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        spikes = arrays.get(f"{PREFIX}{name}")
        if spikes is None:
            raise DalifError(Code.OTHER_MODEL, f"{self.path}: lacks {PREFIX}{name}, a layer of the model")
        if spikes.shape != (len(self._logits), *shape):
            raise DalifError(
                Code.OTHER_MODEL,
                f"{self.path}: {PREFIX}{name} has shape {list(spikes.shape)}, the model's is "
                f"{[len(self._logits), *shape]} (samples, timesteps, layer)",
            )
        if spikes.dtype.kind not in "biuf" or not np.isin(spikes, (0, 1)).all():
            raise DalifError(Code.BAD_DATA, f"{self.path}: {PREFIX}{name} holds other values than 0 and 1")
        return spikes.astype(np.bool_)


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise ValueError("a single array")
            return {name: loaded[name] for name in loaded.files}
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror}; check the path") from error
    except (EOFError, OSError, zipfile.BadZipFile) as error:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: the file is empty, truncated or damaged") from error
    except ValueError as error:
        raise DalifError(Code.FOREIGN_FILE, f"{path}: not an .npz of numbers, as dalif-run writes it") from error
