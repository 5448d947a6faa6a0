"""The attempts of a run's jobs, attempts.jsonl: when each began and ended, on which nodes, and from
which checkpoint.

Written by the first rank of each job, and for ranks that left no word by the job script after them.
Two questions are answered from it: whether a chain still makes progress, and what became of the
time (`accounting`).
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.run.bad_nodes import job_number, restart_count
from hpc_stres.run.ledger import append_row, read_rows
from hpc_stres.run.paths import PhasePaths, RunPaths, read_json


@dataclass(frozen=True)
class Attempt:
    """One time that a job ran."""

    job: str
    restart: int
    phase: str
    link: int
    submission: int
    """Number of the sbatch call that made the job: links of one submission have rising ones."""
    begin: float
    submitted: float | None
    nodes: tuple[str, ...]
    ranks: int
    gpus: int
    mark: int
    """How far the job's work was when it began: the step of its checkpoint, or the items done."""
    end: float | None = None
    code: int | None = None
    """Exit status; none where nobody was left to say it."""

    @property
    def name(self) -> str:
        """The job's number, and which restart of it."""
        return f"{self.job} (restart {self.restart})" if self.restart else self.job


def begin_row(
    phase: str, *, link: int, submission: int, nodes: tuple[str, ...], ranks: int, gpus: int, mark: int,
    call: Path | None, begun: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What is written when a job begins; `call` is the file that was written for it when
    it was submitted."""
    return {
        "event": "begin", "phase": phase, "job": job_number() or f"process{os.getpid()}", "restart": restart_count(),
        "link": link, "submission": submission, "time": round(begun or time.time(), 3),
        "submitted": _time_of(call), "nodes": list(nodes), "ranks": ranks, "gpus": gpus, "mark": mark,
    }  # fmt: skip


def write_begin(run_dir: Path, row: Mapping[str, Any]) -> None:
    """Append it."""
    append_row(RunPaths(run_dir).attempts, row)


def write_end(run_dir: Path, job: str, restart: int, code: int) -> None:
    """Write how an attempt ended; the first word on it counts."""
    row = {
        "event": "end",
        "job": job,
        "restart": restart,
        "code": code,
        "time": round(time.time(), 3),
    }
    append_row(RunPaths(run_dir).attempts, row)


def _time_of(path: Path | None) -> float | None:
    """When a file was written; none where there is none."""
    try:
        return None if path is None else round(path.stat().st_mtime, 3)
    except OSError:
        return None


def progress_mark(paths: RunPaths, phase: str, has_checkpoints: bool) -> int:
    """How far a job's work is kept: the step of its newest checkpoint, or the items
    that it has counted."""
    if has_checkpoints:
        return checkpoint_step(paths.phase(phase)) or 0
    done = read_json(paths.logs / f"{phase}.progress.json").get("done", 0)
    return int(done) if isinstance(done, int | float) else 0


def checkpoint_step(paths: PhasePaths) -> int | None:
    """Step of the newest checkpoint; none where there is none."""
    try:
        digits = paths.latest.read_text(encoding="utf-8").strip().removeprefix("step")
    except (OSError, UnicodeDecodeError):
        return None
    return int(digits) if digits.isdigit() else None


def read_attempts(run_dir: Path) -> list[Attempt]:
    """All attempts in the order in which they began; rows of another shape are left out."""
    begun: dict[tuple[str, int], Attempt] = {}
    ends: dict[tuple[str, int], tuple[float, int]] = {}
    for row in read_rows(RunPaths(run_dir).attempts)[0]:
        try:
            key = (str(row["job"]), int(row["restart"]))
            if row["event"] == "end":
                ends.setdefault(key, (float(row["time"]), int(row["code"])))
            elif row["event"] == "begin":
                begun.setdefault(key, _attempt(row))
        except (KeyError, TypeError, ValueError):
            continue
    attempts = [
        Attempt(**{**vars(attempt), "end": ends[key][0], "code": ends[key][1]})
        if key in ends
        else attempt
        for key, attempt in begun.items()
    ]
    return sorted(attempts, key=lambda attempt: attempt.begin)


def _attempt(row: Mapping[str, Any]) -> Attempt:
    submitted = row["submitted"]
    return Attempt(
        job=str(row["job"]), restart=int(row["restart"]), phase=str(row["phase"]), link=int(row["link"]),
        submission=int(row["submission"]), begin=float(row["time"]),
        submitted=None if submitted is None else float(submitted),
        nodes=tuple(map(str, row["nodes"])), ranks=int(row["ranks"]), gpus=int(row["gpus"]), mark=int(row["mark"]),
    )  # fmt: skip


def without_progress(attempts: list[Attempt], phase: str, job: str, restart: int, mark: int,
                     link: int, submission: int) -> list[Attempt]:  # fmt: skip
    """Attempts of a phase in a row, the newest first, that began where this one begins: each has
    ended and left no new checkpoint. Those of an earlier submission do not count, for whoever
    submits again has changed something."""
    earlier = [a for a in attempts if a.phase == phase and (a.job, a.restart) != (job, restart)]
    fruitless: list[Attempt] = []
    for attempt in reversed(earlier):
        is_same_job = (attempt.link, attempt.submission) == (link, submission)
        if not is_same_job and attempt.link >= link:
            break
        if attempt.mark != mark:
            break
        fruitless.append(attempt)
        link, submission = attempt.link, attempt.submission
    return fruitless
