"""Commands of the package as forked children of a process that has imported everything: a start costs no import.

Each child is a process of its own, with its own environment, files, signals and shim; it calls what the installed
command calls, `hpc_stres.__main__.main`.
"""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.campaign import guards, shim
from tests.campaign.shim import Orders

LIMIT_SECONDS = 240.0
POLL_SECONDS = 0.02
# What a launcher does after one rank has failed: it waits so long for the others, then ends them.
OTHERS_SECONDS = 120.0
# What a command started ends within so long after it, whatever ended it.
ORPHANS_SECONDS = 60.0


@dataclass
class Child:
    """A running command."""

    pid: int
    output: Path
    status: int | None = None

    def poll(self) -> int | None:
        """Exit status as a shell has it (negative for a signal), or None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def kill(self) -> None:
        """End it and what it started."""
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.pid).children(recursive=True)
        for pid in [self.pid, *(member.pid for member in family)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        psutil.wait_procs(family, timeout=5)

    @property
    def text(self) -> str:
        """What it said: its output, and after that its errors."""
        files = (self.output, errors_of(self.output))
        there = [path.read_bytes() for path in files if path.exists()]
        return b"".join(there).decode("utf-8", "replace")


# What this process has forked, for `end_all`.
STARTED: list[Child] = []


def end_all() -> None:
    """A campaign that is interrupted leaves nothing behind, a stopped rank neither."""
    for child in STARTED:
        if child.status is None and child.poll() is None:
            child.kill()


def errors_of(output: Path) -> Path:
    """The file of a child's errors beside that of its output."""
    return output.with_suffix(".errors")


@dataclass
class Start:
    """How a command is started."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    orders: Orders = field(default_factory=Orders)
    umask: int = 0o022
    folder: Path | None = None
    without: str = ""
    inherited_orders: Orders | None = None
    """What programs that the command starts are told; nothing by default."""
    before: Callable[[], None] | None = None
    """What the child does to itself last: limits, a disk of its own."""


def _new_session() -> None:
    """A session of its own, with the priority of the one before: Linux gives each its own share of the processors."""
    group = Path("/proc/self/autogroup")
    told = group.read_text() if group.exists() else ""
    os.setsid()
    if " nice " in told:
        with contextlib.suppress(OSError):
            group.write_text(told.split()[-1])


def _become(start: Start, output: Path) -> None:
    """In the child: what a shell would set up."""
    _new_session()
    # Whatever the campaign itself makes of them: one that runs in the background ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, path in ((1, output), (2, errors_of(output))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, value in start.environment.items():
        if value:
            os.environ[name] = value
        else:
            os.environ.pop(name, None)
    if start.inherited_orders is not None:
        os.environ["CAMPAIGN_SHIM"] = str(start.inherited_orders)
    os.umask(start.umask)
    if start.folder is not None:
        os.chdir(start.folder)
    if start.before is not None:
        start.before()
    guards.remove(start.without)
    shim.arm(start.orders)


def fork(start: Start, output: Path, work: Callable[[], int] | None = None) -> Child:
    """Run a command (or `work`) in a child; its words go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        STARTED.append(Child(pid, output))
        return STARTED[-1]
    status = 70
    try:
        _become(start, output)
        if work is None:
            from hpc_stres.__main__ import main

            status = main([str(word) for word in start.argv])
        else:
            status = work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            _end_as_a_program()
        os._exit(status & 0xFF)


def _end_as_a_program() -> None:
    """What the interpreter does at its end: threads are waited for, what was registered is called."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()


@dataclass
class End:
    """How a command ended: the status of each rank, all their words, whether it had to be ended."""

    statuses: list[int]
    text: str
    hung: bool = False
    seconds: float = 0.0
    left: tuple[str, ...] = ()
    """Processes that the command started and that outlived it."""

    @property
    def ok(self) -> bool:
        return not self.hung and all(status == 0 for status in self.statuses)


def wait(
    children: Sequence[Child], limit_seconds: float = LIMIT_SECONDS, watch: Callable[[], None] | None = None
) -> End:  # fmt: skip
    """Until all have ended; after a failure the others have a while to end by themselves."""
    started, failed_at, hung = time.monotonic(), None, False
    while any(child.poll() is None for child in children):
        now = time.monotonic()
        if failed_at is None and any(child.status for child in children):
            failed_at = now
        late = failed_at is not None and now - failed_at > OTHERS_SECONDS
        if late or now - started > limit_seconds:
            hung = True
            break
        if watch is not None:
            watch()
        time.sleep(POLL_SECONDS)
    for child in children:
        if child.status is None:
            child.kill()
    text = "".join(dict.fromkeys(child.text for child in children))
    seconds = time.monotonic() - started
    left = () if hung else survivors({child.pid for child in children})
    return End([int(child.status or 0) for child in children], text, hung, seconds, left)


def survivors(sessions: set[int], patience_seconds: float = ORPHANS_SECONDS) -> tuple[str, ...]:
    """Names of the processes of these sessions that do not end by themselves; they are ended."""
    deadline = time.monotonic() + patience_seconds
    while (alive := _members(sessions)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    names = []
    for member in alive:
        with contextlib.suppress(psutil.Error):
            names.append(f"{member.name()} {' '.join(member.cmdline())[:80]}")
            member.kill()
    return tuple(names)


def _members(sessions: set[int]) -> list[psutil.Process]:
    """Processes of these sessions that are no zombies."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getsid(pid) in sessions and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(psutil.Process(pid))
    return members


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environments(world: int, port: int | None = None) -> list[dict[str, str]]:
    """What torchrun tells each rank; nothing for one process alone."""
    if world == 1:
        return [{}]
    common = {
        "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port or free_port()),
    }  # fmt: skip
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
