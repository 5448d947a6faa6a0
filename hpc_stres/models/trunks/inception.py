"""The Inception-v3 trunk of one stream, with torchvision's parameter names.

Frames of 299 pixels give a map of 8x8 places and 2048 features; frames from 75 pixels on give
smaller ones. The network is a table: each block is a list of branches, each branch a chain of
convolutions (a tuple of two at its end runs side by side), maybe behind a pool. Every convolution
has no bias and is followed by a normalisation (eps 0.001) and a ReLU, so what a block gives is
rectified already: the ReLU that the two-stream network puts behind each unit changes nothing.

The auxiliary head exists so that published files load whole; fine-tuning leaves it out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpc_stres.models.initialise import Normal, he_normal
from hpc_stres.models.interaction import UnitInput
from hpc_stres.models.norm import NormAverage, NormGroups, SubBatchNorm2d
from hpc_stres.models.pool import max_pool
from hpc_stres.models.resnet import Classifier

EPS = 1e-3
# The published widths are multiples of 16; `width` 64 means them, as in a ResNet.
FULL_WIDTH, SMALLEST_WIDTH = 64, 4
LEAST_SIDE = 75
POOL_SIDE = 8
AUXILIARY = "AuxLogits"


@dataclass(frozen=True, kw_only=True)
class InceptionOptions:
    """What one stream's Inception-v3 is built from."""

    width: int = FULL_WIDTH
    auxiliary_head: bool = False
    norm_group: int | None = None
    norm_average: NormAverage = "variance"

    def __post_init__(self) -> None:
        if self.width < SMALLEST_WIDTH or self.width % SMALLEST_WIDTH:
            raise ValueError(f"width is {self.width}; Inception-v3 takes multiples of 4")

    def channels(self, published: int) -> int:
        """A published number of channels at this width."""
        return published * self.width // FULL_WIDTH

    def norm(self, channels: int) -> SubBatchNorm2d:
        """A normalisation layer as this trunk uses it."""
        return SubBatchNorm2d(channels, self.norm_group, eps=EPS, average=self.norm_average)


