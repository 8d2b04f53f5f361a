"""The NIR simulators themselves on exported files: whose neurons run, that they fire the same spikes, and that
what the export says of each reader is what its own loading call does."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dalif_deploy.dialects import SIMULATORS
from dalif_deploy.equivalence.replay import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import readers, to_nir
from dalif_deploy.exporters.registry import file_format
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Edge, Readout, frozen
from dalif_deploy.operators import reduce_time
from dalif_deploy.passes import fold
from dalif_deploy.runtimes import nir_file, norse, snntorch, spikingjelly
from dalif_deploy.runtimes.norse import NorseRuntime
from dalif_deploy.runtimes.protocol import Runtime
from dalif_deploy.runtimes.registry import runtime_kind
from dalif_deploy.runtimes.snntorch import SnnTorchRuntime
from dalif_deploy.runtimes.spikingjelly import SpikingJellyRuntime
from tests.graphs import GRAPHS, Build, Case, firing_rates
from tests.nir_graphs import (
    NETWORKS,
    affine_chain,
    changed,
    conv_chain,
    one_layer,
    padded_pool,
    per_step,
    renamed,
    residual,
    smallest_margin,
    three_branches,
    write,
)

pytestmark = pytest.mark.simulators

Open = Callable[[Path], Runtime]

RUNTIMES: dict[str, Open] = {
    "norse": NorseRuntime,
    "spikingjelly": SpikingJellyRuntime,
    "spikingjelly float64": functools.partial(SpikingJellyRuntime, dtype="float64"),
    "snntorch": SnnTorchRuntime,
}
FLOAT32 = ["norse", "spikingjelly", "snntorch"]
"""The ones that a dialect is named after."""
NO_NEAR_TIE = 1.0
"""In bounds: margins above this are beyond what rounding can do, whatever the order of sums."""


def assert_same_spikes(case: Case, runtime: Runtime) -> None:
    graph, batch = case
    assert smallest_margin(case) > NO_NEAR_TIE
    assert all(0.02 <= rate <= 0.4 for rate in firing_rates(graph, batch).values())
    expected, found = simulate(graph, batch), runtime.run(batch)
    assert list(found.spikes) == [neuron.name for neuron in graph.neurons]
    for name, train in expected.spikes.items():
        assert found.spikes[name].shape == train.shape
        assert train.differing(found.spikes[name]).sum() == 0, name
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-5, atol=1e-6)


# ---- spikes


REFUSED = {
    ("spikingjelly", -0.25): "greater than 1",
    ("spikingjelly", 0.0): "greater than 1",
    ("snntorch", -0.25): "takes it for 0",
    ("snntorch", 1.0): "r != 1 not supported",
}
"""Canonical files that a simulator does not read as they are meant, and some words of why."""


@pytest.mark.parametrize("beta", [-0.25, 0.0, 0.25, 0.5, 0.76, 0.9, 1.0])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("simulator", RUNTIMES)
def test_same_spikes(simulator: str, network: str, beta: float, tmp_path: Path) -> None:
    case = NETWORKS[network](np.float32(beta))
    path = write(case, tmp_path)
    if words := REFUSED.get((simulator.split()[0], beta)):
        with pytest.raises(DalifError, match=re.escape(words)) as info:
            RUNTIMES[simulator](path)
        assert info.value.code is Code.RUNTIME_CANNOT_RUN
        return
    assert_same_spikes(case, RUNTIMES[simulator](path))


@pytest.mark.parametrize("beta", [-0.25, 0.0, 0.25, 0.76, 1.0])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("simulator", FLOAT32)
def test_same_spikes_in_its_own_dialect(simulator: str, network: str, beta: float, tmp_path: Path) -> None:
    case = NETWORKS[network](np.float32(beta))
    words = REFUSED.get((simulator, beta))
    if words and beta < 1.0:  # in its dialect, beta = 1 is no IF for snntorch
        with pytest.raises(DalifError, match=re.escape(words)) as info:
            write(case, tmp_path, dialect=simulator)
        assert info.value.code is Code.TARGET_CANNOT_HOLD
        return
    assert_same_spikes(case, RUNTIMES[simulator](write(case, tmp_path, dialect=simulator)))


@pytest.mark.parametrize("simulator", RUNTIMES)
def test_sums_of_sums(simulator: str, tmp_path: Path) -> None:
    case = three_branches()
    assert_same_spikes(case, RUNTIMES[simulator](write(case, tmp_path)))


def test_parameters_per_channel(tmp_path: Path) -> None:
    graph, batch = GRAPHS["per channel"]()
    case = fold(graph), batch
    assert_same_spikes(case, NorseRuntime(write(case, tmp_path)))
    for refuses, word in ((SpikingJellyRuntime, "uniform"), (SnnTorchRuntime, "same for all neurons")):
        with pytest.raises(DalifError, match=word) as info:
            refuses(tmp_path / "net.nir")
        assert info.value.code is Code.RUNTIME_CANNOT_RUN


def test_leaks_per_channel_some_of_them_1(tmp_path: Path) -> None:
    """A neuron that never leaks beside others that do has a tau of 2^60 steps."""
    case = changed(affine_chain(0.5), "sn1", beta=frozen(np.where(np.arange(32) % 5, np.linspace(0.2, 0.8, 32), 1.0)))
    assert_same_spikes(case, SnnTorchRuntime(write(case, tmp_path, dialect="snntorch")))
    assert_same_spikes(case, NorseRuntime(write(case, tmp_path)))
    assert_same_spikes(case, NorseRuntime(write(case, tmp_path, dialect="norse")))


@pytest.mark.parametrize("simulator", RUNTIMES)
def test_average_pools(simulator: str, tmp_path: Path) -> None:
    case = average_pooled()
    assert_same_spikes(case, RUNTIMES[simulator](write(case, tmp_path)))


def average_pooled() -> Case:
    build = Build(33, (2, 6, 6))
    batch = np.random.default_rng(34).uniform(0.0, 0.95, (4, 2, 6, 6)).astype(np.float32)
    x = build.neuron("sn1", build.avg_pool("pool", "input"), alpha=1.0, beta=0.5)
    x = build.neuron("sn2", build.avg_pool("pool2", x, 3), alpha=1.0, beta=0.75, v_threshold=0.6)
    build.add(Readout(name="readout", inputs=(Edge(x),), mode="sum"))
    return SpikingGraph(build.nodes, output="readout", timesteps=8), batch


@pytest.mark.parametrize("simulator", RUNTIMES)
def test_ties_follow_the_rule_of_the_simulator(simulator: str, tmp_path: Path) -> None:
    """beta and the potentials are dyadic, so nothing is rounded: only the rule at V = v_th is left."""
    graph, batch = one_layer(1.0, 0.5, [1.0, 0.5, 0.25, 1.5])
    found = RUNTIMES[simulator](write((graph, batch), tmp_path)).run(batch).spikes["sn"].unpack()[0]
    at_threshold = simulator.startswith("spikingjelly")
    assert found[:, 0].tolist() == [at_threshold, True, at_threshold]  # V: 1; if silent 1.5; after a spike 1 again
    assert found[:, 3].all()
    assert not found[:, 1:3].any()


@pytest.mark.parametrize("simulator", RUNTIMES)
def test_every_batch_starts_anew(simulator: str, tmp_path: Path) -> None:
    graph, batch = affine_chain()
    runtime = RUNTIMES[simulator](write((graph, batch), tmp_path))
    first, again, part = runtime.run(batch), runtime.run(batch), runtime.run(batch[:3])  # the same shape twice
    for name, train in first.spikes.items():
        assert np.array_equal(train.bits, again.spikes[name].bits)
        assert np.array_equal(train.bits[:3], part.spikes[name].bits)
    assert np.array_equal(first.logits, again.logits)


@pytest.mark.parametrize("mode", ["mean", "sum", "last", "max"])
def test_the_readout_is_the_files(mode: str, tmp_path: Path) -> None:
    case = changed(affine_chain(), "readout", mode=mode)
    runtime = SpikingJellyRuntime(write(case, tmp_path), dtype="float64")
    np.testing.assert_allclose(runtime.run(case[1]).logits, simulate(*case).logits, atol=1e-6)


def test_the_encoding_is_the_files(tmp_path: Path) -> None:
    graph, codes = GRAPHS["uint8 codes"]()
    folded = fold(graph)
    case = changed((folded, codes), "sn2", reset="hard")
    assert case[0].encoding.kind == "uint8"
    for open_runtime in RUNTIMES.values():  # beta 0.625, all of them read it
        found = open_runtime(write(case, tmp_path)).run(codes)
        for name, train in simulate(*case).spikes.items():
            assert train.differing(found.spikes[name]).sum() == 0


# ---- by which formula


UPDATES: dict[str, Callable[..., NDArray[np.float32]]] = {
    "norse": lambda v, x, tau: v + np.float32(1e-4) * (np.float32(1) / np.float32(tau)) * (x - v),
    "spikingjelly": lambda v, x, tau: v + (x - v) / np.float32(tau / 1e-4),
    "snntorch": lambda v, x, tau: np.float32(1.0 - 1e-4 / tau) * v + x,
}
"""The formulas that the packages' neurons compute by, each operation rounded to float32."""


