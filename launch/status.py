#!/usr/bin/env python3
"""Show how far the phases of a run are: state, step, speed, time left, and the last error with the place of its log.

python launch/status.py runs/binding --watch
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from hpc_stres.configfile import load_run  # noqa: E402
from hpc_stres.errors import UserError  # noqa: E402
from hpc_stres.recipe import ordered_phases  # noqa: E402
from hpc_stres.runpaths import RunPaths  # noqa: E402
from hpc_stres.texttable import text_table  # noqa: E402

# A scheduler is asked at most once a minute, however often the screen is drawn.
SCHEDULER_SECONDS, SCREEN_SECONDS, STALE_SECONDS = 60.0, 2.0, 120.0


def read(path: Path) -> dict[str, Any]:
    """A small JSON file, or nothing where it is not written yet."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError):
        return {}


def queue_states(numbers: list[str]) -> dict[str, str]:
    """State and reason of jobs that are still in the queue, by id."""
    if not numbers or not shutil.which("squeue"):
        return {}
    run = subprocess.run(
        ["squeue", "-h", "-o", "%i %T %r", "-j", ",".join(numbers)], capture_output=True, text=True, check=False
    )
    found = {}
    for line in run.stdout.splitlines():
        number, state, reason = [*line.split(maxsplit=2), "", ""][:3]
        never = "DependencyNeverSatisfied" in reason
        found[number] = (
            "will never start" if never else f"{state.lower()} ({reason})" if state == "PENDING" else state.lower()
        )
    return found


def rows(run_dir: Path, states: dict[str, str]) -> list[list[str]]:
    """One row a phase, and evaluation last."""
    config, paths = load_run(run_dir), RunPaths(run_dir)
    jobs = read(paths.jobs)
    found = []
    for name in ["prepare", *ordered_phases(config.phases), "evaluate"]:
        numbers = jobs.get(name, {}).get("ids", [])
        progress = read(paths.logs / f"{name}.progress.json")
        done = paths.results.is_file() if name == "evaluate" else paths.phase(name).done.is_file()
        if name == "prepare":
            if not progress and not numbers:
                continue
            done = bool(progress) and progress["done"] == progress["total"]
        fresh = time.time() - progress.get("time", 0) < STALE_SECONDS
        state = "done" if done else next((states[n] for n in numbers if n in states), "running" if fresh else "waiting")
        line = " ".join(progress.get("line", "").split()[1:])
        found.append([name, ",".join(numbers) or "-", state, line, "" if done else last_error(paths, name)])
    return found


def last_error(paths: RunPaths, name: str) -> str:
    """The last message of a job's newest log, with its place."""
    logs = sorted((paths.logs / name).glob("*_log.out"), key=lambda path: path.stat().st_mtime)
    for path in reversed(logs[-4:]):
        lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.startswith("hpc-stres ")]
        if lines:
            return f"{lines[-1]} [{path}]"
    return ""


def show(run_dir: Path, states: dict[str, str]) -> str:
    """The table."""
    return text_table(["phase", "job", "state", "progress", "last error"], rows(run_dir, states))


def watch(run_dir: Path) -> None:
    """Draw the table again and again until evaluation is done."""
    asked, states = 0.0, {}
    while True:
        if time.monotonic() - asked > SCHEDULER_SECONDS or not asked:
            asked, states = time.monotonic(), queue_states(all_jobs(run_dir))
        text = show(run_dir, states)
        print(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + text, flush=True)
        if RunPaths(run_dir).results.is_file():
            return
        time.sleep(SCREEN_SECONDS if sys.stdout.isatty() else SCHEDULER_SECONDS)


def all_jobs(run_dir: Path) -> list[str]:
    """Ids of every job of a run."""
    return [number for job in read(RunPaths(run_dir).jobs).values() for number in job["ids"]]


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
            print(show(run_dir, queue_states(all_jobs(run_dir))))
    except UserError as error:
        print(f"status.py: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
