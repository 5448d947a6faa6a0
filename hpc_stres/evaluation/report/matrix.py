"""The confusion matrix: classes that are alike beside each other, the whole as a picture, a
part with names.

The picture shows every cell and no name. The lens beside it shows a part with names and counts; the
page's script moves it by pointer and arrow keys, and without a script it shows the most frequent
confusion. For few classes the lens is the whole matrix. Every cell with its names is in a table
that is folded up.
"""

import html
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpc_stres.evaluation.predict import softmax
from hpc_stres.evaluation.scores import Scores

LENS = 11
# Up to so many classes the lens shows all of them.
WHOLE = 16
MOST_PAIRS = 30
Counts = NDArray[np.int64]


def counts(scores: Scores) -> Counts:
    """How many videos of each class (row) were given each answer (column)."""
    size = len(scores.classes)
    matrix = np.zeros((size, size), np.int64)
    np.add.at(matrix, (scores.labels, scores.logits.argmax(axis=1)), 1)
    return matrix


def likeness(scores: Scores) -> NDArray[np.float64]:
    """How probable the network finds one class on videos of the other, both ways: symmetric,
    whatever the answers."""
    size = len(scores.classes)
    total, videos = np.zeros((size, size)), np.bincount(scores.labels, minlength=size)
    np.add.at(total, scores.labels, softmax(scores.logits))
    mean = total / np.maximum(videos, 1)[:, None]
    return np.asarray((mean + mean.T) / 2)


def order(alike: NDArray[np.float64]) -> list[int]:
    """Average linkage; of two groups that join, the ends that are most alike meet."""
    between = alike.astype(np.float64).copy()
    np.fill_diagonal(between, -np.inf)
    groups = {number: [number] for number in range(len(alike))}
    while len(groups) > 1:
        first, second = sorted(divmod(int(between.argmax()), len(between)))
        one, two = groups[first], groups.pop(second)
        choices = [(a, b) for a in (one, one[::-1]) for b in (two, two[::-1])]
        left, right = max(choices, key=lambda pair: alike[pair[0][-1], pair[1][0]])
        sizes = len(one), len(two)
        joined = (sizes[0] * between[first] + sizes[1] * between[second]) / sum(sizes)
        between[first], between[:, first] = joined, joined
        between[second], between[:, second] = -np.inf, -np.inf
        between[first, first] = -np.inf
        groups[first] = left + right
    return next(iter(groups.values()), [])


def pairs(matrix: Counts, most: int | None = MOST_PAIRS) -> list[tuple[int, int, int]]:
    """True class, answer and number of videos of each confusion, the most frequent first."""
    wrong = matrix - np.diag(matrix.diagonal())
    rows, columns = np.nonzero(wrong)
    confusions = [(int(r), int(c), int(wrong[r, c])) for r, c in zip(rows, columns, strict=True)]
    return sorted(confusions, key=lambda pair: (-pair[2], pair[0], pair[1]))[:most]


def section(scores: Scores, name: str, number: int, with_all: bool = True) -> str:
    """Picture, lens and folded lists of one column; `with_all` every cell as well."""
    ordered = order(likeness(scores))
    matrix = counts(scores)[np.ix_(ordered, ordered)]
    classes = [scores.classes[n] for n in ordered]
    start = pairs(matrix, 1)
    at = start[0][:2] if start else (0, 0)
    data = json.dumps(
        {"names": classes, "cells": _sparse(matrix), "at": at, "lens": LENS, "whole": WHOLE}
    )
    label = (
        f"Confusion matrix of {name}: {len(classes)} classes, those that are alike beside each other. "
        "Arrow keys move the lens."
    )
    return (
        f'<div class="matrix" data-matrix="{number}"><div>'
        f'<div class="over" tabindex="0" role="application" aria-label="{html.escape(label)}">'
        f"{picture(matrix, name)}</div>"
        '<p class="soft">Rows are true classes, columns answers; the stronger, the larger the share of its row. Point '
        "at a cell, or press Tab and the arrow keys: the lens follows.</p></div>"
        f'<div class="lens" aria-live="polite"><p class="told">{told(matrix, classes, *at)}</p>'
        f'<div class="part">{part(matrix, classes, *at)}</div></div>'
        f'<script type="application/json">{_safe(data)}</script></div>'
        f"{_folded(matrix, classes, with_all)}"
    )


