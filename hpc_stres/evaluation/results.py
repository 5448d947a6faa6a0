"""results.json and the columns of the table, from the score files of a run."""

import itertools
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_stres.config.recipe import Phases, ordered_phases
from hpc_stres.config.schema import Config
from hpc_stres.errors import UserError
from hpc_stres.evaluation import measures, protocol, scores, statistics
from hpc_stres.evaluation.finished import read_finished
from hpc_stres.evaluation.groups import groups_of
from hpc_stres.evaluation.published import TWO_STREAM_PUBLISHED, official_data_set
from hpc_stres.evaluation.scores import Scores
from hpc_stres.evaluation.table import MIXED, read_results
from hpc_stres.phases.train import TrainPhase
from hpc_stres.registry.phase import Phase
from hpc_stres.run.paths import RunPaths, sha256, write_sealed
from hpc_stres.store.location import flow_name
from hpc_stres.store.reader import Store

TWO_STREAM = "two_stream"
TWO_STREAM_TITLE = "Two-Stream"


def score_path(paths: RunPaths, split: int, name: str, held_out: bool = False) -> Path:
    """The score file of a phase: of its test videos, or of the training videos
    that were held out."""
    path = paths.scores(split, name)
    return path.parent / "validation" / path.name if held_out else path


def columns(config: Config, run_dir: Path, held_out: bool = False) -> dict[str, Scores]:
    """The table's columns from the score files that are there, the two-stream fusion in its place.

    Scores of weights that have been replaced since are left out, and said on stderr.
    """
    paths, split = RunPaths(run_dir), config.data.split
    known: dict[tuple[str, ...], Any] = {}
    table_columns: dict[str, Scores] = {}
    singles: dict[str, Scores] = {}
    for name in sorted(ordered_phases(config.phases), key=lambda name: config.phases[name].rank):
        path = score_path(paths, split, name, held_out)
        if not path.is_file():
            continue
        loaded = Scores.load(path)
        if not _is_current(loaded, path, paths, name, split):
            continue
        ids = tuple(loaded.ids)
        if ids not in known:
            wanted = config.evaluation.groups
            known[ids] = groups_of(
                wanted, config.data, loaded.ids, class_names(loaded), loaded.groups
            )
        loaded = replace(loaded, groups=known[ids])
        stream = single_stream(config.phases[name])
        if stream is not None:
            singles[stream] = loaded
        table_columns[name] = loaded
        if (
            len(singles) == 2
            and TWO_STREAM not in table_columns
            and _one_protocol(singles.values())
        ):
            table_columns[TWO_STREAM] = scores.mean_of(singles["appearance"], singles["motion"])
    return table_columns


def class_names(column: Scores) -> list[str]:
    """The class of each video; empty where videos have several."""
    if column.labels.ndim == 2:
        return [""] * len(column.ids)
    return [column.classes[label] for label in column.labels]


def _is_current(loaded: Scores, path: Path, paths: RunPaths, name: str, split: int) -> bool:
    """Whether scores are of this phase and of the weights that it has now."""
    if (loaded.made_by.get("phase"), loaded.made_by.get("split")) != (name, split):
        raise UserError(f"{path}: these are scores of another phase or split\n{scores.AGAIN}")
    if not paths.phase(name).done.is_file():
        return True
    if read_finished(paths, name).weights_sha256 == loaded.made_by.get("weights"):
        return True
    print(f"{path}: of weights that were replaced since; left out", file=sys.stderr)
    return False


def _one_protocol(singles: Any) -> bool:
    return len({column.made_by.get("protocol") for column in singles}) == 1


def single_stream(phase: Phase) -> str | None:
    """The stream of a phase that trains one alone, whose scores the late fusion averages."""
    if not isinstance(phase, TrainPhase) or not phase.family.is_single:
        return None
    return phase.family.streams[0]


def titles(phases: Phases) -> dict[str, str]:
    """Heading of each column; phases of one title are told apart by their names."""
    own = {name: phase.title or name for name, phase in phases.items()}
    counts = Counter(own.values())
    unique = {
        name: title if counts[title] == 1 else f"{title} ({name})" for name, title in own.items()
    }
    return {**unique, TWO_STREAM: TWO_STREAM_TITLE}


def published_figures(phases: Phases, name: str) -> Mapping[str, float]:
    """Published accuracy of a column by official data set."""
    return TWO_STREAM_PUBLISHED if name == TWO_STREAM else phases[name].published


