"""What goes wrong in training ends with a few lines that name it, an exit code, and nothing lost."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, TINY, run_python
from tests.distributed.launching import (
    clean_environment,
    command,
    free_port,
    identical,
    metrics,
    train,
    weights,
)
from tests.forks import Command
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.distributed


def run(data_root, run_dir, phase, *overrides, env=None, extra=()):
    words = [*command(data_root, run_dir, phase, *overrides), *extra]
    return Command(words, clean_environment(**(env or {}))).finished()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_rank_and_videos(
    data_root, tmp_path
):
    schedule = "phases.st_resnet.optimise.schedule=[[5, 0.001], [15, 1.0e+30]]"
    result = run(data_root, tmp_path, "st_resnet", schedule, "training.log_every_steps=1")
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert "the loss is not finite at step" in result.stderr
    assert "on rank 0; its videos: v_" in result.stderr
    assert "The last checkpoint is untouched" in lines[-1]
    saved = sorted(path.name for path in (tmp_path / "phases/st_resnet/checkpoints").glob("step*"))
    assert saved == ["step00000005"]


def test_phases_refuse_to_start_without_their_parents(data_root, tmp_path):
    result = run(data_root, tmp_path, "st_resnet_star")
    assert result.returncode == 1
    assert "phase st_resnet is not finished\nTrain it first: --phase st_resnet" in result.stderr
    train(data_root, tmp_path, "st_resnet", 1, "training.max_steps=2")
    path = tmp_path / "phases/st_resnet/weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(8))
    result = run(data_root, tmp_path, "st_resnet_star")
    assert "these are not the weights that phase st_resnet finished with" in result.stderr
    path.write_bytes(whole)
    output = train(data_root, tmp_path, "st_resnet_star", 1, "training.max_steps=2")
    assert "starts from st_resnet: " in output


def test_a_checkpoint_of_another_config_is_refused_and_may_be_allowed(data_root, tmp_path):
    stop = "training.max_steps=5"
    train(data_root, tmp_path, "motion", 1, stop)
    result = run(data_root, tmp_path, "motion", "training.weight_decay=0.1")
    assert result.returncode == 1
    assert "training.weight_decay: 0.0005 there, 0.1 now" in result.stderr
    allow = ("--allow-config-change", "training.weight_decay")
    assert (
        run(data_root, tmp_path, "motion", "training.weight_decay=0.1", extra=allow).returncode == 0
    )


def test_a_finished_phase_is_not_trained_again(data_root, tmp_path):
    train(data_root, tmp_path, "motion", 1, "training.max_steps=5")
    before = weights(tmp_path, "motion")
    output = train(data_root, tmp_path, "motion", 1, "training.max_steps=5")
    assert "done already" in output
    assert identical(before, weights(tmp_path, "motion"))
    done = json.loads((tmp_path / "phases/motion/done.json").read_text())
    assert done["step"] == 5
    assert done["requests"] == metrics(tmp_path, "motion")[-1]["requests"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--phase", "nothing", "--run-dir", "x"], 2, "no phase 'nothing'"),
        (["train", "--phase", "motion"], 2, "--run-dir"),
        (
            ["train", "--phase", "motion", "--run-dir", "x", "--set", "training.engine=mpi"],
            2,
            "deepspeed, ddp",
        ),
        (["train", "--phase", "motion", "--run-dir", "x", "--config", "none.yaml"], 2, "none.yaml"),
        (["evaluate", "--run-dir", "nowhere"], 2, "no config.yaml"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_command_lines_exit_2(tmp_path, arguments, code, words):
    if arguments[0] == "train" and "--config" not in arguments:
        arguments = [*arguments, "--config", str(TINY)]
    result = run_python("-m", "hpc_stres", *arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_imagenet_weights_are_loaded_and_what_was_done_is_said(data_root, tmp_path):
    from hpc_stres.models import build_model
    from hpc_stres.models.weights import save_state, to_torchvision

    plain = to_torchvision(
        build_model("appearance", 1000, stages=(2, 2), width=4).state_dict(), "appearance"
    )
    save_state(plain, tmp_path / "imagenet.safetensors")
    extra = ("--weights", str(tmp_path / "imagenet.safetensors"))
    result = run(data_root, tmp_path / "run", "motion", "training.max_steps=1", extra=extra)
    assert result.returncode == 0, result.stderr
    assert "imagenet.safetensors: " in result.stdout
    assert "2 replaced (motion.fc.weight, motion.fc.bias)" in result.stdout
    assert "float32 on cpu" in result.stdout
    result = run(data_root, tmp_path / "none", "motion", extra=("--weights", "none.pth"))
    assert result.returncode == 1
    assert "no such weights file" in result.stderr


def test_an_unprepared_store_is_one_clear_error(tmp_path):
    result = run(tmp_path, tmp_path / "run", "motion")
    assert result.returncode == 1
    assert "no prepared store here" in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3


def test_half_set_and_lonely_environments_are_refused(data_root, tmp_path):
    result = run(data_root, tmp_path, "motion", env={"RANK": "0"})
    assert result.returncode == 2
    assert "half-set environment" in result.stderr
    slurm = {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "1",
        "SLURM_NTASKS": "4",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "0",
    }
    result = run(
        data_root,
        tmp_path,
        "motion",
        env={**slurm, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    )
    assert result.returncode == 2
    assert "SLURM_NTASKS is 4" in result.stderr


def test_mpirun_starts_training_as_well(data_root, tmp_path):
    import shutil

    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun on this machine")
    train(data_root, tmp_path / "one", "motion", 1, "training.precision=float64")
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable]
    result = subprocess.run(
        [*mpirun, *command(data_root, tmp_path / "two", "motion", "training.precision=float64")],
        capture_output=True, text=True, cwd=ROOT, env=clean_environment(),
        timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert metrics(tmp_path / "two", "motion")[-1]["world_size"] == 2
    one, two = (metrics(tmp_path / name, "motion")[-1]["requests"] for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_one_rank_under_a_launcher_starts_like_two(data_root, tmp_path, launcher):
    import shutil

    if launcher == "mpirun" and shutil.which("mpirun") is None:
        pytest.skip("no mpirun on this machine")
    mpirun = ["mpirun", "--allow-run-as-root", "-n", "1", sys.executable]
    torchrun = ["torch.distributed.run", "--nproc_per_node", "1", "--master_port", str(free_port())]
    start = mpirun if launcher == "mpirun" else [sys.executable, "-m", *torchrun]
    # Where the rank waits for nobody's port, half a minute is the whole start.
    brief = ["training.max_steps=1", "training.start_timeout_minutes=0.5"]
    result = subprocess.run(
        [*start, *command(data_root, tmp_path, "motion", *brief)],
        capture_output=True, text=True, cwd=ROOT, env=clean_environment(),
        timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert metrics(tmp_path, "motion")[-1]["world_size"] == 1


def test_options_that_only_change_how_are_free_of_effect(data_root, tmp_path):
    """Activation checkpointing, contiguous activations and more prefetching give the same float64 weights."""
    from tests.distributed.launching import largest_difference

    base = ["training.precision=float64", "training.max_steps=5"]
    train(data_root, tmp_path / "plain", "st_resnet", 1, *base)
    options = [
        "training.activation_checkpointing=true",
        "training.channels_last=false",
        "training.prefetch=4",
    ]
    train(
        data_root,
        tmp_path / "other",
        "st_resnet",
        1,
        *base,
        *options,
        "training.deterministic=true",
    )
    assert largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "other")) < 1e-9
    assert os.path.isdir(tmp_path / "other/phases/st_resnet/events")


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_the_classifier_is_trained_alone_at_first(data_root, tmp_path, engine):
    import torch

    base = [
        "training.precision=float64",
        f"training.engine={engine}",
        "phases.motion.optimise.classifier_only_steps=3",
    ]
    train(data_root, tmp_path, "motion", 1, *base, "training.max_steps=1")
    one = weights(tmp_path, "motion")
    train(data_root, tmp_path, "motion", 1, *base, "training.max_steps=3")
    three = weights(tmp_path, "motion")
    for name, value in one.items():
        learned = "running" not in name and "tracked" not in name
        assert torch.equal(value, three[name]) == (learned and ".fc." not in name), name
    train(data_root, tmp_path, "motion", 1, *base, "training.max_steps=4")
    moved = weights(tmp_path, "motion")["motion.conv1.weight"] - three["motion.conv1.weight"]
    straight = tmp_path / "straight"
    train(data_root, straight, "motion", 1, *base, "training.max_steps=4")
    assert moved.abs().max() > 0
    assert identical(weights(straight, "motion"), weights(tmp_path, "motion"))


def test_bfloat16_trains_with_float32_weights(data_root, tmp_path):
    import torch

    train(
        data_root,
        tmp_path,
        "st_resnet",
        1,
        "training.precision=bfloat16",
        "training.engine=deepspeed",
    )
    found = weights(tmp_path)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in found.values())
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
