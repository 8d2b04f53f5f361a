"""The ONNX Runtime runtime: what it records, how it is set, and the files that it refuses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence.replay import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.onnx import to_onnx
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.passes import fold
from dalif_deploy.runtimes import onnxruntime as runtime_module
from dalif_deploy.runtimes.onnxruntime import OPTIMIZATIONS, OnnxRuntime, available
from dalif_deploy.runtimes.protocol import Runtime
from tests.graphs import GRAPHS
from tests.test_onnx_export import data, network, recurrent, refused, run, run_with_spikes


def written(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "net.onnx", to_onnx(network()))


BATCH = data(1, 3, 2, 6, 6)


# What it records.


@pytest.mark.parametrize("outputs", ["logits", "spikes"])
@pytest.mark.parametrize("temporal", [False, True])
def test_spikes_and_logits(outputs: Any, temporal: bool, tmp_path: Path) -> None:
    graph = network(temporal=temporal)
    batch = data(1, 3, *([4] if temporal else []), 2, 6, 6)
    model = to_onnx(graph, outputs=outputs)
    recording = OnnxRuntime(written(tmp_path / "net.onnx", model), threads=1).run(batch)
    reference, own = simulate(graph, batch), run_with_spikes(graph, batch).spikes
    assert set(recording.spikes) == {"sn1", "sn2"}
    for layer, train in recording.spikes.items():
        assert train.shape == (4, 6, 6)
        assert 0 < train.count() < train.neuron_steps
        assert np.array_equal(train.unpack(), own[layer])
        assert not train.differing(reference.spikes[layer]).any()
    assert recording.logits.dtype == np.float32
    assert np.array_equal(recording.logits, run(model, batch, ["logits"])[0])


def test_a_tap_may_be_an_output_already(file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(file))
    model.graph.output.append(next(value for value in model.graph.value_info if value.name == "sn1/t1/spikes"))
    wanted, found = (OnnxRuntime(path).run(BATCH) for path in (file, written(tmp_path / "more.onnx", model)))
    assert np.array_equal(found.spikes["sn1"].bits, wanted.spikes["sn1"].bits)


def test_one_timestep_and_a_recurrent_network(tmp_path: Path) -> None:
    for graph, batch in ((network(timesteps=1), BATCH), (recurrent(), data(19, 6, 5))):
        recording = OnnxRuntime(written(tmp_path / "net.onnx", to_onnx(graph)), threads=1).run(batch)
        for layer, train in simulate(graph, batch).spikes.items():
            assert not recording.spikes[layer].differing(train).any()


def test_batches_follow_each_other_without_memory(file: Path) -> None:
    runtime = OnnxRuntime(file, threads=1)
    first = runtime.run(BATCH)
    single = runtime.run(BATCH[2:])
    again = runtime.run(BATCH)
    for layer, train in first.spikes.items():
        assert np.array_equal(train.bits, again.spikes[layer].bits)
        assert np.array_equal(train.bits[2:], single.spikes[layer].bits)


def test_the_encoding_is_applied(tmp_path: Path) -> None:
    graph, codes = GRAPHS["uint8 codes"]()
    runtime = OnnxRuntime(written(tmp_path / "net.onnx", to_onnx(fold(graph))), threads=1)
    recording = runtime.run(codes)
    assert codes.dtype == np.uint8
    # (code * scale - mean) / std, channel by channel, written down once more.
    mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.25, 0.2, 0.3)))
    prepared = ((codes.astype(np.float64) / 255 - mean) / std).astype(np.float32)
    for layer, train in runtime.run(prepared).spikes.items():
        assert train.count() > 0
        assert not recording.spikes[layer].differing(train).any()
    assert not np.array_equal(runtime.run(codes.astype(np.float32)).logits, recording.logits)


def test_dyadic_networks_are_the_same_however_onnx_runtime_is_set(file: Path) -> None:
    wanted = OnnxRuntime(file, threads=1, optimization="disable").run(BATCH)
    for optimization in OPTIMIZATIONS:
        for threads in (None, 1, 2):
            runtime = OnnxRuntime(file, threads=threads, optimization=optimization)
            recording = runtime.run(BATCH)
            assert np.array_equal(recording.logits, wanted.logits)
            assert all(not train.differing(wanted.spikes[layer]).any() for layer, train in recording.spikes.items())
            assert runtime.notes == []
            assert optimization in runtime.description


def test_a_tap_that_changes_the_logits_is_noted(file: Path, tmp_path: Path) -> None:
    runtime = OnnxRuntime(file, threads=1)
    untouched = runtime.run(BATCH)
    assert runtime.notes == []
    assert "tapping" not in runtime.description
    graph = network()
    bias = graph["fc"].arrays()["bias"].copy()
    bias[1] += 2.0**-20
    changed = graph.replaced({"fc": type(graph["fc"])(**{**vars(graph["fc"]), "bias": bias})})
    other = OnnxRuntime(written(tmp_path / "other.onnx", to_onnx(changed)), threads=1)
    runtime._tapped = other._tapped  # as if ONNX Runtime computed otherwise once the spikes are outputs
    recording = runtime.run(BATCH)
    assert np.array_equal(recording.logits, untouched.logits)
    (note,) = runtime.notes
    assert "3 of 9 logits" in note
    assert f"{2.0**-20:.3g}" in note
    assert "tapping" in runtime.description


def test_it_is_a_runtime_that_says_what_computes(file: Path) -> None:
    runtime: Runtime = OnnxRuntime(str(file))
    assert runtime.name == "onnxruntime"
    version = importlib.import_module("onnxruntime").__version__
    assert f"onnxruntime {version}" in runtime.description


# What it refuses.


def test_a_wrong_batch(file: Path) -> None:
    runtime = OnnxRuntime(file, threads=1)
    with refused(Code.WRONG_SHAPE, "static"):
        runtime.run(data(1, 3, 4, 2, 6, 6))
    with refused(Code.WRONG_SHAPE):
        runtime.run(BATCH[:0])
    with refused(Code.NOT_FINITE):
        runtime.run(np.full((1, 2, 6, 6), np.nan, dtype=np.float32))


def test_bad_options(file: Path) -> None:
    for threads in (0, -1, 1.5, True):
        with refused(Code.BAD_OPTION, "threads"):
            OnnxRuntime(file, threads=threads)  # type: ignore[arg-type]
    with refused(Code.BAD_OPTION, "fastest"):
        OnnxRuntime(file, optimization="fastest")


def test_files_that_are_not_there_or_not_onnx(tmp_path: Path) -> None:
    with refused(Code.FILE_MISSING, "nowhere.onnx"):
        OnnxRuntime(tmp_path / "nowhere.onnx")
    with refused(Code.FILE_MISSING):
        OnnxRuntime(tmp_path)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"")
    with refused(Code.FILE_DAMAGED, "net.onnx", "empty"):
        OnnxRuntime(path)
    for foreign in (b"\x89HDF\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(64), b"# a text\n"):
        path.write_bytes(foreign)
        with refused(Code.FOREIGN_FILE, "not an ONNX file"):
            OnnxRuntime(path)


def test_a_truncated_file_is_refused_wherever_it_ends(file: Path) -> None:
    content = file.read_bytes()
    # Everywhere near the ends, where fields are short and a cut can fall between two, and here and there.
    lengths = {*range(1, 60), *range(60, len(content), 211), *range(len(content) - 300, len(content))}
    for length in sorted(lengths):
        file.write_bytes(content[:length])
        with pytest.raises(DalifError) as caught:
            OnnxRuntime(file, threads=1)
        assert caught.value.code is Code.FILE_DAMAGED, length


def test_bytes_that_changed(file: Path) -> None:
    """A name that is no UTF-8 any more, as a changed byte may make it."""
    made, _, read = file.read_bytes().rpartition(b"sn1/t0/silent")
    file.write_bytes(made + b"sn1/t0/\xffilent" + read)
    with refused(Code.FILE_DAMAGED):
        OnnxRuntime(file)


def test_another_tools_onnx_file(tmp_path: Path) -> None:
    model = to_onnx(network())
    del model.metadata_props[:]
    model.producer_name = "pytorch"
    with refused(Code.FOREIGN_FILE, "metadata"):
        OnnxRuntime(written(tmp_path / "net.onnx", model))


def test_our_own_file_without_its_metadata(tmp_path: Path) -> None:
    model = to_onnx(network())
    del model.metadata_props[:]
    with refused(Code.FILE_DAMAGED, "truncated"):
        OnnxRuntime(written(tmp_path / "net.onnx", model))


def _renamed(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            value.name = new if value.name == old else value.name

    return change


def _external(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def _timesteps(count: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(entry for entry in model.metadata_props if entry.key == "timesteps").value = count

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_renamed("sn2/t3/spikes", "optimised_17"), ("'sn2'", "sn2/t3/spikes")),
        (_renamed("input", "x"), ("'input'",)),
        (_renamed("logits", "y"), ("'logits'",)),
        (_timesteps("5"), ("'sn1'", "sn1/t4/spikes")),
        (_timesteps("3"), ("'sn1'", "more timesteps")),
        (_external, ("conv1.weight", "another file")),
    ],
)
def test_a_rewritten_file(change: Callable[[onnx.ModelProto], None], words: tuple[str, ...], tmp_path: Path) -> None:
    model = to_onnx(network())
    change(model)
    path = written(tmp_path / "net.onnx", model)
    (tmp_path / "weights.bin").write_bytes(bytes(4 * 4 * 2 * 9))
    with refused(Code.FOREIGN_FILE, *words):
        OnnxRuntime(path)


def test_an_onnx_file_that_onnx_runtime_cannot_run(file: Path) -> None:
    model = onnx.load(str(file))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((3, 7), dtype=np.float32), "fc.weight"))
    with refused(Code.FILE_DAMAGED, "net.onnx", "node name: fc", "onnxruntime"):
        OnnxRuntime(written(file, model)).run(BATCH)


def test_a_split_of_fewer_outputs_than_it_has(file: Path) -> None:
    """ONNX Runtime would end the process."""
    model = onnx.load(str(file))
    split = onnx.helper.make_node("Split", ["logits"], ["a", "b", "c"], name="cut", axis=1, num_outputs=2)
    model.graph.node.append(split)
    model.opset_import[0].version = max(model.opset_import[0].version, 18)
    with refused(Code.FILE_DAMAGED, "node 'cut'", "2 outputs"):
        OnnxRuntime(written(file, model))


def test_a_cast_to_no_type(file: Path) -> None:
    model = onnx.load(str(file))
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    cast.attribute[0].i = 0
    with refused(Code.FILE_DAMAGED, "net.onnx"):
        OnnxRuntime(written(file, model)).run(BATCH)


def test_every_error_is_one_line(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DalifError) as caught:
        OnnxRuntime(file)
    assert "\n" not in str(caught.value)


def test_available_names_the_command(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    assert available() is None
    monkeypatch.setattr(
        runtime_module.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object()
    )
    assert available() == "pip install onnxruntime"
    with refused(Code.MISSING_PACKAGE, "pip install onnxruntime"):
        OnnxRuntime(file)


def test_a_graph_with_its_encoding_survives_the_file(tmp_path: Path) -> None:
    source = network()
    graph = SpikingGraph(source.nodes, output="readout", timesteps=4, encoding=Encoding("uint8", scale=1 / 4))
    runtime = OnnxRuntime(written(tmp_path / "net.onnx", to_onnx(graph)), threads=1)
    assert runtime.metadata.input == graph.input_spec
    codes = (BATCH * 4).astype(np.uint8)
    assert np.array_equal(runtime.run(codes).logits, runtime.run(BATCH).logits)
