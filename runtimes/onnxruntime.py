"""An exported .onnx file in ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError
from dalif_deploy.metadata import FileMetadata, LayerMetadata
from dalif_deploy.onnx_io import contradiction, open_onnx
from dalif_deploy.recording import Recording, SpikeTrain

INPUT = "input"
LOGITS = "logits"

OPTIMIZATIONS: Mapping[str, str] = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""The graph optimisation levels by name, and ONNX Runtime's own names for them."""

# TensorProto.UINT8, without importing onnx for it.
BYTES = 2


def available() -> str | None:
    """None where ONNX Runtime is installed, else the command that installs it."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"pip install {' '.join(missing)}" if missing else None


class OnnxRuntime:
    """Runs a file written by the ONNX exporter.

    `path`: the file. `threads`: how many ONNX Runtime computes with; None lets it take one a core.
    `optimization`: "disable", "basic", "extended" or "all", its graph optimisation level, which may change
    the last bits of a convolution.

    The logits are those of the file as it is, and so are the spikes where it gives them as outputs
    `<layer>/spikes`. The spikes of other layers come from a copy made in memory whose only difference is that
    every layer's spikes of every timestep are outputs too. Since outputs can keep the optimiser from fusing
    operators, both are run on every batch and their logits compared: where a bit differs, `notes` gets a line that
    says how many values and by how much, and `description` mentions it; the spikes then are the copy's. Where an
    output `<layer>/spikes` is not what the copy says of its layer, `notes` gets a line too.

    A file of precision "exact" or "exact64" takes uint8: data must be the uint8 codes where the encoding is
    uint8, or spikes. Its logits are float32 or float64.

    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE (another ONNX file, or one that lacks a
    layer's spikes, named), BAD_OPTION, MISSING_PACKAGE; RUNTIME_CANNOT_RUN where ONNX Runtime refuses it,
    FILE_DAMAGED where that is because its shapes contradict each other.
    """

    name = "onnxruntime"

    def __init__(self, path: str | Path, *, threads: int | None = None, optimization: str = "all") -> None:
        if command := available():
            raise DalifError(Code.MISSING_PACKAGE, f"onnxruntime: not installed; run: {command}")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise DalifError(Code.BAD_OPTION, f"threads = {threads!r}: give a whole number of at least 1")
        if optimization not in OPTIMIZATIONS:
            raise DalifError(Code.BAD_OPTION, f"optimization {optimization!r}: give {', '.join(OPTIMIZATIONS)}")
        self.path = Path(path)
        self.notes: list[str] = []
        self._changed = False
        self._threads = threads
        self._optimization = optimization
        model = open_onnx(self.path)
        strings = {entry.key: entry.value for entry in model.metadata_props}
        self.metadata = FileMetadata.from_strings(strings, source=str(self.path))
        self._check_interface(model)
        self._bytes = _element_type(model.graph.input, INPUT) == BYTES
        self._channels_last = _names(self.metadata.extra.get("channels_last", "[]"), self.path)
        self._model = model
        self._given = _names_of(model.graph.output) & {_output(layer) for layer in self.metadata.layers}
        made = {output for node in model.graph.node for output in node.output}
        self._tappable = [layer for layer in self.metadata.layers if made.issuperset(self._taps(layer))]
        self._session = self._open(model.SerializeToString())
        self._tapped = self._open(self._with_outputs(tap for layer in self._tappable for tap in self._taps(layer)))

    @property
    def description(self) -> str:
        """The package, its version, how it is set, and whether tapping the spikes changed the logits."""
        import onnxruntime

        threads = "a thread a core" if self._threads is None else f"threads {self._threads}"
        described = f"onnxruntime {onnxruntime.__version__} on the CPU, optimization {self._optimization}, {threads}"
        return f"{described}; tapping the spikes changed the logits' last bits" if self._changed else described

    def run(self, batch: NDArray[np.generic]) -> Recording:
        """One batch of data -> spikes and logits [N, K]; see `Runtime.run`."""
        inputs = {INPUT: self._inputs(batch)}
        outputs = sorted(self._given)
        logits, *given = self._compute(self._session, [LOGITS, *outputs], inputs)
        taps = [tap for layer in self._tappable for tap in self._taps(layer)]
        tapped_logits, *values = self._compute(self._tapped, [LOGITS, *taps], inputs)
        self._compare(logits, tapped_logits)
        tapped = {}
        timesteps = self.metadata.input.timesteps
        for i, layer in enumerate(self._tappable):
            steps = values[i * timesteps : (i + 1) * timesteps]
            tapped[layer.name] = self._over_time(layer, [step != 0 for step in steps])
        found = dict(zip(outputs, given, strict=True))
        return Recording(
            {
                layer.name: SpikeTrain.pack(self._fired(layer, found.get(_output(layer)), tapped.get(layer.name)))
                for layer in self.metadata.layers
            },
            logits,
        )

    def potentials(self, batch: NDArray[np.generic]) -> dict[str, NDArray[np.floating]]:
        """Every layer's membrane potential before the reset, [N, T, *shape], by name.

        In the type of the file's membrane. Raises `DalifError` as `run` does, and FOREIGN_FILE where the file
        does not name its potentials: only those of precision "exact" and "exact64" do.
        """
        taps = {layer.name: self._taps(layer, "potential") for layer in self.metadata.layers}
        names = [tap for layer in taps.values() for tap in layer]
        made = {output for node in self._model.graph.node for output in node.output}
        if missing := [name for name in names if name not in made]:
            raise DalifError(
                Code.FOREIGN_FILE,
                f"{self.path}: no value '{missing[0]}' in the graph; export it again with precision exact or exact64",
            )
        session = self._open(self._with_outputs(names))
        values = dict(zip(names, self._compute(session, names, {INPUT: self._inputs(batch)}), strict=True))
        return {
            layer.name: self._over_time(layer, [values[tap] for tap in taps[layer.name]])
            for layer in self.metadata.layers
        }

    def _fired(
        self, layer: LayerMetadata, given: NDArray[Any] | None, tapped: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """A layer's spikes, [N, T, *shape]: the file's own output where there is one."""
        if given is None:
            assert tapped is not None  # _check_interface has seen one or the other
            return tapped
        wanted = [self.metadata.input.timesteps, *layer.shape]
        if list(given.shape[1:]) != wanted or not np.isin(given, (0, 1)).all():
            raise DalifError(
                Code.RUNTIME_CANNOT_RUN,
                f"{self.path}: the output '{_output(layer)}' gave something else than 0 and 1 of shape "
                f"[N, {', '.join(map(str, wanted))}]",
            )
        fired: NDArray[np.bool_] = given != 0
        if tapped is not None and not np.array_equal(fired, tapped):
            self.notes.append(
                f"{self.path}: the output '{_output(layer)}' is not the spikes that layer '{layer.name}' fires in the "
                "file; the output's are compared"
            )
        return fired

    def _inputs(self, batch: NDArray[np.generic]) -> NDArray[np.generic]:
        """What the file takes."""
        inputs = self.metadata.input.module_input(batch)
        if not self._bytes:
            return inputs
        if self.metadata.input.encoding.kind == "spikes" or self.metadata.input_kind == "spike":
            if not np.isin(inputs, (0.0, 1.0)).all():
                raise DalifError(Code.BAD_DATA, "data: the model takes spikes, so every value must be 0 or 1")
            return inputs.astype(np.uint8)
        if batch.dtype != np.uint8:
            raise DalifError(
                Code.BAD_DATA,
                f"data of type {batch.dtype}: {self.path} takes uint8 codes; give the codes (--data), or export with "
                "precision float32",
            )
        return batch

    def _over_time(self, layer: LayerMetadata, steps: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """[N, T, *shape] from the values of every timestep, as they lie in the file."""
        values = np.stack(steps, axis=1)
        return np.moveaxis(values, -1, 2) if layer.name in self._channels_last else values

    def _compare(self, logits: NDArray[np.floating], tapped: NDArray[np.floating]) -> None:
        bits = np.dtype(f"u{logits.dtype.itemsize}")
        differing = logits.view(bits) != tapped.view(bits)
        if differing.any():
            self._changed = True
            largest = np.abs(logits.astype(np.float64) - tapped).max()
            self.notes.append(
                f"{self.path}: {np.count_nonzero(differing)} of {logits.size} logits of a batch differ between the "
                f"file and its copy with tapped spikes, by up to {largest:.3g}; the spikes are the copy's"
            )

    def _taps(self, layer: LayerMetadata, what: str = "spikes") -> list[str]:
        return [f"{layer.name}/t{t}/{what}" for t in range(self.metadata.input.timesteps)]

    def _check_interface(self, model: Any) -> None:
        """The file must have what its metadata speaks of."""
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value.name for value in model.graph.input if value.name not in weights]
        outputs = _names_of(model.graph.output)
        if inputs != [INPUT] or LOGITS not in outputs:
            raise DalifError(
                Code.FOREIGN_FILE,
                f"{self.path}: needs the one input '{INPUT}' and an output '{LOGITS}', but its inputs are "
                f"{inputs}; export it again from the model",
            )
        made = {output for node in model.graph.node for output in node.output}
        for layer in self.metadata.layers:
            missing = [tap for tap in self._taps(layer) if tap not in made]
            if missing and _output(layer) not in outputs:
                raise DalifError(
                    Code.FOREIGN_FILE,
                    f"{self.path}: layer '{layer.name}': no value '{missing[0]}' in the graph, so its spikes cannot "
                    "be read; another tool may have rewritten the file: export it again from the model",
                )
            timesteps = self.metadata.input.timesteps
            if f"{layer.name}/t{timesteps}/spikes" in made:
                raise DalifError(
                    Code.FOREIGN_FILE,
                    f"{self.path}: layer '{layer.name}' has more timesteps than the {timesteps} of the file's "
                    "metadata; export it again from the model",
                )

    def _with_outputs(self, names: Iterable[str]) -> bytes:
        """A copy of the file in which the values `names` are outputs too."""
        from onnx import ModelProto, TensorProto, helper

        model = ModelProto()
        model.CopyFrom(self._model)
        outputs = {value.name for value in model.graph.output}
        declared = {value.name: value for value in model.graph.value_info}
        shapes = {tap: layer.shape for layer in self.metadata.layers for tap in self._taps(layer)}
        for name in names:
            if name in outputs:
                continue
            if name in declared:
                model.graph.output.append(declared[name])
            else:
                shape = ["batch", *shapes[name]]
                model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        content: bytes = model.SerializeToString()
        return content

    def _open(self, model: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, OPTIMIZATIONS[self._optimization]
        )
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = self._threads or 0
        options.inter_op_num_threads = 1
        # Two sessions take turns: the threads of the one must not spin while the other computes.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # what matters arrives as an exception
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class of their own
            raise self._failed(f"onnxruntime {onnxruntime.__version__} refuses it: {error}") from error

    def _compute(self, session: Any, outputs: Sequence[str], inputs: Mapping[str, NDArray[np.generic]]) -> list[Any]:
        try:
            return list(session.run(outputs, inputs))
        except Exception as error:  # as above
            raise self._failed(f"onnxruntime failed on it: {error}") from error

    def _failed(self, why: str) -> DalifError:
        """The file's fault, naming the node, where its shapes contradict each other."""
        if (what := contradiction(self._model)) is not None:
            return DalifError(Code.FILE_DAMAGED, f"{self.path}: its shapes contradict each other: {what}; {why}")
        return DalifError(Code.RUNTIME_CANNOT_RUN, f"{self.path}: {why}")


def _element_type(values: Any, name: str) -> int:
    """The element type that a value is declared with."""
    return next(int(value.type.tensor_type.elem_type) for value in values if value.name == name)


def _output(layer: LayerMetadata) -> str:
    """The output that gives a layer's spikes over all timesteps, where a file has one."""
    return f"{layer.name}/spikes"


def _names_of(values: Any) -> set[str]:
    return {value.name for value in values}


def _names(entry: str, path: Path) -> frozenset[str]:
    """A metadata entry that lists names. Raises `DalifError` (FILE_DAMAGED)."""
    try:
        return frozenset(json.loads(entry))
    except (ValueError, TypeError) as error:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: its metadata cannot be read ({error})") from error
