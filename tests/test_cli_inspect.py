"""dalif-inspect: what it says of models and files, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

import dalif_deploy
from dalif_deploy import Code
from dalif_deploy.cost import MAC_PICOJOULES
from dalif_deploy.deploy import InspectedLayer, inspect
from dalif_deploy.deploy.inspected import LEAKS
from dalif_deploy.nodes import frozen
from dalif_deploy.report.inspection import print_inspection
from tests.commands import DIGITS, Small, dalif, done, model_of, refused, stored_samples
from tests.cost_network import TIMESTEPS, Counted, images

PAGE = Path(__file__).parent.parent / "docs" / "cost.md"
RESNET = DIGITS.parent / "resnet20_digits.pt"
SAMPLES = 12
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits.onnx, digits.nir, codes.npz, and a model.pt and bare state_dict of `Counted`."""
    folder = tmp_path_factory.mktemp("place")
    for to in ("onnx", "nir"):
        done("export", "--to", to, DIGITS, "-o", folder / f"digits.{to}", "--no-verify")
    np.savez(folder / "codes.npz", inputs=stored_samples(SAMPLES))
    network = Counted()
    dalif_deploy.save(
        network, folder / "counted.pt", example_input=images(), timesteps=TIMESTEPS, layout="step", temporal=False
    )
    torch.save(network.state_dict(), folder / "weights.pth")
    np.save(folder / "images.npy", images())
    return folder


def shown(source: Path, width: int, **options: object) -> list[str]:
    """The lines that a terminal of `width` columns gets, plain."""
    console = Console(width=width, file=open(os.devnull, "w"), record=True, highlight=False)  # noqa: SIM115, PTH123
    print_inspection(inspect(source, **options), console)  # type: ignore[arg-type]
    console.file.close()
    return console.export_text().splitlines()


def test_a_model_with_its_own_samples(place: Path) -> None:
    found = done("inspect", place / "counted.pt", "--json").json()
    assert (found["kind"], found["timesteps"], found["readout"]) == ("model", TIMESTEPS, "mean")
    assert found["input"] == {"shape": [2, 7, 7], "temporal": False, "encoding": "real"}
    assert found["data"]["samples"] == 2
    cost = found["cost"]
    assert {key: cost[key] for key in ("macs", "acs", "flops", "params")} == {
        "macs": 13_932, "acs": 1279, "flops": 22_659, "params": 359,
    }  # fmt: skip
    assert all(type(cost[key]) is int for key in ("macs", "acs", "flops", "params", "acs_by_rate"))
    assert cost["energy_mj"] == pytest.approx((4.6 * 13_932 + 0.9 * 1279) * 1e-9, rel=1e-12)
    # 3 timesteps of 196 + 96 + 16 + 6 neurons and 196 BatchNorm elements: one MAC a neuron less, no BatchNorm.
    assert found["folded"]["macs"] == 13_932 - 3 * (2 * 196 + 314)
    assert found["folded"]["acs"] == 1279
    assert found["syops"] == {"total": 18_267, "macs": 12_096, "acs": 1924}
    assert found["neurobench"] == {"dense": 12_930, "effective_macs": 5635, "effective_acs": 1185}
    assert found["vacuous"] == []
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == ["sn1", "sn2", "sn3", "sn4"]
    first = layers["sn1"]
    assert (first["shape"], first["neurons"], first["parameters"], first["feeds"]) == (
        [4, 7, 7], 196, 80, ["conv1", "bn1"],
    )  # fmt: skip
    assert (first["alpha"], first["beta"], first["leak"]) == (0.75, 0.5, "decays")
    assert first["tau"] == pytest.approx(1 / np.log(2), rel=1e-12)
    assert (first["v_threshold"], first["v_reset"], first["reset"], first["fires_at"]) == (1.0, 0.0, "hard", "ge")
    assert first["rate"] == pytest.approx(np.mean(first["rates"]))
    assert len(first["rates"]) == TIMESTEPS


@pytest.mark.parametrize("what", ["model", "digits.nir", "digits.onnx"])
def test_rates_on_data_are_those_of_dalif_run(place: Path, what: str) -> None:
    source = DIGITS if what == "model" else place / what
    ran = done("run", source, "--data", place / "codes.npz", "--json").json()
    found = done("inspect", source, "--data", place / "codes.npz", "--json").json()
    assert {layer["name"]: layer["rate"] for layer in found["layers"]} == pytest.approx(ran["rates"], rel=1e-12)
    assert found["data"] == {"origin": "codes.npz", "samples": SAMPLES}
    if what != "digits.onnx":
        driven = found["folded"]["event_driven"]
        assert driven["synaptic_operations"] == int(ran["synaptic_operations"] + 0.5)


