"""Files read back, in every dialect: the same graph, spike for spike and bit for bit; bad ones refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from dalif_deploy.capturing.nir import read_nir
from dalif_deploy.equivalence.replay import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.metadata import FileMetadata
from dalif_deploy.nodes import Conv2d, Edge, Flatten, MaxPool2d, Neuron, Scale, frozen
from dalif_deploy.passes import fold
from tests.graphs import GRAPHS, SPECIAL_GRAPHS, Build, Case, calibrated
from tests.nir_graphs import NETWORKS, affine_chain, changed, one_layer, padded_pool, three_branches, write

HELD_BY_NIR = sorted({*GRAPHS, *SPECIAL_GRAPHS} - {"subtract reset", "uint8 codes"})
"""The others reset by subtraction."""


def assert_same_network(case: Case, path: Path) -> None:
    """The file's graph fires the spikes of `case` and gives its outputs, up to float32 weights."""
    graph, batch = case
    expected, found = simulate(graph, batch), simulate(read_nir(path), batch)
    assert expected.spikes.keys() == found.spikes.keys()
    for name, train in expected.spikes.items():
        assert train.differing(found.spikes[name]).sum() == 0, name
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", HELD_BY_NIR)
def test_every_graph_reads_back(name: str, tmp_path: Path) -> None:
    graph, batch = {**GRAPHS, **SPECIAL_GRAPHS}[name]()
    folded = fold(graph)
    path = write((folded, batch), tmp_path)
    assert_same_network((folded, batch), path)
    read = read_nir(path)
    assert (read.timesteps, read.encoding, read.class_names, read.history) == (
        folded.timesteps, folded.encoding, folded.class_names, folded.history,
    )  # fmt: skip
    assert read.readout.mode == folded.readout.mode
    assert read.input_spec == folded.input_spec
    # alpha, beta, thresholds, resets, rules, scales: as they were, in their shapes and to the last bit
    assert FileMetadata.of(read).layers == FileMetadata.of(folded).layers
    assert all(np.all(neuron.alpha == 1.0) for neuron in read.neurons)


