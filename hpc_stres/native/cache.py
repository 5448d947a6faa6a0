"""Where compiled kernels are kept, and why what is loaded from there may run.

A library is code that runs as this user. So it is loaded only when nobody else can have made it,
and nothing has happened to it since:

- Each user has an own folder, closed to all others; a link or another user's folder in its place
  is not used.
- One file holds a library and a seal: a checksum over the library and over what it was made from.
  It is written under another name and renamed, so that a reader sees the whole of it or nothing,
  whenever a writer is killed.
- A file is opened without following a link and read once; these very bytes are checked and then
  loaded from memory. Whatever is done to the file later cannot reach a process that runs it.

What fails one of these is built anew. Where no folder can be used, each process builds its kernels
for itself.
"""

import contextlib
import ctypes
import hashlib
import itertools
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from hpc_stres.errors import UserError

# What is between a library and its checksum; a loader ignores what follows the last section.
SEAL = b"\nhpc_stres kernel, sha256 "
CHECKSUM_BYTES = 64  # in hexadecimal
# What a killed writer leaves is removed by a later one.
LEFTOVER_SECONDS = 3600.0
_loads = itertools.count()


def cache_folder() -> Path:
    """This user's folder for compiled kernels: in HPC_STRES_CACHE, or where caches usually are."""
    base = os.environ.get("HPC_STRES_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "hpc_stres"
    )
    return Path(os.path.abspath(os.path.expanduser(base))) / f"user-{os.geteuid()}"


def temporary_folder() -> Path:
    """Where kernels are kept when the cache's own place cannot be used."""
    return Path(tempfile.gettempdir()) / f"hpc_stres-{os.geteuid()}"


def cached(name: str, key: str, build: Callable[[], bytes]) -> ctypes.CDLL:
    """The library that `key` (a checksum of all it is made from) names: kept, or built now."""
    build = cache(build)  # a folder that takes no file is found out after the building
    troubles: list[str] = []
    for folder in (cache_folder(), temporary_folder()):
        try:
            library = _from_folder(folder, name, key, build)
        except FolderError as error:
            troubles.append(f"{folder}: {error}")
            continue
        if troubles:
            _note(f"{troubles[0]}; compiled kernels are kept in {folder} instead")
        return library
    _note(f"{'; '.join(troubles)}; each process compiles its kernels again")
    return load_from_memory(build(), name)


def _from_folder(folder: Path, name: str, key: str, build: Callable[[], bytes]) -> ctypes.CDLL:
    open_folder(folder)
    file = folder / f"{name}-{key[:16]}.so"
    library = read_library(file, key)
    if library is not None:
        # One that was made on a machine with a newer system may not load here: it is built anew.
        with contextlib.suppress(UserError):
            return load_from_memory(library, name)
    library = build()
    write_library(file, key, library)
    return load_from_memory(library, name)


class FolderError(Exception):
    """Why a folder cannot hold kernels."""


@contextlib.contextmanager
def _folder_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FolderError(error.strerror or str(error)) from None


def open_folder(folder: Path) -> None:
    """Make a folder that only this user can enter; a FolderError says why this is none."""
    home = Path(os.path.expanduser("~"))
    if home in folder.parents and not home.is_dir():
        raise FolderError(f"there is no home folder {home}")
    with _folder_errors():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if folder.is_symlink():
            raise FolderError("it is a link")
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid():
                raise FolderError(f"it belongs to user {status.st_uid}")
            if status.st_mode & 0o077:
                os.fchmod(descriptor, 0o700)
            if os.fstat(descriptor).st_mode & 0o022:
                raise FolderError("others can write into it")
        finally:
            os.close(descriptor)


def read_library(path: Path, key: str) -> bytes | None:
    """The library in a file of the cache; None where it is not this user's, whole, and of `key`."""
    try:
        # O_NONBLOCK: a pipe in its place must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with contextlib.suppress(OSError), open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        is_mine = status.st_uid == os.geteuid() and not status.st_mode & 0o022
        if stat.S_ISREG(status.st_mode) and is_mine:
            library, seal = _split(stream.read())
            return library if seal == _sealed(library, key) else None
    return None


def write_library(path: Path, key: str, library: bytes) -> None:
    """Put a library into the cache, whole or not at all; a FolderError says why it does not go."""
    with _folder_errors():
        _remove_leftovers(path.parent)
        # Its mode is 0600 from the start, whatever the user's umask.
        descriptor, temporary = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(library + SEAL + _sealed(library, key))
                stream.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _sealed(library: bytes, key: str) -> bytes:
    return hashlib.sha256(key.encode() + library).hexdigest().encode()


def _split(data: bytes) -> tuple[bytes, bytes]:
    """A file's library and checksum; no checksum where the file does not end in a seal."""
    end = len(data) - len(SEAL) - CHECKSUM_BYTES
    if end <= 0 or data[end : end + len(SEAL)] != SEAL:
        return data, b""
    return data[:end], data[end + len(SEAL) :]


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


def load_from_memory(library: bytes, name: str) -> ctypes.CDLL:
    """A library from its bytes; where there are no files in memory, by way of a temporary one."""
    with contextlib.suppress(OSError):
        descriptor = os.memfd_create(f"hpc_stres-{name}")
        with open(descriptor, "wb") as stream:
            stream.write(library)
            stream.flush()
            # The loader takes a path that it has seen before for the library that it had then, and
            # file numbers come again: each path is spelt anew.
            return ctypes.CDLL(f"/proc/self/fd/{'./' * next(_loads)}{descriptor}")
    try:
        with tempfile.NamedTemporaryFile(prefix=f"hpc_stres-{name}-", suffix=".so") as file:
            file.write(library)
            file.flush()
            return ctypes.CDLL(file.name)
    except OSError as error:
        raise UserError(
            f"the kernel {name} cannot be loaded: {error}\n"
            "Set TMPDIR to a folder that programs may run from, or CXX to this machine's compiler."
        ) from None


@cache
def _note(text: str) -> None:
    """One line, once per process."""
    print(f"hpc-stres: {text}", file=sys.stderr)
