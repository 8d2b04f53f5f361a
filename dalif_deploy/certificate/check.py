"""Checks the certificate of an exact file, ONNX or NIR, against the file alone.

The certificate says, for each convolution and linear layer, in which form it is written, on which grid its sums
lie, how far they can reach and what they must not exceed. All of it is recomputed here from the weights and
operators in the file, in whole numbers, by code that shares nothing with what wrote it; see `onnx_walk` and
`nir_walk`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from dalif_deploy.certificate.layers import LayerSums
from dalif_deploy.certificate.nir_walk import NirWalk
from dalif_deploy.certificate.onnx_walk import Walk
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.nir_io import open_nir

HDF5 = b"\x89HDF"
"""How a .nir file begins."""
LIMIT_OF = {"slices": 2**24, "planes": 2**53}
MEMBRANES = {"exact": "float32", "exact64": "float64"}
FIELDS = ("node", "form", "exponents", "largest", "limit", "inputs_maximum", "weights")


@dataclass(frozen=True)
class CheckedLayer:
    """What was recomputed of one layer with weights.

    `form`: "slices2" and so on; `exponents`: the k of the grid 2^-k of every output channel, 0 where all is zero;
    `largest`: how far its sums can reach, in units of a digit's grid; `limit`; `inputs_maximum`: of what it reads;
    `weights`: the SHA-256 of its weights, in ascending order within each output channel, and of its biases.
    """

    node: str
    form: str
    exponents: tuple[int, ...]
    largest: int
    limit: int
    inputs_maximum: int
    weights: str

    def as_json(self) -> dict[str, Any]:
        """Plain types only, with the keys of the certificate."""
        return {**vars(self), "exponents": list(self.exponents)}


@dataclass(frozen=True)
class CertificateCheck:
    """The result. `findings`: one line for everything that is not as the certificate says, or is not exact."""

    precision: str
    layers: tuple[CheckedLayer, ...]
    findings: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the file is what its certificate says, and every sum in it is exact."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """Plain types only."""
        return {
            "holds": self.holds,
            "precision": self.precision,
            "layers": [layer.as_json() for layer in self.layers],
            "findings": list(self.findings),
        }


def check_certificate(path: str | Path) -> CertificateCheck:
    """Recompute the certificate of the .onnx or .nir file at `path`.

    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED (also a certificate that cannot be read), FOREIGN_FILE for
    another file, and for one that holds no certificate.
    """
    path = Path(path)
    begins = _begins(path)
    graph: Any
    if begins == HDF5:
        graph, _ = open_nir(path)
        entries = {key: value for key, value in graph.metadata.items() if isinstance(value, str)}
    else:
        model = _read(path)
        graph, entries = model.graph, {entry.key: entry.value for entry in model.metadata_props}
    if "certificate" not in entries or entries.get("precision") not in MEMBRANES:
        raise DalifError(
            Code.FOREIGN_FILE, f"{path}: holds no certificate; export it with precision 'exact' or 'exact64'"
        )
    precision = entries["precision"]
    try:
        claimed = _claims(json.loads(entries["certificate"]))
        codes = json.loads(entries["encoding"])["kind"] == "uint8"
    except (KeyError, TypeError, ValueError) as error:
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: its certificate cannot be read ({type(error).__name__}: {error})"
        ) from error
    maximum = 255 if codes else 1
    walk: Walk | NirWalk
    if begins == HDF5:
        walk = NirWalk(graph, entries, input_maximum=maximum)
    else:
        walk = Walk(graph, input_maximum=maximum, membrane=MEMBRANES[precision])
    walk.run()
    layers = tuple(_checked(name, found) for name, found in walk.layers.items())
    return CertificateCheck(precision, layers, (*walk.findings, *_differences(claimed, layers)))


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(HDF5))
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: cannot be read ({error.strerror})") from error


def _read(path: Path) -> Any:
    content = path.read_bytes()
    if not content.startswith(b"\x08"):  # ir_version, the first field of every ONNX file
        raise DalifError(Code.FOREIGN_FILE, f"{path}: neither an ONNX nor a NIR file")
    try:
        model = onnx.load_model_from_string(content)
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise DalifError(Code.FOREIGN_FILE, f"{path}: its weights lie in another file; export it again")
        onnx.checker.check_model(model)
        _require_whole_splits(model, path)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except DalifError:
        raise
    except Exception as error:  # protobuf's and ONNX's own, which share no base class
        raise DalifError(Code.FILE_DAMAGED, f"{path}: cannot be read as ONNX ({error})") from error


def _require_whole_splits(model: Any, path: Path) -> None:
    # ONNX's shape inference reads past the end of a Split's outputs, which ends the whole process.
    for node in model.graph.node:
        said = next((attribute.i for attribute in node.attribute if attribute.name == "num_outputs"), len(node.output))
        if node.op_type == "Split" and said != len(node.output):
            raise DalifError(
                Code.FILE_DAMAGED,
                f"{path}: node '{node.name}' (Split): says it makes {said} outputs, and has {len(node.output)}; "
                "export it again",
            )


def _claims(entries: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(entries, list):
        raise TypeError("it is no list")
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != set(FIELDS):
            raise ValueError(f"an entry does not have the fields {', '.join(FIELDS)}")
        if entry["node"] in found:
            raise ValueError(f"'{entry['node']}' stands in it twice")
        found[entry["node"]] = entry
    return found


def _checked(name: str, found: LayerSums) -> CheckedLayer:
    exponents = tuple(0 if exponent is None else exponent for exponent in found.exponents)
    limit = LIMIT_OF[found.form[:6]]
    return CheckedLayer(name, found.form, exponents, found.largest, limit, found.inputs_maximum, found.digest())


def _differences(claimed: dict[str, dict[str, Any]], layers: tuple[CheckedLayer, ...]) -> list[str]:
    lines = []
    recomputed = {layer.node: layer for layer in layers}
    for name in claimed:
        if name not in recomputed:
            lines.append(f"'{name}': stands in the certificate, but no such layer's sums are in the file")
    for name, layer in recomputed.items():
        if name not in claimed:
            lines.append(f"'{name}': is in the file, but not in its certificate")
            continue
        for key, value in layer.as_json().items():
            said = claimed[name][key]
            if said != value or type(said) is not type(value):
                lines.append(f"'{name}': the certificate says {_shown(key, said, value)}")
        if layer.largest > layer.limit:
            lines.append(f"'{name}': its sums reach {layer.largest}, beyond {layer.limit}")
    return lines


def _shown(key: str, said: Any, value: Any) -> str:
    if isinstance(said, list) and isinstance(value, list) and len(said) == len(value):
        i = next(i for i, pair in enumerate(zip(said, value, strict=True)) if pair[0] != pair[1])
        return f"{key}[{i}] = {said[i]}, the file's is {value[i]}"
    return f"{key} = {said}, the file's is {value}"
