"""What NIR may refuse of the hard graphs, with the reader's own words for it, and nothing else.

`PERMITTED` is the whole list. Each entry is reproduced on a file made by hand, with nir alone, in the real reader: it
raises the error quoted, or, where it goes on without a word, fires other spikes than the file's equations.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from numpy.typing import NDArray

from dalif_deploy.capturing.nir import read_nir
from dalif_deploy.dialects import DIALECTS, SIMULATORS, UNSAYABLE
from dalif_deploy.equivalence import Arithmetic, Comparer, Outcome, simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import readers, to_nir
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import fold
from dalif_deploy.recording import Recording
from dalif_deploy.runtimes.registry import runtime_kind
from tests.hard_graphs import GRAPHS
from tests.nir_graphs import stepped

PAGE = (Path(__file__).parent.parent / "docs" / "nir.md").read_text()
DT = 1e-4
COUNT, STEPS = 6, 8


# ---- files made by hand


def neurons(node: nir.NIRNode) -> nir.NIRGraph:
    """Input, one layer of neurons, output."""
    shape = np.array([COUNT])
    nodes = {"input": nir.Input(shape), "sn": node, "output": nir.Output(shape)}
    return nir.NIRGraph(nodes=nodes, edges=[("input", "sn"), ("sn", "output")])


def lif(beta: object, *, r: object = 1.0, v_threshold: object = 0.5, v_reset: object = 0.0) -> nir.NIRGraph:
    def full(values: object) -> NDArray[np.float64]:
        return np.broadcast_to(np.asarray(values, dtype=np.float64), (COUNT,)).copy()

    tau = DT / (1.0 - full(beta))
    gain = full(r) * tau / DT if r == "unit" else full(r)
    return neurons(nir.LIF(tau=tau, r=gain, v_leak=full(0), v_threshold=full(v_threshold), v_reset=full(v_reset)))


def currents() -> NDArray[np.float32]:
    return np.random.default_rng(70).normal(0.2, 0.8, (3, STEPS, COUNT)).astype(np.float32)


def by_the_equations(node: nir.LIF, steps: NDArray[np.float32]) -> NDArray[np.float64]:
    """tau dv/dt = v_leak - v + r x, forward Euler; fires above the threshold, and then is at v_reset."""
    v, spikes = np.zeros(steps[:, 0].shape), []
    for t in range(steps.shape[1]):
        v = v + DT / node.tau * (node.v_leak - v + node.r * steps[:, t])
        spikes.append(v > node.v_threshold)
        v = np.where(spikes[-1], node.v_reset, v)
    return np.stack(spikes, axis=1).astype(np.float64)


# ---- the list


@dataclass(frozen=True)
class Permitted:
    """One refusal. `kind`: of the node that is named, the file's or the graph's; `what`: as the message has it;
    `says`: the reader's own error, "" where it is silent and wrong; `by_hand`: a file that shows it."""

    dialects: tuple[str, ...]
    kind: str
    what: str
    says: str
    by_hand: Callable[[], nir.NIRGraph] | None = None
    code: Code = Code.TARGET_CANNOT_HOLD


RANGE = np.linspace(0.2, 0.8, COUNT)
TAU = "nir.LIF.tau / dt must be finite and greater than 1."
ALL = tuple(DIALECTS)

PERMITTED = (
    Permitted(("norse",), "LIF", "v_reset other than 0 in a LIF", "", lambda: lif(0.5, v_reset=-0.5)),
    Permitted(("snntorch",), "LIF", "v_reset other than 0 in a LIF", "", lambda: lif(0.5, v_reset=-0.5)),
    Permitted(
        ("spikingjelly",), "LIF", "v_reset other than 0 in a LIF", "nir.LIF.v_leak must equal v_reset.",
        lambda: lif(0.5, v_reset=-0.5),
    ),
    Permitted(
        ("spikingjelly",), "LIF", "thresholds that differ within a layer",
        "v_threshold must be uniform across all neurons.", lambda: lif(0.5, v_threshold=RANGE),
    ),
    Permitted(
        ("snntorch",), "LIF", "thresholds that differ within a layer", "v_threshold must be same for all neurons",
        lambda: lif(0.5, v_threshold=RANGE),
    ),
    Permitted(("snntorch",), "LIF", "a threshold below 0", "", lambda: lif(0.5, v_threshold=-0.25)),
    Permitted(("snntorch",), "LIF", "beta below 0", "", lambda: lif(-0.25)),
    Permitted(("spikingjelly",), "LIF", "beta below 0", TAU, lambda: lif(-0.25)),
    Permitted(("sinabs",), "LIF", "v_reset other than 0 in a LIF", "", lambda: lif(0.5, v_reset=-0.5)),
    Permitted(("sinabs",), "LIF", "beta below 0", "", lambda: lif(-0.25)),
    Permitted(("spikingjelly",), "LIF", "beta = 0", TAU, lambda: lif(0.0)),
    Permitted(
        ("spikingjelly",), "LIF", "leaks that differ within a layer", "nir.LIF.tau must be uniform across all neurons.",
        lambda: lif(RANGE),
    ),
    Permitted(ALL, "MaxPool2d", "NIR has no maximum", "module 'nir' has no attribute 'MaxPool2d'"),
    Permitted(ALL, "AvgPool2d", "its last windows are open (ceil_mode)", "unexpected keyword argument 'ceil_mode'"),
    Permitted(
        ALL, "AvgPool2d", "its averages leave out the padding (count_include_pad=False)",
        "unexpected keyword argument 'count_include_pad'",
    ),
    Permitted(
        ALL, "Conv2d", "the height and width of its kernel (3, 2) differ by an odd number", "type mismatch: conv.output"
    ),
    Permitted(
        ALL, "Scale", "its offset differs from place to place within a channel", "type mismatch: input.output",
    ),
)  # fmt: skip
"""Everything that an export of a hard graph to NIR may refuse."""