@pytest.mark.parametrize("beta", [-0.25, 0.0, 0.25, 0.5, 0.76, 0.9, 1.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_read_back(network: str, beta: float, tmp_path: Path) -> None:
    case = NETWORKS[network](np.float32(beta))
    assert_same_network(case, write(case, tmp_path))


DIALECTS = ["norse", "spikingjelly", "snntorch"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", HELD_BY_NIR)
def test_every_dialect_reads_back(name: str, dialect: str, tmp_path: Path) -> None:
    graph, batch = {**GRAPHS, **SPECIAL_GRAPHS}[name]()
    folded = fold(graph)
    if (name, dialect) in NOT_HELD:
        with pytest.raises(DalifError) as info:
            write((folded, batch), tmp_path, dialect=dialect)
        assert info.value.code is Code.TARGET_CANNOT_HOLD
        return
    path = write((folded, batch), tmp_path, dialect=dialect)
    assert_same_network((folded, batch), path)
    read = read_nir(path)
    assert FileMetadata.of(read).layers == FileMetadata.of(folded).layers


NOT_HELD = {
    *(("threshold and reset", dialect) for dialect in DIALECTS),
    ("beta 0", "spikingjelly"),
    ("beta negative", "spikingjelly"),
    ("beta negative", "snntorch"),
    ("per channel", "spikingjelly"),
    ("per channel", "snntorch"),
}
"""Graphs that a dialect cannot hold: a reset to another value than 0, beta too low, leaks that differ."""


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("beta", [0.25, 0.76, 1.0])
@pytest.mark.parametrize("rule", ["ge", "gt"])
def test_what_a_dialect_holds_without_the_metadata(dialect: str, beta: float, rule: str, tmp_path: Path) -> None:
    """A changed threshold is read as what it has become, up to the roundings of the simulator."""
    case = changed(one_layer(1.0, beta, [0.0] * 4), "sn", fires_at=rule)
    path = write(case, tmp_path, dialect=dialect)
    with h5py.File(path, "r+") as file:
        stored = file["node/nodes/sn/v_threshold"]
        stored[...] = (stored[...] * 1.25).astype(np.float32)
    read = read_nir(path)["sn"]
    np.testing.assert_allclose(np.broadcast_to(read.v_threshold, 4), 1.25, rtol=1e-6)
    assert np.all(read.beta == beta)
    assert read.fires_at == rule


def test_leaks_that_are_one_for_some_read_back(tmp_path: Path) -> None:
    beta = frozen([1.0, 0.5, 1.0, 0.25])
    path = write(changed(one_layer(1.0, 0.5, [0.0] * 4), "sn", beta=beta), tmp_path, dialect="snntorch")
    assert np.array_equal(read_nir(path)["sn"].beta, beta)
    edit(path, "layers", lambda text: text.replace("0.25", "0.75"))  # the file's own tau counts
    assert np.array_equal(read_nir(path)["sn"].beta, beta)


def test_leaks_are_recovered_without_the_metadata_too(tmp_path: Path) -> None:
    beta = np.random.default_rng(41).uniform(-0.99, 0.9999999, 64).astype(np.float32)
    path = write(changed(one_layer(1.0, 0.5, [0.0] * 64), "sn", beta=frozen(beta)), tmp_path)
    edit(path, "layers", lambda text: text.replace(str(float(beta[0])), "0.123"))
    assert np.array_equal(read_nir(path)["sn"].beta, beta.astype(np.float64))


def test_the_array_counts_where_the_metadata_says_otherwise(tmp_path: Path) -> None:
    path = write(affine_chain(), tmp_path)
    with h5py.File(path, "r+") as file:
        file["node/nodes/sn1/v_threshold"][3] *= 1.25
    read, was = read_nir(path)["sn1"], affine_chain()[0]["sn1"]
    assert read.v_threshold.shape == (32,)
    np.testing.assert_allclose(np.delete(read.v_threshold, 3), was.v_threshold, rtol=1e-15)
    np.testing.assert_allclose(read.v_threshold[3], 1.25 * was.v_threshold, rtol=1e-15)


def test_weights_read_back_as_they_are_in_the_file(tmp_path: Path) -> None:
    graph, _ = case = NETWORKS["two-branch residual"](0.5)
    read = read_nir(write(case, tmp_path))
    for name in ("stem.conv", "block.conv1", "block.conv2", "block.shortcut"):
        assert np.array_equal(read[name].weight, graph[name].weight.astype(np.float32))
        assert read[name].stride == graph[name].stride


def test_sums_come_back_in_the_order_of_the_edges(tmp_path: Path) -> None:
    read = read_nir(write(NETWORKS["identity residual"](0.5), tmp_path))
    assert [edge.source for edge in read["block.sn2.sum"].inputs] == ["block.conv2", "stem.sn"]
    assert [edge.source for edge in read["block.sn2"].inputs] == ["block.sn2.sum"]


# ---- what the exporter says in other words means the same


def _special(build: Build, *, shape: tuple[int, ...]) -> Case:
    """The nodes after the input feed one neuron layer, which is read out."""
    last = build.neuron("sn", build.nodes[-1].name, alpha=1.0, beta=0.5, v_threshold=0.4)
    flat = build.add(Flatten(name="flatten", inputs=(Edge(last),)))
    batch = np.random.default_rng(42).normal(0.3, 0.6, (4, *shape)).astype(np.float32)
    return build.finish(flat, timesteps=3), batch


def grouped() -> Case:
    build = Build(43, (4, 6, 6))
    build.conv("conv", "input", (4, 6), groups=2, bias=True)
    return _special(build, shape=(4, 6, 6))


def dilated() -> Case:
    build = Build(44, (2, 7, 7))
    build.conv("conv", "input", (2, 6), dilation=2, padding=2, stride=2)
    return _special(build, shape=(2, 7, 7))


def not_square() -> Case:
    build = Build(45, (2, 6, 8))
    build.add(
        Conv2d(
            name="conv", inputs=(Edge("input"),), weight=build.weights(4, 2, 1, 3), padding=(0, 1), dilation=(2, 1),
            stride=(1, 2),
        )
    )  # fmt: skip
    return _special(build, shape=(2, 6, 8))


def even_difference() -> Case:
    build = Build(46, (2, 6, 8))
    build.add(
        Conv2d(name="conv", inputs=(Edge("input"),), weight=build.weights(4, 2, 4, 2), padding=(1, 0), stride=(2, 1))
    )
    return _special(build, shape=(2, 6, 8))


def scaled() -> Case:
    build = Build(47, (3, 4, 4))
    factor, offset = frozen([[[0.5]], [[-1.5]], [[2.0]]]), frozen(0.25)
    build.add(Scale(name="scale", inputs=(Edge("input"),), factor=factor, offset=offset))
    return _special(build, shape=(3, 4, 4))


def scaled_vector() -> Case:
    build = Build(48, (6,))
    build.add(Scale(name="scale", inputs=(Edge("input"),), factor=frozen(1.5), offset=frozen(np.arange(6) / 8)))
    return _special(build, shape=(6,))


def doubled() -> Case:
    build = Build(49, (3, 4, 4))
    build.plus("four", build.plus("two", "input", "input"), build.plus("more", "input", "input"))
    return _special(build, shape=(3, 4, 4))


@pytest.mark.parametrize(
    "make",
    [grouped, dilated, not_square, even_difference, scaled, scaled_vector, doubled, three_branches, padded_pool],
)
def test_other_words_mean_the_same(make: Callable[[], Case], tmp_path: Path) -> None:
    case = make()
    rates = {name: train.count() / train.neuron_steps for name, train in simulate(*case).spikes.items()}
    assert all(0.02 < rate < 0.9 for rate in rates.values()), rates
    assert_same_network(case, write(case, tmp_path))


# ---- bad files


def edit(path: Path, key: str, change: Callable[[str], str]) -> None:
    """Changes one entry of a file's metadata."""
    with h5py.File(path, "r+") as file:
        group = file["node/metadata"]
        text = change(group[key][()].decode())
        del group[key]
        group[key] = text


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(affine_chain(), tmp_path)


def refused(path: Path, code: Code) -> str:
    with pytest.raises(DalifError) as info:
        read_nir(path)
    assert info.value.code is code
    assert "\n" not in str(info.value)
    assert str(path) in info.value.message
    return info.value.message


def test_missing_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.nir", Code.FILE_MISSING)
    refused(tmp_path, Code.FILE_MISSING)


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "net.nir").touch()
    assert "empty" in refused(tmp_path / "net.nir", Code.FILE_DAMAGED)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7, 0.99])
