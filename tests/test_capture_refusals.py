"""What capture cannot take it refuses by name: where, what, why and the mend, on one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from dalif_deploy.capturing import NeuronParameters, capture_module, neurons, register_neuron
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.neuron import DALIF
from tests.capture_models import AllSteps, Busy, Loop, Plain, ResettingStranger, Stranger, T, built, conv


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "_READERS", {})


def image() -> Tensor:
    return torch.rand((3, 2, 8, 8), generator=torch.Generator().manual_seed(3))


def plain(hidden: Callable[[Plain, Tensor], Tensor]) -> type[Plain]:
    """A one-step module whose hidden value is changed by `hidden` before the last layer."""

    class Changed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(hidden(self, self.hidden(x)))

    return Changed


def looped(forward: Callable[[Plain, Tensor], Any]) -> type[Plain]:
    """A module with a forward of its own."""

    class Looping(Plain):
        def forward(self, x: Tensor) -> Any:
            return forward(self, x)

    return Looping


class WithRelu(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.hidden(x)))


class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sn = nn.Conv1d(2, 3, 3), DALIF()

    def forward(self, x: Tensor) -> Tensor:
        return self.sn(self.conv(x.flatten(2))).mean(2)


class Transposed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.up(x))


class Shared(Plain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.sn1(self.bn(self.conv(x)))
        return self.head(self.sn2(self.bn2(self.fc(self.flatten(self.pool(self.sn1(x)))))))


class Recurrent(Plain):
    def forward(self, x: Tensor) -> Tensor:
        out, before = [], torch.zeros(len(x), 12)
        for _ in range(T):
            current = self.fc(self.flatten(self.pool(self.sn1(self.bn(self.conv(x)))))) + before
            before = self.sn2(current)
            out.append(self.head(before))
        return torch.stack(out).mean(0)


class Changing(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(12, 3) for _ in range(T))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.heads[t](self.hidden(x)) for t in range(T)]).mean(0)


class ChangingInside(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(2, 6), conv(2, 6)])

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for t in range(T):
            y = self.pool(self.sn1(self.convs[t % 2](x)))
            out.append(self.head(self.sn2(self.fc(self.flatten(y)))))
        return torch.stack(out).mean(0)


class ResetsInside(Plain):
    def forward(self, x: Tensor) -> Tensor:
        out = []
        for t in range(T):
            if t == 2:
                self.sn2.reset_state()
            out.append(self.step(x))
        return torch.stack(out).mean(0)


class Memories(nn.Module):
    """A neuron that keeps its state in a dictionary, a float before the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.memories: dict[str, Any] = {}
        self.reset()

    def reset(self) -> None:
        self.memories["v"] = 0.0

    def reset_state(self) -> None:
        self.reset()

    def forward(self, x: Tensor) -> Tensor:
        v = 0.5 * self.memories["v"] + x
        spike = (v >= 1).to(x)
        self.memories["v"] = v * (1 - spike)
        return spike


class ExplicitState(nn.Module):
    def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = 0.5 * mem + x
        spike = (mem > 1).float()
        return spike, mem - spike


