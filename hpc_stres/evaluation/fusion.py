"""Scores of several networks, or of hand-crafted features, as one: L2-normalised per video, averaged with weights.

A score file is an .npz (`ids`, `classes`, `logits`, and `labels` where they are known) or a .csv whose header is
`id`, optionally `label`, and then the class names. Videos and classes are matched by name, never by position: columns
may stand in any order, and an id may carry its folder and file extension.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from hpc_stres.data.listing import VIDEO_SUFFIXES
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation.scores import Scores


@dataclass(frozen=True)
class ScoreFile:
    """One file as it was read; `labels` are class names, None where the file has none."""

    path: Path
    ids: list[str]
    classes: list[str]
    scores: NDArray[np.float64]
    labels: list[str] | None


def read(path: Path) -> ScoreFile:
    """A score file of either kind; refuses doubled ids, doubled classes and numbers that are not finite."""
    if not path.is_file():
        raise UserError(f"{path}: no such score file")
    if path.suffix not in (".npz", ".csv"):
        raise ConfigError(f"{path}: expected a .npz or a .csv file of scores")
    found = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    for what, names in (("video", [video_name(i) for i in found.ids]), ("class", found.classes)):
        doubled = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if doubled:
            raise UserError(f"{path}: the {what} {doubled[0]} stands there twice")
    if not np.isfinite(found.scores).all():
        row = int(np.nonzero(~np.isfinite(found.scores).all(axis=1))[0][0])
        raise UserError(f"{path}: a score of video {found.ids[row]} is not a finite number")
    return found


def _read_npz(path: Path) -> ScoreFile:
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot read it: {error}") from None
    missing = [name for name in ("ids", "classes", "logits") if name not in arrays]
    if missing:
        raise UserError(f"{path}: no array named {missing[0]}; expected ids, classes, logits and perhaps labels")
    ids, classes = arrays["ids"].astype(str).tolist(), arrays["classes"].astype(str).tolist()
    scores = arrays["logits"].astype(np.float64)
    if scores.shape != (len(ids), len(classes)):
        raise UserError(f"{path}: logits are {scores.shape}, but there are {len(ids)} ids and {len(classes)} classes")
    labels = [classes[int(label)] for label in arrays["labels"]] if "labels" in arrays else None
    return ScoreFile(path, ids, classes, scores, labels)


def _read_csv(path: Path) -> ScoreFile:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = [line for line in csv.reader(stream) if line]
    if not lines or lines[0][0].strip().lower() not in ("id", "video"):
        raise UserError(f"{path}, line 1: expected a header: id, perhaps label, and the class names")
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
    """An id without its folder and its video file's extension."""
    name = PurePosixPath(identifier.replace("\\", "/")).name
    for suffix in VIDEO_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def l2_normalised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each video's scores divided by their length; a row of zeros stays one."""
    lengths = np.linalg.norm(scores, axis=1, keepdims=True)
    return np.divide(scores, lengths, out=np.zeros_like(scores), where=lengths > 0)


def fuse(files: Sequence[ScoreFile], weights: Sequence[float], allow_missing: bool) -> tuple[Scores, int]:
    """The fused scores in the first file's class order, and how many videos there would be without gaps."""
    if len(files) != len(weights):
        raise ConfigError(f"--weights: {len(weights)} numbers for {len(files)} files")
    if min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError("--weights: expected numbers of 0 or more, and not all 0")
    classes = files[0].classes
    for file in files[1:]:
        differing = sorted(set(classes) ^ set(file.classes))
        if differing:
            raise UserError(f"{file.path}: its classes are not those of {files[0].path}: {', '.join(differing[:3])}")
    names = [[video_name(identifier) for identifier in file.ids] for file in files]
    everywhere = sorted(set(names[0]).intersection(*names[1:]))
    somewhere = set().union(*names)
    if len(everywhere) < len(somewhere) and not allow_missing:
        gap = sorted(somewhere - set(everywhere))
        where = next(file.path for file, own in zip(files, names, strict=True) if gap[0] not in own)
        raise UserError(
            f"{len(gap)} of {len(somewhere)} videos are not in every file: {gap[0]} is not in {where}\n"
            "Mend the files, or add --allow-missing: every number then says k of n."
        )
    if not everywhere:
        raise UserError("no video is in all of these files\nAre their ids of the same data set?")
    total = np.zeros((len(everywhere), len(classes)))
    for file, own, weight in zip(files, names, weights, strict=True):
        rows, columns = _order(own, everywhere), _order(file.classes, classes)
        total += weight / sum(weights) * l2_normalised(file.scores[np.ix_(rows, columns)])
    labels = _labels(files, names, everywhere)
    return Scores(everywhere, np.array([classes.index(name) for name in labels]), classes, total, {}), len(somewhere)


def _order(have: Sequence[str], want: Sequence[str]) -> list[int]:
    place = {name: number for number, name in enumerate(have)}
    return [place[name] for name in want]


def _labels(files: Sequence[ScoreFile], names: Sequence[Sequence[str]], videos: Sequence[str]) -> list[str]:
    """Every video's class from the files that have labels; they must agree."""
    known: dict[str, str] = {}
    for file, own in zip(files, names, strict=True):
        for name, label in zip(own, file.labels or [], strict=False):
            if label not in file.classes:
                raise UserError(f"{file.path}: the label {label!r} of video {name} is none of its classes")
            if known.setdefault(name, label) != label:
                raise UserError(f"{file.path}: video {name} is {label} here and {known[name]} in another file")
    missing = [name for name in videos if name not in known]
    if missing:
        raise UserError(f"no file has a label for video {missing[0]}\nOne of them must: `evaluate` writes labels.")
    return [known[name] for name in videos]
