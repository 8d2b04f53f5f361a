"""model.pt: what is written is read back bit for bit, and nothing else is read."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dalif_deploy.checkpoint import Checkpoint, Samples, load_plain, read, to_bytes
from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Edge, Linear, Neuron, Readout, StateVariable, Zeros, frozen
from dalif_deploy.passes import fold
from tests.graphs import GRAPHS, SPECIAL_GRAPHS, Build

ALL = {**GRAPHS, **SPECIAL_GRAPHS}


def written(folder: Path, checkpoint: Checkpoint) -> Path:
    path = folder / "model.pt"
    path.write_bytes(to_bytes(checkpoint, tool_version="1.2.3"))
    return path


def of(graph: SpikingGraph, samples: Samples | None = None) -> Checkpoint:
    return Checkpoint(graph, "step", ("one note", "another"), samples)


def small() -> SpikingGraph:
    build = Build(0, (4,))
    return build.finish(build.neuron("sn", build.linear("fc", "input", (4, 3))))


def same_bits(found: Any, expected: Any, where: str) -> None:
    """Equal, and of the same types all the way down; arrays byte for byte."""
    assert type(found) is type(expected), where
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        assert found.tobytes() == expected.tobytes(), where
        assert not found.flags.writeable, where
    elif isinstance(expected, tuple):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            same_bits(one, other, f"{where}[{number}]")
    else:
        assert found == expected, where


def same_graph(found: SpikingGraph, expected: SpikingGraph) -> None:
    assert [node.name for node in found.nodes] == [node.name for node in expected.nodes]
    for one, other in zip(found.nodes, expected.nodes, strict=True):
        assert type(one) is type(other)
        assert vars(one).keys() == vars(other).keys()
        for key, value in vars(other).items():
            same_bits(vars(one)[key], value, f"{other.name}.{key}")
    for key in ("timesteps", "output", "encoding", "class_names", "history", "types"):
        assert getattr(found, key) == getattr(expected, key), key


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("folded", [False, True])
def test_every_graph_comes_back_bit_for_bit(name: str, folded: bool, tmp_path: Path) -> None:
    graph, batch = ALL[name]()
    graph = fold(graph) if folded else graph
    recording = simulate(graph, batch)
    back = read(written(tmp_path, of(graph, Samples(batch, recording, "float64"))))
    same_graph(back.graph, graph)
    assert (back.layout, back.notes) == ("step", ("one note", "another"))
    assert back.samples is not None
    assert back.samples.dtype == "float64"
    assert (back.samples.inputs.dtype, back.samples.inputs.tobytes()) == (batch.dtype, batch.tobytes())
    assert back.samples.recording.logits.tobytes() == recording.logits.tobytes()
    assert list(back.samples.recording.spikes) == list(recording.spikes)
    for layer, train in recording.spikes.items():
        found = back.samples.recording.spikes[layer]
        assert found.shape == train.shape
        np.testing.assert_array_equal(found.bits, train.bits)


def test_everything_that_a_node_can_hold_comes_back(tmp_path: Path) -> None:
    build = Build(0, (4,), temporal=True)
    build.add(Zeros(name="zeros", shape=(3,)))
    build.add(Linear(name="fc", inputs=(Edge("input", 2),), weight=frozen(np.full((3, 4), 0.1))))
    build.plus("sum", "fc", "zeros")
    build.add(
        Neuron(
            name="sn", inputs=(Edge("sum", 1),), alpha=frozen([0.1, -0.0, 5e-324]), beta=frozen(1 / 3),
            v_threshold=frozen([1e300, 1.0, 2.0]), v_reset=frozen(-0.0), leak_target=frozen(0.2), reset="subtract",
            fires_at="gt", state=(StateVariable("membrane", 0.3), StateVariable("trace")),
            potential_scale=frozen([1.0, 2.0, 3.0]), trained_alpha=frozen(0.7), raw_alpha=frozen(1.5),
            raw_beta=frozen(-2.5), activation="tanh",
        )
    )  # fmt: skip
    build.add(Readout(name="readout", inputs=(Edge("sn"),), mode="last"))
    encoding = Encoding(kind="uint8", scale=1 / 255, mean=(0.1, 0.2, 0.3, 0.4), std=0.25)
    graph = SpikingGraph(
        build.nodes, output="readout", timesteps=7, encoding=encoding, class_names=("zero", "ä"), history=("folded",)
    )
    back = read(written(tmp_path, of(graph)))
    same_graph(back.graph, graph)
    assert back.samples is None


def stored(checkpoint: Checkpoint) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(io.BytesIO(to_bytes(checkpoint, tool_version="1")), weights_only=True)
    return content


def test_arrays_are_narrowed_only_where_nothing_is_lost() -> None:
    build = Build(0, (2,))
    values = {"exact": np.float32(0.1), "inexact": 0.1, "huge": 1e300, "tiny": 1e-320, "minus": -0.0}
    for name, value in values.items():
        build.add(Linear(name=name, inputs=(Edge("input"),), weight=frozen([[value, 1.0]])))
    graph = build.finish(build.plus("sum", *values))
    nodes = {node["name"]: node for node in stored(of(graph))["graph"]["nodes"]}
    assert {name: nodes[name]["weight"].dtype for name in values} == {
        "exact": torch.float32, "inexact": torch.float64, "huge": torch.float64, "tiny": torch.float64,
        "minus": torch.float32,
    }  # fmt: skip


def test_it_says_who_wrote_it_in_which_version() -> None:
    content = stored(of(small()))
    assert (content["format"], content["version"]) == ("dalif_deploy.model", 1)
    assert content["written_by"] == {"dalif_deploy": "1", "torch": str(torch.__version__)}


def test_the_samples_are_copied(tmp_path: Path) -> None:
    """A view, backwards or of another order in memory, is stored as what it shows."""
    graph = small()
    batch = np.asfortranarray(np.random.default_rng(0).random((5, 4)).astype(np.float32))[::-1]
    back = read(written(tmp_path, of(graph, Samples(batch, simulate(graph, batch), "float32"))))
    assert back.samples is not None
    np.testing.assert_array_equal(back.samples.inputs, batch)


# --- what is not read


def refused(path: Path, code: Code, message: str) -> None:
    with pytest.raises(DalifError, match=message) as caught:
        read(path)
    assert caught.value.code is code, caught.value
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)


def put(folder: Path, content: bytes) -> Path:
    path = folder / "model.pt"
    path.write_bytes(content)
    return path


def saved(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "model.pt"
    torch.save(content, path, **options)
    return path


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", Code.FILE_MISSING, "No such file")
    refused(tmp_path, Code.FILE_MISSING, "directory")


def test_an_empty_file(tmp_path: Path) -> None:
    refused(put(tmp_path, b""), Code.FILE_DAMAGED, "empty")


@pytest.mark.parametrize("content", [b"hello", b"\x89HDF\r\n\x1a\n", b"{}", b"\x00" * 64])
def test_another_kind_of_file(content: bytes, tmp_path: Path) -> None:
    refused(put(tmp_path, content), Code.FOREIGN_FILE, "neither a PyTorch file")


def whole() -> bytes:
    graph, batch = GRAPHS["plain"]()
    return to_bytes(of(graph, Samples(batch, simulate(graph, batch), "float32")), tool_version="1")


def test_a_file_truncated_anywhere_is_damaged(tmp_path: Path) -> None:
    content = whole()
    for length in [4, 5, 30, 100, *np.linspace(200, len(content) - 1, 60).astype(int).tolist()]:
        refused(put(tmp_path, content[:length]), Code.FILE_DAMAGED, "truncated or damaged")


def test_a_file_with_a_byte_changed_anywhere_never_gives_another_model(tmp_path: Path) -> None:
    """It is refused in one line, or the byte was one of the archive's padding and everything is as before."""
    content = whole()
    expected = read(put(tmp_path, content)).graph
    refusals: list[Code] = []
    for place in np.random.default_rng(0).integers(0, len(content), 150).tolist():
        changed = bytearray(content)
        changed[place] ^= 0x41
        try:
            found = read(put(tmp_path, bytes(changed))).graph
        except DalifError as error:
            refusals.append(error.code)
        else:
            same_graph(found, expected)
    assert set(refusals) <= {Code.FILE_DAMAGED, Code.FOREIGN_FILE, Code.PICKLED}
    assert len(refusals) > 100


