"""Any .nir file -> a training graph and what was taken for granted in reading it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dalif_deploy.capturing.nir_in import delays, integrators, maps, neurons, weights
from dalif_deploy.capturing.nir_in.hdf5 import RawGraph, RawNode, read_raw
from dalif_deploy.capturing.nir_in.nesting import JUNCTION, FlatGraph, laid_open
from dalif_deploy.capturing.nir_in.rules import Place, Rules
from dalif_deploy.capturing.nir_in.wiring import delayed_edges, natural
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.hdf5_guard import check_readable
from dalif_deploy.nodes import Add, Edge, Flatten, Input, Node, Readout, ReadoutMode, TensorType, ThresholdRule

_KINDS: Mapping[str, Callable[[Place], list[Node]]] = {
    "Affine": weights.linear,
    "Linear": weights.linear,
    "Conv1d": weights.conv1d,
    "Conv2d": weights.conv2d,
    "Scale": weights.scale,
    "SumPool2d": maps.pool,
    "AvgPool2d": maps.pool,
    "Flatten": maps.flatten,
    JUNCTION: maps.junction,
    "Delay": delays.delay,
    "LI": integrators.li,
    "I": integrators.i,
    "CubaLI": integrators.cuba_li,
    "LIF": neurons.lif,
    "IF": neurons.integrate_and_fire,
    "CubaLIF": neurons.cuba_lif,
    "Threshold": neurons.threshold,
}
STATEFUL = frozenset({"LI", "I", "CubaLI", "LIF", "IF", "CubaLIF"})
"""The kinds that hold a state, so that a cycle through them has a meaning in time."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the user says of a file. None: what the file says, what follows from the data, or a default.

    `dt`: seconds a timestep; `timesteps`: how many; `input_shape` without batch and time; `reset`, `fires_at`,
    `readout`: the rules; `temporal`: False where the input is the same at every step. `data`: the shape of data that
    will be run, [N, T, ...] or [N, ...]. `origin`: where an answer comes from, by its name.
    """

    dt: float | None = None
    timesteps: int | None = None
    input_shape: tuple[int, ...] | None = None
    reset: Literal["hard", "subtract"] | None = None
    fires_at: ThresholdRule | None = None
    readout: ReadoutMode | None = None
    temporal: bool | None = None
    data: tuple[int, ...] | None = None
    origin: Mapping[str, str] = field(default_factory=dict)


def answers_of(**given: Any) -> Answers:
    """`Answers` of plain values. Raises `DalifError` (BAD_OPTION) for a rule that is not known."""
    for key, known in {
        "reset": ("hard", "subtract"), "fires_at": get_args(ThresholdRule), "readout": get_args(ReadoutMode)
    }.items():  # fmt: skip
        if given.get(key) is not None and given[key] not in known:
            option = "--" + key.replace("_", "-")
            raise DalifError(Code.BAD_OPTION, f"{option} {given[key]}: unknown; there are {', '.join(known)}")
    return Answers(**given)


@dataclass(frozen=True, eq=False)
class ForeignNir:
    """A graph, one line for everything that was taken or tolerated, and the answers that read the file again."""

    graph: SpikingGraph
    notes: tuple[str, ...]
    answers: Mapping[str, str]


def read_foreign_nir(path: str | Path, answers: Answers | None = None) -> ForeignNir:
    """The training graph in a .nir file, whoever wrote it; docs/nir.md says what each node computes.

    Nested graphs are laid open ("outer.inner"), several edges into a node are a sum named "<node>.sum", and recurrent
    edges deliver the step before. Parameters are float64.
    Raises `DalifError`, naming the file and the node: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, BAD_GRAPH, NOT_FINITE,
    UNSUPPORTED_LAYER for a kind that is not known, AMBIGUOUS for what has to be said, WRONG_SHAPE, BAD_OPTION.
    """
    try:
        check_readable(Path(path))
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the path") from error
    try:
        raw = read_raw(Path(path))
        return _Reading(raw, laid_open(raw), answers or Answers()).read()
    except DalifError as error:
        raise DalifError(error.code, f"{path}: {error.message}") from error


class _Reading:
    """One file on its way into a graph."""

    def __init__(self, raw: RawGraph, flat: FlatGraph, answers: Answers) -> None:
        self.raw, self.flat, self.answers = raw, flat, answers
        self.rules = Rules(self._dt(), answers.reset or "hard", answers.fires_at or "gt")
        self.input = self._only("Input")
        self.output = self._only("Output")
        self.heard: tuple[str, ...] = ()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.nodes: list[Node] = []
        self.taken: set[str] = set(flat.nodes)

    def read(self) -> ForeignNir:
        shape = self._input_shape()
        temporal = self.answers.temporal is not False
        timesteps, said = self._timesteps(shape)
        self._add([Input(name=self.input.name, shape=shape, temporal=temporal)])
        self._require_known_kinds()
        edges = self._heard_edges()
        delayed = self._delayed(edges)
        sources: dict[str, list[Edge]] = {name: [] for name in self.heard}
        for source, target in edges:
            sources[target].append(Edge(source, 1 if (source, target) in delayed else 0))
        for name in self._in_order(sources):
            self._read_node(self.flat.nodes[name], sources[name])
        graph = SpikingGraph(self.nodes, output=self.output.name, timesteps=timesteps)
        steps = f"{timesteps} timestep{'s' if timesteps > 1 else ''} ({said})"
        return ForeignNir(graph, self._notes(steps, delayed), self._answered())

    def _only(self, kind: str) -> RawNode:
        found = [node for node in self.flat.nodes.values() if node.kind == kind]
        if len(found) != 1:
            names = ", ".join(f"'{node.name}'" for node in found) or "none"
            raise DalifError(Code.BAD_GRAPH, f"a network with one {kind} node can be read; here: {names}")
        return found[0]

    def _stored(self, key: str) -> str | None:
        value = self.raw.metadata.get(key)
        return None if value is None else str(np.asarray(value).reshape(-1)[0]) if np.size(value) == 1 else None

    def _number(self, key: str, given: float | None) -> float | None:
        if given is not None or (stored := self._stored(key)) is None:
            return given
        try:
            return float(stored)
        except ValueError:
            return None

    def _dt(self) -> float | None:
        dt = self._number("dt", self.answers.dt)
        if dt is not None and not (math.isfinite(dt) and dt > 0.0):
            raise DalifError(Code.BAD_OPTION, f"dt = {dt}: a timestep's length in seconds is above 0")
        return dt

    def _input_shape(self) -> tuple[int, ...]:
        given = self.answers.input_shape
        stored = self.input.fields.get("shape", self.input.fields.get("input_type"))
        stated: tuple[int, ...] | None = None
        try:
            stated = None if stored is None else tuple(int(n) for n in np.asarray(stored).reshape(-1))
        except (TypeError, ValueError):
            stated = None
        if not stated or min(stated) < 1:
            if given is None:
                raise self.input.refuse("does not say its shape; give --input-shape, such as 2,34,34", Code.AMBIGUOUS)
            return given
        if given is not None and given != stated:
            raise self.input.refuse(
                f"takes {list(stated)}, and --input-shape says {list(given)}; leave it out", Code.BAD_OPTION
            )
        return stated

    def _timesteps(self, shape: tuple[int, ...]) -> tuple[int, str]:
        given = self.answers.timesteps
        if given is not None:
            return given, self.answers.origin.get("timesteps", "as given")
        data = self.answers.data
        if self.answers.temporal is not False and data is not None and data[2:] == shape:
            return data[1], "as the data have"
        stored = self._number("timesteps", None)
        if stored is not None and stored >= 1 and stored == int(stored):
            return int(stored), "from the file's metadata"
        raise DalifError(
            Code.AMBIGUOUS,
            f"the file does not say how many timesteps to run; give -T/--timesteps, or data [N, T, "
            f"{', '.join(map(str, shape))}]",
        )

    def _require_known_kinds(self) -> None:
        for node in self.flat.nodes.values():
            if node.kind not in _KINDS and node.kind not in ("Input", "Output"):
                raise node.refuse(f"this kind of node is not known; there are {', '.join(sorted(_known()))}",
                                  Code.UNSUPPORTED_LAYER)  # fmt: skip

    def _heard_edges(self) -> list[tuple[str, str]]:
        """The edges between nodes that the output hears; every such node but the input has one at least."""
        sources: dict[str, list[str]] = {name: [] for name in self.flat.nodes}
        for source, target in self.flat.edges:
            sources[target].append(source)
        heard = {self.output.name}
        stack = [self.output.name]
        while stack:
            for source in sources[stack.pop()]:
                if source not in heard:
                    heard.add(source)
                    stack.append(source)
        self.heard = tuple(name for name in self.flat.nodes if name in heard)
        for name in self.heard:
            node = self.flat.nodes[name]
            if node.kind == "Input" and sources[name]:
                raise node.refuse(f"the edge from '{sources[name][0]}' leads into the input")
            if node.kind == "Output" and any(name == source for source, _ in self.flat.edges):
                raise node.refuse("an edge leads out of the output")
            if node.kind != "Input" and not sources[name]:
                raise node.refuse("no edge leads to it, so it has no input")
        if self.input.name not in heard:
            raise self.output.refuse(f"nothing that comes from the input '{self.input.name}' reaches it")
        for name in self.flat.nodes:
            if name not in heard:
                self.rules.say("left out, since the output does not hear it", name)
        return [(a, b) for a, b in self.flat.edges if a in heard and b in heard]

    def _delayed(self, edges: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
        delaying = {
            name
            for name in self.heard
            if self.flat.nodes[name].kind == "Delay"
            and delays.shortest(Place(self.flat.nodes[name], Edge(""), (1,), self.rules)) > 0
        }
        stateful = {name for name in self.heard if self.flat.nodes[name].kind in STATEFUL}
        return delayed_edges(self.heard, edges, start=self.input.name, stateful=stateful, delaying=delaying)

    def _in_order(self, sources: Mapping[str, list[Edge]]) -> list[str]:
        """The nodes after the input, each once the shape that it reads is known: of all its sources, or through a
        cycle of one at least."""
        done = {self.input.name}
        waiting = sorted((name for name in self.heard if name not in done), key=natural)
        ordered: list[str] = []
        while waiting:
            before = len(ordered)
            for name in waiting:
                if all(edge.source in done for edge in sources[name]):
                    ordered.append(name)
                    done.add(name)
            if len(ordered) == before:  # a cycle: it is entered where something is known
                entry = next((n for n in waiting if any(edge.source in done for edge in sources[n])), None)
                if entry is None:
                    names = ", ".join(f"'{name}'" for name in waiting)
                    raise DalifError(Code.BAD_GRAPH, f"nodes that only hear each other, not the input: {names}")
                ordered.append(entry)
                done.add(entry)
            waiting = [name for name in waiting if name not in done]
        return ordered

    def _read_node(self, raw: RawNode, edges: list[Edge]) -> None:
        known = [(edge, self.shapes[edge.source]) for edge in edges if edge.source in self.shapes]
        shape = known[0][1]
        for edge, other in known:
            if other != shape:
                raise raw.refuse(
                    f"hears {list(shape)} from '{known[0][0].source}', but {list(other)} from '{edge.source}'"
                )
        if len(edges) > 1:
            total = self._new_name(f"{raw.name}.sum")
            self._add([Add(name=total, inputs=tuple(edges))], shape)
            edges = [Edge(total)]
        (source,) = edges
        if raw.kind == "Output":
            self._read_output(raw, source, shape)
            return
        if raw.kind == "Flatten":
            raw = self._batch_axis_left_out(raw, shape)
        made = _KINDS[raw.kind](Place(raw, source, shape, self.rules))
        made[:-1], renames = self._renamed(made[:-1])
        made[-1] = _rewired(made[-1], renames)
        self._add(made, shape)

    def _batch_axis_left_out(self, raw: RawNode, shape: tuple[int, ...]) -> RawNode:
        """A Flatten that counts a batch axis, as its readers' weights tell, without it."""
        place = Place(raw, Edge(""), shape, self.rules)
        if place.whole("start_dim", 1, 0)[0] != 1 or place.whole("end_dim", 1, -1)[0] not in (-1, len(shape)):
            return raw
        readers = [self.flat.nodes[target] for source, target in self.flat.edges if source == raw.name]
        total = math.prod(shape)
        if readers and all(
            node.kind in ("Affine", "Linear") and np.shape(node.fields.get("weight", 0.0))[1:] == (total,)
            for node in readers
        ):  # fmt: skip
            self.rules.say("start_dim = 1 taken to count a batch axis, as the weights after it tell", raw.name)
            return RawNode(raw.name, raw.kind, {**raw.fields, "start_dim": 0, "end_dim": -1})
        return raw

    def _read_output(self, raw: RawNode, source: Edge, shape: tuple[int, ...]) -> None:
        stored = raw.fields.get("shape")
        stated = shape if stored is None else tuple(np.asarray(stored).reshape(-1).tolist())
        if stated != shape:
            if math.prod(stated) != math.prod(shape):
                raise raw.refuse(f"says that its shape is {list(stated)}, and hears {list(shape)}")
            self.rules.say(f"its shape {list(stated)} taken for {list(shape)}, which is what it hears", raw.name)
        if len(shape) > 1:
            flat = self._new_name(f"{raw.name}.flat")
            self._add([Flatten(name=flat, inputs=(source,))], shape)
            source = Edge(flat)
        self._add([Readout(name=raw.name, inputs=(source,), mode=self.answers.readout or self._readout())], shape)

    def _readout(self) -> ReadoutMode:
        stored = self._stored("readout")
        return stored if stored in ("mean", "sum", "last", "max") else "sum"  # type: ignore[return-value]

    def _renamed(self, parts: list[Node]) -> tuple[list[Node], dict[str, str]]:
        """The inner parts of a node, under names that no node of the file has."""
        names = {part.name: self._new_name(part.name) for part in parts}
        return [_rewired(part, names) for part in parts], names

    def _new_name(self, wanted: str) -> str:
        name, number = wanted, 2
        while name in self.taken:
            name, number = f"{wanted}{number}", number + 1
        self.taken.add(name)
        return name

    def _add(self, nodes: list[Node], shape: tuple[int, ...] = ()) -> None:
        """`nodes`, of which the last may hear itself and the first reads `shape`."""
        for node in nodes:
            types = [TensorType(self.shapes[edge.source], True) for edge in node.inputs if edge.source in self.shapes]
            inferred = node.infer(types or [TensorType(shape, True)])
            self.shapes[node.name] = inferred.shape
        self.nodes.extend(nodes)

    def _notes(self, timesteps: str, delayed: frozenset[tuple[str, str]]) -> tuple[str, ...]:
        rules, answers, origin = self.rules, self.answers, self.answers.origin
        default = "the NIR text's rules; --reset and --fires-at choose others"
        if answers.reset is not None or answers.fires_at is not None:
            default = origin.get("reset", origin.get("fires_at", "as given"))
        sign = ">" if rules.fires_at == "gt" else ">="
        dt = "no timestep's length needed" if rules.dt is None else f"dt = {rules.dt:g} s"
        if rules.dt is not None:
            dt += f" ({origin.get('dt', 'as given') if answers.dt is not None else 'from the file'})"
        mode = answers.readout or self._readout()
        notes = [
            f"a NIR file of another tool: forward Euler, {dt}, {timesteps}, readout {mode}",
            f"reset {rules.reset}, a neuron fires at V {sign} v_threshold ({default})",
            *rules.notes(),
        ]
        notes += [
            f"recurrence: '{target}' hears '{source}' of the step before"
            for source, target in sorted(delayed, key=lambda edge: (natural(edge[0]), natural(edge[1])))
        ]
        return tuple(notes)

    def _answered(self) -> dict[str, str]:
        found: dict[str, str] = {"nir_reset": self.rules.reset, "nir_fires_at": self.rules.fires_at}
        return found if self.rules.dt is None else {**found, "nir_dt": repr(self.rules.dt)}


def _rewired(node: Node, names: Mapping[str, str]) -> Node:
    inputs = tuple(replace(edge, source=names.get(edge.source, edge.source)) for edge in node.inputs)
    return replace(node, name=names.get(node.name, node.name), inputs=inputs)


def _known() -> set[str]:
    return {kind for kind in _KINDS if kind != JUNCTION} | {"Input", "Output", "NIRGraph"}


__all__ = ["Answers", "ForeignNir", "answers_of", "read_foreign_nir"]
