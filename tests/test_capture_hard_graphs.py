"""Capture of what residual and densely connected networks are written with: joined channels, shortcuts to more
channels, pools of every kind, and neurons with a BatchNorm inside. Each is proved on the module itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import dalif_deploy
from dalif_deploy import DALIF, NeuronParameters, register_neuron
from dalif_deploy.capturing import neurons
from dalif_deploy.capturing.module import CapturedModule, capture_module
from dalif_deploy.checkpoint import Checkpoint, read, to_bytes
from dalif_deploy.deploy.proof import prove_capture, prove_folding
from dalif_deploy.equivalence import Outcome, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Concat, Zeros

BATCH = np.random.default_rng(50).uniform(0, 1, (6, 3, 8, 8)).astype(np.float32)


class Around(nn.Module):
    """conv - BN - neuron, then the middle that a test is about, then neuron - flatten - linear."""

    def __init__(
        self, middle: Callable[[torch.Tensor], torch.Tensor] | nn.Module, *, last: nn.Module | None = None
    ) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.bn, self.sn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), DALIF(beta_init=0.6)
        self.middle = middle
        self.last = last or DALIF(alpha_init=1.2, beta_init=0.4)
        self.read = nn.LazyLinear(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.middle(self.sn(self.bn(self.conv(x)))))
        return self.read(torch.flatten(x, 1))


def trained(model: nn.Module) -> nn.Module:
    """Its BatchNorm statistics measured on the batch, with gammas that make neurons fire."""
    torch.manual_seed(4)
    with torch.no_grad():
        model(torch.tensor(BATCH))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.linspace(0.5, 1.2, module.num_features))
                module.bias.copy_(torch.linspace(0.6, 1.3, module.num_features))
        for _ in range(30):
            dalif_deploy.reset(model)
            model(torch.tensor(BATCH))
    dalif_deploy.reset(model)
    return model.eval()


def proved(model: nn.Module, tmp_path: Path, *, rates: tuple[float, float] = (0.02, 0.75)) -> CapturedModule:
    """Captured, proved, stored and read again, folded with proof."""
    captured = capture_module(trained(model), example_input=torch.tensor(BATCH[:2]), timesteps=4)
    prove_capture(captured, [BATCH], "float32")
    path = tmp_path / "model.pt"
    path.write_bytes(to_bytes(Checkpoint(captured.graph, "step", (), None), tool_version="test"))
    graph = read(path).graph
    reference = simulate(graph, BATCH)
    for name, train in simulate(captured.graph, BATCH).spikes.items():
        assert not train.differing(reference.spikes[name]).any()
        assert rates[0] <= train.count() / train.neuron_steps <= rates[1], name
    _, comparison = prove_folding(graph, [BATCH])
    assert comparison.outcome is Outcome.EXACT
    return captured


class Dense(nn.Module):
    """Channels joined of spikes, of currents, and once more through an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn, self.sn = nn.BatchNorm2d(8), DALIF(channels=8, alpha_init=0.9)
        self.transition, self.bn2 = nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat((x, self.grow(x)), dim=1)
        both = self.sn(self.bn(both))
        return self.bn2(F.avg_pool2d(self.transition(torch.cat([both], 1)), 2))


class OptionA(nn.Module):
    """The shortcut of CIFAR ResNets: every second place, and channels of zeros, by padding or by joining."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.bn = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "slice and pad":
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        elif self.how == "pool and pad":
            shortcut = F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 4))
        else:
            small = F.avg_pool2d(x, 1, 2)
            shortcut = torch.cat((small, torch.zeros_like(small)), 1)
        return self.bn(self.conv(x)) + shortcut


def test_joined_channels(tmp_path: Path) -> None:
    captured = proved(Around(Dense()), tmp_path)
    assert [type(node).__name__ for node in captured.graph.nodes].count("Concat") == 1 + 1


@pytest.mark.parametrize("how", ["slice and pad", "pool and pad", "join"])
def test_identity_shortcuts_to_more_channels(how: str, tmp_path: Path) -> None:
    graph = proved(Around(OptionA(how)), tmp_path).graph
    assert any(isinstance(node, Concat) for node in graph.nodes)
    assert any(isinstance(node, Zeros) for node in graph.nodes)


POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "max": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max, ceil": lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "average, padded": lambda x: 3 * F.avg_pool2d(x, 3, 2, 1),
    "average, padding not counted": lambda x: 3 * F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average, ceil": lambda x: 3 * F.avg_pool2d(x, 3, 2, ceil_mode=True),
    "average, ceil, padding": lambda x: 3 * F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    "divisor, ceil": lambda x: F.avg_pool2d(x, 3, 2, 0, ceil_mode=True, divisor_override=4),
}


@pytest.mark.parametrize("border", [(1, 1, 1, 1), (0, 2, 1, 0), (3, 1, 0, 0)])
def test_zeros_around_a_map_that_no_convolution_takes_in(border: tuple[int, ...], tmp_path: Path) -> None:
    proved(Around(lambda x: 1.3 * F.pad(x, border)), tmp_path)


@pytest.mark.parametrize("name", POOLS)
def test_pools(name: str, tmp_path: Path) -> None:
    proved(Around(POOLS[name]), tmp_path)


class Normalising(nn.Module):
    """A stranger's neuron with a BatchNorm inside; `where` it is."""

    def __init__(self, where: str, gammas: tuple[float, ...]) -> None:
        super().__init__()
        self.where = where
        self.alpha, self.beta = nn.Parameter(torch.tensor(0.8)), nn.Parameter(torch.tensor(0.5))
        self.bn, self.gammas = nn.BatchNorm2d(4), gammas
        self.mem: torch.Tensor | float = 0.0

    def reset(self) -> None:
        self.mem = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.where == "input":
            x = self.bn(x)
        mem = self.beta * self.mem + self.alpha * x
        if self.where == "potential":
            mem = self.bn(mem)
        spikes = ((self.bn(mem) if self.where == "comparison" else mem) >= 1.0).to(x.dtype)
        self.mem = mem * (1 - spikes)
        return spikes


