"""Submitting against a scheduler that is stopped, silent, dead or lies, and a submit that is killed at any point.

The commands are wrappers in front of the real ones, the Slurm behind them is real, and its jobs are
held. After each fault the same submit is run again, and the controller must have one job for each
phase and link.
"""

import json
import os
import re
import signal
import subprocess
from collections import Counter

import pytest

from tests.conftest import ROOT
from tests.slurm.conftest import User, person

HELD = {
    "cluster__sbatch__hold": "true",
    "cluster__scheduler_seconds": 2,
    "cluster__links": 2,
    "nodes": 1,
}
CHAIN = Counter((name, link) for name in ("motion", "appearance", "evaluate") for link in (0, 1))
TWO = {"phase": "motion,appearance"}


class Submitter(User):
    """A user whose commands of Slurm can be put out of order."""

    def __init__(self, slurm, data_root, run_dir, folder):
        super().__init__(slurm, data_root, run_dir)
        self.wrappers = folder / "bin"
        self.wrappers.mkdir()
        self.count = folder / "calls"

    def wrap(self, name, script):
        """Put a wrapper before a command: bash in which $real is the real one and $call counts from
        1."""
        real = self.slurm.run("bash", "-c", f"command -v {name}").stdout.strip()
        self.count.unlink(missing_ok=True)
        # A question to sbatch submits nothing: calls that are counted are those that do.
        asking = '[ "$1" != --test-only ] || exec "$real" "$@"' if "$call" in script else ""
        counting = f'call=$(($(cat "{self.count}" 2>/dev/null || echo 0) + 1)); echo $call > "{self.count}"'
        path = self.wrappers / name
        path.write_text(
            f'#!/bin/bash\nreal={real}\n{asking}\n{counting}\n{script}\nexec "$real" "$@"\n'
        )
        path.chmod(0o755)

    def unwrap(self):
        """All commands work again."""
        for path in self.wrappers.iterdir():
            path.unlink()

    def try_submit(self, *more, **settings):
        """Submit as it comes; returns exit status and output."""
        environment = {**self.slurm.environment, "PATH": f"{self.wrappers}:{os.environ['PATH']}"}
        command = self.command(*more, **(HELD | TWO | settings))
        result = self.slurm.run(*command, check=False, cwd=ROOT, env=environment)
        assert "Traceback" not in result.stdout + result.stderr
        assert len(result.stderr.splitlines()) <= 3, result.stderr
        return result.returncode, result.stdout + result.stderr

    def queued(self):
        """How many jobs of this run the controller has, by phase and link."""
        rows = self.slurm.run("squeue", "-h", "-o", "%i|%k").stdout.splitlines()
        run = json.loads((self.run_dir / "jobs.json").read_text())["run"]
        marks = [row.split("|")[1].split(":") for row in rows]
        return Counter((mark[2], int(mark[3])) for mark in marks if mark[:2] == ["hpc_stres", run])

    def cancel(self):
        """Cancel the run; returns what was printed."""
        words = ["launch/submit.py", "--cancel", self.run_dir]
        return self.slurm.run(*[self.command()[0], *words], cwd=ROOT).stdout


@pytest.fixture
def who(slurm, data_root, tmp_path):
    """A user with working commands, whose jobs are held, and gone after the test."""
    run_dir = tmp_path / "räume mit raum"
    someone = Submitter(slurm, data_root, run_dir, tmp_path)
    with person(slurm, data_root, run_dir):
        yield someone


FAULTS = {
    "dead": "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
    "silent": "sleep 60",
    "garbage": "echo 'welcome to the login node'; exit 0",
    "half a row": '"$real" "$@" | head -c -20; exit 0',
}


def test_a_squeue_that_does_not_answer_is_never_an_empty_queue(who):
    assert who.try_submit()[0] == 0
    assert who.queued() == CHAIN
    for fault, script in FAULTS.items():
        who.wrap("squeue", script)
        code, output = who.try_submit()
        assert (code, "nothing was submitted" in output) == (1, True), (fault, output)
        assert who.queued() == CHAIN, fault


