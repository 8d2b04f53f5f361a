"""check: every node of a model with a verdict for a target, by running the real conversion.

There are no rules here. The export itself is run into a folder that is thrown away; where it refuses, its error is the
finding. To find all and not only the first, the node that an error names is replaced by one that no target minds, and
folding and conversion are run again, until they go through or name nothing that can be replaced.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.capturing.survey import Refusal, survey
from dalif_deploy.deploy.content import content_of
from dalif_deploy.deploy.data import Data
from dalif_deploy.deploy.exporting import check_format_options, export
from dalif_deploy.deploy.model import LoadOptions, Model, examples_of, module_in, open_model, training_graph
from dalif_deploy.deploy.neutral import guarded, isolated
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.registry import file_format
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import fold

Judgement = Literal["ok", "changed", "unsupported", "unjudged"]
_NODE = re.compile(r"(?:node|layer) '([^']+)'(?: \([^)]*\))?(?:: |, )?")


@dataclass(frozen=True)
class NodeVerdict:
    """One node, or one place in the user's code, and whether the target takes it.

    `name`: "" for the network as a whole. `kind`: of the node, or the user's class. `becomes`: what it is in the file.
    `reason`, `code`: why not, where it is "unsupported" or "unjudged". `where`: "file:line" of the user's code, and
    `source` that line, for what capture refuses. `lines`: code to write, where that is the mend.
    """

    name: str
    kind: str
    verdict: Judgement
    becomes: str | None = None
    reason: str | None = None
    code: Code | None = None
    where: str | None = None
    source: str | None = None
    lines: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        code = None if self.code is None else self.code.identifier
        return {**vars(self), "code": code, "lines": list(self.lines)}


@dataclass(frozen=True, eq=False)
class CheckResult:
    """What `check` found. `nodes`: in the network's order, what belongs to no node first. `options`: of the format."""

    model: str | None
    target: str
    precision: str
    options: Mapping[str, Any]
    timesteps: int | None
    nodes: tuple[NodeVerdict, ...]
    notes: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Whether nothing stands against the export."""
        return all(node.verdict in ("ok", "changed") for node in self.nodes)

    def count(self, verdict: Judgement) -> int:
        """How many nodes have this verdict."""
        return sum(node.verdict == verdict for node in self.nodes)

    def as_json(self) -> dict[str, Any]:
        """As docs/checking.md describes it."""
        return {
            "supported": self.supported,
            "model": self.model,
            "target": self.target,
            "precision": self.precision,
            "options": dict(self.options),
            "timesteps": self.timesteps,
            "counts": {key: self.count(key) for key in ("ok", "changed", "unsupported", "unjudged")},
            "nodes": [node.as_json() for node in self.nodes],
            "notes": list(self.notes),
        }


def check(
    model: str | Path | torch.nn.Module | SpikingGraph | Model,
    *,
    to: str,
    options: LoadOptions | None = None,
    data: Data | NDArray[np.generic] | None = None,
    samples: int | None = None,
    verified: bool = True,
    precision: str = "float32",
    **format_options: Any,
) -> CheckResult:
    """Whether `export` with the same arguments would write a model, and every node that stands in the way.

    Nothing is written. Whatever is said against the model is in the result; raises `DalifError` only for arguments
    and files that cannot be used (exit status 2).
    """
    check_format_options(to, format_options)
    options = options or LoadOptions()
    conversion = _Conversion(to, precision, format_options)
    path = Path(model) if isinstance(model, str | Path) else None
    name = None if path is None else str(path)

    def result(graph: SpikingGraph | None, nodes: Sequence[NodeVerdict], notes: tuple[str, ...] = ()) -> CheckResult:
        timesteps = options.timesteps if graph is None else graph.timesteps
        return CheckResult(name, to, precision, format_options, timesteps, tuple(nodes), notes)

    refused: DalifError | None = None
    try:
        opened = open_model(model, options, data)
    except DalifError as error:
        if error.code.exit_status == 2:
            raise
        refused = error
    if refused is not None:
        module = model if isinstance(model, torch.nn.Module) else _module(path, options)
        if module is None:  # a graph of ours that contradicts itself, which no capture can explain
            return result(None, [_finding("", "network", refused)])
        given = examples_of(options, data)
        found = survey(module, lambda: training_graph(module, given))
        at_nodes = [replace(_refused(refusal), name=name) for name, refusal in found.places.items()]
        placed = set(found.places.values())
        findings = [*at_nodes, *(_refused(refusal) for refusal in found.refusals if refusal not in placed)]
        if refused.code not in {finding.code for finding in findings}:  # such as captured, but not proved
            findings.append(_attributed(refused, found.graph))
        if found.graph is None:
            return result(None, [*findings, *_not_reached(module, findings)])
        rows = _merged(findings, conversion.judged(found.graph, export_error=None))
        return result(found.graph, [_in_users_words(row, found.places.get(row.name)) for row in rows])
    told = data.notes if isinstance(data, Data) else ()
    against = _export_error(opened, conversion, data, samples, verified=verified)
    return result(opened.graph, conversion.judged(opened.graph, export_error=against), (*told, *opened.notes))


def _module(path: Path | None, options: LoadOptions) -> torch.nn.Module | None:
    made = None if path is None else module_in(path, options)
    return None if made is None else made[0]


def _export_error(
    opened: Model, conversion: _Conversion, data: Data | NDArray[np.generic] | None, samples: int | None, *,
    verified: bool,
) -> DalifError | None:  # fmt: skip
    """What the export of the whole model says against it."""
    with tempfile.TemporaryDirectory(prefix="dalif-check-") as folder:
        path = Path(folder) / "checked"
        try:
            export(
                opened, path, to=conversion.to, data=data, samples=samples, verified=verified,
                precision=conversion.precision, **conversion.options,
            )  # fmt: skip
        except DalifError as error:
            if error.code.exit_status == 2 and error.code not in (Code.BAD_GRAPH, Code.NOT_FINITE):
                raise
            return DalifError(error.code, error.message.replace(f"{path}: ", "").replace(str(path), "the file"))
        except Exception as error:  # a fault of ours is a finding too: a check answers
            return DalifError(Code.FAULT, f"{type(error).__name__}: {error}; please report it")
    return None


@dataclass(frozen=True)
class _Conversion:
    """Folding and conversion to one target."""

    to: str
    precision: str
    options: Mapping[str, Any]

    def judged(self, graph: SpikingGraph, *, export_error: DalifError | None) -> list[NodeVerdict]:
        """A verdict for every node of a training graph. `export_error`: what its export said, which is in them."""
        if self.to == "pt":
            against = [] if export_error is None else [_attributed(export_error, graph)]
            return _merged(against, [NodeVerdict(node.name, type(node).__name__, "ok") for node in graph.nodes])
        findings: dict[str, NodeVerdict] = {}
        current, converted, ended = graph, None, None
        while converted is None and ended is None:
            try:
                converted = self._convert(current)
            except DalifError as error:
                finding = _attributed(error, graph)
                again = finding.name in findings
                following = (guarded if again else isolated)(current, finding.name)
                findings.setdefault(finding.name, finding)
                if following is None:
                    ended = finding
                else:
                    current = following
        if export_error is not None and not findings:  # what only the whole export shows, such as a divergence
            finding = _attributed(export_error, graph)
            findings[finding.name] = finding
        folded, file = converted if converted is not None else (None, None)
        rows = []
        for node in graph.nodes:
            kind = type(node).__name__
            if node.name in findings:
                rows.append(replace(findings.pop(node.name), kind=kind))
            elif folded is None or ended is not None:
                where = "the network as a whole" if ended is None or not ended.name else f"'{ended.name}'"
                why = f"the conversion ends at {where}"
                rows.append(NodeVerdict(node.name, kind, "unjudged", reason=why))
            else:
                rows.append(_written(node.name, kind, folded, file))
        return [*findings.values(), *rows]

    def _convert(self, graph: SpikingGraph) -> tuple[SpikingGraph, Any]:
        format_ = file_format(self.to)
        folded = fold(graph)
        content = content_of(folded, self.precision, two_slices=format_.two_slices)
        try:
            return content.graph, content.object(format_, metadata={}, **self.options)
        except DalifError:
            raise
        except Exception as error:  # such as an assertion of the format's own package; the export has it too
            raise DalifError(Code.FAULT, f"{type(error).__name__}: {error}") from error


def _attributed(error: DalifError, graph: SpikingGraph | None) -> NodeVerdict:
    """An error as the verdict of the first node that it names, or of the network."""
    for match in _NODE.finditer(error.message):
        name = match[1]
        if graph is None or name in graph:
            # Where several nodes are named in one line, the others are found in their turn.
            text = error.message[match.end() :].split("; node '")[0]
            text = re.sub(r" \(and \d+ more\)", "", text)
            return _finding(name, "node", error, text)
    return _finding("", "network", error)


def _finding(name: str, kind: str, error: DalifError, reason: str | None = None) -> NodeVerdict:
    return NodeVerdict(name, kind, "unsupported", reason=reason or error.message, code=error.code)


def _refused(refusal: Refusal) -> NodeVerdict:
    return NodeVerdict(
        refusal.path, refusal.kind, "unsupported", reason=refusal.reason, code=refusal.code, where=refusal.where,
        source=refusal.source, lines=refusal.lines,
    )  # fmt: skip


def _in_users_words(row: NodeVerdict, refusal: Refusal | None) -> NodeVerdict:
    """What stands for a refusal has a name of ours; the user knows the module or the line."""
    return row if refusal is None else replace(row, name=refusal.path or refusal.where or "")


def _not_reached(module: torch.nn.Module, findings: Sequence[NodeVerdict]) -> list[NodeVerdict]:
    """The layers of a module whose capture ended early."""
    known = {finding.name for finding in findings}
    last = findings[-1]
    why = f"the capture ends at {last.where or last.name or 'the module itself'}"
    return [
        NodeVerdict(name, type(child).__name__, "unjudged", reason=why)
        for name, child in module.named_modules()
        if name and name not in known and next(child.children(), None) is None
    ]


def _merged(findings: Sequence[NodeVerdict], rows: Sequence[NodeVerdict]) -> list[NodeVerdict]:
    """`rows`, with what was found of a node in its place, and before them what belongs to none."""
    named = {finding.name: finding for finding in findings if finding.name}
    placed = {row.name for row in rows} & named.keys()
    return [*(f for f in findings if f.name not in placed), *(named.get(row.name, row) for row in rows)]


def _written(name: str, kind: str, folded: SpikingGraph, file: Any) -> NodeVerdict:
    """What became of a node that was converted."""
    said = [line.removeprefix(f"{name}: ") for line in folded.history if line.startswith(f"{name}: ")]
    form = _form(name, file) if name in folded else None
    becomes = "; ".join([*said, *([form] if form else [])]) or None
    return NodeVerdict(name, kind, "changed" if said else "ok", becomes)


def _form(name: str, file: Any) -> str | None:
    """What a node is called in the file's own terms."""
    nodes = getattr(file, "nodes", None)
    if isinstance(nodes, Mapping):  # NIR
        halves = [f"{name}.high", f"{name}.low"]  # of a layer in an exact file
        found = [key for key in (name, *halves) if key in nodes]
        called = f" ({', '.join(found)})" if found == halves else ""
        return f"NIR {type(nodes[found[0]]).__name__}{called}" if found else None
    graph = getattr(file, "graph", None)
    if graph is None:
        return None
    kinds = [node.op_type for node in graph.node if node.name == name or node.name.startswith(f"{name}/")]
    return f"ONNX {', '.join(dict.fromkeys(kinds))}" if kinds else None
