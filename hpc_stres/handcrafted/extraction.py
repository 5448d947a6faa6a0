"""From a store to scores, piece by piece: restartable, on any number of workers, the same bytes
whatever their number.

    samples of some training videos -> a vocabulary for each kind of descriptor -> Fisher vectors of all videos
    -> products of the training videos -> a machine for each class -> scores of the test videos

Descriptors of a whole data set fill no disk: a video's are made when they are needed, for the
vocabulary and once more for its Fisher vector.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres import counter
from hpc_stres.errors import UserError
from hpc_stres.handcrafted import tasks
from hpc_stres.handcrafted.classifier import Classifier
from hpc_stres.handcrafted.parts import read_arrays
from hpc_stres.run.progress import Progress
from hpc_stres.run.signals import StopFlag
from hpc_stres.store.reader import Store

# How often a stop that was asked for is looked for.
POLL_SECONDS = 1.0
# Tasks that are handed out before their results are there; more than any machine has cores.
PENDING = 1024
# Machines are trained side by side as long as their copies of the training videos' short vectors
# fit in this: the vectors themselves and liblinear's 16 bytes a number.
MACHINES_BYTES, BYTES_A_NUMBER = 16 << 30, 24
Keyed = list[tuple[str, str]]
Task = tuple[Callable[..., Any], tuple[Any, ...]]


class StoppedEarly(Exception):
    """Asked to stop; what is made is kept."""


@dataclass(frozen=True)
class Result:
    """What a phase makes: scores of the videos that are not trained on, by id, and what
    they were made by."""

    ids: list[str]
    scores: NDArray[np.float64]
    classifier: Classifier
    vocabularies: dict[str, dict[str, NDArray[Any]]]
    without_trajectories: int


@dataclass(frozen=True)
class Videos:
    """Rows of the store: those that are trained on and those that are scored; and the classes of
    each row's label."""

    train: list[int]
    scored: list[int]
    members: NDArray[np.bool_]
    """(labels, classes): which classes a label stands for, itself alone where videos
    have one class each."""


