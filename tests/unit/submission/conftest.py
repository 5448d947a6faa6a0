"""A made-up Slurm with many faults; tests/slurm has the same tests against a real one."""

from pathlib import Path

import pytest

from hpc_stres.config.loading import load_config
from hpc_stres.launch import scheduler, survey
from hpc_stres.launch.chain import Request
from hpc_stres.launch.scheduler import Answer
from tests.conftest import TINY

DENIED = Answer(1, "", "slurm_load_jobs error: Invalid job id specified")
FAILED = Answer(1, "", "Unable to contact slurm controller (connect failure)")


class MadeUpSlurm:
    """Jobs in memory, answered for as the real commands do; `answers` replaces a command's
    answer."""

    def __init__(self):
        self.jobs, self.accounts, self.answers, self.calls = {}, {}, {}, []
        self.tested = Answer(
            0, "", "sbatch: Job 7 to start at 2030-01-01T00:00:00 using 1 processors on nodes n1\n"
        )
        self.hidden, self.on_sbatch, self.cluster = set(), lambda number: None, "here"

    def call(self, words, seconds, keep_open=()):
        self.calls.append(words)
        answer = self.tested if "--test-only" in words else self.answers.get(words[0])
        if callable(answer):
            answer = answer(words)
        if isinstance(answer, Exception):
            raise answer
        return answer or getattr(self, words[0])(words)

    def squeue(self, words):
        asked = words[words.index("-j") + 1].split(",") if "-j" in words else list(self.jobs)
        shown = [number for number in asked if number in self.jobs and number not in self.hidden]
        return Answer(0, "".join(self.row(number) for number in self.joined(shown)), "")

    def joined(self, numbers):
        """An array that ended before any of it began is one row, under its own id."""
        for number in numbers:
            array = number.partition("_")[0]
            whole = [name for name in self.jobs if name.partition("_")[0] == array]
            if number == array or any(self.jobs[name]["state"] != "CANCELLED" for name in whole):
                yield number
            elif number == whole[0]:
                yield array

    def row(self, number):
        job = self.jobs[
            next(name for name in self.jobs if number in (name, name.partition("_")[0]))
        ]
        return f"hpc_stres_row|{number}|{job['state']}|{job['reason']}|me|{job['name']}|{job['comment']}|row_ends\n"

    def sacct(self, words):
        asked = words[-1].split(",")
        return Answer(
            0, "".join(f"{n}|{s}|0:0\n" for n, s in self.accounts.items() if n in asked), ""
        )

    def scontrol(self, words):
        if "config" in words:
            return Answer(0, f"ClusterName             = {self.cluster}\n", "")
        if len(words) > 4:
            known = self.jobs.get(words[4])
            return (
                Answer(0, f"JobId={words[4]} JobState={known['state']} x\n", "")
                if known
                else DENIED
            )
        return Answer(
            0,
            "".join(f"{shown_id(n)} JobName={j['name']} UserId\n" for n, j in self.jobs.items()),
            "",
        )

    def sbatch(self, words):
        number = str(100 + len(self.jobs))
        options = dict(word[2:].split("=", 1) for word in words[2:4])
        script = Path(words[4]).read_text(encoding="utf-8")
        after = [
            line.split("=", 1)[1]
            for line in script.splitlines()
            if line.startswith("#SBATCH --dependency")
        ]
        array = [
            line.split("=", 1)[1]
            for line in script.splitlines()
            if line.startswith("#SBATCH --array")
        ]
        for name in elements(number, array):
            self.jobs[name] = {
                "state": "PENDING", "reason": "Priority", "name": options["job-name"], "comment": options["comment"],
                "after": "".join(after),
            }  # fmt: skip
        self.on_sbatch(number)
        return Answer(0, f"{number}\n", "")

    def scancel(self, words):
        named = {n for word in words[1:] for n in self.jobs if word in (n, n.partition("_")[0])}
        for number in named:
            if number in self.jobs and (
                words[1] != "--state=PENDING" or self.jobs[number]["state"] == "PENDING"
            ):
                self.jobs[number]["state"] = "CANCELLED"
        return Answer(0, "", "")

    def alive(self):
        """Tokens of jobs that wait or run."""
        over = scheduler.ENDED_STATES
        return sorted(
            job["comment"].split(":")[2] for job in self.jobs.values() if job["state"] not in over
        )


def elements(number, array):
    """Ids that an array's specification makes; the number itself where there is none."""
    if not array:
        return [number]
    names = []
    for part in array[0].partition("%")[0].split(","):
        first, _, last = part.partition("-")
        names += [f"{number}_{index}" for index in range(int(first), int(last or first) + 1)]
    return names


def shown_id(number):
    """As scontrol shows it: an element that has been split off has an id of its own as well."""
    array, _, index = number.partition("_")
    return (
        f"JobId={int(array) + 5000} ArrayJobId={array} ArrayTaskId={index}"
        if index
        else f"JobId={number}"
    )


@pytest.fixture
def fake(monkeypatch):
    made_up = MadeUpSlurm()
    monkeypatch.setattr(scheduler, "call", made_up.call)
    monkeypatch.setattr("shutil.which", lambda name: f"/made/up/{name}")
    monkeypatch.setattr(survey, "SETTLE_SECONDS", 0.02)
    monkeypatch.setattr(survey, "SETTLE_POLL_SECONDS", 0.01)
    monkeypatch.setattr("hpc_stres.launch.once.RETRY_SECONDS", (0, 0))
    return made_up


@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    return tmp_path_factory.mktemp("copies") / ".code"


@pytest.fixture(autouse=True)
def _one_copy_of_the_code(request, copies, monkeypatch):
    """Each run would have one made beside its own folder; test_code is about that."""
    if request.module.__name__.rpartition(".")[2] != "test_code":
        monkeypatch.setattr("hpc_stres.launch.code.copies_folder", lambda place: copies)


@pytest.fixture
def request_of(tmp_path, monkeypatch):
    """Makes requests for the tiny config, whose store counts as prepared."""
    monkeypatch.setattr("hpc_stres.launch.chain.store_ready", lambda config: True)

    def make(phases="motion", *overrides, run_dir=tmp_path / "run", **more):
        config = load_config(TINY, [f"data.root={tmp_path}", *overrides], "slurm")
        return Request(config, run_dir, phases, **more)

    return make
