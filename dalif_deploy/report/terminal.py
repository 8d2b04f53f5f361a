"""What a person reads in the terminal: the verdict as a table, its first differences, and one line of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dalif_deploy.certificate import CertificateCheck
from dalif_deploy.deploy.running import RunResult
from dalif_deploy.deploy.verifying import READ_BACK_ONLY
from dalif_deploy.equivalence import Cause, Comparison, NeuronStepFinding, Outcome, RuntimeComparison, Verdict
from dalif_deploy.nodes import Array
from dalif_deploy.runtimes.probe import ProbeResult

SHOWN_ORIGINS = 5
SHOWN_STEPS = 12
SHOWN_CONTENTS = 12
ONLY_SAMPLES = "the file is not built as dalif-export builds it, so only the samples speak for it"
LINKS = {"module": "module > graph", "folding": "graph > folded"}
STYLE = {Outcome.EXACT: "green", Outcome.ROUNDING: "yellow", Outcome.UNPROVED: "red", Outcome.DIVERGENT: "bold red"}


def one_line(verdict: Verdict) -> str:
    """The verdict in one line: outcome, what was compared, by whom, tensors that differ, layers that prove nothing."""
    names = ", ".join(dict.fromkeys(runtime.comparison.name for runtime in verdict.runtimes)) or "no runtime"
    spikes = sum(runtime.comparison.spikes_differing for runtime in verdict.runtimes)
    compared = sum(runtime.comparison.spikes_compared for runtime in verdict.runtimes)
    text = f"{verdict.outcome}: {spikes:,} of {compared:,} spikes differ ({verdict.samples} samples; {names})"
    tensors = dict.fromkeys(difference.name for runtime in verdict.runtimes for difference in runtime.tensors_differing)
    if tensors:
        text += f"; tensors that differ: {', '.join(tensors)}"
    contents = list(dict.fromkeys(str(found) for runtime in verdict.runtimes for found in runtime.contents_differing))
    if contents:
        more = f", and {len(contents) - 1:,} more" if len(contents) > 1 else ""
        text += f"; contents that differ: {contents[0]}{more}"
    if any(runtime.rewritten for runtime in verdict.runtimes):
        text += f"; {ONLY_SAMPLES}"
    beyond = max((runtime.comparison.logits_beyond_bound for runtime in verdict.runtimes), default=0)
    if beyond:
        text += f"; logits of {beyond:,} samples are not what the spikes amount to"
    causes = dict.fromkeys(f"{r.cause.layer}: {r.cause.explanation.name}" for r in verdict.runtimes if r.cause)
    if causes:
        text += f"; cause: {', '.join(causes)}"
    compared_all = [*(link for link in verdict.links.values() if link), *(r.comparison for r in verdict.runtimes)]
    if suspects := dict.fromkeys(found.suspect for found in compared_all if found.suspect):
        text += f"; suspected: {', '.join(suspects)}"
    if verdict.vacuous:
        text += f"; vacuous: {', '.join(verdict.vacuous)} never or always fired"
    return "; ".join([text, *(note for note in verdict.notes if note.endswith(READ_BACK_ONLY))])


def print_verdict(verdict: Verdict, console: Console | None = None) -> None:
    """The whole verdict on stdout."""
    console = console or Console(highlight=False)
    labelled = verdict.accuracy is not None
    counted = any(runtime.synaptic_operations is not None for runtime in verdict.runtimes)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("compared", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("differing of\nneuron-steps", justify="right", no_wrap=True)
    table.add_column("certified\nsamples", justify="right")
    if labelled:
        table.add_column("accuracy", justify="right")
    if counted:
        table.add_column("SynOps\na sample", justify="right")
    for name, link in verdict.links.items():
        _add(table, LINKS.get(name, name), link, None, labelled=labelled, counted=counted)
    table.add_section()
    file = None
    for runtime in verdict.runtimes:
        if runtime.file != file and runtime.file is not None:
            table.add_section()
            table.add_row(Path(runtime.file).name, style="dim")
        file = runtime.file
        indent = "" if file is None else "  "
        _add(table, indent + runtime.comparison.name, runtime.comparison, runtime, labelled=labelled, counted=counted)
    console.print(
        f"reference: {verdict.reference}; {verdict.samples} samples, T = {verdict.timesteps}"
        + (f", accuracy {verdict.accuracy:.2%}" if verdict.accuracy is not None else ""),
        markup=False, soft_wrap=True,
    )  # fmt: skip
    console.print(table)
    console.print(_layers(verdict))
    _print_margins(console, verdict)
    for note in verdict.notes:
        console.print(note, markup=False, soft_wrap=True)
    for name, link in verdict.links.items():
        if link is not None:
            _print_suspect(console, f"link {name}", link)
            _print_origins(console, f"link {name}", link.origins)
    for file in dict.fromkeys(runtime.file for runtime in verdict.runtimes):
        _print_contents(console, next(runtime for runtime in verdict.runtimes if runtime.file == file))
    for runtime in verdict.runtimes:
        _print_runtime(console, runtime)
    console.print(one_line(verdict), style=STYLE[verdict.outcome], markup=False, soft_wrap=True)


def print_certificate(path: Path, check: CertificateCheck, console: Console | None = None) -> None:
    """What was recomputed of an exact file's certificate, layer by layer, and what is not as it says."""
    console = console or Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("form")
    for heading in ("grid 2^-k, k", "sums reach", "limit"):
        table.add_column(heading, justify="right")
    for layer in check.layers:
        low, high = min(layer.exponents, default=0), max(layer.exponents, default=0)
        grid = f"{low}" if low == high else f"{low} to {high}"
        table.add_row(layer.node, layer.form, grid, f"{layer.largest:,}", f"2^{layer.limit.bit_length() - 1}")
    console.print(table)
    for finding in check.findings:
        console.print(finding, markup=False, soft_wrap=True)
    word = "holds: every sum is exact" if check.holds else "does not hold"
    console.print(f"{path}: the certificate ({check.precision}) {word}", markup=False, soft_wrap=True)


