"""Exact NIR files: spikes and logits of snnTorch and sinabs, bit for bit those of the definition.

So are those of ONNX Runtime, for a file of the same whole numbers: on all of them one network is one network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dalif_deploy import DALIF, Data, Encoding, save, verify
from dalif_deploy.capturing.nir import read_nir
from dalif_deploy.certificate import check_certificate
from dalif_deploy.deploy import export
from dalif_deploy.deploy.content import Content, content_of
from dalif_deploy.deploy.exported import open_exported
from dalif_deploy.dialects import DIALECTS
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.exporters.onnx import to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import (
    Add,
    Conv2d,
    Edge,
    Flatten,
    Input,
    Linear,
    MaxPool2d,
    Neuron,
    Node,
    Readout,
    Scale,
    SumPool2d,
    frozen,
)
from dalif_deploy.passes.snap import snap
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.events import EventsRuntime
from dalif_deploy.runtimes.nir_file import NirSimulator
from dalif_deploy.runtimes.onnxruntime import OPTIMIZATIONS, OnnxRuntime
from dalif_deploy.runtimes.registry import runtime_kind
from dalif_deploy.runtimes.sinabs import SinabsRuntime
from dalif_deploy.runtimes.snntorch import SnnTorchRuntime
from tests.commands import DIGITS, done
from tests.commands import refused as refused_command
from tests.test_exact_arithmetic import MAKERS, folded
from tests.test_exact_files import SAMPLES, watched
from tests.test_proof_levels import _example_scripts, differing, trained
from tests.test_snap import random_graph

__all__ = ["_example_scripts"]  # the fixture, for this module too

RUNTIMES: dict[str, type[Any]] = {"snntorch": SnnTorchRuntime, "sinabs": SinabsRuntime}
Case = tuple[str, int]


def written(content: Content, dialect: str, folder: Path) -> Path:
    path = folder / f"{dialect}.nir"
    nir.write(str(path), to_nir(content.graph, dialect=dialect, **content.extra))
    return path


def assert_same_bits(found: Recording, expected: Recording) -> None:
    """0.0 and -0.0 are equal; nothing here is NaN."""
    assert differing(found, expected) == 0
    assert found.logits.dtype == expected.logits.dtype == np.float32
    assert (found.logits == expected.logits).all()


def defined(content: Content, batch: NDArray[Any]) -> Recording:
    runtime = content.definition()
    assert runtime is not None
    return runtime.run(batch)


# Trained networks, real data.


@cache
def content(case: Case) -> Content:
    return content_of(trained(*case).folded, "exact", two_slices=True)


@cache
def definition(case: Case) -> Recording:
    return defined(content(case), trained(*case).data[: SAMPLES[case]])


@pytest.mark.parametrize("dialect", RUNTIMES)
@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_simulators_agree_in_every_bit(case: Case, dialect: str, tmp_path: Path) -> None:
    batch = trained(*case).data[: SAMPLES[case]]
    path = written(content(case), dialect, tmp_path)
    runtime = RUNTIMES[dialect](path)
    assert_same_bits(runtime.run(batch), definition(case))
    one_by_one = Recording.joined([runtime.run(batch[i : i + 1]) for i in range(2)])
    assert_same_bits(one_by_one, definition(case).part(0, 2))
    assert check_certificate(path).holds


@pytest.mark.parametrize(("dialect", "held"), [("snntorch", "mem"), ("sinabs", "v_mem")])
@pytest.mark.parametrize("case", [("digits", 16), ("resnet20_digits", 4)], ids=str)
def test_potentials_of_simulators_agree_in_every_bit(
    case: Case, dialect: str, held: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H, what a neuron holds after the reset: V where it did not fire. `held`: what the simulator calls it."""
    modules: dict[str, Any] = {}
    original = NirSimulator.__init__

    def kept(self: NirSimulator, file: Any, made: dict[str, Any], *rest: Any, **options: Any) -> None:
        modules.update(made)
        original(self, file, made, *rest, **options)

    monkeypatch.setattr(NirSimulator, "__init__", kept)
    runtime = RUNTIMES[dialect](written(content(case), dialect, tmp_path))
    graph, batch = content(case).graph, trained(*case).data[:4]
    seen: dict[str, list[NDArray[Any]]] = {neuron.name: [] for neuron in graph.neurons}
    for name, found in seen.items():
        modules[name].register_forward_hook(
            lambda module, _inputs, _output, found=found: found.append(getattr(module, held).detach().numpy().copy())
        )
    fired = runtime.run(batch).spikes
    recording, potentials = watched(EventsRuntime, graph, batch, arithmetic="exact")
    for name, potential in potentials.items():
        expected = np.where(recording.spikes[name].unpack(), np.float32(0.0), potential)
        values = np.stack(seen[name], axis=1).reshape(expected.shape)
        assert values.dtype == np.float32
        assert fired[name].count() == recording.spikes[name].count() > 0
        assert (values == expected).all(), name


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_onnx_runtime_gives_the_same_bits_of_the_same_whole_numbers(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "slices.onnx"
    path.write_bytes(to_onnx(content(case).graph, **content(case).extra).SerializeToString())
    assert {layer.form for layer in check_certificate(path).layers} == {"slices2"}
    batch = trained(*case).data[: SAMPLES[case]]
    for level in OPTIMIZATIONS:
        assert_same_bits(OnnxRuntime(path, optimization=level).run(batch), definition(case))


@pytest.mark.parametrize("dialect", RUNTIMES)
def test_the_file_read_back_gives_the_same_bits(dialect: str, tmp_path: Path) -> None:
    case = ("resnet20_digits", 4)
    file = open_exported(written(content(case), dialect, tmp_path))
    assert_same_bits(file.open(runtime_kind("events")).run(trained(*case).data[: SAMPLES[case]]), definition(case))


@pytest.mark.parametrize("dialect", RUNTIMES)
def test_a_float32_file_would_not_agree_in_every_bit(dialect: str, tmp_path: Path) -> None:
    """What the exact form is for: in float32 the logits of two orders of summation differ."""
    case = ("digits", 4)
    path = tmp_path / "plain.nir"
    nir.write(str(path), to_nir(trained(*case).folded, dialect=dialect))
    batch = trained(*case).data
    assert (RUNTIMES[dialect](path).run(batch).logits != EventsRuntime(trained(*case).folded).run(batch).logits).any()


def test_snntorch_wired_by_itself_gives_the_same_bits(tmp_path: Path) -> None:
    """No node adds up more than two numbers that are not exact together, so its own wiring cannot tell."""
    from snntorch.import_nir import import_from_nir

    case = ("resnet20_digits", 4)
    path = written(content(case), "snntorch", tmp_path)
    batch = trained(*case).data[:4]
    with torch.no_grad(), torch.backends.nnpack.flags(enabled=False):
        network = import_from_nir(nir.read(str(path)))
        codes, state = torch.from_numpy(batch.astype(np.float32)), None
        outputs = []
        for _ in range(case[1]):
            output, state = network(codes, state)
            outputs.append(output.numpy())
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    assert (total / np.float32(case[1]) == definition(case).part(0, 4).logits).all()


# Every kind of graph.


def file_of(graph: SpikingGraph, dialect: str, folder: Path) -> tuple[Content, Path] | str:
    """An exact file of a folded graph, or why there is none."""
    try:
        held = content_of(graph, "exact", two_slices=True)
        return held, written(held, dialect, folder)
    except DalifError as error:
        if error.code is not Code.TARGET_CANNOT_HOLD:
            raise
        return error.message


def assert_exact(held: Content, path: Path, dialect: str, batch: NDArray[Any]) -> None:
    assert check_certificate(path).findings == ()
    for runtime in (RUNTIMES[dialect](path), open_exported(path).open(runtime_kind("events"))):
        assert_same_bits(runtime.run(batch), defined(held, batch))


@pytest.mark.parametrize("dialect", RUNTIMES)
@pytest.mark.parametrize("name", MAKERS)
def test_every_graph_agrees_in_every_bit_or_is_refused_by_name(name: str, dialect: str, tmp_path: Path) -> None:
    graph, batch = folded(name)
    found = file_of(graph, dialect, tmp_path)
    # What a dialect holds in float32 it holds exactly.
    assert isinstance(found, str) == (not in_float32(graph, dialect, tmp_path, batch)), found
    if not isinstance(found, str):
        assert_exact(*found, dialect, batch)


def in_float32(graph: SpikingGraph, dialect: str, folder: Path, batch: NDArray[Any]) -> bool:
    """Whether the dialect's reader runs a float32 file of the graph."""
    path = folder / "plain.nir"
    try:
        nir.write(str(path), to_nir(graph, dialect=dialect))
        RUNTIMES[dialect](path).run(batch)
    except DalifError:
        return False
    return True


@pytest.mark.parametrize("dialect", RUNTIMES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_random_graphs_agree_in_every_bit(
    dialect: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = without_delays(random_graph(data.draw))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = (3, graph.timesteps, *graph.input.shape)
    codes = graph.encoding.kind == "uint8"
    batch = rng.integers(0, 256, shape, dtype=np.uint8) if codes else (rng.random(shape) < 0.5).astype(np.float32)
    found = file_of(graph, dialect, tmp_path_factory.mktemp("random"))
    if not isinstance(found, str):
        assert_exact(*found, dialect, batch)


def without_delays(graph: SpikingGraph) -> SpikingGraph:
    nodes = [replace(node, inputs=tuple(Edge(edge.source) for edge in node.inputs)) for node in graph.nodes]
    return SpikingGraph(nodes, output=graph.output, timesteps=graph.timesteps, encoding=graph.encoding)


# The form.


def small(*middle: Node, codes: bool = False, timesteps: int = 3) -> SpikingGraph:
    """`middle` from "input", (2, 6, 6), to "last"."""
    nodes = [
        Input(name="input", shape=(2, 6, 6), temporal=True, kind="real" if codes else "spike"),
        *middle,
        Flatten(name="flat", inputs=(Edge("last"),)),
        Readout(name="readout", inputs=(Edge("flat"),), mode="mean"),
    ]
    encoding = Encoding(kind="uint8") if codes else None
    return SpikingGraph(nodes, output="readout", timesteps=timesteps, encoding=encoding)


def neuron(name: str, source: str, beta: float = 0.6) -> Neuron:
    return Neuron(name=name, inputs=(Edge(source),), alpha=frozen(1.0), beta=frozen(beta))


def conv(name: str, source: str, seed: int, *, scale: float = 1.0, inputs: int = 2, **fields: Any) -> Conv2d:
    weight = np.random.default_rng(seed).normal(0.2, scale, (2, inputs, 3, 3))
    return Conv2d(name=name, inputs=(Edge(source),), weight=frozen(weight), padding=(1, 1), **fields)


def edges(graph: nir.NIRGraph, target: str) -> list[str]:
    return sorted(source for source, to in graph.edges if to == target)


def exact_nir(graph: SpikingGraph, dialect: str = "snntorch") -> nir.NIRGraph:
    snapped, lattices = snap(graph, "exact", two_slices=True)
    return to_nir(snapped, dialect=dialect, precision="exact", lattices=lattices)


def test_a_neuron_reads_two_edges_and_no_more() -> None:
    graph = small(
        neuron("sn", "input"), conv("conv", "input", 1), conv("other", "sn", 2),
        Add(name="sum", inputs=(Edge("conv"), Edge("other"), Edge("sn"))), neuron("last", "sum"),
    )  # fmt: skip
    file = exact_nir(graph)
    assert edges(file, "last") == ["sum.high", "sum.low"]
    assert edges(file, "sum.high") == ["conv.high", "other.high", "sn"]
    assert edges(file, "sum.low") == ["conv.low", "other.low"]
    assert file.metadata["precision"] == "exact"


def test_high_and_low_add_up_to_the_weights() -> None:
    graph = small(conv("conv", "input", 3, bias=frozen(np.array([0.3, -1 / 3]))), neuron("last", "conv"))
    snapped, _ = snap(graph, "exact", two_slices=True)
    file = exact_nir(graph)
    high, low = file.nodes["conv.high"], file.nodes["conv.low"]
    weight = snapped["conv"]
    assert isinstance(weight, Conv2d)
    assert (high.weight.astype(np.float64) + low.weight.astype(np.float64) == weight.weight).all()
    assert (high.bias.astype(np.float64) + low.bias.astype(np.float64) == weight.bias).all()
    assert np.abs(weight.weight - graph["conv"].arrays()["weight"]).max() < 2.0**-40
    assert low.weight.any()


def test_an_identity_lies_in_the_half_that_holds_it(tmp_path: Path) -> None:
    """A channel whose high grid is coarser than 1 takes the spikes into its low half."""
    weight = np.zeros((2, 2, 3, 3))
    weight[0], weight[1] = 2.0**25 / 3, 1 / 3
    graph = small(
        neuron("sn", "input"),
        Conv2d(name="conv", inputs=(Edge("input"),), weight=frozen(weight), padding=(1, 1)),
        Add(name="sum", inputs=(Edge("conv"), Edge("sn"))), neuron("last", "sum"),
    )  # fmt: skip
    file = exact_nir(graph)
    high, low = (file.nodes[f"sum.{half}_term1"].weight[:, :, 0, 0] for half in ("high", "low"))
    assert np.array_equal(high, np.diag([0.0, 1.0]))
    assert np.array_equal(low, np.diag([1.0, 0.0]))
    held = content_of(graph, "exact", two_slices=True)
    path = written(held, "sinabs", tmp_path)
    assert check_certificate(path).findings == ()
    batch = (np.random.default_rng(4).random((4, 3, 2, 6, 6)) < 0.5).astype(np.float32)
    assert_same_bits(SinabsRuntime(path).run(batch), defined(held, batch))


@pytest.mark.parametrize(("kernel", "written_as"), [(2, nir.SumPool2d), (5, nir.Conv2d)])
def test_a_pool_that_readers_round_is_a_convolution(kernel: int, written_as: type[Any], tmp_path: Path) -> None:
    """Readers take the mean of a window times its size, which misses some counts of 5x5 places."""
    pool = SumPool2d(name="pool", inputs=(Edge("sn"),), kernel=(kernel, kernel), stride=(1, 1))
    graph = small(
        neuron("sn", "input"), pool,
        conv("conv", "pool", 5, scale=0.05), neuron("last", "conv"),
    )  # fmt: skip
    held = content_of(graph, "exact", two_slices=True)
    path = written(held, "snntorch", tmp_path)
    assert isinstance(nir.read(str(path)).nodes["pool"], written_as)
    assert check_certificate(path).findings == ()
    batch = (np.random.default_rng(6).random((16, 3, 2, 6, 6)) < 0.6).astype(np.float32)
    assert_same_bits(SnnTorchRuntime(path).run(batch), defined(held, batch))


def test_a_maximum_stays_a_neuron_that_tells_whether_any_fired(tmp_path: Path) -> None:
    pool = MaxPool2d(name="pool", inputs=(Edge("input"),), kernel=(5, 5), stride=(1, 1))
    graph = small(pool, conv("conv", "pool", 7), neuron("last", "conv"))
    held = content_of(graph, "exact", two_slices=True)
    for dialect, runtime in RUNTIMES.items():
        path = written(held, dialect, tmp_path)
        assert check_certificate(path).findings == ()
        batch = (np.random.default_rng(8).random((8, 3, 2, 6, 6)) < 0.05).astype(np.float32)
        assert_same_bits(runtime(path).run(batch), defined(held, batch))


def test_a_branch_that_is_added_twice(tmp_path: Path) -> None:
    graph = small(
        conv("conv", "input", 9), Add(name="sum", inputs=(Edge("conv"), Edge("conv"))), neuron("last", "sum"),
    )  # fmt: skip
    held = content_of(graph, "exact", two_slices=True)
    path = written(held, "snntorch", tmp_path)
    batch = (np.random.default_rng(10).random((8, 3, 2, 6, 6)) < 0.3).astype(np.float32)
    for runtime in (SnnTorchRuntime(path), open_exported(path).open(runtime_kind("events"))):
        assert_same_bits(runtime.run(batch), defined(held, batch))


def test_the_codes_themselves_go_in() -> None:
    graph = small(conv("conv", "input", 11, scale=1e-3), neuron("last", "conv"), codes=True)
    file = exact_nir(graph)
    assert '"scale": 1.0' in file.metadata["encoding"]


def test_reading_back_is_the_same_function(tmp_path: Path) -> None:
    """In float64: the sums of the halves, which are exact there, and no identity is left of them."""
    held = content(("resnet20_digits", 4))
    graph = read_nir(written(held, "snntorch", tmp_path))
    weights = [node for node in graph.nodes if isinstance(node, Conv2d | Linear)]
    assert {node.name.rpartition(".")[2] for node in weights} <= {"high", "low", "high_term", "low_term"}
    batch = trained("resnet20_digits", 4).data[:2]
    one, two = (EventsRuntime(g, dtype="float64").run(batch) for g in (graph, held.graph))
    assert differing(one, two) == 0


# What is refused.


def refused(code: Code, words: str, run: Callable[[], object]) -> None:
    with pytest.raises(DalifError, match=words) as caught:
        run()
    assert caught.value.code is code


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name not in RUNTIMES])
def test_dialects_whose_readers_compute_another_sum_are_refused(dialect: str) -> None:
    graph = small(conv("conv", "input", 12), neuron("last", "conv"))
    refused(Code.BAD_OPTION, "give --nir-dialect snntorch or sinabs", lambda: exact_nir(graph, dialect))


def test_precisions_that_nir_has_not_are_refused(tmp_path: Path) -> None:
    graph, _ = snap(small(conv("conv", "input", 12), neuron("last", "conv")), "exact64")
    refused(Code.BAD_OPTION, "'exact64': NIR simulators", lambda: to_nir(graph, dialect="sinabs", precision="exact64"))
    refused(
        Code.BAD_OPTION, "exact64: nir files hold float32 or exact only",
        lambda: export(DIGITS, tmp_path / "a.nir", to="nir", precision="exact64", dialect="sinabs"),
    )  # fmt: skip
    refused(Code.BAD_OPTION, "takes a snapped graph", lambda: to_nir(graph, dialect="sinabs", precision="exact"))
    refused(Code.BAD_OPTION, "takes no lattices", lambda: to_nir(graph, dialect="sinabs", lattices={}))
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_taken_is_refused() -> None:
    graph = small(neuron("conv.high", "input"), conv("conv", "conv.high", 13), neuron("last", "conv"))
    refused(Code.TARGET_CANNOT_HOLD, "'conv.high', and the network has", lambda: exact_nir(graph))


def test_a_map_of_offsets_is_refused_by_name() -> None:
    scale = Scale(
        name="map", inputs=(Edge("input"),), factor=frozen(0.3), offset=frozen(np.arange(72.0).reshape(2, 6, 6))
    )
    graph = small(scale, conv("conv", "input", 14), Add(name="sum", inputs=(Edge("conv"), Edge("map"))),
                  neuron("last", "sum"))  # fmt: skip
    refused(Code.TARGET_CANNOT_HOLD, r"node 'map.high_term' \(Scale\): its offset differs", lambda: exact_nir(graph))


@pytest.mark.parametrize("dialect", RUNTIMES)
def test_data_that_are_no_codes_are_refused(dialect: str, tmp_path: Path) -> None:
    runtime = RUNTIMES[dialect](written(content(("digits", 4)), dialect, tmp_path))
    batch = trained("digits", 4).data[:2] / np.float32(16.0)
    refused(Code.BAD_DATA, "takes the codes themselves, as uint8", lambda: runtime.run(batch))


def test_data_that_are_no_spikes_are_refused(tmp_path: Path) -> None:
    held = content_of(small(conv("conv", "input", 15), neuron("last", "conv")), "exact", two_slices=True)
    runtime = SnnTorchRuntime(written(held, "snntorch", tmp_path))
    refused(Code.BAD_DATA, "every value must be 0 or 1", lambda: runtime.run(np.full((1, 3, 2, 6, 6), 0.5)))


# Export and verify.


@pytest.mark.parametrize("dialect", RUNTIMES)
def test_export_verify_and_the_certificate_on_the_command_line(dialect: str, tmp_path: Path) -> None:
    file = tmp_path / "digits.nir"
    ran = done("export", "--to", "nir", "--precision", "exact", "--nir-dialect", dialect, DIGITS, "-o", file)
    assert "its input is the codes 0 to 255 themselves" in ran.err
    ran = done("verify", DIGITS, file, "--samples", "16")
    for runtime in (dialect, "events"):
        assert f"{runtime} on {file}: every spike and logit is bit for bit that of its definition" in ran.out
    ran = done("verify", "--check-certificate", file)
    assert "the certificate (exact) holds: every sum is exact" in ran.out
    results = tmp_path / "results.npz"
    done("verify", DIGITS, file, "--samples", "8", "-o", results, "--keep-inputs")
    done("verify", "--from", results, DIGITS)


def test_check_says_what_a_layer_becomes() -> None:
    ran = done("export", "--to", "nir", "--precision", "exact", "--nir-dialect", "sinabs", "--check", "--json", DIGITS)
    rows = {row["name"]: row["becomes"] for row in ran.json()["nodes"]}
    assert rows["conv1"] == "snapped, slices2; NIR Conv2d (conv1.high, conv1.low)"
    assert rows["fc1"] == "snapped, slices2; NIR Affine (fc1.high, fc1.low)"


def test_the_canonical_form_is_refused_in_one_line(tmp_path: Path) -> None:
    arguments = ("--to", "nir", "--precision", "exact", DIGITS, "-o", tmp_path / "a.nir")
    line = refused_command(tmp_path, Code.BAD_OPTION, "export", *arguments)
    assert line.endswith("give --nir-dialect snntorch or sinabs")


def test_it_is_no_model_of_its_own(tmp_path: Path) -> None:
    path = written(content(("digits", 4)), "sinabs", tmp_path)
    export_it = ("export", "--to", "onnx", path, "-o", tmp_path / "a.onnx")
    for arguments in (("verify", path), ("verify", path, path), export_it):
        line = refused_command(tmp_path, Code.BAD_OPTION, *arguments)
        assert line.endswith("as MODEL give what it was exported from")
    assert "a layer with weights is two" in done("inspect", path).err + done("inspect", path).out


def test_an_altered_weight_is_found_by_verify(tmp_path: Path) -> None:
    path = written(content(("digits", 4)), "snntorch", tmp_path)
    graph = nir.read(str(path))
    weight = graph.nodes["conv2.low"].weight
    weight.reshape(-1)[5] = np.nextafter(weight.reshape(-1)[5], np.float32(np.inf))
    nir.write(str(path), graph)
    verdict = verify(DIGITS, path, samples=4)
    assert not verdict.passes()
    assert [d.name for r in verdict.runtimes for d in r.tensors_differing][:1] == ["conv2.low.weight"]


def test_a_network_of_spikes_is_saved_exported_and_verified(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 30), DALIF(), torch.nn.Linear(30, 4))
    spikes = (torch.rand(12, 5, 20) < 0.4).float()
    model = tmp_path / "net.pt"
    save(net, model, example_input=spikes, timesteps=5, layout="step", encoding="spikes", samples=spikes)
    for dialect in RUNTIMES:
        file = tmp_path / f"{dialect}.nir"
        result = export(model, file, to="nir", precision="exact", dialect=dialect)
        assert result.verdict is not None
        assert result.verdict.passes()
        verdict = verify(model, file, data=Data(spikes.numpy(), None, "seeded"))
        assert {r.comparison.name: r.definition_differing for r in verdict.runtimes if r.file} == {
            "events": 0, dialect: 0,
        }  # fmt: skip
        assert check_certificate(file).holds
