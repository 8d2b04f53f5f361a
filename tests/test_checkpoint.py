"""model.pt: what is written is read back bit for bit, and what is no model.pt is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dalif_deploy import checkpoint
from dalif_deploy.checkpoint import Checkpoint, Samples
from dalif_deploy.equivalence import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Linear, frozen
from tests.graphs import GRAPHS, SPECIAL_GRAPHS, Build

ALL = {**GRAPHS, **SPECIAL_GRAPHS}


def written(path: Path, name: str = "plain") -> Checkpoint:
    graph, batch = ALL[name]()
    stored = Checkpoint(graph, "step", ("a note",), Samples(batch, simulate(graph, batch), "float32"))
    path.write_bytes(checkpoint.to_bytes(stored, tool_version="0"))
    return stored


def refused(path: Path) -> DalifError:
    with pytest.raises(DalifError) as caught:
        checkpoint.read(path)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("name", ALL)
def test_everything_is_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    stored = written(tmp_path / "model.pt", name)
    found = checkpoint.read(tmp_path / "model.pt")
    assert (found.layout, found.notes) == (stored.layout, stored.notes)
    for key in ("output", "timesteps", "encoding", "class_names", "history"):
        assert getattr(found.graph, key) == getattr(stored.graph, key)
    assert [type(node) for node in found.graph.nodes] == [type(node) for node in stored.graph.nodes]
    for one, other in zip(found.graph.nodes, stored.graph.nodes, strict=True):
        for key, value in vars(other).items():
            again = getattr(one, key)
            if isinstance(value, np.ndarray):
                assert again.dtype == np.float64
                assert again.tobytes() == value.tobytes(), (one.name, key)
            else:
                assert again == value, (one.name, key)
    assert found.samples is not None
    assert stored.samples is not None
    np.testing.assert_array_equal(found.samples.inputs, stored.samples.inputs)
    np.testing.assert_array_equal(found.samples.recording.logits, stored.samples.recording.logits)
    for layer, train in stored.samples.recording.spikes.items():
        assert not train.differing(found.samples.recording.spikes[layer]).any()
        assert found.samples.recording.spikes[layer].shape == train.shape


def test_only_what_float32_holds_is_stored_as_float32(tmp_path: Path) -> None:
    for value, stored in ((1.5, torch.float32), (0.1, torch.float64)):
        graph = Build(0, (2,)).finish("input")
        node = Linear(name="fc", inputs=graph.readout.inputs, weight=frozen([[value, 1.0]]))
        readout = graph.readout
        changed = graph.with_nodes(
            [graph.input, node, type(readout)(name="readout", mode="mean", inputs=(type(readout.inputs[0])("fc"),))]
        )
        (tmp_path / "m.pt").write_bytes(checkpoint.to_bytes(Checkpoint(changed, "step", (), None), tool_version="0"))
        content = checkpoint.load_plain(tmp_path / "m.pt")
        (fields,) = [fields for fields in content["graph"]["nodes"] if fields["node"] == "Linear"]
        assert fields["weight"].dtype == stored
        found = checkpoint.read(tmp_path / "m.pt").graph["fc"]
        assert isinstance(found, Linear)
        assert found.weight[0, 0] == value


def test_truncation_anywhere_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    written(path)
    content = path.read_bytes()
    for cut in (0, 5, 40, 500, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        assert refused(path).code is Code.FILE_DAMAGED, cut


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    assert refused(path).code is Code.FILE_MISSING
    path.write_text("hello")
    assert refused(path).code is Code.FOREIGN_FILE
    torch.save({"state": 1}, path)
    assert refused(path).code is Code.FOREIGN_FILE
    torch.save(torch.nn.Linear(2, 2), path)
    assert refused(path).code is Code.PICKLED
    path.write_bytes(pickle.dumps(torch.nn.Identity()))
    assert refused(path).code is Code.PICKLED


def test_loading_runs_no_code_of_the_file(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (marker,))

    torch.save({"format": checkpoint.FORMAT, "graph": Evil()}, tmp_path / "evil.pt")
    assert refused(tmp_path / "evil.pt").code is Code.PICKLED
    assert not marker.exists()


def test_a_newer_format_and_missing_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    written(path)
    content = checkpoint.load_plain(path)
    torch.save({**content, "version": 99}, path)
    error = refused(path)
    assert error.code is Code.FOREIGN_FILE
    assert "99" in error.message
    del content["graph"]["nodes"][2]["weight"]
    torch.save(content, path)
    assert refused(path).code in (Code.FILE_DAMAGED, Code.BAD_GRAPH)
    torch.save({**content, "graph": {"nodes": 3}}, path)
    assert refused(path).code is Code.FILE_DAMAGED
