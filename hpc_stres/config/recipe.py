"""The graph of phases: which there are, what each starts from, and in which order they are done.

A recipe is a YAML file under configs/recipes whose `phases` section is a mapping of these; what a
phase of each kind has is in `hpc_stres.phases`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from hpc_stres.errors import ConfigError
from hpc_stres.registry import PHASE_KINDS
from hpc_stres.registry.phase import Phase

# The phases of a recipe by name.
Phases: TypeAlias = Mapping[str, Phase]

# Names that jobs, columns of the table and command lines have for something else.
RESERVED_NAMES = ("all", "evaluate", "mean", "none", "prepare", "preflight", "report", "two_stream")
MOST_NAME_LETTERS = 40


def check_phase_name(name: str) -> str | None:
    """What was expected in place of a phase's name: it becomes a folder, a job, a column; none
    where it is fine."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or len(name) > MOST_NAME_LETTERS:
        return (
            f"names of small letters, digits and _ (at most {MOST_NAME_LETTERS}), not {name!r:.60}"
        )
    return (
        f"another name than {name}, which means something else" if name in RESERVED_NAMES else None
    )


def ordered_phases(phases: Mapping[str, Phase]) -> list[str]:
    """Phase names, each after those it starts from; refuses cycles and unknown names."""
    order: list[str] = []
    waiting = dict(phases)
    while waiting:
        ready = [
            name for name, phase in waiting.items() if all(p in order for p in phase.starts_from)
        ]
        if not ready:
            raise ConfigError(_explain_stuck(phases, waiting))
        for name in ready:
            order.append(name)
            del waiting[name]
    _refuse_wrong_parents(phases)
    return order


def trained_phases(phases: Phases, among: Iterable[str] | None = None) -> list[str]:
    """Those of some phases that train a network, in their order; of all, each after those it
    starts from."""
    names = ordered_phases(phases) if among is None else among
    return [name for name in names if phases[name].kind == "train"]


def _refuse_wrong_parents(phases: Mapping[str, Phase]) -> None:
    """A phase reads products of the kinds that its own kind can read."""
    for name, phase in phases.items():
        reads = PHASE_KINDS.get(phase.kind).reads
        for parent in phase.starts_from:
            if "*" not in reads and phases[parent].kind not in reads:
                raise ConfigError(
                    f"phases.{name}.starts_from: {parent} is of kind {phases[parent].kind}; "
                    f"a phase of kind {phase.kind} starts from {' or '.join(reads)}"
                )


def _explain_stuck(phases: Mapping[str, Phase], waiting: Iterable[str]) -> str:
    for name in waiting:
        for parent in phases[name].starts_from:
            if parent not in phases:
                return f"phases.{name}.starts_from: no phase '{parent}'; the recipe has {', '.join(phases)}"
    return f"phases: {', '.join(waiting)} start from each other in a circle"


def select_phases(phases: Mapping[str, Phase], wanted: str) -> list[str]:
    """Phases of a command line's `--phase`: `all`, or names with commas between, in
    the graph's order."""
    order = ordered_phases(phases)
    if wanted == "all":
        return order
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in phases:
            raise ConfigError(
                f"--phase {name}: no such phase; the recipe has {', '.join(order)} (or all)"
            )
    if not names:
        raise ConfigError(f"--phase names no phase; the recipe has {', '.join(order)} (or all)")
    return [name for name in order if name in names]
