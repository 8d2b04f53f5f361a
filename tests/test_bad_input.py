"""Bad input: one line that says what, where, why and the mend, the right exit status, nothing half-written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import dalif_deploy
from dalif_deploy import Code, DalifError
from dalif_deploy.cli import verify
from dalif_deploy.cli.common import status_of
from dalif_deploy.deploy.files import written_whole
from tests.commands import DIGITS, Small, contents, dalif, done, refused, stored_samples

PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.pt, digits.onnx, digits.nir and data.npz."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(DIGITS, folder / "digits.pt")
    for to in ("onnx", "nir"):
        done("export", "--to", to, folder / "digits.pt", "--no-verify")
    np.savez(folder / "data.npz", inputs=stored_samples(3))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for the test alone."""
    return Path(shutil.copytree(made, tmp_path / "place"))


# What every command says to a file that is not there, not whole, or something else.

READERS: dict[str, Callable[[Path], list[tuple[object, ...]]]] = {
    "digits.pt": lambda place: [
        ("export", "--to", "onnx", place / "digits.pt", "-o", place / "new.onnx"),
        ("verify", place / "digits.pt"),
        ("run", place / "digits.pt", "--data", place / "data.npz", "-o", place / "new.npz"),
    ],
    "digits.onnx": lambda place: [
        ("verify", place / "digits.pt", place / "digits.onnx"),
        ("run", place / "digits.onnx", "--data", place / "data.npz", "-o", place / "new.npz"),
    ],
    "digits.nir": lambda place: [
        ("export", "--to", "onnx", place / "digits.nir", "-o", place / "new.onnx"),
        ("verify", place / "digits.pt", place / "digits.nir"),
        ("verify", place / "digits.nir"),
        ("run", place / "digits.nir", "--data", place / "data.npz", "-o", place / "new.npz"),
    ],
    "data.npz": lambda place: [
        ("export", "--to", "onnx", place / "digits.pt", "-o", place / "new.onnx", "--data", place / "data.npz"),
        ("verify", place / "digits.pt", "--data", place / "data.npz"),
        ("run", place / "digits.pt", "--data", place / "data.npz", "-o", place / "new.npz"),
    ],
}


def refused_everywhere(place: Path, name: str, code: Code) -> list[str]:
    """Every command that reads the file refuses it, and names it first."""
    messages = []
    for command, *arguments in READERS[name](place):
        message = refused(place, code, str(command), *arguments)
        assert message.startswith(f"{place / name}: "), message
        messages.append(message)
    return messages


@pytest.mark.parametrize("name", READERS)
def test_missing(place: Path, name: str) -> None:
    (place / name).unlink()
    for message in refused_everywhere(place, name, Code.FILE_MISSING):
        assert message == f"{place / name}: No such file or directory; check the path"


@pytest.mark.parametrize("name", READERS)
def test_a_folder_in_place_of_a_file(place: Path, name: str) -> None:
    (place / name).unlink()
    (place / name).mkdir()
    assert all("Is a directory" in message for message in refused_everywhere(place, name, Code.FILE_MISSING))


@pytest.mark.parametrize("name", READERS)
def test_empty(place: Path, name: str) -> None:
    (place / name).write_bytes(b"")
    assert all("empty" in message for message in refused_everywhere(place, name, Code.FILE_DAMAGED))


@pytest.mark.parametrize("kept", [0.003, 0.1, 0.5, 0.9, -1])
@pytest.mark.parametrize("name", READERS)
def test_truncated(place: Path, name: str, kept: float) -> None:
    whole = (place / name).read_bytes()
    (place / name).write_bytes(whole[: int(kept * len(whole))] if kept > 0 else whole[:-1])
    refused_everywhere(place, name, Code.FILE_DAMAGED)


@pytest.mark.parametrize("name", READERS)
def test_a_text_file(place: Path, name: str) -> None:
    (place / name).write_text("These are not the bytes you are looking for.\n" * 100)
    refused_everywhere(place, name, Code.FOREIGN_FILE)


def test_onnx_as_model(place: Path) -> None:
    for command in (("export", "--to", "nir", "-o", place / "new.nir"), ("verify",)):
        message = refused(place, Code.FOREIGN_FILE, *command, place / "digits.onnx")  # type: ignore[arg-type]
        assert "give the model that it was made from" in message


