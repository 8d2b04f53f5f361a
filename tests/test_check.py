"""dalif-export --check: a verdict for every node, which never disagrees with the export, and writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dalif_deploy
from dalif_deploy import Code, DalifError, NeuronParameters, SpikingGraph, register_neuron
from dalif_deploy.capturing import capture_module, neurons
from dalif_deploy.deploy import CheckResult, LoadOptions, check
from dalif_deploy.neuron import DALIF
from tests.commands import DIGITS, contents, dalif, done, refused
from tests.graphs import GRAPHS, SPECIAL_GRAPHS
from tests.test_capture_refusals import REFUSED, T, image

NAMES = (
    "plain", "alpha negative", "beta 1", "beta negative", "subtract reset", "strict threshold", "two-branch residual",
    "per channel", "temporal spikes", "shared producer", "uint8 codes", "alpha zero",
)  # fmt: skip
CASES: dict[str, Callable[[], tuple[SpikingGraph, Any]]] = {name: {**GRAPHS, **SPECIAL_GRAPHS}[name] for name in NAMES}
TARGETS: dict[str, dict[str, Any]] = {
    "onnx": {"to": "onnx"},
    "exact": {"to": "onnx", "precision": "exact"},
    "nir": {"to": "nir"},
    "snntorch": {"to": "nir", "dialect": "snntorch"},
}
HERE = Path(__file__).name


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "_READERS", {})


def line_of(marker: str) -> str:
    """Where this file says `# marker`, as "file:line"."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"# {marker}")]
    return f"{HERE}:{number}"


def against(result: CheckResult) -> list[tuple[str, str, Code | None, str | None]]:
    """What stands in the way: name, kind, code and place."""
    return [(n.name, n.kind, n.code, n.where) for n in result.nodes if n.verdict == "unsupported"]


class Pulse(nn.Module):
    """A neuron that nobody has registered."""

    def __init__(self, leak: float = 0.5) -> None:
        super().__init__()
        self.leak = leak
        self.charge: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        charge = x if self.charge is None else self.leak * self.charge + x
        pulse = (charge >= 1.0).float()  # compares
        self.charge = charge * (1.0 - pulse)
        return pulse


