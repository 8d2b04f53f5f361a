"""dalif-run: data through a model or an exported file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dalif_deploy.cli.common import PATH, Talk, force_option, load_options, loading_options, main, output_options

EXAMPLES = """
\b
Examples:
  dalif-run net.onnx --data test.npz
  dalif-run net.nir --data test.npz --runtime norse -o out.npz --spikes
"""


@click.command("dalif-run", epilog=EXAMPLES)
@click.argument("model", metavar="EXPORTED|MODEL", type=PATH)
@click.option(
    "--data",
    required=True,
    type=PATH,
    help="Inputs, .npz with `inputs` and perhaps `labels`, or .npy.",
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
@force_option
@loading_options
@output_options
def command(
    model: Path, data: Path, runtime: str | None, spikes: bool, output: Path | None, as_json: bool, force: bool,
    quiet: bool, verbose: int, **rest: Any,
) -> int:  # fmt: skip
    """Run data through an EXPORTED file or a MODEL and say what it answers.

    Exit status: 0 it ran; 1 the runtime cannot run this exactly; 2 unusable input.
    """
    from dalif_deploy.deploy import read_data
    from dalif_deploy.deploy.data import rounded_inputs
    from dalif_deploy.deploy.files import check_output, check_suffix
    from dalif_deploy.deploy.running import open_for_run, summarised, write_results
    from dalif_deploy.report.terminal import print_run

    talk = Talk(quiet=quiet)
    options = load_options(rest)
    if spikes and output is None:
        raise click.UsageError("--spikes needs -o OUT.npz, where the spikes go")
    if output is not None:
        check_output(output, model=model, force=force, data=data)
        check_suffix(output, ".npz", what="dalif-run -o", strict=True)
    inputs = read_data(data)
    opened = open_for_run(model, runtime=runtime, options=options, data=inputs)
    result = summarised(opened, inputs, keep_spikes=spikes, progress=talk.progress)
    if output is not None:
        write_results(result, output)
    # After the work, so that a refusal is the only line.
    for note in (*rounded_inputs(inputs), *opened.notes, f"runtime: {opened.runtime.description}"):
        talk.note(note)
    if as_json:
        click.echo(json.dumps(result.as_json(output)))
    else:
        print_run(result, output)
    return 0


run = main(command)
