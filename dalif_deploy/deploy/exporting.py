"""export: a trained model becomes a file, folded with proof, read back, and verified before it is there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dalif_deploy.certificate import CertificateCheck, check_certificate
from dalif_deploy.contents import TOOL, Compared
from dalif_deploy.deploy.content import content_of
from dalif_deploy.deploy.data import Data, Progress, as_data, check_samples, rounded_inputs, seeded_data
from dalif_deploy.deploy.files import check_output, check_suffix, sha256, written_whole
from dalif_deploy.deploy.model import LoadOptions, Model, open_model
from dalif_deploy.deploy.proof import prove_folding
from dalif_deploy.deploy.saving import write_model
from dalif_deploy.deploy.verifying import verify
from dalif_deploy.dialects import DIALECTS
from dalif_deploy.equivalence import RuntimeComparison, Verdict, compare_parameters
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.exporters.registry import file_format, format_names
from dalif_deploy.graph import SpikingGraph

# What `save` and `capture` call how a model is read, and the field of LoadOptions that says it here.
_OF_LOADING = {
    "example_input": "examples", "timesteps": "timesteps", "layout": "layout", "readout": "readout",
    "temporal": "temporal", "input_shape": "input_shape", "adapter": "adapter", "state_key": "state_key",
}  # fmt: skip


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    `verdict`: of the file, None where it was not verified. `notes`: what was inferred, folded or should be
    known by whoever uses the file, one line each.
    """

    output: Path
    target: str
    timesteps: int
    sha256: str
    verdict: Verdict | None
    notes: tuple[str, ...]
    precision: str = "float32"
    graph: str = "unrolled"

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "output": str(self.output),
            "target": self.target,
            "precision": self.precision,
            "graph": self.graph,
            "timesteps": self.timesteps,
            "verdict": None if self.verdict is None else str(self.verdict.outcome),
            "sha256": self.sha256,
        }


def export(
    model: str | Path | torch.nn.Module | SpikingGraph | Model,
    path: str | Path | None = None,
    *,
    to: str,
    options: LoadOptions | None = None,
    data: Data | Any = None,
    samples: int | None = None,
    verified: bool = True,
    force: bool = False,
    precision: str = "float32",
    progress: Progress | None = None,
    **format_options: Any,
) -> ExportResult:
    """Fold a model, write it as `to` ("onnx", "nir" or "pt"), and verify the file before it takes its name.

    `path`: where to; None takes the model's own stem, beside it. `data`, `samples`: as for `verify`; a module that is
    captured here is captured on that data, of which a model.pt then holds the first samples.
    `verified`: compare the written file with the model; a divergent file is not kept. `force`: replace an
    existing file (never the model). `precision`: "float32"; or "exact" or "exact64", for ONNX files whose sums no
    order of summation can change (docs/exactness.md, L3). `format_options`: "opset" and "outputs" for onnx,
    "dialect" for nir.
    Raises `DalifError`: what opening the model raises; UNSUPPORTED_LAYER, TARGET_CANNOT_HOLD, FOLD_MISMATCH,
    EXPORT_DIVERGES (as `DivergentError`), FAULT where the certificate of an exact file does not hold, OUTPUT_EXISTS,
    OUTPUT_IS_INPUT, NO_FOLDER, BAD_OPTION.
    """
    check_samples(samples)
    if to not in (known := (*format_names(), "pt")):
        raise DalifError(Code.BAD_OPTION, f"--to {to}: unknown; there are {', '.join(known)}")
    check_format_options(to, format_options)
    given = None if data is None else as_data(data)
    opened = open_model(model, options or LoadOptions(), given)
    if given is not None:
        opened = replace(opened, notes=(*given.notes, *opened.notes))
    suffix = ".pt" if to == "pt" else file_format(to).suffix
    target = _target(opened, path, suffix)
    check_output(target, model=opened.path, force=force, data=None if given is None else given.path)
    check_suffix(target, suffix, what=f"--to {to}")
    if to == "pt":
        return _to_pt(opened, target)
    format_ = file_format(to)
    if precision not in format_.precisions:
        raise DalifError(
            Code.BAD_OPTION, f"--precision {precision}: {to} files hold {' or '.join(format_.precisions)} only"
        )
    chosen = opened.data(samples) if given is None else given.first(samples)
    if precision != "float32" and verified:
        chosen = _whole_numbers(opened, chosen, given=given is not None)
    opened.graph.input_spec.module_input(chosen.inputs[:1])  # a wrong shape is told before anything is folded
    folded, proof = prove_folding(opened.graph, chosen.batches())
    metadata = {"tool": TOOL}
    if opened.sha256 is not None:
        metadata["source_sha256"] = opened.sha256
    metadata.update(opened.answers)
    held = content_of(folded, precision, two_slices=format_.two_slices)
    content = held.object(format_, metadata=metadata, **format_options)
    verdict = None
    with written_whole(target) as temporary:
        format_.write(content, temporary)
        _check_read_back(target, format_.compared(content, format_.read(temporary)))
        if precision != "float32":
            _check_certificate(target, check_certificate(temporary))
        if verified:
            verdict = verify(opened, temporary, data=chosen, progress=progress)
            verdict = _named(verdict, temporary, target)
            if not verdict.passes():
                raise DivergentError(target, verdict)
        digest = sha256(temporary)
    notes = dict.fromkeys(
        (
            *rounded_inputs(chosen),
            *opened.notes,
            *held.notes,
            *format_.details(content),
            *(verdict.notes if verdict else ()),
            *((f"smallest margin: {proof.closest.in_words}",) if proof.closest else ()),
        )
    )
    return ExportResult(target, to, opened.graph.timesteps, digest, verdict, tuple(notes), precision)


