"""Every reset rule, at every time that it can act, with either threshold rule: all ways to run a neuron agree.

The oracle is a few lines of Python on whole fractions, one neuron at a time. Currents, leaks and thresholds are
short binary fractions, so that float32 is exact here and potentials meet the threshold often.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy import checkpoint
from dalif_deploy.certificate import check_certificate
from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence import Arithmetic, Comparer, NeuronStep, Outcome, judge, replay, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.exporters.onnx import to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nodes import Add, Conv2d, Edge, Flatten, Input, Linear, Neuron, Readout, StateVariable, frozen
from dalif_deploy.passes import fold
from dalif_deploy.passes.snap import snap
from dalif_deploy.recording import Recording, SpikeTrain
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.onnxruntime import OnnxRuntime
from dalif_deploy.runtimes.torch import TorchRuntime

RESETS = [("hard", "now"), ("hard", "next"), ("subtract", "now"), ("subtract", "next"), ("subtract", "carry")]
RESETS.append(("none", "now"))
RULES = [
    pytest.param(reset, timing, fires_at, v_reset, id=f"{reset} {timing} {fires_at} {v_reset}")
    for (reset, timing), fires_at, v_reset in itertools.product(RESETS, ("ge", "gt"), (0.0, 0.5))
    if v_reset == 0.0 or reset == "hard"
]
T, INPUTS, NEURONS = 12, 12, 24


def fired_by(neuron: Neuron, currents: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The oracle: what each neuron fires on its own currents, [N, T, neurons]."""
    beta, threshold, to, rest = (
        np.broadcast_to(values, currents.shape[2:]) for values in
        (neuron.beta, neuron.v_threshold, neuron.v_reset, neuron.leak_target)
    )  # fmt: skip
    out = np.zeros(currents.shape, np.bool_)
    for sample, *place in np.ndindex(currents.shape[0], *currents.shape[2:]):
        at = tuple(place)
        th, b, r, target = (Fraction(float(v[at])) for v in (threshold, beta, to, rest))

        def beyond(v: Fraction, th: Fraction = th) -> bool:
            return v >= th if neuron.fires_at == "ge" else v > th

        h = Fraction(neuron.state[0].initial)
        for t in range(currents.shape[1]):
            v = target + b * (h - target) + Fraction(float(currents[(sample, t, *at)]))
            owed = neuron.reset_timing != "now" and beyond(h)
            if owed:
                v = r if neuron.reset == "hard" else v - th
            spike = beyond(v)
            out[(sample, t, *at)] = spike
            h = v
            if neuron.reset_timing == "now" and spike:
                h = {"hard": r, "subtract": v - th, "none": v}[neuron.reset]
            if neuron.reset_timing == "carry":
                h = v - th * (int(spike) - int(owed))
    return out


