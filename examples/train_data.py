"""The data sets of train.py, read as they lie on disk. Nothing is downloaded."""

from __future__ import annotations

import gzip
import io
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from train_augment import Augmentation, Normalise, Transform, frames_transform, image_transform, torchvision
from train_events import Split, frames, read_aedat2, read_aedat3, read_labels, read_unpacked

from dalif_deploy import Code, DalifError, Encoding

Told = Callable[[str, int, int], None]
"""Is told what is being read, how many recordings are done, and of how many."""

NAMES = ("cifar10", "cifar100", "fashion-mnist", "imagenet", "cifar10-dvs", "dvs128-gesture")

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
GESTURES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise",
    "left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other gestures",
)  # fmt: skip

_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of the training images' channels, at values 0..1."""


class LabelledSet(Dataset[tuple[Tensor, int]]):
    """Samples by index: (what the network takes, float32; the label)."""

    def __init__(self, fetch: Callable[[int], Tensor], labels: Sequence[int], transform: Transform) -> None:
        self.fetch = fetch
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.fetch(index)), int(self.labels[index])


@dataclass(frozen=True)
class TrainingData:
    """A data set that is open. `temporal`: samples are [T, C, H, W], one frame a timestep, else images [C, H, W]."""

    train: LabelledSet
    test: LabelledSet
    class_names: tuple[str, ...]
    encoding: Encoding
    channels: int
    temporal: bool

    def stored_form(self, count: int) -> NDArray[np.generic]:
        """The first `count` test samples as data files hold them: codes uint8, or float32 where it is temporal."""
        samples = torch.stack([self.test.fetch(index) for index in range(min(count, len(self.test)))]).numpy()
        return samples.astype(np.float32) if self.temporal else samples


def open_data(
    name: str,
    folder: Path,
    *,
    size: int,
    timesteps: int,
    augmentation: Augmentation,
    split: Split = "events",
    told: Told = lambda what, done, total: None,
) -> TrainingData:
    """The data set `name` of `NAMES`, in `folder`.

    `size`: height and width of a sample; images of CIFAR and Fashion-MNIST have their own. `timesteps`, `split`: into
    how many frames a recording of events is counted, and how. Recordings are all read at once, and kept as frames.
    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, PICKLED, MISSING_PACKAGE, BAD_DATA, BAD_OPTION.
    """
    if not folder.is_dir():
        raise DalifError(Code.FILE_MISSING, f"{folder}: there is no such folder; give the one that holds the data")
    if name in ("cifar10-dvs", "dvs128-gesture"):
        if not 1 <= size <= 128:
            raise DalifError(Code.BAD_OPTION, f"size = {size}: frames have 1 to 128 pixels a side")
        count = partial(frames, timesteps=timesteps, size=size, split=split)
        reader = _cifar10_dvs if name == "cifar10-dvs" else _gesture
        train, test, classes = reader(folder, count, told)
        return TrainingData(
            LabelledSet(train.frame, train.labels, frames_transform(augmentation)),
            LabelledSet(test.frame, test.labels, frames_transform(Augmentation())),
            classes, Encoding(), channels=2, temporal=True,
        )  # fmt: skip
    mean, std = _STATISTICS[name]
    encoding = Encoding(kind="uint8", scale=1 / 255, mean=mean, std=std)
    normalise = Normalise(encoding, len(mean))
    if name == "imagenet":
        shown, tested, classes = _imagenet(folder, size, cropped=bool(augmentation.crop))
        varied = image_transform(
            Augmentation(flip=augmentation.flip, autoaugment=augmentation.autoaugment, cutout=augmentation.cutout),
            normalise, "imagenet",
        )  # fmt: skip
        return TrainingData(
            LabelledSet(shown.codes, shown.labels, varied), LabelledSet(tested.codes, tested.labels, normalise),
            classes, encoding, channels=3, temporal=False,
        )  # fmt: skip
    varied = image_transform(augmentation, normalise, "cifar10")
    readers = {"cifar10": _cifar10, "cifar100": _cifar100, "fashion-mnist": _fashion}
    (x_train, y_train), (x_test, y_test), classes = readers[name](folder)
    own = x_train.shape[-1]
    if size != own:
        raise DalifError(Code.BAD_OPTION, f"size = {size}: the images of {name} are {own} x {own}")
    return TrainingData(
        LabelledSet(partial(_row, torch.from_numpy(x_train)), y_train, varied),
        LabelledSet(partial(_row, torch.from_numpy(x_test)), y_test, normalise),
        classes, encoding, channels=len(mean), temporal=False,
    )  # fmt: skip


Images = tuple[NDArray[np.uint8], list[int]]
"""Codes [N, C, H, W] and labels."""


def _row(images: Tensor, index: int) -> Tensor:
    return images[index]


