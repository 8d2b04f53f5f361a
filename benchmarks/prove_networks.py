"""The paper's networks at full width, each in a process of its own: size, cost, seconds, memory, and verdicts.

python benchmarks/prove_networks.py                 # all of them, as a table in Markdown
python benchmarks/prove_networks.py --one vgg16     # one of them, as JSON
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from zoo import ZOO, calibrated

from dalif_deploy import Data, export, inspect, verify
from dalif_deploy.deploy import check_certificate

PASSING = ("exact", "rounding")
DIALECTS = ("spikingjelly", "snntorch", "sinabs")
"""The simulators that also run a file in their own dialect."""


def measured(name: str) -> dict[str, Any]:
    """One network: what the table says of it, on one sample with T = 4."""
    case = calibrated(name, samples=1, timesteps=4)
    found: dict[str, Any] = {"timesteps": case.timesteps, "parameters": case.parameters}
    start = time.perf_counter()
    model = case.captured()
    found["capture_seconds"] = time.perf_counter() - start
    cost = inspect(model.graph).cost
    assert cost is not None
    assert cost.params == found["parameters"]
    found["macs"] = cost.macs
    with tempfile.TemporaryDirectory() as folder:
        for to in ("onnx", "nir"):
            file = Path(folder) / f"{name}.{to}"
            start = time.perf_counter()
            export(model, file, to=to, verified=False)
            found[f"{to}_seconds"] = time.perf_counter() - start
            found[f"{to}_bytes"] = file.stat().st_size
        # Until here: that of calibration, capture and export.
        found["peak_gib"] = peak_gib()
        files = sorted(Path(folder).glob("*"))
        verdict = verify(model, *files, data=Data(case.data, None, "seeded"))
        dialects = {}
        for dialect in DIALECTS:
            file = Path(folder) / f"{name}.{dialect}.nir"
            export(model, file, to="nir", dialect=dialect, verified=False)
            dialects[dialect] = verify(model, file, data=Data(case.data, None, "seeded"), runtimes=(dialect,))
            file.unlink()
        file = Path(folder) / f"{name}.exact.nir"
        export(model, file, to="nir", dialect="snntorch", precision="exact", verified=False)
        exact = verify(model, file, data=Data(case.data, None, "seeded"), runtimes=("snntorch",))
        found["exact_nir"] = {
            "bits": exact.runtimes[0].definition_differing,
            "outcome": str(exact.runtimes[0].outcome),
            "certificate": check_certificate(file).holds,
        }
    found["rates"] = [min(verdict.rates.values()), max(verdict.rates.values())]
    found["vacuous"] = list(verdict.vacuous)
    found["verdicts"] = {}
    for runtime in verdict.runtimes:
        kind = Path(runtime.file).suffix if runtime.file else ""
        found["verdicts"][runtime.comparison.name + kind] = str(runtime.outcome)
    for dialect, own in dialects.items():
        found["verdicts"][f"{dialect}, its own dialect"] = str(own.runtimes[0].outcome)
    return found


def peak_gib() -> float:
    """This program's peak, without that of the process which started it (which getrusage passes on). Linux."""
    status = Path("/proc/self/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kib) / 2**20


def rows() -> tuple[list[str], bool]:
    """The table in Markdown, and whether everything in it passes."""
    lines = [
        "| network | T | parameters | MACs | firing rates | capture, s | ONNX, s | ONNX, MB | NIR, s | NIR, MB | "
        "peak, GiB | verdicts | `exact` NIR in snnTorch: bits, verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    holds = True
    for name in ZOO:
        run = subprocess.run(
            [sys.executable, __file__, "--one", name], stdout=subprocess.PIPE, text=True, check=True
        ).stdout  # fmt: skip
        found = json.loads(run)
        holds &= not found["vacuous"] and all(outcome in PASSING for outcome in found["verdicts"].values())
        exact = found["exact_nir"]
        holds &= exact["bits"] == 0 and exact["certificate"] and exact["outcome"] in PASSING
        low, high = found["rates"]
        lines.append(
            f"| {name} | {found['timesteps']} | {found['parameters']:,} | {found['macs'] / 1e6:,.2f} M | "
            f"{low:.1%} to {high:.1%} | "
            f"{found['capture_seconds']:.1f} | {found['onnx_seconds']:.1f} | {found['onnx_bytes'] / 1e6:.1f} | "
            f"{found['nir_seconds']:.1f} | {found['nir_bytes'] / 1e6:.1f} | {found['peak_gib']:.1f} | "
            f"{summary(found['verdicts'])} | {exact['bits']}, {exact['outcome']} |"
        )
    return lines, holds


def summary(verdicts: dict[str, str]) -> str:
    """`exact: torch, events; rounding: norse.nir`, in the order of first appearance."""
    by_outcome: dict[str, list[str]] = {}
    for runtime, outcome in verdicts.items():
        by_outcome.setdefault(outcome, []).append(runtime)
    return "; ".join(f"{outcome}: {', '.join(runtimes)}" for outcome, runtimes in by_outcome.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=ZOO, help="measure one network and print JSON")
    name = parser.parse_args().one
    print(json.dumps(measured(name)) if name else "\n".join(rows()[0]))


if __name__ == "__main__":
    main()
