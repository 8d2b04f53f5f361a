"""The probe: real runtimes get their true answer here, and broken ones are found and their faults named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dalif_deploy.deploy import probe
from dalif_deploy.deploy.content import content_of
from dalif_deploy.deploy.probing import _exact_network, membrane_cases
from dalif_deploy.equivalence import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Conv2d, Input, Linear, Neuron, Node, Readout
from dalif_deploy.operators import evaluate
from dalif_deploy.recording import Recording, SpikeTrain
from dalif_deploy.runtimes import norse, snntorch, spikingjelly
from dalif_deploy.runtimes import probe as operators
from dalif_deploy.runtimes.onnxruntime import OnnxRuntime
from dalif_deploy.runtimes.probe import Check, ProbeResult
from dalif_deploy.runtimes.registry import RuntimeKind
from tests.commands import DIGITS, dalif, refused

Values = NDArray[np.float64]


# A runtime that can be broken


@dataclass
class Fake:
    """Evaluates a folded graph in float64 and rounds to float32 where a float32 runtime would, but for its faults.

    `stateless`: a node's output from its inputs; `update`: V from beta, H and X; `fires`: from V and the threshold;
    `divide`: a sum by the number of timesteps.
    """

    graph: SpikingGraph
    stateless: Callable[[Node, list[Values]], Values] | None = None
    update: Callable[[Values, Values, Values], Values] | None = None
    fires: Callable[[Values, Values], NDArray[np.bool_]] = np.greater_equal
    divide: Callable[[Values, int], Values] | None = None

    name = "fake"
    description = "a runtime of the tests"

    def run(self, batch: NDArray[np.generic]) -> Recording:
        graph = self.graph
        inputs = graph.input_spec.module_input(batch).astype(np.float64)
        held: dict[str, Values] = {}
        fired: dict[str, list[NDArray[np.bool_]]] = {neuron.name: [] for neuron in graph.neurons}
        total = np.zeros(1)
        for t in range(graph.timesteps):
            values: dict[str, Values] = {}
            for node in graph.nodes:
                sources = [values[edge.source] for edge in node.inputs]
                if isinstance(node, Input):
                    values[node.name] = inputs[:, t] if node.temporal else inputs
                elif isinstance(node, Neuron):
                    before = held.get(node.name, np.zeros_like(sources[0]))
                    if self.update is None:
                        potential = float32(float32(float32(node.beta) * before) + sources[0])
                    else:
                        potential = self.update(node.beta, before, sources[0])
                    spikes = self.fires(potential, node.v_threshold)
                    held[node.name] = np.where(spikes, 0.0, potential)
                    fired[node.name].append(spikes)
                    values[node.name] = spikes.astype(np.float64)
                elif isinstance(node, Readout):
                    total = total + sources[0]
                elif self.stateless is not None:
                    values[node.name] = self.stateless(node, sources)
                else:
                    values[node.name] = float32(evaluate(node, sources))
        if graph.readout.mode == "mean":
            steps = graph.timesteps
            total = float32(total / steps) if self.divide is None else self.divide(total, steps)
        trains = {name: SpikeTrain.pack(np.stack(steps, axis=1)) for name, steps in fired.items()}
        return Recording(trains, total.astype(np.float32))


def float32(values: Any) -> Values:
    return np.asarray(values, np.float64).astype(np.float32).astype(np.float64)


def bfloat16(values: Any) -> Values:
    """The upper half of a float32, rounded to nearest, half to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.asarray((rounded & np.uint32(0xFFFF0000)).view(np.float32), np.float64)


def with_weights(change: Callable[[Values], Values]) -> Callable[[Node, list[Values]], Values]:
    def stateless(node: Node, inputs: list[Values]) -> Values:
        if isinstance(node, Conv2d | Linear):
            node = replace(node, weight=change(node.weight))
        return float32(evaluate(node, inputs))

    return stateless


def winograd(node: Node, inputs: list[Values]) -> Values:
    """F(2x2, 3x3) in float32 for 3x3 convolutions of stride 1 (Lavin and Gray, 2016, section 4.1)."""
    if not isinstance(node, Conv2d) or node.weight.shape[2:] != (3, 3) or node.stride != (1, 1) or node.groups > 1:
        return float32(evaluate(node, inputs))
    b = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
    g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
    a = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)
    x = np.pad(inputs[0].astype(np.float32), ((0, 0), (0, 0), (1, 2), (1, 2)))
    filters = g @ node.weight.astype(np.float32) @ g.T
    size = inputs[0].shape[-1]
    out = np.zeros((len(x), len(filters), size + 1, size + 1))
    for y in range(0, size, 2):
        for z in range(0, size, 2):
            tile = b @ x[:, :, y : y + 4, z : z + 4] @ b.T
            out[:, :, y : y + 2, z : z + 2] = a @ np.einsum("ncij,ocij->noij", tile, filters) @ a.T
    return out[:, :, :size, :size]


