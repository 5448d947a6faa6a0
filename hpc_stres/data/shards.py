"""The clip store: tar shards of JPEG frames, an index with the byte range of every frame, a checksum per member.

    STORE/manifest.json       what made it, and a checksum per shard
    STORE/videos.jsonl        one row a video: id, label, sizes, where its frames stand, checksums
    STORE/offsets.npy         byte offsets of frames in their shard (memory-mapped)
    STORE/rejected.jsonl      videos that did not decode, with the reason
    STORE/shards/00000.tar    members ID.rgb.mjpeg, ID.flow.mjpeg (u and v of each frame in turn) and ID.json

A video of one frame has no flow; it is stored with one pair of planes at rest.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.runpaths import atomic_path, read_json_lines, sha256, write_json, write_text

Stream = Literal["rgb", "flow"]
FORMAT = 1


@dataclass(frozen=True)
class StorePaths:
    """File names of a store."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def videos(self) -> Path:
        return self.root / "videos.jsonl"

    @property
    def offsets(self) -> Path:
        return self.root / "offsets.npy"

    @property
    def rejected(self) -> Path:
        return self.root / "rejected.jsonl"

    def shard(self, number: int) -> Path:
        return self.root / "shards" / f"{number:05d}.tar"

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    def part(self, video_id: str) -> Path:
        """A prepared video that is not packed yet; hashed, because ids hold any character."""
        return self.parts / f"{hashlib.sha256(video_id.encode()).hexdigest()[:24]}.tar"

    def rejection(self, video_id: str) -> Path:
        return self.part(video_id).with_suffix(".rejected.json")


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """One video of the store; `rgb_first` and `flow_first` are rows of the offsets."""

    id: str
    label: int
    frames: int
    flow_pairs: int
    height: int
    width: int
    shard: int
    rgb_first: int
    flow_first: int
    rgb_sha256: str
    flow_sha256: str


@dataclass(frozen=True)
class PreparedVideo:
    """The JPEG frames of one video before they are packed."""

    id: str
    label: int
    height: int
    width: int
    rgb: list[bytes]
    flow: list[bytes]
    note: str | None = None
    """What should be said of this video, as that it is shorter than its header promises."""

    def write_part(self, path: Path) -> None:
        """A tar with this video's three members."""
        meta = {
            "id": self.id,
            "label": self.label,
            "height": self.height,
            "width": self.width,
            "rgb_bytes": [len(frame) for frame in self.rgb],
            "flow_bytes": [len(plane) for plane in self.flow],
            "rgb_sha256": hashlib.sha256(b"".join(self.rgb)).hexdigest(),
            "flow_sha256": hashlib.sha256(b"".join(self.flow)).hexdigest(),
        }
        with atomic_path(path) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, f"{self.id}.json", json.dumps(meta, ensure_ascii=False).encode())
            _add(tar, f"{self.id}.rgb.mjpeg", b"".join(self.rgb))
            _add(tar, f"{self.id}.flow.mjpeg", b"".join(self.flow))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))


def pack(store: StorePaths, ids: Sequence[str], shard_bytes: int) -> None:
    """Parts into shards, in the order of `ids`, whatever the order in which they were made; then the index."""
    rows: list[VideoRow] = []
    offsets: list[int] = []
    for number, chosen in enumerate(_batches(store, ids, shard_bytes)):
        with atomic_path(store.shard(number)) as temporary:
            made, _ = write_shard(temporary, store, chosen, number, offsets)
            rows += made
    write_index(store, rows, offsets)


def write_shard(
    path: Path, store: StorePaths, ids: Sequence[str], number: int, offsets: list[int] | None = None
) -> tuple[list[VideoRow], list[int]]:
    """One shard from the parts of some videos; their rows, and the offsets with theirs added."""
    offsets = [] if offsets is None else offsets
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        rows = [_append(tar, store.part(video_id), number, offsets) for video_id in ids]
    return rows, offsets


def write_index(store: StorePaths, rows: Sequence[VideoRow], offsets: Sequence[int]) -> None:
    """videos.jsonl and offsets.npy."""
    with atomic_path(store.offsets) as temporary, temporary.open("wb") as stream:
        np.save(stream, np.array(offsets, dtype=np.int64))
    write_text(store.videos, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows))


def scan_shard(path: Path, offsets: list[int]) -> list[VideoRow]:
    """The rows of a shard read out of the shard itself; adds its offsets."""
    rows = []
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar.getmembers()}
        for name, member in members.items():
            if not name.endswith(".json"):
                continue
            meta = json.loads(_content(tar, member))
            first: dict[str, int] = {}
            for stream in ("rgb", "flow"):
                start = members[f"{meta['id']}.{stream}.mjpeg"].offset_data
                first[stream] = len(offsets)
                offsets.extend((start + np.cumsum([0, *meta[f"{stream}_bytes"]])).tolist())
            rows.append(_row(meta, int(path.stem), first))
    return rows


