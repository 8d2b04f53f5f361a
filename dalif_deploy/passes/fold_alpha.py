"""Folds the input gain alpha of every neuron (DA-LIF paper, eq. 9) away, so that V = beta H + X.

The branches into a neuron are what the sum before it adds up; without a sum there is one. Rules:

a. Every branch ends in weights (Conv2d, Linear, Scale) that nothing else reads: alpha goes into them.
b. Otherwise, where alpha > 0, nothing is asked of the branches: the neuron's potential becomes V / alpha,
   with threshold v_th / alpha, reset V_reset / alpha and leak target likewise.
c. Where alpha < 0: as (b) with |alpha|, and the sign goes into the branches: weights that only this neuron
   reads are negated, weights that others read are copied and negated, and anything else is multiplied by
   -1 in a Scale of its own.
d. Where alpha = 0 for the whole layer, the branches are dropped: the neuron is fed zeros. Should other neuron
   layers feed nothing but this one, they would be gone too; then the branches stay, multiplied by 0 as in (a)
   or (c), so that every layer of the trained network can still be compared.

Single channels with alpha = 0 in a layer that keeps the others get a sign of 0 under (c).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import WEIGHTED, Add, Array, Edge, Neuron, Node, Scale, Zeros, frozen
from dalif_deploy.passes.affine import scaled
from dalif_deploy.passes.contract import UNIT_ALPHA, Pass


def _fold(graph: SpikingGraph) -> SpikingGraph:
    for neuron in graph.neurons:
        if np.all(neuron.alpha == 1.0):
            continue
        if not np.any(neuron.alpha):
            graph = _drop_branches(graph, neuron)
        else:
            graph = _into_weights(graph, neuron) or _into_threshold(graph, neuron)
    return graph


def _drop_branches(graph: SpikingGraph, neuron: Neuron) -> SpikingGraph:
    zeros = Zeros(name=_new_name(graph, f"{neuron.name}.zeros"), shape=graph.types[neuron.name].shape)
    changed = replace(_unit(neuron), inputs=(Edge(zeros.name),))
    nodes = [changed if node.name == neuron.name else node for node in graph.nodes]
    dropped = graph.with_nodes([zeros, *nodes], note=[f"{neuron.name}: alpha is 0, its input is dropped"])
    if len(dropped.neurons) < len(graph.neurons):
        return _into_weights(graph, neuron) or _into_threshold(graph, neuron)
    return dropped


def _into_weights(graph: SpikingGraph, neuron: Neuron) -> SpikingGraph | None:
    """Rule (a), or None where it does not apply."""
    changes: dict[str, Node] = {}
    ndim = len(graph.types[neuron.name].shape)
    branches, _ = _branches(graph, neuron)
    for source in branches:
        if len(graph.consumers[source]) != 1:
            return None
        folded = scaled(graph[source], neuron.alpha, frozen(0.0), ndim)
        if folded is None:
            return None
        changes[source] = folded
    changes[neuron.name] = _unit(neuron)
    note = f"{neuron.name}: alpha {_shown(neuron.alpha)} folded into the weights of {', '.join(branches)}"
    return graph.replaced(changes, note=[note])


def _into_threshold(graph: SpikingGraph, neuron: Neuron) -> SpikingGraph:
    """Rules (b) and (c)."""
    size = frozen(np.where(neuron.alpha == 0.0, 1.0, np.abs(neuron.alpha)))
    state = neuron.state
    if any(variable.initial for variable in state):
        if np.ptp(size) != 0.0 or [variable.name for variable in state] != ["membrane"]:
            raise DalifError(
                Code.BAD_GRAPH,
                f"node '{neuron.name}' (Neuron): a state that does not start at 0 cannot be rescaled by channel",
            )
        state = tuple(replace(variable, initial=variable.initial / float(size.flat[0])) for variable in state)
    sign = frozen(np.sign(neuron.alpha))
    note = f"{neuron.name}: alpha {_shown(neuron.alpha)} folded into threshold and reset"
    if not np.all(sign == 1.0):
        graph = _signed_branches(graph, neuron, sign)
        note += ", its sign into the branches"
    changed = replace(
        _unit(neuron),
        inputs=graph[neuron.name].inputs,
        v_threshold=frozen(neuron.v_threshold / size),
        v_reset=frozen(neuron.v_reset / size),
        leak_target=frozen(neuron.leak_target / size),
        state=state,
        potential_scale=frozen(neuron.potential_scale * size),
    )
    return graph.replaced({neuron.name: changed}, note=[note])


def _signed_branches(graph: SpikingGraph, neuron: Neuron, sign: Array) -> SpikingGraph:
    ndim = len(graph.types[neuron.name].shape)
    changes: dict[str, Node] = {}
    added: list[Node] = []

    def signed(edge: Edge) -> Edge:
        node = graph[edge.source]
        folded = scaled(node, sign, frozen(0.0), ndim)
        if folded is not None and len(graph.consumers[edge.source]) == 1:
            changes[edge.source] = folded
            return edge
        name = _new_name(graph, f"{edge.source}.negated.{neuron.name}")
        if all(node.name != name for node in added):
            if folded is not None and isinstance(node, WEIGHTED):
                added.append(replace(folded, name=name))
            else:
                added.append(Scale(name=name, inputs=(Edge(edge.source),), factor=sign, offset=frozen(0.0)))
        return replace(edge, source=name)

    _, sums = _branches(graph, neuron)
    for node in (*sums, neuron):
        edges = tuple(edge if graph[edge.source] in sums else signed(edge) for edge in node.inputs)
        changes[node.name] = replace(node, inputs=edges)
    nodes = [changes.get(node.name, node) for node in graph.nodes]
    return graph.with_nodes([*added, *nodes])


def _branches(graph: SpikingGraph, neuron: Neuron) -> tuple[tuple[str, ...], tuple[Add, ...]]:
    """What is added up before `neuron`, and the sums that do it (only this neuron sees their results)."""
    sums: list[Add] = []
    branches: list[str] = []

    def follow(edges: tuple[Edge, ...]) -> None:
        for edge in edges:
            node = graph[edge.source]
            if isinstance(node, Add) and len(graph.consumers[node.name]) == 1:
                sums.append(node)
                follow(node.inputs)
            else:
                branches.append(node.name)

    follow(neuron.inputs)
    return tuple(branches), tuple(sums)


def _unit(neuron: Neuron) -> Neuron:
    # Set before where the comparison was folded, which may change alpha's sign.
    trained = neuron.alpha if neuron.trained_alpha is None else neuron.trained_alpha
    return replace(neuron, alpha=frozen(1.0), trained_alpha=trained)


def _new_name(graph: SpikingGraph, wanted: str) -> str:
    name, number = wanted, 2
    while name in graph:
        name, number = f"{wanted}{number}", number + 1
    return name


def _shown(alpha: Array) -> str:
    return f"{float(alpha):.4g}" if alpha.size == 1 else f"{alpha.min():.4g} to {alpha.max():.4g}"


fold_alpha = Pass("fold_alpha", _fold, ensures=(UNIT_ALPHA,))
