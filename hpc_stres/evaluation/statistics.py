"""Intervals and tests that know which videos were cut from one recording. Pure.

Clips of one recording succeed and fail together, so a set of 3,783 clips of 707 recordings holds
less evidence than 3,783 recordings would. The unit that is drawn here is therefore the recording,
and classes are fixed strata:

* The variance of a weighted mean is the sum over strata of the squared deviations of recordings'
  totals from what their sizes let expect (the ratio estimator of survey sampling). With few and
  uneven recordings such a sum is too small. The factor that makes up for it is known exactly at
  both ends, for independent clips and for clips that are all alike; the larger one is taken.
* The interval of a share is Wilson's, with as many videos as would have that variance, and with
  Student's t in place of the normal quantile. Where few recordings hold all errors their variance
  is itself badly known; so it is joined, with the weight of one recording, by the variance that
  clips have that are all alike.
* Where every clip is a recording of its own, the interval of a share is Wilson's and
  the test McNemar's.
* A paired test turns the difference of whole recordings around. All turns are
  counted, none are drawn.

Recordings that hold clips of several classes join these classes into one stratum. Strata of one
recording tell nothing about their spread and are joined with each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
LEVEL = 0.95
NORMAL_QUANTILE = 1.959963984540054
# From so many degrees of freedom on, Student's t is the normal to seven digits.
NORMAL_FREEDOM = 1e7
MOST_STEPS = 100


@dataclass(frozen=True)
class Design:
    """The recording of each video, and the stratum of each recording, both as numbers from 0."""

    recordings: Integers
    strata: Integers

    @property
    def count(self) -> int:
        """How many recordings there are."""
        return len(self.strata)

    @property
    def are_single(self) -> bool:
        """Whether every video is a recording of its own."""
        return self.count == len(self.recordings)

    def totals(self, values: Array) -> Array:
        """Sum of the videos' values in each recording."""
        return np.asarray(
            np.bincount(self.recordings, weights=values, minlength=self.count), np.float64
        )


def design(labels: Sequence[int] | Integers, groups: Sequence[str] | None = None) -> Design:
    """Which recording each video is of; a video whose group is empty is a recording of its own."""
    count = len(labels)
    names = [""] * count if groups is None else list(groups)
    if len(names) != count:
        raise ValueError(f"{len(names)} groups for {count} videos")
    numbers: dict[tuple[str, int], int] = {}
    recordings = np.array(
        [
            numbers.setdefault((name, -1) if name else ("", n), len(numbers))
            for n, name in enumerate(names)
        ],
        np.int64,
    )
    return Design(recordings, _strata(np.asarray(labels, np.int64), recordings, len(numbers)))


def _strata(labels: Integers, recordings: Integers, count: int) -> Integers:
    """Stratum of each recording: its class, with the classes that recordings share joined."""
    joined = {int(label): int(label) for label in labels}

    def root(label: int) -> int:
        while joined[label] != label:
            joined[label] = joined[joined[label]]
            label = joined[label]
        return label

    first: dict[int, int] = {}
    for label, recording in zip(labels.tolist(), recordings.tolist(), strict=True):
        joined[root(label)] = root(first.setdefault(recording, label))
    own = np.array([root(first[recording]) for recording in range(count)], np.int64)
    return _without_lone(own)


def _without_lone(strata: Integers) -> Integers:
    """Strata of one recording joined with each other; a last one with the
    smallest of the others."""
    names, numbers, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    lone = sizes == 1
    if not lone.any() or len(names) == 1:
        return np.asarray(numbers, np.int64)
    target = int(np.argmax(lone))
    merged = np.where(lone, target, np.arange(len(names)))
    if lone.sum() == 1:
        others = np.where(lone, np.iinfo(np.int64).max, sizes)
        merged[target] = int(np.argmin(others))
    return np.asarray(np.unique(merged[numbers], return_inverse=True)[1], np.int64)


@dataclass(frozen=True)
class Estimate:
    """A weighted mean, its variance over recordings, and the degrees of freedom
    of that variance."""

    mean: float
    variance: float
    freedom: float
    totals: Array
    """What each recording adds to the mean."""
    sizes: Array
    """Share of the weight that each recording has."""


