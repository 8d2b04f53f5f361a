"""Checkpoints as they are found: wherever the weights are and whatever they are called, and what is refused."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import dalif_deploy
from dalif_deploy import Code
from dalif_deploy.capturing import neurons
from tests.commands import DIGITS, Small, dalif, done, refused

STRANGERS = Path(__file__).parent / "strangers"
PULSES = ("--model", "pulse_net:build", "--model-arg", "width=6", "--adapter", STRANGERS / "adapter.py", "-T", 4)


@dataclass(frozen=True)
class Trained:
    """The stranger's trained network, and its test images as `inputs` and `labels` in a file."""

    net: Any
    optimizer: torch.optim.Optimizer
    data: Path


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """Trained by its own code on real digits; its module is importable while the tests of this file run."""
    path, found = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(STRANGERS))
    import pulse_net

    digits = load_digits()
    images = (digits.images[:, None] / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int64)
    net, optimizer = pulse_net.trained(
        torch.from_numpy(images[:1200]), torch.from_numpy(labels[:1200]), width=6, epochs=4
    )
    data = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(data, inputs=images[1200:1264], labels=labels[1200:1264])
    yield Trained(net, optimizer, data)
    sys.path[:] = path
    for name in set(sys.modules) - found & {"pulse_net", "dalif_adapter"}:
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an adapter registers in one test is not known in the next."""
    monkeypatch.setattr(neurons, "_READERS", {})
    monkeypatch.setattr(sys, "path", list(sys.path))


def wrapped(net: nn.Module, *prefixes: str) -> dict[str, Any]:
    return {"".join(prefixes) + key: value for key, value in net.state_dict().items()}


def lightning(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What lightning 2.6.6 wrote for a module that holds the network as `net` and a weighted loss."""
    progress = {"total": {"ready": 2, "completed": 2}, "current": {"ready": 2, "completed": 2}}
    saving = "ModelCheckpoint{'monitor': None, 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1}"
    return {
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(wrapped(net, "net."), **{"criterion.weight": torch.ones(10)}),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": progress}, "test_loop": {"state_dict": {}}},
        "callbacks": {saving: {"monitor": None, "best_k_models": {}, "kth_value": torch.tensor(float("inf"))}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 6, "lr": 0.01},
    }


def averaged(net: nn.Module) -> dict[str, Any]:
    """As a moving average of the weights is saved."""
    return {"n_averaged": torch.tensor(7), **wrapped(net, "module.")}


FORMATS: dict[str, Callable[[Any, torch.optim.Optimizer], Any]] = {
    "bare": lambda net, _: net.state_dict(),
    "state_dict": lambda net, opt: {"epoch": 3, "state_dict": net.state_dict(), "optimizer": opt.state_dict()},
    "model": lambda net, opt: {"model": net.state_dict(), "optimizer": opt.state_dict(), "args": {"lr": 0.01}},
    "net": lambda net, _: {"net": net.state_dict(), "acc": 97.5, "epoch": 12},
    "model_state_dict": lambda net, opt: {
        "model_state_dict": net.state_dict(), "optimizer_state_dict": opt.state_dict(), "loss": torch.tensor(0.5),
    },
    "module": lambda net, _: {"module": net.state_dict(), "global_steps": 10},
    "ema": lambda net, _: {"ema": averaged(net), "step": 9},
    "any name": lambda net, _: {"run": {"final": {"our weights": net.state_dict()}}},
    "equal twice": lambda net, _: {"model": net.state_dict(), "best": {k: v.clone() for k, v in wrapped(net).items()}},
    "DataParallel": lambda net, _: wrapped(net, "module."),
    "compiled": lambda net, _: {"state_dict": wrapped(net, "_orig_mod.")},
    "compiled in DataParallel": lambda net, _: {"state_dict": wrapped(net, "module._orig_mod.")},
    "compiled inside": lambda net, _: {key.replace("mix.", "mix._orig_mod."): v for key, v in wrapped(net).items()},
    "float64": lambda net, _: {key: v.double() if v.is_floating_point() else v for key, v in wrapped(net).items()},
    "in a list": lambda net, opt: [{"epoch": 3}, (net.state_dict(), 0.5), opt.state_dict()],
    "lightning": lightning,
    "lightning, compiled": lambda net, opt: {
        **lightning(net, opt), "state_dict": wrapped(net, "model._orig_mod."),
    },
}  # fmt: skip


