"""SpikingGraph -> ONNX: a folded graph with its timesteps unrolled, in stock operators of opset 18 and later.

The input is `input`, float32 [batch, *shape] or, where it is temporal, [batch, T, *shape]: what the trained
module takes. The output is `logits` [batch, K]. Stateless layers are computed once for all timesteps on
[T * batch, ...], time-major; what does not change over time is computed once; only neurons, and whatever a
delayed edge makes recurrent, are written timestep by timestep.

Precisions "exact" and "exact64" take a snapped graph and are written by `onnx_exact`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from dalif_deploy import __version__
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.onnx_builder import BATCH, FLOAT, INPUT, LOGITS, STACKED_BATCH, Builder, Signal
from dalif_deploy.exporters.onnx_contents import read_tensor
from dalif_deploy.exporters.onnx_exact import ExactWriter
from dalif_deploy.exporters.onnx_layers import Place, write
from dalif_deploy.exporters.onnx_neuron import NeuronWriter
from dalif_deploy.exporters.onnx_order import components
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import Lattice
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nodes import BatchNorm, Input, Neuron, Node, Readout, Zeros

Outputs = Literal["logits", "spikes"]
Precision = Literal["float32", "exact", "exact64"]

LOWEST_OPSET = 18
# Protobuf holds no message of 2 GiB; the rest of a file is small against this reserve.
LARGEST_PARAMETERS = 2**31 - 2**24


def to_onnx(
    graph: SpikingGraph,
    *,
    opset: int = LOWEST_OPSET,
    outputs: Outputs = "logits",
    precision: Precision = "float32",
    lattices: Mapping[str, Lattice] | None = None,
    metadata: Mapping[str, str] = {},
) -> onnx.ModelProto:
    """The ONNX model of a folded graph: no BatchNorm, and every neuron's alpha is 1.

    `outputs`: "spikes" adds an output `<layer>/spikes` [batch, T, *shape] for every neuron layer, float32 0
    or 1 rather than bool, so that it can be fed to another layer of any runtime. `metadata`: further entries
    of the model's metadata. Parameters are rounded to float32 once. The model has passed ONNX's checker and
    its strict shape inference. The same graph gives the same bytes.

    `precision`: "exact" and "exact64" take what `dalif_deploy.passes.snap.snap` made of the folded graph for
    that precision, the graph and its `lattices`; see `onnx_exact` for what the file then is. Its metadata has
    two more entries, `precision` and `certificate`.

    Raises `DalifError`: BAD_GRAPH for a graph that is not folded, or not snapped, BAD_OPTION for an opset below
    18 or above what the installed onnx knows, for unknown outputs or precisions, for lattices that are missing or
    not for this precision, and for metadata that would overwrite the exporter's; TARGET_CANNOT_HOLD, naming the
    node, for a parameter beyond float32 or a node that has no exact form, and for parameters of 2 GB and more.
    """
    _check_options(opset, outputs, precision, lattices)
    _check_folded(graph)
    entries = FileMetadata.of(graph).to_strings()
    if precision == "float32":
        onnx_graph = _Writer(graph).write(outputs)
    else:
        assert lattices is not None
        exact = ExactWriter(graph, lattices, precision)
        onnx_graph = exact.write(outputs)
        entries |= exact.metadata()
    _check_size(sum(len(tensor.raw_data) for tensor in onnx_graph.initializer))
    if taken := sorted(set(entries) & set(metadata)):
        raise DalifError(Code.BAD_OPTION, f"metadata {', '.join(taken)}: the exporter writes these entries itself")
    model = helper.make_model(
        onnx_graph,
        opset_imports=[helper.make_opsetid("", opset)],
        # The lowest that has the opset, so that older runtimes accept the file.
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", opset)]),
        producer_name="dalif_deploy",
        producer_version=__version__,
        doc_string=_description(graph),
    )
    helper.set_model_props(model, {**entries, **metadata})
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DalifError(Code.FAULT, f"the exported ONNX model fails ONNX's own checks: {error}") from error
    return model


def parameters(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The initialisers of a model by name: weights, biases, thresholds, leaks, and constants.

    For comparison with those of a fresh export; int64 (axes, shapes and places) is left out. Raises `DalifError`
    (FILE_DAMAGED) for an initialiser that does not hold what it declares, (FOREIGN_FILE) for one that lies in
    another file.
    """
    found = {tensor.name: read_tensor(tensor) for tensor in model.graph.initializer}
    return {name: values for name, values in found.items() if values.dtype != np.int64}


