"""One round of a campaign on a private Slurm: who submits, under which poison, and which promises were broken."""

import argparse
import os
import signal
import sys

from tests import poison
from tests.conftest import ROOT
from tests.slurm.cluster import missing
from tests.slurm.test_once import Submitter


def asked_for(text, rounds):
    """What the command line of a campaign on a private Slurm says; ends where there can be none."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=rounds, action="append")
    parser.add_argument("--data", help="folder of data that is kept between calls")
    args = parser.parse_args()
    if reason := missing():
        sys.exit(f"no private Slurm: {reason}")
    # Ended from outside, its Slurm ends with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    return args


class Round:
    """What a round works with, and what it finds wrong."""

    def __init__(self, slurm, data_root, folder):
        self.slurm, self.data_root, self.folder, self.wrong = slurm, data_root, folder, []
        folder.mkdir()

    def check(self, condition, text):
        """A promise; what came in its place is told."""
        if not condition:
            self.wrong.append(text)
            print(f"   WRONG: {text}", flush=True)

    def user(self, name="run"):
        """A person who submits into a folder of this round."""
        place = self.folder / f"wrappers{len(list(self.folder.glob('wrappers*')))}"
        place.mkdir()
        someone = Submitter(self.slurm, self.data_root, self.folder / name, place)
        someone.settings |= {"cluster.sbatch.hold": "false", "cluster.scheduler_seconds": 60}
        return someone

    def submit(self, who, *words, **settings):
        """Submit with wrapped commands; exit status and output."""
        command = who.command(*words, **settings)
        environment = {**self.slurm.environment, "PATH": f"{who.wrappers}:{os.environ['PATH']}"}
        result = self.slurm.run(*command, check=False, cwd=ROOT, env=environment)
        output = result.stdout + result.stderr
        self.check("Traceback" not in output, output)
        self.check(len(result.stderr.splitlines()) <= 3, result.stderr)
        return result.returncode, output

    def poisoned(self, mode, bad, phase=""):
        """Settings under which nodes do not do their work."""
        if not (self.folder / "poison").exists():
            poison.write(self.folder / "poison")
        values = {
            "MASTER_ADDR": "127.0.0.1", "HPC_STRES_THREADS": 1, "POISON": mode, "POISONED": f"'{bad}'",
            "POISONED_PHASE": f"'{phase}'", "PYTHONPATH": self.folder / "poison", "FULL": self.folder / "full",
        }  # fmt: skip
        words = "{" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"
        return {"cluster__environment": words, "cluster__arrival_seconds": 10}

    def queued(self):
        """Every job and element in the queue: phase, link, state, what it waits for."""
        shown = self.slurm.run("squeue", "-h", "-r", "-o", "%i|%T|%E|%k").stdout.splitlines()
        rows = [line.split("|") for line in shown]
        return [(n, s, after, *mark.split(":")[2:4]) for n, s, after, mark in rows]

    def ended(self, who):
        """States of all jobs of a run, when none waits or runs."""
        ids = who.jobs()
        states = who.wait_states(*(n for numbers in ids.values() for n in numbers))
        flat = [(name, n) for name, numbers in ids.items() for n in numbers]
        result = {}
        for (name, _), state in zip(flat, states, strict=True):
            result.setdefault(name, []).append(state)
        return result


def restarted(slurm, more):
    """The controller again, with other limits."""
    slurm.stop_controller()
    slurm.more = more
    slurm.configure()
    slurm.start_controller()
    slurm.wait(lambda: slurm.ok("squeue"), "the controller", 120)
