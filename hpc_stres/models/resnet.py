"""The bottleneck ResNet trunk of one stream, with torchvision's parameter names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hpc_stres.models.initialise import Normal, he_normal
from hpc_stres.models.interaction import UnitInput
from hpc_stres.models.layer_table import DEPTHS
from hpc_stres.models.norm import NormAverage, NormGroups, SubBatchNorm2d
from hpc_stres.models.pool import max_pool
from hpc_stres.models.temporal import TemporalConv, TemporalInit, TemporalPadding

EXPANSION = 4
CLASSIFIER_SIGMA = 0.01
Variant = Literal["msra", "torchvision"]
Temporal = Literal["none", "inflated", "new"]
TemporalUnits = Literal["second", "as_released"]
# The published trunks whose third stage is longer than this number the units of their third
# and fourth stage.
MOST_LETTERED_UNITS = 6


@dataclass(frozen=True, kw_only=True)
class TrunkOptions:
    """What one stream's trunk is built from."""

    stages: tuple[int, ...] = DEPTHS[50]
    width: int = 64
    variant: Variant = "torchvision"
    temporal: Temporal = "none"
    temporal_padding: TemporalPadding = "zeros"
    temporal_init: TemporalInit = "identity"
    temporal_units: TemporalUnits = "second"
    norm_group: int | None = None
    norm_average: NormAverage = "variance"

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of each stage's output."""
        return tuple((self.width << number) * EXPANSION for number in range(len(self.stages)))

    def temporal_of(self, stage: int, unit: int) -> Temporal:
        """What looks along time in a unit; both are counted from 0."""
        is_numbered = (
            len(self.stages) > 2 and self.stages[2] > MOST_LETTERED_UNITS and stage in (1, 2)
        )
        is_missed = self.temporal_units == "as_released" and is_numbered
        return self.temporal if unit == 1 and not is_missed else "none"

    def norm(self, channels: int, relu: bool = False) -> SubBatchNorm2d:
        """A normalisation layer as this trunk uses it, with the ReLU behind it
        where there is one."""
        return SubBatchNorm2d(channels, self.norm_group, relu, average=self.norm_average)


class Conv2d(nn.Conv2d):
    """A spatial convolution with He initialisation; takes and ignores the number of frames."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, kernel // 2, bias=bias)

    @torch.no_grad()
    def reset_parameters(self, normal: Normal = torch.randn) -> None:
        """First weights from standard normal numbers."""
        out, inner, height, width = self.weight.shape
        self.weight.copy_(he_normal((out, inner, height, width), normal))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        return super().forward(x)


class Classifier(nn.Linear):
    """The linear classifier, which begins near zero."""

    @torch.no_grad()
    def reset_parameters(self, normal: Normal = torch.randn) -> None:
        """First weights from standard normal numbers."""
        classes, features = self.weight.shape
        self.weight.copy_(normal((classes, features)) * CLASSIFIER_SIGMA)
        self.bias.zero_()


class Shortcut(nn.Sequential):
    """Projection shortcut under torchvision's names `downsample.0` and `downsample.1`."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, options: TrunkOptions
    ) -> None:
        super().__init__(Conv2d(channels_in, channels_out, 1, stride), options.norm(channels_out))

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:
        return self[1](self[0](x), groups)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; returns the sum before its ReLU, which the two-stream network
    needs, or after it.

    With `temporal` the unit carries the published convolutions over time: both 1x1 turned into
    1x1x3 (`inflated`), or a new C to C one after the ReLU of the 3x3 (`new`).
    """

    def __init__(
        self, channels_in: int, width: int, stride: int, options: TrunkOptions, temporal: Temporal
    ) -> None:
        super().__init__()
        out = width * EXPANSION
        first, second = (stride, 1) if options.variant == "msra" else (1, stride)
        padding = options.temporal_padding
        inflated = temporal == "inflated"
        self.conv1 = (
            TemporalConv(channels_in, width, padding=padding)
            if inflated
            else Conv2d(channels_in, width, 1, first)
        )
        self.bn1 = options.norm(width, relu=True)
        self.conv2 = Conv2d(width, width, 3, second)
        self.bn2 = options.norm(width, relu=True)
        self.temporal = (
            TemporalConv(width, width, options.temporal_init, padding, bias=True)
            if temporal == "new"
            else None
        )
        self.conv3 = (
            TemporalConv(width, out, padding=padding) if inflated else Conv2d(width, out, 1)
        )
        self.bn3 = options.norm(out)
        self.looks_along_time = temporal != "none"
        project = stride != 1 or channels_in != out
        self.downsample = Shortcut(channels_in, out, stride, options) if project else None

    def skip(self, x: Tensor, groups: NormGroups | None) -> Tensor:
        """The shortcut."""
        return x if self.downsample is None else self.downsample(x, groups)

    def forward(
        self, into: UnitInput, frames: int, groups: NormGroups | None, rectify: bool = False
    ) -> Tensor:
        """The residual function's value and the shortcut's, summed, and rectified where asked for.

        Each normalisation takes the ReLU, and the last one the sum too, into its own passes.
        """
        y = self.bn1(self.conv1(into.branch, frames), groups)
        y = self.bn2(self.conv2(y), groups)
        if self.temporal is not None:
            y = self.temporal(y, frames)
        return self.bn3(self.conv3(y, frames), groups, self.skip(into.skip, groups), rectify)


class Trunk(nn.Module):
    """conv1 to the last stage, and the classifier `fc`."""

    # Of the published average pool; larger maps give several places.
    pool_side = 7

    def __init__(self, planes: int, num_classes: int, options: TrunkOptions) -> None:
        super().__init__()
        self.options = options
        width = options.width
        self.conv1 = Conv2d(planes, width, 7, 2, bias=options.variant == "msra")
        self.bn1 = options.norm(width, relu=True)
        channels = width
        for number, units in enumerate(options.stages):
            stage = nn.ModuleList()
            for unit in range(units):
                stride = 2 if unit == 0 and number > 0 else 1
                temporal = options.temporal_of(number, unit)
                stage.append(Bottleneck(channels, width << number, stride, options, temporal))
                channels = (width << number) * EXPANSION
            self.add_module(f"layer{number + 1}", stage)
        self.features = channels
        self.fc = Classifier(channels, num_classes)

    def stages(self) -> Iterator[nn.ModuleList]:
        """The stages in order."""
        for number in range(len(self.options.stages)):
            stage = getattr(self, f"layer{number + 1}")
            assert isinstance(stage, nn.ModuleList)
            yield stage

    def stem(self, x: Tensor, groups: NormGroups | None) -> Tensor:
        """conv1 and the first pool."""
        y = self.bn1(self.conv1(x), groups)
        if self.options.variant == "msra":
            return max_pool(y, 3, 2, ceil=True)
        return max_pool(y, 3, 2, padding=1)


def run_units(units: list[nn.Module], x: Tensor, frames: int, groups: NormGroups | None) -> Tensor:
    """Units one after another, each followed by its ReLU."""
    for unit in units:
        x = unit(UnitInput(x, x), frames, groups, True)
    return x
