"""Learning curves, rate and phases on one time axis; time, throughput and loss of each phase."""

from collections.abc import Callable, Mapping
from typing import Any

from hpc_stres.evaluation.report.charts import (
    Axis,
    Line,
    axis,
    log_axis,
    plot,
    spans,
    table,
    time_axis,
)
from hpc_stres.evaluation.report.facts import Facts
from hpc_stres.evaluation.report.laps import PhaseLog, Timeline, timeline
from hpc_stres.run.progress import duration

# Colours go with streams, so that a stream has one colour in every phase.
STREAM_SERIES = {"appearance": 0, "motion": 1}
VALIDATION = "validation_"


def curves(facts: Facts) -> str:
    """Loss, accuracy and rate under each other, on one axis."""
    line = timeline(facts.logs)
    if not line.ends:
        return "<p>No phase of this run has written metrics.</p>"
    x = time_axis(line.length)
    begins = [line.starts[name] for name in line.ends]
    how = (
        "by the clock, from the first step of the run: gaps are queues and restarts"
        if line.by_clock
        else "training time, one phase after another: these rows do not say when they were written"
    )
    parts = [
        f'<p class="soft">Time runs {how}. Held out: training videos that were not trained on, by the quick '
        "protocol while training; a dot is the test protocol on them at the end.</p>"
    ]
    lasting = [(facts.title(name), line.starts[name], ends[-1]) for name, ends in line.ends.items()]
    parts.append(spans("Phases", sorted(lasting, key=lambda row: row[1]), x))
    parts.append(_panel("Loss of each stream", facts.logs, line, "loss_", x, begins))
    parts.append(
        _panel(
            "Accuracy while training, in %",
            facts.logs,
            line,
            "accuracy_",
            x,
            begins,
            _held_out(facts, line),
        )
    )
    parts.append(_rate(facts.logs, line, x, begins))
    return "".join(parts)


def _panel(
    name: str, logs: Mapping[str, PhaseLog], line: Timeline, prefix: str, x: Axis, begins: list[float],
    more: list[Line] | None = None,
) -> str:  # fmt: skip
    per_cent = 100.0 if prefix == "accuracy_" else 1.0
    lines = _lines(logs, line, prefix, per_cent) + _lines(
        logs, line, VALIDATION + prefix, per_cent, "held out: "
    )
    lines += more or []
    values = [value for curve in lines for _, value in curve.points]
    y = (
        axis(values, 0.0, 100.0)
        if per_cent > 1
        else axis(values, min(0.0, *values) if values else 0.0)
    )
    return plot(name, lines, x, y, begins)


def _lines(
    logs: Mapping[str, PhaseLog], line: Timeline, prefix: str, scale: float, before: str = ""
) -> list[Line]:  # fmt: skip
    lines = []
    for phase, ends in line.ends.items():
        log = logs[phase]
        for number, stream in enumerate(log.series(prefix)):
            series = STREAM_SERIES.get(stream, 2 + number) + (2 if before else 0)
            pairs = zip(ends, log.rows, strict=True)
            points = [
                (end, scale * row[prefix + stream]) for end, row in pairs if prefix + stream in row
            ]
            lines.append(Line(before + stream, points, series))
    return lines


def _held_out(facts: Facts, line: Timeline) -> list[Line]:
    """Each phase's accuracy on the part of the training list that was held out, at
    the phase's end."""
    points = [
        (line.ends[name][-1], float(column["validation"]["top1"]))
        for name, column in facts.table.items()
        if name in line.ends and isinstance(column.get("validation"), dict)
    ]
    return [Line("held out", points, 2, marks=True)] if points else []


def _rate(logs: Mapping[str, PhaseLog], line: Timeline, x: Axis, begins: list[float]) -> str:
    lines = []
    for phase, ends in line.ends.items():
        before, points = line.starts[phase], []
        for end, row in zip(ends, logs[phase].rows, strict=True):
            if "rate" in row:
                points += [(before, row["rate"]), (end, row["rate"])]
            before = end
        lines.append(Line("learning rate", points, 3))
    y = log_axis([value for curve in lines for _, value in curve.points])
    return plot("Learning rate (logarithmic)", lines, x, y, begins, "6rem")


def times(facts: Facts) -> str:
    """One row a phase: steps, time, throughput, wait for data, seconds lost, memory."""
    header = [
        "phase",
        "steps",
        "ranks",
        "training",
        "videos/s",
        "waiting for data",
        "lost between",
        "memory",
    ]
    looks = any(log.validated_seconds for log in facts.logs.values())
    header[4:4] = ["held-out videos"] if looks else []
    rows = []
    for name, log in facts.logs.items():
        if not log.rows:
            continue
        trained, waited, lost = log.trained_seconds, log.waited_seconds, log.lost_seconds
        share = f" ({100 * waited / trained:.1f} %)" if trained else ""
        ranks = sorted({int(row["world_size"]) for row in log.rows if "world_size" in row})
        rows.append([
            facts.shown(name), f"{log.rows[-1]['step']:.0f}", " and ".join(map(str, ranks)) or "-", duration(trained),
            f"{log.videos_per_second:.3g}", f"{seconds(waited)}{share}",
            "not recorded" if lost is None else seconds(lost),
            _peak(log, "memory_gib", lambda value: f"{value:.2f} GiB"),
        ])  # fmt: skip
        rows[-1][4:4] = [seconds(log.validated_seconds)] if looks else []
    if not rows:
        return ""
    note = (
        "<p class='soft'>Training is the time in steps, saving included. Lost between: from one lap's end to the next "
        "one's begin, in queues, start-up and steps that were repeated after a restart. Memory: of the first rank, "
        "at its most.</p>"
    )
    return table(header, rows, numbers=1) + note


def _peak(log: PhaseLog, name: str, words: Callable[[float], str]) -> str:
    values = [row[name] for row in log.rows if name in row]
    return words(max(values)) if values else "-"


def seconds(value: float) -> str:
    """A short time with a digit, a long one as minutes and hours."""
    return f"{value:.1f} s" if value < 60 else duration(value)


def speed(facts: Facts) -> str:
    """Throughput over time of each phase."""
    line: Any = timeline(facts.logs)
    if not line.ends:
        return ""
    lines = []
    for number, (phase, ends) in enumerate(line.ends.items()):
        pairs = zip(ends, facts.logs[phase].rows, strict=True)
        points = [(end, row["videos_per_s"]) for end, row in pairs if "videos_per_s" in row]
        lines.append(Line(facts.title(phase), points, number))
    values = [value for curve in lines for _, value in curve.points]
    return plot("Videos a second", lines, time_axis(line.length), axis(values, 0.0), (), "8rem")
