"""Whether a simulator reads a NIR graph rightly: one set of rules, for the exporter's advice and for the runtimes."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import nir
import numpy as np

from dalif_deploy.dialects import CANONICAL, DT, Dialect, Limit, Refusal
from dalif_deploy.nir_neurons import beta_of
from dalif_deploy.nodes import Array


@dataclass(frozen=True)
class Finding:
    """Something in a NIR graph that a reader does not read rightly. `where`: the node, or ""."""

    where: str
    why: str


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
    """What `dialect`'s reader would get wrong or refuse in an exported file; empty if it reads it rightly.

    In a canonical file ties are apart, where a potential equals its threshold: they are the business of the
    reader's rounding and rule, for which its own dialect is made.
    """
    found: list[Finding] = []
    written = graph.metadata.get("dialect")
    if dialect.own_only and written == CANONICAL.name:
        found.append(Finding("", f"{dialect.own_only}; export it again for {dialect.name}"))
    if written not in (CANONICAL.name, dialect.name):
        found.append(Finding("", f"its thresholds are chosen for {written}; export it again for {dialect.name}"))
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        where = f"node '{name}' ({kind})"
        if kind not in dialect.takes:
            found.append(Finding(where, f"{dialect.name} does not read this kind"))
        found.extend(
            Finding(where, why_not(refusal, dialect)) for refusal in dialect.refusals if LIMITS[refusal.limit](node)
        )
    return found + _names(graph)


def why_not(refusal: Refusal, dialect: Dialect) -> str:
    """One limit of a reader in one phrase, with the reader's own words where it has any."""
    words = f" ({refusal.says!r})" if refusal.says else " without a word"
    return f"{refusal.limit}: {dialect.name} {refusal.does}{words}"


def _lif(test: Callable[[nir.LIF], bool | np.bool_]) -> Callable[[nir.NIRNode], bool]:
    return lambda node: isinstance(node, nir.LIF) and bool(test(node))


def _if(test: Callable[[nir.IF], bool | np.bool_]) -> Callable[[nir.NIRNode], bool]:
    return lambda node: isinstance(node, nir.IF) and bool(test(node))


def _neuron(test: Callable[[nir.LIF | nir.IF], bool | np.bool_]) -> Callable[[nir.NIRNode], bool]:
    return lambda node: isinstance(node, nir.LIF | nir.IF) and bool(test(node))


def _gain(node: nir.LIF) -> Array:
    """What a LIF multiplies its input by in one step."""
    return np.asarray(node.r, dtype=np.float64) * DT / np.asarray(node.tau, dtype=np.float64)


def _almost_one(gain: Array) -> np.bool_:
    """Between what rounding leaves of 1 and what numpy.allclose takes for 1, with room."""
    return np.any((np.abs(gain - 1.0) > 1e-12) & (np.abs(gain - 1.0) < 1.1e-5))


LIMITS: Mapping[Limit, Callable[[nir.NIRNode], bool]] = {
    "v_reset other than 0 in a LIF": _lif(lambda node: np.any(node.v_reset)),
    "v_reset other than 0 in an IF": _if(lambda node: np.any(node.v_reset)),
    "beta below 0": _lif(lambda node: not np.all(beta_of(node.tau) >= 0.0)),  # no number, where no tau gives it
    "beta = 0": _lif(lambda node: np.any(beta_of(node.tau) == 0.0)),
    "beta = 1 as an IF": lambda node: isinstance(node, nir.IF),
    "a gain almost 1": _lif(lambda node: _almost_one(_gain(node))),
    "leaks that differ within a layer": _lif(lambda node: np.unique(node.tau).size > 1),
    "gains that differ within a layer": _lif(lambda node: np.ptp(_gain(node)) > 1e-12),
    "thresholds that differ within a layer": _neuron(lambda node: np.unique(node.v_threshold).size > 1),
    "a threshold below 0": _neuron(lambda node: np.any(node.v_threshold < 0.0)),
    "a padded sum pool": lambda node: isinstance(node, nir.SumPool2d) and bool(np.any(node.padding)),
}
"""Whether a node is beyond a limit."""


def _names(graph: nir.NIRGraph) -> list[Finding]:
    """Names that nirtorch, which all these readers stand on, cannot keep apart or cannot keep at all."""
    import torch

    found = []
    taken: dict[str, str] = {}
    module = torch.nn.ModuleDict()
    for name in graph.nodes:
        clean = sanitized(name)
        if clean in taken:
            found.append(Finding(f"node '{name}'", f"nirtorch takes its name for that of '{taken[clean]}'"))
        taken[clean] = name
        if hasattr(module, clean):
            found.append(Finding(f"node '{name}'", "nirtorch cannot keep a module of this name"))
    return found
