"""Results files: what is stored, that a verdict follows from it again, and that nothing else is taken for one."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import dalif_deploy
from dalif_deploy.archive import Archive, ArchiveWriter
from dalif_deploy.deploy.content import content_of
from dalif_deploy.deploy.data import Data
from dalif_deploy.deploy.model import LoadOptions, open_model
from dalif_deploy.deploy.rejudging import judge_again
from dalif_deploy.deploy.results import InputsHash, Results, decide_again, is_results, open_results, writing_results
from dalif_deploy.equivalence import Outcome, Verdict, simulate
from dalif_deploy.equivalence.results import REFERENCE, Form
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.recording import Recording
from tests.graphs import GRAPHS
from tests.results import (
    ANSWERS,
    DIVERGENT,
    EXACT,
    ROUNDING,
    SIZE,
    Candidate,
    candidate,
    data,
    model_graph,
    recorded_verdict,
    refusal,
)

Contents = dict[str, Any]
Members = dict[str, bytes]
CASES = (EXACT, ROUNDING, DIVERGENT, ANSWERS)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Verdict]:
    """The results of a verification with a candidate of each kind, with its inputs."""
    path = tmp_path_factory.mktemp("stored") / "results.npz"
    return path, recorded_verdict(*CASES, path=path, keep_inputs=True)


def members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path: Path, folder: Path, change: Callable[[Members], object]) -> Path:
    """A copy in which `change` has altered the members; the checksums are right again."""
    contents = members(path)
    change(contents)
    target = folder / "changed.npz"
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return target


def text(change: Callable[[Contents], object]) -> Callable[[Members], None]:
    """A change of the JSON text."""

    def changed(contents: Members) -> None:
        entry = json.loads(contents["results.json"])
        change(entry)
        contents["results.json"] = json.dumps(entry).encode()

    return changed


def npy(values: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def array(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Members], None]:
    """A change of one array."""

    def changed(contents: Members) -> None:
        contents[f"{name}.npy"] = npy(change(np.array(np.load(io.BytesIO(contents[f"{name}.npy"])))))

    return changed


def first(value: object) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Puts `value` into the first row."""

    def changed(values: NDArray[Any]) -> NDArray[Any]:
        values[0] = value
        return values

    return changed


def recorded(case: str) -> Recording:
    """What a candidate fired, in batches as the verification ran."""
    inputs, run = data().inputs, candidate(case)
    return Recording.joined([run(inputs[start : start + SIZE]) for start in range(0, len(inputs), SIZE)])


# What is stored


def test_the_arrays_are_what_was_run(stored: tuple[Path, Verdict]) -> None:
    path, _ = stored
    inputs = data().inputs
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["inputs"], inputs)
        np.testing.assert_array_equal(file["labels"], data().labels)
        for key, case in {"reference": EXACT, **{f"runtimes.{i}": case for i, case in enumerate(CASES)}}.items():
            expected = recorded(case)
            np.testing.assert_array_equal(file[f"{key}.logits"], expected.logits)
            for name, train in expected.spikes.items():
                packed = file[f"{key}.spikes.{name}"]
                spikes = np.unpackbits(packed, axis=-1, count=train.neurons).astype(bool)
                np.testing.assert_array_equal(spikes.reshape(*packed.shape[:2], *train.shape), train.unpack())
        description = json.loads(bytes(file["results.json"]))
    assert description["data"] == {
        "origin": "six samples", "file": None, "sha256": hashlib.sha256(inputs.tobytes()).hexdigest(),
        "dtype": "float32", "shape": list(inputs.shape), "stored": True, "labels": True,
    }  # fmt: skip
    assert (description["format"], description["version"]) == ("dalif_deploy results", 1)
    assert description["tool"] == f"dalif_deploy {dalif_deploy.__version__}"
    assert [layer["name"] for layer in description["layers"]] == ["sn1", "sn2"]


