"""A long phase: open files, memory, threads and disk stay as they were, and its metrics can be read at any moment."""

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.campaign import children
from tests.campaign.children import Start
from tests.campaign.experiments import CONFIG, Workshop
from tests.campaign.judge import CRASHED, SURVIVED, Outcome, last_words

STEPS_A_CHECKPOINT = 10
SAMPLE_SECONDS = 0.25
# What may be used more in the last quarter than in the second one.
MOST_GROWTH = {"files": 0, "threads": 0, "memory": 0.05, "disk": 0.02}
GROWING = ("metrics.jsonl", "events.out.")
BYTES_A_ROW = 4096
# What a command says in a row of metrics' time.
OUTPUT_BYTES_A_ROW = 400
# Without a new row for so long it hangs.
QUIET_SECONDS = 300.0


@dataclass(frozen=True)
class Sample:
    """What a process uses at a moment."""

    files: int
    threads: int
    memory: int
    disk: int
    growing: int
    rows: int
    faults: int


def settings(root: Path, checkpoints: int) -> list[str]:
    """The smallest phase of so many checkpoints."""
    steps = STEPS_A_CHECKPOINT * checkpoints
    values = [
        f"data.root={root}", "data.binding.train_videos=8", "data.binding.test_videos=8", "data.binding.frames=12",
        "data.workers=1", "training.global_batch=2", "training.norm_group=2", f"training.max_steps={steps}",
        f"training.checkpoint_every_steps={STEPS_A_CHECKPOINT}", f"training.log_every_steps={STEPS_A_CHECKPOINT}",
        f"phases.motion.optimise.schedule=[[{steps}, 1.0e-4]]",
    ]  # fmt: skip
    return [word for value in values for word in ("--set", value)]


def take(process: psutil.Process, run_dir: Path) -> Sample:
    """What the process uses now, and what its metrics say to a reader who comes at this moment."""
    from hpc_stres.run.paths import RunPaths
    from hpc_stres.run.product import sift_metrics

    rows, faults = sift_metrics(RunPaths(run_dir).phase("motion"))
    disk = growing = 0
    # A checkpoint may just be dropped: what is gone meanwhile is passed over.
    for folder, _, names in os.walk(run_dir):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size = os.stat(os.path.join(folder, name)).st_size
                growing, disk = (
                    (growing + size, disk) if name.startswith(GROWING) else (growing, disk + size)
                )
    with process.oneshot():
        return Sample(process.num_fds(), process.num_threads(), process.memory_info().rss, disk, growing,
                      len(rows), len(faults))  # fmt: skip


def watch(base: Path, checkpoints: int) -> list[Outcome]:
    """Train a phase of so many checkpoints, and say what grew."""
    shop = Workshop(base)
    root, run_dir = shop.data_root("binding"), base / "long" / f"run-{time.time_ns()}"
    words = ["train", "--config", str(CONFIG), "--phase", "motion", "--run-dir", str(run_dir)]
    (base / "long").mkdir(exist_ok=True)
    child = children.fork(
        Start([*words, *settings(root, checkpoints)]), base / "long" / "output.txt"
    )
    try:
        samples, took = look(child, run_dir)
    finally:
        if child.poll() is None:
            child.kill()
    end = children.wait([child])
    if not end.ok:
        return [Outcome(CRASHED, last_words(end.text))]
    print(f"{checkpoints} checkpoints in {took:.0f} s, looked at {len(samples)} times", flush=True)
    return judge([sample for sample in samples if sample.rows], checkpoints, len(end.text))


def look(child: children.Child, run_dir: Path) -> tuple[list[Sample], float]:
    """Samples of a child until it ends, and how long it took; it hangs when no new row comes for a
    while, and is left then."""
    process, samples = psutil.Process(child.pid), list[Sample]()
    began = heard = time.monotonic()
    while child.poll() is None and time.monotonic() - heard < QUIET_SECONDS:
        time.sleep(SAMPLE_SECONDS)
        try:
            sample = take(process, run_dir)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            break
        if not samples or sample.rows > samples[-1].rows:
            heard = time.monotonic()
        samples.append(sample)
    return samples, time.monotonic() - began


def judge(samples: list[Sample], checkpoints: int, output_bytes: int) -> list[Outcome]:
    """An outcome for each thing that must stay as it was."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    outcomes = []
    for name, most in MOST_GROWTH.items():
        before, after = (max(getattr(s, name) for s in part) for part in (early, late))
        words = f"{name}: at most {before} in the second quarter, {after} in the last of {checkpoints} checkpoints"
        print(words, flush=True)
        outcomes.append(Outcome(SURVIVED if after <= before * (1 + most) else CRASHED, words))
    faults = sum(sample.faults for sample in samples)
    outcomes.append(Outcome(CRASHED if faults else SURVIVED, f"metrics unreadable {faults} times"))
    then, a_row = (max(one.growing / max(1, one.rows) for one in part) for part in (early, late))
    said = output_bytes / max(1, max(sample.rows for sample in late))
    words = f"metrics and events: {a_row:.0f} bytes a row; output: {said:.0f} bytes a row"
    print(words, flush=True)
    bounded = a_row < min(BYTES_A_ROW, then * 1.05) and said < OUTPUT_BYTES_A_ROW
    outcomes.append(Outcome(SURVIVED if bounded else CRASHED, words))
    return outcomes
