"""STFN's fusion block: two sequences of features are joined, and each receiver looks
along time anew.

The poster names the operators (average is best, maximum, product), the directions (both ways is
best) and that blocks follow each other (two are best). Which tensor is joined is our reading: the
receiver's input to its next Res-Inception module is both sequences joined, residual connection
included; a stream that receives nothing goes on with its own.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from hpc_stres.models.norm import NormGroups
from hpc_stres.models.temporal_inception import SequenceOptions, TemporalInception

FusionOperation = Literal["average", "maximum", "multiply"]
FusionDirection = Literal["both", "motion_to_appearance", "appearance_to_motion"]
INTO_APPEARANCE = ("both", "motion_to_appearance")
INTO_MOTION = ("both", "appearance_to_motion")


def join(one: Tensor, other: Tensor, operation: FusionOperation) -> Tensor:
    """Two tensors of one shape, place by place."""
    if operation == "average":
        return (one + other) / 2
    return torch.maximum(one, other) if operation == "maximum" else one * other


class FusionBlock(nn.Module):
    """One block: join, then a Res-Inception module in each stream."""

    def __init__(
        self,
        channels: int,
        operation: FusionOperation,
        direction: FusionDirection,
        options: SequenceOptions,
    ) -> None:
        super().__init__()
        self.operation, self.direction = operation, direction
        self.appearance = TemporalInception(channels, options)
        self.motion = TemporalInception(channels, options)

    def extra_repr(self) -> str:
        return f"{self.operation}, {self.direction}"

    def forward(
        self, appearance: Tensor, motion: Tensor, frames: int, groups: NormGroups | None = None
    ) -> tuple[Tensor, Tensor]:
        """Both sequences after the block."""
        joined = join(appearance, motion, self.operation)
        into_appearance = joined if self.direction in INTO_APPEARANCE else appearance
        into_motion = joined if self.direction in INTO_MOTION else motion
        return (
            self.appearance(into_appearance, frames, groups),
            self.motion(into_motion, frames, groups),
        )