def _inside(folder: Path, *candidates: str, marker: str) -> Path:
    """The first of `folder` and its `candidates` that holds the file or folder `marker` (or marker.gz)."""
    for place in (folder, *(folder / candidate for candidate in candidates)):
        if (place / marker).exists() or (place / f"{marker}.gz").exists():
            return place
    places = " or ".join(("it", *candidates))
    raise DalifError(Code.FILE_MISSING, f"{folder}: {marker} is not in {places}; give the folder of the data set")


# Fashion-MNIST: idx files, compressed or not.


def _fashion(folder: Path) -> tuple[Images, Images, tuple[str, ...]]:
    place = _inside(folder, "FashionMNIST/raw", "raw", marker="train-images-idx3-ubyte")
    parts = []
    for part in ("train", "t10k"):
        images = _idx(place / f"{part}-images-idx3-ubyte", 3)
        labels = _idx(place / f"{part}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or not len(labels) or labels.max() >= len(FASHION):
            raise DalifError(
                Code.FILE_DAMAGED,
                f"{place}: {len(images)} images and {len(labels)} labels for {part!r}: one each is needed, from 0 to 9",
            )
        parts.append((images[:, None], labels.tolist()))
    return parts[0], parts[1], FASHION


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The bytes of an idx file, or of the same with .gz."""
    packed = path.with_name(path.name + ".gz")
    path = path if path.exists() else packed
    try:
        content = gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: {error}; copy it again") from error
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the folder") from error
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise DalifError(Code.FOREIGN_FILE, f"{path}: is no idx file of bytes in {dimensions} dimensions")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: ends within its header; copy it again")
    shape = np.frombuffer(content, ">u4", dimensions, 4).tolist()
    if len(content) - start != int(np.prod(shape)):
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: {len(content) - start} bytes do not fill the shape {shape}; copy it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


# CIFAR: pickled dictionaries, read without running what a pickle may hold.


def _cifar10(folder: Path) -> tuple[Images, Images, tuple[str, ...]]:
    place = _inside(folder, "cifar-10-batches-py", marker="batches.meta")
    names = _names(place / "batches.meta", "label_names")
    batches = [_cifar(place / f"data_batch_{number}", "labels", names) for number in range(1, 6)]
    codes = np.concatenate([codes for codes, _ in batches])
    labels = [label for _, part in batches for label in part]
    return (codes, labels), _cifar(place / "test_batch", "labels", names), names


def _cifar100(folder: Path) -> tuple[Images, Images, tuple[str, ...]]:
    place = _inside(folder, "cifar-100-python", marker="meta")
    names = _names(place / "meta", "fine_label_names")
    return _cifar(place / "train", "fine_labels", names), _cifar(place / "test", "fine_labels", names), names


def _names(path: Path, key: str) -> tuple[str, ...]:
    names = _unpickled(path).get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DalifError(Code.FILE_DAMAGED, f"{path}: has no list of names {key!r}; copy it again")
    return tuple(names)


def _cifar(path: Path, key: str, names: tuple[str, ...]) -> Images:
    content = _unpickled(path)
    codes, labels = content.get("data"), content.get(key)
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != 3072:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: 'data' is no uint8 array [N, 3072]; copy it again")
    known = range(len(names))
    if not isinstance(labels, list) or len(labels) != len(codes) or not all(label in known for label in labels):
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: {key!r} is no list of {len(codes)} labels from 0 to {len(names) - 1}"
        )
    return codes.reshape(-1, 3, 32, 32), labels


class _Unpickler(pickle.Unpickler):
    """Reads plain values and NumPy arrays; whatever else a pickle names is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them in the old protocols
            return _encoded
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the folder") from error
    except pickle.UnpicklingError as error:
        named = "it names" in str(error)
        raise DalifError(
            Code.PICKLED if named else Code.FILE_DAMAGED,
            f"{path}: {error}" + (", and reading it could run code; " if named else "; ") + "copy it again",
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        raise DalifError(Code.FILE_DAMAGED, f"{path}: no whole pickle ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise DalifError(Code.FOREIGN_FILE, f"{path}: holds no dictionary, as the files of CIFAR do")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


# ImageNet: a folder a class, below train/ and val/.


class _Pictures:
    """Pictures in class folders, as codes uint8 [3, size, size]."""

    def __init__(self, folder: Path, prepare: Callable[[Any], Tensor]) -> None:
        try:
            found = torchvision().datasets.ImageFolder(str(folder))
        except FileNotFoundError as error:
            raise DalifError(Code.FILE_MISSING, f"{folder}: {error}; needed is a folder of pictures a class") from error
        self.classes: tuple[str, ...] = tuple(found.classes)
        self.labels: list[int] = list(found.targets)
        self._paths: list[str] = [path for path, _ in found.samples]
        self._load = found.loader
        self._prepare = prepare

    def codes(self, index: int) -> Tensor:
        path = self._paths[index]
        try:
            picture = self._load(path)
        except OSError as error:
            raise DalifError(Code.FILE_DAMAGED, f"{path}: cannot be read as a picture ({error})") from error
        return self._prepare(picture)


def _imagenet(folder: Path, size: int, *, cropped: bool) -> tuple[_Pictures, _Pictures, tuple[str, ...]]:
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise DalifError(Code.FILE_MISSING, f"{folder}: has no folder {part!r} with a folder of pictures a class")
    transforms = torchvision().transforms
    to_codes = transforms.PILToTensor()
    central = transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), to_codes])
    varied = transforms.Compose([transforms.RandomResizedCrop(size), to_codes]) if cropped else central
    train, test = _Pictures(folder / "train", varied), _Pictures(folder / "val", central)
    if train.classes != test.classes:
        raise DalifError(Code.BAD_DATA, f"{folder}: train and val do not have the same class folders")
    return train, test, train.classes