def test_a_model_as_exported_file(place: Path) -> None:
    message = refused(place, Code.FOREIGN_FILE, "verify", place / "digits.pt", place / "digits.pt")
    assert message.endswith("neither an ONNX nor a NIR file; give what dalif-export wrote")


def test_the_content_counts_not_the_suffix(place: Path) -> None:
    (place / "digits.nir").rename(place / "a.pt")
    (place / "digits.onnx").rename(place / "b")
    (place / "digits.pt").rename(place / "c.onnx")
    ran = done("verify", place / "c.onnx", place / "a.pt", place / "b", "--samples", 2, "--json")
    assert ran.json()["verdict"] == "exact"


# Checkpoints that are not ours.


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    torch.save(Small(), tmp_path / "pickled.pt")
    return tmp_path / "pickled.pt"


def test_a_pickled_module_is_refused_with_the_way_out(pickled: Path) -> None:
    for arguments in (("export", "--to", "onnx", pickled), ("verify", pickled), ("export", "--to", "pt", pickled)):
        message = refused(pickled.parent, Code.PICKLED, *arguments)  # type: ignore[arg-type]
        assert "--trust-pickle" in message
        assert "dalif_deploy.save" in message


def test_refusing_a_pickle_runs_nothing_of_it(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Payload(), tmp_path / "payload.pt")
    refused(tmp_path, Code.PICKLED, "export", "--to", "onnx", tmp_path / "payload.pt")
    refused(
        tmp_path, Code.PICKLED, "export", "--to", "onnx", tmp_path / "payload.pt", "--model", "tests.commands:Small"
    )


def test_a_pickled_module_is_read_where_it_is_trusted(pickled: Path) -> None:
    arguments = (pickled, "--trust-pickle", "-T", 3, "--input-shape", "4")
    result = done("export", "--to", "onnx", *arguments, "--json").json()
    assert (result["verdict"], result["timesteps"]) == ("exact", 3)
    verdict = done("verify", *arguments, pickled.with_suffix(".onnx"), "--json")
    assert verdict.json()["links"]["module"]["verdict"] == "exact"


def test_a_trusted_pickle_must_be_a_module(tmp_path: Path) -> None:
    torch.save({"a": np.float64, "b": [1, 2]}, tmp_path / "other.pt")
    message = refused(
        tmp_path, Code.FOREIGN_FILE, "verify", tmp_path / "other.pt", "--trust-pickle", "-T", 1, "--input-shape", 4
    )
    assert message.startswith(f"{tmp_path / 'other.pt'}: holds a dict, a torch.nn.Module is needed; name the code")


def test_a_module_must_be_told_its_timesteps_and_shape(pickled: Path) -> None:
    arguments = ("export", "--to", "onnx", pickled, "--trust-pickle")
    assert "-T" in refused(pickled.parent, Code.AMBIGUOUS, *arguments)  # type: ignore[arg-type]
    message = refused(pickled.parent, Code.AMBIGUOUS, *arguments, "-T", 2)  # type: ignore[arg-type]
    assert "--input-shape" in message