def fused(beta: Values, held: Values, current: Values) -> Values:
    return float32(float32(beta) * held + current)  # a product of two float32 is exact in float64


def decay(beta: Values, held: Values, current: Values) -> Values:
    k = float32(1.0 - beta)
    return float32(held + float32(k * float32(current / k - held))) if np.all(k) else float32(held + current)


def kind(takes: Any = "folded", declared: Any = "sum", **faults: Any) -> RuntimeKind:
    return RuntimeKind("fake", takes, "float32", lambda graph: Fake(graph, **faults), lambda: None, declared)


def check(result: ProbeResult, name: str) -> Check:
    (found,) = [check for check in result.checks if check.name == name]
    return found


CONVOLUTIONS, PRODUCTS, BRANCHES = "sums of convolutions", "sums of matrix products", "sums of two branches"
TIES, MEMBRANE = "a potential that equals the threshold fires", "V = beta H + X, rounded twice"
MEAN = "mean of the timesteps, divided once"
ALL = {CONVOLUTIONS, PRODUCTS, BRANCHES, TIES, MEMBRANE, MEAN}


@pytest.mark.parametrize("takes", ["folded", "training"])
def test_a_fake_without_faults_is_fit(takes: str) -> None:
    result = probe(kind(takes))
    assert result.fit
    assert result.reasons == ()
    assert {check.name for check in result.checks} == ALL