@pytest.mark.parametrize("beta", [0.25, 0.76, 0.9, 0.9995, 1.0])
@pytest.mark.parametrize("simulator", FLOAT32)
def test_the_formula_of_the_potential_is_the_one_declared(simulator: str, beta: float, tmp_path: Path) -> None:
    """Bit for bit, over steps in which nothing fires, of neurons that are read by the runtime itself."""
    count, steps = 1003, 12  # not a multiple of a vector register
    x = np.random.default_rng(61).normal(0.0, 1.0, (steps, 2, count)).astype(np.float32)
    graph, _ = one_layer(1e6, beta, [0.0] * count)
    runtime: Any = RUNTIMES[simulator](write((graph, x), tmp_path, dialect=simulator))
    neuron, state = runtime._stepper._steps["sn"], None
    tau = float(to_nir(graph, dialect=simulator).nodes["sn"].tau[0]) if beta < 1.0 else np.inf
    v = np.zeros((2, count), np.float32)
    with torch.no_grad():
        for t in range(steps):
            fired, state = neuron(torch.from_numpy(x[t]), state)
            v = v + x[t] if beta == 1.0 else UPDATES[simulator](v, x[t], tau)
            found = runtime_state(simulator, neuron, state)
            assert not fired.any()
            assert found.dtype == torch.float32
            assert np.array_equal(found.numpy(), v), t
    kind = runtime_kind(simulator)
    assert kind.update == type(runtime).update == ("sum" if simulator == "snntorch" else "decay")


