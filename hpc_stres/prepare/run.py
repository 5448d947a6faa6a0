"""From videos to the store: restartable, parallel over processes or MPI ranks, the same bytes
whatever their number.

Prepared again, only what has changed is done: another label or split writes an index, a new or
replaced video is prepared and appended in shards of its own. A store under the same root that has
the same frames gives them.
"""

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.listings import sources, splits
from hpc_stres.listings.splits import Listing, Video
from hpc_stres.prepare import disk, reuse, worker_tasks
from hpc_stres.prepare.before import Old, contents_of, named_errors, owning, source_of
from hpc_stres.prepare.summary import summary
from hpc_stres.registry import DATA_SETS
from hpc_stres.registry.phase import entry_point
from hpc_stres.run.progress import Progress
from hpc_stres.store import fingerprint, packing, writer
from hpc_stres.store.fingerprint import UNKNOWN
from hpc_stres.store.format import Source, Stamp, StorePaths, read_part
from hpc_stres.store.listing import Changes, catalogue, catalogue_of, difference
from hpc_stres.store.location import (
    Settings,
    claim_home,
    data_of,
    home_of,
    relative_to,
    store_folder,
    store_is_ready,
)
from hpc_stres.store.packing import PackedShard
from hpc_stres.store.reader import Store
from hpc_stres.store.writer import Contents, Packed

# A shard of which less is still used is packed again, so that replaced videos do not fill the disk.
LIVE_SHARE = 0.5
# So much is read sooner than other processes are started.
INLINE_BYTES = 64 << 20


@dataclass(frozen=True)
class Outcome:
    """The store's folder, what changed in it, and the summary of what it holds."""

    folder: Path
    lines: list[str] = field(default_factory=list)


def prepare(config: Config, quiet: bool = False) -> Path:
    """Make the store of a config complete and up to date; returns its folder. Resumes where
    a killed run was.

    Under mpirun or srun every rank calls this: the first hands out videos, the others work
    until it is done.
    """
    return run(config, quiet).folder


def run(config: Config, quiet: bool = False) -> Outcome:
    """`prepare`, with what there is to say of it."""
    store = StorePaths(store_folder(config))
    workers = config.data.workers or disk.cores()
    with worker_tasks.executor_of(workers) as executor:
        if executor is None:
            return Outcome(store.root)
        if (
            store.manifest.is_file()
            and not os.access(store.root, os.W_OK)
            and store_is_ready(config)
        ):
            return Outcome(store.root, ["up to date, in a folder that cannot be written"])
        with named_errors(store.root), owning(store, "this store is being prepared"):
            claim_home(config)
            work = Preparation(config, store, executor, workers, quiet)
            return Outcome(store.root, work.complete(contents_of(store)))


