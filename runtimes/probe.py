"""Whether a backend computes what bit-exact use takes for granted: the checks, and what they found, as data.

Bit-exact use rests on two things. Sums of whole numbers that never reach beyond what the type holds are exact, in
whatever order they are added; so they are in a direct or GEMM convolution, and are not in one by Winograd's
transformation or the FFT, in bfloat16, or where int16 saturates. And V = beta H + X is a product and a sum, each
rounded; a fused multiply-add rounds once.

Here are the checks of a backend's own operators, beside any network; `deploy.probing` runs networks through it.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.nodes import Conv2d, Edge, frozen
from dalif_deploy.operators import evaluate

SEED = 1_729
FLOAT32_WHOLE, FLOAT64_WHOLE = 2**24, 2**53
"""The whole numbers up to these are exact in the type."""
BATCHES = (1, 16, 32)
"""Backends choose other algorithms for other batches: PyTorch's NNPACK from 16 on."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried. `detail`: what was tried, or where it first went wrong, in one phrase. `required`:
    whether bit-exact use here depends on it; what is not required is told all the same."""

    name: str
    fit: bool
    detail: str
    required: bool = True

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return dict(vars(self))


@dataclass(frozen=True)
class ProbeResult:
    """What probing one runtime found. `description`: the package that computed; `machine`: where."""

    runtime: str
    description: str
    machine: str
    checks: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        """Whether it is fit for bit-exact use on this machine."""
        return all(check.fit for check in self.checks if check.required)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not, one phrase each; empty where it is fit."""
        return tuple(f"{check.name}: {check.detail}" for check in self.checks if check.required and not check.fit)

    @property
    def one_line(self) -> str:
        """The answer in one line."""
        if not self.fit:
            return f"{self.runtime}: not fit for bit-exact use on this machine: {'; '.join(self.reasons)}"
        needed = sum(check.required for check in self.checks)
        return f"{self.runtime}: fit for bit-exact use on this machine ({needed} checks; {self.description})"

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "runtime": self.runtime,
            "fit": self.fit,
            "reasons": list(self.reasons),
            "description": self.description,
            "machine": self.machine,
            "checks": [check.as_json() for check in self.checks],
        }


@dataclass(frozen=True)
class ConvShape:
    """A convolution to try."""

    inputs: int
    outputs: int
    kernel: int
    size: int
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        extra = (f", stride {self.stride}" if self.stride > 1 else "") + (
            f", {self.groups} groups" if self.groups > 1 else ""
        )
        return (
            f"{self.kernel}x{self.kernel} convolution {self.inputs} to {self.outputs} channels on "
            f"{self.size}x{self.size}{extra}"
        )


SHAPES = (
    # 3x3 with stride 1 is where Winograd's transformation pays; 5x5 invites the FFT.
    ConvShape(16, 16, 3, 8),
    ConvShape(32, 32, 3, 16),
    ConvShape(64, 64, 3, 8),
    ConvShape(3, 32, 3, 14),
    ConvShape(16, 16, 5, 12),
    ConvShape(64, 64, 1, 8),
    ConvShape(16, 32, 3, 15, stride=2),
    ConvShape(24, 24, 3, 10, groups=24),
)
FURTHEST = ((0, 1.0), (1, -1.0))
"""Samples in which all positive, or all negative, weights of the first output find a one: its sums reach the limit."""
FEATURES = (512, 48)
"""Inputs and outputs of the linear layers to try."""


def whole_weights(rng: np.random.Generator, shape: tuple[int, ...], limit: int) -> NDArray[np.float64]:
    """Whole weights whose positive ones, and whose negative ones, add up to `limit` for every output, exactly.

    Of every second output a few weights are far larger than the others: their halves and quarters, which Winograd's
    transformation sums, need more bits than the type has.
    """
    drawn = rng.normal(size=(shape[0], int(np.prod(shape[1:]))))
    drawn[::2] = drawn[::2] ** 9
    drawn[:, 0], drawn[:, 1] = np.abs(drawn[:, 0]), -np.abs(drawn[:, 1])  # one of each sign
    weights = np.zeros(drawn.shape, np.int64)
    for sign, keeper in ((1, 0), (-1, 1)):
        part = np.maximum(sign * drawn, 0.0)
        share = np.floor(part / part.sum(axis=1, keepdims=True) * (limit * (1.0 - 2.0**-20))).astype(np.int64)
        share[:, keeper] += limit - share.sum(axis=1)
        weights += sign * share
    return weights.astype(np.float64).reshape(shape)


