"""The ONNX exporter: what it writes, that ONNX Runtime computes the network from it, and what it refuses.

Weights, leaks and inputs of the graphs built here are multiples of small powers of two, so that float32 and
float64 compute the same numbers: spikes must be equal, ties included, without any tolerance.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from dalif_deploy import __version__
from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence.replay import NeuronStep, replay, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters import onnx as exporter
from dalif_deploy.exporters.onnx import components, parameters, to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nodes import (
    Add,
    AvgPool2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Readout,
    ReadoutMode,
    Scale,
    StateVariable,
    SumPool2d,
    frozen,
)
from dalif_deploy.operators import reduce_time
from dalif_deploy.passes import fold
from tests.graphs import GRAPHS, SPECIAL_GRAPHS

Values = NDArray[np.float32]


def dyadic(seed: int, *shape: int, low: int = -4, high: int = 5, unit: float = 1 / 8) -> NDArray[np.float64]:
    """Multiples of `unit` in low * unit .. (high - 1) * unit."""
    return np.random.default_rng(seed).integers(low, high, shape) * unit


def data(seed: int, *shape: int) -> Values:
    return dyadic(seed, *shape, low=0, high=5, unit=1 / 4).astype(np.float32)


def conv(name: str, source: str, channels: tuple[int, int], seed: int, **rules: Any) -> Conv2d:
    into, out = channels
    groups = rules.get("groups", 1)
    rules.setdefault("padding", (1, 1))
    kernel = rules.pop("kernel", (3, 3))
    weight = frozen(dyadic(seed, out, into // groups, *kernel, low=-3))
    return Conv2d(name=name, inputs=(Edge(source),), weight=weight, bias=frozen(dyadic(seed + 1, out)), **rules)


def linear(
    name: str, source: str, features: tuple[int, int], seed: int, *, delay: int = 0, bias: bool = True
) -> Linear:
    into, out = features
    return Linear(
        name=name,
        inputs=(Edge(source, delay),),
        weight=frozen(dyadic(seed, out, into, low=-3)),
        bias=frozen(dyadic(seed + 1, out)) if bias else None,
    )


def neuron(name: str, source: str, *, beta: object = 0.5, **rules: Any) -> Neuron:
    for key in ("v_threshold", "v_reset", "leak_target"):
        if key in rules:
            rules[key] = frozen(rules[key])
    return Neuron(name=name, inputs=(Edge(source),), alpha=frozen(1.0), beta=frozen(beta), **rules)


def flatten(source: str, name: str = "flatten") -> Flatten:
    return Flatten(name=name, inputs=(Edge(source),))


def readout(source: str, mode: ReadoutMode = "mean") -> Readout:
    return Readout(name="readout", inputs=(Edge(source),), mode=mode)


def network(
    *,
    timesteps: int = 4,
    mode: ReadoutMode = "mean",
    temporal: bool = False,
    shape: tuple[int, ...] = (2, 6, 6),
    **rules: Any,
) -> SpikingGraph:
    """conv - neuron - conv - neuron - flatten - linear, folded; `rules` are those of both neurons."""
    return SpikingGraph(
        [
            Input(name="image", shape=shape, temporal=temporal),
            conv("conv1", "image", (2, 4), 1),
            neuron("sn1", "conv1", **rules),
            conv("conv2", "sn1", (4, 4), 3),
            neuron("sn2", "conv2", **rules),
            flatten("sn2"),
            linear("fc", "flatten", (4 * 36, 3), 5),
            readout("fc", mode),
        ],
        output="readout",
        timesteps=timesteps,
    )


@dataclass
class Ran:
    spikes: dict[str, NDArray[np.bool_]]
    logits: Values


def run(model: onnx.ModelProto, batch: NDArray[Any], outputs: list[str] | None = None) -> list[Values]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(outputs, {"input": batch}))


def run_with_spikes(graph: SpikingGraph, batch: NDArray[Any]) -> Ran:
    """Through ONNX Runtime, spikes by the file's own outputs."""
    names = [layer.name for layer in graph.neurons]
    logits, *spikes = run(to_onnx(graph, outputs="spikes"), batch, ["logits", *(f"{name}/spikes" for name in names)])
    for values in spikes:
        assert values.dtype == np.float32
        assert np.isin(values, (0.0, 1.0)).all()
    return Ran({name: values != 0 for name, values in zip(names, spikes, strict=True)}, logits)


