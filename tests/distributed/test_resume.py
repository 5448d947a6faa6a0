"""Stopped, killed or moved to another number of ranks, a phase ends with the weights of the undisturbed run."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.launching import (
    distance,
    identical,
    kill_session,
    largest_difference,
    metrics,
    norm,
    start,
    train,
    weights,
)

pytestmark = pytest.mark.distributed
FLOAT64 = "training.precision=float64"
KILLS = 20
CONTINUE = 75


@pytest.fixture(scope="module")
def straight(data_root, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    train(data_root, run_dir, "st_resnet", 1, FLOAT64)
    return run_dir


def wait_for_step(process, run_dir, step, timeout_s=120):
    """Until the phase has logged a step."""
    path = run_dir / "phases" / "st_resnet" / "progress.json"
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if path.is_file() and json.loads(path.read_text())["step"] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step}: {process.stdout.read()[-2000:]}")


def pid_of_rank(process, rank):
    """The process of one rank under torchrun."""
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)
    raise AssertionError(f"no rank {rank}")


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_signal_stops_at_a_step_and_the_rest_is_bit_identical(
    data_root, tmp_path, straight, name
):
    fine = ["training.log_every_steps=1", "training.checkpoint_every_steps=0"]
    process = start(data_root, tmp_path, "st_resnet", 1, FLOAT64, *fine)
    try:
        wait_for_step(process, tmp_path, 3)
        os.kill(process.pid, getattr(signal, name))
        output, _ = process.communicate(timeout=60)
    finally:
        kill_session(process)
    assert process.returncode == CONTINUE, output
    assert f"{name} received" in output
    assert not (tmp_path / "phases/st_resnet/done.json").is_file()
    assert "resumes from step" in train(data_root, tmp_path, "st_resnet", 1, FLOAT64)
    assert identical(weights(straight), weights(tmp_path))
    steps = [row["step"] for row in metrics(tmp_path)]
    assert steps == sorted(set(steps)), "each step stands once in metrics.jsonl"


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_float64_goes_on_over_another_number_of_ranks(data_root, tmp_path, straight, first, second):
    train(data_root, tmp_path, "st_resnet", first, FLOAT64, "training.max_steps=10")
    train(data_root, tmp_path, "st_resnet", second, FLOAT64)
    assert largest_difference(weights(straight), weights(tmp_path)) < 1e-9


def test_float32_goes_on_over_engines_and_zero_stages(data_root, tmp_path):
    train(data_root, tmp_path / "straight", "st_resnet", 1)
    zero1 = ["training.engine=deepspeed", "training.zero_stage=1"]
    train(data_root, tmp_path / "mixed", "st_resnet", 2, *zero1, "training.max_steps=5")
    train(
        data_root,
        tmp_path / "mixed",
        "st_resnet",
        1,
        "training.engine=ddp",
        "training.max_steps=10",
    )
    train(data_root, tmp_path / "mixed", "st_resnet", 2, *zero1, "training.max_steps=15")
    train(data_root, tmp_path / "mixed", "st_resnet", 1, "training.engine=deepspeed")
    straight, mixed = weights(tmp_path / "straight"), weights(tmp_path / "mixed")
    assert distance(straight, mixed) < 1e-4 * norm(straight)


def test_killed_at_random_moments_it_ends_with_the_same_weights(data_root, tmp_path):
    """SIGKILL at random moments, also while it saves: a checkpoint after every step makes that frequent."""
    random.seed(11)
    often = [
        FLOAT64,
        "phases.st_resnet.optimise.schedule=[[120, 0.001]]",
        "training.log_every_steps=1",
    ]
    train(
        data_root,
        tmp_path / "straight",
        "st_resnet",
        1,
        *often,
        "training.checkpoint_every_steps=0",
    )
    often.append("training.checkpoint_every_steps=1")
    reached = 0
    for kill in range(KILLS):
        process = start(data_root, tmp_path / "killed", "st_resnet", 1, *often)
        try:
            if kill % 4:
                wait_for_step(process, tmp_path / "killed", reached + 1)
                time.sleep(random.uniform(0.0, 0.3))
            else:
                time.sleep(random.uniform(0.0, 3.0))
        finally:
            kill_session(process)
        process.communicate()
        reached = metrics(tmp_path / "killed")[-1]["step"] if kill else reached
    assert 10 < reached < 120, "the kills must fall inside the run"
    train(data_root, tmp_path / "killed", "st_resnet", 1, *often)
    assert identical(weights(tmp_path / "straight"), weights(tmp_path / "killed"))


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_of_two_killed_ends_the_run_and_it_goes_on(data_root, tmp_path, straight, rank):
    often = ["training.log_every_steps=1", "training.checkpoint_every_steps=2"]
    process = start(data_root, tmp_path, "st_resnet", 2, FLOAT64, *often)
    try:
        wait_for_step(process, tmp_path, 6)
        os.kill(pid_of_rank(process, rank), signal.SIGKILL)
        process.communicate(timeout=120)
    finally:
        kill_session(process)
    assert process.returncode != 0
    train(data_root, tmp_path, "st_resnet", 2, FLOAT64)
    assert largest_difference(weights(straight), weights(tmp_path)) < 1e-9


def test_the_wall_clock_stops_it_in_time(data_root, tmp_path):
    end = time.time() + 25
    process = start(
        data_root, tmp_path, "st_resnet", 1, "phases.st_resnet.optimise.schedule=[[100000, 0.001]]",
        env={"HPC_STRES_END_TIME": str(end)},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        kill_session(process)
    assert process.returncode == CONTINUE, output
    assert time.time() < end
    assert "wall time is nearly used up" in output