def export_options(model: onnx.ModelProto) -> dict[str, Any]:
    """The options of `to_onnx`, `precision` apart, that a model's own interface tells: its opset, where this version
    writes it, and whether it gives the layers' spikes."""
    options: dict[str, Any] = {
        "outputs": "spikes" if any(value.name.endswith("/spikes") for value in model.graph.output) else "logits"
    }
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and LOWEST_OPSET <= entry.version <= onnx.defs.onnx_opset_version():
            options["opset"] = entry.version
    return options


def _check_options(opset: int, outputs: str, precision: str, lattices: Mapping[str, Lattice] | None) -> None:
    highest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not LOWEST_OPSET <= opset <= highest:
        raise DalifError(
            Code.BAD_OPTION,
            f"opset {opset!r}: give {LOWEST_OPSET} to {highest}, the lowest whose operators are used here and the "
            f"highest that onnx {onnx.__version__} knows",
        )
    if outputs not in get_args(Outputs):
        raise DalifError(Code.BAD_OPTION, f"outputs {outputs!r}: give 'logits' or 'spikes'")
    if precision not in get_args(Precision):
        raise DalifError(Code.BAD_OPTION, f"precision {precision!r}: give {', '.join(map(repr, get_args(Precision)))}")
    if (lattices is None) != (precision == "float32"):
        what = "takes no lattices" if lattices is not None else "takes a snapped graph and its lattices"
        raise DalifError(
            Code.BAD_OPTION,
            f"precision {precision!r}: {what}; dalif_deploy.passes.snap.snap(graph, precision) makes them",
        )


def _check_folded(graph: SpikingGraph) -> None:
    for node in graph.nodes:
        unfolded = isinstance(node, Neuron) and ((node.alpha != 1.0).any() or node.normalised)
        if isinstance(node, BatchNorm) or unfolded:
            what = "is still there" if isinstance(node, BatchNorm) else "alpha is not 1"
            if isinstance(node, Neuron) and node.normalised:
                what = "its potential is normalised before the comparison"
            raise DalifError(
                Code.BAD_GRAPH,
                f"node '{node.name}' ({type(node).__name__}): {what}; the ONNX exporter takes a folded graph: "
                "call dalif_deploy.fold(graph) first",
            )
    _check_size(sum(4 * array.size for node in graph.nodes for array in node.arrays().values()))


def _check_size(size: int) -> None:
    if size >= LARGEST_PARAMETERS:
        raise DalifError(
            Code.TARGET_CANNOT_HOLD,
            f"the parameters take {size / 2**30:.2f} GiB, and one ONNX file holds less than 2 GiB",
        )


def _description(graph: SpikingGraph) -> str:
    steps = "timestep" if graph.timesteps == 1 else "timesteps"
    return (
        f"Spiking network, {len(graph.neurons)} neuron layers, unrolled over {graph.timesteps} {steps}; "
        f"readout: {graph.readout.mode}. A neuron layer's spikes of timestep t are <layer>/t<t>/spikes."
    )


