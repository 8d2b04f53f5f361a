"""The data that a model is run on: from a file, from the checkpoint, or seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.encoding import InputSpec
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recordings import Binned, BinningReport, holds_events

SEED = 20_24
BATCH = 32
NPY, ZIP = b"\x93NUMPY", b"PK"
Progress = Callable[[int, int], None]
"""Called after every batch with the number of samples done, and of all."""


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs, [N, ...] or [N, T, ...], labels [N] where there are any, one phrase on where they come from, and
    the file that they come from. `binning`: how events became them; `notes`: what is to be said of them, one line each.
    """

    inputs: NDArray[np.generic] | Binned
    labels: NDArray[np.integer] | None
    origin: str
    path: Path | None = None
    binning: BinningReport | None = None
    notes: tuple[str, ...] = ()

    def first(self, samples: int | None) -> Data:
        """At most the first `samples`."""
        if samples is None or samples >= len(self.inputs):
            return self
        labels = None if self.labels is None else self.labels[:samples]
        origin = f"the first {samples} of {self.origin}"
        return replace(self, inputs=self.inputs[:samples], labels=labels, origin=origin)

    def batches(self, size: int = BATCH) -> Iterator[NDArray[np.generic]]:
        """The inputs, `size` samples at a time."""
        for start in range(0, len(self.inputs), size):
            yield self.inputs[start : start + size]


def read_data(path: Path) -> Data:
    """An .npz with `inputs` and perhaps `labels`, or an .npy with the inputs. No pickled objects are loaded.

    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, BAD_DATA; AMBIGUOUS for recordings of events.
    """
    if holds_events(path):
        raise DalifError(
            Code.AMBIGUOUS, f"{path}: holds events, and nothing says how they become timesteps; give --bin "
            "duration:MICROSECONDS, --bin count:EVENTS or --bin split (in Python: dalif_deploy.read_events)"
        )  # fmt: skip
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the path") from error
    if not any(head.startswith(magic) or magic.startswith(head) for magic in (NPY, ZIP)):  # the head may be cut
        raise DalifError(
            Code.FOREIGN_FILE,
            f"{path}: not a NumPy file; give an .npz with `inputs` and perhaps `labels`, or an .npy",
        )
    try:
        # NumPy leaves a file open that it opened itself and cannot read.
        with path.open("rb") as file:
            return _read(path, np.load(file, allow_pickle=False))
    except DalifError:
        raise
    except Exception as error:  # damaged bytes make zipfile, zlib and NumPy raise nearly anything
        if "Object arrays" in str(error):
            raise DalifError(
                Code.BAD_DATA, f"{path}: holds Python objects, numbers are needed; save arrays of one shape and type"
            ) from error
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: the file is empty, truncated or damaged; save or copy it again"
        ) from error


def _read(path: Path, loaded: Any) -> Data:
    if isinstance(loaded, np.ndarray):
        return _checked(path, loaded, None, Data(loaded, None, path.name, path))
    with loaded:
        if "inputs" not in loaded:
            names = ", ".join(loaded.files[:8]) or "nothing"
            more = ", ..." if len(loaded.files) > 8 else ""
            raise DalifError(
                Code.BAD_DATA, f"{path}: has no array `inputs`, but {names}{more}; save the data under that name"
            )
        inputs, labels = loaded["inputs"], loaded.get("labels")
    for name, array in (("inputs", inputs), ("labels", labels)):
        if array is not None and not isinstance(array, np.ndarray):  # an .npz may hold other files than arrays
            raise DalifError(Code.BAD_DATA, f"{path}: `{name}` is no NumPy array; save it with numpy.savez")
    return _checked(path, inputs, labels, Data(inputs, None, path.name, path))


def _checked(
    path: Path | str, inputs: NDArray[np.generic] | Binned, labels: NDArray[np.generic] | None, given: Data
) -> Data:  # fmt: skip
    if inputs.ndim < 2 or not len(inputs):
        raise DalifError(
            Code.BAD_DATA, f"{path}: `inputs` of shape {list(inputs.shape)}; [N, ...] with N >= 1 is needed"
        )
    if labels is None:
        return replace(given, inputs=inputs, labels=None)
    if labels.shape != (len(inputs),) or not np.issubdtype(labels.dtype, np.integer):
        raise DalifError(
            Code.BAD_DATA,
            f"{path}: `labels` are {labels.dtype} {list(labels.shape)}; whole numbers [{len(inputs)}] are needed",
        )
    return replace(given, inputs=inputs, labels=labels)  # type: ignore[arg-type]  # issubdtype above