def test_fewer_samples(place: Path) -> None:
    found = done("inspect", DIGITS, "--data", place / "codes.npz", "--samples", 5, "--json").json()
    assert found["data"] == {"origin": "the first 5 of codes.npz", "samples": 5}
    ran = done("inspect", DIGITS, "--samples", 5, "--json").json()
    assert ran["data"]["samples"] == 5


def test_stored_spikes_are_those_of_the_module(place: Path) -> None:
    """The samples' own spikes and a run on the same samples: here they are the same."""
    np.save(place / "stored.npy", stored_samples(360))
    own = done("inspect", DIGITS, "--json").json()
    run = done("inspect", DIGITS, "--data", place / "stored.npy", "--json").json()
    assert "as the module itself fired" in own["data"]["origin"]
    assert own["layers"] == run["layers"]
    assert own["cost"] == run["cost"]


def test_a_nir_file_has_the_cost_of_the_folded_model(place: Path) -> None:
    model = done("inspect", DIGITS, "--data", place / "codes.npz", "--json").json()
    file = done("inspect", place / "digits.nir", "--data", place / "codes.npz", "--json").json()
    assert file["kind"] == "nir"
    assert file["cost"] == {key: value for key, value in model["folded"].items() if key != "event_driven"}
    assert file["folded"] == model["folded"]
    assert (file["syops"], file["neurobench"]) == (None, None)
    for mine, theirs in zip(file["layers"], model["layers"], strict=True):
        for key in ("name", "shape", "alpha", "beta", "tau", "reset", "fires_at", "rate"):
            assert np.array_equal(np.unique(mine[key]), np.unique(theirs[key])), key
    assert file["file"]["format"] == "nir"
    assert file["file"]["bytes"] == (place / "digits.nir").stat().st_size


def test_an_onnx_file_says_what_its_metadata_say(place: Path) -> None:
    model = done("inspect", DIGITS, "--json").json()
    file = done("inspect", place / "digits.onnx", "--json").json()
    assert (file["kind"], file["cost"], file["folded"], file["params"]) == ("onnx", None, None, None)
    assert file["data"] is None
    for mine, theirs in zip(file["layers"], model["layers"], strict=True):
        for key in ("name", "shape", "neurons", "alpha", "beta", "tau", "v_threshold", "v_reset", "reset", "fires_at"):
            assert mine[key] == theirs[key], key
        assert (mine["rate"], mine["rates"], mine["macs"], mine["acs"]) == (None,) * 4
    assert file["file"]["metadata"]["source_sha256"] == model["sha256"]
    assert any("alpha" in line for line in file["file"]["fold_log"])


def test_without_data_nothing_is_known_of_firing(tmp_path: Path) -> None:
    model, _ = model_of("ties", tmp_path)
    ran = done("inspect", model, "--json")
    found = ran.json()
    assert found["data"] is None
    assert found["cost"]["acs"] is None
    assert found["cost"]["energy_mj"] is None
    assert type(found["cost"]["macs"]) is int
    assert {layer["rate"] for layer in found["layers"]} == {None}
    assert "firing rates, ACs and energy are not known (give --data)" in done("inspect", model).out


def test_a_checkpoint_with_its_code(place: Path) -> None:
    """Nothing is proved or run but the capture, and on data it is the module itself that fires."""
    options = ("--model", "tests.cost_network:Counted", "-T", TIMESTEPS, "--input-shape", "2,7,7", "--static")
    found = done("inspect", place / "weights.pth", *options, "--json").json()
    assert found["data"] is None
    assert (found["cost"]["macs"], found["cost"]["acs"]) == (13_932, None)
    assert any("was not proved" in note for note in found["notes"])
    found = done("inspect", place / "weights.pth", *options, "--data", place / "images.npy", "--json").json()
    assert found["cost"]["acs"] == 1279
    without_shape = [option for option in options if option not in ("--input-shape", "2,7,7")]
    again = done("inspect", place / "weights.pth", *without_shape, "--data", place / "images.npy", "--json").json()
    assert again == found


