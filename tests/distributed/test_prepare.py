"""Preparing over killed processes and over MPI ranks ends in the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from hpc_stres.store.location import store_folder
from hpc_stres.store.reader import Store, verify
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
        process = subprocess.Popen(
            command(tmp_path), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL
        )
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
    process = subprocess.Popen(
        command(tmp_path), cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL
    )
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


# -- one owner ---------------------------------------------------------------------------------------------------------

FEW = (
    "data.binding.train_videos=8",
    "data.binding.test_videos=8",
    "data.binding.frames=6",
    "data.workers=1",
)


def few(root):
    """The command, and the config, of a data set of sixteen short videos."""
    words = [word for one in FEW for word in ("--set", one)]
    return [*command(root), *words], tiny_config(root, *FEW)


def start(root):
    return subprocess.Popen(
        few(root)[0],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def few_digests(tmp_path_factory):
    """What one undisturbed process makes."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert start(root).wait(120) == 0
    return digests(store_folder(few(root)[1]))


def test_several_at_once_and_one_killed_make_one_whole_store(few_digests, tmp_path):
    processes = [start(tmp_path) for _ in range(4)]
    lock = store_folder(few(tmp_path)[1]) / "owner.lock"
    deadline = time.monotonic() + 60
    while not (lock.is_file() and lock.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.02)
    owner = json.loads(lock.read_text())["process"]
    time.sleep(random.Random(2).uniform(0.0, 1.0))
    os.killpg(owner, signal.SIGKILL)
    results = {
        process.pid: (*process.communicate(timeout=240), process.returncode)
        for process in processes
    }
    assert results.pop(owner)[2] == -signal.SIGKILL
    assert [code for _, _, code in results.values()] == [0, 0, 0], results
    assert any(
        "this store is being prepared by process" in error for _, error, _ in results.values()
    )
    folder = store_folder(few(tmp_path)[1])
    assert digests(folder) == few_digests
    assert verify(Store(folder)) == []


def test_leftovers_of_killed_processes_are_removed(few_digests, tmp_path):
    folder = store_folder(few(tmp_path)[1])
    for name in (
        "parts/.x.tar.12.34.tmp",
        "shards/.00003.tar.1.2.tmp",
        "index/.names.7.tmp",
        ".manifest.json.1.2.tmp",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("left by a kill")
    (folder / "shards" / "00007.tar").write_text("a shard that no manifest knows")
    assert start(tmp_path).wait(120) == 0
    assert digests(folder) == few_digests
