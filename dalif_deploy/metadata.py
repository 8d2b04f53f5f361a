"""What an exported file says of itself, as strings: the same keys in ONNX's metadata_props and in NIR.

A runtime that reads a file learns from here what the format has no field for: how many timesteps, how the
input is encoded, which tensors are neuron layers, and how the readout reduces time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast, get_args

from dalif_deploy.encoding import Encoding, InputSpec
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.nodes import Array, ReadoutMode, ResetRule, ResetTiming, TensorKind, ThresholdRule

FORMAT_VERSION = "1"


def class_names_of(names: Any, classes: int | None = None) -> tuple[str, ...]:
    """Names of the classes, by index of the logits. `classes`: how many logits there are, where that is known.

    Raises `DalifError` (BAD_OPTION) for what is no sequence of strings, or not one for each logit."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise DalifError(Code.BAD_OPTION, f"class_names: {names!r} is no sequence of names; give one a logit")
    found = tuple(names)
    for place, name in enumerate(found):
        if not isinstance(name, str):
            raise DalifError(
                Code.BAD_OPTION, f"class_names[{place}] is {name!r}, of type {type(name).__name__}; give strings"
            )
    if found and classes is not None and len(found) != classes:
        raise DalifError(Code.BAD_OPTION, f"class_names: {len(found)} names for {classes} logits; give one for each")
    return found


@dataclass(frozen=True)
class LayerMetadata:
    """One neuron layer. `shape` without batch and time; parameters are numbers, or nested lists where they
    are per channel or per neuron. `alpha` and `beta` are the trained values; `v_threshold` and `v_reset` are
    those of the folded graph; `potential_scale` turns its potential into the trained model's units."""

    name: str
    shape: tuple[int, ...]
    alpha: Any
    beta: Any
    v_threshold: Any
    v_reset: Any
    reset: ResetRule
    fires_at: ThresholdRule
    potential_scale: Any
    reset_timing: ResetTiming = "now"


@dataclass(frozen=True)
class FileMetadata:
    """The metadata of one exported file; `extra` holds further entries (source hash, tool version, ...)."""

    input: InputSpec
    input_kind: TensorKind
    readout: ReadoutMode
    layers: tuple[LayerMetadata, ...]
    class_names: tuple[str, ...] = ()
    fold_log: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """The file's precision; "float32" where it says none, else of which exact sums it is."""
        return self.extra.get("precision", "float32")

    @classmethod
    def of(cls, graph: SpikingGraph, **extra: str) -> Self:
        """The metadata of a folded graph."""

        def plain(values: Array) -> Any:
            return values.tolist()

        layers = tuple(
            LayerMetadata(
                name=neuron.name,
                shape=graph.types[neuron.name].shape,
                alpha=plain(neuron.alpha if neuron.trained_alpha is None else neuron.trained_alpha),
                beta=plain(neuron.beta),
                v_threshold=plain(neuron.v_threshold),
                v_reset=plain(neuron.v_reset),
                reset=neuron.reset,
                fires_at=neuron.fires_at,
                potential_scale=plain(neuron.potential_scale),
                reset_timing=neuron.reset_timing,
            )
            for neuron in graph.neurons
        )
        return cls(
            input=graph.input_spec,
            input_kind=graph.input.kind,
            readout=graph.readout.mode,
            layers=layers,
            class_names=graph.class_names,
            fold_log=graph.history,
            extra=dict(extra),
        )

    def to_strings(self) -> dict[str, str]:
        """Flat string entries; whatever is no plain string is JSON."""
        encoding = self.input.encoding
        return {
            "dalif_deploy_format": FORMAT_VERSION,
            "timesteps": str(self.input.timesteps),
            "input": json.dumps({"shape": self.input.shape, "temporal": self.input.temporal, "kind": self.input_kind}),
            "encoding": json.dumps(
                {"kind": encoding.kind, "scale": encoding.scale, "mean": encoding.mean, "std": encoding.std}
            ),
            "readout": self.readout,
            "layers": json.dumps([vars(layer) for layer in self.layers]),
            "class_names": json.dumps(self.class_names),
            "fold_log": json.dumps(self.fold_log),
            **self.extra,
        }

    @classmethod
    def from_strings(cls, strings: Mapping[str, str], *, source: str) -> Self:
        """Read back; `source` names the file in errors. Raises `DalifError` (FOREIGN_FILE, FILE_DAMAGED)."""
        version = strings.get("dalif_deploy_format")
        if version is None:
            raise DalifError(
                Code.FOREIGN_FILE, f"{source}: not written by dalif-export (it lacks the metadata that says "
                "which tensors are neurons and how many timesteps there are); export it again from the model"
            )  # fmt: skip
        if version != FORMAT_VERSION:
            raise DalifError(
                Code.FOREIGN_FILE,
                f"{source}: metadata format {version}, this version reads {FORMAT_VERSION}; update dalif_deploy",
            )
        known = set(cls.__dataclass_fields__) | {"timesteps", "encoding", "dalif_deploy_format"}
        try:
            spec = json.loads(strings["input"])
            encoding: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in json.loads(strings["encoding"]).items()
            }
            layers = []
            for entry in json.loads(strings["layers"]):
                layers.append(LayerMetadata(**{**entry, "shape": tuple(entry["shape"])}))
                known_rules = (get_args(ResetRule), get_args(ThresholdRule), get_args(ResetTiming))
                rules = (entry["reset"], entry["fires_at"], layers[-1].reset_timing)
                if not all(rule in names for rule, names in zip(rules, known_rules, strict=True)):
                    raise ValueError("unknown reset or threshold rule")
            if strings["readout"] not in get_args(ReadoutMode):
                raise ValueError("unknown readout")
            return cls(
                input=InputSpec(
                    tuple(spec["shape"]), bool(spec["temporal"]), int(strings["timesteps"]), Encoding(**encoding)
                ),
                input_kind=spec["kind"],
                readout=cast(ReadoutMode, strings["readout"]),
                layers=tuple(layers),
                class_names=class_names_of(json.loads(strings["class_names"])),
                fold_log=tuple(json.loads(strings["fold_log"])),
                extra={key: value for key, value in strings.items() if key not in known},
            )
        except (KeyError, TypeError, ValueError, AttributeError, DalifError) as error:
            why = error.message if isinstance(error, DalifError) else f"{type(error).__name__}: {error}"
            raise DalifError(Code.FILE_DAMAGED, f"{source}: its metadata cannot be read ({why})") from error
