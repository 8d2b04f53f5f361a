"""SpikingGraph: one time step of a spiking network, as data.

The graph is immutable. Its edges may carry a delay; without them it is acyclic, and `nodes` stand in an
order in which every node comes after what it needs at the same timestep. Everything computed from static
values only is static (the same at every timestep); what comes after the readout has no time either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Self

import numpy as np

from dalif_deploy.encoding import Encoding, InputSpec
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Input, Neuron, Node, Readout, TensorType

CALLED = {"mean": "mean (running_mean)", "variance": "variance (running_var)"}
"""What PyTorch calls a field, where that is another name."""


class SpikingGraph:
    """A spiking network's nodes, how many timesteps it runs, and how its input is encoded.

    `nodes`: in any order, names unique, exactly one Input and one Readout. `output`: the node whose value
    is the network's answer, [batch, K]; the readout or a node after it. `timesteps`: T >= 1. `history`:
    one line for each thing a pass did. Raises `DalifError` (BAD_GRAPH, NOT_FINITE, BAD_OPTION).
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        *,
        output: str,
        timesteps: int,
        encoding: Encoding | None = None,
        class_names: tuple[str, ...] = (),
        history: tuple[str, ...] = (),
    ) -> None:
        if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
            raise DalifError(Code.BAD_OPTION, f"timesteps = {timesteps!r}: give a whole number of at least 1")
        self.timesteps = timesteps
        self.encoding = encoding or Encoding()
        self.class_names = class_names
        self.history = history
        self.output = output
        unordered = tuple(nodes)
        self._by_name: Mapping[str, Node] = {node.name: node for node in unordered}
        _check_names(unordered, self._by_name, output)
        self.nodes: tuple[Node, ...] = _in_order(unordered)
        self.types: Mapping[str, TensorType] = _infer_types(unordered)
        self._check_readout()
        for node in self.nodes:
            for key, array in node.arrays().items():
                if not np.isfinite(array).all():
                    raise DalifError(
                        Code.NOT_FINITE, f"node '{node.name}': {CALLED.get(key, key)} has NaN or infinite values"
                    )

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    @cached_property
    def neurons(self) -> tuple[Neuron, ...]:
        """The neuron layers in topological order."""
        return tuple(node for node in self.nodes if isinstance(node, Neuron))

    @cached_property
    def input(self) -> Input:
        """The one input node."""
        return next(node for node in self.nodes if isinstance(node, Input))

    @cached_property
    def readout(self) -> Readout:
        """The one node that reduces the timesteps."""
        return next(node for node in self.nodes if isinstance(node, Readout))

    @cached_property
    def after_readout(self) -> frozenset[str]:
        """The nodes that are computed once, after the last timestep: the readout and what follows it."""
        after = {self.readout.name}
        for node in self.nodes:
            if any(edge.source in after for edge in node.inputs):
                after.add(node.name)
        return frozenset(after)

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """For every node, the nodes that read it (one entry for each edge)."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for edge in node.inputs:
                found[edge.source].append(node)
        return {name: tuple(readers) for name, readers in found.items()}

    def with_nodes(self, nodes: Iterable[Node], *, output: str | None = None, note: Iterable[str] = ()) -> Self:
        """A copy with other nodes; `note` lines are added to the history. Nodes nobody reads are dropped."""
        return type(self)(
            _reachable(tuple(nodes), output or self.output),
            output=output or self.output,
            timesteps=self.timesteps,
            encoding=self.encoding,
            class_names=self.class_names,
            history=(*self.history, *note),
        )

    def replaced(self, changes: Mapping[str, Node], *, note: Iterable[str] = ()) -> Self:
        """A copy in which the nodes named in `changes` are others of the same name."""
        return self.with_nodes((changes.get(node.name, node) for node in self.nodes), note=note)

    @cached_property
    def input_spec(self) -> InputSpec:
        """What a batch of data must look like, and how it becomes the module's input."""
        return InputSpec(self.input.shape, self.input.temporal, self.timesteps, self.encoding)

    def _check_readout(self) -> None:
        readouts = [node.name for node in self.nodes if isinstance(node, Readout)]
        if len(readouts) != 1:
            raise DalifError(Code.BAD_GRAPH, f"a graph has exactly one readout; here: {readouts or 'none'}")
        for name in self.after_readout:
            node = self[name]
            if isinstance(node, Neuron) or any(edge.delay for edge in node.inputs):
                raise DalifError(Code.BAD_GRAPH, f"node '{name}' stands after the readout, where there is no time")
        if self.output not in self.after_readout:
            raise DalifError(Code.BAD_GRAPH, f"output '{self.output}' stands before the readout")


