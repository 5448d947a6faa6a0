"""Studies as job arrays that really run, on a private Slurm that enforces accounts and wckeys; then newer code.

  python -m tests.campaigns.sites                                   3 splits x 3 seeds on four nodes, 4 at once
  python -m tests.campaigns.sites --splits 1 --seeds 1,2 --at-once 2
  python -m tests.campaigns.sites --local --seeds 1,2,3 --at-once 2   the same without Slurm: the bytes of one by one

Prints how many jobs were seen running at most, and what became of each element. Ends with 1 where something is not as
promised. Takes minutes: each element is a training of its own.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpc_stres.run.paths import sha256
from tests.conftest import ROOT, TINY
from tests.slurm.cluster import PrivateSlurm

OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
SOURCES = ("hpc_stres", "configs", "launch", "tests/tiny.yaml")


def main():
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--splits", default="all", help="all, or the number of one")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--local", action="store_true", help="on this machine, against one by one")
    args = parser.parse_args()
    if args.local:
        with tempfile.TemporaryDirectory(prefix="sites-") as folder:
            wrong = local_campaign(Path(folder), args)
        for line in wrong:
            print(f"WRONG: {line}")
        return 1 if wrong else 0
    with tempfile.TemporaryDirectory(prefix="sites-") as folder:
        base = Path(folder)
        slurm = PrivateSlurm(base / "slurm", is_site=True)
        try:
            slurm.start()
            wrong = campaign(slurm, base, args)
        finally:
            left = slurm.stop()
    for line in [*wrong, *(f"left running: {name}" for name in left)]:
        print(f"WRONG: {line}")
    return 1 if wrong or left else 0


def campaign(slurm, base, args):
    """The study, then one of its runs with newer code."""
    checkout = base / "checkout"
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, checkout / name)
    runs = base / "runs" / "study"
    words = command(checkout, runs, base / "data", args)
    started = time.monotonic()
    said = slurm.run(*words, "--phase", "motion", cwd=checkout, check=False)
    print(said.stdout)
    if said.returncode:
        return [said.stderr]
    # A `git pull` while jobs wait: they must not see it.
    broken = checkout / "hpc_stres" / "training" / "trainer.py"
    broken.write_text("raise RuntimeError('newer code')\n" + broken.read_text())
    most, states = watched(slurm, args.minutes * 60)
    print(f"{len(states)} jobs, {most} at once at most, {time.monotonic() - started:.0f} s")
    wrong = [f"job {number}: {state}" for number, state in states.items() if state != "COMPLETED"]
    wrong += [f"{most} jobs ran at once"] if most > args.at_once else []
    tables = sorted(runs.rglob("results.json"))
    expected = (3 if args.splits == "all" else 1) * len(args.seeds.split(","))
    wrong += [f"{len(tables)} tables for {expected} runs"] if len(tables) != expected else []
    for path in tables:
        (table,) = json.loads(path.read_text())["splits"].values()
        print(f"  {path.parent.relative_to(runs)}: motion {table['motion']['top1']:.2f} %")
    if wrong:
        wrong += [
            log.read_text(errors="replace")[-1500:] for log in sorted(runs.rglob("*_log.out"))[:2]
        ]
        return wrong
    again = slurm.run(*words, "--phase", "motion,appearance", cwd=checkout, check=False)
    if again.returncode != 1 or "changed hpc_stres/training/trainer.py" not in again.stderr:
        wrong.append(
            f"newer code was not refused: {again.returncode} {again.stdout} {again.stderr}"
        )
    print(again.stderr.strip())
    return wrong


def local_campaign(base, args):
    """Some runs at once on this machine, and the same runs one by one: the same weights."""
    digests = {}
    for at_once in (args.at_once, 1):
        runs = base / f"study{at_once}"
        words = [
            sys.executable, "launch/submit.py", "--config", TINY, "--cluster", "local", "--phase", "motion",
            "--seeds", args.seeds, "--at-once", at_once, "--run-dir", runs,
        ]  # fmt: skip
        for text in (
            f"data.root={base / 'data'}",
            "cluster.cpus_per_rank=1",
            "evaluation.protocol=quick",
        ):
            words += ["--set", text]
        started = time.monotonic()
        said = subprocess.run(
            [str(word) for word in words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        print(
            f"{at_once} at once: exit status {said.returncode}, {time.monotonic() - started:.0f} s"
        )
        if said.returncode:
            return [said.stdout[-1500:] + said.stderr]
        weights = sorted(runs.glob("*/phases/motion/weights.safetensors"))
        digests[at_once] = {path.parts[-4]: sha256(path) for path in weights}
        tables = [path.parts[-2] for path in sorted(runs.glob("*/results.json"))]
        print(f"  tables: {', '.join(tables)}")
        if tables != sorted(digests[at_once]) or len(tables) != len(args.seeds.split(",")):
            return [f"tables {tables}, weights {sorted(digests[at_once])}"]
    both = list(digests.values())
    print(f"the same bytes: {both[0] == both[-1]}")
    return [] if both[0] == both[-1] else [f"other weights: {digests}"]


def command(checkout, runs, data, args):
    """The command line of the submit."""
    words = [
        sys.executable,
        "launch/submit.py",
        "--config",
        TINY,
        "--cluster",
        "slurm",
        "--nodes",
        "1",
    ]
    words += ["--run-dir", runs, "--split", args.splits, "--seeds", args.seeds]
    words += ["--at-once", args.at_once]
    for text in (
        f"data.root={data}", "cluster.partition=cpu", "cluster.account=proj1234", "cluster.wckey=thesis",
        "cluster.minutes=30", "cluster.cpus_per_rank=1", "cluster.prepare={cores: 2}",
        "cluster.environment={MASTER_ADDR: 127.0.0.1, HPC_STRES_THREADS: 1}", "evaluation.protocol=quick",
        "training.start_timeout_minutes=30", "training.step_timeout_minutes=30",
    ):  # fmt: skip
        words += ["--set", text]
    return words


def watched(slurm, seconds):
    """Most jobs that were seen running at once, and how each element ended."""
    deadline, most = time.monotonic() + seconds, 0
    while True:
        shown = slurm.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T", check=False).stdout
        states = dict(line.split("|") for line in shown.splitlines())
        most = max(most, sum(state in ("RUNNING", "COMPLETING") for state in states.values()))
        if time.monotonic() > deadline or (states and set(states.values()) <= OVER):
            return most, states
        time.sleep(1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\n{error.stderr}")
