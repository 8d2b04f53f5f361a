"""dalif-verify: what passes, what does not, and that it says where."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

import dalif_deploy
from dalif_deploy import Code
from dalif_deploy.runtimes import norse, snntorch, spikingjelly
from tests.commands import DIGITS, Small, dalif, done, model_of, refused, stored_samples

NIR_RUNTIMES = (("norse", norse), ("spikingjelly", spikingjelly), ("snntorch", snntorch))
SIMULATORS = [name for name, module in NIR_RUNTIMES if not module.available()]
SAMPLES = 24


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The digits model as .onnx and .nir, untouched: tests change copies."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {to: folder / f"digits.{to}" for to in ("onnx", "nir")}
    for to, path in paths.items():
        done("export", "--to", to, DIGITS, "-o", path, "--no-verify")
    return paths


@pytest.fixture(scope="module")
def spikes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.bool_]]:
    """What the digits model fires on its first samples, by layer, [N, T, ...]."""
    folder = tmp_path_factory.mktemp("spikes")
    np.save(folder / "data.npy", stored_samples(SAMPLES))
    done("run", DIGITS, "--data", folder / "data.npy", "--spikes", "-o", folder / "out.npz")
    with np.load(folder / "out.npz") as stored:
        return {name.removeprefix("spikes."): stored[name] for name in stored if name.startswith("spikes.")}


Change = Callable[[NDArray[Any]], None]


def changed(path: Path, folder: Path, node: str, change: Change) -> Path:
    """A copy of an exported file in which `change` has altered, in place, the weight of `node`."""
    copy = Path(shutil.copy(path, folder))
    if path.suffix == ".onnx":
        model = onnx.load(copy)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == f"{node}.weight")
        values = numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        onnx.save(model, copy)
    else:
        with h5py.File(copy, "r+") as file:
            weight = file[f"node/nodes/{node}/weight"]
            values = weight[...]
            change(values)
            weight[...] = values
    return copy


def weight_in(path: Path, node: str) -> NDArray[Any]:
    if path.suffix == ".onnx":
        initialisers = onnx.load(path).graph.initializer
        return numpy_helper.to_array(next(tensor for tensor in initialisers if tensor.name == f"{node}.weight"))
    with h5py.File(path) as file:
        values: NDArray[Any] = file[f"node/nodes/{node}/weight"][...]
        return values


def busiest(path: Path, spikes: dict[str, NDArray[np.bool_]]) -> tuple[str, str, tuple[int, ...]]:
    """The synapse of the largest |w| x presynaptic spikes: its node, the layer it feeds, and its index."""
    by_channel = spikes["sn1"].sum(axis=(0, 1, 3, 4))
    pooled = spikes["sn2"].reshape(SAMPLES, 4, 32, 2, 2, 2, 2).sum(axis=(0, 1, 4, 6)).reshape(-1)
    found = []
    for node, layer, counts in (("conv2", "sn2", by_channel[None, :, None, None]), ("fc1", "sn3", pooled[None, :])):
        weighted = np.abs(weight_in(path, node)) * counts
        place = np.unravel_index(np.argmax(weighted), weighted.shape)
        found.append((float(weighted.max()), node, layer, tuple(int(i) for i in place)))
    return max(found)[1:]


def runtimes_of(suffix: str) -> list[str]:
    return ["onnxruntime"] if suffix == "onnx" else ["events", *SIMULATORS]


def test_exact_and_its_json(exported: dict[str, Path]) -> None:
    ran = done("verify", DIGITS, exported["onnx"], exported["nir"], "--json", "--samples", SAMPLES)
    verdict = ran.json()
    assert verdict.keys() >= {
        "verdict", "samples", "timesteps", "reference", "links", "rates", "vacuous", "runtimes",
    }  # fmt: skip
    assert (verdict["verdict"], verdict["samples"], verdict["timesteps"]) == ("exact", SAMPLES, 4)
    assert "float64" in verdict["reference"]
    assert verdict["links"].keys() == {"module", "folding"}
    assert [verdict["links"][name]["verdict"] for name in ("module", "folding")] == ["exact", "exact"]
    assert list(verdict["rates"]) == ["sn1", "sn2", "sn3"]
    assert verdict["vacuous"] == []
    took_part = [(runtime["name"], runtime["file"]) for runtime in verdict["runtimes"]]
    assert took_part == [
        ("torch", None), ("events", None), ("onnxruntime", str(exported["onnx"])),
        *((name, str(exported["nir"])) for name in ("events", *SIMULATORS)),
    ]  # fmt: skip
    neurons = 16 * 8 * 8 + 32 * 4 * 4 + 64
    for runtime in verdict["runtimes"]:
        assert runtime.keys() >= {
            "name", "file", "verdict", "spikes_compared", "spikes_differing", "samples_differing", "origins",
            "uncertain", "certified_samples", "max_logit_difference", "prediction_changes",
        }  # fmt: skip
        assert runtime["spikes_compared"] == SAMPLES * 4 * neurons
        assert (runtime["verdict"], runtime["spikes_differing"], runtime["samples_differing"]) == ("exact", 0, 0)
        assert (runtime["origins"], runtime["prediction_changes"]) == ([], 0)
        for step in runtime["uncertain"]:  # as near to the threshold as its bound, and yet as the reference has it
            assert step.keys() >= {"sample", "layer", "t", "index", "potential", "threshold", "margin", "bound"}
            assert abs(step["margin"]) <= step["bound"]
        assert 0.0 <= runtime["max_logit_difference"] < 1e-4


def test_rates_are_those_of_the_spikes(spikes: dict[str, NDArray[np.bool_]], tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", stored_samples(SAMPLES))
    verdict = done("verify", DIGITS, "--data", tmp_path / "data.npy", "--json").json()
    assert verdict["rates"] == {name: fired.mean() for name, fired in spikes.items()}


def test_exact_for_a_person(exported: dict[str, Path]) -> None:
    out = done("verify", DIGITS, exported["onnx"], "--samples", SAMPLES, "--strict").out
    for said in ("module > graph", "graph > folded", "torch", "events", "onnxruntime", "digits.onnx", "0.8169"):
        assert said in out
    spikes_compared = 3 * SAMPLES * 4 * (16 * 64 + 32 * 16 + 64)
    summary = out.splitlines()[-1]
    assert summary == (
        f"exact: 0 of {spikes_compared:,} spikes differ ({SAMPLES} samples; torch, events, onnxruntime)"
    )  # fmt: skip


@pytest.mark.parametrize("to", ["onnx", "nir"])
def test_a_changed_weight_is_found_and_named(
    exported: dict[str, Path], spikes: dict[str, NDArray[np.bool_]], tmp_path: Path, to: str
) -> None:
    node, layer, place = busiest(exported[to], spikes)

    def ten_percent_more(weight: NDArray[Any]) -> None:
        weight[place] *= 1.1

    file = changed(exported[to], tmp_path, node, ten_percent_more)
    ran = dalif("verify", DIGITS, file, "--json", "--samples", SAMPLES)
    assert ran.status == 1
    verdict = ran.json()
    assert verdict["verdict"] == "divergent"
    guilty = [runtime for runtime in verdict["runtimes"] if runtime["file"] == str(file)]
    assert [runtime["name"] for runtime in guilty] == runtimes_of(to)
    for runtime in guilty:
        assert runtime["verdict"] == "divergent"
        assert runtime["spikes_differing"] > 0
        # What the weight feeds is at fault, and nothing that merely follows from it.
        assert {(origin["layer"], origin["index"][0]) for origin in runtime["origins"]} == {(layer, place[0])}
        for origin in runtime["origins"]:
            assert origin.keys() >= {"sample", "layer", "t", "index", "potential", "threshold", "margin", "bound"}
            assert abs(origin["margin"]) > origin["bound"]
            assert origin["within_bound"] is False
            assert origin["margin"] == pytest.approx(origin["potential"] - origin["threshold"])
        (tensor,) = runtime["tensors_differing"]
        assert (tensor["elements"], tuple(tensor["index"])) == (1, place)
        assert tensor["name"] == f"{node}.weight"
    innocent = [runtime for runtime in verdict["runtimes"] if runtime["file"] is None]
    assert {runtime["verdict"] for runtime in innocent} == {"exact"}
    first = guilty[0]["origins"][0]
    shown = dalif("verify", DIGITS, file, "--samples", SAMPLES)
    assert shown.status == 1
    assert f"layer '{layer}' step {first['t']} neuron {first['index']} of sample {first['sample']}" in shown.out
    assert shown.out.splitlines()[-1].startswith("divergent: ")


@pytest.mark.parametrize("to", ["onnx", "nir"])
def test_a_changed_weight_that_no_sample_exercises_is_a_differing_tensor(
    exported: dict[str, Path], tmp_path: Path, to: str
) -> None:
    data = tmp_path / "one.npz"
    np.savez(data, inputs=stored_samples(1))
    done("run", DIGITS, "--data", data, "--spikes", "-o", tmp_path / "out.npz")
    fired = np.load(tmp_path / "out.npz")["spikes.sn2"].any(axis=(0, 1))
    silent = int(np.flatnonzero(~fired.reshape(32, 2, 2, 2, 2).any(axis=(2, 4)).reshape(-1))[0])

    def twice(weight: NDArray[Any]) -> None:
        weight[5, silent] *= 2

    file = changed(exported[to], tmp_path, "fc1", twice)
    ran = dalif("verify", DIGITS, file, "--data", data, "--json")
    assert ran.status == 1
    verdict = ran.json()
    assert verdict["verdict"] == "divergent"
    for runtime in verdict["runtimes"]:
        if runtime["file"] is None:
            assert (runtime["verdict"], runtime["tensors_differing"]) == ("exact", [])
            continue
        assert (runtime["verdict"], runtime["spikes_differing"], runtime["origins"]) == ("divergent", 0, [])
        (tensor,) = runtime["tensors_differing"]
        assert (tensor["name"], tensor["elements"], tensor["index"]) == ("fc1.weight", 1, [5, silent])
    out = dalif("verify", DIGITS, file, "--data", data).out
    assert f"tensor fc1.weight: values differ (1 of them), most at [5, {silent}] by " in out
    assert out.splitlines()[-1].endswith("; tensors that differ: fc1.weight")


class NearTie(nn.Module):
    """Neuron 0 of sn1 gets 1 - 2^-26 at step 1, which float32 rounds to its threshold of 1; sn2 follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 2, bias=False)
        self.sn1 = dalif_deploy.DALIF(activation="identity", alpha_init=1.0, beta_init=0.5)
        self.fc2 = nn.Linear(2, 2, bias=False)
        self.sn2 = dalif_deploy.DALIF(activation="identity", alpha_init=1.0, beta_init=0.5)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.tensor([[1.0, -(2.0**-26)], [0.75, 0.0]]))
            self.fc2.weight.copy_(1.25 * torch.eye(2))
            self.head.weight.copy_(torch.eye(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.sn2(self.fc2(self.sn1(self.fc1(x)))))


@pytest.fixture(scope="module")
def near_tie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("near_tie")
    inputs = np.zeros((2, 4, 2), np.float32)
    inputs[0, 1] = (1.0, 1.0)  # sample 0 comes within a rounding of the threshold, at step 1
    inputs[0, 2, 0] = 1.0
    inputs[1, :, 0] = 0.75
    dalif_deploy.save(
        NearTie(), folder / "model.pt", example_input=inputs, timesteps=4, temporal=True, readout="sum",
        layout="step",
    )  # fmt: skip
    for to in ("onnx", "nir"):
        done("export", "--to", to, folder / "model.pt")
    return folder


def test_a_near_tie_is_rounding_and_named(near_tie: Path) -> None:
    files = [near_tie / "model.onnx", near_tie / "model.nir"]
    verdict = done("verify", near_tie / "model.pt", *files, "--json").json()
    assert verdict["verdict"] == "rounding"
    assert verdict["links"]["module"]["verdict"] == "rounding"  # the module computes in float32
    assert verdict["links"]["folding"]["verdict"] == "exact"
    assert len(verdict["runtimes"]) == 4 + len(SIMULATORS)
    for compared in (verdict["links"]["module"], *verdict["runtimes"]):
        # norse multiplies by 1 - beta first, and its product rounds the other way; snntorch fires above v_th only.
        if compared["name"] in ("norse", "snntorch"):
            assert compared["verdict"] == "exact"
            continue
        assert compared["verdict"] == "rounding"
        # sn1 differs, and sn2 with it; only sn1 is an origin.
        assert (compared["spikes_differing"] > 1, compared["samples_differing"]) == (True, 1)
        (origin,) = compared["origins"]
        assert (origin["sample"], origin["layer"], origin["t"], origin["index"]) == (0, "sn1", 1, [0])
        assert (origin["potential"], origin["threshold"], origin["margin"]) == (1.0 - 2.0**-26, 1.0, -(2.0**-26))
        assert 2.0**-26 <= origin["bound"] < 1e-4
        assert origin["fired"] is True


def test_a_near_tie_for_a_person_and_for_strict(near_tie: Path) -> None:
    lenient = dalif("verify", near_tie / "model.pt", near_tie / "model.onnx")
    strict = dalif("verify", near_tie / "model.pt", near_tie / "model.onnx", "--strict")
    assert (lenient.status, strict.status) == (0, 1)
    named = "layer 'sn1' step 1 neuron [0] of sample 0 fired at potential 0.999999985, threshold 1: margin -1.49e-08"
    assert named in lenient.out
    assert named in strict.out
    assert lenient.out.splitlines()[-1].startswith("rounding: ")


def test_export_keeps_a_file_that_only_rounds(near_tie: Path, tmp_path: Path) -> None:
    result = done("export", "--to", "nir", near_tie / "model.pt", "-o", tmp_path / "x.nir", "--json").json()
    assert result["verdict"] == "rounding"


def test_a_threshold_moved_by_more_than_rounding_is_divergent(near_tie: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(near_tie / "model.onnx", tmp_path))
    model = onnx.load(copy)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "sn1.v_threshold")
    tensor.CopyFrom(numpy_helper.from_array(np.float32(1.001) * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, copy)
    ran = dalif("verify", near_tie / "model.pt", copy, "--json")
    assert ran.status == 1
    (runtime,) = [runtime for runtime in ran.json()["runtimes"] if runtime["file"]]
    assert [difference["name"] for difference in runtime["tensors_differing"]] == ["sn1.v_threshold"]
    assert runtime["verdict"] == "divergent"


def test_labels_give_the_accuracy(exported: dict[str, Path], tmp_path: Path) -> None:
    inputs = stored_samples(8)
    np.savez(tmp_path / "plain.npz", inputs=inputs)
    predictions = np.array(done("run", DIGITS, "--data", tmp_path / "plain.npz", "--json").json()["predictions"])
    labels = np.where(np.arange(8) < 6, predictions, (predictions + 1) % 10)
    np.savez(tmp_path / "data.npz", inputs=inputs, labels=labels)
    arguments = (DIGITS, exported["onnx"], "--data", tmp_path / "data.npz")
    verdict = done("verify", *arguments, "--json").json()
    assert verdict["accuracy"] == 0.75
    assert [runtime["accuracy"] for runtime in verdict["runtimes"]] == [0.75, 0.75, 0.75]
    out = done("verify", *arguments).out
    assert "accuracy 75.00%" in out
    assert sum("75.00%" in line for line in out.splitlines()) == 4


def test_the_smallest_margin_is_of_the_data_at_hand() -> None:
    """The module's own spikes are of all samples that are stored with the model."""
    out = done("verify", DIGITS, "--samples", 2).out
    (line,) = (line for line in out.splitlines() if line.startswith("smallest margin"))
    assert line.endswith(("of sample 0", "of sample 1"))


def test_data_and_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", stored_samples(9))
    assert done("verify", DIGITS, "--data", tmp_path / "data.npy", "--json").json()["samples"] == 9
    first = done("verify", DIGITS, "--data", tmp_path / "data.npy", "--samples", 4, "--json").json()
    assert first["samples"] == 4
    assert "data: the first 4 of data.npy" in first["notes"]
    assert done("verify", DIGITS, "--samples", 1, "--json").json()["samples"] == 1
    assert done("verify", DIGITS, "--json").json()["samples"] == len(stored_samples(1000))


def test_a_model_without_samples_is_run_on_seeded_ones(tmp_path: Path) -> None:
    model, _ = model_of("plain", tmp_path)
    verdict = done("verify", model, "--json").json()
    assert verdict["links"]["module"] is None
    assert any("seeded samples" in note for note in verdict["notes"])
    assert "not available" in done("verify", model).out


def test_runtimes_are_chosen_by_name(exported: dict[str, Path], tmp_path: Path) -> None:
    files = (exported["onnx"], exported["nir"])

    def took_part(*arguments: object) -> list[str]:
        verdict = done("verify", DIGITS, *files, "--samples", 2, "--json", *arguments).json()
        return [runtime["name"] for runtime in verdict["runtimes"]]

    assert took_part("--runtime", "onnxruntime") == ["onnxruntime"]
    assert took_part("--runtime", "torch", "--runtime", "onnxruntime") == ["torch", "onnxruntime"]
    assert took_part("--runtime", "events") == ["events", "events"]
    message = refused(tmp_path, Code.BAD_OPTION, "verify", DIGITS, "--runtime", "onnxruntime")
    assert message == "--runtime onnxruntime: needs an exported .onnx file, and none was given"
    message = refused(tmp_path, Code.BAD_OPTION, "verify", DIGITS, "--runtime", "nonesuch")
    assert "torch, events, onnxruntime, norse, spikingjelly, snntorch" in message


@pytest.fixture
def no_simulators(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (norse, spikingjelly, snntorch):
        monkeypatch.setattr(module, "available", lambda: "pip install it")


@pytest.mark.usefixtures("no_simulators")
def test_simulators_that_are_not_installed(exported: dict[str, Path], tmp_path: Path) -> None:
    file = exported["nir"]
    ran = done("verify", DIGITS, file, "--samples", 2, "--json")
    verdict = ran.json()
    assert [runtime["name"] for runtime in verdict["runtimes"]] == ["torch", "events", "events"]
    assert f"{file}: not run in norse: not installed; pip install it" in verdict["notes"]
    only = f"{file}: read back by dalif_deploy only"
    assert done("verify", DIGITS, file, "--samples", 2).out.endswith(f"; {only}\n")
    out = tmp_path / "x.nir"
    ran = done("export", "--to", "nir", DIGITS, "-o", out)
    assert ran.out.endswith(f"; {out}: read back by dalif_deploy only\n")
    assert f"{out}: not run in norse: not installed; pip install it\n" in ran.err
    # By name it is an error.
    message = refused(tmp_path, Code.MISSING_PACKAGE, "verify", DIGITS, file, "--runtime", "norse")
    assert message == "runtime norse: a package is not installed; run: pip install it"
    np.save(tmp_path / "data.npy", stored_samples(2))
    refused(tmp_path, Code.MISSING_PACKAGE, "run", file, "--data", tmp_path / "data.npy", "--runtime", "norse")


@pytest.mark.simulators
@pytest.mark.skipif(not SIMULATORS, reason="no NIR simulator is installed")
def test_simulators_that_would_misread_a_file_are_left_out_unless_named(tmp_path: Path) -> None:
    model, _ = model_of("threshold and reset", tmp_path)
    done("export", "--to", "nir", model)
    verdict = done("verify", model, tmp_path / "model.nir", "--json").json()
    assert [runtime["name"] for runtime in verdict["runtimes"]] == ["torch", "events", "events"]
    for name in SIMULATORS:
        assert any(f"not run in {name}: " in note and "v_reset" in note for note in verdict["notes"])
        message = refused(tmp_path, Code.RUNTIME_CANNOT_RUN, "verify", model, tmp_path / "model.nir", "--runtime", name)
        assert "v_reset" in message


def test_vacuous_layers_are_named_in_the_summary(tmp_path: Path) -> None:
    model, batch = model_of("alpha zero", tmp_path)
    np.save(tmp_path / "data.npy", batch)
    out = done("export", "--to", "onnx", model, "--data", tmp_path / "data.npy").out
    assert out.endswith("; vacuous: dead never or always fired\n")
    arguments = (model, tmp_path / "model.onnx", "--data", tmp_path / "data.npy")
    assert done("verify", *arguments, "--json").json()["vacuous"] == ["dead"]
    assert done("verify", *arguments).out.splitlines()[-1].endswith("; vacuous: dead never or always fired")


def test_a_file_of_another_model_is_one_clear_line(exported: dict[str, Path], tmp_path: Path) -> None:
    other, _ = model_of("plain", tmp_path)
    for file in exported.values():
        message = refused(tmp_path, Code.OTHER_MODEL, "verify", other, file)
        assert message.startswith(f"{file}: takes [1, 8, 8] over 4 timesteps, the model [2, 8, 8] over 4 timesteps; ")
        message = refused(tmp_path, Code.OTHER_MODEL, "verify", DIGITS, file, "-T", 3)
        assert "over 4 timesteps, the model [1, 8, 8] over 3 timesteps" in message


class Renamed(Small):
    """The same layers, one under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.other = self.sn2
        del self.sn2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(self.other(self.fc2(self.sn1(self.fc1(x)))))


class MoreClasses(Small):
    """The same neuron layers, and another readout."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = nn.Linear(5, 4)


@pytest.mark.parametrize("to", ["onnx", "nir"])
@pytest.mark.parametrize(
    ("other", "how"),
    [
        (lambda: Small(hidden=7), "layer 'sn1' has shape [7], the model's [6]"),
        (Renamed, "has the neuron layers sn1, other, the model sn1, sn2"),
        (MoreClasses, "gives logits of shape [4], the model [3]"),
    ],
)
def test_a_file_of_a_model_with_other_layers_is_one_clear_line(
    tmp_path: Path, to: str, other: Callable[[], nn.Module], how: str
) -> None:
    for name, module in (("mine", Small()), ("other", other())):
        dalif_deploy.save(module, tmp_path / f"{name}.pt", example_input=np.ones((2, 4), np.float32), timesteps=2)
    done("export", "--to", to, tmp_path / "other.pt")
    message = refused(tmp_path, Code.OTHER_MODEL, "verify", tmp_path / "mine.pt", tmp_path / f"other.{to}")
    assert message == f"{tmp_path / f'other.{to}'}: {how}; it was exported from another model"


def test_a_nir_file_can_be_the_model(exported: dict[str, Path]) -> None:
    verdict = done("verify", exported["nir"], exported["onnx"], "--samples", 4, "--json").json()
    assert verdict["verdict"] == "exact"
    assert any("its own reference" in note for note in verdict["notes"])
