"""How the two streams act on each other at the second unit of each stage."""

from typing import Literal, NamedTuple

from torch import Tensor, nn

Operation = Literal["add", "multiply"]
Direction = Literal["motion_to_appearance", "appearance_to_motion", "both", "off"]
Placement = Literal["residual", "direct"]


class UnitInput(NamedTuple):
    """What a residual unit reads: `branch` feeds its residual function, `skip` its shortcut."""

    branch: Tensor
    skip: Tensor


class Interaction(nn.Module):
    """Joins one stream's unit-1 output to the other's, where that enters unit 2.

    `residual` (published): the receiver's output before its ReLU and the sender's after it are joined, and only the
    residual branch of the receiver's unit 2 reads the result; the shortcut stays as it was. `direct`: both rectified
    outputs are joined, and unit 2 reads the result through branch and shortcut alike. This covers additive and
    multiplicative, direct and residual connections one way, and both ways at once (bidirectional gating).
    """

    def __init__(
        self,
        operation: Operation = "add",
        direction: Direction = "motion_to_appearance",
        placement: Placement = "residual",
    ) -> None:
        super().__init__()
        self.operation, self.direction, self.placement = operation, direction, placement

    def extra_repr(self) -> str:
        return f"{self.operation}, {self.direction}, {self.placement}"

    def forward(
        self, appearance_sum: Tensor, appearance: Tensor, motion_sum: Tensor, motion: Tensor
    ) -> tuple[UnitInput, UnitInput]:
        """Unit 2's inputs of both streams from unit 1's outputs before (`_sum`) and after the ReLU."""
        into_appearance = UnitInput(appearance, appearance)
        into_motion = UnitInput(motion, motion)
        if self.direction in ("motion_to_appearance", "both"):
            into_appearance = self._join(appearance_sum, appearance, motion)
        if self.direction in ("appearance_to_motion", "both"):
            into_motion = self._join(motion_sum, motion, appearance)
        return into_appearance, into_motion

    def _join(self, receiver_sum: Tensor, receiver: Tensor, sender: Tensor) -> UnitInput:
        base = receiver_sum if self.placement == "residual" else receiver
        joined = base + sender if self.operation == "add" else base * sender
        return UnitInput(joined, receiver if self.placement == "residual" else joined)
