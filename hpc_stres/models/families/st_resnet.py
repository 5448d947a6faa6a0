"""ST-ResNet and ST-ResNet*: streams joined by addition, convolutions over time inflated from 1x1
ones (NIPS 2016)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpc_stres.registry import MODELS
from hpc_stres.registry.model import Counted, JointOptions, ModelFamily, NetworkRequest

if TYPE_CHECKING:
    from torch import nn

POOL_WINDOW, POOL_STRIDE = 5, 2


@dataclass(frozen=True, kw_only=True)
class StarOptions(JointOptions):
    """ST-ResNet with a max pool over time."""

    temporal_pool: Literal["after_pool5", "before_average"] = "after_pool5"
    """The temporal max pool is after the spatial average (paper) or before it (released code)."""


def build(request: NetworkRequest) -> "nn.Module":
    """Two trunks with their interaction."""
    from hpc_stres.models.assembly import interaction_of, trunks_of
    from hpc_stres.models.two_stream import TemporalPool, TwoStream

    options = request.options
    pool = None
    if isinstance(options, StarOptions):
        pool = TemporalPool(options.temporal_pool, window=POOL_WINDOW, stride=POOL_STRIDE)
    trunks = trunks_of(request, "inflated")
    return TwoStream(
        request.num_classes, trunks, interaction=interaction_of(options, trunks), pool=pool
    )


MODELS.register(
    ModelFamily(
        name="st_resnet", title="ST-ResNet", streams=("appearance", "motion"), options=JointOptions,
        build=build, rank=2, published={"ucf101": 92.76, "hmdb51": 65.57},
        counted=Counted(looks_along_time=True), probes=("junctions", "temporal_kernels"),
    )
)  # fmt: skip
MODELS.register(
    ModelFamily(
        name="st_resnet_star", title="ST-ResNet*", streams=("appearance", "motion"),
        options=StarOptions, build=build, least_chunks=POOL_WINDOW, usual_chunks=11, rank=3,
        published={"ucf101": 93.46, "hmdb51": 66.41}, probes=("junctions", "temporal_kernels"),
        counted=Counted(looks_along_time=True, time_pool=(POOL_WINDOW, POOL_STRIDE)),
    )
)  # fmt: skip
