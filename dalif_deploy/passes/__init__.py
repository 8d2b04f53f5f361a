"""SpikingGraph -> SpikingGraph; one module a pass, its rules in the module's docstring.

After them a network is what every target knows: weights, and leaky neurons with V = beta H + X. The leak
beta needs no pass: it is the neuron's own.
"""

from __future__ import annotations

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes.contract import Pass
from dalif_deploy.passes.fold_alpha import fold_alpha
from dalif_deploy.passes.fold_batchnorm import fold_batchnorm
from dalif_deploy.passes.fold_comparison import fold_comparison
from dalif_deploy.passes.input_codes import take_codes as fold_encoding
from dalif_deploy.passes.snap import snap
from dalif_deploy.passes.sum_pools import sum_pools
from dalif_deploy.passes.whole_pools import whole_pools

__all__ = ["FOLDING", "Pass", "fold", "fold_encoding", "snap", "whole_pools"]

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
