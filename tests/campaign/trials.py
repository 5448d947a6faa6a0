"""Test files run in a copy of the tree by a fork that has imported what is heavy.

No module of the product or of the tests is imported here but in such a fork: it reads them from
the copy, the changed one among them. A whole interpreter with torch takes five seconds to start, a
fork none.
"""

import contextlib
import ctypes
import importlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# Tests of a file take a minute of a quiet core at most; a change that makes them wait for ever is
# noticed.
LIMIT_SECONDS = 900.0
DATA_BYTES = 8 << 30
HEAVY = (
    "torch", "torch.utils.tensorboard", "torch.distributed", "nvidia.dali.fn", "scipy.stats",
    "scipy.optimize", "sklearn.svm", "sklearn.mixture", "sklearn.metrics", "cv2", "av", "yaml",
    "nvidia.dali.plugin.base_iterator", "safetensors.torch", "hypothesis", "pytest",
)  # fmt: skip
SET_CHILD_SUBREAPER, SET_PARENT_DEATH_SIGNAL = 36, 1
# What a fork forgets: it has its own from the copy.
OURS = ("tests", "hpc_stres", "launch")
POLL_SECONDS = 0.05
# pytest's exit status where it has met no test.
NOTHING_TO_RUN = 5


@dataclass(frozen=True)
class Trial:
    """What came of a run of tests."""

    passed: bool
    hung: bool
    failed: tuple[str, ...]
    """Which tests; none where they did not get as far."""
    seconds: float


class Tree:
    """A copy of the tree in which one file can be changed, and tests be run."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root, self.path = folder, root, folder / "tree"
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "__pycache__", "runs", "data", ".mypy_cache", ".ruff_cache",
            ".hypothesis",
        )  # fmt: skip
        # `hpc_stres/data` and `hpc_stres/run` are ours, `data` and `runs` at the top are not.
        shutil.copytree(
            root, self.path, symlinks=True,
            ignore=lambda where, names: ignored(where, names) - (
                {"data"} if Path(where) != root else set()
            ),
        )  # fmt: skip
        # What tests find beside the tree.
        if (root.parent / "shared").is_dir():
            (folder / "shared").symlink_to(root.parent / "shared")
        import_what_is_heavy()

    @contextlib.contextmanager
    def changed(self, name: str, text: str) -> Iterator[None]:
        """A file with another text for a while."""
        path = self.path / name
        whole = path.read_bytes()
        try:
            self._write(path, text.encode())
            yield
        finally:
            self._write(path, whole)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        # Compiled code is taken for current by size and second: two changes in one look the same.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()

    def failing_unchanged(self, names: list[str]) -> set[str]:
        """Which of some tests, or of those in some files, fail in the tree as it is."""
        trial = self.run(names, LIMIT_SECONDS + len(names) * LIMIT_SECONDS / 10, to_the_end=True)
        return set() if trial.passed else set(trial.failed or names)

    def run(
        self, names: list[str], limit_seconds: float = LIMIT_SECONDS, to_the_end: bool = False
    ) -> Trial:
        """Run test files, or single tests, up to the first that fails, or all of them."""
        told, began = self.folder / "failed", time.monotonic()
        told.unlink(missing_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = self._run_here([*([] if to_the_end else ["-x"]), *names], told)
            finally:
                os._exit(status)
        code = _wait(pid, limit_seconds)
        _end_what_is_left()
        shutil.rmtree(self.folder / "temporary", ignore_errors=True)
        if code == NOTHING_TO_RUN:
            words = (self.folder / "output").read_text("utf-8", "replace")[-800:]
            raise RuntimeError(f"pytest ended with {code} for {names}: {words}")
        failed = told.read_text("utf-8").splitlines() if told.is_file() else []
        took = time.monotonic() - began
        return Trial(code == 0, code is None, tuple(dict.fromkeys(failed)), took)

    def _run_here(self, words: list[str], told: Path) -> int:
        # A trial ends with who asked for it.
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
        with open(os.devnull, "rb") as nothing, (self.folder / "output").open("wb") as output:
            os.dup2(nothing.fileno(), 0)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
            del sys.modules[name]
        os.chdir(self.path)
        others = [place for place in sys.path if Path(place).resolve() != self.root]
        sys.path[:] = [str(self.path), *others]
        os.environ["PYTHONPATH"] = str(self.path)
        import pytest

        arguments = ["-q", f"--basetemp={self.folder / 'temporary'}", "--hypothesis-seed=0", *words]
        return int(pytest.main(arguments, plugins=[Failures(told, self.path)]))


class Failures:
    """Writes down which tests failed, and that what is tested is the copy."""

    def __init__(self, told: Path, tree: Path) -> None:
        self.told, self.tree = told, tree

    def pytest_sessionfinish(self) -> None:
        product = sys.modules.get("hpc_stres")
        assert product is None or str(product.__file__).startswith(str(self.tree)), product

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            with self.told.open("a", encoding="utf-8") as stream:
                stream.write(report.nodeid + "\n")


def import_what_is_heavy() -> None:
    """Import it with one thread: what a library starts is lost in a fork."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose these threads"
    # What a test's processes leave behind becomes ours to end.
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait(pid: int, limit_seconds: float) -> int | None:
    """The exit status of a child, 1 where a signal ended it; None where it took too long."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return max(1, code) if (code := os.waitstatus_to_exitcode(status)) else 0
        time.sleep(POLL_SECONDS)
    return None


def _end_what_is_left() -> None:
    """End every process that a trial has left, and take note of their ends."""
    while family := psutil.Process().children(recursive=True):
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=5)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
