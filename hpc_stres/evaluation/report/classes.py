"""Per class: confusion matrix, bars of the share that is right, what each phase repaired and
broke, calibration."""

import html
import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpc_stres.evaluation.report import matrix
from hpc_stres.evaluation.report.charts import Axis, Line, plot
from hpc_stres.evaluation.report.facts import Facts, is_right
from hpc_stres.evaluation.scores import Scores, interval95

# Names in a list before the rest is folded up.
MOST_NAMES = 12


def confusions(facts: Facts) -> str:
    """The run's column open, the others folded up."""
    parts = []
    single = {name: column for name, column in facts.columns.items() if column.labels.ndim == 1}
    for number, (name, scores) in enumerate(
        sorted(single.items(), key=lambda item: item[0] != facts.head)
    ):
        text = matrix.section(scores, facts.title(name), number, with_all=name == facts.head)
        parts.append(
            f"<h3>{facts.shown(name)}</h3>{text}"
            if name == facts.head
            else f"<details><summary>Confusions of {facts.shown(name)}</summary>{text}</details>"
        )
    if not single:
        return "<p>Videos of this data set have several classes each: there is no confusion of one for another.</p>"
    return "".join(parts)


def bars(facts: Facts) -> str:
    """Each class's share that is right, the worst first, and beside it the baseline's."""
    if facts.head is None or facts.columns[facts.head].labels.ndim != 1:
        return _multilabel(facts)
    scores = facts.columns[facts.head]
    other = facts.columns.get(facts.baseline or "")
    if other is not None and (other.classes != scores.classes or other.labels.ndim != 1):
        other = None
    right, videos = per_class(scores)
    before = per_class(other) if other is not None else None
    order = np.argsort(right / np.maximum(videos, 1), kind="stable")
    answers = matrix.counts(scores)
    known = intervals(facts)
    rows = [
        _bar(
            scores.classes[n], int(right[n]), int(videos[n]),
            known.get(scores.classes[n]) or interval95(int(right[n]), int(videos[n])),
            None if before is None or not before[1][n] else before[0][n] / before[1][n],
            _mistakes(answers[n], scores.classes, int(n)),
        )
        for n in order if videos[n]
    ]  # fmt: skip
    words = f"Bar: {facts.shown(facts.head)}, with its 95 % interval"
    words += f"; tick: {facts.shown(facts.baseline)}" if before is not None else ""
    return (
        f'<p class="soft">{words}. The worst class first.</p><ul class="bars">{"".join(rows)}</ul>'
    )


def intervals(facts: Facts) -> dict[str, tuple[float, float]]:
    """Of each class's share, where results.json has them: over recordings, not over videos."""
    rows = facts.table.get(facts.head or "", {}).get("per_class", [])
    return {
        row["class"]: (row["interval"][0], row["interval"][1])
        for row in rows
        if row.get("interval")
    }


def per_class(scores: Scores) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of each class's videos are right, and how many there are."""
    size = len(scores.classes)
    return (
        np.bincount(scores.labels, weights=is_right(scores), minlength=size).astype(np.int64),
        np.bincount(scores.labels, minlength=size).astype(np.int64),
    )


def _mistakes(answers: NDArray[np.int64], classes: Sequence[str], own: int) -> str:
    wrong = [(int(count), classes[n]) for n, count in enumerate(answers) if count and n != own]
    return ", ".join(
        f"{name} ({count})" for count, name in sorted(wrong, key=lambda w: (-w[0], w[1]))[:2]
    )


def _bar(
    name: str,
    right: int,
    videos: int,
    span: tuple[float, float],
    before: float | None,
    mistakes: str,
) -> str:
    share, (low, high) = 100 * right / videos, span
    tick = "" if before is None else (
        f'<line x1="{100 * before:.1f}" x2="{100 * before:.1f}" y1="0" y2="10" '
        'style="stroke:var(--s1);stroke-width:3"/>'
    )  # fmt: skip
    label = html.escape(f"{name}: {share:.0f} %, interval {low:.0f} to {high:.0f}")
    taken = f"<small>taken for {html.escape(mistakes)}</small>" if mistakes else ""
    return (
        f'<li><span class="top"><span>{html.escape(name)}</span><span>{right} of {videos}</span></span>'
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{label}">'
        '<rect width="100" height="10" style="fill:var(--panel)"/>'
        f'<rect width="{share:.1f}" y="1" height="8" style="fill:var(--s0);opacity:.85"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="5" y2="5" style="stroke:var(--text);stroke-width:1"/>{tick}</svg>'
        f"{taken}</li>"
    )


def _multilabel(facts: Facts) -> str:
    rows = facts.table.get(facts.head or "", {}).get("per_class", [])
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda row: row.get("ap") or 0.0)
    items = "".join(
        f'<li><span class="top"><span>{html.escape(row["class"])}</span>'
        f"<span>{'-' if row.get('ap') is None else format(row['ap'], '.1f')}</span></span></li>"
        for row in ordered
    )
    return f'<p class="soft">Average precision of each class in %, the worst first.</p><ul class="bars">{items}</ul>'


def changes(facts: Facts) -> str:
    """From each column to the next: videos that became right and that became wrong, by name."""
    parts = []
    for before, after in itertools.pairwise(facts.columns):
        one, two = facts.columns[before], facts.columns[after]
        if one.ids != two.ids:
            continue
        was, now = is_right(one), is_right(two)
        repaired = [one.ids[i] for i in np.nonzero(~was & now)[0]]
        broken = [one.ids[i] for i in np.nonzero(was & ~now)[0]]
        parts.append(
            f"<details><summary>{facts.shown(before)} to {facts.shown(after)}: {len(repaired)} repaired, "
            f"{len(broken)} broken</summary><p>Repaired: {html.escape(', '.join(repaired) or 'none')}</p>"
            f"<p>Broken: {html.escape(', '.join(broken) or 'none')}</p></details>"
        )
    return "".join(parts) or "<p>There is one column; nothing to compare it with.</p>"


def calibration(facts: Facts) -> str:
    """The reliability plot and the expected calibration error, where results.json has them."""
    measured = facts.table.get(facts.head or "", {}).get("calibration")
    if not isinstance(measured, dict) or "bins" not in measured:
        return ""
    lines = [Line("as trained", _reliability(measured["bins"]), 0)]
    words = f"Expected calibration error {100 * measured['ece']:.1f} points"
    scaled = measured.get("scaled")
    if isinstance(scaled, dict):
        lines.append(
            Line(f"temperature {measured['temperature']:.2f}", _reliability(scaled["bins"]), 1)
        )
        words += f", {100 * scaled['ece']:.1f} with a temperature of {measured['temperature']:.2f}"
        words += ", fitted on held-out videos"
    lines.append(Line("ideal", [(0.0, 0.0), (100.0, 100.0)], 2, faint=True))
    ticks = [(float(n), f"{n} %") for n in (0, 25, 50, 75, 100)]
    chart = plot(
        "Share that is right, by confidence", lines, Axis(0, 100, ticks), Axis(0, 100, ticks)
    )
    return f'<h3>Calibration of {facts.shown(facts.head)}</h3><p>{words}.</p><div class="grid">{chart}</div>'


def _reliability(bins: Sequence[dict[str, float | None]]) -> list[tuple[float, float]]:
    pairs = [(row["confidence"], row["accuracy"]) for row in bins if row.get("videos")]
    return [(100 * a, 100 * b) for a, b in pairs if a is not None and b is not None]
