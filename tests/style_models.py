"""Spiking networks as different people write them, none of which knows of dalif_deploy, and what is said of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dalif_deploy.capturing import NeuronParameters, register_neuron
from dalif_deploy.neuron import DALIF

T = 4


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad[0] * (x.abs() < 0.5).to(x.dtype)


# -- neurons ---------------------------------------------------------------------------------------------------


class Lif(nn.Module):
    """One step, the potential inside; resets by hand."""

    def __init__(self, tau: float = 0.5, thresh: float = 0.7) -> None:
        super().__init__()
        self.tau, self.thresh = tau, thresh
        self.mem: Tensor | None = None

    def reset(self) -> None:
        self.mem = None

    def forward(self, x: Tensor) -> Tensor:
        self.mem = x if self.mem is None else self.tau * self.mem + x
        spike = Spike.apply(self.mem - self.thresh)
        self.mem = self.mem * (1.0 - spike)
        return spike


class LifBT(nn.Module):
    """All steps of [B, T, ...] in one call, the potential a local variable."""

    def __init__(self, tau: float = 0.5, thresh: float = 0.7) -> None:
        super().__init__()
        self.tau, self.thresh = tau, thresh

    def forward(self, x: Tensor) -> Tensor:
        mem, out = 0, []
        for t in range(x.shape[1]):
            mem = mem * self.tau + x[:, t, ...]
            spike = Spike.apply(mem - self.thresh)
            mem = (1 - spike) * mem
            out.append(spike)
        return torch.stack(out, dim=1)


class LifTB(nn.Module):
    """All steps of [T, B, ...] in one call; the last potential stays."""

    def __init__(self, tau: float = 0.5, thresh: float = 0.7) -> None:
        super().__init__()
        self.tau, self.thresh = tau, thresh
        self.v: Tensor | float = 0.0

    def reset(self) -> None:
        self.v = 0.0

    def forward(self, x_seq: Tensor) -> Tensor:
        out = []
        for x in x_seq:
            self.v = self.v * self.tau + x
            spike = Spike.apply(self.v - self.thresh)
            self.v = torch.where(spike.bool(), 0.1, self.v)
            out.append(spike)
        return torch.stack(out)


class FoldedIf(nn.Module):
    """Takes [T * B, ...] and unfolds it itself; soft reset."""

    def __init__(self, thresh: float = 0.8) -> None:
        super().__init__()
        self.thresh = nn.Parameter(torch.tensor(thresh))

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(T, x.shape[0] // T, *x.shape[1:])
        mem, out = 0.5 * self.thresh * torch.zeros_like(x[0]), []
        for t in range(T):
            mem = mem + x[t]
            spike = Spike.apply(mem - self.thresh)
            mem = mem - spike * self.thresh
            out.append(spike)
        return torch.stack(out).flatten(0, 1)


class FoldedBatchFirst(FoldedIf):
    """The same for [B * T, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        steps = x.unflatten(0, (-1, T)).transpose(0, 1).flatten(0, 1)
        return super().forward(steps).unflatten(0, (T, -1)).transpose(0, 1).flatten(0, 1)


class Leaky(nn.Module):
    """spk, mem = lif(x, mem)."""

    def __init__(self, beta: float = 0.6, threshold: float = 0.7) -> None:
        super().__init__()
        self.beta, self.threshold = beta, threshold

    def init_leaky(self) -> Tensor:
        return torch.zeros(0)

    def forward(self, x: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if mem is None or mem.numel() == 0:
            mem = torch.zeros_like(x)
        mem = self.beta * mem + x
        spk = (mem > self.threshold).to(x.dtype)
        return spk, torch.where(spk > 0, torch.zeros_like(mem), mem)


class State(NamedTuple):
    v: Tensor
    i: Tensor


class Cell(nn.Module):
    """z, state = cell(x, state), the state a named tuple that starts as None."""

    def __init__(self, dt_tau: float = 0.3, v_th: float = 0.4) -> None:
        super().__init__()
        self.dt_tau, self.v_th = dt_tau, v_th

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        v = torch.zeros_like(x) if state is None else state.v
        v = torch.lerp(v, x, self.dt_tau)
        z = (v > self.v_th).to(x.dtype)
        return z, State(v=v.masked_fill(z.bool(), 0.1), i=x)


class MemUpdate(nn.Module):
    """mem, spike = update(x, mem, spike): the reset comes with the next step."""

    def forward(self, x: Tensor, mem: Tensor, spike: Tensor) -> tuple[Tensor, Tensor]:
        mem = mem * 0.4 * (1.0 - spike) + x
        return mem, mem.gt(0.6).to(x.dtype)


def register_all() -> None:
    """What an adapter file would do."""

    def hard(m: Any) -> NeuronParameters:
        return NeuronParameters(alpha=1.0, beta=m.tau, v_threshold=m.thresh)

    register_neuron(Lif, lambda m: NeuronParameters(alpha=1, beta=m.tau, v_threshold=m.thresh, membrane="mem"))
    register_neuron(LifBT, hard)
    register_neuron(
        LifTB, lambda m: NeuronParameters(alpha=1, beta=m.tau, v_threshold=m.thresh, v_reset=0.1, membrane="v")
    )
    for cls in (FoldedIf, FoldedBatchFirst):
        register_neuron(cls, lambda m: NeuronParameters(alpha=1, beta=1, v_threshold=m.thresh, reset="subtract"))
    register_neuron(
        Leaky,
        lambda m: NeuronParameters(alpha=1, beta=m.beta, v_threshold=m.threshold, fires_at="gt", membrane="mem"),
    )
    register_neuron(
        Cell,
        lambda m: NeuronParameters(
            alpha=m.dt_tau,
            beta=1 - torch.tensor(m.dt_tau),
            v_threshold=m.v_th,
            v_reset=0.1,
            fires_at="gt",
            membrane="v",
        ),
    )
    register_neuron(MemUpdate, lambda m: NeuronParameters(alpha=1, beta=0.4, v_threshold=0.6, fires_at="gt"))


# -- containers ------------------------------------------------------------------------------------------------


class SeqToANN(nn.Module):
    """Folds the first two axes, runs layers without memory, unfolds."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.module = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        shape = [x.shape[0], x.shape[1]]
        y = self.module(x.flatten(0, 1).contiguous())
        return y.view(shape + list(y.shape[1:]))


class MultiStep(nn.Module):
    """Calls a one-step module for every timestep of [T, B, ...]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.module(x[t]).unsqueeze(0) for t in range(x.shape[0])], 0)