class Preparation:
    """One run of `prepare` by the owner of the store."""

    def __init__(
        self, config: Config, store: StorePaths, executor: Executor, workers: int, quiet: bool
    ) -> None:
        self.data, self.store, self.executor = data_of(config), store, executor
        self.config, self.workers, self.quiet = config, workers, quiet
        self.settings = Settings.of(self.data)
        self.stamps: dict[str, Stamp] = {}
        self.sources: dict[str, Source] = {}
        # What a killed run has packed: the shards, and which of them each video is in.
        self.packed: list[PackedShard] = []
        self.shard_of: dict[str, PackedShard] = {}

    def complete(self, before: Store | None, recovered: Contents | None = None) -> list[str]:
        """Bring the store up to date; `recovered` is what shards hold whose index is lost."""
        old = Old.of(before) if recovered is None else Old(recovered)
        listing = self._read_listing(missing_is_fine=recovered is not None)
        self._look_at_sources(listing, old)
        kept = {
            name: packed
            for name, packed in old.contents.videos.items()
            if name in listing.videos and self.sources.get(name, packed.source) == packed.source
        }
        self.sources |= {name: packed.source for name, packed in kept.items()}
        self._recall_packed(old, listing.videos)
        rejected = {
            name: row
            for name, row in old.rejected.items()
            if name in listing.videos
            and self._is_known(name, Source(*row["source"]))
            and self._has_these_limits(row)
        }
        rest = {n: v for n, v in listing.videos.items() if n not in kept and n not in rejected}
        made = self._prepare_all(rest, len(listing.videos))
        rejected |= self._new_rejections(rest)
        self._refuse_many_rejected(rejected, len(listing.videos))
        moved = self._unpack_sparse_shards(old, kept)
        # What the index has already, it has from there.
        self.shard_of = {name: shard for name, shard in self.shard_of.items() if name not in kept}
        fresh = self._pack([*made, *moved], old)
        kept_contents = Contents(kept, old.contents.shards, old.contents.places)
        new = catalogue(self.data, listing, self.sources)
        changes = self._changes(old, new, made)
        writer.write_index(
            self.store,
            new,
            [kept_contents, *fresh],
            list(rejected.values()),
            self.settings.as_json(),
        )
        fingerprint.write_seen(self.store, self._seen(new.sources))
        store = Store(self.store.root)
        writer.remove_unused(self.store, store.manifest)
        said = changes.lines() if before is not None else []
        return [f"changed: {line}" for line in said] + summary(store, listing)

    # -- what there is -----------------------------------------------------------------------------

    def _read_listing(self, missing_is_fine: bool) -> Listing:
        make = DATA_SETS.get(self.data.kind).make
        if make is not None:
            entry_point(make)(self.data, self.config.seed)
        listing = sources.read_listing(self.data)
        problems = splits.problems(listing)
        if missing_is_fine:
            problems = [line for line in problems if not line.startswith("missing: ")]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(
                f"the data set's lists and files do not agree: {problems[0]}{more}\n"
                "Correct the lists, or remove the file (a dead link, a second name of one file)."
            )
        return listing

    def _look_at_sources(self, listing: Listing, old: Old) -> None:
        """Stamps of all sources; the contents of those that were prepared before, read only where
        a stamp differs."""
        seen = fingerprint.read_seen(self.store)
        unsure = []
        for name, video in listing.videos.items():
            try:
                self.stamps[name] = fingerprint.stamp_of(video, self.data)
            except OSError:
                continue  # gone: a worker will say so
            known = old.contents.videos.get(name)
            source = known.source if known else source_of(old.rejected.get(name))
            if source is None or source == UNKNOWN:
                continue
            if seen.get(name) == (self.stamps[name], source.sha256):
                self.sources[name] = source
            else:
                unsure.append(video)
        self.sources |= self._hash_all(unsure)

    def _hash_all(self, videos: Iterable[Video]) -> Mapping[str, Source]:
        todo = list(videos)
        hashed = {}
        if sum(self._size(video) for video in todo) < INLINE_BYTES:
            return dict(worker_tasks.hash_video(video, self.data) for video in todo)
        with Progress("compare", len(todo), "videos", not self.quiet and bool(todo)) as progress:
            futures = [
                self.executor.submit(worker_tasks.hash_video, video, self.data) for video in todo
            ]
            for number, future in enumerate(as_completed(futures), 1):
                name, hashed[name] = future.result()
                progress.update(number)
        return hashed

    def _is_known(self, name: str, source: Source) -> bool:
        """Whether a source is known, and still the one that was rejected."""
        return source != UNKNOWN and self.sources.get(name) == source

    def _has_these_limits(self, row: Mapping[str, Any]) -> bool:
        """Whether a video was rejected under today's limits of size, memory and time."""
        return row.get("limits") == worker_tasks.limits_of(self.data)

    # -- what is done ------------------------------------------------------------------------------

    def _recall_packed(self, old: Old, videos: Mapping[str, Video]) -> None:
        """Find the shards that a killed run finished, and which of their videos are still
        wanted as they are."""
        self.packed = packing.all_packed(self.store, self.settings.as_json(), old.contents.shards)
        for shard in self.packed:
            for name, packed in shard.videos.items():
                stamp = shard.stamps[name]
                # One without a stamp came out of an old shard, and is compared by its content.
                if name in videos and self._is_as_it_was(videos[name], stamp, packed.source):
                    self.shard_of[name] = shard
                    self.store.part(name).unlink(missing_ok=True)
                    self.stamps[name], self.sources[name] = (
                        stamp or self.stamps[name],
                        packed.source,
                    )

    def _prepare_all(self, rest: Mapping[str, Video], total: int) -> list[str]:
        """Make the parts of the videos that need one; returns the ids that have one."""
        todo = [video for video in rest.values() if not self._is_done(video)]
        wanted = {
            video.id: (video, self.stamps[video.id]) for video in todo if video.id in self.stamps
        }
        if wanted:
            copied = set(
                reuse.copy_from_siblings(self.store, self.settings, wanted, self._hash_all)
            )
            todo = [video for video in todo if video.id not in copied]
            if copied and not self.quiet:
                print(f"{len(copied)} videos copied from other stores under this root", flush=True)
        # The longest first, so that no worker is left alone with a long one at the end.
        todo.sort(key=lambda video: (-self._size(video), video.id))
        if todo:
            self._run(todo, total)
        made = []
        for name in rest:
            part = worker_tasks.found_part(self.store, name, self.settings)
            if name in self.shard_of:
                made.append(name)
            elif part is not None:
                made.append(name)
                self.stamps[name], self.sources[name] = part[0] or self.stamps[name], part[1]
        return made

    def _size(self, video: Video) -> int:
        return self.stamps[video.id].size if video.id in self.stamps else 0

    def _is_done(self, video: Video) -> bool:
        """Whether a killed run has prepared or rejected this very content."""
        if video.id in self.shard_of:
            return True
        part = worker_tasks.found_part(self.store, video.id, self.settings)
        if part is not None and self._is_as_it_was(video, *part):
            return True
        self.store.part(video.id).unlink(missing_ok=True)
        row = worker_tasks.found_rejection(self.store, video.id)
        if (
            row is not None
            and row["id"] == video.id
            and row["stamp"]
            and self._has_these_limits(row)
        ):
            is_same = self._is_as_it_was(video, Stamp(*row["stamp"]), Source(*row["source"]))
            if is_same:
                return True
        self.store.rejection(video.id).unlink(missing_ok=True)
        return False

    def _is_as_it_was(self, video: Video, stamp: Stamp | None, source: Source) -> bool:
        if source == UNKNOWN or video.id not in self.stamps:
            return False
        return (
            stamp == self.stamps[video.id] or worker_tasks.hash_video(video, self.data)[1] == source
        )

    def _run(self, todo: list[Video], total: int) -> None:
        if self.settings.flow_backend == "native":
            from hpc_stres.data.flow import find_native

            find_native()
        self.store.parts.mkdir(parents=True, exist_ok=True)
        told = disk.estimate(todo, self.settings, self.data, self.workers, self.store.root)
        if not self.quiet:
            print(told, flush=True)
        done = total - len(todo)
        with Progress("prepare", total, "videos", not self.quiet, done) as progress:
            work = (self.settings, self.data, self.store.root)
            futures = [self.executor.submit(worker_tasks.prepare_video, v, *work) for v in todo]
            for number, future in enumerate(as_completed(futures), done + 1):
                future.result()
                progress.update(number)

    def _new_rejections(self, rest: Mapping[str, Video]) -> dict[str, dict[str, Any]]:
        rejections = {}
        for name, video in rest.items():
            row = worker_tasks.found_rejection(self.store, name)
            if row is None or name in self.shard_of or self.store.part(name).is_file():
                continue
            path = relative_to(video.path, home_of(self.data))
            kept = {key: row[key] for key in ("reason", "source", "limits")}
            rejections[name] = {"id": name, "path": path, **kept}
            self.sources[name] = Source(*row["source"])
        return rejections

    def _refuse_many_rejected(self, rejected: Mapping[str, dict[str, Any]], total: int) -> None:
        if len(rejected) > self.data.max_rejected * total:
            rows = list(rejected.values())
            entry = writer.write_remarks(self.store, rows)
            raise UserError(
                f"{len(rows)} of {total} videos do not decode, more than "
                f"data.max_rejected={self.data.max_rejected:g}\n"
                f"first: {rows[0]['path']}: {rows[0]['reason']}\n"
                f"all of them: {self.store.index / entry['name']}"
            )

    def _unpack_sparse_shards(self, old: Old, kept: dict[str, Packed]) -> list[str]:
        """Take the videos out of shards that are mostly unused; they are packed again
        with the new ones."""
        if old.store is None:
            return []
        live: dict[int, int] = {}
        for packed in kept.values():
            size = sum(
                int(places[-1] - places[0])
                for places in old.store.places(old.store.number[packed.row.id])
            )
            live[packed.row.shard] = live.get(packed.row.shard, 0) + size
        sparse = {n for n, size in live.items() if size < LIVE_SHARE * old.store.shard_bytes[n]}
        moved = [name for name, packed in kept.items() if packed.row.shard in sparse]
        for name in moved:
            packed = kept.pop(name)
            if name in self.shard_of:
                continue  # a killed run has done it
            video = reuse.read_back(old.store, old.store.number[name])
            video.write_part(self.store.part(name), packed.source, self.settings.as_json())
        return moved

    def _pack(self, names: list[str], old: Old) -> list[Contents]:
        """Parts into new shards, several at once; the same shards whatever the
        number of workers."""
        sizes = {
            n: read_part(self.store.part(n))[1].payload_bytes
            for n in names
            if n not in self.shard_of
        }
        first = 1 + max((int(name.split(".")[0]) for name in old.contents.shards), default=-1)
        taken = {shard.number for shard in self.packed}
        batches = packing.batches(sizes, self.data.shard_mib << 20)
        chosen = [
            (number, ids)
            for ids, number in zip(batches, packing.free_numbers(first, taken), strict=False)
        ]
        if len(chosen) == 1:
            worker_tasks.pack(self.store.root, chosen[0][1], chosen[0][0])
            futures = []
        else:
            work = [(self.store.root, ids, number) for number, ids in chosen]
            futures = [self.executor.submit(worker_tasks.pack, *one) for one in work]
        with Progress(
            "pack", len(chosen), "shards", not self.quiet and len(chosen) > 1
        ) as progress:
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                progress.update(count)
        self.packed += [
            shard for number, _ in chosen if (shard := packing.read_packed(self.store, number))
        ]
        self.shard_of |= {
            name: shard for shard in self.packed[len(taken) :] for name in shard.videos
        }
        return [shard.contents(self.store, self._used_of(shard)) for shard in self.packed]

    def _used_of(self, shard: PackedShard) -> set[str]:
        return {name for name in shard.videos if self.shard_of.get(name) is shard}

    # -- what is said ------------------------------------------------------------------------------

    def _seen(self, known: Mapping[str, Source]) -> fingerprint.Seen:
        return {
            name: (stamp, known[name].sha256)
            for name, stamp in self.stamps.items()
            if known[name] != UNKNOWN
        }

    def _changes(self, old: Old, new: writer.Catalogue, made: list[str]) -> Changes:
        if old.store is None:
            return Changes()
        changes = difference(catalogue_of(old.store), new)
        added = set(changes.added)
        changes.replaced = sorted(name for name in made if name not in added)
        return changes
