"""The commands on NIR files of other tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.commands import dalif, done
from tests.foreign_nir import DT, Oracle, Spec, affine, cuba_lif, graph, input_, lif, output, write

EDGES = [("input", "fc"), ("fc", "lif"), ("lif", "output")]


@pytest.fixture
def nodes() -> dict[str, Spec]:
    rng = np.random.default_rng(2)
    return {"input": input_(3), "fc": affine(rng, 4, 3, 2.0), "lif": lif((4,), r=2.0), "output": output(4)}


@pytest.fixture
def net(nodes: dict[str, Spec], tmp_path: Path) -> Path:
    return write(tmp_path / "net.nir", graph(nodes, EDGES))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "in.npz", inputs=np.random.default_rng(3).random((5, 12, 3), dtype=np.float32))
    return tmp_path / "in.npz"


def test_run_writes_the_spikes_and_says_what_it_took(
    nodes: dict[str, Spec], net: Path, data: Path, tmp_path: Path
) -> None:
    ran = done("run", net, "--dt", DT, "--data", data, "--spikes", "-o", tmp_path / "out.npz")
    expected, outputs = Oracle(nodes, EDGES).run(np.load(data)["inputs"])
    found = np.load(tmp_path / "out.npz")
    assert expected["lif"].any()
    assert np.array_equal(found["spikes.lif"], expected["lif"])
    assert np.array_equal(found["logits"], outputs.sum(axis=1))
    assert "dt = 0.001 s (as given), 12 timesteps (as the data have), readout sum" in ran.err
    assert "reset hard, a neuron fires at V > v_threshold (the NIR text's rules" in ran.err


def test_rules_given_are_rules_taken(nodes: dict[str, Spec], net: Path, data: Path, tmp_path: Path) -> None:
    rules = ("--reset", "subtract", "--fires-at", "ge")
    done("run", net, "--dt", DT, *rules, "--data", data, "--spikes", "-o", tmp_path / "out.npz")
    expected, _ = Oracle(nodes, EDGES, subtract=True, at=True).run(np.load(data)["inputs"])
    hard, _ = Oracle(nodes, EDGES).run(np.load(data)["inputs"])
    assert not np.array_equal(expected["lif"], hard["lif"])
    assert np.array_equal(np.load(tmp_path / "out.npz")["spikes.lif"], expected["lif"])


@pytest.mark.parametrize("to", ["onnx", "nir"])
def test_an_exported_file_answers_for_its_model(to: str, net: Path, data: Path, tmp_path: Path) -> None:
    exported = tmp_path / f"exported.{to}"
    done("export", "--to", to, net, "--dt", DT, "--fires-at", "ge", "--data", data, "-o", exported)
    ran = done("verify", net, exported, "--json", "--data", data)
    assert ran.json()["verdict"] == "exact"
    shown = done("verify", net, exported)  # seeded data: T is the file's
    assert f"dt = 0.001 s (as exported.{to} says), 12 timesteps (as exported.{to} says)" in shown.out
    assert f"a neuron fires at V >= v_threshold (as exported.{to} says)" in shown.out
    ran = dalif("verify", net, exported, "-T", 5)
    assert ran.status == 2
    assert "E0115" in ran.err


def test_what_is_not_known_is_asked_for(net: Path, data: Path) -> None:
    ran = dalif("run", net, "--data", data)
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    assert "--dt" in ran.err
    ran = dalif("export", "--to", "onnx", net, "--dt", DT)
    assert ran.status == 2
    assert "--timesteps" in ran.err


def test_the_options_are_for_files_that_leave_something_open(net: Path, data: Path, tmp_path: Path) -> None:
    done("export", "--to", "nir", net, "--dt", DT, "--data", data, "-o", tmp_path / "own.nir")
    for command, path in [("run", tmp_path / "own.nir"), ("verify", tmp_path / "own.nir")]:
        ran = dalif(command, path, "--dt", DT, "--data", data)
        assert ran.status == 2
        assert "leave" in ran.err
        assert "--dt" in ran.err
    ran = dalif("run", net, "--dt", DT, "--data", data, "--runtime", "norse")
    assert ran.status == 2
    assert "dalif-export --to nir" in ran.err


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (lif((4,), v_leak=0.5), "its leak target is not 0"),
        (cuba_lif((4,)), "its edge from 'lif.current' is delayed"),
        ({"type": "Threshold", "threshold": np.ones(4)}, "its reset is 'none'"),
        ({"type": "Delay", "delay": np.full(4, 2 * DT)}, "its edge from 'fc' is delayed"),
    ],
)
def test_what_the_canonical_form_does_not_have_is_refused(
    spec: Spec, why: str, nodes: dict[str, Spec], tmp_path: Path
) -> None:
    path = write(tmp_path / "net.nir", graph({**nodes, "lif": spec}, EDGES))
    ran = dalif("export", "--to", "nir", path, "--dt", DT, "-T", 4, "-o", tmp_path / "out.nir")
    assert ran.status == 1
    assert why in ran.err
    assert not (tmp_path / "out.nir").exists()


def test_inspect_looks_at_it(net: Path, data: Path) -> None:
    assert "1 timestep (to look at it; -T says how many)" in done("inspect", net, "--dt", DT).out
    found = done("inspect", net, "--dt", DT, "--data", data, "--json").json()
    assert [layer["name"] for layer in found["layers"]] == ["lif"]
    assert found["layers"][0]["rate"] > 0.0


def test_events_are_binned_to_the_steps_of_the_exported_file(nodes: dict[str, Spec], tmp_path: Path) -> None:
    maps = {
        "input": input_(2, 3, 4), "flat": {"type": "Flatten", "start_dim": 0, "end_dim": -1},
        "fc": affine(np.random.default_rng(2), 4, 24, 2.0), "lif": nodes["lif"], "output": output(4),
    }  # fmt: skip
    path = write(tmp_path / "maps.nir", graph(maps, [("input", "flat"), ("flat", "fc"), *EDGES[1:]]))
    rng = np.random.default_rng(4)
    x, y, p = (rng.integers(0, n, 200).astype(np.uint8) for n in (4, 3, 2))
    np.savez(tmp_path / "events.npz", x=x, y=y, p=p, t=np.sort(rng.integers(0, 9000, 200)))
    binned = ("--data", tmp_path / "events.npz", "--bin", "duration:1000")
    done("export", "--to", "onnx", path, "--dt", DT, "-T", 8, *binned, "-o", tmp_path / "maps.onnx")
    found = done("verify", path, tmp_path / "maps.onnx", *binned, "--json").json()
    assert (found["verdict"], found["timesteps"]) == ("exact", 8)
