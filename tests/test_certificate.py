"""The certificate of an exact file: recomputed from the file alone, and refused where anything was altered."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

import dalif_deploy
from dalif_deploy import DALIF, export, save
from dalif_deploy.certificate import CertificateCheck, check_certificate
from dalif_deploy.certificate.sums import Inexact, Sum, Term, constant_term, whole_numbers
from dalif_deploy.deploy import exporting
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.onnx import to_onnx
from dalif_deploy.lattice import Precision
from dalif_deploy.passes.snap import snap
from tests.commands import DIGITS
from tests.test_exact_arithmetic import MAKERS, PRECISIONS, folded
from tests.test_snap import random_graph

Alter = Callable[[Any], None]


@cache
def exact_file(name: str, precision: Precision) -> bytes:
    graph, lattices = snap(folded(name)[0], precision)
    content: bytes = to_onnx(graph, precision=precision, lattices=lattices).SerializeToString()
    return content


def checked(content: bytes, folder: Path) -> CertificateCheck:
    path = folder / "net.onnx"
    path.write_bytes(content)
    return check_certificate(path)


def altered(content: bytes, folder: Path, alter: Alter) -> CertificateCheck:
    """The check of a file after `alter(model)`."""
    model = onnx.load_model_from_string(content)
    alter(model)
    return checked(model.SerializeToString(), folder)


def with_certificate(change: Callable[[list[dict[str, Any]]], None]) -> Alter:
    def alter(model: Any) -> None:
        for entry in model.metadata_props:
            if entry.key == "certificate":
                claims = json.loads(entry.value)
                change(claims)
                entry.value = json.dumps(claims)

    return alter


def with_tensor(name: str, change: Callable[[NDArray[Any]], None]) -> Alter:
    def alter(model: Any) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return alter


# Files as they are written.


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MAKERS)
def test_a_written_file_is_what_its_certificate_says(name: str, precision: Precision, tmp_path: Path) -> None:
    content = exact_file(name, precision)
    check = checked(content, tmp_path)
    assert check.findings == ()
    assert check.holds
    assert check.precision == precision
    entries = {e.key: e.value for e in onnx.load_model_from_string(content).metadata_props}
    claims = json.loads(entries["certificate"])
    assert sorted((layer.as_json() for layer in check.layers), key=lambda c: c["node"]) == sorted(
        claims, key=lambda c: c["node"]
    )
    assert json.loads(json.dumps(check.as_json()))["holds"] is True


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(PRECISIONS))
def test_a_random_file_is_what_its_certificate_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, precision: Precision
) -> None:
    graph = random_graph(data.draw)
    try:
        snapped, lattices = snap(graph, precision)
        content = to_onnx(snapped, precision=precision, lattices=lattices).SerializeToString()
    except DalifError as error:
        assert error.code == Code.TARGET_CANNOT_HOLD  # noqa: PT017
        return
    assert checked(content, tmp_path_factory.mktemp("random")).findings == ()


# The certificate altered.


def integers(claim: dict[str, Any]) -> list[tuple[str, int | None]]:
    found: list[tuple[str, int | None]] = [(key, None) for key in ("largest", "limit", "inputs_maximum")]
    return [*found, *(("exponents", i) for i in range(len(claim["exponents"])))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("channels", "groups"), [(4, 2), (32, 1)], ids=["slices of groups", "planes"])
def test_a_padded_pool_before_weights_is_whole(
    channels: int, groups: int, precision: Precision, tmp_path: Path
) -> None:
    """Its counts come of a convolution with ones, and are then repeated for every slice, or made codes."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, channels, 3), DALIF(), nn.AvgPool2d(3, stride=2, padding=1),
        nn.Conv2d(channels, channels, 3, groups=groups), DALIF(), nn.Flatten(), nn.Linear(channels, 2),
    )  # fmt: skip
    batch = np.zeros((1, 1, 8, 8), dtype=np.float32)
    save(layers, tmp_path / "model.pt", example_input=batch, timesteps=2, encoding="spikes")
    export(tmp_path / "model.pt", tmp_path / "net.onnx", to="onnx", precision=precision)
    assert check_certificate(tmp_path / "net.onnx").findings == ()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["uint8 codes", "two-branch residual", "wide", "ties"])