def _whole_numbers(model: Model, data: Data, *, given: bool) -> Data:
    """`data` where an exact file takes them; where the samples stored with a model of codes are none, seeded codes."""
    if model.graph.encoding.kind != "uint8" or data.inputs.dtype == np.uint8:
        return data
    if given:
        raise DalifError(
            Code.BAD_DATA,
            f"{data.path or 'data'}: {data.inputs.dtype}; an exact file of this model takes the uint8 codes "
            "themselves, so give those as --data, or leave it out",
        )
    seeded = seeded_data(model.graph.input_spec, len(data.inputs))
    return replace(seeded, origin=f"{seeded.origin} of codes, since {data.origin} are none (--data takes yours)")


class DivergentError(DalifError):
    """The file that was written does not fire as the model; it was not kept. `verdict` says where."""

    def __init__(self, path: Path, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(
            Code.EXPORT_DIVERGES, f"{path}: not written, since it is {verdict.outcome}: {first_difference(verdict)}"
        )


def _check_certificate(target: Path, check: CertificateCheck) -> None:
    """What is written as exact must hold for the code that shares nothing with the exporter."""
    if not check.holds:
        raise DalifError(
            Code.FAULT, f"{target}: not written, since its certificate does not hold: {check.findings[0]}; this is a "
            "fault of dalif_deploy, please report it"
        )  # fmt: skip


def first_difference(verdict: Verdict) -> str:
    """Where the worst comparison first goes wrong, in one phrase."""
    for runtime in verdict.runtimes:
        if runtime.outcome == verdict.outcome:
            if runtime.comparison.origins:
                origin = runtime.comparison.origins[0]
                return (
                    f"in {runtime.comparison.name}, layer '{origin.layer}' step {origin.t} index {list(origin.index)} "
                    f"of sample {origin.sample} (margin {origin.margin:.3g}, bound {origin.bound:.3g})"
                    f"{_dialect_advice(runtime.comparison.name) if origin.margin == 0.0 else ''}"
                )
            if runtime.comparison.logits_beyond_bound:
                return f"in {runtime.comparison.name}, the logits are not what the spikes amount to"
            if runtime.tensors_differing:
                difference = runtime.tensors_differing[0]
                return f"tensor {difference.name} {difference.problem}"
            if runtime.contents_differing:
                return str(runtime.contents_differing[0])
    return "see the verdict"


def _dialect_advice(runtime: str) -> str:
    """Where potentials meet the threshold, and a simulator decides that by a rule of its own."""
    if runtime not in DIALECTS:
        return ""
    return f"; for {runtime}, --nir-dialect {runtime} writes thresholds that a potential at the threshold reaches"


def _target(model: Model, path: str | Path | None, suffix: str) -> Path:
    if path is not None:
        return Path(path)
    if model.path is None:
        raise DalifError(Code.BAD_OPTION, "no output path: give one, since the model does not come from a file")
    return model.path.with_suffix(suffix)


def _to_pt(model: Model, target: Path) -> ExportResult:
    write_model(model, target)
    return ExportResult(target, "pt", model.graph.timesteps, sha256(target), None, model.notes)


def check_format_options(to: str, format_options: Collection[str]) -> None:
    """That the format `to` has these options. Raises `DalifError` (BAD_OPTION)."""
    known: Collection[str] = () if to == "pt" else file_format(to).options
    for option in format_options:
        if option in _OF_LOADING:
            raise DalifError(
                Code.BAD_OPTION,
                f"{option}: says how the model is read; give it as options=LoadOptions({_OF_LOADING[option]}=...)",
            )
        if option not in known:
            # The commands call the dialect --nir-dialect; all other options are called the same.
            shown = {"dialect": "--nir-dialect"}.get(option, f"--{option}")
            raise DalifError(Code.BAD_OPTION, f"{shown} is not for --to {to}; leave it out")


def _check_read_back(path: Path, compared: Compared) -> None:
    tensors = compare_parameters(compared.expected, compared.found)
    for difference in tensors:
        raise DalifError(
            Code.FAULT, f"{path}: read back, tensor {difference.name} is not what was written: {difference.problem}"
        )
    for found in compared.differences:
        raise DalifError(Code.FAULT, f"{path}: read back, it is not what was written: {found}")


def _named(verdict: Verdict, temporary: Path, target: Path) -> Verdict:
    """The verdict with the file's final name in place of the temporary one."""

    def rename(text: str) -> str:
        return text.replace(str(temporary), str(target))

    def renamed(runtime: RuntimeComparison) -> RuntimeComparison:
        notes = tuple(rename(note) for note in runtime.notes)
        file = None if runtime.file is None else rename(runtime.file)
        return replace(runtime, file=file, notes=notes, description=rename(runtime.description))

    return replace(
        verdict,
        runtimes=tuple(renamed(runtime) for runtime in verdict.runtimes),
        notes=tuple(rename(note) for note in verdict.notes),
    )
