"""Score files and what is computed from them: accuracy with its interval, fusion of streams, McNemar's test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.runpaths import atomic_path

Array = NDArray[np.float64]
STREAMS = ("appearance", "motion")


@dataclass(frozen=True)
class Scores:
    """Logits of the videos of a split, in sorted order of their ids."""

    ids: list[str]
    labels: NDArray[np.int64]
    classes: list[str]
    logits: Array
    streams: dict[str, Array]

    def save(self, path: Path) -> None:
        """An .npz with ids, labels, classes, fused logits and each stream's, at each time output."""
        arrays: dict[str, Any] = {f"{name}_over_time": value for name, value in self.streams.items()}
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(
                stream,
                ids=np.array(self.ids),
                labels=self.labels,
                classes=np.array(self.classes),
                logits=self.logits,
                **arrays,
            )

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """The way back from `save`."""
        if not path.is_file():
            raise UserError(f"{path}: no such score file\nRun `hpc-stres evaluate` first.")
        with np.load(path, allow_pickle=False) as data:
            streams = {name: data[f"{name}_over_time"] for name in STREAMS if f"{name}_over_time" in data}
            return cls(data["ids"].tolist(), data["labels"], data["classes"].tolist(), data["logits"], streams)


def from_videos(videos: Mapping[str, Mapping[str, Array]], labels: Mapping[str, int], classes: Sequence[str]) -> Scores:
    """Scores of videos whose streams are (time, classes): mean over time, then over streams, in float64."""
    ids = sorted(videos)
    present = [stream for stream in STREAMS if stream in videos[ids[0]]]
    streams = {stream: np.stack([videos[name][stream] for name in ids]) for stream in present}
    logits = np.mean([streams[stream].mean(axis=1) for stream in present], axis=0)
    return Scores(ids, np.array([labels[name] for name in ids]), list(classes), logits, streams)


def mean_of(first: Scores, second: Scores) -> Scores:
    """Late fusion: the mean of two networks' logits, videos matched by id."""
    if first.ids != second.ids:
        differing = sorted(set(first.ids) ^ set(second.ids))
        raise UserError(f"the two score files hold different videos: {', '.join(differing[:3])}")
    return Scores(
        first.ids, first.labels, first.classes, (first.logits + second.logits) / 2, {**first.streams, **second.streams}
    )


def right(scores: Scores, top: int = 1) -> NDArray[np.bool_]:
    """Whether each video's class is among the `top` highest logits."""
    best = np.argsort(-scores.logits, axis=1, kind="stable")[:, :top]
    return np.asarray((best == scores.labels[:, None]).any(axis=1))


def interval95(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in per cent."""
    if count == 0:
        return 0.0, 100.0
    z, share = 1.959963984540054, hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def mcnemar(first: Scores, second: Scores) -> tuple[int, int, float]:
    """Videos that only the first and only the second gets right, and the exact two-sided p-value."""
    if first.ids != second.ids:
        raise UserError("McNemar's test needs two columns over the same videos")
    one, two = right(first), right(second)
    only_first, only_second = int((one & ~two).sum()), int((~one & two).sum())
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return only_first, only_second, min(1.0, 2 * tail)


def summary(scores: Scores, wanted: int, protocol: str) -> dict[str, Any]:
    """One column of the table. Videos that are missing count as missing, never as right or wrong."""
    hits, count = int(right(scores).sum()), len(scores.ids)
    low, high = interval95(hits, count)
    return {
        "top1": 100 * hits / count,
        "top5": 100 * int(right(scores, 5).sum()) / count,
        "videos": count,
        "of": wanted,
        "interval95": [low, high],
        "protocol": protocol,
    }