def exported(folder: Path, stranger: Trained, checkpoint: Path, *more: object) -> str:
    """Export to every format and verify there; nothing may differ. Returns what was said of the weights."""
    arguments = (*PULSES, "--data", stranger.data, *more)
    notes = ""
    for to in ("onnx", "nir", "pt"):
        out = folder / f"out.{to}"
        notes = done("export", "--to", to, checkpoint, "-o", out, *arguments, "--samples", 16).err
    verdict = done(
        "verify", checkpoint, folder / "out.onnx", folder / "out.nir", *arguments, "--samples", 32, "--json"
    ).json()  # fmt: skip
    assert verdict["verdict"] == "exact"
    assert not verdict["vacuous"]
    assert all(0.02 <= rate <= 0.4 for rate in verdict["rates"].values()), verdict["rates"]
    assert {runtime["spikes_differing"] for runtime in verdict["runtimes"]} == {0}
    assert {runtime["name"] for runtime in verdict["runtimes"]} >= {"torch", "events", "onnxruntime"}
    return "\n".join(line for line in notes.splitlines() if line.startswith("weights: "))


def test_the_stranger_is_trained_and_knows_nothing_of_the_package(stranger: Trained) -> None:
    data = np.load(stranger.data)
    with torch.no_grad():
        answers = stranger.net.eval()(torch.from_numpy(data["inputs"])).argmax(1).numpy()
    assert (answers == data["labels"]).mean() > 0.8
    assert "dalif" not in (STRANGERS / "pulse_net.py").read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_of_checkpoint_gives_the_same_model(stranger: Trained, tmp_path: Path, form: str) -> None:
    checkpoint = tmp_path / "found.ckpt"
    torch.save(FORMATS[form](stranger.net, stranger.optimizer), checkpoint)
    arguments = (checkpoint, *PULSES, "--data", stranger.data)
    if form in ("bare", "lightning"):  # the graph is the same in all of them, which the last lines show
        exported(tmp_path, stranger, checkpoint)
    else:
        done("export", "--to", "pt", *arguments, "-o", tmp_path / "out.pt")
    graph = dalif_deploy.load(tmp_path / "out.pt")
    assert np.array_equal(graph["head"].arrays()["weight"], stranger.net.head.weight.detach().numpy())
    assert np.array_equal(graph["norm"].arrays()["variance"], stranger.net.norm.running_var.numpy())
    assert graph["fire1"].arrays()["alpha"] == float(stranger.net.fire1.drive().detach())
    assert graph["fire2"].arrays()["beta"] == float(stranger.net.fire2.keep().detach())


def test_what_was_taken_and_left_out_is_said(stranger: Trained, tmp_path: Path) -> None:
    torch.save(lightning(stranger.net, stranger.optimizer), tmp_path / "found.ckpt")
    said = exported(tmp_path, stranger, tmp_path / "found.ckpt")
    assert said == (
        "weights: taken from 'state_dict/net'\nweights: not of this module, left out: criterion.weight"
    )  # fmt: skip