def conv(i: int, o: int, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, 3, padding=1, bias=False, **kwargs)


class Base(nn.Module):
    """Two layers and a head, whatever the neuron."""

    neuron: Callable[[], nn.Module] = Lif

    def __init__(self) -> None:
        super().__init__()
        make = type(self).neuron
        self.conv, self.bn1, self.lif1 = conv(2, 6), nn.BatchNorm2d(6), make()
        self.pool, self.flatten = nn.AvgPool2d(2), nn.Flatten()
        self.fc1, self.bn2, self.lif2 = nn.Linear(96, 12), nn.BatchNorm1d(12), make()
        self.fc2 = nn.Linear(12, 3)

    def first(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv(x))

    def second(self, x: Tensor) -> Tensor:
        return self.bn2(self.fc1(self.flatten(self.pool(x))))


# -- time folded into the batch --------------------------------------------------------------------------------


class Tet(nn.Module):
    """[B, T, ...] all the way, in containers; returns the logits of every step, [B, T, K]."""

    def __init__(self, mean: bool = True) -> None:
        super().__init__()
        self.mean = mean
        self.features = nn.Sequential(
            SeqToANN(conv(2, 6), nn.BatchNorm2d(6)), LifBT(), SeqToANN(nn.AvgPool2d(2)),
            SeqToANN(conv(6, 8), nn.BatchNorm2d(8)), LifBT(),
        )  # fmt: skip
        self.classifier = SeqToANN(nn.Linear(8 * 16, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1).repeat(1, T, 1, 1, 1) if x.dim() == 4 else x
        x = torch.flatten(self.features(x), 2)
        x = self.classifier(x)
        return x.mean(1) if self.mean else x


class TetOneSpike(nn.Module):
    """One spike module without a memory of its own, called at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.spike = LifBT()
        self.conv1 = SeqToANN(conv(2, 6), nn.BatchNorm2d(6))
        self.conv2 = SeqToANN(conv(6, 6), nn.BatchNorm2d(6))
        self.head = SeqToANN(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.spike(self.conv1(x))
        out = self.spike(self.conv2(out) + out)
        return self.head(out).sum(dim=1) / T


class TimeFirst(Base):
    """Takes [T, B, ...] and keeps it so."""

    neuron = LifTB

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        x = self.lif1(self.first(x.flatten(0, 1)).reshape(steps, batch, 6, 8, 8))
        x = self.lif2(self.second(x.reshape(steps * batch, 6, 8, 8)).view(steps, batch, -1))
        return self.fc2(x).mean(0)


class Expanded(TimeFirst):
    """A static image, expanded in front."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unsqueeze(0).expand(T, -1, -1, -1, -1))


class Hoisted(Base):
    """The first convolution once, outside time; its output is what is repeated."""

    neuron = LifTB

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).unsqueeze(0).repeat(T, 1, 1, 1, 1)
        x = self.lif1(x).flatten(0, 1)
        x = self.second(x).view(T, -1, 12)
        return self.fc2(self.lif2(x)).mean(dim=0)


