"""The file formats by name: the built-in ones, and those that other packages register."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.contents import Compared
from dalif_deploy.errors import Code, DalifError

ENTRY_POINTS = "dalif_deploy.exporters"
Parameters = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Format:
    """One file format.

    `export(graph, metadata=..., **options)` makes the format's own object of a folded graph; `write(object,
    path)` writes it; `read(path)` reads one back, as an object; `parameters(object)` are its numbers by name;
    `metadata(object)` its metadata as strings. `options`: the names of the options that `export` takes.
    `details(object)`: lines that a user should see who is about to use the file. `unfit(object, runtime)`: why a
    runtime, by name, would not run the file rightly, or None. `compare(expected, found)`: an object beside the one
    that it should be; without it, parameters alone are compared. `chosen(object)`: the options of `export` that an
    object's own form tells, where they are not in its metadata. `precisions`: what `export` takes for its option of
    that name; `two_slices`: whether it writes exact sums as two float32 slices, and in no other form. Other packages
    register one under the entry-point group `dalif_deploy.exporters`.
    """

    name: str
    suffix: str
    export: Callable[..., Any]
    write: Callable[[Any, Path], None]
    read: Callable[[Path], Any]
    parameters: Callable[[Any], Parameters]
    metadata: Callable[[Any], Mapping[str, str]]
    options: frozenset[str] = frozenset()
    details: Callable[[Any], tuple[str, ...]] = lambda _: ()
    unfit: Callable[[Any, str], str | None] = lambda _object, _runtime: None
    compare: Callable[[Any, Any], Compared] | None = None
    chosen: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    precisions: tuple[str, ...] = ("float32",)
    two_slices: bool = False

    def compared(self, expected: Any, found: Any) -> Compared:
        """An object beside the one that it should be."""
        if self.compare is not None:
            return self.compare(expected, found)
        return Compared(self.parameters(expected), self.parameters(found))


def _onnx() -> Format:
    import onnx

    from dalif_deploy.exporters.onnx import Precision, export_options, parameters, to_onnx
    from dalif_deploy.exporters.onnx_contents import compare
    from dalif_deploy.onnx_io import open_onnx

    return Format(
        name="onnx",
        suffix=".onnx",
        export=to_onnx,
        write=lambda model, path: onnx.save_model(model, str(path)),
        read=open_onnx,
        parameters=parameters,
        metadata=lambda model: {entry.key: entry.value for entry in model.metadata_props},
        options=frozenset({"opset", "outputs", "precision"}),
        compare=compare,
        chosen=export_options,
        precisions=get_args(Precision),
    )


def _nir() -> Format:
    import nir

    from dalif_deploy.exporters.nir import PRECISIONS, parameters, readers, to_nir
    from dalif_deploy.exporters.nir_contents import compare, strings
    from dalif_deploy.nir_io import open_nir

    def taken(graph: nir.NIRGraph) -> tuple[str, ...]:
        codes = "precision" in graph.metadata and json.loads(graph.metadata["encoding"])["kind"] == "uint8"
        return ("its input is the codes 0 to 255 themselves, as numbers, not what the module takes",) if codes else ()

    def details(graph: nir.NIRGraph) -> tuple[str, ...]:
        found = readers(graph)
        reads = [f"{reader.name} reads it rightly: {reader.call}" for reader in found if reader.reads]
        others = (f"not for {reader.name}: {reader.why}" for reader in found if not reader.reads)
        return (*taken(graph), *reads, *others)

    def unfit(graph: nir.NIRGraph, runtime: str) -> str | None:
        return next((r.why for r in readers(graph) if r.name == runtime and not r.reads), None)

    return Format(
        name="nir",
        suffix=".nir",
        export=to_nir,
        write=lambda graph, path: nir.write(str(path), graph),
        read=lambda path: open_nir(path)[0],
        parameters=parameters,
        metadata=strings,
        options=frozenset({"dialect", "precision"}),
        details=details,
        unfit=unfit,
        compare=compare,
        precisions=PRECISIONS,
        two_slices=True,
    )


BUILT_IN: Mapping[str, Callable[[], Format]] = {"onnx": _onnx, "nir": _nir}
"""The formats of this package, by name; called when the format is used, since onnx and nir take time to import."""


def file_format(name: str) -> Format:
    """The format called `name`. Raises `DalifError` (BAD_OPTION)."""
    if name in BUILT_IN:
        return BUILT_IN[name]()
    registered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in registered:
        raise DalifError(Code.BAD_OPTION, f"format {name!r}: unknown; there are {', '.join(format_names())}")
    found: Format = registered[name].load()
    return found


def format_names() -> tuple[str, ...]:
    """The names of all formats, the built-in ones first."""
    return tuple(dict.fromkeys([*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))]))
