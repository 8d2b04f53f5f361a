"""The cost of exact files against a float32 file, in ONNX Runtime and in snnTorch, on one thread.

    python benchmarks/bench_exact.py                # the paper's wide networks at batch 1
    python benchmarks/bench_exact.py vgg16 --rounds 5

Every round runs all files of one network once, in turn, ONNX and NIR apart; a figure is the median over rounds of (its
time / the float32 file's time in the same round), so that a machine that slows down half-way slows all of them. Times
are the processor's, of the one thread that computes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from zoo import ZOO, calibrated

from dalif_deploy import fold, to_nir, to_onnx
from dalif_deploy.deploy.content import content_of
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import snap, whole_pools
from dalif_deploy.runtimes.snntorch import SnnTorchRuntime

NETWORKS = ("resnet19", "resnet20", "vgg16")
PRECISIONS = ("float32", "exact", "exact64")


def session(content: bytes) -> onnxruntime.InferenceSession:
    """One thread, everything optimised; threads that wait do not spin, since sessions take turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def ratios(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """By name: the median ratio to the first one's time in the same round, and the median seconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if round_:  # the first one warms up
                times[name].append(time.process_time() - start)
    base = next(iter(times.values()))
    return {
        name: (statistics.median(t / b for t, b in zip(own, base, strict=True)), statistics.median(own))
        for name, own in times.items()
    }


def measure(graph: SpikingGraph, codes: NDArray[np.generic], rounds: int) -> tuple[dict[str, tuple[float, float]], str]:
    """The ratios of one folded graph's three files, and the forms that were chosen, in words."""
    runs: dict[str, Callable[[], object]] = {}
    forms = []
    for precision in PRECISIONS:
        if precision == "float32":
            model = to_onnx(graph)
            inputs: NDArray[Any] = graph.input_spec.module_input(codes)
        else:
            snapped, lattices = snap(whole_pools(graph), precision)
            model = to_onnx(snapped, precision=precision, lattices=lattices)
            inputs = codes.astype(np.uint8)
            counted = Counter(lattice.form for lattice in lattices.values())
            forms.append(f"{precision}: " + ", ".join(f"{count} {form}" for form, count in sorted(counted.items())))
        runs[precision] = partial(session(model.SerializeToString()).run, ["logits"], {"input": inputs})
    return ratios(runs, rounds), "; ".join(forms)


def measure_nir(graph: SpikingGraph, codes: NDArray[np.generic], rounds: int) -> dict[str, tuple[float, float]]:
    """The ratios of one folded graph's two NIR files, as snnTorch runs them."""
    runs: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("float32", "exact"):
            content = content_of(graph, precision, two_slices=True)
            path = Path(folder) / f"{precision}.nir"
            nir.write(str(path), to_nir(content.graph, dialect="snntorch", **content.extra))
            inputs = codes.astype(np.uint8) if precision == "exact" else graph.input_spec.module_input(codes)
            runs[precision] = partial(SnnTorchRuntime(path).run, inputs)
        return ratios(runs, rounds)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(ZOO)}; default {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False, width=120)
    console.print(
        f"onnxruntime {onnxruntime.__version__} and, for NIR, snntorch {version('snntorch')}; one thread, batch "
        f"{arguments.batch}, medians of {arguments.rounds} interleaved rounds (NIR: a quarter as many)"
    )
    table = Table(title="Exact files against float32 ones", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("network", "T", "float32 ms", "exact", "exact64", "NIR ms", "NIR exact", "forms"):
        table.add_column(heading, justify="left" if heading in ("network", "forms") else "right")
    for name in arguments.networks or NETWORKS:
        case = calibrated(name, samples=arguments.batch)
        graph = fold(case.captured().graph)
        found, forms = measure(graph, case.data, arguments.rounds)
        exact, exact64 = (f"{found[precision][0]:.2f} x" for precision in PRECISIONS[1:])
        in_nir = measure_nir(graph, case.data, max(1, arguments.rounds // 4))  # it is slow, and steadier
        milliseconds = [f"{times['float32'][1] * 1e3:.0f}" for times in (found, in_nir)]
        table.add_row(
            name, str(case.timesteps), milliseconds[0], exact, exact64, milliseconds[1], f"{in_nir['exact'][0]:.2f} x",
            forms,
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
