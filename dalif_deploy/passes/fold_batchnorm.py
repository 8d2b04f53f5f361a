"""Folds every BatchNorm, and every per-channel Scale, into the layer that produces its input.

Rules, tried in this order for each BatchNorm or Scale `n` reading `p`:

1. `p` is a Conv2d, Linear or Scale that only `n` reads: gain and offset go into `p`'s weights and bias, and
   `n` is gone.
2. `p` is a Conv2d or Linear that others read too: `n` becomes a copy of `p` with gain and offset in it, and
   `p` stays for the others. (Only for a BatchNorm: a Scale is cheaper than a second convolution.)
3. Otherwise there are no weights to hold it: a BatchNorm becomes a Scale, gain * x + offset, which stands
   where the BatchNorm stood. So a BatchNorm before zero padding keeps its meaning: the padding stays zero.

An edge with a delay delivers zeros before it delivers `p`, and gain * 0 + offset is not 0: rule 3.
"""

from __future__ import annotations

from dataclasses import replace

from dalif_deploy.graph import SpikingGraph, rename_inputs
from dalif_deploy.nodes import Array, BatchNorm, Conv2d, Linear, Node, Scale, frozen
from dalif_deploy.passes.affine import scaled
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
        elif isinstance(original, BatchNorm) and folded is not None and isinstance(folded, Conv2d | Linear):
            nodes[name] = replace(folded, name=name)
            notes.append(f"{name}: {kind} folded into a copy of {source}, which others read too")
        elif isinstance(original, BatchNorm):
            nodes[name] = Scale(name=name, inputs=original.inputs, factor=factor, offset=offset)
            notes.append(f"{name}: {kind} kept as a scale, since no weights before it can hold it")
    output = renamed.get(graph.output, graph.output)
    return graph.with_nodes((rename_inputs(node, renamed) for node in nodes.values()), output=output, note=notes)


def _affine(node: BatchNorm | Scale, ndim: int) -> tuple[Array, Array]:
    if isinstance(node, Scale):
        return node.factor, node.offset
    spread = (-1,) + (1,) * (ndim - 1)
    return frozen(node.gain().reshape(spread)), frozen(node.offset().reshape(spread))


def _parameters(node: Node) -> str:
    return "factor" if isinstance(node, Scale) else "weights"


fold_batchnorm = Pass("fold_batchnorm", _fold, ensures=(NO_BATCH_NORM,))