@pytest.mark.parametrize("lie", ["exit 0", '"$real" "$@" | head -n 2; exit 0'])
def test_a_squeue_that_leaves_jobs_out_is_not_believed(who, lie):
    assert who.try_submit()[0] == 0
    who.wrap("squeue", lie)
    code, output = who.try_submit()
    assert (code, "nothing more to submit" in output) == (0, True), output
    assert who.queued() == CHAIN
    # With the controller's other word missing, and the accounting too, nobody knows: that is
    # refused.
    for name in ("scontrol", "sacct"):
        who.wrap(name, "[ $2 = config ] || [ $2 = show -a $4 = config ] || exit 1")
    code, output = who.try_submit()
    assert (code, "nobody says that it is gone" in output) == (1, True), output
    assert who.queued() == CHAIN


ACCEPTED = {
    "slow to answer": '[ $call != 2 ] || { "$real" "$@"; sleep 60; }',
    "time-out": '[ $call != 2 ] || { "$real" "$@" >&2; echo "Socket timed out on send/recv operation" >&2; exit 1; }',
    "no id": '[ $call != 2 ] || { "$real" "$@" >/dev/null; echo Thanks; exit 0; }',
    "late": '[ $call != 2 ] || { (sleep 1; "$real" "$@") &>/dev/null & disown; echo "Socket timed out" >&2; exit 1; }',
}


@pytest.mark.parametrize("fault", ACCEPTED)
def test_a_job_that_was_accepted_without_a_word_is_found(who, fault):
    who.wrap("sbatch", ACCEPTED[fault])
    code, output = who.try_submit()
    assert code == 0, output
    assert who.queued() == CHAIN
    assert sum(map(len, who.jobs().values())) == len(CHAIN)
    who.unwrap()
    assert who.try_submit()[0] == 0
    assert who.queued() == CHAIN


def test_a_busy_controller_is_asked_again_and_one_that_refuses_is_not(who):
    busy = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
    who.wrap("sbatch", f"[ $call != 2 ] || {{ {busy}; }}")
    code, output = who.try_submit()
    assert code == 0, output
    assert who.queued() == CHAIN
    who.cancel()
    who.wrap("sbatch", '[ $call != 3 ] || exec "$real" --partition=none "$@"')
    code, output = who.try_submit()
    assert (code, "invalid partition" in output) == (1, True), output
    assert "Nothing of this submission was left in the queue" in output
    assert not who.queued()


# Where submit.py (the parent of sbatch) is killed: after the real call, before it, and before it
# while sbatch lives on. It is run again and killed again until nothing is left to submit: the
# number of jobs, and of the call to be killed at.
KILLS = {
    "after": ('"$real" "$@"; kill -9 $PPID; exit 0', 6, 1),
    "before": ("kill -9 $PPID; exit 1", 2, 2),
    "orphan": ("kill -9 $PPID; sleep 1", 2, 2),
}


@pytest.mark.parametrize("point", KILLS)
def test_a_submit_that_is_killed_at_any_point_is_finished_by_the_next(who, point):
    script, times, at = KILLS[point]
    for done in range(times):
        who.wrap("sbatch", f"[ $call != {at} ] || {{ {script}; }}")
        assert who.try_submit()[0] == -signal.SIGKILL
        assert set(who.queued().values()) <= {1}, (done, who.queued())
    who.unwrap()
    code, output = who.try_submit()
    assert code == 0, output
    assert who.queued() == CHAIN


def test_a_killed_submit_is_finished_although_squeue_hides_its_job(who):
    who.wrap("sbatch", '[ $call != 3 ] || { "$real" "$@"; kill -9 $PPID; exit 0; }')
    assert who.try_submit()[0] == -signal.SIGKILL
    who.unwrap()
    who.wrap("squeue", "exit 0")
    code, output = who.try_submit()
    assert code == 0, output
    assert who.queued() == CHAIN


def test_a_controller_that_is_stopped_while_it_takes_a_job_takes_it_once(who):
    controller = who.slurm.processes["slurmctld"]
    who.wrap("sbatch", f"[ $call != 3 ] || kill -STOP {controller.pid}")
    try:
        code, output = who.try_submit()
        assert (code, "whether it was submitted is not known" in output) == (1, True), output
        code, output = who.try_submit()
        assert (code, "nothing was submitted" in output) == (1, True), output
    finally:
        controller.send_signal(signal.SIGCONT)
    who.unwrap()
    who.slurm.wait(lambda: who.slurm.ok("squeue"), "the controller")
    code, output = who.try_submit()
    assert code == 0, output
    assert who.queued() == CHAIN


