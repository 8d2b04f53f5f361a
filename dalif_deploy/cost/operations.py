"""What every node of a graph computes for one sample, from shapes alone.

The rule is the DA-LIF paper's, as its Table III gives it away (56.55 M, 974.86 M and 863.85 M MACs are met to the
last digit it prints). One sample, all T timesteps, static layers at every one of them:

- A layer with weights has one operation for every output element and weight of its fan-in, the places in the
  padding included; a linear layer one more for every bias. A convolution's bias is where its sum starts: none.
- Fed by spikes, these are accumulations (ACs), of which only those are carried out that a spike causes. Fed by
  anything else (the network's input, even where it is spikes; an average pool; a sum) they are MACs.
- BatchNorm: 2 MACs an element. A scale: 1.
- A neuron: 2 MACs, alpha X and beta H; in a folded graph the leak alone, 1.
- FLOPs: one for each operation of weights, two for each MAC of BatchNorm, scales and neurons, and one for each
  element that a pool gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    WEIGHTED,
    BatchNorm,
    Conv2d,
    Input,
    Linear,
    Neuron,
    Node,
    Pool2d,
    Scale,
)

Form = Literal["trained", "folded"]
FREE = frozenset({"Input", "Zeros", "Flatten", "Reshape", "Add", "Concat", "Readout"})
"""Names of the kinds that the rule counts nothing for."""


@dataclass(frozen=True)
class NodeOperations:
    """One node; all numbers for one sample.

    `parameters`: numbers that were learned, alpha and beta apart. `runs`: how many timesteps compute it: T, or 1
    after the readout. `weighted`: operations of its weights in one run. `spike_fed`: whether these are ACs, not
    MACs. `macs`, `flops`: of all runs; ACs are not among the MACs. `counted`: False for a kind that the rule does
    not know.
    """

    name: str
    kind: str
    parameters: int
    runs: int
    weighted: int = 0
    spike_fed: bool = False
    macs: int = 0
    flops: int = 0
    counted: bool = True


def operations_of(graph: SpikingGraph, form: Form) -> tuple[NodeOperations, ...]:
    """Every node's operations in topological order. `form`: whether alpha is still to be multiplied by."""
    return tuple(_of(graph, node, form) for node in graph.nodes)


def is_spike_fed(graph: SpikingGraph, node: Node) -> bool:
    """Whether the weights of `node` see 0 and 1 only, and not those of the network's input."""
    return all(
        graph.types[edge.source].kind == "spike" and not _from_input(graph, graph[edge.source]) for edge in node.inputs
    )


def _from_input(graph: SpikingGraph, node: Node) -> bool:
    """Whether spikes are the network's input, flattened or pooled, rather than a neuron's."""
    if isinstance(node, Neuron):
        return False
    return isinstance(node, Input) or any(_from_input(graph, graph[edge.source]) for edge in node.inputs)


def _of(graph: SpikingGraph, node: Node, form: Form) -> NodeOperations:
    runs = 1 if node.name in graph.after_readout else graph.timesteps
    elements = math.prod(graph.types[node.name].shape)
    name, kind = node.name, type(node).__name__
    if isinstance(node, WEIGHTED):
        parameters = node.weight.size + (0 if node.bias is None else node.bias.size)
        weighted = elements * math.prod(node.weight.shape[1:])
        if isinstance(node, Linear) and node.bias is not None:
            weighted += node.bias.size
        spike_fed = is_spike_fed(graph, node)
        macs = 0 if spike_fed else runs * weighted
        return NodeOperations(name, kind, parameters, runs, weighted, spike_fed, macs, runs * weighted)
    if isinstance(node, BatchNorm):
        return _elementwise(node, node.weight.size + node.bias.size, runs, 2 * elements)
    if isinstance(node, Scale):
        # One number for the whole layer is arithmetic in the user's code; one a channel is a BatchNorm's.
        parameters = sum(array.size for array in node.arrays().values() if array.size > 1)
        return _elementwise(node, parameters, runs, elements)
    if isinstance(node, Neuron):
        return _elementwise(node, 0, runs, (2 if form == "trained" else 1) * elements)
    if isinstance(node, Pool2d):
        return NodeOperations(name, kind, 0, runs, flops=runs * elements)
    if kind in FREE:
        return NodeOperations(name, kind, 0, runs)
    return NodeOperations(name, kind, sum(array.size for array in node.arrays().values()), runs, counted=False)


def _elementwise(node: Node, parameters: int, runs: int, macs: int) -> NodeOperations:
    return NodeOperations(node.name, type(node).__name__, parameters, runs, macs=runs * macs, flops=2 * runs * macs)


def border_reach(node: Conv2d, source: tuple[int, ...], shape: tuple[int, ...]) -> tuple[list[list[bool]], ...]:
    """For rows and columns apart, whether a place of the input is under an element of the kernel in some output.

    Two lists [kernel][places]: through each element of the kernel a place reaches one output at most.
    """
    axes = zip(
        source[1:], shape[1:], node.weight.shape[2:], node.stride, node.padding, node.dilation, strict=True
    )  # fmt: skip
    return tuple(_axis(*axis) for axis in axes)


def _axis(places: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> list[list[bool]]:
    reached = []
    for element in range(kernel):
        offsets = (place + padding - element * dilation for place in range(places))
        reached.append([offset % stride == 0 and 0 <= offset // stride < outputs for offset in offsets])
    return reached
