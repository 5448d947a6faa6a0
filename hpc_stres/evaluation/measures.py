"""What results.json says of one column: accuracies with their intervals, per class, confusion,
calibration. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.evaluation import calibration, multilabel, statistics
from hpc_stres.evaluation.groups import Groups
from hpc_stres.evaluation.statistics import Design

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
MOST_PAIRS = 50


def right(logits: Array, labels: Labels, top: int = 1) -> NDArray[np.bool_]:
    """Whether each video's class (or one of its classes) is among the `top` highest logits."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    if labels.ndim == 2:
        return np.asarray(np.take_along_axis(labels, best, axis=1).any(axis=1))
    return np.asarray((best == labels[:, None]).any(axis=1))


def strata_of(labels: Labels) -> Labels:
    """What intervals are stratified by: the class; videos of several classes are one stratum."""
    return np.zeros(len(labels), np.int64) if labels.ndim == 2 else labels


def measure(
    labels: Labels, classes: Sequence[str], logits: Array, groups: Groups,
    held_out: tuple[Array, Labels] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One column: everything that is computed from its logits and the recordings of its
    videos, in per cent."""
    plan = statistics.design(strata_of(labels), groups.names)
    hits = right(logits, labels)
    intervals: dict[str, Any] = {"top1": statistics.share_interval(hits, plan)}
    column: dict[str, Any] = {"top1": 100 * int(hits.sum()) / len(hits)}
    if labels.ndim == 2:
        several = multilabel.measure(labels, list(classes), logits, plan)
        low, high = several.pop("map_interval")
        intervals["map"] = (low / 100, high / 100)
        column |= several
    else:
        among_five = right(logits, labels, 5)
        intervals["top5"] = statistics.share_interval(among_five, plan)
        weights = statistics.class_weights(labels)
        intervals["mean_class"] = statistics.share_interval(hits, plan, weights)
        column |= {
            "top5": 100 * int(among_five.sum()) / len(hits),
            "mean_class": 100 * float(np.average(hits, weights=weights)),
            "per_class": per_class(labels, classes, logits, plan),
            "confusion": confusion(labels, classes, logits),
            "calibration": calibration.with_temperature(logits, labels, held_out),
        }
    column["intervals"] = {name: [100 * low, 100 * high] for name, (low, high) in intervals.items()}
    column["interval95"] = column["intervals"]["top1"]
    column["groups"] = {
        "source": groups.source, "count": groups.count, "videos": len(groups.names), "words": groups.words,
        "method": statistics.interval_method(plan),
    }  # fmt: skip
    return column


def confusion_matrix(labels: Labels, answers: Labels, count: int) -> Labels:
    """How often each true class (row) was answered as each class (column)."""
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (labels, answers), 1)
    return matrix


def confusion(labels: Labels, classes: Sequence[str], logits: Array) -> dict[str, Any]:
    """The matrix, and its most frequent mistakes by name."""
    matrix = confusion_matrix(labels, logits.argmax(axis=1), len(classes))
    wrong = matrix - np.diag(np.diag(matrix))
    places = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda place: (-wrong[place], place))
    pairs = [
        [classes[row], classes[column], int(wrong[row, column])]
        for row, column in places[:MOST_PAIRS]
    ]
    return {"classes": list(classes), "matrix": matrix.tolist(), "pairs": pairs}


def per_class(
    labels: Labels, classes: Sequence[str], logits: Array, plan: Design
) -> list[dict[str, Any]]:
    """Recall with its interval, precision and F1 of each class; a class without test
    videos has no recall."""
    answers = logits.argmax(axis=1)
    rows = []
    for number, name in enumerate(classes):
        own, answered = labels == number, answers == number
        hits = int((own & answered).sum())
        videos, given = int(own.sum()), int(answered.sum())
        recordings = np.unique(plan.recordings[own], return_inverse=True)[1].astype(np.int64)
        count = int(recordings.max()) + 1 if videos else 0
        low, high = statistics.share_interval(
            answered[own], Design(recordings, np.zeros(count, np.int64))
        )
        rows.append({
            "class": name, "videos": videos, "groups": count, "right": hits,
            "recall": 100 * hits / videos if videos else None,
            "precision": 100 * hits / given if given else None,
            "f1": 200 * hits / (videos + given) if videos + given else None,
            "interval": [100 * low, 100 * high],
        })  # fmt: skip
    return rows
