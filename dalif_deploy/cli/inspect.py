"""dalif-inspect: the layers of a network, how often they fire, and what they cost."""

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
  dalif-inspect model.pt
  dalif-inspect model.pt --data test.npz --plot rates.png
  dalif-inspect net.nir --data test.npz --json
  dalif-inspect checkpoint.pth --model mynet:build -T 4 --input-shape 3,32,32
"""


@click.command("dalif-inspect", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL|EXPORTED", type=PATH)
@click.option(
    "--data",
    type=PATH,
    help="Inputs to measure firing on, .npz or .npy, or event-camera recordings, with --bin; default: the spikes "
    "stored with a model.pt, else none.",
)
@click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Measure on at most N samples.")
@click.option("--plot", type=PATH, metavar="OUT.png", help="Draw every layer's firing rate over time.")
@force_option
@event_options
@loading_options
@output_options
def command(
    model: Path, data: Path | None, samples: int | None, plot: Path | None, as_json: bool, force: bool, quiet: bool,
    verbose: int, **rest: Any,
) -> int:  # fmt: skip
    """Say what is in a MODEL or an EXPORTED file: its layers, their neurons, and what a sample costs.

    MACs, FLOPs and parameters follow from the shapes, as the DA-LIF paper counts them. Firing rates, ACs and the
    energy are measured on data, or on the spikes stored with a model.pt; without either they are not known.

    Exit status: 0 it could be read; 1 a layer cannot be; 2 unusable input.
    """
    from dalif_deploy.deploy import inspect
    from dalif_deploy.deploy.files import check_output
    from dalif_deploy.report.inspection import print_inspection

    talk = Talk(quiet=quiet)
    options = load_options(rest)
    binning = take_event_options(rest)
    if plot is not None:
        from dalif_deploy.report.plot import check_plot

        check_plot(plot)
        check_output(plot, model=model, force=force, data=data)
    found = inspect(
        model,
        data=given_data(data, binning, model, options, samples),
        samples=samples,
        options=options,
        progress=talk.progress,
    )
    if plot is not None:
        from dalif_deploy.report.plot import plot_rates

        plot_rates(found, plot)
    if as_json:
        click.echo(json.dumps(found.as_json()))
    else:
        print_inspection(found)
    if plot is not None:
        talk.note(f"{plot}: written")
    return 0


run = main(command)
