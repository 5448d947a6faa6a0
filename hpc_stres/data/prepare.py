"""From videos to the store: restartable, parallel over processes or MPI ranks, the same bytes whatever their number."""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from hpc_stres.bootstrap import find_world
from hpc_stres.config import Config, DataConfig
from hpc_stres.data import sources, splits
from hpc_stres.data.lifeline import end_with_parent
from hpc_stres.data.shards import StorePaths, pack, write_manifest, write_rejections
from hpc_stres.data.storepath import Settings, store_folder
from hpc_stres.data.video import UndecodableError
from hpc_stres.errors import UserError
from hpc_stres.progress import Progress
from hpc_stres.runpaths import write_json

SAMPLE_VIDEOS = 3
# Files and folders of a store besides its shards.
STORE_FILES = 10


def _work(video: splits.Video, settings: Settings, data: DataConfig, root: Path) -> tuple[str, int]:
    """Prepare one video into its part, or write why not; returns its id and frames (0: rejected)."""
    import cv2

    cv2.setNumThreads(1)
    store = StorePaths(root)
    try:
        prepared = sources.prepare_one(video, settings, data)
    except UndecodableError as error:
        write_json(store.rejection(video.id), {"id": video.id, "path": str(video.path), "reason": str(error)})
        return video.id, 0
    prepared.write_part(store.part(video.id))
    return video.id, len(prepared.rgb)


def prepare(config: Config, quiet: bool = False) -> Path:
    """Make the store of a config complete; returns its folder. Goes on where a killed run was.

    Under mpirun or srun every rank calls this: the first hands out videos, the others work until it is done.
    """
    store = StorePaths(store_folder(config))
    if store.manifest.is_file():
        return store.root
    workers = config.data.workers or len(os.sched_getaffinity(0))
    with _executor(workers) as executor:
        if executor is not None:
            _complete(config, store, executor, workers, quiet)
    return store.root


def _complete(config: Config, store: StorePaths, executor: Executor, workers: int, quiet: bool) -> None:
    if config.data.kind == "binding":
        from hpc_stres.data.binding import write_data_set

        write_data_set(
            splits.video_folder(config.data), splits.list_folder(config.data), config.data.binding, config.seed
        )
    listing = sources.read_listing(config.data)
    _refuse_problems(listing)
    _prepare_missing(config, listing, store, executor, workers, quiet)
    ids = sorted(listing.videos)
    rejected = write_rejections(store, ids)
    done = [name for name in ids if store.part(name).is_file()]
    _refuse_many_rejected(config.data, rejected, len(ids), store)
    pack(store, done, config.data.shard_mib << 20)
    write_manifest(store, Settings.of(config.data).as_json(), _describe(listing, config))
    shutil.rmtree(store.parts)


def _describe(listing: splits.Listing, config: Config) -> dict[str, Any]:
    return {
        "kind": config.data.kind,
        "classes": listing.classes,
        "train": {str(split): ids for split, ids in listing.train.items()},
        "test": {str(split): ids for split, ids in listing.test.items()},
        "labels": {name: video.label for name, video in sorted(listing.videos.items())},
    }


def _refuse_problems(listing: splits.Listing) -> None:
    found = splits.problems(listing)
    if found:
        more = f"\n(and {len(found) - 2} more)" if len(found) > 2 else ""
        raise UserError("the data set's lists and files do not agree:\n" + "\n".join(found[:2]) + more)


def _refuse_many_rejected(data: DataConfig, rejected: list[dict[str, str]], total: int, store: StorePaths) -> None:
    if len(rejected) > data.max_rejected * total:
        first = rejected[0]
        raise UserError(
            f"{len(rejected)} of {total} videos do not decode, more than data.max_rejected={data.max_rejected:g}\n"
            f"first: {first['path']}: {first['reason']}\nall of them: {store.rejected}"
        )


def _prepare_missing(
    config: Config, listing: splits.Listing, store: StorePaths, executor: Executor, workers: int, quiet: bool
) -> None:
    settings = Settings.of(config.data)
    todo = [v for v in listing.videos.values() if not _finished(store, v.id)]
    # The longest first, so that no worker is left alone with a long one at the end.
    todo.sort(key=lambda video: (-sources.size(video), video.id))
    if not todo:
        return
    if settings.flow_backend == "native":
        from hpc_stres import native

        native.load("tvl1")
    store.parts.mkdir(parents=True, exist_ok=True)
    if not quiet:
        print(estimate(todo, settings, config.data, workers, store.root), flush=True)
    done = len(listing.videos) - len(todo)
    with Progress("prepare", len(listing.videos), "videos", not quiet, done) as progress:
        futures = [executor.submit(_work, video, settings, config.data, store.root) for video in todo]
        for future in as_completed(futures):
            future.result()
            done += 1
            progress.update(done)


def _finished(store: StorePaths, video_id: str) -> bool:
    return store.part(video_id).is_file() or store.rejection(video_id).is_file()


@contextmanager
def _executor(workers: int) -> Iterator[Executor | None]:
    """Processes of this machine, or under mpirun or srun the ranks of MPI (None on all but the first)."""
    if find_world().size > 1:
        from mpi4py import MPI
        from mpi4py.futures import MPICommExecutor

        if MPI.COMM_WORLD.size != find_world().size:
            raise UserError(
                f"the launcher started {find_world().size} ranks but MPI has a world of {MPI.COMM_WORLD.size}\n"
                "Start with mpirun, or with srun --mpi=pmix and an mpi4py built for it."
            )
        with MPICommExecutor(MPI.COMM_WORLD, root=0) as executor:
            yield cast(Executor | None, executor)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), end_with_parent, (os.getpid(),)) as executor:
        yield executor


def estimate(todo: list[splits.Video], settings: Settings, data: DataConfig, workers: int, root: Path) -> str:
    """What the work will take, measured on the middle videos; refuses when the disk has no room for it."""
    ordered = sorted(todo, key=sources.size)
    middle = ordered[len(ordered) // 2 :][:SAMPLE_VIDEOS]
    source = stored = 0
    started = time.perf_counter()
    for video in middle:
        try:
            prepared = sources.prepare_one(video, settings, data)
        except UndecodableError:
            continue  # the run itself will reject it with its reason
        source += sources.size(video)
        stored += sum(map(len, prepared.rgb)) + sum(map(len, prepared.flow))
    seconds = time.perf_counter() - started
    scale = sum(map(sources.size, todo)) / source if source else 0.0
    inodes = len(todo) + int(stored * scale / (data.shard_mib << 20)) + STORE_FILES
    # Parts and shards stand side by side while they are packed.
    refuse_full_disk(root, int(2 * stored * scale), inodes)
    return (
        f"{len(todo)} videos to prepare: about {stored * scale / 2**20:.0f} MiB, {seconds * scale / 3600:.2f} "
        f"core-hours; {inodes} inodes while it runs, {inodes - len(todo)} afterwards; {workers} workers"
    )


def refuse_full_disk(root: Path, needed_bytes: int, needed_inodes: int) -> None:
    """Refuse when the file system has no room for so many bytes or files."""
    found = os.statvfs(root)
    free = found.f_bavail * found.f_frsize
    if needed_bytes > free:
        raise UserError(
            f"{root}: preparing needs about {needed_bytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free\n"
            "Free some space, or set data.root to another file system."
        )
    # File systems without a fixed number of inodes say 0 of 0.
    if found.f_files and needed_inodes > found.f_favail:
        raise UserError(
            f"{root}: preparing needs {needed_inodes} inodes, {found.f_favail} are free\n"
            "Remove files, or set data.root to another file system."
        )