def network(seed: int, **rules: Any) -> tuple[SpikingGraph, NDArray[np.float32]]:
    """Spikes in, one layer of 24 neurons of different leaks and thresholds, their spikes out."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-3, 8, (NEURONS, INPUTS)) / 16
    neuron = Neuron(
        name="sn", inputs=(Edge("fc"),), alpha=frozen(1.0), beta=frozen(rng.choice([0.5, 0.75, 1.0, -0.25], NEURONS)),
        v_threshold=frozen(rng.choice([0.5, 0.75, 1.0], NEURONS)), **rules,
    )  # fmt: skip
    nodes = [
        Input(name="input", shape=(INPUTS,), temporal=True, kind="spike"),
        Linear(name="fc", inputs=(Edge("input"),), weight=frozen(weight)),
        neuron,
        Linear(name="head", inputs=(Edge("sn"),), weight=frozen(np.eye(NEURONS)[:5])),
        Readout(name="readout", inputs=(Edge("head"),), mode="sum"),
    ]
    graph = SpikingGraph(nodes, output="readout", timesteps=T, encoding=Encoding(kind="spikes"))
    return graph, (rng.random((6, T, INPUTS)) < 0.35).astype(np.float32)


def onnx_run(model: Any, batch: NDArray[Any], folder: Path, **options: Any) -> Recording:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return OnnxRuntime(path, threads=1, **options).run(batch)


@pytest.mark.parametrize(("reset", "timing", "fires_at", "v_reset"), RULES)
@pytest.mark.parametrize(("leak_target", "initial"), [(0.0, 0.0), (0.25, 0.75)])
def test_all_runtimes_follow_the_rule(
    reset: str, timing: str, fires_at: str, v_reset: float, leak_target: float, initial: float, tmp_path: Path
) -> None:
    graph, batch = network(
        3, reset=reset, reset_timing=timing, fires_at=fires_at, v_reset=frozen(v_reset),
        leak_target=frozen(leak_target), state=(StateVariable("membrane", initial),),
    )  # fmt: skip
    neuron, fc = graph["sn"], graph["fc"]
    assert isinstance(neuron, Neuron)
    assert isinstance(fc, Linear)
    expected = fired_by(neuron, batch.astype(np.float64) @ fc.weight.T)
    assert 0.02 < expected.mean() < 0.75
    found = {
        "replay": simulate(graph, batch),
        "torch": TorchRuntime(graph).run(batch),
        "torch float32": TorchRuntime(graph, dtype="float32").run(batch),
        "events": EventsRuntime(graph, dtype="float64").run(batch),
        "events float32": EventsRuntime(graph, dtype="float32").run(batch),
        "onnx": onnx_run(to_onnx(graph), batch, tmp_path),
        "onnx, unoptimised": onnx_run(to_onnx(graph), batch, tmp_path, optimization="disable"),
    }
    codes = batch.astype(np.uint8)
    for precision in ("exact", "exact64"):
        snapped, lattices = snap(graph, precision)  # type: ignore[arg-type]
        model = to_onnx(snapped, precision=precision, lattices=lattices)  # type: ignore[arg-type]
        found[f"onnx {precision}"] = onnx_run(model, codes, tmp_path)
        assert check_certificate(tmp_path / "net.onnx").findings == ()
        found[f"torch {precision}"] = TorchRuntime(snapped, arithmetic=precision).run(codes)  # type: ignore[arg-type]
        found[f"events {precision}"] = EventsRuntime(snapped, arithmetic=precision).run(codes)  # type: ignore[arg-type]
    for name, recording in found.items():
        np.testing.assert_array_equal(recording.spikes["sn"].unpack(), expected, err_msg=name)
        np.testing.assert_array_equal(recording.logits, expected.sum(1)[:, :5], err_msg=name)


@pytest.mark.parametrize(("reset", "timing"), [("hard", "next"), ("subtract", "carry"), ("subtract", "next")])
def test_late_resets_in_feature_maps_of_integer_planes(reset: str, timing: str, tmp_path: Path) -> None:
    """Layers that lie in the file with channels last, thresholds by channel, an initial value beyond some of them."""
    rng = np.random.default_rng(5)
    weight = rng.integers(-2, 5, (6, 32, 3, 3)) / 64
    neuron = Neuron(
        name="sn", inputs=(Edge("conv"),), alpha=frozen(1.0), beta=frozen(0.5), v_reset=frozen(0.25),
        v_threshold=frozen(np.linspace(0.5, 1.125, 6).reshape(6, 1, 1)), reset=reset, reset_timing=timing,
        state=(StateVariable("membrane", 0.75),),
    )  # type: ignore[arg-type]  # fmt: skip
    back = Conv2d(name="conv2", inputs=(Edge("sn"),), weight=frozen(rng.integers(-2, 5, (32, 6, 3, 3)) / 16))
    nodes = [
        Input(name="input", shape=(32, 6, 6), temporal=True, kind="spike"),
        Conv2d(name="conv", inputs=(Edge("input"),), weight=frozen(weight)), neuron, back,
        replace(neuron, name="sn2", inputs=(Edge("conv2"),), v_threshold=frozen(0.75)),
        Flatten(name="flatten", inputs=(Edge("sn2"),)),
        Linear(name="head", inputs=(Edge("flatten"),), weight=frozen(rng.integers(-4, 5, (3, 128)) / 8)),
        Readout(name="readout", inputs=(Edge("head"),), mode="last"),
    ]  # fmt: skip
    graph = SpikingGraph(nodes, output="readout", timesteps=4, encoding=Encoding(kind="spikes"))
    codes = (rng.random((3, 4, 32, 6, 6)) < 0.1).astype(np.uint8)
    snapped, lattices = snap(graph, "exact64")
    model = to_onnx(snapped, precision="exact64", lattices=lattices, outputs="spikes")
    found, expected = onnx_run(model, codes, tmp_path), simulate(snapped, codes.astype(np.float32))
    assert check_certificate(tmp_path / "net.onnx").findings == ()
    assert any(p.key == "channels_last" and "sn" in p.value for p in model.metadata_props)
    for name in ("sn", "sn2"):
        assert 0.02 < expected.spikes[name].unpack().mean() < 0.6
        assert not expected.spikes[name].differing(found.spikes[name]).any()


def with_shared_producer(graph: SpikingGraph) -> SpikingGraph:
    """The same with alpha = 0.5, and a second layer on the same currents, which keeps alpha out of the weights."""
    neuron = graph["sn"]
    assert isinstance(neuron, Neuron)
    other = replace(neuron, name="sn2", v_threshold=frozen(1.25), beta=frozen(0.5))
    head = replace(graph["head"], inputs=(Edge("sum"),))
    total = Add(name="sum", inputs=(Edge("sn"), Edge("sn2")))
    kept = [node for node in graph.nodes if node.name not in ("sn", "head")]
    nodes = [*kept, replace(neuron, alpha=frozen(0.5)), other, total, head]
    return SpikingGraph(nodes, output=graph.output, timesteps=T, encoding=graph.encoding)


def same_rules(a: Neuron, b: Neuron) -> bool:
    return all(getattr(a, key) == getattr(b, key) for key in ("reset", "reset_timing", "fires_at", "update", "state"))


@pytest.mark.parametrize(("reset", "timing", "fires_at", "v_reset"), RULES)
def test_alpha_goes_into_the_threshold_and_files_keep_the_rule(
    reset: str, timing: str, fires_at: str, v_reset: float, tmp_path: Path
) -> None:
    plain, batch = network(
        7, reset=reset, reset_timing=timing, fires_at=fires_at, v_reset=frozen(v_reset), leak_target=frozen(0.25),
        state=(StateVariable("membrane", 0.5),), update="decay",
    )  # fmt: skip
    graph = with_shared_producer(plain)
    folded = fold(graph)
    (neuron,) = (n for n in folded.neurons if n.name == "sn")
    assert neuron.state[0].initial == 1.0
    assert (neuron.potential_scale == 0.5).all()
    expected = simulate(graph, batch)
    assert 0.02 < expected.spikes["sn"].unpack().mean() < 0.8
    for found in (simulate(folded, batch), onnx_run(to_onnx(folded), batch, tmp_path)):
        assert not any(train.differing(found.spikes[name]).any() for name, train in expected.spikes.items())
    (tmp_path / "model.pt").write_bytes(
        checkpoint.to_bytes(checkpoint.Checkpoint(graph, "step", (), None), tool_version="0")
    )
    read = checkpoint.read(tmp_path / "model.pt").graph
    assert all(same_rules(a, b) for a, b in zip(read.neurons, graph.neurons, strict=True))
    strings = {entry.key: entry.value for entry in to_onnx(folded).metadata_props}
    for layer in FileMetadata.from_strings(strings, source="file").layers:
        assert (layer.reset, layer.reset_timing, layer.fires_at) == (reset, timing, fires_at)
    if (reset, timing) != ("hard", "now"):
        late, soft = "its reset acts one step late", f"its reset is '{reset}'"
        with pytest.raises(DalifError, match=soft if reset != "hard" else late) as error:
            to_nir(fold(replaced_state(plain)))
        assert error.value.code is Code.TARGET_CANNOT_HOLD


def replaced_state(graph: SpikingGraph) -> SpikingGraph:
    """Without what NIR cannot say for other reasons."""
    neuron = graph["sn"]
    assert isinstance(neuron, Neuron)
    changed = replace(neuron, leak_target=frozen(0.0), state=(StateVariable("membrane"),), beta=frozen(0.5))
    return graph.replaced({"sn": changed})


def test_rules_that_say_nothing_are_refused() -> None:
    for reset, timing in (("hard", "carry"), ("none", "next"), ("none", "carry")):
        with pytest.raises(DalifError, match="there is no reset") as error:
            network(1, reset=reset, reset_timing=timing)
        assert error.value.code is Code.BAD_GRAPH
    for rules in ({"reset_timing": "later"}, {"update": "euler"}):
        with pytest.raises(DalifError, match="unknown rule"):
            network(1, **rules)


# ---- rounding


def float32_run(
    graph: SpikingGraph, batch: NDArray[np.float32], form: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Potentials and spikes [N, T, neurons] of a float32 program: currents summed in a random order, every product
    and sum rounded. `form`: "sum", or "decay" as simulators write it, with k for 1 - beta."""
    neuron, fc = graph["sn"], graph["fc"]
    assert isinstance(neuron, Neuron)
    assert isinstance(fc, Linear)
    f = np.float32
    beta, th, to, rest = (
        np.asarray(v, f) for v in (neuron.beta, neuron.v_threshold, neuron.v_reset, neuron.leak_target)
    )
    k, alpha = np.asarray(1.0 - neuron.beta, f), np.asarray(neuron.alpha, f)
    order = np.random.default_rng(1).permutation(INPUTS)

    def beyond(v: NDArray[np.float32]) -> NDArray[np.bool_]:
        return v >= th if neuron.fires_at == "ge" else v > th

    h = np.full((len(batch), NEURONS), f(neuron.state[0].initial), f)
    potentials, spikes = [], []
    for t in range(T):
        x = np.zeros_like(h)
        for i in order:
            x = x + batch[:, t, i, None] * fc.weight[:, i].astype(f)
        if form == "sum":
            v = (beta * (h - rest) + rest) + alpha * x if rest.any() else beta * h + alpha * x
        else:
            v = h + k * (x - (h - rest))
        owed = beyond(h) & (neuron.reset_timing != "now")
        v = np.where(owed, to if neuron.reset == "hard" else v - th, v)
        assert v.dtype == f
        s = beyond(v)
        potentials.append(v.astype(np.float64))
        spikes.append(s)
        h = v
        if neuron.reset_timing == "now" and neuron.reset != "none":
            h = np.where(s, to if neuron.reset == "hard" else v - th, v)
        elif neuron.reset_timing == "carry":
            h = v - th * (s.astype(f) - owed.astype(f))
    return np.stack(potentials, 1), np.stack(spikes, 1)


