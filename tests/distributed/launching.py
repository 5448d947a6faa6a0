"""Starting training over several processes as a person would, and comparing what comes out."""

import json
import os
import socket
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.conftest import TINY
from tests.forks import Command
from tests.waiting import PATIENCE_SECONDS

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


class Ranks:
    """The processes of one training, or the one launcher that starts them."""

    def __init__(self, commands):
        self.commands = commands

    @property
    def output(self):
        """What all of them have written so far."""
        return "\n".join(command.output for command in self.commands)

    @property
    def returncode(self):
        """The first status that is not 0; None while one of them runs."""
        codes = [command.poll() for command in self.commands]
        return None if None in codes else next((code for code in codes if code), 0)

    def wait(self, timeout=PATIENCE_SECONDS):
        """Until all have ended; returns the status."""
        for command in self.commands:
            command.wait(timeout)
        return self.returncode

    def kill(self):
        """End all of them, and what they started."""
        for command in self.commands:
            command.kill()


def start_ranks(arguments, world, env=None):
    """The same command as `world` ranks, as a launcher starts them."""
    port = free_port()
    ranks = []
    for rank in range(world):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        more = {name: str(value) for name, value in (names | address).items()} if world > 1 else {}
        environment = clean_environment(**more, **(env or {}))
        ranks.append(Command(arguments, environment, merged=True))
    return Ranks(ranks)


def start(data_root, run_dir, phase, world, *overrides, env=None):
    """Start training over `world` processes."""
    return start_ranks(command(data_root, run_dir, phase, *overrides), world, env)


def start_torchrun(arguments, world, env=None):
    """Start a command by torchrun."""
    # A stopped rank leaves with 75; without restarts torchrun passes that on as a failure.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)]
    environment = clean_environment(**(env or {}))
    return Ranks([Command([*torchrun, *arguments], environment, merged=True)])


def finish(ranks, expect=0):
    """Wait for the end; returns the output."""
    try:
        code = ranks.wait()
    finally:
        ranks.kill()
    assert code == expect, ranks.output[-3000:]
    return ranks.output


def train(data_root, run_dir, phase, world, *overrides, expect=0):
    """Train to the end; returns the output."""
    return finish(start(data_root, run_dir, phase, world, *overrides), expect)


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
    finish(start_ranks(["-m", "tests.distributed.train_worker", json.dumps(works)], world))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
