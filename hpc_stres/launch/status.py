"""Show how far runs are: state, step, speed, time left, why a job waits, who
is late, what it cost, and the last error with the place of its log. Of more
than three runs each is one row.

  python launch/status.py runs/binding --watch
  python launch/status.py runs/*
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_stres.config.loading import load_run
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.errors import ConfigError, UserError, explained
from hpc_stres.launch import node_failures, scheduler
from hpc_stres.launch.bad_nodes import reasons
from hpc_stres.launch.chain import Request, store_ready
from hpc_stres.launch.jobs import EVALUATE, PREPARE, evaluation_is_done, is_done, last_message
from hpc_stres.launch.journal import Journal, Submitted
from hpc_stres.launch.scheduler import ENDED_STATES, ENDING_STATE, NoAnswer
from hpc_stres.launch.status_notes import notes
from hpc_stres.run.paths import RunPaths, read_json, runs_together
from hpc_stres.run.tables import text_table

# Of more runs than this each is one row.
MOST_WHOLE = 3
# A scheduler is asked at most once a minute, however often the screen is drawn.
SCHEDULER_SECONDS, SCREEN_SECONDS, STALE_SECONDS = 60.0, 2.0, 120.0
States = Mapping[str, tuple[str, str]]
START = re.compile(r"start\|([\d_\[\]-]+)\|(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")


NO_STARTS: Mapping[str, str] = {}


def clock(stamp: str) -> str:
    """The scheduler's time stamp as a person reads it."""
    return time.strftime("%a %H:%M", time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))


class Scheduler:
    """What Slurm says of a run's jobs: one squeue a minute at most, and one sacct for what squeue
    has forgotten."""

    def __init__(self, numbers: list[str], answer_seconds: float) -> None:
        self.numbers, self.answer_seconds = numbers, answer_seconds
        self.known: dict[str, tuple[str, str]] = {}
        self.silence = ""
        """Why the newest states are not known; empty when they are."""
        self.starts: dict[str, str] = {}
        """When the scheduler expects jobs to start that wait, as far as it says."""
        self._asked_at = float("-inf")

    def states(self) -> States:
        """State and reason by id, asked anew when the last answer is a minute old."""
        if self.numbers and time.monotonic() - self._asked_at >= SCHEDULER_SECONDS:
            self._ask()
            self._asked_at = time.monotonic()
        return self.known

    def _ask(self) -> None:
        open_ones = [n for n in self.numbers if self.known.get(n, ("",))[0] not in ENDED_STATES]
        if not open_ones:
            return
        if not shutil.which("squeue"):
            self.silence = (
                "there is no squeue on this machine: what the queue has is not known here"
            )
            return
        try:
            rows = scheduler.look(self.answer_seconds, open_ones)
        except NoAnswer as error:
            self.silence = str(error).splitlines()[0]
            return
        self.silence = ""
        self.known |= {row.number: (row.state, row.reason) for row in rows}
        self.starts = self._expected([row.number for row in rows if row.state == "PENDING"])
        by_number = {row.number: row for row in rows}
        # Elements that ended before they began are one row, under the array's own id.
        whole = {
            n: by_number[scheduler.base(n)] for n in open_ones if scheduler.base(n) in by_number
        }
        self.known |= {n: (row.state, row.reason) for n, row in whole.items() if n not in by_number}
        lost = [n for n in open_ones if n not in by_number and n not in whole]
        ended = scheduler.accounted(lost, self.answer_seconds)
        self.known |= {number: ended.get(number, ("GONE", "ended")) for number in lost}

    def _expected(self, waiting: list[str]) -> dict[str, str]:
        """Clock times at which waiting jobs are expected to start."""
        if not waiting:
            return {}
        try:
            answer = scheduler.call(
                ["squeue", "-h", "--start", "-j", ",".join(waiting), "-o", "start|%i|%S"],
                self.answer_seconds,
            )
        except NoAnswer:
            return {}
        matches = map(START.fullmatch, answer.out.splitlines())
        return {match[1]: clock(match[2]) for match in matches if match}

    @property
    def has_alive(self) -> bool:
        """Whether a job waits or runs, as far as the scheduler says."""
        over = (*ENDED_STATES, "GONE")
        return any(
            s not in over and "NeverSatisfied" not in reason for s, reason in self.known.values()
        )


def job_state(numbers: Sequence[str], states: States, starts: Mapping[str, str] = NO_STARTS) -> str:
    """One word or two for the links of a job: the one that runs, else the first that waits, else
    how the last ended."""
    named = [(number, *states[number]) for number in numbers if number in states]
    known = [(state, reason) for _, state, reason in named]
    for wanted in ("RUNNING", ENDING_STATE, "CONFIGURING", "SUSPENDED"):
        if any(state == wanted for state, _ in known):
            return wanted.lower()
    for number, state, reason in named:
        if state not in (*ENDED_STATES, "GONE"):
            if "NeverSatisfied" in reason:
                return "will never start (what it waits for failed)"
            expected = f", starts about {starts[number]}" if number in starts else ""
            return f"{state.lower()} ({reason}{expected})"
    return f"{known[-1][0].lower()} ({known[-1][1]})" if known else ""


