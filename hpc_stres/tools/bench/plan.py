"""What `hpc-stres plan` predicts against real runs on one and two processes of the
demonstration's networks."""

import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from hpc_stres.config.loading import CONFIGS, dump, load_config
from hpc_stres.config.schema import Config
from hpc_stres.phases.train import train_phase
from hpc_stres.run.paths import read_json_lines, write_text
from hpc_stres.tools.bench.figures import Figure

# Steps of a real run, and the lines of its log that are left out because the first
# steps are slower.
STEPS, LOG_EVERY, WARM_UP = 60, 10, 1
PHASES = ("motion", "st_resnet")
# How far a prediction may be from the real run, by the number of processes.
TOLERANCE = {1: 0.20, 2: 0.35}
WIRE_RANKS, WIRE_BYTES, WIRE_TOLERANCE = (1, 2, 4), 4 << 20, 0.35


def bench_plan(threads: int, repeats: int) -> list[Figure]:
    """Predicted over real seconds a step, and the all-reduce's formula against other
    numbers of ranks."""
    from hpc_stres.prepare.run import prepare

    with tempfile.TemporaryDirectory() as folder, _threads_a_rank(threads):
        prepare(_config(folder, 1), quiet=True)
        figures = []
        for ranks in (1, 2):
            for name in PHASES:
                figures += _against_a_run(_config(folder, ranks), name, ranks, Path(folder))
    return [*figures, *_wire_figures()]


@contextmanager
def _threads_a_rank(threads: int) -> Iterator[None]:
    before = os.environ.get("HPC_STRES_THREADS")
    os.environ["HPC_STRES_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.pop("HPC_STRES_THREADS")
        if before is not None:
            os.environ["HPC_STRES_THREADS"] = before


def _against_a_run(config: Config, name: str, ranks: int, folder: Path) -> list[Figure]:
    """Measured before and after the run, so that a machine that grows busier meanwhile is
    seen on both sides."""
    from hpc_stres.tools import planner
    from hpc_stres.tools.measure import measure

    def predicted_s() -> float:
        speeds = measure(config, [name], network_gb_per_s=1.0)
        return planner.predict(config, name, 1, speeds).step_s

    before = predicted_s()
    real = _real_step_s(config, name, folder / f"run-{name}-{ranks}", ranks)
    predicted = statistics.mean((before, predicted_s()))
    what = f"{name}, {ranks} {'ranks' if ranks > 1 else 'rank'}"
    return [
        Figure(
            "plan",
            f"{what}: predicted",
            predicted,
            "s/step",
            spread=abs(predicted - before) / predicted,
        ),
        Figure("plan", f"{what}: real", real, "s/step"),
        within(f"{what}: predicted over real", predicted / real, TOLERANCE[ranks]),
    ]


def within(what: str, share: float, allowed: float) -> Figure:
    """A prediction over what it predicted, and whether that is near enough."""
    verdict = "met" if 1 - allowed <= share <= 1 + allowed else "MISSED"
    return Figure("plan", what, share, "x", f"{1 - allowed:.2g} to {1 + allowed:.2g} x", verdict)


def _config(folder: str, ranks: int) -> Config:
    overrides = [
        f"data.root={folder}",
        f"cluster.ranks_per_node={ranks}",
        f"training.max_steps={STEPS}",
    ]
    overrides += [
        "training.engine=ddp",
        f"training.log_every_steps={LOG_EVERY}",
        "phases.st_resnet.starts_from=[]",
    ]
    return load_config(CONFIGS / "binding.yaml", [*overrides, "training.checkpoint_every_steps=0"])


def _real_step_s(config: Config, name: str, run_dir: Path, ranks: int) -> float:
    """Median seconds of a step of a real run, by its metrics."""
    write_text(run_dir / "config.yaml", dump(config))
    words = ["-m", "hpc_stres", "train", "--config", str(run_dir / "config.yaml"), "--phase", name]
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        if ranks > 1
        else []
    )
    command = [sys.executable, *launcher, *words, "--run-dir", str(run_dir)]
    subprocess.run(command, check=True, capture_output=True)
    rows = read_json_lines(run_dir / "phases" / name / "metrics.jsonl")[WARM_UP:]
    batch = train_phase(config, name).optimise.global_batch
    return statistics.median(batch / row["videos_per_s"] for row in rows)


# -- the all-reduce --------------------------------------------------------------------------------


def _wire_figures() -> list[Figure]:
    """Latency and bandwidth as measured with so many ranks tell what a message of another
    size takes there. One rank alone has nothing to send: by the formula it takes no time."""
    figures = []
    for ranks in WIRE_RANKS:
        predicted, real = _on_ranks(ranks)
        what = f"all-reduce of 4 MiB, {ranks} {'ranks' if ranks > 1 else 'rank'}"
        figures += [
            Figure("plan", f"{what}: by the formula", 1e3 * predicted, "ms"),
            Figure("plan", f"{what}: real", 1e3 * real, "ms"),
        ]
        if ranks > 1:
            figures.append(within(f"{what}: formula over real", predicted / real, WIRE_TOLERANCE))
    return figures


def _on_ranks(ranks: int) -> tuple[float, float]:
    from hpc_stres.tools.measure import free_port

    port = free_port()
    with ProcessPoolExecutor(ranks, get_context("spawn")) as pool:
        per_rank = list(pool.map(_wire_of_rank, [(rank, ranks, port) for rank in range(ranks)]))
    return per_rank[0][0], max(real for _, real in per_rank)


def _wire_of_rank(place: tuple[int, int, int]) -> tuple[float, float]:
    """The formula's seconds and the real ones of one message, on one rank."""
    import torch
    import torch.distributed as dist

    from hpc_stres.tools.measure import joined, measure_wire, turns
    from hpc_stres.tools.planner import Wire

    ranks = place[1]
    with joined(*place) as device:
        wire = measure_wire(device) if ranks > 1 else Wire(0.0, math.inf)
        data = torch.zeros(WIRE_BYTES // 4, device=device)
        (real,) = turns(device, lambda: dist.all_reduce(data))
    return wire.all_reduce_s(ranks, WIRE_BYTES), real