def odd_network(reset: str, timing: str, fires_at: str, v_reset: float, form: str) -> Any:
    """Nothing is a short binary fraction here."""
    graph, batch = network(
        11, reset=reset, reset_timing=timing, fires_at=fires_at, v_reset=frozen(v_reset * 0.7),
        leak_target=frozen(0.1), state=(StateVariable("membrane", 0.3),), update=form,
    )  # fmt: skip
    rng = np.random.default_rng(12)
    neuron, fc = graph["sn"], graph["fc"]
    assert isinstance(neuron, Neuron)
    beta = rng.uniform(0.3, 0.95, NEURONS)
    thresholds = frozen(rng.uniform(0.4, 0.9, NEURONS))
    alpha = 1.0 - beta if form == "decay" else np.float64(1.0)
    weight = frozen(rng.normal(0.15, 0.4, (NEURONS, INPUTS)) / (np.mean(alpha)))
    changed = replace(neuron, beta=frozen(beta), v_threshold=thresholds, alpha=frozen(alpha))
    return graph.replaced({"sn": changed, "fc": replace(fc, weight=weight)}), batch  # type: ignore[call-arg]


@pytest.mark.parametrize("form", ["sum", "decay"])
@pytest.mark.parametrize(("reset", "timing", "fires_at", "v_reset"), RULES)
def test_float32_stays_within_the_bound_of_its_formula(
    reset: str, timing: str, fires_at: str, v_reset: float, form: str
) -> None:
    graph, batch = odd_network(reset, timing, fires_at, v_reset, form)
    potentials, spikes = float32_run(graph, batch, form)
    assert 0.02 < spikes.mean() < 0.9
    ratios = []

    def visit(step: NeuronStep) -> None:
        assert step.bound is not None
        ratios.append(np.abs(potentials[:, step.t] - step.potential) / step.bound)

    replay(graph, batch, visit, history={"sn": SpikeTrain.pack(spikes)}, update="own")
    assert max(ratio.max() for ratio in ratios) <= 1.0
    # A bound that anything would meet says nothing.
    assert max(ratio.max() for ratio in ratios) > 0.02
    assert np.median(ratios) < 1.0
    comparer = Comparer("float32", graph, arithmetic=Arithmetic.of_module(graph, "float32"))
    recording = Recording({"sn": SpikeTrain.pack(spikes)}, spikes.sum(1)[:, :5].astype(np.float32))
    comparer.add(batch, simulate(graph, batch), recording)
    assert comparer.result().outcome <= Outcome.ROUNDING