def assert_fires_alike(graph: SpikingGraph, batch: NDArray[Any], *, vacuous: Iterable[str] = ()) -> Ran:
    """ONNX Runtime against the float64 reference: the same spikes, and no layer that never or always fires."""
    ran, reference = run_with_spikes(graph, batch), simulate(graph, batch)
    assert set(ran.spikes) == set(reference.spikes)
    for name, train in reference.spikes.items():
        assert ran.spikes[name].shape == (len(batch), graph.timesteps, *train.shape)
        assert np.array_equal(ran.spikes[name], train.unpack()), name
        assert name in vacuous or 0 < train.count() < train.neuron_steps, f"{name} proves nothing"
    assert ran.logits.shape == reference.logits.shape
    return ran


def refused(code: Code, *words: str) -> Any:
    """A context in which a DalifError of this code is raised whose message holds all `words`."""
    pattern = "".join(f"(?=.*{word})" for word in words)
    return pytest.raises(DalifError, match=rf"^\[{code.identifier}\]{pattern}")


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


# What the file looks like.


def test_time_is_unrolled_for_neurons_only() -> None:
    few, many = operators(to_onnx(network(timesteps=2))), operators(to_onnx(network(timesteps=7)))
    for count in (few, many):
        assert (count["Conv"], count["Gemm"], count["Flatten"]) == (2, 1, 1)
        # conv1 is fed by a static image: computed once, not split. conv2's currents are split for sn2.
        assert count["Split"] == 1
        assert count["Concat"] == 2
    assert (few["GreaterOrEqual"], many["GreaterOrEqual"]) == (2 * 2, 2 * 7)
    assert (few["Cast"], many["Cast"]) == (2 * 2, 2 * 7)
    # V[0] = X[0] needs no leak, and the last membrane is never read.
    assert (few["Add"], many["Add"]) == (2 * 1, 2 * 6)
    assert (few["Sub"], many["Sub"]) == (2 * 1, 2 * 6)


def test_only_stock_operators_of_the_neuron_equation() -> None:
    for make in (GRAPHS["plain"], GRAPHS["threshold and reset"], GRAPHS["subtract reset"], GRAPHS["temporal spikes"]):
        model = to_onnx(fold(make()[0]))
        assert {node.domain for node in model.graph.node} == {""}
        assert not {"BatchNormalization", "Where", "Tanh", "Sigmoid", "If", "Loop", "Scan"} & set(operators(model))
        assert not model.functions


def test_a_static_current_is_read_at_every_timestep() -> None:
    model = to_onnx(network(timesteps=3))
    readers = [node.name for node in model.graph.node if "conv1/output" in node.input]
    # At t0 the current is the potential; later steps add it to the leak.
    assert readers == ["sn1/t0/fires", "sn1/t0/membrane", "sn1/t1/potential", "sn1/t2/potential"]


def test_names_read_like_the_network() -> None:
    model = to_onnx(network(timesteps=3))
    values = {output for node in model.graph.node for output in node.output}
    assert {"conv1/output", "sn1/t2/spikes", "sn1/t1/potential", "sn1/t0/membrane", "conv2/t1/output"} <= values
    assert {node.name for node in model.graph.node} >= {"conv1", "conv2", "fc", "readout", "sn2/t0/spikes"}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_inputs_and_outputs() -> None:
    def described(values: Iterable[Any]) -> dict[str, list[Any]]:
        return {
            v.name: [v.type.tensor_type.elem_type]
            + [dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim]
            for v in values
        }

    static, temporal = to_onnx(network()), to_onnx(network(temporal=True), outputs="spikes")
    assert described(static.graph.input) == {"input": [1, "batch", 2, 6, 6]}
    assert described(static.graph.output) == {"logits": [1, "batch", 3]}
    assert described(temporal.graph.input) == {"input": [1, "batch", 4, 2, 6, 6]}
    assert described(temporal.graph.output) == {
        "logits": [1, "batch", 3],
        "sn1/spikes": [1, "batch", 4, 4, 6, 6],
        "sn2/spikes": [1, "batch", 4, 4, 6, 6],
    }


