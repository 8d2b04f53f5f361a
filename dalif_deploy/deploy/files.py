"""Files: what kind one is, its hash, and writing one whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from dalif_deploy.errors import Code, DalifError

FileKind = Literal["torch", "hdf5", "onnx", "safetensors", "unknown"]


def kind_of(path: Path) -> FileKind:
    """What a file is by its content, whatever its suffix. Raises `DalifError` (FILE_MISSING, FILE_DAMAGED)."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the path") from error
    if not head:
        raise DalifError(Code.FILE_DAMAGED, f"{path}: the file is empty; write or copy it again")
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "torch"
    if head[0] == 0x08 and head[1] < 0x40:  # protobuf field 1, a small number: ONNX's ir_version
        return "onnx"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    return "unknown"


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(path: Path, *, model: Path | None, force: bool, data: Path | None = None) -> None:
    """Whether `path` may be written. Raises `DalifError`: NO_FOLDER, OUTPUT_IS_INPUT where it is the model or the
    data (even with `force`), OUTPUT_EXISTS."""
    try:
        _check_output(path, {"model": model, "data": data}, force=force)
    except OSError as error:  # such as a name that is too long
        raise DalifError(Code.NO_FOLDER, f"{path}: cannot be written ({error.strerror or error})") from error


def _check_output(path: Path, inputs: Mapping[str, Path | None], *, force: bool) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise DalifError(Code.NO_FOLDER, f"{path}: the folder {folder} does not exist; create it first")
    if path.is_dir():
        raise DalifError(Code.NO_FOLDER, f"{path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():  # replacing /dev/null would be a lasting surprise
        raise DalifError(Code.NO_FOLDER, f"{path}: is a device or pipe; a file is written beside it, so name a file")
    for name, source in inputs.items():
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise DalifError(
                Code.OUTPUT_IS_INPUT, f"{path}: the output is the {name} itself; give another name with -o"
            )
    if path.exists() and not force:
        raise DalifError(Code.OUTPUT_EXISTS, f"{path}: exists; give --force to replace it, or another name with -o")
    if not os.access(folder, os.W_OK):
        raise DalifError(Code.NO_FOLDER, f"{path}: the folder {folder} cannot be written; choose another with -o")


SUFFIXES = frozenset({".onnx", ".nir", ".pt", ".npz", ".npy", ".json", ".txt", ".csv", ".h5", ".safetensors"})
"""Suffixes that say what a file is."""


def check_suffix(path: Path, suffix: str, *, what: str, strict: bool = False) -> None:
    """Raises `DalifError` (BAD_OPTION) where the name of an output says that it is something else than `what` writes,
    whose suffix is `suffix`. `strict`: any other suffix does."""
    given = path.suffix.lower()
    if given and given != suffix and (strict or given in SUFFIXES):
        raise DalifError(
            Code.BAD_OPTION, f"{path}: {what} writes {suffix} files; name it {path.with_suffix(suffix).name}, say"
        )


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which becomes `path` when the block ends and is removed if it raises."""
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=".dalif-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp's file is private; the result gets what any new file of this user gets.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise DalifError(Code.NO_FOLDER, f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
