"""Commands that start in a moment: one process imports what is heavy, and each command is a fork of it.

Starting `python -m hpc_stres train` takes five seconds of a processor, nearly all of them for
importing torch and DALI; training the tiny config takes two. What starts here is a process of its
own all the same: its own pid, session, environment and output, it can be killed, and it runs the
very command from its first line. Only its imports are those of the process that it was forked from.

What this cannot show is that a fresh interpreter starts: the chain of tests/distributed, its
torchrun and mpirun, tests/slurm, and each test that calls `run_python` with `fresh=True` do.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parent.parent
# What a process reads whenever it likes, and what libraries set while they are imported. Everything
# else may have been read while it was imported.
READ_LATE = (
    "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "HPC_STRES_THREADS", "HPC_STRES_END_TIME",
    "HPC_STRES_PROGRESS", "OMP_NUM_THREADS", "PYTEST_CURRENT_TEST", "PATH",
    "HPC_STRES_TOLD_OF_KERNELS", "TORCHINDUCTOR_CACHE_DIR", "THP_MEM_ALLOC_ENABLE",
)  # fmt: skip
HEAVY = (
    "torch", "torch.utils.tensorboard", "nvidia.dali.fn", "nvidia.dali.plugin.base_iterator",
    "scipy.stats", "cv2", "av", "hpc_stres.training.phase", "hpc_stres.evaluation.evaluate",
)  # fmt: skip
SCRIPTS = ("launch/submit.py", "launch/status.py")
# Of mallopt.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MESSAGE_BYTES = 200_000
# What is told of a fork: its process id once it is one, and later its status.
REPORT = struct.Struct("ci")
PID, STATUS = b"p", b"s"
# As the session was started; a test may have changed the present one.
ENVIRONMENT = dict(os.environ)


class Command:
    """A Python command of this environment in a session of its own; its output goes to files.

    `arguments` are those of the interpreter: `-m MODULE ...`, `SCRIPT ...` or `-c CODE ...`. The
    first two are forked where that comes to the same.
    """

    def __init__(self, arguments, env=None, cwd=ROOT, merged=False, fresh=False):
        self.arguments = [str(argument) for argument in arguments]
        env = dict(os.environ if env is None else env)
        self.returncode = None
        self._outputs = [tempfile.TemporaryFile() for _ in range(1 if merged else 2)]  # noqa: SIM115
        numbers = [file.fileno() for file in self._outputs]
        if fresh or not can_fork(self.arguments, env, cwd):
            self._process = subprocess.Popen(
                [sys.executable, *self.arguments], stdin=subprocess.DEVNULL, stdout=numbers[0],
                stderr=numbers[-1], env=env, cwd=cwd, start_new_session=True,
            )  # fmt: skip
            self.pid = self._process.pid
        else:
            self._process = None
            self._report = warm_process().fork(self.arguments, env, numbers)
            self.pid = self._told(PID)

    def _told(self, wanted):
        answer = os.read(self._report, REPORT.size)
        if answer[:1] != wanted:
            raise RuntimeError(f"{self.arguments}: could not be forked or watched: {self.errors}")
        return REPORT.unpack(answer)[1]

    def poll(self):
        """The exit status, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        """The exit status; minus the signal's number where one ended it."""
        if self.returncode is None and self._process is not None:
            self.returncode = self._process.wait(timeout)
        elif self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.arguments, timeout)
            self.returncode = os.waitstatus_to_exitcode(self._told(STATUS))
            os.close(self._report)
        return self.returncode

    @property
    def output(self):
        """What it has written so far; standard output alone, unless the two are merged."""
        return _text_of(self._outputs[0])

    @property
    def errors(self):
        """Its standard error so far."""
        return _text_of(self._outputs[-1])

    def finished(self, timeout=PATIENCE_SECONDS):
        """Wait, and return it as `subprocess.run` does; it is killed when it takes longer."""
        try:
            self.wait(timeout)
        finally:
            self.kill()
        return subprocess.CompletedProcess(
            self.arguments, self.returncode, self.output, self.errors
        )

    def kill(self):
        """End it, where it still runs, and every process that it started: workers and ranks have
        sessions of their own."""
        family = []
        # It may end by itself meanwhile.
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if self.poll() is None:
                family = psutil.Process(self.pid).children(recursive=True)
                for member in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
                os.killpg(self.pid, signal.SIGKILL)
        self.wait(PATIENCE_SECONDS)
        psutil.wait_procs(family, timeout=PATIENCE_SECONDS)


