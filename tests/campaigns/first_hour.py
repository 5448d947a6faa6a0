"""How long a stranger waits: from a clone to a table, to a table of videos of one's own, and what comes after.

  python -m tests.campaigns.first_hour                     all four; some minutes, on whatever machine this is
  python -m tests.campaigns.first_hour --only demo,own --json times.json

Each is done with the commands that README and tutorial print, in an empty folder outside of the checkout, in the
environment that runs this. A row: the commands, seconds on the clock, seconds of processors, what came out. Seconds of
processors do not depend on what else the machine does. Installing the environment (`make setup`) is not measured.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hpc_stres.prepare.video import write_video
from tests.conftest import ROOT

HOUR_SECONDS = 3600
# Directions in which the ground of a video moves, by class; the class cannot be seen in one frame.
WAYS = {"left": (0, -2), "right": (0, 2), "up": (-2, 0), "down": (2, 0)}
OTHER_WAYS = {"fast": (0, 5), "slow": (0, 1), "diagonal": (3, 3)}


@dataclass
class Row:
    """One thing that a stranger wants."""

    what: str
    commands: int
    clock_seconds: float
    processor_seconds: float
    came_out: str


def command(words, cwd):
    """A command as a user types it, run by this environment; its output."""
    shown = f"hpc-stres {shlex.join(map(str, words))}"
    print(f"$ {shown}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "hpc_stres", *map(str, words)], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{shown}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def measured(what, cwd, lines, came_out):
    """The row of some commands, one after another."""
    clock, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for words in lines:
        command(words, cwd)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Row(what, len(lines), time.monotonic() - clock, used, came_out())


def table_of(run_dir):
    """Accuracies of a run, and their number of videos."""
    results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    (columns,) = results["splits"].values()
    shown = ", ".join(f"{name} {column['top1']:.0f}" for name, column in columns.items())
    return f"top-1 %: {shown}, of {next(iter(columns.values()))['videos']} videos"


def make_videos(folder, ways, each, seed):
    """Videos of 32 frames, 96 x 128, whose smooth ground moves by class."""
    import cv2

    draw = np.random.default_rng(seed)
    for label, (down, right) in ways.items():
        (folder / label).mkdir(parents=True)
        for number in range(each):
            small = draw.integers(0, 256, (9, 12, 3), np.uint8)
            ground = cv2.resize(small, (128, 96), interpolation=cv2.INTER_CUBIC)
            frames = (np.roll(ground, (down * n, right * n), (0, 1)) for n in range(32))
            write_video(folder / label / f"{label} {number}.avi", frames, 25)


def make_hour(path, rate):
    """A film of an hour at so many frames a second, 96 x 128; it moves all the time."""
    import cv2

    small = np.random.default_rng(3).integers(0, 256, (9, 12, 3), np.uint8)
    ground = cv2.resize(small, (128, 96), interpolation=cv2.INTER_CUBIC)
    frames = (np.roll(ground, (n // 3, n), (0, 1)) for n in range(HOUR_SECONDS * rate))
    write_video(path, frames, rate)


def fewer(args):
    """What --steps adds to a command that trains."""
    return [] if args.steps is None else ["--set", f"training.max_steps={args.steps}"]


def submit(name, args):
    """The chain of a config that `init` wrote."""
    words = ["submit", "--config", f"{name}.yaml", "--phase", "all", "--cluster", "local"]
    return [*words, *fewer(args)]


def demo(base, args):
    """From a clone with its environment to the table."""
    run, lines = base / "runs" / "binding", [["demo", *fewer(args)]]
    return measured("a first table (`make demo`)", base, lines, lambda: table_of(run))


def own(base, args):
    """From a folder of videos to their table."""
    make_videos(base / "videos", WAYS, args.each, 1)
    lines = [
        ["init", "mydata", "--videos", "videos", "--from-scratch", "--size", "small"],
        submit("mydata", args),
    ]
    run = base / "runs" / "mydata"
    what = f"own videos' table ({len(WAYS) * args.each} videos)"
    return measured(what, base, lines, lambda: table_of(run))


def tuned(base, args):
    """From that run to one of other classes."""
    make_videos(base / "others", OTHER_WAYS, args.each, 2)
    lines = [
        ["init", "tuned", "--videos", "others", "--from", "runs/mydata", "--trainable", "head"],
        submit("tuned", args),
    ]
    run = base / "runs" / "tuned"
    what = f"fine-tuned on other classes ({len(OTHER_WAYS) * args.each} videos)"
    return measured(what, base, lines, lambda: table_of(run))


def features(base, args):
    """Features of a film of an hour."""
    make_hour(base / "hour.avi", args.rate)
    lines = [["features", "runs/mydata", "hour.avi", "--out", "features"]]

    def came_out():
        told = json.loads((base / "features" / "hour.json").read_text(encoding="utf-8"))
        return f"{told['windows']} windows, {told['channels']} channels"

    what = f"features of an hour at {args.rate} frames a second"
    return measured(what, base, lines, came_out)


STEPS = {"demo": demo, "own": own, "tuned": tuned, "features": features}


def main():
    """The rows, as a table and perhaps as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", default=",".join(STEPS), help="demo, own, tuned (after own), features (after own)"
    )
    parser.add_argument("--each", type=int, default=12, help="videos of a class (default: 12)")
    parser.add_argument(
        "--rate", type=int, default=5, help="frames a second of the hour (default: 5)"
    )
    parser.add_argument(
        "--steps", type=int, help="at most so many of a phase: to see that this works, no figures"
    )
    parser.add_argument("--json", help="also write the rows there")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="first hour ", ignore_cleanup_errors=True) as folder:
        for name in args.only.split(","):
            rows.append(STEPS[name](Path(folder), args))
            print(f"{rows[-1]}", flush=True)
    if args.json:
        Path(args.json).write_text(
            json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8"
        )
    print(as_table(rows))
    return 0


def as_table(rows):
    """As docs/comparison.md has it."""
    lines = ["| | commands | clock | processors | what came out |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.what} | {row.commands} | {row.clock_seconds:.0f} s | {row.processor_seconds:.0f} s | {row.came_out} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
