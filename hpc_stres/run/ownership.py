"""One owner at a time: of a store, a phase, an evaluation, a submission.

The lock is held by the kernel, so that it ends with its process whatever ends that. Some file
systems lock only within one node, and some not at all. So the owner also writes into the lock file
who it is and touches it every few seconds: an owner on another host counts as alive for as long as
its file is touched.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hpc_stres.errors import UserError
from hpc_stres.run.paths import naming

BEAT_SECONDS = 5.0
# An owner on another host that has not touched its file for so long is dead.
STALE_SECONDS = 30.0
POLL_SECONDS = 0.2
Owner = dict[str, object]


@contextmanager
def owned(path: Path, what: str, patience_seconds: float = 0.0) -> Iterator[None]:
    """Own what `path` guards while the block runs; `what` names it in the refusal: "this store is
    being prepared".

    A second comer waits for as long as it has patience, then is refused with the owner's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        with naming(path):
            _take(stream, path, what, patience_seconds)
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, stop), name="owner", daemon=True)
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            # On a disk that fails, what failed first must be said; the kernel gives the lock
            # back in any case.
            with suppress(OSError):
                stream.truncate(0)


def _take(stream: IO[str], path: Path, what: str, patience_seconds: float) -> None:
    started, first_touch = time.monotonic(), path.stat().st_mtime_ns
    while True:
        is_free, kernel_locks = _lock(stream)
        owner = _owner_of(stream)
        if is_free and not _lives_elsewhere(owner, path, kernel_locks):
            _write_owner(stream)
            if kernel_locks or _is_mine_still(stream):
                return
        # A silent owner elsewhere is waited for until it is stale; one that touched its file
        # meanwhile is alive.
        is_alive = not is_free or path.stat().st_mtime_ns != first_touch
        if is_alive and time.monotonic() - started >= patience_seconds:
            raise UserError(
                f"{path.parent}: {what} by {describe(owner)}\nWait for it, or end it; its lock ends with it."
            )
        if is_free and kernel_locks:
            fcntl.flock(stream, fcntl.LOCK_UN)
        time.sleep(POLL_SECONDS)


def _lock(stream: IO[str]) -> tuple[bool, bool]:
    """Whether no process that this kernel knows of holds the lock, and whether the kernel has
    locks here at all."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False, True
    except OSError:
        return True, False  # the file system has no locks: the owner's name in the file has to do
    return True, True


def _is_mine_still(stream: IO[str]) -> bool:
    """Without kernel locks two may write their names at once: the one whose name
    stays is the owner."""
    time.sleep(POLL_SECONDS)
    return _owner_of(stream).get("process") == os.getpid()


def _owner_of(stream: IO[str]) -> Owner:
    stream.seek(0)
    try:
        return dict(json.loads(stream.read()))
    except ValueError:
        return {}  # nobody, or an owner that is just writing its name


def _lives_elsewhere(owner: Owner, path: Path, kernel_locks: bool) -> bool:
    """Whether the file names an owner whose lock this kernel does not see, and who has
    touched it lately."""
    if not owner:
        return False
    here = owner.get("host") == os.uname().nodename
    if here and (kernel_locks or not _process_lives(owner)):
        return False
    return _age_seconds(path) < STALE_SECONDS


def _process_lives(owner: Owner) -> bool:
    pid = owner.get("process")
    return isinstance(pid, int) and pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _age_seconds(path: Path) -> float:
    """Seconds since the file was touched, by the clock of the file's own server:
    hosts' clocks differ."""
    probe = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.now")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _write_owner(stream: IO[str]) -> None:
    owner: Owner = {
        "process": os.getpid(),
        "host": os.uname().nodename,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    if job := os.environ.get("SLURM_JOB_ID"):
        owner["job"] = job
    stream.seek(0)
    stream.truncate(0)
    # Not through the stream's buffer: what a full disk leaves there would fail once more when the
    # stream is closed.
    os.write(stream.fileno(), f"{json.dumps(owner)}\n".encode())


def describe(owner: Owner) -> str:
    """`process 12 on node3, job 45, since ...`."""
    if not owner:
        return "another process that has not yet said its name"
    job = f", job {owner['job']}" if "job" in owner else ""
    return f"process {owner.get('process')} on {owner.get('host')}{job}, since {owner.get('since')}"


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        try:
            os.utime(path)
        except FileNotFoundError:
            return  # the folder was removed under its owner, who will notice by itself
