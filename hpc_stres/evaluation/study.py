"""Several runs of one experiment: mean, deviation and interval over seeds and splits, learning
curves, agreement.

Runs whose configs differ in nothing but seed, split and what changes no weights are one experiment.
Two experiments are compared twice: over recordings, which asks about other videos, and over seeds,
which asks about other trainings.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_stres.config.loading import flat, plain
from hpc_stres.config.recipe import ordered_phases
from hpc_stres.errors import UserError
from hpc_stres.evaluation import measures, results, statistics
from hpc_stres.evaluation.compare import Run, matched, narrowed, open_run
from hpc_stres.evaluation.scores import Scores, right
from hpc_stres.run.experiment import FREE_KEYS
from hpc_stres.run.paths import RunPaths, checksum
from hpc_stres.run.product import sift_metrics

# What may differ between the runs of one experiment; how it was tested is asked of the scores.
VARIED = (
    "seed",
    "data.split",
    "evaluation.groups",
    *(key for key in FREE_KEYS if key != "training.max_steps"),
)
# Folders of an array: by recipe, by seed, by split.
MOST_FOLDERS_DEEP = 4
CURVES = ("loss", "accuracy", "validation_loss", "validation_accuracy")


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in seed and split only."""

    name: str
    runs: list[Run]
    fixed: dict[str, Any]

    @property
    def columns(self) -> list[str]:
        """Columns that every run has."""
        return [
            name for name in self.runs[0].columns if all(name in run.columns for run in self.runs)
        ]

    @property
    def titles(self) -> dict[str, str]:
        """Heading of each column and phase."""
        return self.runs[0].titles

    @property
    def splits(self) -> list[int]:
        return sorted({run.split for run in self.runs})

    def of_split(self, split: int) -> list[Run]:
        """Runs of a split, by seed."""
        return sorted(
            (run for run in self.runs if run.split == split), key=lambda run: run.config.seed
        )


def run_folders(folder: Path) -> list[Path]:
    """Run folders at or under a folder: itself, split1 ... split3, or an array's folders
    with either in them."""
    folders = list(_below(folder, MOST_FOLDERS_DEEP))
    if not folders:
        raise UserError(f"{folder}: no run folder here or under it: none has a config.yaml")
    return folders


def _below(folder: Path, levels: int) -> Iterator[Path]:
    if RunPaths(folder).config.is_file():
        yield folder
    elif levels and folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from _below(path, levels - 1)


def experiments(folders: Sequence[Path]) -> list[Experiment]:
    """Runs put together by experiment; the same seed and split twice in one is refused."""
    paths = {path.resolve(): path for folder in folders for path in run_folders(folder)}
    by_key: dict[str, list[Run]] = {}
    fixed: dict[str, dict[str, Any]] = {}
    for path in paths.values():
        run = open_run(path)
        values = {
            key: value for key, value in flat(plain(run.config)).items() if not _is_varied(key)
        }
        key = checksum(values)
        fixed[key] = values
        for other in by_key.setdefault(key, []):
            if (other.config.seed, other.split) == (run.config.seed, run.split):
                raise UserError(
                    f"{path}: seed {run.config.seed} and split {run.split} are those of {other.folder}\n"
                    "Leave one of the two out: the same run twice would look like agreement."
                )
        by_key[key].append(run)
    for runs in by_key.values():
        _refuse_protocols(runs)
    names = _names(fixed)
    return [Experiment(names[key], runs, fixed[key]) for key, runs in by_key.items()]


def _refuse_protocols(runs: Sequence[Run]) -> None:
    """A column that was tested in different ways has no mean over runs; columns may differ."""
    known: dict[str, tuple[Any, Path]] = {}
    for run in runs:
        for name, column in run.columns.items():
            words = column.made_by.get("protocol")
            before, folder = known.setdefault(name, (words, run.folder))
            if words != before:
                raise UserError(
                    f"{name} of {folder} was tested by `{before}`, of {run.folder} by `{words}`; there is no mean of "
                    "both\nEvaluate all runs by one protocol: hpc-stres evaluate --protocol ..."
                )


def _is_varied(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in VARIED)


