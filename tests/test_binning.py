"""Events become timesteps as a loop over them says, and whatever is lost or added is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy import Binning, Code, DalifError, Encoding, Recordings, read_recordings
from dalif_deploy.encoding import InputSpec
from dalif_deploy.recordings import Events, bin_recordings

SPEC = InputSpec((2, 4, 5), True, 6, Encoding())
LARGE = InputSpec((2, 34, 34), True, 20, Encoding())


def recording(t: list[int], seed: int = 0, sensor: tuple[int, int] | None = None) -> Events:
    rng = np.random.default_rng(seed)
    n = len(t)
    x, y, p = rng.integers(0, 5, n), rng.integers(0, 4, n), rng.integers(0, 2, n)
    return Events(np.array(t, np.int64), x, y, p, sensor, f"r{seed}")


def recordings(*items: Events) -> Recordings:
    return Recordings(items, None, "made")


def looped(
    events: Events, spec: InputSpec, step_of: Any, binary: bool = False
) -> tuple[NDArray[np.float64], dict[str, int]]:
    """Event by event, in Python's own numbers."""
    found = np.zeros((spec.timesteps, *spec.shape))
    cut, last, clipped = 0, -1, 0
    for number in range(len(events)):
        step = step_of(number, int(events.t[number]))
        if step >= spec.timesteps:
            cut += 1
            continue
        last = max(last, step)
        place = (step, int(events.p[number]), int(events.y[number]), int(events.x[number]))
        if binary and found[place]:
            clipped += 1
        else:
            found[place] += 1
    return found, {"cut": cut, "clipped": clipped, "padded": 0 if cut else spec.timesteps - 1 - last}


def test_a_case_by_hand() -> None:
    t, x, y, p = ([100, 109, 110, 110, 139], [0, 1, 2, 2, 0], [0, 0, 3, 3, 1], [0, 1, 1, 1, 0])
    events = Events(np.array(t), np.array(x), np.array(y), np.array(p), None, "r")
    inputs, report = bin_recordings(recordings(events), "duration:10", SPEC)
    found = np.asarray(inputs)
    assert found.shape == (1, 6, 2, 4, 5)
    expected = np.zeros((6, 2, 4, 5))
    expected[0, 0, 0, 0] = expected[0, 1, 0, 1] = expected[3, 0, 1, 0] = 1
    expected[1, 1, 3, 2] = 2
    assert np.array_equal(found[0], expected)
    assert (report.cut_events, report.padded_steps, report.padded_recordings) == (0, 2, 1)


def by_duration(events: Events, steps: int, start: int) -> Any:
    return lambda number, t: (t - start) // 7


def by_count(events: Events, steps: int, start: int) -> Any:
    return lambda number, t: number // 8


def by_split(events: Events, steps: int, start: int) -> Any:
    return lambda number, t: (t - start) * steps // (int(events.t[-1]) - start + 1)


CASES: dict[str, tuple[str, str, Any]] = {
    "duration": ("duration:7", "first", by_duration),
    "duration from zero": ("duration:7", "zero", by_duration),
    "count": ("count:8", "first", by_count),
    "split": ("split", "first", by_split),
    "split from zero": ("split", "zero", by_split),
}


@pytest.mark.parametrize("values", ["counts", "binary"])
@pytest.mark.parametrize("name", CASES)
def test_a_loop_over_the_events_gives_the_same(name: str, values: str) -> None:
    text, start, step_of = CASES[name]
    rng = np.random.default_rng(1)
    ends = (41, 42, 30, 200, 9)
    items = [
        recording(sorted(rng.integers(5, 5 + end, 50 if end > 9 else 5).tolist()), seed)
        for seed, end in enumerate(ends)
    ]
    inputs, report = bin_recordings(recordings(*items), Binning.parse(text, values=values, start=start), SPEC)
    assert inputs.dtype == np.float32
    totals = {"cut": 0, "clipped": 0, "padded": 0}
    happened = {"cut": 0, "clipped": 0, "padded": 0}
    for number, events in enumerate(items):
        begin = int(events.t[0]) if start == "first" else 0
        expected, counted = looped(events, SPEC, step_of(events, SPEC.timesteps, begin), values == "binary")
        assert np.array_equal(inputs[number : number + 1][0], expected)
        for key, count in counted.items():
            totals[key] += count
            happened[key] += count > 0
    assert (report.cut_events, report.cut_recordings) == (totals["cut"], happened["cut"])
    assert (report.padded_steps, report.padded_recordings) == (totals["padded"], happened["padded"])
    assert report.clipped_events == totals["clipped"]
    assert (report.recordings, report.events, report.timesteps) == (5, 205, 6)
    assert totals["clipped"] > 0 or values == "counts"
    if not name.startswith("split"):
        assert totals["cut"] > 0
        assert totals["padded"] > 0


