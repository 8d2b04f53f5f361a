"""The sums of an exact ONNX graph: written in digits, added up in digits, and put together where they are read.

A neuron's input is rounded once, when all of its branches are in it. So convolutions and additions keep their
digits apart, and identity branches wait as terms, until a neuron or the readout asks for the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from dalif_deploy.exporters import onnx_planes, onnx_slices
from dalif_deploy.exporters.onnx_builder import DOUBLE, FLOAT, INT32, UINT8, Builder, ElementType, Signal
from dalif_deploy.exporters.onnx_sums import Sum, identity_digits
from dalif_deploy.exporters.onnx_values import MAPS, Form, Moment, Value, lying
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.lattice import Integers, Lattice, joined
from dalif_deploy.nodes import Add, Array, Conv2d, Linear, Node, Scale


@dataclass(frozen=True, eq=False)
class Term:
    """A whole-numbered value that is added to a sum: an identity branch, or what a Scale makes of it.

    `delay`: of the term; before it there is none. `source_delay`: by how much more the value itself is delayed
    that a Scale reads; before it there are zeros, to which the Scale adds its offset.
    """

    source: str
    delay: int
    scale: Scale | None = None
    source_delay: int = 0

    def read(self, values: Mapping[str, Value], moment: Moment, form: Form) -> str:
        """The whole-numbered value now."""
        return values[self.source].read(moment, form, self.delay + self.source_delay)


class Currents:
    """Writes the nodes that put out sums, and the currents that neurons and the readout read.

    `planned`: the sums by node; `values`: the whole-numbered values, as they come to be written.
    """

    def __init__(
        self,
        graph: SpikingGraph,
        builder: Builder,
        lattices: Mapping[str, Lattice],
        planned: Mapping[str, Sum],
        values: Mapping[str, Value],
        membrane: ElementType,
    ) -> None:
        self._graph = graph
        self._builder = builder
        self._lattices = lattices
        self._planned = planned
        self._values = values
        self._membrane = membrane
        self._signals: dict[str, list[Signal]] = {}
        self._currents: dict[str, Value] = {}
        self._grown: dict[str, int] = {}

    def write(self, node: Node, moment: Moment) -> None:
        """Write a node that puts out a sum: weights, or an addition. A Scale is written where it is read."""
        planned = self._planned[node.name]
        if isinstance(node, Add):
            found = self._added(node, planned, moment)
        elif isinstance(node, Conv2d | Linear):
            found = self._weighted(node, planned, moment)
        else:
            found = []
        if moment.t is not None:
            for signal, value in zip(self._signals[node.name], found, strict=True):
                signal.append(value)
            return
        self._signals[node.name] = [
            moment.signal(self._builder, name, shape, element, value)
            for (name, shape, element), value in zip(self._places(node.name), found, strict=True)
        ]

    def begin_stepwise(self, name: str) -> None:
        """Announce a node that will be written timestep by timestep."""
        held = self._places(name) if self._holds_digits(name) else []
        self._signals[name] = [
            Signal(self._builder, place, shape, steps=[], element=element) for place, shape, element in held
        ]
        last = self.channels_last(name)
        shape = lying(self._shape(name), last)
        signal = Signal(self._builder, name, shape, steps=[], element=self._membrane)
        self._currents[name] = Value(self._builder, signal, self._shape(name), Form(self._membrane, last), growing=True)
        self._grown[name] = 0

    def channels_last(self, name: str) -> bool:
        """Whether a sum's channels come last."""
        return not self._planned[name].sliced and len(self._shape(name)) > 1

    def changes(self, name: str) -> bool:
        """Whether a node that is written changes over time."""
        if name in self._values:
            return not self._values[name].static
        return any(signal.static is None for signal in self._signals[name]) or any(
            self.changes(term.source) for term in self._terms(name)
        )

    def current(self, root: str, t: int | None = None) -> Value:
        """What a neuron reads: a sum, put together and rounded once, or whole numbers as they are.

        `t`: the last timestep that will be read; None for all of them.
        """
        if root in self._values:
            return self._values[root]
        if root in self._grown:
            current = self._currents[root]
            until = self._graph.timesteps if t is None else t + 1
            for step in range(self._grown[root], until):
                current.signal.append(self._combined(root, Moment(self._graph.timesteps, t=step)))
            self._grown[root] = max(self._grown[root], until)
            current.growing = self._grown[root] < self._graph.timesteps
            return current
        if root not in self._currents:
            moment = Moment(self._graph.timesteps, static=not self.changes(root))
            value = self._combined(root, moment)
            form = Form(self._membrane, self.channels_last(root))
            shape = lying(self._shape(root), form.channels_last)
            signal = moment.signal(self._builder, root, shape, self._membrane, value)
            self._currents[root] = Value(self._builder, signal, self._shape(root), form)
        return self._currents[root]

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._graph.types[name].shape

    def _places(self, name: str) -> list[tuple[str, tuple[int, ...], ElementType]]:
        """The signals of a sum that is kept in digits: name, shape as it lies, element type."""
        planned, out = self._planned[name], self._shape(name)
        count = len(planned.bases)
        if planned.sliced:
            return [(f"{name}/slices", (count * out[0], *out[1:]), FLOAT)] if self._holds_digits(name) else []
        shape = lying(out, self.channels_last(name))
        return [(f"{name}/plane{count - 1 - i}", shape, INT32) for i in range(count) if self._holds_digits(name)]

    def _holds_digits(self, name: str) -> bool:
        """Whether there are weights in a sum, rather than terms alone."""
        node = self._graph[name]
        if isinstance(node, Add):
            return any(self._holds_digits(edge.source) for edge in node.inputs if edge.source in self._planned)
        return isinstance(node, Conv2d | Linear)

    def _terms(self, name: str) -> list[Term]:
        node = self._graph[name]
        if isinstance(node, Scale):
            return [Term(node.inputs[0].source, 0, node, source_delay=node.inputs[0].delay)]
        found = []
        for edge in node.inputs if isinstance(node, Add) else ():
            if edge.source not in self._planned:
                found.append(Term(edge.source, edge.delay))
            else:
                found += [replace(term, delay=term.delay + edge.delay) for term in self._terms(edge.source)]
        return found

    def _weighted(self, node: Conv2d | Linear, planned: Sum, moment: Moment) -> list[str]:
        (edge,) = node.inputs
        digits = self._lattices[node.name].digits
        source, out = self._values[edge.source], self._shape(node.name)
        if planned.sliced:
            x = source.read(moment, MAPS, edge.delay)
            return [onnx_slices.write_weights(self._builder, node, digits, planned, moment, x, out)]
        x = source.read(moment, Form(UINT8, channels_last=True), edge.delay)
        return onnx_planes.write_weights(self._builder, node, digits, planned, moment, x, source.shape, out)

    def _added(self, node: Add, planned: Sum, moment: Moment) -> list[str]:
        """Slices are added to slices, planes to planes."""
        totals: list[str] = []
        prefix = moment.prefix(node.name)
        for i, edge in enumerate(node.inputs):
            if edge.source not in self._planned:
                continue
            values = [moment.read(signal, edge.delay) for signal in self._signals[edge.source]]
            if totals and values:
                for k, (name, shape, element) in enumerate(self._places(node.name)):
                    output = f"{prefix}/{name.rpartition('/')[2]}/sum{i}"
                    totals[k] = self._builder.node(
                        "Add", [totals[k], values[k]], output, shape=shape, batch=moment.batch, element=element
                    )
            totals = totals or values
        return totals

    def _combined(self, root: str, moment: Moment) -> str:
        planned, prefix = self._planned[root], moment.prefix(root)
        values = [moment.read(signal) for signal in self._signals[root]]
        # Numbered before those are left out that are not there yet: constants are shared over time.
        terms = [(i, term) for i, term in enumerate(self._terms(root)) if moment.t is None or moment.t >= term.delay]
        if not values and not terms:  # a delayed term alone, before step 0
            return self._currents[root].signal.zeros()
        out = self._shape(root)
        if planned.sliced:
            slices: list[str | None] = [None] * len(planned.bases)
            if values:
                slices = [*onnx_slices.split(self._builder, prefix, len(slices), values[0])]
            for i, term in terms:
                self._add_to_slices(slices, term, i, root, moment)
            kept = [value for value in slices if value is not None]
            return onnx_slices.combine(self._builder, prefix, kept, self._membrane, out, moment.batch)
        element = INT32 if planned.fits_int32 else DOUBLE
        form = Form(element, self.channels_last(root))
        weighted = []
        for i, term in terms:
            x = term.read(self._values, moment, form)
            weighted.append((i, x, *self._integers(term, planned, root)))
        return onnx_planes.combine(
            self._builder, self._graph[root], prefix, values, weighted, planned, self._membrane, out, moment.batch
        )

    def _integers(self, term: Term, planned: Sum, root: str) -> tuple[Integers, Integers | None]:
        """A term's weight and offset in units of 2^-k, in the shape of the feature axes."""
        rank = len(self._shape(root))
        if term.scale is None:
            one = joined(identity_digits(planned, self._graph[root]), planned.bases)
            return one.reshape(-1, *(1,) * (rank - 1)), None
        lattice, biases = self._lattices[term.scale.name], self._planned[term.scale.name].biases
        return lattice.weight, None if biases is None else joined(biases, planned.bases)

    def _add_to_slices(self, slices: list[str | None], term: Term, number: int, root: str, moment: Moment) -> None:
        planned, prefix, out = self._planned[root], moment.prefix(root), self._shape(root)
        node = self._graph[root] if term.scale is None else term.scale
        if term.scale is None:
            digits = tuple(digit.reshape(-1, *(1,) * (len(out) - 1)) for digit in identity_digits(planned, node))
            offsets = None
        else:
            digits, offsets = self._lattices[node.name].digits, self._planned[node.name].biases
        x = term.read(self._values, moment, MAPS)

        def put(i: int, value: str, role: str) -> str:
            """Add `value` to slice i."""
            before = slices[i]
            if before is None:
                return value
            output = f"{prefix}/slice{i}/{role}"
            return self._builder.node("Add", [before, value], output, shape=out, batch=moment.batch)

        def constant(i: int, values: Array, role: str) -> str:
            return self._builder.constant(f"{root}.slice{i}_{role}", values.astype(np.float32))

        for i, (digit, base) in enumerate(zip(digits, planned.bases, strict=True)):
            offset = None if offsets is None or not offsets[i].any() else offsets[i]
            if digit.any() or (offset is not None and slices[i] is None):
                values = onnx_slices.slice_values(node, digit, base, planned.exponents, len(out))
                weighted = x
                if (values != 1.0).any():  # an identity branch adds its spikes as they are
                    inputs, output = [x, constant(i, values, f"term{number}")], f"{prefix}/slice{i}/term{number}"
                    weighted = self._builder.node("Mul", inputs, output, shape=out, batch=moment.batch)
                slices[i] = put(i, weighted, f"with_term{number}")
            if offset is not None:
                values = onnx_slices.slice_values(node, offset, base, planned.exponents, len(out))
                slices[i] = put(i, constant(i, values, f"offset{number}"), f"with_offset{number}")
