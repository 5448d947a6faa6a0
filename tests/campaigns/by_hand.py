"""Figures of a column and of a pair of columns worked out with NumPy's loops, SciPy and scikit-learn; see recompute.

Nothing of hpc_stres computes here. Intervals over recordings follow their description in
hpc_stres/evaluation/statistics.py, one recording at a time.
"""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
import sklearn.metrics

BINS = 15


# ---- the figures of one column


def read(path):
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


def softmax(logits, temperature=1.0):
    powers = np.exp(logits / temperature - (logits / temperature).max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def top(logits, labels, count):
    """Whether a class of each video is among its highest; of equal logits the first class counts."""
    hits = []
    for row, label in zip(logits, labels, strict=True):
        best = sorted(range(len(row)), key=lambda n: (-row[n], n))[:count]
        hits.append(any(label[n] for n in best) if np.ndim(label) else label in best)
    return np.array(hits)


def names_of(groups):
    """Each video's recording; a video without a name is one of its own."""
    return [name or f"\0{n}" for n, name in enumerate(groups)]


def strata_of(labels, groups):
    """The stratum of each recording: classes that share recordings are one; strata of one recording are joined."""
    members = {}
    for label, name in zip(labels, groups, strict=True):
        members.setdefault(name, set()).add(int(label))
    parts = []
    for own in members.values():
        touching = [part for part in parts if part & own]
        parts = [part for part in parts if not part & own] + [set().union(own, *touching)]
    parts.sort(key=min)
    stratum = {
        name: next(n for n, part in enumerate(parts) if own <= part)
        for name, own in members.items()
    }
    sizes = Counter(stratum.values())
    lone = [n for n in sizes if sizes[n] == 1]
    if lone and len(sizes) > 1:
        others = [n for n in sorted(sizes) if sizes[n] > 1]
        target = lone[0] if len(lone) > 1 else min(others, key=lambda n: sizes[n])
        stratum = {name: target if n in lone else n for name, n in stratum.items()}
    return stratum


def mean_and_variance(values, weights, groups, stratum):
    """The ratio estimator, stratum by stratum; also its degrees of freedom, recordings' totals and sizes."""
    shares = weights / weights.sum()
    total, size = Counter(), Counter()
    for value, share, name in zip(values, shares, groups, strict=True):
        total[name] += value * share
        size[name] += share
    variance, squares, freedom = 0.0, 0.0, 0
    for number in sorted(set(stratum.values())):
        own = [name for name in stratum if stratum[name] == number]
        whole = sum(size[name] for name in own)
        ratio = sum(total[name] for name in own) / whole
        freedom += len(own) - 1
        if len(own) < 2:
            continue
        parts = [size[name] / whole for name in own]
        two, three = sum(p**2 for p in parts), sum(p**3 for p in parts)
        factor = max(1 / (1 - two), two / (two - 2 * three + two**2))
        spread = factor * sum((total[name] - ratio * size[name]) ** 2 for name in own)
        variance += spread
        squares += spread**2 / (len(own) - 1)
    freedom = max(variance**2 / squares if squares else float(freedom), 1.0)
    return sum(total.values()), variance, freedom, total, size


def wilson(share, count, quantile):
    centre = (share + quantile**2 / (2 * count)) / (1 + quantile**2 / count)
    half = (
        quantile
        * math.sqrt(share * (1 - share) / count + quantile**2 / (4 * count**2))
        / (1 + quantile**2 / count)
    )
    return [0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half]


def interval(hits, groups, strata_labels, weights=None):
    """95 % interval of a share: SciPy's Wilson where every video is a recording, else over recordings."""
    if not len(hits):
        return [0.0, 1.0]
    if len(set(groups)) == len(groups) and weights is None:
        found = scipy.stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(
            0.95, method="wilson"
        )
        return [float(found.low), float(found.high)]
    if len(set(groups)) == 1:
        return [0.0, 1.0]
    weights = np.ones(len(hits)) if weights is None else weights
    stratum = strata_of(strata_labels, groups)
    share, variance, freedom, _, size = mean_and_variance(
        hits.astype(float), weights, groups, stratum
    )
    quantile = scipy.stats.t.ppf(0.975, freedom)
    alike = sum(part**2 for part in size.values())
    failing = len({name for name, hit in zip(groups, hits, strict=True) if not hit})
    succeeding = len({name for name, hit in zip(groups, hits, strict=True) if hit})
    telling = min(failing, succeeding)
    if telling == 0:
        return wilson(float(round(share)), 1 / alike, quantile)
    variance = (telling * variance + share * (1 - share) * alike) / (telling + 1)
    return wilson(share, share * (1 - share) / variance, quantile)


def calibration(logits, labels, temperature=1.0):
    shares = softmax(logits, temperature)
    answers = logits.argmax(axis=1)
    sure = shares[np.arange(len(labels)), answers]
    bins, error = [], 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        own = [n for n, value in enumerate(sure) if (low < value or number == 0) and value <= high]
        if own:
            accuracy = np.mean([answers[n] == labels[n] for n in own])
            error += len(own) / len(sure) * abs(accuracy - np.mean([sure[n] for n in own]))
            bins.append([number, len(own), float(accuracy)])
    truth = np.eye(logits.shape[1])[labels]
    return {
        "ece": error, "brier": float(((shares - truth) ** 2).sum(axis=1).mean()), "confidence": float(sure.mean()),
        "nll": mean_loss(logits / temperature, labels), "bins": bins,
    }  # fmt: skip


def mean_loss(logits, labels):
    """Cross-entropy. Not scikit-learn's: that holds probabilities above 2e-16."""
    return float(
        (scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]).mean()
    )


