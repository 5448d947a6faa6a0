"""What survival costs: from a kill to the next new step, the stall of a checkpoint, and the
watching of every step."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.run.paths import PhasePaths, RunPaths, read_json_lines
from hpc_stres.tools.bench.figures import Figure, judged

RANKS, PHASE = 4, "motion"
RESTART_S, STALL_PERCENT, WATCH_PERCENT = 60.0, 1.0, 0.5
PATIENCE_S, POLL_S = 300.0, 0.05
WATCHED_STEPS, LAP_STEPS, GATHERS = 2000, 10, 50
# What lies between the kill and the next new step, in order; seconds of the first rank.
PARTS = (
    "an interpreter starts",
    "imports",
    "the checkpoint is read",
    "steps until a new one",
)
# A rank as `hpc-stres train` is, which says when it was there and when it had imported what is
# heavy. The clock is the machine's, not the process's.
RANK = """
import sys, time
there = time.monotonic()
import hpc_stres.training.phase
print("stamps", there, time.monotonic(), flush=True)
from hpc_stres.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def bench_restart(threads: int, repeats: int) -> list[Figure]:
    """Four CPU ranks of the demonstration, killed and started again; a checkpoint of the published
    size; the watch."""
    with tempfile.TemporaryDirectory() as folder:
        parts, step_s = _kill_and_resume(Path(folder))
        stall = _checkpoint_stall(Path(folder))
        watch = _watch_seconds(Path(folder)) + _gather_seconds() / LAP_STEPS
    minutes = load_config(CONFIGS / "ucf101.yaml").training.checkpoint_every_minutes
    return [
        judged(
            Figure("restart", f"{RANKS} ranks killed: to the next new step", sum(parts), "s"),
            RESTART_S,
        ),
        *(
            Figure("restart", f"of these: {what}", seconds, "s")
            for what, seconds in zip(PARTS, parts, strict=True)
        ),
        Figure("restart", "a checkpoint of ST-ResNet-50: training stands still", stall, "s"),
        judged(
            Figure(
                "restart",
                f"the same, of the {minutes:g} minutes between two",
                100 * stall / (60 * minutes),
                "%",
            ),
            STALL_PERCENT,
        ),
        Figure("restart", "watching a step: times, stacks, ranks side by side", 1e6 * watch, "us"),
        judged(
            Figure(
                "restart", "the same, of a step of the demonstration", 100 * watch / step_s, "%"
            ),
            WATCH_PERCENT,
        ),
    ]


