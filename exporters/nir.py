"""Writes a folded graph as NIR, in the canonical form or a simulator's dialect: one timestep, ending in the
per-step readout.

The canonical form, for V[t] = beta H[t-1] + X[t]:

- dt = 1e-4 s and tau = dt / (1 - beta), both float64: 1 - dt / tau, rounded to float32, is every float32
  beta again. r = 1.
- The file's potential is therefore (1 - beta) V: v_threshold and v_reset are (1 - beta) times the graph's.
- beta = 1: an IF with r = 1 / dt, whose potential is V itself; threshold and reset as they are. Where beta is 1 for
  some neurons of a layer only, these have tau = 2^60 dt, so that 1 - dt / tau is 1, and 2^-60 V for a potential.
- Parameters of neurons are float64 arrays of the layer's full shape: a reader that computes in float32
  rounds the threshold to float32((1 - beta) v_th), one that computes in float64 keeps all of it.
- Weights and biases are float32, rounded once from the folded graph's float64. A Conv2d always has a bias.
- v_leak = 0. Flatten counts its axes from the end, so that a batch axis in front is left alone.
- A sum is several edges into one node. What NIR or its readers cannot say directly is said exactly by
  weights: a grouped convolution by zeros in a dense one, a factor by a diagonal 1x1 convolution (Affine on
  vectors), a kernel that is not square by zeros around it, a source that is added twice or a sum that is
  read out by an identity, an input of zeros by zero weights, a padded sum pool by a convolution, a maximum of spikes
  by a sum and a neuron (see `nir_pools`), a concatenation by layers on its parts (see `dalif_deploy.concats`).
- Node names are the graph's; names with a suffix (".copy", ".sum", ".count") are added where the above needs them.
- The graph's metadata is `FileMetadata` with dt and the dialect's name. The threshold rule is in there: NIR's
  own text says v > v_threshold, the paper V >= v_th, and what happens at V = v_th is up to each reader. Neurons that
  are part of a maximum and no layers of the network are listed under "maxima".

A dialect differs in the numbers of neurons: thresholds that make its reader fire at V = v_th as the network does and,
where the reader needs it, another tau and r, and a LIF in an IF's place (see `nir_neurons`). For a reader without
average pools one is a sum pool and a diagonal 1x1 convolution, and for one without linear layers they have a bias of
zeros. What the reader would not take as it is meant is refused.

Precision "exact" takes a snapped graph, for a reader that computes V = beta H + X in float32: every layer is two nodes,
whose exact sums it adds up (see `nir_slices`). The input of such a file is the uint8 codes themselves, as numbers, or
spikes; its metadata has two more entries, "precision" and "certificate".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import nir
import numpy as np
from numpy.typing import NDArray

from dalif_deploy.concats import without_concats
from dalif_deploy.dialects import CANONICAL, DIALECTS, DT, Dialect
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir_pools import any_of, as_convolution, is_plain, sum_of, zero_map
from dalif_deploy.exporters.nir_readers import Reader, readers_of
from dalif_deploy.exporters.nir_slices import in_halves
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import Lattice, certificate_of
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nir_neurons import is_if, resistance_of, scale_of, tau_of, threshold_of
from dalif_deploy.nir_rules import findings, summary
from dalif_deploy.nodes import (
    Add,
    Array,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Readout,
    Scale,
    StateVariable,
    SumPool2d,
    Zeros,
)

__all__ = ["PRECISIONS", "Reader", "parameters", "readers", "to_nir"]

PRECISIONS = ("float32", "exact")
"""The precisions of a NIR file."""

_MANY = 8
"""A sum of more terms than this becomes a node of its own, rather than so many edges into each reader of it."""


def to_nir(
    graph: SpikingGraph,
    *,
    dialect: str = "canonical",
    precision: str = "float32",
    lattices: Mapping[str, Lattice] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> nir.NIRGraph:
    """A folded graph as a NIR graph (see the module's text).

    `dialect`: "canonical", or a simulator's name: "norse", "spikingjelly", "snntorch" or "sinabs". `precision`:
    "float32", or "exact" for a snapped graph with its `lattices` of two slices each. `metadata`: further
    entries. Raises `DalifError`: BAD_GRAPH if the graph is not folded, BAD_OPTION for an unknown dialect or precision,
    a dialect whose reader computes nothing exact, or a metadata key that is taken, TARGET_CANNOT_HOLD, naming the node,
    for what the form or dialect cannot hold.
    """
    if dialect not in DIALECTS:
        raise DalifError(Code.BAD_OPTION, f"NIR dialect {dialect!r}: unknown; there are {', '.join(DIALECTS)}")
    chosen = DIALECTS[dialect]
    _check_precision(precision, lattices, chosen)
    exact: dict[str, str] = {}
    if lattices is not None:
        exact = {"precision": precision, "certificate": certificate_of(lattices, graph)}
        graph = in_halves(graph, lattices)
    graph = without_concats(graph)
    graph = graph.with_nodes(graph.nodes)  # nir would make an output of a node that nobody reads
    for name in sorted(graph.after_readout - {graph.readout.name}):
        raise _cannot_hold(graph[name], "stands after the readout, and a NIR graph is one timestep")
    writer = _Writer(graph, chosen, whole=lattices is not None)
    for node in graph.nodes:
        writer.write(node)
    strings = _metadata(graph, dialect, writer.maxima, exact, metadata or {})
    try:
        written = nir.NIRGraph(nodes=writer.nodes, edges=writer.edges, metadata=strings)
    except (ValueError, AssertionError) as error:
        raise DalifError(Code.FAULT, f"nir refuses the exported graph: {error}") from error
    if chosen is not CANONICAL and (found := findings(written, chosen)):
        raise DalifError(
            Code.TARGET_CANNOT_HOLD,
            f"{summary(found)}; the NIR dialect {dialect!r} cannot hold this network, {CANONICAL.name!r} may",
        )
    return written


def readers(graph: SpikingGraph | nir.NIRGraph) -> list[Reader]:
    """Which simulators read this file rightly, and the call to use; or why not. Of a folded graph: its export's.

    Raises `DalifError` as `to_nir` does.
    """
    return readers_of(to_nir(graph) if isinstance(graph, SpikingGraph) else graph)


def parameters(graph: nir.NIRGraph) -> dict[str, NDArray[np.generic]]:
    """Every number that the nodes hold, by "node.field": weights, biases, tau, thresholds, strides, ..."""
    found = {}
    for name, node in graph.nodes.items():
        for key, value in vars(node).items():
            if key in ("input_type", "output_type", "input_shape", "metadata") or value is None:
                continue
            found[f"{name}.{key}"] = np.asarray(value)
    return found


def _check_precision(precision: str, lattices: Mapping[str, Lattice] | None, dialect: Dialect) -> None:
    if precision not in PRECISIONS:
        raise DalifError(
            Code.BAD_OPTION,
            f"precision {precision!r}: NIR simulators compute in float32; give {', '.join(PRECISIONS)}",
        )
    if precision != "float32" and dialect.inexact:
        fit = [record.name for record in DIALECTS.values() if not record.inexact]
        raise DalifError(
            Code.BAD_OPTION,
            f"precision {precision!r} in the NIR dialect {dialect.name!r}: {dialect.inexact}; give --nir-dialect "
            f"{' or '.join(fit)}",
        )
    if (lattices is None) != (precision == "float32"):
        what = "takes no lattices" if lattices is not None else "takes a snapped graph and its lattices"
        raise DalifError(
            Code.BAD_OPTION, f"precision {precision!r}: {what}; passes.snap.snap makes them, with two_slices=True"
        )


def _metadata(
    graph: SpikingGraph, dialect: str, maxima: Sequence[str], exact: Mapping[str, str], extra: Mapping[str, str]
) -> dict[str, str]:
    also = {**exact, "maxima": json.dumps(maxima)} if maxima else dict(exact)
    own = FileMetadata.of(graph, dt=repr(DT), dialect=dialect, **also).to_strings()
    for key in extra:
        if key in own or "/" in key or not key:
            raise DalifError(Code.BAD_OPTION, f"metadata key {key!r}: taken, empty or with a '/'")
    return {**own, **extra}


@dataclass
class _Writer:
    """Collects the NIR nodes and edges of one graph, node by node in topological order."""

    graph: SpikingGraph
    dialect: Dialect
    nodes: dict[str, nir.NIRNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By graph node: the NIR nodes whose outputs add up to its output."""
    maxima: list[str] = field(default_factory=list)
    """The neurons that are no layers of the network, but part of a maximum of spikes."""
    whole: bool = False
    """Whether layers may read nothing but whole numbers."""

    def write(self, node: Node) -> None:
        for edge in node.inputs:
            if edge.delay:
                raise _cannot_hold(node, f"its edge from '{edge.source}' is delayed, which the NIR readers take apart")
        inputs = tuple(source for edge in node.inputs for source in self.sources[edge.source])
        shape = self.graph.types[node.name].shape
        before = self.graph.types[node.inputs[0].source].shape if node.inputs else ()
        if isinstance(node, Zeros):
            self.sources[node.name] = ()
        elif _changes_nothing(node, before):
            self.sources[node.name] = inputs
        elif isinstance(node, Add):
            self.sources[node.name] = inputs
            if len(inputs) > _MANY:
                self._identity(node.name, inputs, shape)
                self.sources[node.name] = (node.name,)
        elif isinstance(node, Readout):
            if len(inputs) > 1:  # the readers do not sum at the output
                self._identity(name := self._new_name(f"{node.name}.sum"), inputs, before)
                inputs = (name,)
            self._emit(node.name, nir.Output(np.array(before)), inputs, before)
        elif isinstance(node, MaxPool2d):
            self._write_maximum(node, inputs, before, shape)
        elif isinstance(node, AvgPool2d) and "AvgPool2d" not in self.dialect.takes:
            self._write_average(node, inputs, before, shape)
        else:
            self._emit(node.name, _translate(node, before, shape, self.dialect), inputs, shape, before)
            self.sources[node.name] = (node.name,)

    def _write_maximum(
        self, node: MaxPool2d, inputs: Sequence[str], before: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        if self.graph.types[node.inputs[0].source].kind != "spike":
            raise _cannot_hold(node, "NIR has no maximum, and only one of spikes can be said by a neuron")
        _pool(sum_of(node, node.name), before)  # what NIR cannot say is refused by the node's own name
        count = sum_of(node, self._new_name(f"{node.name}.count"))
        self._emit(count.name, _pool(count, before), inputs, shape, before)
        self._emit(node.name, _neuron(any_of(node, count.name), shape, self.dialect), [count.name], shape, shape)
        self.sources[node.name] = (node.name,)
        self.maxima.append(node.name)

    def _write_average(
        self, node: AvgPool2d, inputs: Sequence[str], before: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        _pool(node, before)  # what NIR cannot say is refused as everywhere
        total = SumPool2d(
            name=self._new_name(f"{node.name}.total"), inputs=node.inputs, kernel=node.kernel, stride=node.stride,
            padding=node.padding,
        )  # fmt: skip
        self._emit(total.name, _pool(total, before), inputs, shape, before)
        one = np.eye(shape[0], dtype=np.float32) / np.float32(prod(node.kernel))
        self._emit(node.name, _matrix(one, None, shape), [total.name], shape, shape)
        self.sources[node.name] = (node.name,)

    def _emit(
        self, name: str, node: nir.NIRNode, inputs: Sequence[str], shape: tuple[int, ...],
        before: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        distinct: list[str] = []
        for source in inputs:
            distinct.append(self._copy(source, distinct) if source in distinct else source)
        if not inputs and not isinstance(node, nir.Input):
            distinct = [self._zeros(name, before or shape)]
        if isinstance(node, nir.Linear) and "Linear" not in self.dialect.takes:
            node = nir.Affine(node.weight, np.zeros(len(node.weight), dtype=np.float32))
        self.nodes[name] = node
        self.shapes[name] = shape
        self.edges.extend((source, name) for source in distinct)

    def _copy(self, source: str, taken: Sequence[str]) -> str:
        """A node that repeats `source`: NIR has no two edges between the same two nodes."""
        number = 1
        while (name := f"{source}.copy{number}") in taken or name in self.graph:
            number += 1
        if name not in self.nodes:
            self._identity(name, (source,), self.shapes[source])
        return name

    def _identity(self, name: str, inputs: Sequence[str], shape: tuple[int, ...]) -> None:
        one = np.eye(shape[0], dtype=np.float32)
        self._emit(name, _matrix(one, None, shape), inputs, shape)

    def _zeros(self, name: str, shape: tuple[int, ...]) -> str:
        """A node that always gives zeros of `shape`, made of zero weights on some node written before."""
        kinds = (nir.Input, nir.LIF, nir.IF) if self.whole else nir.NIRNode
        before = {source: at for source, at in self.shapes.items() if isinstance(self.nodes[source], kinds)}
        for source, at in before.items():
            if len(at) == len(shape) and at[1:] == shape[1:] and not isinstance(self.nodes[source], nir.Output):
                zeros = self._new_name(f"{name}.zeros")
                weight = np.zeros((shape[0], at[0]), dtype=np.float32)
                self._emit(zeros, _matrix(weight, None, shape), (source,), shape)
                return zeros
        for source, at in before.items():
            zeros = self._new_name(f"{name}.zeros")
            if len(at) == len(shape) == 3 and (conv := zero_map(zeros, source, at, shape)) is not None:
                self._emit(zeros, _conv2d(conv, at, shape), (source,), shape, at)
                return zeros
            if len(shape) == 1 and len(at) == 3:
                flat = self._new_name(f"{name}.flat")
                self._emit(flat, _flatten(at), (source,), (prod(at),), at)
                self._emit(zeros, nir.Linear(np.zeros((shape[0], prod(at)), dtype=np.float32)), (flat,), shape)
                return zeros
        raise _cannot_hold(self.graph[name], f"its input is zero, and no node before it has a shape like {shape}")

    def _new_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self.graph or name in self.nodes:
            name, number = f"{wanted}{number}", number + 1
        return name


def _changes_nothing(node: Node, before: tuple[int, ...]) -> bool:
    if isinstance(node, Flatten):
        return len(before) == 1
    return isinstance(node, Scale) and bool(np.all(node.factor == 1.0)) and not np.any(node.offset)


def _translate(node: Node, before: tuple[int, ...], shape: tuple[int, ...], dialect: Dialect) -> nir.NIRNode:
    match node:
        case Input():
            return nir.Input(np.array(shape))
        case Conv2d():
            return _conv2d(node, before, shape)
        case Linear():
            weight = _float32(node, "weight", node.weight)
            return _matrix(weight, None if node.bias is None else _float32(node, "bias", node.bias), shape)
        case Scale():
            return _scale(node, shape)
        case Neuron():
            return _neuron(node, shape, dialect)
        case SumPool2d() | AvgPool2d():
            return _pool(node, before)
        case Flatten():
            return _flatten(before)
        case BatchNorm():
            raise DalifError(Code.BAD_GRAPH, f"node '{node.name}' (BatchNorm): only a folded graph can be exported")
        case _:
            raise _cannot_hold(node, "NIR has no such node")


def _matrix(weight: NDArray[np.float32], bias: NDArray[np.float32] | None, shape: tuple[int, ...]) -> nir.NIRNode:
    """weight @ x + bias over the first axis of `shape`: a layer on vectors, a 1x1 convolution on maps."""
    if len(shape) == 1:
        return nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
    return nir.Conv2d(
        input_shape=shape[1:], weight=weight[:, :, None, None], stride=(1, 1), padding=(0, 0), dilation=(1, 1),
        groups=1, bias=np.zeros(len(weight), dtype=np.float32) if bias is None else bias,
    )  # fmt: skip


def _conv2d(node: Conv2d, before: tuple[int, ...], shape: tuple[int, ...]) -> nir.NIRNode:
    weight = _dense(_float32(node, "weight", node.weight), node.groups)
    padding = node.padding
    bias = np.zeros(len(weight)) if node.bias is None else node.bias
    if not _nir_infers(node, padding, weight.shape[2], before, shape):
        weight, padding = _square(node, weight)
        if not _nir_infers(node, padding, weight.shape[2], before, shape):
            raise _cannot_hold(node, f"nir takes its kernel {node.weight.shape[2:]} for a square one")
    return nir.Conv2d(
        input_shape=before[1:], weight=weight, stride=node.stride, padding=padding, dilation=node.dilation,
        groups=1, bias=_float32(node, "bias", bias),
    )  # fmt: skip


def _dense(weight: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """A grouped convolution's weights as those of a dense one, zero between the groups."""
    if groups == 1:
        return weight
    out, into = len(weight) // groups, weight.shape[1]
    dense = np.zeros((len(weight), into * groups, *weight.shape[2:]), dtype=np.float32)
    for g in range(groups):
        dense[g * out : (g + 1) * out, g * into : (g + 1) * into] = weight[g * out : (g + 1) * out]
    return dense


def _nir_infers(
    node: Conv2d, padding: tuple[int, int], kernel: int, before: tuple[int, ...], shape: tuple[int, ...]
) -> bool:
    """Whether nir finds the right output size; it takes the kernel's height for its width as well."""
    sizes = zip(before[1:], padding, node.dilation, node.stride, shape[1:], strict=True)
    return all((n + 2 * p - d * (kernel - 1) - 1) // s + 1 == out for n, p, d, s, out in sizes)


def _square(node: Conv2d, weight: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """The kernel with zeros around it, up to a square, and the padding that makes up for them."""
    side = max(weight.shape[2:])
    zeros = [(0, 0), (0, 0)]
    padding = []
    for k, p, d in zip(weight.shape[2:], node.padding, node.dilation, strict=True):
        if (side - k) % 2:
            raise _cannot_hold(
                node,
                f"the height and width of its kernel {weight.shape[2:]} differ by an odd number, and nir takes it for "
                "a square one",
            )
        zeros.append(((side - k) // 2, (side - k) // 2))
        padding.append(p + d * (side - k) // 2)
    return np.pad(weight, zeros), (padding[0], padding[1])


def _scale(node: Scale, shape: tuple[int, ...]) -> nir.NIRNode:
    factor, offset = (_per_channel(node, key, shape) for key in ("factor", "offset"))
    bias = _float32(node, "offset", offset) if np.any(offset) else None
    return _matrix(np.diag(_float32(node, "factor", factor)), bias, shape)


def _per_channel(node: Scale, key: str, shape: tuple[int, ...]) -> Array:
    full = np.broadcast_to(getattr(node, key), shape).reshape(shape[0], prod(shape[1:]))
    if np.any(full != full[:, :1]):
        raise _cannot_hold(node, f"its {key} differs from place to place within a channel")
    return np.asarray(full[:, 0])


def _flatten(before: tuple[int, ...]) -> nir.NIRNode:
    return nir.Flatten({"input": np.array(before)}, start_dim=-len(before), end_dim=-1)


def _pool(node: SumPool2d | AvgPool2d, before: tuple[int, ...]) -> nir.NIRNode:
    if not is_plain(node, before[1:]):
        if isinstance(node, SumPool2d):
            conv = as_convolution(node, before)
            return _conv2d(conv, before, (before[0], *node.windows(before[1:])))
        if node.count_include_pad:
            raise _cannot_hold(node, "its last windows are open (ceil_mode), and NIR has only whole ones")
        raise _cannot_hold(node, "its averages leave out the padding (count_include_pad=False), which NIR cannot say")
    kind = nir.SumPool2d if isinstance(node, SumPool2d) else nir.AvgPool2d
    return kind(kernel_size=np.array(node.kernel), stride=np.array(node.stride), padding=np.array(node.padding))


def _neuron(node: Neuron, shape: tuple[int, ...], dialect: Dialect) -> nir.NIRNode:
    if np.any(node.alpha != 1.0):
        raise DalifError(
            Code.BAD_GRAPH, f"node '{node.name}' (Neuron): alpha is not 1; only a folded graph can be exported"
        )
    if node.normalised:
        raise DalifError(
            Code.BAD_GRAPH,
            f"node '{node.name}' (Neuron): normalises its potential; only a folded graph can be exported",
        )
    if node.reset != "hard":
        raise _cannot_hold(node, f"its reset is {node.reset!r}, and NIR's goes to v_reset (a hard reset)")
    if node.reset_timing != "now":
        raise _cannot_hold(node, "its reset acts one step late, and NIR's acts where the neuron fires")
    if np.any(node.leak_target):
        raise _cannot_hold(node, "its leak target is not 0, and the canonical form has v_leak = 0")
    if node.state != (StateVariable("membrane"),):
        raise _cannot_hold(node, "it has other state than a membrane potential that starts at 0")
    if np.any(node.beta > 1.0):
        raise _cannot_hold(node, f"beta = {node.beta.max():g} is above 1, so tau = dt / (1 - beta) would be negative")

    def full(values: Array) -> Array:
        return np.broadcast_to(values, shape).astype(np.float64)

    beta = full(node.beta)
    tau = tau_of(beta, dialect)
    threshold = full(threshold_of(full(node.v_threshold), beta, node.fires_at, dialect))
    if not np.isfinite(threshold).all():
        raise _cannot_hold(node, "its v_threshold has values beyond float32")
    reset = scale_of(beta, dialect) * full(node.v_reset)
    if is_if(beta, dialect):
        return nir.IF(r=np.full(shape, 1.0 / DT), v_threshold=threshold, v_reset=reset)
    return nir.LIF(
        tau=tau, r=resistance_of(tau, dialect), v_leak=np.zeros(shape), v_threshold=threshold, v_reset=reset,
    )  # fmt: skip


def _float32(node: Node, key: str, values: Array) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rounded: NDArray[np.float32] = np.asarray(values).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise _cannot_hold(node, f"its {key} has values beyond float32")
    return rounded


def _cannot_hold(node: Node, why: str) -> DalifError:
    return DalifError(
        Code.TARGET_CANNOT_HOLD,
        f"node '{node.name}' ({type(node).__name__}): {why}; NIR cannot hold this network, ONNX may",
    )
