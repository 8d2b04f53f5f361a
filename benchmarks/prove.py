"""The full-size claims: runs them and writes the tables that docs/ quotes, with versions and commit."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from digits_data import load_split  # noqa: E402  # the examples are scripts beside each other, no package
from prove_exactness import table  # noqa: E402
from prove_networks import rows  # noqa: E402
from prove_nir import nmnist  # noqa: E402

from dalif_deploy import Data, Verdict, export, load, verify  # noqa: E402

TARGET = ROOT / "docs" / "measured.md"
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "nir", "nirtorch", "norse", "spikingjelly", "snntorch", "sinabs")


def digits() -> Verdict:
    """The shipped network on all 360 held-out digits, in every runtime."""
    model = ROOT / "examples" / "models" / "digits.pt"
    _, _, images, labels = load_split()
    data = Data(images, labels, "360 held-out digits")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"digits.{to}" for to in ("onnx", "nir")]
        for file in files:
            export(model, file, to=file.suffix[1:], verified=False)
        return verify(model, *files, data=data)


def as_markdown(verdict: Verdict) -> list[str]:
    """One row for each link and runtime."""
    lines = [
        "| compared | verdict | spikes differing | of neuron-steps | accuracy | SynOps a sample |",
        "|---|---|---|---|---|---|",
    ]
    for name, link in verdict.links.items():
        if link is not None:
            lines.append(
                f"| link: {name} | {link.outcome} | {link.spikes_differing:,} | {link.spikes_compared:,} | | |"
            )
    for runtime in verdict.runtimes:
        comparison = runtime.comparison
        file = f", {Path(runtime.file).suffix[1:]} file" if runtime.file else ""
        operations = "" if runtime.synaptic_operations is None else f"{runtime.synaptic_operations:,.0f}"
        lines.append(
            f"| {comparison.name}{file} | {runtime.outcome} | {comparison.spikes_differing:,} | "
            f"{comparison.spikes_compared:,} | {runtime.accuracy:.2%} | {operations} |"
        )
    lines += ["", "| layer | alpha | beta | firing rate |", "|---|---|---|---|"]
    for name, rate in verdict.rates.items():
        gains = verdict.gains[name]
        lines.append(f"| {name} | {gains.alpha.item():.4f} | {gains.beta.item():.4f} | {rate:.1%} |")
    return lines


def main() -> None:
    """Measure, write, and fail where a claim does not hold."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    verdict = digits()
    lines_of_levels, levels_hold = table()
    lines_of_networks, networks_hold = rows()
    lines_of_nmnist, nmnist_holds = nmnist()
    timesteps = load(ROOT / "examples" / "models" / "digits.pt").timesteps
    lines = [
        "# Measured",
        "",
        "Written by `make prove`; do not edit.",
        "",
        f"Commit {commit}; {versions}.",
        "",
        f"## The shipped digits network, {verdict.samples} held-out digits, T = {timesteps}",
        "",
        *as_markdown(verdict),
        "",
        "## The levels of exactness",
        "",
        "Two trained networks on real held-out digits. L1: spikes that differ between training and folded graph",
        "in float64. L2: the worst outcome over torch (batch 1 and 32), ONNX Runtime (four levels), events (20",
        "random orders on 4 samples, 2 on 64), norse and SpikingJelly. dV / bound: how near potentials of events come",
        "to their bound, in 2 orders on 64 samples: of the largest abs(V32 - V64) / bound of every layer, the smallest",
        "and the largest. L3: bits of potentials, spikes and logits that differ over ONNX Runtime (four levels, one",
        "and two threads), events in those orders and PyTorch; and samples in which a spike differs from the float64",
        "reference. Of NIR, spikes and logits of snnTorch and sinabs.",
        "",
        *lines_of_levels,
        "",
        "## The paper's networks at full width",
        "",
        "Untrained, their BatchNorm statistics calibrated on seeded data so that every layer fires; one sample of",
        "the paper's size, T = 4. `capture` includes the proof that the graph fires as the module does; `ONNX` and",
        "`NIR` are the seconds from the graph to the file on disk. The peak is that of calibration, capture and both",
        "exports. Parameters leave out alpha and beta. The verdicts are those of every runtime that reads the file,",
        "and of three simulators on a file in their own dialect. The last column is of an exact NIR file, whose",
        "certificate holds: the bits of spikes and logits in which snnTorch is not its definition, and the verdict.",
        "",
        *lines_of_networks,
        "",
        "## A NIR file of sinabs on N-MNIST",
        "",
        "A trained network of three convolutions and five IF layers, as sinabs wrote it, read by the NIR text's rules;",
        "100 real recordings as event counts of 1 ms, T = 300.",
        "",
        *lines_of_nmnist,
    ]
    TARGET.write_text("\n".join(lines) + "\n")
    print(f"{TARGET.relative_to(ROOT)}: written; {verdict.outcome}")
    if not verdict.passes() or verdict.vacuous or not (levels_hold and networks_hold and nmnist_holds):
        sys.exit(1)


if __name__ == "__main__":
    main()
