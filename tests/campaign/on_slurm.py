"""Faults of a real Slurm: its steps, its daemons and its jobs are killed, stopped, cancelled and queued again.

The private Slurm of tests/slurm is brought up with the first such round and ends with the campaign. Where this
machine has none (or not the rights), the round says so and counts as left out.
"""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.campaign import children
from tests.campaign.children import Start, fork
from tests.campaign.experiments import CONFIG
from tests.campaign.judge import CRASHED, SILENT, STOPPED, SURVIVED, Failure, Outcome, check_end
from tests.campaign.programs import ROOT
from tests.slurm.cluster import PrivateSlurm, missing

if TYPE_CHECKING:
    from tests.campaign.rounds import Place

JOB_SECONDS, SIGN_SECONDS, BLINK_SECONDS = 600.0, 300.0, 2.0
MOST_SUBMITS = 4
SETTINGS = (
    "cluster.minutes=10",
    "cluster.links=2",
    "cluster.environment={MASTER_ADDR: 127.0.0.1, HPC_STRES_THREADS: 1}",
)
OURS = ("LD_PRELOAD", "CAMPAIGN_LOADED", "CAMPAIGN_FOLDER", "CAMPAIGN_SHIM", "CAMPAIGN_WITHOUT")


@functools.cache
def cluster() -> PrivateSlurm:
    """The Slurm of this campaign; it ends with this process."""
    slurm = PrivateSlurm(Path(tempfile.mkdtemp(prefix="campaign-slurm-")))
    for name in OURS:
        slurm.environment.pop(name, None)
    slurm.environment["PYTHONPATH"] = str(ROOT)
    mine = os.getpid()  # a forked child that ends must not end the cluster
    atexit.register(lambda: _end(slurm) if os.getpid() == mine else None)
    return slurm.start()


def _end(slurm: PrivateSlurm) -> None:
    slurm.stop()
    shutil.rmtree(slurm.root, ignore_errors=True)


class Submission:
    """A phase and its evaluation on the cluster, as a user submits them."""

    def __init__(self, place: "Place") -> None:
        self.place, self.slurm = place, cluster()
        self.phase = place.experiment.phase
        self.folder = place.run_dir / "phases" / self.phase

    def submit(self) -> str:
        """The user's command; returns the sentence of a refusal."""
        place = self.place
        settings = [*place.shop.settings(place.experiment, place.root)]
        settings += [word for value in SETTINGS for word in ("--set", value)]
        words = [
            "--config",
            str(CONFIG),
            "--phase",
            self.phase,
            "--cluster",
            "slurm",
            "--nodes",
            "1",
        ]
        return self._ask([*words, "--run-dir", str(place.run_dir), *settings])

    def _ask(self, words: list[str]) -> str:
        place = self.place
        place.shop.outputs += 1
        output = place.shop.base / "outputs" / f"{place.shop.outputs:05d}.txt"
        output.parent.mkdir(exist_ok=True)
        environment = {**dict.fromkeys(OURS, ""), "PYTHONPATH": str(ROOT),
                       "SLURM_CONF": self.slurm.environment["SLURM_CONF"]}  # fmt: skip
        start = Start(["submit", *words], environment, folder=ROOT, without=place.shop.without)
        return check_end(children.wait([fork(start, output)]), "submit")

    def jobs(self, phase: str) -> list[str]:
        path = self.place.run_dir / "jobs.json"
        jobs = json.loads(path.read_text("utf-8"))["jobs"] if path.is_file() else {}
        return list(jobs.get(phase, {}).get("ids", []))

    def ranks(self) -> list[psutil.Process]:
        """Processes that train in this run folder: the step's tasks."""
        tasks = []
        for process in self.slurm._ours():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                is_task = (
                    "SLURM_PROCID" in process.environ() and "SLURM_STEP_ID" in process.environ()
                )
                if (
                    is_task
                    and str(self.place.run_dir) in words
                    and process.name().startswith("python")
                ):
                    tasks.append(process)
        return tasks

    def is_over(self) -> bool:
        """Whether none of the phase's jobs is in the queue; one that Slurm holds is cancelled, as its user would."""
        jobs = set(self.jobs(self.phase)) & set(self.slurm.queue())
        if not jobs:
            return True
        told = self.slurm.run("squeue", "-h", "-j", ",".join(jobs), "-o", "%r", check=False).stdout
        if "held" in told.lower():
            refused = self._ask(["--cancel", str(self.place.run_dir)])
            if refused:
                raise Failure(CRASHED, f"submit --cancel was refused: {refused}")
        return False

    def node(self) -> str:
        """Where a job of the phase runs; empty while none does."""
        jobs = ",".join(self.jobs(self.phase))
        told = self.slurm.run("squeue", "-h", "-t", "R", "-j", jobs, "-o", "%N", check=False).stdout
        return told.split()[0] if told.split() else ""

    def wait_for(self, sign: str) -> None:
        """Until the run is so far, or over."""
        signs = {"config": self.place.run_dir / "config.yaml", "heartbeat": self.folder / "heartbeat",
                 "latest": self.folder / "checkpoints" / "latest"}  # fmt: skip
        deadline = time.monotonic() + SIGN_SECONDS
        while not signs[sign].exists() and not self.is_over():
            if time.monotonic() > deadline:
                raise Failure(CRASHED, f"the job never came to {sign}: {self.queue_text()}")
            time.sleep(0.02)

    def queue_text(self) -> str:
        return " / ".join(self.slurm.run("squeue", check=False).stdout.splitlines()[-6:])

    def end(self) -> None:
        """No job is left after the round."""
        jobs = self.jobs(self.phase) + self.jobs("evaluate")
        if jobs:
            self.slurm.run("scancel", *jobs, check=False)
            self.slurm.wait(lambda: not set(jobs) & set(self.slurm.queue()), "an empty queue")


