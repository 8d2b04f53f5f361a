"""Compares an ONNX model with the one that it should be, by what it computes rather than by its names.

Every value gets a number that two values share just if the same operators, with the same attributes, compute them
from the same inputs and initialisers. The order of nodes, the names of intermediate values and of initialisers, and a
constant's being a node or an initialiser make no difference to it. If inputs, outputs, the named spikes and potentials,
and the set of all numbers agree, nothing differs. Only otherwise are the two models paired, by number, then by name,
then by what reads or feeds what is paired already, so that differences can be told where they are.

Not compared, since they decide nothing: doc strings, node names, declared shapes of intermediate values, the graph's
name, imports of operator sets that no node uses.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from dalif_deploy.contents import Compared, ContentDifference, Part, compare_metadata, shown, written_by_another
from dalif_deploy.errors import Code, DalifError

SPIKES, POTENTIAL = "/spikes", "/potential"
"""How the names of values end that runtimes read by name: the former have to be there, the latter may."""

Tensor = NDArray[np.generic]


def read_tensor(tensor: onnx.TensorProto) -> Tensor:
    """The array in an initialiser. Raises `DalifError`: FILE_DAMAGED where it does not hold what it declares,
    FOREIGN_FILE where its values lie in another file."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise DalifError(Code.FOREIGN_FILE, f"initialiser '{tensor.name}': its values lie outside the file")
    try:
        values: Tensor = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise DalifError(Code.FILE_DAMAGED, f"initialiser '{tensor.name}' cannot be read: {error}") from error
    return values


def compare(expected: onnx.ModelProto, found: onnx.ModelProto) -> Compared:
    """Everything in `found` that is not as in `expected`. Raises `DalifError` as `read_tensor` does."""
    numbers: dict[Hashable, int] = {}
    want, have = _Graph(expected, numbers), _Graph(found, numbers)
    strings = [{entry.key: entry.value for entry in model.metadata_props} for model in (expected, found)]
    differences = [
        *_whole(expected, found), *_interface("input", want.inputs, have.inputs),
        *_interface("output", want.outputs, have.outputs),
    ]  # fmt: skip
    tensors: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = ({}, {})
    if not want.computes_the_same(have):
        pairing = _Pairing(want, have)
        rewritten = pairing.rewritten or written_by_another(strings[1]) is not None
        tensors = pairing.tensors(rewritten)
        differences += pairing.differences(rewritten)
        if not differences and _equal(*tensors):  # what the numbers tell apart must never go unsaid
            differences.append(ContentDifference("file", "", "its graph computes something else than the export's"))
    return Compared(*tensors, (*differences, *compare_metadata(*strings)))


