"""Sub-batch normalisation whose bits do not depend on the layout: moments of units,
added up exactly.

The kernels are those of every training (norm_fused.py), but each unit is a group of its own to
them, so that what they add up in floating point never crosses a unit. What units give is added as
integers (exact/digits.py), inside a rank and over a team, forwards and backwards; so are the
gradients of weight and bias and the running statistics. Where the kernels cannot run, the same
steps are taken in float64 by plain torch, unit by unit.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpc_stres.models import norm_fused, norm_plain
from hpc_stres.models.exact.digits import MOMENT
from hpc_stres.models.exact.session import Session
from hpc_stres.models.exact.sums import group_sums, group_totals
from hpc_stres.run.waits import waiting

if TYPE_CHECKING:
    from hpc_stres.models.norm import NormGroups, SubBatchNorm2d


def normalise(
    layer: "SubBatchNorm2d", x: Tensor, groups: "NormGroups", residual: Tensor | None, relu: bool
) -> Tensor:
    """What the layer gives in training; its statistics go into the session's sums."""
    session: Session = layer.exact
    with torch._C.DisableTorchFunction():
        suits = norm_fused.suits(x, layer.weight, residual)
        kernels = norm_fused._kernels(x) if suits else PlainKernels(session)
        y, mean, variance, count = ExactNormalise.apply(
            x, residual, layer.weight, layer.bias, groups, layer.eps, relu, session, kernels
        )
        with torch.no_grad():
            _collect(layer, session, mean, variance, count)
    result: Tensor = y
    return result


def by_running_statistics(
    session: Session, x: Tensor, residual: Tensor | None, *given: Any
) -> Tensor:
    """What a layer that does not move gives: by its running statistics, unit by unit."""
    with torch._C.DisableTorchFunction():
        rows = session.rows(x)
        residuals = [None] * session.units if residual is None else residual.split(rows)
        parts = zip(x.split(rows), residuals, strict=True)
        return torch.cat([norm_plain.normalise_by(part, other, *given) for part, other in parts])


class ExactNormalise(torch.autograd.Function):
    """Values, and the moments of each unit's group (units, channels) in float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, groups: "NormGroups", eps: float,
        relu: bool, session: Session, kernels: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if not isinstance(kernels, PlainKernels):
            x = x.contiguous(memory_format=torch.channels_last)
        owner = session.owners(x)
        group = groups.owner[:: session.rows(x)].to(torch.int64)
        team = Team(groups, group)
        count, mean, variance = team.moments(*kernels.moments(x, owner, session.units))
        y = kernels.values(x, residual, weight, bias, owner, mean, variance, eps, relu)
        ctx.gate = "open" if not relu else "read" if residual is not None else "computed"
        kept = y if ctx.gate == "read" else None
        ctx.save_for_backward(x, kept, weight, bias, owner, count, mean, variance)
        ctx.has_residual, ctx.eps, ctx.team = residual is not None, eps, team
        ctx.session, ctx.kernels, ctx.parameters = session, kernels, (weight, bias)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, out, weight, bias, owner, count, mean, variance = ctx.saved_tensors
        session = ctx.session
        with torch._C.DisableTorchFunction():
            grad = gradients[0].to(x.dtype)
            if not isinstance(ctx.kernels, PlainKernels):
                grad = grad.contiguous(memory_format=torch.channels_last)
            way = ctx.kernels.Backward(
                grad, x, out, weight, bias, owner, count, mean, variance, ctx.eps, ctx.gate
            )
            way.step("backward_sums")
            by_weight = way.products / torch.sqrt(variance + ctx.eps)
            session.add_gradient(ctx.parameters[0], by_weight.unbind())
            session.add_gradient(ctx.parameters[1], way.sums.unbind())
            # The kernel divides by the count and wants the sums of the whole group.
            both = ctx.team.sums(torch.cat([way.sums, way.products], dim=1))
            sums, products = both.chunk(2, dim=1)
            way.sums.copy_(sums)
            way.products.copy_(products)
            way.step("backward_values")
        grad_residual = None
        if ctx.has_residual:
            grad_residual = way.passed if ctx.gate == "read" else grad
        return way.grad_x, grad_residual, *(None,) * 7


class Team:
    """The groups that units belong to, over the ranks that share them."""

    def __init__(self, groups: "NormGroups", group: Tensor) -> None:
        self.team, self.group, self.groups = groups.team, group, len(groups.videos)

    def sums(self, values: Tensor) -> Tensor:
        """Each unit's group's sum of what units have (units, columns)."""
        digits = group_sums(values, self.group, self.groups, MOMENT)
        if self.team is not None:
            with waiting():
                torch.distributed.all_reduce(digits, group=self.team)
        return group_totals(digits, MOMENT)[self.group]

    def moments(self, count: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        """Each unit's group's count, mean and variance, from units' own."""
        column = count[:, None]
        shares = self.sums(torch.cat([column, column * mean], dim=1))
        total = shares[:, :1]
        middle = shares[:, 1:] / total
        off = mean - middle
        squares = self.sums(column * (variance + off * off))
        return total.squeeze(1).contiguous(), middle.contiguous(), (squares / total).contiguous()


