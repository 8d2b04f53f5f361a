"""Networks in every style, trained on real digits by the user's own loop, then exported and verified as they are."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from dalif_deploy import Data, export, save, verify
from dalif_deploy.capturing import neurons
from dalif_deploy.equivalence import Outcome
from dalif_deploy.neuron import DALIF
from tests.style_models import (
    STYLES,
    TIME_FIRST,
    CarriedMems,
    CarriedState,
    FoldedThroughout,
    Style,
    T,
    Tutorial,
    register_all,
)

CLASSES, BATCH, EPOCHS = 3, 64, 12
HELD_OUT = 37


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(neurons, "_READERS", {})
    register_all()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Zeros, ones and twos, ink and paper as two channels, [N, 2, 8, 8] in [0, 1], and their labels."""
    images, labels = load_digits(n_class=CLASSES, return_X_y=True)
    ink = torch.from_numpy(images / 16).float().reshape(-1, 1, 8, 8)
    return torch.cat([ink, 1 - ink], dim=1), torch.from_numpy(labels)


def frames(style: Style, images: Tensor) -> Tensor:
    """What forward takes of the images: repeated over time where it takes sequences; the batch stands in front."""
    return images[:, None].repeat(1, T, 1, 1, 1) if style.temporal else images


def logits(style: Style, module: nn.Module, images: Tensor) -> Tensor:
    """[batch, classes], as whoever trains the network takes them from what forward returns."""
    for child in module.modules():
        if isinstance(child, DALIF):
            child.reset_state()
        elif callable(rest := getattr(child, "reset", None)):
            rest()
    x = frames(style, images)
    if TIME_FIRST in style.notes:
        x = x.transpose(0, 1)
    if style.layout != "step":
        out = module(x)
        if isinstance(module, FoldedThroughout):
            return out.view(len(images), T, CLASSES)[:, -1]
        if isinstance(module, Tutorial) and module.training:  # its neurons have no surrogate gradient
            return out[1].sum(0)
        return answer(out)
    state: list[Any] = [None, None] if isinstance(module, CarriedMems | CarriedState) else []
    steps = []
    for t in range(T):
        x_t = x[:, t] if style.temporal else x
        if isinstance(module, CarriedMems):
            out, *state = module(x_t, *state)
        elif isinstance(module, CarriedState):
            out, state = module(x_t, state)
        else:
            out = answer(module(x_t))
        steps.append(out)
    return torch.stack(steps).mean(0)


def answer(out: Any) -> Tensor:
    """The first tensor of what forward returns, over all timesteps."""
    if isinstance(out, dict):
        return answer(out["logits"])
    if isinstance(out, list | tuple):
        first = out[0]
        per_step = isinstance(first, Tensor) and first.shape[-1] == CLASSES and len(out) == T
        return torch.stack(list(out)).mean(0) if per_step else answer(first)
    if out.ndim == 3:
        return out.mean(0 if out.shape[0] == T else 1)
    return out  # type: ignore[no-any-return]


def trained(style: Style) -> tuple[nn.Module, float]:
    """The network after a few epochs, and its accuracy on digits that it has not seen."""
    module = style.make()
    images, labels = digits()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images) - HELD_OUT)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            some = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(logits(style, module, images[some]), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()
    with torch.no_grad():
        predicted = logits(style, module, images[-HELD_OUT:]).argmax(1)
    return module, float((predicted == labels[-HELD_OUT:]).double().mean())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", STYLES)
def test_a_trained_network_is_exported_as_it_is_written(name: str, tmp_path: Path) -> None:
    style = STYLES[name]
    module, accuracy = trained(style)
    assert accuracy >= 0.75
    images, labels = digits()
    held_out = frames(style, images[-HELD_OUT:])
    example = held_out[:8].transpose(0, 1) if TIME_FIRST in style.notes else held_out[:8]
    save(module, tmp_path / "net.pt", example_input=example, timesteps=T, **style.arguments)
    export(tmp_path / "net.pt", tmp_path / "net.onnx", to="onnx", verified=False)
    data = Data(held_out.numpy(), labels[-HELD_OUT:].numpy().astype(np.int64), "held-out digits")
    verdict = verify(tmp_path / "net.pt", tmp_path / "net.onnx", data=data)
    assert verdict.outcome in (Outcome.EXACT, Outcome.ROUNDING)
    assert not verdict.vacuous
    assert {runtime.comparison.name for runtime in verdict.runtimes} == {"torch", "events", "onnxruntime"}
    assert verdict.accuracy == pytest.approx(accuracy, abs=0.06)  # the time may be reduced in another way
