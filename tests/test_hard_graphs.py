"""Every hard graph against an oracle of loops, and through every runtime of the package, spike for spike.

In float64 the training graph, every pass of folding and the taking apart of concatenations fire what the oracle fires.
In float32 a runtime fires that too, or each spike that it fires otherwise is one that rounding decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.certificate import check_certificate
from dalif_deploy.checkpoint import Checkpoint, read, to_bytes
from dalif_deploy.concats import without_concats
from dalif_deploy.deploy.content import content_of
from dalif_deploy.deploy.proof import prove_folding
from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence import Arithmetic, Comparer, Outcome, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.onnx import to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import KINDS, Conv2d, Neuron, frozen
from dalif_deploy.passes import FOLDING, exact_form, fold
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.onnxruntime import OnnxRuntime
from tests import oracle_graph
from tests.candidates import CANDIDATES
from tests.hard_graphs import GRAPHS, SILENT

FLOAT32 = ("torch float32", "events float32", "onnxruntime")


@dataclass(frozen=True)
class Solved:
    """A hard graph, its batch, what the oracle says, and the float64 reference."""

    graph: SpikingGraph
    batch: NDArray[np.generic]
    spikes: Mapping[str, NDArray[np.float64]]
    logits: NDArray[np.float64]
    closest: float
    reference: Recording


@cache
def solved(name: str) -> Solved:
    graph, batch = GRAPHS[name]()
    inputs = graph.input_spec.module_input(batch)
    return Solved(graph, batch, *oracle_graph.run(graph, inputs), simulate(graph, batch))


def assert_as_the_oracle(case: Solved, found: Recording) -> None:
    assert found.spikes.keys() == case.spikes.keys()
    for layer, train in case.spikes.items():
        np.testing.assert_array_equal(found.spikes[layer].unpack(), train.astype(bool), err_msg=layer)
    np.testing.assert_allclose(found.logits, case.logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_layer_fires_and_no_potential_is_a_tie(name: str) -> None:
    case = solved(name)
    rates = {layer: train.mean() for layer, train in case.spikes.items()}
    assert {layer for layer, rate in rates.items() if rate == 0.0} == SILENT.get(name, set())
    assert all(0.02 <= rate <= 0.4 for layer, rate in rates.items() if layer not in SILENT.get(name, ())), rates
    assert case.closest > 1e-9


@pytest.mark.parametrize("name", GRAPHS)
def test_folding_fires_as_the_oracle_after_every_pass(name: str) -> None:
    case = solved(name)
    assert_as_the_oracle(case, case.reference)
    graph = case.graph
    for step in FOLDING:
        graph = step(graph)
        assert_as_the_oracle(case, simulate(graph, case.batch))
    assert_as_the_oracle(case, simulate(without_concats(graph), case.batch))
    _, comparison = prove_folding(case.graph, [case.batch])
    assert comparison.outcome is Outcome.EXACT


@pytest.mark.parametrize("name", GRAPHS)
def test_runtimes_in_float64_fire_as_the_oracle(name: str, tmp_path: Path) -> None:
    case = solved(name)
    for candidate in ("torch float64, folded", "events float64"):
        assert_as_the_oracle(case, CANDIDATES[candidate].run(case.graph, case.batch, tmp_path))


@pytest.mark.parametrize("candidate", FLOAT32)
@pytest.mark.parametrize("name", GRAPHS)
def test_runtimes_in_float32_are_exact_or_round(name: str, candidate: str, tmp_path: Path) -> None:
    case, kind = solved(name), CANDIDATES[candidate]
    found = kind.run(case.graph, case.batch, tmp_path)
    graph = case.graph if kind.trained else fold(case.graph)
    comparer = Comparer(candidate, graph, arithmetic=Arithmetic("float32"), reference=case.graph)
    comparer.add(case.batch, case.reference, found)
    comparison = comparer.result()
    assert comparison.outcome <= Outcome.ROUNDING, comparison.origins[:3]
    assert not comparison.logits_beyond_bound
    assert all(finding.proved and np.isfinite(finding.bound) for finding in comparison.uncertain)
    if comparison.outcome is Outcome.EXACT:
        for layer, train in case.spikes.items():
            np.testing.assert_array_equal(found.spikes[layer].unpack(), train.astype(bool), err_msg=layer)
    else:
        assert comparison.origins


def test_the_oracle_finds_a_weight_that_is_off() -> None:
    """The suite can fail: one weight of one channel, by a tenth of itself."""
    case = solved("joined currents")
    node = case.graph["small1"]
    assert isinstance(node, Conv2d)
    weight = node.weight.copy()
    weight[0] *= 1.2
    changed = case.graph.replaced({"small1": Conv2d(**{**vars(node), "weight": frozen(weight)})})
    found = simulate(changed, case.batch)
    assert (found.spikes["sn1"].unpack() != case.spikes["sn1"].astype(bool)).any()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_checkpoint_keeps_every_number(name: str, tmp_path: Path) -> None:
    graph = solved(name).graph
    (path := tmp_path / "model.pt").write_bytes(to_bytes(Checkpoint(graph, "step", (), None), tool_version="test"))
    back = read(path).graph
    assert [(type(node), node.name, node.inputs) for node in back.nodes] == [
        (type(node), node.name, node.inputs) for node in graph.nodes
    ]
    for one, other in zip(back.nodes, graph.nodes, strict=True):
        assert one.arrays().keys() == other.arrays().keys()
        assert all(np.array_equal(one.arrays()[key], values) for key, values in other.arrays().items())


def test_the_hard_graphs_hold_every_kind_of_node_and_of_comparison() -> None:
    graphs = [solved(name).graph for name in GRAPHS]
    # A Reshape comes from NIR files of other tools only; test_nir_in.py runs those everywhere.
    assert {type(node).__name__ for graph in graphs for node in graph.nodes} == set(KINDS) - {"Reshape"}
    gains = np.concatenate([node.norm_gain.reshape(-1) for graph in graphs for node in graph.neurons])
    assert set(np.sign(gains)) == {-1.0, 0.0, 1.0}
    assert all(isinstance(node, Neuron) for graph in graphs for node in graph.neurons)


# ---- exact sums

PLACES, MAXIMUM = "scaled place by place", "only sums have an exact form"
NO_EXACT_FORM = {
    "maximum of real values": ("pool", MAXIMUM),
    "maximum of real values, padded and open": ("pool", MAXIMUM),
    "average, padding not counted": ("conv", PLACES),
    "average, open": ("conv", PLACES),
    "average, open, padding not counted": ("conv", PLACES),
}
"""Graphs whose sums are not of weights times whole numbers: the node that is refused, and a word of why."""


def of_codes(name: str) -> tuple[SpikingGraph, NDArray[np.uint8]]:
    """The same network on uint8 codes, since exact sums need whole numbers to begin with."""
    case = solved(name)
    graph, codes = case.graph, case.batch
    if codes.dtype != np.uint8:
        codes = np.rint(255 * codes).astype(np.uint8)
    encoding = Encoding(kind="uint8", scale=1 / 255)
    return SpikingGraph(graph.nodes, output=graph.output, timesteps=graph.timesteps, encoding=encoding), codes


IN_BOTH = ("identity, alpha negative", "normalised potential, gain of all signs", "joined spikes", "joined currents")


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "exact") for name in GRAPHS), *((name, "exact64") for name in IN_BOTH)]
)
def test_exact_files_are_exact_or_refused_by_name(name: str, precision: str, tmp_path: Path) -> None:
    graph, codes = of_codes(name)
    folded = fold(graph)
    if name in NO_EXACT_FORM:
        node, why = NO_EXACT_FORM[name]
        with pytest.raises(DalifError, match=f"node '{node}' .*{why}") as refused:
            content_of(folded, precision)
        assert refused.value.code is Code.TARGET_CANNOT_HOLD
        return
    reference = simulate(graph, codes)
    judged = simulate(exact_form(folded), codes)
    for layer, train in reference.spikes.items():
        assert not train.differing(judged.spikes[layer]).any(), layer
    content = content_of(folded, precision)
    definition = content.definition()
    assert definition is not None
    expected = definition.run(codes)
    comparer = Comparer(precision, content.judged, arithmetic=content.arithmetic(Arithmetic()), reference=graph)
    comparer.add(codes, reference, expected)
    assert comparer.result().outcome <= (Outcome.EXACT if precision == "exact64" else Outcome.ROUNDING)
    model = to_onnx(content.graph, outputs="spikes", **content.extra)
    (path := tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    found = OnnxRuntime(path, threads=1).run(codes)
    for layer, train in expected.spikes.items():
        assert not train.differing(found.spikes[layer]).any(), layer
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert not check_certificate(path).findings
