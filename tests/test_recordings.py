"""Recordings of event cameras: every format is read as it was written, and what cannot be is refused in one line."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy import Code, DalifError, read_recordings
from dalif_deploy.recordings import Events, holds_events

WIDTH, HEIGHT = 34, 30
FORMATS = {
    "aedat4": ("aedat4", None), "evt2": ("raw", "evt2"), "evt3": ("raw", "evt3"), "dat1": ("dat", "dat1"),
    "dat2": ("dat", "dat2"),
}  # fmt: skip
Columns = dict[str, NDArray[Any]]


def made(count: int = 300, *, seed: int = 0, latest: int = 60_000) -> Columns:
    rng = np.random.default_rng(seed)
    return {
        "t": np.sort(rng.integers(0, latest, count)).astype(np.uint32),
        "x": rng.integers(0, WIDTH, count).astype(np.uint16),
        "y": rng.integers(0, HEIGHT, count).astype(np.uint16),
        "p": rng.integers(0, 2, count).astype(np.uint8),
    }


def written(path: Path, columns: Columns, version: str | None, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A file that the package faery writes; its own header keeps the time of the first event."""
    faery = pytest.importorskip("faery")
    events = np.zeros(len(columns["t"]), faery.EVENTS_DTYPE)
    for name, values in columns.items():
        events[name] = values
    faery.events_stream_from_array(events, dimensions=size).to_file(path, version=version)
    return path


def nmnist_bytes(columns: Columns) -> bytes:
    """The bit layout, event by event, as the data set's page has it."""
    content = b""
    for t, x, y, p in zip(*(columns[name].tolist() for name in "txyp"), strict=True):
        content += f"{(x << 32) | (y << 24) | (p << 23) | t:010x}".encode()
    return bytes.fromhex(content.decode())


def same(found: Events, columns: Columns) -> bool:
    pairs = ((found.t, "t"), (found.x, "x"), (found.y, "y"), (found.p, "p"))
    return all(values.dtype == np.int64 and np.array_equal(values, columns[name]) for values, name in pairs)


def refusal(path: Path, code: Code) -> str:
    with pytest.raises(DalifError) as caught:
        read_recordings(path)
    assert caught.value.code is code, caught.value
    assert "\n" not in str(caught.value)
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("name", FORMATS)
def test_what_faery_writes_is_read_whatever_the_suffix(name: str, tmp_path: Path) -> None:
    suffix, version = FORMATS[name]
    columns = made(3000)
    path = written(tmp_path / f"a.{suffix}", columns, version).rename(tmp_path / "recording")
    assert holds_events(path)
    (events,) = read_recordings(path).items
    assert same(events, columns)
    assert events.sensor == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", FORMATS)
def test_the_corners_of_a_large_sensor_are_read(name: str, tmp_path: Path) -> None:
    suffix, version = FORMATS[name]
    columns = {
        "t": np.arange(4),
        "x": np.array([0, 303, 303, 0]),
        "y": np.array([239, 0, 239, 0]),
        "p": np.arange(4) % 2,
    }
    (events,) = read_recordings(written(tmp_path / f"a.{suffix}", columns, version, (304, 240))).items
    assert same(events, columns)


@pytest.mark.parametrize("name", FORMATS)
def test_real_recordings_survive_every_format(name: str, tmp_path: Path, test_data: Path) -> None:
    with np.load(test_data / "dvs" / "ncars_sample.npz") as file:
        columns = {"t": file["t_us"], **{key: file[key] for key in "xyp"}}
    suffix, version = FORMATS[name]
    path = written(tmp_path / f"a.{suffix}", columns, version, (78, 42))
    (events,) = read_recordings(path).items
    assert same(events, columns)
    assert events.sensor == (42, 78)


