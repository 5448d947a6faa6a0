"""Scores of several networks, or of hand-crafted features, as one: L2-normalised per video,
averaged with weights.

A score file is an .npz (`ids`, `classes`, `logits`, and `labels` where they are known) or a .csv
whose header is `id`, optionally `label`, and then the class names. Videos and classes are matched
by name, never by position. An id is the path of its video: one file may leave out leading folders
or the file extension where that leaves no doubt; where it does (`clip01` beside `jump/clip01` and
`run/clip01`) the two are named and nothing is fused.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation.scores import Scores, digest, read_npz
from hpc_stres.listings.listing import VIDEO_SUFFIXES


@dataclass(frozen=True)
class ScoreFile:
    """One file as it was read; `labels` are class names, None where the file has none."""

    path: Path
    ids: list[str]
    classes: list[str]
    scores: NDArray[np.float64]
    labels: list[str] | None


def read(path: Path) -> ScoreFile:
    """A score file of either kind; refuses doubled ids, doubled classes and numbers
    that are not finite."""
    if not path.is_file():
        raise UserError(f"{path}: no such score file")
    if path.suffix not in (".npz", ".csv"):
        raise ConfigError(f"{path}: expected a .npz or a .csv file of scores")
    score_file = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    if not score_file.ids or not score_file.classes:
        raise UserError(
            f"{path}: it holds {len(score_file.ids)} videos and {len(score_file.classes)} classes"
        )
    for what, names in (
        ("video", [video_name(i) for i in score_file.ids]),
        ("class", score_file.classes),
    ):
        if not all(names):
            raise UserError(f"{path}: a {what} without a name")
        doubled = _first_doubled(names)
        if doubled is not None:
            raise UserError(f"{path}: the {what} {doubled} is there twice")
    if not np.isfinite(score_file.scores).all():
        row = int(np.nonzero(~np.isfinite(score_file.scores).all(axis=1))[0][0])
        raise UserError(f"{path}: a score of video {score_file.ids[row]} is not a finite number")
    return score_file


def _first_doubled(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _read_npz(path: Path) -> ScoreFile:
    arrays = read_npz(path)
    missing = [name for name in ("ids", "classes", "logits") if name not in arrays]
    if missing:
        raise UserError(
            f"{path}: no array named {missing[0]}; expected ids, classes, logits and perhaps labels"
        )
    if "digest" in arrays and str(arrays.pop("digest")) != digest(arrays):
        raise UserError(
            f"{path}: damaged: its digest is wrong\nWrite it again: with `hpc-stres evaluate` or `fuse`."
        )
    ids, classes = (_names(arrays[name], path, name) for name in ("ids", "classes"))
    scores = arrays["logits"]
    if scores.dtype.kind not in "iuf" or scores.shape != (len(ids), len(classes)):
        raise UserError(
            f"{path}: logits are {scores.shape} of {scores.dtype}, but there are {len(ids)} ids and "
            f"{len(classes)} classes"
        )
    labels = _label_names(arrays["labels"], ids, classes, path) if "labels" in arrays else None
    return ScoreFile(path, ids, classes, scores.astype(np.float64), labels)


def _names(array: NDArray[Any], path: Path, what: str) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise UserError(
            f"{path}: {what} are {array.shape} of {array.dtype}; expected a list of names"
        )
    try:
        return [str(name) for name in array.astype(str).tolist()]
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: {what} are bytes that are not ASCII; write them as text"
        ) from None


def _label_names(array: NDArray[Any], ids: list[str], classes: list[str], path: Path) -> list[str]:
    """Class names of labels, which are numbers of classes."""
    if array.shape != (len(ids),) or array.dtype.kind not in "iu":
        raise UserError(
            f"{path}: labels are {array.shape} of {array.dtype}; expected {len(ids)} whole numbers"
        )
    outside = np.nonzero((array < 0) | (array >= len(classes)))[0]
    if len(outside):
        first = int(outside[0])
        raise UserError(
            f"{path}: video {ids[first]} has label {array[first]}, but there are {len(classes)} classes"
        )
    return [classes[int(label)] for label in array]


def _read_csv(path: Path) -> ScoreFile:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable table in UTF-8: {error}") from None
    if not lines or lines[0][0].strip().lower() not in ("id", "video"):
        raise UserError(
            f"{path}, line 1: expected a header: id, perhaps label, and the class names"
        )
    header = [cell.strip() for cell in lines[0]]
    labelled = len(header) > 1 and header[1].lower() == "label"
    first = 2 if labelled else 1
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            if len(line) != len(header):
                raise ValueError(f"{len(line)} cells under a header of {len(header)}")
            rows.append([float(cell) for cell in line[first:]])
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    labels = [line[1].strip() for line in lines[1:]] if labelled else None
    scores = np.array(rows, np.float64).reshape(len(rows), len(header) - first)
    return ScoreFile(path, [line[0].strip() for line in lines[1:]], header[first:], scores, labels)


def video_name(identifier: str) -> str:
    """An id as a path without its video file's extension: `Run/v_a.avi` is `Run/v_a`."""
    name = "/".join(
        part for part in identifier.strip().replace("\\", "/").split("/") if part not in ("", ".")
    )
    for suffix in VIDEO_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def same_names(files: Sequence[ScoreFile]) -> list[list[str]]:
    """Each file's ids under names that all files share: the same video has the same
    name in all of them.

    Two ids are of one video when one is the end of the other, folder by folder, and no
    other id will do.
    """
    shared: list[list[str]] = []
    longest: dict[str, str] = {}  # shared name: the longest path that any file gave for it
    by_stem: dict[str, list[str]] = {}  # last part of a path: shared names
    for file in files:
        taken: dict[str, str] = {}
        names = [video_name(identifier) for identifier in file.ids]
        known = {path: name for name, path in longest.items()}
        for name in names:
            stem = name.rpartition("/")[2]
            exact = known.get(name)
            fitting = (
                [exact]
                if exact
                else [c for c in by_stem.get(stem, []) if _is_end(name, longest[c])]
            )
            if len(fitting) > 1:
                raise _doubt(file.path, name, longest[fitting[0]], longest[fitting[1]])
            meant = fitting[0] if fitting else name
            if meant in taken:
                raise _doubt(file.path, meant, taken[meant], name)
            taken[meant] = name
        for meant, name in taken.items():
            if meant not in longest:
                by_stem.setdefault(name.rpartition("/")[2], []).append(meant)
            longest[meant] = max(longest.get(meant, ""), name, key=len)
        shared.append(list(taken))
    return shared


