"""Preparing over killed processes and over MPI ranks ends in the same bytes."""

import contextlib
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
from tests.forks import Command
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.distributed


def command(root):
    words = ["-m", "hpc_stres", "prepare", "--quiet", "--config", str(TINY)]
    return [*words, "--set", f"data.root={root}"]


def prepared_videos(root):
    return len(list(root.glob("stores/*/parts/*.tar")))


def wait_for_videos(process, root, count):
    """Until so many videos are prepared, or it has ended."""
    wait_until(
        lambda: process.poll() is not None or prepared_videos(root) >= count, f"{count} videos"
    )


def test_killed_ten_times_it_ends_in_the_same_bytes(store, tmp_path):
    """Some of the kills come when it has just begun, others when it has prepared some videos more."""
    draw = random.Random(5)
    for kill in range(10):
        process, before = Command(command(tmp_path)), prepared_videos(tmp_path)
        try:
            if kill % 3:
                wait_for_videos(process, tmp_path, before + 1)
            time.sleep(draw.uniform(0.0, 0.5))
        finally:
            process.kill()
    assert Command(command(tmp_path)).finished().returncode == 0
    assert digests(store_folder(tiny_config(tmp_path))) == digests(store.paths.root)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on this machine")
def test_mpi_ranks_share_the_work(store, tmp_path):
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3"]
    result = subprocess.run(
        [*mpirun, sys.executable, *command(tmp_path)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("store: ") == 1
    assert digests(store_folder(tiny_config(tmp_path))) == digests(store.paths.root)


def workers_of_a_killed_command(root):
    """Processes that a command had, which was killed when it had prepared a video; none where it ended first."""
    process = Command(command(root))
    try:
        wait_for_videos(process, root, 1)
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            workers = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_SECONDS)
            return workers
        return []
    finally:
        process.kill()


def test_workers_do_not_outlive_a_killed_command(tmp_path):
    # A machine may be so fast that the command ends first: then it is tried again.
    tries = (workers_of_a_killed_command(tmp_path / str(attempt)) for attempt in range(5))
    workers = next(filter(None, tries), [])
    assert workers
    gone, alive = psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)
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
    return Command(few(root)[0])


@pytest.fixture(scope="module")
def few_digests(tmp_path_factory):
    """What one undisturbed process makes."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert start(root).finished().returncode == 0
    return digests(store_folder(few(root)[1]))


def four_at_once(root):
    """Statuses and errors of four that prepare the same store, and the owner that was killed.

    It is killed when it has prepared some videos.
    """
    processes = [start(root) for _ in range(4)]
    lock = store_folder(few(root)[1]) / "owner.lock"
    try:
        wait_until(lambda: lock.is_file() and lock.read_text().strip(), "an owner")
        owner = json.loads(lock.read_text())["process"]
        (owning,) = [process for process in processes if process.pid == owner]
        wait_for_videos(owning, root, 3)
        owning.kill()
        return {p.pid: (p.wait(PATIENCE_SECONDS), p.errors) for p in processes}, owner
    finally:
        for process in processes:
            process.kill()


def test_several_at_once_and_one_killed_make_one_whole_store(few_digests, tmp_path):
    # A machine may be so fast that the owner ends first: then it is tried again.
    for attempt in range(5):
        root = tmp_path / str(attempt)
        results, owner = four_at_once(root)
        if results[owner][0] != 0:
            break
    assert results.pop(owner)[0] == -signal.SIGKILL
    assert [code for code, _ in results.values()] == [0, 0, 0], results
    assert any("this store is being prepared by process" in error for _, error in results.values())
    folder = store_folder(few(root)[1])
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
    assert start(tmp_path).finished().returncode == 0
    assert digests(folder) == few_digests