class Permuted(Base):
    """[B, T, ...] outside, [T, B, ...] inside, and a Linear that meets axes in the other order."""

    neuron = LifTB

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        x = self.first(x.transpose(0, 1).reshape(-1, *x.shape[2:]))
        x = self.lif1(x.view(T, batch, *x.shape[1:]))
        x = self.second(torch.flatten(x, 0, 1)).unflatten(0, (T, batch))
        return self.fc2(self.lif2(x).permute(1, 0, 2)).mean(1)


class Interleaved(Base):
    """Every sample T times in a row, [B * T, ...]."""

    neuron = LifBT

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.repeat_interleave(T, dim=0))
        x = self.lif1(x.view(-1, T, *x.shape[1:])).flatten(0, 1)
        x = self.lif2(self.second(x).view(-1, T, 12))
        return self.fc2(x).max(dim=1)[0]


class Qcfs(Base):
    """[T * B, ...] throughout; the neuron unfolds it by itself."""

    neuron = FoldedIf

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.first(x.repeat(T, 1, 1, 1)))
        x = self.fc2(self.lif2(self.second(x)))
        return sum(x.chunk(T, dim=0)) / T


class FoldedThroughout(Base):
    """[B * T, ...] throughout, and the results of all timesteps returned like that."""

    neuron = FoldedBatchFirst

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.lif2(self.second(self.lif1(self.first(x.flatten(0, 1))))))


class Wrapped(Base):
    """Layers on [T * B, ...]; one-step neurons in a wrapper that loops."""

    def __init__(self) -> None:
        super().__init__()
        self.lif1, self.lif2 = MultiStep(Lif()), MultiStep(Lif(0.3))
        self.res, self.bn3, self.lif3 = conv(6, 6), nn.BatchNorm2d(6), MultiStep(Lif())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x] * T)
        x = self.lif1(self.first(x.flatten(0, 1)).view(T, -1, 6, 8, 8))
        y = self.bn3(self.res(x.flatten(0, 1))).view(x.shape) * 0.7
        x = self.lif3(y + x - 0.1)
        x = self.lif2(self.second(x.flatten(0, 1)).view(T, -1, 12))
        return self.fc2(x)[-1]