def test_every_integer_of_the_certificate_counts(name: str, precision: Precision, tmp_path: Path) -> None:
    content = exact_file(name, precision)
    entries = {e.key: e.value for e in onnx.load_model_from_string(content).metadata_props}
    claims = json.loads(entries["certificate"])
    places = [(i, *place) for i, claim in enumerate(claims) for place in integers(claim)]
    rng = np.random.default_rng(0)
    for number in rng.permutation(len(places))[:40]:
        i, key, index = places[number]
        by = int(rng.choice([-1, 1]))

        def change(
            claims: list[dict[str, Any]], i: int = i, key: str = key, index: int | None = index, by: int = by
        ) -> None:
            if index is None:
                claims[i][key] += by
            else:
                claims[i][key][index] += by

        findings = altered(content, tmp_path, with_certificate(change)).findings
        assert len(findings) == 1, (claims[i]["node"], key, index)
        assert f"'{claims[i]['node']}': the certificate says {key}" in findings[0]


def set_field(key: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(claims: list[dict[str, Any]]) -> None:
        claims[0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (set_field("form", "slices2"), "says form = slices2, the file's is slices3"),
        (set_field("weights", "0" * 64), "says weights"),
        (set_field("node", "conv9"), "'conv9': stands in the certificate, but no such layer"),
        (set_field("largest", 1.5), "says largest = 1.5"),
        (set_field("exponents", [1]), r"says exponents = \[1\]"),
        (lambda claims: claims.pop(0), "'conv1': is in the file, but not in its certificate"),
    ],
)
def test_another_certificate_is_found(change: Any, finding: str, tmp_path: Path) -> None:
    check = altered(exact_file("uint8 codes", "exact"), tmp_path, with_certificate(change))
    assert not check.holds
    assert any(re.search(finding, line) for line in check.findings), check.findings


# The weights altered.


def weight_tensors(name: str, precision: Precision) -> list[str]:
    model = onnx.load_model_from_string(exact_file(name, precision))
    ends = (".slices", ".slices_bias", ".plane0", ".plane1", ".plane2", ".plane3", ".bias0", ".bias2")
    return [tensor.name for tensor in model.graph.initializer if tensor.name.endswith(ends)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["uint8 codes", "two-branch residual", "wide"])
def test_every_altered_weight_is_found(name: str, precision: Precision, tmp_path: Path) -> None:
    content = exact_file(name, precision)
    rng = np.random.default_rng(1)
    tensors = weight_tensors(name, precision)
    assert tensors
    for tensor in tensors:
        for _ in range(3):
            place = int(rng.integers(0, 2**31))

            def change(values: NDArray[Any], place: int = place) -> None:
                flat = values.reshape(-1)
                i = place % flat.size
                if values.dtype.kind == "f":  # one bit, the last
                    flat[i] = np.nextafter(flat[i], np.float32(np.inf))
                else:
                    flat[i] += -1 if flat[i] > 0 else 1

            findings = altered(content, tmp_path, with_tensor(tensor, change)).findings
            assert findings, tensor
            assert any(tensor.rpartition(".")[0] in line for line in findings), (tensor, findings)


def test_a_weight_beyond_the_grid_is_found(tmp_path: Path) -> None:
    def change(values: NDArray[Any]) -> None:
        values[0] *= np.float32(1.0000001)
        values[0] += np.float32(1e-9)

    check = altered(exact_file("uint8 codes", "exact"), tmp_path, with_tensor("conv2.slices", change))
    assert any("units of its grid, beyond" in line for line in check.findings)


def test_a_scaled_weight_is_found(tmp_path: Path) -> None:
    """All weights times two: as exact as before, and not what the certificate is about."""

    def change(values: NDArray[Any]) -> None:
        values *= 2

    def alter(model: Any) -> None:
        for name in ("conv2.slices", "conv2.slices_bias"):
            with_tensor(name, change)(model)

    check = altered(exact_file("uint8 codes", "exact"), tmp_path, alter)
    assert all("'conv2': the certificate says" in line for line in check.findings)
    assert {line.split()[4].partition("[")[0] for line in check.findings} >= {"exponents", "weights"}


