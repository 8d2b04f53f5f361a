"""Whether a layer's channels stand in another order, those that it makes or those that it takes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.equivalence.cause import Explanation
from dalif_deploy.equivalence.hypotheses import flattened_before, in_cone
from dalif_deploy.equivalence.layer_replay import Layer, LayerRun
from dalif_deploy.equivalence.replay import Tracked
from dalif_deploy.nodes import Array, Conv2d, Linear, frozen
from dalif_deploy.operators import Values, pad, windows

Order = NDArray[np.intp]
"""For every channel of the candidate, the model's channel that stands there."""

ALL_UP_TO = 4
"""Of so few channels every order is tried."""

SHOWN = 8

PARAMETERS = ("alpha", "beta", "v_threshold", "v_reset", "leak_target", "potential_scale")


def permuted(layer: Layer) -> Iterator[Explanation]:
    """The orders of channels that explain everything, first of the layer itself, then of what its weights take.

    An order has as much freedom as it moves channels; it is no explanation of fewer contradictions than that.
    """
    count = layer.run().contradictions
    for what, order in _made(layer):
        if _moved(order) <= count:
            yield Explanation("permuted channels", f"{what} in the order {_shown(order)}")
    for node in in_cone(layer):
        if isinstance(node, Conv2d | Linear) and (not isinstance(node, Conv2d) or node.groups == 1):
            taken = _Taken(layer, node).found()
            if taken is not None and _moved(taken) <= count:
                detail = f"the channels that '{node.name}' takes stand in the order {_shown(taken)}"
                yield Explanation("permuted channels", detail)


def _moved(order: Order) -> int:
    return int(np.count_nonzero(order != np.arange(len(order))))


def _shown(order: Order) -> str:
    """The order, or of a long one what was moved to where."""
    if len(order) <= SHOWN:
        return f"[{', '.join(map(str, order.tolist()))}]"
    places = np.flatnonzero(order != np.arange(len(order)))
    moves = ", ".join(f"{order[place]} at {place}" for place in places[:SHOWN])
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return f"of the model but {moves}{more}"


# ---- what the layer makes


def _made(layer: Layer) -> Iterator[tuple[str, Order]]:
    """What stands in another order, and in which: the layer with its parameters, or what one node makes for it."""
    shape = layer.recorded.shape[2:]
    own = {key: getattr(layer.neuron, key) for key in PARAMETERS if getattr(layer.neuron, key).size > 1}

    def whole(order: Order) -> LayerRun:
        parameters = {key: frozen(np.broadcast_to(values, shape)[order]) for key, values in own.items()}
        neuron = replace(layer.neuron, **parameters) if parameters else layer.neuron  # type: ignore[arg-type]
        return layer.run(neuron, [_in_order(current, order) for current in layer.own_currents])

    yield from _matched("the layer's channels stand", layer, whole)
    for node in in_cone(layer):
        single = layer.neuron.inputs[0].source == node.name and not own
        if isinstance(node, Conv2d | Linear) and len(node.weight) == shape[0] and not single:

            def of_node(order: Order, node: Conv2d | Linear = node) -> LayerRun:
                bias = None if node.bias is None else frozen(node.bias[order])
                return layer.with_nodes(replace(node, weight=frozen(node.weight[order]), bias=bias))

            yield from _matched(f"the channels that '{node.name}' makes stand", layer, of_node)


def _in_order(current: Tracked, order: Order) -> Tracked:
    error = None if current.error is None else current.error[:, order]
    return replace(current, value=current.value[:, order], error=error)


def _matched(what: str, layer: Layer, run: Callable[[Order], LayerRun]) -> Iterator[tuple[str, Order]]:
    """For every channel of the candidate, a channel of the model that would have fired as it did; then one of the
    model for each of the candidate. `run`: the layer with its channels in an order."""
    channels = layer.recorded.shape[2]
    fits = np.zeros((channels, channels), np.bool_)
    for shift in range(channels):
        order = (np.arange(channels) + shift) % channels
        wrong = run(order).wrong
        axes = tuple(axis for axis in range(wrong.ndim) if axis != 2)
        fits[np.arange(channels), order] = ~wrong.any(axis=axes)
    found = _matching(fits)
    if found is not None and _moved(found) and run(found).contradictions == 0:
        yield what, found


