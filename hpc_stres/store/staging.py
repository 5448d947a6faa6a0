"""A store on a node's own disk: copied there once a node, however many ranks and jobs ask for it.

The copy is in a folder that belongs to this user and that only this user can write. Each file was
compared with its checksum when it was copied; its size and times then say cheaply that nobody has
touched it since. What is there besides, links among it, is removed. Where the disk is too small the
job refuses, and leaves nothing behind.
"""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import atomic_path, read_sealed, sha256, write_bytes, write_sealed
from hpc_stres.run.tables import size_text
from hpc_stres.store.checks import read_manifest
from hpc_stres.store.format import REPAIR, StorePaths
from hpc_stres.store.listing import check_matches
from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store

PATIENCE_SECONDS = 6 * 3600.0
BLOCK_BYTES = 1 << 22
# What was compared with its checksum, and the times that it had then.
COMPARED = "compared.json"
WITHOUT = "Leave data.stage away: the job then reads the shared file system."


def open_store(config: Config, check: bool = False) -> Store:
    """The config's store, from the node-local copy where `data.stage` asks for one.

    `check` refuses a store that is not the data set of the config; the first rank's look is enough.
    """
    source = store_folder(config)
    if check:
        check_matches(Store(source), config)
    return Store(source if config.data.stage is None else staged(source, config.data.stage))


def staged(source: Path, folder: str) -> Path:
    """The copy's folder; the first process of a node makes it while the others wait."""
    manifest = read_manifest(StorePaths(source))
    target = _expanded(folder) / source.name
    try:
        _claim(target)
        with owned(StorePaths(target).lock, "this store is being copied", PATIENCE_SECONDS):
            _complete(source, target, manifest)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            shutil.rmtree(target, ignore_errors=True)
        path = error.filename or target
        raise UserError(f"data.stage: {path}: {error.strerror or error}\n{WITHOUT}") from None
    return target


def _expanded(folder: str) -> Path:
    """The folder with its variables filled in; one that is not set is an error, not a
    folder of that name."""
    path = os.path.expandvars(os.path.expanduser(folder))
    if "$" in path:
        raise ConfigError(
            f"data.stage: {folder}: this variable is not set on {os.uname().nodename}"
        )
    return Path(os.path.realpath(path))


def _claim(target: Path) -> None:
    """Make the folder, or refuse one that somebody else could change."""
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.parent.chmod(0o700)  # whatever the umask
    home = target.parent.stat()
    open_to_others = (
        home.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not home.st_mode & stat.S_ISVTX
    )
    if home.st_uid not in (0, os.geteuid()) or open_to_others:
        raise UserError(
            f"data.stage: {target.parent}: other users can replace what is in this folder\n"
            f"Name a folder of your own, as in data.stage=/tmp/$USER, or `chmod go-w {target.parent}`."
        )
    with suppress(FileExistsError):
        target.mkdir(mode=0o700)
    status = target.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UserError(
            f"data.stage: {target}: a link, or a folder of another user\n"
            "Remove it, or name a folder of your own, as in data.stage=/tmp/$USER."
        )
    target.chmod(0o700)
    for name in (StorePaths(target).lock.name, COMPARED, "manifest.json"):
        _remove_unless(target / name, stat.S_ISREG)


def _remove_unless(path: Path, wanted: Any) -> None:
    """Remove what is not of the wanted type; a link is removed, not followed."""
    with suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not wanted(mode):
            if stat.S_ISDIR(mode):
                shutil.rmtree(path)
            else:
                path.unlink()


def _files(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names inside the store, with size and checksum."""
    for entry in manifest["index"].values():
        yield f"index/{entry['name']}", entry
    for name, sums in manifest["shards"].items():
        yield f"shards/{name}", sums


def _complete(source: Path, target: Path, manifest: dict[str, Any]) -> None:
    """Copy what is not there as it should be, remove what should not be there,
    the manifest last."""
    wanted = dict(_files(manifest))
    _remove_strangers(target, set(wanted))
    known = _read_compared(target)
    stale = [
        name for name, sums in wanted.items() if not _is_whole(target / name, sums, known.get(name))
    ]
    _refuse_full_disk(target, sum(wanted[name]["bytes"] for name in stale))
    for name in stale:
        _copy(source / name, target / name, wanted[name])
    ours, theirs = StorePaths(target).manifest, StorePaths(source).manifest
    if not ours.is_file() or ours.read_bytes() != theirs.read_bytes():
        write_bytes(ours, theirs.read_bytes())
    if read_manifest(StorePaths(target)) != manifest:
        raise UserError(
            f"{source}: was prepared again while it was copied\nRun the same command again."
        )
    compared = {name: [*_times(target / name), sums["sha256"]] for name, sums in wanted.items()}
    if compared != known:
        write_sealed(target / COMPARED, {"files": compared})


def _remove_strangers(target: Path, wanted: set[str]) -> None:
    """Remove all that is neither of this store nor ours; links are never followed."""
    own = {"index", "shards", "manifest.json", StorePaths(target).lock.name, COMPARED}
    for folder in ("index", "shards"):
        _remove_unless(target / folder, stat.S_ISDIR)
        (target / folder).mkdir(exist_ok=True)
    for path in target.iterdir():
        # Another process that is just asking for the lock has files that begin with its name.
        if path.name not in own and not path.name.startswith(f".{StorePaths(target).lock.name}."):
            _remove_unless(path, lambda mode: False)
    for folder in ("index", "shards"):
        for path in (target / folder).iterdir():
            is_own = f"{folder}/{path.name}" in wanted
            _remove_unless(path, stat.S_ISREG if is_own else lambda mode: False)


def _times(path: Path) -> list[int]:
    status = path.lstat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_compared(target: Path) -> dict[str, list[Any]]:
    try:
        return dict(read_sealed(target / COMPARED, "")["files"])
    except (UserError, KeyError, TypeError):
        return {}


def _is_whole(path: Path, sums: dict[str, Any], known: list[Any] | None) -> bool:
    """Whether a file has its checksum: read, or as it was when it was read."""
    try:
        if path.lstat().st_size != sums["bytes"]:
            return False
        return known == [*_times(path), sums["sha256"]] or sha256(path) == sums["sha256"]
    except FileNotFoundError:
        return False


def _refuse_full_disk(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"data.stage: {target} has {size_text(free)} free, the store takes {size_text(needed)} more\n{WITHOUT}"
        )


def _copy(source: Path, target: Path, sums: dict[str, Any]) -> None:
    """Copy one file and compare what was read with its checksum on the way."""
    digest = hashlib.sha256()
    with atomic_path(target) as temporary:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with source.open("rb") as stream, os.fdopen(os.open(temporary, flags, 0o600), "wb") as copy:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                copy.write(block)
        if digest.hexdigest() != sums["sha256"]:
            raise UserError(f"{source}: damaged: its checksum is wrong\n{REPAIR}")
