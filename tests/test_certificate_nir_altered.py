"""Files that someone altered on purpose: no sum that float32 may round is said to be exact, whatever the names.

The certificate of an altered file is made to fit it, as far as its check tells what would fit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from dalif_deploy.certificate import check_certificate
from dalif_deploy.deploy.exported import open_exported
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Add, Edge, MaxPool2d
from dalif_deploy.runtimes.registry import runtime_kind
from dalif_deploy.runtimes.sinabs import SinabsRuntime
from dalif_deploy.runtimes.snntorch import SnnTorchRuntime
from tests.test_nir_exact import conv, exact_nir, neuron, small

Alter = Callable[[nir.NIRGraph], None]
LIF_FIELDS = ("tau", "r", "v_leak", "v_reset", "v_threshold")


def findings(graph: SpikingGraph, folder: Path, alter: Alter) -> tuple[str, ...]:
    """What is found in an exact file that was altered, and given the certificate that fits it."""
    path = folder / "net.nir"
    nir.write(str(path), exact_nir(graph))
    assert check_certificate(path).holds
    altered = nir.read(str(path))
    alter(altered)
    nir.write(str(path), altered)
    found = [layer.as_json() for layer in check_certificate(path).layers]
    altered.metadata["certificate"] = json.dumps(found)
    nir.write(str(path), altered)
    return check_certificate(path).findings


def plain(**fields: Any) -> SpikingGraph:
    return small(conv("conv", "input", 1), neuron("last", "conv"), **fields)


def layer(weight: Any, size: tuple[int, int] = (6, 6), padding: tuple[int, int] = (1, 1)) -> nir.Conv2d:
    values = np.asarray(weight, dtype=np.float32)
    return nir.Conv2d(size, values, (1, 1), padding, (1, 1), 1, np.zeros(len(values), dtype=np.float32))


def test_weights_of_two_nodes_do_not_cancel_by_their_names(tmp_path: Path) -> None:
    """Each reaches 2^24; they read different values, and one is named as if it were the other's layer."""

    def alter(graph: nir.NIRGraph) -> None:
        weight = np.full((2, 2, 3, 3), 1_864_135.0)
        weight[:, 1] *= -1.0
        graph.nodes["a.high_term"], graph.nodes["a.high_term.high"] = layer(weight), layer(-weight)
        graph.nodes["both.high"] = layer(np.eye(2)[:, :, None, None], padding=(0, 0))
        del graph.nodes["second.high"]
        graph.edges = [edge for edge in graph.edges if "second.high" not in edge]
        graph.edges += [("sn", "a.high_term"), ("input", "a.high_term.high"), ("both.high", "last")]
        graph.edges += [("a.high_term", "both.high"), ("a.high_term.high", "both.high")]

    graph = small(conv("conv", "input", 1), neuron("sn", "conv"), conv("second", "sn", 2), neuron("last", "second"))
    assert any("beyond the 16777216 that float32 holds" in line for line in findings(graph, tmp_path, alter))


def test_twice_a_sum_lies_on_no_coarser_grid_than_the_sum(tmp_path: Path) -> None:
    """x + y + x, of odd x and even y: twice x is even, but x + y, which a reader may add first, is odd."""

    def alter(graph: nir.NIRGraph) -> None:
        for name, value in (("one.high", 2.0**23 - 1.0), ("two.high", 2.0**23 + 2.0)):
            weight = np.zeros((2, 2, 3, 3))
            weight[:, 0, 1, 1] = value
            graph.nodes[name] = layer(weight)

    added = Add(name="sum", inputs=(Edge("one"), Edge("two"), Edge("one")))
    graph = small(conv("one", "input", 1), conv("two", "input", 2), added, neuron("last", "sum"))
    assert any("add up to 25165824 units" in line for line in findings(graph, tmp_path, alter))


def maximum() -> SpikingGraph:
    pool = MaxPool2d(name="pool", inputs=(Edge("input"),), kernel=(5, 5), stride=(1, 1))
    return small(pool, conv("conv", "pool", 7), neuron("last", "conv"))


def with_another_sum(graph: nir.NIRGraph) -> None:
    graph.nodes["other.high"] = layer(np.ones((2, 2, 5, 5)), padding=(0, 0))
    graph.edges += [("input", "other.high"), ("other.high", "pool")]


def with_a_gain(graph: nir.NIRGraph) -> None:
    graph.nodes["pool"].r[...] /= 44.0


def with_a_reset(graph: nir.NIRGraph) -> None:
    graph.nodes["pool"].v_reset[...] = -21.5


