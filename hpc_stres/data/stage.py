"""A store on a node's own disk: copied there once a node, however many ranks and jobs ask for it."""

import fcntl
import os
import shutil
from pathlib import Path

from hpc_stres.config import Config
from hpc_stres.data.shards import Store, StorePaths, damaged_index, read_manifest
from hpc_stres.data.storepath import store_folder
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.runpaths import atomic_path


def open_store(config: Config) -> Store:
    """The config's store, from the node-local copy where `data.stage` asks for one."""
    source = store_folder(config)
    return Store(source if config.data.stage is None else staged(source, config.data.stage))


def staged(source: Path, folder: str) -> Path:
    """The copy's folder; the first process of a node makes it while the others wait."""
    manifest = read_manifest(StorePaths(source))
    target = _expanded(folder) / source.name
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".stage.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_copy(source, target):
            _copy(source, target, sum(sums["bytes"] for sums in manifest["shards"].values()))
    return target


def _expanded(folder: str) -> Path:
    """The folder with its variables filled in; one that is not set is an error, not a folder of that name."""
    path = os.path.expandvars(os.path.expanduser(folder))
    if "$" in path:
        raise ConfigError(f"data.stage: {folder}: this variable is not set on {os.uname().nodename}")
    return Path(path)


def _is_copy(source: Path, target: Path) -> bool:
    """Whether a copy is complete: its manifest is written last, and is that of the source."""
    ours, theirs = StorePaths(target).manifest, StorePaths(source).manifest
    if not ours.is_file() or ours.read_bytes() != theirs.read_bytes():
        return False
    manifest = read_manifest(StorePaths(target))
    shards = ((target / "shards" / name, sums["bytes"]) for name, sums in manifest["shards"].items())
    whole = all(path.is_file() and path.stat().st_size == size for path, size in shards)
    return whole and not damaged_index(StorePaths(target), manifest)


def _copy(source: Path, target: Path, shard_bytes: int) -> None:
    free = shutil.disk_usage(target).free
    if shard_bytes > free:
        raise UserError(
            f"data.stage: {target} has {free / 2**30:.1f} GiB free, the store takes {shard_bytes / 2**30:.1f} GiB\n"
            "Leave data.stage away: the job then reads the shared file system."
        )
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and "parts" not in path.parts]
    for path in sorted(files, key=lambda path: path.name == "manifest.json"):
        with atomic_path(target / path.relative_to(source)) as temporary:
            shutil.copyfile(path, temporary)