def _matching(fits: NDArray[np.bool_]) -> Order | None:
    """One column for each row, each of them true in `fits`, as few moved as augmenting paths from the identity move;
    None where there is no such."""
    count = len(fits)
    row_of = np.where(fits.diagonal(), np.arange(count), -1)

    def place(row: int, seen: set[int]) -> bool:
        for column in np.flatnonzero(fits[row]).tolist():
            if column not in seen:
                seen.add(column)
                if row_of[column] < 0 or place(int(row_of[column]), seen):
                    row_of[column] = row
                    return True
        return False

    for row in np.flatnonzero(~fits.diagonal()).tolist():
        if not place(row, set()):
            return None
    order = np.empty(count, np.intp)
    order[row_of] = np.arange(count)
    return order


# ---- what its weights take


@dataclass
class _Taken:
    """The search for the order of the channels that `node` takes."""

    layer: Layer
    node: Conv2d | Linear

    def __post_init__(self) -> None:
        flatten = flattened_before(self.layer, self.node)
        into = self.node.weight.shape[1]
        self.channels = into if flatten is None else self.layer.graph.types[flatten.inputs[0].source].shape[0]
        self.weight = self.node.weight.reshape(len(self.node.weight), self.channels, -1)

    def found(self) -> Order | None:
        """An order under which no contradiction is left, or None where none was found."""
        if self.channels < 2:
            return None
        same = np.arange(self.channels)
        if self.channels <= ALL_UP_TO:
            return self._first(np.array(order) for order in itertools.permutations(range(self.channels)))
        usual = self._first(iter((same[::-1], np.roll(same, 1), np.roll(same, -1))))
        return usual if usual is not None else self._swapped()

    def _first(self, orders: Iterator[Order]) -> Order | None:
        return next((order for order in orders if _moved(order) and not self._run(order).contradictions), None)

    def _run(self, order: Order) -> LayerRun:
        weight = frozen(self.weight[:, order].reshape(self.node.weight.shape))
        return self.layer.with_nodes(replace(self.node, weight=weight))

    def _swapped(self) -> Order | None:
        """Swap two channels at a time, those whose swap helps most by the gradient of V at the contradictions; every
        swap is replayed, and kept where fewer contradictions are left."""
        order: Order = np.arange(self.channels)
        here = self._run(order)
        if self.layer.recorded.shape[2] != len(self.weight):
            return None
        for _ in range(2 * self.channels):
            gain = self._gain(here, order)
            better = None
            for place in np.argsort(-gain, axis=None)[:6].tolist():
                a, b = (int(i) for i in np.unravel_index(place, gain.shape))
                if gain[a, b] <= 0.0:
                    break
                tried = order.copy()
                tried[[a, b]] = order[[b, a]]
                run = self._run(tried)
                if run.contradictions < here.contradictions:
                    better = (run, tried)
                    break
            if better is None:
                return None
            here, order = better
            if here.contradictions == 0:
                return order
        return None

    def _gain(self, here: LayerRun, order: Order) -> Array:
        """By two channels, how much a swap of their weights moves V towards the candidate's spikes, to first order."""
        wanted = np.where(here.wrong, np.where(here.spikes, 1.0, -1.0), 0.0)
        x = self.layer.inputs[self.node.inputs[0].source]
        x = np.broadcast_to(x, (*wanted.shape[:2], *x.shape[2:]))
        # sum over samples, steps and places of what is wanted of an output times each input of it
        pull = _pulled(self.node, wanted.reshape(-1, *wanted.shape[2:]), x.reshape(-1, *x.shape[2:]))
        pull = pull.reshape(self.weight.shape)
        score = np.einsum("oak,obk->ab", pull, self.weight[:, order])  # of the weights of b on the input a
        own = score.diagonal()
        return np.asarray(np.triu(score + score.T - own[:, None] - own[None, :], 1))


def _pulled(node: Conv2d | Linear, wanted: Values, x: Values) -> Values:
    """The gradient of sum(wanted * node(x)) by the weights, of their shape."""
    if isinstance(node, Linear):
        return np.asarray(wanted.T @ x)
    kernel = (node.weight.shape[2], node.weight.shape[3])
    patches = windows(pad(x, [(p, p) for p in node.padding]), kernel, node.stride, node.dilation)
    return np.asarray(np.tensordot(wanted, patches, axes=((0, 2, 3), (0, 2, 3))))
