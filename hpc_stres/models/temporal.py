"""Convolutions and pools over time, on frames that lie video after video in the batch dimension."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpc_stres.models.initialise import Normal, he_normal

TemporalPadding = Literal["zeros", "replicate"]
KERNEL = 3
TemporalInit = Literal["identity", "average", "difference"]
# What each channel's own filter begins as; channels do not mix at first.
TAPS = {
    "identity": (0.0, 1.0, 0.0),
    "average": (1 / 3, 1 / 3, 1 / 3),
    "difference": (-1.0, 3.0, -1.0),
}


def fold_time(x: Tensor, frames: int) -> Tensor:
    """(videos * frames, C, H, W) as (videos, C, frames, H * W); no copy for
    channels-last tensors."""
    total, channels, height, width = x.shape
    by_pixel = x.permute(0, 2, 3, 1).reshape(total // frames, frames, height * width, channels)
    return by_pixel.permute(0, 3, 1, 2)


def unfold_time(x: Tensor, height: int, width: int) -> Tensor:
    """The way back from `fold_time`."""
    videos, channels, frames, _ = x.shape
    return (
        x.permute(0, 2, 3, 1).reshape(videos * frames, height, width, channels).permute(0, 3, 1, 2)
    )


class TemporalConv(nn.Module):
    """A 1x1x3 convolution: 1x1 in space, 3 in time, same length. The weight is (out, in, 3, 1).

    `init` is `inflated` (a 1x1 convolution spread over the taps, a third at each: ST-ResNet) or one
    of the starts of STM-ResNet's new layers: `identity` (the centre tap passes its input),
    `average` (the mean of three steps) or `difference` (three times a step less its neighbours).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        init: Literal["inflated"] | TemporalInit = "inflated",
        padding: TemporalPadding = "zeros",
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.padding: TemporalPadding = padding
        self.init = init
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, KERNEL, 1))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, normal: Normal = torch.randn) -> None:
        """First weights, from standard normal numbers where they are random."""
        channels_out, channels_in = self.weight.shape[:2]
        if self.init != "inflated":
            for tap, value in enumerate(TAPS[self.init]):
                self.weight[:, :, tap, 0].copy_(value * torch.eye(channels_out, channels_in))
        else:
            self.weight.copy_(inflate(he_normal((channels_out, channels_in, 1, 1), normal)))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor, frames: int) -> Tensor:
        height, width = x.shape[2:]
        folded = fold_time(x, frames)
        if self.padding == "replicate":
            folded = torch.cat([folded[:, :, :1], folded, folded[:, :, -1:]], dim=2)
            y = functional.conv2d(folded, self.weight, self.bias)
        else:
            y = functional.conv2d(folded, self.weight, self.bias, padding=(KERNEL // 2, 0))
        out = unfold_time(y, height, width)
        # In the input's order in memory, so that the layers behind it round as they do
        # without this one.
        return out.contiguous() if x.is_contiguous() else out


def inflate(weight: Tensor) -> Tensor:
    """A 1x1 convolution's weight (out, in, 1, 1) as one over time: a third of it at each tap."""
    return (weight / KERNEL).expand(-1, -1, KERNEL, -1).clone()


def temporal_max_pool(x: Tensor, frames: int, window: int, stride: int) -> Tensor:
    """Max over `window` time steps of every channel and place; (videos * frames, ...) to
    (videos * fewer, ...)."""
    if frames < window:
        raise ValueError(f"{frames} time steps are too few for a temporal pool over {window}")
    height, width = x.shape[2:]
    pooled = functional.max_pool2d(fold_time(x, frames), (window, 1), (stride, 1))
    return unfold_time(pooled, height, width)


def pooled_length(frames: int, window: int, stride: int) -> int:
    """Time steps that `temporal_max_pool` leaves: 11 to 4, 25 to 11."""
    return (frames - window) // stride + 1
