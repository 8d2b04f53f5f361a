"""In which order an ONNX graph is written: what is computed for all timesteps at once, and what step by step."""

from __future__ import annotations

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Node


def components(graph: SpikingGraph) -> list[tuple[Node, ...]]:
    """The nodes in groups that feed each other in a circle (through delayed edges), mostly groups of one.

    Groups come after all groups that they read from at any timestep; within one, the graph's order holds.
    """
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    ancestors = {node.name: _ancestors(graph, node.name) for node in graph.nodes}
    waiting = list(graph.nodes)
    done: set[str] = set()
    groups = []
    while waiting:
        first = next(
            node
            for node in waiting
            if all(name in done or node.name in ancestors[name] for name in ancestors[node.name] - {node.name})
        )
        members = {first.name} | {name for name in ancestors[first.name] if first.name in ancestors[name]}
        groups.append(tuple(graph[name] for name in sorted(members, key=order.__getitem__)))
        done |= members
        waiting = [node for node in waiting if node.name not in members]
    return groups


def _ancestors(graph: SpikingGraph, name: str) -> set[str]:
    found: set[str] = set()
    stack = [name]
    while stack:
        for edge in graph[stack.pop()].inputs:
            if edge.source not in found:
                found.add(edge.source)
                stack.append(edge.source)
    return found
