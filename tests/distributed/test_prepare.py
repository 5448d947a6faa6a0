"""Preparing over killed processes and over MPI ranks ends in the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hpc_stres.data.storepath import store_folder
from tests.conftest import ROOT, TINY, digests, tiny_config
from tests.distributed.launching import clean_environment

pytestmark = pytest.mark.distributed


def command(root):
    return [
        sys.executable,
        "-m",
        "hpc_stres",
        "prepare",
        "--quiet",
        "--config",
        str(TINY),
        "--set",
        f"data.root={root}",
    ]


def test_killed_ten_times_it_ends_in_the_same_bytes(store, tmp_path):
    random.seed(5)
    for _ in range(10):
        process = subprocess.Popen(command(tmp_path), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(0.3, 2.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path), cwd=ROOT, check=True, capture_output=True)
    assert digests(store_folder(tiny_config(tmp_path))) == digests(store.paths.root)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on this machine")
def test_mpi_ranks_share_the_work(store, tmp_path):
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3"]
    result = subprocess.run(
        mpirun + command(tmp_path),
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("store: ") == 1
    assert digests(store_folder(tiny_config(tmp_path))) == digests(store.paths.root)


def test_workers_do_not_outlive_a_killed_command(tmp_path):
    process = subprocess.Popen(command(tmp_path), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 30
    while len(parent.children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = parent.children(recursive=True)
    assert workers
    time.sleep(1.5)  # their set-up
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    for worker in alive:
        worker.kill()
    # multiprocessing's resource tracker ends by itself when its pipe closes; the workers by the kernel's signal.
    assert not alive, [worker.pid for worker in alive]
    assert gone
