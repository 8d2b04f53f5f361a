"""What could be wrong with a layer in one number: a threshold, a leak, an input gain, a factor on weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from dalif_deploy.equivalence.cause import Explanation, Keyword
from dalif_deploy.equivalence.estimate import Estimate, estimate, shortest
from dalif_deploy.equivalence.hypotheses import in_cone, number, of_array, trained_alpha
from dalif_deploy.equivalence.layer_replay import Layer, LayerRun
from dalif_deploy.nodes import Array, Conv2d, Linear, Neuron, Scale, frozen

LEAKS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0, -0.5)
"""From where a leak is sought, besides the model's own."""


@dataclass(frozen=True)
class Sought:
    """A number to be found. `run`: the layer with it. `own`: what it is in the model. `what`: how it is called."""

    name: Keyword
    what: str
    own: float
    run: Callable[[float], LayerRun]
    starts: tuple[float, ...]
    factor: bool = False

    def found(self) -> tuple[int, Explanation] | None:
        """How many decimal places it takes to tell the number that explains all, and the explanation; or None."""
        result = estimate(self.run, self.starts)
        if result is None:
            return None
        between = _between(result.low, result.high)
        ways = (way for way in sorted(self._ways(result)) if self.run(way[1]).contradictions == 0)
        places, value, times = next(ways, (17, result.value, False))
        if self.factor:
            return places, Explanation(self.name, f"{self.what} times {number(value)} ({between})")
        multiple = f", {number(value / self.own)} times that" if times else ""
        return places, Explanation(
            self.name, f"{self.what} is {number(value)} in place of {number(self.own)}{multiple} ({between})"
        )

    def _ways(self, result: Estimate) -> Iterator[tuple[int, float, bool]]:
        """How many decimal places it takes to tell a number that explains everything; the number; whether they are
        those of its multiple of the model's."""
        if result.low < result.high:
            value, places = shortest(result.low, result.high)
            yield places, value, False
        if self.own and not self.factor:
            low, high = sorted((result.low / self.own, result.high / self.own))
            if low < high:
                value, places = shortest(low, high)
                yield places, value * self.own, True


def _between(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "or any other"
    if math.isinf(low):
        return f"at most {number(high)}"
    return f"at least {number(low)}" if math.isinf(high) else f"between {low:.9g} and {high:.9g}"


def sought(layer: Layer) -> Iterator[Sought]:
    """All numbers that are looked for."""
    neuron = layer.neuron
    yield from _parameter(
        layer, "threshold", "v_th", frozen(neuron.potential_scale * neuron.v_threshold),
        lambda value: replace(neuron, v_threshold=frozen(value / neuron.potential_scale)),
    )  # fmt: skip
    yield from _parameter(layer, "leak", "beta", neuron.beta, lambda value: replace(neuron, beta=value), LEAKS)
    alpha = trained_alpha(neuron)
    if np.all(alpha):
        yield from _parameter(
            layer, "wrong alpha", "alpha", alpha,
            lambda value: replace(neuron, alpha=frozen(neuron.alpha * (value / alpha))),
        )  # fmt: skip
    yield from _weights(layer)


def _parameter(
    layer: Layer, name: Keyword, what: str, own: Array, neuron_of: Callable[[Array], Neuron],
    starts: tuple[float, ...] = (),
) -> Iterator[Sought]:  # fmt: skip
    """One value for the layer; or, where the model has several, a factor on them as well."""
    mean = float(own.mean())
    same = np.all(own == own.ravel()[0])
    if same:
        mean = float(own.ravel()[0])

    def valued(value: float) -> LayerRun:
        return layer.run(neuron_of(frozen(np.full_like(own, value))))

    def scaled(value: float) -> LayerRun:
        return layer.run(neuron_of(frozen(own * value)))

    yield Sought(name, what, mean, valued, (mean, *starts))
    if not same:
        yield Sought(name, f"{what}, {of_array(own)} in the model, is multiplied:", 1.0, scaled, (1.0,), factor=True)


def _weights(layer: Layer) -> Iterator[Sought]:
    for node in in_cone(layer):
        if isinstance(node, Conv2d | Linear):

            def scaled(value: float, node: Conv2d | Linear = node) -> LayerRun:
                return layer.with_nodes(replace(node, weight=frozen(node.weight * value)))

            yield Sought("scaled weights", f"the weights of '{node.name}'", 1.0, scaled, (1.0,), factor=True)
        elif isinstance(node, Scale):

            def multiplied(value: float, node: Scale = node) -> LayerRun:
                return layer.with_nodes(replace(node, factor=frozen(node.factor * value)))

            yield Sought("scaled weights", f"the factor of '{node.name}'", 1.0, multiplied, (1.0,), factor=True)
