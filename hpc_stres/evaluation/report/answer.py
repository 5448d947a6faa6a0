"""The first screen: what came out, in a sentence, a table, and the one comparison that matters."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpc_stres.evaluation.published import published_for
from hpc_stres.evaluation.report.charts import nice_step, table, whisker
from hpc_stres.evaluation.report.facts import Facts
from hpc_stres.evaluation.scores import mcnemar
from hpc_stres.evaluation.table import count_text, protocol_lines

# Below this a difference is called one.
SMALL_P, LEAST_PLAIN_P = 0.05, 1e-3
TESTS = {
    "mcnemar": "exact McNemar test over videos",
    "sign_flip": "permutation test over recordings",
}


@dataclass(frozen=True)
class Comparison:
    """What the second column gains on the first, in points of top-1."""

    first: str
    second: str
    difference: float
    repaired: int
    broken: int
    p: float
    test: str
    interval: tuple[float, float] | None = None


def lead(facts: Facts) -> str:
    """The answer in a sentence, and what it is better or worse than."""
    head = facts.head
    column = facts.table.get(head or "")
    if head is None or column is None:
        return "<p class='lead'>No phase of this run has been tested yet.</p>"
    name = facts.shown(head)
    if "map" in column:
        low, high = interval(column, "map")
        return (
            f"<p class='lead'>{name} reaches a mean average precision of {column['map']:.1f} % on {column['videos']} "
            f"test videos (95 % interval {low:.1f} to {high:.1f}).</p>"
        )
    low, high = interval(column, "top1")
    right = round(column["top1"] * column["videos"] / 100)
    first = (
        f"<p class='lead'>{name} names {right} of {column['videos']} test videos correctly: "
        f"{column['top1']:.1f} % (95 % interval {low:.1f} to {high:.1f}).</p>"
    )
    compared = comparison(facts)
    return first + (f"<p class='then'>{sentence(facts, compared)}</p>" if compared else "")


def comparison(facts: Facts) -> Comparison | None:
    """Of the run's last column with its baseline: from results.json where it is
    there, else McNemar's."""
    first, second = facts.baseline, facts.head
    if first is None or second is None:
        return None
    for row in facts.results.get("comparisons", {}).get(facts.split, []):
        if {row["first"], row["second"]} == {first, second}:
            turned = row["first"] == second
            sign, (low, high) = (-1 if turned else 1), row["interval"]
            repaired, broken = (
                (row["broken"], row["repaired"]) if turned else (row["repaired"], row["broken"])
            )
            span = (-high, -low) if turned else (low, high)
            test = TESTS.get(row["test"], str(row["test"]))
            return Comparison(
                first, second, sign * row["difference"], repaired, broken, row["p"], test, span
            )
    one, two = facts.columns[first], facts.columns[second]
    if one.ids != two.ids or one.labels.ndim != 1:
        return None
    lost, gained, p = mcnemar(one, two)
    return Comparison(
        first, second, 100 * (gained - lost) / len(one.ids), gained, lost, p, TESTS["mcnemar"]
    )


def sentence(facts: Facts, compared: Comparison) -> str:
    """The comparison in words: what it is, of how many videos, and whether chance makes it."""
    size = abs(compared.difference)
    if size < 0.005:
        what = f"That is as many as {facts.shown(compared.first)} names"
    else:
        more = "more" if compared.difference > 0 else "fewer"
        what = f"That is {size:.1f} points {more} than {facts.shown(compared.first)}"
    span = (
        f" (95 % interval {compared.interval[0]:+.1f} to {compared.interval[1]:+.1f})"
        if compared.interval
        else ""
    )
    doubt = "" if compared.p < SMALL_P else ": chance alone makes such a difference often enough"
    return (
        f"{what}{span}: {compared.repaired} videos repaired, {compared.broken} broken; "
        f"{probability(compared.p)}, {html.escape(compared.test)}{doubt}."
    )


def probability(p: float) -> str:
    """`p = 0.03`, or as a power of ten."""
    if p >= LEAST_PLAIN_P:
        return f"p = {p:.2g}"
    digit, power = f"{p:.0e}".split("e")
    return f'<span class="one">p = {digit} \u00b7 10<sup>{int(power)}</sup></span>'


def interval(column: Mapping[str, Any], figure: str) -> tuple[float, float]:
    """A figure's interval; top-1's is in every version of results.json."""
    ends = column.get("intervals", {}).get(figure) or column["interval95"]
    return float(ends[0]), float(ends[1])


def scale(columns: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """A scale for all intervals of a table, in round numbers."""
    ends = [value for column in columns.values() for value in interval(column, "top1")]
    low, high = min(ends, default=0.0), max(ends, default=100.0)
    step = nice_step(max(high - low, 5.0) / 4)
    return max(0.0, step * (low // step)), min(100.0, step * -(-high // step))


def accuracy(facts: Facts) -> str:
    """The table with intervals, the published figure where it may stand there, the protocol."""
    columns, published = facts.table, published_for(facts.results)
    low, high = scale(columns)
    figures = [
        name for name in ("top5", "mean_class", "map") if any(name in c for c in columns.values())
    ]
    heads = {"top5": "top-5 %", "mean_class": "class mean %", "map": "mAP %"}
    header = ["system", "top-1 %", "95 % interval", *(heads[f] for f in figures), "videos"]
    rows = []
    for name, column in columns.items():
        left, right = interval(column, "top1")
        cells = [f"{column[f]:.2f}" if f in column else "-" for f in figures]
        series = 0 if name == facts.head else 1
        rows.append([
            facts.shown(name), f"{column['top1']:.2f}", f"{left:.1f} - {right:.1f}", *cells, count_text(column),
            *([f"{published[name]:.2f}" if name in published else "-"] if published else []),
            whisker(column["top1"], left, right, (low, high), series),
        ])  # fmt: skip
    header += ["published"] if published else []
    header.append(f"top-1 from {low:g} to {high:g} %")
    main = list(columns).index(facts.head) if facts.head in columns else None
    return table(header, rows, main, numbers=1) + _notes(facts)


def _notes(facts: Facts) -> str:
    lines = list(protocol_lines(facts.results))
    column = facts.table.get(facts.head or "", {})
    groups = column.get("groups")
    if isinstance(groups, dict) and groups.get("count"):
        lines.append(f"Intervals over {groups.get('words') or str(groups['count']) + ' groups'}.")
    elif "interval95" in column:
        lines.append("Intervals are Wilson's, as if every video were a recording of its own.")
    lines.append(
        "Compare with care: one run tells nothing of other seeds. What chance does over videos is in the interval; "
        "what it does over seeds is not."
    )
    return "".join(f'<p class="soft">{html.escape(line)}</p>' for line in lines)


def plain_lead(facts: Facts) -> str:
    """The first sentence as text."""
    column = facts.table.get(facts.head or "")
    return (
        f"{facts.title(facts.head)}: {column['top1']:.1f} %"
        if facts.head and column
        else "not tested yet"
    )
