"""The torch runtime: torch's own modules are what it is held against, and its process is left as found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dalif_deploy.encoding import Encoding
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Pool2d,
    Readout,
    ReadoutMode,
    Scale,
    SumPool2d,
    frozen,
)
from dalif_deploy.operators import evaluate
from dalif_deploy.runtimes.torch import TorchRuntime, available


def _at(source: str) -> tuple[Edge, ...]:
    return (Edge(source),)


def _graph(*nodes: Node, shape: tuple[int, ...], timesteps: int = 1, mode: ReadoutMode = "sum", temporal: bool = False,
           encoding: Encoding | None = None) -> SpikingGraph:  # fmt: skip
    source = Input(name="input", shape=shape, temporal=temporal)
    readout = Readout(name="readout", inputs=_at(nodes[-1].name), mode=mode)
    return SpikingGraph([source, *nodes, readout], output="readout", timesteps=timesteps, encoding=encoding)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return frozen(tensor.detach().numpy())


def _trained_norm(norm: nn.BatchNorm2d | nn.BatchNorm1d) -> None:
    for tensor, low, high in ((norm.weight, -1, 1), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
        nn.init.uniform_(tensor, low, high)
    nn.init.uniform_(norm.running_var, 0.5, 2)


def _norm_node(name: str, source: str, norm: nn.BatchNorm2d | nn.BatchNorm1d) -> BatchNorm:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return BatchNorm(
        name=name, inputs=_at(source), weight=_array(norm.weight), bias=_array(norm.bias),
        mean=_array(norm.running_mean), variance=_array(norm.running_var), epsilon=norm.eps,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_computes_what_torchs_modules_compute(dtype: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        nn.BatchNorm2d(6),
        nn.AvgPool2d(2, 1, padding=1, count_include_pad=False),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(48, 5),
        nn.BatchNorm1d(5),
    )
    conv, norm, _, _, _, fc, norm1d = net
    _trained_norm(norm)
    _trained_norm(norm1d)
    graph = _graph(
        Conv2d(
            name="conv", inputs=_at("input"), weight=_array(conv.weight), bias=_array(conv.bias),
            stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2,
        ),
        _norm_node("norm", "conv", norm),
        AvgPool2d(
            name="avg", inputs=_at("norm"), kernel=(2, 2), stride=(1, 1), padding=(1, 1), count_include_pad=False
        ),
        MaxPool2d(name="max", inputs=_at("avg"), kernel=(2, 2), stride=(2, 2), ceil_mode=True),
        Flatten(name="flatten", inputs=_at("max")),
        Linear(name="fc", inputs=_at("flatten"), weight=_array(fc.weight), bias=_array(fc.bias)),
        _norm_node("norm1d", "fc", norm1d),
        shape=(4, 6, 5),
    )  # fmt: skip
    images = np.random.default_rng(2).normal(size=(3, 4, 6, 5)).astype(np.float32)
    net.eval().to(getattr(torch, dtype))
    with torch.no_grad():
        expected = net(torch.from_numpy(images).to(getattr(torch, dtype))).numpy()

    logits = TorchRuntime(graph, dtype=dtype).run(images).logits  # type: ignore[arg-type]

    assert logits.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(logits, expected)


@st.composite
def _any_pool(draw: st.DrawFn) -> tuple[Pool2d, tuple[int, ...]]:
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    kind = draw(st.sampled_from([SumPool2d, MaxPool2d, AvgPool2d]))
    extra = {"count_include_pad": draw(st.booleans())} if kind is AvgPool2d else {}
    pool = kind(
        name="pool", inputs=_at("input"), kernel=kernel,
        stride=draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        padding=tuple(draw(st.integers(0, k // 2)) for k in kernel), ceil_mode=draw(st.booleans()), **extra,
    )  # fmt: skip
    return pool, (2, draw(st.integers(kernel[0], 9)), draw(st.integers(kernel[1], 9)))


@given(_any_pool(), st.integers(0, 2**16))
@settings(max_examples=150, deadline=None)
def test_pools_of_whole_numbers_equal_the_numpy_operators(case: tuple[Pool2d, tuple[int, ...]], seed: int) -> None:
    pool, shape = case
    values = np.random.default_rng(seed).integers(-5, 6, (2, *shape)).astype(np.float32)
    logits = TorchRuntime(_graph(pool, shape=shape)).run(values).logits
    np.testing.assert_array_equal(logits, evaluate(pool, [values.astype(np.float64)]))


def test_scale_and_add() -> None:
    graph = _graph(
        Scale(name="scale", inputs=_at("input"), factor=frozen([[[2.0]], [[-0.5]]]), offset=frozen(1.0)),
        Add(name="add", inputs=(Edge("scale"), Edge("input"), Edge("input"))),
        shape=(2, 1, 2),
    )
    values = np.arange(4, dtype=np.float32).reshape(1, 2, 1, 2)
    expected = values * np.array([2.0, -0.5]).reshape(2, 1, 1) + 1 + 2 * values
    np.testing.assert_array_equal(TorchRuntime(graph).run(values).logits, expected)


@pytest.mark.parametrize(
    ("mode", "expected"), [("sum", [1.5, -3.0]), ("mean", [0.5, -1.0]), ("last", [0.25, 2.0]), ("max", [1.0, 2.0])]
)
def test_readouts(mode: ReadoutMode, expected: list[float]) -> None:
    flatten = Flatten(name="flatten", inputs=_at("input"))
    graph = _graph(flatten, shape=(2,), timesteps=3, mode=mode, temporal=True)
    batch = np.array([[[1.0, -4.0], [0.25, -1.0], [0.25, 2.0]]], np.float32)
    np.testing.assert_array_equal(TorchRuntime(graph).run(batch).logits, [expected])


def test_leak_and_current_are_rounded_before_they_are_added() -> None:
    # beta H = (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 needs 25 bits. Rounded by itself it loses the last of them, and
    # with it reaches no threshold of 2^-11 + 2^-24; a fused multiply-add keeps it.
    value, threshold = 1 + 2.0**-12, 2.0**-11 + 2.0**-24
    neuron = Neuron(
        name="sn", inputs=_at("input"), alpha=frozen(1.0), beta=frozen(-value), v_threshold=frozen(threshold)
    )
    graph = _graph(neuron, shape=(64,), timesteps=2, temporal=True)
    batch = np.empty((1, 2, 64), np.float32)
    batch[:, 0], batch[:, 1] = -value, -1.0
    assert TorchRuntime(graph, dtype="float32").run(batch).spikes["sn"].count() == 0
    assert TorchRuntime(graph, dtype="float64").run(batch).spikes["sn"].count() == 64


def test_neither_reads_nor_changes_the_settings_of_the_process() -> None:
    torch.manual_seed(3)
    graph = _graph(
        Conv2d(
            name="conv", inputs=_at("input"), weight=frozen(torch.randn(64, 16, 3, 3).numpy()), padding=(1, 1)
        ),
        Flatten(name="flatten", inputs=_at("conv")),
        Linear(name="fc", inputs=_at("flatten"), weight=frozen(torch.randn(32, 4096).numpy())),
        shape=(16, 8, 8),
    )  # fmt: skip
    batch = np.random.default_rng(4).normal(size=(16, 16, 8, 8)).astype(np.float32)
    expected = TorchRuntime(graph, dtype="float32").run(batch).logits
    before = torch.get_float32_matmul_precision()
    default = torch.get_default_dtype()
    try:
        torch.set_float32_matmul_precision("medium")
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
            found = TorchRuntime(graph, dtype="float32").run(batch).logits
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_default_dtype(default)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert torch.is_grad_enabled()


def test_logits_are_ordinary_writable_arrays_of_their_own() -> None:
    graph = _graph(Flatten(name="flatten", inputs=_at("input")), shape=(2,), mode="last")
    runtime = TorchRuntime(graph)
    batch = np.ones((1, 2), np.float32)
    first = runtime.run(batch).logits
    first[...] = 7.0
    np.testing.assert_array_equal(runtime.run(batch).logits, [[1.0, 1.0]])
    np.testing.assert_array_equal(batch, 1.0)


def test_says_what_it_is() -> None:
    runtime = TorchRuntime(_graph(Flatten(name="flatten", inputs=_at("input")), shape=(2,)), dtype="float32")
    assert runtime.name == "torch"
    assert torch.__version__ in runtime.description
    assert "float32" in runtime.description
    assert available() is None
