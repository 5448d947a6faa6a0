"""What the tests start is a process like any other, although it is a fork."""

import json
import os
import signal

import pytest

from tests.conftest import ROOT, run_python
from tests.forks import Command, can_fork, unlike
from tests.waiting import wait_until


@pytest.mark.parametrize("fresh", [False, True])
def test_it_is_a_process_of_its_own_and_tells_how_it_ended(fresh):
    words = ["-m", "tests.unit.asleep", "two words", 3]
    process = Command(words, {**os.environ, "RANK": "5"}, fresh=fresh)
    try:
        wait_until(lambda: process.output.endswith("\n"), lambda: process.errors)
        told = json.loads(process.output)
        assert process.poll() is None
        assert os.getsid(process.pid) == process.pid
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert told == {
        "pid": process.pid, "session": process.pid, "rank": "5", "words": ["two words", "3"],
        "home": str(ROOT),
    }  # fmt: skip
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize(
    "words", [["-m", "hpc_stres", "train"], ["launch/submit.py", "--phase"], ["-m", "hpc_stres"]]
)
def test_a_fork_says_what_a_fresh_interpreter_says(words):
    results = [run_python(*words, fresh=fresh) for fresh in (False, True)]
    one, other = ((r.returncode, r.stdout, r.stderr) for r in results)
    assert one == other
    assert one[0] == 2


def test_what_is_read_while_importing_needs_an_interpreter_of_its_own():
    ours = ["-m", "hpc_stres", "train"]
    here = dict(os.environ)
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "HPC_STRES_CACHE", "CUDA_VISIBLE_DEVICES"):
        assert not can_fork(ours, {**here, name: "/another"}, ROOT), name
    assert not can_fork(["-c", "import torch"], here, ROOT)
    assert not can_fork(["-m", "pip"], here, ROOT)
    assert not can_fork(ours, here, ROOT / "tests")
    import torch

    import hpc_stres.training.phase

    assert hpc_stres.training.phase
    assert unlike(dict(os.environ)) == set(), "a library sets these: every command would be slow"
    # CUDA does not survive a fork.
    assert can_fork(ours, {**here, "RANK": "0"}, ROOT) != torch.cuda.is_available()
