"""The same jobs as processes of this machine: submitit's local executor, one progress view."""

import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.launch.jobs import EVALUATE, Interrupted, Job, JobCall, last_message
from hpc_stres.run.paths import RunPaths, read_json
from hpc_stres.run.progress import duration
from hpc_stres.run.signals import EXIT_CONTINUE
from hpc_stres.tools.doctor import tell_of_missing_kernels

POLL_SECONDS = 0.2
MAX_LINKS = 1000
# How long jobs that were interrupted may take to end.
STOP_SECONDS = 45.0


class LocalRun:
    """Runs jobs as their predecessors finish; a job whose predecessor failed never starts."""

    def __init__(
        self, config: Config, run_dir: Path, jobs: list[Job], code: Path | None = None
    ) -> None:
        self.config, self.paths, self.jobs = config, RunPaths(run_dir), jobs
        self.code = code
        self.running: dict[str, Any] = {}
        self.links: dict[str, int] = {}
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self.begun: dict[str, float] = {}
        self.started = time.monotonic()
        self.beside = 1
        """How many runs share this machine's cores."""
        self.title = ""
        """What is written before its lines, where there are several."""

    def run(self) -> None:
        """All jobs, to the end or to the first failure."""
        for failure in run_together([self], 1):
            raise UserError(failure)

    @property
    def is_over(self) -> bool:
        """Whether all jobs are done, or one failed and no other runs."""
        return len(self.done) == len(self.jobs) or (bool(self.failed) and not self.running)

    def step(self, screen: "Screen") -> None:
        """Start what may start, and look at what runs."""
        self._start_ready()
        self._collect(screen)

    def lines(self) -> list[str]:
        """How far each running job is."""
        return [self.title + self._line(name) for name in self.running]

    def outcome(self, screen: "Screen") -> str:
        """Say how it ended; what failed, or an empty text."""
        if not self.failed and len(self.jobs) > 1:
            took = duration(time.monotonic() - self.started)
            screen.say(f"  {self.title}{'all jobs':<16} done, took {took}")
        if not self.failed:
            return ""
        name, log = next(iter(self.failed.items()))
        waiting = [
            job.name
            for job in self.jobs
            if job.name not in self.done and job.name not in self.failed
        ]
        text = f"job {name} failed; its log: {log}\n{_last_lines(Path(log))}"
        never = f"\nnot started, because they wait for it: {', '.join(waiting)}" if waiting else ""
        return text + never

    def _start_ready(self) -> None:
        ready = [
            job
            for job in self.jobs
            if job.name not in self.running and job.name not in self.done and job.name not in self.failed
            and not self.failed
            and all(name in self.done for name in job.after)
        ]  # fmt: skip
        together = (len(ready) + len(self.running)) * self.beside
        for job in ready:
            self.begun.setdefault(job.name, time.monotonic())
            self.running[job.name] = self._submit(job, together)

    def _submit(self, job: Job, together: int) -> Any:
        import submitit

        folder = self.paths.logs / job.name
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(
            tasks_per_node=self._ranks(job),
            timeout_min=job.minutes,
            stderr_to_stdout=True,
            name=job.name,
            signal_delay_s=30,
        )
        cores = len(os.sched_getaffinity(0))
        threads = self.config.cluster.cpus_per_rank or max(
            1, cores // (together * self._ranks(job))
        )
        environment = {"MASTER_PORT": str(_free_port()), "HPC_STRES_THREADS": str(threads)}
        progress = self.progress_file(job.name)
        progress.unlink(missing_ok=True)
        call = JobCall(job, environment, progress, self.paths.root, code=self.code)
        with _stderr_to(folder / "controller.log"), _imports_from(self.code):
            return executor.submit(call)

    def _ranks(self, job: Job) -> int:
        """Evaluation is single-threaded by rank, so it takes a rank a core."""
        if job.name == EVALUATE and not job.gpus_per_node:
            return max(job.ranks, len(os.sched_getaffinity(0)))
        return job.ranks

    def progress_file(self, name: str) -> Path:
        """Where a job says how far it is."""
        return self.paths.logs / f"{name}.progress.json"

    def _collect(self, screen: "Screen") -> None:
        for name, job in list(self.running.items()):
            if not job.done():
                continue
            del self.running[name]
            code = _exit_code(job)
            if code == 0:
                self.done.add(name)
                took = duration(time.monotonic() - self.begun[name])
                screen.say(
                    f"  {self.title}{name:<16} done, took {took}  {self._note(name)}".rstrip()
                )
            elif code == EXIT_CONTINUE and self.links.get(name, 1) < MAX_LINKS:
                self.links[name] = self.links.get(name, 1) + 1
            else:
                self.failed[name] = str(job.paths.stdout)

    def _note(self, name: str) -> str:
        return str(read_json(self.progress_file(name)).get("note", ""))

    def _line(self, name: str) -> str:
        return str(read_json(self.progress_file(name)).get("line") or f"{name:<16} starting")

    def stop(self) -> None:
        """End what runs, and wait for its end: whoever submits again must not meet it."""
        for job in self.running.values():
            job.cancel()
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and not all(job.done() for job in self.running.values()):
            time.sleep(POLL_SECONDS)


