"""STM-ResNet: motion gates appearance; temporal convolutions that begin as identity (CVPR 2017)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from hpc_stres.registry import MODELS
from hpc_stres.registry.model import JointOptions, ModelFamily, NetworkRequest

if TYPE_CHECKING:
    from torch import nn

POOL_WINDOW = 5


@dataclass(frozen=True, kw_only=True)
class StmOptions(JointOptions):
    """Gating in place of addition, and a max pool over time."""

    operation: Literal["add", "multiply", "concatenate"] = "multiply"
    """What the streams do to each other: one gates the other, is added to it, or both are
    concatenated and go through a 1x1 convolution that begins as the receiver alone."""
    temporal_pool: Literal["after_pool5", "before_average"] = "before_average"
    """The temporal max pool is before the spatial average (released code) or after it."""
    temporal_init: Literal["identity", "average", "difference"] = "identity"
    """What the new temporal layers begin as: a channel passes its own step (chosen), the mean of
    three steps, or three times its step less the neighbours' (switches of the released code)."""
    temporal_units: Literal["second", "as_released"] = "second"
    """Which units have them: the second of each stage; or as the released code's names have it,
    where a trunk of 101 or 152 layers has none in its third and fourth stage, whose units are
    numbered and are not found."""


def build(request: NetworkRequest) -> "nn.Module":
    """Two trunks with their interaction; only the motion stream's features are dropped."""
    from hpc_stres.models.assembly import interaction_of, trunks_of
    from hpc_stres.models.two_stream import TemporalPool, TwoStream

    options = request.options
    assert isinstance(options, StmOptions)
    trunks = {
        stream: replace(
            trunk, temporal_init=options.temporal_init, temporal_units=options.temporal_units
        )
        for stream, trunk in trunks_of(request, "new").items()
    }
    return TwoStream(
        request.num_classes,
        trunks,
        interaction=interaction_of(options, trunks),
        pool=TemporalPool(options.temporal_pool, window=POOL_WINDOW, stride=1),
        dropout={"motion": request.dropout},
    )


MODELS.register(
    ModelFamily(
        name="stm_resnet", title="STM-ResNet", streams=("appearance", "motion"), options=StmOptions,
        build=build, least_chunks=POOL_WINDOW, drops=("motion",), rank=4,
        published={"ucf101": 94.2, "hmdb51": 68.9},
        published_depths={"motion": 152}, probes=("junctions", "temporal_kernels"),
    )
)  # fmt: skip