def runtime_state(simulator: str, neuron: Any, state: Any) -> torch.Tensor:
    """The potential that a simulator's neuron holds after a step."""
    if simulator == "snntorch":
        (module,) = (cell.cell_contents for cell in neuron.__closure__)
        return torch.as_tensor(module.mem)
    return torch.as_tensor(state.v if simulator == "norse" else state[0])


# ---- whose neurons, and from which file


@pytest.mark.parametrize(
    ("simulator", "beta", "classes"),
    [
        ("norse", 0.5, "norse.torch.module.lif_box.LIFBoxCell"),
        ("norse", 1.0, "norse.torch.module.iaf.IAFCell"),
        ("spikingjelly", 0.5, "spikingjelly.activation_based.neuron.lif.LIFNode"),
        ("spikingjelly", 1.0, "spikingjelly.activation_based.neuron.integrate_and_fire.IFNode"),
        ("snntorch", 0.5, "snntorch._neurons.leaky.Leaky"),
    ],
)
def test_the_neurons_are_the_packages(
    simulator: str, beta: float, classes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, batch = affine_chain(beta)
    runtime: Any = RUNTIMES[simulator](write((graph, batch), tmp_path))
    assert runtime.neuron_class == classes
    assert re.search(r"\d+\.\d+\.\d+", runtime.description)
    assert all(note in runtime.description for note in runtime.notes)
    # The class is what computes: with its update broken, the run is broken.
    module, _, name = classes.rpartition(".")
    cls = getattr(__import__(module, fromlist=[name]), name)
    method = "single_step_functional_forward" if simulator == "spikingjelly" else "forward"

    def broken(*_: object, **__: object) -> None:
        raise ArithmeticError("this neuron was asked")

    monkeypatch.setattr(cls, method, broken)
    with pytest.raises(ArithmeticError, match="this neuron was asked"):
        runtime.run(batch)


@pytest.mark.parametrize("simulator", RUNTIMES)
def test_the_file_is_what_is_run(simulator: str, tmp_path: Path) -> None:
    graph, batch = conv_chain()
    path = write((graph, batch), tmp_path)
    before = RUNTIMES[simulator](path).run(batch)
    with h5py.File(path, "r+") as file:
        file["node/nodes/features.sn/v_threshold"][...] *= 4.0
    after = RUNTIMES[simulator](path).run(batch)
    assert after.spikes["features.sn"].count() < before.spikes["features.sn"].count()


def test_dtypes(tmp_path: Path) -> None:
    case = affine_chain()
    path = write(case, tmp_path)
    assert NorseRuntime(path).run(case[1]).logits.dtype == np.float32
    assert SnnTorchRuntime(path).run(case[1]).logits.dtype == np.float32
    assert SpikingJellyRuntime(path).run(case[1]).logits.dtype == np.float32
    assert SpikingJellyRuntime(path, dtype="float64").run(case[1]).logits.dtype == np.float64
    with pytest.raises(DalifError) as info:
        SpikingJellyRuntime(path, dtype="float16")  # type: ignore[arg-type]
    assert info.value.code is Code.BAD_OPTION


def test_opening_draws_no_random_numbers_of_the_callers(tmp_path: Path) -> None:
    path = write(affine_chain(), tmp_path)
    before = torch.random.get_rng_state()
    for open_runtime in RUNTIMES.values():
        open_runtime(path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_opening_leaves_no_neuron_in_the_list_of_snntorch(tmp_path: Path) -> None:
    from snntorch import Leaky, SpikingNeuron

    mine = Leaky(beta=0.5)
    try:
        before = list(SpikingNeuron.instances)
        SnnTorchRuntime(write(affine_chain(), tmp_path))
        assert SpikingNeuron.instances == before
    finally:
        SpikingNeuron.instances.remove(mine)


@pytest.mark.parametrize("simulator", RUNTIMES)
def test_names_that_python_or_nirtorch_keeps(simulator: str, tmp_path: Path) -> None:
    assert_same_spikes(keyword_name(), RUNTIMES[simulator](write(keyword_name(), tmp_path)))


def test_running_logs_and_prints_nothing(tmp_path: Path) -> None:
    """In a process of its own: the packages log at their first import and at their first step."""
    case = residual(0.5)
    path = write(case, tmp_path)
    np.save(tmp_path / "batch.npy", case[1])
    code = (
        "import sys, numpy\n"
        "from dalif_deploy.runtimes.norse import NorseRuntime\n"
        "from dalif_deploy.runtimes.snntorch import SnnTorchRuntime\n"
        "from dalif_deploy.runtimes.spikingjelly import SpikingJellyRuntime\n"
        "for kind in (NorseRuntime, SpikingJellyRuntime, SnnTorchRuntime):\n"
        "    kind(sys.argv[1]).run(numpy.load(sys.argv[2]))\n"
        "print('ran')"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(path), str(tmp_path / "batch.npy")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("ran\n", "")


# ---- refusals


@pytest.mark.parametrize("simulator", RUNTIMES)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: changed(affine_chain(), "sn1", v_reset=frozen(-0.25)), ("'sn1'", "v_reset")),
        (lambda: changed(affine_chain(), "sn2", v_reset=frozen(0.25)), ("'sn2'", "v_reset")),
        (lambda: changed(affine_chain(1.0), "sn2", v_reset=frozen(0.25)), ("an IF",)),
    ],
)
def test_what_a_simulator_would_misread_is_refused(
    make: Callable[[], Case], words: tuple[str, ...], simulator: str, tmp_path: Path
) -> None:
    with pytest.raises(DalifError) as info:
        RUNTIMES[simulator](write(make(), tmp_path))
    assert info.value.code is Code.RUNTIME_CANNOT_RUN
    assert all(word in info.value.message for word in words)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("simulator", RUNTIMES)