def test_every_finding_is_a_row(stored: tuple[Path, Verdict]) -> None:
    path, verdict = stored
    with np.load(path, allow_pickle=False) as file:
        for place, runtime in enumerate(verdict.runtimes):
            comparison = runtime.comparison
            for kind, steps in (("origins", comparison.origins), ("uncertain", comparison.uncertain)):
                rows = {c: file[f"runtimes.{place}.{kind}.{c}"] for c in ("sample", "t", "margin", "bound", "index")}
                assert rows["sample"].tolist() == [step.sample for step in steps]
                assert rows["t"].tolist() == [step.t for step in steps]
                assert rows["margin"].tolist() == [step.margin for step in steps]
                assert rows["bound"].tolist() == [step.bound for step in steps]
                shapes = [model_graph().types[step.layer].shape for step in steps]
                flat = [int(np.ravel_multi_index(s.index, shape)) for s, shape in zip(steps, shapes, strict=True)]
                assert rows["index"].tolist() == flat
            assert file[f"runtimes.{place}.logits_beyond"].tolist() == list(comparison.logits_beyond)
        assert file["runtimes.1.origins.margin"].size > 0
        assert file["runtimes.3.logits_beyond"].tolist() == [0, 3, 4]


def test_the_model_and_the_files_are_named_by_their_hash(tmp_path: Path) -> None:
    model, exported, path = tmp_path / "model.pt", tmp_path / "net.onnx", tmp_path / "results.npz"
    dalif_deploy.export(model_graph(), model, to="pt")
    exported.write_bytes(b"a file")

    def on_a_file(verdict: Verdict) -> Verdict:
        return replace(verdict, runtimes=(replace(verdict.runtimes[0], file=str(exported)),))

    recorded_verdict(EXACT, path=path, model=model, changed=on_a_file)
    description = json.loads(members(path)["results.json"])
    assert description["model"] == {"file": "model.pt", "sha256": hashlib.sha256(model.read_bytes()).hexdigest()}
    assert description["files"] == {"net.onnx": hashlib.sha256(b"a file").hexdigest()}


def test_inputs_are_stored_only_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "results.npz"
    recorded_verdict(EXACT, path=path)
    with open_results(path) as results:
        assert "inputs" not in results.archive.names
        assert not results.data.stored
        assert results.data.shape == data().inputs.shape


@pytest.mark.parametrize(
    "inputs",
    [
        np.arange(24, dtype=np.uint8).reshape(4, 6),
        np.linspace(0, 1, 24, dtype=">f4").reshape(4, 6),
        np.asfortranarray(np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)),
        np.linspace(0, 1, 48, dtype=np.float64).reshape(8, 6)[::2],
        np.eye(4, dtype=bool),
    ],
)
def test_the_hash_is_of_little_endian_bytes_in_c_order(inputs: NDArray[Any]) -> None:
    expected = hashlib.sha256(inputs.astype(inputs.dtype.newbyteorder("<")).tobytes(order="C")).hexdigest()
    assert InputsHash.of(Data(inputs, None, "")) == expected


