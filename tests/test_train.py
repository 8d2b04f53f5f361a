"""examples/train.py: training on every data set as it lies on disk, stopping and resuming, and what it leaves."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dalif_deploy import DALIF, Encoding, load, reset
from dalif_deploy.cli.common import status_of
from dalif_deploy.errors import Code, DalifError
from tests import train_files
from tests.commands import done

ROOT = Path(__file__).parents[1]

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None and not os.environ.get("DALIF_REQUIRE_SIMULATORS"),
    reason="torchvision is not installed: pip install --no-deps -r requirements/train-no-deps.txt",
)
"""Skips where it is missing; but not where everything is said to be there."""


@pytest.fixture(scope="module", autouse=True)
def script() -> Iterator[ModuleType]:
    """examples/train.py, imported as it imports its neighbours when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        import train

        yield train


SMALL = ("--network", "vgg-small", "--batch-size", "8")


def run(*arguments: object) -> int:
    import train

    return status_of(train.command, [str(argument) for argument in arguments])


def trained(folder: Path, data: Path, *arguments: object, dataset: str = "fashion-mnist") -> Path:
    """The folder of a training that must succeed."""
    assert run(dataset, "--data", data, "-o", folder, *SMALL, *arguments) == 0
    return folder


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion")
    train_files.write_fashion(folder)
    return folder


# Resuming


@pytest.mark.parametrize(
    "options",
    [
        ("--crop", "2"),
        ("--optimizer", "adamw", "--lr", "0.01", "--loss", "tet", "--amp", "--cutout", "4", "--schedule", "step"),
    ],
    ids=["sgd", "adamw, tet, amp"],
)
def test_two_epochs_at_once_are_one_and_one_resumed(tmp_path: Path, fashion: Path, options: tuple[str, ...]) -> None:
    whole = trained(tmp_path / "whole", fashion, "--epochs", 2, *options)
    parts = trained(tmp_path / "parts", fashion, "--epochs", 2, "--stop-after", 1, *options)
    assert not (parts / "model.pt").exists()
    torch.manual_seed(77)  # what happened to be drawn before does not matter
    trained(parts, fashion, "--resume")

    once, twice = (torch.load(folder / "last.pt", weights_only=True) for folder in (whole, parts))
    assert once["epoch"] == twice["epoch"] == 2
    assert once["history"] == twice["history"]
    assert once["options"] == twice["options"]
    same_tensors(once["network"], twice["network"])
    same_tensors(once["optimizer"]["state"], twice["optimizer"]["state"])
    same_tensors(once["random"], twice["random"])
    for one, two in zip(load(whole / "model.pt").nodes, load(parts / "model.pt").nodes, strict=True):
        same_tensors(vars(one), vars(two))


def same_tensors(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            same_tensors(one[key], two[key])
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)
    else:
        np.testing.assert_equal(one, two)


def test_another_seed_is_another_training(tmp_path: Path, fashion: Path) -> None:
    states = [
        torch.load(trained(tmp_path / str(seed), fashion, "--epochs", 1, "--seed", seed) / "last.pt", weights_only=True)
        for seed in (0, 1)
    ]
    assert not torch.equal(states[0]["network"]["fc.weight"], states[1]["network"]["fc.weight"])


