"""The verdict's JSON is what its schema says, and the schema describes every key of it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from dalif_deploy.deploy import verify
from dalif_deploy.equivalence import Arithmetic, Comparer, ParameterDifference, RuntimeComparison, Verdict, simulate
from dalif_deploy.equivalence.schema import SCHEMA_VERSION, verdict_schema
from tests.graphs import GRAPHS
from tests.results import ANSWERS, DIVERGENT, ROUNDING, recorded_verdict
from tests.test_packaging import installed

__all__ = ["installed"]  # the fixture, for this module too


def through_json(verdict: Verdict) -> dict[str, Any]:
    """What the command prints, read back."""
    content: dict[str, Any] = json.loads(json.dumps(verdict.as_json(), allow_nan=False))
    return content


def closed(schema: Any) -> Any:
    """A copy of the schema that allows no key which it does not describe."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        changed.setdefault("additionalProperties", False)
    return changed


OPEN = Draft202012Validator(verdict_schema())
CLOSED = Draft202012Validator(closed(verdict_schema()))


def problems(content: Any, validator: Draft202012Validator = OPEN) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content)]


@cache
def rounding() -> dict[str, Any]:
    content = through_json(recorded_verdict(ROUNDING))
    for step in ("origins", "uncertain"):  # one of a kind is enough to look at
        for comparison in (content["links"]["folding"], *content["runtimes"]):
            del comparison[step][1:]
    return content


def test_the_schema_is_one() -> None:
    schema = verdict_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schema)
    assert schema["properties"]["schema_version"] == {"const": SCHEMA_VERSION}


def test_the_verdict_of_a_verification_is_described_key_by_key(tmp_path: Path) -> None:
    graph, batch = GRAPHS["per channel"]()
    verdict = verify(graph, data=batch)
    assert {len(runtime.comparison.name) > 0 for runtime in verdict.runtimes} == {True}
    assert problems(through_json(verdict), CLOSED) == []


@pytest.mark.parametrize("case", [ROUNDING, DIVERGENT, ANSWERS])
def test_verdicts_of_every_outcome_are_described(case: str) -> None:
    verdict = recorded_verdict(case)
    comparison = verdict.runtimes[0].comparison
    assert comparison.origins or comparison.logits_beyond
    assert comparison.uncertain
    assert problems(through_json(verdict), CLOSED) == []


def test_tensors_that_differ_and_numbers_that_are_none_are_described() -> None:
    graph, batch = GRAPHS["ties"]()
    reference = simulate(graph, batch)
    comparer = Comparer("odd", graph, arithmetic=Arithmetic())
    logits = np.full_like(reference.logits, np.nan)
    comparer.add(batch, reference, type(reference)(reference.spikes, logits))
    differences = (
        ParameterDifference("conv1.weight", "values differ", 2, float("inf"), (0, 1)),
        ParameterDifference("fc1.bias", "missing in the file"),
    )
    runtime = RuntimeComparison(comparer.result(), "a runtime", "net.onnx", differences, ("a note",), 0.5, 12.5, 3)
    rates = {neuron.name: 0.0 for neuron in graph.neurons}
    verdict = Verdict(6, 6, "reference", {"module": None, "folding": None}, rates, {}, (runtime,), 0.25)
    content = through_json(verdict)
    assert content["runtimes"][0]["max_logit_difference"] is None
    assert content["runtimes"][0]["tensors_differing"][0]["largest"] is None
    assert content["vacuous"] == list(rates)
    assert problems(content, CLOSED) == []


def objects(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the objects are that have keys of their own."""
    if isinstance(content, dict):
        yield path
        for key, value in content.items():
            yield from objects(value, (*path, key))
    elif isinstance(content, list):
        for place, value in enumerate(content[:1]):
            yield from objects(value, (*path, place))


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def test_every_key_is_required() -> None:
    named_by_layer = {("rates",), ("gains",)}
    checked = 0
    for path in objects(rounding()):
        if path in named_by_layer:
            continue
        for key in at(rounding(), path):
            changed = copy.deepcopy(rounding())
            del at(changed, path)[key]
            assert problems(changed), (path, key)
            checked += 1
    assert checked > 80


def test_every_key_of_a_cause_is_required() -> None:
    content = through_json(recorded_verdict(DIVERGENT))
    assert content["runtimes"][0]["cause"]["trajectory"]
    for path in objects(content["runtimes"][0]["cause"]):
        for key in at(content["runtimes"][0]["cause"], path):
            changed = copy.deepcopy(content)
            del at(changed["runtimes"][0]["cause"], path)[key]
            assert problems(changed), (path, key)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(schema_version=2),
        lambda v: v.update(verdict="fine"),
        lambda v: v.update(samples=-1),
        lambda v: v["rates"].update(sn1=1.5),
        lambda v: v["runtimes"][0].update(max_logit_difference="0"),
        lambda v: v["runtimes"][0]["origins"][0].update(index=[-1]),
        lambda v: v["runtimes"][0]["origins"][0].update(layer=3),
        lambda v: v["runtimes"][0]["samples_by_verdict"].update(maybe=1),
        lambda v: v["links"].update(folding="exact"),
        lambda v: v["gains"].update(sn1={"alpha": "much", "beta": 0.5}),
    ],
)
def test_another_value_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    changed = copy.deepcopy(rounding())
    assert problems(changed) == []
    change(changed)
    assert problems(changed)


def test_readers_may_meet_further_keys() -> None:
    changed = copy.deepcopy(rounding())
    changed["later"] = changed["runtimes"][0]["later"] = 1
    assert problems(changed) == []
    assert problems(changed, CLOSED)


def test_the_schema_is_installed_with_the_package(installed: Path, tmp_path: Path) -> None:
    code = (
        f"import json, sys; sys.path.insert(0, {str(installed)!r})\n"
        "from dalif_deploy.equivalence import schema\n"
        f"assert schema.__file__.startswith({str(installed)!r})\n"
        "print(json.dumps(schema.verdict_schema()))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == verdict_schema()
