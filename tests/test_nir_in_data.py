"""Files that norse, sinabs and rockpool wrote, on real recordings, against norse and SpikingJelly themselves.

The simulators' neurons are their own; the steps are wired here: a recurrent edge delivers the step before.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dalif_deploy.capturing.nir_in.reading import Answers, read_foreign_nir
from dalif_deploy.deploy import LoadOptions, export, run
from dalif_deploy.equivalence import simulate
from dalif_deploy.passes import fold
from dalif_deploy.runtimes.events import EventsRuntime

STEP = 1e-4
Spikes = Mapping[str, NDArray[np.bool_]]


def spikes_everywhere(path: Path, data: NDArray[Any], answers: Answers, folder: Path) -> list[Spikes]:
    """By layer, [N, T, ...]: the float64 reference, the events runtime, and ONNX Runtime on an export."""
    found = read_foreign_nir(path, answers).graph
    options = LoadOptions(dt=answers.dt, timesteps=data.shape[1])
    export(path, folder / "net.onnx", to="onnx", options=options, data=data[:1], verified=False)
    recordings = [simulate(found, data), EventsRuntime(fold(found)).run(data)]
    recordings += run(folder / "net.onnx", data)
    return [{name: train.unpack() for name, train in recording.spikes.items()} for recording in recordings]


@pytest.mark.parametrize(
    ("name", "layer", "key"),
    [
        ("lif_norse", "1", "lif_norse_spike_steps"),
        ("lif_rockpool", "1_LIFNeuronTorch", "lif_rockpool_spike_steps"),
        ("two_lif_neurons", "lif1", None),
    ],
)
def test_one_neuron_fires_at_the_known_steps(
    name: str, layer: str, key: str | None, test_data: Path, tmp_path: Path
) -> None:
    reference = np.load(test_data / "lif_single" / "reference.npz")
    known = {
        "lif_norse": [460, 510, 710, 760],
        "lif_rockpool": [460, 520, 720, 780],  # with r = 24.02; without it there are none
        "two_lif_neurons": [178, 357, 536, 715, 894],  # v_leak = 1.2 alone drives it
    }[name]
    data = reference["input"].astype(np.float32)[None, :, None]
    if key is None:
        data = np.zeros_like(data)
    else:
        assert reference[key].tolist() == known
    path = test_data / "nir_graphs" / f"{name}.nir"
    for spikes in spikes_everywhere(path, data, Answers(dt=STEP, data=data.shape), tmp_path):
        assert np.flatnonzero(spikes[layer][0]).tolist() == known


def recordings(test_data: Path, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first N-MNIST recordings as event counts of 1 ms, [count, 300, 2, 34, 34], and their labels."""
    events = np.load(test_data / "nmnist" / "nmnist_events_300.npz")
    binned = np.zeros((count, 300, 2, 34, 34), dtype=np.float32)
    for i in range(count):
        some = slice(events["offsets"][i], events["offsets"][i + 1])
        step = events["t_us"][some] // 1000
        within = step < 300
        places = (step[within], *(events[key][some][within] for key in ("p", "y", "x")))
        np.add.at(binned[i], places, 1.0)
    return binned, events["label"][:count].astype(np.int64)


