"""model.pt: a training graph on disk, read without running anyone's code.

A plain dictionary of numbers, strings, lists and tensors, written with torch.save and read with
torch.load(weights_only=True). Float64 arrays that float32 holds exactly are stored as float32, which halves
the file and loses nothing.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dalif_deploy.encoding import Encoding
from dalif_deploy.errors import Code, DalifError
from dalif_deploy.graph import SpikingGraph
from dalif_deploy.metadata import class_names_of
from dalif_deploy.nodes import KINDS, Edge, Node, StateVariable, frozen
from dalif_deploy.recording import Recording, SpikeTrain

FORMAT = "dalif_deploy.model"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Samples:
    """Sample inputs and what the user's own module made of them, in the module's own dtype.

    `inputs`: data as the commands take it, [N, ...] or [N, T, ...]. `dtype`: of the module, "float32" or
    "float64".
    """

    inputs: NDArray[np.generic]
    recording: Recording
    dtype: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a model.pt holds: the training graph, how it was captured, and samples with the module's spikes."""

    graph: SpikingGraph
    layout: str
    notes: tuple[str, ...]
    samples: Samples | None


def to_bytes(checkpoint: Checkpoint, *, tool_version: str) -> bytes:
    """The file's content."""
    graph = checkpoint.graph
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": {"dalif_deploy": tool_version, "torch": str(torch.__version__)},
        "layout": checkpoint.layout,
        "notes": list(checkpoint.notes),
        "graph": {
            "timesteps": graph.timesteps,
            "output": graph.output,
            "encoding": _plain(vars(graph.encoding)),
            "class_names": list(graph.class_names),
            "history": list(graph.history),
            "nodes": [
                {"node": type(node).__name__, **{key: _plain(value) for key, value in vars(node).items()}}
                for node in graph.nodes
            ],
        },
        "samples": None,
    }
    if checkpoint.samples is not None:
        samples = checkpoint.samples
        content["samples"] = {
            "inputs": torch.from_numpy(np.array(samples.inputs)),
            "logits": torch.from_numpy(np.array(samples.recording.logits)),
            "dtype": samples.dtype,
            "spikes": {
                name: {"bits": torch.from_numpy(np.array(train.bits)), "shape": list(train.shape)}
                for name, train in samples.recording.spikes.items()
            },
        }
    buffer = io.BytesIO()
    # Reading compares the checksums, so they are written whatever the process has set for its own files.
    wanted = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        torch.save(content, buffer)
    finally:
        torch.serialization.set_crc32_options(wanted)
    return buffer.getvalue()


def read(path: Path) -> Checkpoint:
    """Read a model.pt. Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, PICKLED, FOREIGN_FILE, BAD_GRAPH,
    NOT_FINITE."""
    content = load_plain(path)
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise DalifError(
            Code.FOREIGN_FILE,
            f"{path}: a PyTorch file, but not a model saved by dalif_deploy; save it with dalif_deploy.save, "
            "or name the code that builds the module with --model package.module:factory",
        )
    if content.get("version") != VERSION:
        raise DalifError(
            Code.FOREIGN_FILE,
            f"{path}: model format {content.get('version')}, this version reads {VERSION}; update dalif_deploy",
        )
    if not _checksums_hold(path):
        raise _damaged(path)
    try:
        return Checkpoint(
            graph=_read_graph(content["graph"]),
            layout=str(content["layout"]),
            notes=tuple(content["notes"]),
            samples=_read_samples(content["samples"]),
        )
    except DalifError as error:
        code = Code.FILE_DAMAGED if error.code is Code.BAD_OPTION else error.code
        raise DalifError(code, f"{path}: {error.message}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DalifError(
            Code.FILE_DAMAGED, f"{path}: its content is incomplete ({type(error).__name__}: {error}); save it again"
        ) from error


