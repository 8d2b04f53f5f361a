"""MODEL, whatever it is, becomes a training graph with samples: the way in that all verbs share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy import checkpoint
from dalif_deploy.capturing import CapturedModule, capture_module
from dalif_deploy.checkpoint import Samples
from dalif_deploy.deploy.data import Data, as_array, rounded_inputs, seeded_data
from dalif_deploy.deploy.files import kind_of, sha256
from dalif_deploy.deploy.oddities import described, described_folder
from dalif_deploy.deploy.proof import prove_capture
from dalif_deploy.deploy.weights import load_weights
from dalif_deploy.deploy.wild import build_module, only_module, read_safetensors, run_adapter, unpickle
from dalif_deploy.encoding import Encoding
from dalif_deploy.equivalence import Precision
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import class_names_of

SEEDED_SAMPLES = 16
NIR_OPTIONS = ("dt", "reset", "fires_at")
"""The options that answer what a .nir file of another tool leaves open."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to read a MODEL that does not say everything itself; one meaning in every command.

    `factory`, `arguments`: "package.module:factory" that builds the module, and its keyword arguments. `state_key`:
    which state_dict of a checkpoint is meant, where several fit the module.
    `adapter`: a Python file run before. `trust_pickle`: unpickle a pickled module, which runs its code.
    `timesteps`, `input_shape` (without batch and time), `layout`, `readout`, `temporal`: as for `capture`.
    `structure_only`: a module that has to be captured is, without proof on samples, which it then has none of; for
    looking at it only.
    `dt` (seconds a timestep), `reset` ("hard" or "subtract") and `fires_at` ("ge" or "gt"): what a .nir file of another
    tool leaves open; `origin`: where such answers come from, by name, if not from the caller.
    `examples`: data [N, ...] or [N, T, ...] to capture a module on, in place of random numbers; says the shape too.
    """

    factory: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    state_key: str | None = None
    adapter: Path | None = None
    trust_pickle: bool = False
    timesteps: int | None = None
    input_shape: tuple[int, ...] | None = None
    layout: str | None = None
    readout: str | None = None
    temporal: bool | None = None
    structure_only: bool = False
    dt: float | None = None
    reset: str | None = None
    fires_at: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    examples: NDArray[np.generic] | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """A training graph and where it comes from.

    `captured`: the user's module, where it was captured just now. `samples`: what a model.pt stores.
    `path`, `sha256`: of the file. `notes`: what was inferred, one line each. `answers`: what has to be known to read
    the file again, which an exported file says in its metadata.
    """

    graph: SpikingGraph
    layout: str
    notes: tuple[str, ...] = ()
    samples: Samples | None = None
    captured: CapturedModule | None = None
    path: Path | None = None
    sha256: str | None = None
    answers: Mapping[str, str] = field(default_factory=dict)

    def data(self, limit: int | None = None) -> Data:
        """The model's own samples, else seeded ones; at most `limit`."""
        if self.samples is not None:
            origin = "the samples it was captured on" if self.captured else "the samples stored with the model"
            return Data(self.samples.inputs, None, origin).first(limit)
        return seeded_data(self.graph.input_spec, limit or SEEDED_SAMPLES)


def precision_of(dtype: np.dtype[Any] | str) -> Precision:
    """What a module of `dtype` computes in, for the bound on its rounding."""
    return "float64" if np.dtype(dtype) == np.float64 else "float32"


def open_model(
    source: str | Path | torch.nn.Module | SpikingGraph | Model,
    options: LoadOptions,
    data: Data | NDArray[np.generic] | None = None,
) -> Model:
    """Read or capture a model.

    `source`: a path (recognised by content), a module (captured and proved; `options` gives timesteps and
    input shape), or a graph. `data`: what it will be run on, where there is any; a module is then captured on its
    first samples rather than on random numbers, and need not say its input's shape.
    Raises `DalifError` with any code of the E01 and E02 groups.
    """
    if isinstance(source, Model):
        return source
    options = examples_of(options, data)
    if isinstance(source, SpikingGraph):
        return Model(source, "graph")
    if isinstance(source, torch.nn.Module):
        refuse_nir_options("a module", options)
        return _from_module(source, options)
    path = as_path(source, "the model")
    kind = _kind(path)  # a file that is not there is told before anyone's code runs
    if options.adapter is not None:
        run_adapter(options.adapter)
    if (made := module_in(path, options)) is not None:
        module, notes = made
        refuse_nir_options(path, options)
        model = _from_module(module, options)
        model = replace(model, notes=(*notes, *model.notes))
    elif kind == "hdf5":
        model = _from_nir(path, options)
    else:
        model = _from_torch(path, options)
    return replace(model, path=path, sha256=sha256(path))


