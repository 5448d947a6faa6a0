"""One linear support vector machine a class, against all others.

A video's vector has far more numbers than there are videos. A linear machine sees nothing of them
but the products of pairs of videos, so it is trained on vectors of as many numbers as videos that
have the same products: the same machine to rounding, in a hundredth of the memory. Its weights are
taken back to the vectors themselves afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError

Array = NDArray[np.float64]
# Directions of which the videos hold less than this share of the strongest are rounding.
LEAST_SHARE = 1e-10
MOST_ITERATIONS = 10_000
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Basis:
    """Short vectors of the training videos, and what takes a machine's weights back: (videos,
    directions) each."""

    vectors: Array
    back: Array


def products(rows: NDArray[np.float32], others: NDArray[np.float32]) -> Array:
    """The inner products of vectors, in double precision."""
    return np.asarray(rows.astype(np.float64) @ others.T.astype(np.float64))


def basis_of(gram: Array) -> Basis:
    """Vectors whose inner products are `gram`."""
    values, directions = np.linalg.eigh(gram)
    kept = values > max(values[-1] * LEAST_SHARE, 0)
    if not kept.any():
        raise UserError(
            "no training video has a trajectory that could be classified\nLower `least_motion_pixels` or `patch`."
        )
    # The sign of an eigenvector is the solver's own affair: its largest number is made positive.
    directions = directions[:, kept]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    directions = directions * np.sign(largest)
    lengths = np.sqrt(values[kept])
    return Basis(directions * lengths, directions / lengths)


def train_machine(vectors: Array, is_class: NDArray[np.bool_], cost: float) -> tuple[Array, float]:
    """Weights and bias of one class against the rest; a class with nothing on one side
    says so everywhere."""
    from sklearn.svm import LinearSVC

    if is_class.all() or not is_class.any():
        return np.zeros(vectors.shape[1]), 1.0 if is_class.all() else -1.0
    # The primal problem has one solution, found without random numbers.
    machine = LinearSVC(C=cost, dual=False, tol=TOLERANCE, max_iter=MOST_ITERATIONS)
    machine.fit(vectors, is_class)
    return np.asarray(machine.coef_[0], np.float64), float(machine.intercept_[0])


@dataclass(frozen=True)
class Classifier:
    """Weights (classes, numbers) and biases of all machines."""

    weights: NDArray[np.float32]
    biases: Array

    def scores(self, vectors: NDArray[np.float32]) -> Array:
        """Distances from each machine's plane: (videos, classes)."""
        return products(vectors, self.weights) + self.biases


def weights_of(machines: Sequence[Array], basis: Basis) -> Array:
    """What each training video contributes to each machine's weights: (classes, videos)."""
    return np.asarray(np.stack(machines) @ basis.back.T)
