"""Submitting: jobs as data, the sbatch text against a golden file, refusals at submit time."""

import dataclasses
import json
import time
from pathlib import Path

import pytest

from hpc_stres.config.cluster import PrepareJobConfig
from hpc_stres.config.loading import load_config
from hpc_stres.errors import UserError
from hpc_stres.launch import jobs as job_list
from hpc_stres.launch.scheduler import Token
from hpc_stres.launch.slurm import dependency_of, parameters, sbatch_text
from hpc_stres.run.paths import RunPaths, write_json, write_sealed
from hpc_stres.run.product import read_done
from tests.conftest import ROOT, TINY, run_python, tiny_config
from tests.unit.untrained import finish_without_weights

SMALL = ["--set", "training.global_batch=4", "--set", "training.norm_group=2"]
GOLDEN = Path(__file__).parent / "golden"


def tree(config, run_dir, phases=None, ready=False):
    names = phases or ["motion", "appearance", "st_resnet", "st_resnet_star"]
    return {job.name: job for job in job_list.make_jobs(config, run_dir, names, ready)}


@pytest.fixture
def config():
    return load_config(
        ROOT / "configs" / "binding.yaml", ["cluster.gpus_per_node=2", "cluster.nodes=4"], "slurm"
    )


def test_the_chain_waits_for_what_it_needs(config, tmp_path):
    jobs = tree(config, tmp_path)
    assert {name: job.after for name, job in jobs.items()} == {
        "prepare": (), "motion": ("prepare",), "appearance": ("prepare",), "st_resnet": ("motion", "appearance"),
        "st_resnet_star": ("st_resnet",), "evaluate": ("st_resnet_star",),
    }  # fmt: skip
    assert "prepare" not in tree(config, tmp_path, ready=True)
    for name in ("motion", "appearance"):
        finish_without_weights(config, RunPaths(tmp_path), name)
    part = tree(config, tmp_path, ["st_resnet"], ready=True)
    assert {name: job.after for name, job in part.items()} == {
        "st_resnet": (),
        "evaluate": ("st_resnet",),
    }


def test_a_phase_that_is_done_is_not_submitted_again(config, tmp_path):
    paths = RunPaths(tmp_path)
    for name in ("motion", "appearance"):
        finish_without_weights(config, paths, name)
    finish_without_weights(config, paths, "st_resnet", config.steps("st_resnet") - 1)
    assert set(tree(config, tmp_path, ready=True)) == {"st_resnet", "st_resnet_star", "evaluate"}
    for name in ("st_resnet", "st_resnet_star"):
        finish_without_weights(config, paths, name)
    assert set(tree(config, tmp_path, ready=True)) == {"evaluate"}
    sums = {name: read_done(paths.phase(name))["sha256"] for name in config.phases}
    table = {name: {"weights": digest} for name, digest in sums.items()}
    write_sealed(
        paths.results, {"splits": {"1": table | {"st_resnet": {"weights": sums["motion"]}}}}
    )
    assert set(tree(config, tmp_path, ready=True)) == {"evaluate"}, "of weights that were replaced"
    write_sealed(paths.results, {"splits": {"1": table}})
    assert tree(config, tmp_path, ready=True) == {}


def test_every_job_of_several_ranks_looks_whether_they_are_there(config, tmp_path):
    """The whole check before the first phases; later jobs, on nodes of their own, take the brief one."""

    def looks(config):
        commands = {
            job.name: job.commands[0] for job in tree(config, tmp_path, ready=True).values()
        }
        return {
            name: words[0] + words[-1]
            for name, words in commands.items()
            if words[0] == "preflight"
        }

    whole, brief = f"preflight{tmp_path}", "preflight--brief"
    later = {"st_resnet": brief, "st_resnet_star": brief, "evaluate": brief}
    first = {"motion": whole, "appearance": whole}
    assert looks(config) == {**first, **later}
    alone = dataclasses.replace(config.cluster, nodes=1, gpus_per_node=0)
    assert looks(dataclasses.replace(config, cluster=alone)) == first
    never = dataclasses.replace(config.cluster, preflight=False)
    assert looks(dataclasses.replace(config, cluster=never)) == {}
    here = dataclasses.replace(config.cluster, scheduler="local")
    assert looks(dataclasses.replace(config, cluster=here)) == {}