def test_checksums_are_written_whatever_the_process_has_set(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = written(tmp_path, of(small()))
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    same_graph(read(path).graph, small())


def test_bytes_of_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for head in (b"PK\x03\x04", b"\x80\x02", b"\x80\x05"):
        for _ in range(10):
            path = put(tmp_path, head + rng.bytes(200))
            with pytest.raises(DalifError) as caught:
                read(path)
            assert caught.value.code in (Code.FILE_DAMAGED, Code.PICKLED)


class Canary:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (_sing, ("sung",))


def _sing(song: str) -> None:
    raise AssertionError(f"code in the file was run: {song}")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused_with_the_way_out(zipped: bool, tmp_path: Path) -> None:
    path = saved(tmp_path, torch.nn.Sequential(torch.nn.Linear(2, 2)), _use_new_zipfile_serialization=zipped)
    refused(path, Code.PICKLED, "unpickling runs code; .* or pass --trust-pickle")


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    refused(saved(tmp_path, {"format": "dalif_deploy.model", "version": 1, "graph": Canary()}), Code.PICKLED, "pickled")
    for protocol in (2, 3, 4, 5):
        refused(put(tmp_path, pickle.dumps(Canary(), protocol)), Code.PICKLED, "pickled")


@pytest.mark.parametrize(
    "content",
    [{"weight": torch.ones(2)}, {}, [1, 2], torch.ones(3), "text", 5, {"format": "other"}, {"format": None}],
    ids=["state_dict", "nothing", "list", "tensor", "text", "number", "other", "none"],
)
def test_a_file_that_is_not_ours_is_refused_with_the_way_in(content: Any, tmp_path: Path) -> None:
    refused(saved(tmp_path, content), Code.FOREIGN_FILE, "not a model saved by dalif_deploy; .*--model")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_version_is_refused_by_both_numbers(version: Any, tmp_path: Path) -> None:
    content = {**stored(of(small())), "version": version}
    refused(saved(tmp_path, content), Code.FOREIGN_FILE, f"model format {version}, this version reads 1")


def without(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def remove(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return remove


def with_(value: Any, *keys: Any) -> Callable[[dict[str, Any]], None]:
    def put_in(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return put_in


@pytest.mark.parametrize(
    "change",
    [
        without("graph"), without("layout"), without("notes"), without("samples"), without("graph", "nodes"),
        without("graph", "encoding"), without("graph", "nodes", 0, "name"), without("graph", "nodes", 1, "weight"),
        with_("Transformer", "graph", "nodes", 1, "node"), with_(5, "graph", "nodes", 1, "extra"),
        with_(None, "graph"), with_(5, "graph", "nodes"), with_([["input"]], "graph", "nodes", 1, "inputs"),
        with_("text", "graph", "nodes", 1, "weight"), with_(None, "graph", "nodes", 1, "weight"),
        with_({"kind": "uint8", "size": 3}, "graph", "encoding"), with_({"inputs": 5}, "samples"),
        with_([["membrane"]], "graph", "nodes", 2, "state"), with_("x", "graph", "nodes", 2, "beta"),
    ],
)  # fmt: skip
def test_a_content_that_is_incomplete_or_of_another_form_is_damaged(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    graph = small()
    batch = np.ones((2, 4), np.float32)
    content = stored(of(graph, Samples(batch, simulate(graph, batch), "float32")))
    assert [node["node"] for node in content["graph"]["nodes"]] == ["Input", "Linear", "Neuron", "Readout"]
    change(content)
    refused(saved(tmp_path, content), Code.FILE_DAMAGED, "its content is incomplete")


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (
            with_(torch.full((3, 4), float("nan")), "graph", "nodes", 1, "weight"),
            Code.NOT_FINITE,
            "'fc': weight has NaN",
        ),
        (with_(torch.ones(3, 5), "graph", "nodes", 1, "weight"), Code.BAD_GRAPH, "'fc' .Linear.: weight"),
        (with_(torch.ones(3), "graph", "nodes", 1, "weight"), Code.BAD_GRAPH, "'fc' .Linear.: weight of shape"),
        (with_("nothing", "graph", "output"), Code.BAD_GRAPH, "output 'nothing' is not a node"),
        (with_(0, "graph", "timesteps"), Code.BAD_OPTION, "timesteps = 0"),
        (with_("soft", "graph", "nodes", 2, "reset"), Code.BAD_GRAPH, "'sn' .Neuron.: unknown rule"),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused_by_node(
    change: Callable[[dict[str, Any]], None], code: Code, message: str, tmp_path: Path
) -> None:
    content = stored(of(small()))
    change(content)
    with pytest.raises(DalifError, match=message) as caught:
        read(saved(tmp_path, content))
    assert caught.value.code is code


def test_plain_content_is_loaded_onto_the_cpu(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    found = load_plain(saved(tmp_path, state))
    assert found.keys() == state.keys()
    assert all(value.device.type == "cpu" for value in found.values())
