"""Examples written against SpikingJelly and snnTorch: trained for seconds, exported with no change to their code."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.commands import done
from tests.neuron_packages import package

pytestmark = pytest.mark.simulators

EXAMPLES = Path(__file__).parents[1] / "examples"
CASES = {
    "spikingjelly": ("digits_spikingjelly", 4, (1, 8, 8), 3),
    "snntorch": ("digits_snntorch", 8, (64,), 8),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_of_the_package_is_trained_exported_and_fires_the_same_spikes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, timesteps, shape, epochs = CASES[name]
    package(name)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    example = import_module(module)
    torch.manual_seed(0)
    net = example.DigitsNet()
    assert example.train(net, epochs=epochs) > 0.8
    torch.save(net.state_dict(), "net.pt")
    _, _, x_test, y_test = import_module("digits_data").load_split()
    inputs = (x_test[:40] / 16).astype(np.float32).reshape(-1, *shape)
    np.savez("digits.npz", inputs=inputs, labels=y_test[:40])
    options = ["--model", f"{module}:DigitsNet", "-T", timesteps, "--input-shape", ",".join(map(str, shape))]
    done("export", "--to", "onnx", "net.pt", *options)
    verdict = done("verify", "net.pt", "net.onnx", *options, "--data", "digits.npz", "--json").json()
    assert verdict["links"]["module"]["spikes_differing"] == 0
    assert verdict["accuracy"] > 0.8
    runtimes = {runtime["name"]: runtime for runtime in verdict["runtimes"]}
    assert runtimes.keys() == {"torch", "events", "onnxruntime"}
    for runtime in runtimes.values():
        assert (runtime["spikes_differing"], runtime["verdict"]) == (0, "exact")
    assert all(0.02 < rate < 0.6 for rate in verdict["rates"].values())
    sys.modules.pop(module)
