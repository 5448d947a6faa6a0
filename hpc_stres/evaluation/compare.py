"""What changed from one run to another, and what came of it: config, code, data, store, accuracy,
classes, videos."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_stres.config.loading import flat, load_run, plain
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.evaluation import results
from hpc_stres.evaluation.groups import Groups
from hpc_stres.evaluation.scores import Scores, right
from hpc_stres.run.paths import RunPaths, read_json, split_folders
from hpc_stres.run.provenance import without_secrets

SHOWN = 10


@dataclass(frozen=True)
class Run:
    """One evaluated run folder of one split."""

    folder: Path
    config: Config
    columns: dict[str, Scores]

    @property
    def titles(self) -> dict[str, str]:
        """Heading of each column."""
        return results.titles(self.config.phases)

    @property
    def split(self) -> int:
        """The split that it was trained and tested on."""
        return self.config.data.split


def open_run(folder: Path) -> Run:
    """A run folder whose phases were evaluated."""
    config = load_run(folder)
    columns = results.columns(config, folder)
    if not columns:
        raise UserError(
            f"{folder}: nothing was evaluated here\nRun `hpc-stres evaluate --run-dir {folder}` first."
        )
    return Run(folder, config, columns)


def open_runs(folder: Path) -> list[Run]:
    """The run of a folder, or one of each split where it holds split1, split2, split3."""
    return [open_run(one) for one in split_folders(folder) or [folder]]


def config_changes(first: Config, second: Config) -> list[dict[str, Any]]:
    """Every key whose value differs; what looks like a secret is not shown."""
    one, two = flat(plain(without_secrets(first))), flat(plain(without_secrets(second)))
    return [
        {"key": key, "first": one.get(key), "second": two.get(key)}
        for key in sorted({*one, *two}) if one.get(key) != two.get(key)
    ]  # fmt: skip


def code_changes(first: Path, second: Path) -> list[dict[str, Any]]:
    """Version, commit, changed files, Python and packages, as provenance.json has them."""
    keys = ("hpc_stres", "commit", "changed_files", "python", "packages")
    one, two = (read_json(RunPaths(folder).provenance) for folder in (first, second))
    old, new = (flat({key: provenance.get(key) for key in keys}) for provenance in (one, two))
    return [
        {"key": key, "first": old.get(key), "second": new.get(key)}
        for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]  # fmt: skip


def data_changes(first: Run, second: Run) -> list[dict[str, Any]]:
    """Classes, training videos and their contents, the store and its flow, and the test videos
    that were scored."""
    changes = []
    for name, path in (("data_set", RunPaths.data_set), ("results", RunPaths.results)):
        keys = (
            ("split", "classes", "train", "digest", "held_out")
            if name == "data_set"
            else ("store", "flow", "protocol")
        )
        one, two = (read_json(path.fget(RunPaths(run.folder))) for run in (first, second))  # type: ignore[attr-defined]
        changes += [
            {"key": f"{name}.{key}", "first": one.get(key), "second": two.get(key)}
            for key in keys if one.get(key) != two.get(key)
        ]  # fmt: skip
    tested = [set(next(iter(run.columns.values())).ids) for run in (first, second)]
    for words, names in (
        ("only first", tested[0] - tested[1]),
        ("only second", tested[1] - tested[0]),
    ):
        if names:
            changes.append(
                {
                    "key": f"test videos {words}",
                    "first": len(names),
                    "second": sorted(names)[:SHOWN],
                }
            )
    return changes


def matched(first: Scores, second: Scores, what: str) -> tuple[Scores, Scores]:
    """Both over the videos that both have; refuses other classes or labels of the same video."""
    if first.classes != second.classes:
        differing = sorted(set(first.classes) ^ set(second.classes))[:3] or ["their order"]
        raise UserError(
            f"{what}: the classes differ: {', '.join(differing)}\nCompare runs of the same data set."
        )
    shared = sorted(set(first.ids) & set(second.ids))
    if not shared:
        raise UserError(
            f"{what}: no test video is in both\nCompare runs of the same data set and split."
        )
    one, two = narrowed(first, shared), narrowed(second, shared)
    if not np.array_equal(one.labels, two.labels):
        wrong = shared[
            int(np.flatnonzero((one.labels != two.labels).reshape(len(shared), -1).any(axis=1))[0])
        ]
        raise UserError(
            f"{what}: video {wrong} has another label in each\nCompare runs of the same data set."
        )
    return one, two


def narrowed(column: Scores, ids: list[str]) -> Scores:
    """A column over some of its videos."""
    place = {name: number for number, name in enumerate(column.ids)}
    rows = [place[name] for name in ids]
    known = column.recordings
    streams = {name: value[rows] for name, value in column.streams.items()}
    groups = Groups([known.names[row] for row in rows], known.source)
    return replace(
        column,
        ids=ids,
        labels=column.labels[rows],
        logits=column.logits[rows],
        streams=streams,
        groups=groups,
    )


def column_pairs(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    """Columns of the same name; where there is none, the last of each."""
    one, two = list(first), list(second)
    return [(name, name) for name in one if name in two] or [(one[-1], two[-1])]


def accuracy_changes(first: Run, second: Run) -> list[dict[str, Any]]:
    """Each pair of columns: both accuracies, the paired difference, and what was
    repaired and broken."""
    rows = []
    for old, new in column_pairs(first.columns, second.columns):
        what = f"{first.folder} and {second.folder}, {old}"
        one, two = matched(first.columns[old], second.columns[new], what)
        was, now = right(one), right(two)
        rows.append({
            "split": first.split, "first_run": str(first.folder), "second_run": str(second.folder),
            "first": old, "second": new, "videos": len(one.ids),
            "first_title": first.titles[old], "second_title": second.titles[new],
            "first_top1": 100 * float(was.mean()), "second_top1": 100 * float(now.mean()),
            **results.paired(one, two),
            "repaired_videos": [one.ids[n] for n in np.flatnonzero(~was & now)],
            "broken_videos": [one.ids[n] for n in np.flatnonzero(was & ~now)],
            "classes": class_changes(one, was, now),
        })  # fmt: skip
    return rows


def class_changes(column: Scores, was: Any, now: Any) -> list[dict[str, Any]]:
    """Classes whose videos changed: how many were repaired and broken, worst first."""
    rows = []
    for number, name in enumerate(column.classes):
        own = column.labels[:, number] > 0 if column.labels.ndim == 2 else column.labels == number
        repaired, broken = int((own & ~was & now).sum()), int((own & was & ~now).sum())
        if repaired or broken:
            rows.append(
                {"class": name, "videos": int(own.sum()), "repaired": repaired, "broken": broken}
            )
    return sorted(rows, key=lambda row: (row["repaired"] - row["broken"], row["class"]))


def compare(first: Path, others: list[Path]) -> dict[str, Any]:
    """Each other run against the first, split by split; p-values are corrected for
    all rows together."""
    base = open_runs(first)
    pairs = []
    for folder in others:
        by_split = {run.split: run for run in open_runs(folder)}
        shared = [(run, by_split[run.split]) for run in base if run.split in by_split]
        if not shared:
            have = ", ".join(str(run.split) for run in base)
            raise UserError(f"{folder}: none of the splits of {first} ({have}) was evaluated here")
        pairs += shared
    rows = [row for one, two in pairs for row in accuracy_changes(one, two)]
    changes = [
        {
            "first": str(one.folder), "second": str(two.folder), "config": config_changes(one.config, two.config),
            "code": code_changes(one.folder, two.folder), "data": data_changes(one, two),
        }
        for one, two in pairs
    ]  # fmt: skip
    return {"changes": changes, "accuracy": results.with_holm(rows)}


def lines(comparison: Mapping[str, Any]) -> list[str]:
    """The comparison as text."""
    text = []
    for change in comparison["changes"]:
        text.append(f"{change['first']} -> {change['second']}")
        for kind in ("config", "code", "data"):
            text += [
                f"  {kind}: {row['key']}: {_short(row['first'])} -> {_short(row['second'])}"
                for row in change[kind]
            ]
            if not change[kind]:
                text.append(f"  {kind}: the same")
    for row in comparison["accuracy"]:
        text += ["", *_row_lines(row)]
    return text


def _row_lines(row: Mapping[str, Any]) -> list[str]:
    names = row["first_title"]
    if row["second_title"] != names:
        names += f" -> {row['second_title']}"
    low, high = row["interval"]
    test = (
        "McNemar's test"
        if row["test"] == "mcnemar"
        else f"{row['groups']} recordings turned around"
    )
    text = [
        f"{names}, split {row['split']}, {row['videos']} videos: {row['first_top1']:.2f} -> {row['second_top1']:.2f}",
        f"  difference {row['difference']:+.2f} ({low:+.2f} to {high:+.2f}), p = {row['p']:.3g}, "
        f"Holm: {row['p_holm']:.3g}; {test}",
        f"  repaired {row['repaired']}: {_some(row['repaired_videos'])}",
        f"  broken {row['broken']}: {_some(row['broken_videos'])}",
    ]
    for one in row["classes"][:SHOWN]:
        text.append(
            f"  {one['class']}: {one['repaired']} repaired, {one['broken']} broken of {one['videos']}"
        )
    return text


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "-") + more


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
