"""Runs the commands inside this process, and makes the small models that their tests work on."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import dalif_deploy
from dalif_deploy.cli import export, inspect, run, verify
from dalif_deploy.cli.common import status_of
from dalif_deploy.errors import Code
from tests.graphs import GRAPHS, SPECIAL_GRAPHS

DIGITS = Path(__file__).parent.parent / "examples" / "models" / "digits.pt"
"""The shipped model: 1 x 8 x 8 images as codes 0..16, T = 4, layers sn1, sn2, sn3."""

COMMANDS = {"export": export.command, "verify": verify.command, "run": run.command, "inspect": inspect.command}


@dataclass(frozen=True)
class Ran:
    """What a command did: its exit status, and what it printed."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """What --json printed: one object, on one line, and nothing else."""
        (line,) = self.out.splitlines()
        return json.loads(line)


def dalif(command: str, *arguments: object) -> Ran:
    """Run dalif-<command>."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = status_of(COMMANDS[command], [str(argument) for argument in arguments])
    return Ran(status, out.getvalue(), err.getvalue())


def done(command: str, *arguments: object) -> Ran:
    """Run dalif-<command>, which must succeed."""
    ran = dalif(command, *arguments)
    assert ran.status == 0, ran.err
    return ran


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden files too: each file's bytes, each link's target."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = str(path.readlink()).encode()
        else:
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else b""
    return found


def refused(folder: Path, code: Code, command: str, *arguments: object) -> str:
    """Run a command that must be refused: one line on stderr, nothing on stdout, and `folder` as before.

    Returns what the line says after the code.
    """
    before = contents(folder)
    ran = dalif(command, *arguments)
    assert contents(folder) == before
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    start = f"dalif-{command}: error: [{code.identifier}] "
    assert line.startswith(start), line
    assert ran.status == code.exit_status
    return line.removeprefix(start)


def model_of(name: str, folder: Path) -> tuple[Path, NDArray[np.generic]]:
    """The graph `name` of tests.graphs as a model.pt without samples, and its batch of data."""
    graph, batch = {**GRAPHS, **SPECIAL_GRAPHS}[name]()
    path = folder / "model.pt"
    dalif_deploy.export(graph, path, to="pt")
    return path, batch


def stored_samples(count: int) -> NDArray[np.uint8]:
    """The first samples that the digits model was saved with, uint8 codes [count, 1, 8, 8]."""
    content = torch.load(DIGITS, weights_only=True)
    samples: NDArray[np.uint8] = content["samples"]["inputs"][:count].numpy()
    return samples


class Small(nn.Module):
    """One step: 4 values in, 3 logits out. Every weight is positive, so that both layers fire."""

    def __init__(self, hidden: int = 6) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, hidden)
        self.sn1 = dalif_deploy.DALIF(alpha_init=0.5, beta_init=0.5)
        self.fc2 = nn.Linear(hidden, 5)
        self.sn2 = dalif_deploy.DALIF(alpha_init=0.5, beta_init=0.5)
        self.fc3 = nn.Linear(5, 3)
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim:
                    parameter.copy_(torch.from_numpy(rng.uniform(0.0, 1.0, tuple(parameter.shape))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(self.sn2(self.fc2(self.sn1(self.fc1(x)))))