def test_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    for path in paths:
        recorded_verdict(ROUNDING, path=path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


# Deciding again


def test_the_verdict_follows_again_word_for_word(stored: tuple[Path, Verdict]) -> None:
    path, verdict = stored
    assert verdict.outcome is Outcome.DIVERGENT
    assert [str(runtime.outcome) for runtime in verdict.runtimes] == [EXACT, ROUNDING, DIVERGENT, DIVERGENT]
    assert verdict.runtimes[3].comparison.prediction_changes > 0
    assert decide_again(path).as_json() == verdict.as_json()


def test_strict_is_another_reading_of_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "results.npz"
    recorded_verdict(ROUNDING, path=path)
    assert decide_again(path).passes()
    assert not decide_again(path).passes(strict=True)


@pytest.mark.parametrize(
    ("column", "share", "outcomes"),
    [
        ("margin", 0.75, {1.0: "rounding", 0.8: "rounding", 0.7: "divergent", 0.001: "divergent"}),
        ("margin", -0.75, {1.0: "rounding", 0.7: "divergent"}),
        ("margin", 1.25, {1.0: "divergent"}),
        ("proved", 0.0, {1.0: "unproved", 0.5: "unproved"}),
    ],
)
def test_margins_and_bounds_decide(
    stored: tuple[Path, Verdict], tmp_path: Path, column: str, share: float, outcomes: dict[float, str]
) -> None:
    path, verdict = stored
    origin = verdict.runtimes[1].comparison.origins[0]
    value = share * origin.bound if column == "margin" else False
    changed = rewritten(path, tmp_path, array(f"runtimes.1.origins.{column}", first(value)))
    for factor, outcome in outcomes.items():
        found = decide_again(changed, bound_factor=factor).runtimes[1].comparison
        assert str(found.outcome) == outcome, factor
        counts = {str(key): count for key, count in found.samples_by_outcome.items()}
        assert counts[outcome] == (6 if outcome == "rounding" else 1)
        assert sum(counts.values()) == found.samples
        assert found.origins[0].within_bound == (outcome != "divergent")


def test_bounds_without_end_stay_so(stored: tuple[Path, Verdict], tmp_path: Path) -> None:
    changed = rewritten(stored[0], tmp_path, array("runtimes.1.origins.bound", first(np.inf)))
    origins = decide_again(changed, bound_factor=0.0).runtimes[1].comparison.origins
    assert [origin.as_json()["bound"] for origin in origins].count(None) == 1
    assert sum(origin.within_bound for origin in origins) == 1  # with a bound of 0 a tie is no rounding


def test_fewer_steps_are_uncertain_with_smaller_bounds(stored: tuple[Path, Verdict], tmp_path: Path) -> None:
    path, verdict = stored
    bounds = np.array([step.bound for step in verdict.runtimes[0].comparison.uncertain])
    changed = rewritten(path, tmp_path, array("runtimes.0.uncertain.margin", lambda m: 0.9 * bounds))
    before, after = (decide_again(changed, bound_factor=f).runtimes[0].comparison for f in (1.0, 0.5))
    assert len(before.uncertain) == len(bounds) > 0
    assert before.certified_samples == verdict.runtimes[0].comparison.certified_samples < before.samples
    assert after.uncertain == ()
    assert after.certified_samples == after.samples


@pytest.mark.parametrize("factor", [-0.1, 1.5, float("nan"), float("inf")])
def test_what_was_not_stored_cannot_be_decided(stored: tuple[Path, Verdict], factor: float) -> None:
    refusal(Code.BAD_OPTION, lambda: decide_again(stored[0], bound_factor=factor))


def test_the_spikes_are_counted_not_the_verdict_believed(stored: tuple[Path, Verdict], tmp_path: Path) -> None:
    path, verdict = stored
    counts = {"verdict": "exact", "spikes_compared": 1, "spikes_differing": 0, "samples_differing": 0, "accuracy": 1.0,
              "prediction_changes": 0, "max_logit_difference": 0.0, "logits_beyond_bound": 0,
              "certified_samples": 6}  # fmt: skip

    def lie(entry: Contents) -> None:
        for runtime in entry["verdict"]["runtimes"]:
            assert counts.keys() <= runtime.keys()
            runtime.update(counts)
        entry["verdict"].update(verdict="exact", accuracy=1.0, vacuous=["sn1"], rates={"sn1": 0.0, "sn2": 0.0})

    assert decide_again(rewritten(path, tmp_path, text(lie))).as_json() == verdict.as_json()


def test_what_no_spike_tells_is_kept(tmp_path: Path, stored: tuple[Path, Verdict]) -> None:
    difference = {"name": "fc.weight", "problem": "values differ", "elements": 1, "largest": None, "index": [0, 2]}

    def found_then(entry: Contents) -> None:
        runtimes = entry["verdict"]["runtimes"]
        runtimes[0].update(tensors_differing=[difference], file="net.onnx", synaptic_operations=7.5)
        runtimes[1].update(definition_differing=3)

    verdict = decide_again(rewritten(stored[0], tmp_path, text(found_then)))
    assert [str(runtime.outcome) for runtime in verdict.runtimes] == ["divergent"] * 4
    content = verdict.as_json()["runtimes"]
    assert content[0]["tensors_differing"] == [difference]
    assert (content[0]["file"], content[0]["synaptic_operations"]) == ("net.onnx", 7.5)
    assert content[1]["definition_differing"] == 3


@pytest.mark.parametrize("case", CASES)
def test_a_link_that_was_recorded_elsewhere_is_kept(case: str, tmp_path: Path) -> None:
    """The user's module fired on the samples that are stored with it, not on the data at hand."""
    path = tmp_path / "results.npz"
    module = replace(recorded_verdict(case).runtimes[0].comparison, name="module")

    def with_module(verdict: Verdict) -> Verdict:
        return replace(verdict, links={**verdict.links, "module": module})

    verdict = recorded_verdict(EXACT, path=path, changed=with_module)
    assert verdict.outcome is module.outcome
    assert decide_again(path).as_json() == verdict.as_json()


# Judging anew against the model


def test_stored_spikes_are_judged_anew_against_the_model(stored: tuple[Path, Verdict]) -> None:
    path, verdict = stored
    again = judge_again(path, model_graph()).as_json()
    assert again["runtimes"] == verdict.as_json()["runtimes"]
    assert again["links"]["folding"]["verdict"] == EXACT


def test_the_margins_in_the_file_are_not_believed_where_the_model_is_given(
    stored: tuple[Path, Verdict], tmp_path: Path
) -> None:
    path, verdict = stored

    def lie(contents: Members) -> None:
        array("runtimes.2.origins.bound", lambda bound: np.full_like(bound, np.inf))(contents)
        array("runtimes.3.logits_beyond", lambda samples: samples[:0])(contents)

    changed = rewritten(path, tmp_path, lie)
    assert decide_again(changed).outcome is not Outcome.DIVERGENT
    assert judge_again(changed, model_graph()).as_json()["runtimes"] == verdict.as_json()["runtimes"]


def test_without_stored_inputs_the_same_data_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "results.npz"
    verdict = recorded_verdict(ROUNDING, path=path)
    assert "--data" in refusal(Code.BAD_OPTION, lambda: judge_again(path, model_graph()))
    assert judge_again(path, model_graph(), data=data()).as_json()["runtimes"] == verdict.as_json()["runtimes"]
    more = np.concatenate([data().inputs, data().inputs])  # the first of them are those that were run
    assert judge_again(path, model_graph(), data=more).runtimes[0].comparison == verdict.runtimes[0].comparison
    other = data().inputs.copy()
    other[5, 5, 1, 2, 3] = 1.0 - other[5, 5, 1, 2, 3]
    assert "SHA-256" in refusal(Code.BAD_DATA, lambda: judge_again(path, model_graph(), data=other))
    for wrong in (data().inputs[:5], data().inputs.astype(np.float64)):
        refusal(Code.BAD_DATA, lambda wrong=wrong: judge_again(path, model_graph(), data=wrong))


def test_another_model_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    dalif_deploy.export(model_graph(), model, to="pt")
    path = tmp_path / "results.npz"
    recorded_verdict(EXACT, path=path, model=model, keep_inputs=True)
    judge_again(path, model)
    strict = tmp_path / "strict.pt"
    dalif_deploy.export(GRAPHS["ties, strict"]()[0], strict, to="pt")
    assert "model.pt" in refusal(Code.OTHER_MODEL, lambda: judge_again(path, strict))
    assert "sn3" in refusal(Code.OTHER_MODEL, lambda: judge_again(path, GRAPHS["plain"]()[0]))
    assert "timesteps" in refusal(Code.OTHER_MODEL, lambda: judge_again(path, GRAPHS["temporal spikes"]()[0]))


def test_how_a_runtime_computes_is_remembered(tmp_path: Path) -> None:
    """The same spikes have other bounds by another formula or precision."""
    forms = {"sum": Form(), "decay": Form(update="decay"), "double": Form(precision="float64"),
             "training": Form(graph="training")}  # fmt: skip
    path = tmp_path / "results.npz"
    graph, batch = GRAPHS["plain"]()
    taking_part = {name: Candidate(lambda b: simulate(graph, b), form) for name, form in forms.items()}
    pixels = Data(batch, None, "pixels")
    recorded_verdict(path=path, candidates=taking_part, model=graph, chosen=pixels, keep_inputs=True)
    with open_results(path) as results:
        assert [form for form in results.recordings.values() if form is not None] == list(forms.values())
    closest = [runtime.comparison.closest for runtime in judge_again(path, graph).runtimes]
    bounds = {name: step.bound for name, step in zip(forms, closest, strict=True) if step is not None}
    assert len(set(bounds.values())) == len(forms)
    assert bounds["double"] < bounds["sum"] < min(bounds["decay"], bounds["training"])


def test_exact_files_are_judged_on_their_grids(tmp_path: Path) -> None:
    graph, batch = GRAPHS["uint8 codes"]()
    path = tmp_path / "results.npz"
    definition = content_of(dalif_deploy.fold(graph), "exact64").definition()
    assert definition is not None
    taking_part = {"exact64": Candidate(definition.run, Form(content="exact64", precision="float64"))}
    codes = Data(batch, None, "codes")
    recorded_verdict(path=path, candidates=taking_part, model=graph, chosen=codes, keep_inputs=True)
    comparison = judge_again(path, graph).runtimes[0].comparison
    assert comparison.outcome is Outcome.EXACT
    assert comparison.closest is not None
    # Bounded by its grid and its float64 membrane: float32's bound is some 1e-7.
    assert comparison.closest.bound < 1e-8


# Files that are none


def test_nothing_is_unpickled(tmp_path: Path, stored: tuple[Path, Verdict]) -> None:
    class Boom:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    bomb = np.array([Boom()], dtype=object)
    for name in ("reference.logits", "runtimes.1.spikes.sn1", "runtimes.1.origins.t", "labels", "inputs"):
        changed = rewritten(stored[0], tmp_path, lambda c, name=name: c.update({f"{name}.npy": npy(bomb)}))
        refusal(Code.PICKLED, lambda changed=changed: decide_again(changed))
    raw = tmp_path / "raw.npz"
    raw.write_bytes(pickle.dumps(Boom()))
    refusal(Code.FOREIGN_FILE, lambda: decide_again(raw))
    assert not (tmp_path / "ran").exists()


def test_files_that_are_missing_empty_or_of_another_kind(tmp_path: Path) -> None:
    refusal(Code.FILE_MISSING, lambda: decide_again(tmp_path / "none.npz"))
    refusal(Code.FILE_MISSING, lambda: decide_again(tmp_path))
    for content, code in {b"": Code.FILE_DAMAGED, b"PK": Code.FILE_DAMAGED, b"PK\x03\x04": Code.FILE_DAMAGED,
                          b"\x93NUMPY": Code.FOREIGN_FILE, b"spikes": Code.FOREIGN_FILE}.items():  # fmt: skip
        path = tmp_path / "file.npz"
        path.write_bytes(content)
        refusal(code, lambda path=path: decide_again(path))
    model = tmp_path / "model.pt"
    dalif_deploy.export(model_graph(), model, to="pt")
    np.savez(tmp_path / "data.npz", inputs=data().inputs)
    for path in (model, tmp_path / "data.npz"):
        refusal(Code.FOREIGN_FILE, lambda path=path: decide_again(path))
        refusal(Code.FOREIGN_FILE, lambda path=path: judge_again(path, model_graph()))


def test_results_are_known_by_content(stored: tuple[Path, Verdict], tmp_path: Path) -> None:
    other = tmp_path / "results.npz"
    np.savez(other, logits=np.zeros(3))
    assert is_results(stored[0])
    assert not is_results(other)


def test_a_file_cut_anywhere_is_damaged(stored: tuple[Path, Verdict], tmp_path: Path) -> None:
    content = stored[0].read_bytes()
    for size in np.linspace(1, len(content) - 1, 60, dtype=int):
        path = tmp_path / "cut.npz"
        path.write_bytes(content[:size])
        refusal(Code.FILE_DAMAGED, lambda path=path: decide_again(path))


def test_a_changed_byte_changes_nothing_in_silence(stored: tuple[Path, Verdict], tmp_path: Path) -> None:
    """Either the file is refused, or the byte meant nothing and the verdict is the same."""
    path, verdict = stored
    content = path.read_bytes()
    rng = np.random.default_rng(5)
    expected = verdict.as_json()
    changed = tmp_path / "changed.npz"
    refused = 0
    for place in rng.integers(0, len(content), 150):
        broken = bytearray(content)
        broken[place] ^= 1 << rng.integers(8)
        changed.write_bytes(broken)
        try:
            found = decide_again(changed).as_json()
        except DalifError as error:
            assert error.code.exit_status == 2, error  # noqa: PT017
            refused += 1
        else:
            assert found == expected, place
    assert refused > 75


def swapped(contents: Members) -> None:
    contents["runtimes.1.spikes.sn1.npy"] = contents["runtimes.2.spikes.sn1.npy"]


DAMAGE: dict[str, tuple[Callable[[Members], object], Code]] = {
    "no text": (lambda c: c.pop("results.json"), Code.FOREIGN_FILE),
    "another format": (text(lambda t: t.update(format="other")), Code.FILE_DAMAGED),
    "a later version": (text(lambda t: t.update(version=2)), Code.FOREIGN_FILE),
    "no JSON": (lambda c: c.update({"results.json": b"{"}), Code.FILE_DAMAGED),
    "another JSON": (lambda c: c.update({"results.json": b"[1]"}), Code.FILE_DAMAGED),
    "no UTF-8": (lambda c: c.update({"results.json": b"\xff\xfe"}), Code.FILE_DAMAGED),
    "no layers": (text(lambda t: t.pop("layers")), Code.FILE_DAMAGED),
    "another layer": (text(lambda t: t["layers"].append({"name": "sn3", "shape": [2]})), Code.FILE_DAMAGED),
    "a layer's shape": (text(lambda t: t["layers"][0].update(shape=[6, 6])), Code.FILE_DAMAGED),
    "no verdict": (text(lambda t: t.pop("verdict")), Code.FILE_DAMAGED),
    "more samples": (text(lambda t: t["verdict"].update(samples=7)), Code.FILE_DAMAGED),
    "no samples": (text(lambda t: (t["verdict"].update(samples=0), t["data"].update(shape=[0]))), Code.FILE_DAMAGED),
    "no data": (text(lambda t: t.update(data=None)), Code.FILE_DAMAGED),
    "an unknown form": (text(lambda t: t["recordings"]["runtimes.0"].update(update="other")), Code.FILE_DAMAGED),
    "no form": (text(lambda t: t["recordings"].update({"runtimes.0": None})), Code.FILE_DAMAGED),
    "no reference": (text(lambda t: t["recordings"].pop("reference")), Code.FILE_DAMAGED),
    "a runtime less": (text(lambda t: t["verdict"]["runtimes"].pop()), Code.FILE_DAMAGED),
    "a runtime's spikes less": (text(lambda t: t["recordings"].pop("runtimes.1")), Code.FILE_DAMAGED),
    "a runtime that has no name": (text(lambda t: t["verdict"]["runtimes"][0].pop("name")), Code.FILE_DAMAGED),
    "notes that are none": (text(lambda t: t["verdict"].update(notes=3)), Code.FILE_DAMAGED),
    "no spikes": (lambda c: c.pop("runtimes.1.spikes.sn1.npy"), Code.FILE_DAMAGED),
    "no logits": (lambda c: c.pop("runtimes.1.logits.npy"), Code.FILE_DAMAGED),
    "fewer spikes": (array("runtimes.1.spikes.sn1", lambda a: a[:-1]), Code.FILE_DAMAGED),
    "other logits": (array("runtimes.1.logits", lambda a: a[:, :-1]), Code.FILE_DAMAGED),
    "logits of text": (array("runtimes.1.logits", lambda a: a.astype(str)), Code.FILE_DAMAGED),
    "labels of others": (array("labels", lambda a: a[:-1]), Code.FILE_DAMAGED),
    "other inputs": (array("inputs", lambda a: a[:, :-1]), Code.FILE_DAMAGED),
    "a spike that nothing contradicts": (
        array("runtimes.0.spikes.sn1", lambda a: a ^ np.uint8(128)), Code.FILE_DAMAGED,
    ),
    "the spikes of another runtime": (swapped, Code.FILE_DAMAGED),
    "a contradiction the other way round": (array("runtimes.1.origins.fired", lambda a: ~a), Code.FILE_DAMAGED),
    "a timestep that is none": (array("runtimes.1.origins.t", first(6)), Code.FILE_DAMAGED),
    "a sample that is none": (array("runtimes.1.origins.sample", first(6)), Code.FILE_DAMAGED),
    "a layer that is none": (array("runtimes.1.origins.layer", first(2)), Code.FILE_DAMAGED),
    "a negative layer": (array("runtimes.1.origins.layer", first(-1)), Code.FILE_DAMAGED),
    "an index that is none": (array("runtimes.1.origins.index", first(216)), Code.FILE_DAMAGED),
    "a negative bound": (array("runtimes.1.origins.bound", first(-1.0)), Code.FILE_DAMAGED),
    "a bound that is no number": (array("runtimes.1.origins.bound", first(np.nan)), Code.FILE_DAMAGED),
    "a margin that is no number": (array("runtimes.1.origins.margin", first(np.nan)), Code.FILE_DAMAGED),
    "columns of other lengths": (array("runtimes.1.origins.t", lambda a: a[:-1]), Code.FILE_DAMAGED),
    "columns of other types": (array("runtimes.1.origins.t", lambda a: a.astype(float)), Code.FILE_DAMAGED),
    "no column": (lambda c: c.pop("runtimes.1.uncertain.t.npy"), Code.FILE_DAMAGED),
    "an answer of no sample": (array("runtimes.3.logits_beyond", first(6)), Code.FILE_DAMAGED),
    "a header that claims more": (
        lambda c: c.update({"reference.logits.npy": c["reference.logits.npy"].replace(b"(6, 4)", b"(6,99)")}),
        Code.FILE_DAMAGED,
    ),
    "a header of code": (
        lambda c: c.update({"reference.logits.npy": c["reference.logits.npy"].replace(b"(6, 4)", b"(6*4,)")}),
        Code.FILE_DAMAGED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_does_not_fit_together_is_refused(name: str, stored: tuple[Path, Verdict], tmp_path: Path) -> None:
    change, code = DAMAGE[name]
    changed = rewritten(stored[0], tmp_path, change)
    assert members(changed) != members(stored[0])
    assert changed.name in refusal(code, lambda: decide_again(changed))
    refusal(code, lambda: judge_again(changed, model_graph(), data=data()))


def test_two_members_of_one_name_are_refused(stored: tuple[Path, Verdict], tmp_path: Path) -> None:
    path = tmp_path / "twice.npz"
    path.write_bytes(stored[0].read_bytes())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("reference.logits.npy", members(stored[0])["reference.logits.npy"])
    refusal(Code.FILE_DAMAGED, lambda: decide_again(path))


# Writing


def test_a_failed_verification_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> None:
        opened = open_model(model_graph(), LoadOptions())
        with writing_results(tmp_path / "results.npz", model=opened, data=data()) as writer:
            writer.add(data().inputs[:2], None, {REFERENCE: candidate(EXACT)(data().inputs[:2])})
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_checked_before_anything_runs(tmp_path: Path) -> None:
    opened = open_model(model_graph(), LoadOptions())
    existing = tmp_path / "data.npz"
    existing.write_bytes(b"mine")

    def write(path: Path, **options: Any) -> None:
        with writing_results(path, model=opened, data=replace(data(), path=existing), **options):
            pytest.fail("it should not have come so far")

    refusal(Code.OUTPUT_IS_INPUT, lambda: write(existing, force=True))
    refusal(Code.NO_FOLDER, lambda: write(tmp_path / "none" / "results.npz"))
    other = tmp_path / "other.npz"
    other.write_bytes(b"mine")
    refusal(Code.OUTPUT_EXISTS, lambda: write(other))
    assert other.read_bytes() == existing.read_bytes() == b"mine"


def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    """Written and read with 4 and with 64 batches; a batch of one recording takes 256 kB."""
    bits = np.random.default_rng(0).integers(0, 256, (32, 8, 1000), dtype=np.uint8)
    logits = np.zeros((32, 10), np.float32)

    def peaks(batches: int) -> tuple[int, int]:
        folder = tmp_path / str(batches)
        folder.mkdir()
        path = folder / "rows.npz"
        tracemalloc.start()
        writer = ArchiveWriter(folder)
        for _ in range(batches):
            for key in ("reference", "runtimes.0"):
                writer.append(f"{key}.spikes.sn", bits)
                writer.append(f"{key}.logits", logits)
        writer.write(path, {})
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        with Archive(path) as archive:
            rows = zip(*(archive.rows(name, 32) for name in archive.names), strict=True)
            assert sum(len(block[0]) for block in rows) == 32 * batches
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return written, read

    peaks(1)  # imports and caches
    few, many = peaks(4), peaks(64)
    assert many[0] < 1.1 * few[0] + 100_000
    assert many[1] < 1.1 * few[1] + 100_000


def test_rows_come_in_any_number(stored: tuple[Path, Verdict]) -> None:
    with Archive(stored[0]) as archive:
        whole = archive.read("reference.logits")
        for size in (1, 4, 5, 6, 100):
            blocks = list(archive.rows("reference.logits", size))
            assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
            np.testing.assert_array_equal(np.concatenate(blocks), whole)
        results = Results(archive)
        for size in (1, 4, 6):
            parts = [found[REFERENCE] for found in results.batches([REFERENCE], size)]
            np.testing.assert_array_equal(np.concatenate([part.logits for part in parts]), whole)


def test_arrays_in_fortran_order_are_read(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(60.0).reshape(5, 3, 4))
    np.savez_compressed(tmp_path / "a.npz", values=values)
    with Archive(tmp_path / "a.npz") as archive:
        assert archive.header("values").fortran
        np.testing.assert_array_equal(np.concatenate(list(archive.rows("values", 2))), values)
        np.testing.assert_array_equal(archive.read("values"), values)


@pytest.mark.parametrize("shape", [(2**40,), (2**40, 0), (3,), (5,), (2, 2), ()])
def test_an_array_is_as_long_as_its_header_says(shape: tuple[int, ...], tmp_path: Path) -> None:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})
    out.write(np.zeros(4).tobytes())
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("values.npy", out.getvalue())
    with Archive(tmp_path / "a.npz") as opened:
        if shape == (2, 2):
            assert opened.read("values").shape == shape
            return
        refusal(Code.FILE_DAMAGED, lambda: opened.read("values"))
        refusal(Code.FILE_DAMAGED, lambda: list(opened.rows("values", 2)))


def test_rows_of_another_kind_are_a_fault_of_ours(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path)
    writer.append("a", np.zeros((2, 3)))
    for other in (np.zeros((2, 4)), np.zeros((2, 3), np.float32)):
        refusal(Code.FAULT, lambda other=other: writer.append("a", other))
