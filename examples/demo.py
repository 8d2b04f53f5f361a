"""The demonstration behind `make demo`: the shipped network, exported, run and verified by the commands.

Everything it does is a command that it prints first, so that you can repeat it by hand.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from digits_data import load_split
from rich.console import Console

ROOT = Path(__file__).parent.parent
MODEL = "examples/models/digits.pt"
OUTPUT = "demo-output"
console = Console(highlight=False, soft_wrap=True)


def command(*arguments: str) -> None:
    """Print a command as one would type it, and run it; end with its exit status if it fails."""
    console.print(f"\n[bold]$ {shlex.join(arguments)}[/bold]")
    program = str(Path(sys.executable).with_name(arguments[0]))
    status = subprocess.run([program, *arguments[1:]], cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """Export, run and verify on the 360 held-out digits."""
    (ROOT / OUTPUT).mkdir(exist_ok=True)
    _, _, images, labels = load_split()
    np.savez(ROOT / OUTPUT / "test.npz", inputs=images, labels=labels)
    console.print(f"{len(images)} handwritten digits that the network has not been trained on: {OUTPUT}/test.npz")
    command("dalif-export", "--to", "onnx", MODEL, "-o", f"{OUTPUT}/digits.onnx", "--force", "--quiet")
    command("dalif-export", "--to", "nir", MODEL, "-o", f"{OUTPUT}/digits.nir", "--force", "--quiet")
    command("dalif-run", f"{OUTPUT}/digits.onnx", "--data", f"{OUTPUT}/test.npz")
    command("dalif-verify", MODEL, f"{OUTPUT}/digits.onnx", f"{OUTPUT}/digits.nir", "--data", f"{OUTPUT}/test.npz")


if __name__ == "__main__":
    main()
