"""Intervals and tests over recordings, against SciPy's numbers, brute force and simulated truth."""

import itertools

import numpy as np
import pytest

from hpc_stres.evaluation import statistics
from tests.campaigns import coverage

# What SciPy 1.16 says: t.ppf, binomtest(...).proportion_ci("wilson"), binomtest(...).pvalue, ttest_ind (Welch).
STUDENT = [
    (1, 0.9, 3.0776835371752544),
    (1, 0.975, 12.706204736174694),
    (1, 0.995, 63.656741162871526),
    (2.5, 0.9, 1.7302509288071766),
    (2.5, 0.975, 3.5746548420036817),
    (2.5, 0.995, 7.163728138948783),
    (6, 0.9, 1.4397557472651483),
    (6, 0.975, 2.4469118511449786),
    (6, 0.995, 3.7074280213248065),
    (40, 0.9, 1.3030770526071949),
    (40, 0.975, 2.021075390306273),
    (40, 0.995, 2.7044592674331622),
    (606, 0.9, 1.2829501258334894),
    (606, 0.975, 1.9638863208199449),
    (606, 0.995, 2.5839665305086514),
]
WILSON = [
    (0, 1, 0.0, 0.7934506856227626),
    (7, 7, 0.6456695649333126, 1.0),
    (48, 96, 0.401924024529863, 0.598075975470137),
    (1, 3783, 4.66641080200421e-05, 0.0014959034602861536),
    (3520, 3783, 0.921929310130569, 0.938154227936087),
]
MCNEMAR = [
    (0, 1, 1.0),
    (3, 9, 0.14599609375),
    (40, 61, 0.046044066929342785),
    (10, 10, 1.0),
    (1000, 900, 0.023108845108901193),
]
WELCH = 0.048044550146572926


def random_design(seed, videos=30, recordings=7, classes=3):
    random = np.random.default_rng(seed)
    group = random.integers(0, recordings, videos)
    return group % classes, [f"g{number}" for number in group], random


@pytest.mark.parametrize(("freedom", "probability", "expected"), STUDENT)
def test_students_quantiles_are_scipys(freedom, probability, expected):
    assert statistics.t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("hits", "count", "low", "high"), WILSON)
def test_where_every_clip_is_its_own_recording_the_interval_is_wilsons(hits, count, low, high):
    right = np.arange(count) < hits
    plan = statistics.design(np.arange(count) % 5)
    assert statistics.interval_method(plan) == "wilson"
    assert statistics.share_interval(right, plan) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("only_first", "only_second", "expected"), MCNEMAR)
def test_where_every_clip_is_its_own_recording_the_test_is_mcnemars(
    only_first, only_second, expected
):
    differences = [1] * only_second + [-1] * only_first + [0] * 11
    plan = statistics.design(np.zeros(len(differences), int))
    assert statistics.sign_flip_p(differences, plan) == pytest.approx(expected, rel=1e-12)


def test_welchs_test_is_scipys():
    found = statistics.welch_p([81.2, 82.9, 80.4], [83.0, 84.4, 85.1, 83.9])
    assert found == pytest.approx(WELCH, rel=1e-9)
    assert statistics.welch_p([1.0], [2.0, 3.0]) is None
    assert statistics.welch_p([1.0, 1.0], [1.0, 1.0]) is None


@pytest.mark.parametrize("seed", range(12))
def test_the_paired_test_counts_every_way_of_turning_recordings_around(seed):
    labels, groups, random = random_design(seed, videos=24, recordings=9)
    plan = statistics.design(labels, groups)
    scale = 1 if seed % 2 else 3
    differences = scale * random.integers(-1, 2, len(labels))
    totals = plan.totals(differences.astype(float))
    seen = abs(totals.sum())
    sums = [abs(np.dot(signs, totals)) for signs in itertools.product((1, -1), repeat=plan.count)]
    expected = sum(one >= seen - 1e-9 for one in sums) / len(sums)
    assert statistics.sign_flip_p(differences, plan) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_depends_on_the_order_of_videos_or_the_names_of_recordings(seed):
    labels, groups, random = random_design(seed)
    hits = random.random(len(labels)) < 0.7
    order = random.permutation(len(labels))
    one = statistics.design(labels, groups)
    two = statistics.design(labels[order], [f"other {groups[n]}" for n in order])
    assert statistics.share_interval(hits, one) == pytest.approx(
        statistics.share_interval(hits[order], two), rel=1e-9
    )
    differences = random.integers(-1, 2, len(labels))
    assert statistics.sign_flip_p(differences, one) == statistics.sign_flip_p(
        differences[order], two
    )


def test_the_interval_mirrors_and_holds_its_share_and_ends_inside():
    for seed in range(40):
        labels, groups, random = random_design(seed, videos=int(2 + seed), recordings=1 + seed % 9)
        hits = random.random(len(labels)) < random.choice([0.0, 0.1, 0.5, 0.98, 1.0])
        plan = statistics.design(labels, groups)
        for weights in (None, statistics.class_weights(labels)):
            share = np.average(hits, weights=weights)
            low, high = statistics.share_interval(hits, plan, weights)
            assert 0.0 <= low <= share + 1e-9
            assert share - 1e-9 <= high <= 1.0
            assert statistics.share_interval(~hits, plan, weights) == pytest.approx(
                (1 - high, 1 - low), abs=1e-9
            )


