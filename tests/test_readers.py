"""Neurons of SpikingJelly and snnTorch, every option: the package's own module, the captured graph, NumPy event by
event and ONNX Runtime fire the same spikes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dalif_deploy
from dalif_deploy import Code, DalifError
from dalif_deploy.capturing import neurons
from dalif_deploy.capturing.parameters import NeuronParameters
from dalif_deploy.deploy.model import Model, captured_model
from dalif_deploy.equivalence import Arithmetic, NeuronStep, Outcome, replay, simulate
from dalif_deploy.nodes import Neuron
from dalif_deploy.recording import SpikeTrain
from tests.neuron_packages import OneStep, T, calibrated, frames, package, restart

pytestmark = pytest.mark.simulators

Make = Callable[[int], nn.Module]


def sj(name: str, **options: Any) -> Make:
    def make(channels: int) -> nn.Module:
        found: nn.Module = getattr(package("spikingjelly.activation_based.neuron"), name)(**options)
        return found

    return make


def leaky(beta: Any = 0.8, **options: Any) -> Make:
    def make(channels: int) -> nn.Module:
        value = beta(channels) if callable(beta) else beta
        found: nn.Module = package("snntorch").Leaky(beta=value, init_hidden=True, **options)
        return found

    return make


def by_channel(channels: int) -> Tensor:
    """One value a channel, in the shape that torch broadcasts; some lie beyond what is clamped."""
    values = torch.linspace(-0.2, 1.1, channels)
    return values if channels > 10 else values.reshape(channels, 1, 1)


SPIKINGJELLY: dict[str, Make] = {
    f"{cls} v_reset={v_reset} {'' if decay is None else f'decay_input={decay}'}": sj(
        cls, v_reset=v_reset, **({} if decay is None else {"decay_input": decay, tau: 2.5, "v_threshold": 0.35})
    )
    for cls, tau, decays in (
        ("IFNode", "", [None]), ("LIFNode", "tau", [True, False]), ("ParametricLIFNode", "init_tau", [True, False])
    )
    for decay in decays
    for v_reset in (0.0, None, -0.25)
}  # fmt: skip
SNNTORCH: dict[str, Make] = {
    f"Leaky {mechanism} reset_delay={delay}": leaky(reset_mechanism=mechanism, reset_delay=delay, threshold=0.7)
    for mechanism in ("zero", "subtract", "none")
    for delay in (True, False)
}
SNNTORCH |= {
    "Leaky per channel": leaky(by_channel, threshold=0.6),
    "Leaky learned": leaky(0.6, learn_beta=True, learn_threshold=True, threshold=0.5, reset_mechanism="zero"),
    "Leaky learned beyond 1": leaky(1.25, learn_beta=True, reset_mechanism="zero"),
}
ALL = SPIKINGJELLY | SNNTORCH


def captured(net: nn.Module, **options: Any) -> Model:
    return captured_model(net, example_input=frames(), timesteps=T, temporal=True, **options)


def neuron_of(model: Model) -> Neuron:
    return model.graph.neurons[0]


def assert_all_fire_alike(model: Model, folder: Path, *, least: float = 0.02) -> None:
    file = folder / "net.onnx"
    dalif_deploy.export(model, file, to="onnx")
    verdict = dalif_deploy.verify(model, file, data=frames(12, seed=5).numpy())
    assert {r.comparison.name for r in verdict.runtimes} == {"torch", "events", "onnxruntime"}
    compared = [*verdict.links.values(), *(r.comparison for r in verdict.runtimes)]
    for comparison in compared:
        assert comparison is not None
        assert comparison.outcome is Outcome.EXACT, comparison.name
        assert comparison.spikes_differing == 0
    assert all(least <= rate <= 0.6 for rate in verdict.rates.values()), verdict.rates


@pytest.mark.parametrize("name", ALL)
def test_the_packages_own_module_and_every_runtime_fire_alike(name: str, tmp_path: Path) -> None:
    net = calibrated(OneStep(ALL[name]))
    assert_all_fire_alike(captured(net), tmp_path)


def test_a_float64_module_takes_python_numbers_as_they_are(tmp_path: Path) -> None:
    net = calibrated(OneStep(sj("LIFNode", tau=2.3, v_threshold=0.35, v_reset=-0.25))).double()
    model = captured_model(net, example_input=frames().double(), timesteps=T, temporal=True)
    neuron = neuron_of(model)
    assert float(neuron.beta) == 1.0 - 1.0 / 2.3
    assert float(neuron.v_threshold) == 0.35
    assert_all_fire_alike(model, tmp_path)


def test_what_is_read() -> None:
    lif = neuron_of(captured(calibrated(OneStep(ALL["LIFNode v_reset=-0.25 decay_input=True"]))))
    k = 1.0 / 2.5
    assert (float(lif.alpha), float(lif.beta)) == (k, 1.0 - k)
    assert (float(lif.leak_target), lif.state[0].initial) == (-0.25, -0.25)
    assert (lif.reset, lif.reset_timing, lif.fires_at, lif.update) == ("hard", "now", "ge", "decay")
    assert float(lif.v_threshold) == np.float32(0.35)
    odd = neuron_of(captured(calibrated(OneStep(sj("LIFNode", tau=2.3, decay_input=False, v_threshold=0.4)))))
    assert (float(odd.alpha), float(odd.beta)) == (1.0, 1.0 - 1.0 / float(np.float32(2.3)))
    net = calibrated(OneStep(ALL["ParametricLIFNode v_reset=None decay_input=True"]))
    plif = neuron_of(captured(net))
    k = float(net.lif1.w.detach().sigmoid())
    assert (float(plif.alpha), float(plif.beta), plif.reset) == (k, 1.0 - k, "subtract")
    rules = {
        name: (found.reset, found.reset_timing, found.fires_at, found.update)
        for name in SNNTORCH
        if "delay" in name
        for found in [neuron_of(captured(calibrated(OneStep(ALL[name]))))]
    }
    assert rules == {
        "Leaky zero reset_delay=True": ("hard", "now", "gt", "sum"),
        "Leaky zero reset_delay=False": ("hard", "now", "gt", "sum"),
        "Leaky subtract reset_delay=True": ("subtract", "next", "gt", "sum"),
        "Leaky subtract reset_delay=False": ("subtract", "carry", "gt", "sum"),
        "Leaky none reset_delay=True": ("none", "now", "gt", "sum"),
        "Leaky none reset_delay=False": ("none", "now", "gt", "sum"),
    }
    clamped = neuron_of(captured(calibrated(OneStep(ALL["Leaky per channel"]))))
    assert clamped.beta.shape == (6, 1, 1)
    assert (clamped.beta.min(), clamped.beta.max()) == (0.0, 1.0)


def test_a_leak_is_read_as_torch_broadcasts_it(tmp_path: Path) -> None:
    """One value for each column of a map that is as wide as it has channels: not one for each channel."""
    net = calibrated(OneStep(leaky(lambda n: torch.linspace(0.2, 0.9, 6 if n == 6 else n), threshold=0.7)))
    model = captured(net)
    assert neuron_of(model).beta.shape == (6,)
    assert_all_fire_alike(model, tmp_path)


def test_a_potential_left_above_the_threshold_counts_in_snntorch(tmp_path: Path) -> None:
    """Currents of several thresholds: where resets by subtraction leave more than the threshold behind, "carry" is not
    the plain subtraction, and "next" is another thing again."""
    fired = []
    for delay in (True, False):
        net = calibrated(OneStep(leaky(0.9, reset_mechanism="subtract", reset_delay=delay, threshold=0.25)), mean=-0.1)
        model = captured(net)
        file = tmp_path / f"{delay}.onnx"
        dalif_deploy.export(model, file, to="onnx")
        verdict = dalif_deploy.verify(model, file, data=frames(8, seed=6).numpy())
        assert all(r.comparison.spikes_differing == 0 for r in verdict.runtimes)
        assert verdict.links["module"].spikes_differing == 0  # type: ignore[union-attr]
        plain = model.graph.replaced({n.name: replace(n, reset_timing="now") for n in model.graph.neurons})
        x = frames(8, seed=6).numpy()
        a, b = simulate(model.graph, x).spikes["lif1"], simulate(plain, x).spikes["lif1"]
        assert a.differing(b).sum() > 0
        fired.append(a)
    assert fired[0].differing(fired[1]).sum() > 0


@pytest.mark.parametrize(
    "name", ["LIFNode v_reset=0.0 decay_input=True", "Leaky zero reset_delay=True", "IFNode v_reset=None "]
)
def test_a_leak_that_is_slightly_wrong_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it changes no spike: the potentials tell."""
    net = calibrated(OneStep(ALL[name]))
    cls = type(net.lif1)
    key = f"{cls.__module__}.{cls.__qualname__}"
    right = neurons.BUILT_IN[key]

    def wrong(module: Any, dtype: torch.dtype) -> NeuronParameters:
        found = right(module, dtype)
        return replace(found, beta=found.beta * (1.0 - 2.0**-20), update="decay")

    monkeypatch.setattr(neurons, "BUILT_IN", {**neurons.BUILT_IN, key: wrong})
    with pytest.raises(DalifError, match="holds a potential of") as error:
        captured(net)
    assert error.value.code is Code.CAPTURE_MISMATCH


