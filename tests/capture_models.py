"""Modules as people write them, for capture's tests: every style that capture says it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalif_deploy.neuron import DALIF, reset

T = 4


def conv(i: int, o: int, k: int = 3, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=kwargs.pop("padding", k // 2), bias=kwargs.pop("bias", False), **kwargs)


class Plain(nn.Module):
    """conv-BN-neuron-pool-linear-BN-neuron-linear, one step, modules only."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.conv = conv(channels, 6)
        self.bn = nn.BatchNorm2d(6)
        self.sn1 = DALIF()
        self.pool = nn.AvgPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(6 * 16, 12)
        self.bn2 = nn.BatchNorm1d(12)
        self.sn2 = DALIF(beta_init=0.4)
        self.drop = nn.Dropout(0.5)
        self.same = nn.Identity()
        self.head = nn.Linear(12, 3)

    def hidden(self, x: Tensor) -> Tensor:
        x = self.pool(self.sn1(self.bn(self.conv(x))))
        return self.same(self.drop(self.sn2(self.bn2(self.fc(self.flatten(x))))))

    def step(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


class Functional(Plain):
    """The same with functional operations."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, padding=1)
        x = F.batch_norm(x, self.bn.running_mean, self.bn.running_var, self.bn.weight, self.bn.bias, self.training, 0.1)
        x = 0.3 * F.max_pool2d(self.sn1(x), 3, stride=1)[..., :, :]
        x = F.avg_pool2d(x, 3, 2, padding=1, ceil_mode=True, count_include_pad=False)
        x = torch.flatten(x, 1)
        x = F.linear(x, self.fc.weight, self.fc.bias)
        x = F.dropout(self.sn2(1.0 - self.bn2(x)), 0.3, self.training)
        return self.head(x.contiguous().view(x.size(0), -1))


class Block(nn.Module):
    """A post-activation residual block: the neuron sits after the sum."""

    def __init__(self, i: int, o: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(i, o, stride=stride)
        self.bn1 = nn.BatchNorm2d(o)
        self.sn1 = DALIF(channels=o)
        self.conv2 = conv(o, o)
        self.bn2 = nn.BatchNorm2d(o)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or i != o:
            pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
            self.shortcut = nn.Sequential(pool, conv(i, o, 1), nn.BatchNorm2d(o))
        self.sn2 = DALIF()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.sn2(out)


class ResNet(nn.Module):
    """Stem, a real-valued identity shortcut from a pool, a downsampling block, in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Sequential(conv(2, 4), nn.BatchNorm2d(4)), DALIF())
        self.pool = nn.AvgPool2d(2)
        self.layers = nn.ModuleList([Block(4, 4), Block(4, 6, stride=2)])
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        for layer in self.layers:
            x = layer(x)
        return self.fc(torch.flatten(self.gap(x), 1))


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2, dilation=2, padding=2), nn.BatchNorm2d(6), DALIF(activation="sigmoid")
        ),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 12),
        nn.BatchNorm1d(12, affine=False),
        DALIF(channels=12, v_threshold=0.3, v_reset=-0.1),
        nn.Dropout(0.2),
        nn.Linear(12, 3),
    )  # fmt: skip