def test_bad_files(simulator: str, tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    for code, content in ((Code.FILE_MISSING, None), (Code.FILE_DAMAGED, b""), (Code.FOREIGN_FILE, b"no HDF5 at all")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DalifError) as info:
            RUNTIMES[simulator](path)
        assert info.value.code is code


@pytest.mark.parametrize("simulator", RUNTIMES)
def test_bad_batches(simulator: str, tmp_path: Path) -> None:
    case = affine_chain()
    runtime = RUNTIMES[simulator](write(case, tmp_path))
    for code, batch in (
        (Code.WRONG_SHAPE, case[1][:, 0]),
        (Code.NOT_FINITE, np.full_like(case[1], np.nan)),
        (Code.BAD_DATA, case[1].astype(np.int64)),
    ):
        with pytest.raises(DalifError) as info:
            runtime.run(batch)
        assert info.value.code is code


@pytest.mark.parametrize("module", [norse, spikingjelly, snntorch])
def test_a_missing_package_is_named_with_its_mend(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.available() is None
    monkeypatch.setattr(nir_file, "find_spec", lambda package: None)
    command = module.available()
    assert command.endswith("pip install --no-deps -r requirements/simulators-no-deps.txt")
    with pytest.raises(DalifError, match=re.escape(command)) as info:
        RUNTIMES[module.__name__.rpartition(".")[2]](tmp_path / "net.nir")
    assert info.value.code is Code.MISSING_PACKAGE


# ---- what the export says of the readers, against their own calls


def v_reset_set() -> Case:
    return changed(affine_chain(0.5), "sn1", v_reset=frozen(-0.5))


def if_with_v_reset() -> Case:
    return changed(affine_chain(1.0), "sn1", v_reset=frozen(0.5))


def negative_threshold() -> Case:
    return changed(affine_chain(0.5), "sn1", v_threshold=frozen(-0.5))


def tiny_leak() -> Case:
    """A potential just above the threshold, by less than the leak."""
    return one_layer(1.0, 9e-6, [1.0 - 5e-6, 0.5])


def one_name_for_two() -> Case:
    return renamed(affine_chain(0.5), {"sn1": "sn.x", "sn2": "sn_x"})


def forbidden_name() -> Case:
    return renamed(affine_chain(0.5), {"sn1": "half"})


def keyword_name() -> Case:
    return renamed(affine_chain(0.5), {"sn1": "if", "fc1": "0"})


def per_channel_chain() -> Case:
    return changed(affine_chain(0.5), "sn1", beta=frozen(np.linspace(0.2, 0.8, 32)))


def per_channel_threshold() -> Case:
    return changed(affine_chain(0.5), "sn1", v_threshold=frozen(np.linspace(0.5, 1.5, 32)))


ADVICE: dict[str, tuple[Callable[[], Case], set[str]]] = {
    "chain": (lambda: affine_chain(0.76), {"norse", "spikingjelly", "snntorch"}),
    "convolutions": (lambda: conv_chain(0.9), {"norse", "spikingjelly", "snntorch"}),
    "average pools": (average_pooled, {"norse", "spikingjelly", "snntorch"}),
    "identity residual": (lambda: residual(0.76), {"norse", "spikingjelly", "snntorch"}),
    "two-branch residual": (lambda: residual(0.5, downsample=True), {"norse", "spikingjelly", "snntorch"}),
    "sums of sums": (three_branches, {"norse", "spikingjelly", "snntorch"}),
    "beta 0": (lambda: affine_chain(0.0), {"norse", "snntorch"}),
    "beta 1": (lambda: affine_chain(1.0), {"norse", "spikingjelly"}),
    "beta negative": (lambda: affine_chain(-0.25), {"norse"}),
    "beta per channel": (per_channel_chain, {"norse"}),
    "threshold per channel": (per_channel_threshold, {"norse"}),
    "v_reset": (v_reset_set, set()),
    "v_reset of an IF": (if_with_v_reset, set()),
    "padded sum pool": (padded_pool, {"norse", "spikingjelly", "snntorch"}),
    "negative threshold": (negative_threshold, {"norse", "spikingjelly"}),
    "tiny leak": (tiny_leak, {"norse", "spikingjelly"}),
    "one name for two nodes": (one_name_for_two, set()),
    "a name that torch keeps": (forbidden_name, set()),
    "a keyword as a name": (keyword_name, {"norse", "spikingjelly", "snntorch"}),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_on_readers_is_what_they_do(name: str, tmp_path: Path) -> None:
    make, expected = ADVICE[name]
    graph, batch = case = make()
    file, path = to_nir(graph), write(case, tmp_path)
    reference = simulate(graph, batch).logits
    advice = {reader.name: reader for reader in readers(graph)}
    assert advice.keys() == SIMULATORS.keys()
    assert {reader.name for reader in advice.values() if reader.reads} == expected
    for reader in advice.values():
        try:
            outputs = per_step(reader.call, path, batch, file)
            reduced = reduce_time(outputs, graph.readout.mode)
            right = reduced.shape == reference.shape and np.allclose(reduced, reference, rtol=1e-5, atol=1e-5)
        except Exception as error:  # a reader may refuse in any way it likes
            right, outputs = False, error
        assert right == reader.reads, (reader, outputs)
        assert reader.why
        assert "\n" not in reader.why


@pytest.mark.parametrize("name", ["ties", "ties, strict"])
@pytest.mark.parametrize("simulator", FLOAT32)
def test_its_own_call_loads_its_own_dialect(simulator: str, name: str, tmp_path: Path) -> None:
    """The package's own wiring, state and all, on a network full of ties."""
    graph, batch = GRAPHS[name]()
    folded = fold(graph)
    file, path = to_nir(folded, dialect=simulator), write((folded, batch), tmp_path, dialect=simulator)
    advice = {reader.name: reader for reader in readers(file)}
    assert [reader.name for reader in advice.values() if reader.reads] == [simulator]
    assert "V = v_th is decided as in the network" in advice[simulator].why
    outputs = reduce_time(per_step(advice[simulator].call, path, batch, file), folded.readout.mode)
    np.testing.assert_allclose(outputs, simulate(graph, batch).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("written", FLOAT32)
@pytest.mark.parametrize("simulator", RUNTIMES)
def test_a_file_for_another_simulator_is_refused(simulator: str, written: str, tmp_path: Path) -> None:
    case = affine_chain()
    path = write(case, tmp_path, dialect=written)
    if simulator == written:
        assert_same_spikes(case, RUNTIMES[simulator](path))
        return
    words = "chosen for float32" if simulator.startswith(written) else f"chosen for {written}"
    with pytest.raises(DalifError, match=words) as info:
        RUNTIMES[simulator](path)
    assert info.value.code is Code.RUNTIME_CANNOT_RUN
    unfit = file_format("nir").unfit(to_nir(case[0], dialect=written), simulator.split()[0])
    assert (unfit is None) == (simulator.split()[0] == written)
    assert unfit is None or f"chosen for {written}; export it again for {simulator.split()[0]}" in unfit
