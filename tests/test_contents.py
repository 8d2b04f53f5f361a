"""What dalif-verify finds in a file that is not what the model exports to, exercised by a sample or not.

Files are edited by hand, with onnx's and h5py's own means; what must be found is what was edited.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import dalif_deploy
from dalif_deploy import Code
from dalif_deploy.deploy import decide_again
from tests.commands import Ran, dalif, done, model_of, refused

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt (T = 4; conv1, sn1, pool1, conv2, sn2, flatten, fc1, sn3, fc2), data.npy, and exports of it."""
    folder = tmp_path_factory.mktemp("contents")
    model, batch = model_of("plain", folder)
    np.save(folder / "data.npy", batch[:2])
    graph = dalif_deploy.load(model)
    named = dalif_deploy.SpikingGraph(
        graph.nodes, output=graph.output, timesteps=graph.timesteps, class_names=("a", "b", "c", "d", "e")
    )
    dalif_deploy.export(named, model, to="pt", force=True)
    for name, options in {
        "net.onnx": (), "spikes.onnx": ("--outputs", "spikes"), "net.nir": (),
    }.items():  # fmt: skip
        done("export", "--to", name.partition(".")[2], model, "-o", folder / name, "--no-verify", *options)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for the test alone."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def edited(path: Path, edit: Edit) -> Path:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    return path


def verified(path: Path, *more: object) -> Ran:
    runtime = "onnxruntime" if path.suffix == ".onnx" else "events"
    data = path.parent / "data.npy"
    return dalif("verify", path.parent / "model.pt", path, "--data", data, "--runtime", runtime, "-q", *more)


def found(path: Path) -> tuple[str, list[str], list[str]]:
    """The verdict, the contents and the tensors that differ."""
    ran = verified(path, "--json")
    assert ran.out, ran.err
    (runtime,) = [runtime for runtime in ran.json()["runtimes"] if runtime["file"] is not None]
    assert ran.status == (0 if ran.json()["verdict"] in ("exact", "rounding") else 1)
    contents = [f"{entry['part']} '{entry['name']}' {entry['problem']}" for entry in runtime["contents_differing"]]
    return runtime["verdict"], contents, [entry["name"] for entry in runtime["tensors_differing"]]


def node(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if output in node.output)


def attribute(model: onnx.ModelProto, output: str, name: str) -> onnx.AttributeProto:
    return next(attribute for attribute in node(model, output).attribute if attribute.name == name)


def entry(model: onnx.ModelProto, key: str) -> Any:
    return next(entry for entry in model.metadata_props if entry.key == key)


def change_json(model: onnx.ModelProto, key: str, change: Callable[[Any], None]) -> None:
    values = json.loads(entry(model, key).value)
    change(values)
    entry(model, key).value = json.dumps(values)


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for proto in model.graph.node:
        for values in (proto.input, proto.output):
            values[:] = [names.get(name, name) for name in values]
    for value in (*model.graph.value_info, *model.graph.initializer):
        value.name = names.get(value.name, value.name)


def inserted(model: onnx.ModelProto, before: str, op: str) -> None:
    """A node between the one that makes `before` and its first input."""
    reader = node(model, before)
    extra = helper.make_node(op, [reader.input[0]], ["extra/output"], name="extra")
    model.graph.node.insert(list(model.graph.node).index(reader), extra)
    reader.input[0] = "extra/output"


# What the export is, is exact.


@pytest.mark.parametrize("name", ["net.onnx", "spikes.onnx", "net.nir"])
def test_an_export_is_what_it_should_be(made: Path, name: str) -> None:
    assert found(made / name) == ("exact", [], [])


def test_a_dialect_is_compared_with_itself(place: Path) -> None:
    done("export", "--to", "nir", place / "model.pt", "-o", place / "x.nir", "--nir-dialect", "snntorch", "--no-verify")
    assert found(place / "x.nir") == ("exact", [], [])


