"""Starting training over several processes as a person would, and comparing what comes out."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TINY

STEPS = 20


def command(data_root, run_dir, phase, *overrides, config=TINY):
    arguments = [
        "-m",
        "hpc_stres",
        "train",
        "--config",
        config,
        "--phase",
        phase,
        "--run-dir",
        run_dir,
    ]
    for override in (f"data.root={data_root}", *overrides):
        arguments += ["--set", override]
    return [str(argument) for argument in arguments]


def clean_environment(**extra):
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    return {**env, "HPC_STRES_THREADS": "1", "OMP_NUM_THREADS": "1", **extra}


def start(data_root, run_dir, phase, world, *overrides, env=None):
    """Start training over `world` processes; returns the process of the launcher, in a session of its own."""
    arguments = command(data_root, run_dir, phase, *overrides)
    if world > 1:
        # A stopped rank leaves with 75; without restarts torchrun passes that on as a failure.
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
        arguments = [*torchrun, *arguments]
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=clean_environment(**(env or {})), start_new_session=True,
    )  # fmt: skip


def train(data_root, run_dir, phase, world, *overrides, expect=0, timeout=240):
    """Train to the end; returns the output."""
    process = start(data_root, run_dir, phase, world, *overrides)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        kill_session(process)
    assert process.returncode == expect, output[-3000:]
    return output


def train_together(data_root, world, trainings):
    """Train several times over the same `world` processes; a training is (phase, run folder,
    overrides).

    The last may have a fourth part: what each rank is refused with.
    """
    works = []
    for phase, run_dir, overrides, *refusals in trainings:
        place = {"data_root": str(data_root), "run_dir": str(run_dir), "port": free_port()}
        works.append(
            {
                **place,
                "phase": phase,
                "overrides": list(overrides),
                **({"refusals": refusals[0]} if refusals else {}),
            }
        )
    ranks = []
    for rank in range(world):
        names = {
            "RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": world,
            "MASTER_PORT": 1,
        }
        env = clean_environment(
            MASTER_ADDR="127.0.0.1", **{name: str(value) for name, value in names.items()}
        )
        command = [sys.executable, "-m", "tests.distributed.train_worker", json.dumps(works)]
        ranks.append(
            subprocess.Popen(
                command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )
        )  # fmt: skip
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in ranks:
            kill_session(process)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def kill_session(process):
    """End a launcher and every process that it started; torchrun's workers have sessions of their own."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(family, timeout=10)


def weights(run_dir, phase="st_resnet"):
    return load_file(Path(run_dir) / "phases" / phase / "weights.safetensors")


def metrics(run_dir, phase="st_resnet"):
    path = Path(run_dir) / "phases" / phase / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def largest_difference(one, two):
    """Largest relative difference over all tensors, each against its own largest value."""
    assert one.keys() == two.keys()
    found = 0.0
    for name in one:
        a, b = one[name].double(), two[name].double()
        scale = float(a.abs().max()) or 1.0
        found = max(found, float((a - b).abs().max()) / scale)
    return found


def norm(state):
    return (
        sum(
            float(t.double().square().sum())
            for name, t in state.items()
            if not name.endswith("tracked")
        )
        ** 0.5
    )


def distance(one, two):
    return norm({name: one[name].double() - two[name].double() for name in one})


def identical(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