@pytest.mark.parametrize("name", ["Leaky zero reset_delay=True", "LIFNode v_reset=-0.25 decay_input=True"])
def test_what_the_module_did_before_does_not_matter(name: str, tmp_path: Path) -> None:
    """Neurons are reset before every run, also where their state has the very shape of the next input."""
    net = calibrated(OneStep(ALL[name]))
    clean = captured(net).samples
    for batch in (2, 3, 4):
        with torch.no_grad():
            net(frames(batch)[:, 0] + 0.5)
        model = captured(net)
        assert clean is not None
        assert model.samples is not None
        for layer, train in clean.recording.spikes.items():
            assert not train.differing(model.samples.recording.spikes[layer]).any()
    restart(net)


def test_the_module_is_judged_by_its_own_formula() -> None:
    """Where little of H is kept, H + k (X - H) rounds on the scale of H, beta H + X on that of what is kept."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = sj("LIFNode", tau=1.0001, v_threshold=100.0)(1)
            self.head = nn.Linear(50, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.lif(x))
            return out

    net = Wide().eval()
    x = torch.rand((4, T, 50), generator=torch.Generator().manual_seed(1)) + 0.5
    x[:, 1::2] *= 1e-6
    model = captured_model(net, example_input=x, timesteps=T, temporal=True)
    assert neuron_of(model).update == "decay"
    potentials = []
    restart(net)
    with torch.no_grad():
        for t in range(T):
            net(x[:, t])
            potentials.append(net.lif.v.double().numpy())
    silent = {"lif": SpikeTrain.pack(np.zeros((4, T, 50), np.bool_))}
    ratios: dict[str, float] = {}
    for update in ("own", "sum"):

        def visit(step: NeuronStep, update: str = update) -> None:
            gap = np.abs(potentials[step.t] - step.potential) / step.bound
            ratios[update] = max(ratios.get(update, 0.0), float(gap.max()))

        replay(model.graph, x.numpy(), visit, history=silent, update=update)  # type: ignore[arg-type]
    assert ratios["own"] <= 1.0 < ratios["sum"]
    assert Arithmetic.of_module(model.graph, "float32").update == "own"


# ---- refusals


def refusal(net: nn.Module) -> DalifError:
    with pytest.raises(DalifError) as error:
        captured(net.eval())
    return error.value


def smooth() -> nn.Module:
    found: nn.Module = package("spikingjelly.activation_based.surrogate").ATan(spiking=False)
    return found


REFUSED: dict[str, tuple[Make, str]] = {
    "inhibition": (leaky(inhibition=True), "inhibition=True"),
    "state_quant": (lambda n: leaky(state_quant=torch.round)(n), "state_quant"),
    "graded spikes": (leaky(graded_spikes_factor=0.5), "graded_spikes_factor is not 1"),
    "threshold below 0": (leaky(reset_mechanism="zero", reset_delay=False, threshold=-0.5), "a threshold below 0"),
    "a smooth spike_grad": (leaky(spike_grad=torch.sigmoid), "its spike_grad is no step at 0"),
    "a smooth surrogate": (lambda n: sj("LIFNode", surrogate_function=smooth())(n), "its surrogate_function is no"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_options_that_no_graph_can_say_are_refused_by_name(name: str) -> None:
    make, why = REFUSED[name]
    error = refusal(OneStep(make))
    assert error.code is Code.UNKNOWN_NEURON
    assert "'lif1' (" in error.message
    assert why in error.message


def test_a_reset_mechanism_that_was_changed_later_is_refused() -> None:
    net = OneStep(leaky(reset_mechanism="subtract"))
    net.lif1.reset_mechanism = "zero"
    assert "was set after the module was built, which runs _base_sub" in refusal(net).message


def test_subclasses_are_read_where_they_change_nothing(tmp_path: Path) -> None:
    node = package("spikingjelly.activation_based.neuron")

    class Renamed(node.LIFNode):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(tau=2.5, v_threshold=0.35)

        def decay(self) -> float:
            return 1.0 / float(self.tau)

    class Other(Renamed):
        def single_step_functional_forward(self, inputs: Any, states: Any, **options: Any) -> Any:
            return super().single_step_functional_forward((2 * inputs[0],), states, **options)

    assert_all_fire_alike(captured(calibrated(OneStep(lambda _: Renamed()))), tmp_path)
    error = refusal(OneStep(lambda _: Other()))
    assert error.code is Code.UNKNOWN_NEURON
    assert "Other" in "\n".join(error.lines)


def test_a_registered_reader_comes_before_the_built_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    leaky_class = package("snntorch").Leaky
    monkeypatch.setattr(neurons, "_READERS", {leaky_class: lambda module: NeuronParameters(alpha=1.0, beta=0.5)})
    assert "other parameters or rules than the class uses" in refusal(calibrated(OneStep(leaky()))).message


def test_the_documentation_names_every_class_that_is_read() -> None:
    page = (Path(__file__).parents[1] / "docs" / "neurons.md").read_text()
    for name in neurons.BUILT_IN:
        assert f"`{name.rpartition('.')[2]}`" in page, name