def as_array(values: Any, name: str) -> NDArray[np.generic]:
    """Numbers given in Python as an array: an array, a tensor (detached, from wherever it is), or whatever else
    `numpy.asarray` takes. `name`: the argument's, for errors. Raises `DalifError` (BAD_DATA)."""
    if isinstance(values, str | Path):
        raise DalifError(Code.BAD_DATA, f"{name} = {str(values)!r}: give numbers; read_data(path) reads a file's")
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.float() if str(values.dtype) == "torch.bfloat16" else values  # NumPy has no such type
        found = np.asarray(values)
    except Exception as error:  # lists of different lengths, tensors without numbers, anybody's __array__
        raise DalifError(
            Code.BAD_DATA,
            f"{name} of type {type(values).__name__}: no array of numbers ({type(error).__name__}: {error})",
        ) from error
    if found.dtype.kind not in "biuf":
        raise DalifError(Code.BAD_DATA, f"{name} of type {type(values).__name__} ({found.dtype}): numbers are needed")
    return found


def as_data(data: Any) -> Data:
    """`Data` as it is, its arrays checked; anything that `as_array` takes as inputs without labels.

    Raises `DalifError` (BAD_DATA).
    """
    given = data if isinstance(data, Data) else Data(data, None, "the given data")
    inputs = given.inputs if isinstance(given.inputs, Binned) else as_array(given.inputs, "data")
    labels = None if given.labels is None else as_array(given.labels, "labels")
    return _checked(given.path or "data", inputs, labels, given)


def check_labels(data: Data, classes: int) -> None:
    """Raises `DalifError` (BAD_DATA) where a label is none of the model's `classes`, naming the first."""
    if data.labels is None:
        return
    beyond = np.flatnonzero((data.labels < 0) | (data.labels >= classes))
    if len(beyond):
        raise DalifError(
            Code.BAD_DATA,
            f"{data.path or 'data'}: labels[{beyond[0]}] is {data.labels[beyond[0]]}, and the model's classes are 0 to "
            f"{classes - 1}; {len(beyond)} of {len(data.labels)} labels are none of them",
        )


def check_samples(samples: Any) -> None:
    """Raises `DalifError` (BAD_OPTION) for what is neither None nor a whole number of at least 1."""
    whole = isinstance(samples, int | np.integer) and not isinstance(samples, bool)
    if samples is not None and not (whole and samples >= 1):
        raise DalifError(Code.BAD_OPTION, f"samples = {samples!r}: give a whole number of at least 1")


def rounded_inputs(data: Data) -> tuple[str, ...]:
    """One line where inputs have more digits than float32, to which everything rounds them before it runs."""
    if data.inputs.dtype.kind != "f" or data.inputs.dtype.itemsize <= 4:
        return ()
    count, largest = 0, 0.0
    for batch in data.batches():
        with np.errstate(all="ignore"):  # what float32 cannot hold at all is refused elsewhere
            wide = batch.astype(np.float64)
            gap, size = np.abs(batch.astype(np.float32) - wide), np.abs(wide)
            count += int(np.count_nonzero(gap))
            largest = max(largest, float(np.max(np.divide(gap, size, out=np.zeros_like(gap), where=size > 0))))
    if not count:
        return ()
    return (
        f"{data.path or 'data'}: {count:,} of {data.inputs.size:,} {data.inputs.dtype} inputs are not numbers of "
        f"float32; they are rounded to it, by up to {largest:.2g} of their size, before anything runs, the reference "
        "included",
    )


def seeded_data(spec: InputSpec, samples: int) -> Data:
    """Reproducible inputs for a model without samples of its own: uniform in [0, 1) for real input, 20 % of
    ones for spikes, uniform codes for uint8."""
    rng = np.random.default_rng(SEED)
    shape = (samples, spec.timesteps, *spec.shape) if spec.temporal else (samples, *spec.shape)
    inputs: NDArray[np.generic]
    if spec.encoding.kind == "uint8":
        inputs = rng.integers(0, 256, shape, dtype=np.uint8)
    elif spec.encoding.kind == "spikes":
        inputs = (rng.random(shape) < 0.2).astype(np.float32)
    else:
        inputs = rng.random(shape, dtype=np.float32)
    return Data(inputs, None, f"{samples} seeded samples")
