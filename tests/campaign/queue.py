"""Submitting to a scheduler that lies or dies, or several at once: in the end each job is there exactly once."""

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

from tests.campaign import children
from tests.campaign.children import Child, Start
from tests.campaign.experiments import CONFIG, SMALL, Workshop
from tests.campaign.judge import CRASHED, SILENT, STOPPED, SURVIVED, Failure, Outcome, check_end
from tests.campaign.plan import Round

FAKE = Path(__file__).with_name("fake_slurm.py")
COMMANDS = ("sbatch", "squeue", "scontrol", "sacct", "scancel", "sinfo", "srun", "sacctmgr")
ABOUT_SQUEUE = ("no_queue", "half_row", "empty_queue")
PHASES, LINKS = ("motion", "appearance"), 2


class Queue:
    """A made-up cluster, and a run that is submitted to it."""

    def __init__(self, shop: Workshop, data: str) -> None:
        self.shop, self.root = shop, shop.data_root(data)
        self.folder = shop.base / "round"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.home, self.run_dir = self.folder / "slurm", self.folder / "run"
        self.home.mkdir(parents=True)
        for name in COMMANDS:
            program = self.home / name
            program.write_text(f"#!{sys.executable} -SE\n{FAKE.read_text('utf-8')}", "utf-8")
            program.chmod(0o755)

    def start(self) -> Child:
        """`hpc-stres submit` on this cluster."""
        settings = [
            f"data.root={self.root}",
            *SMALL,
            f"cluster.links={LINKS}",
            "cluster.scheduler_seconds=3",
        ]
        words = [word for value in settings for word in ("--set", value)]
        argv = ["submit", "--config", str(CONFIG), "--phase", ",".join(PHASES), "--cluster", "slurm",
                "--run-dir", str(self.run_dir), *words]  # fmt: skip
        self.shop.outputs += 1
        output = self.shop.base / "outputs" / f"{self.shop.outputs:05d}.txt"
        output.parent.mkdir(exist_ok=True)
        environment = {"PATH": f"{self.home}:/usr/bin:/bin", "CAMPAIGN_SLURM": str(self.home)}
        return children.fork(Start(argv, environment, without=self.shop.without), output)

    def lie(self, lie: str, call: int) -> None:
        """Order the lie for a call of the command that it is about."""
        command = "squeue" if lie in ABOUT_SQUEUE else "sbatch"
        text = json.dumps({"lie": lie, "call": call, "command": command})
        (self.home / "lie.json").write_text(text)

    def check(self) -> None:
        """Each link of each phase is in the queue exactly once."""
        path = self.home / "jobs.json"
        jobs = json.loads(path.read_text()) if path.exists() else {}
        alive = [job["comment"].split(":") for job in jobs.values() if job["state"] == "PENDING"]
        count = Counter((phase, int(link)) for _, _, phase, link, _ in alive)
        wanted = {(phase, link) for phase in PHASES for link in range(LINKS)}
        twice = [job for job, number in count.items() if number > 1]
        missing = wanted - set(count)
        if twice or missing:
            raise Failure(SILENT, f"twice in the queue: {twice}, not there: {sorted(missing)}")


def perform(shop: Workshop, plan: Round) -> Outcome:
    """One round of kind `scheduler`, or of `together` with the command submit."""
    queue = Queue(shop, plan.experiment.data)
    count = plan.fault.get("count", 1)
    if plan.kind == "scheduler":
        queue.lie(plan.fault["lie"], plan.fault["call"])
    ends = [children.wait([child]) for child in [queue.start() for _ in range(count)]]
    said = [check_end(end, "submit", sent=(9,)) for end in ends]
    if plan.kind == "together" and not any(end.ok for end in ends):
        raise Failure(CRASHED, f"none of {count} submits succeeded: {said[0]}")
    (queue.home / "lie.json").unlink(missing_ok=True)
    again = children.wait([queue.start()])
    sentence = check_end(again, "submit again")
    if sentence:
        raise Failure(CRASHED, f"submit again was refused: {sentence}")
    queue.check()
    refused = [sentence for sentence in said if sentence]
    return Outcome(STOPPED, refused[0]) if refused else Outcome(SURVIVED, "")