def temperature_of(logits, labels):
    """The minimum of the loss by SciPy's bounded search, over the logarithm of the temperature."""
    found = scipy.optimize.minimize_scalar(
        lambda power: mean_loss(logits / math.exp(power), labels),
        bounds=(math.log(0.01), math.log(100)),
        method="bounded",
        options={"xatol": 1e-12},
    )
    return math.exp(found.x), found.fun


def single_label(logits, labels, classes, groups):
    count = len(classes)
    answers, hits = logits.argmax(axis=1), top(logits, labels, 1)
    counts = np.bincount(labels, minlength=count)
    weights = 1.0 / counts[labels]
    present = [n for n in range(count) if counts[n]]
    matrix = sklearn.metrics.confusion_matrix(labels, answers, labels=np.arange(count))
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, answers, labels=np.arange(count), zero_division=np.nan
    )
    rows = []
    for n, name in enumerate(classes):
        own = labels == n
        members = [group for group, is_own in zip(groups, own, strict=True) if is_own]
        bounds = interval(hits[own], members, np.zeros(own.sum()))
        rows.append({
            "class": name, "videos": int(counts[n]), "groups": len(set(members)), "right": int(matrix[n, n]),
            "recall": none_of(recall[n]), "precision": none_of(precision[n]), "f1": none_of(f1[n]),
            "interval": [100 * bound for bound in bounds],
        })  # fmt: skip
    wrong = sorted(
        (-matrix[a, b], a, b) for a in range(count) for b in range(count) if a != b and matrix[a, b]
    )
    five = top(logits, labels, 5)
    return {
        "top1": 100 * hits.mean(), "top5": 100 * five.mean(),
        "mean_class": 100 * np.mean([hits[labels == n].mean() for n in present]),
        "per_class": rows,
        "confusion": {"classes": classes, "matrix": matrix.tolist(),
                      "pairs": [[classes[a], classes[b], int(-n)] for n, a, b in wrong[:50]]},
        "intervals": {
            "top1": [100 * x for x in interval(hits, groups, labels)],
            "top5": [100 * x for x in interval(five, groups, labels)],
            "mean_class": [100 * x for x in interval(hits, groups, labels, weights)],
        },
    }  # fmt: skip


def none_of(value):
    return None if np.isnan(value) else 100 * float(value)


