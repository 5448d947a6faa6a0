"""What became of a run's time: queue, start-up, training, checkpoints, work done again, evaluation.

From two files that the jobs write themselves: attempts.jsonl says when each attempt began and ended
and on which nodes, the phases' metrics.jsonl when steps were done (rows of steps that a restart did
again are taken out of it, so that what an attempt did after its last kept row was in vain). No
scheduler is asked; a copied run says the same.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hpc_stres.config.recipe import Phases
from hpc_stres.errors import UserError
from hpc_stres.run.attempts import Attempt, read_attempts
from hpc_stres.run.paths import RunPaths, read_json, read_sealed
from hpc_stres.run.product import sift_metrics

PREPARE, EVALUATE = "prepare", "evaluate"
# A job that has said nothing for so long and wrote no end was killed when it spoke last.
SILENCE_SECONDS = 120.0


@dataclass
class Costs:
    """Seconds of one job's attempts (or of several jobs, or of one node), each
    second in one place."""

    queue: float = 0.0
    startup: float = 0.0
    training: float = 0.0
    checkpoints: float = 0.0
    repeated: float = 0.0
    """Steps that were done again, and attempts that came to nothing."""
    evaluation: float = 0.0
    other: float = 0.0
    """Work that is neither: preparing the store, features, descriptors."""
    attempts: int = 0
    node_hours: float = 0.0
    lost_node_hours: float = 0.0
    """Of these, start-up, checkpoints and what was repeated."""

    def add(self, more: "Costs") -> None:
        """Sum up."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(more, one.name))

    @property
    def busy(self) -> float:
        """Seconds on nodes."""
        return (
            self.startup
            + self.training
            + self.checkpoints
            + self.repeated
            + self.evaluation
            + self.other
        )


@dataclass
class Account:
    """A run's costs: by job, by node, in sum, and the node-hours that were planned."""

    jobs: dict[str, Costs] = field(default_factory=dict)
    nodes: dict[str, Costs] = field(default_factory=dict)
    planned_node_hours: float | None = None

    @property
    def total(self) -> Costs:
        """All jobs."""
        costs = Costs()
        for one in self.jobs.values():
            costs.add(one)
        return costs


def account(phases: Phases, run_dir: Path, now: float | None = None) -> Account:
    """What became of the time of a run's jobs."""
    moment = time.time() if now is None else now
    paths, spent = (
        RunPaths(run_dir),
        Account(planned_node_hours=planned_node_hours(RunPaths(run_dir))),
    )
    attempts = read_attempts(run_dir)
    rows = {phase: sift_metrics(paths.phase(phase))[0] for phase in phases}
    ends = {
        (a.job, a.restart): _end(paths, a, attempts, rows.get(a.phase, []), moment)
        for a in attempts
    }
    for number, attempt in enumerate(attempts):
        end = ends[attempt.job, attempt.restart]
        if attempt.phase in rows and phases[attempt.phase].kind == "train":
            costs = _of_training(attempt, end, rows[attempt.phase])
        else:
            took = end - attempt.begin
            costs = Costs(evaluation=took) if attempt.phase == EVALUATE else Costs(other=took)
        costs.queue = _queue(phases, attempt, attempts[:number], ends)
        costs.attempts, count = 1, max(1, len(attempt.nodes))
        lost = costs.startup + costs.checkpoints + costs.repeated
        costs.node_hours, costs.lost_node_hours = costs.busy * count / 3600, lost * count / 3600
        spent.jobs.setdefault(attempt.phase, Costs()).add(costs)
        for node in attempt.nodes:
            share = Costs(**vars(costs))
            share.node_hours, share.lost_node_hours = costs.busy / 3600, lost / 3600
            spent.nodes.setdefault(node, Costs()).add(share)
    return spent


