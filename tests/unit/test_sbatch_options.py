"""What a profile passes on to sbatch and srun, and what it may not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.config.sbatch import GPU_REQUESTS, OWN_SBATCH, OWN_SRUN
from hpc_stres.errors import ConfigError
from hpc_stres.launch.jobs import make_jobs
from hpc_stres.launch.scheduler import Token
from hpc_stres.launch.slurm import sbatch_text
from tests.conftest import TINY

RUN = Path("/scratch/it's here/run")


def made(*settings, job="motion"):
    config = load_config(TINY, ["data.root=/data", *settings], "slurm")
    jobs = {each.name: each for each in make_jobs(config, RUN, ["motion"], False)}
    text = sbatch_text(config, RUN, jobs[job], "", Token("0123abcd-4567ef", job, 0, 1))
    return [line.removeprefix("#SBATCH ") for line in text.splitlines()]


def srun(lines):
    return next(line for line in lines if line.startswith("srun "))


def refused(*settings):
    with pytest.raises(ConfigError) as error:
        made(*settings)
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


@pytest.mark.parametrize("name", sorted(OWN_SBATCH))
def test_what_jobs_are_known_by_cannot_be_replaced(name):
    for spelled in (name, name.replace("-", "_")):
        assert f"expected no {name}" in refused(f"cluster.sbatch={{{spelled}: x}}")
    if len(name) > 4 and name not in ("nodes", "ntasks"):
        # sbatch takes any beginning of a long option for the option.
        short = refused(f"cluster.sbatch={{{name[:-1].rstrip('-')}: x}}")
        assert "expected no" in short or "is short for" in short, short


@pytest.mark.parametrize("name", sorted(OWN_SRUN))
def test_what_starts_ranks_cannot_be_replaced(name):
    assert f"expected no {name}" in refused(f"cluster.srun_args=[--{name}=1]")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["cluster.sbatch={time: 10}"], "cluster.minutes asks for that"),
        (["cluster.sbatch={mem: 1G}", "cluster.memory_gib_per_node=4"], "cluster.memory_gib_per_node"),
        (["cluster.sbatch={mem-per-cpu: 1G}", "cluster.memory_gib_per_node=4"], "cluster.memory_gib"),
        (["cluster.sbatch={partition: a}", "cluster.partition=b"], "cluster.partition asks"),
        (["cluster.sbatch={wckey: a}", "cluster.wckey=b"], "cluster.wckey asks"),
        (["cluster.sbatch={exclusive: user}", "cluster.exclusive=true"], "cluster.exclusive asks"),
        (["cluster.sbatch={cpus-per-gpu: 4}", "cluster.cpus_per_rank=2"], "cluster.cpus_per_rank"),
        (["cluster.sbatch={gres: 'tmpfs:10,gpu:2'}"], "expected no gres with GPUs"),
        (["cluster.sbatch={mail-type: END, mail_type: FAIL}"], "expected mail-type once"),
        (["cluster.sbatch={--mail-type: END}"], "expected sbatch's long names"),
        (["cluster.sbatch={p: gpu}"], "expected sbatch's long names"),
        (["cluster.sbatch={'mail type': END}"], "expected sbatch's long names"),
        (["cluster.srun_args=[--mpi, pmi2]"], "in one piece; 'pmi2' is none"),
        (["cluster.srun_args=[-N1]"], "in one piece"),
        (["cluster.srun_args=['--mpi=pmi2', 'rm']"], "in one piece"),
        (["cluster.image=/i.sqsh", "cluster.image_with=pyxis", "cluster.srun_args=[--container-image=x]"],
         "expected no container-image"),
        (["cluster.prepare={nodes: 2}"], "launcher mpi"),
        (["cluster.prepare={launcher: mpi}"], "expected ranks a node"),
        (["cluster.prepare={minutes: 0}"], "expected 1 or more"),
        (["cluster.prepare={sbatch: {dependency: x}}"], "expected no dependency"),
        *(([f"cluster.sbatch={{{name}: 4}}"], f"expected no {name} with GPUs") for name in GPU_REQUESTS),
    ],
)  # fmt: skip
def test_a_conflict_is_refused_by_name(settings, words):
    assert words in refused(*settings)


def test_options_come_after_ours_and_reach_sbatch_and_srun_unchanged():
    lines = made(
        "cluster.sbatch={mail-type: 'END,FAIL', reservation: my course, nice: 5, requeue: false, contiguous: true}",
        "cluster.srun_args=['--mpi=pmi2', '--cpu-bind=verbose, cores']",
    )
    assert {"--mail-type=END,FAIL", "--reservation='my course'", "--nice=5", "--contiguous"} <= set(
        lines
    )
    assert "--requeue" not in lines
    assert not [line for line in lines if "wckey" in line]
    words = srun(lines)
    assert words.index("--kill-on-bad-exit=1") < words.index(
        "--mpi=pmi2 '--cpu-bind=verbose, cores'"
    )
    assert "--no-requeue" in made("cluster.sbatch={no-requeue: true}")
    assert "--requeue" not in made("cluster.sbatch={no-requeue: true}")
    assert "--wckey=thesis" in made("cluster.wckey=thesis")
    assert "--wckey=thesis" in made("cluster.sbatch={wckey: thesis}")
    assert "--export=ALL" in srun(made("cluster.sbatch={export: NONE}"))


def test_gpus_are_asked_for_as_the_site_wants():
    four = ["cluster.gpus_per_node=4", "cluster.gpu_type=a100"]
    assert "--gpus-per-node=a100:4" in made(*four)
    lines = made(*four, "cluster.gpus_by=gres", "cluster.sbatch={gres: 'tmpfs:200'}")
    assert "--gres=gpu:a100:4,tmpfs:200" in lines
    assert not [line for line in lines if line.startswith("--gpus")]
    lines = made(*four, "cluster.gpus_by=gpus-per-task")
    assert "--gpus-per-task=a100:1" in lines
    assert "--gpu-bind=none" in srun(lines)
    # What is about GPUs is refused by sbatch for a job without any.
    more = "cluster.sbatch={mem-per-gpu: 40G, gpu-freq: high, nice: 3}"
    assert "--mem-per-gpu=40G" in made(*four, more)
    lines = made(*four, more, job="prepare")
    assert not [line for line in lines if "gpu" in line and line.startswith("--")]
    assert "--nice=3" in lines


def test_the_job_that_prepares_asks_for_its_own():
    settings = [
        "cluster.partition=gpu", "cluster.account=big", "cluster.constraint=a100", "cluster.memory_gib_per_node=200",
        "cluster.prepare={partition: cpu, account: small, memory_gib: 8, cores: 6, minutes: 30, "
        "sbatch: {nice: 9, reservation: false}}",
        "cluster.sbatch={reservation: course, nice: 1}",
    ]  # fmt: skip
    lines = made(*settings, job="prepare")
    wanted = {
        "--partition=cpu",
        "--account=small",
        "--mem=8GB",
        "--cpus-per-task=6",
        "--time=30",
        "--nice=9",
    }
    assert wanted <= set(lines)
    assert not [line for line in lines if line.startswith(("--constraint", "--reservation"))]
    lines = made(*settings)
    assert {"--partition=gpu", "--account=big", "--mem=200GB", "--reservation=course"} <= set(lines)


def test_mpi_ranks_of_prepare_are_started_by_whatever_works():
    lines = made("cluster.prepare={launcher: mpi, nodes: 3, cores: 8}", job="prepare")
    assert {"--nodes=3", "--ntasks-per-node=8", "--cpus-per-task=1"} <= set(lines)
    assert not [line for line in lines if line.startswith("srun ")]
    assert [line for line in lines if line.startswith("mpi_ranks -u -m hpc_stres.launch.work ")]
    assert [line for line in lines if re.fullmatch(r"\. \S.*/launch/mpi\.sh'?", line)]


MPI = "cluster.prepare={launcher: mpi, nodes: 2, cores: 2}"
PYXIS = ["cluster.image=/images/it.sqsh", "cluster.image_with=pyxis"]


@pytest.mark.parametrize(
    ("settings", "offered", "started"),
    [
        ([], "pmi2", "srun --unbuffered --kill-on-bad-exit=1 --export=ALL --mpi=pmi2 PYTHON"),
        # What a profile says of srun holds for these ranks too, and a kind that it names is believed.
        (["cluster.srun_args=[--mpi=pmix_v4, --cpu-bind=none]"], "pmi2", "srun --cpu-bind=none --mpi=pmix_v4 PYTHON"),
        ([*PYXIS], "pmi2", "srun --container-image=/images/it.sqsh --mpi=pmi2 python3"),
        ([], "none", "mpirun PYTHON"),
        # mpirun would start the node's own Python, beside the image.
        ([*PYXIS], "none", ""),
    ],
)  # fmt: skip
def test_mpi_ranks_are_started_with_the_profiles_words(tmp_path, settings, offered, started):
    """The lines of the script in a real shell; srun and mpirun are stand-ins."""
    text = "\n".join(made(MPI, *settings, job="prepare"))
    tools = tmp_path / "bin"
    tools.mkdir()
    listing = f'if [ "$1" = --mpi=list ]; then echo "srun: {offered}"; exit; fi\n'
    for name in ("srun", "mpirun"):
        (tools / name).write_text(
            f'#!/bin/bash\n{listing}printf "%s\\n" {name} "$@" > "{tmp_path}/words"\n'
        )
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "1",
        "PYTHONPATH": "", "HPC_STRES_PROBE_SECONDS": "20",
    }  # fmt: skip
    lines = text[text.index("\n. ") : text.index("# teardown")].strip()
    run = subprocess.run(
        ["bash", "-c", lines], env=environment, capture_output=True, text=True, check=False
    )
    if not started:
        assert run.returncode == 2
        assert "do not become one MPI world" in run.stderr
        return
    words = (tmp_path / "words").read_text().splitlines()
    wanted = set(started.replace("PYTHON", sys.executable).split())
    assert wanted <= set(words), (words, run.stderr)
    assert words[-3:-1] == ["-m", "hpc_stres.launch.work"], words


def test_an_image_is_run_by_what_the_site_has():
    image = ["cluster.image=/images/it.sqsh", "cluster.binds=['/a:/b', /c]"]
    words = srun(made(*image, "cluster.image_with=pyxis"))
    assert "--container-image=/images/it.sqsh" in words
    assert ":/data,/a:/b,/c:/c" in words
    assert " python3 -u -m submitit" in words
    assert " singularity exec --bind " in srun(made(*image, "cluster.image_with=singularity"))


def test_keys_of_older_profiles_are_read(tmp_path):
    old = tmp_path / "old.yaml"
    old.write_text("cluster: {cpu_partition: serial, prepare_cpus: 16, prepare_memory_gib: 8}\n")
    prepare = load_config(old).cluster.prepare
    assert (prepare.partition, prepare.cores, prepare.memory_gib) == ("serial", 16, 8)


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "clusters").glob("site_*.yaml")), ids=lambda p: p.stem
)
def test_a_shipped_profile_loads_and_says_for_whom_it_is(path):
    load_config(TINY, [], path.stem)
    assert path.read_text().startswith("# ")
