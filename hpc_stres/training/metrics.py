"""What the first rank writes while it trains: metrics.jsonl (the truth), TensorBoard events,
progress, heartbeats.
"""

import json
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hpc_stres.run.bad_nodes import node_name
from hpc_stres.run.paths import PhasePaths, naming, write_text
from hpc_stres.run.product import metrics_line, sift_metrics

HEARTBEAT_INTERVAL_SECONDS = 5.0
WAITING = "waiting for other ranks"


class MetricsLog:
    """Appends rows to metrics.jsonl and repeats them as TensorBoard events."""

    def __init__(self, paths: PhasePaths, start_step: int) -> None:
        self.paths = paths
        paths.root.mkdir(parents=True, exist_ok=True)
        # Steps after the checkpoint will be done again: their rows go, so that each
        # step is there once.
        rows, faults = sift_metrics(paths)
        if faults:
            # Rows of an older version have no checksum, others may be damaged: they are kept
            # beside, not among, ours.
            shutil.copyfile(paths.metrics, paths.root / "metrics.left_out.jsonl")
            print(
                f"{faults[0]} ({len(faults)} in all); the old file is metrics.left_out.jsonl",
                file=sys.stderr,
            )
        kept = [row for row in rows if row["step"] <= start_step]
        self.kept = kept
        write_text(paths.metrics, "".join(metrics_line(row) for row in kept))
        self.stream = paths.metrics.open("a", encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _leave_to_the_caller(threading.excepthook)
        with naming(paths.events):
            self.events = SummaryWriter(str(paths.events), purge_step=start_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """One row; `step` is the number of steps done. It gains the time at which its lap ended."""
        row = {**row, "time": round(time.time(), 3)}
        self.stream.write(metrics_line(row))
        self.stream.flush()
        with naming(self.paths.events):
            for name, value in row.items():
                if name not in ("step", "time") and isinstance(value, (int, float)):
                    self.events.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Bring the rows to the disk: before a checkpoint, for a run that resumes from it does not
        make them again."""
        os.fsync(self.stream.fileno())

    def has(self, step: int, key: str) -> bool:
        """Whether a row of an earlier link holds a figure of a step."""
        return any(row["step"] == step and key in row for row in self.kept)

    def close(self) -> None:
        """Flush both files."""
        self.sync()
        self.stream.close()
        with naming(self.paths.events):
            self.events.close()


def _leave_to_the_caller(
    show: Callable[[threading.ExceptHookArgs], object],
) -> Callable[[threading.ExceptHookArgs], object]:
    """TensorBoard writes in a thread of its own. What the disk refuses there is raised again by our next
    call and told in a sentence: the thread's own traceback is not shown as well."""
    if getattr(show, "leaves_to_the_caller", False):
        return show

    def hook(raised: threading.ExceptHookArgs) -> object:
        is_tensorboard = type(raised.thread).__module__.partition(".")[0] == "tensorboard"
        if is_tensorboard and issubclass(raised.exc_type, OSError):
            return None
        return show(raised)

    hook.leaves_to_the_caller = True  # type: ignore[attr-defined]
    return hook


class Heartbeat:
    """One file a rank that says which step it is at; it is how a lost rank is named."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_s = -HEARTBEAT_INTERVAL_SECONDS

    def beat(self, step: int, where: str, force: bool = False) -> None:
        """Write the file, at most every few seconds."""
        # By the clock that nobody turns: after a jump of the other the file would be
        # silent for as long.
        since_start = time.monotonic()
        if force or since_start - self.last_s >= HEARTBEAT_INTERVAL_SECONDS:
            self.last_s, now = since_start, time.time()
            write_text(
                self.path,
                json.dumps(
                    {
                        "step": step,
                        "where": where,
                        "time": now,
                        "host": os.uname().nodename,
                        "node": node_name(),
                    }
                ),
            )


def late_ranks(paths: PhasePaths, world_size: int) -> list[int]:
    """Ranks that do not say that they wait."""
    late = []
    for rank in range(world_size):
        try:
            beat = json.loads(paths.heartbeat(rank).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            beat = {"where": "nowhere"}
        if beat["where"] != WAITING:
            late.append(rank)
    return late


def memory_gib(device: torch.device) -> float:
    """Peak memory of this rank so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
