"""What the workers of `prepare` do, and who they are: processes of this machine, or
the ranks of MPI."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import splits
from hpc_stres.parallel.world import find_world
from hpc_stres.prepare import disk, imports
from hpc_stres.prepare.video import CANNOT_BE_READ, UndecodableError
from hpc_stres.run.lifeline import end_with_parent
from hpc_stres.run.paths import read_sealed, write_sealed
from hpc_stres.store import fingerprint
from hpc_stres.store.fingerprint import UNKNOWN
from hpc_stres.store.format import Source, Stamp, StorePaths, read_part
from hpc_stres.store.location import Settings
from hpc_stres.store.packing import pack_shard

# A source that changes again and again while it is prepared is rejected.
TRIES = 3


def prepare_video(
    video: splits.Video, settings: Settings, data: DataConfig, root: Path
) -> tuple[str, int]:
    """Prepare one video into its part, or write why not; returns its id and
    frames (0: rejected)."""
    import cv2

    cv2.setNumThreads(1)
    store = StorePaths(root)
    try:
        return video.id, _prepare_steadily(video, settings, data, store)
    except OSError as error:
        raise disk.disk_error(error, store.parts) from None


def _prepare_steadily(
    video: splits.Video, settings: Settings, data: DataConfig, store: StorePaths
) -> int:
    """Prepare from one content: a source that changes meanwhile is prepared again."""
    stamp, source = None, UNKNOWN
    reason = "it changes while it is prepared"
    for _ in range(TRIES):
        try:
            stamp, source = fingerprint.stamp_of(video, data), fingerprint.content_of(video, data)
        except OSError as error:
            stamp, source, reason = None, UNKNOWN, f"{CANNOT_BE_READ}{error.strerror}"
            break
        try:
            prepared = imports.prepare_one(video, settings, data)
        except UndecodableError as error:
            if _is_still(stamp, video, data):
                reason = str(error)
                if reason.startswith(CANNOT_BE_READ):  # no fault of the video: not remembered
                    stamp, source = None, UNKNOWN
                break
            continue
        if _is_still(stamp, video, data):
            prepared.write_part(store.part(video.id), source, settings.as_json(), stamp)
            store.rejection(video.id).unlink(missing_ok=True)
            return len(prepared.rgb)
        source = UNKNOWN
    _reject(store, video, reason, source, stamp, data)
    return 0


def _is_still(stamp: Stamp, video: splits.Video, data: DataConfig) -> bool:
    try:
        return fingerprint.stamp_of(video, data) == stamp
    except OSError:
        return False


def limits_of(data: DataConfig) -> list[float]:
    """What a video is rejected for exceeding: with other limits a rejected video is tried again."""
    return [data.max_pixels, data.video_memory_gib, data.video_minutes]


def _reject(
    store: StorePaths,
    video: splits.Video,
    reason: str,
    source: Source,
    stamp: Stamp | None,
    data: DataConfig,
) -> None:
    row = {"id": video.id, "path": str(video.path), "reason": reason, "source": list(source)}
    row |= {"limits": limits_of(data)}
    write_sealed(store.rejection(video.id), {**row, "stamp": list(stamp or ())})


def hash_video(video: splits.Video, data: DataConfig) -> tuple[str, Source]:
    """The content of a source; unknown where it cannot be read, which `prepare_video`
    will find as well."""
    try:
        return video.id, fingerprint.content_of(video, data)
    except OSError:
        return video.id, UNKNOWN


def pack(root: Path, ids: list[str], number: int) -> int:
    """`pack_shard` in a worker."""
    store = StorePaths(root)
    try:
        pack_shard(store, ids, number)
    except OSError as error:
        raise disk.disk_error(error, store.shard(number)) from None
    return number


def found_part(
    store: StorePaths, video_id: str, settings: Settings
) -> tuple[Stamp | None, Source] | None:
    """The stamp and content of what a killed run has prepared of a video with the same settings."""
    try:
        stamp, meta = read_part(store.part(video_id))
    except (OSError, ValueError):
        return None
    same = meta.id == video_id and meta.settings == json.loads(json.dumps(settings.as_json()))
    return (stamp, meta.source) if same else None


def found_rejection(store: StorePaths, video_id: str) -> dict[str, Any] | None:
    """Why a killed run rejected a video."""
    try:
        return read_sealed(store.rejection(video_id), "")
    except UserError:
        return None


@contextmanager
def executor_of(workers: int) -> Iterator[Executor | None]:
    """Processes of this machine, or under mpirun or srun the ranks of MPI (None on
    all but the first)."""
    if find_world().size > 1:
        import mpi4py

        # One thread at a time talks to MPI, which mpi4py.futures sees to: with several at once,
        # Open MPI's TCP transport has been seen to die of a null pointer while it connects.
        mpi4py.rc.thread_level = "serialized"
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
    pool = ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=end_with_parent, initargs=(os.getpid(),)
    )
    with pool as executor:
        try:
            yield executor
        except BaseException:
            # What is not begun is not worth waiting for.
            executor.shutdown(wait=False, cancel_futures=True)
            raise
