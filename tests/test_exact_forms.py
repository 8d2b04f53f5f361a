"""What exact sums ask for beyond folding: pools and scales that go into weights, bit for bit the same network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dalif_deploy.nodes import Edge, SumPool2d
from dalif_deploy.passes import fold_batchnorm, forward_scales, pooled_weights
from tests.test_passes import CHANNELS, Exact, check, kinds, weighted


def pooled(build: Exact, source: str | Edge, **options: Any) -> str:
    edge = source if isinstance(source, Edge) else Edge(source)
    return build.add(SumPool2d(name="pool", inputs=(edge,), **{"kernel": (2, 2), "stride": (2, 2), **options}))


@pytest.mark.parametrize(
    ("conv", "pool"),
    [
        ({}, {}),
        ({"stride": 2}, {"stride": (1, 1)}),
        ({"dilation": 2, "padding": 2}, {"kernel": (3, 2), "stride": (1, 2)}),
        ({"groups": 2, "kernel": 1, "padding": 0}, {"kernel": (4, 4), "stride": (4, 4)}),
    ],
)
def test_a_sum_pool_of_a_convolution_is_one_convolution(conv: dict[str, Any], pool: dict[str, Any]) -> None:
    build = Exact()
    x = pooled(build, build.conv("conv", "input", (CHANNELS, CHANNELS), bias=True, **conv), **pool)
    after = check(build, build.finish(build.neuron("sn", x, alpha=0.5, beta=0.5)), pooled_weights)
    assert kinds(after) == {"input": "Input", "pool": "Conv2d", "sn": "Neuron", "readout": "Readout"}


def test_a_pool_with_padding_stays() -> None:
    build = Exact()
    x = pooled(build, build.square("conv", "input"), padding=(1, 1))
    after = check(build, build.finish(build.neuron("sn", x, alpha=0.5)), pooled_weights)
    assert kinds(after)["pool"] == "SumPool2d"


@pytest.mark.parametrize("why", ["read by others", "a bias over a delayed edge"])
def test_a_pool_that_cannot_go_into_the_weights_stays(why: str) -> None:
    build = Exact()
    conv = build.square("conv", "input")
    x = pooled(build, Edge(conv, 1) if why.startswith("a bias") else conv)
    source = conv if why == "read by others" else "input"
    like = build.add(SumPool2d(name="like", inputs=(Edge(source),), kernel=(2, 2), stride=(2, 2)))
    graph = build.graph(build.neuron("sn", x, alpha=0.5), build.neuron("other", like, alpha=0.5))
    assert kinds(check(build, graph, pooled_weights))["pool"] == "SumPool2d"


@pytest.mark.parametrize("padding", [0, 1])
def test_a_scale_of_spikes_goes_into_the_weights_that_read_it(padding: int) -> None:
    """With padding, what the offset adds is smaller at the borders: a map behind the convolution."""
    build = Exact()
    spikes = build.neuron("sn", build.square("conv", "input"), alpha=0.5)
    norm = build.exact_norm("bn", build.scale("scale", spikes))
    x = build.conv("conv2", norm, (CHANNELS, CHANNELS), bias=True, padding=padding)
    graph = build.finish(build.neuron("sn2", x, alpha=0.5))
    after = check(build, graph, lambda graph: forward_scales(fold_batchnorm(graph)))
    assert weighted(after, "conv2").inputs == (Edge("sn"),)
    assert ("Add" in kinds(after).values()) == (padding == 1)


def test_a_scale_that_no_weights_read_stays() -> None:
    build = Exact()
    spikes = build.neuron("sn", build.square("conv", "input"), alpha=0.5)
    graph = build.graph(build.neuron("sn2", build.scale("scale", spikes), alpha=0.5))
    assert forward_scales(graph) is graph
    assert np.all(graph["scale"].factor == -0.5)  # type: ignore[attr-defined]
