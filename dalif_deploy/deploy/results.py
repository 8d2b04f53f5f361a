"""Results files: written while a verification runs, read batch by batch, and decided again without running.

One .npz of plain arrays (numpy.load reads it) and one JSON text, `results.json`; docs/results.md lists them. Spikes
are packed eight neurons to a byte, as in `SpikeTrain`.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy import __version__
from dalif_deploy.archive import Archive, ArchiveWriter
from dalif_deploy.deploy.data import BATCH, Data, Progress
from dalif_deploy.deploy.files import check_output, check_suffix, sha256, written_whole
from dalif_deploy.deploy.model import Model
from dalif_deploy.equivalence import Comparison, Findings, Verdict
from dalif_deploy.equivalence.findings import COLUMNS
from dalif_deploy.equivalence.results import (
    FOLDING,
    FORMAT,
    REFERENCE,
    VERSION,
    Form,
    StoredComparison,
    Tally,
    decided,
    from_columns,
    keys_of,
    to_columns,
    without_findings,
)
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recording import Recording, SpikeTrain

TEXT = "results.json"
FINDINGS = ("origins", "uncertain")


class InputsHash:
    """SHA-256 of data's bytes, batch by batch: C order, little-endian; type and shape are stored beside it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: NDArray[np.generic]) -> None:
        """Further samples."""
        self._hash.update(np.ascontiguousarray(batch, batch.dtype.newbyteorder("<")).data)

    def hexdigest(self) -> str:
        """Of everything so far."""
        return self._hash.hexdigest()

    @classmethod
    def of(cls, data: Data) -> str:
        """Of all inputs of `data`."""
        found = cls()
        for batch in data.batches():
            found.add(batch)
        return found.hexdigest()


class ResultsWriter:
    """Stores one verification; see `writing_results`, which makes it.

    `add` is called for every batch, then `finish` once. Memory holds one batch at a time.
    """

    def __init__(self, path: Path, folder: Path, model: Model, data: Data, *, keep_inputs: bool) -> None:
        self.path = path
        self._arrays = ArchiveWriter(folder)
        self._model = model
        self._data = data
        self._keep_inputs = keep_inputs
        self._hash = InputsHash()
        self._batch = self._samples = 0
        self._layers: dict[str, tuple[int, ...]] = {
            n.name: model.graph.types[n.name].shape for n in model.graph.neurons
        }
        self._recorded: list[str] = []

    def add(
        self, batch: NDArray[np.generic], labels: NDArray[np.integer] | None, recordings: Mapping[str, Recording]
    ) -> None:
        """One batch: the data, its labels where there are any, and what was recorded, by key: "reference",
        "links.folding", "links.module" where the module ran, "runtimes.0", ... in the verdict's order; the same keys
        in every batch."""
        self._batch = self._batch or len(batch)
        self._samples += len(batch)
        self._hash.add(batch)
        if self._keep_inputs:
            self._arrays.append("inputs", batch)
        if labels is not None:
            self._arrays.append("labels", labels)
        self._recorded = list(recordings)
        for key, recording in recordings.items():
            for name in self._layers:
                self._arrays.append(_spikes(key, name), recording.spikes[name].bits)
            self._arrays.append(f"{key}.logits", recording.logits)

    def finish(self, verdict: Verdict, forms: Mapping[str, Form]) -> None:
        """Write the file, whole or not at all. `forms`: by the runtimes' keys, how each computes.

        Raises `DalifError` (NO_FOLDER)."""
        comparisons: dict[str, Comparison] = {
            **{f"links.{name}": link for name, link in verdict.links.items() if link is not None},
            **{f"runtimes.{place}": runtime.comparison for place, runtime in enumerate(verdict.runtimes)},
        }
        for key, comparison in comparisons.items():
            for kind in FINDINGS:
                for column, values in to_columns(getattr(comparison, kind), self._layers).items():
                    self._arrays.append(f"{key}.{kind}.{column}", values)
            self._arrays.append(f"{key}.logits_beyond", np.array(comparison.logits_beyond, np.int64))
        text = json.dumps(self._description(verdict, forms), allow_nan=False, indent=1)
        with written_whole(self.path) as temporary:
            self._arrays.write(temporary, {TEXT: text})

    def _description(self, verdict: Verdict, forms: Mapping[str, Form]) -> dict[str, Any]:
        model, data = self._model, self._data
        files = [runtime.file for runtime in verdict.runtimes if runtime.file is not None]
        return {
            "format": FORMAT,
            "version": VERSION,
            "tool": f"dalif_deploy {__version__}",
            "model": {"file": None if model.path is None else model.path.name, "sha256": model.sha256},
            "files": {Path(file).name: sha256(Path(file)) for file in files if Path(file).is_file()},
            "data": {
                "origin": data.origin,
                "file": None if data.path is None else data.path.name,
                "sha256": self._hash.hexdigest(),
                "dtype": data.inputs.dtype.name,
                "shape": [self._samples, *data.inputs.shape[1:]],
                "stored": self._keep_inputs,
                "labels": data.labels is not None,
            },
            "batch": self._batch,
            "layers": [{"name": name, "shape": list(shape)} for name, shape in self._layers.items()],
            "recordings": {key: None if key not in forms else vars(forms[key]) for key in self._recorded},
            "verdict": without_findings(verdict),
        }


