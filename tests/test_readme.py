"""README's commands and its Python lines run, as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
MADE_BY_MAKE = {"make demo", "make test", "pip install -e ."}
"""Commands that install or run everything, this test included: checked to exist, not run."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines() if line]
    inline = re.findall(r"`(dalif-\w+ [^`]*)`", TEXT)
    return lines + inline


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with the checkout's examples, and the data file that README speaks of."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", inputs=rng.integers(0, 17, (8, 1, 8, 8)).astype(np.uint8))
    return tmp_path


def test_the_commands_run_in_order(workplace: Path) -> None:
    programs = Path(sys.executable).parent
    ran = []
    for line in commands():
        if line in MADE_BY_MAKE:
            continue
        arguments = shlex.split(line)
        assert arguments[0].startswith("dalif-"), line
        done = subprocess.run(
            [programs / arguments[0], *arguments[1:]], cwd=workplace, capture_output=True, text=True, check=False,
            env={**os.environ, "COLUMNS": "120"},
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        ran.append(arguments[0])
    assert {"dalif-export", "dalif-verify", "dalif-run"} <= set(ran)


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_python_lines_run(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from digits_net import DigitsNet

    (code,) = blocks("python")
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {"net": DigitsNet(), "images": torch.rand(4, 1, 8, 8)})
    assert (workplace / "net.onnx").exists()
    assert capsys.readouterr().out.strip() == "exact"


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (ROOT / target).exists(), target
