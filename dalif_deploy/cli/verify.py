"""dalif-verify: does what was exported fire as what was trained?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dalif_deploy.cli.common import PATH, Talk, force_option, load_options, loading_options, main, output_options
from dalif_deploy.cli.events import event_options, given_data, take_event_options

EXAMPLES = """
\b
Examples:
  dalif-verify model.pt net.onnx net.nir
  dalif-verify model.pt net.onnx --data test.npz --samples 100
  dalif-verify model.pt net.nir --runtime norse --strict --json
  dalif-verify model.pt net.onnx --data recordings/ --bin duration:1000
  dalif-verify model.pt net.onnx --data test.npz -o results.npz
  dalif-verify --from results.npz --strict
  dalif-verify model.pt --from chip.npz --data test.npz
  dalif-verify --check-certificate exact.onnx
  dalif-verify --probe onnxruntime
"""


@click.command("dalif-verify", epilog=EXAMPLES)
@click.argument("model", type=PATH, required=False)
@click.argument("exported", nargs=-1, type=PATH)
@click.option(
    "--data",
    type=PATH,
    help="Inputs, .npz with `inputs` and perhaps `labels`, or .npy, or event-camera recordings, with --bin; "
    "default: the samples stored with the model.",
)
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="At most N samples.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="Only this runtime; repeatable. Default: torch, events, and every installed one that reads a given file.",
)
@click.option(
    "--from",
    "recordings",
    multiple=True,
    type=PATH,
    metavar="FILE.npz",
    help="Decide on recorded spikes: a run of the same data elsewhere, for instance on a chip, in the form that "
    "`dalif-run --spikes -o` writes (repeatable); or what -o wrote, which needs no MODEL and runs nothing.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="RESULTS.npz",
    help="Store what was compared: spikes, logits, margins and bounds, and the hash of the inputs.",
)
@click.option("--keep-inputs", is_flag=True, help="Store the inputs too, with -o.")
@force_option
@click.option(
    "--check-certificate",
    "certified",
    type=PATH,
    metavar="FILE",
    help="Recompute the certificate of an exact file, ONNX or NIR, from the file alone; needs no MODEL.",
)
@click.option(
    "--probe",
    "probed",
    metavar="RUNTIME",
    help="Whether this runtime is fit for bit-exact use on this machine, and why not; needs no MODEL.",
)
@click.option("--strict", is_flag=True, help="Exit 1 if any spike differs, even where rounding explains it.")
@event_options
@loading_options
@output_options
def command(
    model: Path | None, exported: tuple[Path, ...], data: Path | None, samples: int | None,
    runtimes: tuple[str, ...], recordings: tuple[Path, ...], output: Path | None, keep_inputs: bool, force: bool,
    certified: Path | None, probed: str | None, strict: bool, as_json: bool, quiet: bool, verbose: int, **rest: Any,
) -> int:  # fmt: skip
    """Compare EXPORTED files, and the runtimes, with the trained MODEL, spike by spike.

    The reference is the training graph in float64. Every spike of every neuron at every timestep is compared;
    where they differ, each neuron-step is judged on the candidate's own history, and the first ones at fault
    are named with potential and margin.

    Exit status: 0 no divergence (rounding included, unless --strict); 1 divergent; 2 unusable input.
    """
    from dalif_deploy.deploy import check_certificate, decide_again, judge_again, probe, verify
    from dalif_deploy.deploy.exported import answered_by_files
    from dalif_deploy.deploy.results import is_results
    from dalif_deploy.report.terminal import print_certificate, print_probe, print_verdict

    if probed is not None:
        if model is not None or recordings or certified is not None:
            raise click.UsageError("--probe takes the name of a runtime alone, without MODEL")
        result = probe(probed)
        if as_json:
            click.echo(json.dumps(result.as_json()))
        else:
            print_probe(result)
        return 0 if result.fit else 1
    if certified is not None:
        if model is not None:
            raise click.UsageError("--check-certificate takes the file alone, without MODEL")
        check = check_certificate(certified)
        if as_json:
            click.echo(json.dumps(check.as_json()))
        else:
            print_certificate(certified, check)
        return 0 if check.holds else 1
    talk = Talk(quiet=quiet)
    options = load_options(rest)
    binning = take_event_options(rest)
    if keep_inputs and output is None:
        raise click.UsageError("--keep-inputs needs -o RESULTS.npz, where the inputs go")
    if stored := [path for path in recordings if is_results(path)]:
        if len(recordings) > 1 or exported or runtimes or samples is not None or output is not None:
            raise click.UsageError(
                f"--from {stored[0]}: results are decided alone; beside them give only MODEL and --data"
            )
        given = given_data(data, binning, model, options)
        if model is None and given is not None:
            raise click.UsageError(f"--data is of no use without MODEL: {stored[0]} is decided from its own bounds")
        verdict = (
            decide_again(stored[0], progress=talk.progress) if model is None
            else judge_again(stored[0], model, data=given, options=options, progress=talk.progress)
        )  # fmt: skip
    elif model is None:
        raise click.UsageError("MODEL is missing: give the trained model that the files came from")
    else:
        options = answered_by_files(model, options, exported)  # events are binned to a file's timesteps
        verdict = verify(
            model, *exported, data=given_data(data, binning, model, options, samples), samples=samples,
            runtimes=runtimes or None, recordings=recordings, options=options, progress=talk.progress,
            results=output, keep_inputs=keep_inputs, force=force,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(verdict.as_json()))
    else:
        print_verdict(verdict)
    return 0 if verdict.passes(strict=strict) else 1


run = main(command)
