"""Code as people write it is captured as it is: in every style the graph fires what the module fires."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dalif_deploy import export, save
from dalif_deploy.capturing import CapturedModule, NeuronParameters, capture_module, neurons, register_neuron
from dalif_deploy.equivalence.replay import NeuronStep, replay, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Conv2d
from tests import style_models
from tests.commands import dalif, done
from tests.style_models import (
    STYLES,
    TIME_FIRST,
    Base,
    Leaky,
    Lif,
    LifBT,
    LifTB,
    States,
    T,
    Tet,
    Tutorial,
    built,
    register_all,
)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(neurons, "_READERS", {})
    register_all()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        yield


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


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("timesteps", [1, 2, 3])
def test_other_numbers_of_timesteps(timesteps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style_models, "T", timesteps)
    for name, style in STYLES.items():
        module, x = built(name, batch=4)
        model = capture_module(module, example_input=x, timesteps=timesteps, **style.arguments)
        ours, theirs = simulate(model.graph, x.numpy()), model.run_float64(x.numpy())
        assert all(not train.differing(theirs.spikes[layer]).any() for layer, train in ours.spikes.items()), name
        np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-12, atol=1e-13, err_msg=name)


def test_an_example_with_time_first_and_an_argument() -> None:
    module, x = built("TB, time first", batch=4)  # as many samples as timesteps: only the argument tells
    for arguments in ({}, {"layout": "TB"}, {"temporal": True}):
        model = capture_module(module, example_input=x, timesteps=T, **arguments)
        assert (model.layout, model.time_first, model.graph.input.shape) == ("TB", False, (2, 8, 8))
    for batch in (2, 5):
        model = capture_module(module, example_input=x[:1].repeat(batch, 1, 1, 1, 1).transpose(0, 1), timesteps=T)
        assert (model.layout, model.time_first, model.graph.input.shape) == ("TB", True, (2, 8, 8))


def test_layers_that_share_a_module_have_their_own_names() -> None:
    assert [neuron.name for neuron in captured("state, one module twice")[0].graph.neurons] == ["lif1", "lif1_2"]
    assert [neuron.name for neuron in captured("BT, one spike module twice")[0].graph.neurons] == ["spike", "spike_2"]


def test_what_does_not_change_over_time_is_static() -> None:
    for name in ("TB, first convolution outside", "TB, folded throughout", "BT, containers, static", "state, zeros"):
        graph = captured(name)[0].graph
        conv = next(node for node in graph.nodes if isinstance(node, Conv2d))
        assert not graph.types[conv.name].temporal
        assert len(graph.nodes) < 16  # nothing is there T times


def test_an_even_kernel_becomes_an_odd_one_with_zeros() -> None:
    conv = captured("even kernels")[0].graph["conv"]
    assert isinstance(conv, Conv2d)
    assert (conv.weight.shape[2:], conv.padding) == ((5, 3), (2, 1))
    assert not conv.weight[:, :, 0].any()


class Chooses(Lif):
    """Constants that float32 does not have, in places where a float64 run would take them as they are."""

    def __init__(self, how: str) -> None:
        super().__init__(0.5, 0.7)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.full_like(x, 0.1) if self.mem is None else self.mem
        mem = torch.lerp(mem, x, 0.3)
        spike = mem.gt(0.2)
        if self.how == "where":
            self.mem = torch.where(spike, 0.1, mem)
        elif self.how == "full_like":
            self.mem = torch.where(spike, torch.full_like(mem, 0.1), mem)
        elif self.how == "masked_fill":
            self.mem = mem.masked_fill(spike, 0.1)
        elif self.how == "setitem":
            self.mem = mem.clone()
            self.mem[spike] = 0.1
        else:
            self.mem = mem.mul(~spike).addcmul(spike.to(x), torch.ones_like(x), value=0.1)
        return spike.to(x.dtype)


@pytest.mark.parametrize("how", ["where", "full_like", "masked_fill", "setitem", "addcmul"])
def test_constants_of_users_neurons_are_float32(how: str) -> None:
    rate = float(np.float32(0.3))
    register_neuron(
        Chooses,
        lambda m: NeuronParameters(
            alpha=rate, beta=1 - rate, v_threshold=0.2, v_reset=0.1, fires_at="gt", membrane="mem"
        ),
    )

    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.lif1, self.lif2 = Chooses(how), Chooses(how)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.lif2(4 * self.second(self.lif1(3 * self.first(x)))))

    module = Net().eval()
    module.lif1.mem = module.lif2.mem = None
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    model = capture_module(module, example_input=x, timesteps=T)
    potentials = model.membranes(x.numpy())
    fired = model.run_float64(x.numpy()).spikes["lif1"]
    assert 0.02 < fired.count() / fired.neuron_steps < 0.98
    resets = potentials["lif1"][fired.unpack()]
    assert set(resets.tolist()) == {float(np.float32(0.1))}


# -- refusals --------------------------------------------------------------------------------------------------


def net(forward: Callable[[Any, Tensor], Any], neuron: type[nn.Module] = Leaky) -> nn.Module:
    """Two layers of `neuron` with a forward of their own."""

    class Net(Base):
        def forward(self, x: Tensor) -> Any:
            return forward(self, x)

    Net.neuron = neuron
    return Net().eval()


def looped(change: Callable[[Any, Tensor], Any], start: Any = None) -> Callable[[Any, Tensor], Any]:
    """A loop with a state that `change` makes of the one returned."""

    def forward(self: Any, x: Tensor) -> Tensor:
        mem, out = start(x) if start else None, 0.0
        for _ in range(T):
            spk, mem = self.lif2(self.fc1(self.flatten(self.pool(self.conv(x)))), mem)
            mem = change(self, mem)
            out = out + self.fc2(spk)
        return out

    return forward


def heads(self: Any, x: Tensor) -> Any:
    out = [self.lif1(self.flatten(self.pool(self.first(x)))) for _ in range(T)]
    return torch.stack([self.fc1(s) for s in out]).mean(0), torch.stack([2 * self.fc1(s) for s in out]).mean(0)


def twice(self: Any, x: Tensor) -> Tensor:
    y = self.lif1(self.first(x.repeat(T, 1, 1, 1)).view(T, -1, 6, 8, 8))
    return self.fc2(self.lif2(self.second(self.lif1(y).flatten(0, 1)).view(T, -1, 12))).mean(0)


def batch_for_time(self: Any, x: Tensor) -> Tensor:
    y = self.lif1(self.first(x.repeat_interleave(T, 0)).view(-1, T, 6, 8, 8))
    return self.fc2(self.second(y.flatten(0, 1))).view(-1, T, 3).mean(1)


def time_for_samples(self: Any, x: Tensor) -> Tensor:
    y = self.lif1(self.first(x.repeat(T, 1, 1, 1)))
    return self.fc2(self.second(y)).view(T, -1, 3).mean(0)


def potential(self: Any, x: Tensor) -> Tensor:
    out = []
    for _ in range(T):
        self.lif1(self.first(x))
        out.append(self.lif2(self.second(self.lif1.mem)))
    return self.fc2(torch.stack(out).mean(0))


def mixed(self: Any, x: Tensor) -> Tensor:
    y = self.lif1(self.first(x.repeat_interleave(T, 0)).view(-1, T, 6, 8, 8))
    return y.reshape(len(x), T * 6, 8, 8).mean((2, 3))


def own_axis(self: Any, x: Tensor) -> Tensor:
    y = self.lif1(torch.stack([x.mean((2, 3)) for _ in range(T)], 1))
    return nn.functional.batch_norm(y, torch.zeros(T), torch.ones(T)).mean(1)


class WithLinear(Base):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lif1(self.first(x))).flatten(1)


class Dilated(Base):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 2, dilation=3, padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif1(self.first(x)).mean((2, 3))


class ReturnsPotentials(Tutorial):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[1].sum(0)


R, U = Code.CAPTURE_REFUSED, Code.UNSUPPORTED_LAYER
REFUSED: dict[str, tuple[Callable[[], nn.Module], Code, list[str]]] = {
    "state changed": (
        lambda: net(looped(lambda self, mem: 0.9 * mem)), R,
        ["'lif2' (Leaky): takes 2 tensors", "the states that this layer returned at the timestep before, as they are"],
    ),
    "state dropped": (
        lambda: net(looped(lambda self, mem: None)), R,
        ["'lif2' (Leaky): starts from a fresh state in each of its 4 calls", "test_capture_styles.py:", "self.lif2("],
    ),
    "state not zero": (
        lambda: net(looped(lambda self, mem: mem, lambda x: torch.ones(len(x), 12))), R,
        ["'lif2' (Leaky): starts from a state that is not zero"],
    ),
    "potentials returned": (ReturnsPotentials, R, ["from the potential of 'lif3'", "def forward"]),
    "potential read": (lambda: net(potential, Lif), U, ["the potential of 'lif1' is read outside the layer"]),
    "two answers": (
        lambda: net(heads, Lif), Code.AMBIGUOUS,
        ["element 0 [batch, 12], element 1 [batch, 12]", "a dict that names it 'logits'", "def forward"],
    ),
    "held state": (lambda: net(twice, LifTB), R, ["'lif1' (LifTB): is called again with all", "self.lif1(y)"]),
    "batch for time": (
        lambda: net(batch_for_time, LifTB), R, ["'lif1' (LifTB): what it fires depends on the other samples"],
    ),
    "time for samples": (
        lambda: net(time_for_samples, Lif), R, ["'lif1' (Lif): receives all timesteps in one tensor"],
    ),
    "time mixed with channels": (
        lambda: net(mixed, LifBT), R,
        ["which mixes timesteps or samples with features", "y.reshape(len(x), T * 6, 8, 8)"],
    ),
    "layer over time": (lambda: net(own_axis, LifBT), R, ["in which time is dimension 1; fold time into the batch"]),
    "linear on maps": (WithLinear, R, ["'last' (Linear): aten.view", "a Linear takes [batch, features]"]),
    "dilated even kernel": (Dilated, U, ["with dilation [3, 3]; pad both sides alike"]),
    "padded with ones": (
        lambda: net(lambda self, x: self.lif1(nn.functional.pad(x, (1, 1), value=1.0)).mean((2, 3)), Lif), U,
        ["aten.constant_pad_nd", "other values than zero"],
    ),
    "no readout": (
        lambda: Tet(False), Code.AMBIGUOUS, ["returns the results of all timesteps", "--readout", "def forward"],
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_place_and_the_mend(name: str) -> None:
    make, code, texts = REFUSED[name]
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(3))
    with pytest.raises(DalifError) as caught:
        capture_module(make().eval(), example_input=x, timesteps=T)
    message = caught.value.message
    assert caught.value.code is code, message
    assert all(text in message for text in texts), message


def test_a_layout_that_is_not_the_modules_is_refused() -> None:
    for module, layout, found in (
        (built("TB, expanded")[0], "BT", "TB"),
        (States("none").eval(), "TB", "loop"),
    ):
        with pytest.raises(DalifError, match=f"is written in layout '{found}'") as caught:
            capture_module(module, example_input=torch.rand(3, 2, 8, 8), timesteps=T, layout=layout)
        assert caught.value.code is Code.BAD_OPTION


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", STYLES)
def test_arguments_that_say_what_is_so_change_nothing(name: str) -> None:
    style = STYLES[name]
    module, x = built(name)
    given: dict[str, Any] = {"layout": style.layout, "temporal": style.temporal, "readout": style.readout}
    model = capture_module(module, example_input=x, timesteps=T, **given)
    assert [node.name for node in model.graph.nodes] == [node.name for node in captured(name)[0].graph.nodes]


def test_the_commands_take_layouts_and_find_out_what_changes_over_time(tmp_path: Path) -> None:
    weights, adapter = tmp_path / "weights.pth", tmp_path / "adapter.py"
    adapter.write_text("from tests.style_models import register_all\n\nregister_all()\n")
    torch.save(built("TB, time first")[0].state_dict(), weights)
    common = ["--to", "onnx", "--adapter", adapter, "-T", T, "--input-shape", "2,8,8", weights, "--force"]
    ran = done("export", "--model", "tests.style_models:TimeFirst", *common)
    assert "temporal=True (forward takes no static input, but [batch, 4, ...])" in ran.err
    assert "layout='TB' (layers take all timesteps in one tensor" in ran.err
    assert TIME_FIRST in ran.err
    ran = done("export", "--model", "tests.style_models:Expanded", "--layout", "TB", "--readout", "mean", *common)
    assert "layout=" not in ran.err
    assert "temporal=False" in ran.err
    ran = dalif("export", "--model", "tests.style_models:Expanded", "--layout", "BT", *common)
    assert ran.status == 2
    assert "[E0101] layout='BT': the module itself (Expanded) is written in layout 'TB'" in ran.err
