"""Compares a NIR graph with the one that it should be: nodes by name, every parameter, edges, metadata."""

from __future__ import annotations

from collections.abc import Iterator

import nir
import numpy as np
from numpy.typing import NDArray

from dalif_deploy.contents import Compared, ContentDifference, compare_metadata, shown, written_by_another
from dalif_deploy.exporters.nir import parameters

ATTRIBUTES = ("stride", "padding", "dilation", "groups", "kernel_size", "start_dim", "end_dim")
"""Fields that say what a node does, not by which numbers."""


def strings(graph: nir.NIRGraph) -> dict[str, str]:
    """The graph's metadata as strings."""
    return {key: value if isinstance(value, str) else str(value) for key, value in graph.metadata.items()}


def compare(expected: nir.NIRGraph, found: nir.NIRGraph) -> Compared:
    """Everything in `found` that is not as in `expected`. The inputs of a node are added in the order of the file's
    edges, so that order counts."""
    want, have = strings(expected), strings(found)
    rewritten = expected.nodes.keys() != found.nodes.keys() or written_by_another(have) is not None
    alike = {name for name, node in expected.nodes.items() if type(found.nodes.get(name)) is type(node)}

    def numbers(graph: nir.NIRGraph) -> dict[str, NDArray[np.generic]]:
        found = {tuple(key.rsplit(".", 1)): values for key, values in parameters(graph).items()}
        return {f"{node}.{f}": v for (node, f), v in found.items() if node in alike and f not in ATTRIBUTES}

    differences = (*_nodes(expected, found, rewritten), *_edges(expected, found, rewritten))
    return Compared(numbers(expected), numbers(found), (*differences, *compare_metadata(want, have)))


def _nodes(expected: nir.NIRGraph, found: nir.NIRGraph, rewritten: bool) -> Iterator[ContentDifference]:
    def told(name: str, problem: str) -> ContentDifference:
        return ContentDifference("node", name, problem, rewritten)

    for name, node in expected.nodes.items():
        kind = type(node).__name__
        other = found.nodes.get(name)
        if other is None:
            yield told(name, f"({kind}) is missing in the file")
        elif type(other) is not type(node):
            yield told(name, f"is {type(other).__name__}, should be {kind}")
        else:
            for field in ATTRIBUTES:
                want, have = getattr(node, field, None), getattr(other, field, None)
                if not np.array_equal(np.asarray(want), np.asarray(have)):
                    yield told(name, f"({kind}) has {field} {_shown(have)}, should be {_shown(want)}")
            for field, what in (("input_type", "takes"), ("output_type", "gives")):
                want, have = _shapes(node, field), _shapes(other, field)
                if want != have:
                    yield told(name, f"({kind}) {what} {shown(have)}, should be {shown(want)}")
    for name, node in found.nodes.items():
        if name not in expected.nodes:
            yield told(name, f"({type(node).__name__}) is not expected in the file")


def _edges(expected: nir.NIRGraph, found: nir.NIRGraph, rewritten: bool) -> Iterator[ContentDifference]:
    want, have = list(expected.edges), list(found.edges)
    for source, target in want:
        if (source, target) not in have:
            yield ContentDifference("edge", f"{source} -> {target}", "is missing in the file", rewritten)
    for source, target in have:
        if (source, target) not in want:
            yield ContentDifference("edge", f"{source} -> {target}", "is not expected in the file", rewritten)
    for edge in sorted({edge for edge in have if have.count(edge) > 1}):
        yield ContentDifference("edge", " -> ".join(edge), f"is there {have.count(edge)} times", rewritten)
    for target in expected.nodes:
        order = [[source for source, other in edges if other == target] for edges in (want, have)]
        if order[0] != order[1] and sorted(order[0]) == sorted(order[1]):
            told = f"adds its inputs in the order {', '.join(order[1])}, should be {', '.join(order[0])}"
            yield ContentDifference("node", target, told, rewritten)


def _shown(value: object) -> str:
    return shown(np.asarray(value).tolist())


def _shapes(node: nir.NIRNode, field: str) -> dict[str, list[int] | None]:
    types = getattr(node, field, None) or {}
    return {port: None if shape is None else np.asarray(shape).tolist() for port, shape in types.items()}
