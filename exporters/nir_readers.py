"""Which NIR simulators read an exported file rightly, how to call them, and why others do not."""

from __future__ import annotations

from dataclasses import dataclass

import nir

from dalif_deploy.dialects import SIMULATORS, Dialect
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nir_rules import findings, has_sums, summary

_SIGN = {"ge": ">=", "gt": ">"}


@dataclass(frozen=True)
class Reader:
    """One simulator. `reads`: whether it fires this file's spikes; of a canonical file, potentials that equal their
    threshold apart. `call`: the expression that loads the file at `path`. `why`: what stands against it, or what
    to know."""

    name: str
    reads: bool
    call: str
    why: str


def readers_of(graph: nir.NIRGraph) -> list[Reader]:
    """What each known simulator, in the version that was measured, makes of a NIR graph of `to_nir`.

    Raises `DalifError` (FOREIGN_FILE) if the graph was not written by `to_nir`.
    """
    FileMetadata.from_strings(graph.metadata, source="the NIR graph")
    found = []
    for dialect in SIMULATORS.values():
        against = findings(graph, dialect)
        call = dialect.call_with_sums if dialect.call_with_sums and _needs_wiring(graph) else dialect.call
        found.append(Reader(dialect.name, not against, call, summary(against) or _rule(dialect, graph)))
    return found


def _rule(dialect: Dialect, graph: nir.NIRGraph) -> str:
    rule = f"{dialect.package} {dialect.version} fires at v {_SIGN[dialect.fires_at]} v_threshold"
    if graph.metadata["dialect"] == dialect.name:
        return f"{rule}, and the thresholds are chosen for it: V = v_th is decided as in the network"
    return f"{rule}: right where no V equals v_th; the dialect {dialect.name!r} is right there too"


def _needs_wiring(graph: nir.NIRGraph) -> bool:
    return has_sums(graph) or any(isinstance(node, nir.AvgPool2d) for node in graph.nodes.values())
