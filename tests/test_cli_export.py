"""dalif-export: what it writes, what the files say of themselves, and that nothing wrong is kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nir
import numpy as np
import onnx
import pytest
import torch

import dalif_deploy
from dalif_deploy import Code, SpikingGraph
from dalif_deploy.cli.export import command
from dalif_deploy.deploy import DivergentError
from dalif_deploy.dialects import DIALECTS
from dalif_deploy.exporters import onnx as onnx_exporter
from tests.commands import DIGITS, Small, contents, done, model_of, refused, stored_samples

PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A copy of the shipped model, since files are written beside it."""
    return Path(shutil.copy(DIGITS, tmp_path / "digits.pt"))


def entries(path: Path) -> Mapping[str, str]:
    """An exported file's metadata, read with the format's own package."""
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return nir.read(str(path)).metadata


@pytest.mark.parametrize("to", ["onnx", "nir"])
def test_the_default_name_is_the_models_beside_it(digits: Path, to: str) -> None:
    ran = done("export", "--to", to, digits, "--samples", 4)
    assert set(contents(digits.parent)) == {"digits.pt", f"digits.{to}"}
    (line,) = ran.out.splitlines()
    written = digits.with_suffix(f".{to}")
    assert line.startswith(f"{written}: written, {written.stat().st_size:,} bytes; exact: 0 of ")
    assert "(4 samples; torch, events, " in line


