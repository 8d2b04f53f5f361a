"""NIR files of other tools: every node kind, recurrence, delays and nesting, spike for spike as their equations say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.capturing.nir_in.reading import Answers, ForeignNir, read_foreign_nir
from dalif_deploy.deploy import LoadOptions, export, load, verify
from dalif_deploy.equivalence import simulate
from dalif_deploy.passes import fold
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.torch import TorchRuntime
from tests.foreign_nir import DT, Edges, Oracle, Spec, affine, cuba_lif, graph, input_, lif, output, write

T = 24


@dataclass
class Net:
    """A flat network in the order of its steps, and the rules to read it by."""

    nodes: dict[str, Spec]
    edges: Edges
    late: Edges = ()
    rules: dict[str, Any] = field(default_factory=dict)
    file: Spec | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(next(node["shape"] for node in self.nodes.values() if node["type"] == "Input").tolist())

    def data(self) -> NDArray[np.float32]:
        return np.random.default_rng(5).random((3, T, *self.shape), dtype=np.float32)

    def oracle(self) -> Oracle:
        rules = self.rules
        return Oracle(
            self.nodes,
            self.edges,
            self.late,
            subtract=rules.get("reset") == "subtract",
            at=rules.get("fires_at") == "ge",
        )

    def write(self, folder: Path) -> Path:
        return write(folder / "net.nir", self.file or graph(self.nodes, self.edges))


def chain(*nodes: tuple[str, Spec]) -> tuple[dict[str, Spec], list[tuple[str, str]]]:
    names = [name for name, _ in nodes]
    return dict(nodes), list(itertools.pairwise(names))


def maps() -> Net:
    """Two groups, a kernel that is not square, another stride and dilation along each axis; both pools; per-channel
    and per-neuron parameters; v_leak, v_reset and r."""
    rng = np.random.default_rng(0)
    conv = {
        "type": "Conv2d", "weight": rng.normal(0.3, 0.4, (4, 1, 3, 2)), "bias": rng.normal(0.0, 0.1, 4),
        "stride": np.array([1, 2]), "padding": np.array([1, 0]), "dilation": np.array([1, 2]), "groups": 2,
    }  # fmt: skip
    first = lif(
        (4, 8, 4), tau=np.linspace(3, 9, 4)[:, None, None] * DT, r=np.linspace(1, 2, 4)[:, None, None], v_leak=0.1,
        v_reset=-0.2, v_threshold=rng.uniform(0.3, 0.6, (4, 8, 4)),
    )  # fmt: skip
    sums = {
        "type": "SumPool2d",
        "kernel_size": np.array([2, 2]),
        "stride": np.array([2, 1]),
        "padding": np.array([0, 1]),
    }
    second = {"type": "IF", "r": np.full((4, 4, 5), 300.0), "v_threshold": np.full((4, 4, 5), 1.5)}
    means = {
        "type": "AvgPool2d",
        "kernel_size": np.array([3, 3]),
        "stride": np.array([2, 2]),
        "padding": np.array([1, 1]),
    }
    last = {"type": "LI", "tau": np.full(3, 4 * DT), "r": np.full(3, 2.0), "v_leak": np.array([0.5, 0.0, -0.5])}
    nodes, edges = chain(
        ("input", input_(2, 8, 9)), ("conv", conv), ("lif", first), ("sums", sums),
        ("scale", {"type": "Scale", "scale": rng.uniform(0.5, 1.5, (4, 4, 5))}), ("if", second), ("means", means),
        ("flat", {"type": "Flatten", "start_dim": 0, "end_dim": -1, "input_type": np.array([4, 2, 3])}),
        ("fc", affine(rng, 3, 24)), ("li", last), ("output", output(3)),
    )  # fmt: skip
    return Net(nodes, edges)


def rows() -> Net:
    """Conv1d: 'same' of an even kernel, 'valid' with a stride; Threshold; a Flatten of some axes only."""
    rng = np.random.default_rng(1)
    same = {
        "type": "Conv1d", "weight": rng.normal(0.2, 0.5, (4, 1, 4)), "bias": np.zeros(4), "stride": 1,
        "padding": "same", "dilation": 3, "groups": 2,
    }  # fmt: skip
    valid = {
        "type": "Conv1d", "weight": rng.normal(0.1, 0.5, (3, 4, 3)), "bias": rng.normal(0, 0.1, 3),
        "stride": np.array([2]), "padding": "valid", "dilation": np.array([1]), "groups": 1,
    }  # fmt: skip
    nodes, edges = chain(
        ("in", input_(2, 11)), ("same", same), ("lif", lif((4, 11), r=1.2, v_threshold=0.3)), ("valid", valid),
        ("threshold", {"type": "Threshold", "threshold": np.full((3, 5), 0.4)}),
        ("flat", {"type": "Flatten", "start_dim": 0, "end_dim": 1, "input_type": np.array([3, 5])}),
        ("out", output(15)),
    )  # fmt: skip
    return Net(nodes, edges, rules={"fires_at": "ge"})


def same_maps() -> Net:
    """'same' with even kernels, along one axis dilated; an output that is a map."""
    rng = np.random.default_rng(2)
    conv = {
        "type": "Conv2d", "weight": rng.normal(0.2, 0.4, (3, 2, 4, 2)), "bias": np.zeros(3), "stride": np.array([1, 1]),
        "padding": "same", "dilation": np.array([1, 3]), "groups": 1,
    }  # fmt: skip
    nodes, edges = chain(("in", input_(2, 6, 7)), ("conv", conv), ("lif", lif((3, 6, 7))), ("out", output(3, 6, 7)))
    return Net(nodes, edges, rules={"reset": "subtract"})


def recurrent() -> Net:
    """A CubaLIF that hears itself through weights with a bias, several edges into nodes, and a CubaLI."""
    rng = np.random.default_rng(3)
    readout = {
        "type": "CubaLI", "tau_mem": np.full(4, 6 * DT), "tau_syn": np.full(4, 2 * DT), "r": np.linspace(1, 2, 4),
        "v_leak": np.full(4, 0.25), "w_in": np.full(4, 1.5),
    }  # fmt: skip
    nodes = {
        "input": input_(5), "fc1": affine(rng, 6, 5, 2.0), "skip": affine(rng, 6, 5, 1.0),
        "cuba": cuba_lif((6,), v_leak=0.1, v_reset=-0.1, r=np.linspace(4, 8, 6), tau_syn=np.linspace(2, 4, 6) * DT),
        "rec": affine(rng, 6, 6, 2.0), "fc2": affine(rng, 4, 6, 2.0), "li": readout, "output": output(4),
    }  # fmt: skip
    edges = [
        ("fc2", "li"), ("rec", "cuba"), ("input", "skip"), ("cuba", "rec"), ("fc1", "cuba"), ("skip", "cuba"),
        ("input", "fc1"), ("li", "output"), ("cuba", "fc2"),
    ]  # fmt: skip
    return Net(nodes, edges, late=[("rec", "cuba")])


def delays() -> Net:
    """A delay that differs by element, one that closes a cycle by itself, and an I; the input also goes round them."""
    rng = np.random.default_rng(4)
    nodes = {
        "input": input_(4),
        "each": {"type": "Delay", "delay": np.array([0, 1, 3, 3]) * DT},
        "back": {"type": "Delay", "delay": np.full(4, 2 * DT)},
        "lif": lif((4,), r=1.5, v_threshold=0.7),
        "rec": {"type": "Linear", "weight": rng.normal(0.0, 0.5, (4, 4))},
        "i": {"type": "I", "r": np.linspace(100, 400, 4)},
        "output": output(4),
    }
    nodes = {name: nodes[name] for name in ("input", "each", "lif", "rec", "back", "i", "output")}
    edges = [("input", "each"), ("each", "lif"), ("lif", "rec"), ("rec", "back"), ("lif", "i"), ("input", "i"),
             ("back", "lif"), ("i", "output")]  # fmt: skip
    # Two steps back and no more: the oracle hears `back` of the step before, so it gets one step less to hold.
    held = {**nodes, "back": {"type": "Delay", "delay": np.full(4, DT)}}
    return Net(held, edges, late=[("back", "lif")], file=graph(nodes, edges))


def nested() -> Net:
    """A graph in a graph in a graph, the inner one recurrent."""
    rng = np.random.default_rng(6)
    parts = {
        "w": affine(rng, 5, 3, 3.0),
        "rec": affine(rng, 5, 5, 2.0),
        "lif": lif((5,), r=1.5),
        "fc": affine(rng, 2, 5),
    }
    inner = graph(
        {"input": input_(5), "lif": parts["lif"], "rec": parts["rec"], "output": output(5)},
        [("input", "lif"), ("lif", "rec"), ("rec", "lif"), ("lif", "output")],
    )
    middle = graph(
        {"in": input_(3), "w": parts["w"], "inner": inner, "out": output(5)},
        [("in", "w"), ("w", "inner"), ("inner", "out")],
    )
    file = graph(
        {"input": input_(3), "block": middle, "fc": parts["fc"], "output": output(2)},
        [("input", "block"), ("block", "fc"), ("fc", "output")],
    )
    nodes = {
        "input": input_(3), "block.w": parts["w"], "block.inner.lif": parts["lif"], "block.inner.rec": parts["rec"],
        "fc": parts["fc"], "output": output(2),
    }  # fmt: skip
    edges = [
        ("input", "block.w"), ("block.w", "block.inner.lif"), ("block.inner.lif", "block.inner.rec"),
        ("block.inner.rec", "block.inner.lif"), ("block.inner.lif", "fc"), ("fc", "output"),
    ]  # fmt: skip
    return Net(nodes, edges, late=[("block.inner.rec", "block.inner.lif")], file=file)


def into_a_delay() -> Net:
    """A cycle that is entered at a Delay of no step, which the edge that leads back reaches one step late."""
    rng = np.random.default_rng(7)
    nodes = {
        "input": input_(3), "now": {"type": "Delay", "delay": np.zeros(3)}, "lif": lif((3,), r=1.5, v_threshold=0.5),
        "rec": affine(rng, 3, 3), "output": output(3),
    }  # fmt: skip
    edges = [("input", "now"), ("rec", "now"), ("now", "lif"), ("lif", "rec"), ("lif", "output")]
    return Net(nodes, edges, late=[("rec", "now")])


NETS: list[Callable[[], Net]] = [maps, rows, same_maps, recurrent, delays, nested, into_a_delay]


def read(net: Net, folder: Path) -> ForeignNir:
    return read_foreign_nir(net.write(folder), Answers(dt=DT, timesteps=T, **net.rules))


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_spikes_are_those_of_the_equations(make: Callable[[], Net], tmp_path: Path) -> None:
    net = make()
    found = read(net, tmp_path).graph
    data = net.data()
    spikes, outputs = net.oracle().run(data)
    assert {neuron.name for neuron in found.neurons} == spikes.keys()
    assert all(0.02 < layer.mean() < 0.8 for layer in spikes.values()), {k: v.mean() for k, v in spikes.items()}
    folded = fold(found)
    for recording in (
        simulate(found, data), simulate(folded, data), TorchRuntime(found).run(data),
        EventsRuntime(folded, dtype="float64").run(data),
    ):  # fmt: skip
        for name, expected in spikes.items():
            assert np.array_equal(recording.spikes[name].unpack(), expected), name
        np.testing.assert_allclose(recording.logits, outputs.sum(axis=1).reshape(3, -1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_the_onnx_file_fires_the_same(make: Callable[[], Net], tmp_path: Path) -> None:
    net = make()
    path = net.write(tmp_path)
    options = LoadOptions(dt=DT, timesteps=T, **net.rules)
    made = export(path, tmp_path / "net.onnx", to="onnx", options=options, data=net.data())
    assert str(made.verdict and made.verdict.outcome) == "exact"
    # The file says how its model was read.
    again = verify(path, tmp_path / "net.onnx", data=net.data())
    assert str(again.outcome) == "exact"
    assert again.runtimes[-1].comparison.name == "onnxruntime"


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
def test_a_checkpoint_holds_the_same_graph(make: Callable[[], Net], tmp_path: Path) -> None:
    net = make()
    path = net.write(tmp_path)
    export(path, tmp_path / "net.pt", to="pt", options=LoadOptions(dt=DT, timesteps=T, **net.rules))
    kept, found = load(tmp_path / "net.pt"), read(net, tmp_path).graph
    expected = simulate(found, net.data())
    recording = simulate(kept, net.data())
    assert np.array_equal(recording.logits, expected.logits)
    assert all(train.differing(recording.spikes[name]).sum() == 0 for name, train in expected.spikes.items())
