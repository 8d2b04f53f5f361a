"""The example that ships: its data, its split, its training script."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dalif_deploy.deploy import load
from dalif_deploy.encoding import Encoding

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """examples/train_digits.py, imported as it imports its neighbours when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import train_digits

        yield train_digits


def test_the_split_is_fixed_stratified_and_disjoint(script: ModuleType) -> None:
    import digits_data

    held_out = digits_data.held_out_indices()
    assert hashlib.sha256(held_out.astype("<i8").tobytes()).hexdigest() == (
        "2fbaae31b8c6aad12464a07771b64269876d904bfed86f77a63c8265fa201621"
    )
    assert len(np.unique(held_out)) == 360
    assert held_out.min() >= 0
    assert held_out.max() < 1797
    x_train, y_train, x_test, y_test = script.load_split()
    assert x_train.dtype == x_test.dtype == np.uint8
    assert x_train.shape == (1437, 1, 8, 8)
    assert x_test.shape == (360, 1, 8, 8)
    assert (x_train.min(), x_train.max(), x_test.max()) == (0, 16, 16)
    assert np.abs(np.bincount(y_test) - 360 * np.bincount(np.r_[y_train, y_test]) / 1797).max() < 1.0
    trained_on = {image.tobytes() for image in x_train}
    assert not any(image.tobytes() in trained_on for image in x_test)


def test_images_become_the_networks_input(script: ModuleType) -> None:
    inputs = script.to_input(np.array([0, 4, 16], dtype=np.uint8).reshape(3, 1, 1, 1))
    assert inputs.dtype == torch.float32
    assert inputs.flatten().tolist() == [0.0, 0.25, 1.0]


def test_three_epochs_teach_the_network_and_move_its_decays(script: ModuleType) -> None:
    x_train, y_train, x_test, y_test = script.load_split()
    torch.manual_seed(0)
    net = script.DigitsNet()
    untrained = script.accuracy(net, x_test, y_test)
    losses = list(script.train(net, x_train, y_train, epochs=3))
    assert losses[0] > losses[1] > losses[2]
    assert script.accuracy(net, x_test, y_test) > untrained + 0.2
    rates = script.firing_rates(net, x_test)
    assert list(rates) == ["sn1", "sn2", "sn3"]
    assert all(0.0 < rate < 0.5 for rate in rates.values())
    for name in rates:
        layer = net.get_submodule(name)
        assert layer.a.item() != 1.0
        assert layer.b.item() != 1.0


def test_training_goes_on_after_a_test_between_epochs(script: ModuleType) -> None:
    x_train, y_train, _, _ = script.load_split()
    net = script.DigitsNet()
    for _ in script.train(net, x_train[:64], y_train[:64], epochs=2):
        statistics = net.bn1.num_batches_tracked.item()
        script.accuracy(net, x_train[:8], y_train[:8])
    assert statistics == 2 * script.TIMESTEPS


def test_firing_rates_are_shares_of_neuron_steps(script: ModuleType) -> None:
    net = script.DigitsNet()
    with torch.no_grad():
        for layer in (net.sn1, net.sn2, net.sn3):
            layer.a.fill_(0.0)
        # sn1: X = 0.5 everywhere, alpha 1, beta 0.5: potentials .5, .75, .875, then .5 after the spike.
        net.bn1.weight.zero_()
        net.bn1.bias.fill_(0.5)
        net.sn1.activation = "identity"
        net.sn1.a.fill_(1.0)
        net.sn1.b.fill_(0.5)
        net.sn1.v_threshold = 0.8
    rates = script.firing_rates(net, np.zeros((2, 1, 8, 8), dtype=np.uint8))
    assert rates == {"sn1": 0.25, "sn2": 0.0, "sn3": 0.0}


def test_a_prediction_is_the_average_over_four_fresh_timesteps(script: ModuleType) -> None:
    torch.manual_seed(0)
    net = script.DigitsNet().eval()
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        predicted = script.predict(net, images)
        assert torch.equal(script.predict(net, images), predicted)  # nothing carried over
        script.reset(net)
        total = sum(net(images) for _ in range(4))
        torch.testing.assert_close(predicted, total / 4)
        assert predicted.shape == (2, 10)


def test_firing_rates_leave_no_hook_behind(script: ModuleType) -> None:
    net = script.DigitsNet()
    codes = np.full((2, 1, 8, 8), 16, dtype=np.uint8)
    script.firing_rates(net, codes)
    assert not any(module._forward_hooks for module in net.modules())


def test_the_command_refuses_no_epochs(script: ModuleType) -> None:
    result = CliRunner().invoke(script.main, ["--epochs", "0"])
    assert result.exit_code == 2
    assert "--epochs" in result.output


def test_the_command_writes_a_model_that_loads(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "digits.pt"
    result = CliRunner().invoke(script.main, ["--epochs", "2", "--seed", "1", "--output", str(path)])
    assert result.exit_code == 0, result.output
    assert "accuracy on the 360 held-out digits" in result.stdout
    assert "readout='mean'" in result.stderr
    assert "epoch" not in result.stderr  # no progress bar where there is no terminal
    graph = load(path)
    assert [neuron.name for neuron in graph.neurons] == ["sn1", "sn2", "sn3"]
    assert graph.input_spec.timesteps == 4
    assert graph.input_spec.encoding == Encoding(kind="uint8", scale=1 / 16)
    assert graph.class_names == tuple("0123456789")
    assert path.stat().st_size <= 500_000
