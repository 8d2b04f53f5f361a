"""Networks x NIR dialects x simulators: which spikes differ, and why; written to docs/conformance.md.

    make conformance                        # or: python benchmarks/conformance.py
    python benchmarks/conformance.py -n 4   # fewer samples, printed and not written

Every network is exported in the canonical form, which is run in every simulator, and in every simulator's dialect,
which is run in that one. The simulators are the real packages, reading the real file. Rerun it when one releases.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Literal

import nir
import torch
from conformance_networks import BETAS, NETWORKS, Specimen

from dalif_deploy.dialects import CANONICAL, SIMULATORS, Refusal
from dalif_deploy.equivalence import Arithmetic, Comparer, Outcome, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.nir_rules import why_not
from dalif_deploy.recording import Recording, SpikeTrain
from dalif_deploy.runtimes.registry import runtime_kind

TARGET = Path(__file__).parent.parent / "docs" / "conformance.md"
SAMPLES = 24
PACKAGES = ("torch", "nir", "nirtorch", *SIMULATORS)
LOWEST, HIGHEST = 0.02, 0.4
"""The share of neuron-steps on which every layer must fire, or comparing spikes shows little."""

Verdict = Literal["exact", "rounding", "refused", "wrong"]


@dataclass(frozen=True)
class Cell:
    """What one simulator made of one file.

    `differing`: spikes that differ from the trained network's, on digits and on noise; `origins`: how many decisions
    they come from, each contradicting the potential that its own history gives it. `reasons`: numbers in
    `REASONS`, of a refusal. `note`: the refusal as it was worded, or what is wrong.
    """

    verdict: Verdict
    differing: tuple[int, int] = (0, 0)
    origins: int = 0
    reasons: tuple[int, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        if self.verdict == "rounding":
            return "rounding ({} + {} of {})".format(*self.differing, self.origins)
        if self.verdict == "refused":
            return f"refused ({', '.join(str(number) for number in self.reasons)})"
        return "**wrong**" if self.verdict == "wrong" else "exact"


REASONS: tuple[tuple[str, Refusal], ...] = tuple(
    (simulator.name, refusal) for simulator in SIMULATORS.values() for refusal in simulator.refusals
)
"""What may be refused, by the number that the table gives, counted from 1: a simulator, and a limit that it has."""


def numbers_of(message: str, simulator: str) -> tuple[int, ...] | None:
    """The numbers of the reasons in a refusal, or None if it has another reason than those."""
    found = set()
    for reason in re.findall(r"node '[^']+' \(\w+\): (.*?)(?: \(and \d+ more\))?(?=; |$)", message):
        number = next(
            (n for n, (name, refusal) in enumerate(REASONS, 1)
             if name == simulator and reason == why_not(refusal, SIMULATORS[name])), None,
        )  # fmt: skip
        if number is None:
            return None
        found.add(number)
    return tuple(sorted(found)) or None


def cells(specimen: Specimen, reference: Recording, folder: Path) -> list[Cell]:
    """By entry of `files()`: that simulator on that file of a network whose float64 spikes are `reference`. The files
    are written into `folder`."""
    written: dict[str, Path | DalifError] = {}
    for dialect in dict.fromkeys(dialect for dialect, _ in files()):
        written[dialect] = path = folder / f"{dialect}.nir"
        try:
            nir.write(str(path), to_nir(specimen.folded, dialect=dialect))
        except DalifError as error:
            written[dialect] = error
    return [cell(specimen, reference, written[dialect], simulator) for dialect, simulator in files()]


def cell(specimen: Specimen, reference: Recording, file: Path | DalifError, simulator: str) -> Cell:
    """One simulator on one file, or on the refusal to write it."""
    kind = runtime_kind(simulator)
    try:
        if isinstance(file, DalifError):
            raise file
        runtime = kind.open(file)
    except DalifError as error:
        reasons = numbers_of(error.message, simulator)
        if reasons is None or error.code not in (Code.TARGET_CANNOT_HOLD, Code.RUNTIME_CANNOT_RUN):
            return Cell("wrong", note=str(error))
        return Cell("refused", reasons=reasons, note=error.message)
    recording = runtime.run(specimen.batch)
    arithmetic = Arithmetic(kind.precision, kind.update, pools=kind.pools)
    comparer = Comparer(simulator, specimen.folded, arithmetic=arithmetic, reference=specimen.graph)
    comparer.add(specimen.batch, reference, recording)
    result = comparer.result()
    differing = _differing(reference, recording, specimen.real)
    if result.outcome > Outcome.ROUNDING:
        return Cell("wrong", differing, len(result.origins), note=str(result.origins[:1]))
    return Cell("exact" if result.outcome is Outcome.EXACT else "rounding", differing, len(result.origins))


def _differing(reference: Recording, found: Recording, real: int) -> tuple[int, int]:
    """How many spikes differ on the first `real` samples, and on the others."""
    trains: list[tuple[SpikeTrain, SpikeTrain]] = [(t, found.spikes[name]) for name, t in reference.spikes.items()]
    by_sample = sum(expected.differing(other) for expected, other in trains)
    return int(by_sample[:real].sum()), int(by_sample[real:].sum())  # type: ignore[index]


def files() -> list[tuple[str, str]]:
    """Every dialect and simulator whose pair is in the table: each simulator's own dialect, and the canonical form in
    those that take it."""
    own = [(name, name) for name in SIMULATORS]
    return [*own, *((CANONICAL.name, name) for name, record in SIMULATORS.items() if not record.own_only)]


@cache
def made(network: str, beta: float, samples: int) -> tuple[Specimen, Recording]:
    """A network and its spikes in float64. Raises `AssertionError` where a layer hardly fires, or nearly always."""
    specimen = NETWORKS[network](beta, samples)
    reference = simulate(specimen.graph, specimen.batch)
    for name, train in reference.spikes.items():
        rate = train.count() / train.neuron_steps
        assert LOWEST <= rate <= HIGHEST, f"{network}, beta {beta}: layer {name} fires on {rate:.1%} of neuron-steps"
    return specimen, reference


Table = dict[tuple[str, float], list[Cell]]


def table(samples: int) -> Table:
    """By network and leak: a cell for each of `files()`."""
    found: Table = {}
    for network, beta in product(NETWORKS, BETAS):
        with tempfile.TemporaryDirectory() as folder:
            found[network, beta] = cells(*made(network, beta, samples), Path(folder))
        print(f"{network}, beta {beta:g}: {', '.join(map(str, found[network, beta]))}", file=sys.stderr)
    return found


def compared(samples: int) -> int:
    """How many neuron-steps one column compares where nothing is refused."""
    cases = (made(*key, samples)[1] for key in product(NETWORKS, BETAS))
    return sum(train.neuron_steps for reference in cases for train in reference.spikes.values())


def page(found: Table, samples: int) -> str:
    """The page: versions, what was run, the table, and the reasons of the refusals."""
    columns = [simulator if dialect == simulator else f"{simulator}, {dialect}" for dialect, simulator in files()]
    lines = [
        "# Conformance: networks, NIR dialects, simulators",
        "",
        "Written by `make conformance`; do not edit. Rerun it when a simulator releases.",
        "",
        f"Versions: {', '.join(f'{package} {version(package)}' for package in PACKAGES)}.",
        "",
        f"Each cell: one network on {samples} held-out digits and {samples} samples of noise; every spike of every",
        "layer at every step beside the trained network's in float64. The first columns are files in the simulator's",
        "own dialect, the others the canonical file ([nir.md](nir.md)). The networks and their input are in",
        f"`benchmarks/conformance_networks.py`; each column compares {compared(samples):,} neuron-steps, less those",
        "of what is refused.",
        "",
        "- **exact**: no spike differs.",
        "- **rounding (d + n of k)**: d spikes differ on digits and n on noise. They follow from k decisions, each",
        "  within the bound of that simulator's float32 arithmetic ([exactness.md](exactness.md)).",
        "- **refused (k)**: by name, before anything is written or run, for the reason with this number below.",
        "- **wrong**: anything else. There is none, or `make conformance` fails.",
        "",
        f"| network | beta | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for (network, beta), cells in found.items():
        lines.append(f"| {network} | {beta:g} | {' | '.join(map(str, cells))} |")
    lines += ["", *_totals(found, columns), "", "## Refused", ""]
    lines += ["| | simulator | what | what it does | its own words |", "|---|---|---|---|---|"]
    met = sorted({number for cells in found.values() for c in cells for number in c.reasons})
    for number in met:
        name, refusal = REASONS[number - 1]
        says = f"`{refusal.says}`" if refusal.says else ""
        lines.append(f"| {number} | {name} | {refusal.limit} | {refusal.does} | {says} |")
    return "\n".join(lines) + "\n"


def _totals(found: Table, columns: list[str]) -> list[str]:
    verdicts: tuple[Verdict, ...] = ("exact", "rounding", "refused", "wrong")
    lines = [f"| cells | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for verdict in verdicts:
        counts = [sum(cells[n].verdict == verdict for cells in found.values()) for n in range(len(columns))]
        lines.append(f"| {verdict} | {' | '.join(map(str, counts))} |")
    spikes = [sum(sum(cells[n].differing) for cells in found.values()) for n in range(len(columns))]
    return [*lines, f"| spikes differing | {' | '.join(map(str, spikes))} |"]


def main() -> None:
    """Measure and write, or print; fail where a cell is wrong or a simulator is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--samples", type=int, help="of each kind; the page is then printed and not written")
    samples = parser.parse_args().samples
    for name in SIMULATORS:
        if (command := runtime_kind(name).available()) is not None:
            sys.exit(f"the simulator {name} is not installed; run: {command}")
    torch.set_num_threads(1)
    found = table(samples or SAMPLES)
    text = page(found, samples or SAMPLES)
    if samples:
        print(text)
    else:
        TARGET.write_text(text)
        print(f"docs/{TARGET.name}: written")
    wrong = [(key, c.note) for key, cells in found.items() for c in cells if c.verdict == "wrong"]
    for (network, beta), note in wrong:
        print(f"wrong: {network}, beta {beta:g}: {note}", file=sys.stderr)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