@pytest.mark.parametrize("content", [{"a": torch.zeros(2)}, torch.zeros(3), [1, 2], "text", None])
def test_a_pt_that_is_not_ours(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    message = refused(tmp_path, Code.FOREIGN_FILE, "export", "--to", "onnx", tmp_path / "other.pt")
    assert "--model package.module:factory" in message


def test_a_model_pt_of_another_version_or_with_parts_missing(place: Path) -> None:
    content = torch.load(place / "digits.pt", weights_only=True)
    torch.save({**content, "version": 99}, place / "digits.pt")
    assert all("update dalif_deploy" in m for m in refused_everywhere(place, "digits.pt", Code.FOREIGN_FILE))
    for part in ("graph", "layout", "samples"):
        torch.save({key: value for key, value in content.items() if key != part}, place / "digits.pt")
        assert all(part in message for message in refused_everywhere(place, "digits.pt", Code.FILE_DAMAGED))


# --model


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """weights.pth, beside a module of factories, in the current folder."""
    (tmp_path / "factories.py").write_text(
        "import torch\nfrom tests.commands import Small\n\n"
        "def raises(depth=1):\n    raise RuntimeError('no\\nluck')\n\n"
        "def text():\n    return 'a module'\n\n"
        "number = 3\n\n\ndef good(hidden=6):\n    return Small(hidden)\n"
    )
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "__pycache__").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    torch.save(Small().state_dict(), tmp_path / "weights.pth")
    yield tmp_path / "weights.pth"
    for name in ("factories", "broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("factory", "arguments", "said"),
    [
        ("factories", (), "--model factories: write it as package.module:factory"),
        (":good", (), "--model :good: write it as package.module:factory"),
        ("nowhere:good", (), "--model nowhere:good: ModuleNotFoundError: No module named 'nowhere'"),
        ("broken:f", (), "--model broken:f: SyntaxError: "),
        ("factories:gone", (), "--model factories:gone: AttributeError: module 'factories' has no attribute 'gone'"),
        ("factories:number", (), "--model factories:number: is not callable"),
        ("factories:text", (), "--model factories:text: returned str, a torch.nn.Module is needed"),
        ("factories:raises", (), "--model factories:raises: called with no arguments, it raises RuntimeError: no luck"),
        ("factories:raises", ("depth=2",), "--model factories:raises: called with depth=2, it raises RuntimeError: "),
        ("factories:good", ("width=2",), "--model factories:good: called with width=2, it raises TypeError: "),
        ("factories:good", ("hidden",), "--model-arg hidden: write it as name=value"),
    ],
)
def test_factories_that_do_not_work(checkpoint: Path, factory: str, arguments: tuple[str, ...], said: str) -> None:
    given = [part for argument in arguments for part in ("--model-arg", argument)]
    message = refused(
        checkpoint.parent, Code.BAD_OPTION, "export", "--to", "pt", "-T", 2, "--input-shape", 4, "--model", factory,
        *given, checkpoint,
    )  # fmt: skip
    assert message.startswith(said)


def test_a_factory_in_the_current_folder(checkpoint: Path) -> None:
    done("export", "--to", "pt", "-T", 2, "--input-shape", 4, "--model", "factories:good", checkpoint)


def test_keys_that_are_not_the_modules_are_listed(checkpoint: Path) -> None:
    state = Small().state_dict()
    state["fc9.weight"] = state.pop("fc1.weight")
    state["fc3.bias"] = torch.zeros(7)
    torch.save(state, checkpoint)
    message = refused(
        checkpoint.parent, Code.FOREIGN_FILE, "verify", "-T", 2, "--input-shape", 4, "--model", "factories:good",
        checkpoint,
    )  # fmt: skip
    assert message == (
        f"{checkpoint}: its state_dict is not this module's, 3 keys differ: missing fc1.weight; unexpected "
        "fc9.weight; fc3.bias is [7], should be [3]"
    )
    torch.save({"epoch": 1}, checkpoint)
    message = refused(checkpoint.parent, Code.FOREIGN_FILE, "verify", "--model", "factories:good", checkpoint)
    assert message == f"{checkpoint}: holds no state_dict; save model.state_dict()"


def test_adapters(checkpoint: Path) -> None:
    folder = checkpoint.parent
    (folder / "raises.py").write_text("1 / 0\n")
    (folder / "adapter.txt").write_text("")
    for name, code, said in (
        ("gone.py", Code.FILE_MISSING, "no such adapter file; check --adapter"),
        ("raises.py", Code.BAD_OPTION, "the adapter raises ZeroDivisionError: division by zero"),
        ("adapter.txt", Code.BAD_OPTION, "an adapter is a Python file, named something.py"),
    ):
        assert refused(folder, code, "verify", DIGITS, "--adapter", folder / name) == f"{folder / name}: {said}"


# Options and shapes.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-T", "0"), "0 is not in the range x>=1"),
        (("-T", "two"), "'two' is not a valid integer"),
        (("--input-shape", "3,x"), "'3,x': write positive whole numbers such as 3,32,32"),
        (("--input-shape", "0"), "'0': write positive whole numbers"),
        (("--input-shape", "1,8,8"), "says this itself; leave out --input-shape"),
        (("--layout", "step"), "says this itself; leave out --layout"),
        (("--model", "a:b"), None),
        (("--samples", "0"), "0 is not in the range x>=1"),
        (("--nonsense",), "--nonsense"),
        (("--to", "tflite"), "there are onnx, nir, pt"),
        (("--opset", "17"), "opset 17: give 18 to "),
        (("--graph", "chunk"), "'chunk' is not 'unrolled'"),
        (("--precision", "int8"), "'int8' is not one of"),
    ],
)
def test_options(place: Path, arguments: tuple[str, ...], said: str | None) -> None:
    message = refused(
        place, Code.BAD_OPTION, "export", "--to", "onnx", place / "digits.pt", "-o", place / "new.onnx", *arguments
    )
    assert said is None or said in message


