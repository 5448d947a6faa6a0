"""A small kernel with a cache of its own, for the tests of how kernels are built and kept."""

import os
from pathlib import Path

import pytest

from hpc_stres import native
from hpc_stres.native import cache

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
CODE = """
import concurrent.futures
from hpc_stres import native
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert len({id(library) for library in pool.map(native.load, ["resize"] * 16)}) == 1
"""
# A kernel that is built in a moment.
ANSWER = 'extern "C" int answer() { return %d; }\n'
LOAD = """
import sys
from pathlib import Path
from hpc_stres import native
native.SOURCES = Path(sys.argv[1])
print(native.load("answer").answer())
"""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Makes and loads a small kernel with a cache of its own, as a fresh process would."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    monkeypatch.setattr(native, "SOURCES", folder)
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def load(answer=42):
        (folder / "answer.cpp").write_text(ANSWER % answer)
        native._load.cache_clear()
        cache._note.cache_clear()
        return native.load("answer").answer()

    yield load
    native._load.cache_clear()


def kept(folder):
    """The one library of a cache, and nothing beside it."""
    (file,) = (path for path in Path(folder).rglob("*") if not path.is_dir())
    assert file.suffix == ".so"
    return file


def compilations(monkeypatch):
    """A list that gets an entry each time the compiler runs."""
    runs, real = [], native._compiled
    monkeypatch.setattr(native, "_compiled", lambda *arguments: runs.append(1) or real(*arguments))
    return runs
