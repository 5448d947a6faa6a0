"""Sub-batch normalisation, residual sum and ReLU as one operator of torch:
`hpc_stres::sub_batch_norm`.

Forwards it reads activations once for the moments and once for the values; backwards once for two
sums over each group and once for the gradient. A ReLU's mask is computed again from x; with a
residual it is read from the output, which the next layer keeps anyway. The kernels are C++ on a
CPU and Triton on a GPU; plain torch (norm_plain.py) is what they are compared with, and what runs
where they cannot.

Registered with torch, so that it has a shape without data (torch.compile, torch.export) and a
gradient (activation checkpointing, DDP): tensors and plain values in, tensors out, nothing kept.
"""

from typing import Any

import torch
from torch import Tensor

from hpc_stres.models import norm_cpu
from hpc_stres.run.waits import waiting

DTYPES = {"cpu": tuple(norm_cpu.KINDS), "cuda": (torch.float32, torch.bfloat16)}


def team_name(team: Any) -> str:
    """The name by which the operator knows a process group; none for no group."""
    return "" if team is None else str(team.group_name)


def _team(name: str) -> Any:
    """The process group of a name. None is kept here: one that outlived its end would abort the
    process at its exit."""
    home: Any = torch.distributed.distributed_c10d
    return home._resolve_process_group(name)