def test_the_old_format_of_torch_save(stranger: Trained, tmp_path: Path) -> None:
    torch.save({"net": stranger.net.state_dict()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    exported(tmp_path, stranger, tmp_path / "old.pth")


def test_safetensors(stranger: Trained, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
    save_file(wrapped(stranger.net, "model."), tmp_path / "net.bin")  # recognised by content, whatever the suffix
    exported(tmp_path, stranger, tmp_path / "net.bin")
    whole = (tmp_path / "net.bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(whole[:-100])
    message = refused(tmp_path, Code.FILE_DAMAGED, "verify", tmp_path / "net.bin", *PULSES, "--input-shape", "1,8,8")
    assert "truncated or damaged" in message


def test_safetensors_without_the_package_says_what_to_install(
    stranger: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as where it is not installed
    message = refused(tmp_path, Code.MISSING_PACKAGE, "verify", path, *PULSES, "--input-shape", "1,8,8")
    assert message == f"{path}: reading safetensors needs a package; install it: pip install safetensors"
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "nir", path)
    assert "--model package.module:factory" in message


def test_a_model_pt_needs_none_of_the_strangers_code(stranger: Trained, tmp_path: Path) -> None:
    torch.save(wrapped(stranger.net, "module."), tmp_path / "found.pth")
    arguments = (*PULSES, "--data", stranger.data)
    done("export", "--to", "pt", tmp_path / "found.pth", "-o", tmp_path / "ours.pt", *arguments)
    code = (
        "import sys\nfrom dalif_deploy.cli import export\n"
        "from dalif_deploy.cli.common import status_of\n"
        "status = status_of(export.command, sys.argv[1:])\n"
        "assert not {'pulse_net', 'dalif_adapter'} & set(sys.modules)\nsys.exit(status)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code, "--to", "onnx", tmp_path / "ours.pt", "--json"]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["verdict"] == "exact"


def test_a_model_pt_holds_the_given_data_as_samples(stranger: Trained, tmp_path: Path) -> None:
    torch.save(stranger.net.state_dict(), tmp_path / "found.pth")
    out = tmp_path / "ours.pt"
    done("export", "--to", "pt", tmp_path / "found.pth", "-o", out, *PULSES, "--data", stranger.data)
    samples = torch.load(out, weights_only=True)["samples"]["inputs"].numpy()
    assert np.array_equal(samples, np.load(stranger.data)["inputs"][:16])
    message = refused(
        tmp_path, Code.WRONG_SHAPE, "export", "--to", "pt", tmp_path / "found.pth", "-o", tmp_path / "x.pt", *PULSES,
        "--data", stranger.data, "--input-shape", "1,9,9",
    )  # fmt: skip
    assert "[16, 1, 8, 8]" in message


# Which of several.


def small(folder: Path, content: object, **saving: Any) -> tuple[object, ...]:
    torch.save(content, folder / "weights.pth", **saving)
    return (folder / "weights.pth", "--model", "tests.commands:Small", "-T", 2, "--input-shape", 4)


def changed(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value + 0.5 for key, value in state.items()}


def head_of(folder: Path, *arguments: object) -> Any:
    done("export", "--to", "pt", *arguments, "-o", folder / "out.pt", "--force")
    return dalif_deploy.load(folder / "out.pt")["fc3"].arrays()["weight"]


def test_several_that_fit_must_be_told_apart(tmp_path: Path) -> None:
    state = Small().state_dict()
    content = {"model": state, "model_ema": {f"module.{key}": value for key, value in changed(state).items()}}
    arguments = small(tmp_path, content)
    message = refused(tmp_path, Code.AMBIGUOUS, "export", "--to", "onnx", *arguments)
    assert "'model', 'model_ema'" in message
    assert "--state-key model" in message
    assert np.array_equal(head_of(tmp_path, *arguments, "--state-key", "model"), state["fc3.weight"].numpy())
    assert np.array_equal(
        head_of(tmp_path, *arguments, "--state-key", "model_ema"), changed(state)["fc3.weight"].numpy()
    )
    message = refused(tmp_path, Code.BAD_OPTION, "export", "--to", "onnx", *arguments, "--state-key", "ema")
    assert "its state_dicts are 'model', 'model_ema'" in message


def test_teacher_and_student_in_one_dictionary(tmp_path: Path) -> None:
    state = Small().state_dict()
    both = {f"student.{k}": v for k, v in state.items()} | {f"teacher.{k}": v for k, v in changed(state).items()}
    arguments = small(tmp_path, {"state_dict": both})
    message = refused(tmp_path, Code.AMBIGUOUS, "export", "--to", "onnx", *arguments)
    assert "'state_dict/student', 'state_dict/teacher'" in message
    found = head_of(tmp_path, *arguments, "--state-key", "state_dict/teacher")
    assert np.array_equal(found, changed(state)["fc3.weight"].numpy())


# What differs.


def test_all_keys_that_differ_are_listed_in_json_and_the_line_stays_readable(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in Small().state_dict().items()}
    missing = [state.pop(f"module.{key}") and key for key in ("sn1.a", "sn2.b")]
    unexpected = [f"module.extra{i}.weight" for i in range(11)]
    state |= {key: torch.zeros(2) for key in unexpected}
    state["module.fc3.bias"] = torch.zeros(7)
    state["module.fc2.weight"] = torch.zeros(5, 6, 1)
    arguments = small(tmp_path, {"state_dict": state})
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "onnx", *arguments)
    assert "15 keys differ: missing sn1.a, sn2.b; unexpected module.extra0.weight, " in message
    assert "module.extra7.weight and 3 more (--json lists all)" in message
    assert "fc2.weight is [5, 6, 1], should be [5, 6], fc3.bias is [7], should be [3]" in message
    ran = dalif("export", "--to", "onnx", *arguments, "--json")
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    told = ran.json()["error"]
    assert (told["code"], told["name"]) == ("E0104", "FOREIGN_FILE")
    assert told["missing"] == missing == ["sn1.a", "sn2.b"]
    assert told["unexpected"] == unexpected
    assert told["wrong_shape"] == [
        {"key": "fc2.weight", "found": [5, 6, 1], "expected": [5, 6]},
        {"key": "fc3.bias", "found": [7], "expected": [3]},
    ]


def test_one_key_too_many_is_refused(tmp_path: Path) -> None:
    state = {**Small().state_dict(), "fc4.weight": torch.zeros(2)}
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "onnx", *small(tmp_path, {"state_dict": state}))
    assert message.endswith("its state_dict at 'state_dict' is not this module's, 1 key differs: unexpected fc4.weight")


def test_a_wrong_argument_of_the_factory_shows_as_shapes(tmp_path: Path) -> None:
    arguments = small(tmp_path, Small(9).state_dict())
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "onnx", *arguments)
    assert "3 keys differ: fc1.weight is [9, 4], should be [6, 4]" in message
    done("export", "--to", "onnx", *arguments, "--model-arg", "hidden=9")


def test_values_that_the_modules_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    state = {key: value.double() for key, value in Small().state_dict().items()}
    state["fc2.weight"][0, 0] = 0.1
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "onnx", *small(tmp_path, state))
    assert "fc2.weight: the module's torch.float32 cannot hold the torch.float64 values" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_taken_as_they_are(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in Small().state_dict().items()}
    assert np.array_equal(head_of(tmp_path, *small(tmp_path, state)), state["fc3.weight"].double().numpy())


class WithNorm(Small):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(self.sn2(self.fc2(self.sn1(self.norm(self.fc1(x))))))


def test_counters_that_evaluation_never_reads_may_be_missing(tmp_path: Path) -> None:
    state = WithNorm().state_dict()
    del state["norm.num_batches_tracked"]
    arguments = ("--model", "tests.test_wild:WithNorm", "-T", 2, "--input-shape", 4)
    torch.save(state, tmp_path / "old.pth")
    said = done("export", "--to", "onnx", tmp_path / "old.pth", *arguments).err
    assert "weights: not in the file, and never read in evaluation: norm.num_batches_tracked" in said
    del state["norm.running_mean"]
    torch.save(state, tmp_path / "old.pth")
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "pt", tmp_path / "old.pth", *arguments)
    assert "1 key differs: missing norm.running_mean" in message


