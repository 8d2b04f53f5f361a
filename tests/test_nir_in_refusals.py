"""What foreign NIR files may look like: quirks are read and said, broken ones are refused in one line."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dalif_deploy.capturing.nir_in.reading import Answers, answers_of, read_foreign_nir
from dalif_deploy.deploy import LoadOptions
from dalif_deploy.deploy.model import open_model
from dalif_deploy.equivalence import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nodes import Neuron
from tests.foreign_nir import DT, Edges, Spec, affine, graph, input_, lif, output, write

EDGES = [("input", "fc"), ("fc", "lif"), ("lif", "output")]
OPTIONS = LoadOptions(dt=DT, timesteps=5)


def nodes(**changes: Spec) -> dict[str, Spec]:
    rng = np.random.default_rng(0)
    return {"input": input_(3), "fc": affine(rng, 2, 3), "lif": lif((2,)), "output": output(2), **changes}


def refused(path: Path, code: Code, *parts: str, options: LoadOptions = OPTIONS) -> None:
    with pytest.raises(DalifError) as caught:
        open_model(path, options)
    assert caught.value.code is code, caught.value
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def without(spec: Spec, key: str) -> Spec:
    return {name: value for name, value in spec.items() if name != key}


SCALE = {"type": "Scale", "scale": np.ones(2)}
BROKEN: dict[str, tuple[dict[str, Spec], Edges, Code, str]] = {
    "weight": ({"fc": affine(np.random.default_rng(0), 2, 4)}, EDGES, Code.BAD_GRAPH,
               "node 'fc' (Affine): weight of shape [2, 4] does not fit its input [3]"),
    "bias": ({"fc": {**affine(np.random.default_rng(0), 2, 3), "bias": np.zeros(7)}}, EDGES, Code.BAD_GRAPH,
             "node 'fc' (Affine): bias of shape [7]"),
    "neurons": ({"lif": lif((5,))}, EDGES, Code.BAD_GRAPH,
                "node 'lif' (LIF): r of shape [5] does not fit its input [2]"),
    "output": ({"output": output(4)}, EDGES, Code.BAD_GRAPH, "node 'output' (Output): says that its shape is [4]"),
    "conv": ({"fc": {"type": "Conv2d", "weight": np.zeros((2, 3, 3, 3)), "bias": np.zeros(2)}}, EDGES, Code.BAD_GRAPH,
             "node 'fc' (Conv2d): reads [3]"),
    "missing node": ({}, [*EDGES, ("nobody", "lif")], Code.BAD_GRAPH,
                     "from 'nobody' to 'lif', and there is no node 'nobody'"),
    "no edge in": ({}, EDGES[:1] + EDGES[2:], Code.BAD_GRAPH, "node 'lif' (LIF): no edge leads to it"),
    "edge twice": ({}, [*EDGES, ("fc", "lif")], Code.BAD_GRAPH, "the edge from 'fc' to 'lif' is there 2 times"),
    "zero-delay loop": ({"s": SCALE}, [*EDGES, ("fc", "s"), ("s", "s"), ("s", "lif")], Code.BAD_GRAPH,
                        "node 's' needs"),
    "zero-delay cycle": ({"s": SCALE, "t": {"type": "Threshold", "threshold": np.ones(2)},
                          "u": {"type": "Delay", "delay": np.zeros(2)}},
                         [*EDGES, ("fc", "s"), ("s", "t"), ("t", "u"), ("u", "s"), ("s", "lif")], Code.BAD_GRAPH,
                         "its own output of the same step"),
    "kind": ({"fc": {"type": "Wobble"}}, EDGES, Code.UNSUPPORTED_LAYER, "node 'fc' (Wobble): this kind of node"),
    "field": ({"lif": without(lif((2,)), "tau")}, EDGES, Code.BAD_GRAPH, "node 'lif' (LIF): has no tau"),
    "nan": ({"lif": lif((2,), tau=np.nan)}, EDGES, Code.NOT_FINITE, "node 'lif' (LIF): tau has NaN"),
    "tau": ({"lif": lif((2,), tau=0.0)}, EDGES, Code.BAD_GRAPH, "node 'lif' (LIF): tau = 0"),
    "text": ({"lif": {**lif((2,)), "tau": "soon"}}, EDGES, Code.BAD_GRAPH, "node 'lif' (LIF): tau holds no numbers"),
    "delay": ({"lif": {"type": "Delay", "delay": np.full(2, 0.37 * DT)}}, EDGES, Code.BAD_GRAPH,
              "node 'lif' (Delay): delay = 0.00037 s is no whole number of timesteps"),
    "two inputs": ({"in2": input_(2)}, [*EDGES, ("in2", "lif")], Code.BAD_GRAPH, "'in2', 'input'"),
    "no shape": ({"input": {"type": "Input"}}, EDGES, Code.AMBIGUOUS, "--input-shape"),
    "ports": ({"lif": graph({"a": input_(2), "b": input_(2), "o": output(2)}, [("a", "o"), ("b", "o")])}, EDGES,
              Code.BAD_GRAPH, "nested graph 'lif' has 2 nodes of kind Input"),
    "unheard": ({"i": {"type": "I", "r": np.ones(2)}}, [("input", "fc"), ("i", "i"), ("i", "output")], Code.BAD_GRAPH,
                "nothing that comes from the input 'input' reaches it"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_graph_that_contradicts_itself(case: str, tmp_path: Path) -> None:
    changes, edges, code, part = BROKEN[case]
    refused(write(tmp_path / "net.nir", graph(nodes(**changes), edges)), code, part)


def _slash(file: h5py.File) -> None:
    file.move("node/nodes/fc", "node/nodes/block/fc")


def _within(file: h5py.File) -> None:
    file.copy("node/nodes/fc", "node/nodes/lif/fc")


def _itself(file: h5py.File) -> None:
    file["node/nodes/inner"] = file["node"]


def _elsewhere(file: h5py.File) -> None:
    del file["node/nodes/fc"]
    file["node/nodes/fc"] = h5py.ExternalLink("other.h5", "fc")


def _nowhere(file: h5py.File) -> None:
    del file["node/nodes/fc"]
    file["node/nodes/fc"] = h5py.SoftLink("/nowhere")


def _no_type(file: h5py.File) -> None:
    del file["node/nodes/fc/type"]


def _edges(file: h5py.File) -> None:
    del file["node/edges"]
    file["node/edges"] = np.zeros((3, 3))


def _huge(file: h5py.File) -> None:
    del file["node/nodes/fc/weight"]
    file["node/nodes/fc"].create_dataset("weight", (2, 2**41), dtype="i1", chunks=(1, 1024))


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        (_slash, Code.BAD_GRAPH, "node 'block' has no type; a '/' in a name, as of 'block/fc', splits it"),
        (_within, Code.BAD_GRAPH, "node 'lif' (LIF) has a node 'fc' in it; a '/' in a name, as of 'lif/fc', splits it"),
        (_itself, Code.BAD_GRAPH, "node 'inner' is nested into itself"),
        (_elsewhere, Code.FOREIGN_FILE, "'fc' lies in another file"),
        (_nowhere, Code.FILE_DAMAGED, "'fc' leads nowhere"),
        (_no_type, Code.BAD_GRAPH, "node 'fc' has no type"),
        (_edges, Code.BAD_GRAPH, "edges of shape [3, 3]"),
        (_huge, Code.FILE_DAMAGED, "declares 4398046511104 elements"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_put_together_as_nir(
    change: Callable[[h5py.File], None], code: Code, part: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "net.nir", graph(nodes(), EDGES))
    with h5py.File(path, "a") as file:
        change(file)
    refused(path, code, part)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.6, 0.99])
def test_a_truncated_file(share: float, tmp_path: Path) -> None:
    path = write(tmp_path / "net.nir", graph(nodes(), EDGES))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, Code.FILE_DAMAGED, "truncated")


def test_what_is_no_nir_file(tmp_path: Path) -> None:
    text = tmp_path / "text.nir"
    text.write_text("input -> lif -> output\n")
    refused(text, Code.FOREIGN_FILE)
    other = tmp_path / "other.nir"
    with h5py.File(other, "w") as file:
        file["weights"] = np.zeros(3)
    refused(other, Code.FOREIGN_FILE, "no NIR graph")


# ---- what has to be said


def test_what_the_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "net.nir", graph(nodes(), EDGES))
    refused(path, Code.AMBIGUOUS, "--dt", "node 'lif' (LIF)", options=LoadOptions(timesteps=5))
    refused(path, Code.AMBIGUOUS, "-T/--timesteps", options=LoadOptions(dt=DT))
    refused(path, Code.BAD_OPTION, "dt = -1", options=LoadOptions(dt=-1.0, timesteps=5))
    refused(path, Code.BAD_OPTION, "--input-shape says [4]", options=LoadOptions(dt=DT, timesteps=5, input_shape=(4,)))
    with pytest.raises(DalifError, match="--reset soft: unknown"):
        answers_of(reset="soft")


def test_metadata_and_data_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "net.nir", graph(nodes(), EDGES, {"dt": DT, "timesteps": 7, "readout": "mean"}))
    found = read_foreign_nir(path).graph
    assert (found.timesteps, found.readout.mode) == (7, "mean")
    assert read_foreign_nir(path, Answers(data=(2, 9, 3))).graph.timesteps == 9
    assert read_foreign_nir(path, Answers(timesteps=4, readout="last")).graph.readout.mode == "last"
    silent = write(tmp_path / "silent.nir", graph(nodes(input={"type": "Input"}), EDGES))
    shaped = read_foreign_nir(silent, Answers(dt=DT, timesteps=3, input_shape=(3,), temporal=False))
    assert shaped.graph.input.shape == (3,)
    assert not shaped.graph.input.temporal


def neuron(path: Path, **answers: Any) -> tuple[Neuron, tuple[str, ...]]:
    found = read_foreign_nir(path, answers_of(timesteps=3, **answers))
    return found.graph.neurons[0], found.notes


@pytest.mark.parametrize(
    ("r", "dt", "gain", "said"),
    [
        (1.0, None, 1.0, "r = 1 taken as unit gain"),
        (1.0, DT, 1.0, "r = 1 taken as unit gain"),
        (1 / DT, DT, 1.0, "r = 1 / dt taken as unit gain"),
        (float(np.float32(1 / 3e-4)), 3e-4, 1.0, "r = 1 / dt taken as unit gain"),
        (250.0, DT, 0.25, "gain dt * r"),
    ],
)
def test_the_gain_of_an_if(r: float, dt: float | None, gain: float, said: str, tmp_path: Path) -> None:
    spec = {"type": "IF", "r": np.full(2, r), "v_threshold": np.ones(2)}
    found, notes = neuron(write(tmp_path / "net.nir", graph(nodes(lif=spec), EDGES)), dt=dt)
    assert found.alpha == gain
    assert found.beta == 1.0
    assert any(said in note and note.endswith("lif") for note in notes)


def test_gains_may_differ_within_an_if(tmp_path: Path) -> None:
    spec = {"type": "IF", "r": np.array([1.0, 250.0]), "v_threshold": np.ones(2)}
    found, notes = neuron(write(tmp_path / "net.nir", graph(nodes(lif=spec), EDGES)), dt=DT)
    assert found.alpha.tolist() == [1.0, 0.25]
    assert any("r = 1 taken as unit gain: lif" in note for note in notes)


def test_an_if_with_another_gain_asks_for_dt(tmp_path: Path) -> None:
    spec = {"type": "IF", "r": np.full(2, 250.0), "v_threshold": np.ones(2)}
    path = write(tmp_path / "net.nir", graph(nodes(lif=spec), EDGES))
    refused(path, Code.AMBIGUOUS, "--dt", options=LoadOptions(timesteps=3))


def test_rules_are_the_nir_texts_unless_given(tmp_path: Path) -> None:
    path = write(tmp_path / "net.nir", graph(nodes(lif=lif((2,), v_reset=0.25)), EDGES))
    found, notes = neuron(path, dt=DT)
    assert (found.reset, found.fires_at, float(found.v_reset)) == ("hard", "gt", 0.25)
    assert any("reset hard, a neuron fires at V > v_threshold (the NIR text's rules" in note for note in notes)
    found, notes = neuron(path, dt=DT, fires_at="ge")
    assert found.fires_at == "ge"
    assert any("V >= v_threshold (as given)" in note for note in notes)
    # Down by the threshold, or to v_reset: not both.
    refused(path, Code.AMBIGUOUS, "v_reset other than 0", options=LoadOptions(dt=DT, timesteps=3, reset="subtract"))


# ---- quirks


def test_a_flatten_that_counts_the_batch_axis(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    flat = {"type": "Flatten", "start_dim": 1, "end_dim": -1}
    specs = {"input": input_(2, 3, 4), "flat": flat, "fc": affine(rng, 2, 24), "output": output(2)}
    path = write(tmp_path / "net.nir", graph(specs, [("input", "flat"), ("flat", "fc"), ("fc", "output")]))
    found = read_foreign_nir(path, Answers(timesteps=1))
    assert any("start_dim = 1 taken to count a batch axis" in note for note in found.notes)
    data = rng.random((2, 1, 2, 3, 4), dtype=np.float32)
    expected = data.reshape(2, -1).astype(np.float64) @ specs["fc"]["weight"].T + specs["fc"]["bias"]
    np.testing.assert_allclose(simulate(found.graph, data).logits, expected, rtol=1e-12)


def test_shapes_with_ones_in_front_and_input_shapes_that_are_wrong(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    conv = {"type": "Conv2d", "weight": rng.normal(size=(2, 1, 3, 1)), "bias": np.zeros(2), "stride": np.array([1, 1]),
            "padding": np.array([0, 0]), "dilation": np.array([1, 1]), "groups": 1,
            "input_shape": np.array([9, 9])}  # fmt: skip
    specs = {"input": input_(1, 5, 4), "10": conv, "9": lif((1, 2, 3, 4)), "output": output(1, 2, 3, 4)}
    path = write(tmp_path / "net.nir", graph(specs, [("10", "9"), ("9", "output"), ("input", "10")]))
    found = read_foreign_nir(path, Answers(dt=DT, timesteps=1))
    assert found.graph.types["9"].shape == (2, 3, 4)
    assert any("another input_shape is stated" in note and "10" in note for note in found.notes)
    assert any("[1, 2, 3, 4] taken for [2, 3, 4]" in note for note in found.notes)


def test_what_the_output_does_not_hear_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "net.nir", graph(nodes(side=lif((2,))), [*EDGES, ("fc", "side")]))
    found = read_foreign_nir(path, Answers(dt=DT, timesteps=1))
    assert "side" not in found.graph
    assert any(note == "left out, since the output does not hear it: side" for note in found.notes)


def test_a_timestep_longer_than_a_time_constant_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "net.nir", graph(nodes(lif=lif((2,), tau=0.5 * DT)), EDGES))
    found, notes = neuron(path, dt=DT)
    assert found.beta == -1.0
    assert any("overshoots: lif" in note for note in notes)


def test_a_long_chain_and_a_cycle_with_two_ways_in(tmp_path: Path) -> None:
    links = {f"s{i}": {"type": "Scale", "scale": np.ones(2)} for i in range(1100)}
    names = ["fc", *links, "lif"]
    edges = [("input", "fc"), *itertools.pairwise(names), ("lif", "output")]
    found = read_foreign_nir(write(tmp_path / "long.nir", graph(nodes(**links), edges)), Answers(dt=DT, timesteps=1))
    assert len(found.graph.nodes) == 1104
    both = [("input", "fc"), ("fc", "lif"), ("fc", "lif2"), ("lif", "lif2"), ("lif2", "lif"), ("lif2", "output")]
    path = write(tmp_path / "both.nir", graph(nodes(lif2=lif((2,))), both))
    notes = read_foreign_nir(path, Answers(dt=DT, timesteps=1)).notes
    assert "recurrence: 'lif' hears 'lif2' of the step before" in notes
