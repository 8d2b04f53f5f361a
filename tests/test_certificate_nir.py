"""The certificate of an exact NIR file: recomputed from the file alone, and refused where anything was altered."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.certificate import CertificateCheck, check_certificate
from dalif_deploy.certificate.nir_walk import NirWalk
from dalif_deploy.deploy.content import content_of
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Add, Edge, MaxPool2d, SumPool2d
from tests.test_exact_arithmetic import folded
from tests.test_nir_exact import conv, exact_nir, neuron, small

Alter = Callable[[nir.NIRGraph], None]
NAMES = ("two-branch residual", "identity residual", "shared producer", "ties")


@cache
def exact_file(name: str) -> nir.NIRGraph:
    content = content_of(folded(name)[0], "exact", two_slices=True)
    return to_nir(content.graph, dialect="sinabs", **content.extra)


def checked(graph: nir.NIRGraph, folder: Path, alter: Alter | None = None) -> CertificateCheck:
    """The check of a file after `alter(graph)`, on a copy."""
    path = folder / "net.nir"
    nir.write(str(path), graph)
    if alter is not None:
        copy = nir.read(str(path))
        alter(copy)
        nir.write(str(path), copy)
    return check_certificate(path)


def claims(change: Callable[[list[dict[str, Any]]], None]) -> Alter:
    def alter(graph: nir.NIRGraph) -> None:
        found = json.loads(graph.metadata["certificate"])
        change(found)
        graph.metadata["certificate"] = json.dumps(found)

    return alter


@pytest.mark.parametrize("name", NAMES)
def test_every_integer_of_the_certificate_counts(name: str, tmp_path: Path) -> None:
    graph = exact_file(name)
    assert checked(graph, tmp_path).holds
    entries = json.loads(graph.metadata["certificate"])
    for place, entry in enumerate(entries):
        keys: list[tuple[str, int | None]] = [(key, None) for key, value in entry.items() if isinstance(value, int)]
        for key, index in [*keys, ("exponents", len(entry["exponents"]) - 1)]:

            def change(found: list[dict[str, Any]], place: int = place, key: str = key, index: Any = index) -> None:
                if index is None:
                    found[place][key] += 1
                else:
                    found[place][key][index] += 1

            check = checked(graph, tmp_path, claims(change))
            assert len(check.findings) == 1, (entry["node"], key)
            assert f"'{entry['node']}': the certificate says {key}" in check.findings[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_altered_weight_is_found(name: str, tmp_path: Path) -> None:
    graph = exact_file(name)
    weighted = [name for name in graph.nodes if name.endswith((".high", ".low"))]
    assert weighted
    for node in weighted:

        def change(found: nir.NIRGraph, node: str = node) -> None:
            weight = found.nodes[node].weight.reshape(-1)
            weight[-1] = np.nextafter(weight[-1], np.float32(np.inf))

        assert not checked(graph, tmp_path, change).holds, node


@pytest.mark.parametrize("name", NAMES)
def test_every_altered_bias_is_found(name: str, tmp_path: Path) -> None:
    graph = exact_file(name)
    for node in [n for n, found in graph.nodes.items() if n.endswith((".high", ".low")) and hasattr(found, "bias")]:

        def change(found: nir.NIRGraph, node: str = node) -> None:
            found.nodes[node].bias[0] += np.float32(2.0**-10)

        assert not checked(graph, tmp_path, change).holds, node


def finding(graph: SpikingGraph, folder: Path, alter: Alter) -> str:
    """What is found first once an exact file of `graph` was altered."""
    written = exact_nir(graph)
    assert checked(written, folder).holds
    return checked(written, folder, alter).findings[0]


def plain() -> SpikingGraph:
    return small(conv("conv", "input", 1), neuron("last", "conv"))


def residual() -> SpikingGraph:
    return small(
        neuron("sn", "input"), conv("conv", "sn", 2), Add(name="sum", inputs=(Edge("conv"), Edge("sn"))),
        neuron("last", "sum"),
    )  # fmt: skip


def test_a_third_edge_into_a_neuron_is_found(tmp_path: Path) -> None:
    """Three numbers that are not exact together are rounded twice."""

    def alter(graph: nir.NIRGraph) -> None:
        graph.edges = [(source, "last" if target == "sum.high" else target) for source, target in graph.edges]
        graph.edges.remove(("sum.high", "last"))
        del graph.nodes["sum.high"]

    assert "adds up parts of both halves" in finding(residual(), tmp_path, alter)


def test_a_half_that_is_left_out_is_found(tmp_path: Path) -> None:
    def alter(graph: nir.NIRGraph) -> None:
        graph.edges = [edge for edge in graph.edges if "conv.low" not in edge]
        del graph.nodes["conv.low"]

    assert "'conv': the certificate says" in finding(plain(), tmp_path, alter)


def test_another_dialect_is_found(tmp_path: Path) -> None:
    def alter(graph: nir.NIRGraph) -> None:
        graph.metadata["dialect"] = "norse"

    assert finding(plain(), tmp_path, alter) == (
        "the dialect 'norse' is of a reader that does not compute beta H + X"
    )  # fmt: skip


def test_weights_that_readers_round_are_found(tmp_path: Path) -> None:
    def alter(graph: nir.NIRGraph) -> None:
        node = graph.nodes["conv.high"]
        node.weight = node.weight.astype(np.float64)

    assert "holds numbers of type float64" in finding(plain(), tmp_path, alter)


def test_weights_without_a_half_are_found(tmp_path: Path) -> None:
    def alter(graph: nir.NIRGraph) -> None:
        graph.nodes["conv"] = graph.nodes.pop("conv.high")
        graph.edges = [tuple("conv" if n == "conv.high" else n for n in edge) for edge in graph.edges]

    assert "is called neither <layer>.high nor <layer>.low" in finding(plain(), tmp_path, alter)


def pooled(kernel: int, kind: type[Any] = SumPool2d) -> SpikingGraph:
    pool = kind(name="pool", inputs=(Edge("sn"),), kernel=(kernel, kernel), stride=(1, 1))
    return small(neuron("sn", "input"), pool, conv("conv", "pool", 3), neuron("last", "conv"))


@pytest.mark.parametrize(("fields", "words"), [
    ({"kernel_size": np.array([5, 5])}, "which misses some whole numbers"),
    ({"padding": np.array([1, 1])}, "pads, which its readers do not"),
])  # fmt: skip
def test_a_pool_that_readers_round_is_found(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    graph = small(
        neuron("sn", "input"), SumPool2d(name="pool", inputs=(Edge("sn"),), kernel=(2, 2), stride=(1, 1)),
        conv("conv", "pool", 3), neuron("last", "conv"),
    )  # fmt: skip
    written = exact_nir(graph)
    pool = written.nodes["pool"]
    for key, value in fields.items():
        setattr(pool, key, value)
    walk = NirWalk(written, written.metadata, input_maximum=1)
    walk.run()
    assert any(words in line for line in walk.findings)


def test_an_average_is_found() -> None:
    written = exact_nir(pooled(2))
    pool = written.nodes["pool"]
    written.nodes["pool"] = nir.AvgPool2d(pool.kernel_size, pool.stride, pool.padding)
    walk = NirWalk(written, written.metadata, input_maximum=1)
    walk.run()
    assert "'pool' (AvgPool2d): is not known to compute the same everywhere" in walk.findings


def test_a_maximum_with_another_threshold_is_found(tmp_path: Path) -> None:
    def alter(graph: nir.NIRGraph) -> None:
        graph.nodes["pool"].v_threshold[...] = 1.5

    assert "whether any spike of a window is there" in finding(pooled(2, MaxPool2d), tmp_path, alter)


def test_a_cycle_is_found(tmp_path: Path) -> None:
    assert "in a cycle" in finding(residual(), tmp_path, lambda graph: graph.edges.append(("last", "conv.high")))


@pytest.mark.parametrize(("weight", "beyond"), [(2.0**24 - 1, False), (2.0**24 + 2, True)])
def test_the_limit_of_float32_is_met_exactly(weight: float, beyond: bool, tmp_path: Path) -> None:
    """One weight of 1 beside one that brings the sum to 2^24, or two beyond it."""

    def alter(graph: nir.NIRGraph) -> None:
        values: NDArray[np.float32] = graph.nodes["conv.high"].weight
        values[...] = 0.0
        values[0, 0, 1, 1], values[0, 1, 1, 1] = 1.0, weight

    found = checked(exact_nir(plain()), tmp_path, alter).findings
    assert any("its terms add up to 16777219 units" in line for line in found) == beyond


def test_files_without_a_certificate_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.nir"
    nir.write(str(path), to_nir(plain(), dialect="sinabs"))
    with pytest.raises(DalifError, match="holds no certificate") as caught:
        check_certificate(path)
    assert caught.value.code is Code.FOREIGN_FILE
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DalifError, match="truncated or damaged") as caught:
        check_certificate(path)
    assert caught.value.code is Code.FILE_DAMAGED


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[{}]"])
def test_a_certificate_that_cannot_be_read_is_damage(text: str, tmp_path: Path) -> None:
    def alter(graph: nir.NIRGraph) -> None:
        graph.metadata["certificate"] = text

    with pytest.raises(DalifError, match="its certificate cannot be read") as caught:
        checked(exact_nir(plain()), tmp_path, alter)
    assert caught.value.code is Code.FILE_DAMAGED
