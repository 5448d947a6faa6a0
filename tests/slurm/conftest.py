"""One private Slurm for all tests of this folder, and ways to submit to it and wait."""

import contextlib
import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY
from tests.slurm.cluster import PrivateSlurm, missing

JOB_SECONDS = 900.0
FINAL = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "DEADLINE",
)


def pytest_collection_modifyitems(items):
    reason = missing()
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slurm)
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"no private Slurm: {reason}"))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The cluster; it is torn down, and nothing of it is left running."""
    cluster = started(tmp_path_factory)
    try:
        yield cluster
    finally:
        left = cluster.stop()
    assert not left, f"processes outlived the cluster: {left}"


def started(tmp_path_factory, attempts=3):
    """A cluster that is up; another process may take one of its ports in between, and then it is tried with others."""
    for attempt in range(1, attempts + 1):
        cluster = PrivateSlurm(tmp_path_factory.mktemp("slurm"))
        try:
            return cluster.start()
        except RuntimeError:
            cluster.stop()
            if attempt == attempts:
                raise
    raise AssertionError


@pytest.fixture
def user(slurm, data_root, tmp_path):
    """A person who submits; no job of theirs is left after the test."""
    with person(slurm, data_root, tmp_path / "räume mit raum") as someone:
        yield someone


@contextlib.contextmanager
def person(slurm, data_root, run_dir):
    """A user whose jobs end with the block."""
    someone = User(slurm, data_root, run_dir)
    yield someone
    mine = [number for numbers in someone.jobs().values() for number in numbers]
    if mine:
        slurm.run("scancel", *mine, check=False)
        slurm.wait(lambda: not set(mine) & set(slurm.queue()), "the end of the user's jobs")


class User:
    """Submits the tiny config to the private Slurm."""

    def __init__(self, slurm, data_root, run_dir):
        self.slurm, self.data_root, self.run_dir = slurm, data_root, run_dir
        self.settings = {
            "data.root": data_root,
            "training.norm_group": 5,
            "cluster.environment": "{MASTER_ADDR: 127.0.0.1, HPC_STRES_THREADS: 1}",
            "cluster.minutes": 10,
        }

    def command(self, *more, nodes=4, phase="all", **settings):
        """The command line of a submit."""
        words = [
            sys.executable,
            "launch/submit.py",
            "--config",
            TINY,
            "--cluster",
            "slurm",
            "--nodes",
            nodes,
        ]
        words += ["--phase", phase, "--run-dir", self.run_dir, *more]
        for key, value in (
            self.settings | {k.replace("__", "."): v for k, v in settings.items()}
        ).items():
            words += ["--set", f"{key}={value}"]
        return [str(word) for word in words]

    def submit(self, *more, expect=0, **settings):
        """Submit, and return what was printed."""
        result = self.slurm.run(*self.command(*more, **settings), check=False, cwd=ROOT)
        assert result.returncode == expect, result.stdout + result.stderr
        return result.stdout + result.stderr

    def jobs(self):
        """Ids of the links of each job."""
        if not (self.run_dir / "jobs.json").is_file():
            return {}
        return {
            name: job["ids"]
            for name, job in json.loads((self.run_dir / "jobs.json").read_text())["jobs"].items()
        }

    def wait_states(self, *numbers, seconds=JOB_SECONDS):
        """Final states of jobs."""
        states = [""]

        def ended():
            states[:] = [self.slurm.state(number) for number in numbers]
            return all(state in FINAL for state in states)

        with contextlib.suppress(RuntimeError):
            self.slurm.wait(ended, "the end of the jobs", seconds)
        return states

    def wait_step(self, phase, step, seconds=JOB_SECONDS):
        """Wait until a phase has logged a step."""
        path = self.run_dir / "phases" / phase / "metrics.jsonl"
        self.slurm.wait(
            lambda: path.is_file() and last_step(path) >= step, f"step {step} of {phase}", seconds
        )

    def status(self):
        """What status.py prints."""
        return self.slurm.run(sys.executable, "launch/status.py", self.run_dir, cwd=ROOT).stdout

    def logs(self, phase):
        """Everything that a job's ranks wrote."""
        files = sorted((self.run_dir / "logs" / phase).glob("*_log.out"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in files)


def last_step(path):
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    return json.loads(lines[-1])["step"] if lines else 0
