"""dalif-run: data through a model or an exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dalif_deploy.cli.common import PATH, Talk, force_option, load_options, loading_options, main, output_options
from dalif_deploy.cli.events import event_options, event_seconds, given_data, take_event_options

EXAMPLES = """
\b
Examples:
  dalif-run net.onnx --data test.npz
  dalif-run net.nir --data test.npz --runtime norse -o out.npz --spikes
  dalif-run net.onnx --data recording.aedat4 --bin duration:1000
"""


@click.command("dalif-run", epilog=EXAMPLES)
@click.argument("model", metavar="EXPORTED|MODEL", type=PATH)
@click.option(
    "--data",
    required=True,
    type=PATH,
    help="Inputs, .npz with `inputs` and perhaps `labels`, or .npy; or event-camera recordings, with --bin.",
)
@click.option("--runtime", metavar="NAME", help="Default: onnxruntime for an .onnx, events otherwise.")
@click.option("--spikes", is_flag=True, help="Also write every layer's spikes.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUT.npz",
    help="Write logits [N, K], predictions [N], rates.<layer>, and with --spikes spikes.<layer> [N, T, ...].",
)
@click.option(
    "--event-data",
    type=PATH,
    metavar="OUT.npz",
    help="Write every layer's spikes in the layout of nir.EventData: idx and time [N, E], n_neurons, t_max.",
)
@click.option(
    "--event-dt", type=float, metavar="SECONDS", help="How long a timestep lasts there; --bin duration says it too."
)
@force_option
@event_options
@loading_options
@output_options
def command(
    model: Path, data: Path, runtime: str | None, spikes: bool, output: Path | None, event_data: Path | None,
    event_dt: float | None, as_json: bool, force: bool, quiet: bool, verbose: int, **rest: Any,
) -> int:  # fmt: skip
    """Run data through an EXPORTED file or a MODEL and say what it answers.

    Exit status: 0 it ran; 1 the runtime cannot run this exactly; 2 unusable input.
    """
    from dalif_deploy.deploy.data import rounded_inputs
    from dalif_deploy.deploy.event_files import write_event_data
    from dalif_deploy.deploy.files import check_output, check_suffix
    from dalif_deploy.deploy.running import open_for_run, summarised, write_results
    from dalif_deploy.report.terminal import print_run

    talk = Talk(quiet=quiet)
    options = load_options(rest)
    binning = take_event_options(rest)
    if spikes and output is None:
        raise click.UsageError("--spikes needs -o OUT.npz, where the spikes go")
    if event_dt is not None and event_data is None:
        raise click.UsageError("--event-dt needs --event-data OUT.npz, whose times it gives")
    if output is not None and event_data is not None and output.absolute() == event_data.absolute():
        raise click.UsageError(f"-o and --event-data name one file, {output}; give each its own")
    for path, option in ((output, "-o"), (event_data, "--event-data")):
        if path is not None:
            check_output(path, model=model, force=force, data=data)
            check_suffix(path, ".npz", what=f"dalif-run {option}", strict=True)
    dt = 0.0 if event_data is None else event_seconds(event_dt, binning)
    inputs = given_data(data, binning, model, options)
    assert inputs is not None  # click requires --data
    opened = open_for_run(model, runtime=runtime, options=options, data=inputs)
    result = summarised(opened, inputs, keep_spikes=spikes or event_data is not None, progress=talk.progress)
    if event_data is not None:
        write_event_data(result.spikes, dt, event_data)
    if output is not None:
        write_results(result, output, spikes=spikes)
    # After the work, so that a refusal is the only line.
    for note in (*inputs.notes, *rounded_inputs(inputs), *opened.notes, f"runtime: {opened.runtime.description}"):
        talk.note(note)
    if as_json:
        binned = {} if inputs.binning is None else {"binning": inputs.binning.as_json()}
        click.echo(json.dumps({**result.as_json(output), **binned}))
    else:
        print_run(result, output)
    if event_data is not None:
        talk.note(f"{event_data}: written, steps of {dt:g} s")
    return 0


run = main(command)
