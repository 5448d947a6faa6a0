"""What metrics.jsonl says about time: laps between two rows, and what happened between the laps.

A row is written at the end of a lap of some steps. It says how long the lap took (`seconds`, or by
its rate) and, since version 0.4, when it ended (`time`). Seconds between a lap's begin and the end
of the lap before it are lost: the job waited in a queue, started, or repeated steps behind its last
checkpoint (their rows are taken out when it resumes).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.phases.train import TrainPhase
from hpc_stres.registry.phase import Phase
from hpc_stres.run.paths import SEAL, RunPaths, read_json_lines, unsealed

Row = dict[str, float]
# In rows that are looks at held-out videos: how long one took.
LOOK = "validation_seconds"
REMEDY = "Remove that line; it is for the curves only."


@dataclass(frozen=True)
class PhaseLog:
    """The rows of one phase, their laps in seconds, and when each ended where that is known."""

    rows: list[Row]
    laps: list[float]
    ends: list[float] | None

    @property
    def trained_seconds(self) -> float:
        """Time in steps."""
        return sum(self.laps) - self.validated_seconds

    @property
    def validated_seconds(self) -> float:
        """Time of looks at held-out videos."""
        return sum(row.get(LOOK, 0.0) for row in self.rows)

    @property
    def waited_seconds(self) -> float:
        """Time of steps that was spent waiting for data."""
        return sum(
            lap * row.get("data_wait", 0.0) for lap, row in zip(self.laps, self.rows, strict=True)
        )

    @property
    def lost_seconds(self) -> float | None:
        """Time between laps; none where rows do not say when."""
        if self.ends is None:
            return None
        pairs = zip(self.ends, self.ends[1:], self.laps[1:], strict=False)
        return sum(max(0.0, after - before - lap) for before, after, lap in pairs)

    @property
    def videos_per_second(self) -> float:
        """Over all laps."""
        videos = sum(
            lap * row.get("videos_per_s", 0.0)
            for lap, row in zip(self.laps, self.rows, strict=True)
        )
        return videos / self.trained_seconds if self.trained_seconds else 0.0

    def series(self, prefix: str) -> list[str]:
        """Names of the streams that have a `prefix_...`."""
        return sorted(
            {key.removeprefix(prefix) for row in self.rows for key in row if key.startswith(prefix)}
        )


def read_log(phase: Phase, paths: RunPaths, name: str) -> PhaseLog:
    """The log of a phase; empty where it has not run."""
    rows = metric_rows(paths.phase(name).metrics)
    batch, laps, before = _batch(phase), [], 0.0
    for row in rows:
        rate = row.get("videos_per_s", 0.0)
        taken = (row["step"] - before) * batch / rate if rate > 0 else row.get(LOOK, 0.0)
        laps.append(row.get("seconds", taken))
        before = row["step"]
    ends = [row["time"] for row in rows if "time" in row]
    return PhaseLog(rows, laps, ends if rows and len(ends) == len(rows) else None)


def _batch(phase: Phase) -> int:
    """Videos in a step; phases of other kinds say the seconds of their laps themselves."""
    return phase.optimise.global_batch if isinstance(phase, TrainPhase) else 0


def metric_rows(path: Path) -> list[Row]:
    """Numbers of metrics.jsonl; a row that carries a checksum must match it, and a line that is
    no row is named."""
    try:
        rows = read_json_lines(path)
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}\n{REMEDY}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}, row {number}: damaged: it has no step\n{REMEDY}")
        if SEAL in row:
            unsealed(row, f"{path}, row {number}", REMEDY)
    return [{key: value for key, value in row.items() if is_number(value)} for row in rows]


def is_number(value: Any) -> bool:
    """A finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Timeline:
    """Where each row lies on one axis in seconds; `by_clock` where the axis is that
    of the wall clock."""

    ends: dict[str, list[float]]
    starts: dict[str, float]
    length: float
    by_clock: bool


def timeline(logs: dict[str, PhaseLog]) -> Timeline:
    """All phases on one axis: by the clock where all say when, else their training time
    one after another."""
    present = {name: log for name, log in logs.items() if log.rows}
    by_clock = bool(present) and all(log.ends is not None for log in present.values())
    ends: dict[str, list[float]] = {}
    starts: dict[str, float] = {}
    if by_clock:
        begins = {name: log.ends[0] - log.laps[0] for name, log in present.items() if log.ends}
        zero = min(begins.values())
        for name, log in present.items():
            starts[name], ends[name] = begins[name] - zero, [end - zero for end in log.ends or ()]
    else:
        now = 0.0
        for name, log in present.items():
            starts[name], ends[name] = now, []
            for lap in log.laps:
                now += lap
                ends[name].append(now)
    return Timeline(
        ends, starts, max((max(values) for values in ends.values()), default=0.0), by_clock
    )