def test_a_job_that_is_completing_is_neither_alive_nor_done(who):
    """After scancel its processes may take a while: new jobs are submitted, and wait for their
    end."""
    stubborn = {
        "cluster__sbatch__hold": "false",
        "cluster__setup": "[\"trap '' TERM; sleep 100\"]",
        "cluster__links": 1,
    }
    assert who.try_submit(phase="motion", **stubborn)[0] == 0
    (old,) = who.jobs()["motion"]
    who.slurm.wait(lambda: who.slurm.state(old) == "RUNNING", "the first job")
    who.slurm.run("scancel", *(number for numbers in who.jobs().values() for number in numbers))
    who.slurm.wait(
        lambda: who.slurm.run("squeue", "-h", "-j", old, "-o", "%T").stdout.strip() == "COMPLETING",
        "COMPLETING",
    )
    code, output = who.try_submit(phase="motion", **stubborn)
    assert code == 0, output
    (new,) = who.jobs()["motion"]
    assert new != old
    shown = who.slurm.run("scontrol", "-o", "show", "job", new).stdout
    assert f"Dependency=afterany:{old}" in shown, shown


def test_other_settings_are_refused_while_jobs_are_queued(who):
    assert who.try_submit()[0] == 0
    before = who.queued()
    for change, words in ({"cluster__minutes": 77}, "cluster.minutes: 10 there, 77 now"), (
        {"training__max_steps": 3}, "training.max_steps: None there, 3 now",
    ):  # fmt: skip
        code, output = who.try_submit(**change)
        assert (code, words in output, "--cancel" in output) == (1, True, True), output
    assert who.queued() == before
    who.cancel()
    assert who.try_submit(cluster__minutes=77)[0] == 0


def test_cancel_ends_a_whole_chain_also_without_its_journal(who):
    assert who.try_submit()[0] == 0
    printed = who.cancel()
    assert sorted(re.findall(r"job (\d+) cancelled", printed)) == sorted(
        n for ids in who.jobs().values() for n in ids
    )
    assert not who.queued()
    assert "nothing to cancel" in who.cancel()
    assert who.try_submit()[0] == 0
    journal = who.run_dir / "jobs.json"
    whole = journal.read_text()
    journal.write_text(whole.replace('"links": 2', '"links": 3', 1))
    code, output = who.try_submit()
    assert (code, "jobs.json: damaged" in output) == (1, True), output
    journal.unlink()
    code, output = who.try_submit()
    assert (code, "jobs.json does not know" in output) == (1, True), output
    journal.write_text(whole)
    assert who.queued() == CHAIN
    journal.write_text("{")
    assert who.cancel().count("cancelled") == len(CHAIN)
    journal.write_text(whole)
    assert not who.queued()


def test_three_splits_wait_for_one_job_that_prepares(who, tmp_path):
    settings = {"data__root": tmp_path / "data", "cluster__links": 1, "phase": "motion"}
    for _ in range(2):
        code, output = who.try_submit("--split", "all", **settings)
        assert code == 0, output
    rows = who.slurm.run("squeue", "-h", "-r", "-o", "%i|%k|%E").stdout.splitlines()
    marks = [(row.split("|")[0], row.split(":")[2], row.split("|")[2]) for row in rows]
    (prepare,) = [number for number, phase, _ in marks if phase == "prepare"]
    waiting = [after for _, phase, after in marks if phase == "motion"]
    assert waiting == [f"afterok:{prepare}(unfulfilled)"] * 3, marks
    assert len(marks) == 7
    assert who.status().count("prepare") == 3
    who.cancel()
    assert not who.slurm.queue()


def test_a_copied_run_has_no_jobs_and_a_moved_one_keeps_them(who, tmp_path):
    assert who.try_submit()[0] == 0
    subprocess.run(["cp", "-r", who.run_dir, tmp_path / "copy"], check=True)
    original, who.run_dir = who.run_dir, tmp_path / "copy"
    assert "nothing to cancel" in who.cancel()
    assert who.try_submit()[0] == 0
    assert who.queued() == CHAIN
    who.cancel()
    original.rename(tmp_path / "moved")
    who.run_dir = tmp_path / "moved"
    code, output = who.try_submit()
    assert (code, "they would work there" in output) == (1, True), output
    assert who.queued() == CHAIN
    assert "cancelled" in who.cancel()
    assert who.try_submit()[0] == 0
    assert who.queued() == CHAIN
    who.cancel()
    (tmp_path / "moved").rename(original)
    who.run_dir = original
