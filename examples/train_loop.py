"""Training by epochs, its whole state on disk after each, and going on from there as if nothing had happened."""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from train_data import LabelledSet
from train_sequence import run_sequence

from dalif_deploy import DALIF, Code, DalifError
from dalif_deploy.deploy.files import written_whole

FORMAT = "dalif_deploy.training"
VERSION = 1

Options = dict[str, Any]
"""What shapes a training, by name: plain values, those of `Recipe` and a few more."""


def classification_loss(logits: Tensor, labels: Tensor, *, kind: str, tet_lambda: float, v_threshold: float) -> Tensor:
    """The loss of logits [T, B, K] for labels [B].

    "ce": the cross-entropy of their mean over T. "tet": the mean over T of every timestep's own cross-entropy,
    and, weighted by `tet_lambda` against it, the mean squared distance of all logits from the threshold (Deng et
    al., "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting").
    """
    if kind == "ce":
        return nn.functional.cross_entropy(logits.mean(dim=0), labels)
    steps = nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))
    distance = nn.functional.mse_loss(logits, torch.full_like(logits, v_threshold))
    return (1 - tet_lambda) * steps + tet_lambda * distance


def rate_at(epoch: int, epochs: int, schedule: str) -> float:
    """What the learning rate of `epoch`, from 0, is of the initial one.

    "cosine": from 1 towards 0 along half a cosine. "step": a tenth from the half on, a hundredth from three
    quarters on. "constant": 1.
    """
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
    if schedule == "step":
        return float(0.1 ** ((2 * epoch >= epochs) + (4 * epoch >= 3 * epochs)))
    return 1.0