class TimeLast(nn.Module):
    """[B, C, H, W, T]: convolutions step by step, the normalisation over all of it, with a threshold factor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.lif = conv(2, 6), nn.BatchNorm3d(6), Lif()
        self.fc = nn.Linear(6 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(x.shape[0], 6, 8, 8, T, dtype=x.dtype)
        frames = [self.conv(x[:, t]) for t in range(T)]
        y = 0.7 * self.bn(torch.stack(frames, dim=-1))
        out = [self.lif(y[..., t]).flatten(1) for t in range(T)]
        return self.fc(torch.stack(out, -1).mean(-1))


class MeanOfMaps(Base):
    """Space is averaged while time has an axis of its own."""

    neuron = LifTB

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.cat([x for _ in range(T)], 0)).view(T, -1, 6, 8, 8)
        return self.head(self.lif1(x).mean([3, 4])).mean(0)


# -- explicit state --------------------------------------------------------------------------------------------


class Tutorial(Base):
    """spk_rec and mem_rec, as tutorials collect them."""

    neuron = Leaky

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        spk_rec, mem_rec = [], []
        for _ in range(T):
            spk1, mem1 = self.lif1(self.first(x), mem1)
            spk2, mem2 = self.lif2(self.second(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc2(spk2) * 3, mem3)
            spk_rec.append(spk3)
            mem_rec.append(mem3)
        return torch.stack(spk_rec, dim=0), torch.stack(mem_rec, dim=0)

    def __init__(self) -> None:
        super().__init__()
        self.lif3 = Leaky()


class States(Base):
    """The states in `how`: zeros, None, a list, a dict, a tuple, detached."""

    neuron = Leaky

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        current = self.first(x)
        states: Any = [torch.zeros_like(current), torch.zeros(len(x), 12)]
        if self.how == "none":
            states = [None, None]
        if self.how == "dict":
            states = dict(enumerate(states))
        total = 0.0
        for _ in range(T):
            spk, one = self.lif1(current, states[0])
            spk, two = self.lif2(self.second(spk), states[1])
            if self.how == "tuple":
                states = (one, two)
            else:
                states[0], states[1] = (one.detach(), two.detach()) if self.how == "detached" else (one, two)
            total = total + self.fc2(spk)
        return total / T


class OneLif(Base):
    """One neuron module for two layers, told apart by their states."""

    neuron = Leaky

    def forward(self, x: Tensor) -> Tensor:
        mem1 = mem2 = None
        out = []
        for _ in range(T):
            spk, mem1 = self.lif1(self.first(x), mem1)
            spk, mem2 = self.lif1(self.second(spk), mem2)
            out.append(self.fc2(spk))
        return torch.stack(out, 1).max(1).values


class CarriedState(Base):
    """One step; the state goes out and comes back."""

    neuron = Cell

    def forward(self, x: Tensor, state: list[State | None] | None = None) -> tuple[Tensor, list[State | None]]:
        state = [None, None] if state is None else list(state)
        z, state[0] = self.lif1(2 * self.first(x), state[0])
        z, state[1] = self.lif2(2 * self.second(z), state[1])
        return self.fc2(z), state


class CarriedMems(Base):
    """One step; the potentials go out and come back one by one."""

    neuron = Leaky

    def forward(self, x: Tensor, mem1: Tensor | None, mem2: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        spk, mem1 = self.lif1(self.first(x), mem1)
        spk, mem2 = self.lif2(self.second(spk), mem2)
        return self.fc2(spk), mem1, mem2


class MemSpike(Base):
    """Potential first, and the spike is part of the state."""

    neuron = MemUpdate

    def forward(self, x: Tensor) -> Tensor:
        a = b = torch.zeros(x.size(0), 6, 8, 8)
        c = d = torch.zeros(x.size(0), 12)
        h = torch.zeros(x.size(0), 3)
        for t in range(T):
            a, b = self.lif1(self.first(x[:, t]), a, b)
            c, d = self.lif2(self.second(b), c, d)
            h += self.fc2(d)
        return h / T


# -- loops, results, reuse -------------------------------------------------------------------------------------


class Loop(Base):
    """A loop over a static image; `how` it ends."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = self.lif2(self.second(self.lif1(self.first(x))))
        return self.fc2(spikes), spikes

    def forward(self, x: Tensor) -> Any:
        for m in self.modules():
            if isinstance(m, Lif):
                m.reset()
        pairs = [self.step(x) for _ in range(T)]
        out, spikes = [p[0] for p in pairs], [p[1] for p in pairs]
        if self.how == "running mean":
            mean = out[0]
            for t, o in enumerate(out[1:], start=2):
                mean = mean + (o - mean) / t
            return mean
        if self.how == "list":
            return out
        if self.how == "two lists":
            return out, spikes
        if self.how == "dict":
            return {"spikes": torch.stack(spikes), "logits": torch.stack(out).mean(0)}
        if self.how == "tuple":
            return torch.stack(out).mean(0), torch.stack(spikes, 1)
        return torch.stack(out, dim=0).max(0)[0]


class LoopTimeFirst(Base):
    """A loop over [T, B, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[1], 3, dtype=x.dtype)
        for frame in x:
            out = out + self.fc2(self.lif2(self.second(self.lif1(self.first(frame)))))
        return out / x.shape[0]


class Reused(nn.Module):
    """Nested lists, a convolution used twice in a step, a wrapped part, and a pair of results."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same = conv(2, 6), conv(6, 6)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"bn": nn.BatchNorm2d(6), "act": nn.Sequential(Lif(0.2))}) for _ in range(3)
        )
        self.tail = nn.DataParallel(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 3)))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, spikes = self.conv(x), []
        for i, block in enumerate(self.blocks):
            x = block["act"](block["bn"](self.same(x) if i else x))
            spikes.append(x)
        return self.tail(x), spikes


class DalifTB(Base):
    """DALIF in somebody's loop over folded time."""

    neuron = DALIF

    def forward(self, x: Tensor) -> Tensor:
        x = MultiStep(self.lif1)(self.first(x.repeat(T, 1, 1, 1)).view(T, -1, 6, 8, 8))
        x = MultiStep(self.lif2)(self.second(x.flatten(0, 1)).view(T, -1, 12))
        return self.fc2(x).mean(0)


