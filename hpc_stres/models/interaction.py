"""How the two streams act on each other at the second unit of each stage."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hpc_stres.models.exact.layers import UnitScale
from hpc_stres.models.initialise import Normal

Operation = Literal["add", "multiply", "concatenate"]
Direction = Literal["motion_to_appearance", "appearance_to_motion", "both", "off"]
Placement = Literal["residual", "direct"]
# The released code's start value of a learned scale.
FIRST_SCALE = 0.1


class UnitInput(NamedTuple):
    """What a residual unit reads: `branch` feeds its residual function, `skip` its shortcut."""

    branch: Tensor
    skip: Tensor


class ChannelScale(nn.Module):
    """A learned factor and offset a channel, on what a stream sends."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        # A bitwise training's session, which adds up the gradients of both.
        self.exact: Any = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, normal: Normal = torch.randn) -> None:
        """First weights, which are not random."""
        self.weight.fill_(FIRST_SCALE)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if self.exact is not None and self.training:
            y: Tensor = UnitScale.apply(x, self.weight, self.bias, self.exact)
            return y
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])


class Concatenation(nn.Conv2d):
    """A 1x1 convolution over both streams' channels; it begins as the receiver's alone."""

    def __init__(self, channels: int) -> None:
        super().__init__(2 * channels, channels, 1, bias=False)

    @torch.no_grad()
    def reset_parameters(self, normal: Normal = torch.randn) -> None:
        """First weights, which are not random."""
        channels = self.weight.shape[0]
        self.weight.zero_()
        self.weight[:, :channels, 0, 0].copy_(torch.eye(channels))


class Interaction(nn.Module):
    """Joins one stream's unit-1 output to the other's, where that enters unit 2.

    `residual` (published): the receiver's output before its ReLU and the sender's after it are
    joined, and only the residual branch of the receiver's unit 2 reads the result; the shortcut
    stays as it was. `direct`: both rectified outputs are joined, and unit 2 reads the result
    through branch and shortcut alike. This covers additive and multiplicative, direct and residual
    connections one way, and both ways at once (bidirectional gating).

    `channels` are those of each stage, which a learned scale and a concatenation need to know.
    """

    def __init__(
        self,
        operation: Operation = "add",
        direction: Direction = "motion_to_appearance",
        placement: Placement = "residual",
        learned_scale: bool = False,
        channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.operation, self.direction, self.placement = operation, direction, placement
        self.learned_scale = learned_scale
        if self.receivers and not channels and (learned_scale or operation == "concatenate"):
            raise ValueError("a learned scale or a concatenation needs the channels of each stage")
        self.scale, self.convolution = nn.ModuleDict(), nn.ModuleDict()
        for number, width in enumerate(channels, 1):
            for receiver in self.receivers:
                if learned_scale:
                    self.scale[f"{receiver}{number}"] = ChannelScale(width)
                if operation == "concatenate":
                    self.convolution[f"{receiver}{number}"] = Concatenation(width)

    @property
    def receivers(self) -> tuple[str, ...]:
        """The streams that receive something."""
        return {
            "motion_to_appearance": ("appearance",), "appearance_to_motion": ("motion",),
            "both": ("appearance", "motion"), "off": (),
        }[self.direction]  # fmt: skip

    @property
    def sums_read(self) -> tuple[str, ...]:
        """The streams whose unit-1 output is read before its ReLU, and not only behind it."""
        return self.receivers if self.placement == "residual" else ()

    def extra_repr(self) -> str:
        return f"{self.operation}, {self.direction}, {self.placement}"

    def forward(
        self,
        appearance_sum: Tensor,
        appearance: Tensor,
        motion_sum: Tensor,
        motion: Tensor,
        stage: int = 1,
    ) -> tuple[UnitInput, UnitInput]:
        """Unit 2's inputs of both streams from unit 1's outputs before (`_sum`) and after the
        ReLU, in stage number `stage`, counted from 1. A sum that is not among `sums_read` may be
        anything."""
        into_appearance = UnitInput(appearance, appearance)
        into_motion = UnitInput(motion, motion)
        if "appearance" in self.receivers:
            name = f"appearance{stage}"
            into_appearance = self._join(name, appearance_sum, appearance, motion)
        if "motion" in self.receivers:
            into_motion = self._join(f"motion{stage}", motion_sum, motion, appearance)
        return into_appearance, into_motion

    def _join(self, name: str, receiver_sum: Tensor, receiver: Tensor, sender: Tensor) -> UnitInput:
        base = receiver_sum if self.placement == "residual" else receiver
        if self.learned_scale:
            sender = self.scale[name](sender)
        if self.operation == "concatenate":
            joined = self.convolution[name](torch.cat([base, sender], dim=1))
        else:
            joined = base + sender if self.operation == "add" else base * sender
        return UnitInput(joined, receiver if self.placement == "residual" else joined)