def norse_spikes(path: Path, data: NDArray[np.float32], late: tuple[str, str] | None = None) -> Spikes:
    """What norse's own modules fire, layer by layer."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        from norse.torch.utils.import_nir import _import_norse_module
    graph = nir.read(str(path))
    sources = {name: [a for a, b in graph.edges if b == name] for name in graph.nodes}
    modules = {
        name: _import_norse_module(node, ignore_warnings=True, dt=STEP)
        for name, node in graph.nodes.items()
        if not isinstance(node, nir.Input | nir.Output | nir.Flatten)
    }
    layers = [name for name, node in graph.nodes.items() if isinstance(node, nir.IF | nir.LIF | nir.CubaLIF)]
    assert layers
    assert all("norse" in type(modules[name]).__module__ for name in layers)
    fired: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in layers}
    state: dict[str, Any] = {}

    def value(name: str, x: torch.Tensor, values: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> Any:
        if name in values:
            return values[name]
        heard = [
            before.get(source) if (source, name) == late else value(source, x, values, before)
            for source in sources[name]
        ]
        there = [h for h in heard if h is not None]
        total = sum(there[1:], there[0]) if there else x
        if isinstance(graph.nodes[name], nir.Flatten):
            total = total.flatten(1)  # norse would flatten the batch
        elif name in layers:
            total, state[name] = modules[name](total, state.get(name))
        elif name in modules:
            total = modules[name](total)
        values[name] = total
        return total

    before: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for t in range(data.shape[1]):
            values: dict[str, torch.Tensor] = {}
            for name in graph.nodes:
                value(name, torch.from_numpy(data[:, t]), values, before)
            before = values
            for name in layers:
                fired[name].append(values[name].numpy() != 0.0)
    return {name: np.stack(steps, axis=1) for name, steps in fired.items()}


@pytest.mark.simulators
def test_a_trained_network_of_sinabs_fires_on_real_recordings_as_in_norse(test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("norse")
    data, labels = recordings(test_data, 25)
    path = test_data / "nir_graphs" / "cnn_sinabs.nir"
    expected = norse_spikes(path, data)
    assert sorted(expected) == ["1", "10", "12", "3", "6"]
    assert all(layer.mean() > 0.002 for layer in expected.values())
    found = read_foreign_nir(path, Answers(data=data.shape))
    assert "IF with r = 1 taken as unit gain: 1, 3, 6, 10, 12" in found.notes
    reference = simulate(found.graph, data)
    export(path, tmp_path / "net.onnx", to="onnx", data=data[:1], verified=False)
    (onnx,) = run(tmp_path / "net.onnx", data)
    events = EventsRuntime(fold(found.graph)).run(data[:3])
    for name, layer in expected.items():
        assert np.array_equal(reference.spikes[name].unpack(), layer), name
        assert np.array_equal(onnx.spikes[name].unpack(), layer), name
        assert np.array_equal(events.spikes[name].unpack(), layer[:3]), name
    # The digits that it counts the most spikes for are right; it was trained on others of the same set.
    assert np.mean(reference.logits.argmax(axis=1) == labels) >= 0.96


@pytest.mark.simulators
def test_a_recurrent_network_fires_as_in_norse_and_spikingjelly(test_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("norse")
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    data = (np.random.default_rng(1).random((8, 100, 12)) < 0.3).astype(np.float32)
    path = test_data / "nir_graphs" / "braille_noDelay_bias_zero.nir"
    network = import_from_nir(str(path), dt=STEP)
    hidden: list[NDArray[np.float32]] = []
    network.get_submodule("lif1_lif").register_forward_hook(lambda _m, _i, out: hidden.append(out[0].numpy().copy()))
    outputs, state = [], None
    with torch.no_grad():
        for t in range(data.shape[1]):
            out, state = network(torch.from_numpy(data[:, t]), state)
            outputs.append(out.numpy().copy())
    jelly = {"lif1.lif": np.stack(hidden, axis=1) != 0.0, "lif2": np.stack(outputs, axis=1) != 0.0}
    norse = norse_spikes(path, data, late=("lif1.w_rec", "lif1.lif"))
    assert all(layer.mean() > 0.002 for layer in norse.values())
    found = read_foreign_nir(path, Answers(dt=STEP, data=data.shape))
    assert "recurrence: 'lif1.lif' hears 'lif1.w_rec' of the step before" in found.notes
    for spikes in spikes_everywhere(path, data, Answers(dt=STEP, data=data.shape), tmp_path):
        for name, layer in spikes.items():
            assert np.array_equal(layer, norse[name]), name
            assert np.array_equal(layer, jelly[name]), name
