"""dalif-run: what it answers, in which runtime, and what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import dalif_deploy
from dalif_deploy import Code
from dalif_deploy.equivalence import simulate
from tests.commands import DIGITS, done, model_of, refused, stored_samples

SAMPLES = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.onnx, digits.nir, and codes.npz."""
    folder = tmp_path_factory.mktemp("place")
    for to in ("onnx", "nir"):
        done("export", "--to", to, DIGITS, "-o", folder / f"digits.{to}", "--no-verify")
    np.savez(folder / "codes.npz", inputs=stored_samples(SAMPLES))
    return folder


def stored(path: Path) -> dict[str, NDArray[np.generic]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file}


@pytest.mark.parametrize("what", ["digits.onnx", "digits.nir", "model"])
def test_what_is_written_is_what_the_reference_fires(place: Path, tmp_path: Path, what: str) -> None:
    source = DIGITS if what == "model" else place / what
    out = tmp_path / "out.npz"
    ran = done("run", source, "--data", place / "codes.npz", "--spikes", "-o", out)
    assert ran.out.splitlines()[-1] == f"{out}: written"
    arrays = stored(out)
    assert list(arrays) == [
        "logits", "predictions", "rates.sn1", "rates.sn2", "rates.sn3", "spikes.sn1", "spikes.sn2", "spikes.sn3",
    ]  # fmt: skip
    reference = simulate(dalif_deploy.load(DIGITS), stored_samples(SAMPLES))
    for name, train in reference.spikes.items():
        spikes = arrays[f"spikes.{name}"]
        assert spikes.dtype == np.bool_
        assert spikes.shape == (SAMPLES, 4, *train.shape)
        assert np.array_equal(spikes, train.unpack())
        assert arrays[f"rates.{name}"].shape == ()
        assert arrays[f"rates.{name}"] == spikes.mean()
    assert arrays["logits"].shape == (SAMPLES, 10)
    assert np.allclose(arrays["logits"], reference.logits, rtol=1e-5, atol=1e-5)
    assert arrays["predictions"].shape == (SAMPLES,)
    assert np.array_equal(arrays["predictions"], reference.logits.argmax(axis=1))


def test_without_spikes_none_are_written(place: Path, tmp_path: Path) -> None:
    done("run", place / "digits.onnx", "--data", place / "codes.npz", "-o", tmp_path / "out.npz")
    assert list(stored(tmp_path / "out.npz")) == ["logits", "predictions", "rates.sn1", "rates.sn2", "rates.sn3"]


def test_spikes_without_a_file_for_them_are_refused(place: Path, tmp_path: Path) -> None:
    arguments = (place / "digits.onnx", "--data", place / "codes.npz", "--spikes")
    assert "-o OUT.npz" in refused(tmp_path, Code.BAD_OPTION, "run", *arguments)


@pytest.mark.parametrize(
    ("what", "asked", "name"),
    [
        ("digits.onnx", (), "onnxruntime"),
        ("digits.nir", (), "events"),
        ("model", (), "events"),
        ("model", ("--runtime", "torch"), "torch"),
        pytest.param("digits.nir", ("--runtime", "norse"), "norse", marks=pytest.mark.simulators),
        pytest.param("digits.nir", ("--runtime", "spikingjelly"), "spikingjelly", marks=pytest.mark.simulators),
    ],
)
def test_runtimes(place: Path, what: str, asked: tuple[str, ...], name: str) -> None:
    if name in ("norse", "spikingjelly"):
        pytest.importorskip(name)
    source = DIGITS if what == "model" else place / what
    ran = done("run", source, "--data", place / "codes.npz", "--json", *asked)
    result = ran.json()
    assert list(result) == [
        "output", "runtime", "samples", "predictions", "rates", "accuracy", "synaptic_operations",
    ]  # fmt: skip
    assert (result["runtime"], result["samples"], result["output"]) == (name, SAMPLES, None)
    reference = simulate(dalif_deploy.load(DIGITS), stored_samples(SAMPLES))
    assert result["predictions"] == reference.logits.argmax(axis=1).tolist()
    assert result["rates"] == {key: train.unpack().mean() for key, train in reference.spikes.items()}
    assert (result["synaptic_operations"] is None) == (name != "events")
    assert "runtime: " in ran.err


def test_a_runtime_that_does_not_run_this_is_refused(place: Path, tmp_path: Path) -> None:
    def message(source: Path, runtime: str) -> str:
        data = place / "codes.npz"
        return refused(tmp_path, Code.BAD_OPTION, "run", source, "--data", data, "--runtime", runtime)

    assert message(place / "digits.onnx", "norse") == "--runtime norse: runs .nir files, not .onnx files"
    assert message(place / "digits.onnx", "events") == "--runtime events: runs models and .nir files, not .onnx files"
    assert message(place / "digits.nir", "torch") == "--runtime torch: runs models, not .nir files"
    assert message(DIGITS, "onnxruntime") == "--runtime onnxruntime: runs .onnx files; export the model first"
    assert "there are torch, events, onnxruntime" in message(DIGITS, "nonesuch")