def load_plain(path: Path) -> Any:
    """The content of a PyTorch file of plain values and tensors, on the CPU; no code in it is run.

    Raises `DalifError`: FILE_MISSING, FILE_DAMAGED, FOREIGN_FILE, PICKLED.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the path") from error
    if not raw:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: the file is empty; save or copy it again")
    if not raw.startswith((b"PK\x03\x04", b"\x80")):
        raise DalifError(Code.FOREIGN_FILE, f"{path}: neither a PyTorch file nor another format that is known here")
    try:
        with warnings.catch_warnings():
            # Of a pickle that torch did not write; it is refused below.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            warnings.filterwarnings("ignore", ".*TorchScript archive", UserWarning)  # likewise
            return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if raw.startswith(b"PK") and not zipfile.is_zipfile(io.BytesIO(raw)):
            raise _damaged(path) from error
        raise DalifError(
            Code.PICKLED,
            f"{path}: holds a pickled Python object{_globals(raw, error)}, and unpickling runs code; save it with "
            "dalif_deploy.save or as a state_dict, or pass --trust-pickle if you trust whoever wrote it",
        ) from error
    except Exception as error:  # damaged bytes make torch.load raise nearly anything, struct.error included
        raise _other_archive(path, raw) or _damaged(path) from error


def _globals(raw: bytes, error: Exception) -> str:
    """The names that reading a pickle would import, as " (a, b)", where they can be told."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(raw))
    except Exception:  # the old format, or a pickle that torch did not write
        names = re.findall(r"GLOBAL ([\w.]+) was not an allowed", str(error))
    names = sorted(set(names))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f" ({', '.join(names[:5])}{more})" if names else ""


def _other_archive(path: Path, raw: bytes) -> DalifError | None:
    """What a whole zip archive is that torch.save did not write."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None
    if any(name.split("/")[1:2] == ["code"] for name in names):
        what = "a TorchScript archive, which hides its operations; give the original module's state_dict"
    elif any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return None  # written by torch.save, so damaged
    elif names and all(name.endswith(".npy") for name in names):
        what = "an .npz of arrays, so data rather than a model; give it with --data"
    else:
        listed = ", ".join(names[:3]) or "nothing"
        what = f"a zip archive of other files ({listed}); unpack it and name the file within"
    return DalifError(Code.FOREIGN_FILE, f"{path}: is {what}")


def _checksums_hold(path: Path) -> bool:
    """Whether every part of the archive is what was written; torch.load itself does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return False


def _damaged(path: Path) -> DalifError:
    return DalifError(Code.FILE_DAMAGED, f"{path}: the file is truncated or damaged; save or copy it again")


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        with np.errstate(over="ignore"):  # what float32 cannot hold stays float64
            narrow = value.astype(np.float32)
        exact = np.array_equal(narrow.astype(np.float64), value)
        return torch.from_numpy(narrow if exact else np.array(value))
    if isinstance(value, Edge | StateVariable):
        return list(vars(value).values())
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _read_graph(content: Mapping[str, Any]) -> SpikingGraph:
    graph = SpikingGraph(
        [_read_node(fields) for fields in content["nodes"]],
        output=content["output"],
        timesteps=content["timesteps"],
        encoding=Encoding(**{key: _tuples(value) for key, value in content["encoding"].items()}),
        class_names=class_names_of(content["class_names"]),
        history=tuple(content["history"]),
    )
    class_names_of(graph.class_names, math.prod(graph.types[graph.output].shape))
    return graph


def _read_node(fields: Mapping[str, Any]) -> Node:
    kind = KINDS[fields["node"]]
    known = {field.name for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in fields.items():
        if key == "node":
            continue
        if key not in known:
            raise KeyError(f"{fields['node']} has no field {key}")
        if isinstance(value, torch.Tensor):
            values[key] = frozen(value.numpy())
        elif key == "inputs":
            values[key] = tuple(Edge(source, delay) for source, delay in value)
        elif key == "state":
            values[key] = tuple(StateVariable(name, initial) for name, initial in value)
        else:
            values[key] = _tuples(value)
    return kind(**values)


def _read_samples(content: Mapping[str, Any] | None) -> Samples | None:
    if content is None:
        return None
    spikes = {
        name: SpikeTrain(train["bits"].numpy(), tuple(train["shape"])) for name, train in content["spikes"].items()
    }
    return Samples(content["inputs"].numpy(), Recording(spikes, content["logits"].numpy()), content["dtype"])
