"""Several outputs that vote for one class, and reductions over one axis of a map, in each way that they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dalif_deploy import DALIF, capture, export, reset, save
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import AvgPool2d, Linear

T, CLASSES, VOTES = 5, 3, 4
Head = Callable[[Tensor], Tensor]


class Voting(nn.Module):
    """One timestep: CLASSES x VOTES spiking outputs, and `head`, which makes logits of them."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.fc = nn.Linear(7, CLASSES * VOTES)
        self.sn = DALIF()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sn(self.fc(x)))


class AllSteps(nn.Module):
    """[T, B, ...] in one tensor, the votes counted with time folded into the batch."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.net = Voting(head)

    def forward(self, x: Tensor) -> Tensor:
        reset(self)
        spikes = torch.stack([self.net.sn(self.net.fc(x)) for _ in range(T)])
        return self.net.head(spikes.flatten(0, 1)).unflatten(0, (T, -1)).mean(0)


HEADS: dict[str, Head] = {
    "AvgPool1d over [B, 1, n]": lambda s: nn.functional.avg_pool1d(s.unsqueeze(1), VOTES, VOTES).squeeze(1),
    "overlapping windows": lambda s: nn.functional.avg_pool1d(s.unsqueeze(1), 5, 2, 1).squeeze(1),
    "adaptive": lambda s: nn.functional.adaptive_avg_pool1d(s.unsqueeze(1), CLASSES).squeeze(1),
    "windows of two sizes": lambda s: nn.functional.adaptive_avg_pool1d(s.unsqueeze(1), 5).squeeze(1),
    "mean of [B, classes, votes]": lambda s: s.view(-1, CLASSES, VOTES).mean(-1),
    "sum of [B, votes, classes]": lambda s: s.reshape(-1, VOTES, CLASSES).sum(1),
    "kept axis": lambda s: s.view(-1, CLASSES, VOTES).mean(2, keepdim=True).flatten(1),
}


def logits(module: nn.Module, x: Tensor, *, steps: bool) -> np.ndarray:
    """By the module's own code, the mean of all timesteps."""
    reset(module)
    with torch.no_grad():
        out = torch.stack([module(x) for _ in range(T)]).mean(0) if steps else module(x)
    reset(module)
    return out.numpy()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("style", [Voting, AllSteps])
def test_votes_are_counted_in_the_file_as_in_the_module(name: str, style: type[nn.Module], tmp_path: Path) -> None:
    module = style(HEADS[name]).eval()
    x, new = 2 * torch.rand(6, 7), 2 * torch.rand(40, 7)
    save(module, tmp_path / "m.pt", example_input=x, timesteps=T)
    for to in ("onnx", "nir"):
        export(tmp_path / "m.pt", tmp_path / f"m.{to}", to=to)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": new.numpy()})
    expected = logits(module, new, steps=style is Voting)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


class Map(nn.Module):
    """One timestep: a map of spikes, reduced by `head`, and a layer on what is left."""

    def __init__(self, head: Head, features: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.sn = nn.Conv2d(2, 4, 3, padding=1), DALIF()
        self.head, self.fc = head, nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.head(self.sn(self.conv(x))).flatten(1))


REDUCTIONS: dict[str, tuple[Head, int]] = {
    "one axis after the other": (lambda s: s.mean(-1).mean(-1), 4),
    "the other order": (lambda s: s.mean(2).mean(-1), 4),
    "over the height": (lambda s: s.mean(2), 24),
    "over the width, kept": (lambda s: s.sum(-1, keepdim=True), 20),
    "maximum over the width": (lambda s: s.amax(3), 20),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_one_axis_of_a_map_is_reduced(name: str, tmp_path: Path) -> None:
    module = Map(*REDUCTIONS[name]).eval()
    x, new = 3 * torch.rand(6, 2, 5, 6), 3 * torch.rand(20, 2, 5, 6)
    save(module, tmp_path / "m.pt", example_input=x, timesteps=T)
    export(tmp_path / "m.pt", tmp_path / "m.onnx", to="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": new.numpy()})
    expected = logits(module, new, steps=True)
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def nodes(module: nn.Module, x: Tensor) -> SpikingGraph:
    return capture(module.eval(), example_input=x, timesteps=T)


def test_a_vote_is_one_linear_layer_and_a_map_keeps_its_pool() -> None:
    voting = nodes(Voting(HEADS["AvgPool1d over [B, 1, n]"]), torch.rand(4, 7))
    (votes,) = [node for node in voting.nodes if isinstance(node, Linear) and node.name != "fc"]
    np.testing.assert_array_equal(votes.weight, np.kron(np.eye(CLASSES), np.full((1, VOTES), 1 / VOTES)))
    pooled = nodes(Map(*REDUCTIONS["over the height"]), torch.rand(4, 2, 5, 6))
    assert [node.kernel for node in pooled.nodes if isinstance(node, AvgPool2d)] == [(5, 1)]