def test_initialisers_are_shared_over_time() -> None:
    few = {tensor.name for tensor in to_onnx(network(timesteps=2)).graph.initializer}
    many = {tensor.name for tensor in to_onnx(network(timesteps=9)).graph.initializer}
    parameters_of_file = {
        *("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc.weight", "fc.bias"),
        *("sn1.beta", "sn1.v_threshold", "sn2.beta", "sn2.v_threshold"),
    }
    assert parameters_of_file <= few
    assert {name for name in few if "/" not in name} == {name for name in many if "/" not in name} == parameters_of_file


def test_parameters_are_float32_rounded_once() -> None:
    value = 1.0 + 2.0**-24 + 2.0**-50  # half-way between two float32 numbers, and a little more
    graph = network().replaced(
        {"fc": Linear(name="fc", inputs=(Edge("flatten"),), weight=frozen(np.full((3, 144), value)))}
    )
    found = parameters(to_onnx(graph))
    assert found["fc.weight"].dtype == np.float32
    assert np.array_equal(found["fc.weight"], np.full((3, 144), 1.0 + 2.0**-23))
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}  # no axes, no shapes
    assert np.array_equal(found["conv1.weight"], graph["conv1"].arrays()["weight"])
    assert found["sn1.beta"] == np.float32(0.5)


def test_a_changed_weight_shows_in_the_parameters() -> None:
    model = to_onnx(network())
    fresh = parameters(model)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[1, 2, 0, 0] += 1e-3
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    changed = [name for name, array in parameters(model).items() if not np.array_equal(array, fresh[name])]
    assert changed == ["conv2.weight"]


def test_unreadable_parameters() -> None:
    model = to_onnx(network())
    model.graph.initializer[0].raw_data = b"\x00\x00\x00"
    with refused(Code.FILE_DAMAGED, model.graph.initializer[0].name):
        parameters(model)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with refused(Code.FOREIGN_FILE, model.graph.initializer[0].name):
        parameters(model)


def test_metadata_comes_back() -> None:
    encoding = Encoding(kind="uint8", scale=1 / 16, mean=(0.5, 0.25), std=2.0)
    source = network(v_threshold=1.25)
    graph = SpikingGraph(
        source.nodes, output="readout", timesteps=3, encoding=encoding, class_names=("a", "b", "c"), history=("folded",)
    )
    model = to_onnx(graph, metadata={"source_sha256": "abc"})
    strings = {entry.key: entry.value for entry in model.metadata_props}
    found, wanted = FileMetadata.from_strings(strings, source="x"), FileMetadata.of(graph)
    assert found.extra["source_sha256"] == "abc"
    assert (found.input, found.readout, found.layers) == (wanted.input, wanted.readout, wanted.layers)
    assert (found.class_names, found.fold_log) == (("a", "b", "c"), ("folded",))
    assert (model.producer_name, model.producer_version) == ("dalif_deploy", __version__)
    assert "3 timesteps" in model.doc_string


def test_the_exporters_metadata_cannot_be_overwritten() -> None:
    with refused(Code.BAD_OPTION, "timesteps"):
        to_onnx(network(), metadata={"timesteps": "7"})