def examples_of(options: LoadOptions, data: Data | NDArray[np.generic] | None) -> LoadOptions:
    """`options` with `data` to capture on, where there is any."""
    if data is None:
        return options
    return replace(options, examples=data.inputs[:SEEDED_SAMPLES] if isinstance(data, Data) else data)


def module_in(path: Path, options: LoadOptions) -> tuple[torch.nn.Module, tuple[str, ...]] | None:
    """The user's module that a file and `options` make, with its weights, and what was inferred; None where the file
    holds a graph.

    Raises `DalifError` as `build_module`, `load_weights` and `load_plain` do; FOREIGN_FILE.
    """
    kind = _kind(path)
    if options.factory is None:
        if kind == "safetensors":
            raise DalifError(
                Code.FOREIGN_FILE,
                f"{path}: holds tensors only; name the code that builds the module with --model package.module:factory",
            )
        if kind == "torch" and options.trust_pickle and isinstance(content := _content(path, options), _Unpickled):
            return only_module(content.value, path), ()
        return None
    if kind == "hdf5":
        return None
    # Built before the file is read: unpickling, where it is allowed, may need classes of the user's code.
    module = build_module(options.factory, options.arguments)
    content = read_safetensors(path) if kind == "safetensors" else _content(path, options)
    if isinstance(content, _Unpickled):
        content = content.value
    if isinstance(content, Mapping) and content.get("format") == checkpoint.FORMAT:
        _refuse_options(path, options, allowed=())
    return module, load_weights(module, content, path, key=options.state_key)


@dataclass(frozen=True, eq=False)
class _Unpickled:
    value: Any


def _content(path: Path, options: LoadOptions) -> Any:
    """What a PyTorch file holds; unpickled, and marked so, only where it must be and that was allowed."""
    try:
        return checkpoint.load_plain(path)
    except DalifError as error:
        if error.code is not Code.PICKLED or not options.trust_pickle:
            raise
        return _Unpickled(unpickle(path))


def _kind(path: Path) -> Literal["torch", "hdf5", "safetensors"]:
    """What a MODEL's file is. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE for what holds none."""
    if path.is_dir() and (what := described_folder(path)):
        raise DalifError(Code.FOREIGN_FILE, f"{path}: {what}")
    kind = kind_of(path)
    if kind == "onnx":
        raise DalifError(
            Code.FOREIGN_FILE, f"{path}: an ONNX file is what comes out; give the model that it was made from"
        )
    if kind == "unknown":
        other = described(path) or "neither a PyTorch nor a NIR file; give a model.pt, a checkpoint or a .nir"
        raise DalifError(Code.FOREIGN_FILE, f"{path}: {other}")
    return kind


def training_graph(module: torch.nn.Module, options: LoadOptions) -> SpikingGraph:
    """What capturing a module gives, not proved. Raises `DalifError` as `capture_module` does."""
    return _with_time_if_needed(options, lambda given: capture_module(module, **_arguments(given)).graph)[0]


def as_path(source: Any, name: str) -> Path:
    """A path given in Python. Raises `DalifError` (BAD_OPTION), calling it `name`."""
    if not isinstance(source, str | os.PathLike):
        raise DalifError(Code.BAD_OPTION, f"{name} of type {type(source).__name__}: a path is needed")
    return Path(source)


