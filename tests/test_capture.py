"""A captured graph fires what the user's module fires, and every neuron receives the same current."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from dalif_deploy.capturing import CapturedModule, NeuronParameters, capture_module, neurons, register_neuron
from dalif_deploy.equivalence.replay import NeuronStep, replay, simulate
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import BatchNorm, Conv2d, Neuron, frozen
from tests.capture_models import CASES, Foreign, Loop, Plain, ResNet, Stranger, T, built


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "_READERS", {})
    register_neuron(Stranger, read_stranger)


def read_stranger(module: Stranger) -> NeuronParameters:
    return NeuronParameters(
        alpha=module.gain,
        beta=module.tau,
        v_threshold=module.threshold,
        reset="subtract",
        fires_at="gt",
        membrane="mem",
    )


def test_a_reader_that_names_no_membrane_is_noted() -> None:
    module, x = built("foreign")
    noted = "were not compared, since the reader of their class names no membrane"
    told = capture_module(module, example_input=x, timesteps=T).notes
    assert not any(noted in note for note in told)
    register_neuron(Stranger, lambda module: replace(read_stranger(module), membrane=None))
    told = capture_module(module, example_input=x, timesteps=T).notes
    assert any(noted in note for note in told), told


def captured(name: str) -> tuple[CapturedModule, np.ndarray]:
    module, x = built(name)
    return capture_module(module, example_input=x, timesteps=T, **CASES[name].arguments), x.numpy()


def largest_gaps(graph: SpikingGraph, of: CapturedModule, batch: np.ndarray) -> tuple[float, float]:
    """The largest relative differences of currents and of potentials after the reset, graph against module."""
    currents, membranes = of.currents(batch), of.membranes(batch)
    gaps = [0.0, 0.0]

    def visit(step: NeuronStep) -> None:
        name, t, neuron = step.neuron.name, step.t, step.neuron
        after = np.where(
            step.fires,
            neuron.v_reset if neuron.reset == "hard" else step.potential - neuron.v_threshold,
            step.potential,
        )
        pairs = [(step.current, currents[name][:, t], 0), (after, membranes[name][:, t], 1)]
        for mine, theirs, kind in pairs:
            gap = np.abs(mine - theirs) / np.maximum(np.abs(theirs), 1.0)
            gaps[kind] = max(gaps[kind], float(gap.max()))

    replay(graph, batch, visit)
    return gaps[0], gaps[1]


@pytest.mark.parametrize("name", CASES)
def test_graph_does_what_the_module_does(name: str) -> None:
    case = CASES[name]
    model, batch = captured(name)
    graph = model.graph
    assert model.layout == case.layout
    assert graph.readout.mode == case.readout
    assert graph.input.temporal == case.temporal
    assert graph.input.shape == case.shape
    assert len(graph.after_readout) == 1 + case.after
    ours, theirs = simulate(graph, batch), model.run_float64(batch)
    assert ours.spikes.keys() == theirs.spikes.keys()
    for layer, train in ours.spikes.items():
        assert not train.differing(theirs.spikes[layer]).any(), layer
        assert 0.01 < train.count() / train.neuron_steps < 0.95, (layer, train.count() / train.neuron_steps)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-12, atol=1e-13)
    assert max(largest_gaps(graph, model, batch)) < 1e-12


@pytest.mark.parametrize("name", ["plain", "resnet", "loop, mean", "temporal loop, x[:, t]", "all steps"])
def test_run_is_the_module_itself(name: str) -> None:
    model, batch = captured(name)
    recording = model.run(batch)
    module, x = built(name)
    case = CASES[name]
    with torch.no_grad():
        if case.layout == "loop":
            logits = module(x)
            logits = logits.amax(0) if name == "all steps" else logits
        else:
            logits = sum(module(x) for _ in range(T)) / T
    np.testing.assert_array_equal(recording.logits, logits.numpy())
    assert recording.logits.dtype == np.float32
    again = model.run(batch[:1])  # another batch size, and no state left over
    for layer, train in again.spikes.items():
        assert not (train.bits != recording.spikes[layer].bits[:1]).any()


def test_names_are_the_modules_names() -> None:
    model, _ = captured("resnet")
    names = [node.name for node in model.graph.nodes]
    assert [neuron.name for neuron in model.graph.neurons] == [
        "stem.1", "layers.0.sn1", "layers.0.sn2", "layers.1.sn1", "layers.1.sn2",
    ]  # fmt: skip
    assert {"stem.0.0", "stem.0.1", "layers.1.shortcut.1", "layers.1.bn2", "layers.0.add", "gap", "fc"} <= set(names)


def test_static_first_convolution_is_static_in_a_loop_and_in_a_step() -> None:
    for name in ("plain", "loop, mean", "hoisted loop", "repeat loop"):
        graph = captured(name)[0].graph
        assert not graph.types["bn"].temporal
        assert graph.types["sn1"].temporal
        assert len(graph.nodes) <= 13  # nothing is there T times


def test_frozen_gains_are_those_the_module_computed() -> None:
    module, x = built("plain")
    neuron = capture_module(module, example_input=x, timesteps=T).graph["sn2"]
    assert isinstance(neuron, Neuron)
    # In torch's own float32, which NumPy's tanh need not equal.
    assert float(neuron.alpha) == float(torch.tanh(torch.tensor(1.0)))
    assert float(neuron.beta) == float(torch.tanh(torch.tensor(0.4)))
    assert (float(neuron.raw_alpha), float(neuron.raw_beta)) == (1.0, float(np.float32(0.4)))
    assert neuron.activation == "tanh"


def test_thresholds_are_rounded_to_the_modules_type() -> None:
    graph = captured("sequential")[0].graph
    neuron = graph.neurons[1]
    assert float(neuron.v_threshold) == float(np.float32(0.3))
    assert float(neuron.v_reset) == float(np.float32(-0.1))
    assert neuron.alpha.shape == (12,)
    assert graph.neurons[0].activation == "sigmoid"


def test_foreign_neuron_is_read_through_its_reader() -> None:
    graph = captured("foreign")[0].graph
    first, second = graph.neurons
    assert (first.reset, first.fires_at) == ("subtract", "gt")
    assert first.alpha.shape == (6, 1, 1)
    assert float(second.v_threshold) == float(np.float32(0.4))


def test_one_timestep_is_its_own_path() -> None:
    for shape, make in (((3, 2, 8, 8), Plain), ((3, 2, 8, 8), ResNet)):
        x = torch.rand(shape)
        model = capture_module(make(), example_input=x, timesteps=1)
        assert "timesteps=1: a step and a loop are the same" in model.notes
        assert not simulate(model.graph, x.numpy()).spikes["sn1" if make is Plain else "stem.1"].differing(
            model.run_float64(x.numpy()).spikes["sn1" if make is Plain else "stem.1"]
        ).any()  # fmt: skip

    class One(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.step(x[:, t]) for t in range(x.shape[1])]).mean(0)

    x = torch.rand(3, 1, 2, 8, 8)
    for arguments in ({}, {"layout": "loop"}, {"temporal": True}):
        model = capture_module(One(), example_input=x, timesteps=1, **arguments)
        assert model.graph.input.temporal
        assert model.graph.input.shape == (2, 8, 8)
        np.testing.assert_allclose(simulate(model.graph, x.numpy()).logits, model.run_float64(x.numpy()).logits)


def test_float64_modules_keep_their_precision() -> None:
    module, x = built("resnet")
    model = capture_module(module.double(), example_input=x, timesteps=T)
    weight = model.graph["layers.0.conv1"]
    assert isinstance(weight, Conv2d)
    assert model.run(x.numpy()).logits.dtype == np.float64
    assert max(largest_gaps(model.graph, model, x.numpy())) < 1e-12


def test_a_single_example_and_numpy_arrays_are_taken() -> None:
    module, x = built("plain")
    one = capture_module(module, example_input=x[:1].numpy(), timesteps=T)
    assert not any(
        train.differing(one.run_float64(x.numpy()).spikes[layer]).any()
        for layer, train in simulate(one.graph, x.numpy()).spikes.items()
    )


def test_what_was_inferred_is_noted() -> None:
    module, x = built("plain")
    notes = capture_module(module, example_input=x, timesteps=T).notes
    assert [note.split(" ")[0] for note in notes] == ["readout='mean'", "layout='step'", "temporal=False"]
    given = capture_module(module, example_input=x, timesteps=T, layout="step", readout="mean", temporal=False)
    assert given.notes == ()


@pytest.mark.parametrize("name", CASES)
def test_arguments_that_say_what_is_so_change_nothing(name: str) -> None:
    case = CASES[name]
    module, x = built(name, batch=2)
    inferred = capture_module(module, example_input=x, timesteps=T, **case.arguments).graph
    given = {"layout": case.layout, "temporal": case.temporal, "readout": case.readout}
    graph = capture_module(module, example_input=x, timesteps=T, **given).graph
    assert [(type(node), node.name, node.inputs) for node in graph.nodes] == [
        (type(node), node.name, node.inputs) for node in inferred.nodes
    ]


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, dalif_deploy.capturing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_neurons_that_are_never_called_are_left_out() -> None:
    module, x = built("plain")
    module.spare = Foreign().sn1
    model = capture_module(module, example_input=x, timesteps=T)
    assert [neuron.name for neuron in model.graph.neurons] == ["sn1", "sn2"]
    assert any("spare" in note for note in model.notes)


def _changed(graph: SpikingGraph, what: str) -> SpikingGraph:
    if what == "epsilon":
        node = graph["bn"]
        assert isinstance(node, BatchNorm)
        return graph.replaced({"bn": replace(node, epsilon=1.01e-5)})
    if what == "weights":
        node = graph["conv"]
        assert isinstance(node, Conv2d)
        return graph.replaced({"conv": replace(node, weight=frozen(node.weight * (1 + 2.0**-24)))})
    node = graph["sn2"]
    assert isinstance(node, Neuron)
    return graph.replaced({"sn2": replace(node, beta=frozen(node.beta + 1e-7))})


@pytest.mark.parametrize("what", ["epsilon", "weights", "leak"])
def test_small_faults_show_in_currents_or_potentials(what: str) -> None:
    model, batch = captured("plain")
    faulty = _changed(model.graph, what)
    currents, membranes = largest_gaps(faulty, model, batch)
    assert (membranes if what == "leak" else currents) > 1e-11
    if what == "leak":
        assert currents < 1e-12  # currents alone would not tell


def test_loops_of_all_readouts_are_one_graph() -> None:
    graphs = [captured(name)[0].graph for name in ("plain", "loop, mean", "loop, accumulate", "loop, shares")]
    kinds = [[(type(node).__name__, node.name) for node in graph.nodes] for graph in graphs]
    assert all(other == kinds[0] for other in kinds[1:])
    assert isinstance(Loop("mean"), Plain)


@pytest.mark.parametrize("v_reset", [-0.2, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_that_float32_lacks_are_those_of_the_modules_dtype(v_reset: float, dtype: torch.dtype) -> None:
    from dalif_deploy import DALIF, capture

    torch.manual_seed(0)
    parts = (torch.nn.Linear(12, 20), DALIF(v_threshold=0.2, v_reset=v_reset), torch.nn.Linear(20, 4))
    net = torch.nn.Sequential(*parts).to(dtype)
    graph = capture(net, example_input=torch.rand(6, 12, dtype=dtype) * 2, timesteps=4)
    expected = v_reset if dtype == torch.float64 else float(np.float32(v_reset))
    assert graph.neurons[0].v_reset == expected
