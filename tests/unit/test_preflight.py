"""What the preflight refuses, what it mentions, and how it reads NCCL's log."""

import contextlib
import dataclasses
import fcntl
import os

import pytest

from hpc_stres.errors import UserError
from hpc_stres.parallel.process_groups import cpu_threads
from hpc_stres.parallel.world import find_world
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import RunPaths
from hpc_stres.tools import preflight
from hpc_stres.tools.preflight import RankReport, code_digest, findings, transport
from tests.conftest import TINY, run_python, tiny_config


def ranks(count=4, **changes):
    first = RankReport(0, "h", "n", "GPU-0", 8, 64, 1000, 100.0, "abc", {"torch": "2.13.0"})
    return [
        dataclasses.replace(first, rank=r, gpu=f"GPU-{r}", node=f"n{r // 2}", **changes)
        for r in range(count)
    ]


def test_good_ranks_pass():
    assert findings(ranks()) == ([], [])


@pytest.mark.parametrize(
    ("rank", "change", "words"),
    [
        (2, {"gpu": "GPU-0"}, "ranks 0, 2 share the GPU GPU-0"),
        (3, {"gpu": ""}, "ranks 3 have no GPU while others have one"),
        (1, {"cores": 1}, "ranks 1 have one core: set cluster.cpus_per_rank"),
        (3, {"code": "xyz"}, "the code of hpc_stres is xyz on rank 3, abc elsewhere"),
        (1, {"versions": {"torch": "2.12.0"}}, "torch is 2.12.0 on rank 1, 2.13.0 elsewhere"),
        (1, {"versions": {}}, "torch is not installed on rank 1"),
    ],
)
def test_bad_ranks_are_refused_by_number(rank, change, words):
    reports = ranks()
    reports[rank] = dataclasses.replace(reports[rank], **change)
    refused, known = findings(reports)
    assert len(refused) == 1
    assert words in refused[0]
    assert known == []


@pytest.mark.parametrize(
    ("change", "words"),
    [({"clock": 160.0}, "clocks differ by 60 s"), ({"shm_mib": 8}, "ranks 2 have under 64 MiB")],
)
def test_what_is_only_worth_knowing_is_said(change, words):
    reports = ranks()
    reports[2] = dataclasses.replace(reports[2], **change)
    refused, known = findings(reports)
    assert refused == []
    assert words in known[0]


def test_one_core_on_a_machine_of_one_core_is_no_mistake():
    assert findings(ranks(1, cores=1, machine_cores=1)) == ([], [])


def test_nccls_transport_is_read_from_its_log():
    log = (
        "h:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM\n"
        "h:1:2 [0] NCCL INFO Channel 01/0 : 1[1] -> 4[0] [send] via NET/IB/0/GDRDMA\n"
        "h:1:2 [0] NCCL INFO Channel 01/0 : 4[0] -> 1[1] [receive] via NET/IB/1\n"
    )
    assert transport(log) == "NET/IB x 2, P2P x 1"
    assert transport("via NET/Socket/0") == "NET/Socket x 1"


def test_the_digest_follows_the_code(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    one = code_digest(tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != one
    assert len(code_digest()) == 12


def test_the_command_reports_a_single_rank(tmp_path):
    result = run_python("-m", "hpc_stres", "preflight", "--config", TINY, "--run-dir", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "preflight: rank" in result.stdout
    assert RunPaths(tmp_path).preflight.is_file()


@pytest.fixture
def one_rank_under_srun(monkeypatch):
    """The environment of `srun -n1`, with a number of threads that the user chose."""
    monkeypatch.delenv("HPC_STRES_THREADS", raising=False)
    names = {
        "JOB_ID": "7",
        "STEP_ID": "0",
        "PROCID": "0",
        "NTASKS": "1",
        "STEP_NUM_TASKS": "1",
        "LOCALID": "0",
    }
    for name, value in names.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")


@pytest.mark.parametrize("refuses", [False, True])
def test_the_training_after_it_finds_everything_as_if_it_had_not_run(
    one_rank_under_srun, monkeypatch, tmp_path, refuses
):
    import torch

    before, threads, world = dict(os.environ), torch.get_num_threads(), find_world()
    assert world.source == "srun"
    if refuses:
        monkeypatch.setattr(preflight, "findings", lambda reports: (["no"], []))
    with (
        pytest.raises(UserError, match="should not train together")
        if refuses
        else contextlib.nullcontext()
    ):
        preflight.run(tiny_config("x").cluster, world, tmp_path)
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads
    assert not torch.distributed.is_initialized()
    assert find_world() == world
    assert cpu_threads(find_world()) == 3


def test_it_leaves_nothing_when_ranks_do_not_meet(one_rank_under_srun, monkeypatch):
    import torch

    def fail(*arguments, **options):
        raise RuntimeError("a rank is gone")

    monkeypatch.setattr(torch.distributed, "barrier", fail)
    before = dict(os.environ)
    with pytest.raises(RuntimeError, match="a rank is gone"):
        preflight.run(tiny_config("x").cluster, find_world(), None)
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()


def test_nccls_log_is_asked_for_while_it_runs_only(one_rank_under_srun, monkeypatch, tmp_path):
    before = dict(os.environ)
    asked = []

    def measure(world, run_dir):
        asked.append(preflight._nccl_log(tmp_path))
        assert os.environ["NCCL_DEBUG_FILE"] == str(asked[0])
        del os.environ["OMP_NUM_THREADS"]
        return ranks(1), ([], []), 0.0, "cpu"

    monkeypatch.setattr(preflight, "_measure", measure)
    preflight.run(tiny_config("x").cluster, find_world(), None)
    assert dict(os.environ) == before


def test_a_phase_has_one_owner_and_its_lock_ends_with_it(tmp_path):
    lock, what = RunPaths(tmp_path).phase("motion").lock, "this phase is being trained"
    again = pytest.raises(UserError, match="motion: this phase is being trained by process")
    with owned(lock, what), again, owned(lock, what):
        pass
    with owned(lock, what):
        assert "process" in lock.read_text()
    with lock.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