def test_links_wait_for_any_end_and_phases_for_a_good_one(config, tmp_path):
    jobs = tree(config, tmp_path)
    job = dataclasses.replace(jobs["st_resnet"], links=3)
    ids = {"motion": ["1", "2"], "appearance": ["3"], "st_resnet": []}
    assert dependency_of(job, ids, 0) == "afterok:2:3"
    ids["st_resnet"].append("4")
    # When motion fails, link 0 is cancelled: afterany alone would let link 1 start.
    assert dependency_of(job, ids, 1) == "afterok:2:3,afterany:4"
    assert dependency_of(jobs["motion"], {"motion": ["1"]}, 1) == "afterany:1"


def token(phase):
    return Token("0123abcd-4567ef", phase, 0, 5)


def golden(name, text):
    path = GOLDEN / f"{name}.sbatch"
    assert text == path.read_text(), (
        "if the change is meant, write this text into the golden file:\n" + text
    )


@pytest.fixture
def elsewhere(monkeypatch):
    """Paths that are the same on every machine."""
    monkeypatch.setattr("sys.executable", "/opt/my python/bin/python")
    monkeypatch.setattr("hpc_stres.launch.slurm.SOURCES", Path("/opt/hpc stres"))
    monkeypatch.setattr("pathlib.Path.cwd", lambda: Path("/home/me"))
    return Path("/scratch/with space/run")


def test_sbatch_text_is_the_golden_one(config, elsewhere):
    cluster = dataclasses.replace(
        config.cluster, partition="gpu", account="proj", qos="long", constraint="a100", cpus_per_rank=8,
        memory_gib_per_node=240, minutes=120, setup=("ulimit -n 65536",),
    )  # fmt: skip
    full = dataclasses.replace(config, cluster=cluster)
    golden(
        "st_resnet",
        sbatch_text(
            full, elsewhere, tree(full, elsewhere)["st_resnet"], "afterok:11:12", token("st_resnet")
        ),
    )


def test_a_profile_with_image_modules_and_requeue_is_in_the_sbatch_text(config, elsewhere):
    cluster = dataclasses.replace(
        config.cluster, partition="gpu", prepare=PrepareJobConfig(partition="serial"),
        cpus_per_rank=8, gpu_type="h100", exclusive=True, continuation="requeue",
        modules=("cuda/12", "openmpi"), image="/images/hpc stres.sif", binds=("/scratch",),
        environment={"NCCL_SOCKET_IFNAME": "ib0", "NCCL_IB_DISABLE": 0}, constraint="a100",
    )  # fmt: skip
    data = dataclasses.replace(config.data, root="/data")
    full = dataclasses.replace(config, cluster=cluster, data=data)
    jobs = tree(full, elsewhere)
    golden(
        "requeue_image", sbatch_text(full, elsewhere, jobs["motion"], "afterok:10", token("motion"))
    )
    golden("prepare", sbatch_text(full, elsewhere, jobs["prepare"], "", token("prepare")))


def test_one_process_of_a_phase_has_the_cores_of_a_nodes_ranks_and_a_single_rank_its_own(tmp_path):
    settings = [
        "phases.all_idt={kind: handcrafted}", "phases.motion.starts_from=[]",
        "cluster.ranks_per_node=4", "cluster.cpus_per_rank=3",
    ]  # fmt: skip
    wide = tiny_config(tmp_path, *settings)
    jobs = {
        job.name: job for job in job_list.make_jobs(wide, tmp_path, ["all_idt", "motion"], True)
    }
    assert cores_of(wide, jobs["all_idt"]) == 12
    assert cores_of(wide, jobs["motion"]) == 3
    single = tiny_config(
        tmp_path, *settings, "cluster.ranks_per_node=1", "cluster.prepare.cores=16"
    )
    jobs = {
        job.name: job for job in job_list.make_jobs(single, tmp_path, ["all_idt", "motion"], True)
    }
    assert cores_of(single, jobs["all_idt"]) == 16
    assert cores_of(single, jobs["motion"]) == 3


