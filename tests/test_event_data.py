"""Spike trains as NIR's event data: nir's own code makes the same spike trains of them again."""

from __future__ import annotations

import math
from pathlib import Path

import nir
import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy import Code, DalifError, Recording, read_event_data, to_event_data
from dalif_deploy.deploy.event_files import write_event_data
from dalif_deploy.recording import SpikeTrain

STEPS = [1e-4, 1e-3, 1e-6, 0.015, 7e-4, 1.0, 3.0, 1 / 3]


def trains(timesteps: int, *, seed: int = 0, share: float = 0.2) -> dict[str, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    shapes = {"conv.sn1": (3, 2, 4), "sn2": (5,), "silent": (2,)}
    return {
        name: rng.random((2, timesteps, *shape)) < (0.0 if name == "silent" else share)
        for name, shape in shapes.items()
    }


def gridded(data: nir.NIRGraphData, name: str, dt: float) -> NDArray[np.bool_]:
    return np.asarray(data.nodes[name].observables["spikes"].to_time_gridded(dt).data)


@pytest.mark.parametrize("dt", STEPS)
def test_every_step_up_to_1000_is_found_again(dt: float) -> None:
    spikes = {"sn": np.ones((1, 1000, 1), bool)}
    for timesteps in range(1, 1001):
        found = gridded(to_event_data({"sn": spikes["sn"][:, :timesteps]}, dt), "sn", dt)
        assert found.shape == (1, timesteps, 1)
        assert found.all()


def test_plain_products_would_not_be_found_again() -> None:
    steps = np.arange(1000)
    assert (np.floor(steps * 1e-4 / 1e-4) != steps).sum() == 68


@pytest.mark.parametrize("dt", [1e-4, 0.015])
def test_times_are_the_beginnings_of_steps_to_the_last_bit(dt: float) -> None:
    events = to_event_data({"sn": np.ones((1, 1000, 1), bool)}, dt).nodes["sn"].observables["spikes"]
    exact = np.arange(1000) * dt
    assert ((events.time[0] == exact) | (events.time[0] == np.nextafter(exact, np.inf))).all()
    assert events.t_max in (1000 * dt, math.nextafter(1000 * dt, math.inf))


def test_spike_trains_come_back_through_nir() -> None:
    spikes = trains(53)
    recording = Recording({name: SpikeTrain.pack(train) for name, train in spikes.items()}, np.zeros((2, 3)))
    for given in (spikes, recording):
        data = to_event_data(given, 1e-4)
        assert isinstance(data, nir.NIRGraphData)
        assert list(data.nodes) == list(spikes)
        for name, train in spikes.items():
            assert np.array_equal(gridded(data, name, 1e-4), train.reshape(2, 53, -1))
            events = data.nodes[name].observables["spikes"]
            assert isinstance(events, nir.EventData)
            assert events.n_neurons == math.prod(train.shape[2:])
            counts = train.reshape(2, -1).sum(axis=1)
            assert events.shape == (2, counts.max())
            assert ((events.idx == -1).sum(axis=1) == counts.max() - counts).all()
            assert ((events.time == np.inf) == (events.idx == -1)).all()


def test_it_is_what_nir_makes_of_the_same_spikes() -> None:
    train = trains(10, share=0.4)["sn2"]
    theirs = nir.TimeGriddedData(train, 0.5).to_event(int(train.sum(axis=(1, 2)).max()))
    ours = to_event_data({"sn2": train}, 0.5).nodes["sn2"].observables["spikes"]
    assert np.array_equal(ours.idx, theirs.idx)
    assert np.array_equal(ours.time, theirs.time)
    assert (ours.n_neurons, ours.t_max) == (theirs.n_neurons, theirs.t_max)


def test_layers_are_nodes_of_the_exported_graph() -> None:
    """nir's own check compares a flat number of neurons with the node's shape, so it takes flat layers only."""
    data = to_event_data({"sn2": trains(10)["sn2"]}, 1e-4)
    ones = np.ones(5)
    node = nir.LIF(tau=ones, r=ones, v_leak=ones * 0, v_threshold=ones)
    graph = nir.NIRGraph(
        {"input": nir.Input({"input": np.array([5])}), "sn2": node, "output": nir.Output({"output": np.array([5])})},
        [("input", "sn2"), ("sn2", "output")],
    )
    data.check_nodes(graph)


def test_nir_has_no_file_for_them(tmp_path: Path) -> None:
    """Should a later nir write event data, it should be offered too."""
    with pytest.raises(AttributeError):
        nir.write(tmp_path / "a.nir", to_event_data(trains(3), 1e-4))


def test_a_file_holds_the_same(tmp_path: Path) -> None:
    spikes = trains(40)
    write_event_data(spikes, 1e-3, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        assert {name.split(".")[-1] for name in file} == {"idx", "time", "n_neurons", "t_max"}
        assert (file["sn2.idx"].dtype, file["sn2.time"].dtype) == (np.int64, np.float64)
        assert (file["conv.sn1.n_neurons"], file["sn2.n_neurons"]) == (24, 5)
    found = read_event_data(tmp_path / "a.npz")
    for name, train in spikes.items():
        assert np.array_equal(gridded(found, name, 1e-3), train.reshape(2, 40, -1))


def test_other_files_are_refused(tmp_path: Path) -> None:
    def refusal(code: Code) -> str:
        with pytest.raises(DalifError) as caught:
            read_event_data(tmp_path / "a.npz")
        assert caught.value.code is code
        return caught.value.message

    np.savez(tmp_path / "a.npz", logits=np.zeros(3))
    assert "holds no event data" in refusal(Code.BAD_DATA)
    table = np.zeros((2, 3))
    np.savez(tmp_path / "a.npz", **{"sn.idx": table, "sn.time": table, "sn.n_neurons": 4, "sn.t_max": 1.0})
    assert "`sn.idx` is float64 [2, 3]" in refusal(Code.BAD_DATA)
    np.savez(
        tmp_path / "a.npz", **{"sn.idx": table.astype(int), "sn.time": table[:1], "sn.n_neurons": 4, "sn.t_max": 1.0}
    )
    assert "differ in shape" in refusal(Code.BAD_DATA)
    np.savez(tmp_path / "a.npz", **{"sn.idx": table.astype(int)})
    assert "'sn.time' is missing" in refusal(Code.FILE_DAMAGED)


@pytest.mark.parametrize("dt", [0.0, -1e-3, math.nan, math.inf])
def test_a_step_that_lasts_no_time_is_refused(dt: float) -> None:
    with pytest.raises(DalifError, match="a timestep lasts a positive, finite time") as caught:
        to_event_data(trains(3), dt)
    assert caught.value.code is Code.BAD_OPTION


def test_times_beyond_every_number_are_refused() -> None:
    with pytest.raises(DalifError, match="no time falls on each of 3 steps") as caught:
        to_event_data({"sn": np.ones((1, 3, 1), bool)}, 1e308)
    assert caught.value.code is Code.BAD_OPTION


def test_what_is_no_spike_train_is_refused() -> None:
    for train in (np.zeros((2, 3, 4)), np.zeros((2, 3), bool)):
        with pytest.raises(DalifError, match=r"spikes of 'sn'.*bool .* is needed") as caught:
            to_event_data({"sn": train}, 1.0)  # type: ignore[dict-item]
        assert caught.value.code is Code.BAD_DATA
