"""sinabs on files in its own dialect: whose neurons run, by which formula, that they fire the same spikes, and what is
steered round. What the other simulators do is in test_simulators.py."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dalif_deploy import nir_io
from dalif_deploy.capturing.nir import read_nir
from dalif_deploy.dialects import CANONICAL, SINABS, Limit
from dalif_deploy.equivalence import Arithmetic, Comparer, Outcome, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import readers, to_nir
from dalif_deploy.nir_neurons import leak_of, tau_of
from dalif_deploy.nodes import AvgPool2d, Edge, Flatten, SumPool2d, frozen
from dalif_deploy.runtimes.nir_file import NirFile
from dalif_deploy.runtimes.sinabs import SinabsRuntime
from tests.graphs import Build, Case, firing_rates
from tests.nir_graphs import NETWORKS, affine_chain, changed, conv_chain, one_layer, smallest_margin, write

pytestmark = pytest.mark.simulators


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("sinabs")


def written(case: Case, folder: Path) -> Path:
    return write(case, folder, dialect="sinabs")


def assert_same_spikes(case: Case, runtime: SinabsRuntime) -> None:
    graph, batch = case
    expected, found = simulate(graph, batch), runtime.run(batch)
    assert list(found.spikes) == [neuron.name for neuron in graph.neurons]
    for name, train in expected.spikes.items():
        assert train.differing(found.spikes[name]).sum() == 0, name
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-6)


# ---- spikes


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.25, 0.4886, 0.76, 0.9, 1.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_same_spikes(network: str, beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files just written are not read in a process of their own first.
    monkeypatch.setattr(nir_io, "check_readable", lambda path: None)
    case = NETWORKS[network](np.float32(beta))
    assert smallest_margin(case) > 1.0
    assert all(0.02 <= rate <= 0.4 for rate in firing_rates(*case).values())
    assert_same_spikes(case, SinabsRuntime(written(case, tmp_path)))


def test_leaks_and_thresholds_per_neuron(tmp_path: Path) -> None:
    beta = np.where(np.arange(32) % 5, np.linspace(0.0, 0.9, 32), 1.0)
    case = changed(affine_chain(0.5), "sn1", beta=frozen(beta), v_threshold=frozen(np.linspace(0.5, 1.5, 32)))
    assert_same_spikes(case, SinabsRuntime(written(case, tmp_path)))


def test_thresholds_below_0(tmp_path: Path) -> None:
    case = changed(affine_chain(0.5), "sn1", v_threshold=frozen(-0.25))
    assert_same_spikes(case, SinabsRuntime(written(case, tmp_path)))


def averages(kernel: int, padding: int) -> Case:
    """An average of real values and one of spikes, each straight into a neuron."""
    build = Build(33, (2, 8, 8))
    batch = np.random.default_rng(34).uniform(0.0, 0.95, (4, 2, 8, 8)).astype(np.float32)
    pair, pad = (kernel, kernel), (padding, padding)
    pool = AvgPool2d(name="pool1", inputs=(Edge("input"),), kernel=pair, stride=(1, 1), padding=pad)
    x = build.neuron("sn1", build.add(pool), alpha=1.0, beta=0.5, v_threshold=0.7)
    pool = AvgPool2d(name="pool2", inputs=(Edge(x),), kernel=pair, stride=(1, 1), padding=pad)
    x = build.neuron("sn2", build.add(pool), alpha=1.0, beta=0.75, v_threshold=0.59)
    return build.finish(build.add(Flatten(name="f", inputs=(Edge(x),))), timesteps=8, mode="sum"), batch


@pytest.mark.parametrize(("kernel", "padding"), [(2, 0), (3, 1), (5, 2)])
def test_average_pools_are_sums_and_a_diagonal_convolution(kernel: int, padding: int, tmp_path: Path) -> None:
    graph, batch = case = averages(kernel, padding)
    assert sum(isinstance(node, AvgPool2d) for node in graph.nodes) == 2
    path = written(case, tmp_path)
    nodes = to_nir(graph, dialect="sinabs").nodes
    assert not any(isinstance(node, nir.AvgPool2d) for node in nodes.values())
    for name in ("pool1", "pool2"):
        np.testing.assert_array_equal(
            nodes[name].weight[:, :, 0, 0], np.eye(2, dtype=np.float32) / np.float32(kernel**2)
        )
        assert isinstance(nodes[f"{name}.total"], nir.Conv2d if padding else nir.SumPool2d)
    comparer = Comparer("sinabs", graph, arithmetic=Arithmetic("float32", "sum", pools="mean"))
    comparer.add(batch, simulate(graph, batch), SinabsRuntime(path).run(batch))
    assert comparer.result().outcome <= Outcome.ROUNDING
    assert all(rate > 0.02 for rate in firing_rates(*case).values())


def test_a_linear_layer_has_a_bias_of_zeros(tmp_path: Path) -> None:
    file = to_nir(conv_chain(0.5)[0], dialect="sinabs")
    assert isinstance(to_nir(conv_chain(0.5)[0]).nodes["fc2"], nir.Linear)
    assert isinstance(file.nodes["fc2"], nir.Affine)
    assert not file.nodes["fc2"].bias.any()


@pytest.mark.parametrize("sizes", [(4, 8), (8, 4), (8, 8)])
def test_every_batch_starts_anew(sizes: tuple[int, int], tmp_path: Path) -> None:
    """sinabs itself would go on from a random choice of the last batch's potentials."""
    graph, batch = affine_chain()
    runtime = SinabsRuntime(written((graph, batch), tmp_path))
    expected = simulate(graph, batch)
    for size in sizes:
        found = runtime.run(batch[:size])
        for name, train in expected.spikes.items():
            assert np.array_equal(train.bits[:size], found.spikes[name].bits)


