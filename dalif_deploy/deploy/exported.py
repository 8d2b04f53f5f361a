"""Exported files: which format one is, reading it, and the runtimes that can run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dalif_deploy.capturing.nir import read_nir
from dalif_deploy.deploy.files import kind_of
from dalif_deploy.deploy.model import LoadOptions
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.registry import Format, file_format
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nir_io import written_elsewhere
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.protocol import Runtime
from dalif_deploy.runtimes.registry import RuntimeKind, open_runtime, runtime_kind

FORMAT_OF = {"onnx": "onnx", "hdf5": "nir"}
READ_BACK: Mapping[str, Callable[[Path], SpikingGraph]] = {"nir": read_nir}
"""Formats that can be read back into a folded graph, which the `events` runtime then runs."""

RUNS = {
    "training": "models", "folded": "models and .nir files", "onnx": ".onnx files", "nir": ".nir files",
}  # fmt: skip
"""What a runtime runs, by what it takes, in words."""


@dataclass(frozen=True, eq=False)
class ExportedFile:
    """A file in one of the formats. `content`: the format's own object."""

    path: Path
    format: Format
    content: Any
    metadata: FileMetadata

    def open(self, kind: RuntimeKind) -> Runtime:
        """The file in one runtime. Raises `DalifError`: BAD_OPTION where it does not run this format,
        MISSING_PACKAGE, RUNTIME_CANNOT_RUN."""
        if kind.takes == self.format.name:
            return open_runtime(kind, self.path)
        if kind.takes == "folded" and (graph := self.read_back()) is not None:
            return self._open_exact(kind, graph) if self.metadata.precision != "float32" else open_runtime(kind, graph)
        raise DalifError(
            Code.BAD_OPTION, f"--runtime {kind.name}: runs {RUNS[kind.takes]}, not .{self.format.name} files"
        )

    def _open_exact(self, kind: RuntimeKind, graph: SpikingGraph) -> Runtime:
        if kind.name != EventsRuntime.name or self.metadata.precision not in self.format.precisions:
            raise DalifError(
                Code.BAD_OPTION,
                f"--runtime {kind.name}: does not run {self.path}, which is of precision {self.metadata.precision!r}; "
                f"{EventsRuntime.name} runs exact files",
            )
        try:
            return EventsRuntime(graph, arithmetic="exact" if self.metadata.precision == "exact" else "exact64")
        except DalifError as error:
            if error.code not in (Code.BAD_GRAPH, Code.TARGET_CANNOT_HOLD):
                raise
            raise DalifError(
                Code.FILE_DAMAGED, f"{self.path}: says that its sums are exact, and {error.message}; export it again"
            ) from error

    def read_back(self) -> SpikingGraph | None:
        """The folded graph in the file, where the format can be read back."""
        reader = READ_BACK.get(self.format.name)
        return None if reader is None else reader(self.path)


def is_exported(path: Path) -> bool:
    """Whether dalif-export may have written the file, by content: a .nir of another tool is a model.

    Raises `DalifError` (FILE_MISSING, FILE_DAMAGED).
    """
    kind = kind_of(path)
    return kind in FORMAT_OF and not (kind == "hdf5" and written_elsewhere(path))


def open_exported(path: Path) -> ExportedFile:
    """Read an exported file. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE."""
    kind = kind_of(path)
    if kind not in FORMAT_OF:
        raise DalifError(Code.FOREIGN_FILE, f"{path}: neither an ONNX nor a NIR file; give what dalif-export wrote")
    format_ = file_format(FORMAT_OF[kind])
    try:
        content = format_.read(path)
    except DalifError:
        raise
    except Exception as error:  # readers of damaged files raise nearly anything
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: cannot be read as {format_.name} ({type(error).__name__}: {error})"
        ) from error
    metadata = FileMetadata.from_strings(format_.metadata(content), source=str(path))
    return ExportedFile(path, format_, content, metadata)


def answered_by_files(model: Any, options: LoadOptions, files: Sequence[str | Path]) -> LoadOptions:
    """`options` for a .nir of another tool, with what they do not say as the first exported file says that it was read.

    Raises `DalifError` as `open_exported` does.
    """
    if not isinstance(model, str | Path) or kind_of(Path(model)) != "hdf5" or not written_elsewhere(Path(model)):
        return options
    for path in map(Path, files):
        metadata = open_exported(path).metadata
        try:
            dt = float(metadata.extra["nir_dt"]) if "nir_dt" in metadata.extra else None
        except ValueError as error:
            raise DalifError(Code.FILE_DAMAGED, f"{path}: its metadata has a nir_dt that is no number") from error
        stored: dict[str, Any] = {
            "timesteps": metadata.input.timesteps,
            "temporal": metadata.input.temporal,
            "readout": metadata.readout,
            "reset": metadata.extra.get("nir_reset"),
            "fires_at": metadata.extra.get("nir_fires_at"),
            "dt": dt,
        }
        missing = {k: v for k, v in stored.items() if getattr(options, k) is None and v is not None}
        return replace(options, **missing, origin={**dict.fromkeys(missing, f"as {path.name} says"), **options.origin})
    return options


def default_runtime(file: ExportedFile) -> RuntimeKind:
    """What runs a file when nothing else is asked for: the one that needs no further package."""
    return runtime_kind("onnxruntime" if file.format.name == "onnx" else "events")