class Odd(nn.Module):
    """Scaled branches, per-channel affine chains, spikes added to spikes, global pools by reductions, groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2, 6)
        self.mean = nn.Parameter(torch.linspace(-0.2, 0.2, 6))
        self.gamma = nn.Parameter(torch.linspace(0.5, 2.5, 6))
        self.register_buffer("var", torch.linspace(0.1, 0.3, 6))
        self.sn1 = DALIF()
        self.conv2 = conv(6, 6, groups=3)
        self.bn = nn.BatchNorm2d(6)
        self.sn2 = DALIF()
        self.fc = nn.Linear(6, 3)
        self.zero = nn.Parameter(torch.zeros(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = (x - self.mean[None, :, None, None]) / torch.sqrt(self.var + 1e-3).reshape(1, -1, 1, 1)
        x = x * self.gamma.view(-1, 1, 1) + 0.1
        spikes = self.sn1(x + self.zero)
        mixed = 0.5**0.5 * self.bn(self.conv2(spikes)) - spikes / 3 + x.neg().mul_(0.25)
        spikes = self.sn2(mixed) + spikes
        pooled = spikes.flatten(2).mean(2) + spikes.sum(dim=(2, 3), keepdim=True).squeeze(-1).squeeze(-1) / 64
        return self.fc(0.0 + pooled.reshape(x.shape[0], -1) + torch.zeros_like(pooled))


class Loop(Plain):
    """The loop over time is inside forward; `reduce` is how it ends."""

    def __init__(self, reduce: str) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        reset(self)
        out = [self.step(x) for _ in range(T)]
        return reduced(out, self.reduce)


def reduced(out: list[Tensor], how: str) -> Tensor:
    if how == "mean":
        return torch.stack(out).mean(0)
    if how == "mean1":
        return torch.stack(out, dim=1).mean(dim=1)
    if how == "mean-last-axis":
        return torch.stack(out, dim=-1).mean(-1)
    if how == "sum":
        return torch.stack(out).sum(0)
    if how == "max":
        return torch.stack(out, 1).max(1)[0]
    if how == "amax":
        return torch.stack(out).amax(dim=0)
    if how == "maximum":
        total = out[0]
        for o in out[1:]:
            total = torch.maximum(total, o)
        return total
    if how == "last":
        return out[-1]
    if how == "last of stack":
        return torch.stack(out)[-1]
    if how == "accumulate":
        total = torch.zeros_like(out[0])
        for o in out:
            total += o
        return total / len(out)
    if how == "accumulate sum":
        return sum(out, torch.zeros(()))
    if how == "shares":
        total = 0.0
        for o in out:
            total = total + o / len(out)
        return total
    if how == "cat":
        return torch.cat([o.unsqueeze(0) for o in out], dim=0).sum(dim=0).div(len(out))
    if how in ("buffer", "buffer [:, t]"):
        steps = torch.empty(len(out), *out[0].shape) if how == "buffer" else out[0].new_zeros(len(out[0]), len(out), 3)
        for t, o in enumerate(out):
            if how == "buffer":
                steps[t] = o
            else:
                steps[:, t] = o
        return steps.mean(0 if how == "buffer" else 1)
    assert how == "scaled sum"
    return 0.1 * sum(out)


class HoistedLoop(Plain):
    """The first convolution runs once, outside the loop; the answer is computed after the mean of spikes."""

    def forward(self, x: Tensor) -> Tensor:
        current = self.bn(self.conv(x))
        spikes = []
        for _ in range(T):
            y = F.adaptive_avg_pool2d(self.sn1(current), 4).flatten(1)
            spikes.append(self.sn2(self.bn2(self.fc(y))))
        return self.head(torch.stack(spikes).mean(0)) * 2.0 + 1.0


class TemporalLoop(Plain):
    """A loop over a temporal input [B, T, ...], indexed in several ways."""

    def __init__(self, index: str) -> None:
        super().__init__()
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        reset(self)
        if self.index == "x[:, t]":
            frames = [x[:, t] for t in range(T)]
        elif self.index == "x[t]":
            x = x.permute(1, 0, 2, 3, 4)
            frames = [x[t] for t in range(x.shape[0])]
        elif self.index == "transpose":
            frames = list(x.transpose(0, 1).contiguous())
        elif self.index == "chunk":
            frames = [part.squeeze(1) for part in x.chunk(T, dim=1)]
        elif self.index == "slice":
            frames = [x[:, t : t + 1].squeeze(1) for t in range(T)]
        else:
            frames = list((2 * x).unbind(1))
        return torch.stack([self.step(frame) for frame in frames]).mean(0)


class RepeatLoop(Plain):
    """A static image is copied along a time axis, and the copies are taken one by one."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1).repeat(1, T, 1, 1, 1)
        return sum(self.step(x[:, t]) for t in range(T)) / T


class AllSteps(Plain):
    """Returns the logits of every timestep, [T, B, K]."""

    def forward(self, x: Tensor) -> Tensor:
        reset(self)
        return torch.stack([self.step(x) for _ in range(T)])


class Mlp(nn.Module):
    """Linear layers only; a Linear would also take a time axis, which must not mislead."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 16)
        self.sn1 = DALIF(channels=16)
        self.fc2 = nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.sn1(4.0 * self.fc1(x)))


class Stranger(nn.Module):
    """Somebody's neuron: soft reset, strict threshold, current scaled by 1 / tau, state in a plain attribute."""

    def __init__(self, tau: float, threshold: float, per_channel: int | None = None) -> None:
        super().__init__()
        self.tau, self.threshold = tau, threshold
        self.gain = nn.Parameter(torch.linspace(0.6, 1.4, per_channel) if per_channel else torch.ones(()))
        self.mem: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain if self.gain.ndim == 0 else self.gain.view(-1, *[1] * (x.dim() - 2))
        if self.mem is None:
            self.mem = torch.zeros_like(x)
        self.mem = self.tau * self.mem + gain * x
        spike = (self.mem - self.threshold > 0).float()
        self.mem = self.mem - spike * self.threshold
        return spike


