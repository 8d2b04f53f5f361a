"""The paper's networks: their layers counted, and every one of them captured, folded, exported and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch import nn

from dalif_deploy import DALIF, Encoding, capture, fold, load, to_onnx
from dalif_deploy.equivalence import Comparer, Outcome, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.networks import calibrate, firing_rates, resnet18, resnet19, resnet20, resnet34, vgg11, vgg16, vggsnn
from dalif_deploy.networks.network import Network
from dalif_deploy.networks.resnet import Block
from dalif_deploy.nodes import AvgPool2d, BatchNorm, Conv2d, Neuron, SumPool2d
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.onnxruntime import OnnxRuntime

LAYERS_FIRE = (0.02, 0.4)


def parameter_count(network: nn.Module) -> int:
    """All parameters but alpha and beta."""
    decays = {id(p) for module in network.modules() if isinstance(module, DALIF) for p in module.parameters()}
    return sum(p.numel() for p in network.parameters() if id(p) not in decays)


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize(
    ("build", "parameters", "neurons", "convolutions"),
    [
        (partial(resnet20, num_classes=100), 11_294_116, 19, 22),
        (partial(resnet20, num_classes=10, in_channels=2), 11_247_370, 19, 22),
        (partial(resnet19, num_classes=100), 12_615_396, 17, 19),
        (partial(vgg16, num_classes=100), 14_774_436, 13, 13),
        (resnet18, 11_689_512, 17, 20),
        (resnet34, 21_797_672, 33, 36),
        # Summed by hand: eight 3x3 convolutions 9,217,152, their biases 2,752, BatchNorm 5,504, and the classifier.
        (vgg11, 9_225_408 + 512 * 11 + 11, 8, 8),
        (vggsnn, 9_225_408 + 512 * 9 * 10 + 10, 8, 8),
        # 16: 1*16*9 + 8*16*16*9, 16->32->64 by hand; BatchNorm 2 x channels; the classifier.
        (
            partial(resnet20, num_classes=10, in_channels=1, widths=(16, 32, 64)),
            9 * (16 + 8 * 256 + 512 + 5 * 1024 + 2048 + 3 * 4096) + 512 + 2048
            + 2 * (9 * 16 + 7 * 32 + 5 * 64) + 650, 19, 21,
        ),
    ],
    ids=["resnet20", "resnet20-dvs", "resnet19", "vgg16", "resnet18", "resnet34", "vgg11", "vggsnn", "narrow"],
)  # fmt: skip
def test_parameters_and_layers_are_the_papers(
    build: Callable[[], Network], parameters: int, neurons: int, convolutions: int
) -> None:
    with torch.device("meta"):
        network = build()
    assert parameter_count(network) == parameters
    assert sum(p.numel() for p in network.parameters()) == parameters + 2 * neurons
    assert count(network, DALIF) == neurons
    assert count(network, nn.Conv2d) == convolutions


def shapes(network: Network, size: int) -> dict[str, tuple[int, ...]]:
    """By neuron layer, its shape for images of this size."""
    found: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_modules():
        if isinstance(module, DALIF):
            module.register_forward_hook(
                lambda _module, _inputs, out, name=name: found.__setitem__(name, tuple(out.shape[1:]))
            )
    with torch.no_grad():
        network(torch.zeros(1, network.in_channels, size, size))
    return found


def test_resnet20_at_32_pixels_is_the_table() -> None:
    found = shapes(resnet20().eval(), 32)
    assert list(found.values()) == (
        3 * [(64, 32, 32)] + 4 * [(64, 16, 16)] + 4 * [(128, 8, 8)] + 4 * [(256, 4, 4)] + 4 * [(512, 2, 2)]
    )
    assert list(found)[:5] == ["stem.0.sn", "stem.1.sn", "stem.2.sn", "layer1.0.sn1", "layer1.0.sn2"]


def test_resnet18_at_224_pixels_is_the_table() -> None:
    narrow = resnet18(num_classes=3, widths=(2, 3, 4, 5)).eval()
    assert list(shapes(narrow, 224).values()) == (
        [(2, 112, 112)] + 4 * [(2, 56, 56)] + 4 * [(3, 28, 28)] + 4 * [(4, 14, 14)] + 4 * [(5, 7, 7)]
    )


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        (resnet19(widths=(2, 3, 4)), 32, 7 * [(2, 32, 32)] + 6 * [(3, 16, 16)] + 4 * [(4, 8, 8)]),
        (
            vgg16(widths=(2, 3, 4, 5, 6)), 32,
            2 * [(2, 32, 32)] + 2 * [(3, 16, 16)] + 3 * [(4, 8, 8)] + 3 * [(5, 4, 4)] + 3 * [(6, 2, 2)],
        ),
        (
            vgg11(widths=(2, 3, 4, 5, 6)), 128,
            [(2, 128, 128), (3, 64, 64)] + 2 * [(4, 32, 32)] + 2 * [(5, 16, 16)] + 2 * [(6, 8, 8)],
        ),
        (
            vggsnn(widths=(2, 3, 4, 5, 6)), 48,
            [(2, 48, 48), (3, 48, 48)] + 2 * [(4, 24, 24)] + 2 * [(5, 12, 12)] + 2 * [(6, 6, 6)],
        ),
    ],
    ids=["resnet19", "vgg16", "vgg11", "vggsnn"],
)  # fmt: skip
def test_pools_and_strides_stand_where_the_table_has_them(
    network: Network, size: int, expected: list[tuple[int, ...]]
) -> None:
    assert list(shapes(network.eval(), size).values()) == expected


def test_the_last_batch_norm_of_every_block_of_resnet20_starts_at_zero() -> None:
    network = resnet20(num_classes=2, widths=(4, 5, 6))
    zero = [name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    assert zero == [name for name, _ in network.named_modules() if name.endswith(".bn2")]
    assert len(zero) == 8
    other = resnet18(num_classes=2, widths=(4, 5, 6, 7))
    assert all(m.weight.eq(1).all() for m in other.modules() if isinstance(m, nn.BatchNorm2d))


def test_eight_blocks_are_spread_over_any_number_of_widths() -> None:
    for blocks in ([2, 2, 2, 2], [3, 3, 2], [8], [2, 2, 2, 1, 1]):
        stages = dict(resnet20(num_classes=2, widths=[2] * len(blocks)).named_children())
        made = [stages[f"layer{number + 1}"] for number in range(len(blocks))]
        assert [count(stage, Block) for stage in made] == blocks


def test_only_convolutions_of_the_vggs_have_a_bias() -> None:
    with torch.device("meta"):
        for build in (resnet18, resnet19, resnet20, vgg11, vgg16, vggsnn):
            biases = {m.bias is not None for m in build().modules() if isinstance(m, nn.Conv2d)}
            assert biases == {build in (vgg11, vgg16, vggsnn)}


def test_the_paper_says_how_many_timesteps_and_the_caller_may_say_otherwise() -> None:
    with torch.device("meta"):
        assert [build().timesteps for build in (resnet20, resnet18, vgg16, vggsnn, vgg11)] == [4, 4, 4, 10, 16]
        assert resnet20(in_channels=2, timesteps=16).timesteps == 16


def test_neurons_are_made_by_the_callers_function() -> None:
    network = vgg16(num_classes=2, widths=(2, 2, 2, 2, 2), neuron=partial(DALIF, activation="sigmoid"))
    neurons = [module for module in network.modules() if isinstance(module, DALIF)]
    assert len(neurons) == len({id(neuron) for neuron in neurons}) == 13
    assert {neuron.activation for neuron in neurons} == {"sigmoid"}


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (partial(resnet20, num_classes=0), "num_classes = 0"),
        (partial(resnet19, in_channels=1.5), "in_channels = 1.5"),
        (partial(vgg16, timesteps=True), "timesteps = True"),
        (partial(resnet20, widths=()), "1 to 8 stages"),
        (partial(resnet18, widths=(1, 2, 3)), "4 stages"),
        (partial(vgg11, widths=(1, 2, 3, 4, 0)), r"widths\[4\] = 0"),
        (partial(vggsnn, size=15), "size = 15"),
    ],
)
def test_unusable_arguments_are_refused(build: Callable[[], Network], word: str) -> None:
    with pytest.raises(DalifError, match=word) as refused:
        build()
    assert refused.value.code == Code.BAD_OPTION


@pytest.mark.parametrize(
    ("network", "shape", "wanted"),
    [
        (vggsnn(widths=(2, 2, 2, 2, 2)), (1, 2, 32, 32), r"\[batch, 2, 48, 48\]"),
        (vgg16(widths=(2, 2, 2, 2, 2)), (1, 3, 31, 32), "at least 32"),
        (resnet20(widths=(2,)), (1, 1, 32, 32), r"\[batch, 3, height, width"),
        (resnet19(widths=(2, 2, 2)), (3, 32, 32), r"\[batch, 3, height, width\]"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(network: Network, shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(DalifError, match=wanted) as refused:
        network(torch.zeros(shape))
    assert refused.value.code == Code.WRONG_SHAPE


# Calibration


def test_untrained_and_uncalibrated_networks_are_silent() -> None:
    # What calibration is for: without it nearly every comparison would be one of zeros.
    torch.manual_seed(0)
    network = resnet20(num_classes=10, widths=(16, 32, 64))
    rates = list(firing_rates(network, torch.rand(2, 3, 32, 32), 4).values())
    assert sum(rate < 1e-3 for rate in rates) >= 12


def test_calibration_gives_every_norm_the_statistics_of_its_input() -> None:
    torch.manual_seed(0)
    network = resnet20(num_classes=10, widths=(4, 6, 8))
    batch = torch.rand(4, 3, 16, 16)
    outputs: dict[str, list[torch.Tensor]] = {}
    calibrate(network, batch, 3)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            outputs[name] = []
            module.register_forward_hook(lambda _m, _i, out, name=name: outputs[name].append(out))
    firing_rates(network, batch, 3)
    assert len(outputs) == 21
    for name, steps in outputs.items():
        assert len(steps) == 3
        values = torch.stack(steps).double().transpose(0, 2).flatten(1)
        variance, mean = torch.var_mean(values, dim=1, correction=0)
        # Epsilon takes its share of the variance, var / (var + 1e-5).
        measured = network.get_submodule(name).running_var
        assert isinstance(measured, torch.Tensor)
        expected = measured.double() / (measured.double() + 1e-5)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)
        torch.testing.assert_close(variance, expected, atol=1e-5, rtol=1e-5)


def test_calibration_leaves_weights_modes_and_hooks_alone() -> None:
    torch.manual_seed(0)
    network = resnet20(num_classes=10, widths=(4, 6))
    network.stem.eval()
    weights = {name: p.clone() for name, p in network.named_parameters() if not name.endswith("bn2.weight")}
    calibrate(network, np.random.default_rng(0).random((2, 3, 8, 8)), 2)
    assert network.training
    assert not network.stem.training
    assert network.layer1.training
    named = dict(network.named_parameters())
    assert all(torch.equal(named[name], value) for name, value in weights.items())
    assert all(p.eq(1).all() for name, p in named.items() if name.endswith("bn2.weight"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(m.v is None for m in network.modules() if isinstance(m, DALIF))


def test_rates_are_shares_of_neuron_steps_over_a_sequence() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sn = DALIF(activation="identity", beta_init=0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.sn(x)  # type: ignore[no-any-return]

    # 0.75: V = 0.75, then 1.125 fires, then 0.75; 1 fires at every step; 0 never.
    batch = torch.tensor([[0.75, 1.0], [0.0, 0.0]])
    assert firing_rates(Net(), batch, 3) == {"sn": pytest.approx((1 + 3) / 12)}
    frames = torch.tensor([[[0.75], [0.0], [1.0]]])
    assert firing_rates(Net(), frames, 3, temporal=True) == {"sn": pytest.approx(1 / 3)}


class Shared(nn.Module):
    """One BatchNorm in two places."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(2, **options)  # type: ignore[arg-type]
        self.twice = not options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(x)
        return self.bn(x) if self.twice else x  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("module", "batch", "timesteps", "temporal", "code", "word"),
    [
        (Shared(), np.ones((3, 2)), 2, False, Code.UNSUPPORTED_LAYER, "'bn' .*more than once"),
        (Shared(track_running_stats=False), np.ones((3, 2)), 2, False, Code.UNSUPPORTED_LAYER, "no statistics"),
        (Shared(), np.ones((3, 2)), 0, False, Code.BAD_OPTION, "timesteps = 0"),
        (Shared(), np.ones((3, 4, 2)), 2, True, Code.WRONG_SHAPE, r"\[batch, 2, ...\]"),
        (Shared(), np.ones(3), 2, False, Code.WRONG_SHAPE, r"\[batch, ...\]"),
        (Shared(), np.array([[1.0, np.nan]]), 2, False, Code.NOT_FINITE, "NaN"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    module: nn.Module, batch: NDArray[np.float64], timesteps: int, temporal: bool, code: Code, word: str
) -> None:
    with pytest.raises(DalifError, match=word) as refused:
        calibrate(module, batch, timesteps, temporal=temporal)
    assert refused.value.code == code
    assert not any(m._forward_pre_hooks for m in module.modules())


# Capture, folding, export


@dataclass(frozen=True)
class Recipe:
    """A network with few channels, and the size of its images; temporal where it takes event frames."""

    build: Callable[[], Network]
    size: int
    timesteps: int
    folded: dict[type, int]
    """How many nodes of some kinds the folded graph has."""

    @property
    def temporal(self) -> bool:
        return self.build().in_channels == 2


FIVE = (8, 12, 16, 16, 16)
RECIPES = {
    "resnet20": Recipe(partial(resnet20, 10, widths=(8, 12, 16, 16)), 32, 4, {Conv2d: 22, SumPool2d: 4, AvgPool2d: 1}),
    "resnet20 of three stages": Recipe(
        partial(resnet20, 10, widths=(8, 12, 16)), 16, 16, {Conv2d: 21, SumPool2d: 3, AvgPool2d: 1}
    ),
    "resnet20-dvs": Recipe(
        partial(resnet20, 10, 2, widths=(6, 8, 12, 16)), 64, 4, {Conv2d: 22, SumPool2d: 4, AvgPool2d: 1}
    ),
    "resnet20 at an odd size": Recipe(
        # 9 -> 5 -> 3: the shortcuts' last windows hang over the edge, and stay averages.
        partial(resnet20, 10, widths=(8, 12, 16)), 18, 4, {Conv2d: 21, SumPool2d: 1, AvgPool2d: 3}
    ),
    "resnet19": Recipe(partial(resnet19, 10, widths=(8, 12, 16)), 16, 4, {Conv2d: 19, SumPool2d: 1}),
    "vgg16": Recipe(partial(vgg16, 10, widths=FIVE), 64, 4, {Conv2d: 13, SumPool2d: 5, AvgPool2d: 1}),
    "vgg11": Recipe(partial(vgg11, widths=FIVE), 64, 16, {Conv2d: 8, SumPool2d: 5, AvgPool2d: 1}),
    "vggsnn": Recipe(partial(vggsnn, size=48, widths=FIVE), 48, 10, {Conv2d: 8, SumPool2d: 4}),
    "resnet18": Recipe(partial(resnet18, 10, widths=(8, 12, 16, 16)), 64, 4, {Conv2d: 20, SumPool2d: 1, AvgPool2d: 1}),
    "resnet34": Recipe(partial(resnet34, 10, widths=(8, 12, 16, 16)), 64, 4, {Conv2d: 36, SumPool2d: 1, AvgPool2d: 1}),
}  # fmt: skip


@dataclass(frozen=True)
class Captured:
    graph: SpikingGraph
    folded: SpikingGraph
    batch: NDArray[np.float32]
    reference: Recording
    rates: dict[str, float]


@cache
def captured(name: str) -> Captured:
    """The calibrated network of a recipe, captured with its proof, folded, and replayed."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    network = recipe.build()
    rng = np.random.default_rng(1)
    shape = (network.in_channels, recipe.size, recipe.size)
    if recipe.temporal:
        batch = (rng.random((2, recipe.timesteps, *shape)) < 0.2).astype(np.float32)
    else:
        batch = rng.random((3, *shape), dtype=np.float32)
    rates = calibrate(network, batch, recipe.timesteps, temporal=recipe.temporal)
    graph = capture(network, example_input=batch, timesteps=recipe.timesteps)
    return Captured(graph, fold(graph), batch, simulate(graph, batch), rates)


@pytest.mark.parametrize("name", RECIPES)
def test_every_layer_fires_once_calibrated(name: str) -> None:
    case = captured(name)
    replayed = {layer: train.count() / train.neuron_steps for layer, train in case.reference.spikes.items()}
    assert all(LAYERS_FIRE[0] <= rate <= LAYERS_FIRE[1] for rate in replayed.values()), replayed
    # The module counted in float32; the names and shares are the graph's.
    assert list(case.rates) == list(replayed)
    assert case.rates == pytest.approx(replayed, rel=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_a_captured_network_has_the_modules_layers(name: str) -> None:
    case, network = captured(name), RECIPES[name].build()
    assert case.graph.input.temporal == RECIPES[name].temporal
    assert sum(isinstance(node, Neuron) for node in case.graph.nodes) == count(network, DALIF)
    assert sum(isinstance(node, Conv2d) for node in case.graph.nodes) == count(network, nn.Conv2d)
    assert sum(isinstance(node, BatchNorm) for node in case.graph.nodes) == count(network, nn.BatchNorm2d)
    learned = sum(
        value.size for node in case.graph.nodes if not isinstance(node, Neuron)
        for key, value in node.arrays().items() if key in ("weight", "bias")
    )  # fmt: skip
    assert learned == parameter_count(network)


@pytest.mark.parametrize("name", RECIPES)
def test_folding_changes_no_spike_and_sums_where_windows_are_whole(name: str) -> None:
    case = captured(name)
    folded = simulate(case.folded, case.batch)
    differing = {
        layer: int(train.differing(folded.spikes[layer]).sum()) for layer, train in case.reference.spikes.items()
    }
    assert not any(differing.values()), differing
    kinds = {kind: sum(type(node) is kind for node in case.folded.nodes) for kind in (Conv2d, SumPool2d, AvgPool2d)}
    assert kinds == {SumPool2d: 0, AvgPool2d: 0} | RECIPES[name].folded


@pytest.mark.parametrize("name", RECIPES)
def test_onnx_runtime_fires_the_same_spikes(name: str, tmp_path: Path) -> None:
    case = captured(name)
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(case.folded).SerializeToString())
    recording = OnnxRuntime(path, threads=1).run(case.batch)
    comparer = Comparer("onnxruntime", case.graph)
    comparer.add(case.batch, case.reference, recording)
    result = comparer.result()
    assert result.outcome <= Outcome.ROUNDING, result.origins[:3]
    assert sum(train.neuron_steps for train in recording.spikes.values()) == result.spikes_compared


# The shipped ResNet-20 and the script that trained it

EXAMPLES = Path(__file__).parents[1] / "examples"
SHIPPED = EXAMPLES / "models" / "resnet20_digits.pt"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """examples/train_resnet_digits.py, imported as it imports its neighbours when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import train_resnet_digits

        yield train_resnet_digits


def test_enlarged_digits_are_interpolated_codes(script: ModuleType) -> None:
    codes = np.zeros((1, 1, 8, 8), dtype=np.uint8)
    codes[0, 0, 2, 3] = 16
    larger = script.enlarged(codes)
    assert larger.dtype == np.uint8
    assert larger.shape == (1, 1, 32, 32)
    # A tent four pixels wide on each side, sampled at eighths: 16 * w(y) * w(x), rounded half to even.
    tent = np.array([1, 3, 5, 7, 7, 5, 3, 1]) / 8
    expected = np.zeros((32, 32))
    expected[6:14, 10:18] = np.round(16 * np.outer(tent, tent))
    np.testing.assert_array_equal(larger[0, 0], expected)


def test_the_shipped_resnet20_knows_the_held_out_digits(script: ModuleType, tmp_path: Path) -> None:
    graph = load(SHIPPED)
    assert graph.input_spec.encoding == Encoding(kind="uint8", scale=1 / 16)
    assert (graph.input_spec.shape, graph.input_spec.temporal, graph.timesteps) == ((1, 32, 32), False, 4)
    assert graph.class_names == tuple("0123456789")
    _, _, images, labels = script.load_split()
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(fold(graph)).SerializeToString())
    runtime = OnnxRuntime(path, threads=1)
    batches = [runtime.run(batch) for batch in np.array_split(script.enlarged(images), 12)]
    recording = Recording.joined(batches)
    assert (recording.logits.argmax(axis=1) == labels).mean() >= 0.9
    rates = {name: train.count() / train.neuron_steps for name, train in recording.spikes.items()}
    assert len(rates) == 19
    assert all(LAYERS_FIRE[0] <= rate <= LAYERS_FIRE[1] for rate in rates.values()), rates


