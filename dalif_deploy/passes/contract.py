"""What a pass is, and the properties of graphs that passes require and ensure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import BatchNorm


@dataclass(frozen=True)
class Property:
    """Something that holds for a graph or not. `violation` names the first node against it, or is None."""

    description: str
    violation: Callable[[SpikingGraph], str | None]


@dataclass(frozen=True)
class Pass:
    """A transformation of graphs that keeps every spike, in exact arithmetic."""

    name: str
    transform: Callable[[SpikingGraph], SpikingGraph]
    requires: tuple[Property, ...] = ()
    ensures: tuple[Property, ...] = ()

    def __call__(self, graph: SpikingGraph) -> SpikingGraph:
        """The transformed graph. Raises `DalifError`: BAD_GRAPH where a requirement does not hold, FAULT
        where the pass breaks its promise."""
        for prop in self.requires:
            if (node := prop.violation(graph)) is not None:
                raise DalifError(
                    Code.BAD_GRAPH, f"node '{node}': the pass {self.name} requires that {prop.description}"
                )
        result = self.transform(graph)
        for prop in self.ensures:
            if (node := prop.violation(result)) is not None:
                raise DalifError(
                    Code.FAULT, f"node '{node}': after the pass {self.name}, {prop.description} should hold"
                )
        return result


def _first_batch_norm(graph: SpikingGraph) -> str | None:
    return next((node.name for node in graph.nodes if isinstance(node, BatchNorm)), None)


def _first_alpha(graph: SpikingGraph) -> str | None:
    return next((neuron.name for neuron in graph.neurons if not np.all(neuron.alpha == 1.0)), None)


def _first_normalised(graph: SpikingGraph) -> str | None:
    return next((neuron.name for neuron in graph.neurons if neuron.normalised), None)


NO_BATCH_NORM = Property("no BatchNorm is left", _first_batch_norm)
OWN_COMPARISON = Property("every neuron compares its potential itself", _first_normalised)
UNIT_ALPHA = Property("every neuron has alpha = 1", _first_alpha)
