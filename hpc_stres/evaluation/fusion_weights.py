"""Weights of a fusion, chosen by cross-validation over held-out training recordings. Pure.

The candidates are all weights that are multiples of one step and sum to one, and the plain average.
A choice is the candidate that answers most of the videos rightly; of several such the one nearest
to their mean, which is the middle of the good ones and not their edge.

Whether fusing helps at all is asked of videos that the choice has not seen: recordings are dealt
into folds, and each fold is answered with the weights that the other folds choose. A fusion that is
then worse than its best part is none: the best part is taken alone.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.evaluation import measures

Array = NDArray[np.float64]
MOST_FOLDS = 5
# Steps from 0 to 1, the finest whose candidates are not too many.
STEPS, MOST_CANDIDATES = (20, 10, 5, 4, 3, 2, 1), 2000


@dataclass(frozen=True)
class Chosen:
    """Weights of the parts, the held-out videos' scores under weights that did not see them,
    and facts to print."""

    weights: tuple[float, ...]
    unseen: Array
    facts: dict[str, Any]


def choose(parts: Sequence[Array], labels: NDArray[np.int64], recordings: Sequence[str]) -> Chosen:
    """Weights for parts whose scores (videos, classes) have unit length; `recordings` names each
    video's, or is empty.

    Labels are numbers of classes or, where videos have several, rows of 0 and 1.
    """
    rows = np.stack(parts)
    folds = deal(labels, recordings)
    points = candidates(len(parts))
    # Which videos each candidate answers rightly: everything below only counts in this table.
    answers = np.stack([measures.right(np.tensordot(p, rows, 1), labels) for p in points])
    unseen = np.empty_like(rows[0])
    hits = 0
    for fold in range(folds.max() + 1):
        inside = folds == fold
        best = _best(points, answers[:, ~inside].sum(axis=1))
        unseen[inside] = np.tensordot(points[best], rows[:, inside], 1)
        hits += int(answers[best, inside].sum())
    alone = [int(measures.right(row, labels).sum()) for row in rows]
    best_part = int(np.argmax(alone))
    if hits >= alone[best_part]:
        weights = points[_best(points, answers.sum(axis=1))]
    else:
        weights, unseen = np.eye(len(parts))[best_part], rows[best_part]
    chosen = tuple(map(float, weights))
    facts = {
        "weights": list(chosen),
        "videos": len(labels),
        "folds": int(folds.max()) + 1,
        "cross_validated_top1": 100 * hits / len(labels),
        "parts_top1": [100 * count / len(labels) for count in alone],
    }
    return Chosen(chosen, unseen, facts)


def candidates(parts: int) -> Array:
    """All weights in equal steps that sum to one, and the plain average: (candidates, parts)."""
    steps = next(
        (n for n in STEPS if math.comb(n + parts - 1, parts - 1) <= MOST_CANDIDATES), STEPS[-1]
    )
    # Whole numbers that sum to `steps` are the gaps between bars set among them.
    bars = itertools.combinations(range(steps + parts - 1), parts - 1)
    rows = [np.diff([-1, *places, steps + parts - 1]) - 1 for places in bars]
    return np.vstack([np.array(rows) / steps, np.full(parts, 1 / parts)])


def _best(points: Array, hits: NDArray[np.int64]) -> int:
    """The candidate with most hits; of several, the nearest to their mean, and then the first."""
    tied = np.flatnonzero(hits == hits.max())
    distance = np.linalg.norm(points[tied] - points[tied].mean(axis=0), axis=1)
    return int(tied[np.argmin(np.round(distance, 9))])


def deal(labels: NDArray[np.int64], recordings: Sequence[str]) -> NDArray[np.intp]:
    """The fold of each video: recordings are whole, and those of a class are
    spread over the folds."""
    kinds = [tuple(np.atleast_1d(label)) for label in labels]
    names = [
        name or f"\0{number}" for number, name in enumerate(recordings)
    ]  # a video without a name is a recording of its own
    first = {name: kind for name, kind in zip(reversed(names), reversed(kinds), strict=True)}
    count = min(MOST_FOLDS, len(first))
    if count < 2:
        raise UserError(
            f"weights_from: held_out needs two held-out recordings or more; there is {count}\n"
            "Raise evaluation.validation_share, or give the weights."
        )
    order = sorted(first, key=lambda name: (first[name], _hash(name)))
    fold = {name: number % count for number, name in enumerate(order)}
    return np.array([fold[name] for name in names])


def _hash(name: str) -> bytes:
    return hashlib.sha256(b"fold" + name.encode()).digest()
