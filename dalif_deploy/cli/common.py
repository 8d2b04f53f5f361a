"""What the commands share: the loading options, the exit statuses, and one line for every error."""

from __future__ import annotations

import json
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import Progress

from dalif_deploy import __version__
from dalif_deploy.errors import Code, DalifError

F = TypeVar("F", bound=Callable[..., Any])
INTERRUPTED = 130
PATH = click.Path(path_type=Path, readable=False)
"""A path as it is: whether it can be read is told by what reads it."""


def loading_options(command: F) -> F:
    """The options that say how to read a MODEL, the same in every command."""
    options = [
        click.option("--model", "factory", metavar="PKG.MODULE:FACTORY", help="Code that builds the module of a "
                     "checkpoint; the current folder is importable."),
        click.option("--model-arg", "model_args", multiple=True, metavar="NAME=VALUE", help="A keyword argument of "
                     "the factory; repeatable."),
        click.option("--state-key", metavar="KEY", help="Which of several state_dicts in a checkpoint to take, as the "
                     "error that asks for it names them."),
        click.option("--adapter", type=PATH, metavar="FILE.py", help="Python file run before "
                     "the model is built; it calls register_neuron for your own neuron classes."),
        click.option("--trust-pickle", is_flag=True, help="Unpickle a pickled module. This runs whatever code the "
                     "file holds."),
        click.option("-T", "--timesteps", type=click.IntRange(min=1), metavar="T", help="How many timesteps to run; a "
                     "model.pt knows it."),
        click.option("--input-shape", callback=_shape, metavar="C,H,W", help="What the module takes, without batch "
                     "and time; a model.pt knows it."),
        click.option("--layout", type=click.Choice(["step", "loop", "TB", "BT"]), help="Whether forward is one "
                     "timestep, loops over all of them, or takes them in one tensor, [T, batch, ...] or [batch, T, "
                     "...]; inferred otherwise."),
        click.option("--readout", type=click.Choice(["mean", "sum", "last", "max"]), help="How the outputs of the "
                     "timesteps become the answer; inferred otherwise."),
        click.option("--dt", type=float, metavar="SECONDS", help="For a .nir of another tool: how long a timestep is."),
        click.option("--reset", type=click.Choice(["hard", "subtract"]), help="For a .nir of another tool: what a "
                     "spike does to the potential; hard otherwise."),
        click.option("--fires-at", type=click.Choice(["ge", "gt"]), help="For a .nir of another tool: whether a neuron "
                     "fires at its threshold or above it; gt otherwise."),
        click.option("--temporal/--static", "temporal", default=None, help="Whether the input changes over time; "
                     "inferred otherwise."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def output_options(command: F) -> F:
    """--json, -q, -v and --version, the same in every command."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing on stderr but errors."),
        click.option("-v", "--verbose", count=True, help="-vv shows the traceback of an error."),
        click.version_option(__version__, prog_name="dalif_deploy"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


force_option = click.option(
    "--force", is_flag=True, help="Replace an existing output (never the model or the data)."
)  # fmt: skip
"""For the commands that write a file."""


def load_options(values: dict[str, Any]) -> Any:
    """The `LoadOptions` of a command's parsed options, which are taken out of `values`."""
    from dalif_deploy.deploy import LoadOptions

    return LoadOptions(
        factory=values.pop("factory"),
        arguments=_arguments(values.pop("model_args")),
        state_key=values.pop("state_key"),
        **{
            key: values.pop(key)
            for key in ("adapter", "trust_pickle", "timesteps", "input_shape", "layout", "readout", "temporal")
        },
        **{key: values.pop(key) for key in ("dt", "reset", "fires_at")},
    )


def main(command: click.Command) -> Callable[[], None]:
    """The entry point of `command`: it always ends by an exit status, never by a traceback.

    0: no divergence. 1: everything was understood and the answer is no. 2: it could not use what it was
    given. 3: a fault of ours. 130: interrupted.
    """

    def run() -> None:
        sys.exit(status_of(command, sys.argv[1:]))

    return run


def status_of(command: click.Command, arguments: list[str]) -> int:
    """Run `command` and return its exit status; errors are one line on stderr."""
    flags = [argument for argument in arguments if argument == "--verbose" or re.fullmatch("-v+", argument)]
    verbose = sum(1 if flag == "--verbose" else len(flag) - 1 for flag in flags) > 1
    name = command.name
    try:
        result = command.main(arguments, prog_name=name, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"{name}: interrupted", err=True)
        return INTERRUPTED
    except click.ClickException as error:
        message = " ".join(error.format_message().split())
        click.echo(f"{name}: error: [{Code.BAD_OPTION.identifier}] {message} (see {name} --help)", err=True)
        return Code.BAD_OPTION.exit_status
    except DalifError as error:
        if verbose:
            traceback.print_exc()
        click.echo(f"{name}: error: {error}", err=True)
        if error.details is not None and "--json" in arguments:
            told = {"code": error.code.identifier, "name": error.code.name, "message": error.message}
            click.echo(json.dumps({"error": {**told, **error.details}}))
        return error.code.exit_status
    except BrokenPipeError:
        return 0
    except Exception as error:
        if verbose:
            traceback.print_exc()
        text = " ".join(str(error).split())
        click.echo(
            f"{name}: error: [{Code.FAULT.identifier}] {type(error).__name__}: {text}; this is a fault of "
            "dalif_deploy, please report it with the output of -vv", err=True,
        )  # fmt: skip
        return Code.FAULT.exit_status


class Talk:
    """What a command says on stderr while it works: notes, and a progress bar on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: Any = None

    def note(self, text: str) -> None:
        """One line, unless quiet."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def progress(self, done: int, total: int) -> None:
        """Advance the bar; it goes away when it is done."""
        if self._quiet or not self._console.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(console=self._console, transient=True)
            self._task = self._bar.add_task("samples", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done)
        if done >= total:
            self._bar.stop()
            self._bar = None


def _shape(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        shape = tuple(int(part) for part in value.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise click.BadParameter(f"{value!r}: write positive whole numbers such as 3,32,32")
    return shape


def _arguments(pairs: tuple[str, ...]) -> dict[str, Any]:
    import ast

    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, text = pair.partition("=")
        if not separator or not name.isidentifier():
            raise DalifError(Code.BAD_OPTION, f"--model-arg {pair}: write it as name=value")
        try:
            found[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text  # a plain word is a string
    return found
