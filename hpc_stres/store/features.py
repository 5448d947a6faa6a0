"""Features of every video by trained networks, kept in the store's folder: one cache a network.

    STORE/features/KEY/part-RANK-ATTEMPT.bin     features, video after video
    STORE/features/KEY/part-RANK-ATTEMPT.jsonl   one sealed line a video: where, how many, checksum
    STORE/features/KEY/index.json                sealed, written last: the cache is whole

KEY is a checksum of everything that the numbers depend on. Each rank of each attempt writes
two files of its own, the numbers before the line, so that no file has two writers and a kill
costs one video.
Of one video there are, by stream, (flips, places, features) numbers; both streams are at the
same places.
"""

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.run.paths import checksum, read_sealed, sealed, unsealed, write_sealed
from hpc_stres.store.format import VideoRow

FOLDER, INDEX = "features", "index.json"
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Entry:
    """Where one video's features lie. `streams` are the features a place of each
    stream there is."""

    video: str
    content: str
    file: str
    offset: int
    bytes: int
    sha256: str
    first: int
    every: int
    places: int
    flips: int
    type: str
    streams: dict[str, int]


def content_of(row: VideoRow) -> str:
    """What a video's features depend on of the store."""
    return checksum([row.frames, row.flow_pairs, row.rgb_sha256, row.flow_sha256])[:16]


def cache_folder(store: Path, made_by: Mapping[str, Any]) -> Path:
    """The cache of what made it: weights, sizes, places."""
    return store / FOLDER / checksum(dict(made_by))[:16]


class FeatureWriter:
    """Appends the features of one rank of one attempt."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.stem = folder / f"part-{rank:05d}-{uuid.uuid4().hex[:12]}"
        self.offset = 0

    def write(self, row: VideoRow, streams: Mapping[str, Array], first: int, every: int) -> None:
        """One video; after a kill it is there whole, or left out."""
        flips, places, _ = next(iter(streams.values())).shape
        data = b"".join(np.ascontiguousarray(a).tobytes() for _, a in sorted(streams.items()))
        numbers = self.stem.with_suffix(".bin")
        entry = Entry(
            row.id, content_of(row), numbers.name, self.offset, len(data),
            hashlib.sha256(data).hexdigest(), first, every, places, flips,
            next(iter(streams.values())).dtype.str,
            {name: array.shape[2] for name, array in sorted(streams.items())},
        )  # fmt: skip
        try:
            numbers.parent.mkdir(parents=True, exist_ok=True)
            with numbers.open("ab") as stream:
                stream.write(data)
            line = json.dumps(sealed(asdict(entry)), ensure_ascii=False) + "\n"
            with self.stem.with_suffix(".jsonl").open("a", encoding="utf-8") as text:
                text.write(line)
        except OSError as error:
            raise UserError(
                f"{numbers}: cannot be written: {error.strerror}\n"
                "What was computed is kept: run the same command again."
            ) from None
        self.offset += len(data)


def written(folder: Path, contents: Mapping[str, str]) -> dict[str, Entry]:
    """Entries of the videos in `contents` (id to content) over all attempts, the first of each."""
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("part-*.jsonl")):
        for entry in _entries(path):
            if contents.get(entry.video) == entry.content:
                entries.setdefault(entry.video, entry)
    return entries


def _entries(path: Path) -> Iterator[Entry]:
    """Whole lines of one part whose numbers are there; a torn or damaged one is computed again."""
    numbers = path.with_suffix(".bin")
    size = numbers.stat().st_size if numbers.is_file() else 0
    for line in path.read_bytes().split(b"\n"):
        try:
            value = unsealed(json.loads(line.decode("utf-8")), str(path), "") if line else None
        except (ValueError, UserError):
            continue
        if value is not None and value["offset"] + value["bytes"] <= size:
            yield Entry(**value)


def finish(folder: Path, made_by: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
    """The index: from here on the cache is whole."""
    rows = [asdict(entries[name]) for name in sorted(entries)]
    write_sealed(folder / INDEX, {"made_by": dict(made_by), "videos": rows})


class Features:
    """A whole cache, opened for reading. Numbers are compared with their checksum
    when first read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.remedy = f"Remove {folder} and run the phase that makes these features again."
        index = read_sealed(folder / INDEX, self.remedy)
        try:
            self.made_by: dict[str, Any] = index["made_by"]
            self.entries = {row["video"]: Entry(**row) for row in index["videos"]}
        except (KeyError, TypeError) as error:
            reason = f"written by another version: {error}"
            raise UserError(f"{folder / INDEX}: {reason}\n{self.remedy}") from None
        self._files: dict[str, NDArray[np.uint8]] = {}
        self._checked: set[str] = set()

    def take(self, row: VideoRow, frames: tuple[int, ...], flip: bool) -> dict[str, Array]:
        """Features of some frames of a video by stream: (frames, features)."""
        entry = self.entries.get(row.id)
        if entry is None or entry.content != content_of(row):
            what = "has no features" if entry is None else "was prepared again since"
            raise UserError(f"{self.folder}: video {row.id} {what}\n{self.remedy}")
        places = [self._place(entry, frame) for frame in frames]
        if flip >= entry.flips:
            raise UserError(f"{self.folder}: no features of mirrored frames\n{self.remedy}")
        numbers = self._numbers(entry)
        taken, start = {}, 0
        for stream, width in entry.streams.items():
            stop = start + entry.flips * entry.places * width
            whole = numbers[start:stop].reshape(entry.flips, entry.places, width)
            taken[stream], start = whole[int(flip), places], stop
        return taken

    def _place(self, entry: Entry, frame: int) -> int:
        place, rest = divmod(frame - entry.first, entry.every)
        if rest or not 0 <= place < entry.places:
            raise UserError(
                f"{self.folder}: no features of frame {frame} of video {entry.video}\n"
                "The phase that makes features and the one that reads them need one frame_grid."
            )
        return place

    def _numbers(self, entry: Entry) -> Array:
        data = self._file(entry.file)[entry.offset : entry.offset + entry.bytes]
        if entry.video not in self._checked:
            if hashlib.sha256(data.tobytes()).hexdigest() != entry.sha256:
                raise UserError(
                    f"{self.folder / entry.file}: the features of video {entry.video} are damaged\n{self.remedy}"
                )
            self._checked.add(entry.video)
        numbers: Array = data.view(np.dtype(entry.type))
        return numbers

    def _file(self, name: str) -> NDArray[np.uint8]:
        if name not in self._files:
            try:
                self._files[name] = np.memmap(self.folder / name, np.uint8, "r")
            except (OSError, ValueError) as error:
                raise UserError(f"{self.folder / name}: {error}\n{self.remedy}") from None
        return self._files[name]
