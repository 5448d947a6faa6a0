"""STFN: features of both streams a segment, temporal Res-Inception modules, fusion
blocks, two heads.

    rgb  -> trunk -> mean over space -> Res-Inception -\\  /-> Res-Inception ... -> mean over segments -> head
                                                       join                                       |  + |
    flow -> trunk -> mean over space -> Res-Inception -/  \\-> Res-Inception ... -> mean over segments -> head

Input are clips, one chunk a segment, or features of the trunks that were computed before: tensors
(videos, segments, features). Frozen trunks are in evaluation mode and get no gradients, so that
both ways give the same numbers to rounding.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from hpc_stres.models.dropout import DropoutShape, Masks, drop
from hpc_stres.models.norm import NormGroups, interleaved_groups, statistics_dtype
from hpc_stres.models.resnet import run_units
from hpc_stres.models.sequence_fusion import FusionBlock, FusionDirection, FusionOperation, join
from hpc_stres.models.temporal_inception import SequenceOptions, TemporalInception
from hpc_stres.models.trunks import AnyTrunk
from hpc_stres.models.two_stream import FLOW_PLANES, FRAMES_AT_ONCE, RGB_PLANES, Logits

HeadReads = Literal["own", "joined"]
SegmentPool = Literal["mean", "maximum"]


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """How the sequences of both streams meet; see the family's options for what each means."""

    blocks: int = 2
    operation: FusionOperation = "average"
    direction: FusionDirection = "both"
    head_reads: HeadReads = "own"
    segment_pool: SegmentPool = "mean"
    trunks_frozen: bool = False
    sequence: SequenceOptions = field(default_factory=SequenceOptions)


