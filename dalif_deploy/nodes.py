"""The node kinds of a `SpikingGraph`: frozen dataclasses that hold NumPy arrays.

Every node has one output, named like the node. A node says what its output is (`infer`), given what
its inputs are; it does not compute anything. Arrays are float64 and read-only: what PyTorch held in
float32 is held exactly, and rounding to a file's precision is the exporter's business, once.

Shapes leave out batch and time: a feature map is (channels, height, width), a vector (features,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError

Array = NDArray[np.float64]
TensorKind = Literal["spike", "count", "real"]
ResetRule = Literal["hard", "subtract", "none"]
ResetTiming = Literal["now", "next", "carry"]
MembraneForm = Literal["sum", "decay"]
ThresholdRule = Literal["ge", "gt"]
ReadoutMode = Literal["mean", "sum", "last", "max"]
Pair = tuple[int, int]


def frozen(values: object) -> Array:
    """`values` as a read-only float64 array of its own."""
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class Edge:
    """Where an input comes from: the output of node `source`, `delay` timesteps ago.

    Before step 0 a delayed edge delivers zeros. Delay 0 is the present step; recurrence needs 1 or more.
    """

    source: str
    delay: int = 0


@dataclass(frozen=True)
class TensorType:
    """What a node's output is.

    `shape`: without batch and time. `temporal`: False where the value is the same at every timestep.
    `kind`: "spike" (0 or 1), "count" (a whole number 0..`maximum`) or "real". `maximum`: the largest
    value of a spike (1) or count, None for real.
    """

    shape: tuple[int, ...]
    temporal: bool
    kind: TensorKind = "real"
    maximum: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """What all node kinds share: a unique name (the module's qualified name) and input edges."""

    name: str
    inputs: tuple[Edge, ...] = ()

    arity: ClassVar[int | None] = 1
    """How many inputs the kind takes; None for any number from one."""

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        """The type of the output. Raises `DalifError` (BAD_GRAPH) where the inputs do not fit."""
        raise NotImplementedError

    def arrays(self) -> dict[str, Array]:
        """The node's parameters by field name."""
        return {key: value for key, value in vars(self).items() if isinstance(value, np.ndarray)}

    def _refuse(self, why: str) -> DalifError:
        return DalifError(Code.BAD_GRAPH, f"node '{self.name}' ({type(self).__name__}): {why}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """The network's input: what the trained module takes, float, after the encoding.

    `temporal`: False where one value serves every timestep (direct encoding of a static image).
    """

    shape: tuple[int, ...]
    temporal: bool
    kind: TensorKind = "real"

    arity: ClassVar[int | None] = 0

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        if not self.shape or min(self.shape) < 1:
            raise self._refuse(f"shape {self.shape} has no elements")
        if self.kind not in ("spike", "count", "real"):
            raise self._refuse(f"unknown kind {self.kind!r}")
        return TensorType(self.shape, self.temporal, self.kind, 1 if self.kind == "spike" else None)


@dataclass(frozen=True, eq=False, kw_only=True)
class Zeros(Node):
    """Zeros of a shape, the same at every timestep: what a layer is fed whose input gain is 0."""

    shape: tuple[int, ...]

    arity: ClassVar[int | None] = 0

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        return TensorType(self.shape, False, "count", 0)


def _weighted(inputs: Sequence[TensorType], shape: tuple[int, ...]) -> TensorType:
    return TensorType(shape, inputs[0].temporal)


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv2d(Node):
    """2-D cross-correlation, as torch.nn.Conv2d with zero padding.

    `weight`: (out channels, in channels / groups, kernel height, kernel width). `bias`: (out channels,)
    or None. Input (in channels, height, width).
    """

    weight: Array
    bias: Array | None = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        shape = inputs[0].shape
        if self.weight.ndim != 4 or 0 in self.weight.shape:
            raise self._refuse(f"weight of shape {self.weight.shape}; (out, in / groups, height, width) is needed")
        _at_least(self, 1, stride=self.stride, dilation=self.dilation, groups=(self.groups,))
        _at_least(self, 0, padding=self.padding)
        out_channels, per_group, *kernel = self.weight.shape
        if len(shape) != 3 or shape[0] != per_group * self.groups or out_channels % self.groups:
            raise self._refuse(f"weight {self.weight.shape} with {self.groups} groups does not fit input {shape}")
        if self.bias is not None and self.bias.shape != (out_channels,):
            raise self._refuse(f"bias {self.bias.shape} does not fit {out_channels} output channels")
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        return _weighted(inputs, (out_channels, *self._windows(shape[1:], extent)))

    def _windows(self, size: Sequence[int], extent: Sequence[int]) -> tuple[int, ...]:
        out = tuple(
            (n + 2 * p - e) // s + 1 for n, p, e, s in zip(size, self.padding, extent, self.stride, strict=True)
        )
        if min(out) < 1:
            raise self._refuse(f"the kernel does not fit into an input of {tuple(size)}")
        return out


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Node):
    """y = weight @ x + bias. `weight`: (out features, in features); `bias`: (out features,) or None."""

    weight: Array
    bias: Array | None = None

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise self._refuse(f"weight of shape {self.weight.shape}; (out features, in features) is needed")
        out_features, in_features = self.weight.shape
        if inputs[0].shape != (in_features,):
            raise self._refuse(f"weight {self.weight.shape} does not fit input {inputs[0].shape}; flatten it first")
        if self.bias is not None and self.bias.shape != (out_features,):
            raise self._refuse(f"bias {self.bias.shape} does not fit {out_features} output features")
        return _weighted(inputs, (out_features,))


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchNorm(Node):
    """Batch normalisation in evaluation: weight * (x - mean) / sqrt(variance + epsilon) + bias.

    All arrays are (channels,), and the channels are the input's first axis.
    """

    weight: Array
    bias: Array
    mean: Array
    variance: Array
    epsilon: float

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        channels = inputs[0].shape[:1]
        for key, value in self.arrays().items():
            if value.shape != channels:
                raise self._refuse(f"{key} {value.shape} does not fit input {inputs[0].shape}")
        # NaN in the variance is told as such by the graph.
        if np.any(self.variance + self.epsilon <= 0.0) or not math.isfinite(self.epsilon):
            raise self._refuse("variance + epsilon must be above 0")
        return _weighted(inputs, inputs[0].shape)

    def gain(self) -> Array:
        """The factor on x, (channels,)."""
        return frozen(self.weight / np.sqrt(self.variance + self.epsilon))

    def offset(self) -> Array:
        """What is added to gain * x, (channels,)."""
        return frozen(self.bias - self.gain() * self.mean)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale(Node):
    """y = factor * x + offset, elementwise; both broadcast against the feature shape, as () or (C, 1, 1)."""

    factor: Array
    offset: Array

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        for key, value in self.arrays().items():
            _broadcasts(self, key, value, inputs[0].shape)
        return _weighted(inputs, inputs[0].shape)


@dataclass(frozen=True)
class StateVariable:
    """One state variable of a neuron and its value before step 0."""

    name: str
    initial: float = 0.0


_NEURON_ARRAYS = (
    "alpha", "beta", "v_threshold", "v_reset", "leak_target", "potential_scale", "norm_gain", "norm_mean", "norm_bias",
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Neuron(Node):
    """A dual adaptive leaky integrate-and-fire neuron (DA-LIF paper, eq. 2 and 9).

        V[t] = leak_target + beta * (H[t-1] - leak_target) + alpha * X[t]
        S[t] = V[t] >= v_threshold        (fires_at "ge", the paper's; "gt": V[t] > v_threshold)
        H[t] = v_reset where S[t] else V[t]            (reset "hard", the paper's)
        H[t] = V[t] - v_threshold * S[t]               (reset "subtract")
        H[t] = V[t]                                    (reset "none")

    This is `reset_timing` "now". Two others look at what is held before the step, R[t] = H[t-1] >= v_threshold
    (by the rule of S; at step 0 of the initial value), with U[t] for the first line's V[t]:

        "next": the reset acts one step later, so that R[t] = S[t-1]
            V[t] = v_reset where R[t] else U[t]  (hard: that step's input is lost);  H[t] = V[t]
            V[t] = U[t] - v_threshold * R[t]  (subtract);  H[t] = V[t]
        "carry" (subtract only): a potential that the reset leaves above the threshold is paid for first
            V[t] = U[t] - v_threshold * R[t];  H[t] = V[t] - v_threshold * (S[t] - R[t])

    `update` says by which formula the trained module computes V, which decides how it rounds: "sum", beta * H +
    alpha * X, or "decay", H + k * (X - H) with k = 1 - beta. Every runtime has its own; only the module's spikes
    are judged by this one.

    The parameters broadcast against the feature shape: () for one per layer, (C, 1, 1) for one per
    channel, the whole shape for one per neuron. `alpha` and `beta` are the values the trained module
    itself computed; `raw_alpha`, `raw_beta` and `activation` record what it computed them from and
    are None where the graph does not come from a trainable neuron. Folding makes `alpha` 1 and keeps
    the trained value in `trained_alpha`; `potential_scale` turns this node's potential into the
    trained model's units: V_trained = potential_scale * V.

    A neuron may normalise its potential before it compares it, and keep V as it is:

        S[t] = norm_gain * (V[t] - norm_mean) + norm_bias >= v_threshold

    (Guo et al., Membrane Potential Batch Normalization for Spiking Neural Networks, ICCV 2023.) Folding moves
    this into the threshold; a reset by subtraction is not defined beside it.
    """

    alpha: Array
    beta: Array
    v_threshold: Array = field(default_factory=lambda: frozen(1.0))
    v_reset: Array = field(default_factory=lambda: frozen(0.0))
    leak_target: Array = field(default_factory=lambda: frozen(0.0))
    reset: ResetRule = "hard"
    fires_at: ThresholdRule = "ge"
    reset_timing: ResetTiming = "now"
    update: MembraneForm = "sum"
    state: tuple[StateVariable, ...] = (StateVariable("membrane"),)
    potential_scale: Array = field(default_factory=lambda: frozen(1.0))
    trained_alpha: Array | None = None
    raw_alpha: Array | None = None
    raw_beta: Array | None = None
    activation: str | None = None
    norm_gain: Array = field(default_factory=lambda: frozen(1.0))
    norm_mean: Array = field(default_factory=lambda: frozen(0.0))
    norm_bias: Array = field(default_factory=lambda: frozen(0.0))

    @property
    def normalised(self) -> bool:
        """Whether something else than the potential itself is compared with the threshold."""
        return bool(np.any(self.norm_gain != 1.0) or np.any(self.norm_mean) or np.any(self.norm_bias))

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        if self.reset not in get_args(ResetRule) or self.fires_at not in get_args(ThresholdRule):
            raise self._refuse(f"unknown rule: reset {self.reset!r}, fires_at {self.fires_at!r}")
        if self.reset_timing not in get_args(ResetTiming) or self.update not in get_args(MembraneForm):
            raise self._refuse(f"unknown rule: reset_timing {self.reset_timing!r}, update {self.update!r}")
        if (self.reset, self.reset_timing) in UNKNOWN_RESETS:
            raise self._refuse(f"there is no reset {self.reset!r} with reset_timing {self.reset_timing!r}")
        if not self.state or not all(math.isfinite(variable.initial) for variable in self.state):
            raise self._refuse("needs at least one state variable, each with a finite initial value")
        if self.normalised and (self.reset, self.reset_timing) != ("hard", "now"):
            raise self._refuse("normalises its potential before the comparison; only a hard reset is defined beside it")
        for key in _NEURON_ARRAYS:
            _broadcasts(self, key, getattr(self, key), inputs[0].shape)
        return TensorType(inputs[0].shape, True, "spike", 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool2d(Node):
    """What the pools share. Windows of `kernel`, every `stride`, over `padding` on both sides."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil_mode: bool = False

    def windows(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many windows there are along each axis of a feature map of `size` (torch's rule)."""
        out = []
        for n, k, s, p in zip(size, self.kernel, self.stride, self.padding, strict=True):
            free = n + 2 * p - k
            count = (math.ceil(free / s) if self.ceil_mode else free // s) + 1
            # torch leaves out a last window that would start in the padding on the far side.
            if self.ceil_mode and (count - 1) * s >= n + p:
                count -= 1
            out.append(count)
        if min(out) < 1:
            raise self._refuse(f"kernel {self.kernel} does not fit into an input of {tuple(size)}")
        return tuple(out)

    def closed_windows(self, size: Sequence[int]) -> tuple[int, ...]:
        """How many windows lie within the input and its padding; 0 or less where none does."""
        axes = zip(size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in axes)

    def whole_windows(self, size: Sequence[int]) -> bool:
        """Whether every window lies within the input, touching neither padding nor an open end."""
        return self.padding == (0, 0) and all(
            (count - 1) * s + k <= n
            for count, n, k, s in zip(self.windows(size), size, self.kernel, self.stride, strict=True)
        )

    def _map(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) != 3:
            raise self._refuse(f"needs an input of (channels, height, width), not {shape}")
        _at_least(self, 1, kernel=self.kernel, stride=self.stride)
        _at_least(self, 0, padding=self.padding)
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise self._refuse("the padding is more than half the kernel")
        return (shape[0], *self.windows(shape[1:]))


@dataclass(frozen=True, eq=False, kw_only=True)
class AvgPool2d(Pool2d):
    """Average pool, as torch.nn.AvgPool2d; `count_include_pad` as there."""

    count_include_pad: bool = True

    def divisors(self, size: Sequence[int]) -> Array:
        """How many places each window over a map of `size` divides by, (rows, columns): torch's rule."""
        counts = []
        for count, n, k, s, p in zip(self.windows(size), size, self.kernel, self.stride, self.padding, strict=True):
            start = np.arange(count) * s - p
            end = np.minimum(start + k, n + p)
            counts.append((end - start) if self.count_include_pad else np.minimum(end, n) - np.maximum(start, 0))
        return frozen(np.outer(counts[0], counts[1]))

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        return _weighted(inputs, self._map(inputs[0].shape))


@dataclass(frozen=True, eq=False, kw_only=True)
class SumPool2d(Pool2d):
    """Sum over every window. Of spikes it is a count, exact in any arithmetic."""

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        (x,) = inputs
        shape = self._map(x.shape)
        if x.maximum is None:
            return TensorType(shape, x.temporal)
        return TensorType(shape, x.temporal, "count", x.maximum * self.kernel[0] * self.kernel[1])


@dataclass(frozen=True, eq=False, kw_only=True)
class MaxPool2d(Pool2d):
    """Maximum over every window; padding never wins."""

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        (x,) = inputs
        return TensorType(self._map(x.shape), x.temporal, x.kind, x.maximum)


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Node):
    """All feature axes into one, in C order."""

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        (x,) = inputs
        return TensorType((math.prod(x.shape),), x.temporal, x.kind, x.maximum)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reshape(Node):
    """The same elements in C order, as a feature map of another `shape`."""

    shape: tuple[int, ...]

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        (x,) = inputs
        if not self.shape or min(self.shape) < 1 or math.prod(self.shape) != math.prod(x.shape):
            raise self._refuse(f"an input of {x.shape} has not the elements of {self.shape}")
        return TensorType(self.shape, x.temporal, x.kind, x.maximum)


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Node):
    """The sum of all inputs, from left to right; all have one shape."""

    arity: ClassVar[int | None] = None

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        if len({x.shape for x in inputs}) != 1:
            raise self._refuse(f"inputs of different shapes: {', '.join(str(x.shape) for x in inputs)}")
        temporal = any(x.temporal for x in inputs) or any(edge.delay for edge in self.inputs)
        maxima = [x.maximum for x in inputs]
        if None in maxima:
            return TensorType(inputs[0].shape, temporal)
        return TensorType(inputs[0].shape, temporal, "count", sum(m for m in maxima if m is not None))


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Node):
    """All inputs one behind the other along the first feature axis, the channels; the other axes are the same."""

    arity: ClassVar[int | None] = None

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        if len({x.shape[1:] for x in inputs}) != 1:
            raise self._refuse(f"inputs that differ beyond the channels: {', '.join(str(x.shape) for x in inputs)}")
        shape = (sum(x.shape[0] for x in inputs), *inputs[0].shape[1:])
        temporal = any(x.temporal for x in inputs) or any(edge.delay for edge in self.inputs)
        maxima = [x.maximum for x in inputs]
        if None in maxima:
            return TensorType(shape, temporal)
        most = max(m for m in maxima if m is not None)  # 0 for zeros, which are no spikes but may stand beside them
        return TensorType(shape, temporal, "spike" if most == 1 else "count", most)


@dataclass(frozen=True, eq=False, kw_only=True)
class Readout(Node):
    """Reduces the timesteps: "mean", "sum", "last" or "max". Its output has no time any more."""

    mode: ReadoutMode

    def infer(self, inputs: Sequence[TensorType]) -> TensorType:
        if self.mode not in ("mean", "sum", "last", "max"):
            raise self._refuse(f"unknown readout {self.mode!r}")
        return TensorType(inputs[0].shape, False)


def _at_least(node: Node, least: int, **fields: tuple[int, ...]) -> None:
    for key, values in fields.items():
        if min(values) < least:
            raise node._refuse(f"{key} {values} must be at least {least}")


def _broadcasts(node: Node, key: str, value: Array, shape: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(value.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise node._refuse(f"{key} of shape {value.shape} does not fit a layer of shape {shape}")


KINDS: Mapping[str, type[Node]] = {
    kind.__name__: kind
    for kind in (
        Input, Zeros, Conv2d, Linear, BatchNorm, Scale, Neuron, AvgPool2d, SumPool2d, MaxPool2d, Flatten, Reshape,
        Add, Concat, Readout,
    )
}  # fmt: skip
"""Every node kind by name, for files that store a graph."""

UNKNOWN_RESETS = frozenset({("hard", "carry"), ("none", "next"), ("none", "carry")})
"""Pairs of a reset rule and a timing that say nothing: there is only one way to go to v_reset, and to do nothing."""

WEIGHTED = (Conv2d, Linear)
"""The kinds that hold synapses: a gain on their output can move into their weights."""
