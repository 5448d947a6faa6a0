"""Ablations: one phase of a recipe with other options, each with several seeds, and
one table of all.

A variant of the phase's own options (model.*, clips.*, optimise.*) is a phase of the same run,
beside the others: so all variants of a seed start from the same trained streams, in jobs that may
run at the same time. A variant of anything else (data.*, training.*, ...) is a run of its own.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_stres.config.loading import CONFIGS, load_config, plain
from hpc_stres.config.recipe import (
    MOST_NAME_LETTERS,
    Phases,
    check_phase_name,
    ordered_phases,
)
from hpc_stres.config.schema import Config
from hpc_stres.config.tree import Node, bare, read_file
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation.statistics import mean_interval
from hpc_stres.evaluation.table import read_results
from hpc_stres.run.paths import RunPaths

SECTIONS = ("model.", "clips.", "optimise.")
KEYS = ("config", "column", "seeds", "set", "variants", "grid")
MOST_RUNS = 1000


@dataclass(frozen=True)
class Grid:
    """What a grid file asks for."""

    origin: Path
    config: Path
    column: str
    seeds: tuple[int, ...]
    shared: dict[str, Any]
    variants: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """One run folder of an ablation: its variants are phases beside each other."""

    name: str
    seed: int
    settings: dict[str, Any]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the varied phase by the variant's label."""


def read_grid(path: Path) -> Grid:
    """A grid file; every wrong key or value is a ConfigError with its line."""
    node = read_file(path)
    for key, item in node.value.items():
        if key not in KEYS:
            raise ConfigError(f"{item.origin}: {key}: unknown key; a grid has {', '.join(KEYS)}")
    for key in ("config", "column"):
        if not isinstance(bare(node.value.get(key)), str):
            raise ConfigError(
                f"{path}: {key}: expected a {'config file' if key == 'config' else 'phase of it'}"
            )
    seeds = bare(node.value.get("seeds", Node([1], "")))
    is_numbers = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not is_numbers or not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"{path}: seeds: expected a list of different whole numbers")
    variants = _variants(node, path)
    home = path.parent / str(bare(node.value["config"]))
    config = home if home.is_file() else CONFIGS / home.name
    shared = _mapping(node.value.get("set"), "set", path)
    return Grid(path, config, str(bare(node.value["column"])), tuple(seeds), shared, variants)


def _variants(node: Node, path: Path) -> dict[str, dict[str, Any]]:
    """Named variants, or all combinations of a grid's values."""
    if ("variants" in node.value) == ("grid" in node.value):
        raise ConfigError(
            f"{path}: expected either `variants` (by name) or `grid` (lists of values)"
        )
    if "variants" in node.value:
        named = _mapping(node.value["variants"], "variants", path)
        for name, options in named.items():
            if not isinstance(options, dict):
                raise ConfigError(
                    f"{path}: variants.{name}: expected a mapping, as {{model.operation: add}}"
                )
        variants = {name: dict(options) for name, options in named.items()}
    else:
        values = _mapping(node.value["grid"], "grid", path)
        for key, items in values.items():
            if not isinstance(items, list) or not items:
                raise ConfigError(f"{path}: grid.{key}: expected a list of values")
        points = [
            dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
        ]
        variants = {
            ", ".join(f"{k.split('.')[-1]} {v}" for k, v in point.items()): point
            for point in points
        }
    if not 1 <= len(variants) <= MOST_RUNS:
        raise ConfigError(f"{path}: {len(variants)} variants; expected 1 to {MOST_RUNS}")
    return variants


def _mapping(node: Node | None, key: str, path: Path) -> dict[str, Any]:
    value = {} if node is None else bare(node)
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key}: expected a mapping")
    return value


def runs(grid: Grid) -> list[Run]:
    """The run folders of a grid: one a seed, and one a seed for each change outside the
    phase's options."""
    groups: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {}
    for label, options in grid.variants.items():
        own = {key: value for key, value in options.items() if key.startswith(SECTIONS)}
        outside = {key: value for key, value in options.items() if key not in own}
        name = "-".join(f"{key.split('.')[-1]}_{value}" for key, value in outside.items())
        groups.setdefault(re.sub(r"[^\w.-]+", "_", name), (outside, {}))[1][label] = own
    return [
        Run(f"{name}-seed{seed}" if name else f"seed{seed}", seed, outside, variants)
        for seed in grid.seeds
        for name, (outside, variants) in groups.items()
    ]