def test_streams_of_evt3_words_are_read_as_faery_reads_them(tmp_path: Path) -> None:
    """Vectors of pixels, triggers and other words in any order, which no encoder writes."""
    faery = pytest.importorskip("faery")
    rng = np.random.default_rng(4)
    total = 0
    for _ in range(20):
        words, high, low, column, in_vector = [0x8001, 0x0003, 0x3005], 1, 0, 5, True
        for kind in rng.choice([0, 2, 3, 4, 5, 6, 7, 8, 10, 14, 15], 150).tolist():
            value = int(rng.integers(0, 4096))
            if kind in (4, 5) and (not in_vector or column > 600):
                continue
            if kind == 0:
                value %= 480
            elif kind in (2, 3):
                value = value & 0x800 | value % 640
                in_vector, column = kind == 3, value & 0x7FF
            elif kind == 5:
                value &= 0xFF
            elif kind == 6:
                value = low = min(4095, low + value % 200)
            elif kind == 8:
                high, low = high + 1, 0
                value = high
            column += {4: 12, 5: 8}.get(kind, 0)
            words.append(kind << 12 | value)
        path = tmp_path / "words.raw"
        path.write_bytes(b"% evt 3.0\n% geometry 640x480\n" + np.array(words, "<u2").tobytes())
        expected = np.concatenate([*faery.events_stream_from_file(path), np.zeros(0, faery.EVENTS_DTYPE)])
        (events,) = read_recordings(path).items
        assert same(events, {name: expected[name] for name in "txyp"})
        total += len(events)
    assert total > 1000


def test_nmnist_bytes_are_read_by_content(tmp_path: Path) -> None:
    columns = made(latest=2**23)
    path = tmp_path / "00002"
    path.write_bytes(nmnist_bytes(columns))
    assert holds_events(path)
    (events,) = read_recordings(path).items
    assert same(events, columns)
    assert events.sensor is None


def test_several_recordings_in_one_npz(test_data: Path) -> None:
    path = test_data / "nmnist" / "nmnist_events_300.npz"
    found = read_recordings(path)
    assert len(found) == 300
    with np.load(path) as file:
        offsets, label = file["offsets"], file["label"]
        arrays = {"t": file["t_us"], **{key: file[key] for key in "xyp"}}
    assert found.labels is not None
    assert found.labels.tolist() == label.tolist()
    for number in (0, 1, 150, 299):
        part = slice(offsets[number], offsets[number + 1])
        assert same(found.items[number], {name: values[part] for name, values in arrays.items()})
    assert len(found.first(7)) == 7
    first = found.first(7).labels
    assert first is not None
    assert first.tolist() == label[:7].tolist()


@pytest.mark.parametrize("time", ["t", "t_us"])
def test_one_recording_in_an_npz(time: str, tmp_path: Path) -> None:
    columns = made()
    arrays = {time if name == "t" else name: values for name, values in columns.items()}
    np.savez(tmp_path / "a.npz", **arrays, width=WIDTH, height=HEIGHT, labels=7)
    found = read_recordings(tmp_path / "a.npz")
    assert same(found.items[0], columns)
    assert found.items[0].sensor == (HEIGHT, WIDTH)
    assert found.labels is not None
    assert found.labels.tolist() == [7]
    np.savez(tmp_path / "b.npz", **{**arrays, "p": columns["p"].astype(bool)})
    assert same(read_recordings(tmp_path / "b.npz").items[0], columns)


def test_folders_of_classes(tmp_path: Path) -> None:
    for number, folder in enumerate(["10", "9", "2"]):
        (tmp_path / folder).mkdir()
        for which in range(2):
            (tmp_path / folder / f"{which}.bin").write_bytes(nmnist_bytes(made(seed=10 * number + which)))
        (tmp_path / folder / ".hidden").write_text("not looked at")
    found = read_recordings(tmp_path)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.notes == ("labels, by folder: 0 2, 1 9, 2 10",)
    assert same(found.items[3], made(seed=11))
    flat = read_recordings(tmp_path / "9")
    assert flat.labels is None
    assert [same(events, made(seed=10 + which)) for which, events in enumerate(flat.items)] == [True, True]
    (tmp_path / "note.txt").write_text("hello")
    assert "holds folders and also note.txt" in refusal(tmp_path, Code.BAD_DATA)
    (tmp_path / "note.txt").rename(tmp_path / "2" / "note.txt")
    assert "not a recording of events" in refusal(tmp_path / "2", Code.FOREIGN_FILE)
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refusal(tmp_path / "empty", Code.BAD_DATA)