@pytest.mark.parametrize("opset", [18, 19, 21, 23])
def test_a_given_opset_is_used(opset: int) -> None:
    model = to_onnx(network(), opset=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == onnx.helper.find_min_ir_version_for(list(model.opset_import))
    batch = data(1, 2, 2, 6, 6)
    assert np.array_equal(run(model, batch)[0], run(to_onnx(network()), batch)[0])


def test_opsets_up_to_what_onnx_knows() -> None:
    highest = onnx.defs.onnx_opset_version()
    assert to_onnx(network(), opset=highest).opset_import[0].version == highest
    for bad in (17, highest + 1, 0, -1, True, 18.5, "18"):
        with refused(Code.BAD_OPTION, "opset", str(bad)):
            to_onnx(network(), opset=bad)  # type: ignore[arg-type]


def test_outputs_must_be_known() -> None:
    with refused(Code.BAD_OPTION, "potentials"):
        to_onnx(network(), outputs="potentials")  # type: ignore[arg-type]


def test_the_same_graph_gives_the_same_bytes() -> None:
    program = (
        "import hashlib; from tests.test_onnx_export import network, recurrent; "
        "from dalif_deploy.exporters.onnx import to_onnx; "
        "print(*[hashlib.sha256(to_onnx(g, outputs='spikes').SerializeToString()).hexdigest() "
        "for g in (network(), recurrent())])"
    )
    here = [
        hashlib.sha256(to_onnx(g, outputs="spikes").SerializeToString()).hexdigest() for g in (network(), recurrent())
    ]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == here  # strings hash otherwise in another process


# That it computes the network.


@pytest.mark.parametrize("name", [*GRAPHS, *SPECIAL_GRAPHS])
def test_spikes_of_every_calibrated_graph(name: str) -> None:
    graph, batch = {**GRAPHS, **SPECIAL_GRAPHS}[name]()
    folded = fold(graph)
    if "ties" not in name:  # those are exact in float32; elsewhere no potential may lie near its threshold
        margins: list[float] = []

        def nearest(step: NeuronStep) -> None:
            assert step.bound is not None
            margins.append((np.abs(step.potential - step.neuron.v_threshold) / step.bound).min())

        replay(folded, batch, nearest, update="sum")
        assert min(margins) > 1
    inputs = graph.input_spec.module_input(batch)
    ran, reference = run_with_spikes(folded, inputs), simulate(graph, batch)
    for layer, train in reference.spikes.items():
        assert np.array_equal(ran.spikes[layer], train.unpack()), layer


RULES: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "strict": {"fires_at": "gt"},
    "subtract": {"reset": "subtract", "v_threshold": 0.75},
    "subtract, strict": {"reset": "subtract", "fires_at": "gt"},
    "reset to a value": {"v_reset": -0.25, "v_threshold": 0.625},
    "beta 0": {"beta": 0.0},
    "beta 1": {"beta": 1.0},
    "beta negative": {"beta": -0.75},
    "leak target": {"leak_target": 0.25},
    "leak target, subtract": {"leak_target": -0.5, "reset": "subtract"},
    "initial membrane": {"state": (StateVariable("membrane", 0.5),)},
    "initial membrane and leak target": {"state": (StateVariable("membrane", -0.25),), "leak_target": 0.5},
    "per channel": {
        "beta": dyadic(1, 4, 1, 1, low=-7, high=9),
        "v_threshold": dyadic(2, 4, 1, 1, low=2, high=9),
        "v_reset": dyadic(3, 4, 1, 1),
    },
    "per channel, subtract": {
        "beta": dyadic(1, 4, 1, 1, low=-7, high=9),
        "v_threshold": dyadic(2, 4, 1, 1, low=2, high=9),
        "reset": "subtract",
    },
    "per neuron": {
        "beta": dyadic(4, 4, 6, 6, low=-7, high=9),
        "v_threshold": dyadic(5, 4, 6, 6, low=2, high=9),
        "leak_target": dyadic(6, 4, 6, 6),
    },
}


@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("rules", RULES)
def test_neuron_rules(rules: str, temporal: bool) -> None:
    graph = network(temporal=temporal, timesteps=5, **RULES[rules])
    batch = data(7, 3, *([5] if temporal else []), 2, 6, 6)
    assert_fires_alike(graph, batch)


def test_the_threshold_itself_is_met() -> None:
    """V == v_threshold fires under >= and not under >, so the two rules must differ here."""
    batch = data(7, 3, 2, 6, 6)
    fired = {rule: run_with_spikes(network(fires_at=rule), batch).spikes["sn1"] for rule in ("ge", "gt")}
    assert (fired["ge"][:, 0] & ~fired["gt"][:, 0]).any()
    assert not (~fired["ge"][:, 0] & fired["gt"][:, 0]).any()


