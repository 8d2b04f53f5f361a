"""Other packages' neurons in the forms that their users write: all timesteps in one call, the state passed along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dalif_deploy
from dalif_deploy import Code, DalifError
from dalif_deploy.deploy.model import captured_model
from dalif_deploy.equivalence import Outcome
from dalif_deploy.nodes import Neuron
from tests.neuron_packages import OneStep, T, calibrated, frames, package

pytestmark = pytest.mark.simulators


class MultiStep(OneStep):
    """SpikingJelly's step_mode "m": every layer takes [T, B, ...]."""

    def __init__(self, neuron: Callable[[int], nn.Module]) -> None:
        super().__init__(neuron)
        layer = package("spikingjelly.activation_based.layer")
        for name in ("conv", "bn1", "pool", "fc", "bn2", "head"):
            setattr(self, name, layer.SeqToANNContainer(getattr(self, name)))
        self.flatten = layer.Flatten(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        package("spikingjelly.activation_based.functional").reset_net(self)
        spikes = self.lif1(self.bn1(self.conv(x.transpose(0, 1))))
        spikes = self.lif2(self.bn2(self.fc(self.flatten(self.pool(spikes)))))
        logits: Tensor = self.head(spikes).mean(dim=0)
        return logits


class Passing(OneStep):
    """The neurons return their spikes and their state, which the loop hands to the next step."""

    def forward(self, x: Tensor) -> Tensor:
        states: list[Any] = [None, None]
        if hasattr(self.lif1, "init_leaky"):
            states = [self.lif1.init_leaky(), self.lif2.init_leaky()]
        out = []
        for t in range(T):
            spikes, states[0] = self.lif1(self.first(x[:, t]), states[0])
            spikes, states[1] = self.lif2(self.second(spikes), states[1])
            out.append(self.head(spikes))
        return torch.stack(out).sum(dim=0)


def sj(name: str, **options: Any) -> Callable[[int], nn.Module]:
    return lambda _: getattr(package("spikingjelly.activation_based.neuron"), name)(step_mode="m", **options)


def leaky(**options: Any) -> Callable[[int], nn.Module]:
    return lambda _: package("snntorch").Leaky(beta=0.8, threshold=0.6, **options)


def box(*, dt: float = 0.001, reset: str = "reset_value", **parameters: Any) -> Callable[[int], nn.Module]:
    def make(channels: int) -> nn.Module:
        norse = package("norse.torch")
        method = getattr(package("norse.torch.functional.reset"), reset)
        values = {key: value(channels) if callable(value) else value for key, value in parameters.items()}
        found: nn.Module = norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=method, **values), dt)
        return found

    return make


def spread(channels: int) -> Tensor:
    values = torch.linspace(150.0, 600.0, channels)
    return values if channels > 10 else values.reshape(channels, 1, 1)


FORMS: dict[str, tuple[type[OneStep], Callable[[int], nn.Module]]] = {
    "IFNode m": (MultiStep, sj("IFNode")),
    "LIFNode m": (MultiStep, sj("LIFNode", tau=2.5, v_threshold=0.35)),
    "LIFNode m, subtract": (MultiStep, sj("LIFNode", tau=2.5, v_threshold=0.35, v_reset=None, store_v_seq=True)),
    "ParametricLIFNode m, v_reset": (
        MultiStep, sj("ParametricLIFNode", init_tau=3.0, decay_input=False, v_threshold=0.5, v_reset=-0.1)
    ),
    **{
        f"Leaky {mechanism} reset_delay={delay}": (Passing, leaky(reset_mechanism=mechanism, reset_delay=delay))
        for mechanism in ("zero", "subtract", "none")
        for delay in (True, False)
    },
    "LIFBoxCell": (Passing, box(tau_mem_inv=torch.tensor(400.0), v_th=torch.tensor(0.3))),
    "LIFBoxCell, numbers": (Passing, box(tau_mem_inv=330.0, v_th=0.3, method="heaviside")),
    "LIFBoxCell, v_leak and v_reset": (
        Passing, box(tau_mem_inv=torch.tensor(400.0), v_th=torch.tensor(0.3), v_leak=torch.tensor(0.05),
                     v_reset=torch.tensor(-0.2), dt=0.0009)
    ),
    "LIFBoxCell, subtract, by neuron": (
        Passing, box(tau_mem_inv=spread, v_th=torch.tensor(0.25), reset="reset_subtract")
    ),
}  # fmt: skip


def capture(net: nn.Module) -> Any:
    return captured_model(net, example_input=frames(), timesteps=T)


@pytest.mark.parametrize("name", FORMS)
def test_the_packages_own_module_and_every_runtime_fire_alike(name: str, tmp_path: Path) -> None:
    form, neuron = FORMS[name]
    model = capture(calibrated(form(neuron)))
    assert model.graph.input.temporal
    file = tmp_path / "net.onnx"
    dalif_deploy.export(model, file, to="onnx")
    verdict = dalif_deploy.verify(model, file, data=frames(12, seed=5).numpy())
    for comparison in (*verdict.links.values(), *(runtime.comparison for runtime in verdict.runtimes)):
        assert comparison is not None
        assert (comparison.outcome, comparison.spikes_differing) == (Outcome.EXACT, 0), comparison.name
    assert all(0.02 <= rate <= 0.6 for rate in verdict.rates.values()), verdict.rates


def test_what_is_read_of_norse() -> None:
    neuron: Neuron = capture(calibrated(Passing(FORMS["LIFBoxCell, v_leak and v_reset"][1]))).graph.neurons[0]
    k = float(0.0009 * torch.tensor(400.0))
    assert (float(neuron.alpha), float(neuron.beta)) == (k, 1.0 - k)
    leak, reset = float(torch.tensor(0.05)), float(torch.tensor(-0.2))
    assert (float(neuron.leak_target), neuron.state[0].initial, float(neuron.v_reset)) == (leak, leak, reset)
    assert (neuron.reset, neuron.fires_at, neuron.update) == ("hard", "gt", "decay")


def wrong_reset(*_: Any) -> Any:
    raise AssertionError


REFUSED = {
    "a reset of one's own": (
        lambda n: package("norse.torch").LIFBoxCell(package("norse.torch").LIFBoxParameters(reset_method=wrong_reset)),
        "reset_method is wrong_reset",
    ),
    "v_leak by neuron": (box(v_leak=lambda n: torch.arange(n) / 10), "v_leak differs within the layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parameters_that_no_graph_can_say_are_refused_by_name(name: str) -> None:
    make, why = REFUSED[name]
    with pytest.raises(DalifError) as error:
        capture(Passing(make).eval())
    assert error.value.code is Code.UNKNOWN_NEURON
    assert "'lif1' (LIFBoxCell): " in error.value.message
    assert why in error.value.message
