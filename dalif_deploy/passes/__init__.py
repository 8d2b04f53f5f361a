"""SpikingGraph -> SpikingGraph; one module a pass, its rules in the module's docstring.

After them a network is what every target knows: weights, and leaky neurons with V = beta H + X. The leak
beta needs no pass: it is the neuron's own.
"""

from __future__ import annotations

from dalif_deploy.concats import without_concats
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes.contract import Pass
from dalif_deploy.passes.fold_alpha import fold_alpha
from dalif_deploy.passes.fold_batchnorm import fold_batchnorm
from dalif_deploy.passes.fold_comparison import fold_comparison
from dalif_deploy.passes.input_codes import forward_scales
from dalif_deploy.passes.input_codes import take_codes as fold_encoding
from dalif_deploy.passes.pooled_weights import pooled_weights
from dalif_deploy.passes.snap import snap
from dalif_deploy.passes.sum_pools import sum_pools
from dalif_deploy.passes.whole_pools import whole_pools

__all__ = [
    "FOLDING", "Pass", "exact_form", "fold", "fold_batchnorm", "fold_encoding", "forward_scales", "pooled_weights",
    "snap", "whole_pools",
]  # fmt: skip

FOLDING: tuple[Pass, ...] = (fold_batchnorm, fold_comparison, fold_alpha, sum_pools)
"""The passes that folding runs, in this order."""


def fold(graph: SpikingGraph) -> SpikingGraph:
    """The folded graph of a training graph: no BatchNorm, alpha = 1 everywhere, potentials that are compared as they
    are, sum pools for average pools.

    Weights stay float64; rounding is left to the exporter. Equal to the training graph in exact arithmetic;
    `dalif_deploy.deploy` proves it on the graph at hand. Raises `DalifError` (BAD_GRAPH).
    """
    for step in FOLDING:
        graph = step(graph)
    return graph


def exact_form(graph: SpikingGraph) -> SpikingGraph:
    """A folded graph as sums of weights times whole numbers, as far as it can be: what `snap` asks for.

    Concatenations are taken apart into sums; average pools become sum pools; a sum pool of a convolution goes into
    its weights, and a scale behind weights into those; a scale of spikes or counts goes into the weights that read
    it; codes take the place of the input. Raises `DalifError` (TARGET_CANNOT_HOLD), naming the node.
    """
    graph = pooled_weights(whole_pools(without_concats(graph)))
    return fold_encoding(forward_scales(fold_batchnorm(graph)))
