"""dalif-verify on recorded runs and on certificates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from dalif_deploy.cli.common import status_of
from dalif_deploy.cli.export import command as export_command
from dalif_deploy.cli.run import command as run_command
from dalif_deploy.cli.verify import command as verify_command

MODEL = Path(__file__).parent.parent / "examples" / "models" / "digits.pt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a recorded run of it, and an exact file."""
    folder = tmp_path_factory.mktemp("files")
    codes = np.random.default_rng(0).integers(0, 17, (12, 1, 8, 8)).astype(np.uint8)
    np.savez(folder / "data.npz", inputs=codes)
    arguments = [str(MODEL), "--data", str(folder / "data.npz"), "--spikes", "-q", "-o", str(folder / "run.npz")]
    assert status_of(run_command, arguments) == 0
    exact = [
        "--to",
        "onnx",
        "--precision",
        "exact",
        str(MODEL),
        "-o",
        str(folder / "exact.onnx"),
        "--samples",
        "4",
        "-q",
    ]
    assert status_of(export_command, exact) == 0
    return folder


def changed(place: Path, name: str, changes: Mapping[str, NDArray[np.generic] | None]) -> Path:
    """A copy of the recorded run in which arrays are others, or gone."""
    with np.load(place / "run.npz") as loaded:
        arrays = {key: loaded[key] for key in loaded.files}
    arrays.update({key: value for key, value in changes.items() if value is not None})
    kept = {key: value for key, value in arrays.items() if not (key in changes and changes[key] is None)}
    np.savez(place / name, **kept)
    return place / name


def verify(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = status_of(verify_command, [str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_recorded_run_is_judged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = verify(capsys, MODEL, "--from", place / "run.npz", "--data", place / "data.npz", "--json")
    recorded = [r for r in json.loads(out)["runtimes"] if r["name"] == "recorded"]
    assert status == 0
    assert [r["verdict"] for r in recorded] == ["exact"]
    assert recorded[0]["file"] == str(place / "run.npz")
    assert recorded[0]["spikes_compared"] == 12 * 4 * (1024 + 512 + 64)


def test_one_spike_of_a_recorded_run_changed_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(place / "run.npz") as loaded:
        spikes = loaded["spikes.sn2"]
    spikes[7, 2, 5, 1, 3] ^= True
    path = changed(place, "flipped.npz", {"spikes.sn2": spikes})
    status, out, _ = verify(capsys, MODEL, "--from", path, "--data", place / "data.npz", "--json")
    (recorded,) = [r for r in json.loads(out)["runtimes"] if r["name"] == "recorded"]
    assert status == 1
    assert recorded["verdict"] == "divergent"
    first = recorded["origins"][0]
    assert (first["sample"], first["layer"], first["t"], first["index"]) == (7, "sn2", 2, [5, 1, 3])


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"spikes.sn2": None}, "E0115", "lacks spikes.sn2"),
        ({"spikes.other": np.zeros((12, 4, 3), bool)}, "E0115", "has the layers other"),
        ({"spikes.sn3": np.zeros((12, 5, 64), bool)}, "E0115", "[12, 5, 64]"),
        ({"spikes.sn3": np.full((12, 4, 64), 2)}, "E0114", "other values than 0 and 1"),
        ({"logits": None}, "E0114", "no recorded spikes and logits"),
    ],
)
def test_recordings_that_do_not_fit_are_refused(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, NDArray[np.generic] | None],
    code: str,
    said: str,
) -> None:
    path = changed(place, "other.npz", changes)
    status, out, err = verify(capsys, MODEL, "--from", path, "--data", place / "data.npz")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert code in err
    assert said in err


def test_fewer_recorded_samples_than_data_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = verify(capsys, MODEL, "--from", place / "run.npz")  # the model's own 360 samples
    assert status == 2
    assert "E0106" in err
    assert "holds 12 samples" in err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no npz at all"])
def test_damaged_recordings_are_refused(place: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (place / "damaged.npz").write_bytes(content)
    status, _, err = verify(capsys, MODEL, "--from", place / "damaged.npz")
    assert status == 2
    assert err.count("\n") == 1


def test_a_certificate_holds(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = verify(capsys, "--check-certificate", place / "exact.onnx", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["holds"]
    assert [layer["node"] for layer in found["layers"]] == ["conv1", "conv2", "fc1", "fc2"]


@pytest.mark.parametrize("key", ["largest", "exponents"])
def test_a_certificate_altered_in_one_integer_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    model = onnx.load(place / "exact.onnx")
    (entry,) = [entry for entry in model.metadata_props if entry.key == "certificate"]
    certificate = json.loads(entry.value)
    if key == "largest":
        certificate[1]["largest"] -= 1
    else:
        certificate[1]["exponents"][3] += 1
    entry.value = json.dumps(certificate)
    onnx.save(model, place / "altered.onnx")
    status, out, _ = verify(capsys, "--check-certificate", place / "altered.onnx")
    assert status == 1
    assert "conv2" in out
    assert "does not hold" in out


def test_certificates_need_an_exact_file_and_no_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = verify(capsys, "--check-certificate", MODEL)
    assert status == 2
    assert err.count("\n") == 1
    status, _, err = verify(capsys, MODEL, "--check-certificate", place / "exact.onnx")
    assert status == 2
    assert "without MODEL" in err


def test_an_exact_file_is_verified_bit_for_bit(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = verify(capsys, MODEL, place / "exact.onnx", "--data", place / "data.npz", "--json")
    (run,) = [r for r in json.loads(out)["runtimes"] if r["name"] == "onnxruntime"]
    assert status == 0
    assert run["definition_differing"] == 0
    assert run["verdict"] == "exact"
    assert run["certified_samples"] == 12
    others = [r for r in json.loads(out)["runtimes"] if r["name"] != "onnxruntime"]
    assert {r["definition_differing"] for r in others} == {None}


def test_a_weight_changed_in_an_exact_file_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(place / "exact.onnx")
    (weights,) = [i for i in model.graph.initializer if i.name.startswith("conv2.") and len(i.dims) == 4]
    values = onnx.numpy_helper.to_array(weights).copy()
    values[0, 0, 1, 1] += 2.0 ** np.floor(np.log2(np.abs(values[values != 0]).max()))
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(model, place / "tampered.onnx")
    status, out, _ = verify(capsys, MODEL, place / "tampered.onnx", "--data", place / "data.npz")
    assert status == 1
    assert weights.name in out
