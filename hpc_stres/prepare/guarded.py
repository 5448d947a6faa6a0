"""The child of `guard`: prepares one video after another, each within its limit of memory."""

import contextlib
import json
import re
import resource
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.prepare import imports
from hpc_stres.prepare.extract import extract, failures_reject, warm_up
from hpc_stres.prepare.video import Decoder, UndecodableError, reason_of
from hpc_stres.store.location import Settings

# What a job's end sends to all of its processes. The parent answers; a child that died of it would
# look like a video's.
ANSWERED_BY_PARENT = (
    "SIGINT",
    "SIGTERM",
    "SIGHUP",
    "SIGQUIT",
    "SIGUSR1",
    "SIGUSR2",
    "SIGALRM",
    "SIGXCPU",
)
# Where memory runs out, the kernel should take this process and not its parent.
OOM_SCORE = "500"
FRAMES_OF_A_SIGN = 100


def main(results_fd: int) -> None:
    """Answer jobs from standard input until it ends."""
    for name in ANSWERED_BY_PARENT:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    results = Connection(results_fd, readable=False)
    for line in sys.stdin.buffer:
        if not _serve(json.loads(line), results):
            return


def _serve(job: dict[str, Any], results: Connection) -> bool:
    """Do one job; whether this process should be used again."""
    settings = Settings(**job["settings"]) if "settings" in job else None
    try:
        _use_one_thread()
        if settings is not None:
            warm_up(settings)
    except Exception as error:
        # No video has been opened: whatever is wrong is wrong with this machine.
        _send_error(results, b"u", error)
        return True
    results.send_bytes(b"s")
    try:
        with _memory_limit(job["memory_bytes"]):
            done = _do(job, settings, results)
    except Exception as error:
        _send_error(results, b"u" if isinstance(error, UserError) else b"e", error)
        # Memory that ran out may leave libraries in any state.
        return not isinstance(error, MemoryError) and not isinstance(error.__context__, MemoryError)
    results.send_bytes(b"d" + json.dumps(done).encode())
    return True


def _use_one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


def _do(job: dict[str, Any], settings: Settings | None, results: Connection) -> dict[str, Any]:
    def emit(stream: str, jpeg: bytes) -> None:
        results.send_bytes(stream[0].encode() + jpeg)

    path, note = Path(job["path"]), None
    if settings is None:
        return _measure(path, job["max_pixels"], results)
    if job["task"] == "import":
        height, width = imports.import_frames(
            path, settings, emit, job["flow_root"], job["max_pixels"]
        )
    else:
        wanted = None if job["wanted"] is None else set(job["wanted"])
        height, width, note = extract(path, settings, emit, wanted, job["max_pixels"])
    return {"height": height, "width": width, "note": note}


@failures_reject()
def _measure(path: Path, max_pixels: int, results: Connection) -> dict[str, Any]:
    decoder, count = Decoder(path, max_pixels), 0
    for _ in decoder.raw():
        count += 1
        if count % FRAMES_OF_A_SIGN == 0:
            # A sign of life: the parent's patience is for silence.
            results.send_bytes(b"s")
    return {"frames": count, "frame_rate": decoder.frame_rate}


def _send_error(results: Connection, letter: bytes, error: Exception) -> None:
    text = str(error) if isinstance(error, (UndecodableError, UserError)) else reason_of(error)
    content = {"message": text, "code": getattr(error, "code", UserError.code)}
    results.send_bytes(letter + json.dumps(content).encode())


@contextlib.contextmanager
def _memory_limit(more_bytes: int) -> Iterator[None]:
    """Let this process have so much memory more than it has now; its own, not the libraries that it
    maps.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        yield
        return
    match = re.search(r"VmData:\s+(\d+) kB", status.read_text(encoding="ascii"))
    assert match is not None
    _, hard = before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = (int(match.group(1)) << 10) + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (allowed if hard < 0 else min(allowed, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
