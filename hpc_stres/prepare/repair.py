"""Repairing a store: damaged videos are prepared again, and only their shards are written anew.

Preparing is deterministic, so a repaired shard has the bytes that it was born with and takes the
place of the damaged one. Where it has not (another version of a codec), it gets a new number and
the index is written anew, and that is said. Where the index or the manifest is damaged, both are
made again out of the shards and the config's listing.
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpc_stres.config.schema import Config, DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import sources
from hpc_stres.listings.splits import Video
from hpc_stres.prepare import before, disk, imports, reuse, run, worker_tasks
from hpc_stres.run.paths import sha256
from hpc_stres.run.progress import Progress
from hpc_stres.store import checks, fingerprint, packing, writer
from hpc_stres.store.format import Meta, Offsets, StorePaths, VideoRow, member_bytes, read_part
from hpc_stres.store.listing import catalogue_of
from hpc_stres.store.location import Settings, data_of, store_folder
from hpc_stres.store.reader import Store
from hpc_stres.store.writer import Contents, Packed


def inspect(root: Path) -> list[str]:
    """One line for each thing that is damaged; refuses a folder without a store."""
    paths = StorePaths(root)
    if not paths.manifest.is_file() and not any(paths.shards.glob("*.tar")):
        checks.read_manifest(paths)  # says that there is none
    try:
        return checks.find_damage(Store(root, check_shards=False)).lines()
    except UserError as error:
        return [str(error).splitlines()[0]]


def repair(config: Config, quiet: bool = False) -> list[str]:
    """Repair what `verify` finds; returns a line for each thing done."""
    paths = StorePaths(store_folder(config))
    with before.named_errors(paths.root), before.owning(paths, "this store is being repaired"):
        done = _repair_index(config, paths, quiet)
        store = Store(paths.root, check_shards=False)
        damage = checks.find_damage(store)
        if not damage.videos and not damage.shards:
            return done
        work = paths.root / "repair"
        try:
            return done + _repair_shards(config, store, damage, work, quiet)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _repair_index(config: Config, paths: StorePaths, quiet: bool) -> list[str]:
    """Where the index or the manifest is damaged, make both again; what is damaged in shards as
    well is prepared."""
    try:
        Store(paths.root, check_shards=False).offsets.check()
        return []
    except UserError as error:
        line = str(error).splitlines()[0]
    with worker_tasks.executor_of(config.data.workers or disk.cores()) as executor:
        if executor is None:
            return []
        work = run.Preparation(config, paths, executor, config.data.workers or disk.cores(), quiet)
        work.complete(None, scan(paths, work.settings))
    return [f"{line}: the index is read anew out of the shards and the lists"]


def _repair_shards(
    config: Config, store: Store, damage: checks.Damage, work: Path, quiet: bool
) -> list[str]:
    rows = [row for row in store.rows if row.shard in damage.shards or row.id in damage.videos]
    numbers = sorted({row.shard for row in rows})
    again = set(damage.videos) | {row.id for row in rows if damage.is_missing(row.shard)}
    _prepare_again(config, store, again, work, quiet)
    lines, moved = [], []
    for number in numbers:
        line, contents = _rewrite_shard(store, number, again, work)
        lines.append(line)
        moved += [contents] if contents else []
    # A shard that holds nothing of use any more needs no rewriting.
    if moved or damage.shards.keys() - set(numbers):
        _write_index(store, moved)
    return [f"{name}: prepared again" for name in sorted(again)] + lines


def _prepare_again(
    config: Config, store: Store, again: Collection[str], work: Path, quiet: bool
) -> None:
    """Parts of damaged videos from their originals, which must be what they were."""
    data, settings = data_of(config), Settings.of(config.data)
    listing = sources.read_listing(data)
    for name in sorted(again):
        _refuse_another_original(store, name, listing.videos.get(name), data)
    with Progress("repair", len(again), "videos", not quiet) as progress:
        for number, name in enumerate(sorted(again), 1):
            source = store.source_of(store.listed(name) or 0)
            made = imports.prepare_one(listing.videos[name], settings, data)
            made.write_part(_part(work, name), source, settings.as_json())
            progress.update(number)


def _refuse_another_original(
    store: Store, name: str, video: Video | None, data: DataConfig
) -> None:
    if video is None or not sources.exists(video):
        raise UserError(
            f"{store.place}: {name} cannot be prepared again: the original is gone\n"
            "Bring it back, or prepare what there is: `hpc-stres prepare` after taking it out of the lists."
        )
    if fingerprint.content_of(video, data) != store.source_of(store.listed(name) or 0):
        raise UserError(
            f"{video.path}: another video than the one that {name} was prepared from\n"
            "Bring that back, or remove the damaged store and prepare again."
        )


def _part(work: Path, name: str) -> Path:
    return work / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.tar"


def _rewrite_shard(
    store: Store, number: int, again: Collection[str], work: Path
) -> tuple[str, Contents | None]:
    """One shard from the parts that were made again and its own whole members, in the
    order that they had."""
    rows = sorted((row for row in store.rows if row.shard == number), key=lambda row: row.rgb_first)
    for row in rows:
        if row.id not in again:
            own = reuse.read_back(store, store.number[row.id])
            source = store.source_of(store.listed(row.id) or 0)
            own.write_part(_part(work, row.id), source, store.manifest["settings"])
    temporary = store.paths.shards / f".{number:05d}.tar.{os.getpid()}.tmp"
    store.paths.shards.mkdir(exist_ok=True)
    parts = [_part(work, row.id) for row in rows]
    made, offsets = packing.write_shard(temporary, parts, number)
    path, digest = store.paths.shard(number), sha256(temporary)
    if digest == store.manifest["shards"][path.name]["sha256"]:
        writer.put_in_place(temporary, path)
        return f"{path.name}: written anew, the same bytes as at first", None
    new = store.paths.shard(
        1 + max(int(p.name.split(".")[0]) for p in store.paths.shards.glob("[0-9]*.tar"))
    )
    made = [replace(row, shard=int(new.name.split(".")[0])) for row in made]
    metas = [read_part(part)[1] for part in parts]
    videos = {m.id: Packed(row, m.source, m.note) for row, m in zip(made, metas, strict=True)}
    sums = {"bytes": temporary.stat().st_size, "sha256": digest}
    writer.put_in_place(temporary, new)
    line = f"{path.name}: written anew as {new.name} with other bytes than at first, and the index with it"
    return line, Contents(videos, {new.name: sums}, lambda row: writer.slices(offsets, row))


def _write_index(store: Store, moved: list[Contents]) -> None:
    """The index with some videos in other shards."""
    old = before.Old.of(store)
    gone = {name for contents in moved for name in contents.videos}
    kept = {name: packed for name, packed in old.contents.videos.items() if name not in gone}
    rest = Contents(kept, old.contents.shards, old.contents.places)
    rejected = list(old.rejected.values())
    writer.write_index(
        store.paths, catalogue_of(store), [rest, *moved], rejected, store.manifest["settings"]
    )
    writer.remove_unused(store.paths, Store(store.paths.root, check_shards=False).manifest)


# -- shards without an index -----------------------------------------------------------------------


def scan(paths: StorePaths, settings: Settings) -> Contents:
    """What whole members the shards hold, read out of the shards themselves."""
    contents = Contents()
    offsets: dict[int, Offsets] = {}
    for path in sorted(paths.shards.glob("[0-9]*.tar")):
        number = int(path.name.split(".")[0])
        videos, offsets[number] = scan_shard(path, settings)
        # Where a video is in several shards, the newest holds the one that was used last.
        contents.videos |= videos
        contents.shards[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    contents.places = lambda row: writer.slices(offsets[row.shard], row)
    return contents


def scan_shard(path: Path, settings: Settings) -> tuple[dict[str, Packed], Offsets]:
    """The videos of a shard whose members are whole, and its offsets."""
    videos: dict[str, Packed] = {}
    offsets: list[Offsets] = [np.zeros(0, np.int64)]
    count = 0
    with suppress(tarfile.TarError, OSError), tarfile.open(path) as tar:
        while (member := tar.next()) is not None:
            meta = _whole_meta(tar, member)
            if meta is None or meta.settings != settings.as_json():
                continue
            row, places = _whole_video(tar, meta, int(path.name.split(".")[0]), count)
            if row is not None:
                videos[meta.id] = Packed(row, meta.source, meta.note)
                offsets += places
                count += sum(map(len, places))
    return videos, np.concatenate(offsets)


def _whole_meta(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Meta | None:
    if not member.name.endswith(".json"):
        return None
    try:
        return Meta.read(member_bytes(tar, member))
    except ValueError:
        return None  # damaged: the video is prepared again


def _whole_video(
    tar: tarfile.TarFile, meta: Meta, shard: int, count: int
) -> tuple[VideoRow | None, list[Offsets]]:
    """The row of a video whose two members follow its description and have their checksums."""
    places: list[Offsets] = []
    for sizes, expected in ((meta.rgb_bytes, meta.rgb_sha256), (meta.flow_bytes, meta.flow_sha256)):
        member = tar.next()
        try:
            data = member_bytes(tar, member) if member is not None else b""
        except ValueError:
            data = b""
        if (
            member is None
            or hashlib.sha256(data).hexdigest() != expected
            or len(data) != sum(sizes)
        ):
            return None, []
        places.append(member.offset_data + np.cumsum([0, *sizes], dtype=np.int64))
    return meta.row(shard, count, count + len(places[0])), places