def _safe(text: str) -> str:
    """JSON that cannot end its script element, whatever the names are."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _sparse(matrix: Counts) -> list[list[int]]:
    rows, columns = np.nonzero(matrix)
    return [[int(r), int(c), int(matrix[r, c])] for r, c in zip(rows, columns, strict=True)]


def shades(matrix: Counts) -> NDArray[np.float64]:
    """Opacity of each cell: a cell that is not empty is always seen."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.where(matrix > 0, 0.25 + 0.75 * share, 0.0))


def picture(matrix: Counts, name: str) -> str:
    """All cells: right answers in one colour, wrong ones in another."""
    size, strong = len(matrix), shades(matrix)
    cells = "".join(
        f'<rect x="{c}" y="{r}" width="1" height="1" fill="var(--{"s0" if r == c else "s1"})" '
        f'opacity="{strong[r, c]:.2f}"/>'
        for r, c in zip(*np.nonzero(matrix), strict=True)
    )
    label = html.escape(f"{name}: {int(matrix.trace())} of {int(matrix.sum())} on the diagonal")
    return (
        f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{label}" shape-rendering="crispEdges">{cells}'
        f'<rect class="ring zoomed" x="0" y="0" width="0" height="0"/></svg>'
    )


def told(matrix: Counts, classes: Sequence[str], row: int, column: int) -> str:
    """One cell in words."""
    of, many = int(matrix[row].sum()), int(matrix[row, column])
    share = f" ({100 * many / of:.0f} %)" if of else ""
    if row == column:
        return f"<b>{html.escape(classes[row])}</b>: {many} of {of} right{share}"
    return f"<b>{html.escape(classes[row])}</b> taken for <b>{html.escape(classes[column])}</b>: {many} of {of}{share}"


def window(size: int, at: int) -> range:
    """Which rows or columns the lens shows around one."""
    if size <= WHOLE:
        return range(size)
    first = min(max(at - LENS // 2, 0), size - LENS)
    return range(first, first + LENS)


def part(matrix: Counts, classes: Sequence[str], row: int, column: int) -> str:
    """The lens at a cell: names and counts."""
    size = len(matrix)
    return cells(matrix, classes, window(size, row), window(size, column), (row, column))


def cells(
    matrix: Counts,
    classes: Sequence[str],
    rows: range,
    columns: range,
    here: tuple[int, int] | None = None,
) -> str:
    """Some rows and columns as a table; a cell's ground is its share of the row, empty
    ones stay empty."""
    names = [html.escape(name) for name in classes]
    strong = shades(matrix)
    head = "".join(f'<th scope="col" title="{names[c]}"><i>{names[c]}</i></th>' for c in columns)
    body = []
    for r in rows:
        filled = "".join(
            _cell(int(matrix[r, c]), float(strong[r, c]), r == c, (r, c) == here) for c in columns
        )
        body.append(f'<tr><th scope="row" title="{names[r]}">{names[r]}</th>{filled}</tr>')
    return f'<table class="cells"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _cell(count: int, strong: float, is_right: bool, is_here: bool) -> str:
    mark = ' class="here"' if is_here else ""
    if not count:
        return f"<td{mark}></td>"
    # The ground stays pale, so that the number on it can be read in both schemes.
    colour = "s0" if is_right else "s1"
    ground = f"color-mix(in srgb,var(--{colour}) {40 * strong:.0f}%,var(--ground))"
    return f'<td{mark} style="background:{ground}">{count}</td>'


def _folded(matrix: Counts, classes: Sequence[str], with_all: bool) -> str:
    frequent = pairs(matrix)
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(classes[r])}</th><td>{html.escape(classes[c])}</td>"
        f"<td class='n'>{n} of {int(matrix[r].sum())}</td></tr>"
        for r, c, n in frequent
    )
    details = (
        f"<details><summary>The most frequent confusions ({len(frequent)})</summary><div class='wide'><table>"
        "<thead><tr><th scope='col'>class</th><th scope='col'>taken for</th><th scope='col' class='n'>videos</th></tr>"
        f"</thead><tbody>{rows}</tbody></table></div></details>"
        if frequent
        else "<p>Not one video of any class is taken for another.</p>"
    )
    if len(classes) <= WHOLE or not with_all:
        return details
    whole = cells(matrix, classes, range(len(classes)), range(len(classes)))
    return f'{details}<details><summary>Every cell with its names</summary><div class="all">{whole}</div></details>'
