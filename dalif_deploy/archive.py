"""An .npz written and read without holding it: arrays grow row by row, and are read row by row.

Plain zip files of plain .npy arrays, which numpy.load reads too. Nothing here unpickles.
"""

from __future__ import annotations

import math
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import IO, Any, Self, TypeVar

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dalif_deploy.errors import Code, DalifError

T = TypeVar("T")
LEVEL = 1
"""Of deflate: spikes shrink little more on a higher one, at several times the time."""
COPIED = 2**20
_BAD = (
    OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError, TokenError,
)  # fmt: skip
"""What damaged bytes make zipfile, zlib and NumPy raise."""


@dataclass
class _Growing:
    path: Path
    dtype: np.dtype[Any]
    row: tuple[int, ...]
    rows: int = 0


class ArchiveWriter:
    """Collects arrays in `folder`, a temporary one of the caller's, and writes them as one .npz.

    Memory holds one block at a time. The same contents give the same bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, _Growing] = {}

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Further rows of the array `name`, along its first axis; type and shape are those of its first."""
        rows = np.ascontiguousarray(rows)
        array = self._arrays.get(name)
        if array is None:
            array = _Growing(self._folder / f"{len(self._arrays)}.rows", rows.dtype, rows.shape[1:])
            self._arrays[name] = array
        if (array.dtype, array.row) != (rows.dtype, rows.shape[1:]):
            raise DalifError(
                Code.FAULT, f"array '{name}': rows {rows.dtype} {rows.shape[1:]} after {array.dtype} {array.row}"
            )
        # Opened for every block: one file stays open for no array, however many layers there are.
        with array.path.open("ab") as file:
            file.write(rows.data if rows.size else b"")
        array.rows += len(rows)

    def write(self, path: Path, texts: dict[str, str]) -> None:
        """The .npz, with further members of text. Raises OSError."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
            for name, text in texts.items():
                archive.writestr(zipfile.ZipInfo(name), text.encode(), zipfile.ZIP_DEFLATED, LEVEL)
            for name, array in self._arrays.items():
                header = {
                    "descr": npy.dtype_to_descr(array.dtype),
                    "fortran_order": False,
                    "shape": (array.rows, *array.row),
                }
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member, array.path.open("rb") as rows:
                    npy.write_array_header_1_0(member, header)
                    shutil.copyfileobj(rows, member, COPIED)


@dataclass(frozen=True)
class Header:
    """What an array in a file is, before its values are read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool


class RowStream:
    """An array that is read in one direction. `take` reads the next rows: at most `count`, none at the end."""

    def __init__(self, header: Header, take: Callable[[int], NDArray[Any]]) -> None:
        self.header = header
        self._take = take
        self._left = header.shape[0]

    def take(self, count: int) -> NDArray[Any]:
        """[up to `count`, ...]. Raises `DalifError` (FILE_DAMAGED)."""
        count = min(count, self._left)
        self._left -= count
        return self._take(count) if count else np.empty((0, *self.header.shape[1:]), self.header.dtype)


class _Held:
    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def take(self, count: int) -> NDArray[Any]:
        block, self._values = self._values[:count], self._values[count:]
        return block