def test_truncated(good: Path, share: float) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: max(3, int(share * len(data)))])
    assert "truncated" in refused(good, Code.FILE_DAMAGED)


def test_damaged_inside(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        del file["node/nodes/fc1/weight"]
    refused(good, Code.FILE_DAMAGED)


@pytest.mark.parametrize("content", [b"PK\x03\x04 not HDF5", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_not_hdf5(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.nir").write_bytes(content)
    refused(tmp_path / "net.nir", Code.FOREIGN_FILE)


def test_hdf5_but_no_nir(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.nir", "w") as file:
        file["weights"] = np.ones(3)
    refused(tmp_path / "net.nir", Code.FOREIGN_FILE)


def test_nir_of_another_tool(tmp_path: Path) -> None:
    path = str(tmp_path / "net.nir")
    nir.write(path, nir.NIRGraph.from_list(nir.Linear(np.ones((2, 2)))))
    assert "not written by dalif-export" in refused(tmp_path / "net.nir", Code.FOREIGN_FILE)
    nir.write(path, nir.Linear(np.ones((2, 2))))
    refused(tmp_path / "net.nir", Code.FOREIGN_FILE)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("dt", lambda text: "soon"),
        ("dt", lambda text: "-1"),
        ("dialect", lambda text: "nonesuch"),
        ("dialect", lambda text: "snntorch"),
        ("timesteps", lambda text: "many"),
        ("layers", lambda text: "[]"),
        ("layers", lambda text: text.replace("sn2", "sn3")),
        ("layers", lambda text: text.replace("0.625", '"x"')),
        ("input", lambda text: text.replace("12", "13")),
    ],
)
def test_metadata_that_contradicts_the_file(good: Path, key: str, change: Callable[[str], str]) -> None:
    edit(good, key, change)
    refused(good, Code.FILE_DAMAGED)


@pytest.mark.parametrize(("key", "value"), [("tau", -1e-4), ("tau", 0.0), ("r", 2.0), ("v_leak", 0.5)])
def test_neurons_that_are_not_canonical(good: Path, key: str, value: float) -> None:
    with h5py.File(good, "r+") as file:
        file[f"node/nodes/sn1/{key}"][0] = value
    assert "sn1" in refused(good, Code.FILE_DAMAGED)


def test_a_lif_that_does_not_leak_is_not_canonical(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file["node/nodes/sn1/tau"][...] = 1e300
    assert "does not leak" in refused(good, Code.FILE_DAMAGED)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_has_one_dt(dialect: str, tmp_path: Path) -> None:
    path = write(affine_chain(), tmp_path, dialect=dialect)
    edit(path, "dt", lambda text: "0.001")
    assert "dt = 0.001" in refused(path, Code.FILE_DAMAGED)


def test_a_kind_that_the_form_does_not_have(tmp_path: Path) -> None:
    file = to_nir(one_layer(1.0, 0.5, [0.1, 0.2])[0])
    file.nodes["fc"] = nir.Scale(np.ones(2))
    nir.write(str(tmp_path / "net.nir"), file)
    assert "node 'fc' (Scale)" in refused(tmp_path / "net.nir", Code.UNSUPPORTED_LAYER)


def test_weights_that_are_no_numbers(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file["node/nodes/fc1/weight"][0, 0] = np.nan
    with pytest.raises(DalifError) as info:
        read_nir(good)
    assert info.value.code is Code.NOT_FINITE


def test_reading_leaves_the_file_as_it_was(good: Path, tmp_path: Path) -> None:
    shutil.copy(good, tmp_path / "copy.nir")
    read_nir(good)
    assert good.read_bytes() == (tmp_path / "copy.nir").read_bytes()


def test_neurons_of_the_graph_are_plain(good: Path) -> None:
    read = read_nir(good)
    assert [type(node) for node in read.neurons] == [Neuron, Neuron]
    assert not read["sn1"].beta.flags.writeable


# ---- a maximum of spikes: a count, and a neuron that is no layer


MAXIMA = {
    "plain": {"kernel": (2, 2), "stride": (2, 2)},
    "padded": {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)},
    "open": {"kernel": (3, 2), "stride": (2, 3), "ceil_mode": True},
    "padded, open, not square": {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 0), "ceil_mode": True},
}


def maximum(**options: Any) -> Case:
    build = Build(80, (2, 7, 7))
    batch = np.random.default_rng(81).uniform(0, 1, (4, 2, 7, 7)).astype(np.float32)
    x = build.norm_neuron("sn1", build.conv("conv", "input", (2, 4)), 4)
    pool = MaxPool2d(name="largest", inputs=(Edge(x),), **options)
    x = build.add(Flatten(name="flatten", inputs=(Edge(build.add(pool)),)))
    features = 4 * int(np.prod(pool.windows((7, 7))))
    x = build.norm_neuron("sn2", build.linear("fc1", x, (features, 12)), 12)
    return fold(calibrated(build.finish(build.linear("fc2", x, (12, 3))), batch)), batch


@pytest.mark.parametrize("dialect", ["canonical", *DIALECTS])
@pytest.mark.parametrize("name", MAXIMA)
def test_a_maximum_of_spikes_comes_back_as_one(name: str, dialect: str, tmp_path: Path) -> None:
    graph, batch = case = maximum(**MAXIMA[name])
    back = read_nir(write(case, tmp_path, dialect=dialect))
    assert isinstance(back["largest"], MaxPool2d)
    assert [neuron.name for neuron in back.neurons] == ["sn1", "sn2"]
    assert not any("count" in node.name for node in back.nodes)
    expected, found = simulate(graph, batch), simulate(back, batch)
    for layer, train in expected.spikes.items():
        assert not train.differing(found.spikes[layer]).any(), layer


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ("no list", "no list of names"),
        ("[1]", "no list of names"),
        ('["conv"]', "'conv' is a maximum, which it is not"),
        ('["largest", "sn1"]', "'sn1' is a maximum, which it is not"),
        ("[]", "'largest'"),
    ],
)
def test_what_the_metadata_says_of_maxima_is_checked(entry: str, word: str, tmp_path: Path) -> None:
    path = write(maximum(**MAXIMA["plain"]), tmp_path)
    edit(path, "maxima", lambda text: entry)
    assert word in refused(path, Code.FILE_DAMAGED)


@pytest.mark.parametrize("change", ["threshold", "reset", "weight", "bias"])
def test_a_neuron_that_is_no_maximum_of_its_window_is_refused(change: str, tmp_path: Path) -> None:
    path = write(maximum(**MAXIMA["padded"]), tmp_path)
    with h5py.File(path, "r+") as file:
        nodes = file["node/nodes"]
        if change == "threshold":
            nodes["largest/v_threshold"][0, 0, 0] = 1.5
        elif change == "reset":
            nodes["largest/v_reset"][0, 0, 0] = 0.25
        elif change == "weight":
            nodes["largest.count/weight"][0, 1, 0, 0] = 1.0
        else:
            nodes["largest.count/bias"][0] = 1.0
    assert "node 'largest' is a neuron that its metadata does not know" in refused(path, Code.FILE_DAMAGED)