CALLS = {**{name: record.call for name, record in SIMULATORS.items()}, "sinabs": "sinabs.from_nir(path)"}
"""How the readers themselves load a file."""

IN_READERS = [entry for entry in PERMITTED if entry.by_hand is not None]


@pytest.mark.simulators
@pytest.mark.parametrize("entry", IN_READERS, ids=lambda entry: f"{entry.dialects[0]}, {entry.what}")
def test_the_reader_itself_refuses_or_misreads_a_file_made_by_hand(entry: Permitted, tmp_path: Path) -> None:
    pytest.importorskip(entry.dialects[0])
    assert entry.by_hand is not None
    file = entry.by_hand()
    nir.write(str(path := tmp_path / "by_hand.nir"), file)
    call = CALLS[entry.dialects[0]]
    if entry.says:
        with pytest.raises((ValueError, AssertionError), match=re.escape(entry.says)):
            stepped(call, path, currents())
        return
    expected = by_the_equations(file.nodes["sn"], currents())
    assert 0.02 < expected.mean() < 0.98
    assert not np.array_equal(stepped(call, path, currents()), expected)


@pytest.mark.simulators
@pytest.mark.parametrize("reader", ["norse", "snntorch", "spikingjelly"])
def test_a_plain_file_made_by_hand_is_read_by_its_equations(reader: str, tmp_path: Path) -> None:
    """What shows a misreading is the file, and not how it is run here."""
    pytest.importorskip(reader)
    file = lif(0.5)
    nir.write(str(path := tmp_path / "by_hand.nir"), file)
    found = stepped(SIMULATORS[reader].call, path, currents())
    np.testing.assert_array_equal(found, by_the_equations(file.nodes["sn"], currents()))


def test_the_format_itself_has_no_words_for_the_rest(tmp_path: Path) -> None:
    pool: Any = {"kernel_size": np.array([2, 2]), "stride": np.array([2, 2]), "padding": np.array([0, 0])}
    maximum, ceil, pad = (
        re.escape(entry.says) for entry in PERMITTED if entry.by_hand is None and "Pool" in entry.kind
    )
    with pytest.raises(AttributeError, match=maximum):
        _ = nir.MaxPool2d
    with pytest.raises(TypeError, match=ceil):
        nir.AvgPool2d(**pool, ceil_mode=True)
    with pytest.raises(TypeError, match=pad):
        nir.AvgPool2d(**pool, count_include_pad=False)
    nodes = {"input": nir.Input(np.array([2, 4, 4])), "p": nir.AvgPool2d(**pool), "o": nir.Output(np.array([2, 2, 2]))}
    for field, value, error in (("type", "MaxPool2d", AssertionError), ("ceil_mode", True, TypeError)):
        path = tmp_path / f"{field}.nir"
        nir.write(str(path), nir.NIRGraph(nodes=nodes, edges=[("input", "p"), ("p", "o")]))
        nir.read(str(path))
        with h5py.File(path, "r+") as file:
            group = file["node/nodes/p"]
            if field in group:
                del group[field]
            group[field] = value
        with pytest.raises(error):
            nir.read(str(path))


@pytest.mark.parametrize(("height", "width"), [(3, 2), (2, 3), (1, 2)])
def test_nir_takes_a_kernel_for_a_square_one(height: int, width: int) -> None:
    weight = np.ones((1, 1, height, width), np.float32)
    conv = nir.Conv2d(input_shape=(4, 4), weight=weight, stride=1, padding=0, dilation=1, groups=1, bias=np.zeros(1))
    after = np.array([1, 5 - height, 5 - width])
    lif = nir.LIF(**dict.fromkeys(("tau", "r", "v_threshold"), np.ones(after)), v_leak=np.zeros(after))
    nodes = {"input": nir.Input(np.array([1, 4, 4])), "conv": conv, "sn": lif, "output": nir.Output(after)}
    (says,) = (entry.says for entry in PERMITTED if entry.kind == "Conv2d")
    with pytest.raises(ValueError, match=re.escape(says)):
        nir.NIRGraph(nodes=nodes, edges=[("input", "conv"), ("conv", "sn"), ("sn", "output")])