@contextmanager
def writing_results(
    path: str | Path,
    *,
    model: Model,
    data: Data,
    others: Sequence[Path] = (),
    keep_inputs: bool = False,
    force: bool = False,
) -> Iterator[ResultsWriter]:
    """Around a verification whose results go to `path`; nothing is there unless `finish` was called.

    `others`: files that take part, which it must not be. `keep_inputs`: store the data itself too, so that the spikes
    can be judged again against the model without it.
    Raises `DalifError`: NO_FOLDER, OUTPUT_EXISTS, OUTPUT_IS_INPUT, BAD_OPTION for a name that is not an .npz file's.
    """
    target = Path(path)
    check_output(target, model=model.path, force=force, data=data.path)
    if target.exists() and any(other.exists() and target.samefile(other) for other in others):
        raise DalifError(
            Code.OUTPUT_IS_INPUT, f"{path}: the output is one of the files that are verified; give another name with -o"
        )
    check_suffix(target, ".npz", what="dalif-verify -o", strict=True)
    try:
        folder = tempfile.TemporaryDirectory(prefix=".dalif-", dir=target.parent)
    except OSError as error:
        raise DalifError(Code.NO_FOLDER, f"{path}: cannot be written ({error.strerror or error})") from error
    with folder as name:
        try:
            yield ResultsWriter(target, Path(name), model, data, keep_inputs=keep_inputs)
        except OSError as error:  # such as a full disk
            raise DalifError(Code.NO_FOLDER, f"{path}: cannot be written ({error.strerror or error})") from error


@dataclass(frozen=True)
class StoredData:
    """What the data were. `shape`: of all inputs. `stored`: whether the file holds them."""

    origin: str
    file: str | None
    sha256: str
    dtype: str
    shape: tuple[int, ...]
    stored: bool
    labels: bool