def several_labels(logits, truth, classes, groups):
    answered, hits = logits > 0, top(logits, truth, 1)
    there = [n for n in range(len(classes)) if truth[:, n].any()]
    precise = {n: sklearn.metrics.average_precision_score(truth[:, n], logits[:, n]) for n in there}
    f1 = sklearn.metrics.f1_score(truth, answered, average=None, zero_division=0)
    return {
        "top1": 100 * hits.mean(), "map": 100 * np.mean(list(precise.values())),
        "micro_f1": 100 * sklearn.metrics.f1_score(truth, answered, average="micro", zero_division=0),
        "macro_f1": 100 * f1.mean(), "hamming": 100 * sklearn.metrics.hamming_loss(truth, answered),
        "per_class": [{"class": name, "videos": int(truth[:, n].sum()), "f1": 100 * f1[n],
                       "ap": 100 * precise[n] if n in precise else None} for n, name in enumerate(classes)],
        "intervals": {"top1": [100 * x for x in interval(hits, groups, np.zeros(len(hits)))],
                      "map": [100 * x for x in jackknife(logits, truth, groups)]},
    }  # fmt: skip


def mean_precision(logits, truth):
    there = [n for n in range(truth.shape[1]) if truth[:, n].any()]
    return np.mean(
        [sklearn.metrics.average_precision_score(truth[:, n], logits[:, n]) for n in there] or [0.0]
    )


def jackknife(logits, truth, groups):
    """mAP's interval: recordings in the order of their first video are dealt into a hundred blocks at most."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys(groups))}
    blocks = min(len(numbers), 100)
    if blocks < 2:
        return [0.0, 1.0]
    block = np.array([numbers[name] % blocks for name in groups])
    left = [mean_precision(logits[block != n], truth[block != n]) for n in range(blocks)]
    half = scipy.stats.t.ppf(0.975, blocks - 1) * math.sqrt(
        (blocks - 1) ** 2 / blocks * np.var(left, ddof=1)
    )
    whole = mean_precision(logits, truth)
    return [max(0.0, whole - half), min(1.0, whole + half)]


# ---- pairs of columns


def paired(one, two):
    """The difference of two columns over the same videos, with an exact test over turned recordings."""
    groups = names_of(one["groups"])
    strata = one["labels"] if one["labels"].ndim == 1 else np.zeros(len(groups))
    was, now = (top(column["logits"], column["labels"], 1).astype(int) for column in (one, two))
    step = now - was
    stratum = strata_of(strata, groups)
    mean, variance, freedom, total, size = mean_and_variance(
        step.astype(float), np.ones(len(step)), groups, stratum
    )
    by_group = Counter()
    for name, value in zip(groups, step.tolist(), strict=True):
        by_group[name] += value
    if len(by_group) == 1:
        bounds = [-1.0, 1.0]
    else:
        moved = [total[name] for name in by_group if by_group[name]]
        extra = np.mean(np.square(moved)) if moved else sum(part**2 for part in size.values()) ** 2
        half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variance + extra)
        bounds = [max(-1.0, mean - half), min(1.0, mean + half)]
    discordant = int((step > 0).sum()), int((step < 0).sum())
    if len(by_group) == len(groups):
        p = scipy.stats.binomtest(discordant[0], sum(discordant)).pvalue if sum(discordant) else 1.0
    else:
        p = turned(list(by_group.values()))
    return {
        "difference": 100 * mean, "interval": [100 * bound for bound in bounds], "p": min(1.0, p),
        "repaired": discordant[0], "broken": discordant[1], "groups": len(by_group),
    }  # fmt: skip


def turned(totals):
    """How often a sum is as far from 0 when each total may have either sign: all signs, as exact fractions."""
    chances = {0: Fraction(1)}
    for total in filter(None, totals):
        wider = Counter()
        for value, chance in chances.items():
            wider[value + total] += chance / 2
            wider[value - total] += chance / 2
        chances = wider
    seen = abs(sum(totals))
    return float(sum(chance for value, chance in chances.items() if abs(value) >= seen))


def holm(values):
    order = np.argsort(values, kind="stable")
    stepped = [min(1.0, (len(values) - rank) * values[n]) for rank, n in enumerate(order)]
    found = np.empty(len(values))
    found[order] = np.maximum.accumulate(stepped) if len(values) else []
    return found.tolist()
