"""Exact NIR files of networks with sums and pools that are seldom met: the same bits, and certificates that hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dalif_deploy.certificate import check_certificate
from dalif_deploy.certificate.onnx_walk import Walk
from dalif_deploy.deploy.content import content_of
from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.exporters.onnx import to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Add, AvgPool2d, Conv2d, Edge, Flatten, Input, Linear, MaxPool2d, Node, Readout, SumPool2d
from dalif_deploy.nodes import frozen as f
from dalif_deploy.passes import fold
from tests.test_nir_exact import RUNTIMES, assert_exact, conv, neuron, small, written


def spikes(graph: SpikingGraph, seed: int = 3) -> Any:
    shape = (6, graph.timesteps, *graph.input.shape)
    return (np.random.default_rng(seed).random(shape) < 0.5).astype(np.float32)


def holds(graph: SpikingGraph, folder: Path, batch: Any = None) -> None:
    """Both simulators, and events from the file, give the bits of the definition; the certificate holds."""
    held = content_of(graph, "exact", two_slices=True)
    for dialect in RUNTIMES:
        assert_exact(held, written(held, dialect, folder), dialect, spikes(graph) if batch is None else batch)


def twice(kind: str) -> SpikingGraph:
    """A sum that is added to itself: alone, beside another layer, with a bias, and with spikes in it."""
    bias = f(np.array([0.3, -0.7])) if kind == "bias" else None
    nodes: list[Node] = [neuron("sn", "input"), conv("one", "sn", 1, bias=bias), conv("two", "sn", 2)]
    nodes.append(Add(name="inner", inputs=(Edge("one"), Edge("sn" if kind == "spikes" else "two"))))
    source = "inner" if kind in ("sum", "spikes") else "one"
    inputs = (source, source) if kind == "alone" else (source, "two", source)
    return small(*nodes, Add(name="sum", inputs=tuple(map(Edge, inputs))), neuron("last", "sum"))


@pytest.mark.parametrize("kind", ["alone", "layer", "bias", "sum", "spikes"])
def test_a_sum_that_is_added_to_itself(kind: str, tmp_path: Path) -> None:
    graph = twice(kind)
    holds(graph, tmp_path)
    for two_slices in (True, False):
        held = content_of(graph, "exact", two_slices=two_slices)
        path = tmp_path / "net.onnx"
        path.write_bytes(to_onnx(held.graph, **held.extra).SerializeToString())
        assert check_certificate(path).findings == ()


def test_weights_of_one_name_do_not_cancel() -> None:
    """Weights whose names begin alike, of different values: 2^24 and -2^24, of which each may come alone."""
    row = np.array([[2.0**23, -(2.0**23 - 1.0), 2.0**23, -(2.0**23)]])
    nodes = [
        helper.make_node("Gemm", ["a", "x.one"], ["x"], name="x", transB=1),
        helper.make_node("Gemm", ["b", "x.two"], ["y"], name="y", transB=1),
        helper.make_node("Add", ["x", "y"], ["total"], name="total"),
    ]
    found = findings(nodes, {"x.one": row, "x.two": -row})
    assert len(found) == 1
    assert "its terms add up to 33554431 units" in found[0]


def findings(nodes: list[Any], weights: dict[str, Any]) -> list[str]:
    tensors = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    inputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 4]) for n in ("a", "b")]
    output = helper.make_tensor_value_info("total", onnx.TensorProto.FLOAT, ["N", 1])
    walk = Walk(helper.make_graph(nodes, "g", inputs, [output], tensors), input_maximum=1, membrane="float32")
    walk.run()
    return walk.findings


# Pools.


def test_a_pool_of_spikes_that_are_added_twice(tmp_path: Path) -> None:
    """Its windows are padded, so that it is a convolution, and it reads two edges."""
    pool = SumPool2d(name="pool", inputs=(Edge("both"),), kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    nodes = [neuron("sn", "input"), Add(name="both", inputs=(Edge("sn"), Edge("sn"))), pool]
    flat = [Flatten(name="flat", inputs=(Edge("pool"),)), dense("fc", "flat", 18)]
    holds(ending(*nodes, *flat), tmp_path)


def dense(name: str, source: str, inputs: int) -> Linear:
    return Linear(name=name, inputs=(Edge(source),), weight=f(np.random.default_rng(5).normal(size=(4, inputs))))


def ending(*nodes: Node, shape: tuple[int, ...] = (2, 6, 6), encoding: Encoding | None = None) -> SpikingGraph:
    """`nodes` from "input" to "fc", which is read out."""
    given = Input(name="input", shape=shape, temporal=True, kind="spike" if encoding is None else "real")
    nodes = (given, *nodes, Readout(name="readout", inputs=(Edge("fc"),), mode="sum"))
    return fold(SpikingGraph(nodes, output="readout", timesteps=3, encoding=encoding))


@pytest.mark.parametrize("pool", [SumPool2d, AvgPool2d])
def test_an_open_window_that_is_larger_than_the_map(pool: type[Any], tmp_path: Path) -> None:
    nodes = [
        neuron("sn", "input"),
        pool(name="pool", inputs=(Edge("sn"),), kernel=(8, 8), stride=(3, 3), ceil_mode=True),
        Flatten(name="flat", inputs=(Edge("pool"),)),
        dense("fc", "flat", 2),
    ]
    holds(ending(*nodes), tmp_path)


@pytest.mark.parametrize("dialect", RUNTIMES)
@pytest.mark.parametrize("kind", [SumPool2d, MaxPool2d])
def test_padded_windows_that_no_square_kernel_is_are_refused(kind: type[Any], dialect: str) -> None:
    """At a stride of 1 a kernel's side is odd or even as the window is, in both directions."""
    pool = kind(name="last", inputs=(Edge("input"),), kernel=(3, 2), stride=(1, 1), padding=(1, 1))
    with pytest.raises(DalifError, match=r"node 'last' \(SumPool2d\): the height and width of its windows") as caught:
        to_nir(small(pool), dialect=dialect)
    assert caught.value.code is Code.TARGET_CANNOT_HOLD


