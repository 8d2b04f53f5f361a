"""Every NIR dialect in its simulator, and the canonical form in all, on networks with every kind of leak: no spike
differs but by rounding within the simulator's bound, or the file is refused for a reason that is permitted."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import conformance
import nir
import pytest
from conformance import REASONS, SIMULATORS, Cell, cell, cells, files, made, numbers_of, page
from conformance_networks import BETAS, NETWORKS

from dalif_deploy import nir_io
from dalif_deploy.dialects import CANONICAL, DIALECTS
from dalif_deploy.equivalence import simulate
from dalif_deploy.exporters.nir import to_nir
from dalif_deploy.nir_rules import why_not
from tests.test_nir_refusals import permitted

SAMPLES = 1
"""Of digits and of noise each; the table in docs/ has more."""

REFUSED: dict[tuple[str, str, float], str] = {
    ("spikingjelly", "spikingjelly", 0.0): "beta = 0",
    ("spikingjelly", "spikingjelly", -0.25): "beta below 0",
    ("snntorch", "snntorch", -0.25): "beta below 0",
    ("sinabs", "sinabs", -0.25): "beta below 0",
    ("canonical", "spikingjelly", 0.0): "beta = 0",
    ("canonical", "spikingjelly", -0.25): "beta below 0",
    ("canonical", "snntorch", -0.25): "beta below 0",
    ("canonical", "snntorch", 1.0): "beta = 1 as an IF",
}
"""By dialect, simulator and leak: what is refused of every network. All else is fired."""


@pytest.fixture(autouse=True)
def _files_are_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files just written are not read in a process of their own first, which would be most of the time taken here."""
    monkeypatch.setattr(nir_io, "check_readable", lambda path: None)


@pytest.mark.simulators
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_simulator_fires_the_spikes_or_the_file_is_refused_for_a_permitted_reason(
    network: str, beta: float, tmp_path: Path
) -> None:
    specimen, reference = made(network, beta, SAMPLES)
    for _, simulator in files():
        pytest.importorskip(simulator)
    for (dialect, simulator), found in zip(files(), cells(specimen, reference, tmp_path), strict=True):
        if limit := REFUSED.get((dialect, simulator, beta)):
            assert found.verdict == "refused", (dialect, simulator)
            assert [REASONS[number - 1][1].limit for number in found.reasons] == [limit]
            assert dialect == CANONICAL.name or permitted(found.note, dialect)
        else:
            assert found.verdict in ("exact", "rounding"), (dialect, simulator, found.note)
            assert (sum(found.differing) > 0) == (found.origins > 0) == (found.verdict == "rounding")


def test_all_dialects_and_all_simulators_are_in_the_table() -> None:
    assert {dialect for dialect, _ in files()} == DIALECTS.keys()
    assert {simulator for _, simulator in files()} == DIALECTS.keys() - {CANONICAL.name}


def test_the_networks_are_what_they_are_called() -> None:
    def kinds(name: str) -> list[str]:
        return [type(node).__name__ for node in to_nir(made(name, 0.5, SAMPLES)[0].folded).nodes.values()]

    assert "SumPool2d" in kinds("conv-sumpool")
    assert "AvgPool2d" not in kinds("conv-sumpool")
    assert kinds("conv-avgpool").count("AvgPool2d") == 2
    for name, branches in (("identity residual", 3), ("two-branch residual", 4)):
        assert kinds(name).count("Conv2d") == branches
        file = to_nir(made(name, 0.5, SAMPLES)[0].folded)
        assert sum(target == "sn2" for _, target in file.edges) == 2
    assert kinds("narrow ResNet-20").count("LIF") == 19


@pytest.mark.simulators
@pytest.mark.parametrize("simulator", sorted(DIALECTS.keys() - {CANONICAL.name}))
def test_a_wrong_file_is_called_wrong(simulator: str, tmp_path: Path) -> None:
    """A file of a network with another leak, which fires other spikes, is no rounding."""
    pytest.importorskip(simulator)
    specimen, reference = made("identity residual", 0.5, SAMPLES)
    other = made("identity residual", 0.9, SAMPLES)[0].folded
    nir.write(str(path := tmp_path / "net.nir"), to_nir(other, dialect=simulator))
    found = cell(specimen, reference, path, simulator)
    assert (found.verdict, str(found)) == ("wrong", "**wrong**")


def test_differing_spikes_are_counted_apart_on_digits_and_noise() -> None:
    specimen, reference = made("conv-sumpool", 0.5, SAMPLES)
    other = simulate(made("conv-sumpool", 0.9, SAMPLES)[0].graph, specimen.batch)
    digits, noise = conformance._differing(reference, other, specimen.real)
    each = [
        sum(int((t.unpack()[n] != other.spikes[name].unpack()[n]).sum()) for name, t in reference.spikes.items())
        for n in (0, 1)
    ]
    assert [digits, noise] == each
    assert min(each) > 0


def test_reasons_are_numbered_and_others_are_not_reasons() -> None:
    for number, (name, refusal) in enumerate(REASONS, 1):
        reason = f"node 'a' (LIF): {why_not(refusal, SIMULATORS[name])}"
        assert numbers_of(f"{reason} (and 3 more); the NIR dialect {name!r} cannot hold it", name) == (number,)
        assert numbers_of(f"x.nir: {name} does not read it as it is meant: {reason}", name) == (number,)
        assert numbers_of(f"{reason}; node 'b' (Conv2d): NIR cannot say it; more", name) is None
    assert numbers_of("the simulator norse is not installed", "norse") is None


def test_the_page_has_a_row_for_every_network_and_leak_and_a_column_for_every_file() -> None:
    cells = [Cell("exact"), Cell("rounding", (2, 3), 4), Cell("refused", reasons=(1, 2)), Cell("wrong")]
    row = [cells[n % 4] for n in range(len(files()))]
    text = page(dict.fromkeys(product(NETWORKS, BETAS), row), SAMPLES)
    shown = re.findall(
        r"^\| ([^|]+) \| ([-.\d]+) \| exact \| rounding \(2 \+ 3 of 4\) \| refused \(1, 2\) \|", text, re.M
    )
    assert shown == [(network, f"{beta:g}") for network, beta in product(NETWORKS, BETAS)]


def test_the_page_in_the_docs_is_of_this_table() -> None:
    """Its rows, columns and reasons are today's, nothing in it is wrong, and it names the versions measured."""
    text = conformance.TARGET.read_text()
    columns = [simulator if dialect == simulator else f"{simulator}, {dialect}" for dialect, simulator in files()]
    assert f"| network | beta | {' | '.join(columns)} |" in text
    assert all(f"\n| {network} | {beta:g} | " in text for network, beta in product(NETWORKS, BETAS))
    assert "**wrong** |" not in text
    for number, name, limit in re.findall(r"^\| (\d+) \| (\w+) \| ([^|]+) \|", text, re.M):
        assert (name, limit) == (REASONS[int(number) - 1][0], REASONS[int(number) - 1][1].limit)
    assert all(f"{name} {SIMULATORS[name].version}" in text for name in columns if name in SIMULATORS)
    assert f"nir {nir.__version__}," in text