def test_clips_that_are_all_alike_count_as_their_recordings():
    recordings = np.random.default_rng(0).random(400) < 0.8
    labels = np.zeros(400, int)
    single = statistics.share_interval(recordings, statistics.design(labels))
    copies = statistics.design(np.zeros(2000, int), [f"r{n // 5}" for n in range(2000)])
    grouped = statistics.share_interval(np.repeat(recordings, 5), copies)
    assert grouped == pytest.approx(single, abs=0.002)
    as_if_independent = statistics.wilson(float(recordings.mean()), 2000)
    assert grouped[1] - grouped[0] > 2 * (as_if_independent[1] - as_if_independent[0])


def test_recordings_of_several_classes_join_them_and_lone_ones_are_joined():
    joined = statistics.design([0, 0, 1, 1, 2, 2, 2], ["a", "b", "b", "c", "d", "e", "f"])
    assert joined.strata.tolist()[:3] == [joined.strata[0]] * 3
    assert joined.strata[3] != joined.strata[0]
    lone = statistics.design([0, 1, 2, 2, 2], ["a", "b", "c", "d", "d"])
    assert len(set(lone.strata.tolist())) == 2
    last = statistics.design([0, 1, 1, 2, 2, 2], ["a", "b", "c", "d", "e", "f"])
    assert last.strata[0] == last.strata[1]
    one = statistics.design([0, 0], ["a", "a"])
    assert statistics.share_interval(np.array([True, True]), one) == (0.0, 1.0)


def test_classes_are_strata_only_their_own_spread_counts():
    """Classes that are all right or all wrong, whatever the recording: nothing is left to vary."""
    labels = np.repeat([0, 1], 50)
    groups = [f"{label}{n // 5}" for n, label in enumerate(labels)]
    plan = statistics.design(labels, groups)
    assert statistics.estimate((labels == 0).astype(float), plan).variance == pytest.approx(
        0.0, abs=1e-30
    )
    shuffled = np.random.default_rng(1).permutation(labels == 0)
    assert statistics.estimate(shuffled.astype(float), plan).variance > 0


def test_uneven_recordings_have_an_unbiased_variance_where_clips_are_all_alike():
    """Three recordings of 9, 3 and 1 clips: the mean of many estimates is the true variance, not a part of it."""
    sizes = np.array([9, 3, 1])
    plan = statistics.design(np.zeros(13, int), [f"r{n}" for n in np.repeat(np.arange(3), sizes)])
    random = np.random.default_rng(3)
    found = [
        statistics.estimate(np.repeat(random.standard_normal(3), sizes), plan).variance
        for _ in range(4000)
    ]
    assert np.mean(found) == pytest.approx(((sizes / 13) ** 2).sum(), rel=0.06)


@pytest.mark.parametrize("deviation", coverage.DEVIATIONS)
def test_intervals_hold_the_truth_and_the_test_keeps_its_size(deviation):
    """A short form of `python -m tests.campaigns.coverage`, on a fifth of its classes."""
    labels, groups = coverage.shape_of_testlist01()
    few = labels < 20
    chosen = [group for group, inside in zip(groups, few, strict=True) if inside]
    world = coverage.World(labels[few], chosen, 0.8, deviation, 1.0, np.random.default_rng(11))
    found = coverage.coverage(world, 300)
    # 300 rounds: a true 95 % is 91 to 98.7 in 499 of 500 such simulations.
    assert 0.91 <= found["top-1"][0] <= 0.987
    assert 0.91 <= found["mean class"][0] <= 0.987
    if deviation == 2.0:
        assert found["naive"][0] < 0.9
    size, held, naive = coverage.size_and_coverage(world, 200, shared=False)
    assert 0.005 <= size <= 0.105
    assert 0.895 <= held <= 0.995
    if deviation == 2.0:
        assert naive > 0.1


def test_holm_is_the_step_down_procedure():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_a_difference_that_nobody_showed_is_not_known_exactly():
    labels, groups, _ = random_design(2)
    plan = statistics.design(labels, groups)
    mean, low, high = statistics.difference_interval(np.zeros(len(labels)), plan)
    assert mean == 0.0
    assert low < 0.0 < high
    mean, low, high = statistics.difference_interval(np.ones(len(labels)), plan)
    assert (mean, high) == (pytest.approx(1.0), 1.0)
    assert low < 0.99


def test_very_many_recordings_are_still_exact():
    steps = np.tile([1, 2, 3], 700)
    signs = np.where(np.arange(2100) % 5 < 2, -1, 1)
    clips = np.repeat(signs, steps)
    plan = statistics.design(
        np.zeros(len(clips), int), [str(n) for n in np.repeat(np.arange(2100), steps)]
    )
    found = statistics.sign_flip_p(clips, plan)
    z = abs(clips.sum() - 1) / np.sqrt((steps**2).sum())
    assert found == pytest.approx(2 * statistics.t_tail(float(z), 1e9), rel=0.02)
