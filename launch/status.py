#!/usr/bin/env python3
"""Show how far the phases of a run are: state, step, speed, time left, and the last error with the place of its log.

python launch/status.py runs/binding --watch
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from hpc_stres.configfile import load_run  # noqa: E402
from hpc_stres.data.storepath import store_folder  # noqa: E402
from hpc_stres.errors import UserError  # noqa: E402
from hpc_stres.recipe import ordered_phases  # noqa: E402
from hpc_stres.runpaths import RunPaths, read_json  # noqa: E402
from hpc_stres.texttable import text_table  # noqa: E402
from launch import slurm  # noqa: E402
from launch.jobs import EVALUATE, PREPARE, evaluation_is_done, is_done  # noqa: E402

# A scheduler is asked at most once a minute, however often the screen is drawn.
SCHEDULER_SECONDS, SCREEN_SECONDS, STALE_SECONDS = 60.0, 2.0, 120.0


class Scheduler:
    """What Slurm says of a run's jobs: one squeue a minute at most, and one sacct for what squeue has forgotten."""

    def __init__(self, numbers: list[str]) -> None:
        self.numbers = numbers
        self.found: dict[str, tuple[str, str]] = {}
        self.asked_s = float("-inf")

    def states(self) -> dict[str, tuple[str, str]]:
        """State and reason by id, asked anew when the last answer is a minute old."""
        if time.monotonic() - self.asked_s >= SCHEDULER_SECONDS:
            self.asked_s = time.monotonic()
            self.found |= slurm.queue([n for n in self.numbers if self.found.get(n, ("PENDING",))[0] in slurm.ALIVE])
            self.found |= slurm.accounted([n for n in self.numbers if n not in self.found])
        return self.found


def job_state(numbers: list[str], states: Mapping[str, tuple[str, str]]) -> str:
    """One word or two for the links of a job: the one that runs, else the first that waits, else how the last ended."""
    known = [states[number] for number in numbers if number in states]
    for wanted in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"):
        if any(state == wanted for state, _ in known):
            return wanted.lower()
    for state, reason in known:
        if state in slurm.ALIVE:
            never = "NeverSatisfied" in reason
            return "will never start (what it waits for failed)" if never else f"{state.lower()} ({reason})"
    return f"{known[-1][0].lower()} ({known[-1][1]})" if known else ""


def rows(run_dir: Path, states: Mapping[str, tuple[str, str]]) -> list[list[str]]:
    """One row a phase, and evaluation last."""
    config, paths = load_run(run_dir), RunPaths(run_dir)
    jobs = read_json(paths.jobs)
    found, failed = [], set()
    for name in [PREPARE, *ordered_phases(config.phases), EVALUATE]:
        job = jobs.get(name, {})
        progress = read_json(paths.logs / f"{name}.progress.json")
        if name == PREPARE and not (progress or job):
            continue
        if name == PREPARE:
            done = (store_folder(config) / "manifest.json").is_file()
        elif name == EVALUATE:
            done = evaluation_is_done(config, paths)
        else:
            done = is_done(config, paths, name)
        state = "done" if done else job_state(job.get("ids", []), states)
        if not state:
            fresh = time.time() - progress.get("time", 0) < STALE_SECONDS
            state = "running" if fresh else "stopped" if progress else "waiting"
        if not done and state.split()[0] in ENDED:
            failed.add(name)
            blamed = [other for other in job.get("after", []) if other in failed]
            state = f"cancelled: {', '.join(blamed)} failed" if blamed and state.startswith("cancelled") else state
        line = " ".join(progress.get("line", "").split()[1:])
        error = "" if done else last_error(paths, name)
        found.append([name, ",".join(job.get("ids", [])) or "-", state, line, expected_end(progress, done), error])
    return found


ENDED = ("failed", "cancelled", "timeout", "node_fail", "out_of_memory", "preempted", "boot_fail", "will")


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
        lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.startswith("hpc-stres ")]
        if lines:
            return f"{lines[-1]} [{path}]"
    return ""


def show(run_dir: Path, states: Mapping[str, tuple[str, str]]) -> str:
    """The table."""
    return text_table(["phase", "job", "state", "progress", "ends about", "last error"], rows(run_dir, states))


def watch(run_dir: Path) -> None:
    """Draw the table again and again until evaluation is done, or nothing is left that could do it."""
    scheduler = Scheduler(all_jobs(run_dir))
    while True:
        states = scheduler.states()
        text = show(run_dir, states)
        print(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + text, flush=True)
        if rows(run_dir, states)[-1][2] == "done":
            return
        if scheduler.found and not any(state in slurm.ALIVE for state, _ in scheduler.found.values()):
            raise UserError(
                "no job of this run is left in the queue\nMend what the last column names and submit again."
            )
        time.sleep(SCREEN_SECONDS if sys.stdout.isatty() else SCHEDULER_SECONDS)


def all_jobs(run_dir: Path) -> list[str]:
    """Ids of every job of a run."""
    return [number for job in read_json(RunPaths(run_dir).jobs).values() for number in job["ids"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Show or watch a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--watch", action="store_true", help="refresh until the run is done")
    args = parser.parse_args(argv)
    run_dir = Path(args.run)
    try:
        if args.watch:
            watch(run_dir)
        else:
            print(show(run_dir, Scheduler(all_jobs(run_dir)).states()))
    except UserError as error:
        print(f"status.py: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
