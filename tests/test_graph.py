"""The graph: what it refuses and by which name, the order of its nodes, and what it knows of its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph, rename_inputs
from dalif_deploy.nodes import (
    KINDS,
    Add,
    Array,
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
    Readout,
    Scale,
    StateVariable,
    SumPool2d,
    TensorType,
    Zeros,
    frozen,
)

IMAGE = (2, 6, 6)


def ones(*shape: int) -> Array:
    return frozen(np.ones(shape))


def from_(*sources: str) -> tuple[Edge, ...]:
    return tuple(Edge(source) for source in sources)


def image(*, temporal: bool = False, kind: Any = "real", shape: tuple[int, ...] = IMAGE) -> Input:
    return Input(name="input", shape=shape, temporal=temporal, kind=kind)


def neuron(name: str, *sources: str | Edge, **parameters: Any) -> Neuron:
    edges = tuple(source if isinstance(source, Edge) else Edge(source) for source in sources)
    return Neuron(name=name, inputs=edges, **{"alpha": ones(), "beta": ones(), **parameters})


def readout(source: str | Edge, *, mode: Any = "mean", name: str = "readout") -> Readout:
    return Readout(name=name, inputs=(source if isinstance(source, Edge) else Edge(source),), mode=mode)


def graph(*nodes: Node, output: str = "readout", **options: Any) -> SpikingGraph:
    return SpikingGraph(nodes, **{"output": output, "timesteps": 2, **options})


def one(node: Node, *, shape: tuple[int, ...] = IMAGE) -> SpikingGraph:
    """input - node - readout."""
    return graph(image(shape=shape), node, readout(node.name))


def test_a_whole_graph_is_accepted() -> None:
    made = one(neuron("sn", "input"))
    assert [node.name for node in made.nodes] == ["input", "sn", "readout"]
    assert made.input.name == "input"
    assert made.readout.name == "readout"
    assert [sn.name for sn in made.neurons] == ["sn"]
    assert "sn" in made
    assert "sm" not in made
    assert made.encoding == Encoding()


WEIGHT = ones(4, 2, 3, 3)

REFUSALS: dict[str, tuple[Callable[[], SpikingGraph], Code, str]] = {
    "a name twice": (
        lambda: graph(image(), neuron("a", "input"), neuron("a", "input"), readout("a")),
        Code.BAD_GRAPH,
        "node names must be unique; more than once: a",
    ),
    "a slash in a name": (lambda: one(neuron("block/sn", "input")), Code.BAD_GRAPH, "'block/sn': must not be empty"),
    "an empty name": (lambda: one(neuron("", "input")), Code.BAD_GRAPH, "'': must not be empty or hold '/'"),
    "no input": (
        lambda: graph(Zeros(name="z", shape=(2,)), readout("z")),
        Code.BAD_GRAPH,
        "a graph has exactly one input",
    ),
    "two inputs": (
        lambda: graph(
            image(), replace(image(), name="other"), Add(name="a", inputs=from_("input", "other")), readout("a")
        ),
        Code.BAD_GRAPH,
        "a graph has exactly one input",
    ),
    "no readout": (
        lambda: graph(image(), neuron("sn", "input"), output="sn"),
        Code.BAD_GRAPH,
        "a graph has exactly one readout; here: none",
    ),
    "two readouts": (
        lambda: graph(image(), readout("input"), readout("input", name="second")),
        Code.BAD_GRAPH,
        r"exactly one readout; here: \['readout', 'second'\]",
    ),
    "a neuron after the readout": (
        lambda: graph(image(), readout("input"), neuron("sn", "readout"), output="sn"),
        Code.BAD_GRAPH,
        "node 'sn' stands after the readout, where there is no time",
    ),
    "a neuron further after the readout": (
        lambda: graph(
            image(), readout("input"), Flatten(name="f", inputs=from_("readout")), neuron("sn", "f"), output="f"
        ),
        Code.BAD_GRAPH,
        "node 'sn' stands after the readout",
    ),
    "a delay into the readout": (
        lambda: graph(image(), readout(Edge("input", 1))),
        Code.BAD_GRAPH,
        "node 'readout' stands after the readout, where there is no time",
    ),
    "a delay after the readout": (
        lambda: graph(image(), readout("input"), Flatten(name="f", inputs=(Edge("readout", 1),)), output="f"),
        Code.BAD_GRAPH,
        "node 'f' stands after the readout",
    ),
    "an output before the readout": (
        lambda: graph(image(), neuron("sn", "input"), readout("sn"), output="sn"),
        Code.BAD_GRAPH,
        "output 'sn' stands before the readout",
    ),
    "an output that is no node": (
        lambda: graph(image(), readout("input"), output="nothing"),
        Code.BAD_GRAPH,
        "output 'nothing' is not a node",
    ),
    "an edge from nowhere": (
        lambda: one(neuron("sn", "missing")),
        Code.BAD_GRAPH,
        r"node 'sn' \(Neuron\): reads 'missing', which is not a node",
    ),
    "a negative delay": (
        lambda: one(neuron("sn", Edge("input", -1))),
        Code.BAD_GRAPH,
        "node 'sn' .*from 'input' has a delay of -1",
    ),
    "half a delay": (
        lambda: one(neuron("sn", Edge("input", 0.5))),  # type: ignore[arg-type]
        Code.BAD_GRAPH,
        "node 'sn' .*from 'input' has a delay of 0.5",
    ),
    "too few inputs": (lambda: one(neuron("sn")), Code.BAD_GRAPH, "node 'sn' .*has 0 inputs, takes 1"),
    "too many inputs": (
        lambda: one(neuron("sn", "input", "input")),
        Code.BAD_GRAPH,
        "node 'sn' .*has 2 inputs, takes 1",
    ),
    "a sum of nothing": (lambda: one(Add(name="a")), Code.BAD_GRAPH, "node 'a' .*has 0 inputs, takes at least 1"),
    "an input that reads": (
        lambda: graph(replace(image(), inputs=from_("z")), Zeros(name="z", shape=(2,)), readout("input")),
        Code.BAD_GRAPH,
        "node 'input' .*has 1 inputs, takes at least 1|takes 0",
    ),
    "a cycle of two": (
        lambda: graph(image(), Add(name="a", inputs=from_("input", "b")), neuron("b", "a"), readout("b")),
        Code.BAD_GRAPH,
        "nodes in a cycle without a delay: 'a', 'b'",
    ),
    "a cycle of one": (
        lambda: one(Add(name="a", inputs=from_("input", "a"))),
        Code.BAD_GRAPH,
        "nodes in a cycle without a delay: 'a'",
    ),
    "a cycle without a sum": (
        lambda: graph(image(), neuron("a", "b"), neuron("b", "a"), readout("b")),
        Code.BAD_GRAPH,
        "nodes in a cycle without a delay: 'a', 'b'",
    ),
    "nodes that hear only themselves": (
        lambda: one(neuron("a", Edge("a", 1))),
        Code.BAD_GRAPH,
        "nodes that only hear each other, not the input: 'a'",
    ),
    "a sum of different shapes": (
        lambda: graph(
            image(),
            Conv2d(name="c", inputs=from_("input"), weight=WEIGHT),
            Add(name="a", inputs=from_("c", "input")),
            readout("a"),
        ),
        Code.BAD_GRAPH,
        r"node 'a' \(Add\): inputs of different shapes: \(4, 4, 4\), \(2, 6, 6\)",
    ),
    "a sum of different shapes over a delay": (
        lambda: graph(
            image(),
            Add(name="a", inputs=(Edge("input"), Edge("c", 1))),
            neuron("sn", "a"),
            Conv2d(name="c", inputs=from_("sn"), weight=ones(2, 2, 3, 3)),
            readout("sn"),
        ),
        Code.BAD_GRAPH,
        r"node 'a' \(Add\): inputs of different shapes",
    ),
    "a convolution of other channels": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=ones(4, 3, 3, 3))),
        Code.BAD_GRAPH,
        r"node 'c' \(Conv2d\): weight \(4, 3, 3, 3\) with 1 groups does not fit input \(2, 6, 6\)",
    ),
    "a convolution of a vector": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=WEIGHT), shape=(2,)),
        Code.BAD_GRAPH,
        r"does not fit input \(2,\)",
    ),
    "groups that do not divide the outputs": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=ones(3, 1, 3, 3), groups=2)),
        Code.BAD_GRAPH,
        "with 2 groups does not fit",
    ),
    "no groups": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=WEIGHT, groups=0)),
        Code.BAD_GRAPH,
        r"groups \(0,\) must be at least 1",
    ),
    "a kernel that is larger than the image": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=WEIGHT, dilation=(3, 3))),
        Code.BAD_GRAPH,
        r"node 'c' \(Conv2d\): the kernel does not fit into an input of \(6, 6\)",
    ),
    "a convolution's weight of two axes": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=ones(4, 2))),
        Code.BAD_GRAPH,
        r"node 'c' \(Conv2d\): weight of shape \(4, 2\)",
    ),
    "an empty kernel": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=ones(4, 2, 0, 3))),
        Code.BAD_GRAPH,
        "weight of shape",
    ),
    "a convolution's bias": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=WEIGHT, bias=ones(2))),
        Code.BAD_GRAPH,
        r"bias \(2,\) does not fit 4 output channels",
    ),
    "a convolution's stride": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=WEIGHT, stride=(1, 0))),
        Code.BAD_GRAPH,
        r"stride \(1, 0\) must be at least 1",
    ),
    "a convolution's dilation": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=WEIGHT, dilation=(0, 1))),
        Code.BAD_GRAPH,
        r"dilation \(0, 1\) must be at least 1",
    ),
    "a convolution's padding": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=WEIGHT, padding=(0, -1))),
        Code.BAD_GRAPH,
        r"padding \(0, -1\) must be at least 0",
    ),
    "a linear layer of an image": (
        lambda: one(Linear(name="fc", inputs=from_("input"), weight=ones(3, 72))),
        Code.BAD_GRAPH,
        r"node 'fc' \(Linear\): weight \(3, 72\) does not fit input \(2, 6, 6\); flatten it first",
    ),
    "a linear layer's weight of three axes": (
        lambda: one(Linear(name="fc", inputs=from_("input"), weight=ones(3, 2, 1)), shape=(2,)),
        Code.BAD_GRAPH,
        r"node 'fc' \(Linear\): weight of shape \(3, 2, 1\)",
    ),
    "a linear layer's bias": (
        lambda: one(Linear(name="fc", inputs=from_("input"), weight=ones(3, 2), bias=ones(2)), shape=(2,)),
        Code.BAD_GRAPH,
        r"bias \(2,\) does not fit 3 output features",
    ),
    "a BatchNorm of other channels": (
        lambda: one(
            BatchNorm(
                name="bn",
                inputs=from_("input"),
                weight=ones(2),
                bias=ones(2),
                mean=ones(3),
                variance=ones(2),
                epsilon=0.1,
            )
        ),
        Code.BAD_GRAPH,
        r"node 'bn' \(BatchNorm\): mean \(3,\) does not fit input \(2, 6, 6\)",
    ),
    "a negative variance": (
        lambda: one(
            BatchNorm(
                name="bn",
                inputs=from_("input"),
                weight=ones(2),
                bias=ones(2),
                mean=ones(2),
                variance=frozen([1.0, -1.0]),
                epsilon=1e-5,
            )
        ),
        Code.BAD_GRAPH,
        r"node 'bn' \(BatchNorm\): variance \+ epsilon must be above 0",
    ),
    "an epsilon that is no number": (
        lambda: one(
            BatchNorm(
                name="bn",
                inputs=from_("input"),
                weight=ones(2),
                bias=ones(2),
                mean=ones(2),
                variance=ones(2),
                epsilon=float("nan"),
            )
        ),
        Code.BAD_GRAPH,
        r"node 'bn' \(BatchNorm\): variance \+ epsilon must be above 0",
    ),
    "a scale of another shape": (
        lambda: one(Scale(name="s", inputs=from_("input"), factor=ones(3, 1, 1), offset=ones())),
        Code.BAD_GRAPH,
        r"node 's' \(Scale\): factor of shape \(3, 1, 1\) does not fit a layer of shape \(2, 6, 6\)",
    ),
    "a scale that would widen its input": (
        lambda: one(Scale(name="s", inputs=from_("input"), factor=ones(2, 6, 6), offset=ones()), shape=(1, 6, 6)),
        Code.BAD_GRAPH,
        "factor of shape",
    ),
    "a neuron's parameters": (
        lambda: one(neuron("sn", "input", beta=ones(3, 1, 1))),
        Code.BAD_GRAPH,
        r"node 'sn' \(Neuron\): beta of shape \(3, 1, 1\) does not fit a layer of shape \(2, 6, 6\)",
    ),
    "an unknown reset": (
        lambda: one(neuron("sn", "input", reset="soft")),
        Code.BAD_GRAPH,
        "unknown rule: reset 'soft'",
    ),
    "an unknown threshold rule": (lambda: one(neuron("sn", "input", fires_at=">=")), Code.BAD_GRAPH, "fires_at '>='"),
    "a neuron without state": (lambda: one(neuron("sn", "input", state=())), Code.BAD_GRAPH, "at least one state"),
    "a state that starts nowhere": (
        lambda: one(neuron("sn", "input", state=(StateVariable("membrane", float("inf")),))),
        Code.BAD_GRAPH,
        "finite initial value",
    ),
    "an unknown readout": (
        lambda: graph(image(), readout("input", mode="min")),
        Code.BAD_GRAPH,
        "unknown readout 'min'",
    ),
    "an unknown kind of input": (lambda: graph(image(kind="code"), readout("input")), Code.BAD_GRAPH, "unknown kind"),
    "an input without elements": (
        lambda: graph(image(shape=(2, 0)), readout("input")),
        Code.BAD_GRAPH,
        r"shape \(2, 0\) has no elements",
    ),
    "an input without axes": (lambda: graph(image(shape=()), readout("input")), Code.BAD_GRAPH, "has no elements"),
    "a pool of a vector": (
        lambda: one(MaxPool2d(name="p", inputs=from_("input"), kernel=(2, 2), stride=(2, 2)), shape=(4,)),
        Code.BAD_GRAPH,
        r"node 'p' \(MaxPool2d\): needs an input of \(channels, height, width\), not \(4,\)",
    ),
    "a pool that is larger than the image": (
        lambda: one(MaxPool2d(name="p", inputs=from_("input"), kernel=(7, 2), stride=(1, 1))),
        Code.BAD_GRAPH,
        r"kernel \(7, 2\) does not fit into an input of \(6, 6\)",
    ),
    "a pool with too much padding": (
        lambda: one(AvgPool2d(name="p", inputs=from_("input"), kernel=(3, 3), stride=(1, 1), padding=(2, 0))),
        Code.BAD_GRAPH,
        "padding is more than half the kernel",
    ),
    "a pool's stride": (
        lambda: one(SumPool2d(name="p", inputs=from_("input"), kernel=(2, 2), stride=(0, 1))),
        Code.BAD_GRAPH,
        r"stride \(0, 1\) must be at least 1",
    ),
    "a pool's kernel": (
        lambda: one(SumPool2d(name="p", inputs=from_("input"), kernel=(0, 2), stride=(1, 1))),
        Code.BAD_GRAPH,
        r"kernel \(0, 2\) must be at least 1",
    ),
    "a weight that is no number": (
        lambda: one(Conv2d(name="c", inputs=from_("input"), weight=frozen(np.full((4, 2, 3, 3), np.nan)))),
        Code.NOT_FINITE,
        "node 'c': weight has NaN or infinite values",
    ),
    "an infinite threshold": (
        lambda: one(neuron("sn", "input", v_threshold=frozen(np.inf))),
        Code.NOT_FINITE,
        "node 'sn': v_threshold has NaN or infinite values",
    ),
    "no timesteps": (
        lambda: graph(image(), readout("input"), timesteps=0),
        Code.BAD_OPTION,
        "timesteps = 0: give a whole number of at least 1",
    ),
    "true timesteps": (lambda: graph(image(), readout("input"), timesteps=True), Code.BAD_OPTION, "timesteps = True"),
    "half a timestep": (lambda: graph(image(), readout("input"), timesteps=1.5), Code.BAD_OPTION, "timesteps = 1.5"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str) -> None:
    make, code, message = REFUSALS[case]
    with pytest.raises(DalifError, match=message) as caught:
        make()
    assert caught.value.code is code
    assert "\n" not in str(caught.value)


def test_every_error_of_a_node_begins_with_its_name_and_kind() -> None:
    for name, (make, code, _) in REFUSALS.items():
        with pytest.raises(DalifError) as caught:
            make()
        if code is Code.BAD_GRAPH and caught.value.message.startswith("node '"):
            kind = caught.value.message.split("(")[1].split(")")[0] if "(" in caught.value.message else ""
            assert kind in KINDS or "stands after the readout" in caught.value.message, name


# --- order


def test_nodes_stand_after_what_they_need() -> None:
    nodes = [readout("b"), neuron("b", "a"), neuron("a", "input"), image()]
    assert [node.name for node in graph(*nodes).nodes] == ["input", "a", "b", "readout"]


def test_recurrence_over_a_delay_is_accepted_wherever_its_nodes_are_listed() -> None:
    add = Add(name="add", inputs=(Edge("input"), Edge("back", 1)))
    sn, back = neuron("sn", "add"), Conv2d(name="back", inputs=from_("sn"), weight=ones(2, 2, 1, 1))
    for nodes in ([image(), add, sn, back], [back, sn, add, image()], [back, image(), sn, add]):
        made = graph(*nodes, readout("sn"))
        assert made.types["back"] == TensorType(IMAGE, True)
        assert made.types["add"] == TensorType(IMAGE, True)
        order = [node.name for node in made.nodes]
        assert order.index("add") < order.index("sn") < order.index("back")


def test_a_reader_that_only_looks_back_may_stand_before_its_source() -> None:
    made = graph(image(), neuron("early", Edge("late", 2)), neuron("late", "input"), readout("early"))
    assert [node.name for node in made.nodes] == ["input", "early", "late", "readout"]
    assert made.types["early"].shape == IMAGE


def test_what_comes_after_the_readout_is_known() -> None:
    made = graph(
        image(), neuron("sn", "input"), readout("sn"), Flatten(name="f", inputs=from_("readout")),
        Linear(name="fc", inputs=from_("f"), weight=ones(3, 72)), output="fc",
    )  # fmt: skip
    assert made.after_readout == {"readout", "f", "fc"}
    assert made.types["fc"] == TensorType((3,), False)


def test_consumers_are_counted_by_edge() -> None:
    made = graph(image(), Add(name="a", inputs=from_("input", "input")), neuron("sn", "input"), readout("a"))
    assert [node.name for node in made.consumers["input"]] == ["a", "a", "sn"]
    assert made.consumers["readout"] == ()


# --- types


def test_spikes_become_counts_with_their_maximum() -> None:
    made = graph(
        image(temporal=True, kind="spike"),
        SumPool2d(name="pool", inputs=from_("input"), kernel=(2, 3), stride=(2, 3)),
        MaxPool2d(name="max", inputs=from_("pool"), kernel=(2, 2), stride=(1, 1)),
        Flatten(name="flat", inputs=from_("max")),
        neuron("sn", "flat"),
        Add(name="add", inputs=from_("flat", "sn", "sn")),
        SumPool2d(name="again", inputs=from_("pool"), kernel=(2, 2), stride=(1, 1)),
        AvgPool2d(name="mean", inputs=from_("pool"), kernel=(2, 2), stride=(1, 1)),
        Add(name="mixed", inputs=from_("again", "mean")),
        readout("add"),
    )
    assert made.types["input"] == TensorType(IMAGE, True, "spike", 1)
    assert made.types["pool"] == TensorType((2, 3, 2), True, "count", 6)
    assert made.types["max"] == TensorType((2, 2, 1), True, "count", 6)
    assert made.types["flat"] == TensorType((4,), True, "count", 6)
    assert made.types["sn"] == TensorType((4,), True, "spike", 1)
    assert made.types["add"] == TensorType((4,), True, "count", 8)
    assert made.types["again"] == TensorType((2, 2, 1), True, "count", 24)
    assert made.types["mean"] == TensorType((2, 2, 1), True)
    assert made.types["mixed"].kind == "real"
    assert made.types["readout"] == TensorType((4,), False)


def test_a_maximum_of_spikes_is_a_spike_and_weights_make_real_values() -> None:
    made = graph(
        image(temporal=True, kind="spike"), MaxPool2d(name="max", inputs=from_("input"), kernel=(2, 2), stride=(2, 2)),
        Conv2d(name="conv", inputs=from_("max"), weight=WEIGHT), readout("conv"),
    )  # fmt: skip
    assert made.types["max"] == TensorType((2, 3, 3), True, "spike", 1)
    assert made.types["conv"] == TensorType((4, 1, 1), True)


def test_what_is_computed_from_static_values_only_is_static() -> None:
    made = graph(
        image(), Conv2d(name="conv", inputs=from_("input"), weight=WEIGHT), neuron("sn", "conv"),
        Add(name="both", inputs=from_("conv", "sn")), Add(name="static", inputs=from_("conv", "conv")),
        Add(name="all", inputs=from_("both", "static")), readout("all"),
    )  # fmt: skip
    assert [made.types[name].temporal for name in ("input", "conv", "sn", "both", "static", "readout")] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("reader", ["Flatten", "Add", "Conv2d", "MaxPool2d"])
def test_a_delay_makes_even_a_static_value_change_over_time(reader: str) -> None:
    """Zeros come before it."""
    edge = (Edge("input", 1),)
    nodes: dict[str, Node] = {
        "Flatten": Flatten(name="x", inputs=edge),
        "Add": Add(name="x", inputs=edge),
        "Conv2d": Conv2d(name="x", inputs=edge, weight=WEIGHT),
        "MaxPool2d": MaxPool2d(name="x", inputs=edge, kernel=(2, 2), stride=(2, 2)),
    }
    made = one(nodes[reader])
    assert made.types["x"].temporal
    logits = simulate(replace_timesteps(made, 1), np.ones((1, *IMAGE), np.float32)).logits
    assert not logits.any()


def replace_timesteps(made: SpikingGraph, timesteps: int) -> SpikingGraph:
    return SpikingGraph(made.nodes, output=made.output, timesteps=timesteps)


def test_a_count_that_hears_itself_has_no_maximum() -> None:
    """x[t] = s[t] + x[t - 1] grows without end; whatever reads it must not take it for a bounded count."""
    made = graph(
        image(temporal=True, kind="spike"), Add(name="sum", inputs=(Edge("input"), Edge("sum", 1))),
        SumPool2d(name="pool", inputs=from_("sum"), kernel=(2, 2), stride=(2, 2)), readout("pool"),
        Add(name="calm", inputs=from_("input", "input")),
    )  # fmt: skip
    assert made.types["sum"] == TensorType(IMAGE, True)
    assert made.types["pool"] == TensorType((2, 3, 3), True)
    assert made.types["calm"] == TensorType(IMAGE, True, "count", 2)


def test_a_spike_that_is_heard_again_keeps_its_maximum() -> None:
    made = graph(
        image(temporal=True, kind="spike"), Add(name="sum", inputs=(Edge("input"), Edge("sn", 1))), neuron("sn", "sum"),
        readout("sn"),
    )  # fmt: skip
    assert made.types["sum"] == TensorType(IMAGE, True, "count", 2)


def test_zeros_are_static() -> None:
    assert graph(image(), Zeros(name="z", shape=(3,)), neuron("sn", "z"), readout("sn")).types["z"] == TensorType(
        (3,), False, "count", 0
    )


# --- copies


def chain() -> SpikingGraph:
    return graph(
        image(), neuron("a", "input"), neuron("b", "a"), neuron("aside", "a"), readout("b"), timesteps=3,
        encoding=Encoding(kind="uint8", scale=0.5), class_names=("x", "y"), history=("first",),
    )  # fmt: skip


def test_nodes_that_nobody_reads_are_dropped_and_the_rest_is_kept() -> None:
    before = chain()
    after = before.with_nodes(before.nodes, note=["second"])
    assert [node.name for node in after.nodes] == ["input", "a", "b", "readout"]
    assert (after.timesteps, after.encoding, after.class_names) == (3, before.encoding, ("x", "y"))
    assert after.history == ("first", "second")
    assert [node.name for node in before.nodes] == ["input", "a", "b", "aside", "readout"]
    assert before.history == ("first",)


def test_what_is_only_heard_over_a_delay_is_not_dropped() -> None:
    add = Add(name="add", inputs=(Edge("input"), Edge("back", 1)))
    back = Conv2d(name="back", inputs=from_("sn"), weight=ones(2, 2, 1, 1))
    made = graph(image(), add, neuron("sn", "add"), back, readout("sn"))
    assert "back" in made.with_nodes(made.nodes)


def test_replaced_changes_the_named_nodes_only() -> None:
    before = chain()
    after = before.replaced({"a": neuron("a", "input", beta=frozen(0.5))}, note=["changed"])
    assert float(after["a"].beta) == 0.5  # type: ignore[attr-defined]
    assert after["b"] is before["b"]
    assert after.history == ("first", "changed")


def test_another_output_may_be_named() -> None:
    before = graph(
        image(), readout("input"), Flatten(name="f", inputs=from_("readout")), output="f",
    )  # fmt: skip
    assert [node.name for node in before.with_nodes(before.nodes, output="readout").nodes] == ["input", "readout"]


def test_renaming_inputs_keeps_delays_and_untouched_nodes() -> None:
    add = Add(name="add", inputs=(Edge("a", 2), Edge("b")))
    assert rename_inputs(add, {"a": "c"}).inputs == (Edge("c", 2), Edge("b"))
    assert rename_inputs(add, {"x": "y"}) is add


def test_arrays_are_copies_that_cannot_be_written() -> None:
    values = np.ones(3, np.float32)
    array = frozen(values)
    values[0] = 5
    assert array.dtype == np.float64
    assert array[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2.0


def test_the_input_says_what_a_batch_looks_like() -> None:
    made = chain()
    assert (made.input_spec.shape, made.input_spec.temporal, made.input_spec.timesteps) == (IMAGE, False, 3)
    assert made.input_spec.encoding == made.encoding


def test_the_state_of_a_neuron_beyond_its_membrane_is_not_replayed() -> None:
    made = one(neuron("sn", "input", state=(StateVariable("membrane"), StateVariable("trace"))))
    with pytest.raises(DalifError, match=r"'sn' \(Neuron\): has the state variables membrane, trace") as caught:
        simulate(made, np.ones((1, *IMAGE), np.float32))
    assert caught.value.code is Code.RUNTIME_CANNOT_RUN


def test_every_node_kind_can_be_found_by_its_name() -> None:
    assert {kind.__name__ for kind in (Input, Zeros, Conv2d, Neuron, Readout)} <= KINDS.keys()
    assert all(KINDS[name].__name__ == name for name in KINDS)
