"""Measures of videos that have several classes: average precision, F1, Hamming loss. Pure.

Truth is a matrix of 0 and 1, videos by classes. A class is answered where its logit is
above 0 (a half).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.evaluation import statistics
from hpc_stres.evaluation.statistics import Design

Array = NDArray[np.float64]
Truth = NDArray[np.int64]
MOST_BLOCKS = 100


def average_precision(truth: NDArray[Any], scores: Array) -> float | None:
    """Area under the steps of precision over recall, as scikit-learn's; videos of one
    score enter together.

    None where the class has no positive video.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    right = np.cumsum(truth[order].astype(np.float64))[last]
    if not len(ranked) or right[-1] <= 0:
        return None
    steps = np.diff(right, prepend=0.0) / right[-1]
    return float((steps * right / (last + 1)).sum())


def mean_average_precision(truth: Truth, scores: Array) -> float:
    """Mean over the classes that have positive videos."""
    precisions = [average_precision(truth[:, n], scores[:, n]) for n in range(truth.shape[1])]
    there = [value for value in precisions if value is not None]
    return sum(there) / len(there) if there else 0.0


def map_interval(truth: Truth, scores: Array, plan: Design) -> tuple[float, float]:
    """95 % interval of mAP: the jackknife over recordings, or over MOST_BLOCKS blocks of them,
    and Student's t."""
    blocks = min(plan.count, MOST_BLOCKS)
    if blocks < 2:
        return 0.0, 1.0
    block = plan.recordings % blocks
    replicates = np.array(
        [mean_average_precision(truth[block != n], scores[block != n]) for n in range(blocks)]
    )
    whole = mean_average_precision(truth, scores)
    deviation = float(
        np.sqrt((blocks - 1) / blocks * ((replicates - replicates.mean()) ** 2).sum())
    )
    half = statistics.t_quantile((1 + statistics.LEVEL) / 2, blocks - 1) * deviation
    return max(0.0, whole - half), min(1.0, whole + half)


def _f1(right: float, answered: float, there: float) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 where there is nothing to divide by, as scikit-learn's."""
    precision = right / answered if answered else 0.0
    recall = right / there if there else 0.0
    return precision, recall, 2 * right / (answered + there) if answered + there else 0.0


def measure(truth: Truth, classes: list[str], logits: Array, plan: Design) -> dict[str, Any]:
    """What results.json says of one column of multi-label data, in per cent."""
    answered = logits > 0
    positive = truth > 0
    per_class = []
    for number, name in enumerate(classes):
        right = int((answered[:, number] & positive[:, number]).sum())
        precision, recall, f1 = _f1(right, answered[:, number].sum(), positive[:, number].sum())
        ap = average_precision(truth[:, number], logits[:, number])
        per_class.append({
            "class": name, "videos": int(positive[:, number].sum()),
            "groups": len(set(plan.recordings[positive[:, number]].tolist())), "ap": None if ap is None else 100 * ap,
            "precision": 100 * precision, "recall": 100 * recall, "f1": 100 * f1,
        })  # fmt: skip
    micro = _f1(int((answered & positive).sum()), int(answered.sum()), int(positive.sum()))[2]
    low, high = map_interval(truth, logits, plan)
    return {
        "map": 100 * mean_average_precision(truth, logits), "micro_f1": 100 * micro,
        "macro_f1": float(np.mean([row["f1"] for row in per_class])),
        "hamming": 100 * float((answered != positive).mean()), "per_class": per_class,
        "map_interval": [100 * low, 100 * high],
    }  # fmt: skip
