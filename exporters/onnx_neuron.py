"""A folded neuron layer as stock ONNX operators, one timestep after the other.

    V[t] = H[t-1] * beta + X[t]             Mul, Add; two roundings, as in the folded graph's definition
    S[t] = V[t] >= v_threshold              GreaterOrEqual (fires_at "gt": Greater), Cast
    H[t] = V[t] * (1 - S[t]) + v_reset * S[t]      reset "hard"; the last term only where v_reset is not 0
    H[t] = V[t] - v_threshold * S[t]               reset "subtract"
    H[t] = V[t]                                    reset "none"

A reset that comes late ("next", "carry"; see `nodes.Neuron`) first asks what is held: R[t] = H[t-1] >= v_threshold,
and takes V[t] = Where(R[t], v_reset, ...) or ... - v_threshold * R[t].

Before step 0 the membrane holds its initial value, so V[0] = X[0] where that is 0; nobody reads the last H.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.onnx_builder import FLOAT, Builder, ElementType
from dalif_deploy.nodes import Array, Neuron, frozen


@dataclass(frozen=True)
class NeuronForm:
    """How a layer's numbers lie in the file: the element types of the membrane (float32 or float64) and of the
    spikes, whether channels come last, and whether the potential of every timestep has a name of its own."""

    membrane: ElementType = FLOAT
    spikes: ElementType = FLOAT
    channels_last: bool = False
    named_potentials: bool = False


class NeuronWriter:
    """Writes the timesteps of one neuron layer, in order. `shape`: of its values, as they lie in the file.

    Raises `DalifError` (TARGET_CANNOT_HOLD) for a neuron with more state than its membrane, and for a
    threshold that float32 cannot tell from zero or cannot hold with all its digits.
    """

    def __init__(
        self, builder: Builder, neuron: Neuron, shape: tuple[int, ...], form: NeuronForm | None = None
    ) -> None:
        if len(neuron.state) != 1:
            names = ", ".join(f"'{variable.name}'" for variable in neuron.state) or "none"
            raise self._refuse(neuron, f"state variables {names}; the ONNX form has one, the membrane")
        self._builder = builder
        self._neuron = neuron
        self._shape = shape
        self._form = form or NeuronForm()
        self._dtype = helper.tensor_dtype_to_np_dtype(self._form.membrane)
        smallest = np.finfo(self._dtype).smallest_normal
        tiny = (neuron.v_threshold != 0) & (np.abs(neuron.v_threshold) < smallest)
        if tiny.any():
            raise self._refuse(neuron, f"a threshold lies below {self._dtype}'s smallest normal number {smallest:.3g}")
        self._threshold = self._parameter("v_threshold", neuron.v_threshold)
        self._membrane = ""
        self._due = ""

    def step(self, t: int, current: str) -> str:
        """Write timestep `t` for the input `current` [batch, *shape]; returns the spikes, 0 or 1."""
        prefix = f"{self._neuron.name}/t{t}"
        potential = self._potential(t, prefix, current)
        fires = self._beyond(potential, f"{prefix}/fires")
        element = self._form.spikes
        spikes = self._builder.node("Cast", [fires], f"{prefix}/spikes", shape=self._shape, element=element, to=element)
        if t + 1 < self._builder.timesteps:
            self._membrane = self._reset(prefix, potential, fires, spikes)
        return spikes

    def _beyond(self, potential: str, output: str) -> str:
        comparison = "GreaterOrEqual" if self._neuron.fires_at == "ge" else "Greater"
        return self._builder.node(comparison, [potential, self._threshold], output)

    def _node(self, op: str, inputs: list[str], output: str) -> str:
        return self._builder.node(op, inputs, output, shape=self._shape, element=self._form.membrane)

    def _parameter(self, field: str, values: Array) -> str:
        return self._builder.parameter(self._neuron, field, self._aligned(values), self._form.membrane)

    def _aligned(self, values: NDArray[Any]) -> NDArray[Any]:
        """Parameters as they lie in the file."""
        if not self._form.channels_last or not values.ndim:
            return values
        aligned = values.reshape((1,) * (len(self._shape) - values.ndim) + values.shape)
        return np.ascontiguousarray(np.moveaxis(aligned, 0, -1))

    def _potential(self, t: int, prefix: str, current: str) -> str:
        late = self._neuron.reset_timing != "now" and (t > 0 or bool(self._initially_due().any()))
        if not late:
            return self._integrated(t, prefix, current, f"{prefix}/potential")
        return self._late_reset(t, prefix, self._integrated(t, prefix, current, f"{prefix}/integrated"))

    def _integrated(self, t: int, prefix: str, current: str, output: str) -> str:
        """The potential before a reset that comes late."""
        node, neuron, parameter = self._builder.node, self._neuron, self._parameter
        target = neuron.leak_target
        if t == 0:
            start = self._start()
            if start.any():
                return self._node("Add", [parameter("start", start), current], output)
            return self._node("Identity", [current], output) if self._form.named_potentials else current
        if not target.any():
            kept = node("Mul", [self._membrane, parameter("beta", neuron.beta)], f"{prefix}/leak")
        else:
            resting = parameter("leak_target", target)
            above = node("Sub", [self._membrane, resting], f"{prefix}/above_target")
            leaked = node("Mul", [above, parameter("beta", neuron.beta)], f"{prefix}/leak")
            kept = node("Add", [resting, leaked], f"{prefix}/leaked")
        return self._node("Add", [kept, current], output)

    def _late_reset(self, t: int, prefix: str, integrated: str) -> str:
        """V[t], after the reset that was due from before."""
        node, neuron = self._builder.node, self._neuron
        if t == 0:
            due = self._builder.constant(f"{neuron.name}.due", self._aligned(self._initially_due()))
        else:
            due = self._beyond(self._membrane, f"{prefix}/due")
        self._due = node("Cast", [due], f"{prefix}/due_value", to=self._form.membrane)
        if neuron.reset == "hard":
            reset = self._parameter("v_reset", neuron.v_reset)
            return self._node("Where", [due, reset, integrated], f"{prefix}/potential")
        late = node("Mul", [self._threshold, self._due], f"{prefix}/late_drop")
        return self._node("Sub", [integrated, late], f"{prefix}/potential")

    def _initially_due(self) -> NDArray[np.bool_]:
        """Where the value before step 0 is beyond the threshold already."""
        neuron = self._neuron
        initial = np.array(neuron.state[0].initial, dtype=self._dtype)
        threshold = neuron.v_threshold.astype(self._dtype)
        return np.asarray(initial >= threshold if neuron.fires_at == "ge" else initial > threshold)

    def _start(self) -> Array:
        """What is left of the membrane's initial value at step 0, computed as every later step computes it."""
        neuron = self._neuron
        target, beta = neuron.leak_target.astype(self._dtype), neuron.beta.astype(self._dtype)
        initial = np.array(neuron.state[0].initial, dtype=self._dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # the parameters themselves are refused beyond the range
            left = target + beta * (initial - target) if target.any() else beta * initial
        return frozen(left)

    def _reset(self, prefix: str, potential: str, fires: str, spikes: str) -> str:
        node, neuron = self._builder.node, self._neuron
        membrane = f"{prefix}/membrane"

        def as_membrane(value: str, role: str) -> str:
            return node("Cast", [value], f"{prefix}/{role}", to=self._form.membrane)

        same = self._form.spikes == self._form.membrane
        if neuron.reset == "none" or neuron.reset_timing == "next":
            return potential
        if neuron.reset == "subtract":
            paid = spikes if same else as_membrane(fires, "fired")
            if neuron.reset_timing == "carry" and self._due:
                paid = node("Sub", [paid, self._due], f"{prefix}/owed")
            drop = node("Mul", [self._threshold, paid], f"{prefix}/drop")
            return self._node("Sub", [potential, drop], membrane)
        if same:
            one = self._builder.constant(f"constants/one_{self._dtype}", np.array(1.0, dtype=self._dtype))
            silent = node("Sub", [one, spikes], f"{prefix}/silent")
        else:
            silent = as_membrane(node("Not", [fires], f"{prefix}/silences"), "silent")
        if not neuron.v_reset.any():
            return self._node("Mul", [potential, silent], membrane)
        kept = node("Mul", [potential, silent], f"{prefix}/kept")
        fired = spikes if same else as_membrane(fires, "fired")
        reset = node("Mul", [self._parameter("v_reset", neuron.v_reset), fired], f"{prefix}/reset")
        return self._node("Add", [kept, reset], membrane)

    @staticmethod
    def _refuse(neuron: Neuron, why: str) -> DalifError:
        return DalifError(Code.TARGET_CANNOT_HOLD, f"node '{neuron.name}' (Neuron): {why}")