class _Writer:
    """Writes one graph, node by node, where each comes after all that it needs."""

    def __init__(self, graph: SpikingGraph) -> None:
        self._graph = graph
        self._builder = Builder(graph.timesteps)
        self._signals: dict[str, Signal] = {}
        self._batched = STACKED_BATCH if graph.timesteps > 1 else BATCH

    def write(self, outputs: Outputs) -> onnx.GraphProto:
        """The ONNX graph."""
        graph, builder = self._graph, self._builder
        for component in components(graph):
            if len(component) > 1 or any(edge.delay for edge in component[0].inputs):
                self._write_stepwise(component)
            else:
                self._signals[component[0].name] = self._write_whole(component[0])
        result = self._signals[graph.output].at(0)
        if result != LOGITS:
            builder.node("Identity", [result], LOGITS)
        tensors = [helper.make_tensor_value_info(LOGITS, FLOAT, [BATCH, *graph.types[graph.output].shape])]
        if outputs == "spikes":
            tensors += [self._spike_output(neuron) for neuron in graph.neurons]
        shape = [graph.timesteps, *graph.input.shape] if graph.input.temporal else graph.input.shape
        return helper.make_graph(
            builder.nodes,
            "spiking_network",
            [helper.make_tensor_value_info(INPUT, FLOAT, [BATCH, *shape])],
            tensors,
            initializer=list(builder.initialisers.values()),
            value_info=list(builder.shapes.values()),
        )

    def _signal(self, node: Node, **form: Any) -> Signal:
        return Signal(self._builder, node.name, self._graph.types[node.name].shape, **form)

    def _write_whole(self, node: Node) -> Signal:
        """All timesteps of a node that reads no delayed edge."""
        sources = [self._signals[edge.source] for edge in node.inputs]
        if node.name in self._graph.after_readout and not isinstance(node, Readout):
            for source in sources:
                if source.static is None:
                    raise node._refuse(f"stands after the readout, but reads '{source.name}', which changes over time")
        if isinstance(node, Input):
            return self._write_input(node)
        if isinstance(node, Zeros):
            signal = self._signal(node, steps=[])
            signal.static = signal.zeros()
            return signal
        if isinstance(node, Readout):
            return self._signal(node, static=self._write_readout(node, sources[0]))
        if isinstance(node, Neuron):
            neuron = NeuronWriter(self._builder, node, sources[0].shape)
            return self._signal(node, steps=[neuron.step(t, sources[0].at(t)) for t in range(self._graph.timesteps)])
        if all(source.static is not None for source in sources):
            return self._signal(node, static=self._write_stateless(node, node.name, [s.at(0) for s in sources], BATCH))
        inputs = [source.stacked() for source in sources]
        return self._signal(node, stacked=self._write_stateless(node, node.name, inputs, self._batched))

    def _write_stepwise(self, component: tuple[Node, ...]) -> None:
        """Nodes that feed each other through delayed edges, or read one: a timestep after the other."""
        for node in component:
            self._signals[node.name] = self._signal(node, steps=[])
        neurons = {
            node.name: NeuronWriter(self._builder, node, self._graph.types[node.name].shape)
            for node in component
            if isinstance(node, Neuron)
        }
        for t in range(self._graph.timesteps):
            for node in component:
                inputs = [self._signals[edge.source].at(t - edge.delay) for edge in node.inputs]
                if isinstance(node, Neuron):
                    value = neurons[node.name].step(t, inputs[0])
                else:
                    value = self._write_stateless(node, f"{node.name}/t{t}", inputs, BATCH)
                self._signals[node.name].append(value)

    def _write_stateless(self, node: Node, prefix: str, inputs: list[str], batch: str) -> str:
        types = self._graph.types
        output = LOGITS if node.name == self._graph.output else f"{prefix}/output"
        shape = types[node.inputs[0].source].shape
        return write(node, Place(self._builder, prefix, output, inputs, shape, types[node.name].shape, batch))

    def _write_input(self, node: Input) -> Signal:
        if not node.temporal:
            return self._signal(node, static=INPUT)
        rank = 2 + len(node.shape)
        value = INPUT
        if self._graph.timesteps > 1:
            value = self._builder.node("Transpose", [INPUT], f"{node.name}/time_major", perm=[1, 0, *range(2, rank)])
        stacked = self._builder.node(
            "Reshape",
            [value, self._builder.integers(-1, *node.shape)],
            f"{node.name}/output",
            name=f"{node.name}/stack",
            shape=node.shape,
            batch=self._batched,
        )
        return self._signal(node, stacked=stacked)

    def _write_readout(self, node: Readout, source: Signal) -> str:
        timesteps = self._graph.timesteps
        if timesteps == 1:  # every mode is the one step itself
            return source.at(0)
        output = LOGITS if node.name == self._graph.output else f"{node.name}/output"
        steps = self._by_timestep(node, source)
        if node.mode == "last":
            last = self._builder.constant("integers/last", np.array(timesteps - 1, dtype=np.int64))
            return self._builder.node("Gather", [steps, last], output, name=node.name, shape=source.shape, axis=0)
        op = {"mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax"}[node.mode]
        inputs = [steps, self._builder.integers(0)]
        return self._builder.node(op, inputs, output, name=node.name, shape=source.shape, keepdims=0)

    def _by_timestep(self, reader: Node, source: Signal) -> str:
        """[T, batch, *shape]."""
        shape = self._builder.integers(self._graph.timesteps, -1, *source.shape)
        return self._builder.node("Reshape", [source.stacked(), shape], f"{reader.name}/timesteps")

    def _spike_output(self, neuron: Neuron) -> onnx.ValueInfoProto:
        signal = self._signals[neuron.name]
        name = f"{neuron.name}/spikes"
        perm = [1, 0, *range(2, 2 + len(signal.shape))]
        self._builder.node("Transpose", [self._by_timestep(neuron, signal)], name, perm=perm)
        return helper.make_tensor_value_info(name, FLOAT, [BATCH, self._graph.timesteps, *signal.shape])
