"""The `torch` runtime: a graph, as trained or folded, computed by PyTorch's own operators.

It shares no arithmetic with the NumPy code elsewhere in the package, so that the two can be held against
each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import require_exact
from dalif_deploy.nodes import (
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
    Readout,
    Reshape,
    Scale,
    SumPool2d,
    Zeros,
)
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.stepping import (
    Arithmetic,
    Precisions,
    WatchPotential,
    require_codes,
    require_membrane_only,
    rounded_parameters,
    run_steps,
)

Parameters = Mapping[str, torch.Tensor]


def available() -> str | None:
    """None: PyTorch is a requirement of the package."""
    return None


class TorchRuntime:
    """Computes a training graph or a folded graph on the CPU, step by step, in "float64" or "float32".

    Neurons follow the DA-LIF paper's eq. (9) and (2) with `beta * H` and `alpha * X` rounded before they
    are added, as the trained module does.

    `arithmetic`: "float" computes everything in `dtype`; "exact" and "exact64" take a snapped graph (see
    `passes.snap`) and codes or spikes, and follow the definition that all exact runtimes share (see
    `stepping.Precisions`), with logits float32 or float64; `dtype` says nothing then. `watch`: shown every
    layer's potential at every timestep.

    Raises `DalifError`: BAD_OPTION, RUNTIME_CANNOT_RUN; for exact arithmetic BAD_GRAPH for a graph that is not
    snapped and TARGET_CANNOT_HOLD where sums have no exact form.
    """

    name = "torch"

    def __init__(
        self,
        graph: SpikingGraph,
        *,
        dtype: Literal["float64", "float32"] = "float64",
        arithmetic: Arithmetic = "float",
        watch: WatchPotential | None = None,
    ) -> None:
        if dtype not in ("float64", "float32"):
            raise DalifError(Code.BAD_OPTION, f"dtype {dtype!r}: the torch runtime takes 'float64' or 'float32'")
        self._precisions = Precisions.of(arithmetic, dtype)
        require_membrane_only(graph, self.name)
        for node in graph.nodes:
            if type(node) not in _OPERATORS and not isinstance(node, Input | Zeros | Neuron | Readout):
                raise DalifError(
                    Code.RUNTIME_CANNOT_RUN,
                    f"node '{node.name}' ({type(node).__name__}): the torch runtime has no operator for it",
                )
        if self._precisions.exact:
            _require_unit_alpha(graph)
            require_exact(graph)
        self._graph = graph
        self._watch = watch
        self._dtype = _TORCH[self._precisions.sums.name]
        self._membrane = _TORCH[self._precisions.membrane.name]
        self._parameters: dict[str, Parameters] = {
            node.name: {
                key: torch.tensor(value, device="cpu")
                for key, value in rounded_parameters(node, self._dtype_of(node), self.name).items()
            }
            for node in graph.nodes
        }
        self._has_leak_target = {neuron.name: bool(neuron.leak_target.any()) for neuron in graph.neurons}

    @property
    def description(self) -> str:
        """The package that computes, its dtype, and what is steered round."""
        computes = self._precisions.description
        return f"PyTorch {torch.__version__}, {computes}, CPU, eager; Winograd, bfloat16 and TF32 kernels off"

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """One batch, [N, ...] static or [N, T, ...] temporal, from the initial state.

        Raises `DalifError` (WRONG_SHAPE, BAD_DATA, NOT_FINITE).
        """
        if self._precisions.exact:
            require_codes(self._graph.encoding, batch)
        inputs = self._graph.input_spec.module_input(batch)
        temporal = self._graph.input.temporal

        def input_at(t: int) -> torch.Tensor:
            return torch.tensor(inputs[:, t] if temporal else inputs, dtype=self._dtype, device="cpu")

        with torch.inference_mode(), _exact_kernels():
            spikes, output = run_steps(self._graph, input_at, len(inputs), self)
        return Recording(spikes, output.numpy().copy())

    def compute(self, node: Node, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output of a stateless node (see `stepping.Computer`)."""
        return _OPERATORS[type(node)](node, self._parameters[node.name], inputs)

    def zeros(self, shape: tuple[int, ...], fill: float = 0.0) -> torch.Tensor:
        """An array of `shape` holding `fill`."""
        return torch.full(shape, fill, dtype=self._dtype, device="cpu")

    def fire(
        self, neuron: Neuron, held: torch.Tensor, current: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.bool_]]:
        """One step of a neuron layer. Products are rounded before the sum: no fused multiply-add."""
        p = self._parameters[neuron.name]
        # In exact arithmetic the one rounding of the sum.
        held, current = held.to(self._membrane), current.to(self._membrane)
        if self._has_leak_target[neuron.name]:
            decayed = p["leak_target"] + p["beta"] * (held - p["leak_target"])
        else:
            decayed = p["beta"] * held
        potential = decayed + p["alpha"] * current
        threshold = p["v_threshold"]

        def beyond(values: torch.Tensor) -> torch.Tensor:
            return values >= threshold if neuron.fires_at == "ge" else values > threshold

        due = beyond(held)  # a reset that is still to come, where resets are late
        if neuron.reset_timing != "now":
            late = p["v_reset"] if neuron.reset == "hard" else potential - threshold
            potential = torch.where(due, late, potential)
        if self._watch is not None:
            self._watch(neuron.name, potential.numpy())
        compared = potential
        if neuron.normalised:
            compared = p["norm_gain"] * (potential - p["norm_mean"]) + p["norm_bias"]
        fired = beyond(compared)
        if neuron.reset == "none" or neuron.reset_timing == "next":
            after = potential
        elif neuron.reset == "hard":
            after = torch.where(fired, p["v_reset"], potential)
        elif neuron.reset_timing == "carry":
            after = potential - threshold * (fired.to(self._membrane) - due.to(self._membrane))
        else:
            after = torch.where(fired, potential - threshold, potential)
        return fired.to(self._dtype), after, fired.numpy()

    def read_out(self, node: Readout, steps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Reduces the outputs of all timesteps; a mean adds in the order of time and divides once."""
        steps = [step.to(self._membrane) for step in steps]
        if node.mode == "last":
            return steps[-1]
        if node.mode == "max":
            return torch.stack(steps).amax(dim=0)
        total = steps[0]
        for step in steps[1:]:
            total = total + step
        return total / len(steps) if node.mode == "mean" else total

    def _dtype_of(self, node: Node) -> np.dtype[np.floating]:
        return self._precisions.membrane if isinstance(node, Neuron) else self._precisions.sums


def _require_unit_alpha(graph: SpikingGraph) -> None:
    for neuron in graph.neurons:
        if (neuron.alpha != 1.0).any() or neuron.normalised:
            what = "normalises its potential" if neuron.normalised else "has an alpha that is not folded"
            raise DalifError(
                Code.BAD_GRAPH,
                f"node '{neuron.name}' (Neuron): {what}; exact arithmetic takes a snapped "
                "graph (dalif_deploy.passes.snap)",
            )


_TORCH = {"float32": torch.float32, "float64": torch.float64}


@contextmanager
def _exact_kernels() -> Iterator[None]:
    """No kernel that computes with fewer bits than the dtype says, or by another algorithm than sums.

    NNPACK's convolutions use Winograd's transformation; autocast and a lowered matmul precision use
    bfloat16 or TF32. All are process-wide settings: put back afterwards.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.nnpack.flags(enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _conv2d(node: Conv2d, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.conv2d(inputs[0], p["weight"], p.get("bias"), node.stride, node.padding, node.dilation, node.groups)


def _linear(node: Linear, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.linear(inputs[0], p["weight"], p.get("bias"))


def _batch_norm(node: BatchNorm, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.batch_norm(inputs[0], p["mean"], p["variance"], p["weight"], p["bias"], False, 0.0, node.epsilon)


def _scale(node: Scale, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return p["factor"] * inputs[0] + p["offset"]


def _avg_pool(node: AvgPool2d, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.avg_pool2d(inputs[0], node.kernel, node.stride, node.padding, node.ceil_mode, node.count_include_pad)


def _sum_pool(node: SumPool2d, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.avg_pool2d(inputs[0], node.kernel, node.stride, node.padding, node.ceil_mode, divisor_override=1)


def _max_pool(node: MaxPool2d, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return F.max_pool2d(inputs[0], node.kernel, node.stride, node.padding, ceil_mode=node.ceil_mode)


def _flatten(node: Flatten, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.flatten(inputs[0], 1)


def _reshape(node: Reshape, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return inputs[0].reshape(-1, *node.shape)


def _add(node: Add, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    total = inputs[0]
    for term in inputs[1:]:
        total = total + term
    return total


def _concat(node: Concat, p: Parameters, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tuple(inputs), dim=1)


_OPERATORS: Mapping[type[Node], Callable[[Any, Parameters, Sequence[torch.Tensor]], torch.Tensor]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    BatchNorm: _batch_norm,
    Scale: _scale,
    AvgPool2d: _avg_pool,
    SumPool2d: _sum_pool,
    MaxPool2d: _max_pool,
    Flatten: _flatten,
    Reshape: _reshape,
    Add: _add,
    Concat: _concat,
}