def test_an_altered_unit_is_found(tmp_path: Path) -> None:
    names = {t.name for t in onnx.load_model_from_string(exact_file("wide", "exact")).graph.initializer}
    units = [name for name in names if name.endswith("unit")]
    assert units
    for name in units:

        def change(values: NDArray[Any]) -> None:
            values.reshape(-1)[0] *= 2

        assert altered(exact_file("wide", "exact"), tmp_path, with_tensor(name, change)).findings


def test_a_factor_after_the_rounding_is_found(tmp_path: Path) -> None:
    """A power of two changes no digit; anything else rounds once more."""

    def change(values: NDArray[Any]) -> None:
        values *= np.float32(1.5)

    model = onnx.load_model_from_string(exact_file("plain", "exact"))
    (name,) = (tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".unit"))
    check = altered(exact_file("plain", "exact"), tmp_path, with_tensor(name, change))
    assert any("multiplies a rounded sum" in line for line in check.findings)


# Graphs that are not exact, whatever their certificate says.


def small(*nodes: Any, constants: dict[str, NDArray[Any]], claims: list[Any]) -> bytes:
    """A file whose input is uint8 [batch, 2, 4, 4], with a certificate."""
    rank = 2 if any(node.op_type == "Flatten" for node in nodes) else 4
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input"], ["x"], name="x", to=1), *nodes],
        "net",
        [helper.make_tensor_value_info("input", onnx.TensorProto.UINT8, ["batch", 2, 4, 4])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [None] * rank)],
        initializer=[numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(
        model,
        {"certificate": json.dumps(claims), "precision": "exact", "encoding": json.dumps({"kind": "uint8"})},
    )
    content: bytes = model.SerializeToString()
    return content


def conv_node(*inputs: str, output: str = "a/slices") -> Any:
    return helper.make_node("Conv", list(inputs), [output], name="a")


def weights(value: float, channels: int = 2) -> NDArray[np.float32]:
    return np.full((channels, 2, 1, 1), value, dtype=np.float32)


def slices_and(node: Any) -> list[Any]:
    return [
        conv_node("x", "a.slices"),
        helper.make_node("Split", ["a/slices"], ["a/slice0", "a/slice1"], name="split", axis=1, num_outputs=2),
        node,
    ]


GOOD = [
    helper.make_node("Add", ["a/slice0", "a/slice1"], ["a/output"], name="a/output"),
    helper.make_node("Identity", ["a/output"], ["logits"], name="readout"),
]
SLICED = {"a.slices": np.concatenate([weights(4096.0, 1), weights(0.125, 1)])}


def findings(folder: Path, *nodes: Any, **constants: NDArray[Any]) -> tuple[str, ...]:
    return checked(small(*nodes, constants=constants, claims=[]), folder).findings


def test_a_file_written_by_hand(tmp_path: Path) -> None:
    content = small(*slices_and(GOOD[0]), GOOD[1], constants=SLICED, claims=[])
    check = checked(content, tmp_path)
    assert check.findings == ("'a': is in the file, but not in its certificate",)
    (layer,) = check.layers
    assert (layer.form, layer.exponents, layer.largest, layer.inputs_maximum) == ("slices2", (3,), 510, 255)


@pytest.mark.parametrize(("bias", "beyond"), [(1.0, False), (2.0, True), (-1.0, False), (-(2.0**24) - 2, True)])
def test_the_limit_of_float32_is_met_exactly(bias: float, beyond: bool, tmp_path: Path) -> None:
    """255 * 65793 is 2^24 - 1; the negative terms count apart."""
    constants = {
        "a.slices": np.array([[[[65793.0]], [[0.0]]]], dtype=np.float32),
        "a.slices_bias": np.array([bias], dtype=np.float32),
    }
    found = findings(tmp_path, conv_node("x", "a.slices", "a.slices_bias", output="logits"), **constants)
    assert any("beyond the 16777216" in line for line in found) == beyond


ONES = np.ones((32, 1), dtype=np.float32)


def node(op: str, inputs: list[str], output: str = "logits", **attributes: Any) -> Any:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


@pytest.mark.parametrize(
    ("nodes", "constants", "finding"),
    [
        ([node("Sigmoid", ["x"])], {}, "not known to compute the same everywhere"),
        ([node("Sigmoid", ["x"], "s"), conv_node("s", "w")], {"w": weights(1.0)}, "holds no whole numbers"),
        ([node("Relu", ["x"], "r"), node("GlobalAveragePool", ["r"])], {}, "not known"),
        ([node("AveragePool", ["x"], kernel_shape=[3, 3], count_include_pad=1)], {}, "no power of two"),
        ([node("AveragePool", ["x"], kernel_shape=[2, 2])], {}, "no power of two"),
        ([node("Mul", ["x", "c"], "m"), conv_node("m", "w")], {"c": np.float32([0.3]), "w": weights(1.0)}, "no whole"),
        ([node("Pad", ["x", "p", "v"])], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "v": np.float32(1.0)}, "zeros"),
        ([node("Pad", ["x", "p"], mode="reflect")], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, "zeros"),
        ([node("Flatten", ["x"], "f"), node("Gemm", ["f", "w"], alpha=0.5)], {"w": ONES}, "factors"),
        ([conv_node("x", "w", output="c"), node("Transpose", ["c"], perm=[0, 1, 3, 2])], {"w": weights(1)}, "moves a"),
        ([conv_node("x", "w", output="c"), conv_node("c", "w")], {"w": weights(1.0)}, "holds no whole numbers"),
    ],
)  # fmt: skip
def test_what_is_not_exact_is_found(nodes: list[Any], constants: dict[str, Any], finding: str, tmp_path: Path) -> None:
    if nodes[-1].output[0] != "logits":
        nodes = [*nodes, node("Identity", [nodes[-1].output[0]])]
    assert any(finding in line for line in findings(tmp_path, *nodes, **constants))


