"""The whole chain on four nodes of a real Slurm, compared with the same config on one process."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from hpc_stres.store.location import store_folder
from tests.conftest import ROOT, TINY, digests, run_python, tiny_config
from tests.slurm.conftest import person

PHASES = ("motion", "appearance", "st_resnet", "st_resnet_star")


def trail(run_dir, phase):
    lines = (run_dir / "phases" / phase / "metrics.jsonl").read_text().splitlines()
    return [(json.loads(line)["step"], json.loads(line)["requests"]) for line in lines]


SETTINGS = {"training__precision": "float64"}


@pytest.fixture(scope="module")
def finished(slurm, data_root, tmp_path_factory):
    """A user whose whole chain has run on four nodes, and the same config's run folder on this machine alone."""
    root = tmp_path_factory.mktemp("chain")
    with person(slurm, data_root, root / "räume mit raum") as user:
        output = user.submit(**SETTINGS)
        assert "watch: python launch/status.py" in output
        jobs = user.jobs()
        assert list(jobs) == [*PHASES, "evaluate"]
        words = ["--config", TINY, "--cluster", "local", "--run-dir", root / "local"]
        for key, value in {
            "data.root": data_root,
            "training.norm_group": 5,
            "training.precision": "float64",
        }.items():
            words += ["--set", f"{key}={value}"]
        alone = run_python("launch/submit.py", *words)
        assert alone.returncode == 0, alone.stderr
        states = user.wait_states(*(number for numbers in jobs.values() for number in numbers))
        assert set(states) == {"COMPLETED"}, [user.logs(name)[-3000:] for name in jobs]
        yield user, root / "local"


def test_four_nodes_see_and_find_what_one_process_does(finished):
    user, local = finished
    for phase in PHASES:
        assert trail(user.run_dir, phase) == trail(local, phase)
        rows = [
            json.loads(x)
            for x in (user.run_dir / "phases" / phase / "metrics.jsonl").read_text().splitlines()
        ]
        assert {row["world_size"] for row in rows} == {4}
    ours, theirs = (
        json.loads((folder / "results.json").read_text()) for folder in (user.run_dir, local)
    )
    assert_alike(ours, theirs)


def assert_alike(ours, theirs, path="results"):
    """The same figures; calibration is of logits that agree to rounding, checksums are of their weights."""
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), path
        for key in set(ours) - {"weights", "checksum"}:
            assert_alike(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), path
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_alike(one, other, f"{path}[{number}]")
    elif isinstance(ours, float) and isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6), path
    else:
        assert ours == theirs, path


def test_everything_that_a_job_needs_is_in_its_run_folder(finished):
    user, _ = finished
    assert_run_folder_is_complete(user)
    status = user.status()
    assert len(re.findall(r"^\S+ +\d+ +done ", status, re.MULTILINE)) == 5, status
    assert "every phase is done; nothing to submit" in user.submit(**SETTINGS)


def test_the_accounting_knows_the_jobs(finished):
    user, _ = finished
    numbers = [number for links in user.jobs().values() for number in links]
    user.slurm.wait(
        lambda: {user.slurm.accounted(n) for n in numbers} == {"COMPLETED"},
        "sacct's word on all jobs",
    )


def test_eval_sh_evaluates_over_several_nodes(finished, tmp_path):
    user, local = finished
    shutil.copytree(user.run_dir, tmp_path / "rün dir")
    shutil.rmtree(tmp_path / "rün dir" / "scores")
    (tmp_path / "rün dir" / "results.json").unlink()
    job = sbatch(
        user.slurm, tmp_path, "eval.sh", "-N3", "--ntasks-per-node=1", RUN_DIR=tmp_path / "rün dir"
    )
    assert user.wait_states(job) == ["COMPLETED"], (tmp_path / "out.txt").read_text()
    ours, theirs = (
        json.loads((folder / "results.json").read_text())
        for folder in (tmp_path / "rün dir", local)
    )
    assert_alike(ours, theirs)
    assert "ST-ResNet*" in (tmp_path / "out.txt").read_text()


def test_eval_sh_says_what_is_missing(slurm, tmp_path):
    result = slurm.run("bash", "slurm/eval.sh", cwd=ROOT, check=False)
    assert result.returncode != 0
    assert "set RUN_DIR to the run folder" in result.stderr
    result = slurm.run("bash", "slurm/eval.sh", cwd=ROOT, check=False,
                       env={**slurm.environment, "RUN_DIR": str(tmp_path), "IMAGE": "none.sif"})  # fmt: skip
    assert result.returncode == 2
    assert "none.sif: no such image" in result.stderr


def test_prepare_sh_prepares_over_mpi(slurm, user, store, tmp_path):
    more = ["--set", f"data.root={tmp_path / 'däta'}"]
    words = ["prepare.sh", "-N4", "--ntasks-per-node=1"]
    states = user.wait_states(sbatch(slurm, tmp_path, *words, script_arguments=more, CONFIG=TINY))
    log = (tmp_path / "out.txt").read_text()
    if states == ["FAILED"] and "Segmentation fault" in log and "hpc_stres" not in log:
        # MPI's own library died while its ranks connected (1 of some 300 starts): what a user does
        # then is to submit the same again, and it must resume.
        states = user.wait_states(
            sbatch(slurm, tmp_path, *words, script_arguments=more, CONFIG=TINY)
        )
        log = (tmp_path / "out.txt").read_text()
    assert states == ["COMPLETED"], log
    folder = store_folder(tiny_config(tmp_path / "däta"))
    assert digests(folder) == digests(store.paths.root)


