"""Preparing a video in a child process with limits, so that one video costs at most itself.

FFmpeg and OpenCV are large programs in C that meet every broken file there is. One that crashes,
hangs or eats memory takes a child with it; its death is the reason of that video's rejection, and
the next video gets a new child. A child is used for many videos, and it ends with its parent.

    parent -> child   one line of JSON a video on standard input
    child -> parent   messages of a letter and bytes: s(tarted), r(gb), f(low), d(one), e(rror),
                      u(ser error)

The child is started with exec, never by a fork alone: a fork would copy the state of MPI and of
threads. Nothing that it sends is unpickled, so that a decoder that a video took over cannot take
over its parent.

A death counts against a video only if it happens in a fresh child: what an earlier video left in an
old one does not. A SIGKILL comes from outside (a job that ends, a machine without memory): it is
tried once more in any case.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NamedTuple

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.listings.listing import Video, printable
from hpc_stres.prepare.video import MAX_PIXELS, UndecodableError
from hpc_stres.store.location import Settings
from hpc_stres.store.reader import PreparedVideo

# Imports from a cold network file system, and the compilation of a kernel.
START_MINUTES = 15.0
# The whole of a video may take so many times the minutes that one frame may take.
WHOLE_OF_FRAME = 100
# The clock is read so often; a process that was suspended for longer has not waited.
SLICE_SECONDS = 1.0
# Heavy imports come second: a parent may be killed meanwhile.
CHILD = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from hpc_stres.run.lifeline import end_with_parent; end_with_parent(int(sys.argv[2])); "
    "from hpc_stres.prepare.guarded import main; main(int(sys.argv[1]))"
)


@dataclass(frozen=True)
class Limits:
    """What one video may take."""

    max_pixels: int = MAX_PIXELS
    memory_gib: float = 4.0
    minutes: float = 10.0

    @classmethod
    def of(cls, data: DataConfig) -> "Limits":
        return cls(data.max_pixels, data.video_memory_gib, data.video_minutes)

    @property
    def memory_bytes(self) -> int:
        """`memory_gib` in bytes."""
        return int(self.memory_gib * 2**30)


class _Death(Exception):
    """A child that ended while it worked; `started`: whether it had come so far as to open the
    video.
    """

    def __init__(self, reason: str, started: bool, by_kill: bool = False) -> None:
        super().__init__(reason)
        self.started, self.by_kill = started, by_kill


def prepare(
    video: Video,
    settings: Settings,
    limits: Limits | None = None,
    is_import: bool = False,
    flow_root: str | None = None,
    wanted: set[int] | None = None,
) -> PreparedVideo:
    """One video, prepared in a child; UndecodableError with the reason where the
    video is to blame."""
    limits = limits or Limits()
    task = "import" if is_import else "prepare"
    job = _job(video.path, settings, limits, task, flow_root, wanted)
    made = _in_child(job, limits)
    done = json.loads(made["d"][0])
    return PreparedVideo(
        video.id, video.label, done["height"], done["width"], made["r"], made["f"], done["note"]
    )


def count_frames(path: Path, limits: Limits | None = None) -> int:
    """Frames of a file that decode, counted in a child."""
    return measure(path, limits).frames


class Measured(NamedTuple):
    """How long a video is: frames that decode, and frames a second, if the file says that."""

    frames: int
    frame_rate: float | None


def measure(path: Path, limits: Limits | None = None) -> Measured:
    """Length of a file, decoded in a child."""
    limits = limits or Limits()
    job = {
        "task": "count",
        "path": os.path.abspath(path),
        "max_pixels": limits.max_pixels,
        "memory_bytes": limits.memory_bytes,
    }
    done = json.loads(_in_child(job, limits)["d"][0])
    return Measured(int(done["frames"]), done["frame_rate"])


def stream(
    path: Path, settings: Settings, wanted: set[int], limits: Limits | None = None
) -> Generator[tuple[str, bytes], None, None]:
    """A video's RGB frames ("r") and flow planes ("f") as a child makes them, of any length: the
    child waits for whoever reads. Flow is computed for the pairs in `wanted` only.
    """
    limits = limits or Limits()
    job, given = _job(path, settings, limits, wanted=wanted), 0
    for attempt in (1, 2):
        child = _idle_child() if attempt == 1 else None
        is_fresh = child is None
        child = child or Child()
        try:
            for number, (letter, content) in enumerate(child.messages(job, limits)):
                # A second child makes the same once more: what was given is not given again.
                if letter != "d" and number >= given:
                    given += 1
                    yield letter, content
        except _Death as death:
            child.kill()
            if attempt == 1 and (not is_fresh or death.by_kill):
                continue
            if not death.started:
                raise UserError(f"the process that decodes videos did not start: {death}") from None
            raise UndecodableError(str(death)) from None
        except BaseException:
            # Whoever reads has enough, or was interrupted: the child is in the middle of its work.
            child.kill()
            raise
        _idle.append(child)
        return


def _job(path: Path, settings: Settings, limits: Limits, task: str = "prepare", flow_root: str | None = None,
         wanted: set[int] | None = None) -> dict[str, Any]:  # fmt: skip
    """What a child is told to make frames and flow of a video."""
    return {
        "task": task,
        "path": os.path.abspath(path),
        "settings": asdict(settings),
        "max_pixels": limits.max_pixels,
        "memory_bytes": limits.memory_bytes,
        "flow_root": os.path.abspath(flow_root) if flow_root else None,
        "wanted": sorted(wanted) if wanted is not None else None,
    }


def _in_child(job: dict[str, Any], limits: Limits) -> dict[str, list[bytes]]:
    """Run a job in an idle child or a new one; a second time in a new one where the first death
    proves nothing.
    """
    for attempt in (1, 2):
        child = _idle_child() if attempt == 1 else None
        is_fresh = child is None
        child = child or Child()
        try:
            made = child.work(job, limits)
        except _Death as death:
            child.kill()
            if attempt == 1 and (not is_fresh or death.by_kill):
                continue
            if not death.started:
                raise UserError(f"the process that decodes videos did not start: {death}") from None
            raise UndecodableError(str(death)) from None
        except (UndecodableError, UserError):
            _idle.append(child)
            raise
        except BaseException:
            # Interrupted, or more than may be kept: the child is in the middle of its work.
            child.kill()
            raise
        _idle.append(child)
        return made
    raise AssertionError("unreachable: the second attempt returns or raises")


_idle: list["Child"] = []


def _idle_child() -> "Child | None":
    """A living child of this very process; those of a parent that forked this one are not ours."""
    while _idle:
        child = _idle.pop()
        if child.owner == os.getpid() and child.process.poll() is None:
            return child
        child.close()
    return None


@atexit.register
def close() -> None:
    """End the children that wait for work."""
    while _idle:
        _idle.pop().close()


class Child:
    """One child process and the pipes to it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        try:
            # What libraries print; the last line of it may say why the child died.
            self.printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
            reader, writer = os.pipe()
        except OSError as error:
            raise UserError(
                f"the process that decodes videos cannot be started: {error}\nSet TMPDIR."
            ) from None
        self.results = Connection(reader, writable=False)
        command = [sys.executable, "-c", CHILD, str(writer), str(self.owner), *map(str, sys.path)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self.printed,
                stderr=self.printed,
                pass_fds=(writer,),
                # Ctrl-C is the parent's to answer.
                start_new_session=True,
            )
        except OSError as error:
            self.results.close()
            raise UserError(f"the process that decodes videos did not start: {error}") from None
        finally:
            os.close(writer)

    def work(self, job: dict[str, Any], limits: Limits) -> dict[str, list[bytes]]:
        """Send a job and collect what is made of it, by the letter of its messages."""
        made: dict[str, list[bytes]] = {"r": [], "f": [], "d": []}
        kept_bytes = 0
        for letter, content in self.messages(job, limits):
            made[letter].append(content)
            kept_bytes += len(content)
            if kept_bytes > limits.memory_bytes:
                raise _Death(_too_long(limits, len(made["r"])), started=True)
        return made

    def messages(self, job: dict[str, Any], limits: Limits) -> Iterator[tuple[str, bytes]]:
        """Send a job and hand on what is made of it, by letter; "d" is the last."""
        started = False
        clock = _Clock(limits)
        letter = ""
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
            while letter != "d":
                message = self._receive(clock, started)
                letter, content = chr(message[0]), message[1:]
                if letter == "s":
                    started = True
                elif letter in "eu":
                    _raise(letter, json.loads(content))
                else:
                    yield letter, content
        except (EOFError, OSError):
            raise self._death(limits, started) from None

    def _receive(self, clock: "_Clock", started: bool) -> bytes:
        """The next message; a _Death after too long a silence."""
        clock.restart()
        while not self.results.poll(SLICE_SECONDS):
            clock.tick(started)
        clock.tick(started)
        return self.results.recv_bytes(clock.limits.memory_bytes + 1)

    def _death(self, limits: Limits, started: bool) -> _Death:
        """How the child ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        code, last = self.process.poll(), self._last_line()
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
            reason = f"the decoder was killed by signal {-code} ({name})"
            if "bad_alloc" in last:
                reason = (
                    f"the decoder ran out of memory (data.video_memory_gib={limits.memory_gib:g})"
                )
            elif -code == signal.SIGKILL:
                reason += " twice, as when a machine or a job runs out of memory"
            return _Death(reason, started, by_kill=-code == signal.SIGKILL)
        return _Death(f"the decoder ended with status {code}: {last or 'no message'}", started)

    def _last_line(self) -> str:
        self.printed.seek(0, os.SEEK_END)
        self.printed.seek(max(0, self.printed.tell() - 4096))
        lines = self.printed.read().decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1]) if lines else ""

    def kill(self) -> None:
        """End the child at once."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Close the pipes: the child ends when it has no more to read."""
        self.results.close()
        self.printed.close()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        if self.owner == os.getpid():
            # One that hangs in a file system that does not answer cannot be waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)


