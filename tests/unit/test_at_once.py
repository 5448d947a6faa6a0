"""Several runs at once on one machine: never more than asked for, one that fails ends no other, and an interruption
ends them all. The jobs here are counters; `python -m tests.campaigns.sites --local` trains real ones."""

import itertools
from types import SimpleNamespace

import pytest

from hpc_stres.launch import local
from hpc_stres.launch.jobs import Interrupted, Job
from tests.conftest import tiny_config


class Counter:
    """A job that has ended when it was looked at a few times."""

    def __init__(self, run, job, looks, code):
        self.run, self.job, self.left, self.code = run, job, looks, code
        self.paths = SimpleNamespace(stdout=run.paths.root / f"{job.name}.out")
        self.everyone.append(self)
        self.together = len([one for one in self.everyone if one.left > 0])

    def done(self):
        self.left -= 1
        return self.left <= 0

    def cancel(self):
        self.left = 0


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Makes runs of two phases and an evaluation; `codes` says how a phase of a run ends, more than once perhaps."""
    monkeypatch.setattr(local, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(local, "tell_of_missing_kernels", lambda: None)
    monkeypatch.setattr(local, "_exit_code", lambda job: job.code)
    monkeypatch.setattr(Counter, "everyone", [], raising=False)
    config = tiny_config(tmp_path)
    jobs = [
        Job(name, (("train",),), after, 1, 1, 0, 5)
        for name, after in (
            ("motion", ()),
            ("appearance", ()),
            ("evaluate", ("motion", "appearance")),
        )
    ]

    def make(count, codes=(), beside=1):
        left = {key: list(each) for key, each in dict(codes).items()}
        looks = itertools.cycle((3, 5, 2))

        def submit(self, job, together):
            mine = left.get((self.paths.root.name, job.name)) or [0]
            return Counter(self, job, next(looks), mine.pop(0))

        monkeypatch.setattr(local.LocalRun, "_submit", submit)
        for number in range(count):
            run = local.LocalRun(config, tmp_path / f"run{number}", jobs)
            run.beside, run.title = beside, f"run{number}: "
            yield run

    return make


@pytest.mark.parametrize(("count", "at_once"), [(5, 2), (3, 3), (2, 5), (4, 1)])
def test_no_more_runs_than_asked_for_are_at_work_and_all_end(runs, count, at_once, capsys):
    assert local.run_together(runs(count), at_once) == []
    assert len(Counter.everyone) == 3 * count
    # Two phases of a run wait for nothing: they are at work together.
    assert max(one.together for one in Counter.everyone) == 2 * min(at_once, count)
    said = capsys.readouterr().out
    for number in range(count):
        assert f"run{number}: all jobs" in said
        mine = [
            one.job.name for one in Counter.everyone if one.run.paths.root.name == f"run{number}"
        ]
        assert mine == ["motion", "appearance", "evaluate"]


def test_a_run_that_fails_ends_no_other_and_says_what_never_began(runs):
    failures = local.run_together(runs(3, {("run1", "motion"): [1]}), 3)
    assert len(failures) == 1
    assert failures[0].startswith("job motion failed; its log: ")
    assert "run1" in failures[0]
    assert failures[0].endswith("not started, because they wait for it: evaluate")
    ended = [one.run.paths.root.name for one in Counter.everyone if one.job.name == "evaluate"]
    assert sorted(ended) == ["run0", "run2"]


def test_a_job_that_asks_for_more_is_started_again_in_its_own_run(runs):
    assert local.run_together(runs(2, {("run0", "motion"): [75, 75, 0]}), 2) == []
    begun = [one.run.paths.root.name for one in Counter.everyone if one.job.name == "motion"]
    assert sorted(begun) == ["run0", "run0", "run0", "run1"]


def test_an_interruption_ends_all_runs_that_are_at_work(runs, monkeypatch):
    looks = itertools.count()
    real = local.Screen.show

    def show(self, lines):
        if next(looks) == 2:
            raise KeyboardInterrupt
        real(self, lines)

    monkeypatch.setattr(local.Screen, "show", show)
    with pytest.raises(Interrupted, match=r"what is done is kept: .*run0, .*run1"):
        local.run_together(runs(4), 2)
    assert {one.run.paths.root.name for one in Counter.everyone} == {"run0", "run1"}
    assert all(one.left <= 0 for one in Counter.everyone)
