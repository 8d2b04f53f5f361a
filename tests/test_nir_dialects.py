"""What the records say of the simulators: every limit is one that the real package has, and docs/nir.md lists it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_args

import nir
import numpy as np
import pytest

from dalif_deploy.dialects import DIALECTS, SIMULATORS, Dialect, Limit, Refusal
from dalif_deploy.equivalence.replay import simulate
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.nir import readers, to_nir
from dalif_deploy.nir_rules import LIMITS, why_not
from dalif_deploy.nodes import Edge, Flatten, SumPool2d, frozen
from dalif_deploy.operators import reduce_time
from dalif_deploy.runtimes.registry import runtime_kind
from tests.graphs import Build, Case
from tests.nir_graphs import affine_chain, changed, one_layer, padded_pool, per_step, write

PAGE = (Path(__file__).parent.parent / "docs" / "nir.md").read_text()
REFUSALS = [(dialect, refusal) for dialect in SIMULATORS.values() for refusal in dialect.refusals]
CANONICALLY = [(dialect, refusal) for dialect, refusal in REFUSALS if not dialect.own_only]
"""Those of readers that canonical files show; test_sinabs.py shows the others."""


def one_stored_threshold() -> Case:
    """Leaks and thresholds that differ, such that (1 - beta) v_th does not."""
    beta = np.where(np.arange(32) % 2, 0.5, 0.75)
    return changed(affine_chain(0.5), "sn1", beta=frozen(beta), v_threshold=frozen(0.5 / (1.0 - beta)))


BEYOND: dict[Limit, tuple[Callable[[], Case], str]] = {
    "v_reset other than 0 in a LIF": (lambda: changed(affine_chain(0.5), "sn1", v_reset=frozen(-0.5)), "sn1"),
    "v_reset other than 0 in an IF": (lambda: changed(affine_chain(1.0), "sn1", v_reset=frozen(0.5)), "sn1"),
    "beta below 0": (lambda: affine_chain(-0.25), "sn1"),
    "beta = 0": (lambda: affine_chain(0.0), "sn1"),
    "beta = 1 as an IF": (lambda: affine_chain(1.0), "sn1"),
    "a gain almost 1": (lambda: one_layer(1.0, 9e-6, [1.0 - 5e-6, 0.5]), "sn"),
    "leaks that differ within a layer": (
        lambda: changed(affine_chain(0.5), "sn1", beta=frozen(np.linspace(0.2, 0.8, 32))), "sn1",
    ),
    "gains that differ within a layer": (one_stored_threshold, "sn1"),
    "thresholds that differ within a layer": (
        lambda: changed(affine_chain(0.5), "sn1", v_threshold=frozen(np.linspace(0.5, 1.5, 32))), "sn1",
    ),
    "a threshold below 0": (lambda: changed(affine_chain(0.5), "sn1", v_threshold=frozen(-0.5)), "sn1"),
    "a padded sum pool": (padded_pool, "pool"),
}  # fmt: skip
"""By limit: a network whose canonical file is beyond it, and the node that is."""

BY_HAND: dict[Limit, tuple[str, nir.NIRNode]] = {
    "a padded sum pool": ("pool", nir.SumPool2d(np.array([3, 3]), np.array([2, 2]), np.array([1, 1]))),
}
"""What no export writes: the node that is put into the file in the place of another."""

HELD_IN_ITS_DIALECT: set[tuple[str, Limit]] = {
    ("snntorch", "beta = 1 as an IF"),
    ("snntorch", "a gain almost 1"),
    ("sinabs", "beta = 1 as an IF"),
    *((dialect, "a padded sum pool") for dialect in SIMULATORS),
}
"""Beyond a limit in the canonical form only, or in a file that no export writes."""


def file_of(limit: Limit, folder: Path) -> tuple[nir.NIRGraph, Path]:
    """The canonical file that is beyond a limit."""
    file, path = to_nir(BEYOND[limit][0]()[0]), folder / "net.nir"
    if limit in BY_HAND:
        name, node = BY_HAND[limit]
        file.nodes[name] = node
    nir.write(str(path), file)
    return file, path


THEN_BEYOND: dict[tuple[str, Limit], Limit] = {
    ("snntorch", "gains that differ within a layer"): "thresholds that differ within a layer",
}
"""Within that limit in its dialect, but beyond another."""


def test_every_limit_has_a_rule_and_some_reader() -> None:
    assert set(get_args(Limit)) == LIMITS.keys() == BEYOND.keys() == {refusal.limit for _, refusal in REFUSALS}


@pytest.mark.parametrize("limit", BEYOND)
def test_a_limit_is_found_at_the_node_that_is_beyond_it(limit: Limit, tmp_path: Path) -> None:
    _, name = BEYOND[limit]
    found = {key for key, node in file_of(limit, tmp_path)[0].nodes.items() if LIMITS[limit](node)}
    assert name in found
    within = {"beta = 1 as an IF": affine_chain(0.999), "beta = 0": affine_chain(1e-3)}.get(limit, affine_chain(0.5))
    assert not any(LIMITS[limit](node) for node in to_nir(within[0]).nodes.values())


@pytest.mark.simulators
@pytest.mark.parametrize(("dialect", "refusal"), CANONICALLY, ids=lambda value: getattr(value, "limit", None))
def test_the_reader_itself_says_so_or_is_silent_and_wrong(dialect: Dialect, refusal: Refusal, tmp_path: Path) -> None:
    graph, batch = BEYOND[refusal.limit][0]()
    file, path = file_of(refusal.limit, tmp_path)
    if refusal.says:
        with pytest.raises((ValueError, AssertionError), match=re.escape(refusal.says)):
            per_step(dialect.call, path, batch, file)
        return
    expected = simulate(graph, batch).logits
    try:
        found = reduce_time(per_step(dialect.call, path, batch, file), graph.readout.mode)
    except RuntimeError as error:  # it read the file, and its own layers do not fit each other
        found = np.full(0, str(error))
    assert found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.shape == expected.shape or refusal.limit == "a padded sum pool"


@pytest.mark.parametrize(("dialect", "refusal"), REFUSALS, ids=lambda value: getattr(value, "limit", None))
def test_the_dialect_the_runtime_and_the_advice_refuse_it_by_name(
    dialect: Dialect, refusal: Refusal, tmp_path: Path
) -> None:
    make, name = BEYOND[refusal.limit]
    case = make()
    why = why_not(refusal, dialect)
    file, path = file_of(refusal.limit, tmp_path)
    assert why in next(reader.why for reader in readers(file) if reader.name == dialect.name)
    kind = runtime_kind(dialect.name)
    if kind.available() is None:
        with pytest.raises(DalifError) as info:
            kind.open(path)
        assert info.value.code is Code.RUNTIME_CANNOT_RUN
        assert why in info.value.message
    if (dialect.name, refusal.limit) in HELD_IN_ITS_DIALECT:
        return
    with pytest.raises(DalifError) as info:
        to_nir(case[0], dialect=dialect.name)
    assert info.value.code is Code.TARGET_CANNOT_HOLD
    assert THEN_BEYOND.get((dialect.name, refusal.limit), why) in info.value.message
    assert f"node '{name}'" in info.value.message
    assert f"the NIR dialect '{dialect.name}' cannot hold this network" in info.value.message


@pytest.mark.simulators
@pytest.mark.parametrize(("name", "limit"), sorted(HELD_IN_ITS_DIALECT))
def test_what_the_dialect_holds_all_the_same(name: str, limit: Limit, tmp_path: Path) -> None:
    graph, batch = case = BEYOND[limit][0]()
    found = runtime_kind(name).open(write(case, tmp_path, dialect=name)).run(batch)
    for layer, train in simulate(graph, batch).spikes.items():
        assert train.count() > 0
        assert train.differing(found.spikes[layer]).sum() == 0


@pytest.mark.simulators
@pytest.mark.parametrize("name", sorted(DIALECTS.keys() - {"canonical"}))
def test_sum_pools_of_spikes_are_exact_up_to_four_by_four(name: str, tmp_path: Path) -> None:
    inexact: set[int] = set()
    for side in (2, 3, 4, 5, 7):
        build = Build(71, (1, side, side), temporal=True, kind="spike")
        pool = SumPool2d(name="pool", inputs=(Edge("input"),), kernel=(side, side), stride=(side, side))
        graph = build.finish(build.add(Flatten(name="flatten", inputs=(Edge(build.add(pool)),))), mode="max")
        counts = np.arange(side * side + 1)
        spikes = (np.arange(side * side) < counts[:, None]).astype(np.float32)
        batch = np.repeat(spikes[:, None], graph.timesteps, axis=1).reshape(-1, graph.timesteps, 1, side, side)
        found = runtime_kind(name).open(write((graph, batch), tmp_path, dialect=name)).run(batch).logits[:, 0]
        if np.any(found != counts):
            inexact.add(side)
    assert inexact == {5, 7}


# ---- docs/nir.md


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its first two lines."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table][2:]


def test_the_page_lists_every_refusal_with_the_readers_words() -> None:
    assert rows("What a simulator does not take") == [
        [dialect.name, refusal.limit, refusal.does, f"`{refusal.says}`" if refusal.says else ""]
        for dialect, refusal in REFUSALS
    ]


def test_the_page_says_what_each_simulator_does() -> None:
    simulators = list(SIMULATORS.values())
    sign = {"ge": ">=", "gt": ">"}
    assert rows("What each simulator does") == [
        ["fires at", *(f"v {sign[record.fires_at]} v_threshold" for record in simulators)],
        ["timestep", *(record.dt for record in simulators)],
        ["update", *(record.decay for record in simulators)],
        ["reset", *(record.reset for record in simulators)],
        ["`r`", *(record.r for record in simulators)],
    ]
    assert f"| | {' | '.join(f'{record.name} {record.version}' for record in simulators)} |" in PAGE
    for record in simulators:
        assert all(f"- {record.name}: {quirk}\n" in PAGE for quirk in record.quirks)
        assert not record.own_only or record.own_only in PAGE
        assert f"`{record.call}`" in PAGE
        assert not record.call_with_sums or f"`{record.call_with_sums}`" in PAGE


def test_the_page_says_what_a_dialect_stores() -> None:
    names = [name for name in DIALECTS if name != "canonical"]
    below, above = "`nextafter(v', -inf)`", "`nextafter(v', inf)`"
    stored = {"gt": ["v > v_threshold", below, "v'"], "ge": ["v >= v_threshold", "v'", above]}
    assert rows("Dialects: V = v_th") == [
        [name, DIALECTS[name].tie, *stored[DIALECTS[name].fires_at]] for name in names
    ]


def test_records_say_something_in_every_field() -> None:
    for record in SIMULATORS.values():
        empty = {field.name for field in fields(record) if not getattr(record, field.name)}
        assert empty <= {"call_with_sums", "own_only", "inexact"}, record.name
