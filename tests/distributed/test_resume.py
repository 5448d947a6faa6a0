"""Stopped, killed or moved to another number of ranks, a phase ends with the weights of the undisturbed run."""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.launching import (
    command,
    distance,
    finish,
    identical,
    largest_difference,
    metrics,
    norm,
    start,
    start_ranks,
    start_torchrun,
    train,
    weights,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.distributed
FLOAT64 = "training.precision=float64"
# No end in sight.
LONG = "phases.st_resnet.optimise.schedule=[[100000, 0.001]]"
ATTEMPTS = 5
KILLS = 20
CONTINUE = 75


@pytest.fixture(scope="module")
def straight(data_root, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("straight")
    train(data_root, run_dir, "st_resnet", 1, FLOAT64)
    return run_dir


def wait_for_step(ranks, run_dir, step):
    """Until the phase has logged a step."""
    path = run_dir / "phases" / "st_resnet" / "progress.json"

    def is_there():
        assert ranks.returncode is None, f"ended before step {step}: {ranks.output[-2000:]}"
        return path.is_file() and json.loads(path.read_text())["step"] >= step

    wait_until(is_there, lambda: f"step {step}: {ranks.output[-2000:]}")


def pid_of_rank(launcher, rank):
    """The process of one rank under torchrun."""
    pid = launcher.commands[0].pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        environment = b"\0" + Path(f"/proc/{child}/environ").read_bytes()
        if f"\0RANK={rank}\0".encode() in environment:
            return int(child)
    raise AssertionError(f"no rank {rank}")


def disturbed(data_root, folder, step, disturb, start_again, *overrides):
    """A run folder in which training was met at a step by `disturb`, the status, and what it said.

    A machine may be so fast that training ends first: then it is tried again in another folder.
    """
    for attempt in range(ATTEMPTS):
        run_dir = folder / str(attempt)
        ranks = start_again(command(data_root, run_dir, "st_resnet", FLOAT64, *overrides))
        try:
            wait_for_step(ranks, run_dir, step)
            with contextlib.suppress(ProcessLookupError):
                disturb(ranks)
            code = ranks.wait()
        finally:
            ranks.kill()
        if code != 0:
            break
    return run_dir, code, ranks.output


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGTERM"])
def test_a_signal_stops_at_a_step_and_the_rest_is_bit_identical(
    data_root, tmp_path, straight, name
):
    run_dir, code, output = disturbed(
        data_root, tmp_path, 3, lambda ranks: os.kill(ranks.commands[0].pid, getattr(signal, name)),
        lambda words: start_ranks(words, 1), "training.log_every_steps=1",
        "training.checkpoint_every_steps=0",
    )  # fmt: skip
    assert code == CONTINUE, output
    assert f"{name} received" in output
    assert not (run_dir / "phases/st_resnet/done.json").is_file()
    assert "resumes from step" in train(data_root, run_dir, "st_resnet", 1, FLOAT64)
    assert identical(weights(straight), weights(run_dir))
    steps = [row["step"] for row in metrics(run_dir)]
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
    """SIGKILL at random moments, also while it saves: a checkpoint after every step makes that frequent.

    However far it comes, it is then finished a few steps later, and so is the undisturbed run.
    """
    random.seed(11)
    often = [FLOAT64, LONG, "training.log_every_steps=1"]
    every = "training.checkpoint_every_steps=1"
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    reached = 0
    for kill in range(KILLS):
        ranks = start(data_root, killed, "st_resnet", 1, *often, every)
        try:
            if kill % 4:
                wait_for_step(ranks, killed, reached + 1)
                time.sleep(random.uniform(0.0, 0.3))
            else:
                time.sleep(random.uniform(0.0, 3.0))
            assert ranks.returncode is None, ranks.output
        finally:
            ranks.kill()
        reached = metrics(killed)[-1]["step"] if kill else reached
    assert reached > 10, "the kills must fall inside the run"
    end = f"training.max_steps={reached + 5}"
    train(data_root, killed, "st_resnet", 1, *often, every, end)
    train(data_root, straight, "st_resnet", 1, *often, "training.checkpoint_every_steps=0", end)
    assert identical(weights(straight), weights(killed))


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_of_two_killed_ends_the_run_and_it_goes_on(data_root, tmp_path, straight, rank):
    run_dir, code, output = disturbed(
        data_root, tmp_path, 6, lambda ranks: os.kill(pid_of_rank(ranks, rank), signal.SIGKILL),
        lambda words: start_torchrun(words, 2), "training.log_every_steps=1",
        "training.checkpoint_every_steps=2",
    )  # fmt: skip
    assert code != 0, output
    train(data_root, run_dir, "st_resnet", 2, FLOAT64)
    assert largest_difference(weights(straight), weights(run_dir)) < 1e-9


def test_the_wall_clock_stops_it_in_time(data_root, tmp_path):
    """Where starting alone takes longer than the wall time, a longer one is tried."""
    for allowed_seconds in (25, 100, 400):
        end = time.time() + allowed_seconds
        ranks = start(
            data_root, tmp_path / str(allowed_seconds), "st_resnet", 1, LONG,
            env={"HPC_STRES_END_TIME": str(end)},
        )  # fmt: skip
        output = finish(ranks, CONTINUE)
        if time.time() < end:
            break
    assert time.time() < end
    assert "wall time is nearly used up" in output