WRONG: dict[str, tuple[Columns, Code, str]] = {
    "unsorted": ({"t": np.array([5, 9, 7])}, Code.BAD_DATA, "event 2: time stamp 7 comes after 9"),
    "negative": ({"t": np.array([-3, 9, 10])}, Code.BAD_DATA, "event 0: time stamp -3 is negative"),
    "far beyond": ({"t": np.array([1, 2, 2**53])}, Code.BAD_DATA, f"event 2: time stamp {2**53} is beyond"),
    "beyond": ({"t": np.array([1, 2, 2**63], np.uint64)}, Code.BAD_DATA, f"time stamp {2**63} is beyond"),
    "nan": ({"t": np.array([1.0, np.nan, 3.0])}, Code.NOT_FINITE, "`t` holds NaN"),
    "float time": ({"t": np.array([1.0, 2.0, 3.0])}, Code.BAD_DATA, "`t` is float64; whole microseconds"),
    "float pixel": ({"x": np.array([1.0, 2.0, 3.0])}, Code.BAD_DATA, "`x` is float64; whole numbers"),
    "bool pixel": ({"y": np.array([True, False, True])}, Code.BAD_DATA, "`y` is bool"),
    "polarity": ({"p": np.array([1, -1, 1])}, Code.BAD_DATA, "event 1: polarity -1; 0 and 1 are needed"),
    "lengths": ({"y": np.array([1, 2])}, Code.BAD_DATA, "columns of different lengths, 3 t, 3 x, 2 y, 3 p"),
    "table": ({"y": np.ones((3, 1), int)}, Code.BAD_DATA, "`y` has shape [3, 1]"),
    "outside": (
        {"x": np.array([1, 5, 4])},
        Code.BAD_DATA,
        "event 1: pixel x = 5, y = 2 does not exist, the sensor has 5",
    ),
    "left of it": ({"x": np.array([-1, -1, 4])}, Code.BAD_DATA, "pixel x = -1, y = 1 does not exist"),
    "width": ({"width": np.array(0)}, Code.BAD_DATA, "`width` is int64 []; one positive whole number"),
    "offsets": ({"offsets": np.array([0, 2])}, Code.BAD_DATA, "`offsets` (int64 [2]) do not divide the 3 events"),
    "late offsets": ({"offsets": np.array([1, 3])}, Code.BAD_DATA, "`offsets`"),
    "falling offsets": ({"offsets": np.array([0, 3, 2, 3])}, Code.BAD_DATA, "`offsets`"),
    "labels": ({"offsets": np.array([0, 2, 3]), "labels": np.array([1])}, Code.BAD_DATA, "whole numbers [2], one a"),
    "two labels": ({"label": np.array(1), "labels": np.array(1)}, Code.AMBIGUOUS, "both `labels` and `label`"),
    "two times": ({"t_us": np.array([1, 2, 3])}, Code.AMBIGUOUS, "both `t` and `t_us`"),
    "objects": ({"t": np.array([1, 2, None])}, Code.PICKLED, "'t' holds pickled Python objects"),
}


@pytest.mark.parametrize("name", WRONG)
def test_events_that_cannot_be_are_refused(name: str, tmp_path: Path) -> None:
    changed, code, told = WRONG[name]
    whole = {"t": np.arange(3), "x": np.arange(3), "y": np.arange(1, 4), "p": np.array([0, 1, 1]), "width": np.array(5)}
    path = tmp_path / "a.npz"
    np.savez(path, **{**whole, "height": np.array(5), **changed})
    assert told in refusal(path, code)


def test_only_one_of_width_and_height_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **made(), width=WIDTH)
    assert "only one of `width` and `height`" in refusal(tmp_path / "a.npz", Code.BAD_DATA)