def test_an_addition_that_rounds_before_the_last_is_found(tmp_path: Path) -> None:
    """An identity branch that is added to two slices already put together: rounded twice."""
    potential = "n/t0/potential"
    nodes = [
        *slices_and(node("Add", ["a/slice0", "a/slice1"], "a/total")),
        node("Add", ["a/total", "one"], "sum"), node("Add", ["sum", "leak"], potential), node("Identity", [potential]),
    ]  # fmt: skip
    nodes.insert(3, node("MaxPool", ["x"], "pooled", kernel_shape=[1, 1]))
    nodes.insert(4, node("Add", ["pooled", "pooled"], "one"))
    constants = {"a.slices": np.concatenate([weights(4096.0, 1), weights(0.125, 1)]), "leak": np.float32([0.5])}
    found = findings(tmp_path, *nodes, **constants)
    assert any(potential in line and "rounded once" in line for line in found)


def test_a_branch_that_does_not_fit_is_found(tmp_path: Path) -> None:
    """Two branches, each within 2^24, whose sum is not."""
    nodes = [
        helper.make_node("Conv", ["x", "a.slices"], ["a/slices"], name="a"),
        helper.make_node("Conv", ["x", "b.slices"], ["b/slices"], name="b"),
        node("Add", ["a/slices", "b/slices"]),
    ]
    fits = {"a.slices": weights(2.0**14), "b.slices": weights(1.0)}
    beyond = {"a.slices": weights(2.0**15 + 127), "b.slices": weights(3.0)}
    assert not any("beyond" in line for line in findings(tmp_path, *nodes, **fits))
    assert any("(Add)" in line and "beyond the 16777216" in line for line in findings(tmp_path, *nodes, **beyond))


def plane_nodes() -> list[Any]:
    return [
        node("Flatten", ["input"], "flat"),
        node("MatMulInteger", ["flat", "a.plane0"], "a/plane0"),
        node("Cast", ["a/plane0"], to=1),
    ]


def test_planes_of_codes_are_found(tmp_path: Path) -> None:
    """255 * 127 twice is beyond int16."""
    found = findings(tmp_path, *plane_nodes(), **{"a.plane0": np.full((32, 3), 127, dtype=np.int8)})
    assert any("saturate" in line for line in found)


# What the numbers are read with.


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=5))
def test_whole_numbers_are_the_values(values: list[float]) -> None:
    row = np.array([values])
    try:
        exponents, whole = whole_numbers(row)
    except Inexact:
        used = [abs(v) for v in values if v]
        assert max(used) / min(used) > 2.0**30
        return
    assert (np.ldexp(whole.astype(np.float64), -exponents[:, None]) == row).all()
    if row.any():
        assert (whole[0] & 1).any()  # no coarser grid holds them