@dataclass(frozen=True)
class Step:
    """One convolution of the table; `padding` None keeps the size."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] | None = None


Fork = tuple[Step, Step]


@dataclass(frozen=True)
class Branch:
    """A chain of convolutions behind an optional pool, and a fork of two at its end."""

    steps: tuple[Step, ...]
    fork: Fork | None = None
    pool: Literal["average", "max"] | None = None


NO_PADDING = (0, 0)
WIDE, HIGH = (1, 7), (7, 1)


def _pooled(channels: int) -> Branch:
    return Branch((Step("branch_pool", channels),), pool="average")


def _block_a(pooled: int) -> list[Branch]:
    return [
        Branch((Step("branch1x1", 64),)),
        Branch((Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5)))),
        Branch((
            Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)),
            Step("branch3x3dbl_3", 96, (3, 3)),
        )),
        _pooled(pooled),
    ]  # fmt: skip


def _block_b() -> list[Branch]:
    return [
        Branch((Step("branch3x3", 384, (3, 3), 2, NO_PADDING),)),
        Branch((
            Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)),
            Step("branch3x3dbl_3", 96, (3, 3), 2, NO_PADDING),
        )),
        Branch((), pool="max"),
    ]  # fmt: skip


def _block_c(inner: int) -> list[Branch]:
    double = (HIGH, WIDE, HIGH, WIDE)
    widths = (inner, inner, inner, 192)
    names = (f"branch7x7dbl_{number}" for number in range(2, 6))
    return [
        Branch((Step("branch1x1", 192),)),
        Branch((
            Step("branch7x7_1", inner), Step("branch7x7_2", inner, WIDE),
            Step("branch7x7_3", 192, HIGH),
        )),
        Branch((
            Step("branch7x7dbl_1", inner),
            *(Step(*parts) for parts in zip(names, widths, double, strict=True)),
        )),
        _pooled(192),
    ]  # fmt: skip


def _block_d() -> list[Branch]:
    return [
        Branch((Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2, NO_PADDING))),
        Branch((
            Step("branch7x7x3_1", 192), Step("branch7x7x3_2", 192, WIDE),
            Step("branch7x7x3_3", 192, HIGH), Step("branch7x7x3_4", 192, (3, 3), 2, NO_PADDING),
        )),
        Branch((), pool="max"),
    ]  # fmt: skip


def _block_e() -> list[Branch]:
    def fork(name: str) -> Fork:
        return Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1))

    return [
        Branch((Step("branch1x1", 320),)),
        Branch((Step("branch3x3_1", 384),), fork("branch3x3_2")),
        Branch(
            (Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3))),
            fork("branch3x3dbl_3"),
        ),
        _pooled(192),
    ]


STEM = (
    Step("Conv2d_1a_3x3", 32, (3, 3), 2, NO_PADDING), Step("Conv2d_2a_3x3", 32, (3, 3), 1, NO_PADDING),
    Step("Conv2d_2b_3x3", 64, (3, 3)), Step("Conv2d_3b_1x1", 80),
    Step("Conv2d_4a_3x3", 192, (3, 3), 1, NO_PADDING),
)  # fmt: skip
# The stem's max pools are behind these.
POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
STAGES = (
    {"Mixed_5b": _block_a(32), "Mixed_5c": _block_a(64), "Mixed_5d": _block_a(64)},
    {"Mixed_6a": _block_b(), "Mixed_6b": _block_c(128), "Mixed_6c": _block_c(160),
     "Mixed_6d": _block_c(160), "Mixed_6e": _block_c(192)},
    {"Mixed_7a": _block_d(), "Mixed_7b": _block_e(), "Mixed_7c": _block_e()},
)  # fmt: skip


class Convolution(nn.Conv2d):
    """A convolution without bias, with He initialisation."""

    @torch.no_grad()
    def reset_parameters(self, normal: Normal = torch.randn) -> None:
        """First weights from standard normal numbers."""
        out, inner, height, width = self.weight.shape
        self.weight.copy_(he_normal((out, inner, height, width), normal))


class ConvNormReLU(nn.Module):
    """Convolution, normalisation, ReLU under torchvision's names `conv` and `bn`."""

    def __init__(self, channels_in: int, step: Step, options: InceptionOptions) -> None:
        super().__init__()
        height, width = step.kernel
        padding = (height // 2, width // 2) if step.padding is None else step.padding
        channels = options.channels(step.channels)
        self.conv = Convolution(
            channels_in, channels, step.kernel, step.stride, padding, bias=False
        )
        self.bn = options.norm(channels)

    def forward(self, x: Tensor, groups: NormGroups | None) -> Tensor:
        # The normalisation takes the ReLU into its own pass.
        y: Tensor = self.bn(self.conv(x), groups, relu=True)
        return y


class Mixed(nn.Module):
    """One block: its branches side by side, their outputs one behind the other."""

    looks_along_time = False

    def __init__(self, channels_in: int, branches: list[Branch], options: InceptionOptions) -> None:
        super().__init__()
        self.branches = branches
        self.channels = 0
        for branch in branches:
            channels = channels_in
            for step in branch.steps:
                self.add_module(step.name, ConvNormReLU(channels, step, options))
                channels = options.channels(step.channels)
            for step in branch.fork or ():
                self.add_module(step.name, ConvNormReLU(channels, step, options))
            ends = branch.fork or branch.steps[-1:]
            self.channels += sum(options.channels(s.channels) for s in ends) if ends else channels

    def forward(
        self, into: UnitInput, frames: int, groups: NormGroups | None, rectify: bool = True
    ) -> Tensor:
        """The block's output, which is rectified as it is; `frames` is there for units that
        look along time."""
        outputs: list[Tensor] = []
        for branch in self.branches:
            x = _pool(into.branch, branch.pool)
            for step in branch.steps:
                x = self._run(step, x, groups)
            outputs += [self._run(step, x, groups) for step in branch.fork] if branch.fork else [x]
        return torch.cat(outputs, dim=1)

    def _run(self, step: Step, x: Tensor, groups: NormGroups | None) -> Tensor:
        y: Tensor = getattr(self, step.name)(x, groups)
        return y


def _pool(x: Tensor, kind: str | None) -> Tensor:
    if kind == "average":
        return functional.avg_pool2d(x, 3, stride=1, padding=1)
    return max_pool(x, 3, 2) if kind == "max" else x


class AuxiliaryHead(nn.Module):
    """The second classifier, on the 17x17 map, under torchvision's names."""

    def __init__(self, channels_in: int, num_classes: int, options: InceptionOptions) -> None:
        super().__init__()
        self.conv0 = ConvNormReLU(channels_in, Step("conv0", 128), options)
        self.conv1 = ConvNormReLU(
            options.channels(128), Step("conv1", 768, (5, 5), 1, NO_PADDING), options
        )
        self.fc = Classifier(options.channels(768), num_classes)

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:
        y = functional.avg_pool2d(x, 5, stride=3)
        y = self.conv1(self.conv0(y, groups), groups)
        scores: Tensor = self.fc(y.mean(dim=(2, 3)))
        return scores


class InceptionV3(nn.Module):
    """Conv2d_1a_3x3 to Mixed_7c, and the classifier `fc`."""

    pool_side = POOL_SIDE

    def __init__(self, planes: int, num_classes: int, options: InceptionOptions) -> None:
        super().__init__()
        self.options = options
        channels = planes
        for step in STEM:
            self.add_module(step.name, ConvNormReLU(channels, step, options))
            channels = options.channels(step.channels)
        for number, stage in enumerate(STAGES):
            if number == len(STAGES) - 1 and options.auxiliary_head:
                self.AuxLogits = AuxiliaryHead(channels, num_classes, options)
            for name, branches in stage.items():
                block = Mixed(channels, branches, options)
                self.add_module(name, block)
                channels = block.channels
        self.features = channels
        self.fc = Classifier(channels, num_classes)

    def stages(self) -> Iterator[nn.ModuleList]:
        """The blocks in order, by the size of their maps."""
        for stage in STAGES:
            yield nn.ModuleList(getattr(self, name) for name in stage)

    def stem(self, x: Tensor, groups: NormGroups | None) -> Tensor:
        """The first five convolutions and their two pools."""
        if min(x.shape[2:]) < LEAST_SIDE:
            raise ValueError(
                f"frames of {x.shape[2]}x{x.shape[3]} are too small for Inception-v3, "
                f"which takes {LEAST_SIDE} pixels or more"
            )
        for step in STEM:
            x = getattr(self, step.name)(x, groups)
            if step.name in POOLED:
                x = max_pool(x, 3, 2)
        return x