def _batches(store: StorePaths, ids: Sequence[str], shard_bytes: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for video_id in ids:
        batch.append(video_id)
        size += store.part(video_id).stat().st_size
        if size >= shard_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _append(tar: tarfile.TarFile, part: Path, shard: int, offsets: list[int]) -> VideoRow:
    """Copy a part's members into a shard and note where each frame comes to stand."""
    with tarfile.open(part) as source:
        members = source.getmembers()
        blobs = [_content(source, member) for member in members]
    meta = json.loads(blobs[0])
    first: dict[str, int] = {}
    for member, blob in zip(members, blobs, strict=True):
        _add(tar, member.name, blob)
        if member.name.endswith(".json"):
            continue
        stream = "rgb" if member.name.endswith(".rgb.mjpeg") else "flow"
        # The member that was just added ends at the tar's current offset, rounded up to whole blocks.
        start = tar.offset - -(-len(blob) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        first[stream] = len(offsets)
        offsets.extend((start + np.cumsum([0, *meta[f"{stream}_bytes"]])).tolist())
    return _row(meta, shard, first)


def _row(meta: dict[str, Any], shard: int, first: dict[str, int]) -> VideoRow:
    return VideoRow(
        id=meta["id"],
        label=meta["label"],
        frames=len(meta["rgb_bytes"]),
        flow_pairs=len(meta["flow_bytes"]) // 2,
        height=meta["height"],
        width=meta["width"],
        shard=shard,
        rgb_first=first["rgb"],
        flow_first=first["flow"],
        rgb_sha256=meta["rgb_sha256"],
        flow_sha256=meta["flow_sha256"],
    )


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None
    return stream.read()


def write_manifest(store: StorePaths, settings: dict[str, Any], listing: dict[str, Any]) -> None:
    """The last file of a store: with it, the store is complete."""
    shards = sorted((store.root / "shards").glob("*.tar"))
    sums = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in shards}
    write_manifest_file(store, {"format": FORMAT, "settings": settings, **listing, "shards": sums})


def write_manifest_file(store: StorePaths, manifest: dict[str, Any]) -> None:
    """The manifest with the checksums of the index as it is now."""
    index = {path.name: sha256(path) for path in (store.videos, store.offsets)}
    write_json(store.manifest, {**manifest, "index": index})


def read_manifest(store: StorePaths) -> dict[str, Any]:
    """The manifest; refuses a folder without one, or of another format."""
    if not store.manifest.is_file():
        raise UserError(f"{store.root}: no prepared store here\nRun `hpc-stres prepare` with the same config first.")
    try:
        manifest: dict[str, Any] = json.loads(store.manifest.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{store.manifest}: damaged: {error}\nRemove the store and prepare it again.") from None
    if manifest["format"] != FORMAT:
        raise UserError(f"{store.root}: store format {manifest['format']}; this version reads {FORMAT}: prepare again")
    return manifest


def damaged_index(store: StorePaths, manifest: dict[str, Any]) -> list[str]:
    """Names of index files that are missing or not as they were written."""
    sums = manifest.get("index", {})
    return [name for name, digest in sums.items() if _sum_of(store.root / name) != digest]


def _sum_of(path: Path) -> str:
    return sha256(path) if path.is_file() else ""


class Store:
    """A complete store, opened for reading: any frame is a slice of a memory map."""

    def __init__(self, root: Path) -> None:
        self.paths = StorePaths(root)
        self.manifest = read_manifest(self.paths)
        self.rows = [VideoRow(**row) for row in read_json_lines(self.paths.videos)]
        self.number = {row.id: index for index, row in enumerate(self.rows)}
        self.offsets: NDArray[np.int64] = np.asarray(np.load(self.paths.offsets, mmap_mode="r"))
        self._maps: dict[int, NDArray[np.uint8]] = {}

    @property
    def place(self) -> str:
        """Name for messages."""
        return str(self.paths.root)

    @property
    def classes(self) -> list[str]:
        return list(self.manifest["classes"])

    def ids(self, split: int, kind: Literal["train", "test"]) -> list[str]:
        """Ids of a split as its list gives them, rejected videos included."""
        if str(split) not in self.manifest[kind]:
            there = ", ".join(self.manifest[kind])
            raise UserError(f"{self.paths.root}: the store has no split {split}; it has {there}")
        return list(self.manifest[kind][str(split)])

    def present(self, split: int, kind: Literal["train", "test"]) -> list[int]:
        """Row numbers of a split's videos that were prepared."""
        return [self.number[name] for name in self.ids(split, kind) if name in self.number]

    @cached_property
    def rejected(self) -> dict[str, str]:
        """Ids and reasons of videos that did not decode."""
        return {row["id"]: row["reason"] for row in read_json_lines(self.paths.rejected)}

    def _shard(self, number: int) -> NDArray[np.uint8]:
        if number not in self._maps:
            # A plain array over the map: slices of the subclass cost ten times as much.
            self._maps[number] = np.asarray(np.memmap(self.paths.shard(number), dtype=np.uint8, mode="r"))
        return self._maps[number]

    def rgb(self, video: int, frame: int) -> NDArray[np.uint8]:
        """JPEG bytes of one RGB frame."""
        row = self.rows[video]
        return self._slice(row, row.rgb_first + self._inside(frame, row.frames, row))

    def flow(self, video: int, pair: int, axis: int) -> NDArray[np.uint8]:
        """JPEG bytes of the u (axis 0) or v (axis 1) plane from frame `pair` to the next."""
        row = self.rows[video]
        return self._slice(row, row.flow_first + 2 * self._inside(pair, row.flow_pairs, row) + axis)

    @staticmethod
    def _inside(index: int, count: int, row: VideoRow) -> int:
        if not 0 <= index < count:
            raise IndexError(f"video {row.id} has no frame {index}: there are {count}")
        return index

    def _slice(self, row: VideoRow, entry: int) -> NDArray[np.uint8]:
        start, stop = int(self.offsets[entry]), int(self.offsets[entry + 1])
        return self._shard(row.shard)[start:stop]

    def member(self, video: int, stream: Stream) -> NDArray[np.uint8]:
        """All bytes of one member."""
        row = self.rows[video]
        first, count = (row.rgb_first, row.frames) if stream == "rgb" else (row.flow_first, 2 * row.flow_pairs)
        return self._shard(row.shard)[int(self.offsets[first]) : int(self.offsets[first + count])]


@dataclass(frozen=True)
class Damage:
    """What is not as it was written: videos with a line for each member, and shards by number."""

    videos: dict[str, list[str]]
    shards: dict[int, str]

    def is_missing(self, shard: int) -> bool:
        return self.shards.get(shard, "").endswith("missing")

    def lines(self) -> list[str]:
        """One line for each damaged member or shard."""
        return [line for lines in self.videos.values() for line in lines] + list(self.shards.values())


def find_damage(store: Store) -> Damage:
    """Re-read everything."""
    videos: dict[str, list[str]] = {}
    broken: dict[int, str] = {}
    sizes = {}
    for name, sums in store.manifest["shards"].items():
        path = store.paths.root / "shards" / name
        sizes[int(path.stem)] = path.stat().st_size if path.is_file() else 0
        if not path.is_file():
            broken[int(path.stem)] = f"{name}: the shard is missing"
        elif sizes[int(path.stem)] != sums["bytes"]:
            broken[int(path.stem)] = f"{name}: {sizes[int(path.stem)]} bytes long, not {sums['bytes']}"
    for number, row in enumerate(store.rows):
        for stream, expected in (("rgb", row.rgb_sha256), ("flow", row.flow_sha256)):
            found = hashlib.sha256(store.member(number, stream)).hexdigest() if sizes.get(row.shard) else ""  # type: ignore[arg-type]
            if found != expected and not broken.get(row.shard, "").endswith("missing"):
                line = f"{store.paths.shard(row.shard).name}: {row.id}.{stream}.mjpeg is damaged"
                videos.setdefault(row.id, []).append(line)
    touched = {store.rows[store.number[name]].shard for name in videos} | set(broken)
    for name, sums in store.manifest["shards"].items():
        path = store.paths.root / "shards" / name
        if int(path.stem) not in touched and sha256(path) != sums["sha256"]:
            broken[int(path.stem)] = f"{name}: a header or padding between members is damaged"
    return Damage(videos, broken)


def verify(store: Store) -> list[str]:
    """One line for each damaged member, or shard where the damage lies between members, or file of the index."""
    index = [f"{name}: this file of the index is damaged" for name in damaged_index(store.paths, store.manifest)]
    return index + find_damage(store).lines()


def write_rejections(store: StorePaths, ids: Sequence[str]) -> list[dict[str, str]]:
    """Collect the rejections of single videos into rejected.jsonl, in the order of `ids`."""
    rows = [json.loads(store.rejection(name).read_text("utf-8")) for name in ids if store.rejection(name).is_file()]
    write_text(store.rejected, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return rows