class Extraction:
    """One phase's way through its stages; each skips what an earlier run has made."""

    def __init__(
        self, job: tasks.Job, store: Store, videos: Videos, executor: Executor, quiet: bool = False
    ) -> None:
        self.job, self.store, self.executor, self.quiet = job, store, executor, quiet
        self.stop = StopFlag()
        if not videos.train or not videos.scored:
            missing = "test" if videos.train else "training"
            raise UserError(f"{store.place}: the split has no {missing} videos")
        self.members = videos.members
        self.train, self.scored = self._keyed(videos.train), self._keyed(videos.scored)
        self.all_keys = dict(self.train + self.scored)

    def _keyed(self, numbers: list[int]) -> Keyed:
        """Sorted ids of the videos with the keys of their contents."""
        rows = sorted((self.store.rows[number] for number in numbers), key=lambda row: row.id)
        return [(row.id, self.job.video_key(row)) for row in rows]

    def run(self) -> Result:
        """All stages; raises StoppedEarly."""
        self.job.parts.root.mkdir(parents=True, exist_ok=True)
        vocabularies = self._vocabularies()
        train, scored = self._encode(vocabularies)
        basis = self._basis(train)
        machines = self._machines(train, basis)
        conclusion = [(tasks.conclude, (self.job, machines, basis, train, scored))]
        ((classifier, scores, empty),) = self._all("scores", conclusion, 0)
        return Result(
            [video for video, _ in scored],
            scores,
            classifier,
            {
                name: read_arrays(self.job.parts.vocabulary(name), key) or {}
                for name, key in vocabularies
            },
            empty,
        )

    # -- stages ------------------------------------------------------------------------------------

    def _vocabularies(self) -> tuple[tuple[str, str], ...]:
        """Keys of the vocabularies."""
        options = self.job.options
        order = counter.generator(self.job.seed, self.job.phase, counter.ORDER).permutation(
            len(self.train)
        )
        chosen = [self.train[number] for number in sorted(order[: options.vocabulary_videos])]
        count = -(-options.vocabulary_samples // len(chosen))
        samples = [(video, self.job.key("sample", key, count)) for video, key in chosen]
        keys = tuple(
            (name, self.job.key("vocabulary", name, samples)) for name in options.descriptors
        )
        todo = [
            (name, key)
            for name, key in keys
            if read_arrays(self.job.parts.vocabulary(name), key) is None
        ]
        if todo:
            work = [
                (tasks.sample, (self.job, video, self.all_keys[video], key, count))
                for video, key in samples
                if read_arrays(self.job.parts.sample(video), key) is None
            ]
            self._all("samples", work, len(samples) - len(work))
        fits = [(tasks.fit_vocabulary, (self.job, name, samples, key)) for name, key in todo]
        self._all("vocabulary", fits, len(keys) - len(fits))
        return keys

    def _encode(self, vocabularies: tuple[tuple[str, str], ...]) -> tuple[Keyed, Keyed]:
        """Training videos and those to be scored, with the keys of their Fisher vectors."""
        keys = {
            video: self.job.key("fisher", vocabularies, key) for video, key in self.all_keys.items()
        }
        todo = [
            v
            for v, key in sorted(keys.items())
            if read_arrays(self.job.parts.fisher(v), key) is None
        ]
        # The longest first, so that no worker is left alone with a long one at the end.
        todo.sort(key=lambda video: -self.store.rows[self.store.number[video]].frames)
        work = [
            (tasks.encode, (self.job, v, self.all_keys[v], keys[v], vocabularies)) for v in todo
        ]
        self._all("Fisher vectors", work, len(keys) - len(work))
        return [(v, keys[v]) for v, _ in self.train], [(v, keys[v]) for v, _ in self.scored]

    def _basis(self, train: Keyed) -> str:
        """Key of the training videos' short vectors."""
        key = self.job.key("basis", train)
        if read_arrays(self.job.parts.basis, key) is None:
            starts = range(0, len(train), tasks.BLOCK_VIDEOS)
            blocks = self._all(
                "products", [(tasks.gram_rows, (self.job, train, first)) for first in starts], 0
            )
            self._all("basis", [(tasks.find_basis, (self.job, blocks, key))], 0)
        return key

    def _machines(self, train: Keyed, basis: str) -> list[str]:
        """Keys of all classes' machines."""
        labels = [self.store.rows[self.store.number[video]].label for video, _ in train]
        # One column a class: whether each training video is of it.
        columns = np.ascontiguousarray(self.members[labels].T)
        keys = [self.job.key("machine", basis, is_class.tobytes().hex()) for is_class in columns]
        work = [
            (tasks.train_machine, (self.job, number, is_class, basis, key))
            for number, (is_class, key) in enumerate(zip(columns, keys, strict=True))
            if read_arrays(self.job.parts.machine(number), key) is None
        ]
        at_once = max(1, MACHINES_BYTES // (BYTES_A_NUMBER * len(labels) ** 2))
        self._all("classifiers", work, len(keys) - len(work), min(at_once, PENDING))
        return keys

    def _all(self, title: str, work: list[Task], done: int, at_once: int = PENDING) -> list[Any]:
        """Results of all tasks in their order; stops between two of them when asked to."""
        futures: list[Future[Any]] = []
        waiting: set[Future[Any]] = set()
        total = done + len(work)
        try:
            with Progress(
                f"{self.job.phase} {title}", total, "pieces", not self.quiet and bool(work), done
            ) as bar:
                while waiting or len(futures) < len(work):
                    for function, arguments in work[
                        len(futures) : len(futures) + at_once - len(waiting)
                    ]:
                        futures.append(self.executor.submit(function, *arguments))
                        waiting.add(futures[-1])
                    finished, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                    left = len(waiting) + len(work) - len(futures)
                    bar.update(total - left)
                    if left and self.stop.wanted():
                        raise StoppedEarly(self.stop.reason())
        except BrokenProcessPool:
            if self.stop.wanted():
                raise StoppedEarly(self.stop.reason()) from None
            raise UserError(
                f"{self.job.parts.root}: a worker was killed, mostly for want of memory\n"
                "The same command resumes; fewer data.workers take less memory."
            ) from None
        finally:
            for future in waiting:
                future.cancel()
        return [future.result() for future in futures]