@pytest.mark.parametrize("precision", ["exact", "exact64"])
def test_exact_files_of_another_opset_are_compared_with_themselves(tmp_path: Path, precision: str) -> None:
    model, batch = model_of("uint8 codes", tmp_path)
    np.save(tmp_path / "data.npy", batch[:2])
    path = tmp_path / "x.onnx"
    options = ("--precision", precision, "--outputs", "spikes", "--opset", 20, "--no-verify")
    done("export", "--to", "onnx", model, "-o", path, *options)
    assert found(path) == ("exact", [], [])
    edited(path, lambda net: setattr(entry(net, "channels_last"), "value", '["sn1"]'))
    ran = verified(path)
    assert ran.status != 0
    assert "metadata 'channels_last'" in ran.out + ran.err


# What means the same is the same.


def _rename_values(model: onnx.ModelProto) -> None:
    outputs = {name for proto in model.graph.node for name in proto.output}
    rename(
        model,
        {name: f"v{i}" for i, name in enumerate(sorted(outputs)) if not name.endswith("/spikes") and name != "logits"},
    )


def _rename_helpers(model: onnx.ModelProto) -> None:
    names = [tensor.name for tensor in model.graph.initializer if tensor.name.startswith(("constants/", "integers/"))]
    assert len(names) >= 2
    rename(model, {name: f"helper{i}" for i, name in enumerate(names)})


def _constant_nodes(model: onnx.ModelProto) -> None:
    for tensor in list(model.graph.initializer):
        if tensor.name.startswith(("constants/", "sn1.")):
            model.graph.initializer.remove(tensor)
            model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))


def _late(model: onnx.ModelProto) -> None:
    """Another order that is one: of the nodes that could come next, always the last."""
    nodes, placed = list(model.graph.node), []
    while nodes:
        ready = [n for n in nodes if not any(set(n.input) & set(other.output) for other in nodes)]
        placed.append(ready[-1])
        nodes.remove(ready[-1])
    assert placed != list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(placed)


def _said_defaults(model: onnx.ModelProto) -> None:
    node(model, "conv2/output").attribute.append(helper.make_attribute("auto_pad", "NOTSET"))
    model.opset_import.append(helper.make_opsetid("com.example", 3))  # that no node uses
    model.metadata_props.add(key="author", value="somebody")
    entry(model, "layers").value = json.dumps(json.loads(entry(model, "layers").value), indent=2)
    for proto in model.graph.node:
        proto.name, proto.doc_string = "", "a node"


def _other_tool(model: onnx.ModelProto) -> None:
    entry(model, "tool").value = "dalif_deploy 0.0.9"
    entry(model, "source_sha256").value = "0" * 64


@pytest.mark.parametrize(
    "edit", [_rename_values, _rename_helpers, _constant_nodes, _late, _said_defaults, _other_tool]
)  # fmt: skip
def test_what_means_the_same_is_no_difference(place: Path, edit: Edit) -> None:
    assert found(edited(place / "spikes.onnx", edit)) == ("exact", [], [])


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_a_file_that_onnx_runtime_has_optimised(place: Path, level: str) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(place / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(place / "spikes.onnx"), options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(place / "optimised.onnx").graph.node}
    verdict, contents, tensors = found(place / "optimised.onnx")
    if operators == {node.op_type for node in onnx.load(place / "spikes.onnx").graph.node}:
        assert (verdict, contents, tensors) == ("exact", [], [])
        return
    assert verdict == "unproved"
    assert any("is not expected in the file" in entry for entry in contents)
    said = verified(place / "optimised.onnx").out
    assert "the file is not built as dalif-export builds it, so only the samples speak for it" in said


def test_another_structure_is_unproved_though_every_spike_agrees(place: Path) -> None:
    edited(place / "net.onnx", lambda model: inserted(model, "conv2/output", "Identity"))
    verdict, contents, tensors = found(place / "net.onnx")
    assert (verdict, tensors) == ("unproved", [])
    assert contents == [
        "node 'conv2' (Conv) reads 'extra/output' as input 0, should read 'pool1/output'",
        "node 'extra' (Identity) is not expected in the file",
    ]
    (runtime,) = verified(place / "net.onnx", "--json").json()["runtimes"]
    assert (runtime["spikes_differing"], [e["structural"] for e in runtime["contents_differing"]]) == (0, [True, True])