@pytest.mark.parametrize("timesteps", [1, 2, 16])
@pytest.mark.parametrize("temporal", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_and_any_number_of_timesteps(timesteps: int, temporal: bool, batch: int) -> None:
    graph = network(temporal=temporal, timesteps=timesteps)
    assert_fires_alike(graph, data(8, batch, *([timesteps] if temporal else []), 2, 6, 6))


def test_one_model_takes_any_batch_size() -> None:
    model = to_onnx(network())
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = data(9, 5, 2, 6, 6)
    whole = session.run(None, {"input": batch})[0]
    assert whole.shape == (5, 3)
    assert np.array_equal(session.run(None, {"input": batch[:1]})[0], whole[:1])
    assert np.array_equal(session.run(None, {"input": batch[1:4]})[0], whole[1:4])


def reads_out(mode: ReadoutMode, timesteps: int, features: int) -> SpikingGraph:
    nodes: list[Node] = [Input(name="x", shape=(features,), temporal=True), readout("x", mode)]
    return SpikingGraph(nodes, output="readout", timesteps=timesteps)


@pytest.mark.parametrize("mode", ["mean", "sum", "last", "max"])
@pytest.mark.parametrize("timesteps", [1, 2, 5, 16])
def test_readouts_equal_the_shared_definition(mode: ReadoutMode, timesteps: int) -> None:
    batch = np.random.default_rng(timesteps).normal(size=(3, timesteps, 10)).astype(np.float32)
    (logits,) = run(to_onnx(reads_out(mode, timesteps, 10)), batch)
    # Bit for bit, on values that round: ONNX Runtime, too, sums in the order of time and divides once.
    assert np.array_equal(logits, reduce_time(batch, mode))


@pytest.mark.parametrize("mode", ["mean", "sum", "last", "max"])
def test_readouts_of_a_spiking_network(mode: ReadoutMode) -> None:
    graph, batch = network(mode=mode, timesteps=4), data(10, 3, 2, 6, 6)
    assert np.array_equal(assert_fires_alike(graph, batch).logits, simulate(graph, batch).logits)


def test_nodes_after_the_readout() -> None:
    graph = SpikingGraph(
        [
            Input(name="image", shape=(2, 6, 6), temporal=False),
            conv("conv1", "image", (2, 4), 1),
            neuron("sn1", "conv1"),
            Readout(name="readout", inputs=(Edge("sn1"),), mode="sum"),
            SumPool2d(name="pool", inputs=(Edge("readout"),), kernel=(6, 6), stride=(6, 6)),
            flatten("pool"),
            linear("fc", "flatten", (4, 3), 3),
        ],
        output="fc",
        timesteps=4,
    )
    model, batch = to_onnx(graph), data(11, 2, 2, 6, 6)
    fc = next(node for node in model.graph.node if node.op_type == "Gemm")
    assert (fc.name, list(fc.output)) == ("fc", ["logits"])
    assert np.array_equal(assert_fires_alike(graph, batch).logits, simulate(graph, batch).logits)


def test_a_static_branch_is_added_at_every_timestep() -> None:
    """A residual from before the first neuron: static plus temporal, in either order."""
    graph = SpikingGraph(
        [
            Input(name="image", shape=(2, 6, 6), temporal=False),
            conv("conv1", "image", (2, 4), 1),
            neuron("sn1", "conv1"),
            conv("conv2", "sn1", (4, 4), 3),
            Add(name="add1", inputs=(Edge("conv1"), Edge("conv2"))),
            neuron("sn2", "add1"),
            Add(name="add2", inputs=(Edge("sn2"), Edge("conv1"), Edge("sn1"))),
            neuron("sn3", "add2"),
            flatten("sn3"),
            readout("flatten"),
        ],
        output="readout",
        timesteps=4,
    )
    assert operators(to_onnx(graph))["Conv"] == 2
    assert_fires_alike(graph, data(12, 3, 2, 6, 6))


def test_a_static_readout() -> None:
    nodes = [Input(name="x", shape=(3,), temporal=False), linear("fc", "x", (3, 2), 1)]
    batch = data(13, 2, 3)
    once = batch @ nodes[1].arrays()["weight"].T + nodes[1].arrays()["bias"]
    for mode, factor in (("mean", 1), ("sum", 4), ("last", 1), ("max", 1)):
        graph = SpikingGraph([*nodes, readout("fc", mode)], output="readout", timesteps=4)  # type: ignore[arg-type]
        assert np.array_equal(run(to_onnx(graph), batch)[0], factor * once)


def test_the_input_may_be_the_output() -> None:
    graph = SpikingGraph(
        [Input(name="input", shape=(3,), temporal=False), readout("input")], output="readout", timesteps=1
    )
    batch = data(14, 2, 3)
    assert np.array_equal(run(to_onnx(graph), batch)[0], batch)


# One node at a time, against PyTorch.


def through_one_node(node: Node, batch: Values) -> Values:
    """input -> node -> readout over three equal timesteps."""
    nodes = [Input(name="input", shape=batch.shape[1:], temporal=False), node, readout(node.name, "last")]
    return run(to_onnx(SpikingGraph(nodes, output="readout", timesteps=3)), batch)[0]


@pytest.mark.parametrize(
    "rules",
    [
        {"stride": (2, 1), "padding": (0, 2)},
        {"groups": 2, "padding": (1, 1)},
        {"dilation": (2, 1), "padding": (2, 1)},
        {"kernel": (1, 5), "padding": (0, 0), "groups": 4, "stride": (1, 2)},
    ],
)
def test_convolution_as_torch(rules: dict[str, Any]) -> None:
    batch, node = data(15, 2, 4, 7, 8), conv("c", "input", (4, 8), 1, **rules)
    assert node.bias is not None
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(batch).double(),
        torch.from_numpy(node.weight.copy()),
        torch.from_numpy(node.bias.copy()),
        node.stride,
        node.padding,
        node.dilation,
        node.groups,
    )
    assert np.array_equal(through_one_node(node, batch), wanted.numpy())


