"""The first steps of somebody's run again, on this machine's ranks, in a folder of its own."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from hpc_stres.config.recipe import Phases, trained_phases
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.pinning import LEVEL

POLL_SECONDS = 0.2
LAST_LINES = 3


def phase_to_repeat(phases: Phases, run_dir: Path, wanted: str | None) -> str:
    """The phase that was named, or the first of the recipe that has metrics."""
    trained = trained_phases(phases)
    if wanted is not None:
        if wanted not in trained:
            raise ConfigError(f"--phase {wanted}: this run trains {', '.join(trained)}")
        return wanted
    begun = [name for name in trained if RunPaths(run_dir).phase(name).metrics.is_file()]
    if not begun:
        raise UserError(f"{run_dir}: no phase has begun to train\nName a run folder with metrics.")
    return begun[0]


def prepare_scratch(run_dir: Path, phase: str, scratch: Path) -> None:
    """A new run folder in which the other phases are the run's own: what this phase starts from."""
    if scratch.exists() and any(scratch.iterdir()):
        raise UserError(f"{scratch}: not empty\nName a new folder: it holds what is trained again.")
    phases = scratch / "phases"
    phases.mkdir(parents=True, exist_ok=True)
    for folder in sorted((run_dir / "phases").iterdir()):
        if folder.name != phase and folder.is_dir():
            (phases / folder.name).symlink_to(folder.resolve(), target_is_directory=True)


def train_again(
    run_dir: Path, phase: str, scratch: Path, steps: int, ranks: int, overrides: list[str], level: dict[str, str]
) -> None:  # fmt: skip
    """Train the first steps of a phase on some ranks of this machine; a UserError
    where one fails."""
    command = [
        sys.executable, "-m", "hpc_stres", "train", "--config", str(RunPaths(run_dir).config), "--phase", phase,
        "--run-dir", str(scratch), "--set", f"training.max_steps={steps}",
    ]  # fmt: skip
    for override in overrides:
        command += ["--set", override]
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": _free_port()}
    with ExitStack() as stack:
        children = []
        for rank in range(ranks):
            places = {**shared, "RANK": rank, "LOCAL_RANK": rank, "HPC_STRES_THREADS": threads}
            env = {**os.environ, "MASTER_ADDR": "127.0.0.1", **_known(level)}
            env |= {name: str(value) for name, value in places.items()}
            log = scratch / f"rank{rank}.log"
            output = stack.enter_context(log.open("wb"))
            child = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(_end, child)
            children.append((rank, log, child))
        _wait(children)


def _wait(children: list[tuple[int, Path, subprocess.Popen[bytes]]]) -> None:
    """Until all ranks are done, or the first fails: the others would wait for it."""
    while any(child.poll() is None for _, _, child in children):
        if any(child.poll() for _, _, child in children):
            break
        time.sleep(POLL_SECONDS)
    for rank, log, child in children:
        if child.poll():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = "\n".join(lines[-LAST_LINES:]) or "it said nothing"
            raise UserError(f"rank {rank} did not train to the end (exit {child.poll()}): {said}")


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        child.terminate()
    child.wait()


def _known(level: dict[str, str]) -> dict[str, str]:
    """The variables that the run was trained with, where it says so."""
    return {name: level[name] for name in LEVEL if " " not in level.get(name, " ")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