# ---- by which formula


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3, 0.76, 0.9995, 1.0])
def test_the_potential_is_beta_v_plus_x_bit_for_bit(beta: float, tmp_path: Path) -> None:
    count, steps = 1003, 12  # not a multiple of a vector register
    x = np.random.default_rng(61).normal(0.0, 1.0, (steps, 2, count)).astype(np.float32)
    graph, _ = one_layer(1e6, np.float32(beta), [0.0] * count)
    runtime: Any = SinabsRuntime(written((graph, x), tmp_path))
    step, state, v = runtime._stepper._steps["sn"], None, np.zeros((2, count), np.float32)
    (module,) = (cell.cell_contents for cell in step.__closure__)
    with torch.no_grad():
        for t in range(steps):
            fired, state = step(torch.from_numpy(x[t]), state)
            v = np.float32(beta) * v + x[t]
            assert not fired.any()
            assert module.v_mem.dtype == torch.float32
            assert np.array_equal(module.v_mem.numpy().reshape(v.shape), v), t
    assert type(runtime).update == "sum"


def test_every_float32_leak_comes_back_from_tau() -> None:
    rng = np.random.default_rng(62)
    beta = np.concatenate([rng.random(20_000), rng.random(2000) * 1e-3, 1 - rng.random(2000) * 1e-6, [0.0, 1.0, 0.5]])
    beta = beta.astype(np.float32)
    assert np.array_equal(leak_of(tau_of(beta.astype(np.float64), SINABS), SINABS).astype(np.float32), beta)
    assert np.isnan(tau_of(np.array([-0.25]), SINABS)).all()


@pytest.mark.parametrize(("beta", "given"), [(0.5, False), (0.9, False), (0.1, True)])
def test_a_leak_that_exp_misses_is_given_and_told(beta: float, given: bool, tmp_path: Path) -> None:
    runtime: Any = SinabsRuntime(written(affine_chain(np.float32(beta)), tmp_path))
    (module,) = (cell.cell_contents for cell in runtime._stepper._steps["sn1"].__closure__)
    assert module.train_alphas == given
    assert torch.equal(module.alpha_mem_calculated, torch.full((32,), np.float32(beta)))
    assert any("alpha_mem" in note for note in runtime.notes) == given
    missed = torch.exp(-1.0 / module.tau_mem)
    assert torch.equal(missed, module.alpha_mem_calculated) != given
    assert torch.allclose(missed, module.alpha_mem_calculated, rtol=1e-6)


# ---- whose neurons, and from which file


