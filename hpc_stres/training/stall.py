"""Noticing that training stands still: each rank's stack at the moment when its patience is over.

A timer of the interpreter (faulthandler) runs outside of Python: it writes the stacks of a rank
that hangs in a read, in a kernel or in C code, where no signal handler and no thread of Python
would get its turn. Every step sets it again, at most once a second.
"""

import contextlib
import faulthandler
import os
import sys
import time
import traceback
from typing import Any

from hpc_stres.run import stall
from hpc_stres.run.bad_nodes import accuse
from hpc_stres.run.paths import PhasePaths, RunPaths, write_text

SET_EVERY_SECONDS = 1.0
# NCCL keeps its last collectives for its own dump on a time-out; without a buffer it keeps none.
FLIGHT_RECORDS = "2000"


class StallWatch:
    """One rank's timer, and the file that it writes to."""

    def __init__(self, paths: PhasePaths, rank: int, minutes: float) -> None:
        self.paths, self.rank, self.seconds = paths, rank, 60 * minutes
        paths.stall.mkdir(parents=True, exist_ok=True)
        self.stream = paths.stack(rank).open("w", encoding="utf-8")
        self.set_at = float("-inf")
        self.alive()

    def alive(self) -> None:
        """A step is done: the patience begins anew."""
        now = time.monotonic()
        if now - self.set_at >= SET_EVERY_SECONDS:
            self.set_at = now
            faulthandler.dump_traceback_later(self.seconds, file=self.stream)

    def patience(self, minutes: float) -> None:
        """From now on a step may take so long."""
        self.seconds, self.set_at = 60 * minutes, float("-inf")
        self.alive()

    def close(self) -> None:
        """The end of training, or of this rank: what was written stays, an empty file goes."""
        faulthandler.cancel_dump_traceback_later()
        self.stream.close()
        with contextlib.suppress(OSError):
            if self.paths.stack(self.rank).stat().st_size == 0:
                self.paths.stack(self.rank).unlink()
            self.paths.stall.rmdir()  # refused where anything is left in it


def record_flights(paths: PhasePaths) -> None:
    """Ask torch to keep the last collectives; before the process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", FLIGHT_RECORDS)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(paths.stall / "nccl_rank"))


def write_flights(paths: PhasePaths, rank: int) -> None:
    """This rank's last collectives, where its backend keeps them."""
    from torch._C import _distributed_c10d as c10d

    dump = getattr(c10d, "_dump_fr_trace_json", None) or getattr(
        c10d, "_dump_nccl_trace_json", None
    )
    if dump is None:
        return
    record: Any = dump()
    text = record.decode("utf-8", "replace") if isinstance(record, bytes) else str(record)
    write_text(paths.stall / f"rank{rank:05d}.flight.json", text)


def write_stack(paths: PhasePaths, rank: int, error: BaseException) -> None:
    """Where this rank waited: the error's own traceback, in the order of the timer's,
    innermost first."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    lines = [f'  File "{f.filename}", line {f.lineno} in {f.name}' for f in frames]
    write_text(
        paths.stack(rank),
        f"{error}\nCurrent thread 0x0 (most recent call first):\n" + "\n".join(lines) + "\n",
    )


def report(trainer: Any, error: BaseException, waiting_word: str, minutes: float) -> list[str]:
    """After a time-out, on each rank that waited: its stack and flight record; the first of them
    tells, in three lines, who was late and where. The lines, which are empty elsewhere."""
    paths, rank = trainer.paths, trainer.world.rank
    try:
        write_stack(paths, rank, error)
        write_flights(paths, rank)
    except OSError as fault:
        print(
            f"{paths.stall}: cannot be written: {fault.strerror or fault}",
            file=sys.stderr,
            flush=True,
        )
    stalled = stall.examine(paths, trainer.world.size, waiting_word)
    if stalled is None or rank != stalled.waiting[0]:
        return []
    lines = stall.summary(trainer.name, paths, stalled, minutes)
    run_dir = RunPaths(paths.root.parent.parent).root
    nodes = set(stalled.nodes)
    for late, node in zip(stalled.late, stalled.nodes, strict=True):
        if node in nodes:
            nodes.discard(node)
            accuse(
                run_dir,
                "stall",
                f"rank {late} on {node} did not arrive at step {stalled.step + 1}; it {stalled.place}",
                node,
            )
    with contextlib.suppress(OSError):  # they are on stderr as well
        stall.write_summary(paths, lines)
    return lines
