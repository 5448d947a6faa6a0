"""A site that enforces accounts, QOS limits and wckeys, with a partition without GPUs: profiles, arrays, refusals."""

import re
import shlex
import signal
import sys

import pytest

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.launch import slurm as scripts
from hpc_stres.launch.jobs import make_jobs
from hpc_stres.launch.scheduler import Token
from tests.conftest import ROOT, TINY
from tests.slurm.cluster import PrivateSlurm
from tests.slurm.conftest import person
from tests.slurm.test_once import Submitter

PROFILES = sorted(path.stem for path in (CONFIGS / "clusters").glob("site_*.yaml"))
# Nothing runs: the jobs are held. They need what the site asks of everybody.
HELD = {
    "cluster__sbatch__hold": "true", "cluster__partition": "cpu", "cluster__account": "proj1234",
    "cluster__wckey": "thesis", "cluster__links": 1, "nodes": 1, "cluster__scheduler_seconds": 60,
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    cluster = PrivateSlurm(tmp_path_factory.mktemp("site"), is_site=True)
    try:
        yield cluster.start()
    finally:
        left = cluster.stop()
    assert not left, f"processes outlived the cluster: {left}"


@pytest.fixture
def who(site, data_root, tmp_path):
    run_dir = tmp_path / "räume mit raum"
    with person(site, data_root, run_dir):
        someone = Submitter(site, data_root, run_dir, tmp_path)
        yield someone
        someone.cancel()


def rows(who):
    """Of every element in the queue: array, index, phase, what it waits for."""
    shown = who.slurm.run("squeue", "-h", "-r", "-o", "%F|%K|%k|%E").stdout.splitlines()
    cells = [line.split("|") for line in shown]
    return [(number, index, mark.split(":")[2], after) for number, index, mark, after in cells]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_shipped_profile_asks_for_what_its_site_gives(site, tmp_path, profile):
    config = load_config(TINY, [f"data.root={tmp_path}"], profile)
    jobs = {job.name: job for job in make_jobs(config, tmp_path, ["motion"], False)}
    for name, job in jobs.items():
        text = scripts.sbatch_text(config, tmp_path, job, "", Token("0123abcd-4567ef", name, 0, 1))
        script = tmp_path / f"{name}.sh"
        script.write_text(text)
        said = site.run("sbatch", "--test-only", script, check=False)
        assert said.returncode == 0, (name, said.stderr, text)
        assert "wckey" not in text or "--wckey=thesis" in text


def test_three_splits_and_seeds_are_one_array_a_phase(who, tmp_path):
    words = ("--split", "all", "--seeds", "1,2,3", "--at-once", "4")
    settings = {**HELD, "data__root": tmp_path / "data"}
    code, output = who.try_submit(*words, phase="motion,st_resnet", **settings)
    assert code == 0, output
    found = rows(who)
    phases = {}
    for number, index, phase, after in found:
        phases.setdefault(phase, {})[index] = (number, after)
    assert {phase: len(elements) for phase, elements in phases.items()} == {
        "prepare": 3, "motion": 9, "st_resnet": 9, "evaluate": 9,
    }  # fmt: skip
    assert [len({number for number, _ in each.values()}) for each in phases.values()] == [1] * 4, (
        found
    )
    # The made-up videos depend on the seed: a store for each, an element for each store.
    (prepare,) = {number for number, _ in phases["prepare"].values()}
    motion = next(iter(phases["motion"].values()))[0]
    assert {after for _, after in phases["motion"].values()} == {
        f"afterok:{prepare}_*(unfulfilled)"
    }
    for _, after in phases["evaluate"].values():
        assert f"aftercorr:{motion}_*" in after
    shown = who.slurm.run("scontrol", "show", "job", motion).stdout
    assert "ArrayTaskThrottle=4" in shown
    assert "Account=proj1234" in shown
    assert "WCKey=thesis" in shown
    # The same again submits nothing; each run knows its element, and one cancel ends all.
    code, output = who.try_submit(*words, phase="motion,st_resnet", **settings)
    assert code == 0, output
    assert sorted(rows(who)) == sorted(found)
    status = who.slurm.run(
        sys.executable, "launch/status.py", who.run_dir, "--whole", cwd=ROOT
    ).stdout
    assert len(re.findall(rf"\b{motion}_\d\b", status)) == 9
    assert who.cancel().count("cancelled") == len(found)
    assert not who.slurm.queue()


# Where a submit is killed: after sbatch has an array, before it has, and while it lives on.
KILLS = {
    "after": ('"$real" "$@"; kill -9 $PPID; exit 0', 3),
    "before": ("kill -9 $PPID; exit 1", 2),
    "orphan": ("kill -9 $PPID; sleep 1", 2),
}


@pytest.mark.parametrize("point", KILLS)
def test_arrays_of_a_killed_submit_are_adopted(who, point):
    script, at = KILLS[point]
    words = ("--seeds", "4,5")
    settings = {**HELD, "phase": "motion,appearance"}
    who.wrap("sbatch", f"[ $call != {at} ] || {{ {script}; }}")
    assert who.try_submit(*words, **settings)[0] == -signal.SIGKILL
    who.unwrap()
    code, output = who.try_submit(*words, **settings)
    assert code == 0, output
    counted = {}
    for number, index, phase, _ in rows(who):
        counted.setdefault(phase, []).append((number, index))
    assert {phase: len(each) for phase, each in counted.items()} == {
        "prepare": 2, "motion": 2, "appearance": 2, "evaluate": 2,
    }  # fmt: skip
    # A run submitted alone knows its element too.
    run_dir, who.run_dir = who.run_dir, who.run_dir / "seed5"
    code, output = who.try_submit(seed=5, **settings)
    who.run_dir = run_dir
    assert (code, "nothing more to submit" in output) == (0, True), output
    assert len(rows(who)) == 8


REFUSALS = {
    "account": ({"cluster__account": "nobody"}, "Invalid account"),
    "wckey": ({"cluster__wckey": "none_such"}, "Invalid wckey"),
    "qos": ({"cluster__qos": "none_such"}, "Invalid qos"),
    "limit": ({"cluster__qos": "small"}, "QOSMaxSubmitJobPerUserLimit"),
    "gpus": ({"cluster__gpus_per_node": 4}, "node configuration is not available"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_site_refuses_is_said_before_anything_is_made(who, case):
    change, words = REFUSALS[case]
    seeds = ("--seeds", "1,2,3")
    code, output = who.try_submit(*seeds, phase="motion", **(HELD | change))
    assert (code, words in output) == (1, True), output
    assert not who.slurm.queue()
    assert not (who.run_dir / "seed1" / "config.yaml").exists()


OFFERS = {
    "none but mpirun": ("none", "mpirun"),
    "pmi2 that does not work": ("none pmi2", "mpirun"),
    "pmix": ("none pmix pmi2", "srun --mpi=pmix"),
}


@pytest.mark.parametrize("offer", OFFERS)
def test_prepare_sh_tries_out_how_ranks_find_each_other(site, tmp_path, offer):
    """The count of ranks alone: what `hpc-stres prepare` does with them is another test's.

    Each rank says it in a file of its own: mpirun passes on what ranks print in pieces.
    """
    offered, chosen = OFFERS[offer]
    real = site.run("bash", "-c", "command -v srun").stdout.strip()
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "srun"
    wrapper.write_text(
        f'#!/bin/bash\n[ "$1" != --mpi=list ] || {{ echo "srun: {offered}" >&2; exit 0; }}\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\nexport PATH={tmp_path}/bin:$PATH\n. {shlex.quote(str(ROOT))}/hpc_stres/launch/mpi.sh\n"
        f"PYTHON=({shlex.quote(sys.executable)})\n"
        f"mpi_ranks {shlex.quote(str(tmp_path / 'rank.py'))}\n"
    )
    (tmp_path / "rank.py").write_text(
        "import pathlib\nfrom mpi4py import MPI\n"
        f"said = pathlib.Path({str(tmp_path)!r}) / f'rank{{MPI.COMM_WORLD.rank}}'\n"
        "said.write_text(str(MPI.COMM_WORLD.size))\n"
    )
    out = tmp_path / "out.txt"
    site.run("sbatch", "--wait", "-p", "gpu", "-N2", "--ntasks-per-node=1", "-o", out, script)
    said = out.read_text()
    assert f"through {chosen}\n" in said, said
    ranks = {path.name: path.read_text() for path in tmp_path.glob("rank[0-9]*")}
    assert ranks == {"rank0": "2", "rank1": "2"}, said
