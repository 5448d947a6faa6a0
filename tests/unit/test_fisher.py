"""Fisher vectors against derivatives of scikit-learn's likelihood, machines against its own on the whole vectors."""

import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.handcrafted import classifier, encoding

pytest.importorskip("sklearn")


def vocabulary(seed=0, gaussians=3, size=4):
    """A vocabulary of numbers drawn by chance; its PCA is a rotation, so that only the mixture is tried."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.5, gaussians)
    rotation = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return encoding.Vocabulary(
        rng.standard_normal(size), rotation, weights / weights.sum(), rng.standard_normal((gaussians, size)),
        rng.uniform(0.3, 2.0, (gaussians, size)),
    )  # fmt: skip


def mean_log_likelihood(rows, words, means, deviations):
    """scikit-learn's own number for a mixture."""
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(len(means), covariance_type="diag")
    mixture.weights_, mixture.means_, mixture.covariances_ = words.weights, means, deviations**2
    mixture.precisions_cholesky_ = 1 / deviations
    return float(mixture.score_samples((rows - words.mean) @ words.components.T).mean())


def test_a_fisher_vector_is_the_scaled_gradient_of_the_likelihood():
    words = vocabulary()
    rows = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
    deviations = np.sqrt(words.variances)
    by_mean, by_deviation = np.zeros_like(words.means), np.zeros_like(words.means)
    for place in np.ndindex(words.means.shape):
        step = np.zeros_like(words.means)
        step[place] = 1e-5
        up, down = (
            mean_log_likelihood(rows, words, words.means + s, deviations) for s in (step, -step)
        )
        by_mean[place] = (up - down) / 2e-5
        up, down = (
            mean_log_likelihood(rows, words, words.means, deviations + s) for s in (step, -step)
        )
        by_deviation[place] = (up - down) / 2e-5
    root = np.sqrt(words.weights)[:, None]
    want = np.concatenate(
        [(by_mean * deviations / root).ravel(), (by_deviation * deviations / root / 2**0.5).ravel()]
    )
    np.testing.assert_allclose(encoding.fisher(rows, words), want, atol=1e-8)


def test_a_fisher_vector_does_not_depend_on_blocks(monkeypatch):
    words, rows = vocabulary(), np.random.default_rng(2).standard_normal((50, 4)).astype(np.float32)
    whole = encoding.fisher(rows, words)
    monkeypatch.setattr(encoding, "BLOCK", 7)
    np.testing.assert_allclose(encoding.fisher(rows, words), whole, atol=1e-12)


def test_vectors_are_rooted_and_of_unit_length():
    got = encoding.improved(np.array([4.0, -9.0, 0.0, 1.0]))
    np.testing.assert_allclose(got, np.array([2, -3, 0, 1]) / 14**0.5, rtol=1e-6)
    words = {"hog": vocabulary(), "hof": vocabulary(3)}
    rows = np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32)
    both = encoding.encode({"hof": rows[:5], "hog": rows}, words)
    assert both.shape == (48,)
    np.testing.assert_allclose(np.linalg.norm(both.reshape(2, 24), axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(both[:24], encoding.improved(encoding.fisher(rows, words["hog"])))


def test_a_video_without_descriptors_is_zero():
    assert not encoding.encode({"hog": np.zeros((0, 4), np.float32)}, {"hog": vocabulary()}).any()


def test_far_descriptors_make_no_infinity():
    rows = np.full((3, 4), 1e4, np.float32)
    assert np.isfinite(encoding.fisher(rows, vocabulary())).all()


@pytest.mark.parametrize(
    "rows", [np.zeros((40, 6)), np.tile(np.arange(6.0), (40, 1)), np.eye(6)[np.arange(40) % 6]]
)
def test_any_descriptors_have_a_vocabulary(rows):
    words = encoding.fit("hog", rows.astype(np.float32), 4, seed=1)
    assert words.means.shape == (4, 3)
    assert np.isfinite(encoding.fisher(rows.astype(np.float32), words)).all()


def test_a_vocabulary_is_a_pca_to_half_and_a_mixture():
    rng = np.random.default_rng(0)
    centres = np.array([[8.0, 0, 0, 0], [0, 8.0, 0, 0], [-8.0, -8.0, 0, 0]])
    rows = centres[rng.integers(0, 3, 600)] + 0.1 * rng.standard_normal((600, 4))
    words = encoding.fit("hog", rows.astype(np.float32), 3, seed=1)
    back = words.means @ words.components + words.mean
    for centre in centres:
        assert np.abs(back - centre).max(axis=1).min() < 0.1
    again = encoding.fit("hog", rows.astype(np.float32), 3, seed=1)
    assert all(
        np.array_equal(value, again.arrays()[name]) for name, value in words.arrays().items()
    )


def test_fewer_descriptors_than_gaussians_are_refused():
    with pytest.raises(UserError, match="5 trajectories for 6 Gaussians"):
        encoding.fit("hog", np.zeros((5, 4), np.float32), 6, seed=1)


def videos(count=30, size=400, seed=0):
    """Vectors of three classes of which some are there twice, so that their products have no full rank."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    rows = (
        rng.standard_normal((count, size)) + 0.15 * rng.standard_normal((3, size))[labels]
    ).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return np.concatenate([rows, rows[:5]]), np.concatenate([labels, labels[:5]])


def test_machines_are_those_of_the_whole_vectors():
    from sklearn.svm import LinearSVC

    rows, labels = videos()
    basis = classifier.basis_of(classifier.products(rows, rows))
    assert basis.vectors.shape == (35, 30)
    machines = [
        classifier.train_machine(basis.vectors, labels == label, 100.0) for label in range(3)
    ]
    weights = classifier.weights_of([weights for weights, _ in machines], basis) @ rows.astype(
        np.float64
    )
    made = classifier.Classifier(
        weights.astype(np.float32), np.array([bias for _, bias in machines])
    )
    others = videos(seed=1)[0]
    # Another solver, of the dual problem, on the vectors themselves.
    whole = LinearSVC(C=100.0, dual=True, tol=1e-8, max_iter=100_000, random_state=0).fit(
        rows, labels
    )
    np.testing.assert_allclose(made.scores(others), whole.decision_function(others), atol=2e-4)


def test_a_class_with_nothing_to_tell_apart_gets_its_sign():
    vectors = np.eye(4)
    none, all_of_them = (
        classifier.train_machine(vectors, np.full(4, value), 1.0) for value in (False, True)
    )
    assert (none[1], all_of_them[1]) == (-1.0, 1.0)
    assert not none[0].any()


def test_videos_without_any_trajectory_cannot_be_told_apart():
    with pytest.raises(UserError, match="no training video has a trajectory"):
        classifier.basis_of(np.zeros((4, 4)))
