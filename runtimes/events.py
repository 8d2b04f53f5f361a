"""The `events` runtime: NumPy, event-driven. The reference that anyone can read.

A layer fed by spikes or counts touches only the synapses of elements that are not zero: every event is
scattered, weight by weight, into the currents of the neurons that it reaches. A layer fed by real values
is dense. Currents are scattered into zeros, the bias is added, and only then V = beta * H + X, as two
operations: scattering into beta * H would change the last bits of most potentials.

In exact arithmetic a snapped graph's sums are exact in float64, whatever the order; a neuron's input, the sum of
all its branches, is then rounded once to what its membrane is computed in.

The work is grouped so that plain `current[targets] += weight` is right: in one group no two events reach
the same target. For a convolution a group is one input channel at one place of the kernel; for a linear
layer it is the k-th event of every sample. In both, the order in which one current is summed does not
depend on what else is in the batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dalif_deploy import __version__
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import require_exact
from dalif_deploy.nodes import (
    WEIGHTED,
    Add,
    AvgPool2d,
    BatchNorm,
    Concat,
    Conv2d,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Pool2d,
    Readout,
    Reshape,
    Scale,
    SumPool2d,
    Zeros,
)
from dalif_deploy.operators import Values, average_divisors, evaluate, reduce_time
from dalif_deploy.recording import Operations, Recording
from dalif_deploy.runtimes.stepping import (
    Arithmetic,
    Precisions,
    WatchPotential,
    require_codes,
    require_membrane_only,
    rounded_parameters,
    run_steps,
)

Indices = NDArray[np.intp]

_RUNS = (
    Input, Zeros, Conv2d, Linear, Scale, Neuron, AvgPool2d, SumPool2d, MaxPool2d, Flatten, Reshape, Add, Concat,
    Readout,
)  # fmt: skip


def available() -> str | None:
    """None: NumPy is a requirement of the package."""
    return None


class EventsRuntime:
    """Computes a folded graph event by event, in "float32" or "float64".

    `arithmetic`: "float" computes everything in `dtype`; "exact" and "exact64" take a snapped graph (see
    `passes.snap`) and codes or spikes, and follow the definition that all exact runtimes share (see
    `stepping.Precisions`), with logits float32 or float64; `dtype` says nothing then. `order`: events are
    summed in another order in every run, drawn from this generator; None takes them as they lie. `watch`:
    shown every layer's potential at every timestep.

    `Recording.operations` counts, over the batch and all timesteps:

    - `synaptic`, for every Conv2d and Linear fed by spikes or counts: one for each pair of a source element
      that is not zero and a weight added into an output that exists. So borders are exact (what falls into
      the padding is not counted), a count of any size is one event, and a weight counts whatever its value.
    - `macs`, for every Conv2d and Linear fed by real values: output elements times fan-in, the places in
      the padding included (the DA-LIF paper's rule, Table III); once per sample where the input is static.

    Pools, sums, flattening and scales hold no synapses, and neither they, nor biases, nor the neurons' own
    updates are counted.

    Raises `DalifError`: BAD_GRAPH for a graph that is not folded (BatchNorm, or alpha other than 1),
    or, for exact arithmetic, not snapped; TARGET_CANNOT_HOLD where sums have no exact form; RUNTIME_CANNOT_RUN
    for node kinds and state variables that it does not know; BAD_OPTION.
    """

    name = "events"

    def __init__(
        self,
        graph: SpikingGraph,
        *,
        dtype: Literal["float32", "float64"] = "float32",
        arithmetic: Arithmetic = "float",
        order: np.random.Generator | None = None,
        watch: WatchPotential | None = None,
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise DalifError(Code.BAD_OPTION, f"dtype {dtype!r}: the events runtime takes 'float32' or 'float64'")
        self._precisions = Precisions.of(arithmetic, dtype)
        require_membrane_only(graph, self.name)
        for node in graph.nodes:
            _require_folded(node)
        if self._precisions.exact:
            require_exact(graph)
        self._graph = graph
        self._dtype = self._precisions.sums
        self._order = order
        self._watch = watch
        self._nodes: dict[str, Node] = {}
        for node in graph.nodes:
            own = self._precisions.membrane if isinstance(node, Neuron) else self._dtype
            rounded: dict[str, Any] = rounded_parameters(node, own, self.name)
            self._nodes[node.name] = replace(node, **rounded)
        self._scatters = {node.name: self._scatter_of(node) for node in graph.nodes if self._event_fed(node)}

    @property
    def description(self) -> str:
        """The package that computes, and its dtype."""
        return f"dalif_deploy {__version__} event-driven, NumPy {np.__version__}, {self._precisions.description}"

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """One batch, [N, ...] static or [N, T, ...] temporal, from the initial state.

        Raises `DalifError` (WRONG_SHAPE, BAD_DATA, NOT_FINITE).
        """
        if self._precisions.exact:
            require_codes(self._graph.encoding, batch)
        inputs = self._graph.input_spec.module_input(batch).astype(self._dtype)
        if self._graph.input.kind == "spike" and not np.isin(inputs, (0.0, 1.0)).all():
            raise DalifError(Code.BAD_DATA, "data: the model takes spikes, so every value must be 0 or 1")
        run = _Run(self._graph, self._nodes, self._scatters, self._precisions, self._watch)
        temporal = self._graph.input.temporal
        spikes, logits = run_steps(self._graph, lambda t: inputs[:, t] if temporal else inputs, len(inputs), run)
        return Recording(spikes, logits, run.operations)

    def _event_fed(self, node: Node) -> bool:
        fed_by = [self._graph.types[edge.source].kind for edge in node.inputs]
        return isinstance(node, (*WEIGHTED, Pool2d)) and fed_by[0] != "real"

    def _scatter_of(self, node: Node) -> Scatter:
        source = self._graph.types[node.inputs[0].source]
        own = self._nodes[node.name]
        if isinstance(own, Conv2d):
            return ConvScatter(own, source.shape, self._graph.types[node.name].shape, self._dtype, self._order)
        if isinstance(own, Linear):
            return LinearScatter(own, self._dtype, self._order)
        assert isinstance(own, Pool2d)
        return PoolScatter(own, source.shape)


class _Run:
    """One batch's run: the `stepping.Computer` of this runtime, and its counters."""

    def __init__(
        self,
        graph: SpikingGraph,
        nodes: dict[str, Node],
        scatters: dict[str, Scatter],
        precisions: Precisions,
        watch: WatchPotential | None,
    ) -> None:
        self._graph, self._nodes, self._scatters, self._watch = graph, nodes, scatters, watch
        self._dtype, self._membrane = precisions.sums, precisions.membrane
        weighted = [node for node in graph.nodes if isinstance(node, WEIGHTED)]
        self._synaptic = Counter({node.name: 0 for node in weighted if node.name in scatters})
        self._macs = Counter({node.name: 0 for node in weighted if node.name not in scatters})

    @property
    def operations(self) -> Operations:
        return Operations(dict(self._synaptic), dict(self._macs))

    def compute(self, node: Node, inputs: Sequence[Values]) -> Values:
        own = self._nodes[node.name]
        if node.name in self._scatters:
            values, synaptic = self._scatters[node.name](inputs[0])
            if node.name in self._synaptic:
                self._synaptic[node.name] += synaptic
            return values
        values = evaluate(own, inputs)
        if isinstance(own, WEIGHTED):
            self._macs[node.name] += values.size * math.prod(own.weight.shape[1:])
        return values

    def zeros(self, shape: tuple[int, ...], fill: float = 0.0) -> Values:
        return np.full(shape, fill, self._dtype)

    def fire(self, neuron: Neuron, held: Values, current: Values) -> tuple[Values, Values, NDArray[np.bool_]]:
        own = self._nodes[neuron.name]
        assert isinstance(own, Neuron)
        # In exact arithmetic the one rounding of the sum.
        held, current = held.astype(self._membrane, copy=False), current.astype(self._membrane, copy=False)
        decayed = own.beta * held
        if own.leak_target.any():
            decayed = own.leak_target + own.beta * (held - own.leak_target)
        potential = decayed + current
        due: NDArray[np.bool_] | None = None  # where a reset is still due from before this step
        if own.reset_timing != "now":
            due = _beyond(own, held)
            late = own.v_reset if own.reset == "hard" else potential - own.v_threshold
            potential = np.where(due, late, potential)
        if self._watch is not None:
            self._watch(neuron.name, potential)
        fired = _beyond(own, potential)
        return fired.astype(self._dtype), _held(own, potential, fired, due), fired

    def read_out(self, node: Readout, steps: Sequence[Values]) -> Values:
        return reduce_time(np.stack(steps, axis=1).astype(self._membrane, copy=False), node.mode)


def _beyond(neuron: Neuron, potential: Values) -> NDArray[np.bool_]:
    """Where a potential reaches the threshold, by the neuron's rule."""
    return potential >= neuron.v_threshold if neuron.fires_at == "ge" else potential > neuron.v_threshold


def _held(neuron: Neuron, potential: Values, fired: NDArray[np.bool_], due: NDArray[np.bool_] | None) -> Values:
    """H[t] of V[t]."""
    if neuron.reset == "none" or neuron.reset_timing == "next":
        return potential
    if neuron.reset == "hard":
        return np.where(fired, neuron.v_reset, potential)
    dropped = np.where(fired, potential - neuron.v_threshold, potential)
    if due is None:
        return dropped
    # What was paid for before is not paid again, and given back where the neuron stayed silent.
    return np.where(fired == due, potential, np.where(due, potential + neuron.v_threshold, dropped))


Scatter = Callable[[Values], tuple[Values, int]]
"""[batch, *source shape] -> what the events add up to, [batch, *shape], and how many weights were added."""


class LinearScatter:
    """A linear layer: the k-th event of every sample adds its column of weights to that sample's currents."""

    def __init__(self, node: Linear, dtype: np.dtype[np.floating], order: np.random.Generator | None = None) -> None:
        self._order = order
        self._fan_out = np.ascontiguousarray(node.weight.T, dtype)  # [in, out]: what one event adds
        self._bias = node.bias

    def __call__(self, x: Values) -> tuple[Values, int]:
        sample, feature = np.nonzero(x)  # by sample, features ascending
        events = np.bincount(sample, minlength=len(x))
        rank = np.arange(len(sample)) - np.repeat(np.cumsum(events) - events, events)
        by_rank = np.argsort(rank, kind="stable")
        ends = np.cumsum(np.bincount(rank))
        current = np.zeros((len(x), self._fan_out.shape[1]), x.dtype)
        groups = np.split(by_rank, ends[:-1])
        for group in (groups[i] for i in _turns(len(groups), self._order)):
            rows, columns = sample[group], feature[group]
            current[rows] += self._fan_out[columns] * x[rows, columns, None]
        if self._bias is not None:
            current = current + self._bias
        return current, len(sample) * self._fan_out.shape[1]


class ConvScatter:
    """A convolution: the events of one channel, at one place of the kernel, reach different outputs."""

    def __init__(
        self,
        node: Conv2d,
        source: tuple[int, ...],
        shape: tuple[int, ...],
        dtype: np.dtype[np.floating],
        order: np.random.Generator | None = None,
    ) -> None:
        self._order = order
        kernel = node.weight.shape[2:]
        axes = zip(source[1:], shape[1:], kernel, node.stride, node.padding, node.dilation, strict=True)
        self._rows, self._columns = (_reached(*axis) for axis in axes)
        self._shape = shape
        self._group_in = source[0] // node.groups
        # [group, in channel of the group, kernel row, kernel column, out channel of the group]
        grouped = node.weight.reshape(node.groups, shape[0] // node.groups, self._group_in, *kernel)
        self._fan_out = np.ascontiguousarray(grouped.transpose(0, 2, 3, 4, 1), dtype)
        self._bias = node.bias

    def __call__(self, x: Values) -> tuple[Values, int]:
        channels, rows, columns = self._shape
        groups, _, kernel_h, kernel_w, group_out = self._fan_out.shape
        current = np.zeros((groups, len(x) * rows * columns, group_out), x.dtype)
        synaptic = 0
        for channel in _turns(x.shape[1], self._order):
            group, within = divmod(channel, self._group_in)
            sample, y, z = np.nonzero(x[:, channel])
            values = x[sample, channel, y, z]
            for place in _turns(kernel_h * kernel_w, self._order):
                i, j = divmod(place, kernel_w)
                row, column = self._rows[i, y], self._columns[j, z]
                reached = (row >= 0) & (column >= 0)
                if not reached.any():
                    continue
                target = ((sample * rows + row) * columns + column)[reached]
                current[group, target] += values[reached, None] * self._fan_out[group, within, i, j]
                synaptic += len(target) * group_out
        spread = current.reshape(groups, len(x), rows, columns, group_out).transpose(1, 0, 4, 2, 3)
        out = np.ascontiguousarray(spread).reshape(len(x), channels, rows, columns)
        if self._bias is not None:
            out = out + self._bias[:, None, None]
        return out, synaptic


class PoolScatter:
    """A pool of spikes or counts: at one place of the window, all events reach different outputs.

    An average is the sum of the window's events, divided once.
    """

    def __init__(self, node: Pool2d, source: tuple[int, ...]) -> None:
        self._size = node.windows(source[1:])
        axes = zip(source[1:], self._size, node.kernel, node.stride, node.padding, strict=True)
        self._rows, self._columns = (_reached(*axis, dilation=1) for axis in axes)
        self._largest = isinstance(node, MaxPool2d)
        self._divisors = average_divisors(node, source[1:]) if isinstance(node, AvgPool2d) else None

    def __call__(self, x: Values) -> tuple[Values, int]:
        sample, channel, y, z = np.nonzero(x)
        values = x[sample, channel, y, z]
        out = np.zeros((*x.shape[:2], *self._size), x.dtype)
        for i in range(len(self._rows)):
            for j in range(len(self._columns)):
                row, column = self._rows[i, y], self._columns[j, z]
                reached = (row >= 0) & (column >= 0)
                target = sample[reached], channel[reached], row[reached], column[reached]
                if self._largest:
                    out[target] = np.maximum(out[target], values[reached])
                else:
                    out[target] += values[reached]
        if self._divisors is not None:
            out = out / self._divisors.astype(x.dtype)
        return out, 0


def _turns(count: int, order: np.random.Generator | None) -> list[int]:
    """0 to count - 1, in a random order where a generator is given."""
    return list(range(count)) if order is None else order.permutation(count).tolist()


def _reached(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Indices:
    """Along one axis, which output a place reaches through which element of the kernel; -1 for none.

    [kernel, size]: place p is under element k of output o where p = o * stride - padding + k * dilation.
    """
    offset = np.arange(size) + padding - np.arange(kernel)[:, None] * dilation
    output, remainder = np.divmod(offset, stride)
    return np.where((remainder == 0) & (output >= 0) & (output < outputs), output, -1)


def _require_folded(node: Node) -> None:
    why = None
    if isinstance(node, BatchNorm):
        why = "is not folded"
    elif isinstance(node, Neuron) and (node.alpha != 1.0).any():
        why = "has an alpha that is not folded"
    elif isinstance(node, Neuron) and node.normalised:
        why = "normalises its potential before the comparison, which is not folded"
    if why:
        raise DalifError(
            Code.BAD_GRAPH,
            f"node '{node.name}' ({type(node).__name__}): {why}; the events runtime takes a folded graph, so "
            "fold it first (dalif_deploy.passes.fold)",
        )
    if type(node) not in _RUNS:
        raise DalifError(
            Code.RUNTIME_CANNOT_RUN,
            f"node '{node.name}' ({type(node).__name__}): the events runtime does not compute this kind",
        )
