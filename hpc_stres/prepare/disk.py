"""What preparing will take of time and disk, and whether the disk has room for it."""

import errno
import os
import time
from pathlib import Path

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import sources
from hpc_stres.listings.splits import Video
from hpc_stres.prepare import imports
from hpc_stres.prepare.video import UndecodableError
from hpc_stres.run.tables import size_text
from hpc_stres.store.location import Settings

SAMPLE_VIDEOS = 3
# Files and folders of a store besides its shards.
STORE_FILES = 14


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def disk_error(error: OSError, where: Path) -> UserError:
    """An error of the file system as a sentence with the path in it."""
    path = error.filename or where
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "What is prepared is kept: free some space and run the same command again."
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "Set data.root to a folder that you can write."
    else:
        remedy = "Set data.root to a folder, on a file system that works, and run the same command again."
    return UserError(f"{path}: {error.strerror or error}\n{remedy}")


def estimate(
    todo: list[Video], settings: Settings, data: DataConfig, workers: int, root: Path
) -> str:
    """What the work will take, measured on the middle videos; refuses when the disk
    has no room for it."""
    ordered = sorted(todo, key=sources.size)
    middle = ordered[len(ordered) // 2 :][:SAMPLE_VIDEOS]
    source = stored = 0
    started = time.perf_counter()
    for video in middle:
        try:
            prepared = imports.prepare_one(video, settings, data)
        except UndecodableError:
            continue  # the run itself will reject it with its reason
        source += sources.size(video)
        stored += sum(map(len, prepared.rgb)) + sum(map(len, prepared.flow))
    seconds = time.perf_counter() - started
    scale = sum(map(sources.size, todo)) / source if source else 0.0
    inodes = len(todo) + int(stored * scale / (data.shard_mib << 20)) + STORE_FILES
    # A shard's parts go when it is finished: what is there twice are the shards under work.
    in_work = min(stored * scale, workers * (data.shard_mib << 20))
    needed = stored * scale + in_work
    refuse_full_disk(root, int(needed), inodes)
    return (
        f"{len(todo)} videos to prepare: about {size_text(stored * scale)}, "
        f"{seconds * scale / 3600:.2f} core-hours; {size_text(needed)} and {inodes} inodes while it runs, "
        f"{inodes - len(todo)} inodes afterwards; {workers} workers"
    )


def refuse_full_disk(root: Path, needed_bytes: int, needed_inodes: int) -> None:
    """Refuse when the file system has no room for so many bytes or files."""
    status = os.statvfs(root)
    free = status.f_bavail * status.f_frsize
    if needed_bytes > free:
        raise UserError(
            f"{root}: preparing needs about {size_text(needed_bytes)}, {size_text(free)} are free\n"
            "Free some space, or set data.root to another file system."
        )
    # File systems without a fixed number of inodes say 0 of 0.
    if status.f_files and needed_inodes > status.f_favail:
        raise UserError(
            f"{root}: preparing needs {needed_inodes} inodes, {status.f_favail} are free\n"
            "Remove files, or set data.root to another file system."
        )
