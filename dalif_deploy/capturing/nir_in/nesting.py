"""Nested graphs laid open: one flat graph, in which the inner names are "outer.inner"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dalif_deploy.capturing.nir_in.hdf5 import RawGraph, RawNode
from dalif_deploy.errors import Code, DalifError

JUNCTION = "Junction"
"""The kind of what is left of a nested graph's Input or Output: the sum of its inputs, passed on."""


@dataclass(frozen=True)
class FlatGraph:
    """Nodes by name and edges in the order of the file; edges name nodes that exist, and none is there twice."""

    nodes: Mapping[str, RawNode]
    edges: tuple[tuple[str, str], ...]


def laid_open(graph: RawGraph) -> FlatGraph:
    """`graph` without nested graphs. Raises `DalifError` (BAD_GRAPH, UNSUPPORTED_LAYER), naming the node."""
    nodes: dict[str, RawNode] = {}
    edges: list[tuple[str, str]] = []
    _lay_open(graph, "", nodes, edges)
    return _without_plain_junctions(nodes, edges)


def _lay_open(graph: RawGraph, prefix: str, nodes: dict[str, RawNode], edges: list[tuple[str, str]]) -> None:
    inner = {name: node for name, node in graph.nodes.items() if isinstance(node, RawGraph)}
    for name, node in graph.nodes.items():
        full = prefix + name
        if isinstance(node, RawGraph):
            _lay_open(node, f"{full}.", nodes, edges)
            continue
        kind = JUNCTION if prefix and node.kind in ("Input", "Output") else node.kind
        if full in nodes:
            raise DalifError(Code.BAD_GRAPH, f"two nodes are called '{full}' once nested graphs are laid open")
        nodes[full] = RawNode(full, kind, node.fields)
    where = f"graph '{prefix[:-1]}'" if prefix else "the graph"
    own = []
    for source, target in graph.edges:
        edge = f"{where} has an edge from '{prefix}{source}' to '{prefix}{target}'"
        ends = _end(graph, inner, prefix, source, "Output", edge), _end(graph, inner, prefix, target, "Input", edge)
        own.append(ends)
    for (source, target), count in Counter(own).items():
        if count > 1:
            raise DalifError(Code.BAD_GRAPH, f"the edge from '{source}' to '{target}' is there {count} times")
    edges.extend(own)


def _end(
    graph: RawGraph, inner: Mapping[str, RawGraph], prefix: str, name: str, port: str, edge: str
) -> str:  # fmt: skip
    """The flat name of an edge's end: of a nested graph its Input or Output."""
    if name in inner:
        ports = [key for key, node in inner[name].nodes.items() if isinstance(node, RawNode) and node.kind == port]
        if len(ports) != 1:
            raise DalifError(
                Code.BAD_GRAPH, f"nested graph '{prefix}{name}' has {len(ports)} nodes of kind {port}; an edge to or "
                "from it needs just one",
            )  # fmt: skip
        return f"{prefix}{name}.{ports[0]}"
    if name in graph.nodes:
        return prefix + name
    outer, _, rest = name.partition(".")
    if outer in inner and rest in inner[outer].nodes:
        return prefix + name
    raise DalifError(Code.BAD_GRAPH, f"{edge}, and there is no node '{prefix}{name}'")


def _without_plain_junctions(nodes: dict[str, RawNode], edges: list[tuple[str, str]]) -> FlatGraph:
    """Junctions with one edge in are passed by, where that makes no edge twice."""
    for name in [name for name, node in nodes.items() if node.kind == JUNCTION]:
        sources = [source for source, target in edges if target == name]
        targets = [target for source, target in edges if source == name]
        if len(sources) != 1 or name in targets or any((sources[0], target) in edges for target in targets):
            continue
        edges = [
            (sources[0] if source == name else source, target) for source, target in edges if target != name
        ]  # fmt: skip
        del nodes[name]
    return FlatGraph(nodes, tuple(edges))
