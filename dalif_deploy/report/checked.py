"""What a person reads of a check: every node in a table, and below it what stands in the way, with the mend."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dalif_deploy.deploy.checking import CheckResult, NodeVerdict

STYLE = {"ok": "green", "changed": "cyan", "unsupported": "bold red", "unjudged": "yellow"}


def print_check(result: CheckResult, console: Console | None = None) -> None:
    """The whole check on stdout."""
    console = console or Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("becomes", overflow="fold")
    for node in result.nodes:
        style = STYLE[node.verdict]
        table.add_row(
            escape(node.name or "(the network)"), escape(node.kind), f"[{style}]{node.verdict}[/]", escape(_cell(node))
        )
    console.print(table)
    reasons: dict[tuple[object, ...], list[NodeVerdict]] = {}
    for node in result.nodes:
        if node.verdict == "unsupported":
            reasons.setdefault((node.code, node.reason, node.where), []).append(node)
    for nodes in reasons.values():
        console.print(_why(nodes), markup=False, soft_wrap=True)
    style = "green" if result.supported else "bold red"
    console.print(one_line(result), style=style, markup=False, soft_wrap=True)


def one_line(result: CheckResult) -> str:
    """The answer in one line."""
    chosen = [f"--{key.replace('dialect', 'nir-dialect')} {value}" for key, value in result.options.items()]
    if result.precision != "float32":
        chosen.insert(0, f"--precision {result.precision}")
    target = " ".join([f"--to {result.target}", *chosen])
    total = len(result.nodes)
    if result.supported:
        return f"supported: {target} takes all {total} nodes, {result.count('changed')} of them changed"
    unjudged = result.count("unjudged")
    rest = f", {unjudged} could not be judged" if unjudged else ""
    return f"not supported: {result.count('unsupported')} of {total} stand in the way of {target}{rest}"


def _cell(node: NodeVerdict) -> str:
    if node.verdict == "unsupported":
        code = "" if node.code is None else f"[{node.code.identifier}]"
        return " ".join(part for part in (code, node.where) if part)
    return node.becomes or node.reason or ""


def _why(nodes: list[NodeVerdict]) -> str:
    """One reason, with all nodes that it holds of."""
    first = nodes[0]
    names = ", ".join(f"'{node.name}'" if node.name else "the network" for node in nodes)
    code = "" if first.code is None else f"[{first.code.identifier}] "
    where = "" if first.where is None else f"\n    {first.where}" + (f": {first.source}" if first.source else "")
    lines = "".join(f"\n    {line}" for line in first.lines)
    return f"{names} ({first.kind}): {code}{first.reason}{where}{lines}"