@pytest.mark.parametrize(
    "content", [{"epoch": 1}, [1, 2], torch.zeros(3), {"model": {}}, {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}]
)
def test_files_without_a_state_dict(tmp_path: Path, content: object) -> None:
    arguments = small(tmp_path, content)
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "onnx", *arguments)
    assert message.endswith("holds no state_dict; save model.state_dict()")


def test_a_model_pt_needs_no_factory(tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path / "ours.pt")
    message = refused(
        tmp_path, Code.BAD_OPTION, "export", "--to", "onnx", tmp_path / "ours.pt", "--model", "tests.commands:Small"
    )
    assert message.endswith("says this itself; leave out --model")


# Pickles.


class Settings:
    """A class of the user's, of which a checkpoint holds an object."""


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("extra", "names"),
    [
        (Settings(), "tests.test_wild.Settings"),
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (np.float64(0.5), "numpy._core.multiarray.scalar"),
    ],
)
def test_what_needs_unpickling_is_refused_by_name(tmp_path: Path, extra: object, names: str, new: bool) -> None:
    state = Small().state_dict()
    arguments = small(tmp_path, {"state_dict": state, "extra": extra}, _use_new_zipfile_serialization=new)
    message = refused(tmp_path, Code.PICKLED, "export", "--to", "onnx", *arguments)
    assert names in message
    assert "--trust-pickle" in message
    assert np.array_equal(head_of(tmp_path, *arguments, "--trust-pickle"), state["fc3.weight"].numpy())