@pytest.mark.parametrize("bias", [False, True])
def test_linear_as_torch(bias: bool) -> None:
    batch, node = data(16, 3, 10), linear("fc", "input", (10, 4), 1, bias=bias)
    wanted = batch @ node.weight.T + (0.0 if node.bias is None else node.bias)
    assert np.array_equal(through_one_node(node, batch), wanted)


@pytest.mark.parametrize("offset", [0.0, 0.25])
@pytest.mark.parametrize("shape", [(), (4, 1, 1), (4, 5, 5)])
def test_scale(shape: tuple[int, ...], offset: float) -> None:
    batch = data(17, 2, 4, 5, 5)
    node = Scale(
        name="s", inputs=(Edge("input"),), factor=frozen(dyadic(1, *shape)), offset=frozen(np.full(shape, offset))
    )
    assert np.array_equal(through_one_node(node, batch), node.factor * batch + node.offset)


def test_flatten_is_in_c_order() -> None:
    batch = data(18, 2, 3, 4, 5)
    assert np.array_equal(through_one_node(flatten("input"), batch), batch.reshape(2, -1))


def test_add_goes_from_left_to_right() -> None:
    big = Scale(name="big", inputs=(Edge("input"),), factor=frozen(2.0**30), offset=frozen(0.0))
    minus = Scale(name="minus", inputs=(Edge("input"),), factor=frozen(-(2.0**30)), offset=frozen(0.0))
    batch = np.ones((1, 3), dtype=np.float32)
    for order, wanted in ((("big", "minus", "input"), 1.0), (("big", "input", "minus"), 0.0)):
        add = Add(name="add", inputs=tuple(Edge(name) for name in order))
        nodes = [Input(name="input", shape=(3,), temporal=False), big, minus, add, readout("add")]
        logits = run(to_onnx(SpikingGraph(nodes, output="readout", timesteps=1)), batch)[0]
        assert np.array_equal(logits, np.full((1, 3), wanted))


