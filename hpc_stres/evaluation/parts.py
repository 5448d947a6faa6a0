"""Scores of single videos while an evaluation is at work: what a killed one has scored is
not scored again.

Each rank of each attempt appends to a file of its own, one sealed line a video, so that no file
ever has two writers. A reader takes the lines of all attempts whose key is the one it wants. The
key of a video holds everything that its scores depend on; a line that is not as it was written is
named and its video scored again.
"""

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.evaluation.scores import STREAMS
from hpc_stres.run.paths import SEAL, RunPaths, sealed, unsealed

Streams = dict[str, NDArray[np.float64]]
REMEDY = "Remove scores/parts of this run and evaluate again."


def folder(paths: RunPaths) -> Path:
    """Where the parts of a run lie."""
    return paths.root / "scores" / "parts"


class PartWriter:
    """Appends the scores of one rank of one attempt; the file is made with the first line."""

    def __init__(self, paths: RunPaths, split: int, phase: str, rank: int) -> None:
        attempt = uuid.uuid4().hex[:12]
        self.path = folder(paths) / f"split{split}_{phase}_rank{rank:05d}_{attempt}.jsonl"

    def write(self, video: str, key: str, streams: Streams) -> None:
        """One line, flushed: after a kill it is there, or torn and left out."""
        row = {"id": video, "key": key, **{name: value.tolist() for name, value in streams.items()}}
        line = json.dumps(sealed(row), ensure_ascii=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Closed after each line, so that other hosts of a network file system see it.
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}\nWhat was scored is kept: evaluate again."
            ) from None


def read_parts(
    paths: RunPaths, split: int, phase: str, keys: dict[str, str], loud: bool = False
) -> dict[str, Streams]:
    """Scores of the videos in `keys` (id to key) over all attempts.

    A video that two attempts scored is taken once when they agree bit for bit, and refused by name
    when they do not. `loud`: say on stderr which lines were left out.
    """
    scored: dict[str, Streams] = {}
    for path in sorted(folder(paths).glob(f"split{split}_{phase}_rank*.jsonl")):
        for row in _rows(path, loud):
            video = row.get("id")
            if not isinstance(video, str) or keys.get(video) != row.get("key"):
                continue
            streams = {name: np.array(row[name], np.float64) for name in STREAMS if name in row}
            known = scored.setdefault(video, streams)
            if known is not streams and not _equal(known, streams):
                raise UserError(
                    f"{path}: video {video} was scored twice, with different results\n{REMEDY}"
                )
    return scored


def _equal(one: Streams, two: Streams) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def _rows(path: Path, loud: bool) -> Iterator[dict[str, Any]]:
    """Whole rows of one file. A last line without its end was torn by a kill; any
    other damage is said."""
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            value = json.loads(line.decode("utf-8"))
            yield unsealed(value, f"{path}, line {number}", REMEDY)
        except (ValueError, UserError, RecursionError):
            is_torn = number == len(lines)
            if loud and not is_torn:
                version = "written by version 0.2" if _is_old(line) else "damaged"
                print(
                    f"{path}, line {number}: {version}; its video is scored again", file=sys.stderr
                )


def _is_old(line: bytes) -> bool:
    return SEAL.encode() not in line and line.startswith(b'{"id":')
