"""Measurements that take whole processes: the memory of a test pass, and the plan against real runs."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hpc_stres.config.loading import CONFIGS, dump, load_config
from hpc_stres.config.schema import Config
from hpc_stres.run.paths import read_json_lines, write_text
from hpc_stres.tools.bench.parts import HEIGHT, WIDTH, Figure, ratio

CHUNKS = 25
# Steps of a real run, and the lines of its log that are left out because the first steps are slower.
STEPS, WARM_UP = 40, 1
PLANNED_PHASES = ("motion", "st_resnet")


def bench_evaluate(threads: int) -> list[Figure]:
    """Peak memory of one pass of 25 and of 50 chunks through ST-ResNet*, above what the process had before."""
    figures = []
    for chunks in (CHUNKS, 2 * CHUNKS):
        code = f"from hpc_stres.tools.bench.runs import pass_memory_mib as f; print(f({chunks}, {threads}))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peak = float(run.stdout.split()[-1])
        figures.append(Figure("evaluate", f"peak of a pass, {chunks} chunks of {WIDTH}x{HEIGHT}", peak, "MiB"))
    growth = figures[1].value / figures[0].value
    return [*figures, ratio("evaluate", "50 chunks over 25 chunks (2 is linear)", growth)]


def pass_memory_mib(chunks: int, threads: int) -> float:
    """Growth of this process's peak memory while one clip goes through ST-ResNet* of depth 50."""
    import torch

    from hpc_stres.models import build_model

    torch.set_num_threads(threads)
    model = build_model("st_resnet_star", 101, 50).eval()
    rgb, flow = torch.randn(1, chunks, 3, HEIGHT, WIDTH), torch.randn(1, chunks, 20, HEIGHT, WIDTH)
    before = peak_kib()
    with torch.no_grad():
        model(rgb, flow)
    return (peak_kib() - before) / 1024


def peak_kib() -> int:
    """This program's own peak: getrusage would count what the process had before it became this program."""
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM")]
    return int(line.split()[1])


def bench_plan(threads: int) -> list[Figure]:
    """Predicted over real seconds a step, on one and two processes of the demonstration's networks."""
    from hpc_stres.prepare.run import prepare
    from hpc_stres.tools import planner
    from hpc_stres.tools.measure import measure

    os.environ["HPC_STRES_THREADS"] = str(threads)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        config = _plan_config(folder, 1)
        prepare(config, quiet=True)
        # Two processes of one machine talk through its memory: an all-reduce there is measured, not assumed.
        speeds = measure(config, list(PLANNED_PHASES), network_gb_per_s=1.0)
        for ranks in (1, 2):
            for name in PLANNED_PHASES:
                wanted = _plan_config(folder, ranks)
                predicted = planner.predict(wanted, name, 1, speeds).step_s
                real = _real_step_s(wanted, name, Path(folder) / f"run{ranks}", ranks)
                figures.append(Figure("plan", f"{name}, {ranks} ranks: predicted", predicted, "s/step"))
                figures.append(Figure("plan", f"{name}, {ranks} ranks: real", real, "s/step"))
                figures.append(ratio("plan", f"{name}, {ranks} ranks: predicted over real", predicted / real))
    return figures


def _plan_config(folder: str, ranks: int) -> Config:
    overrides = [f"data.root={folder}", f"cluster.ranks_per_node={ranks}", f"training.max_steps={STEPS}"]
    overrides += ["training.engine=ddp", "training.log_every_steps=10", "phases.st_resnet.starts_from=[]"]
    return load_config(CONFIGS / "binding.yaml", [*overrides, "training.checkpoint_every_steps=0"])


def _real_step_s(config: Config, name: str, run_dir: Path, ranks: int) -> float:
    """Median seconds of a step of a real run, by its metrics."""
    write_text(run_dir / "config.yaml", dump(config))
    words = ["-m", "hpc_stres", "train", "--config", str(run_dir / "config.yaml"), "--phase", name]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, *words, "--run-dir", str(run_dir)]
    subprocess.run(command, check=True, capture_output=True)
    rows = read_json_lines(run_dir / "phases" / name / "metrics.jsonl")[WARM_UP:]
    seconds = sorted(config.phase(name).optimise.global_batch / row["videos_per_s"] for row in rows)
    return seconds[len(seconds) // 2]