def summarise(config: Config, run_dir: Path, store: Store) -> dict[str, Any]:
    """results.json of the run folder from its score files."""
    wanted = len(store.ids(config.data.split, "test"))
    table_columns = columns(config, run_dir)
    held_out = columns(config, run_dir, held_out=True) if config.evaluation.holds_out else {}
    table = {
        name: scores.summary(column, wanted, column.made_by["protocol"], held_out.get(name))
        for name, column in table_columns.items()
    }
    official, headings = (
        official_data_set(config.data.kind, store, config.data.split),
        titles(config.phases),
    )
    for name, column in table.items():
        column["title"] = headings[name]
        column["weights"] = table_columns[name].made_by.get("weights")
        column["published"] = dict(published_figures(config.phases, name))
    words = sorted({column["protocol"] for column in table.values()}) or [
        protocol.describe(config.evaluation)
    ]
    results = {
        "data": config.data.kind,
        "official": official,
        "recipe": config.recipe,
        "protocol": words[0] if len(words) == 1 else MIXED,
        "flow": flow_name(store.manifest["settings"]),
        "store": sha256(store.paths.manifest),
        "labels": config.data.labels,
        "splits": {str(config.data.split): table},
        "comparisons": {str(config.data.split): comparisons(table_columns)},
    }
    write_sealed(RunPaths(run_dir).results, results)
    return results


def paired(first: Scores, second: Scores) -> dict[str, Any]:
    """Top-1 of the second less the first over the same videos, in per cent, with its interval
    and an exact test."""
    if first.ids != second.ids or not np.array_equal(first.labels, second.labels):
        raise UserError("a paired test needs two columns over the same videos and labels")
    plan = statistics.design(measures.strata_of(first.labels), first.recordings.names)
    differences = scores.right(second).astype(np.int64) - scores.right(first)
    mean, low, high = statistics.difference_interval(differences.astype(np.float64), plan)
    return {
        "difference": 100 * mean, "interval": [100 * low, 100 * high],
        "p": statistics.sign_flip_p(differences, plan), "repaired": int((differences > 0).sum()),
        "broken": int((differences < 0).sum()), "groups": plan.count,
        "test": "mcnemar" if plan.are_single else "sign_flip",
    }  # fmt: skip


def with_holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that have a `p`, each with its p-value as Holm's procedure corrects it
    for all of them."""
    corrected = statistics.holm([row["p"] for row in rows])
    return [{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]


def comparisons(scored: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Every pair of columns over the same videos."""
    return with_holm([
        {"first": one, "second": two, **paired(scored[one], scored[two])}
        for one, two in itertools.combinations(scored, 2) if scored[one].ids == scored[two].ids
    ])  # fmt: skip


def combine_splits(run_dir: Path, folders: list[Path]) -> dict[str, Any]:
    """results.json above the splits' own: their tables, and the mean of each column that
    all of them have."""
    split_results = [read_results(RunPaths(folder).results) for folder in folders]
    for folder, results in zip(folders, split_results, strict=True):
        same = ("data", "official", "recipe", "protocol", "flow", "labels")
        differing = [key for key in same if results.get(key) != split_results[0].get(key)]
        if differing:
            raise UserError(
                f"{folder}: its {differing[0]} is not that of {folders[0]}; there is no mean of both"
            )
    splits: dict[str, Any] = {}
    for folder, results in zip(folders, split_results, strict=True):
        for number, table in results["splits"].items():
            if number in splits:
                raise UserError(
                    f"{folder}: split {number} again; each folder must be of another split"
                )
            splits[number] = table
    shared = [
        name
        for name in next(iter(splits.values()))
        if all(name in table for table in splits.values())
    ]
    for name in shared:
        if len({table[name]["protocol"] for table in splits.values()}) > 1:
            raise UserError(
                f"{run_dir}: {name} was tested by different protocols; there is no mean of them"
            )
    mean = {
        name: sum(table[name]["top1"] for table in splits.values()) / len(splits) for name in shared
    }
    tests = {
        number: rows
        for results in split_results
        for number, rows in results.get("comparisons", {}).items()
    }
    combined = {**split_results[0], "splits": splits, "mean": mean, "comparisons": tests}
    write_sealed(RunPaths(run_dir).results, combined)
    return combined