def _collect(
    layer: "SubBatchNorm2d", session: Session, mean: Tensor, variance: Tensor, count: Tensor
) -> None:
    """A unit's share of the running statistics: what its group has."""
    if layer.average == "sigma":
        spread = torch.sqrt(variance + layer.eps)
    else:
        spread = variance * (count / (count - 1).clamp(min=1))[:, None]
    session.add_statistics(layer.exact_name, mean, spread)


class PlainKernels:
    """The kernels' steps in float64, in plain torch, for tensors that they do not take."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def moments(self, x: Tensor, owner: Tensor, units: int) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean and variance of each unit."""
        wide = [part.double() for part in self.session.parts(x)]
        means = [part.mean(dim=(0, 2, 3)) for part in wide]
        spreads = [
            (part - mean[:, None, None]).square().mean(dim=(0, 2, 3))
            for part, mean in zip(wide, means, strict=True)
        ]
        numbers = len(x) // units * x.shape[2] * x.shape[3]
        count = torch.full((units,), float(numbers), dtype=torch.float64, device=x.device)
        return count, torch.stack(means), torch.stack(spreads)

    def values(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor, mean: Tensor,
        variance: Tensor, eps: float, relu: bool,
    ) -> Tensor:  # fmt: skip
        """Normalised values, + the residual, rectified where asked for."""
        slope = weight.double() / torch.sqrt(variance + eps)
        y = (x.double() - _by_row(mean, owner)) * _by_row(slope, owner)
        return norm_plain.finish((y + bias.double()[:, None, None]).to(x.dtype), residual, relu)

    class Backward:
        """The way back."""

        def __init__(
            self, grad: Tensor, x: Tensor, out: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor,
            count: Tensor, mean: Tensor, variance: Tensor, eps: float, gate: str,
        ) -> None:  # fmt: skip
            self.owner, self.count = owner, count
            self.centred = x.double() - _by_row(mean, owner)
            self.slope = weight.double() / torch.sqrt(variance + eps)
            self.square = variance + eps
            passes = out if gate == "read" else None
            if gate == "computed":
                passes = self.centred * _by_row(self.slope, owner) + bias.double()[:, None, None]
                passes = passes.to(x.dtype)
            gated = grad if passes is None else torch.where(passes > 0, grad, 0)
            self.passed = gated if gate == "read" else None
            self.grad, self.dtype = gated.double(), x.dtype
            self.sums, self.products = torch.empty_like(mean), torch.empty_like(mean)
            self.grad_x = x

        def step(self, name: str) -> None:
            """`backward_sums` or `backward_values`."""
            if name == "backward_sums":
                rows = len(self.grad) // len(self.sums)
                for unit, (grad, centred) in enumerate(
                    zip(self.grad.split(rows), self.centred.split(rows), strict=True)
                ):
                    grad, centred = grad.contiguous(), centred.contiguous()
                    self.sums[unit] = grad.sum(dim=(0, 2, 3))
                    self.products[unit] = (grad * centred).sum(dim=(0, 2, 3))
                return
            shift = self.sums / self.count[:, None] * self.slope
            curve = self.products / self.count[:, None] * self.slope / self.square
            grad_x = self.grad * _by_row(self.slope, self.owner) - _by_row(shift, self.owner)
            self.grad_x = (grad_x - self.centred * _by_row(curve, self.owner)).to(self.dtype)


def _by_row(by_unit: Tensor, owner: Tensor) -> Tensor:
    """A value per unit and channel as one per frame and channel, ready to broadcast over space."""
    return by_unit[owner.to(torch.int64)][:, :, None, None]