def _equal(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    return expected.keys() == found.keys() and all(
        values.dtype == found[name].dtype and np.array_equal(values, found[name]) for name, values in expected.items()
    )


def _whole(expected: onnx.ModelProto, found: onnx.ModelProto) -> Iterator[ContentDifference]:
    versions = [
        {entry.domain or "ai.onnx": entry.version for entry in model.opset_import} for model in (expected, found)
    ]
    used = {node.domain or "ai.onnx" for model in (expected, found) for node in model.graph.node}
    for domain in sorted(used):
        want, have = (version.get(domain) for version in versions)
        if want != have:
            yield ContentDifference(
                "opset", domain, f"is {have or 'missing'}, should {f'be {want}' if want else 'not be there'}",
                structural=want is None,
            )  # fmt: skip
    for part, names in (
        ("opset", (entry.domain or "ai.onnx" for entry in found.opset_import)),
        ("input", (value.name for value in found.graph.input)),
        ("output", (value.name for value in found.graph.output)),
        ("metadata", (entry.key for entry in found.metadata_props)),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield ContentDifference(cast(Part, part), name, f"is there {count} times, should be once")
    for count, what in (
        (len(found.functions), "functions"), (len(found.training_info), "training information"),
        (len(found.graph.sparse_initializer), "sparse initialisers"),
    ):  # fmt: skip
        if count:
            yield ContentDifference("file", "", f"holds {what} ({count}), which no export does")


def _interface(part: Part, expected: Mapping[str, str], found: Mapping[str, str]) -> Iterator[ContentDifference]:
    for name in dict.fromkeys([*expected, *found]):
        if name not in found:
            yield ContentDifference(part, name, "is missing in the file")
        elif name not in expected:
            yield ContentDifference(part, name, "is not expected in the file")
        elif expected[name] != found[name]:
            yield ContentDifference(part, name, f"is {found[name]}, should be {expected[name]}")


def _declared(value: onnx.ValueInfoProto) -> str:
    """A value's declared type, without the names that free sizes have."""
    if not value.type.HasField("tensor_type"):
        return str(value.type.WhichOneof("value") or "untyped")
    tensor = value.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{element} of any shape"
    sizes = [str(size.dim_value) if size.HasField("dim_value") else "any" for size in tensor.shape.dim]
    return f"{element} [{', '.join(sizes)}]"


class _Node:
    """One node: its operator, its attributes with the schema's defaults filled in, inputs and outputs."""

    def __init__(self, node: onnx.NodeProto, opset: Mapping[str, int]) -> None:
        self.inputs = tuple(node.input)
        self.outputs = tuple(node.output)
        self.name = node.name or next(iter(node.output), "")
        domain = "" if node.domain == "ai.onnx" else node.domain
        self.operator = ".".join(filter(None, (domain, node.op_type, node.overload)))
        self.attributes = {**_defaults(node.op_type, domain, opset), **{a.name: _attribute(a) for a in node.attribute}}

    def key(self, inputs: Iterable[Hashable]) -> Hashable:
        """What two nodes share that compute the same from the same."""
        attributes = tuple(sorted((name, _hashable(value)) for name, value in self.attributes.items()))
        return (self.operator, attributes, tuple(inputs), len(self.outputs))


def _defaults(op_type: str, domain: str, opset: Mapping[str, int]) -> dict[str, Any]:
    try:
        schema = onnx.defs.get_schema(op_type, opset.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return {}
    defaults = (attribute.default_value for attribute in schema.attributes.values())
    return {value.name: _attribute(value) for value in defaults if value.name}


def _attribute(attribute: onnx.AttributeProto) -> Any:
    if attribute.ref_attr_name:
        return f"the caller's {attribute.ref_attr_name}"
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return read_tensor(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float | str):
        return value
    return _message(value) if hasattr(value, "SerializeToString") else [_item(item) for item in value]


def _item(item: Any) -> Any:
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    return item if isinstance(item, int | float | str) else _message(item)


def _message(value: Any) -> str:
    """A graph, type or sparse tensor, none of which an export has: enough to tell two apart."""
    return f"a {type(value).__name__} ({hashlib.sha256(value.SerializeToString(deterministic=True)).hexdigest()})"


def _hashable(value: Any) -> str:
    # As text, since values of several types would not sort; repr tells 1 from 1.0 and -0.0 from 0.0.
    return str(_content(value)) if isinstance(value, np.ndarray) else repr(value)


def _content(values: Tensor) -> Hashable:
    if values.dtype.hasobject:
        return ("strings", values.shape, tuple(map(str, values.ravel())))
    # As elsewhere, 0.0 and -0.0 are one value.
    plain = np.where(values == 0, np.zeros_like(values), values) if values.dtype.kind == "f" else values
    digest = hashlib.sha256(np.ascontiguousarray(plain).tobytes()).hexdigest()
    return ("tensor", str(values.dtype), values.shape, digest)


def _told(value: Any) -> str:
    return shown(value.tolist() if isinstance(value, np.ndarray) else value)


class _Graph:
    """One model, with a number for every value. `numbers`: shared by the models that are compared."""

    def __init__(self, model: onnx.ModelProto, numbers: dict[Hashable, int]) -> None:
        graph = model.graph
        opset = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
        self.tensors = {tensor.name: read_tensor(tensor) for tensor in graph.initializer}
        self.inputs = {value.name: _declared(value) for value in graph.input}
        self.outputs = {value.name: _declared(value) for value in graph.output}
        self.nodes: list[_Node] = []
        for proto in graph.node:
            values = _constant(proto)
            if values is None:
                self.nodes.append(_Node(proto, opset))
            else:
                self.tensors[proto.output[0]] = values
        self.maker = {value: node for node in self.nodes for value in node.outputs if value}
        self._numbers = numbers
        self.number: dict[str, int] = {"": self._numbered(("left out",))}
        self.node_number: dict[int, int] = {}
        for name in self.inputs:
            self.number[name] = self._numbered(("input", name))
        for name, values in self.tensors.items():
            if name not in self.number:  # one that is an input too is a mere default
                self.number[name] = self._numbered(_content(values))
        waiting = self.nodes
        while waiting:
            later = [node for node in waiting if not self._number(node)]
            if len(later) == len(waiting):  # a cycle, or a value that nobody makes
                for node in later:
                    for name in node.inputs:
                        self.number.setdefault(name, self._numbered(("nobody's", name)))
            waiting = later

    def computes_the_same(self, other: _Graph) -> bool:
        """Whether outputs, values known by name, and the set of everything computed are the same."""
        return (
            self._known_by_name(other) == other._known_by_name(self)
            and set(self.node_number.values()) == set(other.node_number.values())
            and {self.number[name] for name in self.tensors} == {other.number[name] for name in other.tensors}
        )

    def _known_by_name(self, other: _Graph) -> dict[str, int | None]:
        named = (n for n in self.maker if n.endswith(SPIKES) or (n.endswith(POTENTIAL) and n in other.maker))
        return {name: self.number.get(name) for name in (*self.outputs, *named)}

    def _numbered(self, key: Hashable) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _number(self, node: _Node) -> bool:
        if not all(name in self.number for name in node.inputs):
            return False
        own = self._numbered(node.key(self.number[name] for name in node.inputs))
        self.node_number[id(node)] = own
        for place, name in enumerate(node.outputs):
            if name:
                self.number[name] = self._numbered((own, place))
        return True


def _constant(proto: onnx.NodeProto) -> Tensor | None:
    """The value of a Constant node, where it is an array of numbers."""
    if proto.op_type != "Constant" or proto.domain not in ("", "ai.onnx") or len(proto.attribute) != 1:
        return None
    (attribute,) = proto.attribute
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name == "value" and attribute.type == onnx.AttributeProto.TENSOR:
        return read_tensor(attribute.t)
    if attribute.name in kinds:
        return np.array(helper.get_attribute_value(attribute), dtype=kinds[attribute.name])
    return None


class _Pairing:
    """Which node and tensor of one model is which of the other's."""

    def __init__(self, want: _Graph, have: _Graph) -> None:
        self.want, self.have = want, have
        self.value: dict[str, str] = {}
        self.back: dict[str, str] = {}
        self.node: dict[int, _Node] = {}
        self._taken: set[int] = set()
        self._numbers = [{graph.number.get(name) for name in graph.tensors} for graph in (want, have)]
        for name in want.inputs:
            if name in have.inputs:
                self._pair_values(name, name)
        self._pair_by_number()
        self._pair_by_name()
        while self._pair_readers() or self._pair_sources():
            pass

    @property
    def rewritten(self) -> bool:
        """Whether nodes of one model have no counterpart in the other."""
        return len(self.node) != len(self.want.nodes) or len(self._taken) != len(self.have.nodes)

    def tensors(self, rewritten: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The paired tensors by the export's names; where the model is not rewritten, the unpaired ones too."""
        lacking = {name for name in self.want.tensors if name not in self.value and not self._covered(name)}
        kept = self.value.keys() | (frozenset() if rewritten else lacking)
        expected = {name: values for name, values in self.want.tensors.items() if name in kept}
        found = {name: self.have.tensors[self.value[name]] for name in expected if name in self.value}
        if not rewritten:
            found |= {n: values for n, values in self.have.tensors.items() if not self._known(n)}
        return expected, found

    def differences(self, rewritten: bool) -> Iterator[ContentDifference]:
        """What differs between paired nodes, and what has no counterpart."""
        for node in self.want.nodes:
            other = self.node.get(id(node))
            if other is None:
                yield ContentDifference("node", node.name, f"({node.operator}) is missing in the file", rewritten)
                continue
            problems = list(self._between(node, other))
            # Of another tool's operator, what it has and reads says no more.
            for problem in problems[:1] if rewritten and node.operator != other.operator else problems:
                told = problem if node.operator != other.operator else f"({node.operator}) {problem}"
                yield ContentDifference("node", node.name, told, rewritten)
        for node in self.have.nodes:
            if id(node) not in self._taken:
                yield ContentDifference("node", node.name, f"({node.operator}) is not expected in the file", rewritten)
        if rewritten:
            for name in self.want.tensors:
                if name not in self.value and not self._covered(name):
                    yield ContentDifference("tensor", name, "is missing in the file", rewritten)
            for name in self.have.tensors:
                if not self._known(name):
                    yield ContentDifference("tensor", name, "is not expected in the file", rewritten)
        for name in self.want.maker:
            called = self.value.get(name, name)
            known = name.endswith(SPIKES) or (name.endswith(POTENTIAL) and name in self.have.maker)
            if known and name not in self.want.outputs and called != name:
                yield ContentDifference("value", name, f"is called '{called}' in the file", rewritten)

    def _covered(self, name: str) -> bool:
        """Whether an unpaired tensor of the export is in the file all the same, under a name paired otherwise."""
        return self.want.number.get(name) in self._numbers[1]

    def _known(self, name: str) -> bool:
        """Whether a tensor of the file is one of the export's, or the same as one."""
        return name in self.back or self.have.number.get(name) in self._numbers[0]

    def _between(self, node: _Node, other: _Node) -> Iterator[str]:
        if node.operator != other.operator:
            yield f"is {other.operator}, should be {node.operator}"
        else:
            for name in dict.fromkeys([*node.attributes, *other.attributes]):
                want, have = node.attributes.get(name), other.attributes.get(name)
                if _hashable(want) == _hashable(have):
                    continue
                if have is None:
                    yield f"has no {name}, should have {_told(want)}"
                else:
                    yield f"has {name} {_told(have)}, should {'have none' if want is None else f'be {_told(want)}'}"
        if len(node.inputs) != len(other.inputs):
            yield f"has {len(other.inputs)} inputs, should have {len(node.inputs)}"
        for place, (want, have) in enumerate(zip(node.inputs, other.inputs, strict=False)):
            if self.value.get(want) != have and self.want.number.get(want) != self.have.number.get(have):
                yield f"reads {self._called(have)} as input {place}, should read {self._origin(want)}"
        if len(node.outputs) != len(other.outputs):
            yield f"has {len(other.outputs)} outputs, should have {len(node.outputs)}"
        for place, (want, have) in enumerate(zip(node.outputs, other.outputs, strict=False)):
            if (want in self.want.outputs or have in self.have.outputs) and want != have:
                yield f"makes '{have}' as output {place}, should make '{want}'"

    def _origin(self, value: str) -> str:
        return f"'{value}'" if value else "nothing"

    def _called(self, value: str) -> str:
        """A value of the file, by the export's name where that is another."""
        name = self.back.get(value, value)
        return self._origin(value) if name == value else f"'{value}' (the export's '{name}')"

    def _pair_values(self, want: str, have: str) -> bool:
        if not want or not have or want in self.value or have in self.back:
            return False
        self.value[want] = have
        self.back[have] = want
        return True

    def _pair_nodes(self, want: _Node, have: _Node) -> bool:
        if id(want) in self.node or id(have) in self._taken:
            return False
        self.node[id(want)] = have
        self._taken.add(id(have))
        for one, other in zip(want.outputs, have.outputs, strict=False):
            self._pair_values(one, other)
        return True

    def _pair_by_number(self) -> None:
        """What is the same, under the same name where there are several."""
        for by_name in (True, False):
            waiting: dict[int, list[_Node]] = {}
            for node in self.have.nodes:
                if id(node) not in self._taken and id(node) in self.have.node_number:
                    waiting.setdefault(self.have.node_number[id(node)], []).append(node)
            for node in self.want.nodes:
                for other in waiting.get(self.want.node_number.get(id(node), -1), ()):
                    if (not by_name or node.outputs == other.outputs) and self._pair_nodes(node, other):
                        break
            tensors: dict[int | None, list[str]] = {}
            for name in self.have.tensors:
                tensors.setdefault(self.have.number.get(name), []).append(name)
            for name in self.want.tensors:
                for found in tensors.get(self.want.number.get(name), ()):
                    if (not by_name or name == found) and self._pair_values(name, found):
                        break

    def _pair_by_name(self) -> None:
        for node in self.want.nodes:
            for output in node.outputs:
                if output in self.have.maker:
                    self._pair_nodes(node, self.have.maker[output])
        for name in self.want.tensors:
            if name in self.have.tensors:
                self._pair_values(name, name)

    def _pair_readers(self) -> bool:
        """Unpaired nodes that do the same with values that are paired already."""
        waiting = {
            node.key(self.back.get(name, ("unpaired", name)) for name in node.inputs): node
            for node in self.have.nodes
            if id(node) not in self._taken
        }
        paired = False
        for node in self.want.nodes:
            if id(node) not in self.node and (other := waiting.get(node.key(node.inputs))) is not None:
                paired = self._pair_nodes(node, other) or paired
        return paired

    def _pair_sources(self) -> bool:
        """What paired nodes read at the same place, where neither has a counterpart yet."""
        paired = False
        for node in self.want.nodes:
            other = self.node.get(id(node))
            if other is None:
                continue
            for want, have in zip(node.inputs, other.inputs, strict=False):
                if want in self.value or have in self.back:
                    continue
                one, two = self.want.maker.get(want), self.have.maker.get(have)
                if one is not None and two is not None:
                    paired = self._pair_nodes(one, two) or paired
                elif want in self.want.tensors and have in self.have.tensors:
                    paired = self._pair_values(want, have) or paired
        return paired