def _is_end(one: str, two: str) -> bool:
    """Whether the shorter path is the end of the longer one, folder by folder."""
    short, long = sorted((one, two), key=len)
    return f"/{long}".endswith(f"/{short}")


def _doubt(path: Path, name: str, one: str, two: str) -> UserError:
    return UserError(
        f"{path}: {name} could be {one} or {two}\nGive ids with their folders in every file, as `evaluate` writes them."
    )


def l2_normalised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each video's scores divided by their length; a row of zeros stays one."""
    lengths = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)


def fuse(
    files: Sequence[ScoreFile], weights: Sequence[float], allow_missing: bool
) -> tuple[Scores, int]:
    """The fused scores in the first file's class order, and how many videos there would
    be without gaps."""
    if len(files) != len(weights):
        raise ConfigError(f"--weights: {len(weights)} numbers for {len(files)} files")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) <= 0:
        raise ConfigError("--weights: expected finite numbers of 0 or more, and not all 0")
    classes = files[0].classes
    for file in files[1:]:
        differing = sorted(set(classes) ^ set(file.classes))
        if differing:
            raise UserError(
                f"{file.path}: its classes are not those of {files[0].path}: {', '.join(differing[:3])}"
            )
    names = same_names(files)
    everywhere = sorted(set(names[0]).intersection(*names[1:]))
    somewhere = set().union(*names)
    if len(everywhere) < len(somewhere) and not allow_missing:
        gap = sorted(somewhere - set(everywhere))
        where = next(file.path for file, own in zip(files, names, strict=True) if gap[0] not in own)
        raise UserError(
            f"{len(gap)} of {len(somewhere)} videos are not in every file: {gap[0]} is not in {where}\n"
            "Fix the files, or add --allow-missing: every number then says k of n."
        )
    if not everywhere:
        raise UserError("no video is in all of these files\nAre their ids of the same data set?")
    total = np.zeros((len(everywhere), len(classes)))
    for file, own, weight in zip(files, names, weights, strict=True):
        rows, columns = _order(own, everywhere), _order(file.classes, classes)
        total += weight / sum(weights) * l2_normalised(file.scores[np.ix_(rows, columns)])
    labels = _labels(files, names, everywhere)
    return Scores(
        everywhere, np.array([classes.index(name) for name in labels]), classes, total, {}
    ), len(somewhere)


def _order(have: Sequence[str], want: Sequence[str]) -> list[int]:
    place = {name: number for number, name in enumerate(have)}
    return [place[name] for name in want]


def _labels(
    files: Sequence[ScoreFile], names: Sequence[Sequence[str]], videos: Sequence[str]
) -> list[str]:
    """Every video's class from the files that have labels; they must agree."""
    known: dict[str, str] = {}
    for file, own in zip(files, names, strict=True):
        if file.labels is None:
            continue
        for name, label in zip(own, file.labels, strict=True):
            if label not in file.classes:
                raise UserError(
                    f"{file.path}: the label {label!r} of video {name} is none of its classes"
                )
            if known.setdefault(name, label) != label:
                raise UserError(
                    f"{file.path}: video {name} is {label} here and {known[name]} in another file"
                )
    missing = [name for name in videos if name not in known]
    if missing:
        raise UserError(
            f"no file has a label for video {missing[0]}\nOne of them must: `evaluate` writes labels."
        )
    return [known[name] for name in videos]
