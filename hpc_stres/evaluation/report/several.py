"""One page of several runs: seeds, splits or recipes beside each other, the answer first."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from hpc_stres.config.loading import flat, plain
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.errors import UserError
from hpc_stres.evaluation.report import matrix
from hpc_stres.evaluation.report.charts import Line, axis, nice_step, plot, table
from hpc_stres.evaluation.report.curves import STREAM_SERIES, VALIDATION
from hpc_stres.evaluation.report.facts import Facts, is_right
from hpc_stres.evaluation.report.laps import PhaseLog
from hpc_stres.evaluation.report.page import Section, page
from hpc_stres.evaluation.statistics import mean_interval
from hpc_stres.run.paths import write_text

MOST_CLASSES = 30


def write_several(runs: Sequence[Facts], out: Path) -> Path:
    """Write the page; returns its path."""
    if len({facts.paths.root.resolve() for facts in runs}) < len(runs):
        raise UserError(f"{out}: a run is named twice; each counts once")
    write_text(out, several_page(runs, out))
    return out


def several_page(runs: Sequence[Facts], out: Path) -> str:
    """Accuracy over runs, each run, curves, classes."""
    sections: list[Section] = [
        ("accuracy", "Accuracy", _table(runs)),
        ("runs", "Each run", _each(runs, out)),
        ("curves", "Learning curves", _curves(runs)),
        ("classes", "Classes", _classes(runs)),
        ("confusions", "Confusions", _confusions(runs)),
        ("differences", "What the runs differ in", _differences(runs)),
    ]
    top = f"<h1>{len(runs)} runs in {html.escape(out.resolve().parent.name)}</h1>{_lead(runs)}"
    return page(f"{len(runs)} runs", top, sections)


def names_of(runs: Sequence[Facts]) -> list[str]:
    """Columns that every run has, in the first one's order."""
    return [name for name in runs[0].table if all(name in facts.table for facts in runs)]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, deviation, and half the 95 % interval of the mean (Student's t over runs);
    zeros for one value."""
    mean, deviation, _, high = mean_interval(values)
    return mean, deviation, 0.0 if high is None else high - mean


def ends(mean: float, half: float) -> tuple[float, float]:
    """The interval of an accuracy in per cent, which ends at 0 and 100."""
    return max(0.0, mean - half), min(100.0, mean + half)


def _lead(runs: Sequence[Facts]) -> str:
    names = names_of(runs)
    head = next(
        (name for name in reversed(names) if name == runs[0].head), names[-1] if names else None
    )
    if head is None:
        return "<p class='lead'>No column of the table is in all of these runs.</p>"
    mean, deviation, half = spread([facts.table[head]["top1"] for facts in runs])
    low, high = ends(mean, half)
    first = (
        f"<p class='lead'>{runs[0].shown(head)} names {mean:.1f} % of the test videos correctly, on average over "
        f"{len(runs)} runs (deviation {deviation:.1f}; 95 % interval of the mean {low:.1f} to "
        f"{high:.1f}).</p>"
    )
    base = runs[0].baseline
    if base is None or base not in names or base == head:
        return first
    gains = [facts.table[head]["top1"] - facts.table[base]["top1"] for facts in runs]
    gain, _, around = spread(gains)
    wins = sum(value > 0 for value in gains)
    return first + (
        f"<p class='then'>Against {runs[0].shown(base)} that is {gain:+.1f} points (95 % interval "
        f"{gain - around:+.1f} to {gain + around:+.1f} over runs); it is ahead in {wins} of {len(runs)} runs.</p>"
    )


def _table(runs: Sequence[Facts]) -> str:
    names = names_of(runs)
    values = {name: [float(facts.table[name]["top1"]) for facts in runs] for name in names}
    every = [value for row in values.values() for value in row]
    least, most = min(every, default=0.0), max(every, default=100.0)
    step = nice_step(max(most - least, 5.0) / 4)
    scale = step * (least // step), step * -(-most // step)
    rows = []
    for name, accuracies in values.items():
        mean, deviation, half = spread(accuracies)
        low, high = ends(mean, half)
        rows.append([
            runs[0].shown(name), f"{mean:.2f}", f"{deviation:.2f}", f"{low:.1f} - {high:.1f}",
            f"{min(accuracies):.1f} - {max(accuracies):.1f}", _dots(accuracies, mean, scale),
        ])  # fmt: skip
    header = [
        "system",
        "mean top-1 %",
        "deviation",
        "95 % interval",
        "range",
        f"each run, {scale[0]:g} to {scale[1]:g} %",
    ]
    note = "<p class='soft'>Interval: of the mean over runs, by Student's t; it says what other seeds or splits would "
    return (
        table(header, rows, len(rows) - 1, numbers=1)
        + note
        + "do, not what other videos would.</p>"
    )


def _dots(values: Sequence[float], mean: float, scale: tuple[float, float]) -> str:
    least, most = scale
    places = [100 * (value - least) / ((most - least) or 1.0) for value in [*values, mean]]
    dots = "".join(
        f'<circle cx="{at:.1f}" cy="6" r="2.2" style="fill:var(--s0)"/>' for at in places[:-1]
    )
    label = "top-1 of each run: " + ", ".join(f"{value:.1f}" for value in values)
    mark = f'<line x1="{places[-1]:.1f}" x2="{places[-1]:.1f}" y1="0" y2="12" style="stroke:var(--s1);stroke-width:2"/>'
    base = '<line x1="0" x2="100" y1="6" y2="6" style="stroke:var(--line)"/>'
    return f'<svg class="whisker" viewBox="-3 0 106 12" role="img" aria-label="{label}">{base}{dots}{mark}</svg>'


def _each(runs: Sequence[Facts], out: Path) -> str:
    names = names_of(runs)
    rows = []
    for facts in runs:
        report = os.path.relpath(facts.paths.report.resolve(), out.resolve().parent)
        name = html.escape(facts.name)
        link = (
            f'<a href="{html.escape(quote(report))}">{name}</a>'
            if facts.paths.report.is_file()
            else name
        )
        figures = [f"{facts.table[column]['top1']:.2f}" for column in names]
        config = facts.config
        rows.append([link, html.escape(config.recipe), facts.split, str(config.seed), *figures])
    header = ["run", "recipe", "split", "seed", *(runs[0].shown(name) for name in names)]
    return table(header, rows, numbers=2)


def _curves(runs: Sequence[Facts]) -> str:
    """Each phase once: all runs thin, their mean thick, over steps."""
    parts = []
    for name in ordered_phases(runs[0].config.phases):
        logs = [facts.logs[name] for facts in runs if name in facts.logs and facts.logs[name].rows]
        lines: list[Line] = []
        streams = sorted({s for log in logs for s in log.series("accuracy_")})
        for number, stream in (
            (STREAM_SERIES.get(stream, 2 + n), stream) for n, stream in enumerate(streams)
        ):
            key = f"accuracy_{stream}"
            curves = [
                [(row["step"], 100 * row[key]) for row in log.rows if key in row] for log in logs
            ]
            lines += [Line(stream, curve, number, faint=True) for curve in curves]
            lines.append(Line(f"{stream}, mean", _mean(curves), number))
        lines += _held_out(logs)
        if lines:
            steps = [x for line in lines for x, _ in line.points]
            x, y = axis(steps, 0.0), axis([], 0.0, 100.0)
            parts.append(
                plot(
                    f"{runs[0].title(name)}: accuracy while training, in %, over steps", lines, x, y
                )
            )
    return (
        f'<div class="grid">{"".join(parts)}</div>'
        if parts
        else "<p>No run has written metrics.</p>"
    )


def _held_out(logs: Sequence[PhaseLog]) -> list[Line]:
    """Means over runs of the accuracy on held-out videos."""
    before = f"{VALIDATION}accuracy_"
    lines = []
    for n, stream in enumerate(sorted({s for log in logs for s in log.series(before)})):
        key = before + stream
        looked = [log for log in logs if any(key in row for row in log.rows)]
        curves = [
            [(row["step"], 100 * row[key]) for row in log.rows if key in row] for log in looked
        ]
        number = STREAM_SERIES.get(stream, 2 + n) + 2
        lines.append(Line(f"held out: {stream}, mean", _mean(curves), number))
    return lines


def _mean(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """At the steps that all curves have."""
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(one) for one in tables))) if tables else []
    return [(step, sum(one[step] for one in tables) / len(tables)) for step in shared]


def _classes(runs: Sequence[Facts]) -> str:
    """Classes whose share differs most between runs, and the worst on average."""
    shares = _shares(runs)
    if not shares:
        return ""
    order = sorted(shares, key=lambda name: sum(shares[name]) / len(shares[name]))
    rows = []
    for name in order:
        per_run, (mean, deviation, _) = shares[name], spread(shares[name])
        dots = _dots(per_run, mean, (0, 100))
        rows.append(
            [
                html.escape(name),
                f"{mean:.1f}",
                f"{deviation:.1f}",
                f"{min(per_run):.0f} - {max(per_run):.0f}",
                dots,
            ]
        )
    header = ["class", "mean %", "deviation", "range", "each run, 0 to 100 %"]
    first = table(header, rows[:MOST_CLASSES], numbers=1)
    rest = rows[MOST_CLASSES:]
    more = (
        f"<details><summary>{len(rest)} more</summary>{table(header, rest, numbers=1)}</details>"
        if rest
        else ""
    )
    return f"<p class='soft'>{runs[0].shown(runs[0].head)}, the worst class first.</p>{first}{more}"


def _shares(runs: Sequence[Facts]) -> dict[str, list[float]]:
    """Of each class that all runs have, the share that is right in each run."""
    shares: dict[str, list[float]] = {}
    for facts in runs:
        scores = facts.columns.get(runs[0].head or "")
        if (
            scores is None
            or scores.labels.ndim != 1
            or scores.classes != runs[0].columns[runs[0].head or ""].classes
        ):
            return {}
        hits = is_right(scores)
        for number, name in enumerate(scores.classes):
            own = scores.labels == number
            if own.any():
                shares.setdefault(name, []).append(100 * float(hits[own].mean()))
    return {name: values for name, values in shares.items() if len(values) == len(runs)}


def _confusions(runs: Sequence[Facts]) -> str:
    """All runs' videos in one matrix, where they have the same classes."""
    if not _shares(runs):
        return "<p>These runs have other classes each.</p>"
    head = runs[0].head or ""
    every = [facts.columns[head] for facts in runs]
    first = every[0]
    joined = type(first)(
        [name for scores in every for name in scores.ids], np.concatenate([s.labels for s in every]), first.classes,
        np.concatenate([s.logits for s in every]), {}, first.made_by,
    )  # fmt: skip
    return matrix.section(joined, f"{runs[0].title(head)}, all runs together", 0)


def _differences(runs: Sequence[Facts]) -> str:
    """Values of the config in which the runs differ."""
    configs = [flat(plain(facts.config)) for facts in runs]
    keys = sorted(
        {key for one in configs for key in one if len({repr(c.get(key)) for c in configs}) > 1}
    )
    kept = [key for key in keys if not key.startswith("cluster.environment")]
    if not kept:
        return "<p>Nothing in their configs.</p>"
    names = [html.escape(facts.name) for facts in runs]
    rows = [
        [f"<code>{html.escape(key)}</code>", *(html.escape(str(one.get(key))) for one in configs)]
        for key in kept
    ]
    return table(["option", *names], rows)
