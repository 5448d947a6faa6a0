"""Lines under a run's table: nodes that are left out and why, ranks that are late or slow, and what
became of the time."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_stres.config.recipe import Phases
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.launch.bad_nodes import reasons
from hpc_stres.run.accounting import account, by_kind, worst_nodes
from hpc_stres.run.paths import PhasePaths, RunPaths, read_json
from hpc_stres.run.product import sift_metrics
from hpc_stres.run.progress import duration

# A rank that trains says so every few seconds; this much silence is worth a word.
QUIET_SECONDS = 60.0
WORST_NODES = 3


def notes(config: Config, run_dir: Path, is_running: Mapping[str, bool]) -> list[str]:
    """Everything that is worth a line; nothing where all is well and nothing was spent."""
    paths = RunPaths(run_dir)
    lines = reasons(run_dir, config.cluster)
    for phase, running in is_running.items():
        lines += [f"{phase}: {line}" for line in _of_phase(paths.phase(phase), running)]
    return [*lines, *costs(config.phases, run_dir)]


def _of_phase(paths: PhasePaths, is_running: bool) -> list[str]:
    """Who is late or slow in a phase that is not done."""
    lines = []
    rows = sift_metrics(paths)[0]
    slow = [str(row["slow"]) for row in rows if row.get("slow")]
    if slow:
        lines.append(slow[-1])
    beats = [read_json(path) for path in sorted((paths.root / "heartbeat").glob("rank*.json"))]
    lines += late(beats, time.time()) if is_running else _stall(paths)
    return lines


def _stall(paths: PhasePaths) -> list[str]:
    """What the last stand-still was about, where training has not got beyond it."""
    try:
        lines = (paths.stall / "summary.txt").read_text(encoding="utf-8").splitlines()
        is_over = paths.metrics.stat().st_mtime > (paths.stall / "summary.txt").stat().st_mtime
    except (OSError, UnicodeDecodeError):
        return []
    return [] if is_over else [line.split(": ", 1)[-1] for line in lines[:2]]


def late(beats: list[dict[str, Any]], now: float) -> list[str]:
    """Ranks of a running phase whose last word is old while others speak, or all of them."""
    known = [(n, b) for n, b in enumerate(beats) if isinstance(b.get("time"), int | float)]
    if not known:
        return []
    newest = max(float(beat["time"]) for _, beat in known)
    if now - newest > QUIET_SECONDS:
        return [
            f"no rank has finished a step for {duration(now - newest)}; a time-out will name who is late"
        ]
    behind = [(n, b) for n, b in known if newest - float(b["time"]) > QUIET_SECONDS]
    shown = ", ".join(f"rank {n} on {b.get('node') or b.get('host')}" for n, b in behind[:4])
    more = f" and {len(behind) - 4} more" if len(behind) > 4 else ""
    return [f"late: {shown}{more}"] if behind else []


def costs(phases: Phases, run_dir: Path) -> list[str]:
    """What became of the time, in one line, and on which nodes it was lost."""
    try:
        spent = account(phases, run_dir)
    except UserError as error:
        return [str(error).splitlines()[0]]
    total = spent.total
    if not total.attempts:
        return []
    planned = f" of {spent.planned_node_hours:.2f} planned" if spent.planned_node_hours else ""
    kinds = ", ".join(f"{name} {duration(seconds)}" for name, seconds in by_kind(total))
    lines = [
        f"node-hours: {total.node_hours:.2f} used{planned}; {total.attempts} attempts: {kinds}"
    ]
    lost = [(n, c) for n, c in worst_nodes(spent) if c.lost_node_hours >= 0.01][:WORST_NODES]
    if len(spent.nodes) > 1 and lost:
        words = ", ".join(
            f"{node} {c.lost_node_hours:.2f} of {c.node_hours:.2f}" for node, c in lost
        )
        lines.append(f"node-hours lost to start-up, checkpoints and work done again: {words}")
    return lines
