"""Sub-batch normalisation in plain torch: the arithmetic that the fused kernels are held to.

It runs on every tensor that they do not take: another memory order, another type, a machine
without a compiler, a traced network.
"""

from typing import Any

import torch
from torch import Tensor

from hpc_stres.run.waits import waiting


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Moments are kept in float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sum_over(team: Any, value: Tensor) -> Tensor:
    if team is not None:
        with waiting():
            torch.distributed.all_reduce(value, group=team)
    return value


def _frame_sums(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Sum over space of each frame and channel, of x or of x * y."""
    return (x if y is None else x * y).sum(dim=(2, 3))


class Normalise(torch.autograd.Function):
    """y = weight * (x - mean of its group) / sigma of its group + bias, in two passes, which
    keeps the digits."""

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
            y = torch.addcmul(
                bias[:, None, None], centred, _spread(membership, sigma_inverse * weight)
            )
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


def normalise_by(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float,
    relu: bool,
) -> Tensor:  # fmt: skip
    """x normalised by given moments of each channel, + residual, rectified where asked for."""
    slope = weight * torch.rsqrt(variance + eps)
    shift = bias - mean * slope
    dtype = statistics_dtype(x.dtype)
    y = torch.addcmul(shift[:, None, None], x.to(dtype), slope[:, None, None]).to(x.dtype)
    return finish(y, residual, relu)


def finish(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """What follows a normalisation: the sum with a residual, and the ReLU."""
    if residual is not None:
        y = residual + y
    return torch.relu(y) if relu else y