def cores_of(config, job):
    return parameters(config.cluster, job, "", token(job.name))["cpus_per_task"]


def test_dry_run_is_fast_and_needs_neither_torch_nor_slurm(tmp_path):
    arguments = [
        "launch/submit.py",
        "--dry-run",
        "--cluster",
        "slurm",
        "--nodes",
        "4",
        "--run-dir",
        tmp_path / "run",
    ]
    arguments += ["--set", f"data.root={tmp_path}"]
    result = run_python(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("#!/bin/bash") == 6
    assert "32 = 4 groups of 8/8/8/8" in result.stdout
    assert not (tmp_path / "run").exists()
    code = f"import sys; sys.argv = {['submit.py', *map(str, arguments[1:])]!r}\nimport runpy\n"
    code += (
        "try: runpy.run_path('launch/submit.py', run_name='__main__')\nexcept SystemExit: pass\n"
    )
    # What takes seconds to import; without it the answer is there at once.
    code += "heavy = {'torch', 'nvidia', 'cv2', 'av', 'scipy', 'sklearn', 'deepspeed'}\n"
    code += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    assert run_python("-c", code).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster", "slurm"], "there is no sbatch on this machine"),
        (["--cluster", "nowhere"], "no nowhere.yaml in configs/clusters"),
        (["--phase", "stres"], "no such phase; the recipe has motion"),
        (["--set", "training.max_step=4"], "the nearest valid key is max_steps"),
        (
            ["--cluster", "local", "--set", "cluster.ranks_per_node=7", *SMALL],
            "cannot be cut",
        ),
        (["--config", "none.yaml"], "none.yaml: cannot read the config"),
    ],
)
def test_what_cannot_work_is_refused_at_submit_time(tmp_path, arguments, words):
    result = run_python(
        "launch/submit.py",
        "--run-dir",
        tmp_path / "run",
        *arguments,
        env={"PATH": "/nowhere"},
    )
    assert result.returncode == 2, result.stderr
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "run").exists()


def test_a_run_folder_of_another_experiment_is_refused(tmp_path):
    from hpc_stres.config.loading import dump
    from hpc_stres.run.paths import write_text

    write_text(tmp_path / "config.yaml", dump(load_config(TINY, ["seed=99"])))
    result = run_python(
        "launch/submit.py", "--config", TINY, "--cluster", "local", "--run-dir", tmp_path
    )
    assert result.returncode == 1
    assert "seed: 99 there, 7 now" in result.stderr


def test_two_submits_do_not_work_in_one_folder(tmp_path):
    from hpc_stres.launch.chain import locked

    again = pytest.raises(UserError, match="this run is being submitted by process")
    with locked(tmp_path, 0.0), again, locked(tmp_path, 0.0):
        pass
    with locked(tmp_path, 0.0):
        assert RunPaths(tmp_path).lock.is_file()


def test_status_shows_every_phase(config, tmp_path):
    from hpc_stres.config.loading import dump
    from hpc_stres.run.paths import write_text

    paths = RunPaths(tmp_path)
    write_text(paths.config, dump(config))
    finish_without_weights(config, paths, "motion", 100)
    line = "appearance  40/100  40%  8.0 steps/s, 0:07 left  loss 1.5"
    write_json(
        paths.logs / "appearance.progress.json",
        {"done": 40, "total": 100, "line": line, "time": time.time()},
    )
    write_text(
        paths.logs / "st_resnet" / "1_0_log.out",
        "noise\nhpc-stres train: phase motion is not finished\n",
    )
    result = run_python("launch/status.py", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row.split()[0]: row for row in result.stdout.splitlines()[2:]}
    assert " done" in rows["motion"]
    assert " running" in rows["appearance"]
    assert "0:07 left" in rows["appearance"]
    assert "phase motion is not finished" in rows["st_resnet"]
    assert run_python("launch/status.py", tmp_path / "none").returncode == 2
    assert json.loads(paths.phase("motion").done.read_text())["step"] == 100