def test_reading_a_pickle_runs_nothing(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    arguments = small(tmp_path, {"state_dict": Small().state_dict(), "extra": Payload()})
    message = refused(tmp_path, Code.PICKLED, "export", "--to", "onnx", *arguments)
    assert "(posix.mkdir)" in message
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Payload()))
    refused(tmp_path, Code.PICKLED, "export", "--to", "onnx", *arguments)


def test_a_pickled_module_in_a_dictionary_is_read_where_it_is_trusted(tmp_path: Path) -> None:
    path, *arguments = small(tmp_path, {"net": Small(), "acc": 91.0})
    shape = arguments[-4:]
    message = refused(tmp_path, Code.PICKLED, "export", "--to", "onnx", path, *shape)  # type: ignore[arg-type]
    assert "tests.commands.Small" in message
    found = head_of(tmp_path, path, *shape, "--trust-pickle")
    assert np.array_equal(found, Small().fc3.weight.detach().numpy())
    assert np.array_equal(head_of(tmp_path, path, *arguments, "--trust-pickle"), found)
    path, *_ = small(tmp_path, {"student": Small(), "teacher": Small()})
    message = refused(tmp_path, Code.AMBIGUOUS, "export", "--to", "onnx", path, *shape, "--trust-pickle")  # type: ignore[arg-type]
    assert "holds 2 modules" in message


# What is no checkpoint.


def packed(path: Path) -> None:
    inner = path.with_name("weights.pth")
    torch.save(Small().state_dict(), inner)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "run1/weights.pth")
    inner.unlink()


def folder_of(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_bytes(b"x")

    return make


def array(save: Callable[..., None], name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        save(path.with_name(name), np.zeros(2))
        path.with_name(name).rename(path)

    return make


INDEX = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.bin", "b": "model-00002-of-00002.bin"}}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (packed, "is a zip archive of other files (run1/weights.pth); unpack it"),
        (array(np.savez, "x.npz"), "is an .npz of arrays, so data rather than a model"),
        (array(np.save, "x.npy"), "is a NumPy array, so data rather than a model"),
        (lambda path: path.write_bytes(gzip.compress(b"weights")), "is compressed with gzip"),
        (lambda path: path.write_text(json.dumps(INDEX)), "is the index of a checkpoint in 2 shards"),
        (lambda path: path.write_text('{"depth": 20}'), "is a JSON file, without weights"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (lambda path: path.write_text("<!DOCTYPE html><p>404"), "is a web page"),
        (folder_of("__0_0.distcp"), "is a distributed checkpoint in shards; make one file of it: python -m torch."),
        (folder_of("model-00001-of-00002.safetensors"), "is a folder of a checkpoint in shards (model-00001-of-"),
        (lambda path: path.write_bytes(b"\x00" * 600), "neither a PyTorch nor a NIR file"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path: Path, write: Callable[[Path], object], said: str) -> None:
    path = tmp_path / "model.pth"
    write(path)
    for factory in ((), ("--model", "tests.commands:Small", "-T", 2, "--input-shape", 4)):
        message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "onnx", path, *factory)
        assert said in message


@pytest.mark.filterwarnings("ignore:.*TorchScript:UserWarning", "ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused_by_name(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(4, 3)), tmp_path / "script.pt")
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "onnx", tmp_path / "script.pt")
    assert "is a TorchScript archive" in message
