"""Score files and what is computed from them: accuracy with its interval, fusion of
streams, McNemar's test.

A score file carries a digest of its content and, as JSON text, what it was made by: the weights,
the protocol, the split. So a changed bit is noticed, and numbers of two protocols or of replaced
weights are never in one table.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import DAMAGED_NPZ, UserError
from hpc_stres.evaluation import groups as recordings
from hpc_stres.evaluation import measures, statistics
from hpc_stres.evaluation.groups import Groups
from hpc_stres.run.paths import atomic_path
from hpc_stres.store.labels import multi_hot

Array = NDArray[np.float64]
STREAMS = ("appearance", "motion")
AGAIN = "Remove it and run `hpc-stres evaluate` again; what was scored is kept in scores/parts."


@dataclass(frozen=True)
class Scores:
    """Logits of the videos of a split, in sorted order of their ids.

    Labels are numbers of classes or, where videos have several, rows of 0 and 1. `groups`
    are the recordings.
    """

    ids: list[str]
    labels: NDArray[np.int64]
    classes: list[str]
    logits: Array
    streams: dict[str, Array]
    made_by: dict[str, Any] = field(default_factory=dict)
    groups: Groups | None = None

    @property
    def recordings(self) -> Groups:
        """The recording of each video; where nothing else is known, by the names of clips."""
        if self.groups is not None:
            return self.groups
        if self.labels.ndim == 2:
            return recordings.by_names(self.ids, [""] * len(self.ids))
        return recordings.by_names(self.ids, [self.classes[label] for label in self.labels])

    def only(self, ids: Sequence[str]) -> "Scores":
        """The scores of some of the videos, which must be there."""
        place = {name: number for number, name in enumerate(self.ids)}
        rows = [place[name] for name in sorted(ids)]
        kept = (
            None
            if self.groups is None
            else Groups([self.groups.names[row] for row in rows], self.groups.source)
        )
        streams = {name: value[rows] for name, value in self.streams.items()}
        return Scores(
            [self.ids[row] for row in rows], self.labels[rows], self.classes, self.logits[rows],
            streams, dict(self.made_by), kept,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """An .npz with ids, labels, classes, recordings, fused logits, each stream's over
        time, and a digest."""
        arrays: dict[str, Any] = {
            "ids": np.array(self.ids, dtype=str), "labels": np.asarray(self.labels, np.int64),
            "classes": np.array(self.classes, dtype=str), "logits": np.asarray(self.logits, np.float64),
            "made_by": np.array(json.dumps(self.made_by, sort_keys=True)),
            **{f"{name}_over_time": value for name, value in self.streams.items()},
            "groups": np.array(self.recordings.names, dtype=str), "group_source": np.array(self.recordings.source),
        }  # fmt: skip
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays, digest=np.array(digest(arrays)))

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """The way back from `save`; a file that is not as it was written is refused by name."""
        if not path.is_file():
            raise UserError(f"{path}: no such score file\nRun `hpc-stres evaluate` first.")
        data = read_npz(path)
        if "digest" not in data:
            raise UserError(
                f"{path}: it has no digest (written elsewhere, or by version 0.2)\n{AGAIN}"
            )
        if str(data.pop("digest")) != digest(data):
            raise UserError(f"{path}: damaged: its digest is wrong\n{AGAIN}")
        streams = {
            name: data[f"{name}_over_time"] for name in STREAMS if f"{name}_over_time" in data
        }
        ids, classes = data["ids"].tolist(), data["classes"].tolist()
        made_by = json.loads(str(data["made_by"]))
        groups = (
            Groups(data["groups"].tolist(), str(data["group_source"])) if "groups" in data else None
        )
        return cls(ids, data["labels"], classes, data["logits"], streams, made_by, groups)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz, never unpickling; a damaged file is a UserError."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: np.asarray(data[name]) for name in data.files}
    except DAMAGED_NPZ as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{path}: damaged, or no .npz of plain arrays: {reason}\n{AGAIN}") from None


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hex digest of arrays by name: kind, shape and every byte."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        total.update(repr((name, value.dtype.str, arrays[name].shape)).encode())
        total.update(value.tobytes())
    return total.hexdigest()


def from_videos(
    videos: Mapping[str, Mapping[str, Array]], labels: Mapping[str, int], classes: Sequence[str],
    label_sets: list[list[int]] | None = None,
) -> Scores:  # fmt: skip
    """Scores of videos whose streams are (time, classes): mean over time, then over
    streams, in float64.

    With `label_sets` a video's label is the number of its set of classes.
    """
    known, what = (classes, "classes") if label_sets is None else (label_sets, "sets of classes")
    ids = sorted(videos)
    if not ids:
        raise UserError("there are no scored videos to make a score file of")
    present = [stream for stream in STREAMS if stream in videos[ids[0]]]
    shapes = {stream: videos[ids[0]][stream].shape for stream in present}
    for name in ids:
        own = {stream: value.shape for stream, value in videos[name].items()}
        if own != shapes or any(shape[1:] != (len(classes),) for shape in own.values()):
            raise UserError(
                f"the scores of video {name} are {own}, expected {shapes} with {len(classes)} classes"
            )
        if not 0 <= labels[name] < len(known):
            raise UserError(
                f"video {name} has label {labels[name]}, but there are {len(known)} {what}"
            )
    streams = {stream: np.stack([videos[name][stream] for name in ids]) for stream in present}
    logits = np.mean([streams[stream].mean(axis=1) for stream in present], axis=0)
    numbers = np.array([labels[name] for name in ids], np.int64)
    if label_sets is not None:
        numbers = multi_hot(label_sets, len(classes))[numbers]
    return Scores(ids, numbers, list(classes), logits, streams)


def mean_of(first: Scores, second: Scores) -> Scores:
    """Late fusion: the mean of two networks' logits, videos matched by id."""
    if first.ids != second.ids:
        differing = sorted(set(first.ids) ^ set(second.ids))
        raise UserError(f"the two score files hold different videos: {', '.join(differing[:3])}")
    if first.classes != second.classes or not np.array_equal(first.labels, second.labels):
        raise UserError(
            "the two score files name other classes or labels\nEvaluate both phases again."
        )
    streams = {**first.streams, **second.streams}
    mean = (first.logits + second.logits) / 2
    return Scores(
        first.ids, first.labels, first.classes, mean, streams, first.made_by, first.groups
    )