def test_another_number_of_timesteps(place: Path) -> None:
    found = done("inspect", place / "counted.pt", "-T", 7, "--json").json()
    assert found["timesteps"] == 7
    assert found["data"] is None  # the stored samples do not apply
    assert found["cost"]["macs"] == 13_932 // 3 * 7


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("model", [DIGITS, RESNET], ids=["digits", "resnet20"])
def test_the_tables_fit_the_terminal(model: Path, width: int) -> None:
    lines = shown(model, width)
    (heading,) = (line for line in lines if line.split()[:1] == ["layer"])
    rows = lines[lines.index(heading) + 2 :]
    table = [heading, *rows[: len(inspect(model).layers)]]
    assert max(len(line.rstrip()) for line in table) <= width
    text = "\n".join(lines)
    for word in ("parameters", "alpha", "beta", "tau", "rate", "V >= 1", "to 0"):
        assert word in text, word
    assert ("ACs" in heading) == (width == 120)
    assert "neurons" in heading
    assert "…" not in text
    costs = [line for line in lines if line.split()[:1] in (["trained"], ["folded"], ["event-driven"], ["syops"])]
    assert len(costs) == 4
    assert max(map(len, map(str.rstrip, costs))) <= 80


def test_what_a_person_reads(place: Path) -> None:
    lines = done("inspect", place / "counted.pt").out.splitlines()
    assert lines[0] == f"{place}/counted.pt: training graph, T = 3, readout mean"
    assert lines[1] == "input 2 x 7 x 7, the same at every timestep; real encoding"
    assert lines[2] == "359 parameters besides alpha and beta, 314 neurons in 4 layers"
    assert lines[3].startswith("rates: 2 samples, ")
    text = re.sub(" +", " ", "\n".join(lines))
    assert " trained 13,932 1,279 22,659 359 0.0001" in text
    assert "(answer) fc2" in text


def test_leaks_are_explained(tmp_path: Path) -> None:
    """beta of every kind in one network: the table names it, and says what the word means."""
    model, _ = model_of("ties", tmp_path)
    console = Console(width=120, file=open(os.devnull, "w"), record=True, highlight=False)  # noqa: SIM115, PTH123
    found = inspect(model)
    kinds = {"alternates": -0.5, "forgets": 0.0, "never decays": 1.0, "grows": 1.25, "decays": 0.5}
    layers = tuple(
        InspectedLayer(
            name=f"layer {word}", shape=(2,), alpha=frozen(1.0), beta=frozen(beta), v_threshold=frozen(1.0),
            v_reset=frozen(0.0), reset="subtract", fires_at="gt", potential_scale=frozen(1.0),
        )
        for word, beta in kinds.items()
    )  # fmt: skip
    object.__setattr__(found, "layers", layers)
    print_inspection(found, console)
    console.file.close()
    lines = console.export_text().splitlines()
    for word in kinds:
        (row,) = (line for line in lines if line.strip().startswith(f"layer {word}"))
        assert (word if word != "decays" else "1.44") in row.replace(f"layer {word}", "", 1)
        assert "V > 1" in row
        assert "V - v_th" in row
        assert f"{word}: {LEAKS[word]}" in lines


def test_a_silent_layer_is_told(tmp_path: Path) -> None:
    network = Small()
    with torch.no_grad():
        network.fc2.weight.zero_()
        network.fc2.bias.zero_()
    dalif_deploy.save(network, tmp_path / "m.pt", example_input=np.ones((2, 4), np.float32), timesteps=2)
    assert done("inspect", tmp_path / "m.pt", "--json").json()["vacuous"] == ["sn2"]
    assert "fired never or always: sn2" in done("inspect", tmp_path / "m.pt").out.splitlines()


@pytest.mark.parametrize("what", ["counted.pt", "digits.onnx"])
def test_a_picture(place: Path, tmp_path: Path, what: str) -> None:
    pytest.importorskip("matplotlib")
    data = ("--data", place / "codes.npz") if what == "digits.onnx" else ()
    out = tmp_path / "rates.png"
    ran = done("inspect", place / what, "--plot", out, *data)
    assert f"{out}: written" in ran.err
    assert out.read_bytes().startswith(PNG)
    before = out.read_bytes()
    message = refused(tmp_path, Code.OUTPUT_EXISTS, "inspect", place / what, "--plot", out, *data)
    assert "--force" in message
    done("inspect", place / what, "--plot", out, *data, "--force")
    assert out.read_bytes() == before  # the same rates give the same picture
    done("inspect", place / what, "--plot", tmp_path / "rates.svg", *data)
    assert b"<svg" in (tmp_path / "rates.svg").read_bytes()


