"""Pieces of a phase while it is at work: arrays with a key that holds everything they depend on, and a digest.

A piece that is missing, torn, changed or of other settings is not there: it is made again.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.run.paths import atomic_path

Arrays = dict[str, NDArray[Any]]
# What a damaged .npz can raise in zipfile, zlib and NumPy's header parser.
NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, NotImplementedError, MemoryError, RuntimeError,
              SyntaxError, TypeError, zipfile.BadZipFile, zlib.error)  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """File names of a phase's pieces."""

    root: Path

    def sample(self, video: str) -> Path:
        return self.root / f"sample-{short(video)}.npz"

    def vocabulary(self, descriptor: str) -> Path:
        return self.root / f"vocabulary-{descriptor}.npz"

    def fisher(self, video: str) -> Path:
        return self.root / f"fisher-{short(video)}.npz"

    @property
    def basis(self) -> Path:
        return self.root / "basis.npz"

    def machine(self, label: int) -> Path:
        return self.root / f"machine-{label:05d}.npz"


def short(text: str) -> str:
    """A file name for an id, which may hold any character."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def key_of(*what: Any) -> str:
    """Hex digest of JSON values."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def write_arrays(path: Path, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A piece: the same bytes for the same arrays."""
    whole = {**arrays, "key": np.array(key)}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **whole, digest=np.array(digest_of(whole)))


def read_arrays(path: Path, key: str) -> Arrays | None:
    """A piece as it was written under this key; none where there is no such one."""
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: np.asarray(data[name]) for name in data.files}
        if str(arrays.pop("digest")) != digest_of(arrays) or str(arrays.pop("key")) != key:
            return None
    except NPZ_ERRORS:
        return None
    return arrays


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hex digest of arrays by name: kind, shape and every byte."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        total.update(repr((name, value.dtype.str, value.shape)).encode())
        total.update(value.tobytes())
    return total.hexdigest()