def test_the_neurons_are_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = affine_chain(0.5)
    runtime = SinabsRuntime(written(case, tmp_path))
    assert runtime.neuron_class == "sinabs.layers.lif.LIFSqueeze"
    assert re.match(r"sinabs 3\.\d+\.\d+, float32, CPU; ", runtime.description)
    assert all(note in runtime.description for note in runtime.notes)
    assert ("flat" in runtime.description, "SingleSpike" in runtime.description) == (False, True)
    assert "flat" in SinabsRuntime(written(conv_chain(0.5), tmp_path)).description
    import sinabs.layers.functional

    def broken(*_: object, **__: object) -> None:
        raise ArithmeticError("this neuron was asked")

    monkeypatch.setattr(sinabs.layers.functional, "lif_forward", broken)
    with pytest.raises(ArithmeticError, match="this neuron was asked"):
        runtime.run(case[1])


def test_the_file_is_what_is_run(tmp_path: Path) -> None:
    graph, batch = conv_chain()
    path = written((graph, batch), tmp_path)
    before = SinabsRuntime(path).run(batch)
    with h5py.File(path, "r+") as file:
        file["node/nodes/features.sn/v_threshold"][...] *= 4.0
    after = SinabsRuntime(path).run(batch)
    assert after.spikes["features.sn"].count() < before.spikes["features.sn"].count()


def test_read_back_it_is_the_folded_graph(tmp_path: Path) -> None:
    graph, batch = conv_chain(np.float32(0.4886))
    back = read_nir(written((graph, batch), tmp_path))
    assert [(n.name, n.beta.item(), n.v_threshold.tolist()) for n in back.neurons] == [
        (n.name, n.beta.item(), n.v_threshold.tolist()) for n in graph.neurons
    ]
    for name, train in simulate(graph, batch).spikes.items():
        assert not train.differing(simulate(back, batch).spikes[name]).any()


