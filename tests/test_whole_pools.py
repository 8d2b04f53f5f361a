"""Average pools become sum pools wherever their factor can go, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from dalif_deploy.equivalence import simulate
from dalif_deploy.graph import SpikingGraph, _infer_types
from dalif_deploy.nodes import AvgPool2d, Edge, Flatten, MaxPool2d, Scale, SumPool2d
from dalif_deploy.passes import fold
from dalif_deploy.passes.whole_pools import whole_pools
from tests.graphs import Build

BATCH = (np.random.default_rng(0).random((4, 4, 2, 12, 12)) < 0.4).astype(np.float32)


def network(**pool: object) -> SpikingGraph:
    """A pool that a convolution, an identity branch, and a second pool read."""
    build = Build(3, (2, 12, 12), temporal=True, kind="spike")
    x = build.neuron("sn1", build.conv("conv1", "input", (2, 6)), alpha=1.0, v_threshold=0.3)
    settings = {"kernel": (2, 2), "stride": (2, 2), **pool}
    build.add(AvgPool2d(name="pool", inputs=(Edge(x),), **settings))  # type: ignore[arg-type]
    branch = build.conv("conv2", "pool", (6, 6))
    x = build.neuron("sn2", build.plus("add", branch, "pool"), alpha=1.0, v_threshold=0.4)
    build.add(MaxPool2d(name="largest", inputs=(Edge("pool"),), kernel=(2, 2), stride=(1, 1)))
    build.avg_pool("pool2", "largest", 2)
    build.neuron("sn3", "pool2", alpha=1.0, v_threshold=0.3)
    build.add(Flatten(name="flat3", inputs=(Edge("sn3"),)))
    build.add(Flatten(name="flat2", inputs=(Edge(x),)))
    return finished(build)


def finished(build: Build) -> SpikingGraph:
    types = _infer_types(tuple(build.nodes))
    left = build.linear("fc2", "flat2", (types["flat2"].shape[0], 3))
    right = build.linear("fc3", "flat3", (types["flat3"].shape[0], 3))
    return build.finish(build.plus("logits", left, right), timesteps=4)


@pytest.mark.parametrize(
    "pool",
    [{}, {"kernel": (3, 3), "padding": (1, 1)}, {"kernel": (3, 3), "stride": (3, 3)}],
    ids=["2x2", "padded 3x3", "3x3"],
)
def test_every_spike_stays_and_no_average_is_left(pool: dict[str, object]) -> None:
    graph = network(**pool)
    changed = whole_pools(graph)
    assert not [node for node in changed.nodes if isinstance(node, AvgPool2d)]
    before, after = simulate(graph, BATCH), simulate(changed, BATCH)
    for name, train in before.spikes.items():
        assert 0.02 < train.count() / train.neuron_steps < 0.9
        assert not train.differing(after.spikes[name]).any(), name
    assert changed.types["pool"].kind == "count"
    assert [node.name for node in changed.nodes if isinstance(node, Scale)] == ["pool.mean", "pool2.mean"]


def test_windows_that_hang_over_become_a_sum_and_a_scale_for_each_place() -> None:
    graph = network(kernel=(5, 5), stride=(2, 2), ceil_mode=True, count_include_pad=False)
    changed = whole_pools(graph)
    scale = changed["pool"]
    assert isinstance(scale, Scale)
    assert isinstance(changed["pool.total"], SumPool2d)
    # 12 places in windows of 5 at stride 2: the last one holds 4.
    np.testing.assert_array_equal(1 / scale.factor[-1], [20.0] * 4 + [16.0])
    before, after = simulate(graph, BATCH), simulate(changed, BATCH)
    for name, train in before.spikes.items():
        assert not train.differing(after.spikes[name]).any(), name


def test_a_graph_without_average_pools_is_returned_as_it_is() -> None:
    graph = fold(network())
    changed = whole_pools(graph)
    assert whole_pools(changed) is changed
    assert isinstance(changed["pool"], SumPool2d)