def phase_name(column: str, label: str) -> str:
    """A variant's phase: the column's name and what can be kept of the label."""
    words = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
    name = f"{column}_{words}"[:MOST_NAME_LETTERS].rstrip("_")
    expected = check_phase_name(name)
    if expected:
        raise ConfigError(f"variant {label}: its phase would be called {name}: expected {expected}")
    return name


def config_of(grid: Grid, run: Run, overrides: Sequence[str], profile: str | None) -> Config:
    """The config of one run, with a phase for each variant."""
    given = {**grid.shared, **run.settings, "seed": run.seed}
    texts = [f"{key}={_yaml(value)}" for key, value in given.items()] + list(overrides)
    base = load_config(grid.config, texts, profile)
    if grid.column not in base.phases:
        raise ConfigError(
            f"{grid.origin}: column: the recipe has no phase {grid.column}; it has {', '.join(base.phases)}"
        )
    names = [phase_name(grid.column, label) for label in run.variants]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"{grid.origin}: variants: two labels give one phase name: {', '.join(names)}"
        )
    for name, options in zip(names, run.variants.values(), strict=True):
        tree = plain(base.written_phases()[grid.column])
        texts.append(f"phases.{name}={_yaml(tree)}")
        texts += [f"phases.{name}.{key}={_yaml(value)}" for key, value in options.items()]
    return load_config(grid.config, texts, profile)


def _yaml(value: Any) -> str:
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def wanted_phases(grid: Grid, run: Run, phases: Phases) -> str:
    """The variants and what they start from, for `--phase`."""
    wanted = {phase_name(grid.column, label) for label in run.variants}
    for name in reversed(ordered_phases(phases)):
        if name in wanted:
            wanted |= set(phases[name].starts_from)
    return ",".join(name for name in phases if name in wanted)


# -- the table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One variant: its accuracy with each seed."""

    label: str
    top1: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over the seeds that are there."""
        return sum(self.top1.values()) / len(self.top1)

    @property
    def half_width(self) -> float | None:
        """Half of Student's 95 % interval of the mean; none for one seed."""
        mean, _, _, high = mean_interval(list(self.top1.values()))
        return None if high is None else high - mean


def rows(grid: Grid, folder: Path) -> list[Row]:
    """Every variant's accuracy, from the results.json of each run that has one."""
    accuracies: dict[str, dict[int, float]] = {label: {} for label in grid.variants}
    for run in runs(grid):
        path = RunPaths(folder / run.name).results
        if not path.is_file():
            continue
        for table in read_results(path)["splits"].values():
            for label in run.variants:
                column = table.get(phase_name(grid.column, label))
                if column is not None:
                    accuracies[label][run.seed] = float(column["top1"])
    return [Row(label, top1) for label, top1 in accuracies.items()]


def table(made: Sequence[Row], seeds: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: the mean over seeds, its interval, and each seed."""
    header = ["", "top-1 %", "95 % over seeds", *(f"seed {seed}" for seed in seeds)]
    cells = []
    for row in made:
        each = [f"{row.top1[seed]:.2f}" if seed in row.top1 else "-" for seed in seeds]
        half = row.half_width if row.top1 else None
        span = "" if half is None else f"{row.mean - half:.1f} - {row.mean + half:.1f}"
        cells.append([row.label, f"{row.mean:.2f}" if row.top1 else "-", span, *each])
    return header, cells


def as_json(grid: Grid, made: Sequence[Row]) -> Mapping[str, Any]:
    """What ablation.json holds."""
    return {
        "column": grid.column,
        "seeds": list(grid.seeds),
        "variants": {
            row.label: {
                "options": grid.variants[row.label],
                "top1": {str(seed): value for seed, value in row.top1.items()},
                "mean": row.mean if row.top1 else None,
                "half_width_95": row.half_width if row.top1 else None,
            }
            for row in made
        },
    }


def refuse_unfinished(made: Sequence[Row], folder: Path) -> None:
    """A table of nothing is an error."""
    if not any(row.top1 for row in made):
        raise UserError(
            f"{folder}: no variant has been evaluated yet\nRun the same command without --table first."
        )
