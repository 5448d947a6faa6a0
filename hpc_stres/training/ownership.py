"""One owner a phase: a lock file that names who trains it, held by the kernel and so gone with its process."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.runpaths import PhasePaths

# Where a file system has no locks, a phase whose first rank was seen this lately has an owner.
FRESH_SECONDS = 60.0


@contextmanager
def owned(paths: PhasePaths) -> Iterator[None]:
    """Own a phase while the block runs; refuses when another process does, and says which."""
    paths.root.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise _refusal(paths.root, stream.read().strip()) from None
        except OSError:
            _refuse_fresh_heartbeat(paths)
        stream.truncate(0)
        job = os.environ.get("SLURM_JOB_ID")
        stream.write(f"process {os.getpid()} on {os.uname().nodename}{f', job {job}' if job else ''}\n")
        stream.flush()
        yield


def _refuse_fresh_heartbeat(paths: PhasePaths) -> None:
    beat = paths.heartbeat(0)
    if not beat.is_file():
        return
    seen = json.loads(beat.read_text(encoding="utf-8"))
    if seen["where"] != "left" and time.time() - seen["time"] < FRESH_SECONDS:
        raise _refusal(paths.root, f"a rank on {seen['host']}, seen {time.time() - seen['time']:.0f} s ago")


def _refusal(root: Path, owner: str) -> UserError:
    return UserError(f"{root}: this phase is being trained by {owner}\nWait for it, or end it; its lock ends with it.")
