"""Folds every BatchNorm, and every per-channel Scale, into the layer that produces its input.

Rules, tried in this order for each BatchNorm or Scale `n` reading `p`:

1. `p` is a Conv2d, Linear or Scale that only `n` reads: gain and offset go into `p`'s weights and bias, and
   `n` is gone.
2. `p` is a Conv2d or Linear that others read too: `n` becomes a copy of `p` with gain and offset in it, and
   `p` stays for the others. (Only for a BatchNorm: a Scale is cheaper than a second convolution.)
3. `p` is an Add or Concat that only `n` reads: the gain goes into every branch, into weights that nothing else
   reads or a Scale, and `n` is gone. g (a + b) + o = (g a + o) + g b; of a concatenation every branch gets its own
   channels of g and o. (Only where some branch has a convolution or linear layer of its own; and not across a
   delayed edge where there is an offset.)
4. Otherwise there are no weights to hold it: a BatchNorm becomes a Scale, gain * x + offset, which stands
   where the BatchNorm stood. So a BatchNorm before zero padding keeps its meaning: the padding stays zero.

An edge with a delay delivers zeros before it delivers `p`, and gain * 0 + offset is not 0: rule 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dalif_deploy.graph import SpikingGraph, rename_inputs
from dalif_deploy.nodes import Add, Array, BatchNorm, Concat, Conv2d, Edge, Linear, Node, Scale, frozen
from dalif_deploy.passes.affine import scaled
from dalif_deploy.passes.branches import Carried, carry_back
from dalif_deploy.passes.contract import NO_BATCH_NORM, Pass


def _fold(graph: SpikingGraph) -> SpikingGraph:
    nodes: dict[str, Node] = {node.name: node for node in graph.nodes}
    renamed: dict[str, str] = {}
    notes: list[str] = []
    for original in graph.nodes:
        if not isinstance(original, BatchNorm | Scale):
            continue
        kind = type(original).__name__
        name = original.name
        (edge,) = original.inputs
        source = renamed.get(edge.source, edge.source)
        producer = nodes[source]
        ndim = len(graph.types[name].shape)
        factor, offset = _affine(original, ndim)
        folded = None if edge.delay else scaled(producer, factor, offset, ndim)
        if folded is not None and len(graph.consumers[edge.source]) == 1 and edge.source != graph.output:
            nodes[source] = folded
            del nodes[name]
            renamed[name] = source
            notes.append(f"{name}: {kind} folded into the {_parameters(producer)} of {source}")
        elif (carried := _carried(graph, nodes, renamed, edge, factor, offset)) is not None:
            del nodes[name]
            nodes = _before(source, {**nodes, **carried.changes}, carried.added)
            renamed[name] = source
            notes.append(f"{name}: {kind} folded through {source} into {', '.join(carried.into)}")
        elif isinstance(original, BatchNorm) and folded is not None and isinstance(folded, Conv2d | Linear):
            nodes[name] = replace(folded, name=name)
            notes.append(f"{name}: {kind} folded into a copy of {source}, which others read too")
        elif isinstance(original, BatchNorm):
            nodes[name] = Scale(name=name, inputs=original.inputs, factor=factor, offset=offset)
            notes.append(f"{name}: {kind} kept as a scale, since no weights before it can hold it")
    output = renamed.get(graph.output, graph.output)
    return graph.with_nodes((rename_inputs(node, renamed) for node in nodes.values()), output=output, note=notes)


def _before(name: str, nodes: dict[str, Node], added: Sequence[Node]) -> dict[str, Node]:
    """`nodes` with others in front of one, so that the layers keep their order."""
    found: dict[str, Node] = {}
    for key, node in nodes.items():
        if key == name:
            found.update({new.name: new for new in added})
        found[key] = node
    return found


def _carried(
    graph: SpikingGraph, nodes: dict[str, Node], renamed: dict[str, str], edge: Edge, factor: Array, offset: Array
) -> Carried | None:
    """Rule 3, or None where it does not apply."""
    source = renamed.get(edge.source, edge.source)
    if not isinstance(nodes[source], Add | Concat) or edge.delay or edge.source == graph.output:
        return None
    current = {name: rename_inputs(node, renamed) for name, node in nodes.items()}
    return carry_back(graph, current, source, factor, offset)


def _affine(node: BatchNorm | Scale, ndim: int) -> tuple[Array, Array]:
    if isinstance(node, Scale):
        return node.factor, node.offset
    spread = (-1,) + (1,) * (ndim - 1)
    return frozen(node.gain().reshape(spread)), frozen(node.offset().reshape(spread))


def _parameters(node: Node) -> str:
    return "factor" if isinstance(node, Scale) else "weights"


fold_batchnorm = Pass("fold_batchnorm", _fold, ensures=(NO_BATCH_NORM,))
