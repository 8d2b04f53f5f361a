"""dalif-export: a trained model to a file."""

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
  dalif-export --to onnx model.pt
  dalif-export --to nir model.pt -o net.nir --force
  dalif-export --to onnx --outputs spikes --opset 20 model.pt
  dalif-export --to onnx --precision exact model.pt -o exact.onnx
  dalif-export --to nir --nir-dialect snntorch --check model.pt
  dalif-export --to pt --model mynet:build --model-arg depth=20 \\
               -T 4 --input-shape 3,32,32 checkpoint.pth
"""


@click.command("dalif-export", epilog=EXAMPLES)
@click.argument("model", type=PATH)
@click.option(
    "--to", "target", required=True, metavar="onnx|nir|pt", help="What to write; pt is a model.pt, as save writes it."
)
@click.option("-o", "--output", type=PATH, help="Where to; default: MODEL's stem, beside it.")
@click.option(
    "--graph",
    type=click.Choice(["unrolled"]),
    default="unrolled",
    show_default=True,
    help="How an ONNX file holds time.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "exact", "exact64"]),
    default="float32",
    show_default=True,
    help="exact: all sums are exact, so that spikes and logits are the same bits on every backend; exact64: with a "
    "float64 membrane too, as the float64 reference. For NIR: exact, with --nir-dialect snntorch or sinabs.",
)
@click.option("--opset", type=int, metavar="N", help="ONNX opset, 18 or higher.  [default: 18]")
@click.option(
    "--outputs",
    type=click.Choice(["logits", "spikes"]),
    help="Whether an ONNX file also gives every layer's spikes.  [default: logits]",
)
@click.option(
    "--nir-dialect",
    "dialect",
    type=click.Choice(["canonical", "norse", "spikingjelly", "snntorch", "sinabs"]),
    help="The form of a NIR file; a simulator's own decides V = v_th there as the network does.  [default: canonical]",
)
@click.option(
    "--verify/--no-verify",
    "verified",
    default=True,
    show_default=True,
    help="Compare the written file with the model, spike by spike, before it takes its name.",
)
@click.option(
    "--data",
    type=PATH,
    help="Inputs to verify on, .npz or .npy, or event-camera recordings, with --bin; default: the samples stored "
    "with the model.",
)
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Verify on at most N samples.")
@click.option(
    "--check",
    "checked",
    is_flag=True,
    help="Write nothing; say of every node of the model whether this target takes it, and why not.",
)
@force_option
@event_options
@loading_options
@output_options
def command(
    model: Path, target: str, output: Path | None, graph: str, precision: str, verified: bool, data: Path | None,
    samples: int | None, checked: bool, as_json: bool, force: bool, quiet: bool, verbose: int, **rest: Any,
) -> int:  # fmt: skip
    """Write a trained DA-LIF network, MODEL, as ONNX or NIR.

    MODEL is a model.pt (dalif_deploy.save), a checkpoint with --model, or a .nir file; it is
    recognised by its content. Alpha and BatchNorm are folded into the weights, beta into the leak; every step
    of that is proved on sample inputs, the file is read back, and it is verified before it takes its name.

    Exit status: 0 written, or with --check nothing stands in the way; 1 the model cannot be exported exactly, or the
    file diverges; 2 unusable input.
    """
    from dalif_deploy.deploy import check, export
    from dalif_deploy.report.checked import print_check
    from dalif_deploy.report.terminal import one_line

    talk = Talk(quiet=quiet)
    options = load_options(rest)
    binning = take_event_options(rest)
    given = {key: value for key, value in rest.items() if value is not None}
    if checked:
        if output is not None or force:
            raise click.UsageError("--check writes nothing; leave out -o and --force")
        found = check(
            model, to=target, options=options, data=given_data(data, binning, model, options, samples), samples=samples,
            verified=verified, precision=precision, **given,
        )  # fmt: skip
        for note in found.notes:
            talk.note(note)
        if as_json:
            click.echo(json.dumps(found.as_json()))
        else:
            print_check(found)
        return 0 if found.supported else 1
    result = export(
        model, output, to=target, options=options, data=given_data(data, binning, model, options, samples),
        samples=samples, verified=verified, force=force, precision=precision, progress=talk.progress, **given,
    )  # fmt: skip
    for note in result.notes:
        talk.note(note)
    if as_json:
        click.echo(json.dumps(result.as_json()))
        return 0
    verdict = "not verified" if result.verdict is None else one_line(result.verdict)
    click.echo(f"{result.output}: written, {result.output.stat().st_size:,} bytes; {verdict}")
    return 0


run = main(command)
