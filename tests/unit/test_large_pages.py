"""Training asks for large pages before torch decides."""

from pathlib import Path

import pytest

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
COMMANDS = """
import os, sys
from hpc_stres.__main__ import main
from hpc_stres.commands import {0}
assert "torch" not in sys.modules
try:
    main({1})
except SystemExit:
    pass
print(os.environ.get("THP_MEM_ALLOC_ENABLE"))
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
        assert result.stdout.splitlines()[-1] == expected, result.stderr