@pytest.mark.parametrize(("reset", "timing", "fires_at", "v_reset"), RULES)
def test_a_spike_too_few_is_found_whatever_the_rule(reset: str, timing: str, fires_at: str, v_reset: float) -> None:
    graph, batch = odd_network(reset, timing, fires_at, v_reset, "sum")
    spikes = simulate(graph, batch).spikes["sn"].unpack()
    sample, t, index = (int(i) for i in np.argwhere(spikes[:, 5:])[7])
    spikes[sample, t + 5, index] = False
    found = judge(graph, batch, {"sn": SpikeTrain.pack(spikes)}, Arithmetic()).contradictions
    beyond = [(step.sample, step.t, step.index) for step in found if not step.within_bound]
    assert beyond[:1] == [(sample, t + 5, (index,))]


def test_what_is_left_at_the_threshold_exactly_may_be_paid_for_or_not() -> None:
    """With "carry", the held potential is compared with the threshold too: where it is a tie, rounding decides whether
    v_th is subtracted before the next step, and the next step's bound says so."""
    weight = frozen([[1.0]])
    neuron = Neuron(
        name="sn", inputs=(Edge("fc"),), alpha=frozen(1.0), beta=frozen(1.0), v_threshold=frozen(0.5),
        reset="subtract", reset_timing="carry", fires_at="gt",
    )  # fmt: skip
    nodes = [
        Input(name="input", shape=(1,), temporal=True), Linear(name="fc", inputs=(Edge("input"),), weight=weight),
        neuron, Readout(name="readout", inputs=(Edge("sn"),), mode="sum"),
    ]  # fmt: skip
    graph = SpikingGraph(nodes, output="readout", timesteps=2)
    batch = np.array([[[1.0], [0.75]]], np.float32)  # V = 1, H = 0.5: not beyond 0.5, or just so
    bounds = []
    replay(graph, batch, lambda step: bounds.append(step.bound), update="sum")
    assert bounds[0].item() < 1e-6
    assert 0.5 <= bounds[1].item() < 0.5 + 1e-6


def test_a_late_reset_follows_the_spike_that_the_candidate_fired() -> None:
    """At a tie rounding may decide either way; what comes of it is judged by what was fired, not by the replay."""
    neuron = Neuron(
        name="sn", inputs=(Edge("fc"),), alpha=frozen(1.0), beta=frozen(1.0), v_threshold=frozen(0.5),
        reset="subtract", reset_timing="next", fires_at="gt",
    )  # fmt: skip
    nodes = [
        Input(name="input", shape=(1,), temporal=True),
        Linear(name="fc", inputs=(Edge("input"),), weight=frozen([[1.0]])),
        neuron,
        Readout(name="readout", inputs=(Edge("sn"),), mode="sum"),
    ]  # fmt: skip
    graph = SpikingGraph(nodes, output="readout", timesteps=2)
    batch = np.array([[[0.5], [0.25]]], np.float32)
    for fired, then in ((False, 0.75), (True, 0.25)):
        found: list[float] = []
        history = {"sn": SpikeTrain.pack(np.array([[[fired], [False]]]))}
        replay(graph, batch, lambda step, found=found: found.append(step.potential.item()), history=history)  # type: ignore[misc]
        assert found == [0.5, then]
