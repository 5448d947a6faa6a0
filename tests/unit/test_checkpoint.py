"""Checkpoints: whole or not there; damage is named and the one before is taken; other experiments are refused."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpc_stres.config.loading import load_config, plain
from hpc_stres.errors import UserError
from hpc_stres.run.experiment import FREE_KEYS, refuse_other_config
from hpc_stres.run.paths import PhasePaths, atomic_path, read_json_lines, write_json
from hpc_stres.run.signals import StopFlag
from hpc_stres.training import checkpoint
from tests.conftest import ROOT, TINY


@pytest.fixture
def paths(tmp_path):
    return PhasePaths(tmp_path / "phases" / "motion")


def save(paths, step, loss=1.0):
    weights = {"a": torch.full((4,), float(step)), "b": torch.tensor(step)}
    checkpoint.save(paths, step, weights, {"a": torch.zeros(4)}, {"phase": "motion", "loss": loss})


def steps(paths):
    return sorted(int(path.name[4:]) for path in paths.checkpoints.glob("step*"))


def test_the_newest_is_read_back_whole(paths):
    assert checkpoint.newest(paths) is None
    for step in (5, 10):
        save(paths, step)
    found = checkpoint.newest(paths)
    assert found.step == 10
    assert torch.equal(found.weights["a"], torch.full((4,), 10.0))
    assert paths.latest.read_text().strip() == "step00000010"


def test_the_last_two_and_the_best_are_kept(paths):
    for step, loss in ((1, 3.0), (2, 0.5), (3, 2.0), (4, 1.5), (5, 1.0)):
        save(paths, step, loss)
    assert steps(paths) == [2, 4, 5]


@pytest.mark.parametrize("name", ["weights.safetensors", "momentum.safetensors", "meta.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(paths, capsys, name, how):
    save(paths, 1)
    save(paths, 2)
    victim = paths.checkpoint(2) / name
    data = bytearray(victim.read_bytes())
    if how == "remove":
        victim.unlink()
    elif how == "cut":
        victim.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 0x02
        victim.write_bytes(data)
    assert checkpoint.newest(paths).step == 1
    assert "step00000002" in capsys.readouterr().err


def test_leftovers_of_a_killed_save_are_cleaned(paths):
    save(paths, 1)
    leftover = paths.checkpoints / ".step00000002.1.tmp"
    leftover.mkdir()
    (leftover / "weights.safetensors").write_bytes(b"half")
    save(paths, 3)
    assert not leftover.exists()
    assert steps(paths) == [1, 3]


FULL_DISK = """
import resource, sys
from pathlib import Path
import torch
from hpc_stres.errors import UserError
from hpc_stres.run.paths import PhasePaths
from hpc_stres.training import checkpoint
paths = PhasePaths(Path(sys.argv[1]))
checkpoint.save(paths, 1, {"a": torch.zeros(10)}, {}, {"loss": 1.0})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save(paths, 2, {"a": torch.zeros(100000)}, {}, {"loss": 1.0})
except UserError as error:
    print(error)
"""


def test_when_a_write_fails_the_old_one_survives_and_the_message_says_so(paths):
    assert resource.RLIMIT_FSIZE is not None
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, paths.root],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert "step00000002: the checkpoint could not be written: File too large" in result.stdout, (
        result.stderr
    )
    assert "The checkpoints before it are untouched" in result.stdout
    assert steps(paths) == [1]
    assert checkpoint.newest(paths).step == 1
    assert not list(paths.checkpoints.glob(".*"))


def test_another_experiment_is_refused_with_the_difference():
    config = plain(load_config(TINY))
    refuse_other_config(
        config,
        plain(load_config(TINY, ["training.engine=deepspeed", "cluster.nodes=4"])),
        FREE_KEYS,
    )
    for override, shown in (
        ("seed=8", "seed: 7 there, 8 now"),
        ("phases.motion.optimise.norm_group=3", "phases.motion.optimise.norm_group"),
        ("training.precision=float64", "training.precision: 'float32' there"),
    ):
        other = plain(load_config(TINY, [override]))
        with pytest.raises(UserError, match=shown) as caught:
            refuse_other_config(config, other, FREE_KEYS)
        assert "--allow-config-change" in str(caught.value)
        refuse_other_config(config, other, (*FREE_KEYS, override.split("=")[0]))


def test_atomic_files_are_old_or_new(tmp_path):
    path = tmp_path / "sub" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text(f"half {1 // 0}")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_torn_last_line_is_left_out_and_other_damage_is_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"ste\n{"step": 2}\n')
    with pytest.raises(json.JSONDecodeError):
        read_json_lines(path)


def test_the_clock_decides_before_the_wall(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    flag = StopFlag({"SLURM_JOB_END_TIME": "1100"})
    flag.step_took(20.0)
    flag.save_s = 10.0
    assert not flag.wanted()
    now[0] = 1056.0
    assert flag.wanted()
    assert "wall time" in flag.reason()
    assert not StopFlag({}).wanted()


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What is synced and renamed, in order, by the name of the file."""
    made, names = [], {}
    sync, replace, rename, opened = os.fsync, os.replace, Path.rename, os.open

    def open_noted(path, flags, *more, **options):
        descriptor = opened(path, flags, *more, **options)
        names[descriptor] = Path(path).name
        return descriptor

    def sync_noted(descriptor):
        made.append(("sync", names.get(descriptor, "?")))
        sync(descriptor)

    def replace_noted(source, target):
        made.append(("rename", Path(target).name))
        replace(source, target)

    def rename_noted(source, target):
        made.append(("rename", Path(target).name))
        return rename(source, target)

    monkeypatch.setattr(os, "open", open_noted)
    monkeypatch.setattr(os, "fsync", sync_noted)
    monkeypatch.setattr(os, "replace", replace_noted)
    monkeypatch.setattr(Path, "rename", rename_noted)
    return made


def test_a_file_is_on_the_disk_before_its_name_and_the_name_before_the_call_returns(
    tmp_path, calls
):
    write_json(tmp_path / "folder" / "file.json", {"a": 1})
    (first, temporary), *rest = calls
    assert (first, temporary.startswith(".file.json.")) == ("sync", True)
    assert rest == [("rename", "file.json"), ("sync", "folder")]


def test_a_checkpoint_is_on_the_disk_before_anything_points_to_it(paths, calls):
    save(paths, 1)
    names = [
        ("sync" if what == "sync" else "name", name.split(".json.")[0]) for what, name in calls
    ]
    where = {name: number for number, (what, name) in enumerate(names) if what == "name"}
    for file in ("weights.safetensors", "momentum.safetensors", "meta.json"):
        before = names[: where[file]]
        assert any(what == "sync" and file.split(".")[0] in name for what, name in before), file
        assert where[file] < where["step00000001"]
    assert where["step00000001"] < where["latest"]
    assert ("sync", "checkpoints") in names[where["latest"] :], (
        "both new names are on the disk at the end"
    )