def print_probe(result: ProbeResult, console: Console | None = None) -> None:
    """What probing a runtime found, on stdout."""
    console = console or Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("checked", overflow="fold")
    table.add_column("found", no_wrap=True)
    table.add_column("how", overflow="fold")
    for check in result.checks:
        found = "[green]fit[/]" if check.fit else ("[bold red]not fit[/]" if check.required else "[yellow]not fit[/]")
        name = check.name if check.required else f"{check.name} (not used)"
        table.add_row(escape(name), found, escape(check.detail))
    console.print(f"{result.description}; {result.machine}", markup=False, soft_wrap=True)
    console.print(table)
    console.print(result.one_line, style="green" if result.fit else "bold red", markup=False, soft_wrap=True)


def print_run(result: RunResult, output: Path | None, console: Console | None = None) -> None:
    """What a run gave, on stdout."""
    console = console or Console(highlight=False)
    names = result.class_names
    shown = [names[p] if p < len(names) else str(p) for p in result.predictions[:10].tolist()]
    more = ", ..." if len(result.predictions) > 10 else ""
    console.print(f"{len(result.predictions)} samples in {result.runtime}", markup=False)
    console.print(f"predictions: {', '.join(shown)}{more}", markup=False, soft_wrap=True)
    console.print(
        "firing rate: " + ", ".join(f"{name} {rate:.1%}" for name, rate in result.rates.items()),
        markup=False, soft_wrap=True,
    )  # fmt: skip
    if result.synaptic_operations is not None:
        console.print(f"synaptic operations: {result.synaptic_operations:,.0f} per sample", markup=False)
    if result.accuracy is not None:
        console.print(f"accuracy: {result.accuracy:.2%}", markup=False)
    if output is not None:
        console.print(f"{output}: written", markup=False, soft_wrap=True)


def _add(
    table: Table, title: str, comparison: Comparison | None, runtime: RuntimeComparison | None,
    *, labelled: bool, counted: bool,
) -> None:  # fmt: skip
    if comparison is None:
        table.add_row(title, "not available")
        return
    outcome = comparison.outcome if runtime is None else runtime.outcome
    row = [
        title,
        f"[{STYLE[outcome]}]{outcome}[/]",
        f"{comparison.spikes_differing:,} / {comparison.spikes_compared:,}",
        f"{comparison.certified_samples:,} / {comparison.samples:,}",
    ]
    if labelled:
        row.append("" if runtime is None or runtime.accuracy is None else f"{runtime.accuracy:.2%}")
    if counted:
        operations = None if runtime is None else runtime.synaptic_operations
        row.append("" if operations is None else f"{operations:,.0f}")
    table.add_row(*row)


