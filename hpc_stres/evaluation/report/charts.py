"""Charts of the page: lines in SVG that stretch with it, words in HTML that keep their
size on a phone."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_stres.evaluation.report.style import DASHES, SERIES

SIDE = 1000
Point = tuple[float, float]
UNITS = (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
# Fewer of a unit than this are told in the next smaller one.
FEWEST_OF_A_UNIT = 2.0


@dataclass(frozen=True)
class Line:
    """One curve; `series` gives colour and dashes."""

    name: str
    points: Sequence[Point]
    series: int
    faint: bool = False
    marks: bool = False


@dataclass(frozen=True)
class Axis:
    """From where to where, and what is written where."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Place of a value between 0 and 1."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(max(v, 1e-300)) for v in (value, low, high))
        return (value - low) / (high - low) if high > low else 0.5


def axis(values: Sequence[float], low: float | None = None, high: float | None = None) -> Axis:
    """Round numbers around values."""
    least = min(values, default=0.0) if low is None else low
    most = max(values, default=1.0) if high is None else high
    if most <= least:
        most = least + (abs(least) or 1.0)
    step = nice_step((most - least) / 4)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    ticks = [(n * step, number(n * step)) for n in range(first, last + 1)]
    return Axis(ticks[0][0], ticks[-1][0], ticks)


def log_axis(values: Sequence[float]) -> Axis:
    """Powers of ten around positive values."""
    positive = [value for value in values if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    last = max(last, first + 1)
    step = max(1, (last - first) // 4)
    ticks = [
        (10.0**n, f"{10.0**n:.0e}" if abs(n) > 3 else f"{10.0**n:g}")
        for n in range(first, last + 1, step)
    ]
    return Axis(10.0**first, 10.0**last, ticks, log=True)


def time_axis(seconds: float) -> Axis:
    """From 0 to a length of time, in the unit that suits it."""
    unit, size = next((u for u in UNITS if seconds >= FEWEST_OF_A_UNIT * u[1]), UNITS[-1])
    length = max(seconds, 1e-6) / size
    step = nice_step(length / 5)
    count = math.floor(length / step + 1e-9)
    ticks = [(n * step * size, f"{number(n * step)} {unit}") for n in range(count + 1)]
    return Axis(0.0, max(seconds, 1e-6), ticks)


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below."""
    size = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough * (1 - 1e-9))


def number(value: float) -> str:
    """A tick: no more digits than it has."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", "\u202f")


def plot(
    title: str,
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    begins: Sequence[float] = (),
    height: str = "11rem",
) -> str:
    """A figure with its key; what a reader who cannot see it hears is each curve's last value."""
    last = ", ".join(
        f"{line.name} ends at {number(line.points[-1][1])}" for line in lines if line.points
    )
    parts = [
        f"<figure><figcaption>{html.escape(title)} {key(lines)}</figcaption>"
        f'<div class="plot" style="--h:{height}">'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(f"{title}: {last}")}">'
    ]
    for value, _ in y.ticks:
        at = _down(y, value)
        parts.append(f'<line class="g" x1="0" x2="{SIDE}" y1="{at}" y2="{at}"/>')
    for start in begins:
        at = _across(x, start)
        parts.append(f'<line class="g" x1="{at}" x2="{at}" y1="0" y2="{SIDE}"/>')
    parts += [_curve(line, x, y) for line in lines]
    parts.append("</svg>")
    parts += [
        f'<span class="y" style="top:{100 - 100 * y.share(value):.2f}%">{text}</span>'
        for value, text in y.ticks
    ]
    parts += [_x_tick(x, value, text) for value, text in x.ticks]
    return "".join(parts) + "</div></figure>"


def spans(title: str, rows: Sequence[tuple[str, float, float]], x: Axis) -> str:
    """From when to when each of some things lasts, one under the other, on the axis of a plot."""
    parts = []
    for number, (name, start, end) in enumerate(rows):
        left, wide = 100 * x.share(start), 100 * (x.share(end) - x.share(start))
        parts.append(
            f'<span class="bar" style="left:{left:.2f}%;width:{wide:.2f}%;top:{1.2 * number:.1f}rem"></span>'
            f'<span class="band" style="left:{left:.2f}%;top:{1.2 * number:.1f}rem;max-width:{100 - left:.2f}%">'
            f"{html.escape(name)}</span>"
        )
    head = f"<figure><figcaption>{html.escape(title)}</figcaption>"
    return f'{head}<div class="plot phases" style="--h:{1.2 * len(rows):.1f}rem">{"".join(parts)}</div></figure>'


