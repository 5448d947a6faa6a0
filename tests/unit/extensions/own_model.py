"""A model of one's own in one file: each stream is one convolution, joined by a product of features."""

from dataclasses import dataclass

from hpc_stres.registry import MODELS
from hpc_stres.registry.model import AppearanceOptions, ModelFamily, MotionOptions


@dataclass(frozen=True, kw_only=True)
class Options(AppearanceOptions, MotionOptions):
    """Of the model `mixed`."""

    channels: int = 8
    """Channels of each stream."""


def build(request):
    import torch
    from torch import nn

    from hpc_stres.models import Logits, SubBatchNorm2d

    class Stream(nn.Module):
        def __init__(self, planes):
            super().__init__()
            self.conv1 = nn.Conv2d(planes, request.options.channels, 7, 4)
            self.bn1 = SubBatchNorm2d(request.options.channels, request.norm_group)
            self.fc = nn.Linear(request.options.channels, request.num_classes)

        def forward(self, clip, groups):
            x = torch.relu(self.bn1(self.conv1(clip.flatten(0, 1)), groups)).mean(dim=(2, 3))
            return x.unflatten(0, clip.shape[:2])

    class Mixed(nn.Module):
        activation_checkpointing = False

        def __init__(self):
            super().__init__()
            self.appearance, self.motion = Stream(3), Stream(20)

        def dropout_shapes(self, frames):
            return {}

        def forward(self, rgb, flow, groups=None, masks=None):
            a, m = self.appearance(rgb, groups), self.motion(flow, groups)
            return Logits(self.appearance.fc(a * (1 + m)), self.motion.fc(m))

    return Mixed()


MODELS.register(
    ModelFamily(
        name="mixed", title="Mixed", streams=("appearance", "motion"), options=Options, build=build
    )
)