def test_to_pt_makes_a_checkpoint_ours(tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.pth"
    torch.save(Small().state_dict(), checkpoint)
    done("export", "--to", "pt", "--model", "tests.commands:Small", "-T", 3, "--input-shape", 4, checkpoint)
    assert set(contents(tmp_path)) == {"weights.pth", "weights.pt"}
    graph = dalif_deploy.load(tmp_path / "weights.pt")
    assert graph.timesteps == 3
    assert graph.input.shape == (4,)
    assert np.array_equal(graph["fc2"].arrays()["weight"], Small().fc2.weight.detach().numpy())
    done("verify", tmp_path / "weights.pt")


def test_model_arguments_reach_the_factory(tmp_path: Path) -> None:
    checkpoint = tmp_path / "weights.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in Small(9).state_dict().items()}}, checkpoint)
    done(
        "export", "--to", "pt", "--model", "tests.commands:Small", "--model-arg", "hidden=9", "-T", 2,
        "--input-shape", "4", checkpoint,
    )  # fmt: skip
    assert dalif_deploy.load(tmp_path / "weights.pt").types["sn1"].shape == (9,)


def test_output_goes_where_it_is_told(digits: Path) -> None:
    folder = digits.parent / "elsewhere"
    folder.mkdir()
    done("export", "--to", "onnx", digits, "-o", folder / "any.name", "--no-verify")
    assert set(contents(digits.parent)) == {"digits.pt", "elsewhere", "elsewhere/any.name"}
    onnx.checker.check_model(onnx.load(folder / "any.name"))


def test_force_replaces_a_file_and_a_link_but_not_what_the_link_names(digits: Path) -> None:
    folder = digits.parent
    (folder / "old.onnx").write_text("old")
    (folder / "link.onnx").symlink_to("old.onnx")
    assert "--force" in refused(folder, Code.OUTPUT_EXISTS, "export", "--to", "onnx", digits, "-o", folder / "old.onnx")
    done("export", "--to", "onnx", digits, "-o", folder / "link.onnx", "--force", "--no-verify")
    assert (folder / "old.onnx").read_text() == "old"
    done("export", "--to", "onnx", digits, "-o", folder / "old.onnx", "--force", "--no-verify")
    assert (folder / "old.onnx").read_bytes() == (folder / "link.onnx").read_bytes() != b"old"


def test_the_file_has_the_permissions_of_any_new_file(digits: Path) -> None:
    before = os.umask(0o027)
    try:
        done("export", "--to", "onnx", digits, "--no-verify")
    finally:
        os.umask(before)
    assert stat.S_IMODE(digits.with_suffix(".onnx").stat().st_mode) == 0o640


@pytest.mark.parametrize("to", ["onnx", "nir", "pt"])
def test_json(digits: Path, to: str) -> None:
    out = digits.parent / f"out.{to}"
    result = done("export", "--to", to, digits, "-o", out, "--json", "--samples", 4).json()
    assert list(result) == ["output", "target", "precision", "graph", "timesteps", "verdict", "sha256"]
    assert result == {
        "output": str(out), "target": to, "precision": "float32", "graph": "unrolled", "timesteps": 4,
        "verdict": None if to == "pt" else "exact", "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }  # fmt: skip


def test_json_and_line_say_when_nothing_was_verified(digits: Path) -> None:
    assert done("export", "--to", "onnx", digits, "--json", "--no-verify").json()["verdict"] is None
    assert done("export", "--to", "onnx", digits, "--force", "--no-verify").out.endswith("; not verified\n")


@pytest.mark.parametrize("to", ["onnx", "nir"])
def test_the_file_says_what_it_is(digits: Path, to: str) -> None:
    done("export", "--to", to, digits, "--no-verify")
    said = entries(digits.with_suffix(f".{to}"))
    raw = {node["name"]: node for node in torch.load(DIGITS, weights_only=True)["graph"]["nodes"]}
    assert said["timesteps"] == "4"
    assert said["readout"] == "mean"
    assert json.loads(said["encoding"]) == {"kind": "uint8", "scale": 1 / 16, "mean": 0.0, "std": 1.0}
    assert json.loads(said["class_names"]) == [str(digit) for digit in range(10)]
    assert said["source_sha256"] == hashlib.sha256(DIGITS.read_bytes()).hexdigest()
    assert said["tool"] == f"dalif_deploy {dalif_deploy.__version__}"
    layers = json.loads(said["layers"])
    assert [(layer["name"], layer["reset"], layer["fires_at"]) for layer in layers] == [
        ("sn1", "hard", "ge"), ("sn2", "hard", "ge"), ("sn3", "hard", "ge"),
    ]  # fmt: skip
    for layer in layers:
        assert layer["alpha"] == float(raw[layer["name"]]["alpha"])
        assert layer["beta"] == float(raw[layer["name"]]["beta"])
    log = json.loads(said["fold_log"])
    for folded in ("bn1", "bn2", "sn1: alpha", "sn2: alpha", "sn3: alpha", "pool1", "pool2"):
        assert sum(line.startswith(folded) for line in log) == 1, folded


def test_rules_and_channels_are_in_the_metadata(tmp_path: Path) -> None:
    for name, key, value in (("subtract reset", "reset", "subtract"), ("strict threshold", "fires_at", "gt")):
        model, _ = model_of(name, tmp_path)
        done("export", "--to", "onnx", model, "-o", tmp_path / "out.onnx", "--force")
        assert {layer[key] for layer in json.loads(entries(tmp_path / "out.onnx")["layers"])} == {value}
        model.unlink()
    model, _ = model_of("per channel", tmp_path)
    done("export", "--to", "nir", model, "-o", tmp_path / "out.nir")
    (first, _) = json.loads(entries(tmp_path / "out.nir")["layers"])
    assert np.array_equal(np.ravel(first["beta"]), np.linspace(-0.25, 0.95, 8).astype(np.float32))


def test_onnx_bytes_are_the_same_every_time(digits: Path) -> None:
    first, second = digits.parent / "first.onnx", digits.parent / "second.onnx"
    done("export", "--to", "onnx", digits, "-o", first, "--no-verify")
    # Another process hashes strings with another seed.
    command = [PROGRAMS / "dalif-export", "--to", "onnx", digits, "-o", second, "--no-verify"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert first.read_bytes() == second.read_bytes()
    assert ran.stdout == f"{second}: written, {second.stat().st_size:,} bytes; not verified\n"


def test_outputs_spikes_and_opset(digits: Path) -> None:
    done("export", "--to", "onnx", digits, "--outputs", "spikes", "--opset", 20, "--samples", 4)
    model = onnx.load(digits.with_suffix(".onnx"))
    assert [output.name for output in model.graph.output] == ["logits", "sn1/spikes", "sn2/spikes", "sn3/spikes"]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]


def test_options_of_the_other_format_are_refused_by_their_own_name(digits: Path) -> None:
    folder = digits.parent
    assert "--opset" in refused(folder, Code.BAD_OPTION, "export", "--to", "nir", digits, "--opset", 18)
    assert "--outputs" in refused(folder, Code.BAD_OPTION, "export", "--to", "nir", digits, "--outputs", "logits")
    asked = ("--nir-dialect", "canonical")
    assert "--nir-dialect" in refused(folder, Code.BAD_OPTION, "export", "--to", "onnx", digits, *asked)
    assert "--opset" in refused(folder, Code.BAD_OPTION, "export", "--to", "pt", digits, "--opset", 18, "-o", "x.pt")


def test_verification_uses_the_given_data(digits: Path) -> None:
    data = digits.parent / "data.npy"
    np.save(data, stored_samples(7))
    assert "(7 samples; " in done("export", "--to", "onnx", digits, "--data", data).out
    assert "(5 samples; " in done("export", "--to", "onnx", digits, "--data", data, "--samples", 5, "--force").out


@pytest.mark.parametrize("options", [(), ("--no-verify",)])
def test_the_smallest_margin_is_told(digits: Path, options: tuple[str, ...]) -> None:
    """Of the folding, which is proved at every export."""
    ran = done("export", "--to", "onnx", digits, "--force", *options)
    link = dalif_deploy.verify(digits, runtimes=()).links["folding"]
    assert link is not None
    assert link.closest is not None
    assert (
        f"smallest margin: {link.closest.margin:.3g} in layer '{link.closest.layer}', step {link.closest.t}" in ran.err
    )


def test_notes_are_on_stderr_and_quiet_silences_them(digits: Path) -> None:
    notes = done("export", "--to", "nir", digits, "--no-verify").err
    assert "readout='mean'" in notes
    assert "norse reads it rightly: norse.torch.from_nir(" in notes
    assert "not for sinabs: " in notes
    assert done("export", "--to", "nir", digits, "--no-verify", "--force", "-q").err == ""


def test_another_number_of_timesteps(digits: Path) -> None:
    ran = done("export", "--to", "onnx", digits, "-T", 2, "--json")
    assert ran.json()["timesteps"] == 2
    assert "2 timesteps instead of the 4" in ran.err
    assert entries(digits.with_suffix(".onnx"))["timesteps"] == "2"


def test_a_divergent_file_is_not_kept(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnx_exporter.to_onnx

    def wrong(graph: SpikingGraph, **options: Any) -> onnx.ModelProto:
        model = real(graph, **options)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight")
        tensor.CopyFrom(onnx.numpy_helper.from_array(1.1 * onnx.numpy_helper.to_array(tensor), tensor.name))
        return model

    monkeypatch.setattr(onnx_exporter, "to_onnx", wrong)
    out = digits.with_suffix(".onnx")
    message = refused(digits.parent, Code.EXPORT_DIVERGES, "export", "--to", "onnx", digits, "--samples", 8)
    assert message.startswith(f"{out}: not written, since it is divergent: in onnxruntime, layer 'sn2' step ")
    out.write_text("older")
    refused(digits.parent, Code.EXPORT_DIVERGES, "export", "--to", "onnx", digits, "--samples", 8, "--force")
    with pytest.raises(DivergentError) as caught:
        dalif_deploy.export(DIGITS, out, to="onnx", samples=8, force=True)
    origin = caught.value.verdict.runtimes[-1].comparison.origins[0]
    assert (origin.layer, origin.within_bound) == ("sn2", False)


def test_a_file_that_reads_back_otherwise_is_not_kept(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnx.save_model

    def wrong(model: onnx.ModelProto, path: str) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fc2.bias")
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        for copy in changed.graph.initializer:
            if copy.name == tensor.name:
                copy.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
        real(changed, path)

    monkeypatch.setattr(onnx, "save_model", wrong)
    message = refused(digits.parent, Code.FAULT, "export", "--to", "onnx", digits, "--no-verify")
    assert "tensor fc2.bias is not what was written" in message


def test_a_failing_write_leaves_nothing(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", full)
    assert "No space left" in refused(digits.parent, Code.NO_FOLDER, "export", "--to", "onnx", digits)


def test_the_dialects_are_those_of_the_exporter() -> None:
    (option,) = (option for option in command.params if option.name == "dialect")
    assert tuple(option.type.choices) == tuple(DIALECTS)


@pytest.mark.simulators
@pytest.mark.parametrize("dialect", ["norse", "spikingjelly", "snntorch", "sinabs"])
def test_a_dialect_is_verified_by_its_simulator(digits: Path, dialect: str) -> None:
    ran = done("export", "--to", "nir", digits, "--nir-dialect", dialect)
    assert f"{dialect} reads it rightly: " in ran.err
    verdict = done("verify", digits, digits.with_suffix(".nir"), "--json").json()
    assert [runtime["name"] for runtime in verdict["runtimes"]] == ["torch", "events", "events", dialect]
    assert verdict["verdict"] == "exact"