def test_a_weight_changed_in_another_structure_is_divergent(place: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        inserted(model, "conv2/output", "Identity")
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fc1.weight")
        values = numpy_helper.to_array(tensor).copy()
        values[3, 5] += 1e-6
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    verdict, _, tensors = found(edited(place / "net.onnx", edit))
    assert (verdict, tensors) == ("divergent", ["fc1.weight"])


def test_the_words_of_another_versions_log_are_structural(place: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        change_json(model, "fold_log", lambda log: log.append("in other words"))

    assert found(edited(place / "net.onnx", edit))[0] == "divergent"  # this version writes its own words
    edited(place / "net.onnx", _other_tool)
    assert found(place / "net.onnx")[0] == "unproved"


# What was changed is named, and never passes.


def _no_reader(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["logits"], ["dead"], name="dead"))


def _swapped_terms(model: onnx.ModelProto) -> None:
    fires = node(model, "sn2/t2/fires")
    fires.input[:] = fires.input[::-1]


def _axis(model: onnx.ModelProto) -> None:
    flatten = next(n for n in model.graph.node if n.op_type == "Flatten")
    flatten.attribute[0].i = -3


def _function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Neg", ["x"], ["y"])]
    model.functions.append(helper.make_function("other", "F", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))


def _overridable(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight")
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


CHANGES: dict[str, tuple[Edit, str]] = {
    "a strict threshold": (
        lambda model: setattr(node(model, "sn3/t3/fires"), "op_type", "Greater"),
        "node 'sn3/t3/fires' is Greater, should be GreaterOrEqual",
    ),
    "a subtraction": (
        lambda model: setattr(node(model, "sn2/t1/potential"), "op_type", "Sub"),
        "node 'sn2/t1/potential' is Sub, should be Add",
    ),
    "padding on one side": (
        lambda model: attribute(model, "conv2/output", "pads").ints.__setitem__(slice(None), [2, 2, 0, 0]),
        "node 'conv2' (Conv) has pads [2, 2, 0, 0], should be [1, 1, 1, 1]",
    ),
    "an earlier step": (
        lambda model: node(model, "sn2/t2/fires").input.__setitem__(0, "sn2/t1/potential"),
        "node 'sn2/t2/fires' (GreaterOrEqual) reads 'sn2/t1/potential' as input 0, should read 'sn2/t2/potential'",
    ),
    "exchanged terms": (
        _swapped_terms,
        "node 'sn2/t2/fires' (GreaterOrEqual) reads 'sn2.v_threshold' as input 0, should read 'sn2/t2/potential'",
    ),
    "a node that nobody reads": (_no_reader, "node 'dead' (Neg) is not expected in the file"),
    "a node on the way": (
        lambda model: inserted(model, "fc2/output", "Relu"),
        "node 'extra' (Relu) is not expected in the file",
    ),
    "another axis": (_axis, "node 'flatten' (Flatten) has axis -3, should be 1"),
    "a function": (_function, "file '' holds functions (1), which no export does"),
    "a weight that can be overridden": (_overridable, "input 'conv1.weight' is not expected in the file"),
    "fewer classes": (
        lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 4),
        "output 'logits' is float [any, 4], should be float [any, 5]",
    ),
    "class names": (
        lambda model: change_json(model, "class_names", lambda names: names.reverse()),
        "metadata 'class_names[0]' is e, should be a",
    ),
    "the readout": (
        lambda model: setattr(entry(model, "readout"), "value", "sum"),
        "metadata 'readout' is sum, should be mean",
    ),
    "beta": (
        lambda model: change_json(model, "layers", lambda layers: layers[1].update(beta=0.5)),
        "metadata 'layers[sn2].beta' is 0.5, should be 0.",
    ),
    "the reset": (
        lambda model: change_json(model, "layers", lambda layers: layers[0].update(reset="subtract")),
        "metadata 'layers[sn1].reset' is subtract, should be hard",
    ),
    "the threshold rule": (
        lambda model: change_json(model, "layers", lambda layers: layers[2].update(fires_at="gt")),
        "metadata 'layers[sn3].fires_at' is gt, should be ge",
    ),
    "the fold log": (
        lambda model: change_json(model, "fold_log", lambda log: log.__setitem__(0, "nothing")),
        "metadata 'fold_log[0]' is nothing, should be ",
    ),
    "a certificate": (
        lambda model: model.metadata_props.add(key="certificate", value="[]"),
        "metadata 'certificate' is [], should not be there",
    ),
    "a second operator set": (
        lambda model: model.opset_import.insert(0, helper.make_opsetid("", 13)),
        "opset 'ai.onnx' is there 2 times, should be once",
    ),
    "a second output": (
        lambda model: model.graph.output.append(model.graph.output[0]),
        "output 'logits' is there 2 times, should be once",
    ),
}  # fmt: skip
"""By what was changed: the edit, and what must be said."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_onnx_file_names_what_was_changed(place: Path, change: str) -> None:
    edit, said = CHANGES[change]
    path = edited(place / "net.onnx", edit)
    ran = verified(path)
    verdict, contents, _ = found(path)
    assert verdict in ("unproved", "divergent")
    assert any(entry.startswith(said) for entry in contents), contents
    assert ran.status == 1
    assert "contents that differ: " in ran.out.splitlines()[-1]


def test_what_is_not_exercised_is_found_all_the_same(place: Path) -> None:
    """No potential of the data is on its threshold, so that no sample tells > from >=."""
    edited(place / "net.onnx", CHANGES["a strict threshold"][0])
    (runtime,) = verified(place / "net.onnx", "--json").json()["runtimes"]
    assert (runtime["spikes_differing"], runtime["verdict"]) == (0, "divergent")
    assert runtime["samples_by_verdict"]["exact"] == 2


def test_an_integer_that_says_where_is_a_tensor_like_others(place: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "integers/4,-1,5")
        tensor.CopyFrom(numpy_helper.from_array(np.array([-1, 4, 5]), tensor.name))

    ran = verified(edited(place / "net.onnx", edit))
    assert ran.status != 0
    assert "integers/4,-1,5" in ran.out + ran.err


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda model: attribute(model, "conv2/output", "strides").ints.__setitem__(slice(None), [2, 2]),
            "node 'conv2' (Conv) has strides [2, 2], should be [1, 1]",
        ),
        (
            lambda model: attribute(model, "conv2/output", "pads").ints.__setitem__(slice(None), [0, 0, 0, 0]),
            "node 'conv2' (Conv) has pads [0, 0, 0, 0], should be [1, 1, 1, 1]",
        ),
        (
            lambda model: setattr(attribute(model, "conv2/output", "group"), "i", 2),
            "node 'conv2' (Conv) has group 2, should be 1",
        ),
    ],
)
def test_a_file_that_cannot_be_run_names_the_node_and_attribute(place: Path, edit: Edit, said: str) -> None:
    path = edited(place / "net.onnx", edit)
    data = ("--data", place / "data.npy")
    message = refused(place, Code.FILE_DAMAGED, "verify", place / "model.pt", path, *data)
    assert message.startswith(f"{path}: {said}; ")
    message = refused(place, Code.FILE_DAMAGED, "run", path, *data)
    assert message.startswith(f"{path}: its shapes contradict each other: ")
    assert "node name: conv2)" in message or "node 'conv2'" in message


def test_what_differs_is_kept_with_stored_results(place: Path) -> None:
    edited(place / "net.onnx", CHANGES["a strict threshold"][0])
    ran = verified(place / "net.onnx", "-o", place / "results.npz", "--json")
    again = decide_again(place / "results.npz").as_json()
    assert again == ran.json()
    assert again["runtimes"][0]["contents_differing"][0]["name"] == "sn3/t3/fires"


# Spikes that a file gives as outputs.


def _other_layer(model: onnx.ModelProto) -> None:
    """sn1's output gives the spikes of step 0 at every step."""
    stack = next(n for n in model.graph.node if n.op_type == "Concat" and "sn1/t0/spikes" in n.input)
    copy = onnx.NodeProto()
    copy.CopyFrom(stack)
    copy.name, copy.output[0] = "again", "again"
    copy.input[:] = ["sn1/t0/spikes"] * len(stack.input)
    nodes = list(model.graph.node)
    model.graph.node.insert(nodes.index(stack) + 1, copy)
    node(model, "sn1/timesteps").input[0] = "again"


def test_a_spikes_output_that_is_wired_otherwise_is_divergent(place: Path) -> None:
    edited(place / "spikes.onnx", _other_layer)
    verdict, contents, _ = found(place / "spikes.onnx")
    assert verdict == "divergent"
    assert "node 'sn1/timesteps' (Reshape) reads 'again' as input 0, should read 'sn1/output'" in contents
    (runtime,) = verified(place / "spikes.onnx", "--json").json()["runtimes"]
    assert runtime["spikes_differing"] > 0
    assert runtime["origins"][0]["layer"] == "sn1"
    assert any("the output 'sn1/spikes' is not the spikes that layer 'sn1' fires" in note for note in runtime["notes"])


def test_a_spikes_output_that_gives_no_spikes_is_refused(place: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        steps = node(model, "sn1/spikes")
        steps.input[0] = "doubled"
        nodes = list(model.graph.node)
        twice = helper.make_node("Add", ["sn1/timesteps", "sn1/timesteps"], ["doubled"], name="doubled")
        model.graph.node.insert(nodes.index(steps), twice)

    edited(place / "spikes.onnx", edit)
    message = refused(
        place, Code.RUNTIME_CANNOT_RUN, "run", place / "spikes.onnx", "--data", place / "data.npy"
    )  # fmt: skip
    assert "the output 'sn1/spikes' gave something else than 0 and 1" in message
    ran = verified(place / "spikes.onnx")
    assert ran.status == 2
    assert "'sn1/spikes'" in ran.err


def test_outputs_speak_for_layers_whose_steps_another_tool_renamed(place: Path) -> None:
    names = {f"sn2/t{t}/spikes": f"renamed{t}" for t in range(4)}
    edited(place / "spikes.onnx", lambda model: rename(model, names))
    verdict, contents, _ = found(place / "spikes.onnx")
    assert verdict == "divergent"
    assert contents[0] == "value 'sn2/t0/spikes' is called 'renamed0' in the file"
    (runtime,) = verified(place / "spikes.onnx", "--json").json()["runtimes"]
    assert runtime["spikes_differing"] == 0


# What the file says of itself.


def test_a_file_of_another_encoding_is_another_models(place: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        change_json(model, "encoding", lambda encoding: encoding.update(kind="uint8"))

    path = edited(place / "net.onnx", edit)
    message = refused(
        place, Code.OTHER_MODEL, "verify", place / "model.pt", path, "--data", place / "data.npy"
    )  # fmt: skip
    assert message == (f"{path}: takes input of encoding 'uint8', the model 'real'; it was exported from another model")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("encoding", '{"kind": "int9"}', "encoding kind 'int9'"),
        ("encoding", '{"kind": "uint8", "scale": 0}', "must not be zero"),
        ("encoding", "[]", "cannot be read"),
        ("class_names", "[1, 2, 3, 4, 5]", "class_names[0] is 1, of type int"),
        ("class_names", '"abcde"', "no sequence of names"),
        ("layers", "[3]", "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["net.onnx", "net.nir"])
def test_damaged_metadata_is_a_damaged_file(place: Path, name: str, key: str, value: str, said: str) -> None:
    if name == "net.onnx":
        edited(place / name, lambda model: setattr(entry(model, key), "value", value))
    else:
        with h5py.File(place / name, "r+") as file:
            replaced(file, f"metadata/{key}", value)
    data = ("--data", place / "data.npy")
    message = refused(place, Code.FILE_DAMAGED, "run", place / name, *data)
    assert message.startswith(f"{place / name}: its metadata cannot be read (")
    assert said in message


@pytest.mark.parametrize(
    ("value", "code", "said"),
    [("int4", Code.FILE_DAMAGED, "precision 'int4'"), ("exact64", Code.OTHER_MODEL, "cannot be made of this model")],
)
def test_a_precision_that_the_file_cannot_have(place: Path, value: str, code: Code, said: str) -> None:
    path = edited(place / "net.onnx", lambda model: model.metadata_props.add(key="precision", value=value))
    message = refused(place, code, "verify", place / "model.pt", path, "--data", place / "data.npy")
    assert message.startswith(f"{path}: ")
    assert said in message


# NIR.


def replaced(file: h5py.File, name: str, value: Any) -> None:
    del file[f"node/{name}"]
    file[f"node/{name}"] = value


def edges(file: h5py.File) -> list[list[str]]:
    return [[end.decode() for end in edge] for edge in file["node/edges"][()]]


def changed_nir(place: Path, change: Callable[[h5py.File], None]) -> Path:
    with h5py.File(place / "net.nir", "r+") as file:
        change(file)
    return place / "net.nir"


NIR_CHANGES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "class names": (
        lambda file: replaced(file, "metadata/class_names", '["a", "b", "c", "d", "f"]'),
        "metadata 'class_names[4]' is f, should be e",
    ),
    "the readout": (
        lambda file: replaced(file, "metadata/readout", "last"),
        "metadata 'readout' is last, should be mean",
    ),
    "an axis": (
        lambda file: replaced(file, "nodes/flatten/start_dim", 0),
        "node 'flatten' (Flatten) has start_dim 0, should be -3",
    ),
}


@pytest.mark.parametrize("change", NIR_CHANGES)
def test_a_changed_nir_file_names_what_was_changed(place: Path, change: str) -> None:
    edit, said = NIR_CHANGES[change]
    verdict, contents, _ = found(changed_nir(place, edit))
    assert (verdict, contents) == ("divergent", [said])


def test_numbers_of_nir_nodes_are_compared(place: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["node/nodes/sn2/v_threshold"][1, 1, 1] *= 1.0 + 1e-12

    verdict, contents, tensors = found(changed_nir(place, edit))
    assert (verdict, contents, tensors) == ("divergent", [], ["sn2.v_threshold"])


def test_a_node_that_nir_nodes_go_round_is_missing(place: Path) -> None:
    """An identity in sn1's place of the chain would do the same; here sn3's input is taken from an equal node."""

    def edit(file: h5py.File) -> None:
        file.copy("node/nodes/fc1", "node/nodes/fc9")
        replaced(file, "edges", [[end.replace("fc1", "fc9") for end in edge] for edge in edges(file)])
        del file["node/nodes/fc1"]

    verdict, contents, _ = found(changed_nir(place, edit))
    assert verdict == "unproved"
    assert contents == [
        "node 'fc1' (Affine) is missing in the file", "node 'fc9' (Affine) is not expected in the file",
        "edge 'flatten -> fc1' is missing in the file", "edge 'fc1 -> sn3' is missing in the file",
        "edge 'flatten -> fc9' is not expected in the file", "edge 'fc9 -> sn3' is not expected in the file",
    ]  # fmt: skip


def _no_edge(file: h5py.File) -> None:
    replaced(file, "edges", edges(file)[:-1])


def _unknown_end(file: h5py.File) -> None:
    replaced(file, "edges", [["nowhere", "conv1"], *edges(file)[1:]])


def _twice(file: h5py.File) -> None:
    replaced(file, "edges", [*edges(file), edges(file)[0]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: replaced(file, "nodes/conv2/stride", [2, 2]), "padding [1, 1], stride [2, 2], weight of sh"),
        (lambda file: replaced(file, "nodes/conv2/groups", 4), "node 'conv2' (Conv2d): weight (12, 8, 3, 3) with 4 g"),
        (lambda file: replaced(file, "nodes/conv2/stride", "abc"), "node 'conv2' (Conv2d): its 'stride' is 'abc'"),
        (lambda file: replaced(file, "nodes/conv2/bias", np.zeros(7)), "node 'conv2' (Conv2d): bias (7,) does not fit"),
        (lambda file: file.__delitem__("node/nodes/conv2/bias"), "node 'conv2' (Conv2d) has no 'bias'"),
        (lambda file: replaced(file, "nodes/sn2/type", "IF"), "node 'sn2' (IF) has a 'tau', which a node of this type"),
        (lambda file: replaced(file, "nodes/fc1/type", "Foo"), "node 'fc1' is of type 'Foo', which NIR does not have"),
        (lambda file: file.__delitem__("node/nodes/fc1/type"), "node 'fc1' has no 'type'"),
        (lambda file: replaced(file, "nodes/sn2/tau", np.full((12, 4, 4), -1.0)), "node 'sn2' (LIF) has a tau of -1"),
        (lambda file: replaced(file, "nodes/sn2/v_leak", np.ones((12, 4, 4))), "node 'sn2' (LIF) has a v_leak that"),
        (_no_edge, "node 'fc2' (Affine) has no edge out of it"),
        (_unknown_end, "edge 'nowhere -> conv1': there is no node 'nowhere'"),
        (_twice, "is there 2 times"),
    ],
)
def test_a_nir_file_that_contradicts_itself_names_node_and_attribute(
    place: Path, change: Callable[[h5py.File], None], said: str
) -> None:
    path = changed_nir(place, change)
    message = refused(place, Code.FILE_DAMAGED, "run", path, "--data", place / "data.npy")
    assert message.startswith(f"{path}: ")
    assert said in message


def test_every_command_names_what_contradicts_in_a_nir_file(place: Path) -> None:
    path = changed_nir(place, lambda file: replaced(file, "nodes/conv2/groups", 4))
    data = ("--data", place / "data.npy")
    for command, said in (
        (("verify", place / "model.pt", path), " has groups 4, should be 1; "),
        (("verify", path), ": w"),
    ):
        message = refused(place, Code.FILE_DAMAGED, *command, *data)  # type: ignore[arg-type]
        assert message.startswith(f"{path}: node 'conv2' (Conv2d){said}")


def test_nan_in_a_nir_file_names_file_node_and_field(place: Path) -> None:
    def edit(file: h5py.File) -> None:
        file["node/nodes/conv2/weight"][0, 0, 0, 0] = np.nan

    path = changed_nir(place, edit)
    message = refused(place, Code.NOT_FINITE, "run", path, "--data", place / "data.npy")
    assert message.startswith(f"{path}: node 'conv2': weight has NaN or infinite values")


def test_every_kind_of_node_that_is_exported_is_known_by_its_fields(made: Path) -> None:
    from dalif_deploy.nir_faults import BESIDES, FIELDS

    with h5py.File(made / "net.nir") as file:
        for stored in file["node/nodes"].values():
            assert stored.keys() - BESIDES == FIELDS[stored["type"][()].decode()]
    assert all(isinstance(getattr(nir, kind), type) for kind in FIELDS)


# HDF5 that ends the process that reads it.


@pytest.fixture
def crashing(place: Path) -> Iterator[Path]:
    """A reading of this file crashes: the other process is made to do what HDF5 does with some damaged files."""
    from dalif_deploy import hdf5_guard

    read = hdf5_guard._READ
    hdf5_guard._READ = "import ctypes\nctypes.string_at(0)\n"
    hdf5_guard._outcome.cache_clear()
    yield place / "net.nir"
    hdf5_guard._READ = read
    hdf5_guard._outcome.cache_clear()


def test_a_reading_that_crashes_is_a_damaged_file(crashing: Path) -> None:
    for command in (("run", crashing), ("verify", crashing.parent / "model.pt", crashing)):
        message = refused(
            crashing.parent, Code.FILE_DAMAGED, *command, "--data", crashing.parent / "data.npy"
        )  # type: ignore[arg-type]  # fmt: skip
        assert message == (
            f"{crashing}: the file is damaged, and reading it crashes the HDF5 library; write or copy it again"
        )