def test_the_shipped_resnet20_has_leaks_that_simulators_hold_and_a_small_file() -> None:
    graph = load(SHIPPED)
    assert all(0.0 < float(neuron.beta) < 1.0 for neuron in graph.neurons)
    assert len({float(neuron.beta) for neuron in graph.neurons}) == 19  # trained, each its own
    assert {node.weight.shape[0] for node in graph.nodes if isinstance(node, Conv2d)} == {16, 32, 64}
    assert SHIPPED.stat().st_size < 3_000_000


def test_an_epoch_of_each_phase_moves_the_network(script: ModuleType) -> None:
    images, labels, _, _ = script.load_split()
    images, labels = script.enlarged(images[:32]), labels[:32]
    torch.manual_seed(0)
    network = script.build(images)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    statistics = []
    for loss in script.train(network, images, labels, epochs=1, settling=2):
        assert np.isfinite(loss)
        statistics.append(network.stem[1].bn.running_mean.clone())
    moved = network.state_dict()
    assert not torch.equal(moved["layer1.0.sn1.a"], before["layer1.0.sn1.a"])
    assert not torch.equal(moved["stem.0.conv.weight"], before["stem.0.conv.weight"])
    # Measured once after the first phase, then left alone.
    assert not torch.equal(statistics[0], statistics[1])
    assert torch.equal(statistics[1], statistics[2])
    assert not any(module._forward_hooks for module in network.modules())