def _end(
    paths: RunPaths, attempt: Attempt, attempts: Sequence[Attempt], rows: Sequence[Mapping[str, Any]], now: float
) -> float:  # fmt: skip
    """When an attempt ended: as written, else when it was heard last before the next one began."""
    if attempt.end is not None:
        return max(attempt.begin, attempt.end)
    later = [a.begin for a in attempts if a.phase == attempt.phase and a.begin > attempt.begin]
    limit = min(later, default=now)
    heard = [float(row["time"]) for row in rows if "time" in row]
    heard.append(float(read_json(paths.logs / f"{attempt.phase}.progress.json").get("time", 0.0)))
    last = max((t for t in heard if attempt.begin <= t <= limit), default=attempt.begin)
    is_running = not later and now - last < SILENCE_SECONDS
    return now if is_running else last


def _of_training(attempt: Attempt, end: float, rows: Sequence[Mapping[str, Any]]) -> Costs:
    """An attempt's time cut at the begin of its first kept lap and at the end of its last."""
    mine = [row for row in rows if attempt.begin <= float(row.get("time", 0.0)) <= end + 1.0]
    if not mine:
        is_finished = attempt.code == 0
        whole = end - attempt.begin
        return Costs(startup=whole) if is_finished else Costs(repeated=whole)
    steps = _steps(mine, rows)
    laps = sum(float(row.get("seconds", 0.0)) for row in mine)
    saving = min(
        laps,
        sum(n * float(row.get("checkpoint_s", 0.0)) for n, row in zip(steps, mine, strict=True)),
    )
    first = min(
        end, max(attempt.begin, float(mine[0]["time"]) - float(mine[0].get("seconds", 0.0)))
    )
    after = max(0.0, end - max(first, float(mine[-1]["time"])))
    between = max(0.0, float(mine[-1]["time"]) - first - laps)
    # After the last row of a phase that was finished or saved, what is left is the last checkpoint.
    kept = attempt.code in (0, 75)
    return Costs(
        startup=first - attempt.begin, training=max(0.0, laps - saving),
        checkpoints=saving + between + (after if kept else 0.0), repeated=0.0 if kept else after,
    )  # fmt: skip


def _steps(mine: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Steps of each of these laps."""
    before = {id(row): previous for previous, row in zip([None, *rows[:-1]], rows, strict=True)}
    steps = []
    for row in mine:
        previous = before[id(row)]
        steps.append(int(row["step"]) - (int(previous["step"]) if previous is not None else 0))
    return steps


def _queue(
    phases: Phases, attempt: Attempt, earlier: Sequence[Attempt], ends: Mapping[tuple[str, int], float]
) -> float:  # fmt: skip
    """How long an attempt waited once nothing was left that it had to wait for."""
    if attempt.submitted is None:
        return 0.0
    if attempt.phase in phases:
        waits_for = {PREPARE, attempt.phase, *phases[attempt.phase].starts_from}
    else:
        waits_for = (
            {PREPARE, attempt.phase}
            if attempt.phase == PREPARE
            else {PREPARE, attempt.phase, *phases}
        )
    ready = [attempt.submitted]
    ready += [ends[a.job, a.restart] for a in earlier if a.phase in waits_for]
    return max(0.0, attempt.begin - max(ready))


def planned_node_hours(paths: RunPaths) -> float | None:
    """Of plan.json; none where there is none, or one that cannot be read: submit.py says what
    is wrong with it."""
    if not paths.plan.is_file():
        return None
    try:
        rows = read_sealed(paths.plan, "").get("phases", [])
        return sum(float(row["hours"]) * int(row["nodes"]) for row in rows)
    except (UserError, KeyError, TypeError, ValueError):
        return None


def by_kind(costs: Costs) -> list[tuple[str, float]]:
    """Each kind of time under its name, as status and the report tell them; what is
    nothing is left out."""
    named = [
        ("queue", costs.queue), ("start-up", costs.startup), ("training", costs.training),
        ("checkpoints", costs.checkpoints), ("done again", costs.repeated), ("evaluation", costs.evaluation),
        ("other work", costs.other),
    ]  # fmt: skip
    return [(name, seconds) for name, seconds in named if seconds >= 0.05]


def worst_nodes(spent: Account) -> list[tuple[str, Costs]]:
    """Nodes by the node-hours that were lost on them, the worst first."""
    return sorted(spent.nodes.items(), key=lambda item: (-item[1].lost_node_hours, item[0]))
