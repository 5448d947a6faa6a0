"""Pieces of a phase while it is at work: arrays with a key that holds everything they depend
on, and a digest.

A piece that is missing, torn, changed or of other settings is not there: it is made again.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.evaluation.scores import digest, read_npz
from hpc_stres.run.paths import atomic_path

Arrays = dict[str, NDArray[Any]]


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
        np.savez(stream, allow_pickle=False, **whole, digest=np.array(digest(whole)))


def read_arrays(path: Path, key: str) -> Arrays | None:
    """A piece as it was written under this key; none where there is no such one."""
    try:
        arrays = read_npz(path)
    except UserError:
        return None
    known = str(arrays.pop("digest", None))
    if known != digest(arrays) or str(arrays.pop("key", None)) != key:
        return None
    return arrays
