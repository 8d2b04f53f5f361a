"""The canonical NIR form: what is in the file, value by value, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from dalif_deploy.equivalence.replay import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import parameters, readers, to_nir
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
    Conv2d,
    Edge,
    Input,
    MaxPool2d,
    Neuron,
    Node,
    Readout,
    Scale,
    StateVariable,
    SumPool2d,
    frozen,
)
from dalif_deploy.operators import evaluate
from tests.graphs import GRAPHS
from tests.nir_graphs import affine_chain, changed, conv_chain, one_layer, residual, three_branches

RNG = np.random.default_rng(31)


def map_graph(*middle: Node, shape: tuple[int, ...] = (2, 6, 6)) -> SpikingGraph:
    """Input, some nodes on feature maps, and a neuron layer read out as it is; nodes chain by their inputs."""
    nodes = [
        Input(name="input", shape=shape, temporal=False),
        *middle,
        Neuron(name="sn", inputs=(Edge(middle[-1].name),), alpha=frozen(1.0), beta=frozen(0.5)),
        Readout(name="readout", inputs=(Edge("sn"),), mode="sum"),
    ]
    return SpikingGraph(nodes, output="readout", timesteps=3)


def conv(**fields: object) -> Conv2d:
    """A convolution on a (2, 6, 6) input, 4 channels out."""
    given = {"weight": frozen(RNG.normal(size=(4, 2, 3, 3))), **fields}
    return Conv2d(name="conv", inputs=(Edge("input"),), **given)  # type: ignore[arg-type]


def neuron_graph(**fields: object) -> SpikingGraph:
    return changed(one_layer(1.0, 0.5, [0.1, 0.2]), "sn", **fields)[0]


# ---- values


@pytest.mark.parametrize("beta", [-0.25, 0.0, 0.25, 0.7615941762924194, 0.9, 0.99999994])
def test_lif_parameters(beta: float) -> None:
    graph, _ = changed(conv_chain(beta), "features.sn", v_reset=frozen(-0.125), v_threshold=frozen(0.7))
    node = to_nir(graph).nodes["features.sn"]
    assert type(node) is nir.LIF
    held = np.float64(graph["features.sn"].beta)
    expected = {
        "tau": 1e-4 / (1.0 - held), "r": 1.0, "v_leak": 0.0,
        "v_threshold": (1.0 - held) * 0.7, "v_reset": (1.0 - held) * -0.125,
    }  # fmt: skip
    for key, value in expected.items():
        array = getattr(node, key)
        assert array.dtype == np.float64
        assert array.shape == (6, 6, 6)
        assert np.array_equal(array, np.full((6, 6, 6), value))


def test_beta_one_is_an_if_whose_threshold_is_not_scaled() -> None:
    node = to_nir(neuron_graph(beta=frozen(1.0), v_threshold=frozen(0.7), v_reset=frozen(0.25))).nodes["sn"]
    assert type(node) is nir.IF
    assert np.array_equal(node.r, [1e4, 1e4])
    assert np.array_equal(node.v_threshold, [0.7, 0.7])
    assert np.array_equal(node.v_reset, [0.25, 0.25])


def test_leaks_come_back_from_tau() -> None:
    beta = np.random.default_rng(32).uniform(-0.99, 0.9999999, 20_000).astype(np.float32).astype(np.float64)
    nodes = [
        Input(name="input", shape=beta.shape, temporal=True),
        Neuron(name="sn", inputs=(Edge("input"),), alpha=frozen(1.0), beta=frozen(beta)),
        Readout(name="readout", inputs=(Edge("sn"),), mode="sum"),
    ]
    node = to_nir(SpikingGraph(nodes, output="readout", timesteps=1)).nodes["sn"]
    assert np.array_equal((1.0 - 1e-4 / node.tau).astype(np.float32), beta)


def test_per_channel_parameters_spread_over_the_layer() -> None:
    beta = np.linspace(-0.25, 0.9, 6).reshape(6, 1, 1)
    node = to_nir(changed(conv_chain(), "features.sn", beta=frozen(beta))[0]).nodes["features.sn"]
    assert np.array_equal(node.tau, np.broadcast_to(1e-4 / (1.0 - beta), (6, 6, 6)))


def test_weights_are_rounded_once_to_float32() -> None:
    graph, _ = conv_chain()
    nodes = to_nir(graph).nodes
    for name in ("features.conv", "fc1", "fc2"):
        stored, folded = nodes[name].weight, graph[name].weight
        assert stored.dtype == np.float32
        assert np.array_equal(stored, folded.astype(np.float32))
    assert type(nodes["fc1"]) is nir.Affine
    assert type(nodes["fc2"]) is nir.Linear
    assert np.array_equal(nodes["fc1"].bias, graph["fc1"].bias.astype(np.float32))


def test_a_convolution_without_bias_gets_zeros() -> None:
    node = to_nir(map_graph(conv())).nodes["conv"]
    assert np.array_equal(node.bias, np.zeros(4, np.float32))
    assert node.bias.dtype == np.float32


def test_flatten_leaves_a_batch_axis_alone() -> None:
    node = to_nir(conv_chain()[0]).nodes["flatten"]
    assert (node.start_dim, node.end_dim) == (-3, -1)


def test_pools() -> None:
    pool = SumPool2d(name="pool", inputs=(Edge("input"),), kernel=(2, 3), stride=(2, 1))
    node = to_nir(map_graph(pool)).nodes["pool"]
    assert type(node) is nir.SumPool2d
    assert [list(node.kernel_size), list(node.stride), list(node.padding)] == [[2, 3], [2, 1], [0, 0]]
    average = AvgPool2d(name="pool", inputs=(Edge("input"),), kernel=(2, 2), stride=(2, 2), ceil_mode=True)
    assert type(to_nir(map_graph(average)).nodes["pool"]) is nir.AvgPool2d  # ceil_mode changes nothing on 6 x 6


@pytest.mark.parametrize("options", [
    {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)},
    {"kernel": (4, 4), "stride": (4, 4), "ceil_mode": True},
    {"kernel": (2, 3), "stride": (1, 2), "padding": (1, 0), "ceil_mode": True},
    {"kernel": (3, 2), "stride": (3, 1), "padding": (0, 1)},
    {"kernel": (5, 1), "stride": (2, 4), "ceil_mode": True},
])  # fmt: skip
def test_a_padded_or_open_sum_pool_is_a_dense_convolution_with_ones(options: dict[str, Any]) -> None:
    pool = SumPool2d(name="pool", inputs=(Edge("input"),), **options)
    node = to_nir(map_graph(pool)).nodes["pool"]
    assert type(node) is nir.Conv2d
    x = np.random.default_rng(60).integers(0, 2, (3, 2, 6, 6)).astype(np.float64)
    found = torch.nn.functional.conv2d(
        torch.tensor(x), torch.tensor(node.weight.astype(np.float64)), None, node.stride, node.padding
    )
    np.testing.assert_array_equal(found.numpy(), evaluate(pool, [x]))
    assert not node.bias.any()


def test_a_neuron_that_never_leaks_beside_one_that_does() -> None:
    node = to_nir(neuron_graph(beta=frozen([1.0, 0.5]))).nodes["sn"]
    assert type(node) is nir.LIF
    assert list(1.0 - 1e-4 / node.tau) == [1.0, 0.5]
    assert list(node.v_threshold) == [2.0**-60, 0.5]


def test_names_edges_and_shapes() -> None:
    file = to_nir(conv_chain()[0])
    chain = ["input", "features.conv", "features.sn", "pool", "flatten", "fc1", "sn2", "fc2", "readout"]
    assert list(file.nodes) == chain
    assert file.edges == list(pairwise(chain))
    assert list(file.nodes["input"].input_type["input"]) == [2, 6, 6]
    assert list(file.nodes["readout"].output_type["output"]) == [5]


def test_metadata_is_strings_that_say_what_the_format_cannot() -> None:
    graph, _ = conv_chain()
    file = to_nir(graph, metadata={"tool": "9.9"})
    assert all(isinstance(value, str) for value in file.metadata.values())
    read = FileMetadata.from_strings(file.metadata, source="test")
    assert read.layers == FileMetadata.of(graph).layers
    assert read.input == graph.input_spec
    assert dict(read.extra) == {"dt": "0.0001", "dialect": "canonical", "tool": "9.9"}
    assert {layer["fires_at"] for layer in json.loads(file.metadata["layers"])} == {"ge"}


def test_parameters_survive_the_file_bit_for_bit(tmp_path: Path) -> None:
    fresh = to_nir(residual()[0])
    nir.write(str(tmp_path / "net.nir"), fresh)
    expected, found = parameters(fresh), parameters(nir.read(str(tmp_path / "net.nir")))
    assert expected.keys() == found.keys()
    assert {"stem.conv.weight", "stem.conv.bias", "stem.sn.tau", "stem.sn.v_threshold"} <= expected.keys()
    for key, values in expected.items():
        assert (values.dtype, values.shape) == (found[key].dtype, found[key].shape), key
        assert np.array_equal(values, found[key]), key


# ---- what is said in other words: each is checked by value, then by running it in test_nir_read.py


def test_sums_are_edges() -> None:
    file = to_nir(residual()[0])
    assert "block.add" not in file.nodes
    assert [edge for edge in file.edges if edge[1] == "block.sn2"] == [
        ("block.conv2", "block.sn2"), ("stem.sn", "block.sn2"),
    ]  # fmt: skip


def test_a_sum_is_given_to_each_of_its_readers_and_gathered_before_the_output() -> None:
    file = to_nir(three_branches()[0])
    terms = ["sn1", "sn2", "fc3"]
    for reader in ("fc4", "sn4"):
        assert [source for source, target in file.edges if target == reader] == terms
    gathered = [source for source, target in file.edges if target == "readout"]
    assert gathered == ["readout.sum"]
    assert np.array_equal(file.nodes["readout.sum"].weight, np.eye(12, dtype=np.float32))
    assert [source for source, target in file.edges if target == "readout.sum"] == [
        "sn3", "sn4", "sn3.copy1", *terms,
    ]  # fmt: skip
    assert len(set(file.edges)) == len(file.edges)
    assert np.array_equal(file.nodes["sn3.copy1"].weight, np.eye(12, dtype=np.float32))


def test_a_sum_of_many_terms_becomes_a_node() -> None:
    sums: list[Node] = []
    source = "input"
    for number in range(5):  # 32 times the input
        sums.append(Add(name=f"add{number}", inputs=(Edge(source), Edge(source))))
        source = sums[-1].name
    file = to_nir(map_graph(*sums))
    assert len(file.edges) < 40
    assert "add3" in file.nodes


def test_a_grouped_convolution_becomes_a_dense_one() -> None:
    weight = RNG.normal(size=(4, 1, 3, 3))
    node = to_nir(map_graph(conv(weight=frozen(weight), groups=2))).nodes["conv"]
    assert node.groups == 1
    dense = np.zeros((4, 2, 3, 3), np.float32)
    dense[:2, 0], dense[2:, 1] = weight[:2, 0], weight[2:, 0]
    assert np.array_equal(node.weight, dense)


def test_a_kernel_that_is_not_square_becomes_one() -> None:
    weight = RNG.normal(size=(4, 2, 1, 3))
    node = to_nir(map_graph(conv(weight=frozen(weight), padding=(0, 1), dilation=(2, 1)))).nodes["conv"]
    assert node.weight.shape == (4, 2, 3, 3)
    assert node.padding == (2, 1)
    assert np.array_equal(node.weight[:, :, 1:2], weight.astype(np.float32))
    assert not node.weight[:, :, [0, 2]].any()


def test_factors_become_a_diagonal_convolution() -> None:
    factor = frozen(np.array([0.5, -2.0]).reshape(2, 1, 1))
    node = to_nir(map_graph(Scale(name="s", inputs=(Edge("input"),), factor=factor, offset=frozen(0.25)))).nodes["s"]
    assert type(node) is nir.Conv2d
    assert np.array_equal(node.weight[:, :, 0, 0], np.diag([0.5, -2.0]))
    assert np.array_equal(node.bias, [0.25, 0.25])


def test_a_factor_of_one_leaves_no_node() -> None:
    unit = Scale(name="s", inputs=(Edge("input"),), factor=frozen(1.0), offset=frozen(0.0))
    assert "s" not in to_nir(map_graph(unit)).nodes


# ---- refusals


def refused(graph: SpikingGraph) -> DalifError:
    with pytest.raises(DalifError) as info:
        to_nir(graph)
    assert "\n" not in str(info.value)
    return info.value


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"reset": "subtract"}, "subtract"),
        ({"beta": frozen(1.5)}, "above 1"),
        ({"leak_target": frozen(0.5)}, "leak target"),
        ({"state": (StateVariable("membrane", 0.5),)}, "state"),
    ],
)
def test_neurons_that_the_form_cannot_hold(fields: dict[str, object], word: str) -> None:
    error = refused(neuron_graph(**fields))
    assert error.code is Code.TARGET_CANNOT_HOLD
    assert "node 'sn' (Neuron)" in error.message
    assert word in error.message


@pytest.mark.parametrize(
    ("node", "word"),
    [
        (MaxPool2d(name="p", inputs=(Edge("input"),), kernel=(2, 2), stride=(2, 2)), "NIR has no maximum"),
        (AvgPool2d(name="p", inputs=(Edge("input"),), kernel=(4, 4), stride=(4, 4), ceil_mode=True), "ceil_mode"),
        (
            AvgPool2d(
                name="p", inputs=(Edge("input"),), kernel=(3, 3), stride=(1, 1), padding=(1, 1), count_include_pad=False
            ),
            "count_include_pad",
        ),
        (
            Scale(name="p", inputs=(Edge("input"),), factor=frozen(np.arange(6.0)), offset=frozen(0.0)),
            "factor differs from place to place",
        ),
        (Conv2d(name="p", inputs=(Edge("input"),), weight=frozen(np.ones((4, 2, 1, 2)))), "square"),
        (Conv2d(name="p", inputs=(Edge("input"),), weight=frozen(np.full((4, 2, 1, 1), 1e39))), "beyond float32"),
    ],
)  # fmt: skip
def test_nodes_that_the_form_cannot_hold(node: Node, word: str) -> None:
    error = refused(map_graph(node))
    assert error.code is Code.TARGET_CANNOT_HOLD
    assert "node 'p'" in error.message
    assert word in error.message


def test_delayed_edges_are_refused() -> None:
    graph, _ = one_layer(1.0, 0.5, [0.1, 0.2])
    fed_back = Add(name="add", inputs=(Edge("fc"), Edge("sn", delay=1)))
    nodes = [fed_back, *(replace(n, inputs=(Edge("add"),)) if n.name == "sn" else n for n in graph.nodes)]
    error = refused(graph.with_nodes(nodes))
    assert error.code is Code.TARGET_CANNOT_HOLD
    assert "'add'" in error.message


def test_nodes_after_the_readout_are_refused() -> None:
    graph, _ = one_layer(1.0, 0.5, [0.1, 0.2])
    after = Scale(name="softened", inputs=(Edge("readout"),), factor=frozen(2.0), offset=frozen(0.0))
    error = refused(graph.with_nodes([*graph.nodes, after], output="softened"))
    assert error.code is Code.TARGET_CANNOT_HOLD
    assert "node 'softened' (Scale)" in error.message


def test_a_graph_that_is_not_folded_is_refused() -> None:
    assert refused(GRAPHS["plain"]()[0]).code is Code.BAD_GRAPH
    assert refused(neuron_graph(alpha=frozen(0.5))).code is Code.BAD_GRAPH


@pytest.mark.parametrize(
    "options", [{"dialect": "rockpool"}, {"metadata": {"readout": "x"}}, {"metadata": {"a/b": "x"}}]
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(DalifError) as info:
        to_nir(affine_chain()[0], **options)  # type: ignore[arg-type]
    assert info.value.code is Code.BAD_OPTION


def test_what_nobody_reads_is_not_written() -> None:
    graph, batch = one_layer(1.0, 0.5, [0.9, 0.2])
    unread = Neuron(name="unread", inputs=(Edge("fc"),), alpha=frozen(1.0), beta=frozen(0.5))
    more = SpikingGraph([*graph.nodes, unread], output="readout", timesteps=graph.timesteps)
    assert "unread" in simulate(more, batch).spikes
    file = to_nir(more)
    assert "unread" not in file.nodes
    assert "unread" not in file.metadata["layers"]


def test_the_strict_rule_is_held_and_said() -> None:
    file = to_nir(affine_chain(fires_at="gt")[0])
    assert {layer.fires_at for layer in FileMetadata.from_strings(file.metadata, source="test").layers} == {"gt"}
    said = {reader.name: reader.why for reader in readers(file)}
    assert "fires at v >= v_threshold: right where no V equals v_th" in said["spikingjelly"]
    assert "fires at v > v_threshold: right where no V equals v_th" in said["norse"]


# ---- dialects: the numbers of neurons; tests/test_ties.py runs them


@pytest.mark.parametrize("beta", [-0.25, 0.0, 0.7615941762924194, 0.9])
def test_norse(beta: float) -> None:
    node = to_nir(neuron_graph(beta=frozen(beta), v_threshold=frozen(0.7)), dialect="norse").nodes["sn"]
    canonical = to_nir(neuron_graph(beta=frozen(beta))).nodes["sn"]
    assert type(node) is nir.LIF
    assert np.array_equal(node.tau, canonical.tau)
    assert np.array_equal(node.r, [1.0, 1.0])
    step = np.float32(1e-4) * (np.float32(1.0) / np.float32(1e-4 / (1.0 - beta))) * np.float32(0.7)
    assert node.v_threshold.tolist() == [float(np.nextafter(step, np.float32(-np.inf)))] * 2


@pytest.mark.parametrize("beta", [0.25, 0.7615941762924194, 0.9])
def test_spikingjelly(beta: float) -> None:
    node = to_nir(neuron_graph(beta=frozen(beta), v_threshold=frozen(0.7)), dialect="spikingjelly").nodes["sn"]
    assert type(node) is nir.LIF
    assert np.array_equal(node.r, [1.0, 1.0])
    assert node.v_threshold.tolist() == [float(np.float32(0.7) / np.float32(1e-4 / (1.0 - beta) / 1e-4))] * 2


@pytest.mark.parametrize("beta", [0.0, 0.7615941762924194, 0.9, 1.0])
def test_snntorch(beta: float) -> None:
    node = to_nir(neuron_graph(beta=frozen(beta), v_threshold=frozen(0.7)), dialect="snntorch").nodes["sn"]
    assert type(node) is nir.LIF
    assert np.array_equal(node.tau, [1e-4 / (1.0 - beta) if beta < 1.0 else 1e-4 * 2.0**60] * 2)
    assert np.array_equal(node.r, node.tau / 1e-4)
    assert node.v_threshold.tolist() == [float(np.nextafter(np.float32(0.7), np.float32(0.0)))] * 2


@pytest.mark.parametrize(("dialect", "moved"), [("norse", True), ("spikingjelly", False)])
def test_beta_one_is_an_if_in_the_other_dialects(dialect: str, moved: bool) -> None:
    node = to_nir(neuron_graph(beta=frozen(1.0), v_threshold=frozen(0.7)), dialect=dialect).nodes["sn"]
    assert type(node) is nir.IF
    assert np.array_equal(node.r, [1e4, 1e4])
    threshold = np.float32(0.7)
    assert node.v_threshold.tolist() == [float(np.nextafter(threshold, np.float32(0.0)) if moved else threshold)] * 2


@pytest.mark.parametrize("dialect", ["norse", "spikingjelly", "snntorch"])
def test_all_but_the_neurons_is_the_canonical_form(dialect: str) -> None:
    graph = residual(0.5)[0]
    canonical, found = to_nir(graph), to_nir(graph, dialect=dialect)
    assert canonical.edges == found.edges
    neurons = {neuron.name for neuron in graph.neurons}
    for key, values in parameters(canonical).items():
        if key.rpartition(".")[0] not in neurons:
            assert np.array_equal(values, parameters(found)[key])
    assert {key for key in canonical.metadata if canonical.metadata[key] != found.metadata[key]} == {"dialect"}
    assert found.metadata["dialect"] == dialect


@pytest.mark.parametrize("dialect", ["norse", "spikingjelly", "snntorch"])
def test_thresholds_beyond_float32_are_refused(dialect: str) -> None:
    with pytest.raises(DalifError, match=r"node 'sn'.*v_threshold has values beyond float32") as info:
        to_nir(neuron_graph(v_threshold=frozen(1e39)), dialect=dialect)
    assert info.value.code is Code.TARGET_CANNOT_HOLD