def test_opening_draws_no_random_numbers_of_the_callers(tmp_path: Path) -> None:
    path = written(affine_chain(), tmp_path)
    before = torch.random.get_rng_state()
    SinabsRuntime(path).run(affine_chain()[1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_running_logs_and_prints_nothing(tmp_path: Path) -> None:
    case = affine_chain(0.1)
    np.save(tmp_path / "batch.npy", case[1])
    code = (
        "import sys, numpy\n"
        "from dalif_deploy.runtimes.sinabs import SinabsRuntime\n"
        "SinabsRuntime(sys.argv[1]).run(numpy.load(sys.argv[2]))\n"
        "print('ran')"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(written(case, tmp_path)), str(tmp_path / "batch.npy")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("ran\n", "")


# ---- what is refused, and what sinabs makes of it


def test_a_canonical_file_is_refused_with_the_mend(tmp_path: Path) -> None:
    case = affine_chain(0.5)
    path = write(case, tmp_path)
    with pytest.raises(DalifError) as info:
        SinabsRuntime(path)
    assert info.value.code is Code.RUNTIME_CANNOT_RUN
    assert SINABS.own_only in info.value.message
    assert "export it again for sinabs" in info.value.message
    advice = next(reader for reader in readers(case[0]) if reader.name == "sinabs")
    assert (advice.reads, advice.why) == (False, f"{SINABS.own_only}; export it again for sinabs")
    own = next(reader for reader in readers(to_nir(case[0], dialect="sinabs")) if reader.name == "sinabs")
    assert (own.reads, own.call) == (True, "dalif_deploy.runtimes.sinabs.SinabsRuntime(path)")


def test_a_canonical_file_would_fire_other_spikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differs(affine_chain(0.5), lambda file: None, tmp_path, monkeypatch, dialect=CANONICAL.name)


def a_reset(file: nir.NIRGraph) -> None:
    file.nodes["sn1"].v_reset = np.full(32, -0.5)


def an_integrator(file: nir.NIRGraph) -> None:
    lif = file.nodes["sn1"]
    file.nodes["sn1"] = nir.IF(r=np.ones(32), v_threshold=lif.v_threshold, v_reset=np.zeros(32))


def a_pool(file: nir.NIRGraph) -> None:
    pool = nir.SumPool2d(np.array([3, 3]), np.array([2, 2]), np.array([1, 1]))
    pool.input_type, pool.output_type = file.nodes["pool"].input_type, file.nodes["pool"].output_type
    file.nodes["pool"] = pool


def pooled() -> Case:
    """A sum pool without padding that gives as many places as one of 3x3 with padding 1 and stride 2."""
    build = Build(27, (2, 6, 6))
    x = build.neuron("sn1", "input", alpha=1.0, beta=0.5)
    x = build.add(SumPool2d(name="pool", inputs=(Edge(x),), kernel=(2, 2), stride=(2, 2)))
    x = build.neuron("sn2", x, alpha=1.0, beta=0.5, v_threshold=2.3)
    graph = build.finish(build.add(Flatten(name="f", inputs=(Edge(x),))), timesteps=6, mode="sum")
    return graph, np.random.default_rng(28).uniform(0.0, 0.9, (4, 2, 6, 6)).astype(np.float32)


BY_HAND: dict[Limit, tuple[Case, Callable[[nir.NIRGraph], None], Case]] = {
    "v_reset other than 0 in a LIF": (
        affine_chain(0.5), a_reset, changed(affine_chain(0.5), "sn1", v_reset=frozen(-0.5)),
    ),
    "beta = 1 as an IF": (affine_chain(1.0), an_integrator, affine_chain(1.0)),
    "a padded sum pool": (
        pooled(), a_pool, changed(pooled(), "pool", kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    ),
}  # fmt: skip
"""By limit: a network, what is done to its file by hand, and the network that the file then stands for."""


def differs(
    meant: Case, change: Callable[[nir.NIRGraph], None], folder: Path, monkeypatch: pytest.MonkeyPatch,
    *, dialect: str = "sinabs", source: Case | None = None,
) -> bool:  # fmt: skip
    """Whether sinabs, kept from nothing, fires other spikes than `meant` on a changed file, or cannot run it."""
    file = to_nir((source or meant)[0], dialect=dialect)
    change(file)
    nir.write(str(path := folder / "net.nir"), file)
    monkeypatch.setattr(NirFile, "check", lambda *_: None)
    expected = simulate(*meant)
    try:
        found = SinabsRuntime(path).run(meant[1])
    except DalifError as error:
        return "gave something else than 0 and 1" in error.message or "cannot be run" in error.message
    return any(train.differing(found.spikes[name]).any() for name, train in expected.spikes.items())


@pytest.mark.parametrize("limit", BY_HAND)
def test_beyond_its_limits_it_fires_other_spikes(limit: Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, change, meant = BY_HAND[limit]
    file = to_nir(source[0], dialect="sinabs")
    change(file)
    nir.write(str(path := tmp_path / "by_hand.nir"), file)
    with pytest.raises(DalifError, match=re.escape(f"{limit}: sinabs ")):
        SinabsRuntime(path)
    assert differs(meant, change, tmp_path, monkeypatch, source=source)
    assert {refusal.limit for refusal in SINABS.refusals} == BY_HAND.keys() | {"beta below 0"}  # which no tau says


def test_an_if_is_clamped(tmp_path: Path) -> None:
    """As sinabs imports it: the potential is held above -v_threshold."""
    from sinabs.nir import _import_sinabs_module

    node = nir.IF(r=np.ones(1), v_threshold=np.ones(1), v_reset=np.zeros(1))
    neuron: Any = _import_sinabs_module(node, batch_size=None, num_timesteps=1)
    neuron(torch.full((1, 1), -5.0))
    assert neuron.v_mem.item() == -1.0


def test_its_own_reset_to_a_value_moves_neurons_that_did_not_fire() -> None:
    """Why another v_reset than 0 is refused, though sinabs has an option for it."""
    from sinabs.activation import MembraneReset

    moved = MembraneReset(-0.5)(torch.zeros(1), {"v_mem": torch.full((1,), 0.25)}, torch.ones(1))["v_mem"]
    assert moved.item() == -0.25


def values_of(beta: float) -> NDArray[np.float64]:
    return np.asarray(leak_of(np.array([1e-6, 1e-3, 1.0, 1e6]), SINABS)) - beta


def test_no_tau_gives_a_leak_below_0() -> None:
    assert (values_of(0.0) >= 0.0).all()
    with pytest.raises(DalifError, match="beta below 0: sinabs takes exp") as info:
        to_nir(affine_chain(-0.25)[0], dialect="sinabs")
    assert info.value.code is Code.TARGET_CANNOT_HOLD
