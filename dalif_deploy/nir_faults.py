"""Says what is wrong with a .nir file that cannot be read: which node, which attribute."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import nir
import numpy as np

FIELDS: Mapping[str, frozenset[str]] = {
    "Input": frozenset({"shape"}),
    "Output": frozenset({"shape"}),
    "Affine": frozenset({"weight", "bias"}),
    "Linear": frozenset({"weight"}),
    "Conv2d": frozenset({"input_shape", "weight", "bias", "stride", "padding", "dilation", "groups"}),
    "SumPool2d": frozenset({"kernel_size", "stride", "padding"}),
    "AvgPool2d": frozenset({"kernel_size", "stride", "padding"}),
    "Flatten": frozenset({"input_type", "start_dim", "end_dim"}),
    "LIF": frozenset({"tau", "r", "v_leak", "v_reset", "v_threshold"}),
    "IF": frozenset({"r", "v_reset", "v_threshold"}),
}
"""What a node of each kind that dalif-export writes has in the file."""
BESIDES = frozenset({"type", "metadata", "version"})
MISMATCH = re.compile(
    r"type mismatch: (?P<source>.+)\.output: (?P<gives>.*) -> (?P<target>.+)\.input: (?P<takes>.*)", re.S
)


def fault(path: Path, said: str) -> str | None:
    """The first fault of the file, or None where none is found. `said`: what the reader of NIR says of it."""
    try:
        with h5py.File(path, "r") as file:
            return next(_faults(file["node"], said), None)
    except Exception:  # then the file is beyond explaining, and what the reader said has to do
        return None


def _faults(graph: h5py.Group, said: str) -> Iterator[str]:
    for name, node in graph["nodes"].items():
        yield from _of_node(name, node)
    yield from _of_edges(graph)
    if found := MISMATCH.search(said):
        source, target = (graph["nodes"][found[key]] for key in ("source", "target"))
        gives, takes = (
            " ".join(found[key].split()).replace("[[", "[").replace("]]", "]") for key in ("gives", "takes")
        )
        yield (
            f"node '{found['source']}' ({_told(source)}) gives {gives}, and '{found['target']}' "
            f"({_told(target)}) takes {takes}"
        )


def _of_node(name: str, node: Any) -> Iterator[str]:
    if not isinstance(node, h5py.Group) or "type" not in node:
        yield f"node '{name}' has no 'type'"
        return
    kind = _kind(node)
    wanted = FIELDS.get(kind)
    if wanted is None:
        if not isinstance(getattr(nir, kind, None), type):
            yield f"node '{name}' is of type '{kind}', which NIR does not have"
        return
    for key in sorted(wanted - node.keys()):
        yield f"node '{name}' ({kind}) has no '{key}'"
    for key in sorted(node.keys() - wanted - BESIDES):
        yield f"node '{name}' ({kind}) has a '{key}', which a node of this type has not"
    for key in sorted(wanted):
        if np.asarray(node[key][()]).dtype.kind not in "biuf":
            yield f"node '{name}' ({kind}): its '{key}' is {_text(node[key][()])!r}, where numbers should be"


def _of_edges(graph: h5py.Group) -> Iterator[str]:
    edges = [(_text(source), _text(target)) for source, target in graph["edges"][()]]
    names = list(graph["nodes"])
    for edge in edges:
        for end in edge:
            if end not in names:
                yield f"edge '{edge[0]} -> {edge[1]}': there is no node '{end}'"
    for edge, count in Counter(edges).items():
        if count > 1:
            yield f"edge '{edge[0]} -> {edge[1]}' is there {count} times"
    for name in names:
        kind = _kind(graph["nodes"][name])
        if kind != "Input" and all(target != name for _, target in edges):
            yield f"node '{name}' ({kind}) has no edge into it"
        if kind != "Output" and all(source != name for source, _ in edges):
            yield f"node '{name}' ({kind}) has no edge out of it"


def _told(node: h5py.Group) -> str:
    """A node's type and what decides its shapes."""
    told = []
    for key in sorted(node.keys() - BESIDES):
        values = np.asarray(node[key][()])
        if key in ("weight", "v_threshold"):
            told.append(f"{key} of shape {list(values.shape)}")
        elif values.size <= 4:
            told.append(f"{key} {values.tolist()}")
    return f"{_kind(node)}; {', '.join(told)}"


def _kind(node: h5py.Group) -> str:
    return _text(node["type"][()])


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
