"""Reads a .nir file, in whatever dialect it was written, back into a folded graph, V[t] = beta H[t-1] + X[t].

The inverse of `exporters/nir.py`. The file holds tau and, say, (1 - beta) times the thresholds; dividing back
may miss the last bit, and the shape that a parameter had (one a layer, one a channel) is gone. The metadata
holds both. A value from there is taken only where it gives, bit for bit, the array that the file holds;
otherwise the array counts, so that a changed file is read as what it has become.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np

from dalif_deploy.capturing.nir_stand_ins import ANY, ZEROS, adds_up, is_one, map_of, pool_of
from dalif_deploy.dialects import CANONICAL, DIALECTS, DT, Dialect
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import FileMetadata, LayerMetadata, class_names_of
from dalif_deploy.nir_io import open_nir
from dalif_deploy.nir_neurons import beta_of, leak_of, resistance_of, scale_of, tau_of, threshold_of, v_threshold_of
from dalif_deploy.nodes import (
    Add,
    Array,
    AvgPool2d,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Pair,
    Readout,
    Scale,
    SumPool2d,
    Zeros,
    frozen,
)


def read_nir(path: str | Path) -> SpikingGraph:
    """The folded graph in a .nir file that dalif-export wrote; parameters float64, alpha = 1.

    Several edges into a node become an Add named "<node>.sum", in the order of the file's edges; a node that adds up
    alone, for which NIR has an identity, becomes an Add itself. Raises
    `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE as `open_nir` does, UNSUPPORTED_LAYER for a node
    kind that the canonical form does not have, and NOT_FINITE.
    """
    return graph_of(path, *open_nir(path))


def graph_of(path: str | Path, file: nir.NIRGraph, metadata: FileMetadata) -> SpikingGraph:
    """`read_nir` of a file that is open: what `open_nir` gave of it. `path`: for errors."""
    reading = _Reading(str(path), file, metadata)
    nodes = reading.nodes()
    try:
        graph = SpikingGraph(
            nodes,
            output=reading.output,
            timesteps=metadata.input.timesteps,
            encoding=metadata.input.encoding,
            class_names=metadata.class_names,
            history=metadata.fold_log,
        )
        class_names_of(graph.class_names, math.prod(graph.types[graph.output].shape))
    except DalifError as error:
        code = Code.NOT_FINITE if error.code is Code.NOT_FINITE else Code.FILE_DAMAGED
        raise DalifError(code, f"{path}: {error.message}; export it again") from error
    return graph


class _Reading:
    """One file on its way into a graph."""

    def __init__(self, path: str, file: nir.NIRGraph, metadata: FileMetadata) -> None:
        self.path = path
        self.file = file
        self.metadata = metadata
        self.exact = metadata.precision != "float32"
        self.layers = {layer.name: layer for layer in metadata.layers}
        self.output = next(name for name, node in file.nodes.items() if isinstance(node, nir.Output))
        self.dialect = self._dialect()
        self.dt = self._dt()
        self.sources: dict[str, list[str]] = {name: [] for name in file.nodes}
        for source, target in file.edges:
            self.sources[target].append(source)

    def nodes(self) -> list[Node]:
        """The graph's nodes. HDF5 sorts names; the order of the edges is the one that was written."""
        order = dict.fromkeys(target for _, target in self.file.edges)
        counts = {source for name in self.file.nodes if self._is_gate(name) for source in self.sources[name]}
        ones = {name for name, node in self.file.nodes.items() if is_one(name, node)}
        found: list[Node] = []
        for name in [*(name for name in self.file.nodes if name not in order), *order]:
            if name in counts:  # part of a maximum, which is read with its neuron
                continue
            sources = self.sources[self._count(name) if self._is_gate(name) else name]
            inputs = tuple(Edge(source) for source in sources)
            if name in ones:  # part of a map, which is read with its convolution
                continue
            if len(sources) == 1 and sources[0] in ones:
                found += self._map(name)
                continue
            if adds_up(name, self.file.nodes[name], len(sources), exact=self.exact):
                found.append(Add(name=name, inputs=inputs))
                continue
            if len(sources) > 1:
                total = f"{name}.sum"
                while total in self.file.nodes:
                    total += "_"
                found.append(Add(name=total, inputs=inputs))
                inputs = (Edge(total),)
            found.append(self._node(name, self.file.nodes[name], inputs))
        return found

    def _map(self, name: str) -> list[Node]:
        """A convolution of a single 1 as what it stands for: a map that is there at every timestep."""
        values = map_of(self.file.nodes[name], self._shape(name))
        if values is None:
            raise self._damaged(f"node '{name}' reads a single 1, and is no map")
        zeros = Zeros(name=f"{name}.zeros", shape=values.shape)
        return [zeros, Scale(name=name, inputs=(Edge(zeros.name),), factor=frozen(0.0), offset=values)]

    def _pool(self, name: str, node: nir.Conv2d, inputs: tuple[Edge, ...]) -> SumPool2d | None:
        """In a file of exact sums, the pool of whole numbers that a convolution with ones is."""
        if not self.exact or not self.sources[name]:
            return None
        before, shape = self._shape(self.sources[name][0]), self._shape(name)
        return pool_of(SumPool2d, name, inputs[0], node, before, shape)

    def _is_zero(self, name: str, node: nir.NIRNode) -> bool:
        """In a file of exact sums, whether a layer stands for the zeros that another reads as whole numbers."""
        zero = not np.any(node.weight) and not np.any(getattr(node, "bias", 0.0))
        return self.exact and bool(ZEROS.search(name)) and zero

    def _is_gate(self, name: str) -> bool:
        """Whether a neuron is no layer of the network, but says whether any spike of a window is there."""
        return isinstance(self.file.nodes[name], nir.LIF | nir.IF) and name not in self.layers

    def _count(self, gate: str) -> str:
        """The node that sums up a window for `gate`."""
        sources = self.sources[gate]
        if len(sources) != 1 or sum(sources[0] == source for source, _ in self.file.edges) != 1:
            raise self._damaged(f"node '{gate}' is a neuron that its metadata does not know")
        return sources[0]

    def _maximum(self, name: str, gate: nir.LIF | nir.IF, inputs: tuple[Edge, ...]) -> Node:
        count = self._count(name)
        shape = tuple(int(n) for n in np.shape(gate.v_threshold))
        half = threshold_of(np.full(shape, ANY), np.ones(shape), "ge", self.dialect)
        fires_at_any = np.array_equal(np.asarray(gate.v_threshold, dtype=np.float64), half) and not np.any(gate.v_reset)
        leaks = isinstance(gate, nir.LIF) and np.any(beta_of(gate.tau, self.dt) != 1.0)
        before = tuple(int(n) for n in self._shape(self.sources[count][0])) if self.sources[count] else ()
        pool = None
        if fires_at_any and not leaks and len(before) == len(shape) == 3 and len(inputs) == 1:
            pool = pool_of(MaxPool2d, name, inputs[0], self.file.nodes[count], before, shape)
        if pool is None:
            raise self._damaged(f"node '{name}' is a neuron that its metadata does not know")
        return pool

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of what a node gives, as nir inferred it."""
        found = self.file.nodes[name].output_type or {}
        return tuple(np.asarray(found.get("output", ())).reshape(-1).tolist())

    def _dt(self) -> float:
        try:
            dt = float(self.metadata.extra["dt"])
        except (KeyError, ValueError) as error:
            raise self._damaged("its metadata does not say how long a timestep is (dt)") from error
        if not (math.isfinite(dt) and dt > 0.0):
            raise self._damaged(f"its metadata says dt = {dt}, which is no length of time")
        if self.dialect is not CANONICAL and dt != DT:
            raise self._damaged(f"its metadata says dt = {dt}, and the dialect {self.dialect.name} has {DT}")
        return dt

    def _dialect(self) -> Dialect:
        name = self.metadata.extra.get("dialect", "")
        if name not in DIALECTS:
            raise self._damaged(f"its metadata says the dialect is {name!r}; there are {', '.join(DIALECTS)}")
        return DIALECTS[name]

    def _node(self, name: str, node: nir.NIRNode, inputs: tuple[Edge, ...]) -> Node:
        match node:
            case nir.Input():
                spec = self.metadata.input
                return Input(name=name, shape=spec.shape, temporal=spec.temporal, kind=self.metadata.input_kind)
            case nir.Output():
                return Readout(name=name, inputs=inputs, mode=self.metadata.readout)
            case nir.Conv2d() | nir.Affine() | nir.Linear() if self._is_zero(name, node):
                return Zeros(name=name, shape=self._shape(name))
            case nir.Affine():
                return Linear(name=name, inputs=inputs, weight=frozen(node.weight), bias=frozen(node.bias))
            case nir.Linear():
                return Linear(name=name, inputs=inputs, weight=frozen(node.weight))
            case nir.Conv2d() if (pool := self._pool(name, node, inputs)) is not None:
                return pool
            case nir.Conv2d():
                return Conv2d(
                    name=name, inputs=inputs, weight=frozen(node.weight), bias=frozen(node.bias),
                    stride=self._pair(name, node.stride), padding=self._pair(name, node.padding),
                    dilation=self._pair(name, node.dilation), groups=int(node.groups),
                )  # fmt: skip
            case nir.SumPool2d() | nir.AvgPool2d():
                kind = SumPool2d if isinstance(node, nir.SumPool2d) else AvgPool2d
                return kind(
                    name=name, inputs=inputs, kernel=self._pair(name, node.kernel_size),
                    stride=self._pair(name, node.stride), padding=self._pair(name, node.padding),
                )  # fmt: skip
            case nir.Flatten():
                rank = len(node.input_type["input"])
                if int(node.start_dim) not in (0, -rank) or int(node.end_dim) not in (-1, rank - 1):
                    raise self._damaged(f"node '{name}' (Flatten) does not flatten all axes")
                return Flatten(name=name, inputs=inputs)
            case nir.LIF() | nir.IF():
                if self._is_gate(name):
                    return self._maximum(name, node, inputs)
                return self._neuron(node, self.layers[name], inputs)
            case _:
                raise DalifError(
                    Code.UNSUPPORTED_LAYER,
                    f"{self.path}: node '{name}' ({type(node).__name__}): the canonical form has no such node",
                )

    def _neuron(self, node: nir.LIF | nir.IF, layer: LayerMetadata, inputs: tuple[Edge, ...]) -> Neuron:
        dialect = self.dialect
        if isinstance(node, nir.IF):
            r: Array = np.asarray(1.0 / self.dt)
            claimed = self._claimed(layer, "beta")
            beta = frozen(np.ones(claimed.shape if np.all(claimed == 1.0) else ()))
        else:
            tau = np.asarray(node.tau, dtype=np.float64)
            if np.any(tau <= 0.0):
                raise self._damaged(f"node '{layer.name}' (LIF) has a tau of {tau.min():g}, which is no length of time")
            if np.any(node.v_leak):
                raise self._damaged(f"node '{layer.name}' (LIF) has a v_leak that is not 0, which no dialect has")
            beta = self._recovered(
                layer, "beta", tau, lambda b: tau_of(b, dialect, self.dt), lambda t: leak_of(t, dialect, self.dt)
            )
            r = resistance_of(tau, dialect, self.dt)
        if np.any(np.asarray(node.r) != r):
            raise self._damaged(f"node '{layer.name}' has another r than the dialect {dialect.name} gives it")
        leaks = np.broadcast_to(beta, layer.shape)
        if isinstance(node, nir.LIF) and np.all(leaks == 1.0) and dialect.potential == "scaled":
            raise self._damaged(f"node '{layer.name}' (LIF) does not leak, and so is no LIF")
        rule = layer.fires_at
        threshold = self._recovered(
            layer, "v_threshold", np.asarray(node.v_threshold),
            lambda v: threshold_of(np.broadcast_to(v, layer.shape), leaks, rule, dialect),
            lambda v: v_threshold_of(v, leaks, rule, dialect),
        )  # fmt: skip
        scale = scale_of(leaks, dialect)
        reset = self._recovered(layer, "v_reset", np.asarray(node.v_reset), lambda v: scale * v, lambda v: v / scale)
        return Neuron(
            name=layer.name, inputs=inputs, alpha=frozen(1.0), beta=beta, v_threshold=threshold, v_reset=reset,
            reset=layer.reset, reset_timing=layer.reset_timing, fires_at=layer.fires_at,
            potential_scale=self._claimed(layer, "potential_scale"),
            trained_alpha=self._claimed(layer, "alpha"),
        )  # fmt: skip

    def _recovered(
        self, layer: LayerMetadata, key: str, stored: Array, stores: Callable[[Array], Array],
        recovers: Callable[[Array], Array],
    ) -> Array:  # fmt: skip
        """The metadata's value where the file stores just that, else what the stored array says."""
        claimed = self._claimed(layer, key)
        with np.errstate(divide="ignore"):
            if np.array_equal(np.broadcast_to(stores(claimed), stored.shape), stored):
                return claimed
            near = recovers(stored.astype(np.float64))
            # Most parameters were trained in float32: take the float32 number where the file stores just that.
            single = near.astype(np.float32).astype(np.float64)
            return frozen(np.where(stores(single) == stored, single, near))

    def _claimed(self, layer: LayerMetadata, key: str) -> Array:
        try:
            value = frozen(getattr(layer, key))
            np.broadcast_to(value, layer.shape)
        except (TypeError, ValueError) as error:
            raise self._damaged(f"its metadata has a {key} of layer '{layer.name}' that cannot be read") from error
        return value

    def _pair(self, name: str, values: Any) -> Pair:
        try:
            numbers = np.broadcast_to(np.asarray(values, dtype=np.int64), (2,))
        except (TypeError, ValueError) as error:
            raise self._damaged(f"node '{name}' has {values!r} where two whole numbers should be") from error
        return int(numbers[0]), int(numbers[1])

    def _damaged(self, what: str) -> DalifError:
        return DalifError(Code.FILE_DAMAGED, f"{self.path}: {what}; export it again")
