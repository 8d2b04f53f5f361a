"""What could be wrong with a layer without any number to be found: other rules, other times, something left out.

Each hypothesis is a changed layer, replayed on the candidate's own history; it explains the candidate if no
contradiction beyond rounding is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from dalif_deploy.equivalence.cause import Explanation, Keyword
from dalif_deploy.equivalence.layer_replay import Layer, LayerRun
from dalif_deploy.nodes import (
    UNKNOWN_RESETS,
    Add,
    Array,
    BatchNorm,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Linear,
    Neuron,
    Node,
    ResetRule,
    ResetTiming,
    Scale,
    Zeros,
    frozen,
)

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "identity": lambda raw: raw,
    "tanh": lambda raw: frozen(np.tanh(raw)),
    "sigmoid": lambda raw: frozen(1.0 / (1.0 + np.exp(-raw))),
}
LATEST = 2
"""Shifts by more timesteps than this are not tried."""


@dataclass(frozen=True)
class Hypothesis:
    """What could be wrong, and the layer as it would then be."""

    name: Keyword
    detail: str
    run: Callable[[], LayerRun]

    @property
    def explanation(self) -> Explanation:
        """Without the means to test it."""
        return Explanation(self.name, self.detail)


def hypotheses(layer: Layer) -> Iterator[Hypothesis]:
    """All of them, the simplest first."""
    yield from _threshold_rule(layer)
    yield from _reset_rule(layer)
    yield from _shifts(layer)
    yield from _branches(layer)
    yield from _biases(layer)
    yield from _flattenings(layer)
    yield from _known_alphas(layer)
    yield from _known_leaks(layer)


def number(value: float) -> str:
    """A number as a person reads it."""
    return f"{value:.6g}"


def of_array(values: Array) -> str:
    """One number, or the range of several."""
    low, high = float(values.min()), float(values.max())
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def trained_alpha(neuron: Neuron) -> Array:
    """Alpha as it was trained, whatever folding did to it."""
    return neuron.alpha if neuron.trained_alpha is None else neuron.trained_alpha


def in_cone(layer: Layer) -> list[Node]:
    """The nodes between the layer and what feeds it, in order, without neurons and inputs."""
    return [
        node for node in layer.graph.nodes if node.name in layer.cone and not isinstance(node, Neuron | Input | Zeros)
    ]


def _threshold_rule(layer: Layer) -> Iterator[Hypothesis]:
    neuron = layer.neuron
    other = replace(neuron, fires_at="gt" if neuron.fires_at == "ge" else "ge")
    signs = {"ge": ">=", "gt": ">"}
    detail = f"fires at V {signs[other.fires_at]} v_th, the model at V {signs[neuron.fires_at]} v_th"
    yield Hypothesis("threshold rule", detail, lambda: layer.run(other))


def _reset_rule(layer: Layer) -> Iterator[Hypothesis]:
    neuron = layer.neuron
    own = _reset(neuron)
    if neuron.reset == "hard" and np.any(neuron.v_reset):
        yield _of_neuron(layer, "reset rule", f"resets to 0, the model {own}", v_reset=frozen(0.0))
    rules = itertools.product(get_args(ResetTiming), get_args(ResetRule))
    for timing, reset in sorted(rules, key=lambda rule: rule[0] != neuron.reset_timing):
        other = replace(neuron, reset=reset, reset_timing=timing)
        if (reset, timing) not in {(neuron.reset, neuron.reset_timing), *UNKNOWN_RESETS}:
            yield Hypothesis("reset rule", f"{_reset(other)}, the model {own}", lambda other=other: layer.run(other))  # type: ignore[misc]


def _reset(neuron: Neuron) -> str:
    """What a neuron does after a spike."""
    if neuron.reset == "none":
        return "never resets"
    rule = "resets by subtracting v_th"
    if neuron.reset == "hard":
        rule = f"resets to {of_array(neuron.potential_scale * neuron.v_reset)}"
    return (
        rule
        + {"now": "", "next": " one timestep later", "carry": ", first for what was left over"}[neuron.reset_timing]
    )


def _of_neuron(layer: Layer, name: Keyword, detail: str, **changes: object) -> Hypothesis:
    changed = replace(layer.neuron, **changes)  # type: ignore[arg-type]
    return Hypothesis(name, detail, lambda: layer.run(changed))


def _shifts(layer: Layer) -> Iterator[Hypothesis]:
    for steps in range(1, min(LATEST, layer.graph.timesteps - 1) + 1):
        for late, word in ((steps, "late"), (-steps, "early")):
            yield Hypothesis(
                "shift in time",
                f"fires {_steps(steps)} {word}",
                lambda late=late: layer.run(late=late),  # type: ignore[misc]
            )
        # Through the neuron's own edge nothing at all comes in before: the same as firing late.
        for node in in_cone(layer):
            for place, edge in enumerate(node.inputs):
                edges = list(node.inputs)
                edges[place] = Edge(edge.source, edge.delay + steps)
                detail = f"what '{node.name}' takes from '{edge.source}' arrives {_steps(steps)} late"
                yield Hypothesis("shift in time", detail, _changed(layer, replace(node, inputs=tuple(edges))))


def _steps(count: int) -> str:
    return f"{count} timestep{'s' if count > 1 else ''}"


def _changed(layer: Layer, *nodes: Node) -> Callable[[], LayerRun]:
    return lambda: layer.with_nodes(*nodes)


def _branches(layer: Layer) -> Iterator[Hypothesis]:
    for node in in_cone(layer):
        if isinstance(node, Add) and len(node.inputs) > 1:
            for place, edge in enumerate(node.inputs):
                rest = replace(node, inputs=node.inputs[:place] + node.inputs[place + 1 :])
                detail = f"'{node.name}' is without its branch from '{edge.source}'"
                yield Hypothesis("missing branch", detail, _changed(layer, rest))


def _biases(layer: Layer) -> Iterator[Hypothesis]:
    found: list[tuple[Node, Array, Node]] = []
    for node in in_cone(layer):
        if isinstance(node, Conv2d | Linear) and node.bias is not None:
            found.append((node, node.bias, replace(node, bias=None)))
        elif isinstance(node, BatchNorm):
            found.append((node, node.bias, replace(node, bias=frozen(np.zeros_like(node.bias)))))
            if np.any(node.mean):
                zero = frozen(np.zeros_like(node.bias))
                found.append((node, node.offset(), replace(node, bias=zero, mean=zero)))
        elif isinstance(node, Scale):
            found.append((node, node.offset, replace(node, offset=frozen(np.zeros_like(node.offset)))))
    found = [entry for entry in found if np.any(entry[1])]
    unit = layer.neuron.potential_scale * layer.neuron.alpha
    for node, bias, without in found:
        size = float(np.abs(bias).max() * np.abs(unit).max())
        detail = f"the bias of '{node.name}', {number(size)} at most in V, is left out"
        yield Hypothesis("missing bias", detail, _changed(layer, without))
    nodes = {entry[0].name: entry[2] for entry in found}
    if len(nodes) > 1:
        detail = f"the biases of {_names(list(nodes))} are left out"
        yield Hypothesis("missing bias", detail, _changed(layer, *nodes.values()))


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


AXES = ("channels", "height", "width")


def _flattenings(layer: Layer) -> Iterator[Hypothesis]:
    for node in in_cone(layer):
        flatten = flattened_before(layer, node)
        if not isinstance(node, Linear) or flatten is None:
            continue
        shape = layer.graph.types[flatten.inputs[0].source].shape
        places = np.arange(node.weight.shape[1]).reshape(shape)
        tried = {places.ravel().tobytes()}
        own = _axes(range(len(shape)))
        for readers in (False, True):
            for axes in itertools.permutations(range(len(shape))):
                order = places.transpose(axes).ravel()
                # The candidate's input k is the model's input order[k], so that it meets the weight of k; or its
                # weights were put into that order, and its inputs were not.
                taken = order if readers else np.argsort(order)
                if taken.tobytes() in tried:
                    continue
                tried.add(taken.tobytes())
                detail = f"'{flatten.name}' runs over {_axes(axes)}, the model's over {own}"
                if readers:
                    detail = (
                        f"the weights of '{node.name}' stand for {_axes(axes)}, and '{flatten.name}' runs over {own}"
                    )
                changed = _changed(layer, replace(node, weight=frozen(node.weight[:, taken])))
                yield Hypothesis("flattened in the wrong order", detail, changed)


def _axes(axes: Sequence[int]) -> str:
    return ", ".join(AXES[axis] if len(axes) == 3 else f"axis {axis}" for axis in axes)


def flattened_before(layer: Layer, node: Node) -> Flatten | None:
    """The flattening whose output a linear layer takes, if that is what it takes."""
    if not isinstance(node, Linear):
        return None
    source = layer.graph[node.inputs[0].source]
    while isinstance(source, Scale):
        source = layer.graph[source.inputs[0].source]
    return source if isinstance(source, Flatten) else None


def _known_alphas(layer: Layer) -> Iterator[Hypothesis]:
    neuron = layer.neuron
    alpha = trained_alpha(neuron)
    if not np.all(alpha):
        return
    others: list[tuple[str, Array]] = [
        ("it is left out", frozen(np.ones_like(alpha))),
        ("it is applied twice", frozen(alpha * alpha)),
        ("the input is multiplied by 1 - beta as well", frozen((1.0 - neuron.beta) * alpha)),
        ("1 - beta stands in its place", frozen((1.0 - neuron.beta) * np.ones_like(alpha))),
        ("beta stands in its place", frozen(neuron.beta * np.ones_like(alpha))),
        ("its sign is lost", frozen(-alpha)),
        *_activated(neuron.raw_alpha, neuron.activation),
    ]
    for why, other in _different(alpha, others):
        detail = f"alpha is {of_array(other)} in place of {of_array(alpha)}: {why}"
        yield _of_neuron(layer, "wrong alpha", detail, alpha=frozen(neuron.alpha * (other / alpha)))


def _known_leaks(layer: Layer) -> Iterator[Hypothesis]:
    neuron = layer.neuron
    beta = neuron.beta
    others: list[tuple[str, Array]] = [
        ("nothing leaks", frozen(np.ones_like(beta))),
        ("nothing is remembered", frozen(np.zeros_like(beta))),
        ("1 - beta stands in its place", frozen(1.0 - beta)),
        ("alpha stands in its place", frozen(trained_alpha(neuron) * np.ones_like(beta))),
        *_activated(neuron.raw_beta, neuron.activation),
    ]
    for why, other in _different(beta, others):
        detail = f"beta is {of_array(other)} in place of {of_array(beta)}: {why}"
        yield _of_neuron(layer, "leak", detail, beta=other)


def _activated(raw: Array | None, activation: str | None) -> Iterator[tuple[str, Array]]:
    """What other activations make of a raw parameter."""
    if raw is None or activation is None:
        return
    for name, apply in ACTIVATIONS.items():
        if name != activation:
            what = "its activation is left out" if name == "identity" else f"{name} in place of {activation}"
            yield what, frozen(apply(raw))


def _different(own: Array, others: Sequence[tuple[str, Array]]) -> Iterator[tuple[str, Array]]:
    seen = [own]
    for why, other in others:
        if not any(np.array_equal(np.broadcast_to(other, np.broadcast_shapes(other.shape, e.shape)), e) for e in seen):
            seen.append(other)
            yield why, other