class Results:
    """A results file, open. `layers`: their shapes, in topological order; `recordings`: the keys under which spikes
    are stored, each with how it computes (None: the reference, the links); `verdict`: the JSON that was given then,
    without lists of neuron-steps.

    Raises `DalifError`: FOREIGN_FILE for another kind of file or version; FILE_DAMAGED; PICKLED.
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.path = archive.path
        if TEXT not in archive.texts:
            raise DalifError(Code.FOREIGN_FILE, f"{self.path}: not a results file; give what dalif-verify -o wrote")
        with self._understood():
            stored = json.loads(archive.text(TEXT))
            if stored["format"] != FORMAT:
                raise ValueError(f"format {stored['format']!r}")
            if stored["version"] != VERSION:
                raise DalifError(
                    Code.FOREIGN_FILE,
                    f"{self.path}: version {stored['version']} of the format, not {VERSION}; update dalif_deploy",
                )
            data = dict(stored["data"])
            self.data = StoredData(**{**data, "shape": tuple(data["shape"])})
            self.model_file: str | None = stored["model"]["file"]
            self.model_sha256: str | None = stored["model"]["sha256"]
            self.batch = int(stored["batch"])
            self.layers = {str(layer["name"]): tuple(map(int, layer["shape"])) for layer in stored["layers"]}
            self.recordings: dict[str, Form | None] = {
                key: None if form is None else Form.of_json(form) for key, form in stored["recordings"].items()
            }
            self.verdict: Mapping[str, Any] = stored["verdict"]
            self.samples = int(self.verdict["samples"])
            self.timesteps = int(self.verdict["timesteps"])
            if self.batch < 1 or self.samples < 1 or self.samples != self.data.shape[0]:
                raise ValueError("the number of samples")
            compared = keys_of(self.verdict).keys()
            computing = {key for key in compared if key.startswith("runtimes.")}
            if not computing | {REFERENCE} <= self.recordings.keys() <= compared | {REFERENCE}:
                raise ValueError("what was recorded, and what was compared")
            if any(self.recordings[key] is None for key in computing):
                raise ValueError("how a runtime computes")
        self._check_arrays()

    def batches(self, keys: Sequence[str], size: int = BATCH) -> Iterator[dict[str, Recording]]:
        """The recordings under `keys`, `size` samples at a time."""
        streams = {
            key: (
                {name: self.archive.rows(_spikes(key, name), size) for name in self.layers},
                self.archive.rows(f"{key}.logits", size),
            )
            for key in keys
        }
        # The streams are exhausted together, since reading past the end is what checks the checksums.
        while True:
            found: dict[str, Recording] = {}
            for key, (spikes, logits) in streams.items():
                bits = {name: next(stream, None) for name, stream in spikes.items()}
                answer = next(logits, None)
                if answer is not None:
                    trains = {name: SpikeTrain(b, self.layers[name]) for name, b in bits.items() if b is not None}
                    found[key] = Recording(trains, answer)
            if not found:
                return
            yield found

    def labels(self) -> NDArray[np.integer] | None:
        """[N], where they are stored."""
        return self.archive.read("labels") if self.data.labels else None

    def inputs(self) -> NDArray[np.generic]:
        """The stored inputs, whole. Raises `DalifError` (BAD_OPTION) where they are not stored."""
        if not self.data.stored:
            raise DalifError(Code.BAD_OPTION, f"{self.path}: does not hold the inputs; give the same data with --data")
        return self.archive.read("inputs")

    def findings(self, key: str) -> dict[str, Any]:
        """What is listed for one link or runtime: neuron-steps, `origins` and `uncertain`; samples, `logits_beyond`."""
        with self._understood():
            samples = int(keys_of(self.verdict)[key]["samples"])
            found: dict[str, Any] = {}
            for kind in FINDINGS:
                columns = {column: self.archive.read(f"{key}.{kind}.{column}") for column in COLUMNS}
                found[kind] = from_columns(columns, self.layers, samples)
            beyond = self.archive.read(f"{key}.logits_beyond")
            if beyond.ndim != 1 or beyond.dtype != np.int64 or not np.isin(beyond, np.arange(samples)).all():
                raise ValueError("samples that are none")
            return {**found, "logits_beyond": tuple(beyond.tolist())}

    def decide(self, *, bound_factor: float = 1.0, progress: Progress | None = None) -> Verdict:
        """See `decide_again`."""
        if not 0.0 <= bound_factor <= 1.0:
            raise DalifError(
                Code.BAD_OPTION,
                f"bound_factor = {bound_factor!r}: give 0 to 1; what lies beyond the bounds is not stored",
            )
        findings = {key: self.findings(key) for key in keys_of(self.verdict)}
        tallies = {key: Tally() for key in self.recordings}
        fired = dict.fromkeys(self.layers, 0)
        labels = self.labels()
        done = 0
        for recorded in self.batches(list(self.recordings)):
            reference = recorded[REFERENCE]
            count = len(reference.logits)
            truth = None if labels is None else labels[done : done + count]
            for key, tally in tallies.items():
                tally.add(reference, recorded[key], truth)
                if key in findings:
                    self._check_fired(findings[key]["origins"], recorded[key], done)
            for name, train in reference.spikes.items():
                fired[name] += train.count()
            done += count
            if progress is not None:
                progress(done, self.samples)
        steps = {name: self.samples * self.timesteps * math.prod(shape) for name, shape in self.layers.items()}
        with self._understood():
            comparisons = {
                key: StoredComparison(
                    facts, **findings[key], tally=tallies.get(key), ties_tell=self._ties_tell(key)
                ).decide(bound_factor)
                for key, facts in keys_of(self.verdict).items()
            }
            return decided(
                self.verdict, comparisons,
                rates={name: fired[name] / steps[name] for name in self.layers},
                accuracies={} if labels is None else {key: tally.correct / done for key, tally in tallies.items()},
            )  # fmt: skip

    def _ties_tell(self, key: str) -> bool:
        form = self.recordings.get(key)
        return key != FOLDING and (form is None or form.content == "float32")

    def _check_fired(self, origins: Findings, recorded: Recording, start: int) -> None:
        """Whether the neurons that are said to have contradicted did what is said of them; of one batch."""
        with self._understood():
            rows = origins.rows[np.isin(origins.rows["sample"], start + np.arange(len(recorded.logits)))]
            for place, name in enumerate(origins.layers):
                said = rows[rows["layer"] == place]
                bits = recorded.spikes[name].bits[said["sample"] - start, said["t"], said["index"] // 8]
                if ((bits >> (7 - said["index"] % 8) & 1) != said["fired"]).any():
                    raise ValueError(f"a contradiction of layer '{name}' that is not in its spikes")

    def _check_arrays(self) -> None:
        """Whether every array that the text speaks of is there, in the shape that it must have."""
        expected: dict[str, tuple[str, tuple[int, ...]]] = {}
        for key in self.recordings:
            for name, shape in self.layers.items():
                packed = (self.samples, self.timesteps, -(-math.prod(shape) // 8))
                expected[_spikes(key, name)] = ("uint8", packed)
        if self.data.stored:
            expected["inputs"] = (self.data.dtype, self.data.shape)
        for name, (dtype, size) in expected.items():
            header = self.archive.header(name)
            if (header.dtype.name, header.shape) != (dtype, size):
                raise self._damaged(f"'{name}' is {header.dtype} {list(header.shape)}, not {dtype} {list(size)}")
        headers = [self.archive.header(f"{key}.logits") for key in self.recordings]
        if any(header.dtype.kind != "f" for header in headers):
            raise self._damaged("its logits are no numbers")
        answers = {header.shape for header in headers}
        if len(answers) != 1 or next(iter(answers))[:1] != (self.samples,):
            raise self._damaged("its logits do not fit each other")
        self.logits_shape: tuple[int, ...] = answers.pop()[1:]
        if self.data.labels and self.archive.header("labels").shape != (self.samples,):
            raise self._damaged("'labels' does not fit the data")

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise self._damaged(f"its contents do not fit each other ({why})") from error

    def _damaged(self, what: str) -> DalifError:
        return DalifError(Code.FILE_DAMAGED, f"{self.path}: {what}; write it again with dalif-verify -o")


@contextmanager
def open_results(path: str | Path) -> Iterator[Results]:
    """A results file. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, PICKLED."""
    with Archive(Path(path)) as archive:
        yield Results(archive)


def decide_again(path: str | Path, *, bound_factor: float = 1.0, progress: Progress | None = None) -> Verdict:
    """The verdict of a results file, from its spikes, margins and bounds, without running anything.

    `bound_factor`: what the bounds are multiplied by, 0 to 1: with 0.5, a contradiction farther from the threshold
    than half of its bound is divergent. Parameters that differ in a file, and what no spike tells, are as they were
    found then. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, PICKLED, BAD_OPTION.
    """
    with open_results(path) as results:
        return results.decide(bound_factor=bound_factor, progress=progress)


def is_results(path: str | Path) -> bool:
    """Whether an .npz is a results file. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE."""
    with Archive(Path(path)) as archive:
        return TEXT in archive.texts


def _spikes(key: str, layer: str) -> str:
    return f"{key}.spikes.{layer}"
