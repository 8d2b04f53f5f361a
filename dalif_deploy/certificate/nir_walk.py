"""Walks through a NIR graph and shows, node by node, that every sum over weights in it is exact in float32.

A node that reads several edges adds them up. Where a neuron or the output reads two, each of them exact, their sum is
rounded once, whatever their order; more than two must be exact together.

Nothing here is shared with the code that writes such graphs, but for the names that it gives to nodes: <layer>.high
and <layer>.low hold the two slices of a layer's weights, and what ends in _term and a number, or in _term, is a part of
a sum that is no layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from dalif_deploy.certificate.layers import LayerSums, record
from dalif_deploy.certificate.sums import LIMITS, Inexact, Sum, Term, Whole, constant_term, whole_numbers

SUMMING = ("sinabs", "snntorch")
"""The dialects whose readers compute V = beta H + X, in float32."""
PARTS = {"high": 0, "low": 1}
_PART = re.compile(r"(.+)\.(high|low)(_term\d*)?$")
_DT = 1e-4
"""Seconds a timestep, in the dialect that has r = tau / dt."""

Found = Whole | Sum


class NirWalk:
    """One graph. `metadata`: its entries; `input_maximum`: the largest code or spike that it takes.

    After `run`: `layers` by name, and `findings`, one line each.
    """

    def __init__(self, graph: nir.NIRGraph, metadata: Mapping[str, str], *, input_maximum: int) -> None:
        self.layers: dict[str, LayerSums] = {}
        self.findings: list[str] = []
        self._graph = graph
        self._metadata = metadata
        self._dialect = metadata.get("dialect", "")
        self._maxima = json.loads(metadata.get("maxima", "[]"))
        self._input_maximum = input_maximum
        self._sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, target in graph.edges:
            self._sources[target].append(source)
        self._values: dict[str, Found] = {}
        self._inputs: dict[str, int] = {}

    def run(self) -> None:
        """Walk through all nodes, each after what it reads."""
        if self._dialect not in SUMMING:
            self.findings.append(f"the dialect {self._dialect!r} is of a reader that does not compute beta H + X")
        if self._metadata.get("precision", "exact") != "exact":
            self.findings.append(f"its precision is said to be {self._metadata['precision']}; its readers have float32")
        if not _takes_whole_numbers(json.loads(self._metadata["encoding"])):
            self.findings.append("its encoding makes other numbers of codes than they are")
        try:
            order = list(TopologicalSorter(self._sources).static_order())
        except CycleError:
            self.findings.append("its nodes are in a cycle, so that no sum has a largest value")
            return
        for name in order:
            node = self._graph.nodes[name]
            try:
                self._values[name] = self._value(name, node)
            except Inexact as problem:
                self._finding(name, str(problem))
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # numbers of odd types and shapes
                self._finding(name, f"has numbers that no node of its kind has ({error})")

    def _finding(self, name: str, what: str) -> None:
        self.findings.append(f"'{name}' ({type(self._graph.nodes[name]).__name__}): {' '.join(what.split())}")
        self._values[name] = Whole("float32", 1)

    def _value(self, name: str, node: nir.NIRNode) -> Found:
        match node:
            case nir.Input():
                return Whole("float32", self._input_maximum)
            case nir.LIF() | nir.IF():
                self._read(name)
                if name in self._maxima and not self._tells_any(name, node):
                    raise Inexact("does not tell whether any spike of a window is there")
                return Whole("float32", 1)
            case nir.Output():
                return self._read(name)
            case nir.Flatten():
                return self._whole(name)
            case nir.SumPool2d():
                return self._pool(name, node)
            case nir.Conv2d() | nir.Affine() | nir.Linear():
                return self._weighted(name, node)
            case _:
                raise Inexact("is not known to compute the same everywhere")

    def _tells_any(self, name: str, node: nir.LIF | nir.IF) -> bool:
        """Whether a neuron fires where a count is above 0, even if it is off by some roundings, and remembers nothing.

        A reader may divide the threshold by the gain r dt / tau.
        """
        counts = self._sources[name]
        alone = len(counts) == 1 and isinstance(self._values[counts[0]], Whole)
        half = bool(np.all(node.v_threshold > 0.1) and np.all(node.v_threshold < 0.9)) and not np.any(node.v_reset)
        if isinstance(node, nir.IF):
            return alone and half
        gain = np.asarray(node.r) * (_DT / np.asarray(node.tau)) if self._dialect == "snntorch" else np.ones(1)
        return alone and half and not np.any(node.v_leak) and bool(np.all(np.abs(gain - 1.0) < 1e-9))

    def _read(self, name: str) -> Found:
        """What a neuron or the output reads, the sums of which end there."""
        values = [self._values[source] for source in self._sources[name]]
        if not values:
            raise Inexact("reads nothing")
        for value in values:
            if isinstance(value, Sum) and value.layers and not value.rounded:
                forms = {layer: (f"slices{len(PARTS)}", self._inputs[layer]) for layer in value.layers}
                record(self.layers, value, forms)
        return _added(values, name, last=True)

    def _total(self, name: str) -> Found:
        return _added([self._values[source] for source in self._sources[name]], name)

    def _whole(self, name: str) -> Whole:
        value = self._total(name)
        if not isinstance(value, Whole):
            raise Inexact("reads sums, where only whole numbers are expected")
        return value

    def _pool(self, name: str, node: nir.SumPool2d) -> Whole:
        """Readers take the mean of a window times its size."""
        value = self._whole(name)
        if np.any(node.padding):
            raise Inexact("pads, which its readers do not")
        kernel = np.broadcast_to(node.kernel_size, (2,))
        if kernel.dtype.kind != "i" or (kernel < 1).any():
            raise Inexact(f"has no windows of {node.kernel_size}")
        size = int(kernel[0]) * int(kernel[1])
        total = Whole(value.dtype, value.maximum * size)
        readers = {target for source, target in self._graph.edges if source == name}
        if readers <= set(self._maxima):  # a threshold of about a half is far from every whole number
            return total
        if total.maximum > LIMITS["float32"]:
            raise Inexact(f"counts up to {total.maximum}, beyond what float32 holds")
        n, count = np.arange(total.maximum + 1, dtype=np.float32), np.float32(size)
        for mean in (n / count, n * (np.float32(1) / count)):
            if (mean * count != n).any():
                raise Inexact(f"is the mean of {size} places times {size}, which misses some whole numbers")
        return total

    def _weighted(self, name: str, node: nir.Conv2d | nir.Affine | nir.Linear) -> Found:
        weight, bias = node.weight, getattr(node, "bias", None)
        for values in (weight, bias):
            if values is not None and values.dtype != np.float32:
                raise Inexact(f"holds numbers of type {values.dtype}, which its readers round")
        rank = 4 if isinstance(node, nir.Conv2d) else 2
        if weight.ndim != rank or not weight.size or (bias is not None and bias.shape != weight.shape[:1]):
            raise Inexact("has weights and biases that do not fit each other")
        if isinstance(node, nir.Conv2d) and not _as_inferred(node):
            raise Inexact("has another output than NIR infers, which takes kernels for square ones")
        part = _PART.match(name)
        if _repeats(node) and any(isinstance(self._values[source], Sum) for source in self._sources[name]):
            read_out = all(isinstance(self._graph.nodes[t], nir.Output) for s, t in self._graph.edges if s == name)
            return self._read(name) if read_out else self._total(name)
        x = self._whole(name)
        exponents, whole = whole_numbers(weight.reshape(len(weight), -1))
        layer = part[1] if part is not None and not part[3] else None
        layers = frozenset() if layer is None else frozenset({layer})
        one = part is not None and layer is None and _one_place(node)  # a map, of which no weights are said elsewhere
        term = Term(whole, x.maximum, single=one, layer=layer or "", copies={name: 1})
        total = Sum("float32", 1, rank, exponents, {name: term}, layers=layers)
        if bias is not None and bias.any():
            grid, shifts = whole_numbers(bias.reshape(-1, 1))
            total = total.plus(Sum("float32", 1, rank, grid, biases={name: constant_term(shifts, name)}))
        total = total.checked()
        if part is None:
            return _counted(total)
        if layer is not None:
            self._inputs[layer] = max(x.maximum, self._inputs.get(layer, 0))
            return replace(total, part=(PARTS[part[2]], len(PARTS)))
        return total


def _takes_whole_numbers(encoding: Mapping[str, Any]) -> bool:
    """Whether a reader is given codes or spikes as they are."""
    changed = encoding.get("scale", 1.0) != 1.0 or np.any(encoding.get("mean", 0.0))
    return not changed and bool(np.all(np.asarray(encoding.get("std", 1.0)) == 1.0))


def _as_inferred(node: nir.Conv2d) -> bool:
    """Whether a convolution's output has the size that its type says, as torch computes it."""
    before, after = ([int(n) for n in kind[1:]] for kind in (node.input_type["input"], node.output_type["output"]))
    if isinstance(node.padding, str):
        padding: tuple[int, ...] = (0, 0)
        if node.padding == "same":
            return before == after
    else:
        padding = tuple(int(p) for p in np.broadcast_to(node.padding, (2,)))
    stride, dilation = ([int(n) for n in np.broadcast_to(v, (2,))] for v in (node.stride, node.dilation))
    axes = zip(before, after, node.weight.shape[2:], padding, stride, dilation, strict=True)
    return all((n + 2 * p - d * (k - 1) - 1) // s + 1 == out for n, out, k, p, s, d in axes)


def _repeats(node: nir.Conv2d | nir.Affine | nir.Linear) -> bool:
    """Whether a node gives what it is given."""
    weight, bias = np.asarray(node.weight), getattr(node, "bias", None)
    if isinstance(node, nir.Conv2d):
        moved = isinstance(node.padding, str) or np.any(node.padding) or np.any(np.asarray(node.stride) != 1)
        if moved or weight.shape[2:] != (1, 1) or node.groups != 1:
            return False
        weight = weight[:, :, 0, 0]
    square = weight.shape[0] == weight.shape[1]
    return square and bool(np.all(weight == np.diag(np.ones(len(weight))))) and (bias is None or not np.any(bias))


def _one_place(node: nir.Conv2d | nir.Affine | nir.Linear) -> bool:
    """Whether every output of a node reads one value at most: its input has one place and one channel."""
    return isinstance(node, nir.Conv2d) and [int(n) for n in node.input_type["input"]] == [1, 1, 1]


def _counted(total: Sum) -> Whole:
    """A sum of whole numbers that counts them, as a pool with padding does."""
    if any((array < 0).any() for array in total.arrays()) or (total.exponents > 0).any():
        raise Inexact("holds weights, and is called neither <layer>.high nor <layer>.low")
    reach = zip(total.reach(), total.exponents.tolist(), strict=True)
    return Whole(total.dtype, max(reached << -exponent for reached, exponent in reach))


def _added(values: list[Found], name: str, *, last: bool = False) -> Found:
    """The sum of what comes in. `last`: two exact numbers may be added whose sum is rounded."""
    whole = [value for value in values if isinstance(value, Whole)]
    if len(whole) == len(values):
        total = Whole("float32", sum(value.maximum for value in whole))
        if total.maximum > LIMITS["float32"]:
            raise Inexact(f"adds up to {total.maximum}, beyond what float32 holds")
        return total
    like = next(value for value in values if isinstance(value, Sum))
    sums = [value if isinstance(value, Sum) else _as_sum(value, like, f"{name}/{i}") for i, value in enumerate(values)]
    if len(sums) == 1:
        return sums[0]
    if any(value.rounded for value in sums):
        raise Inexact("adds to a sum that was rounded")
    if last and len(sums) == 2:
        return replace(sums[0], rounded=True)
    if len({value.part for value in sums} - {None}) > 1:
        raise Inexact("adds up parts of both halves, which are not exact together")
    total_ = sums[0]
    for value in sums[1:]:
        total_ = total_.plus(value)
    return total_.checked()


def _as_sum(value: Whole, like: Sum, key: str) -> Sum:
    """Whole numbers that are added to a sum as they are."""
    ones: NDArray[np.int64] = np.ones((like.channels, 1), dtype=np.int64)
    term = Term(ones, value.maximum, single=True, copies={key: 1})
    zeros = np.zeros(like.channels, dtype=np.int64)
    return Sum(like.dtype, like.axis, like.rank, zeros, {key: term} if value.maximum else {})