def captured_model(
    module: torch.nn.Module,
    *,
    example_input: torch.Tensor | NDArray[np.generic],
    timesteps: int,
    layout: str | None = None,
    readout: str | None = None,
    temporal: bool | None = None,
    encoding: Encoding | str | None = None,
    class_names: Sequence[str] = (),
    samples: torch.Tensor | NDArray[np.generic] | None = None,
    proved: bool = True,
) -> Model:
    """Capture a module, prove the capture on the samples, and keep the spikes that the module fired on them.

    `samples`: data, [N, ...] or [N, T, ...], codes where the encoding is uint8; the example input where None.
    `proved`: False leaves out the proof, and with it the samples.
    """
    encoding = _encoding(encoding)
    names = class_names_of(class_names)
    example = as_array(example_input, "example_input")
    inputs = example if samples is None else as_array(samples, "samples")
    if example.dtype == np.uint8 and encoding.kind == "uint8":
        channels = 2 if temporal else 1
        example = encoding.module_input(example, feature_axis=channels)
    captured = capture_module(
        module, example_input=example, timesteps=timesteps, layout=layout, readout=readout, temporal=temporal,
        encoding=encoding, class_names=names,
    )  # fmt: skip
    if not proved:
        return Model(captured.graph, captured.layout, captured.notes, captured=captured)
    if captured.time_first and samples is None:
        inputs = np.ascontiguousarray(inputs.swapaxes(0, 1))
    dtype = _dtype(module)
    class_names_of(names, math.prod(captured.graph.types[captured.graph.output].shape))
    data = Data(inputs, None, "the samples")
    spec = captured.graph.input_spec
    spec.module_input(inputs[:1])  # a wrong shape is told before anything runs
    recording = prove_capture(captured, data.batches(), precision_of(dtype))
    notes = (*captured.notes, *rounded_inputs(data))
    return Model(captured.graph, captured.layout, notes, Samples(inputs, recording, dtype), captured=captured)


def _from_module(module: torch.nn.Module, options: LoadOptions) -> Model:
    def capture(options: LoadOptions) -> Model:
        return captured_model(module, proved=not options.structure_only, **_arguments(options))

    model, note = _with_time_if_needed(options, capture)
    return replace(model, notes=(*model.notes, *note))


Captured = TypeVar("Captured")


def _with_time_if_needed(
    options: LoadOptions, capture: Callable[[LoadOptions], Captured]
) -> tuple[Captured, tuple[str, ...]]:
    """What `capture` makes with a static input, or, where the module takes none and nothing says that it should, with
    one that changes over time; and what is to be said of that."""
    try:
        return capture(options), ()
    except DalifError as static:
        if options.temporal is not None or options.examples is not None:
            raise
        try:
            made = capture(replace(options, temporal=True))
        except DalifError as changing:
            raise (changing if static.code is Code.WRONG_SHAPE != changing.code else static) from None
    return made, (f"temporal=True (forward takes no static input, but [batch, {options.timesteps}, ...])",)


def needed_timesteps(options: LoadOptions) -> int:
    """T of a module that is yet to be captured. Raises `DalifError` (AMBIGUOUS) where nobody says it."""
    if options.timesteps is None:
        raise DalifError(Code.AMBIGUOUS, "the module does not say how many timesteps it runs; give -T/--timesteps")
    return options.timesteps


def _arguments(options: LoadOptions) -> dict[str, Any]:
    """What capture is given."""
    timesteps = needed_timesteps(options)
    example = options.examples
    count = 1 if options.structure_only else SEEDED_SAMPLES
    if example is not None:
        example = example[:count]
        if options.input_shape is not None and example.shape[-len(options.input_shape) :] != options.input_shape:
            raise DalifError(
                Code.WRONG_SHAPE,
                f"data of shape {list(example.shape)}: --input-shape says {list(options.input_shape)}; leave it out",
            )
    elif options.input_shape is None:
        raise DalifError(
            Code.AMBIGUOUS, "the module does not say what it takes; give --input-shape, such as 3,32,32, without "
            "batch and time, or --data"
        )  # fmt: skip
    else:
        rng = np.random.default_rng(0)
        time = (timesteps,) if options.temporal else ()
        example = rng.random((count, *time, *options.input_shape), dtype=np.float32)
    return {
        "example_input": example,
        "timesteps": timesteps,
        "layout": options.layout,
        "readout": options.readout,
        "temporal": options.temporal,
    }


def _from_torch(path: Path, options: LoadOptions) -> Model:
    stored = checkpoint.read(path)
    _refuse_options(path, options, allowed=("adapter", "trust_pickle", "timesteps", "structure_only"))
    model = Model(stored.graph, stored.layout, stored.notes, stored.samples)
    return model if options.timesteps in (None, stored.graph.timesteps) else _other_timesteps(model, options.timesteps)


