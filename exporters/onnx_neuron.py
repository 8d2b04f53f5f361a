"""A folded neuron layer as stock ONNX operators, one timestep after the other.

    V[t] = H[t-1] * beta + X[t]             Mul, Add; two roundings, as in the folded graph's definition
    S[t] = V[t] >= v_threshold              GreaterOrEqual (fires_at "gt": Greater), Cast to float32
    H[t] = V[t] * (1 - S[t]) + v_reset * S[t]      reset "hard"; the last term only where v_reset is not 0
    H[t] = V[t] - v_threshold * S[t]               reset "subtract"

Before step 0 the membrane holds its initial value, so V[0] = X[0] where that is 0; nobody reads the last H.
"""

from __future__ import annotations

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.onnx_builder import FLOAT, Builder
from dalif_deploy.nodes import Neuron, frozen


class NeuronWriter:
    """Writes the timesteps of one neuron layer of `shape`, in order.

    Raises `DalifError` (TARGET_CANNOT_HOLD) for a neuron with more state than its membrane, and for a
    threshold that float32 cannot tell from zero or cannot hold with all its digits.
    """

    def __init__(self, builder: Builder, neuron: Neuron, shape: tuple[int, ...]) -> None:
        if len(neuron.state) != 1:
            names = ", ".join(f"'{variable.name}'" for variable in neuron.state) or "none"
            raise self._refuse(neuron, f"state variables {names}; the ONNX form has one, the membrane")
        smallest = np.finfo(np.float32).smallest_normal
        tiny = (neuron.v_threshold != 0) & (np.abs(neuron.v_threshold) < smallest)
        if tiny.any():
            raise self._refuse(neuron, f"a threshold lies below float32's smallest normal number {smallest:.3g}")
        self._builder = builder
        self._neuron = neuron
        self._shape = shape
        self._threshold = builder.parameter(neuron, "v_threshold", neuron.v_threshold)
        self._membrane = ""

    def step(self, t: int, current: str) -> str:
        """Write timestep `t` for the input `current` [batch, *shape]; returns the spikes, float32 0 or 1."""
        prefix = f"{self._neuron.name}/t{t}"
        potential = self._potential(t, prefix, current)
        comparison = "GreaterOrEqual" if self._neuron.fires_at == "ge" else "Greater"
        fires = self._builder.node(comparison, [potential, self._threshold], f"{prefix}/fires")
        spikes = self._builder.node("Cast", [fires], f"{prefix}/spikes", shape=self._shape, to=FLOAT)
        if t + 1 < self._builder.timesteps:
            self._membrane = self._reset(prefix, potential, spikes)
        return spikes

    def _potential(self, t: int, prefix: str, current: str) -> str:
        node, neuron, parameter = self._builder.node, self._neuron, self._builder.parameter
        target = neuron.leak_target
        if t == 0:
            start = target + neuron.beta * (neuron.state[0].initial - target)
            if not start.any():
                return current
            kept = parameter(neuron, "start", frozen(start))
        elif not target.any():
            kept = node("Mul", [self._membrane, parameter(neuron, "beta", neuron.beta)], f"{prefix}/leak")
        else:
            resting = parameter(neuron, "leak_target", target)
            above = node("Sub", [self._membrane, resting], f"{prefix}/above_target")
            leaked = node("Mul", [above, parameter(neuron, "beta", neuron.beta)], f"{prefix}/leak")
            kept = node("Add", [resting, leaked], f"{prefix}/leaked")
        return node("Add", [kept, current], f"{prefix}/potential", shape=self._shape)

    def _reset(self, prefix: str, potential: str, spikes: str) -> str:
        node, neuron = self._builder.node, self._neuron
        membrane = f"{prefix}/membrane"
        if neuron.reset == "subtract":
            drop = node("Mul", [self._threshold, spikes], f"{prefix}/drop")
            return node("Sub", [potential, drop], membrane, shape=self._shape)
        one = self._builder.constant("constants/one", np.array(1.0, dtype=np.float32))
        silent = node("Sub", [one, spikes], f"{prefix}/silent")
        if not neuron.v_reset.any():
            return node("Mul", [potential, silent], membrane, shape=self._shape)
        kept = node("Mul", [potential, silent], f"{prefix}/kept")
        reset = node("Mul", [self._builder.parameter(neuron, "v_reset", neuron.v_reset), spikes], f"{prefix}/reset")
        return node("Add", [kept, reset], membrane, shape=self._shape)

    @staticmethod
    def _refuse(neuron: Neuron, why: str) -> DalifError:
        return DalifError(Code.TARGET_CANNOT_HOLD, f"node '{neuron.name}' (Neuron): {why}")
