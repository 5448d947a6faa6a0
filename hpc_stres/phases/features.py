"""Phases of kind `features`: what trained single streams say of every frame, once, into
the store's folder.

A `train` phase with frozen trunks may start from one in place of the streams: it then reads
features where it would read clips, with the same result to rounding.
"""

from dataclasses import dataclass
from typing import Any, Literal

from hpc_stres.errors import ConfigError, check_field
from hpc_stres.phases.train import TrainPhase
from hpc_stres.registry import PHASE_KINDS
from hpc_stres.registry.phase import Phase, PhaseKind


@dataclass(frozen=True, kw_only=True)
class FeaturesPhase(Phase):
    """Computes features of the middle square of frames, and of their mirror images."""

    frame_grid: int = 1
    """Features of every n-th frame. 2048 numbers a frame, stream and mirror image are 32 KiB a
    frame in float32."""
    short_video: Literal["mirror", "repeat"] = "mirror"
    """Videos too short for one flow stack, as in the phases that read the features."""
    antialias: bool = True
    """Low-pass when a frame is shrunk, as in the phases that read the features."""

    def __post_init__(self) -> None:
        check_field(self.frame_grid >= 1, "frame_grid", "expected 1 or more")
        check_field(
            bool(self.starts_from), "starts_from", "expected the phases whose trunks are used"
        )

    def applied(self, config: Any) -> "tuple[FeaturesPhase, dict[str, str]]":
        self.streams(config.phases)
        return self, {}

    def streams(self, phases: Any) -> dict[str, str]:
        """The phase that trained each stream's trunk; refuses others than single streams."""
        trained_by: dict[str, str] = {}
        for name in self.starts_from:
            phase = phases.get(name)
            if phase is None or phase.kind != "train":
                continue  # refused where the graph is put in order
            if not isinstance(phase, TrainPhase) or not phase.family.is_single:
                raise ConfigError(
                    f"starts_from: {name} trains more than one stream; give single ones"
                )
            (stream,) = phase.family.streams
            if stream in trained_by:
                raise ConfigError(
                    f"starts_from: {trained_by[stream]} and {name} both train the {stream} stream"
                )
            trained_by[stream] = name
        return trained_by

    @property
    def title(self) -> str:
        return "Features"


PHASE_KINDS.register(
    PhaseKind(
        name="features", options=FeaturesPhase, run="hpc_stres.training.features:run",
        products=("features.json",), is_scored=False,
    )
)  # fmt: skip