class Same(Base):
    """Even kernels with padding='same', and zeros in front of a strided convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, (4, 3), padding="same", bias=False)
        self.pad, self.conv2 = nn.ZeroPad2d((1, 0, 0, 1)), nn.Conv2d(6, 6, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.pad(self.lif1(self.first(x))))
        return self.fc2(self.lif2(self.bn2(self.fc1(nn.functional.pad(x, (0, 0, 0, 0)).flatten(1)))))


@dataclass(frozen=True)
class Style:
    """How a model is made and what capture should say of it."""

    make: Callable[[], nn.Module]
    layout: str
    readout: str = "mean"
    temporal: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


FIRST = "the answer is element 0 of what forward returns"
TIME_FIRST = "forward takes the input with time first, [4, batch, ...]"
CARRIED = "the state that forward returns is given to it again at the next timestep"
STYLES: dict[str, Style] = {
    "BT, containers, static": Style(Tet, "BT"),
    "BT, containers, temporal": Style(Tet, "BT", temporal=True),
    "BT, every step returned": Style(lambda: Tet(False), "BT", "mean", arguments={"readout": "mean"}),
    "BT, one spike module twice": Style(TetOneSpike, "BT", temporal=True),
    "TB, time first": Style(TimeFirst, "TB", temporal=True, notes=(TIME_FIRST,)),
    "TB, expanded": Style(Expanded, "TB"),
    "TB, first convolution outside": Style(Hoisted, "TB"),
    "TB inside, BT outside": Style(Permuted, "TB", temporal=True),
    "BT, interleaved": Style(Interleaved, "BT", "max"),
    "TB, folded throughout": Style(Qcfs, "TB"),
    "BT, folded throughout": Style(
        FoldedThroughout, "BT", "last", temporal=True, arguments={"readout": "last"}
    ),
    "TB, one-step neurons wrapped": Style(Wrapped, "TB", "last"),
    "TB, DALIF wrapped": Style(DalifTB, "TB"),
    "TB, space averaged first": Style(MeanOfMaps, "TB"),
    "time last": Style(TimeLast, "BT", temporal=True),
    "state, tutorial": Style(
        Tutorial, "loop", "sum", arguments={"readout": "sum"}, notes=(FIRST,)
    ),
    **{f"state, {how}": Style(lambda how=how: States(how), "loop") for how in
       ("zeros", "none", "dict", "tuple", "detached")},
    "state, one module twice": Style(OneLif, "loop", "max"),
    "state, carried": Style(CarriedState, "step", notes=(CARRIED, FIRST)),
    "state, carried one by one": Style(CarriedMems, "step", temporal=True, notes=(CARRIED,)),
    "state, spike and potential": Style(MemSpike, "loop", temporal=True),
    "loop, running mean": Style(lambda: Loop("running mean"), "loop"),
    "loop, list": Style(lambda: Loop("list"), "loop", "sum", arguments={"readout": "sum"}),
    "loop, two lists": Style(
        lambda: Loop("two lists"), "loop", "mean", arguments={"readout": "mean"},
        notes=(FIRST,),
    ),
    "loop, dict": Style(
        lambda: Loop("dict"), "loop", notes=("the answer is element 'logits' of what forward returns",)
    ),
    "loop, tuple": Style(lambda: Loop("tuple"), "loop"),
    "loop, max": Style(lambda: Loop("max"), "loop", "max"),
    "loop, time first": Style(LoopTimeFirst, "loop", temporal=True, notes=(TIME_FIRST,)),
    "reuse": Style(Reused, "step"),
    "even kernels": Style(Same, "step"),
}  # fmt: skip


def built(name: str, *, batch: int = 3) -> tuple[nn.Module, Tensor]:
    """A calibrated module, and data for it with the batch in front, [batch, (T,) 2, 8, 8]."""
    style = STYLES[name]
    generator = torch.Generator().manual_seed(2)
    x = torch.rand((batch, *([T] if style.temporal else []), 2, 8, 8), generator=generator) * 2 - 0.5
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return calibrated(style, style.make(), x), x


def calibrated(style: Style, module: nn.Module, x: Tensor) -> nn.Module:
    """BatchNorm statistics from the data and a positive shift, so that every layer fires."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.momentum = None
            nn.init.uniform_(child.bias, 0.1, 0.5)
    module.train()
    with torch.no_grad():
        frames = [x]
        if style.layout == "step":
            frames = [x[:, t] if style.temporal else x for t in range(T)]
        state: list[Any] = [None, None] if isinstance(module, CarriedMems) else []
        for frame in frames:
            module(frame.transpose(0, 1) if TIME_FIRST in style.notes else frame, *state)
    for child in module.modules():
        if isinstance(child, Lif | LifTB):
            child.reset()
        elif isinstance(child, DALIF):
            child.reset_state()
    return module.eval()
