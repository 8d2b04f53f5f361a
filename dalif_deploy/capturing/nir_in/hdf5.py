"""What lies in a .nir file, as it lies there: node kinds, their fields, and edges.

The file is read as HDF5, not through the nir package: that package infers shapes, wrongly for some kernels, and refuses
files of real simulators for it. Nothing is taken for granted here but HDF5 itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np

from dalif_deploy.errors import Code, DalifError

_LARGEST = 2**31
"""No field has more elements: a damaged file may declare any size."""


@dataclass(frozen=True)
class RawNode:
    """A node of the file. `kind`: its NIR type. `fields`: numbers and arrays, strings, as they were stored."""

    name: str
    kind: str
    fields: Mapping[str, Any]

    def refuse(self, why: str, code: Code = Code.BAD_GRAPH) -> DalifError:
        """An error that names this node."""
        return DalifError(code, f"node '{self.name}' ({self.kind}): {why}")


@dataclass(frozen=True)
class RawGraph:
    """A graph of the file; a node of it may be a graph again. `metadata`: strings and numbers."""

    name: str
    nodes: Mapping[str, RawNode | RawGraph]
    edges: tuple[tuple[str, str], ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_raw(path: Path) -> RawGraph:
    """The graph in a .nir file. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, BAD_GRAPH; without the
    path, but for the first two."""
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("node"), h5py.Group):
                raise DalifError(Code.FOREIGN_FILE, "an HDF5 file, but no NIR graph is in it")
            found = _node("", file["node"], ())
    except DalifError:
        raise
    except FileNotFoundError as error:
        raise DalifError(Code.FILE_MISSING, "no such file; check the path") from error
    except Exception as error:  # h5py: OSError, KeyError, RuntimeError, ... depending on where it is cut
        raise DalifError(
            Code.FILE_DAMAGED, f"the file is truncated or damaged ({error}); copy or write it again"
        ) from error
    if isinstance(found, RawNode):
        raise DalifError(Code.FOREIGN_FILE, f"holds one {found.kind} node, where a NIR graph should be")
    return found


def _node(name: str, group: h5py.Group, above: tuple[int, ...]) -> RawNode | RawGraph:
    address = int(h5py.h5o.get_info(group.id).addr)
    if address in above:
        raise DalifError(Code.BAD_GRAPH, f"node '{name}' is nested into itself")
    if "type" not in group:
        inner = next((key for key, item in _items(name, group) if isinstance(item, h5py.Group)), None)
        if inner is not None:
            raise DalifError(
                Code.BAD_GRAPH, f"node '{name}' has no type; a '/' in a name, as of '{name}/{inner}', splits it in a "
                "file: rename the node and write the file again",
            )  # fmt: skip
        raise DalifError(Code.BAD_GRAPH, f"node '{name}' has no type")
    kind = _text(group["type"][()])
    if kind == "NIRGraph":
        return _graph(name, group, (*above, address))
    fields = {}
    for key, item in _items(name, group):
        if isinstance(item, h5py.Group):
            if "type" in item:
                raise DalifError(
                    Code.BAD_GRAPH, f"node '{name}' ({kind}) has a node '{key}' in it; a '/' in a name, as of "
                    f"'{name}/{key}', splits it in a file: rename the node and write the file again",
                )  # fmt: skip
        elif key != "type":
            fields[key] = _value(f"node '{name}' ({kind})", key, item)
    return RawNode(name, kind, fields)


def _graph(name: str, group: h5py.Group, above: tuple[int, ...]) -> RawGraph:
    where = f"graph '{name}'" if name else "the graph"
    nodes = group.get("nodes")
    if not isinstance(nodes, h5py.Group):
        raise DalifError(Code.BAD_GRAPH, f"{where} has no nodes")
    found: dict[str, RawNode | RawGraph] = {}
    for key, item in _items(name, nodes):
        if not isinstance(item, h5py.Group):
            raise DalifError(Code.BAD_GRAPH, f"{where}: node '{key}' holds a value, where fields should be")
        found[key] = _node(key, item, above)
    if "edges" not in group:
        raise DalifError(Code.BAD_GRAPH, f"{where} has no edges")
    stored = np.asarray(_value(where, "edges", group["edges"]))
    if stored.size and (stored.ndim != 2 or stored.shape[1] != 2):
        raise DalifError(Code.BAD_GRAPH, f"{where}: edges of shape {list(stored.shape)}, pairs of names are needed")
    edges = tuple((_text(a), _text(b)) for a, b in stored.reshape(-1, 2))
    metadata: dict[str, Any] = {}
    if isinstance(group.get("metadata"), h5py.Group):
        metadata = {
            key: _value(where, key, item)
            for key, item in _items(name, group["metadata"])
            if isinstance(item, h5py.Dataset)
        }
    return RawGraph(name, found, edges, metadata)


def _items(name: str, group: h5py.Group) -> Iterator[tuple[str, Any]]:
    where = f"node '{name}'" if name else "the graph"
    for key in group:
        if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
            raise DalifError(Code.FOREIGN_FILE, f"{where}: its '{key}' lies in another file")
        try:
            item = group[key]
        except KeyError as error:
            raise DalifError(Code.FILE_DAMAGED, f"{where}: its '{key}' leads nowhere in the file ({error})") from error
        yield key, item


def _value(where: str, key: str, item: Any) -> Any:
    if not isinstance(item, h5py.Dataset):
        raise DalifError(Code.BAD_GRAPH, f"{where}: {key} holds fields, where a value should be")
    if item.size is not None and item.size > _LARGEST:
        raise DalifError(Code.FILE_DAMAGED, f"{where}: {key} declares {item.size} elements; the file is damaged")
    value = item[()]
    return _text(value) if isinstance(value, bytes | str) else value


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value)
