"""Phases of kind `fuse`: the scores of several phases as one column, L2-normalised per
video and averaged."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hpc_stres.errors import ConfigError, check_field
from hpc_stres.registry import PHASE_KINDS
from hpc_stres.registry.phase import Phase, PhaseKind

# Published accuracy of a network averaged with IDT, by the titles of both.
PUBLISHED = {
    ("ST-ResNet*", "IDT"): {"ucf101": 94.6, "hmdb51": 70.3},
    ("STM-ResNet", "IDT"): {"ucf101": 94.9, "hmdb51": 72.2},
}


@dataclass(frozen=True, kw_only=True)
class FusePhase(Phase):
    """Averages the scores of the phases in `starts_from`."""

    kind: str = "fuse"
    """Kind of phase: what is done in it."""
    weights: tuple[float, ...] = ()
    """Weight of each phase in `starts_from`, in that order; none: all the same, as published."""
    weights_from: Literal["given", "held_out"] = "given"
    """The weights are those given, or are chosen by cross-validation over the recordings of the
    training list that `evaluation.validation_share` holds out of all training; test videos are
    never looked at for it."""

    def __post_init__(self) -> None:
        parts = self.starts_from
        check_field(
            len(parts) > 1 and len(set(parts)) == len(parts),
            "starts_from",
            "expected two or more phases",
        )
        fits = not self.weights or len(self.weights) == len(parts)
        check_field(
            fits, "weights", f"expected {len(parts)} numbers, one for each phase in starts_from"
        )
        fits = all(weight >= 0 for weight in self.weights) and (
            not self.weights or sum(self.weights) > 0
        )
        check_field(fits, "weights", "expected numbers of 0 or more, not all 0")
        is_chosen = self.weights_from == "held_out"
        check_field(
            not (is_chosen and self.weights), "weights", "no effect: weights_from is held_out"
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """Weights that sum to one."""
        weights = self.weights or (1.0,) * len(self.starts_from)
        return tuple(weight / sum(weights) for weight in weights)

    def applied(self, config: Any) -> "tuple[FusePhase, dict[str, str]]":
        """The phase with its parts' titles, which its own is made of."""
        # Names that no phase has are refused with the whole graph.
        parts = {name: config.phases[name] for name in self.starts_from if name in config.phases}
        for name, phase in parts.items():
            if not PHASE_KINDS.get(phase.kind).is_scored:
                raise ConfigError(
                    f"starts_from: {name} is of kind {phase.kind}, which has no scores to fuse"
                )
        if self.weights_from == "held_out" and not config.evaluation.holds_out:
            raise ConfigError(
                "weights_from: held_out needs held-out videos, and evaluation.validation_share is 0\n"
                "Set it to the share of training recordings to hold out, as 0.2."
            )
        applied = replace(self)
        object.__setattr__(
            applied, "_titles", tuple(phase.title or name for name, phase in parts.items())
        )
        return applied, {}

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles of the phases that are fused; their names before the config is applied."""
        titles: tuple[str, ...] = self.__dict__.get("_titles", self.starts_from)
        return titles

    @property
    def title(self) -> str:
        return " +".join(self.titles)

    @property
    def rank(self) -> int:
        return 1200

    @property
    def published(self) -> Mapping[str, float]:
        is_average = len(set(self.shares)) == 1 and self.weights_from == "given"
        titles = self.titles if len(self.titles) == 2 else ("", "")
        return PUBLISHED.get((titles[0], titles[1]), {}) if is_average else {}


PHASE_KINDS.register(
    PhaseKind(
        name="fuse", options=FusePhase, run="hpc_stres.evaluation.fused:run", ranks="one",
        products=("fuse.json",), scores="hpc_stres.evaluation.fused:scores", reads=("*",),
    )
)  # fmt: skip