def suits(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> bool:
    """Whether the fused kernels take these tensors: channels-last ones of a type that they know."""
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    known = x.ndim == 4 and x.dtype in DTYPES.get(x.device.type, ()) and weight.dtype == wanted
    if not known or x.numel() == 0 or not _is_channels_last(x):
        return False
    if residual is not None:
        alike = (
            residual.shape == x.shape and residual.dtype == x.dtype and residual.device == x.device
        )
        if not alike or not _is_channels_last(residual):
            return False
    return _kernels_are_there(x.device.type)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _kernels_are_there(device: str) -> bool:
    if device == "cpu":
        return norm_cpu.library() is not None
    from hpc_stres.models import norm_triton

    return norm_triton.is_available()


# A compiled graph takes the answer as it is. This is all that torch.compiler.assume_constant_result
# does; calling that would import the compiler, a second of each start, also where nothing is
# compiled.
_kernels_are_there._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _kernels(x: Tensor) -> Any:
    """The module that computes on x's device."""
    if x.device.type == "cpu":
        return norm_cpu
    from hpc_stres.models import norm_triton

    return norm_triton


def _sum_over(team: str, value: Tensor) -> Tensor:
    if team:
        with waiting():
            torch.distributed.all_reduce(value, group=_team(team))
    return value


def _moments_over(team: str, count: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
    """Moments of groups over all ranks of a team, from each rank's own."""
    shares = _sum_over(team, torch.cat([count[:, None], count[:, None] * mean], dim=1))
    total = shares[:, :1]
    middle = shares[:, 1:] / total
    squares = _sum_over(team, count[:, None] * (variance + (mean - middle).square()))
    return total.squeeze(1).clone(), middle, squares / total


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor, groups: int, eps: float,
    relu: bool, team: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x, residual = _ordered(x), None if residual is None else _ordered(residual)
    weight, bias, owner = weight.contiguous(), bias.contiguous(), owner.contiguous()
    kernels = _kernels(x)
    if not team:
        return kernels.forward(x, residual, weight, bias, owner, groups, eps, relu)
    moments = _moments_over(team, *kernels.moments(x, owner, groups))
    y = kernels.values(x, residual, weight, bias, owner, moments[1], moments[2], eps, relu)
    return y, *moments


def _backward(
    grad: Tensor, x: Tensor, out: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor, count: Tensor,
    mean: Tensor, variance: Tensor, eps: float, gate: str, team: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    x, grad = _ordered(x), _ordered(grad.to(x.dtype))
    out = None if out is None else _ordered(out)
    way = _kernels(x).Backward(
        grad,
        x,
        out,
        weight.contiguous(),
        bias.contiguous(),
        owner.contiguous(),
        count,
        mean,
        variance,
        eps,
        gate,
    )
    way.step("backward_sums" if team else "backward")
    # Each rank's own parameters' gradients: the engine adds them up over the ranks.
    grad_weight = (way.products * torch.rsqrt(variance + eps)).sum(dim=0).to(weight.dtype)
    grad_bias = way.sums.sum(dim=0).to(bias.dtype)
    if team:
        # Another rank's videos feel this rank's moments: their terms are summed over the team.
        both = _sum_over(team, torch.stack([way.sums, way.products]))
        way.sums.copy_(both[0])
        way.products.copy_(both[1])
        way.step("backward_values")
    passed = x.new_empty(0) if way.passed is None else way.passed
    return way.grad_x, passed, grad_weight, grad_bias


def _affine(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor,
    eps: float, relu: bool,
) -> Tensor:  # fmt: skip
    owner = torch.zeros(len(x), dtype=torch.int32, device=x.device)
    moments = (value.to(torch.float64).reshape(1, -1).contiguous() for value in (mean, variance))
    other = None if residual is None else _ordered(residual)
    return _kernels(x).values(
        _ordered(x), other, weight.contiguous(), bias.contiguous(), owner, *moments, eps, relu
    )


def _ordered(x: Tensor) -> Tensor:
    """In the order that the kernels read. A compiled graph may hand over another."""
    return x.contiguous(memory_format=torch.channels_last)


# -- what torch is told ---------------------------------------------------------------------------

_library = torch.library.Library("hpc_stres", "DEF")
_library.define(
    "sub_batch_norm(Tensor x, Tensor? residual, Tensor weight, Tensor bias, Tensor owner, int groups, float eps, "
    "bool relu, str team) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "sub_batch_norm_backward(Tensor grad, Tensor x, Tensor? out, Tensor weight, Tensor bias, Tensor owner, "
    "Tensor count, Tensor mean, Tensor variance, float eps, str gate, str team) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "normalise_by(Tensor x, Tensor? residual, Tensor weight, Tensor bias, Tensor mean, Tensor variance, float eps, "
    "bool relu) -> Tensor"
)
for _device in ("CPU", "CUDA"):
    _library.impl("sub_batch_norm", _forward, _device)
    _library.impl("sub_batch_norm_backward", _backward, _device)
    _library.impl("normalise_by", _affine, _device)


@torch.library.register_fake("hpc_stres::sub_batch_norm", lib=_library)
def _(
    x: Tensor, residual: Any, weight: Tensor, bias: Tensor, owner: Tensor, groups: int, *rest: Any
) -> Any:
    return torch.empty_like(x, memory_format=torch.channels_last), *norm_cpu.empty_moments(
        x, groups
    )


@torch.library.register_fake("hpc_stres::sub_batch_norm_backward", lib=_library)
def _(grad: Tensor, x: Tensor, out: Any, weight: Tensor, bias: Tensor, *rest: Any) -> Any:
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    passed = x.new_empty(0) if rest[5] != "read" else torch.empty_like(grad_x)
    return grad_x, passed, torch.empty_like(weight), torch.empty_like(bias)


@torch.library.register_fake("hpc_stres::normalise_by", lib=_library)
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, owner, _, ctx.eps, relu, ctx.team = inputs
    y, count, mean, variance = output
    ctx.has_residual = residual is not None
    ctx.gate = "open" if not relu else "read" if ctx.has_residual else "computed"
    kept = y if ctx.gate == "read" else None
    ctx.save_for_backward(x, kept, weight, bias, owner, count, mean, variance)
    ctx.mark_non_differentiable(count, mean, variance)
    ctx.set_materialize_grads(False)


def _way_back(ctx: Any, grad: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    grad_x, passed, grad_weight, grad_bias = torch.ops.hpc_stres.sub_batch_norm_backward(
        grad, *ctx.saved_tensors, ctx.eps, ctx.gate, ctx.team
    )
    grad_residual = None
    if ctx.has_residual:
        grad_residual = passed if ctx.gate == "read" else grad
    return grad_x, grad_residual, grad_weight, grad_bias, None, None, None, None, None


torch.library.register_autograd(
    "hpc_stres::sub_batch_norm", _way_back, setup_context=_keep, lib=_library
)


def sub_batch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor, groups: int, eps: float,
    relu: bool, team: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Values (as x), and count, mean and variance (float64) of each group: y = x normalised within
    its group, scaled, shifted, + residual, rectified where `relu` is set.

    `owner` (int32) holds each frame's group. With a team (see `team_name`) the groups lie over its
    ranks, which all take part, forwards and backwards.
    """
    result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.hpc_stres.sub_batch_norm(
        x, residual, weight, bias, owner, groups, eps, relu, team
    )
    return result


def normalise_by(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float,
    relu: bool,
) -> Tensor:  # fmt: skip
    """The same by given moments of each channel, at test time; it has no gradient."""
    result: Tensor = torch.ops.hpc_stres.normalise_by(
        x, residual, weight, bias, mean, variance, eps, relu
    )
    return result