def _other_timesteps(model: Model, timesteps: int | None) -> Model:
    graph = model.graph
    assert timesteps is not None
    changed = SpikingGraph(
        graph.nodes, output=graph.output, timesteps=timesteps, encoding=graph.encoding,
        class_names=graph.class_names, history=graph.history,
    )  # fmt: skip
    note = f"{timesteps} timesteps instead of the {graph.timesteps} it was saved with; the stored samples do not apply"
    return Model(changed, model.layout, (*model.notes, note))


def _from_nir(path: Path, options: LoadOptions) -> Model:
    from dalif_deploy.capturing.nir import graph_of
    from dalif_deploy.nir_io import open_nir, written_elsewhere

    if written_elsewhere(path):
        return _from_foreign_nir(path, options)
    file, metadata = open_nir(path)  # what is no NIR file at all is told before options are
    graph = graph_of(path, file, metadata)
    _refuse_options(path, options, allowed=("adapter", "trust_pickle", "structure_only"))
    notes = ["the model is a NIR file: it is its own reference"]
    if metadata.precision != "float32":
        if not options.structure_only:
            raise DalifError(
                Code.BAD_OPTION,
                f"{path}: is a file of exact sums, in which a layer with weights is two; it can be run and looked at; "
                "as MODEL give what it was exported from",
            )
        notes.append("its sums are exact: a layer with weights is two, <layer>.high and <layer>.low, and counts as two")
    return Model(graph, "step", tuple(notes))


def _from_foreign_nir(path: Path, options: LoadOptions) -> Model:
    from dalif_deploy.capturing.nir_in.reading import answers_of, read_foreign_nir

    allowed = ("adapter", "trust_pickle", "structure_only", "timesteps", "input_shape", "readout", "temporal")
    _refuse_options(path, options, allowed=(*allowed, *NIR_OPTIONS))
    timesteps = options.timesteps
    if options.structure_only and timesteps is None and options.examples is None:
        timesteps = 1
        options = replace(options, origin={**options.origin, "timesteps": "to look at it; -T says how many"})
    found = read_foreign_nir(
        path,
        answers_of(
            dt=options.dt, timesteps=timesteps, input_shape=options.input_shape, reset=options.reset,
            fires_at=options.fires_at, readout=options.readout, temporal=options.temporal, origin=options.origin,
            data=None if options.examples is None else options.examples.shape,
        ),
    )  # fmt: skip
    return Model(found.graph, "step", found.notes, answers=found.answers)


def refuse_nir_options(source: str | Path, options: LoadOptions) -> None:
    """Raises `DalifError` (BAD_OPTION) where `options` answer what only a .nir file of another tool asks."""
    for key in NIR_OPTIONS:
        if getattr(options, key) is not None:
            option = "--" + key.replace("_", "-")
            raise DalifError(Code.BAD_OPTION, f"{source}: {option} is for .nir files of other tools; leave it out")


def _refuse_options(path: Path, options: LoadOptions, *, allowed: tuple[str, ...]) -> None:
    names = {"factory": "--model", "arguments": "--model-arg"}
    for key, value in vars(options).items():
        if key not in (*allowed, "examples", "origin") and value not in (None, False, {}):
            option = names.get(key, "--" + key.replace("_", "-"))
            raise DalifError(Code.BAD_OPTION, f"{path}: says this itself; leave out {option}")


def _encoding(encoding: Encoding | str | None) -> Encoding:
    """The encoding, where only its kind is given with the rest at its defaults."""
    if isinstance(encoding, str):
        return Encoding(kind=encoding)  # type: ignore[arg-type]  # it refuses other kinds itself
    if encoding is not None and not isinstance(encoding, Encoding):
        raise DalifError(
            Code.BAD_OPTION, f"encoding = {encoding!r}: give an Encoding, or its kind: 'real', 'uint8' or 'spikes'"
        )
    return encoding or Encoding()


def _dtype(module: torch.nn.Module) -> str:
    floating = [p.dtype for p in [*module.parameters(), *module.buffers()] if p.is_floating_point()]
    return "float64" if floating and all(dtype == torch.float64 for dtype in floating) else "float32"