class Training:
    """One training: network, optimizer, random numbers and the epochs done.

    `network`: of SequenceDALIF layers, on `device`. `options`: those of `Recipe`, and "amp" and "seed". Two trainings
    with the same options, data, device and number of threads compute the same bits, however often they were stopped
    after an epoch and resumed.
    """

    def __init__(
        self, network: nn.Module, data: tuple[LabelledSet, LabelledSet], options: Options, *,
        temporal: bool, device: torch.device, workers: int = 0,
    ) -> None:  # fmt: skip
        self.network = network
        self.options = options
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self._samples = [len(part) for part in data]
        self._temporal = temporal
        self._device = device
        self._order = torch.Generator().manual_seed(options["seed"])
        pinned = device.type == "cuda"
        size = options["batch_size"]
        self._train: DataLoader[tuple[Tensor, int]] = DataLoader(
            data[0], size, shuffle=True, generator=self._order, num_workers=workers, pin_memory=pinned
        )
        self._test: DataLoader[tuple[Tensor, int]] = DataLoader(data[1], size, num_workers=workers, pin_memory=pinned)
        self._optimizer = _optimizer(network, options)
        self._scaler = torch.amp.GradScaler(device.type, enabled=options["amp"] and device.type == "cuda")

    def run_epoch(self, told: Callable[[int, int, float], None]) -> dict[str, float]:
        """Train for one epoch and test; returns, and adds to `history`, what came of it.

        `told` hears after every batch how many are done, of how many, and the mean loss so far.
        Raises `DalifError` (NOT_FINITE) where the loss is no longer a number.
        """
        options = self.options
        factor = rate_at(self.epoch, options["epochs"], options["schedule"])
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.network.train()
        total, right, seen = 0.0, 0, 0
        for batch, (inputs, labels) in enumerate(_batches(self._train), start=1):
            inputs, labels = inputs.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
            with self._mixed():
                logits = self._logits(inputs)
            loss = classification_loss(
                logits, labels, kind=options["loss"], tet_lambda=options["tet_lambda"],
                v_threshold=options["v_threshold"],
            )  # fmt: skip
            value = loss.item()
            if not math.isfinite(value):
                raise DalifError(
                    Code.NOT_FINITE,
                    f"the loss became {value} in epoch {self.epoch + 1}, batch {batch}; start again with a lower --lr",
                )
            self._optimizer.zero_grad()
            torch.autograd.backward(self._scaler.scale(loss))
            self._scaler.step(self._optimizer)
            self._scaler.update()
            total += value * len(labels)
            right += int((logits.mean(dim=0).argmax(dim=1) == labels).sum())
            seen += len(labels)
            told(batch, len(self._train), total / seen)
        self.epoch += 1
        entry = {"epoch": self.epoch, "loss": total / seen, "train_accuracy": right / seen,
                 "test_accuracy": self.accuracy(), "lr": options["lr"] * factor}  # fmt: skip
        self.history.append(entry)
        return entry

    @torch.no_grad()
    def accuracy(self) -> float:
        """The share of test samples that the network, in evaluation and in float32, classifies rightly."""
        self.network.eval()
        right = 0
        for inputs, labels in _batches(self._test):
            logits = self._logits(inputs.to(self._device))
            right += int((logits.mean(dim=0).argmax(dim=1).cpu() == labels).sum())
        return right / self._samples[1]

    def save(self, path: Path) -> None:
        """Write the whole state: a file that torch.load reads with weights_only=True."""
        content = {
            "format": FORMAT, "version": VERSION, "options": self.options, "epoch": self.epoch,
            "history": self.history, "network": self.network.state_dict(), "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(), "samples": self._samples,
            "random": {
                "torch": torch.get_rng_state(), "order": self._order.get_state(),
                "cuda": torch.cuda.get_rng_state_all() if self._device.type == "cuda" else [],
            },
        }  # fmt: skip
        with written_whole(path) as temporary:
            torch.save(content, temporary)

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Go on from a state that `read_state` read from `path`. Raises `DalifError` (FILE_DAMAGED, BAD_DATA)."""
        if content.get("samples") != self._samples:
            raise DalifError(
                Code.BAD_DATA,
                f"{path}: was trained and tested on {content.get('samples')} samples, but --data has {self._samples}; "
                "give the folder with which it began",
            )
        try:
            self.network.load_state_dict(content["network"])
            self._optimizer.load_state_dict(content["optimizer"])
            self._scaler.load_state_dict(content["scaler"])
            self.epoch, self.history = content["epoch"], content["history"]
            self._order.set_state(content["random"]["order"])
            torch.set_rng_state(content["random"]["torch"])
            if content["random"]["cuda"] and self._device.type == "cuda":
                torch.cuda.set_rng_state_all(content["random"]["cuda"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DalifError(
                Code.FILE_DAMAGED, f"{path}: does not fit the network ({error}); start again with --force"
            ) from error

    def _logits(self, inputs: Tensor) -> Tensor:
        """[T, B, K], float32."""
        return run_sequence(self.network, inputs, self.options["timesteps"], temporal=self._temporal).float()

    def _mixed(self) -> AbstractContextManager[Any]:
        if not self.options["amp"]:
            return nullcontext()
        dtype = torch.float16 if self._device.type == "cuda" else torch.bfloat16
        return torch.autocast(self._device.type, dtype=dtype)


def read_state(path: Path) -> dict[str, Any]:
    """What `Training.save` wrote, on the CPU, read without running anyone's code.

    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE.
    """
    try:
        content = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except OSError as error:
        raise DalifError(
            Code.FILE_MISSING, f"{path}: {error.strerror or error}; there is nothing to resume, leave --resume out"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: cannot be read as a training's state; start again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise DalifError(Code.FOREIGN_FILE, f"{path}: is no state of a training, version {VERSION}, as train.py writes")
    return content


def _batches(loader: DataLoader[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches. An error in a worker process, which torch wraps, is raised as the `DalifError` it was."""
    try:
        yield from loader
    except RuntimeError as error:
        found = re.search(r"DalifError: \[(E\d+)\] (.*)", str(error))
        if found is None:
            raise
        raise DalifError(next(code for code in Code if code.identifier == found[1]), found[2]) from error


def _optimizer(network: nn.Module, options: Options) -> torch.optim.Optimizer:
    """The optimizer; alpha and beta have a rate of their own, and no weight decay, which would pull them to 0."""
    gains = [p for module in network.modules() if isinstance(module, DALIF) for p in module.parameters()]
    weights = [p for p in network.parameters() if not any(p is gain for gain in gains)]
    groups = [
        {"params": weights, "lr": options["lr"], "weight_decay": options["weight_decay"]},
        {"params": gains, "lr": options["lr"] * options["gain_lr"], "weight_decay": 0.0},
    ]
    made: torch.optim.Optimizer
    if options["optimizer"] == "sgd":
        made = torch.optim.SGD(groups, momentum=options["momentum"])
    else:
        made = torch.optim.AdamW(groups)
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return made
