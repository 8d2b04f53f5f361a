"""Whether a simulator reads a NIR graph rightly: one set of rules, for the exporter's advice and for the runtimes."""

from __future__ import annotations

import keyword
from collections import Counter
from dataclasses import dataclass

import nir
import numpy as np

from dalif_deploy.dialects import DT, Dialect


@dataclass(frozen=True)
class Finding:
    """Something in a NIR graph that a reader does not read rightly. `where`: the node, or "". `silent`: the
    reader does not say so."""

    where: str
    why: str
    silent: bool


def summary(found: list[Finding]) -> str:
    """One line: every reason once, with the first node that it holds of and how many more there are."""
    by_reason: dict[str, list[str]] = {}
    for finding in found:
        by_reason.setdefault(finding.why, []).append(finding.where)
    return "; ".join(
        f"{where[0]}: {why}" + (f" (and {len(where) - 1} more)" if len(where) > 1 else "") if where[0] else why
        for why, where in by_reason.items()
    )


def sanitized(name: str) -> str:
    """The name under which nirtorch keeps a node's module."""
    name = name.replace(".", "_")
    return f"nir_node_{name}" if keyword.iskeyword(name) else name


def has_sums(graph: nir.NIRGraph) -> bool:
    """Whether some node has several inputs or several readers."""
    sources = Counter(source for source, _ in graph.edges)
    targets = Counter(target for _, target in graph.edges)
    return max([*sources.values(), *targets.values()], default=0) > 1


def findings(graph: nir.NIRGraph, dialect: Dialect) -> list[Finding]:
    """What `dialect`'s reader would get wrong or refuse in a canonical file; empty if it reads it rightly.

    Ties apart: a potential that equals its threshold is the business of the reader's rounding and rule.
    """
    found: list[Finding] = []
    if not dialect.usable:
        found.append(Finding("", "; ".join(dialect.quirks), silent=True))
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        where = f"node '{name}' ({kind})"
        if kind not in dialect.takes:
            found.append(Finding(where, f"{dialect.name} does not read this kind rightly", silent=True))
        if isinstance(node, nir.LIF | nir.IF):
            found.extend(Finding(where, why, silent) for why, silent in _neuron(node, dialect))
        if isinstance(node, nir.SumPool2d) and np.any(node.padding) and not dialect.sum_pool_padding:
            found.append(Finding(where, f"{dialect.name} drops the padding", silent=True))
    return found + _names(graph)


def _neuron(node: nir.LIF | nir.IF, dialect: Dialect) -> list[tuple[str, bool]]:
    found = []
    name = dialect.name
    if np.any(node.v_reset) and not dialect.honours_v_reset:
        found.append((f"{name} does not take a v_reset other than 0 as it is meant", True))
    if dialect.nonnegative_threshold and np.any(node.v_threshold < 0.0):
        found.append((f"{name} misreads a negative threshold", True))
    for key in dialect.uniform:
        if key in vars(node) and np.unique(getattr(node, key)).size != 1:
            found.append((f"{name} takes one {key} a layer, not one a channel or neuron", False))
    if isinstance(node, nir.LIF):
        beta = 1.0 - DT / np.asarray(node.tau, dtype=np.float64)
        if np.any(beta <= dialect.beta_above):
            found.append((f"{name} needs a leak above {dialect.beta_above:g}, it is {beta.min():g}", False))
        if np.any(beta < dialect.beta_from):
            found.append((f"{name} needs a leak of at least {dialect.beta_from:g}, it is {beta.min():g}", True))
        if np.any((beta > 0.0) & (beta < dialect.beta_gap)):
            found.append((f"{name} takes a leak below {dialect.beta_gap:g} for 0 and misses the threshold", True))
    return found


def _names(graph: nir.NIRGraph) -> list[Finding]:
    """Names that nirtorch, which all these readers stand on, cannot keep apart or cannot keep at all."""
    import torch

    found = []
    taken: dict[str, str] = {}
    module = torch.nn.ModuleDict()
    for name in graph.nodes:
        clean = sanitized(name)
        if clean in taken:
            why = f"nirtorch takes its name for that of '{taken[clean]}'"
            found.append(Finding(f"node '{name}'", why, silent=True))
        taken[clean] = name
        if hasattr(module, clean):
            found.append(Finding(f"node '{name}'", "nirtorch cannot keep a module of this name", silent=False))
    return found
