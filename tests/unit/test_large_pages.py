"""Training asks for large pages before torch decides, and keeps what a step has freed for the next one."""

import ctypes
import platform
from pathlib import Path

import pytest

from hpc_stres.run import large_pages
from tests.conftest import run_python

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
import resource, sys
from hpc_stres.run.large_pages import use_large_pages
if sys.argv[1] == "large":
    use_large_pages()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
# Faults of small pages while 40 MiB are written a second time, and again after what is kept was given back.
AGAIN = """
import ctypes, resource
from hpc_stres.run import large_pages
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.prctl(41, 1, 0, 0, 0)
{0}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = ctypes.c_void_p(library.malloc(40 << 20))
    library.memset(memory, 1, 40 << 20)
    library.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
large_pages.give_back_freed_memory()
print(faults())
"""
COMMANDS = """
import ctypes, os, sys
from hpc_stres.__main__ import main
from hpc_stres.commands import {0}
assert "torch" not in sys.modules
options, real = [], ctypes.CDLL
class Library(real):
    def __getattr__(self, name):
        call = real.__getattr__(self, name)
        return (lambda *given: options.append(given) or call(*given)) if name == "mallopt" else call
ctypes.CDLL = Library
try:
    main({1})
except SystemExit:
    pass
ctypes.CDLL = real
print(len(options), os.environ.get("THP_MEM_ALLOC_ENABLE"))
"""


@pytest.mark.skipif(
    not SWITCH.is_file() or "[never]" in SWITCH.read_text(),
    reason="this system gives no large pages",
)
def test_large_tensors_take_few_faults(monkeypatch):
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    small, large = (int(run_python("-c", FAULTS, kind).stdout) for kind in ("small", "large"))
    if "[always]" in SWITCH.read_text():
        assert large < 8_000
    else:
        # 128 MiB are 32,768 small pages. A machine short of free memory may have few large ones.
        assert small > 30_000
        assert large < small / 2


def test_train_asks_for_them_and_leaves_a_users_own_choice(monkeypatch, tmp_path):
    words = ["train", "--phase", "no-such-phase", "--run-dir", str(tmp_path)]
    for own, expected in ((None, "1"), ("0", "0")):
        env = {} if own is None else {"THP_MEM_ALLOC_ENABLE": own}
        if own is None:
            monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
        result = run_python("-c", COMMANDS.format("train", words), env=env)
        assert result.stdout.splitlines()[-1] == f"2 {expected}", result.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
@pytest.mark.parametrize(
    ("call", "choice", "is_kept"),
    [("large_pages.keep_freed_memory()", None, True), ("", None, False),
     ("large_pages.keep_freed_memory()", "MALLOC_TRIM_THRESHOLD_", False)],
)  # fmt: skip
def test_freed_memory_is_kept_until_it_is_given_back(call, choice, is_kept, monkeypatch):
    """More than glibc keeps by itself; a user's own choice for the allocator stays."""
    for name in large_pages.CHOICES:
        monkeypatch.delenv(name, raising=False)
    env = {choice: "131072"} if choice else {}
    result = run_python("-c", AGAIN.format(call), env=env)
    again, given_back = map(int, result.stdout.split())
    assert (again < 500) == is_kept
    assert given_back > 5_000


def test_another_c_library_changes_nothing(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    large_pages.keep_freed_memory()
    large_pages.give_back_freed_memory()