# Recordings of event cameras.

Count = Callable[..., NDArray[np.unsignedinteger]]


class _Frames:
    """Recordings, each counted into frames [T, 2, H, W] and kept so."""

    def __init__(self) -> None:
        self.labels: list[int] = []
        self._frames: list[NDArray[np.unsignedinteger]] = []

    def add(self, counted: NDArray[np.unsignedinteger], label: int) -> None:
        self._frames.append(counted)
        self.labels.append(label)

    def frame(self, index: int) -> Tensor:
        return torch.from_numpy(self._frames[index].astype(np.float32))


def _cifar10_dvs(folder: Path, count: Count, told: Told) -> tuple[_Frames, _Frames, tuple[str, ...]]:
    """A folder of .aedat files a class; the last tenth of each, by number, is held out for testing."""
    place = folder / "CIFAR10DVS" if (folder / "CIFAR10DVS").is_dir() else folder
    classes = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    recordings = [sorted(path.glob("*.aedat"), key=_number) for path in classes]
    for path, found in zip(classes, recordings, strict=True):
        if len(found) < 2:
            newer = "; .aedat4 files are not read, only the original .aedat" if any(path.glob("*.aedat4")) else ""
            raise DalifError(Code.FILE_MISSING, f"{path}: has {len(found)} .aedat files, and two are needed{newer}")
    if len(classes) < 2:
        raise DalifError(Code.FILE_MISSING, f"{place}: has no class folders (airplane, ... truck) of .aedat files")
    train, test = _Frames(), _Frames()
    done, total = 0, sum(len(found) for found in recordings)
    for label, found in enumerate(recordings):
        held_out = max(1, len(found) // 10)
        for index, path in enumerate(found):
            part = train if index < len(found) - held_out else test
            part.add(count(read_aedat2(path), what=str(path)), label)
            done += 1
            told("reading recordings", done, total)
    return train, test, tuple(path.name for path in classes)


def _number(path: Path) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name


def _gesture(folder: Path, count: Count, told: Told) -> tuple[_Frames, _Frames, tuple[str, ...]]:
    """The original recordings with trials_to_train.txt, or what tonic unpacked: ibmGestureTrain and ibmGestureTest."""
    for place in (folder, folder / "DVSGesture"):
        if (place / "ibmGestureTrain").is_dir():
            parts = (_unpacked(place / part, count, told) for part in ("ibmGestureTrain", "ibmGestureTest"))
            train, test = parts
            return train, test, GESTURES
    place = _inside(folder, "DvsGesture", marker="trials_to_train.txt")
    train, test = (_trials(place / f"trials_to_{part}.txt", count, told) for part in ("train", "test"))
    return train, test, GESTURES


def _trials(listing: Path, count: Count, told: Told) -> _Frames:
    try:
        names = listing.read_text().split()
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{listing}: {error.strerror or error}; check the folder") from error
    found = _Frames()
    for done, name in enumerate(names, start=1):
        path = listing.parent / name
        events = read_aedat3(path)
        for label, start, end in read_labels(path.with_name(f"{path.stem}_labels.csv")):
            found.add(count(events.between(start, end), what=f"{path}, from {start} to {end}"), label)
        told(f"reading {listing.stem}", done, len(names))
    return found


def _unpacked(folder: Path, count: Count, told: Told) -> _Frames:
    paths = sorted(folder.glob("user*/*.npy"), key=lambda path: (path.parent.name, _number(path)))
    if not paths:
        raise DalifError(Code.FILE_MISSING, f"{folder}: has no user folders of .npy files")
    found = _Frames()
    for done, path in enumerate(paths, start=1):
        if path.stem not in {str(label) for label in range(len(GESTURES))}:
            raise DalifError(Code.FOREIGN_FILE, f"{path}: is not named by its class, 0.npy to 10.npy")
        found.add(count(read_unpacked(path), what=str(path)), int(path.stem))
        told(f"reading {folder.name}", done, len(paths))
    return found
