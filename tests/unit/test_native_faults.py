"""The compiled kernels where a build is killed, other machines share a cache, or a process forks meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time

from hpc_stres import native
from hpc_stres.native import cache
from tests.conftest import ROOT, run_python
from tests.unit.kernels import ANSWER, LOAD, kept
from tests.waiting import wait_until


def slow_compiler(tmp_path, line):
    """A compiler that runs a line of shell before the real one."""
    script = tmp_path / "slow-g++"
    script.write_text(f'#!/bin/sh\n{line}\nexec g++ "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_a_process_that_is_killed_while_building_leaves_nothing_that_loads(kernel, tmp_path):
    started = tmp_path / "started"
    env = {
        **os.environ,
        "CXX": slow_compiler(tmp_path, f"touch '{started}'; sleep 3600"),
        "PYTHONPATH": str(ROOT),
    }
    (tmp_path / "kernels" / "answer.cpp").write_text(ANSWER % 42)
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, str(tmp_path / "kernels")], env=env, start_new_session=True
    )
    try:
        wait_until(started.exists, "the compiler")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not list((tmp_path / "cache").rglob("*.so"))
    # One was killed while writing, one may be writing now.
    folder = cache.cache_folder()
    for name, age_seconds in ((".answer-0.so.1.tmp", 7200), (".answer-0.so.2.tmp", 5)):
        (folder / name).write_bytes(b"torn")
        os.utime(folder / name, (time.time() - age_seconds,) * 2)
    assert kernel() == 42
    assert {path.name for path in folder.glob(".*")} == {".answer-0.so.2.tmp"}


def test_what_is_compiled_is_what_the_library_is_named_by(kernel, tmp_path, monkeypatch):
    """A checkout may change between the reading of a source and its compilation."""
    source = tmp_path / "kernels" / "answer.cpp"
    other = (ANSWER % 13).strip()
    monkeypatch.setenv("CXX", slow_compiler(tmp_path, f"echo '{other}' > '{source}'"))
    assert kernel(42) == 42
    assert "13" in source.read_text()


def test_a_library_of_another_kind_of_machine_is_left_to_it(kernel, tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_is_modern", lambda: False)  # an old x86 is told no more flags
    assert kernel() == 42
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert kernel() == 42
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 2


def test_a_library_that_this_machine_cannot_load_is_built_anew(kernel, tmp_path, monkeypatch):
    keys = []
    real = native.cached
    monkeypatch.setattr(
        native, "cached", lambda name, key, build: keys.append(key) or real(name, key, build)
    )
    assert kernel() == 42
    file = kept(tmp_path / "cache")
    whole = file.read_bytes()
    cache.write_library(file, keys[0], b"\x7fELF of a machine to come")
    assert cache.read_library(file, keys[0]) is not None
    assert kernel() == 42
    assert file.read_bytes() == whole


def test_where_there_are_no_files_in_memory_another_way_is_taken(kernel, tmp_path, monkeypatch):
    def refused(name):
        raise PermissionError(1, "not here")

    monkeypatch.setattr(os, "memfd_create", refused)
    assert [kernel(1), kernel(2)] == [1, 2]
    assert not list(tmp_path.glob("hpc_stres-answer*"))


def test_a_process_goes_on_when_its_library_is_cut_off(tmp_path):
    """Memory that is mapped from a file ends where the file ends: the next call would be a bus error."""
    code = """
import os, sys
from pathlib import Path
import numpy as np
from hpc_stres.data.augment import finish_on_cpu
floats = np.ones(1, np.float32), np.zeros(1, np.float32)
def run():
    out = np.zeros((32, 32, 1), np.float32)
    finish_on_cpu([np.full((40, 40), 7, np.uint8)], 32, True, floats, False, out)
    assert np.allclose(out, 7)
from hpc_stres import native
native.load("resize")
(file,) = Path(os.environ["HPC_STRES_CACHE"]).rglob("*.so")
os.truncate(file, 0)
run()
"""
    result = run_python("-c", code, env={"HPC_STRES_CACHE": str(tmp_path)})
    assert result.returncode == 0, result.stderr


def test_a_child_that_is_forked_while_a_thread_builds_can_load(kernel):
    assert kernel() == 42
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with native._lock:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if native.load("answer").answer() == 42 else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        leave.set()
        thread.join()
