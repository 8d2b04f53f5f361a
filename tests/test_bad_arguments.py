"""What the functions and commands say to arguments that cannot be used, and to numbers that are not what they seem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dalif_deploy
from dalif_deploy import Code, DalifError, Data
from dalif_deploy.deploy import judge_again
from tests.commands import Small, contents, done, refused

INPUTS = np.random.default_rng(3).random((6, 4), dtype=np.float32)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small (4 values, 3 logits, T = 2), saved on INPUTS."""
    path = tmp_path_factory.mktemp("arguments") / "model.pt"
    dalif_deploy.save(Small(), path, example_input=INPUTS, timesteps=2, class_names=NAMES)
    return path


def says(code: Code, *words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(DalifError) as caught:
        call()
    assert caught.value.code is code
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in caught.value.message


# Data.


@pytest.mark.parametrize(
    "data",
    [
        INPUTS, INPUTS.tolist(), list(INPUTS), torch.from_numpy(INPUTS), torch.from_numpy(INPUTS).requires_grad_(),
        list(torch.from_numpy(INPUTS)), tuple(map(tuple, INPUTS.tolist())), INPUTS[:, ::-1][:, ::-1],
        Data(torch.from_numpy(INPUTS), [0, 1, 2, 0, 1, 2], "some"),  # type: ignore[arg-type]
    ],
    ids=["array", "lists", "list of arrays", "tensor", "with gradient", "list of tensors", "tuples", "strided", "Data"],
)  # fmt: skip
def test_data_may_be_whatever_is_an_array_of_numbers(model: Path, tmp_path: Path, data: Any) -> None:
    (wanted,) = dalif_deploy.run(model, INPUTS)
    (found,) = dalif_deploy.run(model, data)
    assert found.spikes.keys() == wanted.spikes.keys()
    assert all(np.array_equal(train.bits, wanted.spikes[name].bits) for name, train in found.spikes.items())
    assert dalif_deploy.verify(model, data=data, runtimes=["events"]).samples == 6
    dalif_deploy.export(model, tmp_path / "x.onnx", to="onnx", data=data)


def test_bfloat16_tensors_have_float32_numbers(model: Path) -> None:
    rough = torch.from_numpy(INPUTS).bfloat16()
    (wanted,) = dalif_deploy.run(model, rough.float().numpy())
    (found,) = dalif_deploy.run(model, rough)
    assert np.array_equal(found.logits, wanted.logits)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([[1.0], [2.0, 3.0]], "data of type list: no array of numbers (ValueError: "),
        (object(), "data of type object (object): numbers are needed"),
        ({"inputs": INPUTS}, "data of type dict (object): numbers are needed"),
        ("data.npz", "data = 'data.npz': give numbers; read_data(path) reads a file's"),
        (Path("data.npz"), "data = 'data.npz': give numbers"),
        (["a", "b"], "numbers are needed"),
        (3.0, "`inputs` of shape []; [N, ...] with N >= 1 is needed"),
        ([], "`inputs` of shape [0]"),
        (np.zeros((0, 4)), "`inputs` of shape [0, 4]"),
        (INPUTS.astype(complex), "complex128"),
        (Data(INPUTS, np.zeros(5, int), "some"), "`labels` are int64 [5]; whole numbers [6] are needed"),
        (Data(INPUTS, "labels", "some"), "labels = 'labels'"),  # type: ignore[arg-type]
    ],
)
def test_data_that_is_no_array_of_numbers(model: Path, tmp_path: Path, data: Any, said: str) -> None:
    for call in (
        lambda: dalif_deploy.verify(model, data=data),
        lambda: dalif_deploy.run(model, data),
        lambda: dalif_deploy.export(model, tmp_path / "x.onnx", to="onnx", data=data),
    ):
        says(Code.BAD_DATA, said, call=call)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("place", "label"), [(4, 3), (0, -1), (5, 2**40)])
def test_a_label_that_is_no_class_is_named(model: Path, tmp_path: Path, place: int, label: int) -> None:
    labels = np.zeros(6, np.int64)
    labels[place] = label
    said = f"labels[{place}] is {label}, and the model's classes are 0 to 2; 1 of 6 labels"
    says(Code.BAD_DATA, said, call=lambda: dalif_deploy.verify(model, data=Data(INPUTS, labels, "some")))
    np.savez(tmp_path / "data.npz", inputs=INPUTS, labels=labels)
    done("export", "--to", "onnx", model, "-o", tmp_path / "x.onnx", "--no-verify")
    for command in (("verify", model), ("run", model), ("run", tmp_path / "x.onnx")):
        message = refused(tmp_path, Code.BAD_DATA, *command, "--data", tmp_path / "data.npz")  # type: ignore[arg-type]
        assert message == f"{tmp_path / 'data.npz'}: {said} are none of them"


