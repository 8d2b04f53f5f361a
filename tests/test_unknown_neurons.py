"""A neuron class that nobody registered: the error shows the lines to write, and completed they work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalif_deploy import Code, DalifError, capture
from dalif_deploy.capturing import neurons
from dalif_deploy.capturing.unknown import registration
from tests.commands import dalif, done

MODEL = '''
import torch
from torch import nn


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x {comparison} 0).float()


class Surrogate(nn.Module):
    def forward(self, x):
        return Step.apply(x)


class GatedLIF(nn.Module):
    """Own names for everything, and the comparison in a module of its own."""

    {constant} = {value}

    def __init__(self, level=0.6):
        super().__init__()
        self.act = Surrogate()
        self.v_th = level
        self.register_buffer("gain", torch.tensor(1.5))
        self.u = None

    def forward(self, x):
        u = self.gain * x if self.u is None else {leak} * self.u + self.gain * x
        spikes = self.act(u - self.v_th)
        self.u = {reset}
        return spikes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 20)
        self.sn = GatedLIF()
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        return self.head(self.sn(self.fc(x)))
'''
Variant = tuple[str, str, float, str, str, dict[str, str]]
"""The comparison, a constant's name and value, the leak, the state after the step; and how the lines are completed."""
VARIANTS: dict[str, Variant] = {
    "soft, >=": (">=", "decay", 0.75, "self.decay", "u - self.v_th * spikes", {"reset=...": 'reset="subtract"'}),
    "hard, >": (">", "tau", 2.5, "(1.0 - 1.0 / self.tau)", "u * (1 - spikes)", {"reset=...": 'reset="hard"'}),
    "nothing is named": (">", "q7", 0.75, "self.q7", "u", {"beta=...": "beta=m.q7", "reset=...": 'reset="none"'}),
}


def model_of(variant: Variant) -> str:
    comparison, constant, value, leak, reset, _ = variant
    return MODEL.format(comparison=comparison, constant=constant, value=value, leak=leak, reset=reset)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an adapter registers, and the module it imports, end with the test."""
    monkeypatch.setattr(neurons, "_READERS", dict(neurons._READERS))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("strange_net", None)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_lines_that_are_shown_work_once_they_are_complete(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completions = VARIANTS[name][-1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange_net.py").write_text(model_of(VARIANTS[name]))
    monkeypatch.syspath_prepend(str(tmp_path))
    from strange_net import Net

    torch.manual_seed(1)
    net = Net()
    nn.init.constant_(net.fc.bias, 0.3)
    torch.save(net.state_dict(), "net.pt")
    arguments = ["--to", "onnx", "net.pt", "--model", "strange_net:Net", "-T", 5, "--input-shape", 12]
    ran = dalif("export", *arguments)
    assert ran.status == 1
    message, *lines = ran.err.splitlines()
    assert message.startswith("dalif-export: error: [E0202] 'sn.act' (Surrogate): aten.")
    assert "if GatedLIF is a neuron, register_neuron(GatedLIF, read) makes it known" in message
    assert len(lines) == 5
    assert lines[0] == "from strange_net import GatedLIF"
    text = "\n".join(lines) + "\n"
    for left, right in completions.items():
        assert text.count(left) == 1
        text = text.replace(left, right)
    assert "=..." not in text
    (tmp_path / "adapter.py").write_text(text)
    done("export", *arguments, "--adapter", "adapter.py")
    options = arguments[3:]
    verdict = done("verify", "net.pt", "net.onnx", *options, "--adapter", "adapter.py", "--json").json()
    assert verdict["verdict"] == "exact"
    assert {r["name"] for r in verdict["runtimes"]} >= {"torch", "events", "onnxruntime"}
    assert 0.02 < verdict["rates"]["sn"] < 0.7


def test_lines_that_are_not_complete_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange_net.py").write_text(model_of(VARIANTS["soft, >="]))
    monkeypatch.syspath_prepend(str(tmp_path))
    from strange_net import Net

    torch.save(Net().state_dict(), "net.pt")
    arguments = ["--to", "onnx", "net.pt", "--model", "strange_net:Net", "-T", 5, "--input-shape", 12]
    (tmp_path / "adapter.py").write_text("\n".join(dalif("export", *arguments).err.splitlines()[1:]))
    ran = dalif("export", *arguments, "--adapter", "adapter.py")
    assert "'sn' (GatedLIF): NeuronParameters: reset=Ellipsis; give 'hard', 'subtract' or 'none'" in ran.err
    assert (ran.status, len(ran.err.splitlines())) == (Code.BAD_OPTION.exit_status, 1)


class Clipped(nn.Module):
    """A neuron whose operations cannot be followed: there is no comparison to stop at."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mem", torch.zeros(()))
        self.vth = nn.Parameter(torch.tensor(0.5))
        self.leak = 0.5

    def forward(self, x: Tensor) -> Tensor:
        self.mem = self.leak * self.mem + x
        return torch.erf(self.mem)