@pytest.fixture(autouse=True)
def _own_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "_READERS", dict(neurons._READERS))
    register_neuron(
        Normalising,
        lambda m: NeuronParameters(alpha=m.alpha, beta=m.beta, norm=m.bn, norm_of=m.where, membrane="mem"),
    )


@pytest.mark.parametrize("gammas", [(0.5, 0.7, 0.9, 1.1), (0.8, -0.6, 0.0, -1.0)])
@pytest.mark.parametrize("where", ["input", "potential", "comparison"])
def test_a_batchnorm_inside_the_neuron(where: str, gammas: tuple[float, ...], tmp_path: Path) -> None:
    model = Around(nn.Conv2d(4, 4, 3, padding=1), last=Normalising(where, gammas))
    trained(model)
    with torch.no_grad():
        model.last.bn.weight.copy_(torch.tensor(gammas))  # type: ignore[union-attr,operator]
        model.last.bn.bias.copy_(torch.tensor([0.4, 0.7, 1.1, 0.3]))  # type: ignore[union-attr,operator]
    captured = capture_module(model, example_input=torch.tensor(BATCH[:2]), timesteps=4)
    prove_capture(captured, [BATCH], "float32")
    fired = simulate(captured.graph, BATCH).spikes["last"].unpack().mean(axis=(0, 1, 3, 4))
    assert ((fired > 0.01) & (fired < 0.99))[np.array(gammas) != 0].all(), fired
    _, comparison = prove_folding(captured.graph, [BATCH])
    assert comparison.outcome is Outcome.EXACT


@pytest.mark.parametrize("where", ["input", "potential", "comparison"])
def test_a_reader_that_says_the_wrong_place_is_found(where: str) -> None:
    other = {"input": "comparison", "potential": "input", "comparison": "potential"}[where]
    register_neuron(
        Normalising,
        lambda m: NeuronParameters(alpha=m.alpha, beta=m.beta, norm=m.bn, norm_of=other, membrane="mem"),  # type: ignore[arg-type]
    )
    model = trained(Around(nn.Conv2d(4, 4, 3, padding=1), last=Normalising(where, ())))
    captured = capture_module(model, example_input=torch.tensor(BATCH[:2]), timesteps=4)
    with pytest.raises(DalifError, match="layer 'last', step 0") as refused:
        prove_capture(captured, [BATCH], "float32")
    assert refused.value.code is Code.CAPTURE_MISMATCH


REFUSED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "rows joined": (lambda x: torch.cat((x, x), 2), "neither the channels"),
    "a constant joined": (lambda x: torch.cat((x, torch.ones_like(x)), 1), "a constant that is not 0"),
    "a border padded with ones": (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), "pads with other values than zero"),
    "channels padded with ones": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0), "something else than zeros"),
    "rows from the second": (lambda x: x[:, :, 1::2], "takes a slice of a feature map"),
    "half of the channels": (lambda x: x[:, :2], "takes a slice of a feature map"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_form_is_refused_by_name(name: str) -> None:
    middle, why = REFUSED[name]
    model = trained(Around(middle))
    with pytest.raises(DalifError, match=why) as refused:
        capture_module(model, example_input=torch.tensor(BATCH[:2]), timesteps=4)
    assert refused.value.code is Code.UNSUPPORTED_LAYER


@pytest.mark.parametrize(
    ("norm", "why", "code"),
    [
        (nn.Linear(2, 2), "norm=Linear; give the neuron's torch.nn.BatchNorm", Code.BAD_OPTION),
        (nn.BatchNorm2d(4, track_running_stats=False), "no running statistics", Code.CAPTURE_REFUSED),
    ],
)
def test_a_norm_that_is_none_is_refused(norm: nn.Module, why: str, code: Code) -> None:
    with pytest.raises(DalifError, match=why) as refused:
        NeuronParameters(alpha=1.0, beta=0.5, norm=norm)
    assert refused.value.code is code
    with pytest.raises(DalifError, match="norm_of='output'"):
        NeuronParameters(alpha=1.0, beta=0.5, norm_of="output")  # type: ignore[arg-type]
