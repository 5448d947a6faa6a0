"""STM-ResNet: motion gates appearance; temporal convolutions that begin as identity (CVPR 2017)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hpc_stres.registry import MODELS
from hpc_stres.registry.model import JointOptions, ModelFamily, NetworkRequest

if TYPE_CHECKING:
    from torch import nn

POOL_WINDOW = 5


@dataclass(frozen=True, kw_only=True)
class StmOptions(JointOptions):
    """Gating in place of addition, and a max pool over time."""

    operation: Literal["add", "multiply"] = "multiply"
    """What the streams do to each other: one gates the other, or is added to it."""
    temporal_pool: Literal["after_pool5", "before_average"] = "before_average"
    """The temporal max pool is before the spatial average (released code) or after it."""


def build(request: NetworkRequest) -> "nn.Module":
    """Two trunks with their interaction; only the motion stream's features are dropped."""
    from hpc_stres.models.assembly import interaction_of, trunks_of
    from hpc_stres.models.two_stream import TemporalPool, TwoStream

    options = request.options
    assert isinstance(options, StmOptions)
    return TwoStream(
        request.num_classes,
        trunks_of(request, "identity"),
        interaction=interaction_of(options),
        pool=TemporalPool(options.temporal_pool, window=POOL_WINDOW, stride=1),
        dropout={"motion": request.dropout},
    )


MODELS.register(
    ModelFamily(
        name="stm_resnet", title="STM-ResNet", streams=("appearance", "motion"), options=StmOptions,
        build=build, least_chunks=POOL_WINDOW, drops=("motion",), rank=4,
        published={"ucf101": 94.2, "hmdb51": 68.9}, probes=("junctions", "temporal_kernels"),
    )
)  # fmt: skip