def test_what_cannot_be_resumed_is_refused(tmp_path: Path, fashion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: object) -> str:
        capsys.readouterr()
        assert run("fashion-mnist", "--data", fashion, "-o", tmp_path, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "[E0102]" in told("--resume")
    trained(tmp_path, fashion, "--epochs", 2, "--stop-after", 1)
    before = (tmp_path / "last.pt").read_bytes()
    assert "[E0108]" in told()
    assert "--lr 0.5" in told("--resume", "--lr", 0.5)
    assert "--seed 3" in told("--resume", "--seed", 3)
    assert "--no-calibrate" in told("--resume", "--no-calibrate")
    assert (tmp_path / "last.pt").read_bytes() == before
    (tmp_path / "last.pt").write_bytes(before[:1000])
    assert "[E0103]" in told("--resume")
    torch.save({"epoch": 1}, tmp_path / "last.pt")
    assert "[E0104]" in told("--resume")


def test_it_is_not_resumed_on_other_data(tmp_path: Path, fashion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", fashion, "--epochs", 2, "--stop-after", 1)
    train_files.write_fashion(tmp_path / "other", train=39)
    capsys.readouterr()
    assert run("fashion-mnist", "--data", tmp_path / "other", "-o", tmp_path / "run", "--resume") == 2
    line = capsys.readouterr().err
    assert "[E0114]" in line
    assert "[40, 20]" in line
    assert "[39, 20]" in line


def test_a_training_begins_again_only_by_force(tmp_path: Path, fashion: Path) -> None:
    trained(tmp_path, fashion, "--epochs", 2)
    trained(tmp_path, fashion, "--epochs", 1, "--force")
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 1


def test_a_loss_that_is_no_number_stops_the_training(
    tmp_path: Path, fashion: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fashion-mnist", "--data", fashion, "-o", tmp_path, *SMALL, "--lr", 1e30) == Code.NOT_FINITE.exit_status
    assert "[E0107]" in capsys.readouterr().err
    assert not (tmp_path / "last.pt").exists()


# What a training does


def test_it_learns_what_can_be_learned(tmp_path: Path) -> None:
    train_files.write_fashion(tmp_path, train=300, test=100)
    folder = trained(tmp_path / "run", tmp_path, "--epochs", 6, "--no-flip", "--batch-size", 16)
    history = torch.load(folder / "last.pt", weights_only=True)["history"]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["test_accuracy"] > 0.8


def test_the_accuracy_is_that_of_the_exported_model(tmp_path: Path) -> None:
    train_files.write_fashion(tmp_path, train=100, test=50)
    folder = trained(tmp_path / "run", tmp_path, "--epochs", 2)
    images, labels = train_files.fashion(50, seed=1)
    np.savez(tmp_path / "test.npz", inputs=images[:, None], labels=labels)
    assert done("export", "--to", "onnx", folder / "model.pt").status == 0
    ran = done("run", folder / "model.onnx", "--data", tmp_path / "test.npz", "--json").json()
    accuracy = torch.load(folder / "last.pt", weights_only=True)["history"][-1]["test_accuracy"]
    assert ran["accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_alpha_and_beta_have_a_rate_of_their_own_and_no_decay(tmp_path: Path, fashion: Path) -> None:
    def network(*options: object) -> dict[str, torch.Tensor]:
        folder = trained(tmp_path, fashion, "--epochs", 1, "--force", *options)
        found: dict[str, torch.Tensor] = torch.load(folder / "last.pt", weights_only=True)["network"]
        return found

    gains = [name for name in network() if name.endswith(("sn.a", "sn.b"))]
    assert len(gains) == 6
    still = network("--gain-lr", 0)
    assert all(still[name] == 1.0 for name in gains)
    # Within the first batch, decay moves what it is applied to, and no gradient knows of it.
    batch = ("--batch-size", 64)
    free, decayed = network(*batch, "--weight-decay", 0), network(*batch, "--weight-decay", 0.5)
    assert all(free[name] != 1.0 for name in gains)
    assert all(torch.equal(free[name], decayed[name]) for name in gains)
    assert not torch.equal(free["fc.weight"], decayed["fc.weight"])


def test_every_epoch_has_its_rate_and_trains_batch_norm(tmp_path: Path, fashion: Path) -> None:
    options = ("--epochs", 2, "--lr", 0.2, "--gain-lr", 0.5)
    content = torch.load(trained(tmp_path, fashion, *options) / "last.pt", weights_only=True)
    assert [entry["lr"] for entry in content["history"]] == pytest.approx([0.2, 0.1])
    assert [group["lr"] for group in content["optimizer"]["param_groups"]] == pytest.approx([0.1, 0.05])
    assert content["network"]["layer1.bn.num_batches_tracked"] == 2 * 5  # 40 samples in batches of 8


def test_the_neurons_are_as_the_options_say(tmp_path: Path, fashion: Path) -> None:
    options = ("--activation", "sigmoid", "--alpha-init", 2, "--beta-init", -1, "--v-threshold", 0.75, "--gain-lr", 0)
    folder = trained(tmp_path, fashion, "--epochs", 1, "--timesteps", 2, *options)
    graph = load(folder / "model.pt")
    assert graph.input_spec.timesteps == 2
    for neuron in graph.neurons:
        assert float(neuron.alpha) == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-6)
        assert float(neuron.beta) == pytest.approx(1 / (1 + np.exp(1.0)), rel=1e-6)
        assert float(neuron.v_threshold) == 0.75


def test_a_sequence_layer_does_what_steps_do() -> None:
    from train_sequence import SequenceDALIF, repeat_from_first, run_sequence

    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    layer, steps = SequenceDALIF(timesteps=3, alpha_init=0.7).double(), DALIF(alpha_init=0.7).double()
    found = layer(x.flatten(0, 1)).reshape(3, 2, 5)
    found.mul(x.detach()).sum().backward()
    gradients = x.grad, layer.a.grad, layer.b.grad
    x.grad = None
    wanted = torch.stack([steps(step) for step in x])
    wanted.mul(x.detach()).sum().backward()
    assert 0 < wanted.mean() < 1
    assert torch.equal(found, wanted)
    for one, two in zip(gradients, (x.grad, steps.a.grad, steps.b.grad), strict=True):
        torch.testing.assert_close(one, two)

    network = nn.Sequential(nn.Linear(5, 6), SequenceDALIF(timesteps=3), nn.Linear(6, 4)).double()
    moving = run_sequence(network, x[0][:, None].expand(2, 3, 5), 3, temporal=True)
    repeat_from_first(network)
    still = run_sequence(network, x[0], 3, temporal=False)
    assert still.shape == (3, 2, 4)
    assert not torch.equal(still[0], still[1])
    torch.testing.assert_close(still, moving)
    single = nn.Sequential(nn.Linear(5, 6), DALIF(), nn.Linear(6, 4)).double()
    single.load_state_dict(network.state_dict())
    reset(single)
    torch.testing.assert_close(still, torch.stack([single(x[0]) for _ in range(3)]))


def test_the_losses_are_their_formulas() -> None:
    from train_loop import classification_loss

    logits = np.random.default_rng(0).normal(size=(3, 4, 5))
    labels = np.array([0, 4, 2, 2])

    def entropy(values: np.ndarray) -> float:
        chances = np.exp(values) / np.exp(values).sum(axis=-1, keepdims=True)
        return float(-np.log(chances[np.arange(4), labels]).mean())

    tet = 0.8 * np.mean([entropy(step) for step in logits]) + 0.2 * ((logits - 0.5) ** 2).mean()
    for kind, wanted in (("ce", entropy(logits.mean(axis=0))), ("tet", tet)):
        found = classification_loss(
            torch.from_numpy(logits), torch.from_numpy(labels), kind=kind, tet_lambda=0.2, v_threshold=0.5
        )  # fmt: skip
        assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_the_rates_are_their_schedules() -> None:
    from train_loop import rate_at

    assert [round(rate_at(epoch, 4, "cosine"), 6) for epoch in range(4)] == [1.0, 0.853553, 0.5, 0.146447]
    assert [rate_at(epoch, 8, "step") for epoch in range(8)] == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 2)
    assert rate_at(3, 4, "constant") == 1.0


def test_every_layer_of_a_fresh_resnet_fires(script: ModuleType, tmp_path: Path) -> None:
    import train_data
    from train_augment import Augmentation
    from train_recipes import RECIPES

    from dalif_deploy.networks import firing_rates

    train_files.write_cifar10(tmp_path)
    data = train_data.open_data("cifar10", tmp_path, size=32, timesteps=1, augmentation=Augmentation())
    options = {**dataclasses.asdict(RECIPES["cifar10"]), "timesteps": 1, "seed": 0, "detach_reset": False}
    batch = torch.stack([data.train[index][0] for index in range(8)])
    silent = {}
    for calibrated in (False, True):
        network = script.training_network({**options, "calibrate": calibrated}, data)
        step = script.build(options, data, DALIF)
        step.load_state_dict(network.state_dict())
        silent[calibrated] = sum(rate == 0 for rate in firing_rates(step, batch, 1).values())
    assert silent[False] > 0
    assert silent[True] == 0


# Data sets as they lie on disk


def opened(name: str, folder: Path, **options: Any) -> Any:
    import train_data
    from train_augment import Augmentation

    settings = {"size": 32, "timesteps": 4, "augmentation": Augmentation(), **options}
    return train_data.open_data(name, folder, **settings)


def refused(name: str, folder: Path, code: Code, **options: Any) -> str:
    with pytest.raises(DalifError) as caught:
        opened(name, folder, **options)
    assert caught.value.code is code
    return caught.value.message


def test_cifar10_batches(tmp_path: Path) -> None:
    train_files.write_cifar10(tmp_path)
    data = opened("cifar10", tmp_path)
    assert data.class_names == ("airplane", "automobile", "bird")
    assert (len(data.train), len(data.test)) == (20, 4)
    assert [label for _, label in (data.train[index] for index in range(8))] == [0, 1, 2, 0, 1, 2, 0, 1]
    codes = train_files.codes(1, 4, 3072).reshape(4, 3, 32, 32)[2]  # the second batch's third image
    mean, std = (np.array(data.encoding.mean), np.array(data.encoding.std))
    wanted = (codes / 255 - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(data.train[6][0].numpy(), wanted, rtol=1e-6, atol=1e-6)
    assert np.array_equal(data.stored_form(3), train_files.codes(5, 4, 3072).reshape(4, 3, 32, 32)[:3])
    assert opened("cifar10", tmp_path / "cifar-10-batches-py").train.labels == data.train.labels


def test_cifar100_batches(tmp_path: Path) -> None:
    train_files.write_cifar100(tmp_path)
    data = opened("cifar100", tmp_path)
    assert data.class_names == ("a", "b", "c", "d")
    assert data.train.labels == [0, 1, 2, 3, 0, 1]
    assert len(data.test) == 4


def test_cifar_that_python_3_pickled(tmp_path: Path) -> None:
    train_files.write_cifar100(tmp_path)
    for protocol in (2, 4):
        content = {b"data": train_files.codes(0, 4, 3072), b"fine_labels": [0, 1, 2, 3]}
        (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(content, protocol=protocol))
        assert np.array_equal(opened("cifar100", tmp_path).stored_form(4).reshape(4, -1), content[b"data"])


def test_a_cifar_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    train_files.write_cifar100(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(pickle.dumps({"data": Evil(), "fine_labels": []}))
    assert "could run code" in refused("cifar100", tmp_path, Code.PICKLED)
    assert not (tmp_path / "ran").exists()


def test_damaged_cifar_is_refused(tmp_path: Path) -> None:
    assert "batches.meta" in refused("cifar10", tmp_path, Code.FILE_MISSING)
    refused("cifar10", tmp_path / "nowhere", Code.FILE_MISSING)
    train_files.write_cifar10(tmp_path)
    place = tmp_path / "cifar-10-batches-py"
    whole = (place / "data_batch_3").read_bytes()
    for content in (whole[:-2000], b"", b"\x80\x02}."):
        (place / "data_batch_3").write_bytes(content)
        assert "data_batch_3" in refused("cifar10", tmp_path, Code.FILE_DAMAGED)
    batch = {"data": train_files.codes(0, 2, 3072), "labels": [0, 3]}  # three classes
    (place / "data_batch_3").write_bytes(train_files.python2_pickle(batch))
    assert "0 to 2" in refused("cifar10", tmp_path, Code.FILE_DAMAGED)
    (place / "data_batch_3").unlink()
    assert "data_batch_3" in refused("cifar10", tmp_path, Code.FILE_MISSING)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_files(tmp_path: Path, packed: bool, below: str) -> None:
    train_files.write_fashion(tmp_path / below, packed=packed)
    data = opened("fashion-mnist", tmp_path, size=28)
    images, labels = train_files.fashion(40, seed=0)
    assert np.array_equal(data.train.fetch(7)[0].numpy(), images[7])
    assert data.train.labels == labels.tolist()
    assert len(data.test) == 20
    assert data.class_names[9] == "Ankle boot"
    np.testing.assert_allclose(data.train[7][0][0], (images[7] / 255 - 0.286) / 0.353, rtol=1e-6, atol=1e-6)


def test_damaged_fashion_mnist_is_refused(tmp_path: Path) -> None:
    train_files.write_fashion(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    assert "28 x 28" in refused("fashion-mnist", tmp_path, Code.BAD_OPTION, size=32)
    for content in (whole[:500], b"no gzip"):
        path.write_bytes(content)
        refused("fashion-mnist", tmp_path, Code.FILE_DAMAGED, size=28)
    path.unlink()
    plain = path.with_suffix("")
    images = train_files.idx(train_files.fashion(40, seed=0)[0])
    for content, code in (
        (images[:-1], Code.FILE_DAMAGED), (images[:9], Code.FILE_DAMAGED),
        (train_files.idx(np.zeros((41, 28, 28), np.uint8)), Code.FILE_DAMAGED),
        (train_files.idx(np.zeros(5, np.uint8)), Code.FOREIGN_FILE),
    ):  # fmt: skip
        plain.write_bytes(content)
        refused("fashion-mnist", tmp_path, code, size=28)


@needs_torchvision
def test_imagenet_folders(tmp_path: Path) -> None:
    from PIL import Image

    train_files.write_imagenet(tmp_path, size=37)
    data = opened("imagenet", tmp_path)
    assert data.class_names == ("n01440764", "n01443537")
    assert data.train.labels == [0, 0, 0, 1, 1, 1]
    with Image.open(tmp_path / "val" / "n01443537" / "n01443537_0.png") as picture:
        wanted = np.asarray(picture).transpose(2, 0, 1)[:, 2:34, 6:38]  # 37 is what 32 is cut out of
    assert np.array_equal(data.test.fetch(2).numpy(), wanted)
    assert torch.equal(data.train.fetch(0), data.train.fetch(0))
    varied = opened("imagenet", tmp_path, augmentation=augmentation(crop=1))
    assert varied.train.fetch(0).shape == (3, 32, 32)
    assert not torch.equal(varied.train.fetch(0), varied.train.fetch(0))
    assert torch.equal(varied.test.fetch(0), data.test.fetch(0))

    path = tmp_path / "val" / "n01440764" / "n01440764_1.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DalifError, match=path.name) as caught:
        data.test[1]
    assert caught.value.code is Code.FILE_DAMAGED
    path.parent.rename(tmp_path / "val" / "n09999999")
    refused("imagenet", tmp_path, Code.BAD_DATA)
    (tmp_path / "val").rename(tmp_path / "test")
    assert "'val'" in refused("imagenet", tmp_path, Code.FILE_MISSING)


@needs_torchvision
def test_a_worker_process_tells_its_error_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_files.write_imagenet(tmp_path)
    path = tmp_path / "train" / "n01440764" / "n01440764_0.png"
    path.write_bytes(path.read_bytes()[:100])
    options = ("--size", 32, "--no-calibrate", "--workers", 1)
    assert run("imagenet", "--data", tmp_path, "-o", tmp_path / "run", *SMALL, *options) == 2
    assert f"error: [E0103] {path}: cannot be read as a picture" in capsys.readouterr().err.splitlines()[-1]


def test_without_torchvision_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    train_files.write_cifar100(tmp_path)
    assert opened("cifar100", tmp_path, augmentation=augmentation(crop=4, flip=True, cutout=16)) is not None
    message = refused("cifar100", tmp_path, Code.MISSING_PACKAGE, augmentation=augmentation(autoaugment=True))
    assert "dalif_deploy[train]" in message


def counted(rows: train_files.Rows, timesteps: int, size: int, split: str) -> np.ndarray:
    """Frames of events, event by event."""
    wanted = np.zeros((timesteps, 2, size, size))
    first, last = min(row[3] for row in rows), max(row[3] for row in rows)
    for index, (x, y, p, t) in enumerate(rows):
        step = index * timesteps // len(rows) if split == "events" else (t - first) * timesteps // (last - first + 1)
        wanted[step, p, y * size // 128, x * size // 128] += 1
    return wanted


@pytest.mark.parametrize("split", ["events", "time"])
def test_cifar10_dvs_recordings(tmp_path: Path, split: str) -> None:
    written = train_files.write_cifar10_dvs(tmp_path, recordings=12)
    told: list[tuple[str, int, int]] = []
    data = opened("cifar10-dvs", tmp_path, size=16, split=split, told=lambda *progress: told.append(progress))
    assert data.class_names == ("airplane", "bird", "cat")
    assert data.temporal
    assert (len(data.train), len(data.test)) == (33, 3)
    assert data.test.labels == [0, 1, 2]
    frames, label = data.test[1]
    assert label == 1
    assert np.array_equal(frames, counted(written["cifar10_bird_11.aedat"], 4, 16, split))  # 11 is after 2
    assert np.array_equal(data.train[2][0], counted(written["cifar10_airplane_2.aedat"], 4, 16, split))
    assert data.stored_form(2).shape == (2, 4, 2, 16, 16)
    assert told[-1] == ("reading recordings", 36, 36)


def test_dvs128_gesture_recordings(tmp_path: Path) -> None:
    written = train_files.write_gesture(tmp_path / "DvsGesture")
    data = opened("dvs128-gesture", tmp_path, size=128, split="events")
    assert len(data.class_names) == 11
    assert data.train.labels == [0, 1, 10] * 2
    assert data.test.labels == [0, 1, 10]
    rows = [row for row in written["user02_lab"] if 1_350_000 <= row[3] < 1_600_000]
    assert 100 < len(rows) < 900
    assert np.array_equal(data.train[4][0], counted(rows, 4, 128, "events"))


def test_dvs128_gesture_as_tonic_unpacks_it(tmp_path: Path) -> None:
    train_files.write_gesture_unpacked(tmp_path)
    data = opened("dvs128-gesture", tmp_path, size=128, split="time")
    assert data.train.labels == [0, 2, 10] * 2
    rows = [(x, y, p, t // 1000) for x, y, p, t in train_files.event_rows(3, 300)]
    assert np.array_equal(data.train[4][0], counted(rows, 4, 128, "time"))  # the second user's class 2
    (tmp_path / "DVSGesture" / "ibmGestureTest" / "user24_led" / "11.npy").write_bytes(b"")
    refused("dvs128-gesture", tmp_path, Code.FOREIGN_FILE)


def test_times_and_counts_may_be_large(tmp_path: Path) -> None:
    from train_events import read_aedat2, read_aedat3

    path = tmp_path / "a.aedat"
    path.write_bytes(train_files.aedat3([(5, 6, 1, 7), (0, 127, 0, 9)], overflow=3))
    events = read_aedat3(path)
    assert events.t.tolist() == [3 * 2**31 + 7, 3 * 2**31 + 9]
    assert (events.x.tolist(), events.y.tolist(), events.p.tolist()) == ([5, 0], [6, 127], [1, 0])
    path.write_bytes(train_files.aedat2([(3, 4, 1, 2**32 - 1)] * 300))
    events = read_aedat2(path)
    assert events.t[0] == 2**32 - 1
    (frame,) = frames_of(events, timesteps=1)
    assert frame[1, 4, 3] == 300


def frames_of(events: Any, timesteps: int) -> Any:
    from train_events import frames

    return frames(events, timesteps=timesteps, size=128, split="events", what="it")


def test_damaged_recordings_are_refused(tmp_path: Path) -> None:
    written = train_files.write_cifar10_dvs(tmp_path / "dvs", recordings=2)
    path = tmp_path / "dvs" / "bird" / "cifar10_bird_0.aedat"
    rows = written[path.name]
    for content, code in (
        (train_files.aedat2(rows)[:-3], Code.FILE_DAMAGED),
        (train_files.aedat3(rows), Code.FOREIGN_FILE),
        (train_files.aedat2([(-200, 3, 1, 5)] * 9), Code.FOREIGN_FILE),
        (train_files.aedat2(rows[:3]), Code.BAD_DATA),
        (b"#!AER-DAT2.0\r\n#", Code.BAD_DATA),
    ):
        path.write_bytes(content)
        assert path.name in refused("cifar10-dvs", tmp_path / "dvs", code)
    path.rename(path.with_suffix(".aedat4"))
    assert "aedat4" in refused("cifar10-dvs", tmp_path / "dvs", Code.FILE_MISSING)

    written = train_files.write_gesture(tmp_path / "gesture")
    path, labels = tmp_path / "gesture" / "user02_lab.aedat", tmp_path / "gesture" / "user02_lab_labels.csv"
    whole = path.read_bytes()
    for content in (whole[:-3], whole[:60], whole + b"\1\0", train_files.aedat3([(128, 0, 1, 5)])):
        path.write_bytes(content)
        refused("dvs128-gesture", tmp_path / "gesture", Code.FILE_DAMAGED)
    path.write_bytes(train_files.aedat2(written["user02_lab"]))
    refused("dvs128-gesture", tmp_path / "gesture", Code.FOREIGN_FILE)
    path.write_bytes(whole)
    for text in ("class,start,end\n12,1,2\n", "class,start,end\n1,2,1\n", "class,start,end\n1,x,1\n"):
        labels.write_text(text)
        assert labels.name in refused("dvs128-gesture", tmp_path / "gesture", Code.FILE_DAMAGED)
    labels.unlink()
    assert labels.name in refused("dvs128-gesture", tmp_path / "gesture", Code.FILE_MISSING)


# Augmentation


def augmentation(**values: Any) -> Any:
    from train_augment import Augmentation

    return Augmentation(**values)


def test_what_the_network_sees_is_what_the_encoding_says() -> None:
    from train_augment import Normalise

    encoding = Encoding(kind="uint8", scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.4, 0.3, 0.2))
    codes = train_files.codes(0, 3, 8, 9)
    found = Normalise(encoding, 3)(torch.from_numpy(codes))
    assert np.array_equal(found.numpy(), encoding.module_input(codes[None], feature_axis=1)[0])


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    from train_augment import image_transform

    codes = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 5, 5)
    transform = image_transform(augmentation(crop=2), lambda image: image, "cifar10")
    padded = np.pad(codes.numpy(), ((0, 0), (2, 2), (2, 2)))
    windows = {padded[:, y : y + 5, x : x + 5].tobytes() for y in range(5) for x in range(5)}
    torch.manual_seed(0)
    found = {transform(codes).numpy().tobytes() for _ in range(400)}
    assert found == windows


def test_half_the_images_are_mirrored_and_frames_roll_together() -> None:
    from train_augment import frames_transform, image_transform

    codes = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
    transform = image_transform(augmentation(flip=True), lambda image: image, "cifar10")
    torch.manual_seed(0)
    mirrored = [not torch.equal(transform(codes), codes) for _ in range(400)]
    assert 0.4 < np.mean(mirrored) < 0.6
    frames = torch.zeros(2, 2, 6, 6)
    frames[:, :, 3, 3] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    shifted = frames_transform(augmentation(roll=1))
    places = set()
    for _ in range(100):
        moved = shifted(frames)
        assert sorted(moved[moved > 0].tolist()) == [1.0, 2.0, 3.0, 4.0]
        (place,) = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
        places.add(place)
    assert places == {(y, x) for y in (2, 3, 4) for x in (2, 3, 4)}


def test_cutout_blots_out_a_square_also_at_the_edge() -> None:
    from train_augment import image_transform

    transform = image_transform(augmentation(cutout=4), lambda image: image + 1.0, "cifar10")
    torch.manual_seed(0)
    sizes = set()
    for _ in range(300):
        image = transform(torch.zeros(2, 8, 8))
        assert torch.equal(image[0], image[1])
        rows, columns = (image[0] == 0).any(dim=1).sum(), (image[0] == 0).any(dim=0).sum()
        assert (image[0] == 0).sum() == rows * columns
        sizes.add((int(rows), int(columns)))
    assert sizes == {(a, b) for a in (2, 3, 4) for b in (2, 3, 4)}


@needs_torchvision
def test_autoaugment_varies_codes_by_torchs_random_numbers() -> None:
    from train_augment import autoaugment

    transform = autoaugment("cifar10")
    codes = torch.from_numpy(train_files.codes(0, 3, 32, 32))
    torch.manual_seed(3)
    one = [transform(codes) for _ in range(8)]
    torch.manual_seed(3)
    assert all(torch.equal(image, transform(codes)) for image in one)
    assert one[0].dtype == torch.uint8
    assert len({image.numpy().tobytes() for image in one}) > 2


# The command


CASES = {
    "cifar10": (train_files.write_cifar10, ["--size", 32], (3, 32, 32)),
    "cifar100": (train_files.write_cifar100, ["--size", 32], (3, 32, 32)),
    "fashion-mnist": (train_files.write_fashion, [], (1, 28, 28)),
    "imagenet": (train_files.write_imagenet, ["--size", 32], (3, 32, 32)),
    "cifar10-dvs": (train_files.write_cifar10_dvs, ["--size", 16, "--timesteps", 4], (2, 16, 16)),
    "dvs128-gesture": (train_files.write_gesture, ["--size", 16, "--timesteps", 4], (2, 16, 16)),
}


@pytest.mark.parametrize("dataset", [
    pytest.param(name, marks=needs_torchvision if name in ("cifar10", "cifar100", "imagenet") else ())
    for name in CASES
])  # fmt: skip
def test_every_data_set_becomes_a_model_that_exports(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, options, shape = CASES[dataset]
    write(tmp_path / "data")
    folder = trained(tmp_path / "run", tmp_path / "data", "--epochs", 1, *options, dataset=dataset)
    out, err = capsys.readouterr()
    assert re.search(r"^test accuracy \d+\.\d\d%\nsaved .*model\.pt\n$", out)
    assert "epoch 1/1  loss" in err
    assert len(re.findall(r"layer\d\.sn: fires on", err)) == 3
    spec = load(folder / "model.pt").input_spec
    assert spec.shape == shape
    assert spec.temporal == dataset.endswith(("dvs", "gesture"))
    assert spec.encoding.kind == ("real" if spec.temporal else "uint8")
    exported = done("export", "--to", "onnx", folder / "model.pt", "--json").json()
    assert exported["verdict"] in ("exact", "rounding")


def test_the_script_runs_from_anywhere_and_answers_in_one_line(tmp_path: Path, fashion: Path) -> None:
    def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, ROOT / "examples" / "train.py", *map(str, arguments)]
        return subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = ran("fashion-mnist", "--data", fashion, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "fashion-mnist" / "model.pt").exists()
    assert "Traceback" not in done.stderr
    failed = ran("fashion-mnist", "--data", fashion, "--device", "abacus", "-o", "other")
    assert failed.returncode == 2
    assert failed.stderr.startswith("train.py: error: [E0101] --device abacus")
    assert len(failed.stderr.splitlines()) == 1


# What the paper says


def test_the_defaults_are_the_papers() -> None:
    from train_recipes import RECIPES

    of_the_paper = {"cifar10", "cifar100", "imagenet", "cifar10-dvs", "dvs128-gesture"}
    for name in of_the_paper:
        recipe = RECIPES[name]
        assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.gain_lr) == ("sgd", 0.1, 0.9, 1.0)
        assert (recipe.v_threshold, recipe.surrogate_width, recipe.activation) == (1.0, 1.0, "tanh")
        assert (recipe.alpha_init, recipe.beta_init) == (1.0, 1.0)
    assert {name: (RECIPES[name].network, RECIPES[name].timesteps, RECIPES[name].epochs) for name in of_the_paper} == {
        "cifar10": ("resnet20", 4, 1000), "cifar100": ("resnet20", 4, 1000), "imagenet": ("resnet18", 4, 320),
        "cifar10-dvs": ("resnet20", 16, 1000), "dvs128-gesture": ("vgg11", 16, 200),
    }  # fmt: skip


def test_the_documented_defaults_are_the_defaults() -> None:
    from train_recipes import RECIPES

    lines = [line for line in (ROOT / "docs" / "training.md").read_text().splitlines() if line.startswith("| `--")]
    table = {}
    for line in lines:
        name, *values = (cell.strip() for cell in line.strip("|").split("|"))
        table[re.findall(r"`--([\w-]+)`", name)[0].replace("-", "_")] = values[:-1]
    assert set(table) == {field.name for field in dataclasses.fields(RECIPES["cifar10"])}
    columns = ("cifar10", "fashion-mnist", "imagenet", "cifar10-dvs", "dvs128-gesture")
    assert RECIPES["cifar100"] == RECIPES["cifar10"]
    for field, values in table.items():
        for column, shown in zip(columns, values, strict=True):
            value = getattr(RECIPES[column], field)
            wanted = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
            assert shown == str(wanted) or float(shown) == wanted, (field, column)