class ResettingStranger(Stranger):
    """The same with a reset method; it inherits forward."""

    def reset(self) -> None:
        self.mem = None


class Busy(ResettingStranger):
    """It keeps books: a buffer written in place, a list that grows, an attribute that appears."""

    def __init__(self) -> None:
        super().__init__(0.5, 0.5)
        self.register_buffer("total", torch.zeros(12))
        self.log: list[int] = []
        self.books: dict[str, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        spike = super().forward(x)
        self.total += spike.sum(0).to(self.total.dtype)
        self.log.append(len(x))
        self.books["seen"] = len(self.log)
        self.last = spike.clone()
        return spike


class Foreign(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.sn1 = Stranger(0.7, 0.9, per_channel=6)
        self.sn2 = ResettingStranger(0.3, 0.4)


def calibrate(module: nn.Module, x: Tensor, *, temporal_step: bool = False) -> nn.Module:
    """BatchNorm statistics from the test's own input, and a positive shift, so that every layer fires."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            child.momentum = None
            if child.affine:
                nn.init.uniform_(child.bias, 0.2, 0.6)
    module.train()
    with torch.no_grad():
        for t in range(T):
            module(x[:, t] if temporal_step else x)
    reset(module)
    for child in module.modules():
        if isinstance(child, Stranger):
            child.mem = None
    return module.eval()


@dataclass(frozen=True)
class Case:
    """How a module is made, what it takes, and how it should be understood."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layout: str
    readout: str = "mean"
    temporal: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    after: int = 0
    """How many nodes stand after the readout."""


IMAGE = (2, 8, 8)
CASES: dict[str, Case] = {
    "plain": Case(Plain, IMAGE, "step"),
    "plain, sum": Case(Plain, IMAGE, "step", "sum", arguments={"readout": "sum"}),
    "functional": Case(Functional, IMAGE, "step"),
    "resnet": Case(ResNet, IMAGE, "step"),
    "sequential": Case(sequential, (2, 9, 9), "step"),
    "odd": Case(Odd, IMAGE, "step"),
    "mlp": Case(Mlp, (10,), "step"),
    "mlp, temporal step": Case(Mlp, (10,), "step", temporal=True),
    "plain, temporal step": Case(Plain, IMAGE, "step", temporal=True),
    "resnet, temporal step, last": Case(ResNet, IMAGE, "step", "last", temporal=True, arguments={"readout": "last"}),
    "foreign": Case(Foreign, IMAGE, "step"),
    "data parallel": Case(lambda: nn.DataParallel(ResNet()), IMAGE, "step"),
    "hoisted loop": Case(HoistedLoop, IMAGE, "loop", after=2),
    "repeat loop": Case(RepeatLoop, IMAGE, "loop"),
    "all steps": Case(AllSteps, IMAGE, "loop", "max", arguments={"readout": "max"}),
    **{
        f"loop, {how}": Case(lambda how=how: Loop(how), IMAGE, "loop", readout, after=after)
        for how, readout, after in (
            ("mean", "mean", 0),
            ("mean1", "mean", 0),
            ("mean-last-axis", "mean", 0),
            ("sum", "sum", 0),
            ("max", "max", 0),
            ("amax", "max", 0),
            ("maximum", "max", 0),
            ("last", "last", 0),
            ("last of stack", "last", 0),
            ("accumulate", "mean", 0),
            ("accumulate sum", "sum", 0),
            ("shares", "mean", 0),
            ("cat", "mean", 0),
            ("buffer", "mean", 0),
            ("buffer [:, t]", "mean", 0),
            ("scaled sum", "sum", 1),
        )
    },
    **{
        f"temporal loop, {index}": Case(lambda index=index: TemporalLoop(index), IMAGE, "loop", temporal=True)
        for index in ("x[:, t]", "x[t]", "transpose", "chunk", "slice", "unbind")
    },
}


def built(name: str, *, batch: int = 3) -> tuple[nn.Module, Tensor]:
    """A calibrated module and the input it was calibrated on, float32 [batch, (T,) *shape]."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(1)
    shape = (batch, *([T] if case.temporal else []), *case.shape)
    x = torch.rand(shape, generator=generator) * 2.0 - 0.5
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = case.make()
        return calibrate(module, x, temporal_step=case.temporal and case.layout == "step"), x