def _too_long(limits: Limits, frames: int) -> str:
    return (
        f"what is stored of it grew beyond {limits.memory_gib:g} GiB after {frames} frames "
        "(raise data.video_memory_gib if it is meant to be so long)"
    )


def _raise(letter: str, content: dict[str, Any]) -> None:
    if letter == "u":
        raise (ConfigError if content["code"] == ConfigError.code else UserError)(
            content["message"]
        )
    raise UndecodableError(content["message"])


class _Clock:
    """Time without a message and time in all, counted in slices: a process that is suspended does
    not wait.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.silent_seconds = self.whole_seconds = 0.0
        self.last = time.monotonic()

    def restart(self) -> None:
        """A message came."""
        self.silent_seconds = 0.0

    def tick(self, started: bool) -> None:
        """Count the time since the last tick; a _Death where it was too long."""
        now = time.monotonic()
        passed = min(now - self.last, 2 * SLICE_SECONDS)
        self.last = now
        self.silent_seconds += passed
        if not started:
            if self.silent_seconds > START_MINUTES * 60:
                raise _Death(f"it took longer than {START_MINUTES:g} minutes", started)
            return
        self.whole_seconds += passed
        minutes = self.limits.minutes
        if self.silent_seconds > minutes * 60:
            raise _Death(
                f"the decoder took longer than {minutes:g} minutes for a frame (data.video_minutes)",
                started,
            )
        if self.whole_seconds > WHOLE_OF_FRAME * minutes * 60:
            raise _Death(
                f"it took longer than {WHOLE_OF_FRAME} x data.video_minutes={minutes:g} in all",
                started,
            )
