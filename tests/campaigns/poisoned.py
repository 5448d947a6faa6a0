"""Chains on a private Slurm with one poisoned node: `python -m tests.campaigns.poisoned [--only NAME]`.

Each round poisons the node that Slurm would take first, submits a phase of three links over two nodes, and looks at
what became of it: at most one attempt may be lost, the chain ends on other nodes, and status names the node with its
reason. A script that crashes everywhere stops after the allowed number of attempts. Needs root and Slurm's programs.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hpc_stres.prepare.run import prepare
from hpc_stres.run.attempts import read_attempts
from hpc_stres.run.bad_nodes import read_accusations
from tests import poison
from tests.campaigns.rounds import asked_for
from tests.conftest import tiny_config
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.conftest import person

BAD = "n2"
LINKS = 4


class Round:
    """One chain with one poison."""

    def __init__(self, slurm, data_root, folder, mode, bad=BAD):
        self.slurm, self.data_root, self.folder, self.mode, self.bad = (
            slurm,
            data_root,
            folder,
            mode,
            bad,
        )
        poison.write(folder / "poison")

    def run(self, **settings):
        """Submit, wait, and tell what became of it."""
        environment = {
            "MASTER_ADDR": "127.0.0.1", "HPC_STRES_THREADS": 1, "POISON": self.mode, "POISONED": self.bad,
            "PYTHONPATH": self.folder / "poison", "FULL": self.folder / "full",
        }  # fmt: skip
        if self.mode == "name":
            del environment["MASTER_ADDR"]
        words = "{" + ", ".join(f"{key}: {value}" for key, value in environment.items()) + "}"
        with person(self.slurm, self.data_root, self.folder / "run") as user:
            started = time.monotonic()
            chosen = {
                "nodes": 2, "phase": "motion", "cluster__links": LINKS, "cluster__environment": words,
                "cluster__arrival_seconds": 5, **settings,
            }  # fmt: skip
            user.submit(**chosen)
            jobs = user.jobs()
            if self.mode == "slow":
                # As at the end of a wall time, once the slow rank has been named.
                self.slurm.wait(lambda: read_accusations(user.run_dir), "a slow rank's name", 240)
                self.slurm.run("scancel", "--signal=USR2", jobs["motion"][0])
            states = user.wait_states(*(n for ids in jobs.values() for n in ids))
            seconds = time.monotonic() - started
            status = user.status()
            return Outcome(self, user, states, seconds, status)


class Outcome:
    """What became of a round."""

    def __init__(self, one, user, states, seconds, status):
        self.mode, self.states, self.seconds, self.status = one.mode, states, seconds, status
        self.attempts = [a for a in read_attempts(user.run_dir) if a.phase == "motion"]
        self.accusations = read_accusations(user.run_dir)
        self.is_done = (user.run_dir / "phases" / "motion" / "done.json").is_file()
        self.logs = user.logs("motion")
        self.rows = _rows(user.run_dir / "phases" / "motion" / "metrics.jsonl")

    def print(self):
        """The figures of this round."""
        print(
            f"== {self.mode}: {self.seconds:.0f} s, {'done' if self.is_done else 'not done'}, {self.states}"
        )
        for attempt in self.attempts:
            print(f"   job {attempt.name} on {','.join(attempt.nodes)}: exit status {attempt.code}")
        for row in self.accusations:
            print(f"   {row.node} {row.kind} (job {row.job}): {row.reason}")
        print("   " + self.status.replace("\n", "\n   "), flush=True)


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def judge(outcome, bad):
    """What is wrong with a round's outcome, in words; nothing where it is as promised."""
    faults = []
    if outcome.mode == "crashes":
        tried = [a for a in outcome.attempts if a.code == 1]
        if len(tried) > 3:
            faults.append(f"{len(tried)} attempts of a script that crashes")
        if "attempts in a row ended without a new checkpoint" not in outcome.status:
            faults.append("status does not say why the chain stopped")
        if outcome.accusations:
            faults.append("a node is accused of the script's fault")
        return faults
    if not outcome.is_done:
        faults.append("the chain did not end")
    lost = [a for a in outcome.attempts if bad in a.nodes]
    if len(lost) > 1:
        faults.append(f"{len(lost)} attempts on the poisoned node")
    if {row.node for row in outcome.accusations} != {bad}:
        faults.append(f"accused: {sorted({row.node for row in outcome.accusations})}")
    if f"node {bad}" not in outcome.status:
        faults.append("status does not name the node")
    return faults


def full_folder(folder):
    """A file system without room, of one page."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)], check=True)
    return folder


ROUNDS = {
    "dies": {}, "silent": {}, "full": {}, "name": {}, "crashes": {},
    "slow": {"phases__motion__optimise__schedule": "[[60, 1.0e-3]]"},
    "hangs": {"training__step_timeout_minutes": 0.1},
}  # fmt: skip


def main():
    """All rounds; exit status 1 where one broke a promise."""
    args = asked_for(__doc__, ROUNDS)
    broken = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        data = Path(args.data) if args.data else folder / "data"
        prepare(tiny_config(data), quiet=True)
        slurm = PrivateSlurm(folder / "slurm")
        try:
            slurm.start()
            for mode in args.only or ROUNDS:
                bad = "n1" if mode == "name" else BAD
                if mode == "full":
                    full_folder(folder / mode / "full")
                outcome = Round(slurm, data, folder / mode, mode, bad).run(**ROUNDS[mode])
                outcome.print()
                faults = judge(outcome, bad)
                if faults:
                    broken[mode] = faults
                    print("   BROKEN: " + "; ".join(faults), flush=True)
        finally:
            slurm.stop()
            subprocess.run(
                ["umount", str(folder / "full" / "full")], capture_output=True, check=False
            )
    print(
        f"{len(args.only or ROUNDS) - len(broken)} of {len(args.only or ROUNDS)} rounds as promised"
    )
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
