"""The paper's networks, with few channels, in the dialects of the NIR simulators, and fired in them."""

from __future__ import annotations

from pathlib import Path

import nir
import pytest

from dalif_deploy import nir_io
from dalif_deploy.equivalence import Arithmetic, Comparer, Outcome
from dalif_deploy.errors import DalifError
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.runtimes.registry import runtime_kind
from tests.test_networks import LAYERS_FIRE, RECIPES, captured
from tests.test_nir_refusals import permitted


@pytest.mark.simulators
@pytest.mark.parametrize("dialect", ["spikingjelly", "snntorch", "sinabs"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_simulator_fires_the_trained_spikes_from_a_file_in_its_dialect(
    name: str, dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file just written is not read in a process of its own first.
    monkeypatch.setattr(nir_io, "check_readable", lambda path: None)
    pytest.importorskip(dialect)
    case, kind, path = captured(name), runtime_kind(dialect), tmp_path / "net.nir"
    assert all(LAYERS_FIRE[0] <= rate <= LAYERS_FIRE[1] for rate in case.rates.values())
    if name == "resnet20 at an odd size":
        with pytest.raises(DalifError, match="its averages leave out the padding") as refused:
            to_nir(case.folded, dialect=dialect)
        assert permitted(refused.value.message, dialect)
        return
    nir.write(str(path), to_nir(case.folded, dialect=dialect))
    recording = kind.open(path).run(case.batch)
    arithmetic = Arithmetic(kind.precision, kind.update, pools=kind.pools)
    comparer = Comparer(dialect, case.folded, arithmetic=arithmetic, reference=case.graph)
    comparer.add(case.batch, case.reference, recording)
    result = comparer.result()
    assert result.outcome <= Outcome.ROUNDING, result.origins[:3]
    assert result.spikes_compared == sum(train.neuron_steps for train in case.reference.spikes.values())