def rename_inputs(node: Node, renamed: Mapping[str, str]) -> Node:
    """`node` reading from the new names of its sources."""
    edges = tuple(replace(edge, source=renamed.get(edge.source, edge.source)) for edge in node.inputs)
    return node if edges == node.inputs else replace(node, inputs=edges)


def _check_names(nodes: tuple[Node, ...], by_name: Mapping[str, Node], output: str) -> None:
    if len(by_name) != len(nodes):
        names = [node.name for node in nodes]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DalifError(Code.BAD_GRAPH, f"node names must be unique; more than once: {', '.join(twice)}")
    if sum(isinstance(node, Input) for node in nodes) != 1:
        raise DalifError(Code.BAD_GRAPH, "a graph has exactly one input")
    if output not in by_name:
        raise DalifError(Code.BAD_GRAPH, f"output '{output}' is not a node")
    for node in nodes:
        if not node.name or "/" in node.name:
            raise DalifError(Code.BAD_GRAPH, f"node name {node.name!r}: must not be empty or hold '/'")
        count = len(node.inputs)
        if (count < 1) if node.arity is None else (count != node.arity):
            raise node._refuse(f"has {count} inputs, takes {node.arity or 'at least 1'}")
        for edge in node.inputs:
            if edge.source not in by_name:
                raise node._refuse(f"reads '{edge.source}', which is not a node")
            if not isinstance(edge.delay, int) or edge.delay < 0:
                raise node._refuse(
                    f"the edge from '{edge.source}' has a delay of {edge.delay!r}, not 0, 1, 2, ... steps"
                )


def _infer_types(nodes: tuple[Node, ...]) -> dict[str, TensorType]:
    # A worklist rather than the order: through a delayed edge a node may come before its source, and a sum
    # then takes a first guess from the sources that are known.
    types: dict[str, TensorType] = {}
    waiting = list(nodes)
    while waiting:
        ready = [node for node in waiting if all(edge.source in types for edge in node.inputs)]
        if not ready:
            sums = (node for node in waiting if node.arity is None)
            ready = [node for node in sums if any(edge.source in types for edge in node.inputs)][:1]
        if not ready:
            # Not a cycle without a delay: those have no order.
            names = ", ".join(f"'{node.name}'" for node in waiting)
            raise DalifError(Code.BAD_GRAPH, f"nodes that only hear each other, not the input: {names}")
        for node in ready:
            types[node.name] = _inferred(node, [types[e.source] for e in node.inputs if e.source in types])
            waiting.remove(node)
    # Guesses are corrected until nothing changes. A count that hears itself grows without end: it is real.
    for bounded in (True, False):
        for _ in range(len(nodes) + 1):
            found = {node.name: _inferred(node, [types[edge.source] for edge in node.inputs]) for node in nodes}
            if found == types:
                return types
            if not bounded:
                growing = {name for name, type_ in found.items() if type_.maximum != types[name].maximum}
                found = {n: replace(t, kind="real", maximum=None) if n in growing else t for n, t in found.items()}
            types = found
    raise DalifError(Code.FAULT, "the types of the graph's tensors do not settle")


def _inferred(node: Node, inputs: Sequence[TensorType]) -> TensorType:
    return _delayed(node, node.infer(inputs))


def _delayed(node: Node, inferred: TensorType) -> TensorType:
    if inferred.temporal or not any(edge.delay for edge in node.inputs):
        return inferred
    return replace(inferred, temporal=True)


def _in_order(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    done: set[str] = set()
    ordered: list[Node] = []
    waiting = list(nodes)
    while waiting:
        ready = [n for n in waiting if all(edge.delay or edge.source in done for edge in n.inputs)]
        if not ready:
            names = ", ".join(f"'{node.name}'" for node in waiting)
            raise DalifError(Code.BAD_GRAPH, f"nodes in a cycle without a delay: {names}")
        first = ready[0]
        ordered.append(first)
        done.add(first.name)
        waiting.remove(first)
    return tuple(ordered)


def _reachable(nodes: tuple[Node, ...], output: str) -> tuple[Node, ...]:
    by_name = {node.name: node for node in nodes}
    seen: set[str] = {node.name for node in nodes if isinstance(node, Input)}
    stack = [output]
    while stack:
        name = stack.pop()
        if name not in seen and name in by_name:
            seen.add(name)
            stack.extend(edge.source for edge in by_name[name].inputs)
    return tuple(node for node in nodes if node.name in seen)