def test_a_missing_argument_points_to_the_help(place: Path) -> None:
    for command in ("export", "verify", "run"):
        assert refused(place, Code.BAD_OPTION, command).endswith(f"(see dalif-{command} --help)")


def test_zero_timesteps_in_python(tmp_path: Path) -> None:
    for timesteps in (0, -1, 1.5, True):
        with pytest.raises(DalifError) as caught:
            dalif_deploy.save(
                Small(), tmp_path / "m.pt", example_input=np.ones((1, 4), np.float32), timesteps=timesteps
            )  # type: ignore[arg-type]
        assert caught.value.code is Code.BAD_OPTION
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("shape", "said"), [((3, 1, 8), "[3, 1, 8]"), ((3, 1, 9, 9), "[3, 1, 9, 9]"), ((3, 4, 1, 8, 8), "[3, 4, 1, 8, 8]")]
)
@pytest.mark.parametrize("source", ["digits.pt", "digits.onnx", "digits.nir"])
def test_data_of_another_shape(place: Path, source: str, shape: tuple[int, ...], said: str) -> None:
    np.save(place / "wrong.npy", np.zeros(shape, np.uint8))
    out = place / "new.npz"
    message = refused(place, Code.WRONG_SHAPE, "run", place / source, "--data", place / "wrong.npy", "-o", out)
    assert message == f"data of shape {said}: the model takes [N, 1, 8, 8] (static, without a time axis)"
    refused(place, Code.WRONG_SHAPE, "verify", place / "digits.pt", "--data", place / "wrong.npy")


# Data.


def npz(**arrays: object) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)  # type: ignore[arg-type]


IMAGES = np.zeros((3, 1, 8, 8), np.float32)
OBJECTS = np.array([np.zeros(2), np.zeros(3)], dtype=object)


@pytest.mark.parametrize(
    ("write", "code", "said"),
    [
        (npz(inputs=np.where(np.arange(64).reshape(8, 8) == 9, np.nan, IMAGES)), Code.NOT_FINITE, "NaN or infinite"),
        (npz(inputs=IMAGES - np.inf), Code.NOT_FINITE, "NaN or infinite"),
        (npz(inputs=IMAGES.astype(np.float64) + 1e300), Code.NOT_FINITE, "beyond float32"),
        (npz(images=IMAGES, y=np.zeros(3)), Code.BAD_DATA, "has no array `inputs`, but images, y; save the data under"),
        (npz(), Code.BAD_DATA, "has no array `inputs`, but nothing"),
        (npz(inputs=OBJECTS), Code.BAD_DATA, "holds Python objects, numbers are needed"),
        (npz(inputs=IMAGES, labels=OBJECTS), Code.BAD_DATA, "holds Python objects, numbers are needed"),
        (npz(inputs=IMAGES.astype("U1")), Code.BAD_DATA, "numbers are needed"),
        (npz(inputs=IMAGES.astype(complex)), Code.BAD_DATA, "numbers are needed"),
        (npz(inputs=IMAGES.astype(np.int64)), Code.BAD_DATA, "codes must be stored as uint8"),
        (npz(inputs=IMAGES[:0]), Code.BAD_DATA, "`inputs` of shape [0, 1, 8, 8]"),
        (npz(inputs=np.float32(3)), Code.BAD_DATA, "`inputs` of shape []"),
        (npz(inputs=IMAGES, labels=np.zeros(2, int)), Code.BAD_DATA, "`labels` are int64 [2]; whole numbers [3]"),
        (npz(inputs=IMAGES, labels=np.zeros(3)), Code.BAD_DATA, "`labels` are float64 [3]; whole numbers [3]"),
        (npz(inputs=IMAGES, labels=np.zeros((3, 10), int)), Code.BAD_DATA, "`labels` are int64 [3, 10]"),
    ],
)
def test_data_that_cannot_be_used(place: Path, write: Callable[[Path], None], code: Code, said: str) -> None:
    write(place / "data.npz")
    for command, *arguments in READERS["data.npz"](place):
        message = refused(place, code, str(command), *arguments)
        assert said in message