def keep_freed_memory():
    """Memory that was freed stays with this process, where the C library can be asked for that:
    taking activations from the system anew in each step is half of training the tiny config."""
    with contextlib.suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        allocator.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _text_of(file):
    size = os.fstat(file.fileno()).st_size
    text = os.pread(file.fileno(), size, 0).decode()
    return text.replace("\r\n", "\n")


# -- whether a fork will do -----------------------------------------------------------------------


@functools.cache
def _forks_are_sound():
    """CUDA, which some imports ask for its devices, does not survive a fork."""
    import torch

    return not torch.cuda.is_available()


def can_fork(arguments, env, cwd):
    """Whether a fork runs this command as a fresh interpreter would."""
    ours = arguments[0] == "-m" and arguments[1].startswith(("hpc_stres", "tests."))
    if not (ours or arguments[0] in SCRIPTS) or Path(cwd) != ROOT or not _forks_are_sound():
        return False
    return not unlike(env)


def unlike(env):
    """The variables in which an environment differs from the session's and that may have been read."""
    changed = (name for name in {*ENVIRONMENT, *env} if ENVIRONMENT.get(name) != env.get(name))
    return {name for name in changed if not name.startswith(READ_LATE)}


# -- the process that is forked -------------------------------------------------------------------


@functools.cache
def warm_process():
    """The one of this test session; it ends with it."""
    return WarmProcess()


class WarmProcess:
    """This side of it: it is told what to start over a socket, and ends when that closes."""

    def __init__(self):
        # With one thread no library has started any that a fork would lose.
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks", str(theirs.fileno())], env=environment,
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        atexit.register(self.end)

    def fork(self, arguments, env, outputs):
        """Start a command; returns where its process id can be read, and later its status."""
        ours, theirs = os.pipe()
        try:
            message = json.dumps([arguments, env]).encode()
            socket.send_fds(self._control, [message], [theirs, outputs[0], outputs[-1]])
        finally:
            os.close(theirs)
        return ours

    def end(self):
        """It has nothing to save, and what it started has parents of its own."""
        self._control.close()
        self._process.wait()


def serve(control):
    """Fork a process for each message. Only such a process returns, with what it is to run."""
    # Those that watch over a command are waited for by nobody.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, numbers, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 3)
        if not message:
            sys.exit()
        report, *outputs = numbers
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            arguments, env = json.loads(message)
            child = os.fork()
            if child == 0:
                become(env, outputs)
                os.write(report, REPORT.pack(PID, os.getpid()))
                os.close(report)
                return arguments
            watch(child, report, outputs)
        for number in (report, *outputs):
            os.close(number)


def become(env, outputs):
    """Make of a fork what a started interpreter would be."""
    import numpy as np

    os.setsid()
    for number, place in zip(outputs, (1, 2), strict=True):
        os.dup2(number, place)
        os.close(number)
    os.environ.clear()
    os.environ.update(env)
    np.random.seed()


def watch(child, report, outputs):
    """Wait for a command and tell its status. It is the parent that every process has."""
    for number in outputs:
        os.close(number)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(report, REPORT.pack(STATUS, status))
    os._exit(0)


def import_what_is_heavy():
    """What training, evaluating and answering take seconds to import; DeepSpeed changes torch, and
    is left to those that train with it."""
    from hpc_stres.run.large_pages import use_large_pages

    use_large_pages()
    keep_freed_memory()
    for name in HEAVY:
        importlib.import_module(name)
    from hpc_stres.__main__ import build_parser

    build_parser()
    # It is run as a program later, which Python says aloud where it is known already.
    del sys.modules["hpc_stres.__main__"]
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose these threads"
    gc.freeze()


def main():
    """Be forked until nobody is there to ask for it; in a fork, run what was asked for."""
    import_what_is_heavy()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path[0] = str(ROOT / Path(command[0]).parent)
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main()
