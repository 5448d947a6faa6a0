"""Sub-batch normalisation: moments of a group of videos, whatever the SGD batch, the ranks and the micro-steps.

The moments of a group are taken over space, frames and videos. A group lies on one rank, several lie on one rank, or
one lies over several ranks, which then add up their moments in a process group, forwards and backwards.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

NormAverage = Literal["variance", "sigma"]


@dataclass(frozen=True)
class NormGroups:
    """Which group each frame of a batch belongs to.

    `membership` is (groups, frames) with a one where a frame belongs to a group; `videos` counts each group's videos on
    this rank; `team` is the process group over which the groups lie, if they lie over more than one rank.
    """

    membership: Tensor
    videos: Tensor
    team: Any = None


def assign_groups(
    group_of_video: Tensor, group_count: int, frames: int, dtype: torch.dtype, team: Any = None
) -> NormGroups:
    """Groups of a batch of videos with `frames` frames each, from the group number of each video."""
    numbers = torch.arange(group_count, device=group_of_video.device)
    by_video = (numbers[:, None] == group_of_video[None, :]).to(dtype)
    return NormGroups(by_video.repeat_interleave(frames, dim=1), by_video.sum(dim=1), team)


def interleaved_groups(videos: int, group_size: int | None, frames: int, device: Any, dtype: torch.dtype) -> NormGroups:
    """Position p of n videos belongs to group p mod S, S = ceil(n / group_size): 256 by 86 are 86, 85, 85."""
    if group_size is not None and group_size > videos:
        raise ValueError(f"norm group of {group_size} videos is larger than the batch of {videos}")
    count = 1 if group_size is None else -(-videos // group_size)
    return assign_groups(torch.arange(videos, device=device) % count, count, frames, dtype)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Moments are kept in float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sum_over(team: Any, value: Tensor) -> Tensor:
    if team is not None:
        torch.distributed.all_reduce(value, group=team)
    return value


def _frame_sums(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Sum over space of each frame and channel, of x or of x * y."""
    return (x if y is None else x * y).sum(dim=(2, 3))


class _Normalise(torch.autograd.Function):
    """y = weight * (x - mean of its group) / sigma of its group + bias, in two passes, which keeps the digits."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, membership: Tensor, eps: float, team: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(statistics_dtype(x.dtype))
            count = _sum_over(team, membership.sum(dim=1) * (x.shape[2] * x.shape[3]))
            mean = _sum_over(team, membership @ _frame_sums(wide)) / count[:, None]
            centred = wide - _spread(membership, mean)
            variance = _sum_over(team, membership @ _frame_sums(centred, centred)) / count[:, None]
            sigma_inverse = torch.rsqrt(variance + eps)
            y = torch.addcmul(bias[:, None, None], centred, _spread(membership, sigma_inverse * weight))
        ctx.save_for_backward(x, mean, sigma_inverse, weight, membership, count)
        ctx.team = team
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, mean, sigma_inverse, weight, membership, count = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad = gradients[0].to(mean.dtype)
            centred = x.to(mean.dtype) - _spread(membership, mean)
            sums = membership @ _frame_sums(grad)
            products = membership @ _frame_sums(grad, centred)
            grad_weight = (products * sigma_inverse).sum(dim=0)
            grad_bias = sums.sum(dim=0)
            # Another rank's videos feel this rank's moments: their terms are summed over the team.
            both = _sum_over(ctx.team, torch.stack([sums, products])) / count[:, None]
            slope = sigma_inverse * weight
            shift = both[0] * slope
            curve = both[1] * slope * sigma_inverse.square()
            grad_x = grad * _spread(membership, slope) - _spread(membership, shift)
            grad_x = torch.addcmul(grad_x, centred, _spread(membership, curve), value=-1)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None, None, None


def _spread(membership: Tensor, by_group: Tensor) -> Tensor:
    """A value per group and channel as one per frame and channel, ready to broadcast over space."""
    return (membership.t() @ by_group)[:, :, None, None]


class SubBatchNorm2d(nn.Module):
    """Batch normalisation over groups of videos; buffers have ordinary BatchNorm names.

    `average` names what running statistics average over the groups: the (unbiased) variance, as torch does, or
    sigma = sqrt(biased variance + eps), as the released code does. With `deferred` set, statistics are collected over
    micro-steps and ranks until `fold_statistics`; otherwise each training forward folds its own.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    pending: Tensor

    def __init__(
        self,
        channels: int,
        group_size: int | None = None,
        eps: float = 1e-5,
        rate: float = 0.05,
        average: NormAverage = "variance",
    ) -> None:
        super().__init__()
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size is {group_size}; it must be 1 or more")
        self.channels, self.group_size, self.eps, self.rate, self.average = channels, group_size, eps, rate, average
        self.deferred = False
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        # Rows: mean and variance (or sigma), both times videos; the videos.
        self.register_buffer("pending", torch.zeros(3, channels), persistent=False)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, group_size={self.group_size}, eps={self.eps}, rate={self.rate}, average={self.average}"
        )

    def forward(self, x: Tensor, groups: NormGroups | None = None) -> Tensor:
        if not self.training:
            return self._with_running(x)
        if groups is None:
            dtype = statistics_dtype(x.dtype)
            groups = interleaved_groups(x.shape[0], self.group_size, 1, x.device, dtype)
        y, mean, variance, count = cast(
            tuple[Tensor, Tensor, Tensor, Tensor],
            _Normalise.apply(x, self.weight, self.bias, groups.membership, self.eps, groups.team),
        )
        self._collect(mean, variance, count, groups.videos)
        return y

    def _with_running(self, x: Tensor) -> Tensor:
        slope = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * slope
        dtype = statistics_dtype(x.dtype)
        return torch.addcmul(shift[:, None, None], x.to(dtype), slope[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _collect(self, mean: Tensor, variance: Tensor, count: Tensor, videos: Tensor) -> None:
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
            sigma = torch.sqrt(self.running_var + self.eps).lerp(spread.to(self.running_var.dtype), self.rate)
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
    """Fold what all micro-steps of all ranks collected: one reduction for the whole network, the same on each rank."""
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
