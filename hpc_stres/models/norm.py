"""Sub-batch normalisation: moments of a group of videos, whatever the SGD batch, the ranks and
the micro-steps.

The moments of a group are taken over space, frames and videos. A group lies on one rank, several
lie on one rank, or one lies over several ranks, which then add up their moments in a process group,
forwards and backwards.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hpc_stres.models import norm_exact, norm_fused, norm_plain
from hpc_stres.models.norm_plain import statistics_dtype

__all__ = [
    "NormAverage",
    "NormGroups",
    "SubBatchNorm2d",
    "assign_groups",
    "defer_statistics",
    "fold_statistics",
    "interleaved_groups",
    "norm_layers",
    "statistics_dtype",
]

NormAverage = Literal["variance", "sigma"]


@dataclass(frozen=True)
class NormGroups:
    """Which group each frame of a batch belongs to.

    `membership` is (groups, frames) with a one where a frame belongs to a group, and `owner` that
    group's number by frame; `videos` counts each group's videos on this rank; `team` is the process
    group over which the groups lie, if they lie over more than one rank, and `team_name` its name.
    """

    membership: Tensor
    owner: Tensor
    videos: Tensor
    team: Any = None
    team_name: str = ""


def assign_groups(
    group_of_video: Tensor, group_count: int, frames: int, dtype: torch.dtype, team: Any = None
) -> NormGroups:
    """Groups of a batch of videos with `frames` frames each, from the group
    number of each video."""
    numbers = torch.arange(group_count, device=group_of_video.device)
    by_video = (numbers[:, None] == group_of_video[None, :]).to(dtype)
    owner = group_of_video.to(torch.int32).repeat_interleave(frames)
    membership = by_video.repeat_interleave(frames, dim=1)
    return NormGroups(membership, owner, by_video.sum(dim=1), team, norm_fused.team_name(team))


def interleaved_groups(
    videos: int, group_size: int | None, frames: int, device: Any, dtype: torch.dtype
) -> NormGroups:
    """Position p of n videos belongs to group p mod S, S = ceil(n / group_size): 256 by
    86 are 86, 85, 85."""
    if group_size is not None and group_size > videos:
        raise ValueError(f"norm group of {group_size} videos is larger than the batch of {videos}")
    count = 1 if group_size is None else -(-videos // group_size)
    return assign_groups(torch.arange(videos, device=device) % count, count, frames, dtype)


class SubBatchNorm2d(nn.Module):
    """Batch normalisation over groups of videos; buffers have ordinary BatchNorm names.

    `average` names what running statistics average over the groups: the (unbiased) variance, as
    torch does, or sigma = sqrt(biased variance + eps), as the released code does. With `deferred`
    set, statistics are collected over micro-steps and ranks until `fold_statistics`; otherwise each
    training forward folds its own.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    pending: Tensor

    def __init__(
        self,
        channels: int,
        group_size: int | None = None,
        relu: bool = False,
        *,
        eps: float = 1e-5,
        rate: float = 0.05,
        average: NormAverage = "variance",
    ) -> None:
        super().__init__()
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size is {group_size}; it must be 1 or more")
        self.channels, self.group_size, self.eps, self.rate, self.average = (
            channels,
            group_size,
            eps,
            rate,
            average,
        )
        self.relu = relu
        self.deferred = False
        # In a bitwise training: its sums (an exact.session.Session), and this layer's name there.
        self.exact: Any = None
        self.exact_name = ""
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        # Rows: mean and variance (or sigma), both times videos; the videos.
        self.register_buffer("pending", torch.zeros(3, channels), persistent=False)

    def extra_repr(self) -> str:
        text = f"{self.channels}, group_size={self.group_size}, eps={self.eps}, rate={self.rate}"
        return f"{text}, average={self.average}, relu={self.relu}"

    def forward(
        self,
        x: Tensor,
        groups: NormGroups | None = None,
        residual: Tensor | None = None,
        relu: bool | None = None,
    ) -> Tensor:
        """x normalised, + residual, rectified as `relu` says (None: as the layer does)."""
        rectifies = self.relu if relu is None else relu
        if not self.training:
            return self._with_running(x, residual, rectifies)
        if groups is None:
            dtype = statistics_dtype(x.dtype)
            groups = interleaved_groups(x.shape[0], self.group_size, 1, x.device, dtype)
        if self.exact is not None:
            return norm_exact.normalise(self, x, groups, residual, rectifies)
        if norm_fused.suits(x, self.weight, residual):
            y, count, mean, variance = norm_fused.sub_batch_norm(
                x, residual, self.weight, self.bias, groups.owner, len(groups.videos), self.eps, rectifies,
                groups.team_name,
            )  # fmt: skip
        else:
            y, mean, variance, count = cast(
                tuple[Tensor, Tensor, Tensor, Tensor],
                norm_plain.Normalise.apply(
                    x, self.weight, self.bias, groups.membership, self.eps, groups.team
                ),
            )
            y = norm_plain.finish(y, residual, rectifies)
        self._collect(mean, variance, count, groups.videos)
        return y

    def _with_running(self, x: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        given = (
            x,
            residual,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.eps,
            relu,
        )
        if self.exact is not None:
            return norm_exact.by_running_statistics(self.exact, *given)
        # A traced network is to run elsewhere, without our kernels; theirs has no gradient here.
        traced = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if traced or torch.is_grad_enabled() or not norm_fused.suits(x, self.weight, residual):
            return norm_plain.normalise_by(*given)
        return norm_fused.normalise_by(*given)

    @torch.no_grad()
    def _collect(self, mean: Tensor, variance: Tensor, count: Tensor, videos: Tensor) -> None:
        mean, variance, count = (value.to(videos.dtype) for value in (mean, variance, count))
        if self.average == "sigma":
            spread = torch.sqrt(variance + self.eps)
        else:
            spread = variance * (count / (count - 1).clamp(min=1))[:, None]
        weighted = torch.stack([videos @ mean, videos @ spread, videos.sum().expand(self.channels)])
        if self.deferred:
            self.pending.add_(weighted)
        else:
            self.fold(weighted)

    @torch.no_grad()
    def fold(self, collected: Tensor) -> None:
        """Fold weighted sums (see `pending`) into the running statistics, once per SGD step."""
        mean, spread = collected[0] / collected[2], collected[1] / collected[2]
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.rate)
        if self.average == "sigma":
            sigma = torch.sqrt(self.running_var + self.eps).lerp(
                spread.to(self.running_var.dtype), self.rate
            )
            # Rounding must not leave a variance below zero.
            self.running_var.copy_((sigma.square() - self.eps).clamp_(min=0.0))
        else:
            self.running_var.lerp_(spread.to(self.running_var.dtype), self.rate)
        self.num_batches_tracked.add_(1)


def norm_layers(model: nn.Module) -> list[SubBatchNorm2d]:
    """All sub-batch normalisations of a network."""
    return [module for module in model.modules() if isinstance(module, SubBatchNorm2d)]


def defer_statistics(model: nn.Module) -> None:
    """Collect statistics until `fold_statistics` in place of folding at each forward."""
    for layer in norm_layers(model):
        layer.deferred = True


@torch.no_grad()
def fold_statistics(model: nn.Module, distributed: bool) -> None:
    """Fold what all micro-steps of all ranks collected: one reduction for the whole network, the
    same on each rank."""
    # Those of a frozen trunk collect nothing and keep what they have.
    layers = [layer for layer in norm_layers(model) if layer.training]
    collected = torch.cat([layer.pending for layer in layers], dim=1)
    if distributed:
        torch.distributed.all_reduce(collected)
    start = 0
    for layer in layers:
        part = collected[:, start : start + layer.channels]
        start += layer.channels
        layer.fold(part)
        layer.pending.zero_()