def test_only_layers_above_the_limit_are_held_back(script: ModuleType) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.seldom = DALIF(), DALIF()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.often(2 * x) + self.seldom(2 * x[:, :1] * 0)  # type: ignore[no-any-return]

    _, excess = script._predict_and_watch(Net(), torch.tensor([[1.0, 0.0]]))
    assert excess.item() == pytest.approx(10 * (0.5 - script.BUSY))
    _, excess = script._predict_and_watch(Net(), torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert excess.item() == 0.0


def test_the_script_refuses_no_epochs(script: ModuleType) -> None:
    result = CliRunner().invoke(script.main, ["--epochs", "0"])
    assert result.exit_code == 2
    assert "--epochs" in result.output


def test_the_script_writes_a_model_that_loads(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [array[:16] for array in script.load_split()]
    monkeypatch.setattr(script, "load_split", lambda: few)
    path = tmp_path / "new folder" / "net.pt"
    result = CliRunner().invoke(script.main, ["--epochs", "1", "--settling", "0", "--output", str(path)])
    assert result.exit_code == 0, result.output
    assert "accuracy on the 360 held-out digits" in result.stdout
    assert result.stdout.count("of neuron-steps") == 19
    assert "readout='mean'" in result.stderr
    assert [neuron.name for neuron in load(path).neurons] == [neuron.name for neuron in load(SHIPPED).neurons]
