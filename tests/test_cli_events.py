"""The commands on recordings of event cameras: binned for the model, run, verified, and written as event data."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dalif_deploy
from dalif_deploy import Code, Encoding
from dalif_deploy.deploy import LoadOptions
from dalif_deploy.deploy.data import as_data
from dalif_deploy.deploy.running import open_for_run, summarised
from dalif_deploy.equivalence import simulate
from tests.commands import DIGITS, done, refused
from tests.event_net import EventNet, saved

T = 20
RECORDINGS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.pt, its .onnx and .nir, spikes.pt, and events.npz of some recordings of 34 x 34."""
    folder = tmp_path_factory.mktemp("place")
    saved(folder / "model.pt", timesteps=T)
    saved(folder / "spikes.pt", timesteps=T, encoding=Encoding("spikes"))
    for to in ("onnx", "nir"):
        done("export", "--to", to, folder / "model.pt", "--no-verify")
    rng = np.random.default_rng(0)
    counts = rng.integers(800, 1500, RECORDINGS)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    t = np.concatenate(
        [np.sort(rng.integers(5000, 5000 + end, n)) for n, end in zip(counts, (150, 300) * 3, strict=True)]
    )
    x, y, p = (rng.integers(0, most, offsets[-1]) for most in (34, 34, 2))
    np.savez(folder / "events.npz", t_us=t, x=x, y=y, p=p, offsets=offsets, labels=np.arange(RECORDINGS))
    return folder


def binned(path: Path, duration: int, count: int) -> NDArray[np.float32]:
    """Counts [N, T, 2, 34, 34], without the code that is tested."""
    with np.load(path) as file:
        arrays = {name: file[name].astype(np.int64) for name in ("t_us", "x", "y", "p", "offsets")}
    found = np.zeros((count, T, 2, 34, 34), np.float32)
    for number in range(count):
        part = slice(arrays["offsets"][number], arrays["offsets"][number + 1])
        step = (arrays["t_us"][part] - arrays["t_us"][part][0]) // duration
        kept = step < T
        index = (step[kept], *(arrays[name][part][kept] for name in ("p", "y", "x")))
        np.add.at(found[number], index, 1)
    return found