class Archive:
    """An .npz, open for reading; `path` names it in errors.

    Raises `DalifError`: FILE_MISSING; FILE_DAMAGED, also where a member does not hold what its header says;
    FOREIGN_FILE for what is no zip file; PICKLED for an array of Python objects, which is never read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise DalifError(Code.FILE_MISSING, f"{path}: {error.strerror or error}; check the path") from error
        try:
            head = self._file.read(4)
            if not head:
                raise self._damaged("the file is empty")
            if not b"PK\x03\x04".startswith(head) and not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                raise DalifError(
                    Code.FOREIGN_FILE, f"{path}: not an .npz file; give what dalif-verify or dalif-run wrote"
                )
            with self._reading("the file"):
                self._zip = zipfile.ZipFile(self._file)
            members = [info.filename for info in self._zip.infolist()]
            if len(set(members)) != len(members):
                raise self._damaged("has two members of one name")
        except BaseException:
            self._file.close()
            raise
        self.names = tuple(name.removesuffix(".npy") for name in members if name.endswith(".npy"))
        """The arrays, in the file's order."""
        self.texts = tuple(name for name in members if not name.endswith(".npy"))
        """The other members."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """No more can be read."""
        self._zip.close()
        self._file.close()

    def text(self, name: str) -> str:
        """A member of text."""
        with self._reading(name):
            return self._zip.read(name).decode()

    def header(self, name: str) -> Header:
        """What the array is; its member is as long as that takes."""
        return self._opened(name, lambda member, header: header)

    def read(self, name: str) -> NDArray[Any]:
        """A whole array."""

        def whole(member: IO[bytes], header: Header) -> NDArray[Any]:
            values = self._values(member, header, math.prod(header.shape))
            self._end(name, member)
            return values.reshape(header.shape[::-1]).T if header.fortran else values.reshape(header.shape)

        return self._opened(name, whole)

    def rows(self, name: str, size: int) -> Iterator[NDArray[Any]]:
        """The array, `size` rows at a time; see `stream`."""
        stream = self.stream(name)
        while len(block := stream.take(size)):
            yield block

    def stream(self, name: str) -> RowStream:
        """The array, to be read from its first row on; only one in Fortran's order has to be read whole."""
        header = self.header(name)
        if not header.shape:
            raise DalifError(Code.BAD_DATA, f"{self.path}: '{name}' is one number, an array of samples is needed")
        if header.fortran:
            return RowStream(header, _Held(self.read(name)).take)
        with self._reading(name):
            member = self._zip.open(f"{name}.npy")
            _header(member)
        row = math.prod(header.shape[1:])
        left = header.shape[0]

        def take(count: int) -> NDArray[Any]:
            nonlocal left
            with self._reading(name):
                block = self._values(member, header, count * row).reshape(count, *header.shape[1:])
                left -= count
                if not left:
                    self._end(name, member)
            return block

        return RowStream(header, take)

    def _opened(self, name: str, use: Callable[[IO[bytes], Header], T]) -> T:
        member_name = f"{name}.npy"
        with self._reading(name):
            try:
                info = self._zip.getinfo(member_name)
            except KeyError:
                raise self._damaged(f"the array '{name}' is missing") from None
            with self._zip.open(member_name) as member:
                header, length = _header(member)
                if header.dtype.hasobject:
                    raise DalifError(
                        Code.PICKLED, f"{self.path}: '{name}' holds pickled Python objects, which are never read; save "
                        "arrays of numbers"
                    )  # fmt: skip
                if header.dtype.kind not in "biufU":
                    raise DalifError(Code.BAD_DATA, f"{self.path}: '{name}' is {header.dtype}, numbers are needed")
                # Before anything is allocated: a header may claim any shape.
                if info.file_size != length + math.prod(header.shape) * header.dtype.itemsize:
                    raise self._damaged(f"'{name}' is not as long as its shape {list(header.shape)} takes")
                return use(member, header)

    def _values(self, member: IO[bytes], header: Header, count: int) -> NDArray[Any]:
        size = count * header.dtype.itemsize
        content = member.read(size)
        if len(content) != size:
            raise EOFError
        return np.frombuffer(content, header.dtype)

    def _end(self, name: str, member: IO[bytes]) -> None:
        if member.read(1):  # reading past the end is also what checks the checksum
            raise self._damaged(f"'{name}' is longer than its shape takes")

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except _BAD as error:
            raise self._damaged(f"{what} cannot be read") from error

    def _damaged(self, what: str) -> DalifError:
        return DalifError(Code.FILE_DAMAGED, f"{self.path}: {what}; it is truncated or damaged: write or copy it again")


def _header(member: IO[bytes]) -> tuple[Header, int]:
    """An array's header, and how many bytes it took."""
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unknown version {version} of the .npy format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return Header(dtype, shape, fortran), member.tell()
