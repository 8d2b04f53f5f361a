"""Which neuron-steps every float32 evaluation computes without any rounding, so that not even a tie is in doubt.

A sum is exact in float32, in any order and with or without fused multiply-adds, where all of its terms are
multiples of one power of two q and their absolute values add up to at most 2^24 q: every partial sum is then a
multiple of q that float32 holds. That is a property of the weights and of the values that may come in, so it is
settled once for a layer. Whether beta H + X rounds is looked up at every neuron-step: the product of two float32
numbers is exact in float64, and it is exact in float32 too where float32 holds it.

At such a neuron-step the candidate's potential *is* V64. A spike at V == v_th is then decided by the threshold rule
alone, and the other decision is no rounding.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.membrane import Update
from dalif_deploy.equivalence.replay import NeuronStep
from dalif_deploy.equivalence.rounding import EXACT_WHOLE, LARGEST, TINY, Pools
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Add, Conv2d, Flatten, Input, Linear, MaxPool2d, Neuron, Node, SumPool2d, Zeros
from dalif_deploy.operators import Values

PLAIN = frozenset({
    "name", "inputs", "alpha", "beta", "v_threshold", "v_reset", "leak_target", "reset", "fires_at", "state",
    "potential_scale", "trained_alpha", "raw_alpha", "raw_beta", "activation", "update",
})  # fmt: skip
"""What a neuron may set and still be the one whose roundings are counted here; anything else must be as by default."""


def representable(values: Values) -> NDArray[np.bool_]:
    """Where float32 holds a float64 value as it is, zero or a normal number; the shape of `values`."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32).astype(np.float64)
    return np.asarray((narrow == values) & ((np.abs(values) >= TINY) | (values == 0.0)))


def sum_is_exact(a: Values, b: Values) -> NDArray[np.bool_]:
    """Where float64 adds `a` and `b` without rounding (Knuth's two-sum)."""
    total = a + b
    part = total - a
    return np.asarray((a - (total - part)) + (b - part) == 0.0)


def spacing(values: NDArray[np.floating]) -> float:
    """The largest power of two of which all `values` are multiples; infinite where all are 0. Finite values."""
    mantissa, exponent = np.frexp(np.asarray(values, np.float64).ravel())
    whole = (mantissa * 2.0**53).astype(np.int64)
    used = whole != 0
    if not used.any():
        return float(np.inf)
    lowest = np.log2((whole[used] & -whole[used]).astype(np.float64)) + exponent[used] - 53
    return float(np.exp2(lowest.min()))


@dataclass(frozen=True)
class _Lattice:
    """What a tensor can be: multiples of `unit` (a power of two), of absolute value `largest` at most."""

    unit: float
    largest: float

    @property
    def holds(self) -> bool:
        """Whether float32 holds every such number."""
        if self.largest == 0.0:
            return True
        return self.largest <= EXACT_WHOLE * self.unit and self.unit >= TINY and self.largest < LARGEST


class ExactSteps:
    """Follows a replay step by step; `mask` is given every `NeuronStep` in order.

    `inputs`: what the module takes, [batch, ...] float64: how fine their grid is counts. `update`: the runtime's
    membrane formula; only "sum" has exact steps here. `pools`: how it computes sum pools, likewise.
    """

    def __init__(self, graph: SpikingGraph, inputs: Values, update: Update | None, pools: Pools = "sum") -> None:
        self._graph = graph
        self._inputs = inputs
        self._update = update
        self._pools = pools
        self._lattices: dict[str, _Lattice | None] = {}
        self._held: dict[str, tuple[Values, NDArray[np.bool_]]] = {}

    def mask(self, step: NeuronStep, spikes: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Where nothing rounds in V - v_th, bool [batch, *shape]; None where that is nowhere known. `spikes`: what
        the candidate fired at this step."""
        neuron = step.neuron
        if not step.proved or not self._counted(neuron):
            return None
        if neuron.name not in self._held:
            initial = np.full(step.potential.shape, neuron.state[0].initial)
            self._held[neuron.name] = (initial, representable(initial))
        before, exact = self._held[neuron.name]
        leak = neuron.beta * before
        current = neuron.alpha * step.current
        potential = leak + current
        exact = exact & representable(leak) & representable(current) & sum_is_exact(leak, current)
        exact &= (potential == step.potential) & representable(potential) & (np.abs(potential) < LARGEST)
        if neuron.reset == "hard":
            after = np.where(spikes, representable(neuron.v_reset), exact)
        elif neuron.reset == "none":
            after = exact
        else:
            dropped = neuron.v_threshold * spikes
            after = exact & sum_is_exact(potential, -dropped) & representable(potential - dropped)
        self._held[neuron.name] = (step.held, np.broadcast_to(after, exact.shape))
        return exact

    def _counted(self, neuron: Neuron) -> bool:
        if self._update != "sum" or not plain(neuron) or np.any(neuron.leak_target):
            return False
        if not all(representable(v).all() for v in (neuron.alpha, neuron.beta, neuron.v_threshold)):
            return False
        lattice = self._lattice(neuron.inputs[0].source)
        return lattice is not None and lattice.holds

    def _lattice(self, name: str) -> _Lattice | None:
        """What the node's output can be, where every float32 evaluation computes it exactly; else None."""
        if name not in self._lattices:
            self._lattices[name] = None  # where a delayed edge comes round to it
            self._lattices[name] = self._derived(self._graph[name])
        return self._lattices[name]

    def _derived(self, node: Node) -> _Lattice | None:
        if isinstance(node, Neuron):
            return _Lattice(1.0, 1.0)
        if isinstance(node, Zeros):
            return _Lattice(1.0, 0.0)
        if isinstance(node, Input):
            if not representable(self._inputs).all():
                return None
            return _Lattice(spacing(self._inputs), float(np.abs(self._inputs).max(initial=0.0)))
        sources = [self._lattice(edge.source) for edge in node.inputs]
        known = [source for source in sources if source is not None]
        if len(known) < len(sources):
            return None
        found: _Lattice | None = None
        if type(node) in (Flatten, MaxPool2d):
            found = known[0]
        elif isinstance(node, SumPool2d) and self._pools == "sum":
            found = _Lattice(known[0].unit, known[0].largest * node.kernel[0] * node.kernel[1])
        elif isinstance(node, Add):
            found = _Lattice(min(source.unit for source in known), sum(source.largest for source in known))
        elif isinstance(node, Conv2d | Linear) and type(node) in (Conv2d, Linear):
            found = _weighted(node, known[0])
        return found if found is not None and found.holds else None


def plain(neuron: Neuron) -> bool:
    """Whether the neuron is what its equations in `nodes` say and nothing more."""
    return all(np.array_equal(getattr(neuron, f.name), _default(f)) for f in fields(neuron) if f.name not in PLAIN)


def _default(of: Field[Any]) -> Any:
    return of.default if of.default_factory is MISSING else of.default_factory()


def _weighted(node: Conv2d | Linear, source: _Lattice) -> _Lattice | None:
    bias = np.zeros(len(node.weight)) if node.bias is None else node.bias
    if not (representable(node.weight).all() and representable(bias).all()):
        return None
    size = np.abs(node.weight).reshape(len(node.weight), -1).sum(axis=1) * source.largest + np.abs(bias)
    unit = min(spacing(node.weight) * source.unit, spacing(bias))
    return _Lattice(unit if np.isfinite(unit) else 1.0, float(size.max()))