def run_together(runs: Iterable[LocalRun], at_once: int) -> list[str]:
    """Some runs at once, to the end; a run that fails ends no other. What failed, a text a run."""
    screen, waiting, active = Screen(), iter(runs), list[LocalRun]()
    failures: list[str] = []
    tell_of_missing_kernels()
    # A script's background job begins with SIGINT ignored; `--cancel` must end it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            active += itertools.islice(waiting, at_once - len(active))
            if not active:
                break
            for run in list(active):
                run.step(screen)
                if run.is_over:
                    active.remove(run)
                    failures += filter(None, [run.outcome(screen)])
            screen.show([line for run in active for line in run.lines()])
            if active:
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        for run in active:
            run.stop()
        kept = ", ".join(str(run.paths.root) for run in active)
        raise Interrupted(
            f"interrupted; what is done is kept: {kept}\nThe same command resumes there."
        ) from None
    screen.close()
    return failures


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Processes that are started in this block write their errors into a file: submitit's
    controllers end with a traceback when they are interrupted, which would hide the one
    sentence that matters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(2)
    try:
        with path.open("ab") as stream:
            os.dup2(stream.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _imports_from(code: Path | None) -> Iterator[None]:
    """Processes that are started in this block find the package there first, and not in the folder
    that they are started in."""
    changes = {} if code is None else {"PYTHONSAFEPATH": "1"}
    if code is not None:
        before = os.environ.get("PYTHONPATH")
        changes["PYTHONPATH"] = os.pathsep.join(filter(None, [str(code), before]))
    kept = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _exit_code(job: Any) -> int:
    """The worst exit status of a job's ranks: 0 only when each left its result."""
    results = [
        job.paths.folder / f"{job.job_id}_{task}_result.pkl" for task in range(job.num_tasks)
    ]
    if all(path.is_file() for path in results) and job.exception() is None:
        return 0
    # The controller passes the highest exit status of its tasks on.
    code = job._process.poll() if getattr(job, "_process", None) is not None else None
    return int(code) if code else 1


def _last_lines(path: Path) -> str:
    return last_message(path) or "it ended without a message"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Screen:
    """A few lines that are drawn over again on a terminal, and plain lines now
    and then elsewhere."""

    PLAIN_INTERVAL_SECONDS = 10.0

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.drawn = 0
        self.last_plain = 0.0

    def show(self, lines: list[str]) -> None:
        """Draw the lines of the running jobs."""
        if self.terminal:
            self._erase()
            width = os.get_terminal_size().columns
            sys.stdout.write("".join(f"  {line[: width - 3]}\n" for line in lines))
            sys.stdout.flush()
            self.drawn = len(lines)
        elif time.monotonic() - self.last_plain > self.PLAIN_INTERVAL_SECONDS and lines:
            self.last_plain = time.monotonic()
            print("\n".join(f"  {line}" for line in lines), flush=True)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._erase()
        print(line, flush=True)

    def _erase(self) -> None:
        if self.terminal and self.drawn:
            sys.stdout.write(f"\x1b[{self.drawn}F\x1b[J")
        self.drawn = 0

    def close(self) -> None:
        """Leave the screen as it is."""
        self._erase()
