"""What docs/events.md says to type runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.commands import done
from tests.event_net import saved

TEXT = (Path(__file__).parent.parent / "docs" / "events.md").read_text()


def test_the_commands_and_the_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(Path("model.pt"), timesteps=20)
    done("export", "--to", "onnx", "model.pt", "-o", "net.onnx", "--no-verify")
    rng = np.random.default_rng(0)
    t, (x, y, p) = np.sort(rng.integers(0, 300_000, 6000)), (rng.integers(0, most, 6000) for most in (34, 34, 2))
    offsets = [0, 1000, 2000, 3000, 4000, 5000, 6000]
    np.savez("recordings.npz", t_us=t, x=x, y=y, p=p, offsets=offsets)
    commands = [line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 5
    for line in commands:
        program, *arguments = shlex.split(line)
        done(program.removeprefix("dalif-"), *arguments)
    known: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, "events.md", "exec"), known)
    assert known["verdict"].outcome.name == "EXACT"  # type: ignore[attr-defined]
    assert np.asarray(known["grid"]).any()


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (Path(__file__).parent.parent / "docs" / target).exists(), target
