"""A snapped SpikingGraph -> ONNX whose spikes no runtime's order of summation can change.

Every sum of weights is a whole number in units of 2^-k that its arithmetic holds exactly, so that it has one
value. That value is rounded once, to float32 (precision "exact"), or not at all, in float64 ("exact64"); then
V = fl(beta * H) + X, in two operations of that type. Layers are written as float32 slices or int8 planes.

The input is `input`, uint8 [batch, *shape] or, where it is temporal, [batch, T, *shape]: the codes, or spikes
0 and 1. `logits` are of the membrane's type. As in every file of this exporter, the spikes of a timestep are
`<layer>/t<t>/spikes`; here its potential V before the reset has a name too, `<layer>/t<t>/potential`. The layers
listed in the metadata entry "channels_last" have both as [batch, height, width, channels].

Initialisers, where <root> is the node that a neuron or the readout reads:

    <node>.slices, .slices_bias           float32 [slices * out, ...], [slices * out], highest slice first
    <node>.plane<i>, .bias<i>             int8 [kernel * in, out], int32 [out], in units of 256^i
    <root>.slice<i>_term<n>, _offset<n>   float32: what slice i gets of the n-th identity or Scale; none where it is 1
    <root>.term<n>, .term<n>_offset       the same of planes: int32 in units of 2^-k, or float64
    <root>.unit                           2^-k; .high_unit, .low_unit: of the upper two planes and of the others
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
from onnx import helper

from dalif_deploy.exporters.onnx_builder import (
    BATCH,
    DOUBLE,
    FLOAT,
    INPUT,
    LOGITS,
    UINT8,
    Builder,
    ElementType,
    Signal,
)
from dalif_deploy.exporters.onnx_currents import Currents
from dalif_deploy.exporters.onnx_layers import Place, write
from dalif_deploy.exporters.onnx_neuron import NeuronForm, NeuronWriter
from dalif_deploy.exporters.onnx_order import components
from dalif_deploy.exporters.onnx_sums import plan
from dalif_deploy.exporters.onnx_values import MAPS, Form, Moment, Value, lying
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import Lattice, certificate_of, find_sums
from dalif_deploy.nodes import WEIGHTED, Flatten, Input, MaxPool2d, Neuron, Node, Readout, SumPool2d, Zeros

ExactPrecision = Literal["exact", "exact64"]


class ExactWriter:
    """Writes one snapped graph. Raises `DalifError` as `find_sums`, `plan` and `NeuronWriter` do."""

    def __init__(self, graph: SpikingGraph, lattices: Mapping[str, Lattice], precision: ExactPrecision) -> None:
        self._graph = graph
        self._lattices = lattices
        self._precision = precision
        self._builder = Builder(graph.timesteps)
        self._membrane = DOUBLE if precision == "exact64" else FLOAT
        self._planned = plan(find_sums(graph), lattices)
        self._values: dict[str, Value] = {}
        self._currents = Currents(graph, self._builder, lattices, self._planned, self._values, self._membrane)

    def write(self, outputs: Literal["logits", "spikes"]) -> onnx.GraphProto:
        """The ONNX graph."""
        graph, builder = self._graph, self._builder
        for component in components(graph):
            if len(component) > 1 or any(edge.delay for edge in component[0].inputs):
                self._write_stepwise(component)
            else:
                self._write_whole(component[0])
        logits = helper.make_tensor_value_info(LOGITS, self._membrane, [BATCH, *graph.types[graph.output].shape])
        spikes = [self._spike_output(neuron) for neuron in graph.neurons] if outputs == "spikes" else []
        shape = [graph.timesteps, *graph.input.shape] if graph.input.temporal else graph.input.shape
        return helper.make_graph(
            builder.nodes,
            "spiking_network",
            [helper.make_tensor_value_info(INPUT, UINT8, [BATCH, *shape])],
            [logits, *spikes],
            initializer=list(builder.initialisers.values()),
            value_info=list(builder.shapes.values()),
        )

    def metadata(self) -> dict[str, str]:
        """What the file says of itself beyond what every file does, once the graph is written."""
        layers = [neuron.name for neuron in self._graph.neurons if self._values[neuron.name].form.channels_last]
        return {
            "precision": self._precision,
            "certificate": certificate_of(self._lattices, self._graph),
            "channels_last": json.dumps(layers),
        }

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._graph.types[name].shape

    def _write_whole(self, node: Node) -> None:
        """All timesteps of a node that reads no delayed edge."""
        if isinstance(node, Input):
            self._values[node.name] = self._write_input(node)
        elif isinstance(node, Zeros):
            signal = Signal(self._builder, node.name, node.shape, steps=[])
            signal.static = signal.zeros()
            self._values[node.name] = Value(self._builder, signal, node.shape, MAPS)
        elif isinstance(node, Readout):
            self._write_readout(node)
        elif isinstance(node, Neuron):
            current, form, writer = self._neuron(node)
            source = current.in_form(Form(self._membrane, form.channels_last))
            steps = [writer.step(t, source.at(t)) for t in range(self._graph.timesteps)]
            self._begin(node, form, growing=False)
            for spikes in steps:
                self._values[node.name].signal.append(spikes)
        else:
            static = not any(self._currents.changes(edge.source) for edge in node.inputs)
            self._write_stateless(node, Moment(self._graph.timesteps, static=static))

    def _write_stepwise(self, component: tuple[Node, ...]) -> None:
        """Nodes that feed each other through delayed edges, or read one: a timestep after the other."""
        neurons: dict[str, NeuronWriter] = {}
        for node in component:
            if node.name in self._planned:
                self._currents.begin_stepwise(node.name)
            elif not isinstance(node, Neuron):
                self._begin(node, MAPS, growing=True)
        for node in component:
            if isinstance(node, Neuron):
                form = Form(self._spike_element(node), self._channels_last(node))
                self._begin(node, form, growing=True)
                neurons[node.name] = self._writer(node, form)
        for t in range(self._graph.timesteps):
            moment = Moment(self._graph.timesteps, t=t)
            for node in component:
                if not isinstance(node, Neuron):
                    self._write_stateless(node, moment)
                    continue
                (edge,) = node.inputs
                spikes = self._values[node.name]
                form = Form(self._membrane, spikes.form.channels_last)
                current = self._currents.current(edge.source, t - edge.delay).read(moment, form, edge.delay)
                spikes.signal.append(neurons[node.name].step(t, current))
        for node in component:
            if node.name in self._values:
                self._values[node.name].growing = False

    def _begin(self, node: Node, form: Form, *, growing: bool) -> None:
        """Announce a node that is written timestep by timestep."""
        shape = self._shape(node.name)
        signal = Signal(self._builder, node.name, lying(shape, form.channels_last), steps=[], element=form.element)
        self._values[node.name] = Value(self._builder, signal, shape, form, growing=growing)

    def _write_stateless(self, node: Node, moment: Moment) -> None:
        if node.name in self._planned:
            self._currents.write(node, moment)
            return
        builder, prefix, shape = self._builder, moment.prefix(node.name), self._shape(node.name)
        edges = node.inputs
        source = self._values[edges[0].source]
        form = MAPS
        if moment.t is None and isinstance(node, Flatten | MaxPool2d):
            form = Form(source.form.element)  # no arithmetic: whatever the elements are
        if moment.t is None and isinstance(node, SumPool2d) and source.form.channels_last and self._is_global(node):
            form = Form(FLOAT, channels_last=True)
            value = builder.node(
                "ReduceSum", [source.read(moment, form), builder.integers(1, 2)], f"{prefix}/output", name=prefix,
                shape=lying(shape, True), batch=moment.batch, keepdims=1,
            )  # fmt: skip
        else:
            inputs = [self._values[edge.source].read(moment, form, edge.delay) for edge in edges]
            source_shape = self._shape(edges[0].source)
            value = write(
                node,
                Place(builder, prefix, f"{prefix}/output", inputs, source_shape, shape, moment.batch, form.element),
            )
        if moment.t is not None:
            self._values[node.name].signal.append(value)
            return
        signal = moment.signal(builder, node.name, lying(shape, form.channels_last), form.element, value)
        self._values[node.name] = Value(builder, signal, shape, form)

    def _is_global(self, pool: SumPool2d) -> bool:
        return pool.kernel == self._shape(pool.inputs[0].source)[1:] and pool.padding == (0, 0)

    # Neurons.

    def _neuron(self, node: Neuron) -> tuple[Value, Form, NeuronWriter]:
        current = self._currents.current(node.inputs[0].source)
        form = Form(self._spike_element(node), self._channels_last(node))
        return current, form, self._writer(node, form)

    def _writer(self, node: Neuron, form: Form) -> NeuronWriter:
        shape = lying(self._shape(node.name), form.channels_last)
        return NeuronWriter(
            self._builder, node, shape, NeuronForm(self._membrane, form.element, form.channels_last, True)
        )

    def _channels_last(self, node: Neuron) -> bool:
        """Planes leave channels last, and want to read them so; a current is moved once where it is static."""
        if len(self._shape(node.name)) == 1:
            return False
        source = node.inputs[0].source
        if source in self._planned:
            return self._currents.channels_last(source) or self._read_by_planes(node.name, direct=True)
        return self._read_by_planes(node.name, direct=True)

    def _spike_element(self, node: Neuron) -> ElementType:
        return UINT8 if self._read_by_planes(node.name, direct=False) else FLOAT

    def _read_by_planes(self, name: str, *, direct: bool) -> bool:
        """Whether int8 planes read a node: itself, or (not `direct`) as flattened or pooled bytes."""
        return any(self._takes_bytes(reader, direct=direct) for reader in self._graph.consumers[name])

    def _takes_bytes(self, reader: Node, *, direct: bool) -> bool:
        if isinstance(reader, WEIGHTED):
            return not self._planned[reader.name].sliced
        passes = isinstance(reader, Flatten | MaxPool2d)
        return passes and not direct and self._read_by_planes(reader.name, direct=False)

    # Input, readout and outputs.

    def _write_input(self, node: Input) -> Value:
        builder, timesteps = self._builder, self._graph.timesteps
        if not node.temporal:
            signal = Signal(builder, node.name, node.shape, static=INPUT, element=UINT8)
            return Value(builder, signal, node.shape, Form(UINT8))
        value = INPUT
        if timesteps > 1:
            perm = [1, 0, *range(2, 2 + len(node.shape))]
            value = builder.node("Transpose", [INPUT], f"{node.name}/time_major", perm=perm)
        moment = Moment(timesteps)
        stacked = builder.node(
            "Reshape", [value, builder.integers(-1, *node.shape)], f"{node.name}/output", name=f"{node.name}/stack",
            shape=node.shape, batch=moment.batch, element=UINT8,
        )  # fmt: skip
        signal = Signal(builder, node.name, node.shape, stacked=stacked, element=UINT8)
        return Value(builder, signal, node.shape, Form(UINT8))

    def _write_readout(self, node: Readout) -> None:
        """The definition of the readout: summed from left to right in the membrane's type, divided once."""
        builder, timesteps = self._builder, self._graph.timesteps
        signal = self._currents.current(node.inputs[0].source).in_form(Form(self._membrane))
        if node.mode == "last":
            builder.node("Identity", [signal.at(timesteps - 1)], LOGITS, name=node.name)
            return
        total = signal.at(0)
        for t in range(1, timesteps):
            op = "Max" if node.mode == "max" else "Add"
            total = builder.node(op, [total, signal.at(t)], f"{node.name}/t{t}/total")
        if node.mode == "mean" and timesteps > 1:
            count = np.array(timesteps, dtype=helper.tensor_dtype_to_np_dtype(self._membrane))
            builder.node("Div", [total, builder.constant(f"{node.name}.timesteps", count)], LOGITS, name=node.name)
        else:
            builder.node("Identity", [total], LOGITS, name=node.name)

    def _spike_output(self, neuron: Neuron) -> onnx.ValueInfoProto:
        builder, timesteps, shape = self._builder, self._graph.timesteps, self._shape(neuron.name)
        stacked = self._values[neuron.name].in_form(MAPS).stacked()
        steps = builder.node("Reshape", [stacked, builder.integers(timesteps, -1, *shape)], f"{neuron.name}/timesteps")
        name = f"{neuron.name}/spikes"
        builder.node("Transpose", [steps], name, perm=[1, 0, *range(2, 2 + len(shape))])
        return helper.make_tensor_value_info(name, FLOAT, [BATCH, timesteps, *shape])
