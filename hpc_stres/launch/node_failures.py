"""Nodes that died under a job: the scheduler ends such a job, script and all, so that nobody of it
is left to tell.

Asked for when somebody looks at the run: of attempts that wrote no end although their job is over
or runs again, the nodes that are down now.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hpc_stres.launch import scheduler
from hpc_stres.run.attempts import Attempt, read_attempts
from hpc_stres.run.bad_nodes import NODE_NAME, accuse, read_accusations
from hpc_stres.run.paths import RunPaths

DOWN = ("down", "drain", "fail", "no_respond", "power")
ROW = "hpc_stres_node|"


def note(run_dir: Path, states: Mapping[str, tuple[str, str]], seconds: float) -> None:
    """Write such nodes into nodes.jsonl; where the scheduler is mute or the folder is
    not ours, nothing."""
    cut_short = _cut_short(read_attempts(run_dir), states)
    known = {(row.job, row.restart) for row in read_accusations(run_dir)}
    cut_short = [a for a in cut_short if (a.job, a.restart) not in known]
    if not cut_short or not shutil.which("sinfo") or not os.access(RunPaths(run_dir).root, os.W_OK):
        return
    names = sorted({n for a in cut_short for n in a.nodes if NODE_NAME.fullmatch(n)})
    down = _down(names, seconds)
    for attempt in cut_short:
        for node in attempt.nodes:
            if node in down:
                accuse(
                    run_dir, "node_fail", f"{node}: {down[node]} under job {attempt.name}", node, job=attempt.job,
                    restart=attempt.restart, job_nodes=len(attempt.nodes),
                )  # fmt: skip


def _cut_short(attempts: list[Attempt], states: Mapping[str, tuple[str, str]]) -> list[Attempt]:
    """Attempts without an end of their own whose job failed with a node, or has
    begun again since."""
    again = {(a.job, a.restart) for a in attempts}
    return [
        a
        for a in attempts
        if a.end is None
        and (
            states.get(a.job, ("",))[0] in ("NODE_FAIL", "BOOT_FAIL")
            or any(job == a.job and restart > a.restart for job, restart in again)
            or (states.get(a.job, ("",))[0] == "PENDING")
        )
    ]


def _down(names: list[str], seconds: float) -> dict[str, str]:
    """What the scheduler says of those of these nodes that are down."""
    if not names:
        return {}
    try:
        answer = scheduler.call(
            ["sinfo", "-h", "-N", "-n", ",".join(names), "-o", f"{ROW}%N|%T|%E"], seconds
        )
    except scheduler.NoAnswer:
        return {}
    down = {}
    for line in answer.out.splitlines():
        parts = line.removeprefix(ROW).split("|", 2)
        if line.startswith(ROW) and len(parts) == 3 and parts[1].lower().startswith(DOWN):
            reason = "" if parts[2] in ("none", "") else f" ({parts[2].strip()})"
            down[parts[0]] = f"{parts[1].strip('*~#')}{reason}"
    return down