def _names(fixed: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each experiment by its recipe, and by the values in which experiments differ."""
    keys = sorted({key for values in fixed.values() for key in values})
    differing = [
        key for key in keys if len({str(values.get(key)) for values in fixed.values()}) > 1
    ]
    names: dict[str, str] = {}
    for number, (key, values) in enumerate(fixed.items(), 1):
        parts = [f"{name}={values.get(name)}" for name in differing if name != "recipe"][:3]
        name = ", ".join([str(values["recipe"]), *parts])
        names[key] = f"{name} ({number})" if name in names.values() else name
    return names


def summary(experiment: Experiment) -> dict[str, Any]:
    """Each column over seeds and splits."""
    columns = {}
    for name in experiment.columns:
        cells: list[dict[str, Any]] = [
            {
                "seed": run.config.seed,
                "split": run.split,
                "folder": str(run.folder),
                "top1": _top1(run.columns[name]),
            }
            for run in experiment.runs
        ]
        by_split = {
            split: [c["top1"] for c in cells if c["split"] == split] for split in experiment.splits
        }
        seeds = sorted({cell["seed"] for cell in cells})
        tops = {(cell["seed"], cell["split"]): cell["top1"] for cell in cells}
        complete = [
            seed for seed in seeds if all((seed, split) in tops for split in experiment.splits)
        ]
        of_seeds = [
            float(np.mean([tops[seed, split] for split in experiment.splits])) for seed in complete
        ]
        columns[name] = {
            "title": experiment.titles[name], "cells": cells,
            "by_split": {str(split): _spread(values) for split, values in by_split.items()},
            "over_seeds": _spread(of_seeds) if of_seeds else None, "complete_seeds": complete,
            "over_splits": _spread([float(np.mean(values)) for values in by_split.values()]),
        }  # fmt: skip
    return columns


def _top1(column: Scores) -> float:
    return 100 * float(right(column).mean())


def _spread(values: Sequence[float]) -> dict[str, Any]:
    mean, deviation, low, high = statistics.mean_interval(values)
    interval = None if low is None or high is None else [max(0.0, low), min(100.0, high)]
    return {"mean": mean, "deviation": deviation, "interval": interval, "count": len(values)}


def agreement(experiment: Experiment) -> list[dict[str, Any]]:
    """What seeds agree on: videos that all, some and none get right; how often two seeds
    answer the same."""
    rows = []
    for split, name in itertools.product(experiment.splits, experiment.columns):
        runs = experiment.of_split(split)
        if len(runs) < 2:
            continue
        first = runs[0].columns[name]
        aligned = [matched(first, run.columns[name], str(run.folder)) for run in runs]
        shared = sorted(set.intersection(*(set(one.ids) for one, _ in aligned)))
        columns = [narrowed(two, shared) for _, two in aligned]
        hits = np.stack([right(column) for column in columns])
        answers = np.stack([column.logits.argmax(axis=1) for column in columns])
        same = [
            float((answers[a] == answers[b]).mean())
            for a, b in itertools.combinations(range(len(runs)), 2)
        ]
        together = np.mean([column.logits for column in columns], axis=0)
        ids = np.array(columns[0].ids)
        rows.append({
            "split": split, "column": name, "title": experiment.titles[name],
            "seeds": [run.config.seed for run in runs], "videos": len(ids),
            "all_right": int(hits.all(axis=0).sum()), "some_right": int((hits.any(0) & ~hits.all(0)).sum()),
            "none_right": int((~hits.any(axis=0)).sum()), "same_answer": 100 * float(np.mean(same)),
            "together_top1": 100 * float(measures.right(together, columns[0].labels).mean()),
            "never_right": ids[~hits.any(axis=0)].tolist(),
        })  # fmt: skip
    return rows


def curves(experiment: Experiment) -> dict[str, dict[str, list[list[float]]]]:
    """Mean, deviation and number of runs of each training curve at each step, by phase and key
    of metrics.jsonl."""
    by_phase: dict[str, dict[str, list[list[float]]]] = {}
    for phase in ordered_phases(experiment.runs[0].config.phases):
        points: dict[str, dict[int, list[float]]] = {}
        for run in experiment.runs:
            rows, faults = sift_metrics(RunPaths(run.folder).phase(phase))
            for fault in faults:
                print(fault, file=sys.stderr)
            for row in rows:
                for key, value in row.items():
                    if key.startswith(CURVES) and isinstance(value, float) and math.isfinite(value):
                        points.setdefault(key, {}).setdefault(int(row["step"]), []).append(value)
        if points:
            by_phase[phase] = {
                key: [
                    [step, *_mean_and_deviation(values), len(values)]
                    for step, values in sorted(steps.items())
                ]
                for key, steps in points.items()
            }
    return by_phase


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def between(first: Experiment, second: Experiment) -> list[dict[str, Any]]:
    """Two experiments, split by split and column by column: over recordings and over seeds."""
    rows = []
    names = [name for name in first.columns if name in second.columns]
    for split, name in itertools.product(sorted(set(first.splits) & set(second.splits)), names):
        ones, twos = first.of_split(split), second.of_split(split)
        base = ones[0].columns[name]
        sides = []
        for runs in (ones, twos):
            pairs = [matched(base, run.columns[name], str(run.folder)) for run in runs]
            if any(len(two.ids) != len(base.ids) for _, two in pairs):
                raise UserError(
                    f"{runs[0].folder}: its runs have not scored the same videos\nEvaluate all of them."
                )
            sides.append(np.stack([right(two) for _, two in pairs]).astype(np.int64))
        one, two = sides
        plan = statistics.design(measures.strata_of(base.labels), base.recordings.names)
        # Means over seeds as whole numbers, in units of 1 / (seeds of one x seeds of the other).
        whole = two.sum(axis=0) * len(one) - one.sum(axis=0) * len(two)
        mean, low, high = statistics.difference_interval(whole / (len(one) * len(two)), plan)
        rows.append({
            "first_experiment": first.name, "second_experiment": second.name, "split": split, "column": name,
            "title": first.titles[name], "seeds": [len(one), len(two)],
            "difference": 100 * mean, "interval": [100 * low, 100 * high],
            "p": statistics.sign_flip_p(whole, plan), "groups": plan.count,
            "p_over_seeds": statistics.welch_p(one.mean(axis=1).tolist(), two.mean(axis=1).tolist()),
        })  # fmt: skip
    return rows


def study(folders: Sequence[Path]) -> dict[str, Any]:
    """Everything about the experiments whose runs these folders hold."""
    all_experiments = experiments(folders)
    rows = [
        row for one, two in itertools.combinations(all_experiments, 2) for row in between(one, two)
    ]
    return {
        "experiments": [
            {
                "name": one.name, "runs": [str(run.folder) for run in one.runs], "columns": summary(one),
                "agreement": agreement(one), "curves": curves(one), "titles": one.titles,
            }
            for one in all_experiments
        ],
        "comparisons": results.with_holm(rows),
    }  # fmt: skip


def lines(studied: Mapping[str, Any]) -> list[str]:
    """The study as text."""
    text: list[str] = []
    for one in studied["experiments"]:
        text.append(f"{one['name']}: {len(one['runs'])} run{'s' * (len(one['runs']) > 1)}")
        for column in one["columns"].values():
            title = column["title"]
            for split, spread in column["by_split"].items():
                text.append(f"  {title}, split {split}: {spread_text(spread, 'seeds')}")
            if len(column["by_split"]) > 1:
                text.append(
                    f"  {title}, means of splits: {spread_text(column['over_splits'], 'splits')}"
                )
                if column["over_seeds"] is not None:
                    text.append(
                        f"  {title}, all splits: {spread_text(column['over_seeds'], 'seeds')}"
                    )
        for row in one["agreement"]:
            text.append(
                f"  {row['title']}, split {row['split']}: {row['all_right']} of "
                f"{row['videos']} videos right with every seed, {row['some_right']} with some, {row['none_right']} "
                f"with none; two seeds answer the same {row['same_answer']:.1f} %; "
                f"all together {row['together_top1']:.2f}"
            )
    for row in studied["comparisons"]:
        low, high = row["interval"]
        seeds = "" if row["p_over_seeds"] is None else f"; over seeds p = {row['p_over_seeds']:.3g}"
        text.append(
            f"{row['first_experiment']} -> {row['second_experiment']}, {row['title']}, split {row['split']}: "
            f"{row['difference']:+.2f} ({low:+.2f} to {high:+.2f}), p = {row['p']:.3g}, Holm: "
            f"{row['p_holm']:.3g}{seeds}"
        )
    return text


def spread_text(spread: Mapping[str, Any], what: str) -> str:
    """`44.79 +- 1.20 over 5 seeds (43.30 to 46.28)`."""
    if spread["interval"] is None:
        return f"{spread['mean']:.2f} (one run: no interval over {what})"
    low, high = spread["interval"]
    return f"{spread['mean']:.2f} +- {spread['deviation']:.2f} over {spread['count']} {what} ({low:.2f} to {high:.2f})"
