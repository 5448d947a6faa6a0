"""What a run knows against nodes: nodes.jsonl, a row for each time that one did not do its work.

Whoever sees a node fail writes it down: a rank that finds its disk full, the preflight that misses
a rank, training that waits for a slow one, the job script that outlived its ranks. Whether a node
is avoided is decided later, by `excluded_nodes`, which also sees what the rows have in common.
"""

import os
import re
import socket
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpc_stres.run.ledger import append_row, read_rows
from hpc_stres.run.paths import RunPaths

Kind = Literal["arrival", "name", "network", "disk", "gpu", "crash", "slow", "stall", "node_fail"]
# What a node cannot share with all others of its job: it counts although every node of
# the job is accused.
CERTAIN = frozenset(("disk", "gpu", "node_fail"))
# Names go into commands of the scheduler: nothing else than names may stand there.
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
# However many nodes are under suspicion, no more than these are left out: the newest.
MOST_EXCLUDED = 64


@dataclass(frozen=True)
class Accusation:
    """One row of nodes.jsonl."""

    node: str
    kind: str
    reason: str
    time: float
    host: str
    job: str
    restart: int
    job_nodes: int

    @property
    def when(self) -> str:
        """Its time as a person reads it."""
        return time.strftime("%a %H:%M", time.localtime(self.time))


def node_name() -> str:
    """This node as the scheduler calls it; several nodes of a scheduler may be one host."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def job_number() -> str:
    """The job that this process belongs to, as the run's journal has it: 17_3 is an element of an
    array. Empty outside of jobs."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and index:
        return f"{array}_{index}"
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID", "")


def restart_count() -> int:
    """How many times the scheduler has started this job again."""
    text = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(text) if text.isdigit() else 0


def accuse(
    run_dir: Path,
    kind: Kind,
    reason: str,
    node: str | None = None,
    *,
    job: str | None = None,
    restart: int | None = None,
    job_nodes: int | None = None,
) -> bool:
    """Write down that a node (this one, unless named) did not do its work; once for a
    job, node and kind."""
    named, number = node or node_name(), job_number() if job is None else job
    again = restart_count() if restart is None else restart
    path = RunPaths(run_dir).nodes
    if any(
        (row.get("node"), row.get("kind"), row.get("job"), row.get("restart"))
        == (named, kind, number, again)
        for row in read_rows(path)[0]
    ):
        return True
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    row = {
        "time": round(time.time(), 3), "node": named, "host": socket.gethostname(), "kind": kind,
        "reason": " ".join(reason.split())[:400], "job": number, "restart": again, "seen_by": node_name(),
        "job_nodes": job_nodes or (int(nodes) if nodes.isdigit() else 1),
    }  # fmt: skip
    return append_row(path, row)


def read_accusations(run_dir: Path) -> list[Accusation]:
    """The rows of a run's nodes.jsonl, oldest first; rows of another shape are left out."""
    accusations = []
    for row in read_rows(RunPaths(run_dir).nodes)[0]:
        accusation = _accusation_of(row)
        if accusation is not None:
            accusations.append(accusation)
    return sorted(accusations, key=lambda row: row.time)


def _accusation_of(row: Mapping[str, Any]) -> Accusation | None:
    try:
        return Accusation(
            str(row["node"]), str(row["kind"]), str(row["reason"]), float(row["time"]), str(row["host"]),
            str(row["job"]), int(row["restart"]), int(row["job_nodes"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def withdraw(run_dir: Path, jobs: Sequence[str]) -> None:
    """Attempts that came to nothing one after another on different nodes: it was not the nodes.
    What each node's own disk or GPU said stays."""
    of_jobs = [
        row for row in read_accusations(run_dir) if row.job in jobs and row.kind not in CERTAIN
    ]
    if len({row.node for row in of_jobs}) > 1:
        append_row(
            RunPaths(run_dir).nodes, {"time": round(time.time(), 3), "withdrawn": list(jobs)}
        )


def _withdrawn(run_dir: Path) -> set[str]:
    """Jobs whose nodes are not to blame."""
    rows = [row.get("withdrawn") for row in read_rows(RunPaths(run_dir).nodes)[0]]
    return {str(job) for row in rows if isinstance(row, list) for job in row}


def excluded_nodes(run_dir: Path, hours: float, now: float | None = None) -> dict[str, Accusation]:
    """Nodes that are avoided, the newest accusation of each, newest first; 0 hours: none.

    Where all nodes of one job of several are accused of the same, the fault is the job's or the
    site's (a name service, a broken installation), and no node is avoided for it.
    """
    moment = time.time() if now is None else now
    young = [row for row in read_accusations(run_dir) if hours * 3600 - (moment - row.time) >= 0]
    if hours <= 0:
        return {}
    accused = defaultdict(set)
    for row in young:
        accused[row.job, row.restart].add(row.node)
    counted: dict[str, Accusation] = {}
    withdrawn = _withdrawn(run_dir)
    for row in reversed(young):
        if row.job in withdrawn and row.kind not in CERTAIN:
            continue
        everyone = row.job_nodes > 1 and len(accused[row.job, row.restart]) >= row.job_nodes
        if NODE_NAME.fullmatch(row.node) and (row.kind in CERTAIN or not everyone):
            counted.setdefault(row.node, row)
    return dict(list(counted.items())[:MOST_EXCLUDED])


def affordable(names: Sequence[str], available: Sequence[str], needed: int) -> list[str]:
    """As many of these nodes, in their order, as can be left out while `needed` of the
    available ones are left."""
    spare = len(set(available)) - needed
    kept = [name for name in names if name in set(available)]
    return kept[: max(0, spare)]
