"""Small data sets in the formats in which the real ones lie on disk, written from the formats' descriptions."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = list[tuple[int, int, int, int]]
"""Events as (x, y, p, t in microseconds)."""


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes strings and bytes as Python 2's str, as CIFAR's own files hold them."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_str(self, text: str | bytes) -> None:
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = save_str
    dispatch[bytes] = save_str


def python2_pickle(content: Any) -> bytes:
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def codes(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_cifar10(folder: Path, per_batch: int = 4) -> None:
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    names = ["airplane", "automobile", "bird"]
    (place / "batches.meta").write_bytes(python2_pickle({"num_cases_per_batch": per_batch, "label_names": names}))
    for seed, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        batch = {"data": codes(seed, per_batch, 3072), "labels": [(seed + n) % 3 for n in range(per_batch)],
                 "batch_label": name, "filenames": ["a.png"] * per_batch}  # fmt: skip
        (place / name).write_bytes(python2_pickle(batch))


def write_cifar100(folder: Path) -> None:
    place = folder / "cifar-100-python"
    place.mkdir(parents=True)
    (place / "meta").write_bytes(python2_pickle({"fine_label_names": list("abcd"), "coarse_label_names": ["x"]}))
    for seed, (name, count) in enumerate((("train", 6), ("test", 4))):
        batch = {"data": codes(seed, count, 3072), "fine_labels": [n % 4 for n in range(count)],
                 "coarse_labels": [0] * count}  # fmt: skip
        (place / name).write_bytes(python2_pickle(batch))


def idx(values: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def fashion(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [count, 28, 28] in which a bright stripe stands for the class, and noise; labels [count]."""
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = codes(seed, count, 28, 28) // 8
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 3 : 2 * label + 6] += 200
    return images, labels


def write_fashion(folder: Path, train: int = 40, test: int = 20, *, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate((("train", train), ("t10k", test))):
        images, labels = fashion(count, seed)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(values)) if packed else idx(values))


def write_imagenet(folder: Path, size: int = 40) -> None:
    from PIL import Image

    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("n01440764", "n01443537")):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                picture = np.full((size, size + 8, 3), 60 + 100 * label, dtype=np.uint8)
                picture[..., label] = codes(number, size, size + 8)
                Image.fromarray(picture).save(place / f"{name}_{number}.{'JPEG' if number % 2 else 'png'}")


def aedat2(rows: Rows, special: int = 0) -> bytes:
    """AEDAT 2.0 of a DVS128: bit 0 is 1 for darker, and the data set's tools turn the sensor's two addresses."""
    words = [((127 - x) << 8 | (127 - y) << 1 | (1 - p), t) for x, y, p, t in rows]
    words += [(0x8000, 5)] * special
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# Data format is int32 address, int32 timestamp\r\n"
    return header + b"".join(struct.pack(">II", address, t) for address, t in words)


def aedat3(rows: Rows, per_packet: int = 100, overflow: int = 0) -> bytes:
    """AEDAT 3.1: polarity packets, between them packets of special events, and an invalid event in each."""
    content = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"

    def packet(kind: int, events: list[tuple[int, int]], spare: int = 0) -> bytes:
        head = struct.pack("<HHIIIIII", kind, 1, 8, 4, overflow, len(events) + spare, len(events), len(events))
        return head + b"".join(struct.pack("<II", *event) for event in events) + b"\xff" * (8 * spare)

    for start in range(0, len(rows), per_packet):
        events = [(x << 17 | y << 2 | p << 1 | 1, t) for x, y, p, t in rows[start : start + per_packet]]
        events.insert(1, (9 << 17 | 9 << 2, events[0][1]))  # bit 0 is not set
        content += packet(0, [(3, 1)]) + packet(1, events, spare=2)
    return content


def event_rows(seed: int, count: int, start: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    t = start + np.sort(rng.integers(0, 1_000_000, count))
    return [tuple(row) for row in np.column_stack([rng.integers(0, 128, (count, 2)), rng.integers(0, 2, count), t])]


def write_cifar10_dvs(folder: Path, recordings: int = 3, events: int = 600) -> dict[str, Rows]:
    """Three class folders; returns the events by the file's name."""
    written = {}
    for label, name in enumerate(("airplane", "bird", "cat")):
        (folder / name).mkdir(parents=True)
        for number in range(recordings):
            rows = event_rows(10 * label + number, events)
            path = folder / name / f"cifar10_{name}_{number}.aedat"
            path.write_bytes(aedat2(rows, special=1))
            written[path.name] = rows
    return written


def write_gesture(folder: Path, events: int = 900) -> dict[str, Rows]:
    """Two training recordings and a test one, each with classes 1, 2 and 11; returns the events by name."""
    folder.mkdir(parents=True)
    written = {}
    for seed, name in enumerate(("user01_led", "user02_lab", "user24_led")):
        rows = [*event_rows(seed, events, start=1_000_000), (7, 9, 1, 1_600_000)]  # where one trial ends, one begins
        rows.sort(key=lambda row: row[3])
        (folder / f"{name}.aedat").write_bytes(aedat3(rows))
        (folder / f"{name}_labels.csv").write_text(
            "class,startTime_usec,endTime_usec\n1,1000000,1300000\n2,1350000,1600000\n11,1600000,1990000\n"
        )
        written[name] = rows
    (folder / "trials_to_train.txt").write_text("user01_led.aedat\nuser02_lab.aedat\n")
    (folder / "trials_to_test.txt").write_text("user24_led.aedat\n\n")
    return written


def write_gesture_unpacked(folder: Path, events: int = 300) -> None:
    """As tonic unpacks it: a folder a user and lighting, a file a class, columns x, y, p, t in milliseconds."""
    for part, users in (("ibmGestureTrain", ("user01_led", "user02_lab")), ("ibmGestureTest", ("user24_led",))):
        for seed, user in enumerate(users):
            place = folder / "DVSGesture" / part / user
            place.mkdir(parents=True)
            for label in (0, 2, 10):
                rows = np.array(event_rows(seed + label, events), dtype=np.float64)
                rows[:, 3] //= 1000
                np.save(place / f"{label}.npy", rows)
