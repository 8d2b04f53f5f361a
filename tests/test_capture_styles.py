"""Code as people write it is captured as it is: in every style the graph fires what the module fires."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dalif_deploy import export, save
from dalif_deploy.capturing import CapturedModule, capture_module, neurons
from dalif_deploy.equivalence.replay import NeuronStep, replay, simulate
from dalif_deploy.graph import SpikingGraph
from tests.style_models import STYLES, TIME_FIRST, T, built, register_all


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "_READERS", {})
    register_all()


def captured(name: str) -> tuple[CapturedModule, np.ndarray]:
    module, x = built(name)
    return capture_module(module, example_input=x, timesteps=T, **STYLES[name].arguments), x.numpy()


def gaps(graph: SpikingGraph, model: CapturedModule, batch: np.ndarray) -> float:
    """The largest relative difference of currents and known potentials, graph against module."""
    currents, potentials = model.currents(batch), model.membranes(batch)
    largest = [0.0]

    def visit(step: NeuronStep) -> None:
        name, t = step.neuron.name, step.t
        pairs = [(step.current, currents[name][:, t])]
        if name in potentials:
            pairs.append((step.held, potentials[name][:, t]))
        for mine, theirs in pairs:
            known = ~np.isnan(theirs)
            gap = np.abs(mine - theirs)[known] / np.maximum(np.abs(theirs[known]), 1.0)
            largest.append(float(gap.max(initial=0.0)))

    replay(graph, batch, visit)
    return max(largest)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", STYLES)
def test_graph_does_what_the_module_does(name: str) -> None:
    style = STYLES[name]
    model, batch = captured(name)
    graph = model.graph
    assert (model.layout, graph.readout.mode, graph.input.temporal) == (style.layout, style.readout, style.temporal)
    assert graph.input.shape == (2, 8, 8)
    assert set(style.notes) <= set(model.notes), model.notes
    ours, theirs = simulate(graph, batch), model.run_float64(batch)
    assert ours.spikes.keys() == theirs.spikes.keys()
    for layer, train in ours.spikes.items():
        assert not train.differing(theirs.spikes[layer]).any(), layer
        assert 0.01 < train.count() / train.neuron_steps < 0.95, (layer, train.count() / train.neuron_steps)
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-12, atol=1e-13)
    assert gaps(graph, model, batch) < 1e-12


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", STYLES)
def test_a_file_of_it_fires_what_the_module_fires(name: str, tmp_path: Path) -> None:
    style = STYLES[name]
    module, x = built(name)
    example = x.transpose(0, 1) if TIME_FIRST in style.notes else x  # as forward takes it
    save(module, tmp_path / "net.pt", example_input=example, timesteps=T, **style.arguments)
    verdict = export(tmp_path / "net.pt", tmp_path / "net.onnx", to="onnx").verdict
    assert verdict is not None
    assert not verdict.vacuous
    assert {str(verdict.outcome), *(str(runtime.outcome) for runtime in verdict.runtimes)} == {"exact"}
    assert {str(link.outcome) for link in verdict.links.values() if link} == {"exact"}
    assert {"events", "onnxruntime"} <= {runtime.comparison.name for runtime in verdict.runtimes}
