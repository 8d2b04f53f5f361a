"""Walks through an ONNX graph and shows, operator by operator, that every sum over weights in it is exact.

What sums many terms, in an order that is the backend's own (Conv, Gemm, MatMulInteger, ReduceSum, AveragePool),
must hold all of its partial sums exactly. What computes element by element gives the same result everywhere. An
operator that is not known here is a finding.

Nothing here is shared with the code that writes such graphs, but for the names that it gives to values.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dalif_deploy.certificate.layers import LayerSums, record
from dalif_deploy.certificate.sums import (
    LIMITS,
    Free,
    Inexact,
    Mean,
    Product,
    Sum,
    Term,
    Value,
    Whole,
    constant_term,
    whole_numbers,
)

Constant = NDArray[Any]

MEMBRANES = ("float32", "float64")
"""The types of potentials."""
SATURATION = 32767
"""AVX2 adds two products of uint8 and int8 in int16."""
COMBINING = ("Add", "Cast", "Identity", "Mul")
"""What ends a sum: its value is called `<node>/output`."""


class Walk:
    """One graph. `input_maximum`: the largest code or spike that it takes; `membrane`: the type of potentials.

    After `run`: `layers` by name, and `findings`, one line each.
    """

    def __init__(self, graph: onnx.GraphProto, *, input_maximum: int, membrane: str) -> None:
        self.layers: dict[str, LayerSums] = {}
        self.findings: list[str] = []
        self._graph = graph
        self._membrane = membrane
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._values: dict[str, Value] = {}
        self._shapes = {
            info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
            for info in (*graph.value_info, *graph.input, *graph.output)
        }
        self._planes: dict[str, set[str]] = {}
        self._inputs: dict[str, int] = {}
        for info in graph.input:
            if info.name not in self._constants:
                dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name
                self._values[info.name] = Whole(dtype, input_maximum)

    def run(self) -> None:
        """Walk through all operators, in the order of the file."""
        uses = Counter(name for node in self._graph.node for name in node.input)
        for node in self._graph.node:
            try:
                self._step(node)
            except Inexact as problem:
                self.findings.append(f"'{node.name}' ({node.op_type}): {problem}")
                self._values.update({output: Free("float32") for output in node.output})
            for name in node.input:  # weights are large: what nobody reads any more is dropped
                uses[name] -= 1
                if not uses[name]:
                    self._values.pop(name, None)

    def _step(self, node: Any) -> None:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        handler = _OPERATORS.get(node.op_type)
        if handler is None or node.domain not in ("", "ai.onnx"):
            raise Inexact("is not known to compute the same everywhere")
        found = handler(self, node, attributes)
        values = found if isinstance(found, list) else [found] * len(node.output)
        for name, value in zip(node.output, values, strict=True):
            self._values[name] = self._completed(node, name, value)
        if re.search(r"/t\d+/(potential|integrated)$", node.output[0]):
            self._check_potential(node)

    def value(self, name: str) -> Value | Constant:
        """The value or constant of a name."""
        if name in self._constants:
            constant: Constant = self._constants[name]
            return constant
        if name not in self._values:
            raise Inexact(f"reads '{name}', of which nothing is known")
        return self._values[name]

    def whole(self, name: str) -> Whole:
        """A value that must be whole."""
        value = _counted_or_as_it_is(self.value(name))
        if not isinstance(value, Whole):
            raise Inexact(f"sums over '{name}', which holds no whole numbers of a known maximum")
        return value

    def constant(self, name: str) -> Constant:
        """A value that must be an initialiser."""
        value = self.value(name)
        if not isinstance(value, np.ndarray):
            raise Inexact(f"'{name}' must be a constant of the file")
        return value

    def shape(self, name: str) -> list[int]:
        """The inferred shape; 0 where a size is not known."""
        if name not in self._shapes:
            raise Inexact(f"the shape of '{name}' is not known")
        return self._shapes[name]

    def read(self, layer: str, maximum: int) -> None:
        """Note what a layer with weights reads."""
        self._inputs[layer] = max(maximum, self._inputs.get(layer, 0))

    def plane(self, layer: str, plane: str) -> None:
        """Note that a layer has a plane."""
        self._planes.setdefault(layer, set()).add(plane)

    def record(self, value: Sum) -> None:
        """A sum of one digit, as it is put together with the others, or of all planes."""
        planes = {layer for layer in value.layers if layer in self._planes}
        layers = planes if value.part is None else value.layers - planes
        if not layers:
            return
        forms = {
            layer: f"planes{len(self._planes[layer])}" if value.part is None else f"slices{value.part[1]}"
            for layer in layers
        }
        record(self.layers, value, {layer: (form, self._inputs[layer]) for layer, form in forms.items()})

    def _completed(self, node: Any, name: str, value: Value) -> Value:
        """Marks the end of a sum."""
        if not isinstance(value, Sum) or value.complete:
            return value
        if node.op_type not in COMBINING or not name.endswith("/output"):
            return value
        if value.dtype != self._membrane:
            raise Inexact(f"ends in {value.dtype}, while potentials are {self._membrane}")
        if value.part is None and value.layers:
            self.record(value)
        return replace(value, complete=True)

    def _check_potential(self, node: Any) -> None:
        for name in node.input:
            value = self.value(name)
            if isinstance(value, Whole | Product) or (isinstance(value, Sum) and value.complete):
                return
        # A reset that comes late acts on what was integrated, which was checked itself.
        prefix = node.output[0].rpartition("/")[0]
        if node.op_type in ("Sub", "Where") and f"{prefix}/integrated" in node.input:
            return
        raise Inexact("no input of it is an exact sum that was rounded once")


def _counted_or_as_it_is(value: Value | Constant) -> Value | Constant:
    """A sum of whole numbers that counts them, as in a pool, is whole itself."""
    if isinstance(value, Sum) and not (value.rounded or value.complete or value.layers or value.biases):
        counts = all((term.weights >= 0).all() for term in value.terms.values())
        if counts and (value.exponents <= 0).all():
            reach = zip(value.reach(), value.exponents.tolist(), strict=True)
            return Whole(value.dtype, max(reached << -exponent for reached, exponent in reach))
    return value


def _structural(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    """What only moves elements. Sums may be moved when they are complete, or along the batch."""
    value = _counted_or_as_it_is(walk.value(node.input[0]))
    if isinstance(value, np.ndarray):
        raise Inexact("a constant that is moved is not expected")
    if isinstance(value, Sum) and not value.complete:
        raise Inexact("moves a sum before it is put together")
    return value


def _identity(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    value = walk.value(node.input[0])
    return Free(value.dtype.name) if isinstance(value, np.ndarray) else value


def _pad(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    if len(node.input) > 2 and node.input[2] and np.any(walk.constant(node.input[2])):
        raise Inexact("pads with something else than zeros")
    if attributes.get("mode", b"constant") != b"constant":
        raise Inexact("pads with something else than zeros")
    return walk.whole(node.input[0])


def _split(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> list[Value]:
    value, axis, count = walk.value(node.input[0]), attributes.get("axis", 0), len(node.output)
    if isinstance(value, np.ndarray):
        raise Inexact("a constant that is cut is not expected")
    if len(node.input) > 1:
        raise Inexact("cuts into parts that are not said to be equal")
    if isinstance(value, Sum) and not value.complete and axis != 0:
        if axis != value.axis:
            raise Inexact("cuts a sum along another axis than its channels'")
        return [*value.slices(count)]
    return [value] * count


def _concat(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    values = [walk.value(name) for name in node.input]
    first = values[0]
    known = [value for value in map(_counted_or_as_it_is, values) if isinstance(value, Whole)]
    if len(known) == len(values):
        return Whole(known[0].dtype, max(value.maximum for value in known))
    sums = [value for value in values if isinstance(value, Sum)]
    if not sums:
        return Free("float32" if isinstance(first, np.ndarray) else first.dtype)
    if all(value.complete for value in sums):
        return sums[0]
    if attributes["axis"] != 0 or len(sums) != len(values):
        raise Inexact("joins sums that are not those of several timesteps")
    # Timesteps of one sum: the same weights, of values that may be all zero at the first.
    largest = sums[0]
    for other in sums[1:]:
        terms = list(zip(largest.terms.items(), other.terms.values(), strict=False))
        alike = len(largest.terms) == len(other.terms) and all(
            np.array_equal(a.weights, b.weights) for (_, a), b in terms
        )
        if not alike or not np.array_equal(largest.exponents, other.exponents):
            raise Inexact("joins sums whose weights differ")
        joined = {key: replace(a, maximum=max(a.maximum, b.maximum)) for (key, a), b in terms}
        largest = replace(largest, terms=joined)
    return largest


def _cast(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    value = walk.value(node.input[0])
    dtype = helper.tensor_dtype_to_np_dtype(attributes["to"]).name
    if dtype not in MEMBRANES:  # as counts of a pool, which become codes
        value = _counted_or_as_it_is(value)
    if isinstance(value, Whole):
        if dtype in LIMITS and value.maximum > LIMITS[dtype]:
            raise Inexact(f"{dtype} does not hold whole numbers up to {value.maximum}")
        return Whole(dtype, value.maximum)
    if isinstance(value, Product) and (value.dtype, dtype) == ("float32", "float64"):
        return replace(value, dtype=dtype)
    if not isinstance(value, Sum):
        return Free(dtype)
    if value.rounded or value.complete:
        return Free(dtype)
    if value.part is not None:
        walk.record(value)
    narrower = (value.dtype, dtype) in (("float64", "float32"), ("int32", "float32"))
    wider = (value.dtype, dtype) in (("float32", "float64"), ("int32", "float64"))
    if not narrower and not wider and value.dtype != dtype:
        raise Inexact(f"makes {dtype} of a sum in {value.dtype}")
    return replace(value, dtype=dtype, rounded=narrower, part=None)


def _comparison(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    return Whole("bool", 1)


def _zeros(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    fill = attributes.get("value")
    values = np.zeros(1, dtype=np.float32) if fill is None else numpy_helper.to_array(fill)
    if values.any():
        raise Inexact("fills with something else than zeros")
    return Whole(values.dtype.name, 0)


def _elementwise(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    value = walk.value(node.input[0])
    if isinstance(value, np.ndarray):
        value = walk.value(node.input[1])
    return Free(value.dtype.name if isinstance(value, np.ndarray) else value.dtype)


def _by_channel_differs(factor: NDArray[np.float64], value: Sum) -> bool:
    """Whether factors differ within a channel."""
    rows = _by_channel(factor, value)
    return bool((rows != rows[:, :1]).any())


def _where(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    values = [walk.value(name) for name in node.input[1:]]
    return next((Free(v.dtype) for v in values if not isinstance(v, np.ndarray)), Free(str(values[0].dtype)))


def _mul(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    one, two = (walk.value(name) for name in node.input)
    if isinstance(one, np.ndarray):
        one, two = two, one
    if isinstance(one, np.ndarray) or not isinstance(two, np.ndarray):
        return _elementwise(walk, node, attributes)
    factor = two.astype(np.float64)
    if isinstance(one, Mean) and factor.size == 1 and float(factor.reshape(-1)[0]) == one.area:
        return Whole(one.dtype, one.maximum)
    if isinstance(one, Whole) and one.maximum == 0:
        return one
    if isinstance(one, Whole):
        return Product(one.dtype, one.maximum, factor)
    if not isinstance(one, Sum) or one.complete:
        return Free(one.dtype)
    if _by_channel_differs(factor, one) and isinstance(counted := _counted_or_as_it_is(one), Whole):
        return Product(counted.dtype, counted.maximum, factor)
    rows = _by_channel(factor, one)
    if _by_channel_differs(factor, one):
        raise Inexact("multiplies a sum with factors that differ within a channel")
    scaled = one.times(rows[:, 0])
    mantissa, _ = np.frexp(factor)
    if one.rounded and (mantissa != 0.5).any():
        raise Inexact("multiplies a rounded sum with something else than a power of two")
    return scaled if one.rounded else scaled.checked()


def _add(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    one, two = (walk.value(name) for name in node.input)
    if isinstance(one, np.ndarray):
        one, two = two, one
    if isinstance(one, np.ndarray):
        raise Inexact("a sum of constants is not expected")
    if isinstance(one, Whole) and isinstance(two, Whole):
        return _counted(one.dtype, one.maximum + two.maximum)
    values = [one] if isinstance(two, np.ndarray) else [one, two]
    if any(isinstance(value, Free | Mean) or (isinstance(value, Sum) and (value.complete or value.rounded))
           for value in values):  # fmt: skip
        return Free(one.dtype)
    like = next((value for value in values if isinstance(value, Sum)), None)
    if like is None:
        places = tuple(walk.shape(node.output[0])[1:])
        like = Sum(one.dtype, 0, 1 + len(places), np.zeros(math.prod(places), dtype=np.int64), places=places)
    output = node.output[0]
    total = _as_sum(one, like, f"{output}/0")
    if isinstance(two, np.ndarray):
        exponents, bias = whole_numbers(_by_channel(two.astype(np.float64), like))
        owner = next(name for name in node.input if name in walk._constants)
        key = owner.rpartition(".")[0] if re.search(r"\.bias\d+$", owner) else owner
        return total.plus(
            replace(_empty(like), exponents=exponents, biases={key: constant_term(bias, owner)})
        ).checked()
    other = _as_sum(two, like, f"{output}/1")
    if total.part is not None and other.part is not None and total.part != other.part:
        # Two slices: the one addition that may round.
        walk.record(total)
        walk.record(other)
        if total.dtype != "float32":
            raise Inexact("two slices are put together in another type than float32")
        return replace(total.plus(other), rounded=True, part=None)
    both = total.plus(other)
    if both.layers or both.dtype == "int32":
        return both.checked()
    try:
        return both.checked()
    except Inexact:  # of two exact numbers, added element by element: rounded once
        return replace(both, rounded=True)


def _as_sum(value: Value, like: Sum, key: str) -> Sum:
    """What is added to a sum, as a sum whose channels lie alike."""
    if isinstance(value, Sum):
        return value
    if value.dtype != like.dtype:
        raise Inexact(f"adds {value.dtype} to {like.dtype}")
    if isinstance(value, Whole) and value.maximum == 0:  # before the first timestep of a delayed edge
        return replace(_empty(like), exponents=np.zeros(like.channels, dtype=np.int64))
    if isinstance(value, Whole):
        factor, maximum = np.ones(()), value.maximum
    elif isinstance(value, Product):
        factor, maximum = value.factor, value.maximum
    else:
        raise Inexact("adds something that is no whole number to a sum")
    exponents, weights = whole_numbers(_by_channel(factor, like))
    return replace(_empty(like), exponents=exponents, terms={key: Term(weights, maximum, single=True, copies={key: 1})})


def _empty(like: Sum) -> Sum:
    return replace(like, terms={}, biases={}, layers=frozenset(), part=None)


def _by_channel(values: NDArray[np.float64], like: Sum) -> NDArray[np.float64]:
    """A constant that broadcasts against a sum, as [channels, places]."""
    aligned = values.reshape((1,) * (like.rank - values.ndim) + values.shape)
    if like.axis == 0:
        return np.broadcast_to(aligned, (1, *like.places)).reshape(-1, 1)
    moved = np.moveaxis(aligned, like.axis, 0)
    return np.broadcast_to(moved, (like.channels, *moved.shape[1:])).reshape(like.channels, -1)


def _conv(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    x, weight = walk.whole(node.input[0]), walk.constant(node.input[1])
    return _weights(walk, node, x, weight.reshape(len(weight), -1), rank=4)


def _gemm(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        raise Inexact("a matrix product with further factors is not expected")
    x, weight = walk.whole(node.input[0]), walk.constant(node.input[1])
    return _weights(walk, node, x, weight if attributes.get("transB", 0) else weight.T, rank=2)


def _weights(walk: Walk, node: Any, x: Whole, weight: Constant, *, rank: int) -> Value:
    if x.dtype != "float32" or weight.dtype != np.float32:
        raise Inexact(f"sums in {x.dtype}, which is not float32")
    exponents, whole = whole_numbers(weight)
    name = node.input[1]
    layer = name.rpartition(".")[0]
    layers = frozenset() if name.endswith(".window") else frozenset({layer})
    key = f"{layer} of {node.output[0]}"
    term = Term(whole, x.maximum, layer=layer, copies={name: 1})
    found = Sum("float32", 1, rank, exponents, {key: term}, layers=layers)
    if len(node.input) > 2 and node.input[2]:
        grid, bias = whole_numbers(walk.constant(node.input[2]).reshape(-1, 1))
        found = found.plus(Sum("float32", 1, rank, grid, biases={key: constant_term(bias, node.input[2])}))
    if layers:
        walk.read(layer, x.maximum)
    return found.checked()


def _matmul_integer(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    x, weight, name = walk.whole(node.input[0]), walk.constant(node.input[1]), node.input[1]
    if x.dtype != "uint8" or weight.dtype != np.int8 or any(node.input[2:]):
        raise Inexact("needs uint8 values, int8 weights, and zero points of 0")
    if 2 * x.maximum * int(np.abs(weight.astype(np.int64)).max(initial=0)) > SATURATION + 256:
        raise Inexact(f"values up to {x.maximum} can saturate where pairs of products are added in int16")
    layer, _, plane = name.rpartition(".")
    if not re.fullmatch(r"plane\d", plane):
        raise Inexact(f"'{name}' is not named as a plane of weights")
    rank = len(walk.shape(node.output[0]))
    whole = weight.T.astype(np.int64)
    zeros = np.zeros(len(whole), dtype=np.int64)
    walk.plane(layer, plane)
    walk.read(layer, x.maximum)
    key = f"{layer} of {node.input[0]}"
    term = Term(whole, x.maximum, layer=layer, copies={plane: 1})
    return Sum("int32", rank - 1, rank, zeros, {key: term}, layers=frozenset({layer})).checked()


def _reduce_sum(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    x = walk.whole(node.input[0])
    shape = walk.shape(node.input[0])
    sizes = [shape[int(axis)] for axis in walk.constant(node.input[1])]
    if not all(sizes):
        raise Inexact("sums over an axis whose size is not known")
    return _counted(x.dtype, x.maximum * math.prod(sizes))


def _average_pool(walk: Walk, node: Any, attributes: Mapping[str, Any]) -> Value:
    x, area = walk.whole(node.input[0]), math.prod(attributes["kernel_shape"])
    if area & (area - 1) or not attributes.get("count_include_pad", 0) or attributes.get("ceil_mode", 0):
        raise Inexact("averages over a number of places that is no power of two")
    return Mean(x.dtype, area, _counted(x.dtype, x.maximum * area).maximum)


def _counted(dtype: str, maximum: int) -> Whole:
    """Whole numbers that were added up in `dtype`."""
    if maximum > LIMITS[dtype]:
        raise Inexact(f"{dtype} does not hold whole numbers up to {maximum}")
    return Whole(dtype, maximum)


_OPERATORS: Mapping[str, Callable[[Walk, Any, Mapping[str, Any]], Value | list[Value]]] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _zeros,
    "Conv": _conv,
    "Div": _elementwise,
    "Flatten": _structural,
    "Gather": _structural,
    "Gemm": _gemm,
    "Greater": _comparison,
    "GreaterOrEqual": _comparison,
    "Identity": _identity,
    "MatMulInteger": _matmul_integer,
    "Max": _elementwise,
    "MaxPool": _structural,
    "Mul": _mul,
    "Not": _comparison,
    "Pad": _pad,
    "ReduceSum": _reduce_sum,
    "Reshape": _structural,
    "Shape": lambda walk, node, attributes: Free("int64"),
    "Split": _split,
    "Sub": _elementwise,
    "Transpose": _structural,
    "Where": _where,
}
