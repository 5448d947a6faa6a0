"""A submit that runs on this machine: interrupted by Ctrl-C, or ended by `--cancel` from
elsewhere."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.conftest import ROOT, TINY, run_python
from tests.waiting import PATIENCE_SECONDS, wait_until


@pytest.fixture
def running(tmp_path, data_root):
    """A local submit of a phase without end, in a session of its own as behind a terminal, whose
    job has started."""
    run_dir = tmp_path / "a run"
    words = [
        sys.executable,
        "launch/submit.py",
        "--config",
        TINY,
        "--cluster",
        "local",
        "--phase",
        "motion",
    ]
    words += ["--run-dir", run_dir, "--set", f"data.root={data_root}"]
    words += ["--set", "phases.motion.optimise.schedule=[[1000000, 1.0e-3]]"]
    process = subprocess.Popen(
        [str(word) for word in words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_until(
        lambda: process.poll() is not None or list(run_dir.glob("logs/motion/*_log.out")),
        "the phase's log",
    )
    yield process, run_dir
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def of_this_run(run_dir):
    """Processes that work for a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(run_dir) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_ended(process, run_dir):
    out, error = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, error
    assert "interrupted; what is done is kept" in error
    assert "Traceback" not in out + error
    assert len(error.splitlines()) <= 2, error
    assert of_this_run(run_dir) == []


def test_ctrl_c_ends_a_local_run_with_one_sentence(running):
    process, run_dir = running
    os.killpg(process.pid, signal.SIGINT)
    assert_ended(process, run_dir)


def test_cancel_ends_a_local_run_from_elsewhere(running, tmp_path):
    process, run_dir = running
    again = run_python(
        "launch/submit.py",
        "--config",
        TINY,
        "--cluster",
        "local",
        "--run-dir",
        run_dir,
        "--phase",
        "motion",
    )
    assert again.returncode == 1
    assert f"this run is being submitted by process {process.pid} on" in again.stderr
    result = run_python(ROOT / "launch" / "submit.py", "--cancel", "a run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"(process {process.pid}) has ended" in result.stdout
    assert_ended(process, run_dir)
    result = run_python("launch/submit.py", "--cancel", run_dir)
    assert (result.returncode, "nothing to cancel" in result.stdout) == (0, True), result.stderr