def _signal_all(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _step_daemons(run: Submission) -> list[psutil.Process]:
    """slurmstepd of the run's tasks."""
    daemons = []
    for task in run.ranks():
        with contextlib.suppress(psutil.Error):
            daemons += [parent for parent in task.parents() if "slurmstepd" in parent.name()]
    return daemons


def _do(run: Submission, what: str) -> str:
    """The fault; returns the sentence of a submit that was made meanwhile, if any."""
    slurm, jobs = run.slurm, run.jobs(run.phase)
    if what == "kill_rank":
        _signal_all(run.ranks(), signal.SIGKILL)
    elif what == "kill_step":
        _signal_all(_step_daemons(run), signal.SIGKILL)
    elif what == "stop_rank":  # the user sees that nothing moves, and cancels
        _signal_all(run.ranks(), signal.SIGSTOP)
        time.sleep(BLINK_SECONDS)
        slurm.run("scancel", *jobs, check=False)
    elif what == "scancel":
        slurm.run("scancel", *jobs, check=False)
    elif what == "signal":
        slurm.run("scancel", "--signal=USR2", *jobs, check=False)
    elif what == "requeue":
        slurm.run("scontrol", "requeue", *jobs[:1], check=False)
    elif what == "kill_slurmctld":
        return _without_controller(run)
    else:
        _without_node(run, what)
    return ""


def _without_node(run: Submission, what: str) -> None:
    """The daemon of the job's node dies, with its tasks or alone, and comes back."""
    node = run.node()
    if not node:
        return
    if what == "kill_node":
        run.slurm.kill_node(node)
    else:
        daemon = run.slurm.processes.pop(node)
        daemon.kill()
        daemon.wait()
    time.sleep(BLINK_SECONDS)
    run.slurm.start_node(node)
    run.slurm.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)


def _without_controller(run: Submission) -> str:
    """The controller dies; the user submits and is told; the controller comes back."""
    controller = run.slurm.processes.pop("slurmctld")
    controller.kill()
    controller.wait()
    try:
        return run.submit()
    finally:
        words = ["slurmctld", "-D", "-f", str(run.slurm.root / "slurm.conf")]
        run.slurm._spawn("slurmctld", words)
        run.slurm.wait(lambda: run.slurm.ok("scontrol", "ping"), "the controller again")
        run.slurm.wait(lambda: run.slurm.ok("squeue"), "the controller's answer")


def _refuse_doubles(run: Submission) -> None:
    """No phase is worked at by two jobs at once."""
    told = run.slurm.run("squeue", "-h", "-t", "R", "-o", "%k").stdout.split()
    phases = Counter(comment.split(":")[2] for comment in told if comment.count(":") == 4)
    if twice := [phase for phase, number in phases.items() if number > 1]:
        raise Failure(SILENT, f"run twice at once: {twice}: {told}")


def perform(place: "Place") -> Outcome:
    """One round of kind `slurm`."""
    reason = missing()
    if reason:
        return Outcome(SURVIVED, f"left out: {reason}")
    place.rename(f"slurm-{place.plan.number}")  # a run folder's name is how its jobs are known
    run, fault = Submission(place), place.plan.fault
    refused = run.submit()
    if refused:
        raise Failure(CRASHED, f"submit on a sound cluster: {refused}")
    try:
        run.wait_for(fault["sign"])
        said = _do(run, fault["what"])
        for _ in range(MOST_SUBMITS):
            run.slurm.wait(run.is_over, f"the end of the jobs ({fault['what']})", JOB_SECONDS)
            _refuse_doubles(run)
            if (run.folder / "done.json").is_file():
                break
            refused = run.submit()
            if refused:
                raise Failure(CRASHED, f"submit again was refused: {refused}")
        place.compare(place.experiment)
    except RuntimeError as error:
        raise Failure(CRASHED, f"{error}: {run.queue_text()}") from None
    finally:
        run.end()
    return Outcome(STOPPED, said) if said else Outcome(SURVIVED, "")
