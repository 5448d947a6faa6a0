"""The whole chain on four nodes of a real Slurm, compared with the same config on one process."""

import json

import pytest

from tests.conftest import TINY, run_python

PHASES = ("motion", "appearance", "st_resnet", "st_resnet_star")


def trail(run_dir, phase):
    lines = (run_dir / "phases" / phase / "metrics.jsonl").read_text().splitlines()
    return [(json.loads(line)["step"], json.loads(line)["requests"]) for line in lines]


def test_four_nodes_see_and_find_what_one_process_does(user, data_root, tmp_path):
    settings = {"training__precision": "float64"}
    output = user.submit(**settings)
    assert "watch: python launch/status.py" in output
    jobs = user.jobs()
    assert list(jobs) == [*PHASES, "evaluate"]
    local = tmp_path / "local"
    words = ["--config", TINY, "--cluster", "local", "--run-dir", local]
    for key, value in {"data.root": data_root, "training.norm_group": 5, "training.precision": "float64"}.items():
        words += ["--set", f"{key}={value}"]
    alone = run_python("launch/submit.py", *words)
    assert alone.returncode == 0, alone.stderr
    states = user.wait_states(*(number for numbers in jobs.values() for number in numbers))
    assert set(states) == {"COMPLETED"}, [user.logs(name)[-3000:] for name in jobs]
    for phase in PHASES:
        assert trail(user.run_dir, phase) == trail(local, phase)
        rows = [json.loads(x) for x in (user.run_dir / "phases" / phase / "metrics.jsonl").read_text().splitlines()]
        assert {row["world_size"] for row in rows} == {4}
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (user.run_dir, local))
    assert ours == theirs
    assert_run_folder_is_complete(user)
    status = user.status()
    assert status.count(" done ") == 5, status
    assert "every phase is done; nothing to submit" in user.submit(**settings)


def assert_run_folder_is_complete(user):
    for name in ("config.yaml", "provenance.json", "code.diff", "jobs.json", "preflight.json", "report.html"):
        assert (user.run_dir / name).is_file(), name
    provenance = json.loads((user.run_dir / "provenance.json").read_text())
    assert len(provenance["commit"]) == 40
    assert provenance["packages"]["torch"]
    logs = user.run_dir / "logs" / "st_resnet"
    assert len(list(logs.glob("*_log.out"))) == 4
    assert [path.read_text().startswith("#!/bin/bash") for path in logs.glob("*_submission.sh")] == [True]
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
    import subprocess

    environment = user.slurm.environment
    both = [
        subprocess.Popen(
            user.command(phase="motion"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=TINY.parent.parent,
        )
        for _ in range(times)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0] * times, outputs
    assert sum("in the queue already: job" in output for output in outputs) == times - 1, outputs
    assert len(user.slurm.queue()) == 2
