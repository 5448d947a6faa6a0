"""What the workers do: one piece each. A piece depends on its arguments and files only, never on
which worker makes it.

So that a worker's number of threads changes no bit, linear algebra is done by one thread here.
"""

import functools
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres import counter
from hpc_stres.errors import UserError
from hpc_stres.handcrafted import classifier, encoding
from hpc_stres.handcrafted.parts import Parts, key_of, read_arrays, write_arrays
from hpc_stres.handcrafted.tracks import describe
from hpc_stres.handcrafted.video import read_video
from hpc_stres.phases.handcrafted import FeatureOptions
from hpc_stres.store.reader import Store, VideoRow

# Raised when the numbers that these modules compute change, so that no piece of an older
# version is used.
ALGORITHM = 1
# Videos whose products with others are computed at once.
BLOCK_VIDEOS = 256


@dataclass(frozen=True)
class Job:
    """What all pieces of a phase have in common."""

    store: Path
    parts: Parts
    phase: str
    seed: int
    options: FeatureOptions

    def key(self, *what: Any) -> str:
        """The key of a piece: the phase's settings and what else the piece depends on."""
        options = {
            name: getattr(self.options, name) for name in FeatureOptions.__dataclass_fields__
        }
        return key_of(ALGORITHM, self.phase, self.seed, options, *what)

    def video_key(self, row: VideoRow) -> str:
        """The key of what is made of one video's content."""
        return self.key(row.id, row.frames, row.flow_pairs, row.rgb_sha256, row.flow_sha256)


@functools.cache
def _settle() -> None:
    """Once a worker: one thread for all arithmetic, and no end by the signals that ask
    its parent to stop."""
    import cv2
    import sklearn.cluster  # noqa: F401  (what it loads must be there to be limited)
    from threadpoolctl import threadpool_limits

    cv2.setNumThreads(1)
    threadpool_limits(1)
    for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@functools.lru_cache(maxsize=2)
def _opened(root: Path) -> Store:
    return Store(root)


def _described(job: Job, video: str, key: str) -> dict[str, NDArray[np.float32]]:
    """Descriptors of a video's trajectories."""
    store = _opened(job.store)
    number = store.number.get(video)
    if number is None or job.video_key(store.rows[number]) != key:
        raise UserError(
            f"{job.store}: the store was prepared again meanwhile\nRun the same command again."
        )
    return describe(read_video(store, number, job.options.hog == "colour"), job.options).arrays


def sample(job: Job, video: str, video_key: str, key: str, count: int) -> None:
    """At most `count` of a video's trajectories, drawn by chance."""
    _settle()
    arrays = _described(job, video, video_key)
    random = counter.generator(job.seed, f"{job.phase} {video}", counter.SAMPLE)
    chosen = np.sort(random.permutation(len(arrays["hog"]))[:count])
    write_arrays(
        job.parts.sample(video),
        key,
        {str(name): arrays[name][chosen] for name in job.options.descriptors},
    )


def fit_vocabulary(job: Job, descriptor: str, samples: list[tuple[str, str]], key: str) -> None:
    """The vocabulary of one kind of descriptor from the samples (video, key)."""
    _settle()
    rows = [
        _piece(job.parts.sample(video), sample_key)[descriptor] for video, sample_key in samples
    ]
    vocabulary = encoding.fit(descriptor, np.concatenate(rows), job.options.gaussians, job.seed)
    write_arrays(job.parts.vocabulary(descriptor), key, vocabulary.arrays())


def _piece(path: Path, key: str) -> dict[str, NDArray[Any]]:
    arrays = read_arrays(path, key)
    if arrays is None:
        raise UserError(
            f"{path}: gone or damaged since it was written\nRun the same command again: it is made anew."
        )
    return arrays


@functools.lru_cache(maxsize=1)
def _vocabularies(job: Job, keys: tuple[tuple[str, str], ...]) -> dict[str, encoding.Vocabulary]:
    return {
        name: encoding.Vocabulary.of(_piece(job.parts.vocabulary(name), key)) for name, key in keys
    }


def encode(
    job: Job, video: str, video_key: str, key: str, vocabularies: tuple[tuple[str, str], ...]
) -> None:
    """A video's Fisher vectors."""
    _settle()
    arrays = _described(job, video, video_key)
    vector = encoding.encode(arrays, _vocabularies(job, vocabularies))
    write_arrays(
        job.parts.fisher(video),
        key,
        {"vector": vector, "trajectories": np.array(len(arrays["hog"]))},
    )


def _vectors(job: Job, videos: list[tuple[str, str]]) -> NDArray[np.float32]:
    return np.stack([_piece(job.parts.fisher(video), key)["vector"] for video, key in videos])


def gram_rows(job: Job, videos: list[tuple[str, str]], first: int) -> NDArray[np.float64]:
    """Products of a block of videos, the one that begins at `first`, with all up to its end."""
    _settle()
    block = _vectors(job, videos[first : first + BLOCK_VIDEOS])
    starts = range(0, first + 1, BLOCK_VIDEOS)
    return np.hstack(
        [classifier.products(block, _vectors(job, videos[s : s + BLOCK_VIDEOS])) for s in starts]
    )


def find_basis(job: Job, blocks: list[NDArray[np.float64]], key: str) -> None:
    """Short vectors of the training videos from the blocks of products, the first video's first."""
    _settle()
    count = blocks[-1].shape[1]
    gram, first = np.zeros((count, count)), 0
    for block in blocks:
        gram[first : first + len(block), : block.shape[1]] = block
        first += len(block)
    # Only the lower triangle is read.
    basis = classifier.basis_of(gram)
    write_arrays(job.parts.basis, key, {"vectors": basis.vectors, "back": basis.back})


@functools.lru_cache(maxsize=1)
def _basis(job: Job, key: str) -> classifier.Basis:
    return classifier.Basis(**_piece(job.parts.basis, key))


def train_machine(
    job: Job, number: int, is_class: NDArray[np.bool_], basis_key: str, key: str
) -> None:
    """The machine of one class, from whether each training video is of it."""
    _settle()
    vectors = _basis(job, basis_key).vectors
    weights, bias = classifier.train_machine(vectors, is_class, job.options.cost)
    write_arrays(job.parts.machine(number), key, {"weights": weights, "bias": np.array(bias)})


def conclude(
    job: Job,
    machines: list[str],
    basis_key: str,
    train: list[tuple[str, str]],
    scored: list[tuple[str, str]],
) -> tuple[classifier.Classifier, NDArray[np.float64], int]:
    """All machines in the space of Fisher vectors, the scores, and how many videos
    have no trajectory."""
    _settle()
    pieces = [_piece(job.parts.machine(label), key) for label, key in enumerate(machines)]
    shares = classifier.weights_of([piece["weights"] for piece in pieces], _basis(job, basis_key))
    weights: Any = 0
    for first in range(0, len(train), BLOCK_VIDEOS):
        block = slice(first, first + BLOCK_VIDEOS)
        weights = weights + shares[:, block] @ _vectors(job, train[block]).astype(np.float64)
    made = classifier.Classifier(
        np.asarray(weights, np.float32), np.array([float(p["bias"]) for p in pieces])
    )
    blocks = [scored[first : first + BLOCK_VIDEOS] for first in range(0, len(scored), BLOCK_VIDEOS)]
    scores = np.concatenate([made.scores(_vectors(job, block)) for block in blocks])
    empty = sum(
        int(_piece(job.parts.fisher(video), key)["trajectories"]) == 0
        for video, key in [*train, *scored]
    )
    return made, scores, empty
