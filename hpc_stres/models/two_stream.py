"""Both streams, their interaction, the pools and the classifiers: every network of the package
is one of these."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, noop_context_fn

from hpc_stres.models.dropout import DropoutShape, Masks, drop
from hpc_stres.models.interaction import Interaction, UnitInput
from hpc_stres.models.norm import NormGroups, interleaved_groups, statistics_dtype
from hpc_stres.models.resnet import run_units
from hpc_stres.models.temporal import pooled_length, temporal_max_pool
from hpc_stres.models.trunks import AnyTrunk, AnyTrunkOptions, make_trunk

FLOW_PLANES = 20
RGB_PLANES = 3
POOL_SIDE = 7
FRAMES_AT_ONCE = 5


class Logits(NamedTuple):
    """Class scores (videos, time, classes) of each stream, averaged over space; None for a stream
    that is not there."""

    appearance: Tensor | None
    motion: Tensor | None


@dataclass(frozen=True)
class TemporalPool:
    """The max pool over time: where it is, its window and its stride."""

    place: Literal["after_pool5", "before_average"]
    window: int
    stride: int


def spatial_average(x: Tensor, side: int = POOL_SIDE) -> Tensor:
    """Average over 7x7 windows at stride 1, so that larger frames give several places; over
    everything below 7x7."""
    if torch.compiler.is_exporting():
        # The same as two matrix products: a pool would be fixed to the window of the traced size.
        rows, columns = (window_means(x.shape[axis], x, side) for axis in (2, 3))
        return rows @ x @ columns.t()
    return functional.avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])), stride=1)


def window_means(length: int, like: Tensor, side: int = POOL_SIDE) -> Tensor:
    """The averages over windows of up to `side` places along an axis of any length, as a matrix."""
    window = torch.sym_min(length, side)
    first = torch.arange(length - window + 1, device=like.device)[:, None]
    place = torch.arange(length, device=like.device)[None]
    inside = (place >= first) & (place < first + window)
    return inside.to(like.dtype) / window


def _trunk(planes: int, num_classes: int, options: AnyTrunkOptions | None) -> AnyTrunk | None:
    return None if options is None else make_trunk(planes, num_classes, options)


class TwoStream(nn.Module):
    """An appearance trunk, a motion trunk, or both with an interaction at the second
    unit of each stage."""

    def __init__(
        self,
        num_classes: int,
        trunks: Mapping[str, AnyTrunkOptions],
        interaction: Interaction | None = None,
        pool: TemporalPool | None = None,
        dropout: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.pool = num_classes, pool
        # All trunks of a network share the size of their normalisation groups.
        self.norm_group = next(iter(trunks.values())).norm_group
        self.dropout = dropout or {}
        self.activation_checkpointing = False
        # What units are computed in, and computed again in; a bitwise training watches both.
        self.recompute_context = noop_context_fn
        # At test time memory for what lies between two units is bounded by so many frames.
        self.frames_at_once = FRAMES_AT_ONCE
        self.appearance = _trunk(RGB_PLANES, num_classes, trunks.get("appearance"))
        self.motion = _trunk(FLOW_PLANES, num_classes, trunks.get("motion"))
        self.interaction = interaction or Interaction(direction="off")

    def forward(
        self,
        rgb: Tensor | None,
        flow: Tensor | None,
        groups: NormGroups | None = None,
        masks: Masks | None = None,
    ) -> Logits:
        """rgb (N, T, 3, H, W), flow (N, T, 20, H, W); `groups` of a larger batch, or interleaved
        groups of this one.

        `masks` are the dropout masks of each stream in `dropout_shapes`, which only training reads;
        without any, training draws from torch's own generator.
        """
        frames, videos = self._check(rgb, flow)
        if groups is None and self.training:
            some = rgb if self.appearance is not None else flow
            assert some is not None
            dtype = statistics_dtype(some.dtype)
            groups = interleaved_groups(videos, self.norm_group, frames, some.device, dtype)
        if self.appearance is None or self.motion is None:
            return self._one_stream(rgb, flow, frames, groups, masks)
        assert rgb is not None
        assert flow is not None
        a = self._frame_by_frame(self.appearance.stem, rgb.flatten(0, 1), groups)
        m = self._frame_by_frame(self.motion.stem, flow.flatten(0, 1), groups)
        stages = zip(self.appearance.stages(), self.motion.stages(), strict=True)
        for number, (stage_a, stage_m) in enumerate(stages, 1):
            a, m = self._joint_stage(number, list(stage_a), list(stage_m), a, m, frames, groups)
        return Logits(
            self._classify(self.appearance, a, frames, masks),
            self._classify(self.motion, m, frames, masks),
        )

    def dropout_shapes(self, frames: int) -> dict[str, DropoutShape]:
        """The dropout masks that a training pass over clips of `frames` time steps wants, by
        stream."""
        shapes = {}
        for stream, rate in self.dropout.items():
            trunk = getattr(self, stream)
            if trunk is not None and rate > 0.0:
                shapes[stream] = DropoutShape(rate, self._times_left(frames), trunk.features)
        return shapes

    def _times_left(self, frames: int) -> int:
        """Time steps behind the temporal pool."""
        pool = self.pool
        return frames if pool is None else pooled_length(frames, pool.window, pool.stride)

    def _one_stream(
        self,
        rgb: Tensor | None,
        flow: Tensor | None,
        frames: int,
        groups: NormGroups | None,
        masks: Masks | None,
    ) -> Logits:
        trunk, clip = (self.appearance, rgb) if self.appearance is not None else (self.motion, flow)
        assert trunk is not None
        assert clip is not None
        x = self._frame_by_frame(trunk.stem, clip.flatten(0, 1), groups)
        for stage in trunk.stages():
            x = self._units(list(stage), x, frames, groups)
        logits = self._classify(trunk, x, frames, masks)
        return Logits(logits, None) if trunk is self.appearance else Logits(None, logits)

    def _joint_stage(
        self,
        number: int,
        units_a: list[nn.Module],
        units_m: list[nn.Module],
        a: Tensor,
        m: Tensor,
        frames: int,
        groups: NormGroups | None,
    ) -> tuple[Tensor, Tensor]:
        joined: list[Tensor] = []
        for stream, unit, x in (("appearance", units_a[0], a), ("motion", units_m[0], m)):
            # Where nobody reads the sum, the ReLU goes into the normalisation's own passes.
            is_read = stream in self.interaction.sums_read
            y = self._unit(unit, UnitInput(x, x), frames, groups, rectify=not is_read)
            joined += [y, torch.relu(y) if is_read else y]
        into_a, into_m = self.interaction(*joined, number)
        a = self._unit(units_a[1], into_a, frames, groups, rectify=True)
        m = self._unit(units_m[1], into_m, frames, groups, rectify=True)
        return self._units(units_a[2:], a, frames, groups), self._units(
            units_m[2:], m, frames, groups
        )

    def _units(
        self, units: list[nn.Module], x: Tensor, frames: int, groups: NormGroups | None
    ) -> Tensor:
        """A run of units, each followed by its ReLU."""
        if self._keeps_gradients:
            return self._keep_or_recompute(run_units, units, x, frames, groups)
        for unit in units:
            x = self._unit(unit, UnitInput(x, x), frames, groups, rectify=True)
        return x

    def _unit(
        self,
        unit: nn.Module,
        into: UnitInput,
        frames: int,
        groups: NormGroups | None,
        rectify: bool = False,
    ) -> Tensor:
        """One unit, and its ReLU where asked for. At test time a unit that does not look along time
        takes a few frames at once."""
        if self._keeps_gradients or unit.looks_along_time:
            return self._keep_or_recompute(unit, into, frames, groups, rectify)
        size = self.frames_at_once
        parts = zip(into.branch.split(size), into.skip.split(size), strict=True)
        return torch.cat(
            [unit(UnitInput(branch, skip), len(branch), groups, rectify) for branch, skip in parts]
        )

    def _frame_by_frame(self, stem: Any, x: Tensor, groups: NormGroups | None) -> Tensor:
        if self._keeps_gradients:
            return stem(x, groups)
        return torch.cat([stem(part, groups) for part in x.split(self.frames_at_once)])

    @property
    def _keeps_gradients(self) -> bool:
        # Traced for export, a clip goes through as a whole: its length is then free.
        return self.training or torch.is_grad_enabled() or torch.compiler.is_exporting()

    def _keep_or_recompute(self, function: Any, *arguments: Any) -> Tensor:
        if self.activation_checkpointing and self.training:
            # Nothing in between is random, so no generator's state has to be kept for the second
            # pass.
            return checkpoint(
                function, *arguments, use_reentrant=False, preserve_rng_state=False,
                context_fn=self.recompute_context,
            )  # fmt: skip
        return function(*arguments)

    def _classify(self, trunk: AnyTrunk, x: Tensor, frames: int, masks: Masks | None) -> Tensor:
        pool = self.pool
        if pool is not None and pool.place == "before_average":
            x = temporal_max_pool(x, frames, pool.window, pool.stride)
        x = spatial_average(x, trunk.pool_side)
        if pool is not None and pool.place == "after_pool5":
            x = temporal_max_pool(x, frames, pool.window, pool.stride)
        # The classifier is linear: its mean over places is its value at the mean.
        x = x.mean(dim=(2, 3))
        stream = "appearance" if trunk is self.appearance else "motion"
        rate = self.dropout.get(stream, 0.0)
        if self.training and rate > 0.0:
            if masks is not None and stream not in masks:
                raise ValueError(f"no dropout mask for the {stream} stream")
            x = drop(x, rate, None if masks is None else masks[stream])
        return trunk.fc(x).unflatten(0, (-1, self._times_left(frames)))

    def _check(self, rgb: Tensor | None, flow: Tensor | None) -> tuple[int, int]:
        """Time steps and videos; refuses tensors of the wrong shape by their numbers."""
        sizes = []
        for name, trunk, clip, planes in (
            ("rgb", self.appearance, rgb, RGB_PLANES),
            ("flow", self.motion, flow, FLOW_PLANES),
        ):
            if trunk is None:
                continue
            if clip is None:
                raise ValueError(f"this network reads {name}, but got None")
            if clip.ndim != 5 or clip.shape[2] != planes:
                raise ValueError(
                    f"{name} must be (videos, time, {planes}, height, width), got {tuple(clip.shape)}"
                )
            sizes.append((clip.shape[0], clip.shape[1], clip.shape[3], clip.shape[4]))
        if sizes[0] != sizes[-1]:
            raise ValueError(
                f"rgb and flow differ in (videos, time, height, width): {sizes[0]} and {sizes[1]}"
            )
        videos, frames = sizes[0][0], sizes[0][1]
        if self.pool is not None and frames < self.pool.window:
            raise ValueError(
                f"{frames} time steps are too few for the temporal pool over {self.pool.window}"
            )
        return frames, videos
