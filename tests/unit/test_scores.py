"""Numbers that are computed from scores, against scikit-free arithmetic; columns matched by id."""

import math

import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.evaluation.scores import Scores, from_videos, interval95, mcnemar, mean_of, right, summary
from hpc_stres.evaluation.table import results_table

CLASSES = ["a", "b", "c", "d", "e", "f"]


def scores(seed, count=20, streams=("appearance", "motion")):
    random = np.random.default_rng(seed)
    videos = {f"v{n:02d}": {s: random.standard_normal((3, 6)) for s in streams} for n in range(count)}
    return from_videos(videos, {f"v{n:02d}": n % 6 for n in range(count)}, CLASSES)


def test_logits_are_means_over_time_then_streams():
    found = scores(0)
    expected = (found.streams["appearance"].mean(1) + found.streams["motion"].mean(1)) / 2
    np.testing.assert_array_equal(found.logits, expected)
    assert found.ids == sorted(found.ids)


def test_top_1_and_top_5():
    found = scores(1)
    order = np.argsort(-found.logits, axis=1)
    assert right(found).sum() == (order[:, 0] == found.labels).sum()
    assert right(found, 5).sum() == sum(label in row[:5] for label, row in zip(found.labels, order, strict=True))
    assert summary(found, 22, "p")["videos"] == 20
    assert summary(found, 22, "p")["of"] == 22


def test_late_fusion_needs_the_same_videos():
    one, two = scores(0, streams=("appearance",)), scores(1, streams=("motion",))
    fused = mean_of(one, two)
    np.testing.assert_array_equal(fused.logits, (one.logits + two.logits) / 2)
    with pytest.raises(UserError, match="different videos: v19"):
        mean_of(one, scores(1, count=19))


def test_wilson_interval():
    low, high = interval95(48, 96)
    assert (round(low, 2), round(high, 2)) == (40.19, 59.81)
    assert interval95(96, 96)[1] == 100.0
    assert interval95(0, 10)[0] == 0.0


def test_mcnemar_is_the_exact_binomial_test():
    one, two = scores(3), scores(4)
    only_one, only_two, p = mcnemar(one, two)
    n, k = only_one + only_two, min(only_one, only_two)
    assert p == min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) * 0.5**n)
    assert mcnemar(one, one) == (0, 0, 1.0)


def test_files_come_back_the_same(tmp_path):
    found = scores(5)
    found.save(tmp_path / "s.npz")
    back = Scores.load(tmp_path / "s.npz")
    assert (back.ids, back.classes) == (found.ids, found.classes)
    np.testing.assert_array_equal(back.logits, found.logits)
    np.testing.assert_array_equal(back.streams["motion"], found.streams["motion"])
    with pytest.raises(UserError, match="no such score file"):
        Scores.load(tmp_path / "none.npz")


def test_the_table_says_k_of_n_and_the_published_figure():
    column = {"top1": 50.0, "top5": 90.0, "videos": 95, "of": 96, "interval95": [40.0, 60.0], "protocol": "p"}
    text = results_table({"data": "ucf101", "protocol": "p", "splits": {"1": {"st_resnet": column}}})
    assert "95 of 96" in text
    assert "92.76" in text