def test_a_picture_shows_the_rates(place: Path, tmp_path: Path) -> None:
    """Every cell of the SVG's text is a rate of the JSON, in per cent."""
    pytest.importorskip("matplotlib")
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        done("inspect", place / "counted.pt", "--plot", tmp_path / "rates.svg")
    text = (tmp_path / "rates.svg").read_text()
    for layer in done("inspect", place / "counted.pt", "--json").json()["layers"]:
        assert f">{layer['name']}<" in text
        assert re.search(rf">\s*{100 * layer['rate']:.1f} %<", text)
        for rate in layer["rates"]:
            assert f">{100 * rate:.1f}<" in text


def test_a_picture_of_nothing_is_refused(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = (place / "digits.onnx", "--plot", tmp_path / "rates.png")
    assert "give --data" in refused(tmp_path, Code.BAD_OPTION, "inspect", *arguments)
    arguments = (place / "counted.pt", "--plot", tmp_path / "rates.txt")
    assert "ends in .png, .svg, .pdf" in refused(tmp_path, Code.BAD_OPTION, "inspect", *arguments)
    model = tmp_path / "model.png"
    model.write_bytes((place / "counted.pt").read_bytes())
    refused(tmp_path, Code.OUTPUT_IS_INPUT, "inspect", model, "--plot", model, "--force")


def test_without_matplotlib_the_line_says_how_to_get_it(place: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from dalif_deploy.cli.common import status_of\n"
        "from dalif_deploy.cli.inspect import command\n"
        f"sys.exit(status_of(command, [{str(place / 'counted.pt')!r}, '--plot', {str(tmp_path / 'a.png')!r}]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.endswith("--plot: matplotlib is not installed; run: pip install 'dalif_deploy[report]'")
    assert line.startswith("dalif-inspect: error: [E0111] ")


def test_bad_input(place: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.zeros((2, 3, 7, 7), np.float32))
    message = refused(tmp_path, Code.WRONG_SHAPE, "inspect", place / "counted.pt", "--data", wrong)
    assert "[N, 2, 7, 7]" in message
    refused(tmp_path, Code.FILE_MISSING, "inspect", tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("hello, this is no model at all")
    refused(tmp_path, Code.FOREIGN_FILE, "inspect", tmp_path / "text.pt")
    assert dalif("inspect", place / "counted.pt", "--samples", 0).status == 2
    message = refused(tmp_path, Code.BAD_OPTION, "inspect", place / "digits.onnx", "-T", 5)
    assert "leave" in message
    refused(tmp_path, Code.BAD_OPTION, "inspect", place / "digits.nir", "-T", 5)


def keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(keys(item) for item in value.values()))
    return set().union(*(keys(item) for item in value)) if isinstance(value, list) else set()


def test_the_page_explains_every_key(place: Path) -> None:
    found: list[NDArray[np.generic] | object] = []
    for source in (place / "counted.pt", place / "digits.nir", place / "digits.onnx"):
        result = done("inspect", source, "--json").json()
        if result["file"] is not None:
            result["file"]["metadata"] = {}  # whatever the file says
        found.append(result)
    explained = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    assert keys(found) <= explained


def test_the_page_has_the_numbers_of_the_small_network(place: Path) -> None:
    text = PAGE.read_text()
    result = done("inspect", place / "counted.pt", "--json").json()
    assert str(MAC_PICOJOULES) in text
    row = re.search(r"\| small network \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|.*\| ([\d,]+) \| ([\d,]+) \|", text)
    assert row is not None
    numbers = [int(number.replace(",", "")) for number in row.groups()]
    assert numbers == [
        result["cost"]["acs"], result["cost"]["acs_by_rate"], result["folded"]["event_driven"]["synaptic_operations"],
        result["syops"]["acs"], result["neurobench"]["effective_acs"],
    ]  # fmt: skip


def test_json_is_one_line_of_plain_json(place: Path) -> None:
    ran = done("inspect", DIGITS, "--json")
    assert json.loads(ran.out) == ran.json()
    assert ran.err == ""