def test_a_sum_reaches_what_its_terms_reach() -> None:
    terms = {"a": Term(np.array([[3, -5, 7]]), 2), "b": Term(np.array([[1, -9]]), 4, single=True)}
    value = Sum("float32", 1, 2, np.array([0]), terms, {"c": constant_term(np.array([[-2]]), "c")})
    assert value.reach() == [5 * 2 + 9 * 4 + 2]


# Files that cannot be checked.


def refused(code: Code, why: str) -> Any:
    return pytest.raises(DalifError, match=rf"\[{code.identifier}\].*{why}")


def test_files_without_a_certificate_are_refused(tmp_path: Path) -> None:
    with refused(Code.FILE_MISSING, "cannot be read"):
        check_certificate(tmp_path / "missing.onnx")
    path = tmp_path / "other.onnx"
    path.write_bytes(b"something else")
    with refused(Code.FOREIGN_FILE, "neither an ONNX nor a NIR file"):
        check_certificate(path)
    path.write_bytes(to_onnx(folded("ties")[0]).SerializeToString())
    with refused(Code.FOREIGN_FILE, "holds no certificate"):
        check_certificate(path)
    content = exact_file("ties", "exact")
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DalifError) as caught:
        check_certificate(path)
    assert caught.value.code in (Code.FILE_DAMAGED, Code.FOREIGN_FILE)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[{}]", "null", '[{"node": "conv1"}]'])
def test_a_certificate_that_cannot_be_read_is_damage(text: str, tmp_path: Path) -> None:
    def alter(model: Any) -> None:
        for entry in model.metadata_props:
            if entry.key == "certificate":
                entry.value = text

    with refused(Code.FILE_DAMAGED, "certificate cannot be read"):
        altered(exact_file("ties", "exact"), tmp_path, alter)


def test_a_split_of_fewer_outputs_than_it_has_is_damage(tmp_path: Path) -> None:
    """ONNX's shape inference would end the process."""

    def alter(model: Any) -> None:
        split = next(node for node in model.graph.node if node.op_type == "Split")
        next(a for a in split.attribute if a.name == "num_outputs").i -= 1

    with refused(Code.FILE_DAMAGED, "says it makes"):
        altered(exact_file("ties", "exact"), tmp_path, alter)


def test_a_layer_that_stands_twice_is_damage(tmp_path: Path) -> None:
    with refused(Code.FILE_DAMAGED, "twice"):
        altered(exact_file("ties", "exact"), tmp_path, with_certificate(lambda claims: claims.append(claims[0])))


def test_the_checker_shares_no_code_with_what_it_checks() -> None:
    """It imports onnx, nir, numpy, the errors and itself; and what opens a .nir file, of which it takes the nodes."""
    modules_of_it = sorted((Path(dalif_deploy.__file__).parent / "certificate").glob("*.py"))
    assert len(modules_of_it) > 4
    for path in modules_of_it:
        for found in ast.walk(ast.parse(path.read_text())):
            modules = [found.module or ""] if isinstance(found, ast.ImportFrom) else []
            modules += [alias.name for alias in found.names] if isinstance(found, ast.Import) else []
            for module in modules:
                own = module.startswith("dalif_deploy")
                inside = module.startswith("dalif_deploy.certificate.")
                assert not own or inside or module in ("dalif_deploy.errors", "dalif_deploy.nir_io"), module


def test_an_export_keeps_no_file_whose_certificate_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = exporting.check_certificate

    def doubting(path: str | Path) -> CertificateCheck:
        check = real(path)
        assert check.holds
        return replace(check, findings=("conv1: 2^24 is exceeded",))

    export(DIGITS, tmp_path / "right.onnx", to="onnx", precision="exact", verified=False)
    monkeypatch.setattr(exporting, "check_certificate", doubting)
    with pytest.raises(DalifError, match=r"its certificate does not hold: conv1: 2\^24 is exceeded") as caught:
        export(DIGITS, tmp_path / "wrong.onnx", to="onnx", precision="exact", verified=False)
    assert caught.value.code is Code.FAULT
    assert [path.name for path in tmp_path.iterdir()] == ["right.onnx"]
