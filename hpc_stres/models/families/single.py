"""The two streams alone: a ResNet on an RGB frame, a ResNet on a stack of flow."""

from typing import TYPE_CHECKING

from hpc_stres.registry import MODELS
from hpc_stres.registry.model import (
    AppearanceOptions,
    Counted,
    ModelFamily,
    MotionOptions,
    NetworkRequest,
)

if TYPE_CHECKING:
    from torch import nn


def build(request: NetworkRequest) -> "nn.Module":
    """One trunk, of any family, and its classifier."""
    from hpc_stres.models.assembly import frame_trunks_of
    from hpc_stres.models.two_stream import TwoStream

    stream = request.options.name
    trunks = frame_trunks_of(request)
    return TwoStream(request.num_classes, trunks, dropout={stream: request.dropout})


MODELS.register(
    ModelFamily(
        name="appearance", title="Appearance", streams=("appearance",), options=AppearanceOptions,
        build=build, clips=False, trunks=("resnet", "inception_v3"), usual_chunks=1, drops=("appearance",), rank=0,
        published={"ucf101": 82.29, "hmdb51": 43.42}, counted=Counted(),
    )
)  # fmt: skip
MODELS.register(
    ModelFamily(
        name="motion", title="Motion", streams=("motion",), options=MotionOptions, build=build,
        trunks=("resnet", "inception_v3"),
        usual_chunks=1, drops=("motion",), rank=1, published={"ucf101": 79.05, "hmdb51": 55.47},
        counted=Counted(),
    )
)  # fmt: skip
