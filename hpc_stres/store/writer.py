"""Writing a store so that at every moment the folder holds the old one whole or the new one whole.

New shards get numbers that no shard of the old manifest has, files of the index are named by their
content, and the manifest that points to all of them is replaced last. What it no longer points to
is removed afterwards. Memory: the rows of all videos, and the offsets of one video at a time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_stres.run.paths import SEAL, atomic_path, sealed, sha256, write_bytes, write_sealed
from hpc_stres.store.format import (
    DTYPES,
    FORMAT,
    LISTING,
    ROLES,
    VIDEOS,
    Offsets,
    Source,
    StorePaths,
    VideoRow,
    check_id,
    places_crc,
)

Places = tuple[Offsets, Offsets]


@dataclass(frozen=True)
class Packed:
    """A video that is in a shard."""

    row: VideoRow
    source: Source
    note: str | None


@dataclass
class Contents:
    """What shards hold, whoever says so: an opened store, shards that were just packed, or
    shards read through."""

    videos: dict[str, Packed] = field(default_factory=dict)
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    places: Callable[[VideoRow], Places] | None = None


@dataclass
class Catalogue:
    """The listing of a store: ids in sorted order with label, path and content, and the splits."""

    kind: str
    classes: list[str]
    labels: dict[str, int]
    paths: dict[str, str]
    sources: dict[str, Source]
    train: dict[int, list[str]]
    test: dict[int, list[str]]
    label_sets: list[list[int]] | None = None

    @property
    def ids(self) -> list[str]:
        return sorted(self.labels)

    def names_of(self, video_id: str) -> list[str]:
        """The class names of a video."""
        label = self.labels[video_id]
        return [
            self.classes[n]
            for n in ([label] if self.label_sets is None else self.label_sets[label])
        ]


def slices(offsets: Any, row: VideoRow) -> Places:
    """A video's places out of the offsets that its row counts in."""
    rgb = offsets[row.rgb_first : row.rgb_first + row.frames + 1]
    flow = offsets[row.flow_first : row.flow_first + 2 * row.flow_pairs + 1]
    return rgb, flow


# -- index and manifest ----------------------------------------------------------------------------


def write_index(
    store: StorePaths,
    catalogue: Catalogue,
    contents: Sequence[Contents],
    rejected: Sequence[dict[str, Any]],
    settings: dict[str, Any],
) -> None:
    """The index of the listed videos that some shards hold, and the manifest: from here on,
    this is the store."""
    ids = catalogue.ids
    listed = {video_id: number for number, video_id in enumerate(ids)}
    chosen = [
        (packed, one.places)
        for one in contents
        for video_id, packed in one.videos.items()
        if video_id in listed and one.places is not None
    ]
    chosen.sort(key=lambda item: (item[0].row.shard, item[0].row.rgb_first))
    index = _write_listing(store, catalogue, ids)
    index["splits"], splits = _write_splits(store, catalogue, listed)
    index["offsets"], rows = _write_offsets(store, chosen, listed)
    rows.sort(key=lambda row: row[2])
    index["videos"] = _save(store, "videos", np.array(rows, VIDEOS))
    notes = [{"id": packed.row.id, "note": packed.note} for packed, _ in chosen if packed.note]
    index["remarks"] = write_remarks(store, [*rejected, *notes])
    used = {packed.row.shard for packed, _ in chosen}
    shards = {name: sums for one in contents for name, sums in one.shards.items()}
    manifest = {
        "format": FORMAT,
        "kind": catalogue.kind,
        "settings": settings,
        "classes": catalogue.classes,
        **({} if catalogue.label_sets is None else {"label_sets": catalogue.label_sets}),
        **splits,
        "videos": len(rows),
        "listed": len(ids),
        "index": {role: index[role] for role in ROLES},
        "shards": {
            name: shards[name] for name in sorted(shards) if int(name.split(".")[0]) in used
        },
    }
    write_manifest(store, manifest)


def write_manifest(store: StorePaths, manifest: dict[str, Any]) -> None:
    """Replace the manifest, unless it says the same already."""
    with suppress(OSError, ValueError):
        if json.loads(store.manifest.read_bytes()) == sealed(manifest):
            return
    write_sealed(store.manifest, {key: value for key, value in manifest.items() if key != SEAL})


