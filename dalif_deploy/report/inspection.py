"""What a person reads of an inspection: the layers, the rules they share, and what they cost, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dalif_deploy.deploy.inspected import LEAKS, InspectedLayer, Inspection, leak_of, time_constant
from dalif_deploy.nodes import Array

SIGN = {"ge": ">=", "gt": ">"}
LOW, HIGH = 0.02, 0.4
"""Between these a layer fires as trained networks do; outside the rate is coloured."""


@dataclass(frozen=True)
class _Column:
    heading: str
    cell: Callable[[InspectedLayer], str | Text]
    left: bool = False


def print_inspection(found: Inspection, console: Console | None = None) -> None:
    """The whole inspection on stdout, in as many columns as the terminal has room for."""
    console = console or Console(highlight=False)
    for line in _headlines(found):
        _say(console, line)
    columns, shared = _fitting(console, found)
    if shared:
        said = {"fires at": "fire at", "reset": "are reset"}
        _say(console, f"all layers {' and '.join(f'{said[c.heading]} {c.cell(found.layers[0])}' for c in shared)}")
    console.print(_layer_table(found, columns))
    for leak in dict.fromkeys(leak_of(layer.beta) for layer in found.layers):
        _say(console, f"{leak}: {LEAKS[leak]}", style="dim")
    if found.cost is not None:
        console.print(_cost_table(found))
        _say(console, "one sample, all timesteps; mJ: 4.6 pJ a MAC, 0.9 pJ an AC (45 nm, float32)", style="dim")
    if found.vacuous:
        _say(console, f"fired never or always: {', '.join(found.vacuous)}", style="bold red")
    for note in found.notes:
        _say(console, note)


def _fitting(console: Console, found: Inspection) -> tuple[list[_Column], list[_Column]]:
    """The columns of the layer table that fit, and those left out because all layers share what they say."""
    columns = _columns(found)
    shared: list[_Column] = []
    # What goes first is least missed: the JSON has it all.
    for heading in ("MACs", "ACs", "fires at", "reset", "neurons"):
        if _width(console, _layer_table(found, columns)) <= console.width:
            break
        for column in [c for c in columns if c.heading == heading]:
            same = len({str(column.cell(layer)) for layer in found.layers}) == 1
            if heading in ("fires at", "reset"):
                if not same:
                    continue
                shared.append(column)
            columns.remove(column)
    return columns, shared


def _width(console: Console, table: Table) -> int:
    """How wide a table would like to be."""
    return console.measure(table, options=console.options.update(max_width=10_000)).maximum


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, soft_wrap=True)


def _headlines(found: Inspection) -> list[str]:
    kind = {"model": "training graph", "nir": "NIR file, folded", "onnx": "ONNX file, folded"}[found.kind]
    shape = " x ".join(map(str, found.input.shape))
    time = "of its own at every timestep" if found.input.temporal else "the same at every timestep"
    neurons = sum(layer.neurons for layer in found.layers)
    size = f"{neurons:,} neurons in {len(found.layers)} layers"
    if found.params is not None:
        size = f"{found.params:,} parameters besides alpha and beta, {size}"
    data = "no data, nothing was run: firing rates, ACs and energy are not known (give --data)"
    if found.samples is not None:
        data = f"rates: {found.samples:,} sample{'s' if found.samples > 1 else ''}, {found.origin}"
    return [
        f"{found.source}: {kind}, T = {found.input.timesteps}, readout {found.readout}",
        f"input {shape}, {time}; {found.input.encoding.kind} encoding",
        size,
        data,
    ]


def _columns(found: Inspection) -> list[_Column]:
    layers = found.layers
    columns = [
        _Column("layer", lambda layer: layer.name, left=True),
        _Column("shape", lambda layer: "x".join(map(str, layer.shape))),
        _Column("neurons", lambda layer: f"{layer.neurons:,}"),
    ]
    if any(layer.parameters is not None for layer in layers):
        columns.append(_Column("parameters", lambda layer: _whole(layer.parameters)))
    columns += [
        _Column("alpha", lambda layer: _fixed(layer.alpha)),
        _Column("beta", lambda layer: _fixed(layer.beta)),
        _Column("tau", _tau),
        _Column("fires at", lambda layer: f"V {SIGN[layer.fires_at]} {_range(layer.v_threshold)}"),
        _Column("reset", lambda layer: f"to {_range(layer.v_reset)}" if layer.reset == "hard" else "V - v_th"),
    ]
    if any(layer.rate is not None for layer in layers):
        columns.append(_Column("rate", _rate))
    if found.cost is not None:
        columns.append(_Column("MACs", lambda layer: _short(layer.macs)))
        if found.samples is not None:
            columns.append(_Column("ACs", lambda layer: _short(layer.acs)))
    return columns


def _layer_table(found: Inspection, columns: Iterable[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = list(columns)
    for column in columns:
        if column.left:
            table.add_column(column.heading, overflow="fold", min_width=6)
        else:
            table.add_column(column.heading, justify="right", no_wrap=True)
    for layer in found.layers:
        cells = [column.cell(layer) for column in columns]
        table.add_row(*(cell if isinstance(cell, Text) else escape(cell) for cell in cells))
    after = [node for node in found.nodes if node.name in found.after_layers]
    if sum(node.parameters for node in after):
        names = ", ".join(node.name for node in after if node.parameters)
        known = {
            "layer": f"(answer) {names}",
            "parameters": f"{sum(node.parameters for node in after):,}",
            "MACs": _short(sum(node.macs for node in after)),
        }
        table.add_section()
        table.add_row(*(escape(known.get(column.heading, "")) for column in columns), style="dim")
    return table


def _cost_table(found: Inspection) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("one sample", no_wrap=True)
    measured = found.samples is not None
    headings = ["MACs", "ACs", "FLOPs", "parameters", "mJ"]
    for heading in headings if measured else ["MACs", "FLOPs", "parameters"]:
        table.add_column(heading, justify="right", no_wrap=True)

    def add(title: str, cells: dict[str, str], style: str | None = None) -> None:
        table.add_row(title, *(cells.get(str(column.header), "") for column in table.columns[1:]), style=style)

    for title, cost in (("trained", found.cost), ("folded", found.folded)):
        if cost is None or (title == "trained" and found.kind == "nir"):
            continue
        cells = {"MACs": f"{cost.macs:,}", "FLOPs": f"{cost.flops:,}", "parameters": f"{cost.params:,}"}
        energy = "" if cost.energy_mj is None else f"{cost.energy_mj:.4f}"
        add(title, {**cells, "ACs": _whole(cost.acs), "mJ": energy})
    if (driven := found.event_driven) is not None:
        add("event-driven", {"MACs": f"{driven.macs:,}", "ACs": _whole(driven.synaptic_operations)})
    if found.syops is not None and found.neurobench is not None:
        table.add_section()
        syops, bench = found.syops, found.neurobench
        cells = {"MACs": f"{syops.macs:,}", "ACs": _whole(syops.acs), "FLOPs": f"{syops.total:,}"}
        add("syops", cells, "dim")
        cells = {"MACs": _whole(bench.effective_macs), "ACs": _whole(bench.effective_acs), "FLOPs": f"{bench.dense:,}"}
        add("NeuroBench", cells, "dim")
    return table


def _whole(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _short(value: int | None) -> str:
    """Three digits and a unit; whole numbers are in the JSON."""
    if value is None:
        return ""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            digits = f"{value / size:#.3g}" if value < 999.5 * size else f"{value / size:,.0f}"
            return f"{digits.rstrip('.')} {unit}"
    return f"{value}"


def _fixed(values: Array, digits: int = 4) -> str:
    """With so many digits after the point; of several values the lowest and the highest, with half as many."""
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.{digits}f}" if low == high else f"{low:.{digits // 2}f} to {high:.{digits // 2}f}"


def _range(values: Array) -> str:
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.4g}" if low == high else f"{low:.3g} to {high:.3g}"


def _tau(layer: InspectedLayer) -> str:
    tau = time_constant(layer.beta)
    return leak_of(layer.beta) if tau is None else _fixed(tau, 2)


def _rate(layer: InspectedLayer) -> Text:
    rate = layer.rate
    if rate is None:
        return Text("")
    style = "bold red" if rate in (0.0, 1.0) else "yellow" if not LOW <= rate <= HIGH else ""
    return Text(f"{rate:.1%}", style=style)