def test_the_place_of_a_wrong_event_names_its_recording(tmp_path: Path) -> None:
    columns = {"t": np.array([1, 2, 5, 4]), "x": np.zeros(4, int), "y": np.zeros(4, int), "p": np.zeros(4, int)}
    np.savez(tmp_path / "a.npz", **columns, offsets=np.array([0, 2, 4]))
    assert "a.npz: recording 1: event 1: time stamp 4 comes after 5" in refusal(tmp_path / "a.npz", Code.BAD_DATA)


def dat(times: list[int], head: bytes = b"% Version 2\n% Width 34\n% Height 30\n") -> bytes:
    cells = [number | 2 << 14 | 1 << 28 for number in range(len(times))]
    return head + b"\x0c\x08" + b"".join(struct.pack("<II", t, cell) for t, cell in zip(times, cells, strict=True))


def evt2(times: list[int], head: bytes = b"% evt 2.0\n% geometry 34x30\n") -> bytes:
    words = [word for t in times for word in (8 << 28 | t >> 6, 1 << 28 | (t & 63) << 22 | 1 << 11 | 1)]
    return head + struct.pack(f"<{len(words)}I", *words)


def evt3(times: list[int], head: bytes = b"% evt 3.0\n% geometry 34x30\n") -> bytes:
    words = [word for t in times for word in (0x8000 | t >> 12, 0x6000 | t & 0xFFF, 0x0001, 0x2801)]
    return head + struct.pack(f"<{len(words)}H", *words)


