"""Mending a store: the videos whose members are damaged are prepared again, and only their shards are written anew.

Preparing is deterministic, so a mended shard has the bytes that it was born with. Where it has not (another version of
a codec), the index is written anew for it as well, and that is said.
"""

import shutil
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from hpc_stres.config import Config
from hpc_stres.data import shards, sources
from hpc_stres.data.shards import PreparedVideo, Store, StorePaths, VideoRow
from hpc_stres.data.storepath import Settings, store_folder
from hpc_stres.errors import UserError
from hpc_stres.progress import Progress
from hpc_stres.runpaths import atomic_path, sha256


def repair(config: Config, quiet: bool = False) -> list[str]:
    """Mend what `verify` finds; returns a line for each thing done."""
    root = store_folder(config)
    done = _repair_index(root)
    store = Store(root)
    damage = shards.find_damage(store)
    if not damage.videos and not damage.shards:
        return done
    wanted = [row for row in store.rows if row.shard in damage.shards or row.id in damage.videos]
    numbers = sorted({row.shard for row in wanted})
    again = set(damage.videos) | {row.id for row in wanted if damage.is_missing(row.shard)}
    listing = sources.read_listing(config.data)
    lost = sorted(name for name in again if name not in listing.videos or not sources.exists(listing.videos[name]))
    if lost:
        raise UserError(
            f"{root}: {', '.join(lost[:3])} cannot be prepared again: the original is gone\n"
            "Bring it back, or remove the store and prepare what there is."
        )
    settings = Settings.of(config.data)
    try:
        with Progress("repair", len(again), "videos", not quiet) as progress:
            for number, name in enumerate(sorted(again), 1):
                sources.prepare_one(listing.videos[name], settings, config.data).write_part(store.paths.part(name))
                progress.update(number)
        for number in numbers:
            done.append(_rewrite_shard(store, number, again))
    finally:
        shutil.rmtree(store.paths.parts, ignore_errors=True)
    return [f"{name}: prepared again" for name in sorted(again)] + done


def _rewrite_shard(store: Store, number: int, again: Collection[str]) -> str:
    """One shard from the parts that were made again and its own whole members."""
    rows = [row for row in store.rows if row.shard == number]
    for row in rows:
        if row.id not in again:
            _part_of(store, row).write_part(store.paths.part(row.id))
    path = store.paths.shard(number)
    with atomic_path(path) as temporary:
        made, offsets = shards.write_shard(temporary, store.paths, [row.id for row in rows], number)
    name, digest = path.name, sha256(path)
    if digest == store.manifest["shards"][name]["sha256"]:
        return f"{name}: written anew, the same bytes as at first"
    _write_index(store, number, made, offsets)
    store.manifest["shards"][name] = {"bytes": path.stat().st_size, "sha256": digest}
    shards.write_manifest_file(store.paths, store.manifest)
    return f"{name}: written anew with other bytes than at first, and the index with it"


def _part_of(store: Store, row: VideoRow) -> PreparedVideo:
    """A whole video of a shard, as it was before it was packed."""
    video = store.number[row.id]
    rgb = [store.rgb(video, frame).tobytes() for frame in range(row.frames)]
    flow = [store.flow(video, pair, axis).tobytes() for pair in range(row.flow_pairs) for axis in (0, 1)]
    return PreparedVideo(row.id, row.label, row.height, row.width, rgb, flow)


def _write_index(store: Store, number: int, made: list[VideoRow], offsets: list[int]) -> None:
    """The rows and offsets of all shards, those of one replaced."""
    new = {row.id: row for row in made}
    rows: list[VideoRow] = []
    places: list[int] = []
    for row in store.rows:
        source: Any = offsets if row.shard == number else store.offsets
        own = new.get(row.id, row)
        firsts: dict[str, Any] = {}
        for field, count in (("rgb_first", own.frames), ("flow_first", 2 * own.flow_pairs)):
            first = getattr(own, field)
            firsts[field] = len(places)
            places += [int(value) for value in source[first : first + count + 1]]
        rows.append(replace(own, **firsts))
    shards.write_index(store.paths, rows, places)
    store.rows, store.offsets = rows, np.array(places, dtype=np.int64)


def _repair_index(root: Any) -> list[str]:
    """Where the index is damaged, read it anew out of the shards."""
    paths = StorePaths(root)
    manifest = shards.read_manifest(paths)
    bad = shards.damaged_index(paths, manifest)
    if not bad:
        return []
    rows: list[VideoRow] = []
    offsets: list[int] = []
    for name in sorted(manifest["shards"]):
        try:
            rows += shards.scan_shard(root / "shards" / name, offsets)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{root}: both the index ({', '.join(bad)}) and {name} are damaged: {error}\n"
                "Remove the store and prepare it again."
            ) from None
    shards.write_index(paths, rows, offsets)
    shards.write_manifest_file(paths, manifest)
    return [f"{name}: read anew out of the shards" for name in bad]
