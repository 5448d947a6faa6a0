"""Reading files of a store by position: nothing is mapped, so that a file cut short is an error
and not a signal.

A memory map of a file that another process truncates, or of a network file system that answers
with an error, kills the reader with SIGBUS. A read at a position costs two microseconds more and
returns an error.
"""

import ast
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.store.format import DTYPES, REPAIR

BLOCK_BYTES = 1 << 22
# What is hashed at opening; larger offsets are checked video by video as they are used.
CHECKED_BYTES = 256 << 20
# Version 1.0 of the .npy format: this, two bytes with the header's length, the header.
MAGIC, MAGIC_BYTES = b"\x93NUMPY\x01\x00", 10


class OpenFile:
    """A file read by position from any thread; closed when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.descriptor = -1
            raise UserError(f"{path}: cannot be read: {error.strerror}\n{REPAIR}") from None

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, start: int, count: int) -> bytes:
        """So many bytes from a position; all of them, or an error."""
        content = b""
        try:
            content = os.pread(self.descriptor, count, start)
            while 0 < len(content) < count:
                more = os.pread(self.descriptor, count - len(content), start + len(content))
                if not more:
                    break
                content += more
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read: {error.strerror}\n{REPAIR}") from None
        if len(content) != count:
            raise UserError(
                f"{self.path}: ends before byte {start + count}: it was cut short\n{REPAIR}"
            )
        return content


class Table:
    """One .npy file of the index: rows are read when they are asked for."""

    def __init__(self, path: Path, role: str, entry: dict[str, Any]) -> None:
        self.path, self.dtype = path, DTYPES[role]
        self._file = OpenFile(path)
        size = os.fstat(self._file.descriptor).st_size
        if size != entry["bytes"]:
            raise UserError(f"{path}: {size} bytes long, not {entry['bytes']}\n{REPAIR}")
        self._start, self.count = self._header()
        self.sha256 = entry["sha256"]

    def _header(self) -> tuple[int, int]:
        """Where the rows begin, and how many there are. NumPy's own reader trusts a header
        too much for this."""
        size, descr = (
            os.fstat(self._file.descriptor).st_size,
            np.lib.format.dtype_to_descr(self.dtype),
        )
        with suppress(UserError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            magic = self._file.read(0, MAGIC_BYTES)
            start = MAGIC_BYTES + int.from_bytes(magic[-2:], "little")
            header = ast.literal_eval(
                self._file.read(MAGIC_BYTES, start - MAGIC_BYTES).decode("ascii").strip()
            )
            count = (size - start) // self.dtype.itemsize
            expected = {"descr": descr, "fortran_order": False, "shape": (count,)}
            if (
                magic[:8] == MAGIC
                and header == expected
                and size == start + count * self.dtype.itemsize
            ):
                return start, count
        raise UserError(f"{self.path}: damaged: its header does not fit its content\n{REPAIR}")

    def __len__(self) -> int:
        return self.count

    def part(self, first: int, last: int) -> NDArray[Any]:
        """Rows `first` to `last`, without the latter."""
        if not 0 <= first <= last <= self.count:
            raise UserError(f"{self.path}: has no rows {first} to {last}: damaged\n{REPAIR}")
        size = self.dtype.itemsize
        return np.frombuffer(
            self._file.read(self._start + first * size, (last - first) * size), self.dtype
        )

    def __getitem__(self, index: int | slice) -> Any:
        """A row, or the rows of a slice, as of an array."""
        if isinstance(index, slice):
            first, last, step = index.indices(self.count)
            return self.part(first, max(first, last))[::step]
        return self.part(index % self.count if index < 0 else index, (index % self.count) + 1)[0]

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """All rows, a few MB at a time, each with the number of its first."""
        rows = BLOCK_BYTES // self.dtype.itemsize
        for first in range(0, self.count, rows):
            yield first, self.part(first, min(self.count, first + rows))

    def check(self, look: Callable[[int, NDArray[Any]], None] | None = None) -> None:
        """Compare the checksum; `look` sees every block on the way, so that a file is read once."""
        digest = hashlib.sha256(self._file.read(0, self._start))
        for first, block in self.blocks():
            digest.update(block.tobytes())
            if look is not None:
                look(first, block)
        if digest.hexdigest() != self.sha256:
            raise UserError(f"{self.path}: damaged: its checksum is wrong\n{REPAIR}")