def test_labels_give_the_accuracy(place: Path, tmp_path: Path) -> None:
    predictions = np.array(done("run", DIGITS, "--data", place / "codes.npz", "--json").json()["predictions"])
    labels = np.where(np.arange(SAMPLES) < 9, predictions, (predictions + 1) % 10).astype(np.uint8)
    np.savez(tmp_path / "data.npz", inputs=stored_samples(SAMPLES), labels=labels)
    arguments = (place / "digits.onnx", "--data", tmp_path / "data.npz")
    assert done("run", *arguments, "--json").json()["accuracy"] == 0.75
    assert "accuracy: 75.00%" in done("run", *arguments).out.splitlines()


def test_what_a_person_reads(place: Path) -> None:
    ran = done("run", place / "digits.nir", "--data", place / "codes.npz")
    lines = ran.out.splitlines()
    shown = done("run", DIGITS, "--data", place / "codes.npz", "--json").json()["predictions"][:10]
    assert lines[0] == f"{SAMPLES} samples in events"
    assert lines[1] == f"predictions: {', '.join(map(str, shown))}, ..."
    assert lines[2].startswith("firing rate: sn1 ")
    assert lines[3].startswith("synaptic operations: ")
    assert len(lines) == 4
    assert done("run", place / "digits.nir", "--data", place / "codes.npz", "-q").err == ""


def test_class_names_are_shown(tmp_path: Path) -> None:
    from tests.commands import Small

    inputs = np.ones((1, 4), np.float32)
    dalif_deploy.save(Small(), tmp_path / "m.pt", example_input=inputs, timesteps=2, class_names=("cat", "dog", "newt"))
    np.save(tmp_path / "data.npy", inputs)
    done("export", "--to", "onnx", tmp_path / "m.pt")
    for source in ("m.pt", "m.onnx"):
        (best,) = done("run", tmp_path / source, "--data", tmp_path / "data.npy", "--json").json()["predictions"]
        out = done("run", tmp_path / source, "--data", tmp_path / "data.npy").out
        assert f"predictions: {('cat', 'dog', 'newt')[best]}\n" in out


@pytest.mark.parametrize("what", ["digits.onnx", "digits.nir", "model"])
def test_codes_and_what_they_mean_give_the_same(place: Path, tmp_path: Path, what: str) -> None:
    source = DIGITS if what == "model" else place / what
    np.save(tmp_path / "floats.npy", (stored_samples(SAMPLES) / 16).astype(np.float32))
    done("run", source, "--data", place / "codes.npz", "-o", tmp_path / "a.npz", "--spikes")
    done("run", source, "--data", tmp_path / "floats.npy", "-o", tmp_path / "b.npz", "--spikes")
    first, second = stored(tmp_path / "a.npz"), stored(tmp_path / "b.npz")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_temporal_data(tmp_path: Path) -> None:
    model, batch = model_of("ties", tmp_path)
    np.savez(tmp_path / "data.npz", inputs=batch.astype(np.uint8))
    done("export", "--to", "onnx", model)
    done("export", "--to", "nir", "--nir-dialect", "spikingjelly", model)  # its neurons fire at V == v_th
    reference = simulate(dalif_deploy.load(model), batch)
    for source in (model, tmp_path / "model.onnx", tmp_path / "model.nir"):
        out = tmp_path / "out.npz"
        done("run", source, "--data", tmp_path / "data.npz", "--spikes", "-o", out, "--force")
        arrays = stored(out)
        for name, train in reference.spikes.items():
            assert np.array_equal(arrays[f"spikes.{name}"], train.unpack())
        assert np.allclose(arrays["logits"], reference.logits, rtol=1e-5, atol=1e-5)
    static = tmp_path / "static.npy"
    np.save(static, batch[:, 0])
    message = refused(tmp_path, Code.WRONG_SHAPE, "run", model, "--data", static)
    assert "the model takes [N, 6, 2, 6, 6] (N samples of T timesteps)" in message


def test_more_samples_than_one_batch(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", stored_samples(70))
    done("run", DIGITS, "--data", tmp_path / "data.npy", "--spikes", "-o", tmp_path / "out.npz")
    reference = simulate(dalif_deploy.load(DIGITS), stored_samples(70))
    arrays = stored(tmp_path / "out.npz")
    assert np.array_equal(arrays["spikes.sn3"], reference.spikes["sn3"].unpack())
    assert arrays["rates.sn3"] == arrays["spikes.sn3"].mean()


def test_an_output_that_is_an_input_is_refused_even_with_force(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, inputs=stored_samples(2))
    (tmp_path / "link.npz").symlink_to(data)
    for output in (data, tmp_path / "link.npz"):
        arguments = (place / "digits.onnx", "--data", data, "-o", output, "--force")
        assert "is the data itself" in refused(tmp_path, Code.OUTPUT_IS_INPUT, "run", *arguments)
    done("export", "--to", "onnx", DIGITS, "-o", tmp_path / "digits.onnx", "--no-verify")
    arguments = (tmp_path / "digits.onnx", "--data", data, "-o", tmp_path / "digits.onnx", "--force")
    assert "is the model itself" in refused(tmp_path, Code.OUTPUT_IS_INPUT, "run", *arguments)


def test_an_existing_output_needs_force(place: Path, tmp_path: Path) -> None:
    (tmp_path / "out.npz").write_text("old")
    arguments = (place / "digits.onnx", "--data", place / "codes.npz", "-o", tmp_path / "out.npz")
    assert "--force" in refused(tmp_path, Code.OUTPUT_EXISTS, "run", *arguments)
    done("run", *arguments, "--force")
    assert "logits" in stored(tmp_path / "out.npz")
