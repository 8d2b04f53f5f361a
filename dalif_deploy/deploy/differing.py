"""What an exported file holds, beside what the model exports to now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dalif_deploy.contents import ContentDifference
from dalif_deploy.deploy.content import Content, Precision, content_of
from dalif_deploy.deploy.exported import ExportedFile
from dalif_deploy.encoding import InputSpec
from dalif_deploy.equivalence import ParameterDifference, compare_parameters
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.recording import Recording


@dataclass(frozen=True)
class FileDifferences:
    """Everything in a file that is not what an export of the model has."""

    tensors: tuple[ParameterDifference, ...] = ()
    contents: tuple[ContentDifference, ...] = ()

    def __str__(self) -> str:
        """The first of them, in one phrase; empty where there is none."""
        if self.contents:
            return str(self.contents[0])
        if self.tensors:
            return f"tensor '{self.tensors[0].name}': {self.tensors[0].problem}"
        return ""


ALL_ALIKE = FileDifferences()


def compared_with_export(file: ExportedFile, folded: SpikingGraph) -> tuple[Content, FileDifferences]:
    """What a file should hold, and what is otherwise in it.

    Raises `DalifError`: OTHER_MODEL where the file cannot be compared with the model at all, FILE_DAMAGED where it
    contradicts itself.
    """
    check_fits(file.path, file.metadata, folded)
    format_, extra = file.format, file.metadata.extra
    options = {key: extra[key] for key in format_.options if key in extra} | dict(format_.chosen(file.content))
    precision = options.pop("precision", "float32")
    if precision not in get_args(Precision):
        raise DalifError(
            Code.FILE_DAMAGED,
            f"{file.path}: its metadata says precision {precision!r}; there are {', '.join(get_args(Precision))}",
        )
    try:
        content = content_of(folded, precision, two_slices=format_.two_slices)
        expected = content.object(format_, **options)
    except DalifError as error:  # what the file says of itself asks for an export that cannot be made
        code = Code.OTHER_MODEL if error.code is Code.TARGET_CANNOT_HOLD else Code.FILE_DAMAGED
        raise DalifError(
            code, f"{file.path}: by its metadata it is of a form that cannot be made of this model: {error.message}"
        ) from error
    compared = format_.compared(expected, file.content)
    tensors = compare_parameters(compared.expected, compared.found)
    return content, FileDifferences(tensors, compared.differences)


def check_fits(path: Path, metadata: FileMetadata, folded: SpikingGraph) -> None:
    """Raises `DalifError` (OTHER_MODEL) where the file cannot be compared with the model at all."""
    found, expected = metadata.input, folded.input_spec
    if (found.shape, found.temporal, found.timesteps) != (expected.shape, expected.temporal, expected.timesteps):
        raise DalifError(
            Code.OTHER_MODEL,
            f"{path}: takes {_taken(found)}, the model {_taken(expected)}; it was exported from another model, or with "
            "another -T",
        )
    if found.encoding.kind != expected.encoding.kind:
        raise other_model(
            path, f"takes input of encoding {found.encoding.kind!r}, the model {expected.encoding.kind!r}"
        )
    layers = {layer.name: layer.shape for layer in metadata.layers}
    wanted = {neuron.name: folded.types[neuron.name].shape for neuron in folded.neurons}
    if layers.keys() != wanted.keys():
        raise other_model(path, f"has the neuron layers {', '.join(layers)}, the model {', '.join(wanted)}")
    for name, shape in wanted.items():
        if layers[name] != shape:
            raise other_model(path, f"layer '{name}' has shape {list(layers[name])}, the model's {list(shape)}")


def check_recording(path: Path, differing: FileDifferences, found: Recording, expected: Recording) -> None:
    """Raises `DalifError` (OTHER_MODEL, or FILE_DAMAGED where the file's contents explain it) where a file's layers or
    logits have other shapes than the model's."""
    for name, train in expected.spikes.items():
        have = found.spikes[name]
        if (have.shape, have.bits.shape) != (train.shape, train.bits.shape):
            shapes = [[*spikes.bits.shape[:2], *spikes.shape] for spikes in (have, train)]
            raise _unfit(path, differing, f"layer '{name}' fires in shape {shapes[0]}, the model's in {shapes[1]}")
    have_, want = list(found.logits.shape), list(expected.logits.shape)
    if have_[1:] != want[1:]:
        raise other_model(path, f"gives logits of shape {have_[1:]}, the model {want[1:]}")
    if have_ != want:
        raise _unfit(path, differing, f"gives {have_[0]} rows of logits for {want[0]} samples")


@contextmanager
def explained(path: Path | None, differing: FileDifferences) -> Iterator[None]:
    """Around opening and running a file: where it cannot be run and its contents are not the export's, the first
    difference is named, since it is most likely why."""
    try:
        yield
    except DalifError as error:
        unrunnable = error.code in (Code.RUNTIME_CANNOT_RUN, Code.FILE_DAMAGED)
        if path is None or not unrunnable or not str(differing):
            raise
        raise DalifError(
            Code.FILE_DAMAGED,
            f"{path}: {differing}; so it cannot be run ({error.message.removeprefix(f'{path}: ')}): export it again",
        ) from error


def other_model(path: Path, how: str) -> DalifError:
    """`how`: what of the file is not the model's, after its name."""
    return DalifError(Code.OTHER_MODEL, f"{path}: {how}; it was exported from another model")


def _unfit(path: Path, differing: FileDifferences, how: str) -> DalifError:
    if str(differing):
        return DalifError(Code.FILE_DAMAGED, f"{path}: {differing}; {how}: export it again")
    return other_model(path, how)


def _taken(spec: InputSpec) -> str:
    shape = f"{list(spec.shape)}{' at every step' if spec.temporal else ''}"
    return f"{shape} over {spec.timesteps} timestep{'s' if spec.timesteps > 1 else ''}"
