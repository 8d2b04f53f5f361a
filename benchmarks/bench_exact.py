"""The cost of exact ONNX files against a float32 file, in ONNX Runtime on one thread.

    python benchmarks/bench_exact.py                # the paper's wide networks at batch 1
    python benchmarks/bench_exact.py vgg16 --rounds 5

Every round runs the three files of one network once, in turn; a figure is the median over rounds of (its time /
the float32 file's time in the same round), so that a machine that slows down half-way slows all of them. Times
are the processor's, of the one thread that computes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from zoo import ZOO, calibrated

from dalif_deploy import fold, to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import snap, whole_pools

NETWORKS = ("resnet19", "resnet20", "vgg16")
PRECISIONS = ("float32", "exact", "exact64")


def session(content: bytes) -> onnxruntime.InferenceSession:
    """One thread, everything optimised; threads that wait do not spin, since sessions take turns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def ratios(
    sessions: Mapping[str, onnxruntime.InferenceSession], inputs: Mapping[str, NDArray[Any]], rounds: int
) -> dict[str, tuple[float, float]]:
    """By name: the median ratio to the first session's time in the same round, and the median seconds."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for round_ in range(rounds + 1):
        for name, run in sessions.items():
            start = time.process_time()
            run.run(["logits"], {"input": inputs[name]})
            if round_:  # the first one warms up
                times[name].append(time.process_time() - start)
    base = next(iter(times.values()))
    return {
        name: (statistics.median(t / b for t, b in zip(own, base, strict=True)), statistics.median(own))
        for name, own in times.items()
    }


def measure(graph: SpikingGraph, codes: NDArray[np.generic], rounds: int) -> tuple[dict[str, tuple[float, float]], str]:
    """The ratios of one folded graph's three files, and the forms that were chosen, in words."""
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    inputs: dict[str, NDArray[Any]] = {}
    forms = []
    for precision in PRECISIONS:
        if precision == "float32":
            model = to_onnx(graph)
            inputs[precision] = graph.input_spec.module_input(codes)
        else:
            snapped, lattices = snap(whole_pools(graph), precision)
            model = to_onnx(snapped, precision=precision, lattices=lattices)
            inputs[precision] = codes.astype(np.uint8)
            counted = Counter(lattice.form for lattice in lattices.values())
            forms.append(f"{precision}: " + ", ".join(f"{count} {form}" for form, count in sorted(counted.items())))
        sessions[precision] = session(model.SerializeToString())
    return ratios(sessions, inputs, rounds), "; ".join(forms)


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
        f"onnxruntime {onnxruntime.__version__}, one thread, batch {arguments.batch}, medians of {arguments.rounds} "
        "interleaved rounds"
    )
    table = Table(title="Exact files against float32 ones", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("network", "T", "float32 ms", "exact", "exact64", "forms"):
        table.add_column(heading, justify="left" if heading in ("network", "forms") else "right")
    for name in arguments.networks or NETWORKS:
        case = calibrated(name, samples=arguments.batch)
        graph = fold(case.captured().graph)
        found, forms = measure(graph, case.data, arguments.rounds)
        exact, exact64 = (f"{found[precision][0]:.2f} x" for precision in PRECISIONS[1:])
        table.add_row(name, str(case.timesteps), f"{found['float32'][1] * 1e3:.0f}", exact, exact64, forms)
    console.print(table)


if __name__ == "__main__":
    main()