def _print_margins(console: Console, verdict: Verdict) -> None:
    """How near to their thresholds the neurons came, and how many neuron-steps rounding could decide either way."""
    # Of the folding first: a module that fired when it was saved did so on data of its own.
    links = (verdict.links.get("folding"), verdict.links.get("module"))
    closest = next((link.closest for link in links if link is not None and link.closest), None)
    if closest is not None:
        console.print(f"smallest margin: {closest.in_words}", markup=False, soft_wrap=True)
    most = max((len(runtime.comparison.uncertain) for runtime in verdict.runtimes), default=0)
    if most:
        console.print(
            f"uncertain neuron-steps, where float32 rounding could decide either way: at most {most:,} in a runtime "
            "(--json lists them)",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def _layers(verdict: Verdict) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for heading in ("alpha", "beta", "firing rate"):
        table.add_column(heading, justify="right")
    for name, rate in verdict.rates.items():
        gains = verdict.gains[name]
        table.add_row(name, _shown(gains.alpha), _shown(gains.beta), f"{rate:.1%}")
    return table


def _shown(values: Array) -> str:
    if values.size == 1:
        return f"{values.item():.4f}"
    return f"{values.min():.4f} to {values.max():.4f}"


def _print_runtime(console: Console, runtime: RuntimeComparison) -> None:
    title = runtime.comparison.name + (f" on {runtime.file}" if runtime.file else "")
    for note in runtime.notes:
        console.print(f"{title}: {note}", markup=False, soft_wrap=True)
    if runtime.definition_differing is not None:
        bits = f"{runtime.definition_differing:,} spikes and logits differ from" if runtime.definition_differing else (
            "every spike and logit is bit for bit that of"
        )  # fmt: skip
        console.print(f"{title}: {bits} its definition in exact arithmetic", markup=False, soft_wrap=True)
    if runtime.comparison.logits_beyond_bound:
        console.print(
            f"{title}: the logits of {runtime.comparison.logits_beyond_bound:,} samples are not what its own spikes "
            "amount to: the readout differs",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    for difference in runtime.tensors_differing:
        where = f", most at {list(difference.index)} by {difference.largest:.3g}" if difference.elements else ""
        count = f" ({difference.elements} of them)" if difference.elements else ""
        console.print(
            f"{title}: tensor {difference.name}: {difference.problem}{count}{where}", markup=False, soft_wrap=True
        )
    _print_suspect(console, title, runtime.comparison)
    if runtime.cause is not None:
        _print_cause(console, title, runtime.cause)
    _print_origins(console, title, runtime.comparison.origins)


def _print_suspect(console: Console, title: str, comparison: Comparison) -> None:
    if comparison.suspect is not None:
        console.print(
            f"{title}: suspected: {comparison.suspect}: V equals v_th exactly at every one of the "
            f"{len(comparison.origins):,} differences, and no tie was decided as the model decides it; rounding would "
            "take some of them either way",
            markup=False, soft_wrap=True,
        )  # fmt: skip


def _print_cause(console: Console, title: str, cause: Cause) -> None:
    """The cause in one line, what else would explain it, and the first neuron that shows it, step by step."""
    first = cause.earliest[0]
    neuron = f"neuron {list(first.index)} of sample {first.sample}"
    count = f"{cause.contradictions:,} contradiction{'s' if cause.contradictions > 1 else ''}"
    how = "explains" if cause.explained else "of"
    console.print(
        f"{title}: layer '{cause.layer}', first at step {first.t}, {neuron}: {cause.explanation.name}: "
        f"{cause.explanation.detail}; {how} all {count} of the layer in {len(cause.samples)} "
        f"sample{'s' if len(cause.samples) > 1 else ''}",
        style="bold", markup=False, soft_wrap=True,
    )  # fmt: skip
    for other in cause.also:
        console.print(f"{title}: would explain it too: {other.name}: {other.detail}", markup=False, soft_wrap=True)
    console.print(
        f"{title}: '{cause.layer}', {neuron}, on the spikes that it took and fired:", markup=False, soft_wrap=True
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("step", "V", "v_th", "reference", "candidate"):
        table.add_column(heading, justify="right")
    steps = cause.trajectory[: max(SHOWN_STEPS, first.t + 2)][-SHOWN_STEPS:]
    for step in steps:
        fired = ["fires" if fires else "-" for fires in (step.reference, step.candidate)]
        style = "red" if step.reference != step.candidate else None
        table.add_row(f"{step.t}", f"{step.potential:.9g}", f"{step.threshold:.9g}", *fired, style=style)
    console.print(table)


def _print_contents(console: Console, runtime: RuntimeComparison) -> None:
    """What differs in a file, whatever runs it."""
    if runtime.rewritten:
        console.print(f"{runtime.file}: {ONLY_SAMPLES}: export it again from the model", markup=False, soft_wrap=True)
    for found in runtime.contents_differing[:SHOWN_CONTENTS]:
        console.print(f"{runtime.file}: {found}", markup=False, soft_wrap=True)
    if (more := len(runtime.contents_differing) - SHOWN_CONTENTS) > 0:
        console.print(f"{runtime.file}: and {more:,} more (--json lists all)", markup=False)


def _print_origins(console: Console, title: str, origins: Sequence[NeuronStepFinding]) -> None:
    for origin in origins[:SHOWN_ORIGINS]:
        console.print(
            f"{title}: layer '{origin.layer}' step {origin.t} neuron {list(origin.index)} of sample {origin.sample} "
            f"{'fired' if origin.fired else 'did not fire'} at potential {origin.potential:.9g}, threshold "
            f"{origin.threshold:.9g}: margin {origin.margin:.3g} "
            f"{'within' if origin.within_bound else 'outside'} the rounding bound {origin.bound:.3g}",
            markup=False,
            soft_wrap=True,
        )
    if len(origins) > SHOWN_ORIGINS:
        console.print(f"{title}: and {len(origins) - SHOWN_ORIGINS:,} more (--json lists all)", markup=False)
