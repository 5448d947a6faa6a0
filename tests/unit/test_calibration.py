"""Measures of one column against scikit-learn's numbers; a temperature never changes an answer."""

import numpy as np
import pytest

from hpc_stres.evaluation import calibration, measures, statistics
from hpc_stres.evaluation.groups import Groups
from hpc_stres.evaluation.scores import summary
from tests.unit.answered import make_scores

# 12 videos of 3 classes; what scikit-learn 1.7 says of them.
LOGITS = np.array(
    [
        [-0.11, 2.65, 0.7],
        [1.28, -0.3, -2.58],
        [-1.42, 1.3, 0.21],
        [-1.81, -3.24, 0.22],
        [-0.68, -0.7, -0.66],
        [0.57, 0.59, 1.92],
        [1.86, 2.66, 1.61],
        [-0.67, -0.11, 0.99],
        [-0.62, 1.1, 2.31],
        [-1.6, -3.54, 2.39],
        [0.04, 1.42, -2.66],
        [3.47, 1.48, -0.25],
    ]
)
LABELS = np.array([0, 0, 1, 2, 2, 1, 0, 2, 0, 0, 0, 2])
LOG_LOSS, BRIER = 1.7506296765151168, 0.9287487343331097
PRECISION, RECALL, F1 = [0.5, 0.25, 0.5], [1 / 6, 0.5, 0.75], [0.25, 1 / 3, 0.6]
BALANCED, MATRIX = 0.47222222222222215, [[1, 3, 2], [0, 1, 1], [1, 0, 3]]


def test_measures_of_classes_are_scikit_learns():
    found = measures.measure(LABELS, ["a", "b", "c"], LOGITS, Groups([""] * 12, "none"))
    assert [row["precision"] / 100 for row in found["per_class"]] == pytest.approx(
        PRECISION, abs=1e-12
    )
    assert [row["recall"] / 100 for row in found["per_class"]] == pytest.approx(RECALL, abs=1e-12)
    assert [row["f1"] / 100 for row in found["per_class"]] == pytest.approx(F1, abs=1e-12)
    assert found["mean_class"] / 100 == pytest.approx(BALANCED, abs=1e-12)
    assert found["confusion"]["matrix"] == MATRIX
    assert found["confusion"]["pairs"][0] == ["a", "b", 3]
    assert found["calibration"]["nll"] == pytest.approx(LOG_LOSS, abs=1e-12)
    assert found["calibration"]["brier"] == pytest.approx(BRIER, abs=1e-12)


def test_a_class_without_videos_or_answers_has_no_figure():
    logits = np.array([[2.0, 1.0, 0.0], [2.0, 0.0, 1.0]])
    plan = statistics.design([0, 1])
    rows = measures.per_class(np.array([0, 1]), ["a", "b", "c"], logits, plan)
    assert (rows[1]["precision"], rows[1]["recall"], rows[1]["f1"]) == (None, 0.0, 0.0)
    assert (rows[2]["precision"], rows[2]["recall"], rows[2]["f1"], rows[2]["videos"]) == (
        None,
        None,
        None,
        0,
    )


def test_the_calibration_error_is_the_distance_of_confidence_and_accuracy():
    """Ten answers of confidence 0.9 of which six are right, ten of 0.6 of which all are: by hand, 0.3 and 0.4."""
    shares = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = np.array([0] * 6 + [1] * 4 + [0] * 10)
    found = calibration.measure(np.log(shares), labels)
    assert found["ece"] == pytest.approx((10 * 0.3 + 10 * 0.4) / 20, abs=1e-12)
    assert sum(row["videos"] for row in found["bins"]) == 20
    assert found["confidence"] == pytest.approx(0.75)


@pytest.mark.parametrize("true_temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_answers_were_drawn_at_is_found(true_temperature):
    random = np.random.default_rng(1)
    honest = 2 * random.standard_normal((6000, 5))
    shares = calibration.probabilities(honest)
    labels = np.array([random.choice(5, p=row) for row in shares])
    found = calibration.fit_temperature(honest * true_temperature, labels)
    assert found == pytest.approx(true_temperature, rel=0.06)
    least = calibration.log_loss(honest * true_temperature, labels, found)
    for other in (0.98 * found, 1.02 * found):
        assert calibration.log_loss(honest * true_temperature, labels, other) > least


def test_a_temperature_changes_no_answer_and_comes_from_held_out_videos_only():
    tested, held_out = make_scores(1), make_scores(2, 0.3)
    plain, scaled = summary(tested, 72, "p"), summary(tested, 72, "p", held_out)
    assert plain["calibration"]["temperature"] is None
    assert scaled["calibration"]["temperature"] == calibration.fit_temperature(
        held_out.logits, held_out.labels
    )
    for key in ("top1", "top5", "mean_class", "per_class", "confusion", "intervals"):
        assert plain[key] == scaled[key]
    assert scaled["calibration"]["fitted_on"] == {"videos": 72}


def test_answers_that_rounding_makes_equal_stay_what_they_were():
    logits = np.array([[0.0, 1e-17]])
    shares = calibration.probabilities(logits, 3.0)
    assert shares[0, 0] == shares[0, 1]
    found = calibration.measure(logits, np.array([1]), 3.0)
    assert [row["accuracy"] for row in found["bins"] if row["videos"]] == [1.0]


def test_held_out_videos_that_are_all_right_or_all_wrong_have_a_bounded_temperature():
    logits = np.eye(4) * 5
    assert calibration.fit_temperature(logits, np.arange(4)) == calibration.COLDEST
    assert calibration.fit_temperature(logits, (np.arange(4) + 1) % 4) == calibration.HOTTEST


def test_logits_of_any_size_have_finite_figures():
    logits = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4]])
    found = calibration.with_temperature(logits, np.array([0, 0, 0]), (logits, np.array([0, 0, 0])))
    assert all(np.isfinite(found[key]) for key in ("nll", "ece", "brier", "temperature"))