class Plain(nn.Module):
    """Maxima of currents, which ONNX has and NIR has not; sn2 resets as asked."""

    def __init__(self, v_reset: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.sn1 = nn.Conv2d(1, 6, (3, 5), padding=(1, 2)), DALIF()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2, self.bn2, self.sn2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), DALIF(v_reset=v_reset)
        self.pool2 = nn.MaxPool2d(2)
        self.fc = nn.Linear(32, 10)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim:
                    parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.3)

    def features(self, x: Tensor) -> Tensor:
        x = self.sn1(self.pool1(self.conv1(x)))
        return self.sn2(self.pool2(self.bn2(self.conv2(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.features(x), 1))


class Averaged(Plain):
    """The same with averages of spikes, which both formats hold."""

    def __init__(self) -> None:
        super().__init__()
        self.pool1, self.pool2 = nn.AvgPool2d(2), nn.AvgPool2d(2)

    def features(self, x: Tensor) -> Tensor:
        x = self.pool1(self.sn1(self.conv1(x)))
        return self.pool2(self.sn2(self.bn2(self.conv2(x))))


class Crowded(Plain):
    """Many things that are not supported, in modules and in functions."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.norm, self.sn2, self.sn3 = nn.ReLU(), nn.LayerNorm([6, 4, 4]), Pulse(), Pulse(0.3)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.sn1(self.pool1(self.act(self.conv1(x)))))  # act and norm
        x = self.sn2(self.pool2(self.conv2(x)))
        x = torch.sigmoid(self.up(self.sn3(x)))  # up and sigmoid
        x = torch.flatten(x, 1)
        return torch.softmax(self.fc(x), 1)  # softmax


class Recurrent(Averaged):
    def forward(self, x: Tensor) -> Tensor:
        total, before = torch.zeros(len(x), 10), torch.zeros(len(x), 8, 4, 4)
        for _ in range(4):
            before = self.sn2(self.conv2(self.pool1(self.sn1(self.conv1(x)))) + before)
            total = total + self.fc(torch.flatten(self.pool2(before), 1))
        return total


STEPS = LoadOptions(timesteps=4, input_shape=(1, 8, 8))


def saved(folder: Path, net: nn.Module) -> tuple[object, ...]:
    """The network's weights in a file, and the options that build it."""
    torch.save(net.state_dict(), folder / "net.pth")
    return (folder / "net.pth", "--model", f"tests.test_check:{type(net).__name__}", "-T", 4, "--input-shape", "1,8,8")


def checked(net: nn.Module, **arguments: Any) -> CheckResult:
    return check(net, options=STEPS, verified=False, **arguments)


# It agrees with the export.


def export_error(graph: SpikingGraph, path: Path, arguments: dict[str, Any]) -> DalifError | None:
    try:
        dalif_deploy.export(graph, path, force=True, **arguments)
    except DalifError as error:
        return error
    return None


@pytest.mark.parametrize("target", TARGETS)
def test_a_check_says_what_the_export_does(target: str, tmp_path: Path) -> None:
    """Over graphs of every node kind; what the export names is among what is found."""
    supported = 0
    for name, make in CASES.items():
        graph, batch = make()
        arguments = {**TARGETS[target], "data": batch[:2], "verified": False}
        result = check(graph, **arguments)
        error = export_error(graph, tmp_path / "out", arguments)
        assert result.supported == (error is None), (name, against(result))
        if error is None:
            supported += 1
        else:
            found = against(result)
            assert error.code in {code for _, _, code, _ in found}, name
            assert any(f"'{node}'" in error.message for node, *_ in found), (name, error.message)
        assert not result.count("unjudged"), name
        assert {node.name for node in graph.nodes} <= {node.name for node in result.nodes}, name
    assert supported > 0, "nothing was exported, so nothing was shown"


@pytest.mark.parametrize("name", REFUSED)
def test_a_check_answers_where_a_capture_refuses(name: str) -> None:
    """Never an error, always the capture's own code among the findings, each with a place; the module as it was."""
    module = REFUSED[name][0]()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    children = dict(module.named_modules())
    try:
        capture_module(module, example_input=image(), timesteps=T)
    except DalifError as error:
        refusal = error
    else:
        pytest.skip("this is captured")
    result = check(module, to="onnx", options=LoadOptions(timesteps=T), data=image().numpy(), verified=False)
    assert not result.supported
    assert refusal.code in {node.code for node in result.nodes}
    for node in result.nodes:
        if node.verdict == "unsupported":
            assert node.reason
            assert node.where
            assert node.where.partition(":")[0].endswith(".py")
    assert dict(module.named_modules()) == children
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


# All of them, in place.


def test_every_node_that_a_target_does_not_take_is_found() -> None:
    assert checked(Plain(), to="onnx").supported
    pools = [
        ("pool1", "MaxPool2d", Code.TARGET_CANNOT_HOLD, None),
        ("pool2", "MaxPool2d", Code.TARGET_CANNOT_HOLD, None),
    ]
    assert against(checked(Plain(), to="nir")) == pools
    neuron = ("sn2", "Neuron", Code.TARGET_CANNOT_HOLD, None)
    result = checked(Plain(v_reset=-0.1), to="nir", dialect="snntorch")
    assert against(result) == [*pools, neuron]
    reasons = {node.name: node.reason for node in result.nodes}
    assert "NIR has no maximum" in str(reasons["pool1"])
    assert "snntorch resets to 0" in str(reasons["sn2"])
    assert {node.verdict for node in result.nodes} == {"ok", "changed", "unsupported"}


def test_everything_that_stands_against_a_capture_is_found_with_its_line() -> None:
    result = checked(Crowded(), to="nir")
    unsupported, unknown, cannot = Code.UNSUPPORTED_LAYER, Code.UNKNOWN_NEURON, Code.TARGET_CANNOT_HOLD
    first, second, last = line_of("act and norm"), line_of("up and sigmoid"), line_of("softmax")
    assert against(result) == [
        ("act", "ReLU", unsupported, first),
        ("pool1", "MaxPool2d", cannot, None),
        ("norm", "LayerNorm", unsupported, first),
        ("pool2", "MaxPool2d", cannot, None),
        ("sn2", "Pulse", unknown, line_of("compares")),
        ("sn3", "Pulse", unknown, line_of("compares")),
        ("up", "ConvTranspose2d", unsupported, second),
        (second, "Crowded", unsupported, second),
        (last, "Crowded", unsupported, last),
    ]
    verdicts = {node.name: node.verdict for node in result.nodes}
    assert (verdicts["conv1"], verdicts["fc"], verdicts["readout"]) == ("ok", "ok", "ok")
    sources = {node.name: node.source for node in result.nodes}
    assert str(sources[last]).startswith("return torch.softmax(self.fc(x), 1)")


def test_what_comes_after_a_refusal_of_the_whole_is_not_judged() -> None:
    result = checked(Recurrent(), to="onnx")
    ((name, kind, code, where),) = against(result)
    assert (name, kind, code) == ("", "Recurrent", Code.CAPTURE_REFUSED)
    assert str(where).startswith(f"{HERE}:")
    assert {node.name: node.verdict for node in result.nodes if node.name} == dict.fromkeys(
        ["conv1", "sn1", "pool1", "conv2", "bn2", "sn2", "pool2", "fc"], "unjudged"
    )


def test_what_a_node_becomes() -> None:
    becomes = {node.name: (node.verdict, node.becomes) for node in checked(Averaged(), to="nir").nodes}
    assert becomes["conv2"] == ("ok", "NIR Conv2d")
    assert becomes["bn2"] == ("changed", "BatchNorm folded into the weights of conv2")
    assert becomes["pool1"] == ("changed", "average pool to sum pool, 1/4 into conv2; NIR SumPool2d")
    assert becomes["sn2"] == ("changed", "alpha 0.7616 folded into the weights of conv2; NIR LIF")
    assert becomes["readout"] == ("ok", "NIR Output")
    becomes = {node.name: (node.verdict, node.becomes) for node in checked(Averaged(), to="onnx").nodes}
    assert becomes["fc"] == ("ok", "ONNX Gemm")
    assert checked(Averaged(), to="pt").supported


def test_a_reader_that_is_wrong_is_a_finding() -> None:
    class WithPulse(Averaged):
        def __init__(self) -> None:
            super().__init__()
            self.sn2 = Pulse(0.5)  # type: ignore[assignment]

    register_neuron(Pulse, lambda m: NeuronParameters(alpha=1.0, beta=m.leak, v_threshold=1.5))
    result = checked(WithPulse(), to="onnx")
    assert [(name, code) for name, _, code, _ in against(result)] == [("sn2", Code.CAPTURE_MISMATCH)]
    register_neuron(Pulse, lambda m: NeuronParameters(alpha=1.0, beta=m.leak, v_threshold=1.0))
    assert checked(WithPulse(), to="onnx").supported


def test_parameters_that_a_format_cannot_hold_are_found_one_by_one() -> None:
    net = Averaged()
    with torch.no_grad():
        net.double().fc.weight[0, 0] = 1e300
        net.conv2.bias[0] = -1e300
    for target in ("onnx", "nir"):
        result = checked(net, to=target)
        assert [(name, code) for name, _, code, _ in against(result)] == [
            ("conv2", Code.TARGET_CANNOT_HOLD), ("fc", Code.TARGET_CANNOT_HOLD),
        ]  # fmt: skip


# The command.


def test_the_command_writes_nothing_and_says_yes_or_no(tmp_path: Path) -> None:
    digits = Path(shutil.copy(DIGITS, tmp_path / "digits.pt"))
    crowded = saved(tmp_path, Crowded())
    before = contents(tmp_path)
    ran = done("export", "--check", "--to", "nir", "--nir-dialect", "norse", digits, "--samples", 4)
    assert ran.out.splitlines()[-1] == "supported: --to nir --nir-dialect norse takes all 14 nodes, 7 of them changed"
    ran = dalif("export", "--check", "--to", "onnx", *crowded)
    assert ran.status == 1
    assert ran.out.splitlines()[-1] == "not supported: 7 of 16 stand in the way of --to onnx"
    assert "'act' (ReLU): [E0201] aten.relu: this operation is not supported" in ran.out
    assert f"    {line_of('act and norm')}: x = self.norm(" in ran.out
    assert "'sn2', 'sn3' (Pulse): [E0202] aten.ge: compares outside every registered neuron" in ran.out
    assert ran.err == ""
    assert contents(tmp_path) == before


def test_json_is_as_it_is_documented(tmp_path: Path) -> None:
    ran = dalif("export", "--check", "--to", "nir", "--nir-dialect", "canonical", *saved(tmp_path, Plain()), "--json")
    assert ran.status == 1
    told = ran.json()
    page = (Path(__file__).parent.parent / "docs" / "checking.md").read_text()
    nodes = told.pop("nodes")
    notes = told.pop("notes")
    assert told == {
        "supported": False, "model": str(tmp_path / "net.pth"), "target": "nir", "precision": "float32",
        "options": {"dialect": "canonical"}, "timesteps": 4,
        "counts": {"ok": 6, "changed": 3, "unsupported": 2, "unjudged": 0},
    }  # fmt: skip
    assert "readout='mean' (the default of a one-step module)" in notes
    assert nodes[2] == {
        "name": "pool1", "kind": "MaxPool2d", "verdict": "unsupported", "becomes": None,
        "reason": "NIR has no maximum, and only one of spikes can be said by a neuron; NIR cannot hold this "
        "network, ONNX may", "code": "E0206", "where": None,
        "source": None, "lines": [],
    }  # fmt: skip
    for key in (*told, "nodes", "notes", *nodes[0]):
        assert f"`{key}`" in page, key


def test_what_cannot_be_used_is_refused_as_ever(tmp_path: Path) -> None:
    shutil.copy(DIGITS, tmp_path / "digits.pt")
    check_it = ("export", "--check", "--to", "onnx")
    refused(tmp_path, Code.FILE_MISSING, *check_it, tmp_path / "gone.pt")  # type: ignore[arg-type]
    message = refused(tmp_path, Code.BAD_OPTION, *check_it, tmp_path / "digits.pt", "-o", tmp_path / "x")  # type: ignore[arg-type]
    assert "--check writes nothing; leave out -o and --force" in message
    refused(tmp_path, Code.BAD_OPTION, *check_it, tmp_path / "digits.pt", "--opset", 3)  # type: ignore[arg-type]
    refused(tmp_path, Code.BAD_OPTION, "export", "--check", "--to", "tflite", tmp_path / "digits.pt")
    (path, *model) = saved(tmp_path, Plain())
    refused(tmp_path, Code.AMBIGUOUS, *check_it, path, *model[:2])  # type: ignore[arg-type]
    refused(tmp_path, Code.WRONG_SHAPE, *check_it, path, *model[:-1], "1,9,9,9")  # type: ignore[arg-type]


def test_data_are_what_a_check_runs_on(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32))
    path, *model = saved(tmp_path, Averaged())
    done("export", "--check", "--to", "onnx", path, *model[:-2], "--data", tmp_path / "data.npy")
