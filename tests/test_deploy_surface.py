"""The Python surface: what `import dalif_deploy` gives, and the verbs on modules, graphs and files."""

from __future__ import annotations

import copy
import json
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import dalif_deploy
from dalif_deploy import Code, DalifError, Data, LoadOptions
from dalif_deploy.equivalence import simulate
from tests.commands import DIGITS, Small, contents, stored_samples
from tests.graphs import GRAPHS

HEAVY = ("torch", "onnx", "onnxruntime", "nir", "h5py", "norse", "spikingjelly", "snntorch")


@pytest.fixture
def inputs() -> NDArray[np.float32]:
    return np.random.default_rng(1).random((5, 4), dtype=np.float32)


def test_every_public_name_is_there_and_no_module_hides_it() -> None:
    for found in pkgutil.walk_packages(dalif_deploy.__path__, "dalif_deploy."):
        import_module(found.name)
    for name in dalif_deploy.__all__:
        assert not isinstance(getattr(dalif_deploy, name), ModuleType), name
        assert name in dir(dalif_deploy)
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        dalif_deploy.nonesuch  # noqa: B018


@pytest.mark.parametrize("module", ["dalif_deploy", *(f"dalif_deploy.cli.{c}" for c in ("export", "verify", "run"))])
def test_importing_is_light(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_from_a_module_to_a_verdict(tmp_path: Path, inputs: NDArray[np.float32]) -> None:
    module = Small()
    notes = dalif_deploy.save(
        module, tmp_path / "m.pt", example_input=torch.from_numpy(inputs[:1]), timesteps=3, readout="sum",
        class_names=("a", "b", "c"), samples=inputs,
    )  # fmt: skip
    assert any("layout='step'" in note for note in notes)
    graph = dalif_deploy.load(tmp_path / "m.pt")
    assert (graph.timesteps, graph.readout.mode, graph.class_names) == (3, "sum", ("a", "b", "c"))
    for to in ("onnx", "nir"):
        result = dalif_deploy.export(tmp_path / "m.pt", to=to)
        assert result.output == tmp_path / f"m.{to}"
        assert result.verdict is not None
        assert str(result.verdict.outcome) == "exact"
    verdict = dalif_deploy.verify(tmp_path / "m.pt", tmp_path / "m.onnx", tmp_path / "m.nir")
    assert (str(verdict.outcome), verdict.samples, verdict.vacuous) == ("exact", 5, ())
    assert json.dumps(verdict.as_json())


def test_a_models_logits_are_the_modules(tmp_path: Path, inputs: NDArray[np.float32]) -> None:
    """The loop over T, written out by hand, against the file in ONNX Runtime."""
    module = Small().eval()
    dalif_deploy.save(module, tmp_path / "m.pt", example_input=inputs, timesteps=3)
    dalif_deploy.export(tmp_path / "m.pt", to="onnx")
    dalif_deploy.reset(module)
    with torch.no_grad():
        steps = [module(torch.from_numpy(inputs)) for _ in range(3)]
    (recording,) = dalif_deploy.run(tmp_path / "m.onnx", inputs)
    assert np.allclose(recording.logits, torch.stack(steps).mean(dim=0).numpy(), rtol=1e-5, atol=1e-6)


def test_the_verbs_take_a_module_itself(tmp_path: Path, inputs: NDArray[np.float32]) -> None:
    options = LoadOptions(timesteps=3, input_shape=(4,))
    out = tmp_path / "m.onnx"
    result = dalif_deploy.export(Small(), out, to="onnx", options=options, data=inputs)
    assert set(contents(tmp_path)) == {"m.onnx"}
    assert result.verdict is not None
    assert result.verdict.links["module"] is not None
    verdict = dalif_deploy.verify(Small(), out, data=inputs, options=options)
    module = verdict.links["module"]
    assert module is not None
    assert (str(verdict.outcome), str(module.outcome), module.samples) == ("exact", "exact", 5)
    graph = dalif_deploy.capture(Small(), example_input=inputs, timesteps=3)
    (recording,) = dalif_deploy.run(Small(), inputs, options=options)
    for name, train in simulate(graph, inputs).spikes.items():
        assert np.array_equal(recording.spikes[name].unpack(), train.unpack())


def test_the_verbs_take_a_graph(tmp_path: Path) -> None:
    graph, batch = GRAPHS["plain"]()
    dalif_deploy.export(graph, tmp_path / "m.nir", to="nir", data=batch)
    assert str(dalif_deploy.verify(graph, tmp_path / "m.nir", data=batch).outcome) == "exact"
    (recording,) = dalif_deploy.run(graph, batch)
    assert recording.operations is not None
    assert dalif_deploy.to_onnx(dalif_deploy.fold(graph)).graph.output[0].name == "logits"
    with pytest.raises(DalifError) as caught:
        dalif_deploy.export(graph, to="onnx")
    assert caught.value.code is Code.BAD_OPTION


def test_run_gives_batch_after_batch() -> None:
    sizes = [len(recording.logits) for recording in dalif_deploy.run(DIGITS, stored_samples(70))]
    assert sum(sizes) == 70
    assert len(sizes) > 1
    data = Data(stored_samples(3), None, "three")
    assert [len(recording.logits) for recording in dalif_deploy.run(DIGITS, data, runtime="torch")] == [3]


def test_read_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", inputs=stored_samples(2), labels=np.array([1, 2], np.uint8))
    data = dalif_deploy.read_data(tmp_path / "d.npz")
    assert np.array_equal(data.inputs, stored_samples(2))
    assert data.labels is not None
    assert data.labels.tolist() == [1, 2]
    np.save(tmp_path / "d.npy", stored_samples(2))
    assert dalif_deploy.read_data(tmp_path / "d.npy").labels is None


def test_paths_may_be_strings(tmp_path: Path) -> None:
    graph, _ = GRAPHS["plain"]()
    path = str(tmp_path / "m.pt")
    dalif_deploy.export(graph, path, to="pt")
    assert dalif_deploy.load(path).timesteps == graph.timesteps
    assert dalif_deploy.export(path, str(tmp_path / "m.onnx"), to="onnx").output == tmp_path / "m.onnx"


@pytest.mark.parametrize("training", [True, False])
def test_save_leaves_the_module_as_found(tmp_path: Path, inputs: NDArray[np.float32], training: bool) -> None:
    class Normed(Small):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(6)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc3(self.drop(self.sn2(self.fc2(self.sn1(self.bn(self.fc1(x)))))))

    module = Normed().train(training)
    module.fc2.weight.requires_grad_(False)
    module(torch.from_numpy(inputs)).sum().backward()  # grads, running statistics, and a state in the neurons
    module.bn.eval()  # a mode of its own
    before = copy.deepcopy(module.state_dict())
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    modes = {name: m.training for name, m in module.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in module.named_modules()}
    attributes = {name: set(vars(m)) for name, m in module.named_modules()}
    potential = module.sn1.v
    assert grads
    assert potential is not None
    potential = potential.detach().clone()
    identities = {name: id(p) for name, p in module.named_parameters()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)

    dalif_deploy.save(module, tmp_path / "m.pt", example_input=inputs, timesteps=3)

    assert torch.equal(torch.rand(3), expected)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) and after[name].dtype == before[name].dtype for name in before)
    assert {name: id(p) for name, p in module.named_parameters()} == identities
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["fc2.weight"]
    assert all(torch.equal(grads[name], p.grad) for name, p in module.named_parameters() if p.grad is not None)
    assert {name: m.training for name, m in module.named_modules()} == modes
    found = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in module.named_modules()}
    assert found == hooks
    assert {name: set(vars(m)) for name, m in module.named_modules()} == attributes
    assert module.sn1.v is not None
    assert torch.equal(module.sn1.v.detach(), potential)


