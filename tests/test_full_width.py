"""Every network of the paper at full width: captured, folded, exported to ONNX and NIR, and fired in every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from zoo import HIGHEST, LOWEST, ZOO, Calibrated, calibrated

from dalif_deploy import Data, Verdict, export, verify
from dalif_deploy.deploy import Model
from dalif_deploy.equivalence import Outcome

FEWER_TIMESTEPS = {name: 2 for name, specimen in ZOO.items() if specimen.size > 32}
"""Where the images are large; two timesteps show the leak and the reset."""


@dataclass(frozen=True)
class Exported:
    case: Calibrated
    model: Model
    onnx: Path
    nir: Path

    def verified(self, file: Path, runtimes: Sequence[str]) -> Verdict:
        return verify(self.model, file, data=Data(self.case.data, None, "seeded"), runtimes=runtimes)


@pytest.fixture(scope="module", params=ZOO)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One network with one sample; each is made once, and its tests run together."""
    name = request.param
    case = calibrated(name, samples=1, timesteps=FEWER_TIMESTEPS.get(name))
    model = case.captured()
    folder = tmp_path_factory.mktemp(name)
    for to in ("onnx", "nir"):
        export(model, folder / f"net.{to}", to=to, verified=False)
    return Exported(case, model, folder / "net.onnx", folder / "net.nir")


def is_fired_alike(verdict: Verdict) -> None:
    """No spike differs that rounding does not explain, and every layer fires enough for that to mean something."""
    module, folding = verdict.links["module"], verdict.links["folding"]
    assert folding is not None
    assert folding.outcome is Outcome.EXACT  # float64 on both sides
    assert module is not None
    judged = [module.outcome, *(runtime.outcome for runtime in verdict.runtimes)]
    assert all(outcome in (Outcome.EXACT, Outcome.ROUNDING) for outcome in judged), judged
    assert verdict.passes()
    silent = {layer: rate for layer, rate in verdict.rates.items() if not LOWEST <= rate <= HIGHEST}
    assert not silent


def test_onnx_runtime_torch_and_events_fire_the_trained_spikes(exported: Exported) -> None:
    verdict = exported.verified(exported.onnx, ("torch", "events", "onnxruntime"))
    assert [runtime.comparison.name for runtime in verdict.runtimes] == ["torch", "events", "onnxruntime"]
    is_fired_alike(verdict)


@pytest.mark.simulators
def test_spikingjelly_fires_the_trained_spikes_from_the_nir_file(exported: Exported) -> None:
    pytest.importorskip("spikingjelly")
    verdict = exported.verified(exported.nir, ("spikingjelly",))
    assert [runtime.comparison.name for runtime in verdict.runtimes] == ["spikingjelly"]
    is_fired_alike(verdict)


def test_the_onnx_file_is_its_weights_and_little_more(exported: Exported) -> None:
    weights = 4 * sum(p.numel() for p in exported.case.network.parameters())
    assert exported.onnx.stat().st_size <= weights + 2_000_000