def test_an_affine_takes_no_maps() -> None:
    shape = np.array([2, 3, 3])
    offset = nir.Affine(np.eye(18, dtype=np.float32), np.arange(18, dtype=np.float32))
    nodes = {"input": nir.Input(shape), "offset": offset, "output": nir.Output(shape)}
    (says,) = (entry.says for entry in PERMITTED if entry.kind == "Scale")
    with pytest.raises(ValueError, match=re.escape(says)):
        nir.NIRGraph(nodes=nodes, edges=[("input", "offset"), ("offset", "output")])


def test_the_page_lists_what_the_format_has_no_words_for() -> None:
    section = PAGE.split("\n## What NIR has no words for\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells == [[what, f"`{says}`"] for what, says in UNSAYABLE.items()]
    assert list(UNSAYABLE.values()) == [entry.says for entry in PERMITTED if entry.by_hand is None]


def test_the_page_lists_what_the_readers_refuse() -> None:
    for entry in IN_READERS:
        words = f"| `{entry.says}` |" if entry.says else "|  |"
        assert re.search(rf"\| {entry.dialects[0]} \| {re.escape(entry.what)} \| [^|]* {re.escape(words)}", PAGE)


# ---- every hard graph, in every dialect


@dataclass(frozen=True)
class Folded:
    graph: SpikingGraph
    folded: SpikingGraph
    batch: NDArray[np.generic]
    reference: Recording


@cache
def folded(name: str) -> Folded:
    graph, batch = GRAPHS[name]()
    return Folded(graph, fold(graph), batch, simulate(graph, batch))


def written(name: str, dialect: str) -> nir.NIRGraph | DalifError:
    """The file of a hard graph, or its refusal."""
    try:
        return to_nir(folded(name).folded, dialect=dialect)
    except DalifError as error:
        return error


def permitted(message: str, dialect: str) -> bool:
    """Whether every reason in a refusal is on the list."""
    *reasons, advice = message.split("; ")
    assert advice in (
        "NIR cannot hold this network, ONNX may",
        f"the NIR dialect {dialect!r} cannot hold this network, 'canonical' may",
    )
    return all(
        any(
            dialect in entry.dialects
            and re.match(rf"node '[^']+' \({entry.kind}\): {re.escape(entry.what)}", reason)
            and (entry.by_hand is None or (f"({entry.says!r})" if entry.says else "without a word") in reason)
            for entry in PERMITTED
        )
        for reason in reasons
    )


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_hard_graph_is_written_and_read_back_or_refused_for_a_reason_on_the_list(
    name: str, dialect: str, tmp_path: Path
) -> None:
    case = folded(name)
    file = written(name, dialect)
    if isinstance(file, DalifError):
        assert file.code is Code.TARGET_CANNOT_HOLD
        assert permitted(file.message, dialect), file.message
        return
    nir.write(str(path := tmp_path / "net.nir"), file)
    back = simulate(read_nir(path), case.batch)
    for layer, train in case.reference.spikes.items():
        assert not train.differing(back.spikes[layer]).any(), layer
    assert [reader.name for reader in readers(file) if reader.reads and reader.name == dialect] == (
        [] if dialect == "canonical" else [dialect]
    )


@pytest.mark.simulators
@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "canonical"])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_simulator_fires_the_spikes_of_a_hard_graph(name: str, dialect: str, tmp_path: Path) -> None:
    case, kind = folded(name), runtime_kind(dialect)
    if kind.available() is not None:
        pytest.skip(f"{dialect} is not installed; run: {kind.available()}")
    file = written(name, dialect)
    if isinstance(file, DalifError):
        return  # whether that is permitted, the test above says
    nir.write(str(path := tmp_path / "net.nir"), file)
    arithmetic = Arithmetic(kind.precision, kind.update, pools=kind.pools)
    comparer = Comparer(dialect, case.folded, arithmetic=arithmetic, reference=case.graph)
    comparer.add(case.batch, case.reference, kind.open(path).run(case.batch))
    comparison = comparer.result()
    assert comparison.outcome <= Outcome.ROUNDING, comparison.origins[:3]


def test_the_list_has_nothing_that_no_hard_graph_needs() -> None:
    met: set[tuple[str, str]] = set()
    for name in GRAPHS:
        for dialect in DIALECTS:
            if isinstance(file := written(name, dialect), DalifError):
                met |= {(dialect, entry.what) for entry in PERMITTED if entry.what in file.message}
    assert met == {(dialect, entry.what) for entry in PERMITTED for dialect in entry.dialects}


def test_a_refusal_that_is_not_on_the_list_fails() -> None:
    assert not permitted("node 'x' (LIF): beta below 0: norse takes it for 0 without a word; the NIR dialect 'norse' "
                          "cannot hold this network, 'canonical' may", "norse")  # fmt: skip
    assert not permitted("node 'x' (SumPool2d): something; NIR cannot hold this network, ONNX may", "canonical")
