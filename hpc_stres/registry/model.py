"""What a model says of itself: options, streams, what it needs of a clip, and how it is built.

The options of every model are frozen dataclasses with a docstring under each field, made of the
pieces below; the config refuses whatever a model's options do not have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from hpc_stres.errors import check_field

if TYPE_CHECKING:
    from torch import nn

# Below this, Inception-v3's last map is empty.
LEAST_INCEPTION_SIDE = 75
Variant = Literal["msra", "torchvision"]


@dataclass(frozen=True, kw_only=True)
class TrunkSection:
    """The trunk of one stream; what is not given is the run's `model.*`."""

    family: Literal["resnet", "inception_v3"] = "resnet"
    """Family of the trunk: a bottleneck ResNet, or Inception-v3, which takes 299 pixels."""
    depth: Literal[50, 101, 152] | None = None
    """ResNet depth; none: `model.depth`."""
    stages: tuple[int, ...] | None = None
    """Units in each stage in place of those of the depth; none: `model.stages`."""
    width: int | None = None
    """Channels after conv1 (Inception-v3: 64 stand for its published ones); none: `model.width`."""
    variant: Variant | None = None
    """Where strides and pool padding are, and the levels of pixels; none: `model.variant`."""
    side: int | None = None
    """Side of the input in pixels; none: `data.crop`, for Inception-v3 299. A crop is as large in
    the frame either way, and test frames are scaled by side / `data.crop`."""
    mean: tuple[float, float, float] | None = None
    """Level of R, G and B that is subtracted (flow: the first is that of all planes);
    none: the variant's."""
    deviation: tuple[float, float, float] | None = None
    """What R, G and B are divided by then (flow: the first, for all planes);
    none: the variant's."""
    weights: str | None = None
    """File of weights that this stream starts from; none: `model.weights` for a ResNet."""

    def __post_init__(self) -> None:
        check_field(self.width is None or self.width >= 4, "width", "expected 4 or more")
        if self.family == "inception_v3":
            self._check_inception()
        check_field(self.side is None or self.side >= 16, "side", "expected 16 or more pixels")
        check_field(
            self.deviation is None or min(self.deviation) > 0,
            "deviation",
            "expected numbers above 0",
        )
        check_stages(self.stages)

    def _check_inception(self) -> None:
        """What only a ResNet has is not said of another trunk."""
        for key in ("depth", "stages", "variant"):
            check_field(getattr(self, key) is None, key, "no effect: Inception-v3 has one form")
        check_field(not (self.width or 0) % 4, "width", "expected a multiple of 4 for Inception-v3")
        is_large = self.side is None or self.side >= LEAST_INCEPTION_SIDE
        check_field(
            is_large, "side", f"expected {LEAST_INCEPTION_SIDE} pixels or more for Inception-v3"
        )


def check_stages(stages: tuple[int, ...] | None) -> None:
    """One to four stages of two or more units."""
    if stages is not None:
        check_field(1 <= len(stages) <= 4, "stages", "expected 1 to 4 stages")
        check_field(min(stages) >= 2, "stages", "expected 2 or more units in each stage")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What every model has."""

    name: str
    """Name of the network, as in `hpc_stres.models.build_model`."""
    norm_average: Literal["variance", "sigma"] = "variance"
    """What running statistics average over groups: the variance, as torch does, or sigma
    (released code)."""


@dataclass(frozen=True, kw_only=True)
class AppearanceOptions(ModelOptions):
    """Of a network with an appearance stream."""

    appearance: TrunkSection = field(default_factory=TrunkSection)
    """The appearance stream's trunk."""


@dataclass(frozen=True, kw_only=True)
class MotionOptions(ModelOptions):
    """Of a network with a motion stream."""

    motion: TrunkSection = field(default_factory=TrunkSection)
    """The motion stream's trunk."""
    conv1_inflation: Literal["mirror", "mean"] = "mirror"
    """Motion conv1 from RGB filters: R G B B G R ... (paper's time) or their mean repeated
    (last released code)."""
    conv1_rescale: bool = False
    """Multiply the inflated conv1 by 3/20 so that its response keeps its size;
    neither source does."""


@dataclass(frozen=True, kw_only=True)
class JointOptions(AppearanceOptions, MotionOptions):
    """Of a network whose streams are joined at the second unit of each stage."""

    temporal_padding: Literal["zeros", "replicate"] = "zeros"
    """Frames beyond a clip's ends in temporal convolutions: zeros (released code; the
    paper does not say)."""
    operation: Literal["add", "multiply", "concatenate"] = "add"
    """What the streams do to each other: one is added to the other, gates it, or both are
    concatenated and go through a 1x1 convolution that begins as the receiver alone."""
    direction: Literal["motion_to_appearance", "appearance_to_motion", "both", "off"] = (
        "motion_to_appearance"
    )
    """Which stream acts on which."""
    placement: Literal["residual", "direct"] = "residual"
    """Whether the joined signal enters the residual branch alone, or its unit's
    shortcut as well."""
    learned_scale: bool = False
    """A learned factor (0.1 at first) and offset a channel on what is sent; the released code
    can and does not."""


@dataclass(frozen=True)
class NetworkRequest:
    """What a network is built for."""

    num_classes: int
    options: ModelOptions
    norm_group: int | None = None
    dropout: float = 0.0


class Build(Protocol):
    """How a family builds its network."""

    def __call__(self, request: NetworkRequest) -> "nn.Module": ...


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What sets a network of bottleneck ResNets apart, for counting it without torch."""

    looks_along_time: bool = False
    """The second unit of each stage has 1x1x3 convolutions in place of its 1x1 ones."""
    time_pool: tuple[int, int] | None = None
    """Window and stride of a max pool over time before the classifier."""


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """A model of the registry."""

    name: str
    title: str
    """Heading of its column."""
    streams: tuple[str, ...]
    """Of `appearance` and `motion`: which clips it reads."""
    options: type[ModelOptions]
    build: Build
    clips: bool = True
    """Whether it is trained on several time steps; single frames otherwise."""
    segments: bool = False
    """Whether its clips are segments of a whole video."""
    least_chunks: int = 1
    """Time steps that a clip must have."""
    usual_chunks: int = 5
    """Time steps of the published training clip, for `describe`."""
    trunks: tuple[str, ...] = ("resnet",)
    """Families of trunks that it can have."""
    drops: tuple[str, ...] = ()
    """Streams on whose pooled features dropout acts."""
    rank: int = 100
    """Place of its column in the table."""
    published: Mapping[str, float] = field(default_factory=dict)
    """Published accuracy (mean over three splits) by official data set."""
    published_depths: Mapping[str, int] = field(default_factory=dict)
    """Depth of each stream's ResNet in the published network; a stream that is not named has 50."""
    counted: Counted | None = None
    """How `describe`, `init` and `submit` count it without torch; none: it is measured
    where that is needed."""
    probes: tuple[str, ...] = ()
    """What the report may show of it: `junctions`, `temporal_kernels`."""

    @property
    def is_single(self) -> bool:
        """Whether it is one stream alone, whose scores the late fusion averages."""
        return len(self.streams) == 1