def sbatch(slurm, folder, script, *options, script_arguments=(), **variables):
    """Submit one of the job scripts from the repository's root, as a person would; returns the job's id."""
    environment = {**slurm.environment, "MASTER_ADDR": "127.0.0.1", "HPC_STRES_THREADS": "1"}
    environment |= {key: str(value) for key, value in variables.items()}
    environment["HPC_STRES_VENV"] = sys.prefix
    words = [
        "sbatch",
        "--parsable",
        "-o",
        folder / "out.txt",
        *options,
        f"slurm/{script}",
        *script_arguments,
    ]
    return slurm.run(*words, env=environment, cwd=ROOT).stdout.strip()


def assert_run_folder_is_complete(user):
    for name in (
        "config.yaml",
        "provenance.json",
        "code.diff",
        "jobs.json",
        "preflight.json",
        "report.html",
    ):
        assert (user.run_dir / name).is_file(), name
    provenance = json.loads((user.run_dir / "provenance.json").read_text())
    assert len(provenance["commit"]) == 40
    assert provenance["packages"]["torch"]
    logs = user.run_dir / "logs" / "st_resnet"
    assert len(list(logs.glob("*_log.out"))) == 4
    assert [
        path.read_text().startswith("#!/bin/bash") for path in logs.glob("*_submission.sh")
    ] == [True]
    found = json.loads((user.run_dir / "preflight.json").read_text())
    assert sorted(rank["node"] for rank in found["ranks"]) == ["n1", "n2", "n3", "n4"]
    assert found["all_reduce_gb_per_s"] > 0
    assert found["refused"] == []


def test_a_dry_run_submits_nothing(user):
    output = user.submit("--dry-run")
    assert output.count("#!/bin/bash") == 5
    assert "10 = 2 groups of 5/5" in output
    assert user.slurm.queue() == []
    assert not user.run_dir.exists()


@pytest.mark.parametrize("times", [2])
def test_two_submits_at_once_start_one_chain(user, times):
    environment = user.slurm.environment
    both = [
        subprocess.Popen(
            user.command(phase="motion"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=ROOT,
        )
        for _ in range(times)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0] * times, outputs
    assert sum("in the queue already: job" in output for output in outputs) == times - 1, outputs
    assert len([job for jobs in user.jobs().values() for job in jobs]) == 2
    assert len(user.slurm.queue()) <= 3


def test_in_float32_accuracies_differ_by_one_video_at_most(user, data_root, tmp_path):
    user.submit(phase="motion")
    jobs = user.jobs()
    words = [
        "--config",
        TINY,
        "--cluster",
        "local",
        "--phase",
        "motion",
        "--run-dir",
        tmp_path / "local",
    ]
    alone = run_python(
        "launch/submit.py",
        *words,
        "--set",
        f"data.root={data_root}",
        "--set",
        "training.norm_group=5",
    )
    assert alone.returncode == 0, alone.stderr
    assert user.wait_states(jobs["motion"][0], jobs["evaluate"][0]) == ["COMPLETED"] * 2, user.logs(
        "motion"
    )[-2000:]
    both = [
        json.loads((folder / "results.json").read_text())
        for folder in (user.run_dir, tmp_path / "local")
    ]
    columns = [results["splits"]["1"]["motion"] for results in both]
    assert abs(columns[0]["top1"] - columns[1]["top1"]) * columns[0]["videos"] / 100 < 1.5
    assert trail(user.run_dir, "motion") == trail(tmp_path / "local", "motion")


def test_the_scripts_run_inside_an_image(finished, tmp_path):
    """A stand-in for apptainer notes how it was called and runs what it was given; the job itself is real."""
    user, _ = finished
    (tmp_path / "bin").mkdir()
    stand_in = tmp_path / "bin" / "apptainer"
    stand_in.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" >> {tmp_path}/called\n'
        f'while [ "$1" != "{tmp_path}/the image.sif" ]; do shift; done\nshift 2\nexec "{sys.executable}" "$@"\n'
    )
    stand_in.chmod(0o755)
    (tmp_path / "the image.sif").touch()
    shutil.copytree(user.run_dir, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    environment = {
        "RUN_DIR": tmp_path / "run",
        "IMAGE": f"{tmp_path}/the image.sif",
        "BINDS": f"{tmp_path}:/data",
    }
    path = {"PATH": f"{tmp_path}/bin:{user.slurm.environment['PATH']}"}
    job = sbatch(
        user.slurm,
        tmp_path,
        "eval.sh",
        "-N1",
        script_arguments=["--phase", "motion"],
        **environment,
        **path,
    )
    assert user.wait_states(job) == ["COMPLETED"], (tmp_path / "out.txt").read_text()
    called = (tmp_path / "called").read_text().splitlines()
    assert called[:2] == ["exec", "--nv"]
    assert {f"{tmp_path}:/data", str(ROOT), f"{tmp_path}/run"} <= set(called)
    assert called[-2:] == ["--phase", "motion"]
    assert "motion" in json.loads((tmp_path / "run" / "results.json").read_text())["splits"]["1"]