def test_stored_results_take_lists_too(model: Path, tmp_path: Path) -> None:
    dalif_deploy.verify(model, data=INPUTS, results=tmp_path / "results.npz")
    assert judge_again(tmp_path / "results.npz", model, data=torch.from_numpy(INPUTS)).samples == 6
    says(Code.BAD_DATA, "numbers are needed", call=lambda: judge_again(tmp_path / "results.npz", model, data=object()))


# Float64.


class Double(Small):
    def __init__(self) -> None:
        super().__init__()
        self.double()


@pytest.mark.parametrize("module", [Small, Double])
def test_inputs_that_float32_does_not_hold_are_told(tmp_path: Path, module: type[nn.Module]) -> None:
    fine = INPUTS.astype(np.float64)
    fine[1, 2] += 2.0**-40
    fine[3, 0] *= 1.0 + 2.0**-30
    path = tmp_path / "m.pt"
    said = "data: 2 of 24 float64 inputs are not numbers of float32; they are rounded to it, by up to "
    assert any(note.startswith(said) for note in dalif_deploy.save(module(), path, example_input=fine, timesteps=2))
    verdict = dalif_deploy.verify(path, data=fine, runtimes="events")
    assert sum(note.startswith(said) for note in verdict.notes) == 1
    result = dalif_deploy.export(path, tmp_path / "x.onnx", to="onnx", data=fine, verified=False)
    assert any(note.startswith(said) for note in result.notes)
    np.save(tmp_path / "data.npy", fine)
    assert "2 of 24 float64 inputs are not numbers of float32" in done("run", path, "--data", tmp_path / "data.npy").err


def test_float64_inputs_that_float32_holds_are_not_remarked_on(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    notes = dalif_deploy.save(Double(), path, example_input=INPUTS.astype(np.float64), timesteps=2)
    verdict = dalif_deploy.verify(path, data=INPUTS.astype(np.float64), runtimes="events")
    assert not any("rounded" in note for note in (*notes, *verdict.notes))


# Other arguments.


def test_one_runtime_may_be_named_as_it_is(model: Path) -> None:
    found = dalif_deploy.verify(model, runtimes="torch")
    assert [runtime.comparison.name for runtime in found.runtimes] == ["torch"]
    says(Code.BAD_OPTION, "runtime 'torc': unknown", call=lambda: dalif_deploy.verify(model, runtimes="torc"))
    says(Code.BAD_OPTION, "runtimes = 5", call=lambda: dalif_deploy.verify(model, runtimes=5))  # type: ignore[arg-type]


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, "3"])
def test_samples_are_a_whole_number_of_at_least_1(model: Path, tmp_path: Path, samples: Any) -> None:
    said = f"samples = {samples!r}: give a whole number of at least 1"
    says(Code.BAD_OPTION, said, call=lambda: dalif_deploy.verify(model, samples=samples))
    target = tmp_path / "x.onnx"
    says(Code.BAD_OPTION, said, call=lambda: dalif_deploy.export(model, target, to="onnx", samples=samples))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "call",
    [
        lambda model: dalif_deploy.verify(model, [model]),
        lambda model: dalif_deploy.verify(None),  # type: ignore[arg-type]
        lambda model: dalif_deploy.load({}),  # type: ignore[arg-type]
        lambda model: dalif_deploy.export(3, to="onnx"),  # type: ignore[arg-type]
        lambda model: dalif_deploy.run(3, INPUTS),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_path_is_refused(model: Path, call: Callable[[Path], Any]) -> None:
    says(Code.BAD_OPTION, "a path is needed", call=lambda: call(model))


def saved(path: Path, **arguments: Any) -> None:
    dalif_deploy.save(Small(), path / "m.pt", example_input=INPUTS, timesteps=2, **arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ({"encoding": "int9"}, Code.BAD_OPTION, "encoding kind 'int9': give 'real', 'uint8' or 'spikes'"),
        ({"encoding": 5}, Code.BAD_OPTION, "encoding = 5: give an Encoding, or its kind"),
        ({"encoding": {"kind": "uint8"}}, Code.BAD_OPTION, "give an Encoding"),
        ({"class_names": (1, 2, 3)}, Code.BAD_OPTION, "class_names[0] is 1, of type int; give strings"),
        ({"class_names": ("a", "b")}, Code.BAD_OPTION, "class_names: 2 names for 3 logits; give one for each"),
        ({"class_names": "abc"}, Code.BAD_OPTION, "class_names: 'abc' is no sequence of names"),
        ({"class_names": 5}, Code.BAD_OPTION, "class_names: 5 is no sequence of names"),
        ({"samples": "digits"}, Code.BAD_DATA, "samples = 'digits': give numbers"),
        ({"samples": object()}, Code.BAD_DATA, "samples of type object"),
    ],
)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, arguments: dict[str, Any], code: Code, said: str) -> None:
    says(code, said, call=lambda: saved(tmp_path, **arguments))
    assert contents(tmp_path) == {}


