"""Opens an .onnx file, whole and well-formed, or says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dalif_deploy.errors import Code, DalifError

# ir_version, the first field of every ONNX file, as protobuf writes it.
ONNX_FIRST_BYTE = b"\x08"


def contradiction(model: Any) -> str | None:
    """Where a model's shapes contradict each other, by node, or None where they do not."""
    from onnx import shape_inference

    try:
        shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, ValueError) as error:  # ValueError: a type that there is not
        return str(error)
    # ONNX's inference does not look at the channels of convolutions.
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info):
        shapes[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]
    for node in inferred.node:
        data, weight = ([*shapes.get(name, ()), 0, 0] for name in (*node.input, "", "")[:2])
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        if node.op_type == "Conv" and data[1] and weight[1] and (data[1] != weight[1] * groups or weight[0] % groups):
            return f"node '{node.name}' (Conv): weight {weight[:-2]} in {groups} groups does not fit {data[1]} channels"
    return None


def unequal_split(model: Any) -> str | None:
    """The first Split that says it makes another number of outputs than it has, or None.

    ONNX's shape inference and ONNX Runtime read past the end of its outputs, which ends the whole process.
    """
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Split":
            continue
        said = [attribute.i for attribute in node.attribute if attribute.name == "num_outputs"]
        said += [sizes[name][0] for name in list(node.input)[1:2] if sizes.get(name)]
        if any(number != len(node.output) for number in said):
            return f"node '{node.name}' (Split): says it makes {said[0]} outputs, and has {len(node.output)}"
    return None


def open_onnx(path: Path) -> Any:
    """The file's ModelProto. Raises `DalifError` (FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE)."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        content = path.read_bytes()
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: cannot be read ({error.strerror})") from error
    if not content:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: empty")
    if not content.startswith(ONNX_FIRST_BYTE):
        raise DalifError(Code.FOREIGN_FILE, f"{path}: not an ONNX file")
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: truncated or damaged ({error})") from error
    # A cut between two fields leaves a readable prefix; what our exporter writes last is its metadata.
    cut = not model.opset_import or (model.producer_name == "dalif_deploy" and not model.metadata_props)
    if cut:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: truncated, it ends before its operator set or metadata")
    for tensor in model.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            raise DalifError(
                Code.FOREIGN_FILE,
                f"{path}: the values of initialiser '{tensor.name}' lie in another file; export it again",
            )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: names that are no UTF-8
        raise DalifError(Code.FILE_DAMAGED, f"{path}: fails ONNX's checks: {error}") from error
    if (what := unequal_split(model)) is not None:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: {what}; export it again")
    return model