def _curve(line: Line, x: Axis, y: Axis) -> str:
    number = line.series % SERIES
    style = f"stroke:var(--s{number});stroke-dasharray:{DASHES[number]}"
    if line.marks:
        style = f"stroke:var(--s{number});stroke-width:9;stroke-linecap:round"
        return "".join(
            f'<polyline points="{_across(x, a)},{_down(y, b)} {_across(x, a)},{_down(y, b)}" style="{style}"/>'
            for a, b in line.points
        )
    points = " ".join(f"{_across(x, a)},{_down(y, b)}" for a, b in line.points)
    return f'<polyline{" class=faint" if line.faint else ""} points="{points}" style="{style}"/>'


def _x_tick(x: Axis, value: float, text: str) -> str:
    share = x.share(value)
    kind = "x last" if share > 0.93 else "x first" if share < 0.03 else "x"
    return f'<span class="{kind}" style="left:{100 * share:.2f}%">{html.escape(text)}</span>'


def _across(x: Axis, value: float) -> str:
    return f"{SIDE * x.share(value):.1f}"


def _down(y: Axis, value: float) -> str:
    return f"{SIDE - SIDE * y.share(value):.1f}"


def key(lines: Sequence[Line]) -> str:
    """What is which: a piece of each line and its name, each name once."""
    seen: dict[str, Line] = {}
    for line in lines:
        if not line.faint:
            seen.setdefault(line.name, line)
    parts = []
    for name, line in seen.items():
        series = line.series % SERIES
        style = f"stroke:var(--s{series});stroke-width:3;stroke-dasharray:{DASHES[series]}"
        shape = f'<line x1="1" x2="27" y1="5" y2="5" style="{style}"/>'
        if line.marks:
            shape = f'<circle cx="14" cy="5" r="4" style="fill:var(--s{series})"/>'
        svg = f'<svg viewBox="0 0 28 10" aria-hidden="true">{shape}</svg>'
        parts.append(f"<b>{svg}{html.escape(name)}</b>")
    return f'<span class="key">{"".join(parts)}</span>' if parts else ""


def whisker(
    value: float, low: float, high: float, scale: tuple[float, float], series: int = 0
) -> str:
    """A point with its interval on a scale that all rows of a table share."""
    least, most = scale
    at, left, right = (100 * (v - least) / ((most - least) or 1.0) for v in (value, low, high))
    label = f"{value:.1f} %, interval {low:.1f} to {high:.1f}"
    return (
        f'<svg class="whisker" viewBox="-3 0 106 12" role="img" aria-label="{label}">'
        f'<line x1="0" x2="100" y1="6" y2="6" style="stroke:var(--line)"/>'
        f'<line x1="{left:.1f}" x2="{right:.1f}" y1="6" y2="6" style="stroke:var(--s{series});stroke-width:2.4"/>'
        f'<circle cx="{at:.1f}" cy="6" r="3" style="fill:var(--s{series})"/></svg>'
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], main: int | None = None, numbers: int = 99
) -> str:
    """A table whose cells are HTML already; columns from `numbers` on are set to the right."""
    kinds = [' class="n"' if column >= numbers else "" for column in range(len(header))]
    head = "".join(
        f'<th scope="col"{kind}>{cell}</th>' for cell, kind in zip(header, kinds, strict=True)
    )
    body = []
    for index, row in enumerate(rows):
        first, *rest = row
        cells = "".join(
            f"<td{kind}>{cell}</td>" for cell, kind in zip(rest, kinds[1:], strict=True)
        )
        body.append(
            f'<tr{" class=main" if index == main else ""}><th scope="row">{first}</th>{cells}</tr>'
        )
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{whole}</div>'