def right(scores: Scores, top: int = 1) -> NDArray[np.bool_]:
    """Whether each video's class is among the `top` highest logits."""
    return measures.right(scores.logits, scores.labels, top)


def interval95(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of independent videos, in per cent."""
    low, high = statistics.wilson(hits / count if count else 0.0, count)
    return 100 * low, 100 * high


def mcnemar(first: Scores, second: Scores) -> tuple[int, int, float]:
    """Videos that only the first and only the second gets right, and McNemar's exact
    two-sided p-value."""
    if first.ids != second.ids:
        raise UserError("McNemar's test needs two columns over the same videos")
    one, two = right(first), right(second)
    only_first, only_second = int((one & ~two).sum()), int((~one & two).sum())
    return only_first, only_second, statistics.mcnemar_p(only_first, only_second)


def summary(
    scores: Scores, wanted: int, protocol: str, held_out: Scores | None = None
) -> dict[str, Any]:
    """One column of the table. Videos that are missing count as missing, never
    as right or wrong."""
    other = None if held_out is None else (held_out.logits, held_out.labels)
    measured = measures.measure(
        scores.labels, scores.classes, scores.logits, scores.recordings, other
    )
    column = {**measured, "videos": len(scores.ids), "of": wanted, "protocol": protocol}
    if held_out is not None:
        hits = right(held_out)
        column["validation"] = {"top1": 100 * int(hits.sum()) / len(hits), "videos": len(hits)}
    return column
