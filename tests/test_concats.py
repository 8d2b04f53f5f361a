"""Concatenations taken apart: the same spikes and logits, bit for bit, in exact arithmetic, and no Concat left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalif_deploy.concats import without_concats
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import AvgPool2d, Concat, Edge, Flatten, MaxPool2d, Readout, SumPool2d, Zeros
from dalif_deploy.passes import fold
from tests.test_passes import CHANNELS, Exact, check, kinds, random_graph


def both(build: Exact, *edges: Edge | str, name: str = "both") -> str:
    inputs = tuple(edge if isinstance(edge, Edge) else Edge(edge) for edge in edges)
    return build.add(Concat(name=name, inputs=inputs))


def apart(build: Exact, graph: SpikingGraph) -> SpikingGraph:
    """Taken apart, training graph and folded."""
    after = check(build, graph, without_concats)
    assert not any(isinstance(node, Concat) for node in after.nodes)
    folded = check(build, graph, lambda graph: without_concats(fold(graph)))
    assert not any(isinstance(node, Concat) for node in folded.nodes)
    return after


def test_a_graph_without_one_is_the_same_object() -> None:
    build = Exact()
    graph = build.graph(build.neuron("sn", build.square("conv", "input")))
    assert without_concats(graph) is graph


def test_a_convolution_is_summed_over_its_parts_with_its_bias_once() -> None:
    build = Exact()
    x = both(build, build.neuron("a", "input", alpha=0.5), build.square("b", "input"))
    x = build.conv("conv", x, (2 * CHANNELS, CHANNELS), bias=True, stride=2)
    after = apart(build, build.graph(build.neuron("sn", x, alpha=0.5)))
    assert after["conv"].inputs == (Edge("conv.part0"), Edge("conv.part1"))
    assert [after[f"conv.part{i}"].bias is None for i in (0, 1)] == [False, True]  # type: ignore[attr-defined]


def test_a_grouped_convolution_reads_the_whole() -> None:
    build = Exact()
    x = both(build, build.neuron("a", "input", alpha=0.5), build.square("b", "input"))
    x = build.conv("conv", x, (2 * CHANNELS, CHANNELS), groups=2)
    after = apart(build, build.graph(build.neuron("sn", x, alpha=0.5)))
    assert kinds(after)["both"] == "Add"


def test_currents_before_a_neuron_become_a_sum_of_layers_with_zero_rows() -> None:
    """No layer is added: what only the concatenation reads gets rows of zeros."""
    build = Exact()
    inner = build.plus("sum", build.square("b", "input"), build.conv("g", "input", (CHANNELS, CHANNELS), groups=2))
    x = both(build, build.square("a", "input"), inner)
    x = build.neuron("sn", x, alpha=0.5)
    graph = build.finish(build.conv("read", x, (2 * CHANNELS, CHANNELS)))
    after = apart(build, graph)
    assert after["both"].inputs == (Edge("a"), Edge("b"), Edge("g"))
    assert len(after["a"].weight) == len(after["g"].weight) == 2 * CHANNELS  # type: ignore[attr-defined]


@pytest.mark.parametrize("pool", [AvgPool2d, SumPool2d, MaxPool2d])
def test_pools_flattening_and_linear_layers_take_parts(pool: Any) -> None:
    build = Exact()
    x = both(build, build.neuron("a", "input", alpha=0.5), "input", build.neuron("b", "input", alpha=-0.5))
    x = build.exact_norm("bn", build.scale("scale", x), channels=3 * CHANNELS)
    x = build.add(pool(name="pool", inputs=(Edge(x),), kernel=(2, 2), stride=(2, 2)))
    x = build.add(Flatten(name="flatten", inputs=(Edge(x),)))
    x = build.neuron("sn", build.linear("fc", x, (12 * CHANNELS, 6)), alpha=0.5)
    apart(build, build.finish(x))


def test_what_is_read_twice_is_selected_rather_than_changed() -> None:
    """Parts that a neuron, another concatenation and the readout read too, over delays, and zeros."""
    build = Exact()
    build.add(Zeros(name="zeros", shape=(CHANNELS, 4, 4)))
    conv = build.square("conv", "input")
    first = both(build, conv, "zeros", Edge("input", 1), name="first")
    second = both(
        build, Edge(first, 1), conv, build.scale("own", "input"), build.square("conv2", "input"), name="second"
    )
    a = build.neuron("a", first, alpha=0.5, beta=0.5)
    b = build.neuron("b", second, alpha=-0.5, beta=0.5)
    x = build.conv("read", both(build, a, b, name="third"), (9 * CHANNELS, CHANNELS))
    apart(build, build.graph(x, conv))


def test_one_may_be_the_output_or_stand_after_the_readout() -> None:
    build = Exact(0, (CHANNELS,))
    x = build.neuron("sn", build.linear("fc", "input", (CHANNELS, 6)), alpha=0.5)
    build.add(Readout(name="readout", inputs=(Edge(both(build, x, "input")),), mode="sum"))
    last = both(build, "readout", build.linear("fc2", "readout", (6 + CHANNELS, 3)), name="last")
    apart(build, SpikingGraph(build.nodes, output=last, timesteps=4))


@given(data=st.data(), seed=st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_random_graphs_fire_as_before(data: st.DataObject, seed: int) -> None:
    build, graph = random_graph(lambda options: data.draw(st.sampled_from(list(options))), seed)
    from dalif_deploy.equivalence import simulate

    batch = build.batch()
    expected = simulate(graph, batch)
    for form in (without_concats(graph), without_concats(fold(graph))):
        assert not any(isinstance(node, Concat) for node in form.nodes)
        found = simulate(form, batch)
        for layer, train in found.spikes.items():
            np.testing.assert_array_equal(train.unpack(), expected.spikes[layer].unpack(), err_msg=layer)
        np.testing.assert_array_equal(found.logits, expected.logits)
