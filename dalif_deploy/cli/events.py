"""What the commands share on events: the options that bin recordings, and spike trains as event data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dalif_deploy.errors import Code, DalifError

if TYPE_CHECKING:
    from dalif_deploy.deploy import Data, LoadOptions
    from dalif_deploy.recordings import Binning

F = TypeVar("F", bound=Callable[..., Any])
NAMES = {"bin_": "--bin", "bin_values": "--bin-values", "bin_start": "--bin-start"}


def event_options(command: F) -> F:
    """The options that say how recordings of events become timesteps, the same in every command."""
    options = [
        click.option("--bin", "bin_", metavar="duration:US|count:N|split", help="How events in --data become "
                     "timesteps: US microseconds a step, N events a step, or each recording in T equal parts."),
        click.option("--bin-values", type=click.Choice(["counts", "binary"]), help="A pixel's number of events in a "
                     "step, or 1 where there is any.  [default: counts]"),
        click.option("--bin-start", type=click.Choice(["first", "zero"]), help="Whether step 0 begins with a "
                     "recording's first event or at time 0.  [default: first]"),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def take_event_options(values: dict[str, Any]) -> Binning | None:
    """The binning in a command's parsed options, which are taken out of `values`; None where there is none."""
    from dalif_deploy.recordings import Binning

    given = {NAMES[key]: values.pop(key) for key in NAMES}
    text = given.pop("--bin")
    if text is None:
        for option, value in given.items():
            if value is not None:
                raise click.UsageError(f"{option} needs --bin, which says how events become timesteps")
        return None
    return Binning.parse(
        text, values=given["--bin-values"] or "counts", start=given["--bin-start"] or "first"
    )  # fmt: skip


def given_data(
    path: Path | None, binning: Binning | None, model: Path | None, options: LoadOptions, samples: int | None = None
) -> Data | None:
    """What --data names, or None; binned where it is events, at most `samples` recordings of these."""
    from dalif_deploy.deploy import read_data, read_events

    if binning is None:
        return None if path is None else read_data(path)
    if path is None:
        raise click.UsageError("--bin needs --data, the recordings that it bins")
    if model is None:
        raise click.UsageError("--bin needs MODEL, whose timesteps the events are binned to")
    return read_events(path, binning, model, options=options, samples=samples)


def event_seconds(dt: float | None, binning: Binning | None) -> float:
    """How long a step of --event-data lasts. Raises `DalifError` (AMBIGUOUS) where nothing says it."""
    if dt is not None:
        return dt
    if binning is not None and binning.mode == "duration" and binning.size is not None:
        return binning.size / 1e6
    raise DalifError(
        Code.AMBIGUOUS, "--event-data needs times, and nothing says how long a timestep lasts; give --event-dt SECONDS"
    )
