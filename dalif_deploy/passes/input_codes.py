"""Makes a graph take uint8 codes: the encoding's scale, mean and std go into the weights that read the input.

Afterwards the input node stands for the codes 0..255 themselves, and the graph's encoding is
Encoding(kind="uint8") with scale 1, mean 0 and std 1. The module's input is gain * code + offset, per channel,
with gain = scale / std and offset = -mean / std. What reads it, seen through Flatten, SumPool2d, MaxPool2d and
Scale, is changed by these rules:

1. Conv2d, Linear: the gain goes into the weights, the offset into the bias.
2. Conv2d with zero padding and an offset: padding adds 0, not the offset. What the offset makes of every output
   is a map (channels, height, width), smaller at the borders; it is added behind the convolution, as a Scale of
   Zeros with that map as its offset.
3. Anything else reads a Scale that holds gain and offset.

A max pool keeps gains above 0 only, and a delayed edge, which delivers zeros at first, no offset: refused by
name otherwise. A graph that takes spikes stays as it is; real-valued input is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from dalif_deploy.encoding import Encoding, PerChannel
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph, rename_inputs
from dalif_deploy.nodes import (
    Add,
    Array,
    Conv2d,
    Edge,
    Flatten,
    Linear,
    MaxPool2d,
    Node,
    Pool2d,
    Scale,
    SumPool2d,
    Zeros,
    frozen,
)

CODES = Encoding(kind="uint8")
"""The encoding of a graph that takes codes as they are."""


def take_codes(graph: SpikingGraph) -> SpikingGraph:
    """The same graph for uint8 codes or, unchanged, for spikes.

    Raises `DalifError` (TARGET_CANNOT_HOLD), naming the node.
    """
    encoding = graph.encoding
    if encoding.kind == "uint8":
        return graph if encoding == CODES else _Folding(graph).result()
    if encoding.kind == "spikes" or graph.input.kind == "spike":
        return graph
    raise _refuse(
        graph.input,
        "real-valued input; exact sums need whole numbers: save the model with Encoding(kind='uint8', scale=...) for "
        "codes 0 to 255, or with Encoding(kind='spikes')",
    )


@dataclass(frozen=True, eq=False)
class _Affine:
    """A value of the graph before, gain * codes + offset, where `codes` is an edge of the graph behind.

    Gain and offset broadcast against the feature shape, with as many axes.
    """

    codes: Edge
    gain: Array
    offset: Array


def forward_scales(graph: SpikingGraph) -> SpikingGraph:
    """The same graph, in which no Scale stands between spikes or counts and the weights that read them.

    By the same rules as for codes: what reads gain * n + offset, of whole numbers n, reads n. So a BatchNorm on spikes
    before a padded convolution goes into its weights, and its offset into a map behind it. Raises `DalifError`
    (TARGET_CANNOT_HOLD), naming the node.
    """

    def between(node: Node) -> bool:
        source = graph.types[node.inputs[0].source]
        weights = any(isinstance(reader, Conv2d | Linear | Flatten | Pool2d) for reader in graph.consumers[node.name])
        return isinstance(node, Scale) and source.maximum is not None and weights

    seeds = [node for node in graph.nodes if node.inputs and node.name not in graph.after_readout and between(node)]
    affine = {
        node.name: _Affine(node.inputs[0], *(_spread(graph, node, v) for v in (node.factor, node.offset)))
        for node in seeds
        if isinstance(node, Scale)
    }
    return _Folding(graph, affine).result() if affine else graph


def _spread(graph: SpikingGraph, node: Scale, values: Array) -> Array:
    """`values` with all feature axes, channels written out."""
    shape = graph.types[node.name].shape
    aligned = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    return frozen(np.broadcast_to(aligned, (shape[0], *aligned.shape[1:])))


class _Folding:
    """`affine`: the values to begin with; None for the input, which then stands for codes."""

    def __init__(self, graph: SpikingGraph, affine: Mapping[str, _Affine] | None = None) -> None:
        self._graph = graph
        self._codes = affine is None
        self._affine = {graph.input.name: self._of_input()} if affine is None else dict(affine)
        self._begun = tuple(self._affine)
        # To a fixed point rather than in order: a delayed edge may lead back.
        while found := [node for node in graph.nodes if node.name not in self._affine and self._passes_on(node)]:
            self._affine.update({node.name: self._passed_on(node) for node in found})
        self._nodes: dict[str, Node] = {}
        self._renamed: dict[str, str] = {}

    def result(self) -> SpikingGraph:
        graph = self._graph
        for node in graph.nodes:
            self._rewrite(node)
        behind = {added: name for name, added in self._renamed.items()}
        nodes = [
            rename_inputs(node, {k: v for k, v in self._renamed.items() if k != behind.get(node.name)})
            for node in self._nodes.values()
        ]
        note = f"{graph.input.name}: scale, mean and std of the codes folded into what reads them"
        if not self._codes:
            return graph.with_nodes(nodes, note=[f"{name}: folded into what reads it" for name in self._begun])
        return SpikingGraph(
            nodes,
            output=graph.output,
            timesteps=graph.timesteps,
            encoding=CODES,
            class_names=graph.class_names,
            history=(*graph.history, note),
        )

    def _of_input(self) -> _Affine:
        node, encoding = self._graph.input, self._graph.encoding

        def spread(value: PerChannel) -> Array:
            along = np.asarray(value if isinstance(value, tuple) else (value,) * node.shape[0], dtype=np.float64)
            if len(along) != node.shape[0]:
                raise DalifError(
                    Code.WRONG_SHAPE, f"encoding: {len(along)} mean or std values for {node.shape[0]} channels"
                )
            return frozen(along.reshape(-1, *(1,) * (len(node.shape) - 1)))

        std = spread(encoding.std)
        return _Affine(Edge(node.name), frozen(encoding.scale / std), frozen(-spread(encoding.mean) / std))

    def _passes_on(self, node: Node) -> bool:
        passing = isinstance(node, Scale | Flatten | SumPool2d | MaxPool2d)
        return passing and node.inputs[0].source in self._affine and node.name not in self._graph.after_readout

    def _passed_on(self, node: Node) -> _Affine:
        affine = self._read(node)
        shape = self._graph.types[node.inputs[0].source].shape
        gain, offset = affine.gain, affine.offset
        if isinstance(node, Scale):  # gone: who reads it reads the codes
            return _Affine(affine.codes, frozen(node.factor * gain), frozen(node.factor * offset + node.offset))
        if isinstance(node, Flatten):
            gain, offset = (frozen(np.broadcast_to(values, shape).reshape(-1)) for values in (gain, offset))
        elif isinstance(node, SumPool2d):
            if offset.any() and not node.whole_windows(shape[1:]):
                raise _refuse(node, "sums a mean that is not 0 over windows that are not all whole")
            offset = frozen(offset * (node.kernel[0] * node.kernel[1]))
        elif (gain <= 0.0).any():
            raise _refuse(node, "the largest code is not the largest input where scale / std is below 0")
        if isinstance(node, Pool2d):
            self._require_per_channel(node, gain, offset)
        return _Affine(Edge(node.name), gain, offset)

    def _read(self, node: Node) -> _Affine:
        """What a node of one input reads, with the delays of all edges on the way."""
        (edge,) = node.inputs
        affine = self._affine[edge.source]
        if edge.delay and affine.offset.any():
            raise _refuse(
                node, "reads the input through a delayed edge, which delivers zeros at first, and they are no codes "
                "where the mean is not 0",
            )  # fmt: skip
        codes = Edge(affine.codes.source, affine.codes.delay + edge.delay)
        return _Affine(codes, affine.gain, affine.offset)

    def _rewrite(self, node: Node) -> None:
        if not any(edge.source in self._affine for edge in node.inputs):
            self._nodes[node.name] = node
        elif node.name in self._affine:
            if not isinstance(node, Scale):
                self._nodes[node.name] = replace(node, inputs=(self._read(node).codes,))
        elif isinstance(node, Conv2d):
            self._rewrite_conv(node)
        elif isinstance(node, Linear):
            affine = self._read(node)
            shift = node.weight @ affine.offset
            bias = shift if node.bias is None else node.bias + shift
            changed = replace(node, inputs=(affine.codes,), weight=frozen(node.weight * affine.gain))
            self._nodes[node.name] = replace(changed, bias=frozen(bias)) if affine.offset.any() else changed
        else:
            self._nodes[node.name] = replace(node, inputs=tuple(self._as_scale(node, edge) for edge in node.inputs))

    def _rewrite_conv(self, node: Conv2d) -> None:
        affine = self._read(node)
        self._require_per_channel(node, affine.gain, affine.offset)
        channels = node.weight.shape[1] * node.groups
        gain, offset = (np.broadcast_to(v.reshape(-1), (channels,)) for v in (affine.gain, affine.offset))
        # Every output channel reads the channels of its group.
        per_group, outputs = node.weight.shape[1], len(node.weight)
        reads = np.arange(outputs)[:, None] // (outputs // node.groups) * per_group + np.arange(per_group)
        changed = replace(node, inputs=(affine.codes,), weight=frozen(node.weight * gain[reads][:, :, None, None]))
        places = np.einsum("oikl,oi->okl", node.weight, offset[reads])
        if affine.offset.any() and node.padding == (0, 0):
            bias = places.sum(axis=(1, 2))
            changed = replace(changed, bias=frozen(bias if node.bias is None else node.bias + bias))
        self._nodes[node.name] = changed
        if affine.offset.any() and node.padding != (0, 0):
            self._add_map(node, places)

    def _add_map(self, node: Conv2d, places: Array) -> None:
        """Rule 2. `places`: what the offset adds at every place of the kernel, (channels, rows, columns)."""
        source = self._graph.types[node.inputs[0].source].shape
        shape = self._graph.types[node.name].shape
        rows, columns = (
            _inside(*axis)
            for axis in zip(
                source[1:], shape[1:], node.weight.shape[2:], node.stride, node.padding, node.dilation, strict=True
            )
        )
        values = np.einsum("okl,ky,lx->oyx", places, rows, columns)
        zeros, mean, total = (self._new_name(f"{node.name}.{role}") for role in ("no_input", "mean", "with_mean"))
        self._nodes[zeros] = Zeros(name=zeros, shape=shape)
        self._nodes[mean] = Scale(name=mean, inputs=(Edge(zeros),), factor=frozen(0.0), offset=frozen(values))
        self._nodes[total] = Add(name=total, inputs=(Edge(node.name), Edge(mean)))
        self._renamed[node.name] = total

    def _as_scale(self, reader: Node, edge: Edge) -> Edge:
        """Rule 3: the value of the graph before, for a reader that holds no weights."""
        if edge.source not in self._affine:
            return edge
        affine = self._affine[edge.source]
        if (affine.gain == 1.0).all() and not affine.offset.any():
            return Edge(affine.codes.source, affine.codes.delay + edge.delay)
        name = f"{edge.source}.scaled"
        if name not in self._nodes:
            name = self._new_name(name)
            self._nodes[name] = Scale(name=name, inputs=(affine.codes,), factor=affine.gain, offset=affine.offset)
        return Edge(name, edge.delay)

    def _require_per_channel(self, node: Node, *values: Array) -> None:
        if any(math.prod(array.shape[1:]) != 1 for array in values):
            raise _refuse(
                node, "reads an input that is scaled place by place, as averages over windows that are not whole are; "
                "a scale for each channel is needed: pool without padding and ceil_mode",
            )  # fmt: skip

    def _new_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self._graph or name in self._nodes:
            name, number = f"{wanted}{number}", number + 1
        return name


def _inside(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Array:
    """Along one axis, 1 where an element of the kernel lies on the input and 0 on padding: [kernel, outputs]."""
    place = np.arange(outputs) * stride - padding + np.arange(kernel)[:, None] * dilation
    return frozen((place >= 0) & (place < size))


def _refuse(node: Node, why: str) -> DalifError:
    return DalifError(Code.TARGET_CANNOT_HOLD, f"node '{node.name}' ({type(node).__name__}): {why}")