FAULTS: dict[str, tuple[dict[str, Any], set[str], str]] = {
    "bfloat16 weights": (
        {"stateless": with_weights(bfloat16)}, ALL,
        "as if weights are bfloat16",
    ),
    "bfloat16 results": (
        {"stateless": lambda node, x: bfloat16(evaluate(node, x))},
        ALL, "as if results are bfloat16",
    ),
    "float16 weights": (
        # Of 11 bits, and without float16's range.
        {"stateless": with_weights(lambda w: np.ldexp(np.rint(np.ldexp(np.frexp(w)[0], 11)), np.frexp(w)[1] - 11))},
        ALL, "as if weights are TF32 or float16",
    ),
    "Winograd": (
        {"stateless": winograd}, {CONVOLUTIONS, BRANCHES}, "3x3 convolution 16 to 16 channels on 8x8, batch 1: ",
    ),
    "a fused update": ({"update": fused}, {MEMBRANE}, "all as a fused multiply-add decides them, which rounds once"),
    "another formula": ({"update": decay, "declared": "decay"}, {MEMBRANE}, "it computes v + k (x - v)"),
    "a strict threshold": ({"fires": np.greater}, {TIES, MEMBRANE}, "it does not fire"),
    "a lax threshold": ({"fires": lambda v, th: v >= th - 1e-4}, {TIES, MEMBRANE}, "below the threshold fires"),
    "a reciprocal": (
        {"divide": lambda total, steps: float32(total * float32(1.0 / steps))}, {MEAN}, "not the sum divided by 3",
    ),
    "no numbers": (
        {"stateless": lambda node, x: evaluate(node, x) * np.nan}, ALL,
        "sums differ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_broken_runtime_is_found_and_the_fault_named(fault: str) -> None:
    faults, broken, words = FAULTS[fault]
    result = probe(kind(**faults))
    assert not result.fit
    wrong = {check.name for check in result.checks if not check.fit}
    # Where weights are off, whether the small numbers of the other checks survive is not the point.
    assert wrong <= broken
    assert wrong & broken & {CONVOLUTIONS, PRODUCTS, MEMBRANE, TIES, MEAN}
    assert any(words in reason for reason in result.reasons), result.reasons
    assert words in result.one_line
    assert result.one_line.startswith("fake: not fit for bit-exact use on this machine: ")
    assert "\n" not in result.one_line


def test_a_sum_that_is_off_by_one_in_one_place_is_found() -> None:
    """Only where the sum reaches 2^24, in one batch size."""

    def saturates(node: Node, inputs: list[Values]) -> Values:
        value = float32(evaluate(node, inputs))
        return np.minimum(value, 2.0**24 - 1.0) if len(value) == 16 else value

    result = probe(kind(stateless=saturates))
    assert [reason.split(":")[0] for reason in result.reasons] == [CONVOLUTIONS, PRODUCTS, BRANCHES]
    assert "batch 16: 1 of" in result.reasons[1]
    assert "by up to 1" in result.reasons[1]


def test_what_a_runtime_refuses_or_raises_is_its_answer() -> None:
    def refuses(node: Node, inputs: list[Values]) -> Values:
        if isinstance(node, Conv2d):
            raise DalifError(Code.RUNTIME_CANNOT_RUN, "no convolutions here")
        if isinstance(node, Linear) and node.weight.shape[0] > 40:
            raise RuntimeError("two\nlines")
        return float32(evaluate(node, inputs))

    result = probe(kind(stateless=refuses))
    assert check(result, CONVOLUTIONS).detail == "refused: no convolutions here"
    assert check(result, PRODUCTS).detail == "fails: RuntimeError: two lines"
    assert not result.fit


def test_a_runtime_of_float64_is_probed_in_float64() -> None:
    """Its sums reach 2^53, and its potentials lie next to the threshold in float64: a float32 runtime is not one."""
    declared = replace(kind(), precision="float64")
    assert not probe(declared).fit

    class Double(Fake):
        def run(self, batch: NDArray[np.generic]) -> Recording:
            recording = simulate(self.graph, batch)
            return recording

    double = RuntimeKind("double", "folded", "float64", Double, lambda: None)
    assert probe(double).reasons == ()
    # And in float32 the same runtime would not round its potentials.
    assert not check(probe(replace(double, precision="float32")), MEMBRANE).fit


def test_a_third_party_that_reads_onnx_is_given_files(tmp_path: Path) -> None:
    opened: list[Path] = []

    class Reader(OnnxRuntime):
        """Adds one unit in the last place to the first logit of every exact file."""

        def __init__(self, path: Path) -> None:
            opened.append(Path(path))
            super().__init__(path, threads=1)
            self.off = "precision" in self.metadata.extra and broken

        def run(self, batch: NDArray[np.generic]) -> Recording:
            recording = super().run(batch)
            if self.off:
                logits = recording.logits
                logits[0, 0] = np.nextafter(logits[0, 0], logits.dtype.type(np.inf))
            return recording

    reader = RuntimeKind("reader", "onnx", "float32", Reader, lambda: None)
    broken = False
    assert probe(reader).reasons == ()
    assert {path.suffix for path in opened} == {".onnx"}
    assert not any(path.exists() for path in opened)
    broken = True
    assert probe(reader).reasons == tuple(
        f"a file of precision {precision}: 1 logits differ from the definition (as it is)"
        for precision in ("exact", "exact64")
    )


# The real ones


SIMULATORS = {"norse": norse.available(), "spikingjelly": spikingjelly.available(), "snntorch": snntorch.available()}
REAL = ["events", "torch", "onnxruntime"] + [
    pytest.param(
        name, marks=[pytest.mark.simulators, pytest.mark.skipif(gone is not None, reason=f"not installed; run: {gone}")]
    )
    for name, gone in SIMULATORS.items()
]


@pytest.mark.parametrize("name", REAL)
def test_the_real_ones_get_their_true_answer(name: str) -> None:
    result = probe(name)
    for sums in (CONVOLUTIONS, PRODUCTS, BRANCHES, TIES, MEAN):
        assert check(result, sums).fit, check(result, sums)
    if name in ("norse", "spikingjelly"):
        assert not result.fit
        assert [reason.split(":")[0] for reason in result.reasons] == [MEMBRANE]
        assert "it computes v + k (x - v)" in result.one_line
    else:
        assert result.fit, result.one_line
        assert result.one_line.startswith(f"{name}: fit for bit-exact use on this machine (")
    assert result.description != "could not be opened"
    assert result.machine


def test_pytorch_by_itself_is_not_exact_without_onednn() -> None:
    """Its NNPACK convolutions transform, from batches of 16 on. The runtime keeps them off, so it is fit."""
    result = probe("torch")
    nnpack = check(result, "float32 conv2d, NNPACK on")
    assert nnpack.required is False
    assert nnpack.fit is not torch.backends.nnpack.is_available()
    if not nnpack.fit:
        assert "batch 16" in nnpack.detail
        assert "oneDNN off" in nnpack.detail
    assert check(result, "float32 conv2d, NNPACK off").fit
    assert check(result, "beta * H + X, not fused").fit
    by_add = check(result, "beta H + X by torch.add(X, H, alpha=beta)")
    assert by_add.required is False
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):  # which have fused multiply-adds
        assert "not those of two roundings" in by_add.detail


def test_onnxruntime_is_tried_at_every_level_and_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    made: set[tuple[str, int]] = set()
    real = onnxruntime.InferenceSession

    def counted(model: Any, options: Any, *arguments: Any, **more: Any) -> Any:
        made.add((str(options.graph_optimization_level).split(".")[-1], options.intra_op_num_threads))
        return real(model, options, *arguments, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", counted)
    list(operators.onnxruntime_checks())
    levels = {"ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"}
    assert made == {(level, threads) for level in levels for threads in (1, 2)}


def test_an_operator_that_is_off_in_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit in the last place, at one level with two threads."""
    import onnxruntime

    real = onnxruntime.InferenceSession

    class Off:
        def __init__(self, model: Any, options: Any, *arguments: Any) -> None:
            self.session = real(model, options, *arguments)
            last = options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            self.off = last and options.intra_op_num_threads == 2

        def run(self, *arguments: Any) -> list[NDArray[Any]]:
            (found,) = self.session.run(*arguments)
            if self.off:
                found = found.copy()
                place = np.unravel_index(np.abs(found.astype(np.float64)).argmax(), found.shape)
                value = found[place]
                found[place] = value - 1 if found.dtype.kind == "i" else np.nextafter(value, found.dtype.type(0.0))
            return [found]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Off)
    for found in operators.onnxruntime_checks():
        assert not found.fit, found.name
        assert "level all, 2 threads" in found.detail, found


def test_a_potential_that_is_off_in_onnxruntime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spikes and logits are right, and one potential is not."""
    real = OnnxRuntime.potentials

    def off(self: OnnxRuntime, batch: NDArray[np.generic]) -> dict[str, NDArray[np.floating]]:
        found = real(self, batch)
        found["sn2"].flat[5] = np.nextafter(found["sn2"].flat[5], found["sn2"].dtype.type(9.0))
        return found

    monkeypatch.setattr(OnnxRuntime, "potentials", off)
    reasons = probe("onnxruntime").reasons
    assert [reason.split(" (")[0] for reason in reasons] == [
        f"a file of precision {precision}: 1 potentials differ from the definition"
        for precision in ("exact", "exact64")
    ]


def test_settings_are_as_before() -> None:
    before = (torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision(), torch.get_num_threads())
    nnpack = torch._C._get_nnpack_enabled()
    probe("torch")
    assert before == (torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision(), torch.get_num_threads())
    assert nnpack == torch._C._get_nnpack_enabled()


# What is tried


@pytest.mark.parametrize("limit", [2**24, 2**53])
def test_sums_reach_as_far_as_they_may_and_no_farther(limit: int) -> None:
    for sums in (*operators.convolutions(limit), operators.products(limit)):
        weights = sums.weights.astype(np.int64)
        rows = weights.reshape(len(weights), -1)
        assert (np.maximum(rows, 0).sum(axis=1) == limit).all()
        assert (np.maximum(-rows, 0).sum(axis=1) == limit).all()
        for batch in operators.BATCHES:
            assert sums.exact[:batch].max() == limit, "every batch size meets the largest"
        assert sums.exact.min() == -limit
        assert (rows % 2 != 0).mean() > 0.3, "the lowest bit matters"


def test_the_exact_sums_are_those_of_python_integers() -> None:
    for sums in operators.convolutions():
        shape = sums.shape
        assert shape is not None
        pad = shape.kernel // 2
        x = np.pad(sums.inputs[:2].astype(np.int64), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        w = sums.weights.astype(np.int64)
        per_group, of_group = shape.inputs // shape.groups, shape.outputs // shape.groups
        for sample, out, y, z in ((0, 0, 2, 2), (1, 0, 2, 2), (1, shape.outputs - 1, 0, 3), (0, 5, 3, 1)):
            group = out // of_group
            total = 0
            for channel in range(per_group):
                for i in range(shape.kernel):
                    for j in range(shape.kernel):
                        place = x[sample, group * per_group + channel, y * shape.stride + i, z * shape.stride + j]
                        total += int(place) * int(w[out, channel, i, j])
            assert total == sums.exact[sample, out, y, z]


def test_transformed_convolutions_differ_on_every_such_shape() -> None:
    """The numbers are such that a transformation cannot go unseen."""
    for sums in operators.convolutions():
        assert sums.shape is not None
        node = operators.conv_node("conv", "input", sums.shape, sums.weights)
        if winograd_takes(node):
            found = winograd(node, [sums.inputs[:1]])
            assert sums.difference(found, 1) is not None, sums.what


def winograd_takes(node: Conv2d) -> bool:
    return node.weight.shape[2:] == (3, 3) and node.stride == (1, 1) and node.groups == 1


@pytest.mark.parametrize(("largest", "seen"), [(127, False), (255, True)])
def test_int16_saturation_would_be_seen_at_full_range_and_does_not_occur_below(largest: int, seen: bool) -> None:
    """AVX2 without VNNI adds pairs of products in int16, saturating (VPMADDUBSW)."""
    for inputs, weights in operators.byte_products(largest):
        products = inputs.astype(np.int64)[:, :, None] * weights.astype(np.int64)[None]
        pairs = products[:, 0::2] + products[:, 1::2]
        saturated = np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=1)
        assert (saturated != products.sum(axis=1)).any() == seen
        assert inputs.max() == largest
        assert (pairs.min(), pairs.max()) == (-2 * largest * 128, 2 * largest * 127)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_potentials_depend_on_one_rounding(dtype: type[np.floating]) -> None:
    beta, charge, expected = membrane_cases(dtype)
    assert expected.sum() == len(expected) // 2 == 32
    for (first, second), fires in zip(charge, expected, strict=True):
        assert first < 1.0
        twice = dtype(dtype(dtype(beta) * dtype(first)) + dtype(second))
        assert (twice >= 1.0) == fires
        with localcontext() as context:
            context.prec = 200
            exact = Decimal(beta) * Decimal(first) + Decimal(float(second))
            below = Decimal(1) - Decimal(float(np.spacing(dtype(1.0)))) / 4  # half way to the next number below 1
            # A tie rounds to the even of the two, which is 1.
            once = exact >= below
        assert once != fires


@pytest.mark.parametrize("leaks", [(-0.3, 0.95), (0.05, 0.95)], ids=str)
def test_the_exact_network_fires_and_uses_every_kind_of_sum(leaks: tuple[float, float]) -> None:
    graph = _exact_network(leaks)
    batch = np.random.default_rng(13).integers(0, 256, (18, 3, 8, 8), dtype=np.uint8)
    for name, train in simulate(graph, batch).spikes.items():
        assert 0.02 < train.count() / train.neuron_steps < 0.6, name
    forms = {precision: content_of(graph, precision).notes for precision in ("exact", "exact64")}
    assert any("planes3" in note for note in forms["exact"])
    assert any("planes4" in note for note in forms["exact64"])
    assert any("slices" in note for note in forms["exact"])


# Data, and the command


def test_a_result_is_plain_json() -> None:
    checks = (Check("a", True, "tried"), Check("b", False, "why", required=False))
    result = ProbeResult("x", "a package", "a machine", checks)
    assert result.fit
    assert json.loads(json.dumps(result.as_json())) == {
        "runtime": "x", "fit": True, "reasons": [], "description": "a package", "machine": "a machine",
        "checks": [
            {"name": "a", "fit": True, "detail": "tried", "required": True},
            {"name": "b", "fit": False, "detail": "why", "required": False},
        ],
    }  # fmt: skip
    unfit = replace(result, checks=(*checks, Check("c", False, "how")))
    assert not unfit.fit
    assert unfit.as_json()["reasons"] == ["c: how"]


def test_a_package_that_is_missing_is_named() -> None:
    missing = replace(kind(), available=lambda: "pip install fake")
    with pytest.raises(DalifError) as caught:
        probe(missing)
    assert caught.value.code is Code.MISSING_PACKAGE
    assert "pip install fake" in caught.value.message


def test_the_command_says_so_by_its_exit_status() -> None:
    ran = dalif("verify", "--probe", "onnxruntime")
    assert ran.status == 0
    assert ran.out.splitlines()[-1].startswith("onnxruntime: fit for bit-exact use on this machine (")
    ran = dalif("verify", "--probe", "events", "--json")
    assert ran.status == 0
    assert ran.json()["fit"] is True


@pytest.mark.simulators
@pytest.mark.skipif(norse.available() is not None, reason=f"not installed; run: {norse.available()}")
def test_the_command_says_why_not() -> None:
    ran = dalif("verify", "--probe", "norse", "--json")
    assert ran.status == 1
    assert ran.json()["reasons"][0].startswith(MEMBRANE)
    ran = dalif("verify", "--probe", "norse")
    assert ran.status == 1
    assert "v + k (x - v)" in ran.out.splitlines()[-1]


def test_the_command_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    assert "unknown" in refused(tmp_path, Code.BAD_OPTION, "verify", "--probe", "none")
    assert "without MODEL" in refused(tmp_path, Code.BAD_OPTION, "verify", DIGITS, "--probe", "events")