def _kill_and_resume(root: Path) -> tuple[list[float], float]:
    """Seconds of each part from the kill to a step that was not done before, and the median
    seconds of a step."""
    settings = ["--config", str(CONFIGS / "binding.yaml")]
    for one in (
        f"data.root={root / 'data'}", "data.binding.train_videos=32", "data.binding.test_videos=8",
        "training.checkpoint_every_steps=5", "training.log_every_steps=1", "training.max_steps=100000",
        f"phases.{PHASE}.optimise.schedule=[[100000, 0.001]]",
    ):  # fmt: skip
        settings += ["--set", one]
    subprocess.run(
        [sys.executable, "-m", "hpc_stres", "prepare", *settings], check=True, capture_output=True
    )
    paths = RunPaths(root / "run").phase(PHASE)
    words = [sys.executable, "-c", RANK, "train", *settings]
    words += ["--phase", PHASE, "--run-dir", str(root / "run")]
    _until(words, paths, 12, root / "first.log")
    killed = time.monotonic()
    rows = read_json_lines(paths.metrics)
    resumed = _until(words, paths, 1 + rows[-1]["step"], root / "second.log")
    ended = time.monotonic()
    there, imported = _stamps(root / "second.log")
    times = sorted(row["seconds"] for row in rows[2:])
    marks = [killed, there, imported, resumed, ended]
    parts = [after - before for before, after in itertools.pairwise(marks)]
    return parts, float(times[len(times) // 2])


def _stamps(log: Path) -> tuple[float, float]:
    """When the first rank was there, and when it had its imports."""
    line = next(row for row in log.read_text().splitlines() if row.startswith("stamps "))
    _, there, imported = line.split()
    return float(there), float(imported)


def _until(words: list[str], paths: PhasePaths, step: int, log: Path) -> float:
    """Train until a step has been logged, and kill all ranks at once then; the time at which the
    first rank said that it resumes."""
    ranks = _start_ranks(words, log)
    deadline, resumed = time.monotonic() + PATIENCE_S, 0.0
    try:
        while time.monotonic() < deadline and all(rank.poll() is None for rank in ranks):
            if not resumed and f"{PHASE}: resumes from step" in log.read_text():
                resumed = time.monotonic()
            try:
                rows = read_json_lines(paths.metrics)
            except json.JSONDecodeError:
                rows = []  # it is being cut to what the checkpoint knows
            if rows and rows[-1]["step"] >= step:
                return resumed
            time.sleep(POLL_S)
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.wait()
    raise RuntimeError(f"no step {step} within {PATIENCE_S:.0f} s: {log.read_text()[-500:]}")


def _start_ranks(words: list[str], log: Path) -> list["subprocess.Popen[bytes]"]:
    """All ranks of a training; the first one's words go into a file."""
    from hpc_stres.tools.measure import free_port

    port = free_port()
    ranks: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as stream:
        for number in range(RANKS):
            names = {
                "RANK": number, "WORLD_SIZE": RANKS, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": RANKS,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "HPC_STRES_THREADS": 1,
            }  # fmt: skip
            environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
            out = stream if number == 0 else subprocess.DEVNULL
            ranks.append(
                subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment)
            )
    return ranks


def _checkpoint_stall(root: Path) -> float:
    """Seconds for which a save of ST-ResNet-50's weights and momentum holds training up."""
    from hpc_stres.models import build_model
    from hpc_stres.training.checkpoint import Writer

    model = build_model("st_resnet", 101)
    state = model.state_dict()
    momentum = {name: value.detach().clone() for name, value in model.named_parameters()}
    writer = Writer(PhasePaths(root / "checkpoint"))
    meta: dict[str, Any] = {"phase": "st_resnet", "config": {}, "trail": "", "loss": None}
    seconds = []
    for step in range(3):
        started = time.perf_counter()
        writer.save(step, state, momentum, meta)
        seconds.append(time.perf_counter() - started)
        writer.wait()
    return max(seconds)


def _watch_seconds(root: Path) -> float:
    """What the instruments take of one step on one rank, beside the exchange with the others."""
    import torch
    from torch import nn

    from hpc_stres.training.instruments import Instruments

    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer)
    layout = SimpleNamespace(shares=[[SimpleNamespace(positions=(0, 1))]])
    trainer = SimpleNamespace(
        name=PHASE, layout=layout, world=SimpleNamespace(rank=0, size=1, is_first=True), model=model,
        device=torch.device("cpu"), control=None, paths=PhasePaths(root / "watched"), run=RunPaths(root),
        config=load_config(CONFIGS / "binding.yaml"),
    )  # fmt: skip
    with Instruments(trainer) as clock:
        item = iter([None] * (2 * WATCHED_STEPS))

        def steps(count: int) -> float:
            started = time.thread_time()
            for number in range(count):
                clock.waiting(item)
                clock.began()
                clock.forward_done()
                clock.rank_clock._note_gradient(layer.weight)
                clock.backward_done(True)
                clock.began()
                clock.step()
                if number % LAP_STEPS == 0:
                    clock.times(LAP_STEPS)
            return time.thread_time() - started

        steps(WATCHED_STEPS // 10)
        return steps(WATCHED_STEPS) / WATCHED_STEPS


def _gather_seconds() -> float:
    """One exchange of times between two ranks."""
    from hpc_stres.tools.measure import free_port

    port = free_port()
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        return max(pool.map(_gather_of_rank, [(rank, 2, port) for rank in range(2)]))


def _gather_of_rank(place: tuple[int, int, int]) -> float:
    from hpc_stres.tools.measure import joined
    from hpc_stres.training import timing

    lap = timing.Lap((0.0,) * len(timing.PARTS), 1.0, 1.0)
    with joined(*place):
        timing.gather(lap, None)
        started = time.perf_counter()
        for _ in range(GATHERS):
            timing.gather(lap, None)
        return (time.perf_counter() - started) / GATHERS