def test_a_convolution_of_one_place_reaches_as_the_certificate_says(tmp_path: Path) -> None:
    """Its kernel has more weights than meet the only place of a map with one channel."""
    nodes = [
        neuron("sn", "input"),
        Conv2d(name="conv", inputs=(Edge("sn"),), weight=f(np.full((3, 1, 3, 3), 0.3)), padding=(1, 1)),
        neuron("last", "conv"),
        Flatten(name="flat", inputs=(Edge("last"),)),
        dense("fc", "flat", 3),
    ]
    holds(ending(*nodes, shape=(1, 1, 1)), tmp_path)


def test_a_padded_pool_of_one_place_counts_as_the_certificate_says(tmp_path: Path) -> None:
    """Of its windows' places only one is there."""
    pool = SumPool2d(name="pool", inputs=(Edge("sn"),), kernel=(1, 3), stride=(1, 1), padding=(0, 1))
    nodes = [neuron("sn", "input"), pool, Flatten(name="flat", inputs=(Edge("pool"),)), dense("fc", "flat", 1)]
    holds(ending(*nodes, shape=(1, 1, 1)), tmp_path)


def test_a_mean_whose_map_is_the_same_in_every_place(tmp_path: Path) -> None:
    """A Scale of zeros reads zeros, and these are made of the input, not of sums."""
    weight = np.random.default_rng(6).normal(size=(2, 1, 9, 9))
    nodes = [
        Conv2d(name="conv", inputs=(Edge("input"),), weight=f(weight), padding=(4, 4)),
        neuron("last", "conv"),
        Flatten(name="flat", inputs=(Edge("last"),)),
        dense("fc", "flat", 2),
    ]
    encoding = Encoding(kind="uint8", scale=1 / 255, mean=0.4)
    graph = ending(*nodes, shape=(1, 1, 1), encoding=encoding)
    holds(graph, tmp_path, np.random.default_rng(7).integers(0, 256, (6, 3, 1, 1, 1), dtype=np.uint8))


def test_a_padded_identity_is_read_back_as_a_convolution(tmp_path: Path) -> None:
    """It is no pool, whose padding is half of its windows at most."""
    weight = f(np.eye(2)[:, :, None, None])
    padded = Conv2d(name="conv", inputs=(Edge("input"),), weight=weight, padding=(1, 1))
    holds(small(padded, neuron("last", "conv")), tmp_path)


def test_a_sum_of_many_terms_is_read_back(tmp_path: Path) -> None:
    """They are collected before the half that they add up to, which then has a single edge."""
    added = Add(name="sum", inputs=(Edge("one"), *[Edge("sn")] * 8))
    holds(small(neuron("sn", "input"), conv("one", "sn", 1), added, neuron("last", "sum")), tmp_path)


@pytest.mark.parametrize("size", [(1, 4), (4, 1), (2, 5), (5, 2), (3, 4), (4, 3), (5, 6), (3, 5)])
def test_a_mean_at_the_borders_of_any_map(size: tuple[int, int], tmp_path: Path) -> None:
    """What the mean makes of padded borders is a map, of a kernel that nir takes for a square one."""
    codes = Encoding(kind="uint8", scale=1 / 255, mean=(0.4, 0.3))
    nodes = [
        conv("conv", "input", 1),
        neuron("sn", "conv"),
        Flatten(name="flat", inputs=(Edge("sn"),)),
        dense("fc", "flat", 2 * size[0] * size[1]),
    ]
    graph = ending(*nodes, shape=(2, *size), encoding=codes)
    holds(graph, tmp_path, np.random.default_rng(9).integers(0, 256, (4, 3, 2, *size), dtype=np.uint8))