@pytest.mark.parametrize("alter", [with_another_sum, with_a_gain, with_a_reset])
def test_a_count_that_readers_round_goes_to_nothing_but_a_maximum(alter: Alter, tmp_path: Path) -> None:
    """A 5x5 window's mean times 25 misses some counts, which only a threshold far from every count forgives."""
    found = findings(maximum(), tmp_path, alter)
    assert found == ("'pool' (LIF): does not tell whether any spike of a window is there",)


def test_places_that_nir_does_not_count_are_found(tmp_path: Path) -> None:
    """nir takes a 3x1 kernel for 3x3, and so a map of three places for one place."""

    def alter(graph: nir.NIRGraph) -> None:
        weight = np.zeros((1, 1, 3, 3))
        weight[0, 0, 1] = 2.0**24 - 1.0, 1.0, 2.0**24 - 3.0
        for half, factor in (("high", 1.0), ("low", 0.0)):
            graph.nodes[f"conv.{half}"] = layer(np.full((1, 2, 3, 1), factor), (3, 3), (0, 0))
            graph.nodes[f"second.{half}"] = layer(factor * weight, (1, 1))
        for name in ("sn", "last"):
            fields = {key: getattr(graph.nodes[name], key)[:1, :1, :1] for key in LIF_FIELDS}
            graph.nodes[name] = nir.LIF(**fields)
        graph.nodes["input"] = nir.Input(np.array([2, 3, 3]))
        graph.nodes["flat"] = nir.Flatten({"input": np.array([1, 1, 1])}, start_dim=-3, end_dim=-1)
        graph.nodes["readout"] = nir.Output(np.array([1]))
        layers = [{**entry, "shape": [1, 1, 1]} for entry in json.loads(graph.metadata["layers"])]
        graph.metadata["layers"] = json.dumps(layers)
        graph.metadata["input"] = json.dumps({**json.loads(graph.metadata["input"]), "shape": [2, 3, 3]})

    graph = small(conv("conv", "input", 1), neuron("sn", "conv"), conv("second", "sn", 2), neuron("last", "second"))
    found = findings(graph, tmp_path, alter)
    assert "'conv.high' (Conv2d): has another output than NIR infers, which takes kernels for square ones" in found


def with_scaled_codes(graph: nir.NIRGraph) -> None:
    graph.metadata["encoding"] = json.dumps({"kind": "uint8", "scale": 1 / 255, "mean": 0.0, "std": 1.0})


def with_a_mean(graph: nir.NIRGraph) -> None:
    graph.metadata["encoding"] = json.dumps({"kind": "uint8", "scale": 1.0, "mean": [0.0, 0.3], "std": 1.0})


def with_another_precision(graph: nir.NIRGraph) -> None:
    graph.metadata["precision"] = "exact64"


@pytest.mark.parametrize(("alter", "words", "run"), [
    (with_scaled_codes, "its encoding makes other numbers of codes", "its encoding scales the codes"),
    (with_a_mean, "its encoding makes other numbers of codes", "its encoding scales the codes"),
    (with_another_precision, "its precision is said to be exact64", "which no .nir has"),
])  # fmt: skip
def test_what_the_readers_do_not_get_is_found(alter: Alter, words: str, run: str, tmp_path: Path) -> None:
    assert any(words in line for line in findings(plain(codes=True), tmp_path, alter))
    with pytest.raises(DalifError, match=run) as caught:
        SnnTorchRuntime(tmp_path / "net.nir")
    assert caught.value.code is Code.FILE_DAMAGED
    with pytest.raises(DalifError) as caught:
        open_exported(tmp_path / "net.nir").open(runtime_kind("events"))
    assert caught.value.code in (Code.FILE_DAMAGED, Code.BAD_OPTION)


def with_a_smaller_half(graph: nir.NIRGraph) -> None:
    graph.nodes["conv.low"] = layer(np.ones((2, 2, 1, 1)), padding=(0, 0))


def with_a_longer_bias(graph: nir.NIRGraph) -> None:
    graph.nodes["conv.high"].bias = np.zeros(3, dtype=np.float32)


@pytest.mark.parametrize(("graph", "alter", "words"), [
    (plain, with_a_smaller_half, "the parts of 'conv' differ in their shape"),
    (plain, with_a_longer_bias, "weights and biases that do not fit each other"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_findings(
    graph: Callable[[], SpikingGraph], alter: Alter, words: str, tmp_path: Path
) -> None:
    assert any(words in line for line in findings(graph(), tmp_path, alter))


def test_a_stride_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    graph = exact_nir(plain(), "sinabs")
    graph.nodes["conv.high"].stride = np.ones(2, dtype=np.float32)
    nir.write(str(path), graph)
    with pytest.raises(DalifError, match=r"node 'conv.high' cannot be run") as caught:
        SinabsRuntime(path).run(np.zeros((1, 3, 2, 6, 6), dtype=np.float32))
    assert caught.value.code is Code.RUNTIME_CANNOT_RUN