def rows(run_dir: Path, states: States, starts: Mapping[str, str] = NO_STARTS) -> list[list[str]]:
    """One row a phase, and evaluation last."""
    config, home = load_run(run_dir), prepare_home(run_dir)
    jobs = jobs_of(run_dir)
    table: list[list[str]] = []
    failed: set[str] = set()
    for name in [PREPARE, *ordered_phases(config.phases), EVALUATE]:
        job = jobs.get(name, NOT_SUBMITTED)
        paths = RunPaths(home if name == PREPARE else run_dir)
        progress = read_json(paths.logs / f"{name}.progress.json")
        if name == PREPARE:
            if not (progress or job.ids):
                continue
            done = store_ready(config)
        else:
            done = (
                evaluation_is_done(config, paths)
                if name == EVALUATE
                else is_done(config, paths, name)
            )
        state = "done" if done else job_state(job.ids, states, starts)
        if not state:
            state = "running" if is_fresh(progress) else "stopped" if progress else "waiting"
        if not done and state.split()[0] in ENDED:
            failed.add(name)
            blamed = [other for other in job.after if other in failed]
            state = (
                f"cancelled: {', '.join(blamed)} failed"
                if blamed and state.startswith("cancelled")
                else state
            )
        line = " ".join(progress.get("line", "").split()[1:])
        error = "" if done else last_error(paths, name)
        table.append(
            [name, ",".join(job.ids) or "-", state, line, expected_end(progress, done), error]
        )
    return table


NOT_SUBMITTED = Submitted((), 0, (), "", ())


def prepare_home(run_dir: Path) -> Path:
    """Folder whose journal holds the job that prepares the run's store."""
    return Request(load_run(run_dir), run_dir.resolve(), "all").prepare_home


def jobs_of(run_dir: Path) -> dict[str, Submitted]:
    """Jobs of a run, and the one that prepares its store. A copy of another run's folder has
    none."""
    home = prepare_home(run_dir)
    above = {} if home == run_dir.resolve() else Journal.read(home).jobs
    return {name: job for name, job in above.items() if name == PREPARE} | Journal.read(
        run_dir
    ).jobs


def is_fresh(progress: Mapping[str, Any]) -> bool:
    """Whether a job has said lately how far it is."""
    return bool(time.time() - progress.get("time", 0) < STALE_SECONDS)


ENDED = (
    "failed",
    "cancelled",
    "timeout",
    "node_fail",
    "out_of_memory",
    "preempted",
    "boot_fail",
    "will",
)


def expected_end(progress: Mapping[str, Any], done: bool) -> str:
    """Clock time at which a running job will be through, from its speed so far."""
    if done or "first" not in progress or time.time() - progress["time"] > STALE_SECONDS:
        return ""
    gone = progress["done"] - progress["first"]
    if gone <= 0:
        return ""
    left = (progress["total"] - progress["done"]) * progress["seconds"] / gone
    return time.strftime("%a %H:%M", time.localtime(progress["time"] + left))


def last_error(paths: RunPaths, name: str) -> str:
    """The last message of a job's newest log, with its place."""
    logs = sorted((paths.logs / name).glob("*_log.out"), key=lambda path: path.stat().st_mtime)
    for path in reversed(logs[-4:]):
        if message := last_message(path):
            return f"{message} [{path}]"
    return ""


HEADINGS = ["phase", "job", "state", "progress", "ends about", "last error"]


def show(run_dir: Path, asked: Scheduler) -> str:
    """The table of one run, and what is to be said of it."""
    states = asked.states()
    phase_rows = rows(run_dir, states, asked.starts)
    config = load_run(run_dir)
    if asked.numbers and not asked.silence:
        node_failures.note(run_dir, states, asked.answer_seconds)
    # Of phases that are under way or cut short; what a finished one met on its way is in its log.
    open_ones = {row[0]: row[2].startswith("running") for row in phase_rows if row[2] != "done"}
    under_way = {name: open_ones[name] for name in config.phases if name in open_ones}
    lines = notes(config, run_dir, under_way)
    return "\n".join([text_table(HEADINGS, phase_rows), *(f"  {line}" for line in lines)])


