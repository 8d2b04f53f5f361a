"""dalif-verify -o and --from: what was stored is decided again, to the same words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dalif_deploy.deploy import verify
from dalif_deploy.errors import Code
from tests.commands import DIGITS, Small, contents, dalif, done, refused, stored_samples


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled data, an exported file, and the results of verifying both, with and without inputs."""
    folder = tmp_path_factory.mktemp("results")
    np.savez(folder / "data.npz", inputs=stored_samples(40), labels=np.arange(40) % 10)
    done("export", "--to", "onnx", DIGITS, "-o", folder / "net.onnx", "--no-verify", "-q")
    common = [DIGITS, folder / "net.onnx", "--data", folder / "data.npz", "--json", "-q", "-o"]
    (folder / "said.json").write_text(done("verify", *common, folder / "results.npz").out)
    done("verify", *common, folder / "with_inputs.npz", "--keep-inputs")
    return folder


def said(place: Path) -> Any:
    return json.loads((place / "said.json").read_text())


def test_the_same_verdict_is_decided_again(place: Path) -> None:
    verdict = said(place)
    assert verdict["links"]["module"]["verdict"] == "exact"
    assert [runtime["name"] for runtime in verdict["runtimes"]] == ["torch", "events", "onnxruntime"]
    assert done("verify", "--from", place / "results.npz", "--json").json() == verdict
    assert done("verify", "--from", place / "with_inputs.npz", "--json", "--strict").json() == verdict


def test_it_reads_like_the_verification_itself(place: Path) -> None:
    first = done("verify", DIGITS, place / "net.onnx", "--data", place / "data.npz", "-q").out
    assert done("verify", "--from", place / "results.npz").out == first


def test_the_model_may_be_asked_again(place: Path) -> None:
    for file, more in (("results.npz", ["--data", place / "data.npz"]), ("with_inputs.npz", [])):
        again = done("verify", DIGITS, "--from", place / file, *more, "--json").json()
        assert again["runtimes"] == said(place)["runtimes"]
        assert again["links"] == said(place)["links"]
        assert (again["accuracy"], again["rates"]) == (said(place)["accuracy"], said(place)["rates"])


def test_a_divergent_verification_is_stored_too(place: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(place / "net.onnx")
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight"]
    weight.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    first = dalif("verify", DIGITS, tmp_path / "other.onnx", "-o", tmp_path / "r.npz", "--samples", "4", "--json")
    again = dalif("verify", "--from", tmp_path / "r.npz", "--json")
    assert (first.status, again.status) == (1, 1)
    assert again.json() == first.json()
    (runtime,) = [r for r in again.json()["runtimes"] if r["name"] == "onnxruntime"]
    assert runtime["origins"]
    assert runtime["tensors_differing"]


def test_strict_is_asked_of_a_file(tmp_path: Path) -> None:
    from tests.results import ROUNDING, recorded_verdict

    recorded_verdict(ROUNDING, path=tmp_path / "r.npz")
    assert dalif("verify", "--from", tmp_path / "r.npz").status == 0
    assert dalif("verify", "--from", tmp_path / "r.npz", "--strict").status == 1


def test_a_module_that_is_captured_now_is_stored_as_a_link(tmp_path: Path) -> None:
    from dalif_deploy.deploy import LoadOptions, decide_again

    options = LoadOptions(timesteps=4, input_shape=(4,))
    verdict = verify(Small(), options=options, samples=8, results=tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as file:
        assert "links.module.spikes.sn1" in file
    assert decide_again(tmp_path / "r.npz").as_json() == verdict.as_json()


def test_a_stored_verification_is_the_file_or_nothing(place: Path) -> None:
    before = contents(place)
    arguments = [DIGITS, "--data", place / "data.npz", "-o", place / "results.npz"]
    refused(place, Code.OUTPUT_EXISTS, "verify", *arguments)
    assert contents(place) == before
    done("verify", DIGITS, place / "net.onnx", *arguments[1:], "--force", "-q", "--json")
    assert contents(place).keys() == before.keys()
    assert contents(place)["results.npz"] == before["results.npz"]


@pytest.mark.parametrize("name", ["data.npz", "net.onnx"])
def test_it_replaces_nothing_that_takes_part(place: Path, name: str) -> None:
    arguments = [DIGITS, place / "net.onnx", "--data", place / "data.npz", "--force", "-o", place / name]
    refused(place, Code.OUTPUT_IS_INPUT, "verify", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "results.npz", "--from", "results.npz"], "alone"),
        (["MODEL", "net.onnx", "--from", "results.npz"], "alone"),
        (["MODEL", "--from", "results.npz", "--runtime", "torch"], "alone"),
        (["MODEL", "--from", "results.npz", "--samples", "3"], "alone"),
        (["--from", "results.npz", "-o", "new.npz"], "alone"),
        (["--from", "results.npz", "--data", "data.npz"], "without MODEL"),
        (["MODEL", "--keep-inputs"], "--keep-inputs needs -o"),
        (["MODEL", "--from", "results.npz"], "--data"),
        ([], "MODEL"),
    ],
)
def test_options_that_do_not_go_together_are_refused(place: Path, arguments: list[str], words: str) -> None:
    files = {name: place / name for name in ("results.npz", "net.onnx", "data.npz", "new.npz")}
    known: dict[str, object] = {"MODEL": DIGITS, **files}
    said_ = refused(place, Code.BAD_OPTION, "verify", *(known.get(argument, argument) for argument in arguments))
    assert words in said_


def test_other_data_are_refused(place: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", inputs=stored_samples(41)[1:])
    arguments = [DIGITS, "--from", place / "results.npz", "--data", tmp_path / "other.npz"]
    assert "SHA-256" in refused(tmp_path, Code.BAD_DATA, "verify", *arguments)


def test_a_run_is_no_verification(place: Path, tmp_path: Path) -> None:
    done("run", DIGITS, "--data", place / "data.npz", "--spikes", "-o", tmp_path / "run.npz", "-q")
    assert "MODEL" in refused(tmp_path, Code.BAD_OPTION, "verify", "--from", tmp_path / "run.npz")