def test_an_encoding_may_be_its_kind_and_names_a_list(tmp_path: Path) -> None:
    saved(tmp_path, encoding="uint8", class_names=list(NAMES))
    graph = dalif_deploy.load(tmp_path / "m.pt")
    assert graph.encoding == dalif_deploy.Encoding(kind="uint8")
    assert graph.class_names == NAMES


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("class_names", [1, 2, 3], "class_names[0] is 1"),
        ("class_names", ["a"], "1 names for 3 logits"),
        ("encoding", {"kind": "int9"}, "encoding kind 'int9'"),
        ("timesteps", 0, "timesteps = 0"),
    ],
)
def test_a_model_pt_that_says_what_cannot_be(model: Path, tmp_path: Path, key: str, value: Any, said: str) -> None:
    content = torch.load(model, weights_only=True)
    content["graph"][key] = value
    path = tmp_path / "m.pt"
    torch.save(content, path)
    message = refused(tmp_path, Code.FILE_DAMAGED, "verify", path)
    assert message.startswith(f"{path}: ")
    assert said in message


# Names of outputs.


@pytest.mark.parametrize(
    ("to", "name", "better"),
    [("onnx", "q.nir", "q.onnx"), ("nir", "q.onnx", "q.nir"), ("pt", "q.npz", "q.pt"), ("onnx", "q.txt", "q.onnx")],
)
def test_an_export_is_not_called_what_it_is_not(model: Path, tmp_path: Path, to: str, name: str, better: str) -> None:
    message = refused(tmp_path, Code.BAD_OPTION, "export", "--to", to, model, "-o", tmp_path / name)
    assert message == f"{tmp_path / name}: --to {to} writes {Path(better).suffix} files; name it {better}, say"


@pytest.mark.parametrize("name", ["q.txt", "q.onnx", "q.npy", "q.1"])
def test_results_are_called_npz(model: Path, tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "data.npy", INPUTS)
    for command in ("run", "verify"):
        arguments = (command, model, "--data", tmp_path / "data.npy", "-o", tmp_path / name)
        message = refused(tmp_path, Code.BAD_OPTION, *arguments)  # type: ignore[arg-type]
        assert message == f"{tmp_path / name}: dalif-{command} -o writes .npz files; name it q.npz, say"


@pytest.mark.parametrize("name", ["out", "OUT.NPZ"])
def test_what_is_written_has_the_name_that_was_given(model: Path, tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "data.npy", INPUTS)
    done("run", model, "--data", tmp_path / "data.npy", "-o", tmp_path / name)
    assert set(contents(tmp_path)) == {"data.npy", name}


@pytest.mark.parametrize("to", ["onnx", "nir", "pt"])
def test_the_json_of_an_export_has_these_keys(model: Path, tmp_path: Path, to: str) -> None:
    ran = done("export", "--to", to, model, "-o", tmp_path / f"x.{to}", "--json", "--samples", 2)
    keys = ["output", "target", "precision", "graph", "timesteps", "verdict", "sha256"]
    assert list(json.loads(ran.out)) == keys


# NaN in BatchNorm.


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 6)
        self.bn1 = nn.BatchNorm1d(6)
        self.sn1 = dalif_deploy.DALIF(alpha_init=0.5, beta_init=0.5)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.sn1(self.bn1(self.fc1(x))))


@pytest.mark.parametrize("name", ["running_var", "running_mean"])
def test_nan_in_batchnorm_says_in_which_tensor(tmp_path: Path, name: str) -> None:
    module = Normed()
    getattr(module.bn1, name)[2] = torch.nan
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    message = refused(
        tmp_path, Code.NOT_FINITE, "export", "--to", "onnx", "--model", "tests.test_bad_arguments:Normed", "-T", 2,
        "--input-shape", 4, tmp_path / "weights.pth",
    )  # fmt: skip
    assert "bn1" in message
    assert name in message
    assert "NaN" in message
