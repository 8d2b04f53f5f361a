"""Opens a .nir file that dalif-export wrote: the nodes, and what the file says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import nir

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.hdf5_guard import check_readable
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nir_faults import fault

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_nir(path: str | Path) -> tuple[nir.NIRGraph, FileMetadata]:
    """The NIR graph in a file and its metadata.

    Raises `DalifError`: FILE_MISSING (not there, a folder, not readable), FILE_DAMAGED (empty, truncated, or
    parts that cannot be read, by node and attribute where that can be told), FOREIGN_FILE (not HDF5, no NIR
    graph in it, or written by another tool).
    """
    path = Path(path)
    _check_kind(path)
    try:
        graph = nir.read(str(path))
    except Exception as error:  # nir checks by assertion, and h5py raises many kinds for damaged parts
        what = fault(path, str(error)) or f"the NIR graph in it cannot be read ({type(error).__name__}: {error})"
        raise DalifError(Code.FILE_DAMAGED, f"{path}: {what}") from error
    strings = {key: value for key, value in graph.metadata.items() if isinstance(value, str)}
    metadata = FileMetadata.from_strings(strings, source=str(path))
    _check_layers(path, graph, metadata)
    return graph, metadata


def written_elsewhere(path: Path) -> bool:
    """Whether an HDF5 file holds a NIR graph without the metadata of dalif-export; False where it cannot be read."""
    try:
        check_readable(path)
        with h5py.File(path, "r") as file:
            return file["node/type"][()] == b"NIRGraph" and "node/metadata/dalif_deploy_format" not in file
    except Exception:  # DalifError, and what h5py raises; who reads the file tells what is wrong
        return False


def _check_kind(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(_HDF5_SIGNATURE))
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: cannot be opened ({error.strerror})") from error
    if not head:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: the file is empty; export it again")
    if head != _HDF5_SIGNATURE:
        if _HDF5_SIGNATURE.startswith(head):
            raise DalifError(Code.FILE_DAMAGED, f"{path}: the file is truncated; export it again")
        raise DalifError(Code.FOREIGN_FILE, f"{path}: not a .nir file (NIR is stored as HDF5, and this is none)")
    check_readable(path)
    try:
        with h5py.File(path, "r") as file:
            kind = file["node/type"][()] if "node/type" in file else None
    except Exception as error:  # h5py: OSError, KeyError or RuntimeError, depending on where it is cut
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: the file is truncated or damaged ({error}); export it again"
        ) from error
    if kind != b"NIRGraph":
        raise DalifError(Code.FOREIGN_FILE, f"{path}: an HDF5 file, but no NIR graph is in it")


def _maxima(path: Path, metadata: FileMetadata) -> list[str]:
    """The neurons that are no layers of the network, but part of a maximum of spikes."""
    try:
        names = json.loads(metadata.extra.get("maxima", "[]"))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DalifError(Code.FILE_DAMAGED, f"{path}: its metadata has an entry 'maxima' that is no list of names")
    return names


def _check_layers(path: Path, graph: nir.NIRGraph, metadata: FileMetadata) -> None:
    """The metadata's neuron layers are the file's, of the same shapes, and its input likewise."""
    stored = {
        name: tuple(int(n) for n in node.input_type["input"])
        for name, node in graph.nodes.items()
        if isinstance(node, nir.LIF | nir.IF)
    }
    for name in _maxima(path, metadata):
        if stored.pop(name, None) is None or name in {layer.name for layer in metadata.layers}:
            raise DalifError(
                Code.FILE_DAMAGED, f"{path}: its metadata says that node '{name}' is a maximum, which it is not"
            )
    listed = {layer.name: tuple(layer.shape) for layer in metadata.layers}
    for name in sorted(stored.keys() | listed.keys()):
        if stored.get(name) != listed.get(name):
            raise DalifError(
                Code.FILE_DAMAGED,
                f"{path}: neuron layer '{name}' is {stored.get(name, 'missing')} among the nodes, but "
                f"{listed.get(name, 'missing')} in the metadata",
            )
    inputs = [node for node in graph.nodes.values() if isinstance(node, nir.Input)]
    outputs = [node for node in graph.nodes.values() if isinstance(node, nir.Output)]
    if len(inputs) != 1 or len(outputs) != 1:
        what = fault(path, "") or f"{len(inputs)} inputs and {len(outputs)} outputs, where there is one of each"
        raise DalifError(Code.FILE_DAMAGED, f"{path}: {what}")
    shape = tuple(int(n) for n in inputs[0].input_type["input"])
    if shape != metadata.input.shape:
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: its input takes {shape}, but its metadata says {metadata.input.shape}"
        )