# (size, kernel, stride, padding): whole windows, left-over rows, padding, and last windows that hang over.
POOLS = [(6, 2, 2, 0), (6, 3, 3, 0), (7, 2, 2, 0), (7, 3, 2, 1), (8, 3, 2, 1), (5, 2, 3, 1), (8, 5, 4, 2), (6, 6, 6, 0)]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding"), POOLS)
def test_pools_as_torch(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> None:
    # Whole multiples of everything that a window may divide by: averages are whole, hence exact.
    values = np.random.default_rng(size).integers(-50, 50, (2, 3, size, size)) * 3600
    batch = values.astype(np.float32)
    exact = torch.from_numpy(values).double()
    square = {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": (padding, padding)}
    rules: dict[str, Any] = {"name": "p", "inputs": (Edge("input"),), "ceil_mode": ceil_mode, **square}
    pooled = torch.nn.functional.max_pool2d(exact, kernel, stride, padding, 1, ceil_mode)
    assert np.array_equal(through_one_node(MaxPool2d(**rules), batch), pooled.numpy())
    for include in (False, True):
        pooled = torch.nn.functional.avg_pool2d(exact, kernel, stride, padding, ceil_mode, include)
        assert np.array_equal(through_one_node(AvgPool2d(count_include_pad=include, **rules), batch), pooled.numpy())
    pooled = torch.nn.functional.avg_pool2d(exact, kernel, stride, padding, ceil_mode, True, 1)
    assert np.array_equal(through_one_node(SumPool2d(**rules), batch), pooled.numpy())


def test_pools_of_rectangles() -> None:
    values = np.random.default_rng(1).integers(-50, 50, (2, 3, 7, 9)) * 3600
    exact = torch.from_numpy(values).double()
    rules: dict[str, Any] = {"name": "p", "inputs": (Edge("input"),), "ceil_mode": True}
    rules |= {"kernel": (2, 5), "stride": (2, 3), "padding": (1, 2)}
    pooled = torch.nn.functional.avg_pool2d(exact, (2, 5), (2, 3), (1, 2), True, True, 1)
    assert np.array_equal(through_one_node(SumPool2d(**rules), values.astype(np.float32)), pooled.numpy())
    pooled = torch.nn.functional.max_pool2d(exact, (2, 5), (2, 3), (1, 2), 1, True)
    assert np.array_equal(through_one_node(MaxPool2d(**rules), values.astype(np.float32)), pooled.numpy())


@pytest.mark.parametrize("kernel", [2, 3, 4, 5, 7])
def test_a_sum_pool_of_spikes_is_a_whole_number(kernel: int) -> None:
    spikes = (np.random.default_rng(kernel).random((2, 3, 14, 14)) < 0.5).astype(np.float32)
    pair = (kernel, kernel)
    counts = through_one_node(SumPool2d(name="p", inputs=(Edge("input"),), kernel=pair, stride=(1, 1)), spikes)
    wanted = np.lib.stride_tricks.sliding_window_view(spikes, pair, axis=(2, 3)).sum(axis=(-2, -1))
    assert np.array_equal(counts, wanted)


@pytest.mark.parametrize(
    ("kernel", "written"), [(2, ["AveragePool", "Mul"]), (3, ["Conv"]), (4, ["AveragePool", "Mul"]), (6, ["ReduceSum"])]
)
def test_how_a_sum_pool_is_written(kernel: int, written: list[str]) -> None:
    """An average times the area only where that is exact; a plain sum over the whole map."""
    pair = (kernel, kernel)
    pool = SumPool2d(name="pool", inputs=(Edge("x"),), kernel=pair, stride=pair)
    nodes = [Input(name="x", shape=(3, 6, 6), temporal=False), pool, readout("pool")]
    model = to_onnx(SpikingGraph(nodes, output="readout", timesteps=1))
    assert [node.op_type for node in model.graph.node if node.name.startswith("pool")] == written


# Recurrence: delayed edges.


def recurrent(before: int = 0, after: int = 1, *, timesteps: int = 5, **rules: Any) -> SpikingGraph:
    """A layer that reads its own spikes of `before` + `after` steps ago through weights with a bias.

    The delay before the weights lets their bias count from step 0 on; the one after them lets nothing
    arrive until it is over.
    """
    return SpikingGraph(
        [
            Input(name="x", shape=(5,), temporal=False),
            linear("fc1", "x", (5, 6), 1),
            Add(name="sum", inputs=(Edge("fc1"), Edge("back", after))),
            neuron("sn1", "sum", v_threshold=0.5, **rules),
            linear("back", "sn1", (6, 6), 3, delay=before),
            linear("fc2", "sn1", (6, 4), 5),
            neuron("sn2", "fc2", v_threshold=0.5),
            linear("fc3", "sn2", (4, 3), 7),
            readout("fc3"),
        ],
        output="readout",
        timesteps=timesteps,
    )


DELAYS = [(0, 1), (1, 0), (1, 1), (0, 2), (1, 2), (0, 5), (6, 1)]


@pytest.mark.parametrize("rules", [{}, {"reset": "subtract"}])
@pytest.mark.parametrize(("before", "after"), DELAYS)
def test_recurrence(before: int, after: int, rules: dict[str, Any]) -> None:
    assert_fires_alike(recurrent(before, after, **rules), data(19, 6, 5))


def test_recurrence_changes_the_spikes() -> None:
    """Else the tests above would hold for an exporter that forgets delayed edges."""
    batch = data(19, 6, 5)
    fired = {run_with_spikes(recurrent(*delays), batch).spikes["sn1"].tobytes() for delays in DELAYS}
    assert len(fired) == len(DELAYS)


def test_only_what_is_recurrent_is_unrolled() -> None:
    graph = recurrent()
    count = Counter(node.name.split("/")[0] for node in to_onnx(graph).graph.node if node.op_type == "Gemm")
    assert count == {"fc1": 1, "back": 5, "fc2": 1, "fc3": 1}
    groups = [tuple(node.name for node in group) for group in components(graph)]
    assert groups == [("x",), ("fc1",), ("sum", "sn1", "back"), ("fc2",), ("sn2",), ("fc3",), ("readout",)]


@pytest.mark.parametrize("delay", [1, 3])
def test_a_delayed_edge_straight_into_a_neuron(delay: int) -> None:
    graph = SpikingGraph(
        [
            Input(name="x", shape=(5,), temporal=True),
            linear("fc1", "x", (5, 6), 1),
            neuron("sn1", "fc1", v_threshold=0.5),
            Neuron(name="sn2", inputs=(Edge("sn1", delay),), alpha=frozen(1.0), beta=frozen(0.5)),
            readout("sn2", "sum"),
        ],
        output="readout",
        timesteps=5,
    )
    ran = assert_fires_alike(graph, data(20, 3, 5, 5))
    assert np.array_equal(ran.spikes["sn2"][:, delay:], ran.spikes["sn1"][:, :-delay])
    assert not ran.spikes["sn2"][:, :delay].any()


# What is refused.


def test_a_training_graph_must_be_folded_first() -> None:
    with refused(Code.BAD_GRAPH, "'sn1_bn'", "BatchNorm", "fold"):
        to_onnx(GRAPHS["plain"]()[0])
    with refused(Code.BAD_GRAPH, "'sn1'", "Neuron", "alpha", "fold"):
        to_onnx(GRAPHS["ties"]()[0])


def test_parameters_beyond_float32() -> None:
    heavy = Linear(name="fc", inputs=(Edge("flatten"),), weight=frozen(np.full((3, 144), 1e39)))
    with refused(Code.TARGET_CANNOT_HOLD, "'fc'", "Linear", "weight", "1e.39"):
        to_onnx(network().replaced({"fc": heavy}))
    with refused(Code.TARGET_CANNOT_HOLD, "'sn1'", "v_threshold"):
        to_onnx(network(v_threshold=1e300))


def test_a_threshold_that_float32_takes_for_zero() -> None:
    with refused(Code.TARGET_CANNOT_HOLD, "'sn1'", "threshold", "smallest"):
        to_onnx(network(v_threshold=1e-60))
    assert to_onnx(network(v_threshold=0.0))


def test_more_state_than_a_membrane() -> None:
    with refused(Code.TARGET_CANNOT_HOLD, "'sn1'", "'current'"):
        to_onnx(network(state=(StateVariable("membrane"), StateVariable("current"))))


def test_an_unknown_kind() -> None:
    class Wobble(Flatten):
        pass

    with refused(Code.TARGET_CANNOT_HOLD, "'flatten'", "Wobble"):
        to_onnx(network().replaced({"flatten": Wobble(name="flatten", inputs=(Edge("sn2"),))}))


def test_time_does_not_reach_behind_the_readout() -> None:
    source = network()
    late = Add(name="late", inputs=(Edge("readout"), Edge("fc")))
    with refused(Code.BAD_GRAPH, "'late'", "'fc'"):
        to_onnx(SpikingGraph([*source.nodes, late], output="late", timesteps=4))


def test_parameters_of_two_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "LARGEST_PARAMETERS", 4 * 500)
    with refused(Code.TARGET_CANNOT_HOLD, "2 GiB"):
        to_onnx(network())