def test_a_model_as_data_does_not_list_all_that_is_in_it(place: Path) -> None:
    message = refused(place, Code.BAD_DATA, "run", place / "digits.onnx", "--data", place / "digits.pt")
    assert len(message) < 400


def test_whole_numbers_for_a_model_of_real_input(tmp_path: Path) -> None:
    inputs = np.ones((2, 4), np.float32)
    dalif_deploy.save(Small(), tmp_path / "m.pt", example_input=inputs, timesteps=2)
    np.save(tmp_path / "data.npy", inputs.astype(np.uint8))
    message = refused(tmp_path, Code.BAD_DATA, "verify", tmp_path / "m.pt", "--data", tmp_path / "data.npy")
    assert "convert to float32" in message


# Models that cannot be exported.


class WithSoftmax(Small):
    def __init__(self) -> None:
        super().__init__()
        self.squash = nn.Softmax(dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(self.sn2(self.squash(self.fc2(self.sn1(self.fc1(x))))))


def test_an_unsupported_layer_is_named(tmp_path: Path) -> None:
    torch.save(WithSoftmax().state_dict(), tmp_path / "weights.pth")
    message = refused(
        tmp_path, Code.UNSUPPORTED_LAYER, "export", "--to", "onnx", "--model", "tests.test_bad_input:WithSoftmax",
        "-T", 2, "--input-shape", 4, tmp_path / "weights.pth",
    )  # fmt: skip
    assert "squash" in message
    assert "softmax" in message.lower()


def test_nan_weights(tmp_path: Path) -> None:
    broken = Small()
    with torch.no_grad():
        broken.fc2.weight[1, 2] = torch.nan
    torch.save(broken.state_dict(), tmp_path / "weights.pth")
    message = refused(
        tmp_path, Code.NOT_FINITE, "export", "--to", "onnx", "--model", "tests.commands:Small", "-T", 2,
        "--input-shape", 4, tmp_path / "weights.pth",
    )  # fmt: skip
    assert "fc2" in message
    with pytest.raises(DalifError) as caught:
        dalif_deploy.save(broken, tmp_path / "m.pt", example_input=np.ones((1, 4), np.float32), timesteps=2)
    assert caught.value.code is Code.NOT_FINITE
    assert set(contents(tmp_path)) == {"weights.pth"}


def test_nan_in_a_model_pt(place: Path) -> None:
    content = torch.load(place / "digits.pt", weights_only=True)
    node = next(node for node in content["graph"]["nodes"] if node["name"] == "conv2")
    node["weight"][3, 2, 1, 0] = torch.inf
    torch.save(content, place / "digits.pt")
    for command, *arguments in READERS["digits.pt"](place):
        assert "'conv2': weight has NaN or infinite" in refused(place, Code.NOT_FINITE, str(command), *arguments)


def test_nan_in_an_onnx_file_is_a_difference(place: Path) -> None:
    model = onnx.load(place / "digits.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 2, 1, 0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, place / "digits.onnx")
    ran = dalif("verify", place / "digits.pt", place / "digits.onnx", "--samples", 4)
    assert ran.status == 1
    assert "tensor conv2.weight: values differ (1 of them), most at [3, 2, 1, 0] by inf" in ran.out


# Outputs.


@pytest.mark.parametrize("to", ["onnx", "nir", "pt"])
def test_outputs_that_cannot_be_written(place: Path, to: str) -> None:
    def export(output: Path, code: Code, *more: str) -> str:
        message = refused(place, code, "export", "--to", to, place / "digits.pt", "-o", output, *more)
        assert message.startswith(f"{output}: ")
        return message

    (place / "there").write_text("old")
    (place / "link").symlink_to("digits.pt")
    os.link(place / "digits.pt", place / "hard")
    assert "give --force to replace it" in export(place / "there", Code.OUTPUT_EXISTS)
    for itself in ("digits.pt", "link", "hard", "../place/digits.pt"):
        for more in ((), ("--force",)):
            assert "the model itself" in export(place / itself, Code.OUTPUT_IS_INPUT, *more)
    assert "does not exist" in export(place / "nowhere" / "out", Code.NO_FOLDER)
    assert "is a folder" in export(place, Code.NO_FOLDER, "--force")
    assert "does not exist" in export(place / "there" / "out", Code.NO_FOLDER)
    os.mkfifo(place / "pipe")
    assert "is a device or pipe" in refused_pipe(place, to)


def refused_pipe(place: Path, to: str) -> str:
    """As `refused`, which would wait for ever when it reads the pipe's content."""
    ran = dalif("export", "--to", to, place / "digits.pt", "-o", place / "pipe", "--force")
    assert (place / "pipe").is_fifo()
    assert ran.status == Code.NO_FOLDER.exit_status
    (line,) = ran.err.splitlines()
    return line


def test_an_output_that_is_the_data_is_refused(place: Path) -> None:
    arguments = ("--data", place / "data.npz", "-o", place / "data.npz", "--force")
    message = refused(place, Code.OUTPUT_IS_INPUT, "export", "--to", "onnx", place / "digits.pt", *arguments)
    assert "the data itself" in message


def test_a_folder_that_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("export", "--to", "onnx", place / "digits.pt", "--no-verify", "-o")
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        message = refused(place, Code.NO_FOLDER, *arguments, place / "x.onnx")  # type: ignore[arg-type]
        assert message.endswith(f"the folder {place} cannot be written; choose another with -o")
    with monkeypatch.context() as patched:  # as on a read-only file system, whatever the permissions say
        patched.setattr(tempfile, "mkstemp", lambda **_: open(place / "no" / "x"))  # noqa: PTH123, SIM115
        message = refused(place, Code.NO_FOLDER, *arguments, place / "x.onnx")  # type: ignore[arg-type]
        assert message.startswith(f"{place / 'x.onnx'}: cannot be written (")
    message = refused(place, Code.NO_FOLDER, *arguments, place / ("x" * 300))  # type: ignore[arg-type]
    assert message.endswith("cannot be written (File name too long)")
    done(*arguments, place / ("x" * 250))  # type: ignore[arg-type]


def test_saving_never_leaves_half_a_file(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def half(path: Path) -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise Stop

    (tmp_path / "model.pt").write_text("old")
    with pytest.raises(Stop):
        half(tmp_path / "model.pt")
    assert contents(tmp_path) == {"model.pt": b"old"}
    with pytest.raises(DalifError) as caught:
        dalif_deploy.save(Small(), tmp_path / "no" / "m.pt", example_input=torch.ones(1, 4), timesteps=2)
    assert caught.value.code is Code.NO_FOLDER


# What the commands do with faults, and as programs.


def test_a_fault_of_ours_is_one_line_and_status_3(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise ZeroDivisionError("several\nlines")

    monkeypatch.setattr("dalif_deploy.deploy.verify", wrong)
    message = refused(place, Code.FAULT, "verify", place / "digits.pt")
    assert message.startswith("ZeroDivisionError: several lines; this is a fault of dalif_deploy, please report it")
    for flags in (["-vv"], ["-v", "-v"], ["--verbose", "-v"]):
        assert "Traceback" in dalif("verify", place / "digits.pt", *flags).err
    assert "Traceback" not in dalif("verify", place / "digits.pt", "-v").err


def test_interrupted_is_130(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dalif_deploy.deploy.verify", interrupted)
    assert status_of(verify.command, [str(place / "digits.pt")]) == 130
    # A terminal shows ^C first, hence the empty line.
    assert capsys.readouterr().err == "\ndalif-verify: interrupted\n"


def test_an_interrupted_export_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dalif_deploy.deploy.exporting.verify", interrupted)
    before = contents(place)
    assert dalif("export", "--to", "onnx", place / "digits.pt", "-o", place / "new.onnx").status == 130
    assert contents(place) == before


@pytest.mark.parametrize("command", ["export", "verify", "run"])
def test_programs(place: Path, command: str) -> None:
    """The installed programs: help on stdout and status 0; a refusal is one line on stderr and status 2."""

    def program(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [str(PROGRAMS / f"dalif-{command}"), *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, check=False, cwd=place)

    shown = program("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"Usage: dalif-{command} [OPTIONS] ")
    assert f"Examples:\n    dalif-{command} " in shown.stdout
    assert "Exit status: 0 " in " ".join(shown.stdout.split())
    wrong = program("digits.onnx", *{"export": ("--to", "nir"), "run": ("--data", "no.npz")}.get(command, ()))
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert wrong.stderr.startswith(f"dalif-{command}: error: [E010")