@pytest.mark.parametrize(("encode", "period"), [(dat, 2**32), (evt2, 2**34), (evt3, 2**24)])
def test_a_counter_that_starts_again_goes_on_and_one_that_goes_back_is_refused(
    encode: Any, period: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(encode([period - 9, period - 1, 3, 70]))
    (events,) = read_recordings(path).items
    assert events.t.tolist() == [period - 9, period - 1, period + 3, period + 70]
    path.write_bytes(encode([5000, 9000, 8999]))
    assert "event 2: time stamp 8999 comes after 9000" in refusal(path, Code.BAD_DATA)


def test_headers(tmp_path: Path) -> None:
    def sensor(content: bytes) -> tuple[int, int] | None:
        (tmp_path / "a").write_bytes(content)
        (events,) = read_recordings(tmp_path / "a").items
        assert len(events) == 2
        return events.sensor

    long = b"% date 2021-01-01 00:00:00\n% evt 2.0\n% format EVT2;height=720;width=1280\n% end\n"
    assert sensor(evt2([5, 6], long)) == (720, 1280)
    assert sensor(evt2([5, 6], b"% evt 2.0\n")) is None
    assert sensor(evt3([5, 6], b"% format EVT3;width=8;height=4\n")) == (4, 8)
    assert sensor(dat([5, 6], b"% Version 2\n")) is None


CUT: dict[str, tuple[bytes, Code, str]] = {
    "evt2": (evt2([5, 6])[:-2], Code.FILE_DAMAGED, "ends inside a word of 4 bytes"),
    "evt3": (evt3([5, 6])[:-1], Code.FILE_DAMAGED, "ends inside a word of 2 bytes"),
    "dat": (dat([5, 6])[:-3], Code.FILE_DAMAGED, "ends inside a word of 8 bytes"),
    "dat head": (b"% Version 2\n", Code.FILE_DAMAGED, "ends after its header"),
    "header": (b"% evt 2.0", Code.FILE_DAMAGED, "ends inside its header"),
    "evt2.1": (evt2([5], b"% evt 2.1\n"), Code.FOREIGN_FILE, "is EVT21, which is not read here"),
    "dat3": (dat([5], b"% Version 3\n"), Code.FOREIGN_FILE, "is DAT3, which is not read here"),
    "trigger dat": (dat([5]).replace(b"\x0c\x08", b"\x0e\x08"), Code.FOREIGN_FILE, "holds events of type 14"),
    "no version": (dat([5], b"% Width 34\n"), Code.FOREIGN_FILE, "not a recording of events"),
    "aedat3": (b"#!AER-DAT3.1\r\n#Format: RAW\r\n", Code.FOREIGN_FILE, "is AEDAT 3.1, and only AEDAT 4"),
    "cut nmnist.bin": (nmnist_bytes(made())[:-2], Code.FILE_DAMAGED, "no whole number of events of 5 bytes"),
    "unsorted.bin": (bytes([1, 1, 0, 0, 9, 1, 1, 0, 0, 8]), Code.BAD_DATA, "time stamp 8 comes after 9"),
    "unsorted": (bytes([1, 1, 0, 0, 9, 1, 1, 0, 0, 8]), Code.FOREIGN_FILE, "not a recording of events"),
    "text": (b"hello, world!!!", Code.FOREIGN_FILE, "not a recording of events"),
    "empty": (b"", Code.FOREIGN_FILE, "not a recording of events"),
    "zip": (b"PK\x03\x04 and no more", Code.FOREIGN_FILE, "not a recording of events"),
}


@pytest.mark.parametrize("name", CUT)
def test_damaged_and_foreign_files(name: str, tmp_path: Path) -> None:
    content, code, told = CUT[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert told in refusal(path, code)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.raw", Code.FILE_MISSING)


def test_events_before_their_time_and_place_are_left_out_and_counted(tmp_path: Path) -> None:
    early = struct.pack("<I", 1 << 28 | 3 << 22 | 1 << 11 | 1)
    (tmp_path / "a").write_bytes(b"% evt 2.0\n% end\n" + early * 2 + evt2([500], b""))
    (tmp_path / "b").write_bytes(b"% evt 3.0\n% end\n" + struct.pack("<2H", 0x2001, 0x4003) + evt3([500], b""))
    for name, count in (("a", 2), ("b", 3)):
        found = read_recordings(tmp_path / name)
        assert found.items[0].t.tolist() == [500]
        assert found.notes == (
            f"{tmp_path / name}: events left out: {count}, before the first words that say their time and place",
        )


@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
def test_damaged_aedat4_is_one_line_and_ends_nobody(part: float, tmp_path: Path) -> None:
    path = written(tmp_path / "a.aedat4", made(), None)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert "cannot be read as AEDAT 4" in refusal(path, Code.FILE_DAMAGED)
    # A place in the middle of the description, at which the decoder itself gives up.
    path.write_bytes(content.replace(b'path="/mainloop', b'path="\xff\xfemainloop', 1))
    assert "cannot be read as AEDAT 4" in refusal(path, Code.FILE_DAMAGED)


def test_a_file_that_lies_about_is_not_taken_for_faery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.aedat4", made(), None)
    (tmp_path / "faery.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert same(read_recordings(path).items[0], made())


def test_what_faery_does_to_time_stamps_is_said(tmp_path: Path) -> None:
    """faery raises them without a word. Should it stop, the remark and this test can go."""
    faery = pytest.importorskip("faery")
    columns = {**made(4), "t": np.array([1003, 1005, 1007, 1009])}
    path = tmp_path / "a.aedat4"
    events = np.zeros(4, faery.EVENTS_DTYPE)
    for name, values in columns.items():
        events[name] = values
    faery.events_stream_from_array(events, dimensions=(WIDTH, HEIGHT)).to_file(path, compression=None)
    content = path.read_bytes()
    assert content.count(struct.pack("<q", 1007)) == 1
    path.write_bytes(content.replace(struct.pack("<q", 1007), struct.pack("<q", 1001)))
    found = read_recordings(path)
    assert found.items[0].t.tolist() == [1003, 1005, 1005, 1009]
    assert found.notes == ("AEDAT 4 is read by faery, which raises a time stamp that goes back to the one before it",)


def test_without_faery_the_command_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.aedat4"
    path.write_bytes(b"#!AER-DAT4.0\r\n")
    monkeypatch.setitem(sys.modules, "faery", None)
    assert refusal(path, Code.MISSING_PACKAGE).endswith("install it: pip install faery")
