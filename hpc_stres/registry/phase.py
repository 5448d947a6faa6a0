"""What a kind of phase says of itself: options, what it reads and makes, what it runs
on, and its scores."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hpc_stres.errors import ConfigError

Ranks = Literal["training", "workers", "one"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What every phase of a recipe has, whatever its kind."""

    kind: str = "train"
    """Kind of phase: what is done in it."""
    starts_from: tuple[str, ...] = ()
    """Phases whose products this one reads; it begins when they are done."""

    def applied(self, config: Any) -> "tuple[Phase, dict[str, str]]":
        """The phase as it applies in a config, and the run-wide key that gave each
        value that one gave."""
        return self, {}

    def acting(self) -> list[str]:
        """Dotted names of the options that have an effect."""
        return [f.name for f in dataclasses.fields(self)]

    def steps(self, config: Any) -> int:
        """Length of the phase: what done.json must say."""
        return 1

    def explain(self, config: Any, ranks: int) -> str:
        """One line for `submit.py --dry-run`; refuses what these ranks cannot do."""
        return ""

    def weight_files(self) -> dict[str, list[str]]:
        """Weights from outside the run that it starts from: each value of `weights`, and the
        streams that take it."""
        return {}

    @property
    def job_ranks(self) -> Ranks:
        """What its job asks for."""
        return _kind(self.kind).ranks

    @property
    def is_scored(self) -> bool:
        """Whether it has a column in the table."""
        return _kind(self.kind).is_scored

    @property
    def title(self) -> str:
        """Heading of its column; empty: its name."""
        return ""

    @property
    def rank(self) -> int:
        """Place of its column in the table."""
        return 1000

    @property
    def published(self) -> Mapping[str, float]:
        """Published accuracy by official data set."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PhaseKind:
    """A kind of the registry."""

    name: str
    options: type[Phase]
    run: str
    """`module:function` called as (config, name, run_dir, world, allowed) ->
    whether it is finished."""
    ranks: Ranks = "training"
    """What its job asks for: the ranks and GPUs of training, CPU ranks as
    `prepare`, or one process."""
    products: tuple[str, ...] = ("weights.safetensors",)
    """Files of the phase's folder beside done.json, whose checksum done.json holds."""
    scores: str | None = None
    """`module:function` called as (config, name, run_dir, store) -> Scores; none: its
    network is tested."""
    is_scored: bool = True
    """Whether it has a column in the table."""
    reads: tuple[str, ...] = field(default=("train",))
    """Kinds of the phases that it may start from; * is any."""


def _kind(name: str) -> PhaseKind:
    # The registry is made of these classes, so it can be asked only when they are there.
    from hpc_stres.registry import PHASE_KINDS

    return PHASE_KINDS.get(name)


def entry_point(text: str) -> Any:
    """The function that `module:function` names."""
    import importlib

    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{text}: this function cannot be imported: {error}") from None