def estimate(values: Array, plan: Design, weights: Array | None = None) -> Estimate:
    """Mean of the videos' values and its variance; weights default to the same for all."""
    given = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    shares = given / given.sum()
    totals, sizes = plan.totals(shares * values), plan.totals(shares)
    strata = int(plan.strata.max()) + 1

    def over_strata(parts: Array) -> Array:
        return np.asarray(np.bincount(plan.strata, weights=parts, minlength=strata), np.float64)

    stratum_sizes, counts = over_strata(sizes), np.bincount(plan.strata, minlength=strata)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = over_strata(totals) / stratum_sizes
        parts = sizes / stratum_sizes[plan.strata]
        squares, cubes = over_strata(parts**2), over_strata(parts**3)
        independent = 1 / (1 - squares)
        alike = squares / (squares - 2 * cubes + squares**2)
    deviations = totals - ratios[plan.strata] * sizes
    factor = np.where(counts > 1, np.fmax(independent, alike), 0.0)
    factor = np.where(np.isfinite(factor), factor, 0.0)
    spread = over_strata(deviations**2) * factor
    variance = float(spread.sum())
    freedoms = np.maximum(counts - 1, 1)
    freedom = float((counts - 1).sum())
    if variance > 0:
        freedom = variance**2 / float((spread**2 / freedoms).sum())
    return Estimate(float(totals.sum()), variance, max(freedom, 1.0), totals, sizes)


def wilson(share: float, count: float, quantile: float = NORMAL_QUANTILE) -> tuple[float, float]:
    """Wilson's interval of a share of `count` videos."""
    if count <= 0:
        return 0.0, 1.0
    z, n = quantile, count
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the interval touches them; the formula does so to rounding only.
    low = 0.0 if share <= 0 else max(0.0, centre - half)
    high = 1.0 if share >= 1 else min(1.0, centre + half)
    return low, high


def share_interval(
    hits: NDArray[np.bool_], plan: Design, weights: Array | None = None
) -> tuple[float, float]:
    """95 % interval of the share of hits; the method is `interval_method`'s."""
    if not len(hits):
        return 0.0, 1.0
    if plan.are_single and weights is None:
        return wilson(int(hits.sum()) / len(hits), len(hits))
    if plan.count == 1:
        return 0.0, 1.0
    estimated = estimate(hits.astype(np.float64), plan, weights)
    share = min(max(estimated.mean, 0.0), 1.0)
    alike = float((estimated.sizes**2).sum())
    failing = plan.totals((~hits).astype(np.float64)) > 0
    succeeding = plan.totals(hits.astype(np.float64)) > 0
    telling = min(int(failing.sum()), int(succeeding.sum()))
    if telling == 0:
        return wilson(round(share), 1 / alike, t_quantile((1 + LEVEL) / 2, estimated.freedom))
    variance = (telling * estimated.variance + share * (1 - share) * alike) / (telling + 1)
    return wilson(
        share, share * (1 - share) / variance, t_quantile((1 + LEVEL) / 2, estimated.freedom)
    )


def interval_method(plan: Design) -> str:
    """How `share_interval` works on unweighted shares of this design."""
    return "wilson" if plan.are_single else "cluster"


def class_weights(labels: Integers) -> Array:
    """Weights that make a mean over videos the mean of the classes' means."""
    counts = np.bincount(labels)
    return np.asarray(1.0 / counts[labels], np.float64)


