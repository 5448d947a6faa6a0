"""Parts into shards, on little more than the disk of either.

A shard is packed from the parts of its videos. When it is on the disk for good, and beside it a
record of all that the index will need, its parts are removed. So at any moment a video is in a
part, or in a recorded shard, or in a shard of the index; a killed run is resumed from there. What
is on the disk twice are the shards under work and no more.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hpc_stres.errors import DAMAGED_NPZ, UserError
from hpc_stres.run.paths import atomic_path, sha256
from hpc_stres.store.format import (
    NO_SHA256,
    PREPARE,
    Meta,
    Offsets,
    PreparedVideo,
    Source,
    Stamp,
    StorePaths,
    VideoRow,
    add_member,
    member_bytes,
    read_part,
)
from hpc_stres.store.writer import Catalogue, Contents, Packed, slices, write_index


@dataclass(frozen=True)
class PackedShard:
    """A finished shard that no index points to yet: its videos, and the stamps of what
    they were made from."""

    number: int
    sums: dict[str, Any]
    settings: dict[str, Any]
    videos: dict[str, Packed]
    stamps: dict[str, Stamp | None]

    def contents(self, store: StorePaths, used: Collection[str]) -> Contents:
        """The part of it that an index is to point to. Offsets are read a shard at a time, when
        they are written."""
        record = store.packed(self.number)
        videos = {name: packed for name, packed in self.videos.items() if name in used}
        sums = {store.shard(self.number).name: self.sums}
        return Contents(
            videos, sums, lambda row: slices(_offsets_of(record, record.stat().st_mtime_ns), row)
        )


@lru_cache(maxsize=1)
def _offsets_of(record: Path, _mtime_ns: int) -> Offsets:
    with np.load(record) as done:
        return np.asarray(done["offsets"], np.int64)


def batches(sizes: Mapping[str, int], shard_bytes: int) -> Iterator[list[str]]:
    """Ids, in sorted order, of one shard after the other."""
    batch: list[str] = []
    size = 0
    for video_id in sorted(sizes):
        batch.append(video_id)
        size += sizes[video_id]
        if size >= shard_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def free_numbers(first: int, taken: Collection[int]) -> Iterator[int]:
    """Numbers for new shards from `first` on. A resumed run gives those that a straight run would
    give: whole shards are taken out of the sorted videos, which leaves the borders between the
    others where they were."""
    number = first
    while True:
        if number not in taken:
            yield number
        number += 1


def pack_shard(store: StorePaths, ids: Sequence[str], number: int) -> None:
    """One shard from the parts of some videos, the record of what it holds, and only then the
    end of the parts."""
    parts = [store.part(video_id) for video_id in ids]
    stamps = [read_part(part) for part in parts]
    # Of a shard that had this number before, under other settings: it would tell of this one.
    store.packed(number).unlink(missing_ok=True)
    with atomic_path(store.shard(number)) as temporary:
        rows, offsets = write_shard(temporary, parts, number)
        digest, size = sha256(temporary), temporary.stat().st_size
    videos = [
        {
            "row": asdict(row),
            "source": list(meta.source),
            "note": meta.note,
            "stamp": stamp and list(stamp),
        }
        for row, (stamp, meta) in zip(rows, stamps, strict=True)
    ]
    text = json.dumps(
        {"settings": stamps[0][1].settings, "videos": videos}, ensure_ascii=False
    ).encode()
    with atomic_path(store.packed(number)) as temporary, temporary.open("wb") as stream:
        told = np.frombuffer(text, np.uint8)
        np.savez(
            stream, videos=told, bytes=np.int64(size), sha256=np.array(digest), offsets=offsets
        )
    for part in parts:
        part.unlink(missing_ok=True)


def read_packed(store: StorePaths, number: int) -> PackedShard | None:
    """What `pack_shard` wrote; None where it was not finished, or is damaged: it is packed again."""
    with suppress(*DAMAGED_NPZ), np.load(store.packed(number)) as done:
        done["offsets"]  # used later; reading it compares its checksum
        if store.shard(number).stat().st_size != int(done["bytes"]):
            return None
        told = json.loads(done["videos"].tobytes())
        videos, stamps = {}, {}
        for one in told["videos"]:
            row = VideoRow(**one["row"])
            videos[row.id] = Packed(row, Source(*one["source"]), one["note"])
            stamps[row.id] = Stamp(*one["stamp"]) if one["stamp"] else None
        sums = {"bytes": int(done["bytes"]), "sha256": str(done["sha256"])}
        return PackedShard(number, sums, told["settings"], videos, stamps)
    return None


def all_packed(
    store: StorePaths, settings: Mapping[str, Any], known: Collection[str]
) -> list[PackedShard]:
    """Shards that a killed run finished with these settings, less those that the index has
    (`known`, file names)."""
    shards = []
    for path in sorted(store.parts.glob("packed-*.npz")):
        number = int(path.stem.removeprefix("packed-"))
        shard = read_packed(store, number) if store.shard(number).name not in known else None
        if shard is not None and shard.settings == json.loads(json.dumps(settings)):
            shards.append(shard)
    return shards


def write_shard(path: Path, parts: Iterable[Path], number: int) -> tuple[list[VideoRow], Offsets]:
    """A tar of the members of parts; its rows, and its offsets."""
    rows: list[VideoRow] = []
    offsets: list[Offsets] = []
    count = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for part in parts:
            meta, rgb, flow = _read_members(part)
            add_member(tar, f"{meta.id}.json", meta.as_json())
            firsts = []
            for stream, data, sizes in (
                ("rgb", rgb, meta.rgb_bytes),
                ("flow", flow, meta.flow_bytes),
            ):
                start = add_member(tar, f"{meta.id}.{stream}.mjpeg", data)
                offsets.append(start + np.cumsum([0, *sizes], dtype=np.int64))
                firsts.append(count)
                count += len(sizes) + 1
            rows.append(meta.row(number, *firsts))
    return rows, np.concatenate(offsets)


def _read_members(part: Path) -> tuple[Meta, bytes, bytes]:
    try:
        with tarfile.open(part) as tar:
            blobs = [member_bytes(tar, member) for member in tar.getmembers()[1:4]]
        meta = Meta.read(blobs[0])
        sums = [hashlib.sha256(blob).hexdigest() for blob in blobs[1:]]
        if sums != [meta.rgb_sha256, meta.flow_sha256]:
            raise ValueError("its checksum is wrong")
    except (ValueError, IndexError, tarfile.TarError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{part}: damaged since it was written: {error}\n{PREPARE}") from None
    return meta, blobs[1], blobs[2]


def write_store(
    root: Path,
    videos: Sequence[PreparedVideo],
    classes: Sequence[str],
    train: Sequence[str] = (),
    test: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
) -> None:
    """A whole store of videos in memory, with one split and one shard."""
    store = StorePaths(root)
    for video in videos:
        video.write_part(store.part(video.id))
    ids = sorted(video.id for video in videos)
    pack_shard(store, ids, 0)
    labels = {video.id: video.label for video in videos}
    sources = dict.fromkeys(ids, Source(0, NO_SHA256))
    split = {1: list(train)}, {1: list(test)}
    catalogue = Catalogue("csv", list(classes), labels, dict.fromkeys(ids, ""), sources, *split)
    shard = read_packed(store, 0)
    assert shard is not None
    write_index(store, catalogue, [shard.contents(store, ids)], [], settings or {})
    shutil.rmtree(store.parts)