def _write_listing(store: StorePaths, catalogue: Catalogue, ids: Sequence[str]) -> dict[str, Any]:
    rows = np.zeros(len(ids), LISTING)
    texts: list[bytes] = []
    start = 0
    for number, video_id in enumerate(ids):
        check_id(video_id)
        name = video_id.encode()
        # A path that is not UTF-8 is kept as it is: it is shown, never opened.
        path = catalogue.paths[video_id].encode("utf-8", "backslashreplace")
        source = catalogue.sources[video_id]
        label, digest = catalogue.labels[video_id], bytes.fromhex(source.sha256)
        rows[number] = (start, source.size, len(name), len(path), label, digest)
        texts += [name, path]
        start += len(name) + len(path)
    names = np.frombuffer(b"".join(texts), np.uint8)
    return {"listing": _save(store, "listing", rows), "names": _save(store, "names", names)}


def _write_splits(
    store: StorePaths, catalogue: Catalogue, listed: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The splits' rows of the listing one after the other, and where each begins
    and how long it is."""
    rows: list[int] = []
    spans: dict[str, dict[str, list[int]]] = {"train": {}, "test": {}}
    for kind, splits in (("train", catalogue.train), ("test", catalogue.test)):
        for split, ids in splits.items():
            spans[kind][str(split)] = [len(rows), len(ids)]
            rows += [listed[video_id] for video_id in ids]
    return _save(store, "splits", np.array(rows, DTYPES["splits"])), spans


def _write_offsets(
    store: StorePaths,
    chosen: Sequence[tuple[Packed, Callable[[VideoRow], Places]]],
    listed: Mapping[str, int],
) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """The offsets of all videos, a video at a time, and the rows that point to them."""
    rows: list[tuple[Any, ...]] = []
    count = 0

    def stream_places() -> Iterator[Offsets]:
        nonlocal count
        for packed, places_of in chosen:
            rgb, flow = places_of(packed.row)
            row = replace(packed.row, rgb_first=count, flow_first=count + len(rgb))
            rows.append(_as_tuple(row, listed[row.id], places_crc(rgb, flow)))
            count += len(rgb) + len(flow)
            yield rgb
            yield flow

    total = sum(p.row.frames + 1 + 2 * p.row.flow_pairs + 1 for p, _ in chosen)
    return save_stream(store, "offsets", total, stream_places()), rows


def _as_tuple(row: VideoRow, listed: int, crc: int) -> tuple[Any, ...]:
    sums = bytes.fromhex(row.rgb_sha256), bytes.fromhex(row.flow_sha256)
    sizes = row.frames, row.flow_pairs, row.height, row.width, row.shard
    return (row.rgb_first, row.flow_first, listed, *sizes, crc, *sums)


def _save(store: StorePaths, role: str, rows: Any) -> dict[str, Any]:
    return save_stream(store, role, len(rows), [rows])


def save_stream(store: StorePaths, role: str, count: int, pieces: Iterable[Any]) -> dict[str, Any]:
    """A .npy file of one column of rows under the name of its content."""
    dtype = DTYPES[role]
    store.index.mkdir(parents=True, exist_ok=True)
    temporary = store.index / f".{role}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as stream:
            descr = np.lib.format.dtype_to_descr(dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(stream, header)
            for piece in pieces:
                stream.write(np.ascontiguousarray(piece, dtype).tobytes())
        digest, size = sha256(temporary), temporary.stat().st_size
        name = f"{role}-{digest[:16]}{ROLES[role]}"
        put_in_place(temporary, store.index / name)
    finally:
        temporary.unlink(missing_ok=True)
    return {"name": name, "bytes": size, "sha256": digest}


def put_in_place(temporary: Path, path: Path) -> None:
    """Sync a finished file and give it its name."""
    with atomic_path(path) as final:
        os.replace(temporary, final)


def write_remarks(store: StorePaths, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Rejections and notes, sorted by id."""
    ordered = sorted(rows, key=lambda row: row["id"])
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered).encode(
        "utf-8", "backslashreplace"
    )
    digest = hashlib.sha256(text).hexdigest()
    name = f"remarks-{digest[:16]}.jsonl"
    write_bytes(store.index / name, text)
    return {"name": name, "bytes": len(text), "sha256": digest}


def remove_unused(store: StorePaths, manifest: dict[str, Any]) -> None:
    """Remove what the manifest does not point to: old shards and index, parts, what a kill left."""
    used = {entry["name"] for entry in manifest["index"].values()} | set(manifest["shards"])
    for folder in (store.index, store.shards):
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in used and not path.is_dir():
                path.unlink(missing_ok=True)
    shutil.rmtree(store.parts, ignore_errors=True)
    remove_temporaries(store)


def remove_temporaries(store: StorePaths) -> None:
    """Remove what killed processes left under temporary names; only for the owner of the store."""
    for folder in (store.root, store.parts, store.shards, store.index):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