@pytest.mark.parametrize("text", ["duration:1000", "duration:15000", "count:250", "split"])
def test_real_recordings(text: str, test_data: Path) -> None:
    path = test_data / "nmnist" / "nmnist_events_300.npz"
    inputs, report = bin_recordings(read_recordings(path).first(40), text, LARGE)
    with np.load(path) as file:
        offsets = file["offsets"]
        columns = {name: file[name].astype(np.int64) for name in ("t_us", "x", "y", "p")}
    mode, _, size = text.partition(":")
    cut = 0
    for number in range(40):
        t, x, y, p = (values[offsets[number] : offsets[number + 1]] for values in columns.values())
        since = t - t[0]
        if mode == "duration":
            step = since // int(size)
        elif mode == "count":
            step = np.arange(len(t)) // int(size)
        else:
            edges = np.array([-(-part * int(since[-1] + 1) // 20) for part in range(21)])
            step = np.searchsorted(edges, since, side="right") - 1
        expected = np.zeros((20, 2, 34, 34))
        kept = step < 20
        np.add.at(expected, (step[kept], p[kept], y[kept], x[kept]), 1)
        assert np.array_equal(inputs[number : number + 1][0], expected)
        cut += int((~kept).sum())
    assert report.cut_events == cut
    assert (cut > 0) == (text != "split")


def test_the_last_event_of_a_split_is_in_the_last_step() -> None:
    for t in ([0, 59], [7, 66], [0, 5], [3, 3 + 10**12], [4]):
        inputs, report = bin_recordings(recordings(recording(t)), "split", SPEC)
        steps = np.flatnonzero(np.asarray(inputs)[0].reshape(6, -1).any(axis=1)).tolist()
        assert steps == ([0, 5] if len(t) > 1 else [0])
        assert report.padded_steps == (0 if len(t) > 1 else 5)


def test_what_is_asked_for_is_laid_out_and_nothing_else() -> None:
    items = [recording([number, number + 30], number) for number in range(5)]
    inputs, _ = bin_recordings(recordings(*items), "duration:10", SPEC)
    whole = np.asarray(inputs)
    assert (inputs.shape, inputs.ndim, inputs.size, len(inputs)) == (whole.shape, 5, whole.size, 5)
    assert whole.sum() == 10
    assert np.array_equal(inputs[1:3], whole[1:3])
    assert np.array_equal(inputs[4:9], whole[4:])


def test_an_empty_recording_is_all_padding() -> None:
    inputs, report = bin_recordings(recordings(recording([])), "split", SPEC)
    assert not np.asarray(inputs).any()
    assert (report.padded_steps, report.padded_recordings, report.events) == (6, 1, 0)


@pytest.mark.parametrize(("kind", "dtype"), [("real", np.float32), ("spikes", np.uint8), ("uint8", np.uint8)])
def test_the_type_is_what_the_model_takes(kind: Any, dtype: type) -> None:
    spec = InputSpec((2, 4, 5), True, 6, Encoding(kind))
    items = recordings(recording([1, 2, 3] * 0 + [5] * 40), recording([5, 6], 1))
    inputs, _ = bin_recordings(items, Binning("duration", 10, values="binary"), spec)
    assert inputs.dtype == dtype
    spec.module_input(inputs[:])
    if kind == "spikes":
        with pytest.raises(
            DalifError, match=r"r0: a pixel has \d events in one step, and the model takes spikes"
        ) as caught:
            bin_recordings(items, "duration:10", spec)
        assert caught.value.code is Code.BAD_DATA
    else:
        counted, _ = bin_recordings(items, "duration:10", spec)
        assert counted[:].max() > 1
        spec.module_input(counted[:])


def test_a_count_that_no_code_holds_is_refused() -> None:
    spec = InputSpec((2, 4, 5), True, 6, Encoding("uint8"))
    zeros = np.zeros(256, np.int64)
    events = Events(zeros, zeros, zeros, zeros, None, "r")
    with pytest.raises(
        DalifError, match="r: a pixel has 256 events in one step, and the model takes uint8, at most 255"
    ):
        bin_recordings(recordings(events), "duration:10", spec)
    fewer = Events(*(zeros[:255] for _ in range(4)), None, "r")  # type: ignore[misc]
    assert bin_recordings(recordings(fewer), "duration:10", spec)[0][:].max() == 255


@pytest.mark.parametrize(
    ("spec", "sensor", "code", "told"),
    [
        (InputSpec((2, 4, 5), False, 6, Encoding()), None, Code.WRONG_SHAPE, "takes [2, 4, 5] without a time axis"),
        (InputSpec((1, 4, 5), True, 6, Encoding()), None, Code.WRONG_SHAPE, "takes [1, 4, 5] over 6 timesteps"),
        (InputSpec((40,), True, 6, Encoding()), None, Code.WRONG_SHAPE, "takes [40] over 6"),
        (SPEC, (5, 4), Code.WRONG_SHAPE, "r0: the sensor has 4 x 5 pixels (width x height), the model takes 5 x 4"),
        (InputSpec((2, 3, 5), True, 6, Encoding()), None, Code.BAD_DATA, "does not exist, the model's input has 5 x 3"),
    ],
)
def test_a_model_of_another_shape_is_refused(
    spec: InputSpec, sensor: tuple[int, int] | None, code: Code, told: str
) -> None:
    events = recording(list(range(40)), sensor=sensor)
    with pytest.raises(DalifError) as caught:
        bin_recordings(recordings(events), "split", spec)
    assert caught.value.code is code
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("duration", "give a positive whole number, such as duration:1000"),
        ("duration:", "write duration:MICROSECONDS, count:EVENTS or split"),
        ("duration:0", "give a positive whole number"),
        ("duration:1.5", "write duration:MICROSECONDS"),
        ("count:-3", "write duration:MICROSECONDS"),
        ("split:4", "--bin split takes no number"),
        ("frames:4", "write duration:MICROSECONDS, count:EVENTS or split"),
    ],
)
def test_a_binning_that_cannot_be(text: str, told: str) -> None:
    with pytest.raises(DalifError) as caught:
        Binning.parse(text)
    assert caught.value.code is Code.BAD_OPTION
    assert told in caught.value.message


def test_what_a_person_is_told() -> None:
    items = [recording([0, 1, 2, 65]), recording([0] * 30, 1), recording([0, 13], 2)]
    _, report = bin_recordings(recordings(*items), Binning("duration", 10, values="binary"), SPEC)
    clipped = report.clipped_events
    assert clipped > 5
    assert report.lines() == (
        "events: 36 of 3 recordings in 6 steps of 10 us, from each recording's first event on; value: 1 where there is "
        "an event, channel 0 for polarity 0",
        "events cut off: 1, later than step 5, in 1 recording",
        "events padded: 9 empty steps after the last event, in 2 recordings",
        f"events clipped: {clipped} where a pixel and step already had one",
    )
    _, report = bin_recordings(recordings(*items[:1]), "count:3", SPEC)
    assert report.lines() == (
        "events: 4 of 1 recording in 6 steps of 3 events; value: number of events, channel 0 for polarity 0",
        "events padded: 4 empty steps after the last event, in 1 recording",
        "events short: fewer than 3 in the last step of 1 recording",
    )
