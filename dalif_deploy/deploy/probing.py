"""probe: whether a runtime is fit for bit-exact use on this machine, and if not, why.

Small networks go through the runtime in the way that any network does: exported, written, opened, run. Their answers
are whole numbers that show every bit of a sum, or spikes that show the last bit of a potential. Then come the backend's
own operators (`runtimes.probe`), and exact files where it runs them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.deploy.content import Content, content_of
from dalif_deploy.dialects import DIALECTS
from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.registry import Format, file_format
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Add, AvgPool2d, Conv2d, Edge, Flatten, Input, Linear, Neuron, Node, Readout, frozen
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.onnxruntime import OPTIMIZATIONS, OnnxRuntime
from dalif_deploy.runtimes.probe import (
    BATCHES,
    FLOAT32_WHOLE,
    FLOAT64_WHOLE,
    OPERATORS,
    THREADS,
    Check,
    ProbeResult,
    Sums,
    collected,
    conv_node,
    convolutions,
    machine,
    products,
)
from dalif_deploy.runtimes.protocol import Runtime
from dalif_deploy.runtimes.registry import RuntimeKind, open_runtime, runtime_kind
from dalif_deploy.runtimes.torch import TorchRuntime

Precision = Literal["exact", "exact64"]
EXACT: tuple[Precision, ...] = get_args(Precision)


def probe(runtime: str | RuntimeKind) -> ProbeResult:
    """Probe a runtime, by name or kind.

    Takes a second or two. Raises `DalifError`: BAD_OPTION for an unknown name, MISSING_PACKAGE. That it is not fit is
    no error: it is in the result, with the reasons.
    """
    kind = runtime_kind(runtime) if isinstance(runtime, str) else runtime
    if (command := kind.available()) is not None:
        raise DalifError(Code.MISSING_PACKAGE, f"runtime {kind.name}: a package is not installed; run: {command}")
    with tempfile.TemporaryDirectory(prefix="dalif-probe-") as folder:
        probing = _Probing(kind, Path(folder))
        checks = [*probing.checks(), *_operators(kind), *_exact_checks(kind, Path(folder))]
    return ProbeResult(kind.name, probing.description, machine(), tuple(checks))


def _operators(kind: RuntimeKind) -> Iterator[Check]:
    if kind.name in OPERATORS:
        yield from OPERATORS[kind.name]()


@dataclass
class _Probing:
    """Networks through one kind of runtime. `folder`: where files may be written."""

    kind: RuntimeKind
    folder: Path
    description: str = "could not be opened"
    _rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def checks(self) -> Iterator[Check]:
        """Its networks, one property each."""
        limit = FLOAT32_WHOLE if self.kind.precision == "float32" else FLOAT64_WHOLE
        reach = "2^24" if self.kind.precision == "float32" else "2^53"
        batches = ", ".join(map(str, BATCHES))
        yield self._check(
            "sums of convolutions",
            f"batches {batches}, up to {reach}",
            lambda: [wrong for sums in convolutions(limit) for wrong in self._sums(sums)],
        )
        yield self._check(
            "sums of matrix products", f"batches {batches}, up to {reach}", lambda: self._sums(products(limit))
        )
        yield self._check("sums of two branches", f"up to {reach}", lambda: self._branches(limit))
        yield self._check("a potential that equals the threshold fires", "sums without rounding", self._ties)
        yield self._check("V = beta H + X, rounded twice", "potentials next to the threshold", self._membrane)
        yield self._check("mean of the timesteps, divided once", "3 timesteps", self._mean)

    def _check(self, name: str, tried: str, run: Callable[[], Sequence[str | None]]) -> Check:
        try:
            return collected(name, tried, run())
        except DalifError as error:
            return Check(name, False, f"refused: {error.message}")
        except Exception as error:  # whatever a third party's runtime raises is its answer
            return Check(name, False, f"fails: {type(error).__name__}: {' '.join(str(error).split())}")

    def _open(self, graph: SpikingGraph) -> Runtime:
        if self.kind.takes in ("training", "folded"):
            opened = open_runtime(self.kind, graph)
        else:
            format_ = file_format(self.kind.takes)
            path = self.folder / f"probe{format_.suffix}"
            format_.write(format_.export(graph, metadata={}, **_own_dialect(self.kind, format_)), path)
            opened = open_runtime(self.kind, path)
        self.description = opened.description
        return opened

    def _sums(self, sums: Sums) -> list[str | None]:
        """The sums as logits, of inputs that are spikes of a layer."""
        if sums.shape is None:
            node: Node = Linear(name="sums", inputs=(Edge("pass"),), weight=frozen(sums.weights))
        else:
            node = conv_node("sums", "pass", sums.shape, sums.weights)
        return self._compare_sums(sums, [node])

    def _branches(self, limit: int) -> list[str | None]:
        """Two convolutions into one sum; each reaches half as far."""
        whole = convolutions(limit)[1]
        assert whole.shape is not None
        half = np.trunc(whole.weights / 2.0)
        parts = [
            conv_node("left", "pass", whole.shape, half),
            conv_node("right", "pass", whole.shape, whole.weights - half),
        ]
        total = Add(name="sums", inputs=(Edge("left"), Edge("right")))
        return self._compare_sums(whole, [*parts, total])

    def _compare_sums(self, sums: Sums, nodes: Sequence[Node]) -> list[str | None]:
        last = "sums"
        if sums.shape is not None:
            nodes = [*nodes, Flatten(name="flat", inputs=(Edge("sums"),))]
            last = "flat"
        runtime = self._open(_network(sums.inputs.shape[1:], nodes, last))
        found = []
        for batch in BATCHES:
            logits = runtime.run(sums.inputs[:batch].astype(np.float32)).logits
            wrong = sums.difference(logits, batch)
            found.append(None if wrong is None else wrong + _lower_precision(sums, logits, batch))
        return found

    def _ties(self) -> list[str | None]:
        """V = 0.5 * 0.5 + 0.75 = 1 and a little less, exact in every type."""
        charge = np.array([[0.5, 0.75], [0.5, 0.75 - 2.0**-16]])
        fired = self._second_step(0.5, charge)
        wrong = []
        if not fired[0]:
            wrong.append("it does not fire")
        if fired[1]:
            wrong.append("a potential below the threshold fires")
        return list(wrong) or [None]

    def _membrane(self) -> list[str | None]:
        dtype = np.float32 if self.kind.precision == "float32" else np.float64
        beta, charge, expected = membrane_cases(dtype)
        fired = self._second_step(beta, charge)
        if np.array_equal(fired, expected):
            return [None]
        wrong = f"{np.count_nonzero(fired != expected)} of {len(expected)} are decided otherwise"
        if np.array_equal(fired, ~expected):
            wrong += ", all as a fused multiply-add decides them, which rounds once"
        elif self.kind.update == "decay":
            wrong += "; it computes v + k (x - v)"
        return [wrong]

    def _second_step(self, beta: float, charge: NDArray[np.float64]) -> NDArray[np.bool_]:
        """What neurons with threshold 1 fire in the second step, when X is `charge` [neurons, 2] in two steps."""
        count = len(charge)
        nodes: list[Node] = [
            Input(name="input", shape=(2,), temporal=True, kind="spike"),
            Linear(name="charge", inputs=(Edge("input"),), weight=frozen(charge)),
            Neuron(name="neurons", inputs=(Edge("charge"),), alpha=frozen(1.0), beta=frozen(beta)),
            Linear(name="sums", inputs=(Edge("neurons"),), weight=frozen(np.ones((2, count)))),
            Readout(name="readout", inputs=(Edge("sums"),), mode="sum"),
        ]
        graph = SpikingGraph(nodes, output="readout", timesteps=2, encoding=Encoding(kind="spikes"))
        spikes = self._open(graph).run(np.eye(2, dtype=np.float32)[None]).spikes["neurons"].unpack()[0]
        if spikes[0].any():
            raise ValueError("neurons fire below the threshold in the first step")
        return np.asarray(spikes[1])

    def _mean(self) -> list[str | None]:
        """Thirds of whole numbers: a product with a rounded third differs."""
        weights = self._rng.integers(-(2**20), 2**20, (32, 12)).astype(np.float64)
        inputs = (self._rng.random((8, 3, 12)) < 0.5).astype(np.float32)
        node = Linear(name="sums", inputs=(Edge("pass"),), weight=frozen(weights))
        graph = _network((12,), [node], "sums", timesteps=3)
        logits = self._open(graph).run(inputs).logits
        dtype = np.float32 if self.kind.precision == "float32" else np.float64
        exact = (inputs.sum(axis=1, dtype=np.float64) @ weights.T).astype(dtype) / dtype(3)
        wrong = int(np.count_nonzero(logits != exact))
        return [f"{wrong} of {exact.size} answers are not the sum divided by 3" if wrong else None]


def _network(shape: tuple[int, ...], nodes: Sequence[Node], last: str, *, timesteps: int = 1) -> SpikingGraph:
    """A layer that passes on the spikes of the input, `nodes` that read it, and the mean of `last`."""
    around: list[Node] = [
        Input(name="input", shape=shape, temporal=timesteps > 1, kind="spike"),
        # V = X or beta + X; it fires at X = 1 only, and is reset then.
        Neuron(
            name="pass", inputs=(Edge("input"),), alpha=frozen(1.0), beta=frozen(0.5), v_threshold=frozen(0.5),
        ),
        Readout(name="readout", inputs=(Edge(last),), mode="mean"),
    ]  # fmt: skip
    return SpikingGraph([*around, *nodes], output="readout", timesteps=timesteps, encoding=Encoding(kind="spikes"))


def _lower_precision(sums: Sums, found: NDArray[Any], batch: int) -> str:
    """Which shorter type explains the results, where one does."""
    for name, bits in {"bfloat16": 8, "TF32 or float16": 11}.items():
        explained = {
            "weights are": sums.with_weights(_shortened(sums.weights, bits), batch),
            "results are": _shortened(sums.exact[:batch], bits),
        }
        for what, values in explained.items():
            if np.array_equal(found.reshape(values.shape), values.astype(found.dtype)):
                return f", as if {what} {name}"
    return ""


def _shortened(values: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Rounded to so many significant bits, half to even."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits))


def membrane_cases(dtype: type[np.floating], count: int = 32) -> tuple[float, NDArray[np.float64], NDArray[np.bool_]]:
    """Potentials on whose last bit a spike depends: beta, X [2 * count, 2] of two steps, and what fires in the second.

    The threshold is 1. fl(fl(beta X0) + X1) is 1 in the first half, where beta X0 + X1, rounded once, is less; in the
    second half it is the other way round.
    """
    rng = np.random.default_rng(11)
    beta, one = dtype(0.95), dtype(1.0)
    ulp = float(np.spacing(one)) / 2.0  # below 1
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    while min(map(len, found.values())) < count:
        first = dtype(rng.uniform(0.8, 0.999))
        product = dtype(beta * first)
        second = dtype(float(one - product) + ulp * rng.integers(-16, 17) / 16.0)
        twice = bool(dtype(product + second) >= one)
        once = bool(_rounded(Fraction(float(beta)) * Fraction(float(first)) + Fraction(float(second)), dtype) >= one)
        if twice != once and len(found[twice]) < count:
            found[twice].append((float(first), float(second)))
    charge = np.array([*found[True], *found[False]])
    return float(beta), charge, np.repeat([True, False], count)


def _rounded(value: Fraction, dtype: type[np.floating]) -> np.floating[Any]:
    """To nearest, half to even, once. A float32 product and sum are exact in float64."""
    return dtype(float(value))


# Exact files


def _exact_checks(kind: RuntimeKind, folder: Path) -> Iterator[Check]:
    """A network of exact sums against its definition: potentials, spikes and logits, bit for bit.

    At every setting of ONNX Runtime; in PyTorch's evaluation; in a NIR simulator that exact files are written for,
    whose potentials do not show. Another runtime that takes ONNX files is opened as it is.
    """
    files = kind.takes if kind.takes in ("onnx", "nir") else None
    if (files is None and kind.name != "torch") or (files == "nir" and not _in_exact_files(kind)):
        return
    # These simulators take no leak below 0.
    graph = _exact_network(leaks=(0.05, 0.95) if files == "nir" else (-0.3, 0.95))
    batch = np.random.default_rng(13).integers(0, 256, (18, *graph.input.shape), dtype=np.uint8)
    format_ = file_format(files or "onnx")
    for precision in EXACT:
        if precision not in format_.precisions:
            continue
        name = f"a file of precision {precision}" if files else f"arithmetic {precision}"
        try:
            content = content_of(graph, precision, two_slices=format_.two_slices)
            findings = [
                None if wrong is None else f"{wrong} ({setting})"
                for setting, wrong in _exact_runs(kind, format_, content, precision, batch, folder)
            ]
        except DalifError as error:
            yield Check(name, False, f"refused: {error.message}")
        except Exception as error:  # as above
            yield Check(name, False, f"fails: {type(error).__name__}: {' '.join(str(error).split())}")
        else:
            shown = "spikes and logits" if files == "nir" else "potentials, spikes and logits"
            runs = "1 run" if len(findings) == 1 else f"{len(findings)} runs"
            yield collected(name, f"{runs}, every bit of {shown}", findings)


def _in_exact_files(kind: RuntimeKind) -> bool:
    """Whether exact .nir files are written for a simulator."""
    return kind.name in DIALECTS and not DIALECTS[kind.name].inexact


def _own_dialect(kind: RuntimeKind, format_: Format) -> dict[str, str]:
    return {"dialect": kind.name} if kind.name in DIALECTS and "dialect" in format_.options else {}


def _exact_runs(
    kind: RuntimeKind, format_: Format, content: Content, precision: Precision, batch: NDArray[np.uint8], folder: Path
) -> Iterator[tuple[str, str | None]]:
    expected, potentials = _watched(EventsRuntime, content.graph, precision, batch)
    if kind.name == "torch":
        found, seen = _watched(TorchRuntime, content.graph, precision, batch)
        yield "as it is", _differing(expected, found, potentials, seen)
        return
    path = folder / f"{precision}{format_.suffix}"
    format_.write(content.object(format_, metadata={}, **_own_dialect(kind, format_)), path)
    if kind.name != "onnxruntime":
        yield "as it is", _differing(expected, open_runtime(kind, path).run(batch), {}, {})
        return
    for level in OPTIMIZATIONS:
        for threads in THREADS:
            runtime = OnnxRuntime(path, threads=threads, optimization=level)
            setting = f"level {level}, {threads} thread{'s' if threads > 1 else ''}"
            yield setting, _differing(expected, runtime.run(batch), potentials, runtime.potentials(batch))


def _watched(
    make: Callable[..., Any], graph: SpikingGraph, precision: Precision, batch: NDArray[np.uint8]
) -> tuple[Recording, dict[str, NDArray[Any]]]:
    """A run, and every potential, [batch, T, *shape] by layer."""
    seen: dict[str, list[NDArray[Any]]] = {}

    def watch(name: str, potential: NDArray[Any]) -> None:
        seen.setdefault(name, []).append(np.array(potential))

    recording: Recording = make(graph, arithmetic=precision, watch=watch).run(batch)
    return recording, {name: np.stack(steps, axis=1) for name, steps in seen.items()}


def _differing(
    expected: Recording, found: Recording, potentials: dict[str, NDArray[Any]], seen: dict[str, NDArray[Any]]
) -> str | None:
    """What is not equal, in one phrase; 0.0 and -0.0 are."""
    counts = {
        "potentials": sum(int(np.count_nonzero(seen[name] != potentials[name])) for name in seen),
        "spikes": sum(int(train.differing(expected.spikes[n]).sum()) for n, train in found.spikes.items()),
        "logits": int(np.count_nonzero(found.logits != expected.logits)),
    }
    wrong = [f"{count:,} {what}" for what, count in counts.items() if count]
    return f"{' and '.join(wrong)} differ from the definition" if wrong else None


def _exact_network(leaks: tuple[float, float]) -> SpikingGraph:
    """Codes in, a residual of 32 channels with leaks per channel, from `leaks`, a pool, a linear layer; folded."""
    rng = np.random.default_rng(17)

    def weights(*shape: int) -> NDArray[np.float64]:
        return frozen(rng.normal(0.05, 1.0, shape) / np.sqrt(np.prod(shape[1:])))

    def conv(name: str, source: str, inputs: int) -> Conv2d:
        return Conv2d(
            name=name, inputs=(Edge(source),), weight=weights(32, inputs, 3, 3), padding=(1, 1),
            bias=frozen(rng.uniform(0.1, 0.5, 32)),
        )  # fmt: skip

    def neuron(name: str, source: str) -> Neuron:
        beta = frozen(rng.uniform(*leaks, (32, 1, 1)))
        return Neuron(name=name, inputs=(Edge(source),), alpha=frozen(1.0), beta=beta)

    nodes: list[Node] = [
        Input(name="input", shape=(3, 8, 8), temporal=False),
        conv("conv1", "input", 3), neuron("sn1", "conv1"),
        conv("conv2", "sn1", 32), Add(name="add", inputs=(Edge("conv2"), Edge("sn1"))), neuron("sn2", "add"),
        AvgPool2d(name="pool", inputs=(Edge("sn2"),), kernel=(4, 4), stride=(4, 4)),
        Flatten(name="flat", inputs=(Edge("pool"),)),
        Linear(name="fc", inputs=(Edge("flat"),), weight=weights(10, 128)),
        Readout(name="readout", inputs=(Edge("fc"),), mode="mean"),
    ]  # fmt: skip
    return SpikingGraph(nodes, output="readout", timesteps=3, encoding=Encoding(kind="uint8", scale=1 / 255))