def summary_row(run_dir: Path, asked: Scheduler) -> list[str]:
    """A whole run in one row: its first phase that runs, else the first that is not done."""
    phase_rows = rows(run_dir, asked.states(), asked.starts)
    rest = [row for row in phase_rows if row[2] != "done" and row[0] != PREPARE] or phase_rows[-1:]
    shown = next((row for row in rest if row[2].startswith("running")), rest[0])
    failed = next((row for row in rest if row[2].split()[0] in ENDED), None)
    shown = failed or shown
    done = sum(row[2] == "done" for row in phase_rows)
    return [str(run_dir), f"{done}/{len(phase_rows)}", *shown]


def show_all(run_dirs: Sequence[Path], asked: Scheduler, whole: bool) -> str:
    """The tables of a few runs; of more a row each, unless the whole tables are asked for."""
    if len(run_dirs) <= MOST_WHOLE or whole:
        return "\n\n".join(titled(run_dir, asked, len(run_dirs) > 1) for run_dir in run_dirs)
    table = text_table(["run", "done", *HEADINGS], [summary_row(d, asked) for d in run_dirs])
    lines = [f"  {d}: {line}" for d in run_dirs for line in reasons(d, load_run(d).cluster)]
    return "\n".join([table, *lines])


def watch(run_dirs: Sequence[Path], whole: bool = False) -> None:
    """Draw the tables again and again until all is done, or nothing is left that could do it."""
    asked = scheduler_of(run_dirs)
    while True:
        text = show_all(run_dirs, asked, whole)
        print(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + text, flush=True)
        if asked.silence:
            print(f"  {asked.silence}", flush=True)
        states = asked.states()
        if all(row[2] == "done" for run_dir in run_dirs for row in rows(run_dir, states)[-1:]):
            return
        if not may_go_on(run_dirs, asked):
            raise UserError(
                "no job of this run waits or runs\nFix what the last column names, if anything, and submit again."
            )
        time.sleep(SCREEN_SECONDS if sys.stdout.isatty() else PLAIN_SECONDS)


# Between two tables where there is no terminal.
PLAIN_SECONDS = 10.0


def may_go_on(run_dirs: Sequence[Path], asked: Scheduler) -> bool:
    """Whether something is left that could finish these runs: a job in the queue, or a process of
    this machine. Where the scheduler does not answer, only a fresh word of a job says so."""
    if asked.numbers and not asked.silence:
        return asked.has_alive
    progress = [
        read_json(path)
        for run_dir in run_dirs
        for path in RunPaths(run_dir).logs.glob("*.progress.json")
    ]
    is_silent = bool(asked.silence) and shutil.which("squeue") is not None
    return is_silent or any(is_fresh(row) for row in progress)


def scheduler_of(run_dirs: Sequence[Path]) -> Scheduler:
    """Who is asked about the jobs of these runs."""
    numbers = dict.fromkeys(
        n for run_dir in run_dirs for job in jobs_of(run_dir).values() for n in job.ids
    )
    return Scheduler(list(numbers), load_run(run_dirs[0]).cluster.scheduler_seconds)


def titled(run_dir: Path, asked: Scheduler, with_title: bool) -> str:
    """The table, under the name of its folder where there are several."""
    return (f"{run_dir}\n" if with_title else "") + show(run_dir, asked)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line, of `hpc-stres status` and of launch/status.py."""
    parser.add_argument(
        "run", metavar="RUN", nargs="+", help="run folders, or folders of splits; any number"
    )
    parser.add_argument(
        "--watch", action="store_true", help="refresh until all is done or nothing of it runs"
    )
    parser.add_argument(
        "--whole", action="store_true", help="of many runs: every phase of each, not one row"
    )


def run_folders(names: Sequence[str]) -> list[Path]:
    """The runs that these names mean, each once. Of several, folders that are no
    runs are left out."""
    folders: list[Path] = []
    for name in names:
        place = Path(name)
        if not place.is_dir():
            if len(names) == 1 or not place.exists():
                raise ConfigError(f"{place}: there is no such folder")
            continue
        is_run = RunPaths(place).config.is_file()
        inside = runs_together(place) or ([place] if is_run or len(names) == 1 else [])
        folders += [folder for folder in inside if folder not in folders]
    if not folders:
        raise ConfigError(f"{', '.join(names[:3])}: no run folder among them")
    return folders


def run(args: argparse.Namespace) -> int:
    """Show or watch runs; the exit status."""
    run_dirs = run_folders(args.run)
    if args.watch:
        with contextlib.suppress(KeyboardInterrupt):
            watch(run_dirs, args.whole)
        return 0
    asked = scheduler_of(run_dirs)
    print(show_all(run_dirs, asked, args.whole))
    if asked.silence:
        raise UserError(asked.silence)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """What launch/status.py calls; errors are a few lines on stderr and an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    try:
        return run(args)
    except UserError as error:
        print(f"status.py: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): that is its right, and no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 0
    except Exception as error:
        if args.debug:
            raise
        print(f"status.py: {explained(error)}", file=sys.stderr)
        return 1
