"""Fisher vectors: how a video's descriptors differ from what a mixture of Gaussians expects.

A vocabulary is a PCA to half of a descriptor's numbers and a mixture with diagonal covariances, by
scikit-learn. The Fisher vector is the gradient of the mean log-likelihood by the means and
deviations, each scaled by the square root of its approximate Fisher information; then the signed
square root, then L2 normalisation.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError

Array = NDArray[np.float64]
# Descriptors whose responsibilities are in memory at once.
BLOCK = 4096
# Added to each variance, so that a direction in which descriptors do not differ is no
# division by zero.
LEAST_VARIANCE = 1e-6
MOST_ITERATIONS = 200


@dataclass(frozen=True)
class Vocabulary:
    """PCA (mean, components) and mixture (weights, means, variances) of one kind of descriptor."""

    mean: Array
    components: Array
    weights: Array
    means: Array
    variances: Array

    def arrays(self) -> dict[str, Array]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "Vocabulary":
        return cls(
            **{field.name: np.asarray(arrays[field.name], np.float64) for field in fields(cls)}
        )

    @property
    def size(self) -> int:
        """Numbers of a Fisher vector."""
        return 2 * self.means.size


def fit(name: str, samples: NDArray[np.float32], gaussians: int, seed: int) -> Vocabulary:
    """A vocabulary of descriptors, one a row; the same one for the same rows and seed."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    if len(samples) < gaussians:
        raise UserError(
            f"{name}: {len(samples)} trajectories for {gaussians} Gaussians\n"
            "Lower `gaussians` or `least_motion_pixels`, or raise `vocabulary_videos`."
        )
    rows = samples.astype(np.float64)
    pca = PCA(n_components=min(max(1, rows.shape[1] // 2), len(rows)), svd_solver="full").fit(rows)
    # scikit-learn takes 32 bits of a seed.
    state = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")
    mixture = GaussianMixture(
        gaussians,
        covariance_type="diag",
        reg_covar=LEAST_VARIANCE,
        max_iter=MOST_ITERATIONS,
        random_state=state,
    ).fit(pca.transform(rows))
    return Vocabulary(
        pca.mean_, pca.components_, mixture.weights_, mixture.means_, mixture.covariances_
    )


def responsibilities(rows: Array, vocabulary: Vocabulary) -> Array:
    """How much of each row is explained by each Gaussian: (rows, gaussians),
    each row's sum is 1."""
    inverse = 1 / vocabulary.variances
    distance = rows**2 @ inverse.T - 2 * rows @ (vocabulary.means * inverse).T
    distance += (vocabulary.means**2 * inverse).sum(axis=1)
    logs = np.log(vocabulary.weights) - 0.5 * (distance + np.log(vocabulary.variances).sum(axis=1))
    shares = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def fisher(descriptors: NDArray[np.float32], vocabulary: Vocabulary) -> Array:
    """The Fisher vector, by means and then by deviations; that of no descriptors is zero."""
    weights, means, deviations = vocabulary.weights, vocabulary.means, np.sqrt(vocabulary.variances)
    first, second, mass = np.zeros_like(means), np.zeros_like(means), np.zeros_like(weights)
    for start in range(0, len(descriptors), BLOCK):
        rows = (descriptors[start : start + BLOCK] - vocabulary.mean) @ vocabulary.components.T
        shares = responsibilities(rows, vocabulary)
        mass += shares.sum(axis=0)
        first += shares.T @ rows
        second += shares.T @ rows**2
    # Sums over rows of share * (row - mean) and share * (row - mean)^2.
    centred = first - mass[:, None] * means
    squared = second - 2 * means * first + mass[:, None] * means**2
    scale = max(len(descriptors), 1) * np.sqrt(weights)[:, None]
    by_mean = centred / deviations / scale
    by_deviation = (squared / vocabulary.variances - mass[:, None]) / (scale * math.sqrt(2))
    return np.concatenate([by_mean.ravel(), by_deviation.ravel()])


def improved(vector: Array) -> NDArray[np.float32]:
    """The signed square root of each number, then unit length; a vector of zeros stays one."""
    rooted = np.sign(vector) * np.sqrt(np.abs(vector))
    length = float(np.linalg.norm(rooted))
    return (rooted / length if length > 0 else rooted).astype(np.float32)


def encode(
    descriptors: Mapping[str, NDArray[np.float32]], vocabularies: Mapping[str, Vocabulary]
) -> NDArray[np.float32]:
    """The Fisher vectors of all kinds of descriptors, one after the other, each of unit length."""
    return np.concatenate(
        [improved(fisher(descriptors[name], vocabularies[name])) for name in vocabularies]
    )
