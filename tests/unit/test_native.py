"""The compiled kernels: made once, whole, by however many threads and processes ask for them at the same time."""

import concurrent.futures
import subprocess
import sys

import pytest

from hpc_stres import native
from hpc_stres.errors import UserError
from tests.conftest import ROOT

CODE = """
import concurrent.futures
from hpc_stres import native
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert len({id(library) for library in pool.map(native.load, ["resize"] * 16)}) == 1
"""


def test_threads_and_processes_that_ask_at_once_get_one_library(tmp_path):
    env = {"HPC_STRES_CACHE": str(tmp_path / "a b"), "PATH": "/usr/bin:/bin"}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(subprocess.run, [sys.executable, "-c", CODE], env=env, cwd=ROOT, capture_output=True, text=True)
            for _ in range(3)
        ]
    for run in runs:
        assert run.result().returncode == 0, run.result().stderr
    files = list((tmp_path / "a b").iterdir())
    assert len(files) == 1
    assert files[0].suffix == ".so"


def test_without_a_compiler_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._load.cache_clear()
    with pytest.raises(UserError, match=r"no C\+\+ compiler to build the kernels\nInstall g\+\+"):
        native.load("tvl1")
    native._load.cache_clear()


def test_a_source_that_does_not_build_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    (tmp_path / "wrong.cpp").write_text("int f( {")
    with pytest.raises(UserError, match="cannot build"):
        native.load("wrong")
    assert not list((tmp_path / "cache").iterdir())