class WithExplicitState(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.sn2 = ExplicitState()

    def forward(self, x: Tensor) -> Tensor:
        mem, out = torch.zeros(len(x), 12), []
        for _ in range(T):
            y = self.flatten(self.pool(self.sn1(self.bn(self.conv(x)))))
            spike, mem = self.sn2(self.fc(y), mem)
            out.append(self.head(spike))
        return torch.stack(out).mean(0)


class Own(DALIF):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


class WithOwn(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.sn2 = Own()


class WithStranger(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.sn2 = Stranger(0.5, 1.0)


class Folded(Plain):
    """Time folded into the batch, as layout BT does."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x.flatten(0, 1)))
        return self.head(self.sn2(self.fc(self.flatten(self.pool(self.sn1(y)))))).view(len(x), T, -1).mean(1)


class MultiStep(Plain):
    """A neuron layer that takes all timesteps at once."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.conv(x[:, t]) for t in range(T)])
        return self.head(self.fc(self.flatten(self.pool(self.sn1(y)[0]))))


class BatchStatistics(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(6, track_running_stats=False)


def twice(self: Plain, x: Tensor) -> Tensor:
    out = [self.step(x) for _ in range(T)]
    return torch.stack(out).mean(0) + torch.stack(out).amax(0)


def leaking(x: Tensor) -> Tensor:
    return x * float(x.detach().numpy().sum() + 2.0)


def trace(self: Plain, x: Tensor) -> Tensor:
    out = [self.step(x) for _ in range(T)]
    return ((out[0] + out[1]) * 2 + out[2] + out[3]) / T


def hidden_writes(self: Plain, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return self.step(x)


def into_view(x: Tensor) -> Tensor:
    wide = torch.zeros(len(x), 24)
    wide[:, 6:18].add_(x)
    return wide[:, 6:18]


def through_view(self: Plain, x: Tensor) -> Tensor:
    view = x.view(len(x), -1)
    view.mul_(2.0)
    return x


def partial_buffer(self: Plain, x: Tensor) -> Tensor:
    out = torch.zeros(T, len(x), 3)
    for t in range(T):
        value = self.step(x)
        if t:
            out[t] = value
    return out.mean(0)


def last_two(self: Plain, x: Tensor) -> Tensor:
    out = [self.step(x) for _ in range(T)]
    return (out[-1] + out[-2]) / 2


def five_times(self: Plain, x: Tensor) -> Tensor:
    return torch.stack([self.step(x) for _ in range(5)]).mean(0)


R, U, N = Code.CAPTURE_REFUSED, Code.UNSUPPORTED_LAYER, Code.UNKNOWN_NEURON

REFUSED: dict[str, tuple[type[nn.Module], Code, list[str]]] = {
    "relu module": (WithRelu, U, ["'act' (ReLU): aten.relu", "not supported", "capture_refusals.py", "self.act("]),
    "relu": (plain(lambda self, x: F.relu(x)), U, ["(Changed): aten.relu", "F.relu(x)"]),
    "softmax": (looped(lambda self, x: self.step(x).softmax(1)), U, ["softmax is not part", "return the logits"]),
    "product": (plain(lambda self, x: x * x), U, ["product or quotient of two values computed from the input"]),
    "cat": (plain(lambda self, x: torch.cat([x[:, :6], x[:, 6:]], 1)), U, ["aten.slice", "only timesteps"]),
    "rows joined": (
        looped(lambda self, x: torch.cat([self.sn1(x)] * 2, 2).mean([2, 3])), U, ["aten.cat", "joins feature maps"],
    ),
    "layer norm": (plain(lambda self, x: F.layer_norm(x, (12,))), U, ["aten.native_layer_norm"]),
    "division by zero": (plain(lambda self, x: x / 0.0), U, ["divides by zero"]),
    "conv1d": (Conv1d, U, ["'conv' (Conv1d): aten.convolution", "1-dimensional", "only Conv2d"]),
    "transposed": (Transposed, U, ["'up' (ConvTranspose2d)", "transposed"]),
    "unequal windows": (
        looped(lambda self, x: F.adaptive_avg_pool2d(self.sn1(x), 3).mean([2, 3])), U, ["from [8, 8] to [3, 3]"],
    ),
    "pool with dilation": (looped(lambda self, x: F.max_pool2d(self.sn1(x), 2, dilation=2)), U, ["dilation"]),
    "indices used": (
        looped(lambda self, x: F.max_pool2d(self.sn1(x), 2, return_indices=True)[1] * 1.0), U, ["max_pool2d"],
    ),
    "axes permuted": (looped(lambda self, x: self.step(x.permute(0, 1, 3, 2))), U, ["axes of a feature map change"]),
    "a map as the answer": (looped(lambda self, x: self.sn1(x)), R, ["shape [batch, 2, 8, 8]; one row of logits"]),
    "odd reshape": (looped(lambda self, x: self.sn1(x).view(len(x), 4, 32)), U, ["[2, 8, 8] to [4, 32]"]),
    "comparison": (plain(lambda self, x: (x > 0.5).float()), N, ["(Changed): aten.gt", "a module of its own"]),
    "stranger": (
        WithStranger, N,
        [
            "'sn2' (Stranger): aten.gt", "if Stranger is a neuron, register_neuron(Stranger, read) makes it known",
            "--adapter FILE.py",
        ],
    ),
    "overridden forward": (WithOwn, N, ["'sn2' (Own): aten.ge", "register_neuron(Own,"]),
    "no neuron": (looped(lambda self, x: self.fc(self.flatten(self.pool(self.conv(x))))), N, ["calls no neuron"]),
    "shared neuron": (Shared, R, ["'sn1' (DALIF): called 2 times", "shares its state"]),
    "called too often": (looped(five_times), R, ["(DALIF): called 5 times", "timesteps=4"]),
    "recurrent": (Recurrent, R, ["'sn2' of step 0 is used in step 1, in the input of 'sn2': recurrent or delayed"]),
    "changing head": (Changing, R, ["neither the mean", "reduce the timesteps"]),
    "changing layer": (ChangingInside, R, ["the input of 'sn1': step 1", "convs.0.weight against convs.1.weight"]),
    "reset in the loop": (ResetsInside, R, ["'sn2' (DALIF): its state is reset", "calls 2 and 3"]),
    "explicit state": (WithExplicitState, N, ["'sn2' (ExplicitState)", "register"]),
    "random": (plain(lambda self, x: x + torch.rand_like(x)), R, ["random numbers", "aten.rand_like", "eval()"]),
    "forgotten dropout": (plain(lambda self, x: F.dropout(x, 0.5)), R, ["random numbers", "eval()"]),
    "mean over the batch": (plain(lambda self, x: x - x.mean(0)), R, ["reduces over the batch", "mixes samples"]),
    "statistics of the batch": (BatchStatistics, R, ["'bn' (BatchNorm2d)", "statistics of the batch"]),
    "weighted steps": (
        looped(lambda self, x: self.step(x) + 2 * self.step(x) + self.step(x) + self.step(x)), R, ["neither the mean"],
    ),
    "trace": (looped(lambda self, x: trace(self, x)), R, ["neither the mean"]),
    "inference mode": (looped(lambda self, x: hidden_writes(self, x)), R, ["inference_mode"]),
    "numpy after the readout": (
        looped(lambda self, x: sum(self.step(x) for _ in range(T)) * float(x.numpy().sum())), R, ["became a constant"],
    ),
    "training in eval": (
        looped(lambda self, x: F.batch_norm(self.sn1(x), torch.zeros(2), torch.ones(2), training=True)), R,
        ["statistics of the batch"],
    ),
    "samples told apart": (plain(lambda self, x: x + torch.arange(len(x))[:, None]), R, ["differs between samples"]),
    "circular padding": (
        plain(lambda self, x: F.pad(x, (1, 1), mode="circular") @ torch.ones(14, 12)), R,
        ["padding_mode='circular'", "pad with zeros"],
    ),
    "constant view": (plain(lambda self, x: into_view(x)), R, ["through a view into a buffer", "collect"]),
    "item": (plain(lambda self, x: x * x[0, 0].item()), U, ["aten.select"]),
    "nonzero": (plain(lambda self, x: x * len(x.nonzero())), R, ["Python reads a value computed from the input"]),
    "tolist": (looped(lambda self, x: self.step(x + x.tolist()[0][0][0][0])), R, ["became a constant"]),
    "control flow": (
        looped(lambda self, x: self.step(x if x.numpy().sum() > 150 else -x)), R, ["something else on other data"],
    ),
    "numpy": (looped(lambda self, x: self.step(leaking(x))), R, ["a value computed from the input became a constant"]),
    "view": (plain(through_view), R, ["written in place through a view"]),
    "double": (plain(lambda self, x: x.double().mul(2).float()), R, ["from torch.float32 to torch.float64"]),
    "partial buffer": (looped(partial_buffer), R, ["some timesteps were never written"]),
    "two reductions": (looped(twice), R, ["reduces the timesteps in 2 places"]),
    "last two": (looped(last_two), R, ["neither the mean, the sum, the maximum nor the last"]),
    "two answers": (
        looped(lambda self, x: (self.step(x), self.head(x.flatten(1)[:, :12]))), U, ["aten.slice"],
    ),
    "constant": (looped(lambda self, x: (self.step(x), torch.zeros(len(x), 3))[1]), R, ["does not depend on"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_the_place_and_the_reason(name: str) -> None:
    cls, code, texts = REFUSED[name]
    module = cls()
    before = _state(module)
    with pytest.raises(DalifError) as caught:
        capture_module(module, example_input=image(), timesteps=T)
    message = caught.value.message
    assert caught.value.code is code, message
    assert all(text in message for text in texts), message
    assert "\n" not in message
    assert _state(module) == before


def refusal(module: nn.Module, **arguments: Any) -> tuple[Code, str]:
    given = {"example_input": image(), "timesteps": T, **arguments}
    with pytest.raises(DalifError) as caught:
        capture_module(module, **given)
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ({"timesteps": 0}, Code.BAD_OPTION, "timesteps=0"),
        ({"timesteps": True}, Code.BAD_OPTION, "timesteps=True"),
        ({"timesteps": 2.0}, Code.BAD_OPTION, "timesteps=2.0"),
        ({"layout": "TB"}, R, "or once with all timesteps in one tensor (layouts 'TB' and 'BT')"),
        ({"layout": "BT"}, R, "called 1 times in one forward for timesteps=4"),
        ({"layout": "time"}, Code.BAD_OPTION, "layout='time': give 'step', 'loop', 'TB' or 'BT'"),
        ({"readout": "median"}, Code.BAD_OPTION, "readout='median'"),
        ({"temporal": "yes"}, Code.BAD_OPTION, "temporal='yes'"),
        ({"temporal": True}, Code.WRONG_SHAPE, "temporal=True and timesteps=4 need [batch, 4, ...]"),
        ({"layout": "loop"}, R, "called 1 times in one forward for timesteps=4"),
        ({"example_input": torch.rand(3, 5, 8, 8)}, Code.WRONG_SHAPE, "of shape [3, 5, 8, 8]"),
        ({"example_input": torch.rand(3, 2, 9, 8, 8)}, Code.WRONG_SHAPE, "the module raises RuntimeError"),
        ({"example_input": torch.rand(8)}, Code.WRONG_SHAPE, "[batch, ...]"),
        ({"example_input": torch.rand(0, 2, 8, 8)}, Code.WRONG_SHAPE, "at least one sample"),
        ({"example_input": torch.full((2, 2, 8, 8), torch.nan)}, Code.NOT_FINITE, "example_input"),
        ({"example_input": np.array([["a"]])}, Code.BAD_DATA, "example_input"),
    ],
)
def test_arguments(arguments: dict[str, Any], code: Code, text: str) -> None:
    found, message = refusal(Plain(), **arguments)
    assert found is code
    assert text in message


def test_loop_arguments() -> None:
    code, message = refusal(Loop("sum"), readout="mean")
    assert (code, "forward itself takes the sum" in message) == (Code.BAD_OPTION, True)
    code, message = refusal(AllSteps())
    assert (code, "give readout='mean'" in message) == (Code.AMBIGUOUS, True)
    code, message = refusal(Loop("mean"), layout="step")
    assert code is R
    assert "called 4 times" in message


def test_one_step_neurons_that_get_all_timesteps_are_named() -> None:
    x = torch.rand(3, T, 2, 8, 8)
    code, message = refusal(Folded(), example_input=x)
    assert (code, "'sn1' (DALIF): receives all timesteps in one tensor" in message) == (R, True)
    assert "treats them as one timestep of more samples" in message
    code, message = refusal(MultiStep(), example_input=x)
    assert (code, "'sn1' (DALIF): receives all timesteps in one tensor" in message) == (R, True)


def test_state_in_a_dictionary_is_state() -> None:
    register_neuron(Memories, lambda module: NeuronParameters(alpha=1.0, beta=0.5))
    module = ResetsInside()
    module.sn2 = Memories()
    code, message = refusal(module)
    assert code is R
    assert "'sn2' (Memories): its state is reset or changed between its calls 2 and 3" in message
    plain = Plain()
    plain.sn2 = Memories()
    assert capture_module(plain, example_input=image(), timesteps=T).graph["sn2"]


def test_readers_are_checked() -> None:
    def fails(module: Stranger) -> NeuronParameters:
        raise KeyError("tau")

    for reader, code, text in (
        (fails, N, "'sn2' (Stranger): the reader of its class raised KeyError"),
        (lambda m: (1.0, 0.5), Code.BAD_OPTION, "returned tuple; it must return NeuronParameters"),
        (lambda m: NeuronParameters(alpha=torch.ones(5), beta=0.5), Code.WRONG_SHAPE, "'sn2': alpha of shape (5,)"),
        (lambda m: NeuronParameters(alpha=float("nan"), beta=0.5), Code.NOT_FINITE, "'sn2' (Stranger)"),
        (lambda m: NeuronParameters(alpha="x", beta=0.5), Code.BAD_OPTION, "'sn2' (Stranger)"),
        (lambda m: NeuronParameters(alpha=1, beta=0.5, reset="zero"), Code.BAD_OPTION, "reset='zero'"),
        (lambda m: NeuronParameters(alpha=1, beta=0.5, fires_at=">"), Code.BAD_OPTION, "fires_at='>'"),
    ):
        register_neuron(Stranger, reader)
        found, message = refusal(WithStranger())
        assert found is code, message
        assert text in message
    for cls, reader in ((dict, fails), (Stranger, 3)):
        with pytest.raises(DalifError, match="register_neuron"):
            register_neuron(cls, reader)


def test_weights_that_are_not_finite() -> None:
    module = Plain()
    with torch.no_grad():
        module.fc.weight[0, 0] = torch.nan
    assert refusal(module) == (Code.NOT_FINITE, "parameter 'fc.weight' has NaN or infinite values")
    module = Plain()
    module.bn.running_var[2] = torch.inf
    code, message = refusal(module)
    assert (code, "'bn'" in message) == (Code.NOT_FINITE, True)


def test_modules_that_cannot_be_watched() -> None:
    with torch.autocast("cpu"):
        assert refusal(Plain()) == (R, "autocast is on; run the capture without it")
    with torch.inference_mode():
        code, message = refusal(Plain())
        assert (code, "inference_mode" in message) == (R, True)
    code, message = refusal(Plain().half())
    assert (code, "torch.float16" in message) == (R, True)
    module = Plain()
    module.fc = nn.LazyLinear(12)
    code, message = refusal(module)
    assert (code, "'fc.weight' of a lazy layer" in message) == (R, True)
    code, message = refusal(Plain().to("meta"))
    assert (code, "meta device" in message) == (R, True)
    assert refusal("net.pt")[0] is Code.BAD_OPTION


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript() -> None:
    module = Plain()
    module.conv = torch.jit.script(module.conv)
    code, message = refusal(module)
    assert (code, "'conv' (RecursiveScriptModule): TorchScript" in message) == (R, True)


def test_a_neuron_that_fires_other_values_is_no_spiking_neuron() -> None:
    register_neuron(nn.ReLU, lambda module: NeuronParameters(alpha=1.0, beta=0.0))
    module, x = built("plain")
    module.sn2 = nn.ReLU()
    model = capture_module(module, example_input=x, timesteps=T)
    with pytest.raises(DalifError, match=r"'sn2' \(ReLU\): returns values other than 0 and 1"):
        model.run(x.numpy())


def _state(module: nn.Module) -> dict[str, Any]:
    """Everything about a module that a run could change, by value where it is a tensor."""
    found: dict[str, Any] = {}
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            if isinstance(value, Tensor):
                found[f"{name}:{key}"] = (id(value), value.tolist(), value.requires_grad)
            elif isinstance(value, dict):
                found[f"{name}:{key}"] = [(k, id(v)) for k, v in value.items()]
            else:
                found[f"{name}:{key}"] = repr(value)
        for key, buffer in child._buffers.items():
            found[f"{name}:buffer {key}"] = None if buffer is None else (id(buffer), buffer.tolist())
    hooks = (torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks)
    found["global hooks"] = [len(hook) for hook in hooks]
    found["grad"] = torch.is_grad_enabled()
    found["random"] = torch.get_rng_state().tolist()
    return found


@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_left_as_found(training: bool) -> None:
    register_neuron(Stranger, lambda module: NeuronParameters(alpha=module.gain, beta=module.tau, membrane="mem"))
    module, x = built("foreign")
    module.sn1 = ResettingStranger(0.7, 0.9)
    handle = module.conv.register_forward_hook(lambda *_: None)
    module(x)  # in the middle of a sequence: the neurons hold potentials
    module.train(training)
    module.bn.eval()
    assert module.sn1.mem is not None
    expected = _state(module)
    kept = module.sn1.mem.detach().clone()
    model = capture_module(module, example_input=x, timesteps=T)
    assert _state(module) == expected
    model.run(x.numpy())
    model.currents(x.numpy())
    model.membranes(x.numpy())
    assert _state(module) == expected
    assert torch.equal(module.sn1.mem, kept)
    handle.remove()


def test_a_reset_method_that_fails_is_named() -> None:
    class Needy(Stranger):
        def reset(self, value: float) -> None:
            self.mem = None

    register_neuron(Stranger, lambda module: NeuronParameters(alpha=1.0, beta=0.5))
    module = WithStranger()
    module.sn2 = Needy(0.5, 1.0)
    code, message = refusal(module)
    assert code is R
    assert "'sn2' (Needy): its reset() raised TypeError" in message


def test_a_neuron_that_keeps_books_is_left_as_found() -> None:
    register_neuron(Busy, lambda m: NeuronParameters(alpha=1, beta=m.tau, v_threshold=m.threshold, reset="subtract"))
    module, x = built("plain")
    module.sn2 = Busy()
    before = _state(module)
    model = capture_module(module, example_input=x, timesteps=T)
    assert _state(module) == before
    model.run(x.numpy())
    assert _state(module) == before
    with pytest.raises(DalifError, match="written in place into a float32 tensor") as caught:
        model.currents(x.numpy())
    assert caught.value.code is R
    assert _state(module) == before


def test_runs_start_from_reset_neurons() -> None:
    module, x = built("plain")
    model = capture_module(module, example_input=x, timesteps=T)
    fresh = model.run(x.numpy())
    module(x)
    again = model.run(x.numpy())
    assert all(not train.differing(again.spikes[layer]).any() for layer, train in fresh.spikes.items())
    assert module.sn1.v is not None


def test_state_that_nothing_can_reset_is_named() -> None:
    register_neuron(Stranger, lambda module: NeuronParameters(alpha=module.gain, beta=module.tau))
    module, x = built("foreign")
    module(x)
    code, message = refusal(module, example_input=x)
    assert code is Code.WRONG_SHAPE
    assert "state found in 'sn1' (Stranger): 'mem'; give its class a reset() method" in message


def test_left_as_found_after_an_error_in_forward() -> None:
    calls = []

    class Fails(Plain):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(calls))
            out = self.step(x)
            if len(calls) > 2:
                raise ValueError("no more")
            return out

    module = Fails()
    before = _state(module)
    code, message = refusal(module)
    assert (code, "raises ValueError on an input of shape [2, 2, 8, 8]: no more" in message) == (Code.WRONG_SHAPE, True)
    assert _state(module) == before
