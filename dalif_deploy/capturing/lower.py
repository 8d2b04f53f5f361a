"""One rolled-back time step -> the nodes of a SpikingGraph, named after the user's modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dalif_deploy.capturing.neurons import NeuronParameters, fit
from dalif_deploy.capturing.normalisation import with_normalisation
from dalif_deploy.capturing.rollback import Rolled
from dalif_deploy.capturing.values import Const, Op
from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    Add,
    Array,
    AvgPool2d,
    BatchNorm,
    Concat,
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
    SumPool2d,
    TensorKind,
    Zeros,
    frozen,
)

_SUFFIXES = {
    "conv": "conv",
    "linear": "linear",
    "batch_norm": "bn",
    "affine": "scale",
    "add": "add",
    "sum_of": "add",
    "mean_of": "mean",
    "reshape": "flatten",
    "avg_pool": "avgpool",
    "max_pool": "maxpool",
    "sum_pool": "sumpool",
    "concat": "concat",
    "zeros": "zeros",
    "pad": "pad",
}


def lower(
    rolled: Rolled,
    parameters: Mapping[str, NeuronParameters],
    *,
    input_shape: tuple[int, ...],
    temporal: bool,
    readout: ReadoutMode,
    timesteps: int,
    encoding: Encoding,
    class_names: tuple[str, ...],
) -> SpikingGraph:
    """The training graph. Raises `DalifError` (UNSUPPORTED_LAYER, NOT_FINITE, WRONG_SHAPE)."""
    lowering = _Lowering(rolled, parameters)
    kind: TensorKind = "spike" if encoding.kind == "spikes" else "real"
    source = Input(name=lowering.fresh("input"), shape=input_shape, temporal=temporal, kind=kind)
    lowering.source = source.name
    step = lowering.edge(rolled.step)
    reduced = Readout(name=lowering.fresh("readout"), inputs=(step,), mode=readout)
    lowering.emit(rolled.reduced, reduced)
    output = lowering.edge(rolled.output, after=True)
    return SpikingGraph(
        [source, *lowering.nodes],
        output=output.source,
        timesteps=timesteps,
        encoding=encoding,
        class_names=class_names,
    )


class _Lowering:
    def __init__(self, rolled: Rolled, parameters: Mapping[str, NeuronParameters]) -> None:
        self._rolled = rolled
        self._parameters = parameters
        # Neuron layers keep their modules' names whatever happens; the others step aside.
        self._taken = set(rolled.currents)
        self._edges: dict[tuple[int, bool], Edge] = {}
        self._readers = _count_readers(rolled)
        self.nodes: list[Node] = []
        self.source = ""

    def fresh(self, wanted: str) -> str:
        """`wanted`, or that with a number where it is taken."""
        wanted = wanted.replace("/", "_")
        name, number = wanted, 2
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name

    def emit(self, op: Op, node: Node, *, after: bool = True) -> Edge:
        """Take `node` for what `op` computes, after the readout or before."""
        self.nodes.append(node)
        edge = self._edges[id(op), after] = Edge(node.name)
        return edge

    def edge(self, op: Op, *, after: bool = False) -> Edge:
        """An edge from the node that computes `op`, which is made where it does not exist yet.

        The readout may stand for the same operation as its input does ("last"), so what follows it
        (`after`) is kept apart from the timestep itself.
        """
        stack = [op]
        while stack:
            top = stack[-1]
            if (id(top), after) in self._edges:
                stack.pop()
                continue
            missing = [x for x in self._reads(top) if (id(x), after) not in self._edges]
            if missing:
                stack.extend(missing)
                continue
            self._lower(top, after)
            stack.pop()
        return self._edges[id(op), after]

    def _reads(self, op: Op) -> tuple[Op, ...]:
        if op.kind == "input":
            return ()
        if op.kind == "neuron":
            return (self._rolled.currents[op.attrs[0]],)
        return (self._affine_chain(op)[0],) if op.kind == "affine" else op.inputs

    def _lower(self, op: Op, after: bool) -> None:
        edges = tuple(self._edges[id(x), after] for x in self._reads(op))
        if op.kind == "input":
            self._edges[id(op), after] = Edge(self.source)
        elif op.kind == "neuron":
            self.emit(op, self._neuron(op, edges), after=after)
        elif op.kind == "mean_of":
            total = self._add(edges, self._name(op))
            self.nodes.append(total)
            factor = frozen(1.0 / len(edges))
            scaled = Scale(name=self._name(op), inputs=(Edge(total.name),), factor=factor, offset=frozen(0.0))
            self.emit(op, scaled, after=after)
        elif op.kind in ("add", "sum_of"):
            self.emit(op, self._add(edges, self._name(op)), after=after)
        elif op.kind == "affine":
            _, factor, offset = self._affine_chain(op)
            self.emit(op, Scale(name=self._name(op), inputs=edges, factor=factor, offset=offset), after=after)
        elif op.kind in _LAYERS:
            self.emit(op, _LAYERS[op.kind](op, self._name(op), edges), after=after)
        else:
            what = op.attrs[0] if op.kind == "unsupported" else op.kind
            line = f" [{op.site.line}]" if op.site.line else ""
            if op.kind == "state":
                raise DalifError(
                    Code.UNSUPPORTED_LAYER,
                    f"{op.site}: the potential of '{op.attrs[0]}' is read outside the layer, and only spikes leave a "
                    f"neuron layer; compute with its spikes{line}",
                )
            raise DalifError(Code.UNSUPPORTED_LAYER, f"{op.site}: {what}: used in a way that is not supported{line}")

    def _name(self, op: Op) -> str:
        path, suffix = op.site.path, _SUFFIXES[op.kind]
        if not path:
            return self.fresh(suffix)
        # A module with children or one that does several things lends its name as a prefix only.
        if op.site.leaf and path not in self._taken:
            return self.fresh(path)
        return self.fresh(f"{path}.{suffix}")

    def _add(self, edges: tuple[Edge, ...], name: str) -> Add:
        return Add(name=name, inputs=edges)

    def _affine_chain(self, op: Op) -> tuple[Op, Array, Array]:
        """(x, factor, offset) with op = factor * x + offset, through affines that nobody else reads."""
        factor, offset = _affine(op)
        source = op.inputs[0]
        while source.kind == "affine" and self._readers[id(source)] == 1 and source is not self._rolled.reduced:
            inner_factor, inner_offset = _affine(source)
            offset = factor * inner_offset + offset
            factor = factor * inner_factor
            source = source.inputs[0]
        return source, frozen(factor), frozen(offset)

    def _neuron(self, op: Op, edges: tuple[Edge, ...]) -> Neuron:
        name = op.attrs[0]
        p = self._parameters[name]
        values: dict[str, Any] = {
            key: fit(name, key, getattr(p, key), op.shape, p.aligned)
            for key in ("alpha", "beta", "v_threshold", "v_reset", "leak_target")
        }
        neuron = Neuron(
            name=name,
            inputs=edges,
            reset=p.reset,
            fires_at=p.fires_at,
            reset_timing=p.reset_timing,
            update=p.update,
            state=p.state(),
            raw_alpha=p.raw_alpha,
            raw_beta=p.raw_beta,
            activation=p.activation,
            **values,
        )
        if p.norm is None:
            return neuron
        before, neuron = with_normalisation(neuron, p.norm, p.norm_of, op.shape, self.fresh(f"{name}.norm"))
        if before is not None:
            self.nodes.append(before)
        return neuron


def _count_readers(rolled: Rolled) -> dict[int, int]:
    readers: dict[int, int] = {}
    # Neurons are followed by their input in the step that is lowered, which is the last for all of them.
    stack, seen = [rolled.output, rolled.step], set()
    for root in stack:
        readers[id(root)] = readers.get(id(root), 0) + 1
    while stack:
        op = stack.pop()
        if id(op) in seen:
            continue
        seen.add(id(op))
        inputs = (rolled.currents[op.attrs[0]],) if op.kind == "neuron" else op.inputs
        for source in inputs:
            readers[id(source)] = readers.get(id(source), 0) + 1
            stack.append(source)
    return readers


def _affine(op: Op) -> tuple[Array, Array]:
    factor, offset = (const.array() for const in op.consts if const is not None)
    return factor, offset


def _conv(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    stride, padding, dilation, groups = op.attrs
    weight, bias = op.consts
    return Conv2d(
        name=name,
        inputs=edges,
        weight=_array(weight),
        bias=None if bias is None else bias.array(),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def _linear(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    weight, bias = op.consts
    values = _array(weight)
    return Linear(
        name=name,
        inputs=edges,
        weight=frozen(values.T) if op.attrs[0] else values,
        bias=None if bias is None else frozen(np.broadcast_to(bias.array(), op.shape)),
    )


def _batch_norm(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    weight, bias, mean, variance = op.consts
    channels = op.shape[:1]
    return BatchNorm(
        name=name,
        inputs=edges,
        weight=frozen(np.ones(channels)) if weight is None else weight.array(),
        bias=frozen(np.zeros(channels)) if bias is None else bias.array(),
        mean=_array(mean),
        variance=_array(variance),
        epsilon=op.attrs[0],
    )


def _avg_pool(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    kernel, stride, padding, ceil_mode, count_include_pad = op.attrs
    return AvgPool2d(
        name=name,
        inputs=edges,
        kernel=kernel,
        stride=stride,
        padding=padding,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )


def _max_pool(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    kernel, stride, padding, ceil_mode = op.attrs
    return MaxPool2d(name=name, inputs=edges, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)


def _sum_pool(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    kernel, stride, padding, ceil_mode = op.attrs
    return SumPool2d(name=name, inputs=edges, kernel=kernel, stride=stride, padding=padding, ceil_mode=ceil_mode)


def _flatten(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    if op.shape != (math.prod(op.inputs[0].shape),):
        line = f" [{op.site.line}]" if op.site.line else ""
        raise DalifError(
            Code.UNSUPPORTED_LAYER,
            f"{op.site}: reshapes features {list(op.inputs[0].shape)} to {list(op.shape)}; the only reshape that is "
            f"supported is flattening to [batch, features]{line}",
        )
    return Flatten(name=name, inputs=edges)


def _concat(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    return Concat(name=name, inputs=edges)


def _zeros(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    return Zeros(name=name, shape=op.shape)


def _pad(op: Op, name: str, edges: tuple[Edge, ...]) -> Node:
    """Zeros around a map that no convolution takes in: each channel moved by a kernel with a single 1."""
    left, right, top, bottom = op.attrs[0]
    channels = op.shape[0]
    weight = np.zeros((channels, 1, 1 + abs(top - bottom), 1 + abs(left - right)))
    weight[:, :, max(bottom - top, 0), max(right - left, 0)] = 1.0
    padding = (max(top, bottom), max(left, right))
    return Conv2d(name=name, inputs=edges, weight=frozen(weight), padding=padding, groups=channels)


def _array(const: Const | None) -> Array:
    assert const is not None
    return const.array()


_LAYERS: Mapping[str, Callable[[Op, str, tuple[Edge, ...]], Node]] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "sum_pool": _sum_pool,
    "reshape": _flatten,
    "concat": _concat,
    "zeros": _zeros,
    "pad": _pad,
}