def difference_interval(
    differences: Array, plan: Design, weights: Array | None = None
) -> tuple[float, float, float]:
    """Mean difference of paired videos (each from -1 to 1) and its 95 % interval.

    One more recording that differs is added to the variance, as Agresti and Min add one to
    McNemar's counts: where few differ, the spread of those few is too small by chance.
    """
    estimated = estimate(differences, plan, weights)
    if plan.count == 1:
        return estimated.mean, -1.0, 1.0
    differing = estimated.totals != 0
    typical = float((estimated.sizes**2).sum()) ** 2
    extra = float((estimated.totals[differing] ** 2).mean()) if differing.any() else typical
    half = t_quantile((1 + LEVEL) / 2, estimated.freedom) * math.sqrt(estimated.variance + extra)
    return estimated.mean, max(-1.0, estimated.mean - half), min(1.0, estimated.mean + half)


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test: the binomial test of discordant pairs."""
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return min(1.0, 2 * tail)


def sign_flip_p(differences: Sequence[int] | Integers, plan: Design) -> float:
    """Exact two-sided p-value of a paired difference, whole recordings turned around in all ways.

    `differences` are whole numbers, one a video. The distribution of the sum over all 2^n turns is
    built up recording by recording: each moves half of it up and half down by its own difference.
    """
    totals = np.bincount(
        plan.recordings, weights=np.asarray(differences, np.float64), minlength=plan.count
    )
    steps = np.abs(np.rint(totals)).astype(np.int64)
    seen = abs(int(np.rint(totals.sum())))
    steps = steps[steps > 0]
    if seen == 0:
        return 1.0
    if (steps == 1).all():
        more = (len(steps) + seen) // 2
        return mcnemar_p(more, len(steps) - more)
    # In units of the largest step that all are multiples of; turns reach every second number only.
    unit = int(np.gcd.reduce(steps))
    steps = np.sort(steps // unit)
    chances = np.ones(1)
    for step in steps.tolist():
        wider = np.zeros(len(chances) + step)
        wider[: len(chances)] += chances / 2
        wider[step:] += chances / 2
        chances = wider
    # chances[i]: that the recordings turned up add up to i; their sum is then 2 i - all.
    first = (seen // unit + int(steps.sum())) // 2
    return float(min(1.0, 2 * chances[first:].sum()))


def holm(values: Sequence[float]) -> list[float]:
    """P-values of several tests, each as large as Holm's step-down procedure makes it."""
    order = sorted(range(len(values)), key=lambda n: values[n])
    adjusted, least = [0.0] * len(values), 0.0
    for rank, number in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[number]))
        adjusted[number] = least
    return adjusted


def mean_interval(values: Sequence[float]) -> tuple[float, float, float | None, float | None]:
    """Mean, standard deviation and Student's 95 % interval of a few runs; no
    interval of one run."""
    numbers = np.asarray(values, np.float64)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return mean, 0.0, None, None
    deviation = float(numbers.std(ddof=1))
    half = t_quantile((1 + LEVEL) / 2, len(numbers) - 1) * deviation / math.sqrt(len(numbers))
    return mean, deviation, mean - half, mean + half


def welch_p(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's t-test; none where a side has one value or nothing varies."""
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if min(len(one), len(two)) < 2:
        return None
    parts = one.var(ddof=1) / len(one), two.var(ddof=1) / len(two)
    total = float(parts[0] + parts[1])
    if total == 0:
        return None
    freedom = total**2 / float(parts[0] ** 2 / (len(one) - 1) + parts[1] ** 2 / (len(two) - 1))
    return 2 * t_tail(abs(float(one.mean() - two.mean())) / math.sqrt(total), freedom)


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t below which it lies with a probability of more than a half.

    Newton's method on the tail, which is convex: from the normal's quantile, which lies below, it
    climbs and never passes the answer.
    """
    value = NormalDist().inv_cdf(probability)
    if freedom >= NORMAL_FREEDOM:
        return value
    logarithm = (
        math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    )
    for _ in range(MOST_STEPS):
        density = math.exp(logarithm - (freedom + 1) / 2 * math.log1p(value * value / freedom))
        step = (t_tail(value, freedom) - (1 - probability)) / density
        value += step
        if step <= 1e-14 * value:
            break
    return value


def t_tail(value: float, freedom: float) -> float:
    """Probability that Student's t is above a value of 0 or more."""
    square = value * value
    if square >= freedom:
        return 0.5 * _beta_share(freedom / 2, 0.5, freedom / (freedom + square))
    return 0.5 - 0.5 * _beta_share(0.5, freedom / 2, square / (freedom + square))


def _beta_share(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz's way
    of evaluating it)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(b, a, 1 - x)
    logarithm = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    tiny, c = 1e-300, 1.0
    d = 1 / _not_zero(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 100_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + term * d, tiny)
            c = _not_zero(1 + term / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return math.exp(logarithm) * fraction / a


def _not_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