class Stfn(nn.Module):
    """Two trunks and what joins their sequences. The heads are the trunks' own classifiers."""

    def __init__(
        self,
        num_classes: int,
        appearance: AnyTrunk,
        motion: AnyTrunk,
        options: JoinOptions,
        dropout: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if appearance.features != motion.features:
            raise ValueError(
                f"the streams meet feature by feature, but the appearance trunk has "
                f"{appearance.features} and the motion trunk {motion.features}"
            )
        self.num_classes, self.options = num_classes, options
        self.dropout = dropout or {}
        self.activation_checkpointing = False
        # What units are computed in, and computed again in; a bitwise training watches both.
        self.recompute_context = noop_context_fn
        self.frames_at_once = FRAMES_AT_ONCE
        self.appearance, self.motion = appearance, motion
        features = appearance.features
        self.appearance_sequence = TemporalInception(features, options.sequence)
        self.motion_sequence = TemporalInception(features, options.sequence)
        self.fusion = nn.ModuleList(
            FusionBlock(features, options.operation, options.direction, options.sequence)
            for _ in range(options.blocks)
        )
        for trunk in (self.appearance, self.motion):
            for name, parameter in trunk.named_parameters():
                is_head = name.startswith("fc.")
                parameter.requires_grad_(is_head or not options.trunks_frozen)
        self.train()

    def train(self, mode: bool = True) -> "Stfn":
        """Training mode; frozen trunks keep their running statistics."""
        super().train(mode)
        if self.options.trunks_frozen:
            self.appearance.eval()
            self.motion.eval()
        return self

    def forward(
        self,
        rgb: Tensor | None,
        flow: Tensor | None,
        groups: NormGroups | None = None,
        masks: Masks | None = None,
    ) -> Logits:
        """rgb (N, S, 3, H, W) or (N, S, features), flow (N, S, 20, H, W) or (N, S, features).

        Scores have one time output: a video's segments are one whole.
        """
        videos, segments = self._check(rgb, flow)
        assert rgb is not None
        assert flow is not None
        if groups is None and self.training:
            size, dtype = self.options.sequence.norm_group, statistics_dtype(rgb.dtype)
            groups = interleaved_groups(videos, size, segments, rgb.device, dtype)
        a = self.features_of(self.appearance, rgb, groups)
        m = self.features_of(self.motion, flow, groups)
        a = self.appearance_sequence(a, segments, groups)
        m = self.motion_sequence(m, segments, groups)
        for block in self.fusion:
            a, m = block(a, m, segments, groups)
        if self.options.head_reads == "joined":
            a = m = join(a, m, self.options.operation)
        return Logits(
            self._classify("appearance", a, segments, masks),
            self._classify("motion", m, segments, masks),
        )

    def features_of(self, trunk: AnyTrunk, clips: Tensor, groups: NormGroups | None) -> Tensor:
        """A stream's features (videos * segments, features, 1, 1), averaged over space."""
        frames = clips.flatten(0, 1)
        if clips.ndim == 3:
            return frames[:, :, None, None]
        if self.options.trunks_frozen or not self.training:
            # Nothing is recorded in frozen trunks, whose parameters want no gradient; but whoever
            # asks for the gradients of their activations (Grad-CAM) gets them.
            # Traced for export, a clip goes through as a whole: its length is then free.
            is_traced = torch.compiler.is_exporting()
            parts = (frames,) if is_traced else frames.split(self.frames_at_once)
            return torch.cat([trunk_features(trunk, part, None) for part in parts])
        if self.activation_checkpointing:
            y: Tensor = checkpoint(
                trunk_features, trunk, frames, groups,
                use_reentrant=False, preserve_rng_state=False, context_fn=self.recompute_context,
            )  # fmt: skip
            return y
        return trunk_features(trunk, frames, groups)

    def dropout_shapes(self, frames: int) -> dict[str, DropoutShape]:
        """The dropout masks that a training pass wants, by stream."""
        return {
            stream: DropoutShape(rate, 1, self.appearance.features)
            for stream, rate in self.dropout.items()
            if rate > 0.0
        }

    def _classify(self, stream: str, x: Tensor, segments: int, masks: Masks | None) -> Tensor:
        sequence = x.flatten(1).unflatten(0, (-1, segments))
        pooled = sequence.mean(1) if self.options.segment_pool == "mean" else sequence.amax(1)
        rate = self.dropout.get(stream, 0.0)
        if self.training and rate > 0.0:
            if masks is not None and stream not in masks:
                raise ValueError(f"no dropout mask for the {stream} stream")
            pooled = drop(pooled, rate, None if masks is None else masks[stream])
        scores: Tensor = getattr(self, stream).fc(pooled)
        return scores[:, None]

    def _check(self, rgb: Tensor | None, flow: Tensor | None) -> tuple[int, int]:
        """Videos and segments; refuses tensors of the wrong shape by their numbers."""
        features = self.appearance.features
        for name, clips, planes in (("rgb", rgb, RGB_PLANES), ("flow", flow, FLOW_PLANES)):
            if clips is None:
                raise ValueError(f"this network reads {name}, but got None")
            is_clip = clips.ndim == 5 and clips.shape[2] == planes
            is_features = clips.ndim == 3 and clips.shape[2] == features
            if is_features and not self.options.trunks_frozen:
                raise ValueError(f"{name} are features, but this network's trunks are trained")
            if not is_clip and not is_features:
                raise ValueError(
                    f"{name} must be (videos, segments, {planes}, height, width) or "
                    f"(videos, segments, {features}), got {tuple(clips.shape)}"
                )
        assert rgb is not None
        assert flow is not None
        if rgb.shape[:2] != flow.shape[:2]:
            one, other = tuple(rgb.shape[:2]), tuple(flow.shape[:2])
            raise ValueError(f"rgb and flow differ in (videos, segments): {one} and {other}")
        return rgb.shape[0], rgb.shape[1]


def trunk_features(trunk: AnyTrunk, frames: Tensor, groups: NormGroups | None) -> Tensor:
    """Features of single frames, averaged over space: (frames, features, 1, 1)."""
    x = trunk.stem(frames, groups)
    for stage in trunk.stages():
        x = run_units(list(stage), x, 1, groups)
    return x.mean(dim=(2, 3), keepdim=True)