class Passing(nn.Module):
    """The state is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold, self.beta = 0.5, 0.25

    def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = self.beta * mem + x
        return (mem > self.threshold).float(), mem


class Around(nn.Module):
    def __init__(self, neuron: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.fc, self.neuron, self.head = nn.Linear(4, 5), neuron, nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.fc(x)
        if not isinstance(self.neuron, Passing):
            return self.head(self.neuron(x))
        mem, out = torch.zeros_like(x), []
        for _ in range(3):
            spikes, mem = self.neuron(x, mem)
            out.append(self.head(spikes))
        return torch.stack(out).mean(0)


def error_of(module: nn.Module) -> DalifError:
    with pytest.raises(DalifError) as caught:
        capture(module, example_input=torch.rand(2, 4), timesteps=3)
    return caught.value


def test_a_module_with_state_that_cannot_be_followed_may_be_a_neuron() -> None:
    error = error_of(Around(Clipped()))
    assert error.code is Code.UNSUPPORTED_LAYER
    assert "if Clipped is a neuron" in error.message
    assert error.lines[3].strip() == (
        "return NeuronParameters(alpha=1.0, beta=m.leak, v_threshold=m.vth, v_reset=0.0, reset=..., fires_at=..., "
        'membrane="mem")'
    )
    assert str(error).splitlines() == [f"[E0201] {error.message}", *error.lines]


def test_a_neuron_whose_state_is_passed_along_is_named_too() -> None:
    error = error_of(Around(Passing()))
    assert error.code is Code.UNKNOWN_NEURON
    assert error.lines[3].strip() == (
        "return NeuronParameters(alpha=1.0, beta=m.beta, v_threshold=m.threshold, v_reset=0.0, reset=..., "
        'fires_at="gt")'
    )


def test_layers_without_state_are_no_neurons() -> None:
    class Head(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erf(x)

    class Fires(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0.5).float()

    assert error_of(Around(Head())).lines == ()
    error = error_of(Fires())
    assert error.code is Code.UNKNOWN_NEURON
    assert "put the neuron into a module of its own" in error.message
    assert error.lines == ()


def test_classes_are_imported_from_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Inner(nn.Module):
        pass

    outer = "test_classes_are_imported_from_where_they_can_be.<locals>"
    assert registration(Inner())[0] == (
        f"from tests.test_unknown_neurons import Inner  # it is defined inside {outer}: move it to the top of its file"
    )
    Inner.__module__, Inner.__qualname__ = "__main__", "Inner"
    program = ModuleType("__main__")
    program.__file__ = "/somewhere/train.py"
    monkeypatch.setitem(sys.modules, "__main__", program)
    assert registration(Inner())[0] == "from train import Inner"


class OwnWords(nn.Module):
    """No name says what it means."""

    def __init__(self) -> None:
        super().__init__()
        self.log_pull, self.firing_level = nn.Parameter(torch.tensor(0.2)), 0.6
        self.charge: Tensor | None = None
        self._hidden, self.gain = 3.0, 1.5


def test_attributes_whose_meaning_nobody_can_guess_are_named() -> None:
    *_, call, _ = registration(OwnWords())
    assert "alpha=m.gain, beta=..., v_threshold=..." in call
    assert call.endswith(")  # m has firing_level, log_pull, charge")
    compile("\n".join(registration(OwnWords())), "adapter", "exec")
    known = OwnWords()
    known.decay, known.threshold = 0.5, 1.0
    assert "#" not in registration(known)[3]