def test_save_keeps_the_gains_that_the_module_computes(tmp_path: Path, inputs: NDArray[np.float32]) -> None:
    module = Small()
    with torch.no_grad():
        module.sn1.a.fill_(0.3)
        module.sn2.b.fill_(-0.7)
    dalif_deploy.save(module, tmp_path / "m.pt", example_input=inputs, timesteps=2)
    neurons = {neuron.name: neuron for neuron in dalif_deploy.load(tmp_path / "m.pt").neurons}
    assert neurons["sn1"].alpha == module.sn1.alpha.item()
    assert neurons["sn2"].beta == module.sn2.beta.item()
    assert neurons["sn1"].raw_alpha == np.float32(0.3)


def test_save_replaces_and_samples_may_be_codes(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_text("old")
    codes = np.random.default_rng(2).integers(0, 17, (6, 4)).astype(np.uint8)
    encoding = dalif_deploy.Encoding(kind="uint8", scale=1 / 16)
    dalif_deploy.save(Small(), path, example_input=codes, timesteps=2, encoding=encoding, samples=codes)
    verdict = dalif_deploy.verify(path)
    assert (str(verdict.outcome), verdict.samples) == ("exact", 6)
    floats = (codes / 16).astype(np.float32)
    first, second = next(dalif_deploy.run(path, codes)), next(dalif_deploy.run(path, floats))
    assert np.array_equal(first.logits, second.logits)


def test_save_looks_at_the_output_before_it_runs_anything(tmp_path: Path, inputs: NDArray[np.float32]) -> None:
    class Slow(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("it ran")

    for path in (tmp_path / "no" / "m.pt", tmp_path):
        with pytest.raises(DalifError) as caught:
            dalif_deploy.save(Slow(), path, example_input=inputs, timesteps=2)
        assert caught.value.code is Code.NO_FOLDER


def test_a_module_in_float64(tmp_path: Path, inputs: NDArray[np.float32]) -> None:
    dalif_deploy.save(Small().double(), tmp_path / "m.pt", example_input=inputs, timesteps=2)
    verdict = dalif_deploy.verify(tmp_path / "m.pt")
    assert str(verdict.outcome) == "exact"
    assert verdict.links["module"] is not None


def test_errors_are_one_line_with_a_code(tmp_path: Path) -> None:
    with pytest.raises(DalifError) as caught:
        dalif_deploy.load(tmp_path / "gone.pt")
    assert caught.value.code is Code.FILE_MISSING
    assert str(caught.value) == f"[E0102] {tmp_path / 'gone.pt'}: No such file or directory; check the path"
    assert str(DalifError(Code.FAULT, "two\n  lines")) == "[E0301] two lines"


@pytest.mark.parametrize("verb", ["export", "check"])
def test_how_a_model_is_read_is_no_option_of_a_format(verb: str, tmp_path: Path, inputs: NDArray[np.float32]) -> None:
    """Told before the model is opened, which would say that timesteps are missing."""
    out = {"path": tmp_path / "net.onnx"} if verb == "export" else {}
    call = dalif_deploy.export if verb == "export" else import_module("dalif_deploy.deploy").check
    with pytest.raises(DalifError, match=r"timesteps: .* options=LoadOptions\(timesteps=\.\.\.\)"):
        call(Small(), to="onnx", timesteps=3, example_input=torch.from_numpy(inputs), **out)
    with pytest.raises(DalifError, match="--opsett is not for --to onnx"):
        call(Small(), to="onnx", opsett=19, **out)
    assert not list(tmp_path.iterdir())