def spikes(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """0 and 1, [batch, *shape]: the third sample all ones, the others random."""
    density = rng.choice([0.1, 0.4, 0.8], (shape[0], *[1] * (len(shape) - 1)))
    found = (rng.random(shape) < density).astype(np.float64)
    found[2] = 1.0
    return found


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums to compute: `weights`, `inputs` of each batch size, and the exact results of the largest batch, of which
    the smaller ones are the beginning; float64 holding whole numbers."""

    what: str
    weights: NDArray[np.float64]
    inputs: NDArray[np.float64]
    exact: NDArray[np.float64]
    shape: ConvShape | None = None

    def with_weights(self, weights: NDArray[np.float64], batch: int) -> NDArray[np.float64]:
        """The sums of the first `batch` samples if the weights were others, in float64."""
        inputs = self.inputs[:batch]
        if self.shape is None:
            return np.asarray(inputs @ weights.T)
        return np.asarray(evaluate(conv_node("conv", "input", self.shape, weights), [inputs]))

    def difference(self, found: NDArray[Any], batch: int) -> str | None:
        """Where `found` differs from the exact sums of the first `batch` samples, in one phrase, or None."""
        expected = self.exact[:batch].reshape(found.shape)
        gap = np.abs(found.astype(np.float64) - expected)
        wrong = ~(gap == 0.0)
        if not wrong.any():
            return None
        much = np.nanmax(gap) if np.isfinite(gap).any() else np.nan
        count = f"{np.count_nonzero(wrong):,} of {wrong.size:,}"
        return f"{self.what}, batch {batch}: {count} sums differ, by up to {much:.6g}"


@cache
def convolutions(limit: int = FLOAT32_WHOLE) -> tuple[Sums, ...]:
    """One for each of `SHAPES`, with padding, of the largest of `BATCHES`."""
    rng = np.random.default_rng(SEED)
    found = []
    for shape in SHAPES:
        per_group, kernel = shape.inputs // shape.groups, shape.kernel
        weights = whole_weights(rng, (shape.outputs, per_group, kernel, kernel), limit)
        inputs = spikes(rng, (max(BATCHES), shape.inputs, shape.size, shape.size))
        start = 2 * shape.stride - kernel // 2  # the window of the third output
        for sample, sign in FURTHEST:
            inputs[sample, :per_group, start : start + kernel, start : start + kernel] = sign * weights[0] > 0.0
        # float64 holds all partial sums, so this is exact in any order.
        exact = evaluate(conv_node("conv", "input", shape, weights), [inputs])
        found.append(Sums(str(shape), weights, inputs, np.asarray(exact, np.float64), shape))
    return tuple(found)


@cache
def products(limit: int = FLOAT32_WHOLE) -> Sums:
    """A linear layer."""
    rng = np.random.default_rng(SEED + 1)
    features, outputs = FEATURES
    weights = whole_weights(rng, (outputs, features), limit)
    inputs = spikes(rng, (max(BATCHES), features))
    for sample, sign in FURTHEST:
        inputs[sample] = sign * weights[0] > 0.0
    return Sums(f"matrix product {features} to {outputs}", weights, inputs, inputs @ weights.T)


def conv_node(name: str, source: str, shape: ConvShape, weights: NDArray[np.float64]) -> Conv2d:
    """The convolution as a node, padded by half its kernel."""
    pad = shape.kernel // 2
    return Conv2d(
        name=name, inputs=(Edge(source),), weight=frozen(weights), stride=(shape.stride, shape.stride),
        padding=(pad, pad), groups=shape.groups,
    )  # fmt: skip


def machine() -> str:
    """The processor that this runs on, in one phrase."""
    model = platform.processor() or platform.machine()
    with_names = Path("/proc/cpuinfo")
    if with_names.is_file():
        for line in with_names.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model} ({platform.machine()})"


def collected(name: str, tried: str, findings: Sequence[str | None], *, required: bool = True) -> Check:
    """A check of several attempts, each of which found one phrase of complaint, or nothing."""
    wrong = [finding for finding in findings if finding is not None]
    if not wrong:
        return Check(name, True, f"{tried}: as defined", required)
    more = f" (and {len(wrong) - 1} more of {len(findings)})" if len(wrong) > 1 else ""
    return Check(name, False, wrong[0] + more, required)


# ONNX Runtime

LEVELS = ("disable", "basic", "extended", "all")
THREADS = (1, 2)


def onnxruntime_checks() -> Iterator[Check]:
    """ONNX Runtime's operators, one by one, at every optimisation level, with one thread and two.

    Those that exact files are made of (see `exporters.onnx_exact`) are required.
    """
    yield _ort_sums("float32 Conv", _ort_conv, convolutions())
    yield _ort_sums("float32 MatMul", _ort_product, (products(),))
    yield _ort_bytes("uint8 x int8 MatMulInteger, inputs up to 127", 127, required=True)
    yield _ort_bytes("uint8 x int8 MatMulInteger, inputs up to 255", 255, required=False)
    yield _ort_combined()
    for dtype in (np.float32, np.float64):
        yield _ort_membrane(dtype)


def _sessions(model: Any) -> Iterator[tuple[str, Any]]:
    """The model at every level and number of threads."""
    import onnxruntime

    from dalif_deploy.runtimes.onnxruntime import OPTIMIZATIONS

    for level in LEVELS:
        for threads in THREADS:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, OPTIMIZATIONS[level])
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            yield f"level {level}, {threads} thread{'s' if threads > 1 else ''}", session


def _ort_model(
    nodes: Sequence[Any], inputs: Mapping[str, NDArray[Any]], output: tuple[str, Any, int],
    constants: Mapping[str, NDArray[Any]],
) -> Any:  # fmt: skip
    """A model of `nodes`; inputs have a free batch axis. `output`: name, dtype, rank."""
    from onnx import helper, numpy_helper

    def declared(name: str, dtype: Any, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    name, dtype, rank = output
    graph = helper.make_graph(
        list(nodes),
        "probe",
        [declared(key, values.dtype, ["batch", *values.shape[1:]]) for key, values in inputs.items()],
        [declared(name, dtype, ["batch", *[None] * (rank - 1)])],
        initializer=[numpy_helper.from_array(values, key) for key, values in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def _ort_sums(name: str, model_of: Callable[[Sums], Any], problems: Sequence[Sums]) -> Check:
    findings = []
    for sums in problems:
        for setting, session in _sessions(model_of(sums)):
            for batch in BATCHES[:2]:
                (found,) = session.run(None, {"x": sums.inputs[:batch].astype(np.float32)})
                wrong = sums.difference(found, batch)
                findings.append(None if wrong is None else f"{wrong} ({setting})")
    return collected(name, f"{len(findings)} runs, sums up to 2^24", findings)


def _ort_conv(sums: Sums) -> Any:
    from onnx import helper

    assert sums.shape is not None
    pad = sums.shape.kernel // 2
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], pads=[pad] * 4, strides=[sums.shape.stride] * 2, group=sums.shape.groups
    )
    inputs = sums.inputs.astype(np.float32)
    return _ort_model([node], {"x": inputs}, ("y", np.float32, 4), {"w": sums.weights.astype(np.float32)})


def _ort_product(sums: Sums) -> Any:
    from onnx import helper

    constants = {"w": np.ascontiguousarray(sums.weights.T.astype(np.float32))}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return _ort_model([node], {"x": sums.inputs.astype(np.float32)}, ("y", np.float32, 2), constants)


def byte_products(largest: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int8]]]:
    """Inputs 0 to `largest`, [16, terms], and weights, [terms, 32], of several numbers of terms; among them pairs of
    products that are as large as they can be of one sign, where 2 * largest * 128 beyond int16 would saturate."""
    rng = np.random.default_rng(SEED + 2)
    for terms in (64, 576, 2304):
        weights = rng.integers(-128, 128, (terms, 32), dtype=np.int8)
        weights[:, 0], weights[:, 1] = 127, -128
        inputs = rng.integers(0, largest + 1, (16, terms), dtype=np.uint8)
        inputs[0] = largest
        yield inputs, weights


def _ort_bytes(name: str, largest: int, *, required: bool) -> Check:
    from onnx import helper

    findings = []
    for inputs, weights in byte_products(largest):
        exact = inputs.astype(np.int64) @ weights.astype(np.int64)
        node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
        for setting, session in _sessions(_ort_model([node], {"x": inputs}, ("y", np.int32, 2), {"w": weights})):
            (found,) = session.run(None, {"x": inputs})
            wrong = int(np.count_nonzero(found != exact))
            what = f"{len(weights)} terms: {wrong} of {exact.size} sums differ ({setting})"
            findings.append(what if wrong else None)
    return collected(name, f"{len(findings)} runs, weights -128 to 127", findings, required=required)


def _ort_combined() -> Check:
    """Whole numbers put together in float64: 65536 high + low, from int32, exact up to 2^53."""
    from onnx import helper

    rng = np.random.default_rng(SEED + 3)
    high = rng.integers(-(2**31) + 1, 2**31, (64, 64), dtype=np.int32)
    low = rng.integers(-(2**31) + 1, 2**31, (64, 64), dtype=np.int32)
    exact = 65536 * high.astype(np.int64) + low
    double = helper.np_dtype_to_tensor_dtype(np.dtype(np.float64))
    nodes = [
        helper.make_node("Cast", ["h"], ["hd"], to=double),
        helper.make_node("Cast", ["l"], ["ld"], to=double),
        helper.make_node("Mul", ["hd", "base"], ["scaled"]),
        helper.make_node("Add", ["scaled", "ld"], ["y"]),
    ]
    inputs = {"h": high, "l": low}
    model = _ort_model(nodes, inputs, ("y", np.float64, 2), {"base": np.array(65536.0)})
    findings = []
    for setting, session in _sessions(model):
        (found,) = session.run(None, inputs)
        wrong = int(np.count_nonzero(found.astype(np.int64) != exact))
        findings.append(f"{wrong} of {exact.size} values differ ({setting})" if wrong else None)
    return collected("float64 Mul and Add of whole numbers", f"{len(findings)} runs, values up to 2^48", findings)


def _ort_membrane(dtype: type[np.floating]) -> Check:
    from onnx import helper

    rng = np.random.default_rng(SEED + 4)
    beta = np.array(0.7, dtype)
    inputs = {key: rng.uniform(-1.0, 1.0, (64, 64)).astype(dtype) for key in ("h", "x")}
    expected = beta * inputs["h"] + inputs["x"]
    nodes = [helper.make_node("Mul", ["beta", "h"], ["p"]), helper.make_node("Add", ["p", "x"], ["y"])]
    findings = []
    for setting, session in _sessions(_ort_model(nodes, inputs, ("y", dtype, 2), {"beta": beta})):
        (found,) = session.run(None, inputs)
        wrong = int(np.count_nonzero(found != expected))
        what = f"{wrong} of {expected.size} potentials are not those of two roundings ({setting})"
        findings.append(what if wrong else None)
    return collected(f"{np.dtype(dtype)} beta H + X, not fused", f"{len(findings)} runs", findings)


# PyTorch


def torch_checks() -> Iterator[Check]:
    """PyTorch's operators, with oneDNN and without.

    Required as the runtimes call them, with NNPACK off; what PyTorch would do by itself without oneDNN, where NNPACK
    computes convolutions of batches of 16 and more by transformations, is told.
    """
    yield _torch_sums("float32 conv2d, NNPACK off", convolutions(), "float32", nnpack=False)
    yield _torch_sums("float32 linear", (products(),), "float32", nnpack=False)
    yield _torch_sums("float64 conv2d", convolutions(FLOAT64_WHOLE)[:4], "float64", nnpack=False)
    yield _torch_sums("float64 linear", (products(FLOAT64_WHOLE),), "float64", nnpack=False)
    yield _torch_sums("float32 conv2d, NNPACK on", convolutions(), "float32", nnpack=True, required=False)
    yield _torch_membrane(fused=False)
    yield _torch_membrane(fused=True)


@contextmanager
def _torch_backends(*, mkldnn: bool, nnpack: bool) -> Iterator[None]:
    import torch

    with warnings.catch_warnings():
        # Setting the flags touches one for TF32, of which a build without support warns.
        warnings.filterwarnings("ignore", "TF32 acceleration", UserWarning)
        with torch.backends.mkldnn.flags(enabled=mkldnn), torch.backends.nnpack.flags(enabled=nnpack):
            yield


def _torch_sums(name: str, problems: Sequence[Sums], dtype: str, *, nnpack: bool, required: bool = True) -> Check:
    import torch
    from torch.nn import functional as F

    type_ = getattr(torch, dtype)
    findings = []
    with torch.inference_mode():
        for mkldnn in (True, False):
            with _torch_backends(mkldnn=mkldnn, nnpack=nnpack):
                for sums in problems:
                    weights = torch.tensor(sums.weights, dtype=type_)
                    for batch in BATCHES:
                        x = torch.tensor(sums.inputs[:batch], dtype=type_)
                        shape = sums.shape
                        found = F.linear(x, weights) if shape is None else (
                            F.conv2d(x, weights, None, shape.stride, shape.kernel // 2, 1, shape.groups)
                        )  # fmt: skip
                        wrong = sums.difference(found.numpy(), batch)
                        findings.append(None if wrong is None else f"{wrong} (oneDNN {'on' if mkldnn else 'off'})")
    tried = f"{len(findings)} runs, batches 1, 16, 32, sums up to {'2^24' if dtype == 'float32' else '2^53'}"
    return collected(name, tried, findings, required=required)


def _torch_membrane(*, fused: bool) -> Check:
    """beta * H + X; and torch.add with alpha, which no runtime here uses."""
    import torch

    rng = np.random.default_rng(SEED + 5)
    findings = []
    for dtype in (np.float32, np.float64):
        held: NDArray[Any] = rng.uniform(-1.0, 1.0, (64, 64)).astype(dtype)
        current: NDArray[Any] = rng.uniform(-1.0, 1.0, (64, 64)).astype(dtype)
        beta: NDArray[Any] = np.array(0.7, dtype)
        h, x, b = (torch.tensor(values) for values in (held, current, beta))
        found = torch.add(x, h, alpha=float(beta)) if fused else b * h + x
        wrong = int(np.count_nonzero(found.numpy() != beta * held + current))
        what = f"{np.dtype(dtype)}: {wrong} of {held.size} potentials are not those of two roundings"
        findings.append(what if wrong else None)
    name = "beta H + X by torch.add(X, H, alpha=beta)" if fused else "beta * H + X, not fused"
    return collected(name, "float32 and float64", findings, required=not fused)


def _simulator_checks() -> Iterator[Check]:
    """What the NIR simulators compute with: PyTorch's float32 operators, NNPACK off."""
    yield _torch_sums("float32 conv2d, NNPACK off", convolutions(), "float32", nnpack=False)
    yield _torch_sums("float32 linear", (products(),), "float32", nnpack=False)


OPERATORS: Mapping[str, Callable[[], Iterator[Check]]] = {
    "onnxruntime": onnxruntime_checks,
    "torch": torch_checks,
    "norse": _simulator_checks,
    "spikingjelly": _simulator_checks,
    "snntorch": _simulator_checks,
}
"""The checks of operators, by the runtime that computes with them."""
