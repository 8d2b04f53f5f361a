"""Which edges of a recurrent graph deliver the step before.

NIR has no delay at a recurrent edge, but a program needs one. In a cycle the edge that leads back, seen from the
input, delivers what its source was one step before: at step 0 nothing, not even a bias. A Delay of a step or more in a
cycle is delay enough. A cycle in which nothing holds a state has no meaning in time and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from dalif_deploy.errors import Code, DalifError

Edges = Sequence[tuple[str, str]]


def delayed_edges(
    names: Sequence[str], edges: Edges, *, start: str, stateful: Collection[str], delaying: Collection[str]
) -> frozenset[tuple[str, str]]:
    """The edges that deliver the step before. `stateful`: nodes that hold a state; `delaying`: those whose output is of
    an earlier step in any case.

    Where a cycle can be entered at several places, the first by name counts. Raises `DalifError` (BAD_GRAPH) for a
    cycle without a state.
    """
    present = [edge for edge in edges if edge[1] not in delaying]
    stateless = [edge for edge in present if edge[0] not in stateful and edge[1] not in stateful]
    if back := _leading_back(names, stateless, start):
        source, target = min(back)
        raise DalifError(
            Code.BAD_GRAPH,
            f"node '{target}' needs, through '{source}', its own output of the same step; nothing in this cycle holds "
            "a state or a delay",
        )
    return frozenset(_leading_back(names, present, start))


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A key that sorts names as people do: "2" before "10"."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part)


def _leading_back(names: Sequence[str], edges: Edges, start: str) -> set[tuple[str, str]]:
    """The edges of a depth-first walk, from `start` first, that lead to a node which the walk has not left yet."""
    targets: Mapping[str, list[str]] = {name: [] for name in names}
    for source, target in edges:
        targets[source].append(target)
    back: set[tuple[str, str]] = set()
    left: set[str] = set()
    within: set[str] = set()
    for root in [start, *sorted(names, key=natural)]:
        if root in left:
            continue
        within.add(root)
        walk = [(root, iter(sorted(targets[root], key=natural)))]
        while walk:
            node, ahead = walk[-1]
            for target in ahead:
                if target in within:
                    back.add((node, target))
                elif target not in left:
                    within.add(target)
                    walk.append((target, iter(sorted(targets[target], key=natural))))
                    break
            else:
                walk.pop()
                within.discard(node)
                left.add(node)
    return back
