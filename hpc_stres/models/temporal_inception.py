"""STFN's temporal Res-Inception module: convolutions of several lengths along a
sequence of features.

A sequence lies as (videos * segments, channels, 1, 1), video after video, as frames do elsewhere.
The poster gives the kernels 2, 3, 4, 5, each with normalisation and ReLU, and a residual
connection. It leaves open how many channels each kernel has, how the even ones are padded and how
the four meet; that is decided here, by options.

What comes in is never negative (pooled ReLUs, and averages, maxima and products of them), nor is
what the branches add: a ReLU behind the sum would change nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpc_stres.models.initialise import Normal, he_normal
from hpc_stres.models.norm import NormAverage, NormGroups, SubBatchNorm2d
from hpc_stres.models.temporal import fold_time, unfold_time

Merge = Literal["concatenate", "sum"]
EvenPadding = Literal["after", "before"]


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """What every Res-Inception module of a network is built from."""

    kernels: tuple[int, ...] = (2, 3, 4, 5)
    merge: Merge = "concatenate"
    even_padding: EvenPadding = "after"
    norm_group: int | None = None
    norm_average: NormAverage = "variance"


def shared_out(channels: int, count: int) -> list[int]:
    """Channels cut into `count` parts, as even as can be: 10 over 4 are 3, 3, 2, 2."""
    return [channels // count + (number < channels % count) for number in range(count)]


class SequenceConv(nn.Module):
    """A convolution along time that keeps the length, without bias. The weight is
    (out, in, kernel, 1).

    An even kernel has no middle: it looks one step further ahead (`after`) or back (`before`).
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, even: EvenPadding) -> None:
        super().__init__()
        short, long = (kernel - 1) // 2, kernel // 2
        self.before, self.after = (short, long) if even == "after" else (long, short)
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, kernel, 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, normal: Normal = torch.randn) -> None:
        """First weights from standard normal numbers."""
        out, inner, kernel, _ = self.weight.shape
        self.weight.copy_(he_normal((out, inner, kernel, 1), normal))

    def forward(self, x: Tensor, frames: int) -> Tensor:
        height, width = x.shape[2:]
        padded = functional.pad(fold_time(x, frames), (0, 0, self.before, self.after))
        return unfold_time(functional.conv2d(padded, self.weight), height, width)


class SequenceBranch(nn.Module):
    """Convolution along time, normalisation, ReLU."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, options: SequenceOptions
    ) -> None:
        super().__init__()
        self.conv = SequenceConv(channels_in, channels_out, kernel, options.even_padding)
        self.bn = SubBatchNorm2d(channels_out, options.norm_group, average=options.norm_average)

    def forward(self, x: Tensor, frames: int, groups: NormGroups | None) -> Tensor:
        return functional.relu(self.bn(self.conv(x, frames), groups))


class TemporalInception(nn.Module):
    """x plus its branches: one behind the other (their widths add up to x's), or summed."""

    def __init__(self, channels: int, options: SequenceOptions) -> None:
        super().__init__()
        self.merge = options.merge
        count = len(options.kernels)
        concatenates = options.merge == "concatenate"
        widths: Sequence[int] = shared_out(channels, count) if concatenates else [channels] * count
        if min(widths) < 1:
            raise ValueError(f"{channels} channels are too few to share among {count} kernels")
        self.branches = nn.ModuleList(
            SequenceBranch(channels, width, kernel, options)
            for width, kernel in zip(widths, options.kernels, strict=True)
        )

    def forward(self, x: Tensor, frames: int, groups: NormGroups | None = None) -> Tensor:
        outputs = [branch(x, frames, groups) for branch in self.branches]
        if self.merge == "concatenate":
            return x + torch.cat(outputs, dim=1)
        return x + torch.stack(outputs).sum(dim=0)