@pytest.mark.parametrize("what", ["model.pt", "model.onnx", "model.nir"])
def test_what_is_run_is_what_a_loop_bins(what: str, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    arguments = ("--data", place / "events.npz", "--bin", "duration:10", "--spikes", "-o", out)
    ran = done("run", place / what, *arguments)
    reference = simulate(dalif_deploy.load(place / "model.pt"), binned(place / "events.npz", 10, RECORDINGS))
    with np.load(out) as file:
        for name, train in reference.spikes.items():
            spikes = train.unpack()
            assert 0.02 < spikes.mean() < 0.9
            assert np.array_equal(file[f"spikes.{name}"], spikes)
    assert "accuracy: " in ran.out
    told = ran.err.splitlines()
    assert told[0].startswith("events: ")
    assert "of 6 recordings in 20 steps of 10 us, from each recording's first event on" in told[0]
    assert told[1].startswith("events cut off: ")
    assert told[1].endswith(", later than step 19, in 3 recordings")
    assert told[2].startswith("events padded: ")
    assert told[2].endswith(" empty steps after the last event, in 3 recordings")


def test_the_counts_are_in_the_json(place: Path) -> None:
    arguments = ("--data", place / "events.npz", "--bin", "split", "--bin-values", "binary", "--bin-start", "zero")
    binning = done("run", place / "model.pt", *arguments, "--json").json()["binning"]
    assert binning["binning"] == {"mode": "split", "size": None, "values": "binary", "start": "zero"}
    assert binning["recordings"] == RECORDINGS
    assert binning["clipped_events"] > 0
    plain = ("--data", place / "none.npy", "--json")
    np.save(place / "none.npy", np.zeros((1, T, 2, 34, 34), np.float32))
    assert "binning" not in done("run", place / "model.pt", *plain).json()


def test_verify_runs_as_many_recordings_as_are_asked_for(place: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.npz"
    arguments = ("--data", place / "events.npz", "--bin", "duration:10", "--samples", 2)
    ran = done("verify", place / "model.pt", place / "model.onnx", *arguments, "--json", "-o", results)
    verdict = ran.json()
    assert (verdict["samples"], verdict["verdict"]) == (2, "exact")
    assert verdict["notes"][0] == "data: the first 2 of events.npz"
    assert " of 2 recordings in 20 steps" in verdict["notes"][1]
    reference = simulate(dalif_deploy.load(place / "model.pt"), binned(place / "events.npz", 10, 2))
    with np.load(results) as file:
        for name, train in reference.spikes.items():
            assert np.array_equal(file[f"reference.spikes.{name}"], train.bits)
    again = done("verify", place / "model.pt", "--from", results, *arguments[:-2], "--json")
    assert again.json()["verdict"] == "exact"


def test_inspect_and_export_take_them_too(place: Path, tmp_path: Path) -> None:
    arguments = ("--data", place / "events.npz", "--bin", "duration:10", "--samples", 3)
    found = done("inspect", place / "model.pt", *arguments, "--json").json()
    assert found["notes"][0].startswith("events: ")
    inputs = binned(place / "events.npz", 10, 3)
    rates = {layer["name"]: layer["rate"] for layer in found["layers"]}
    for name, train in simulate(dalif_deploy.load(place / "model.pt"), inputs).spikes.items():
        assert rates[name] == pytest.approx(train.unpack().mean())
    ran = done("export", "--to", "onnx", place / "model.pt", "-o", tmp_path / "a.onnx", *arguments)
    assert "3 samples" in ran.out
    assert ran.err.startswith("events: ")
    assert done("export", "--to", "onnx", "--check", place / "model.pt", *arguments).err.startswith("events: ")


def test_a_module_is_captured_on_recordings(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(EventNet().state_dict(), tmp_path / "net.pth")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.delitem(sys.modules, "event_net", raising=False)
    arguments = (
        "--model",
        "event_net:EventNet",
        tmp_path / "net.pth",
        "--data",
        place / "events.npz",
        "--bin",
        "split",
    )
    ran = done("export", "--to", "onnx", *arguments, "-T", 8, "--input-shape", "2,34,34")
    assert "exact: 0 of " in ran.out
    assert "temporal=True" in ran.err
    told = refused(tmp_path, Code.AMBIGUOUS, "verify", *arguments, "-T", 8)
    assert "does not say the size of its sensor; give --input-shape" in told
    assert "give -T/--timesteps" in refused(tmp_path, Code.AMBIGUOUS, "verify", *arguments)
    sys.modules.pop("event_net")


def test_event_data_is_what_the_layers_fired(place: Path, tmp_path: Path) -> None:
    out, events = tmp_path / "out.npz", tmp_path / "events.npz"
    arguments = (place / "model.onnx", "--data", place / "events.npz", "--bin", "duration:10")
    ran = done("run", *arguments, "-o", out, "--event-data", events)
    assert f"{events}: written, steps of 1e-05 s" in ran.err
    with np.load(out) as file:
        assert not any(name.startswith("spikes.") for name in file)
    done("run", *arguments, "-o", out, "--spikes", "--force")
    found = dalif_deploy.read_event_data(events)
    with np.load(out) as file:
        for name, node in found.nodes.items():
            grid = node.observables["spikes"].to_time_gridded(1e-5).data
            assert np.array_equal(grid, file[f"spikes.{name}"].reshape(RECORDINGS, T, -1))
    done("run", *arguments, "--event-data", events, "--event-dt", 0.5, "--force")
    assert dalif_deploy.read_event_data(events).nodes["sn1"].observables["spikes"].t_max == 0.5 * T


def test_events_need_to_be_told_how(place: Path, tmp_path: Path) -> None:
    def told(code: Code, command: str, *arguments: object) -> str:
        return refused(tmp_path, code, command, *arguments)

    data = ("--data", place / "events.npz")
    for command, before in (("run", ()), ("verify", ()), ("inspect", ()), ("export", ("--to", "onnx"))):
        message = told(Code.AMBIGUOUS, command, *before, place / "model.pt", *data)
        assert "give --bin duration:MICROSECONDS, --bin count:EVENTS or --bin split" in message
    model = place / "model.pt"
    assert "--bin-values needs --bin" in told(Code.BAD_OPTION, "run", model, *data, "--bin-values", "binary")
    assert "--bin needs --data" in told(Code.BAD_OPTION, "verify", model, "--bin", "split")
    assert "holds no events" in told(Code.BAD_OPTION, "run", model, "--data", place / "none.npy", "--bin", "split")
    assert "write duration:MICROSECONDS" in told(Code.BAD_OPTION, "run", model, *data, "--bin", "10")
    assert "takes [1, 8, 8] without a time axis" in told(Code.WRONG_SHAPE, "run", DIGITS, *data, "--bin", "split")
    message = told(Code.BAD_DATA, "run", place / "spikes.pt", *data, "--bin", "split")
    assert "the model takes spikes, 0 or 1; give --bin-values binary" in message
    done("run", place / "spikes.pt", *data, "--bin", "split", "--bin-values", "binary")
    counted = (model, *data, "--bin", "count:9")
    assert "give --event-dt SECONDS" in told(Code.AMBIGUOUS, "run", *counted, "--event-data", tmp_path / "e.npz")
    assert "--event-dt needs --event-data" in told(Code.BAD_OPTION, "run", *counted, "--event-dt", 1)
    for dt in (0, "nan"):
        message = told(Code.BAD_OPTION, "run", *counted, "--event-data", tmp_path / "e.npz", "--event-dt", dt)
        assert "a timestep lasts a positive, finite time" in message
    one = tmp_path / "a.npz"
    assert "name one file" in told(Code.BAD_OPTION, "run", *counted, "-o", one, "--event-data", one, "--event-dt", 1)
    data_itself = ("--event-data", place / "events.npz", "--event-dt", 1, "--force")
    assert "is the data itself" in told(Code.OUTPUT_IS_INPUT, "run", *counted, *data_itself)


def test_an_event_outside_the_model_is_named(place: Path, tmp_path: Path) -> None:
    columns = {"t": np.arange(3), "x": np.array([1, 34, 3]), "y": np.arange(3), "p": np.zeros(3, bool)}
    np.savez(tmp_path / "a.npz", **columns)
    message = refused(
        tmp_path, Code.BAD_DATA, "run", place / "model.pt", "--data", tmp_path / "a.npz", "--bin", "split"
    )
    assert "a.npz: event 1: pixel x = 34, y = 1 does not exist, the model's input has 34 x 34" in message


def test_real_recordings_fire_the_same_in_every_runtime(place: Path, test_data: Path) -> None:
    data = test_data / "nmnist" / "nmnist_events_300.npz"
    arguments = ("--data", data, "--bin", "duration:15000", "--samples", 25)
    verdict = done("verify", place / "model.pt", place / "model.onnx", *arguments, "--json").json()
    assert {runtime["name"]: runtime["spikes_differing"] for runtime in verdict["runtimes"]} == {
        "torch": 0, "events": 0, "onnxruntime": 0,
    }  # fmt: skip
    assert all(0.02 < rate < 0.9 for rate in verdict["rates"].values())
    assert "accuracy" in verdict["runtimes"][0]


def test_a_network_of_another_tool_knows_its_digits(test_data: Path) -> None:
    data = dalif_deploy.read_events(
        test_data / "nmnist" / "nmnist_events_300.npz", "duration:1000", test_data / "nir_graphs" / "cnn_sinabs.nir",
        options=LoadOptions(dt=1e-3, timesteps=300), samples=8,
    )  # fmt: skip
    opened = open_for_run(
        test_data / "nir_graphs" / "cnn_sinabs.nir", options=LoadOptions(dt=1e-3, timesteps=300), data=data
    )
    assert summarised(opened, data, keep_spikes=False).accuracy == 1.0


def test_another_sensor_is_refused_and_its_own_is_not(tmp_path: Path, test_data: Path) -> None:
    data = test_data / "dvs" / "ncars_sample.npz"
    saved(tmp_path / "cars.pt", timesteps=T, sensor=(42, 78))
    done("run", tmp_path / "cars.pt", "--data", data, "--bin", "count:100", "-o", tmp_path / "out.npz")
    saved(tmp_path / "turned.pt", timesteps=T, sensor=(78, 42))
    message = refused(tmp_path, Code.WRONG_SHAPE, "run", tmp_path / "turned.pt", "--data", data, "--bin", "split")
    assert "the sensor has 78 x 42 pixels (width x height), the model takes 42 x 78" in message


def test_from_python(place: Path) -> None:
    recordings = dalif_deploy.read_recordings(place / "events.npz")
    data = dalif_deploy.read_events(recordings, dalif_deploy.Binning("duration", 10), place / "model.pt")
    assert data.binning is not None
    assert data.binning.recordings == RECORDINGS
    verdict = dalif_deploy.verify(place / "model.pt", data=data, samples=3)
    assert verdict.outcome.name == "EXACT"
    assert verdict.notes[1] == data.binning.lines()[0]
    assert as_data(data).inputs is data.inputs  # not laid out
    (recording,) = dalif_deploy.run(place / "model.onnx", data)
    assert np.array_equal(
        recording.spikes["sn1"].unpack(),
        simulate(dalif_deploy.load(place / "model.pt"), binned(place / "events.npz", 10, RECORDINGS))
        .spikes["sn1"].unpack(),
    )  # fmt: skip
