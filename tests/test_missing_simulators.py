"""Without a simulator's package: one line with the command that installs it, in a process that really lacks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nir
import numpy as np
import pytest

from dalif_deploy import load
from dalif_deploy.dialects import SIMULATORS
from dalif_deploy.errors import Code
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.passes import fold
from dalif_deploy.runtimes.nir_file import INSTALL
from tests.commands import DIGITS

_RUN = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

packages, farm, *calls = sys.argv[1:]
sys.path[:] = [farm if entry == packages else entry for entry in sys.path]
from dalif_deploy.cli import run, verify
from dalif_deploy.cli.common import status_of

found = []
for call in map(json.loads, calls):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = status_of({"verify": verify, "run": run}[call[0]].command, call[1:])
    found.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str, str]]:
    """By command and simulator: status, stdout and stderr, where no simulator is installed; "" is no --runtime."""
    folder = tmp_path_factory.mktemp("without")
    packages, farm = Path(np.__file__).parents[1], folder / "packages"
    farm.mkdir()
    for entry in packages.iterdir():
        if entry.name.split("-")[0] not in SIMULATORS:
            (farm / entry.name).symlink_to(entry)
    graph = fold(load(DIGITS))
    calls = {("verify", ""): ["verify", str(DIGITS), str(folder / "canonical.nir"), "--samples", "2"]}
    nir.write(str(folder / "canonical.nir"), to_nir(graph))
    for name in SIMULATORS:
        file = folder / f"{name}.nir"
        nir.write(str(file), to_nir(graph, dialect=name))
        calls["verify", name] = ["verify", str(DIGITS), str(file), "--runtime", name]
        calls["run", name] = ["run", str(file), "--data", str(folder / "data.npy"), "--runtime", name]
    np.save(folder / "data.npy", np.zeros((1, 1, 8, 8), np.uint8))
    command = [sys.executable, "-c", _RUN, str(packages), str(farm), *map(json.dumps, calls.values())]
    # The process finds what this one does, in the same order.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    results = json.loads(done.stdout)
    return dict(zip(calls, map(tuple, results), strict=True))


@pytest.mark.parametrize("command", ["verify", "run"])
@pytest.mark.parametrize("name", SIMULATORS)
def test_a_missing_simulator_is_one_line_with_its_mend(
    name: str, command: str, ran: dict[tuple[str, str], tuple[int, str, str]]
) -> None:
    status, out, err = ran[command, name]
    (line,) = err.splitlines()
    assert line.startswith(f"dalif-{command}: error: [{Code.MISSING_PACKAGE.identifier}] ")
    assert name in line
    assert line.endswith(INSTALL)
    assert (status, out) == (Code.MISSING_PACKAGE.exit_status, "")


def test_without_simulators_a_verification_says_which_were_left_out(
    ran: dict[tuple[str, str], tuple[int, str, str]],
) -> None:
    status, out, err = ran["verify", ""]
    assert status == 0
    for name in SIMULATORS:
        (line,) = (line for line in (out + err).splitlines() if f"not run in {name}: " in line)
        assert line.endswith(f"not installed; {INSTALL}")
