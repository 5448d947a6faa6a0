"""Layers unit by unit: convolution, linear layer, factor a channel, and the max pool's way back.

Each is a function with a gradient of its own. Forwards and backwards every unit goes through the
kernel alone; a unit's gradient of a weight goes into the exact sums, and autograd gets none.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpc_stres.models.exact.session import Session

Pair = tuple[int, ...]


class UnitConvolution(torch.autograd.Function):
    """A convolution over two axes, computed in `dtype`: under autocast in bfloat16."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        shape: tuple[Pair, Pair, Pair, int],
        session: Session,
    ) -> Tensor:
        kernel = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        parts = session.parts(x)
        stride, padding, dilation, groups = shape

        def run(part: Tensor) -> Tensor:
            return torch.conv2d(part, kernel, offset, stride, padding, dilation, groups)

        ctx.save_for_backward(x, kernel)
        ctx.weight, ctx.bias, ctx.shape, ctx.session = weight, bias, shape, session
        ctx.units = session.units
        return _joined(session.map(run, parts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, kernel = ctx.saved_tensors
        session, (stride, padding, dilation, groups) = ctx.session, ctx.shape
        needs = list(ctx.needs_input_grad[:3])
        sizes = None if ctx.bias is None else [len(kernel)]

        def run(part: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
                gradient,
                part,
                kernel,
                sizes,
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                groups,
                needs,
            )
            return grads

        with torch._C.DisableTorchFunction():
            grad = gradients[0].contiguous(memory_format=_order_of(x))
            with _WithUnits(session, ctx.units):
                results = session.map(run, session.parts(x), session.parts(grad))
            for place, parameter in ((1, ctx.weight), (2, ctx.bias)):
                if needs[place]:
                    session.add_gradient(parameter, [result[place] for result in results])
            grad_x = _joined([result[0] for result in results]) if needs[0] else None
        return grad_x, None, None, None, None, None


class UnitLinear(torch.autograd.Function):
    """A linear layer on rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, session: Session
    ) -> Tensor:  # fmt: skip
        kernel = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        ctx.save_for_backward(x, kernel)
        ctx.weight, ctx.bias, ctx.session, ctx.units = weight, bias, session, session.units
        parts = session.parts(x)
        return _joined(session.map(lambda part: functional.linear(part, kernel, offset), parts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, kernel = ctx.saved_tensors
        session, needs = ctx.session, ctx.needs_input_grad

        def run(part: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
            return (
                gradient @ kernel if needs[0] else None,
                gradient.t() @ part if needs[1] else None,
                gradient.sum(dim=0) if needs[2] else None,
            )

        with torch._C.DisableTorchFunction():
            with _WithUnits(session, ctx.units):
                grads = session.parts(gradients[0].contiguous())
                results = session.map(run, session.parts(x), grads)
            for place, parameter in ((1, ctx.weight), (2, ctx.bias)):
                if needs[place]:
                    session.add_gradient(parameter, [result[place] for result in results])
            grad_x = _joined([result[0] for result in results]) if needs[0] else None
        return grad_x, None, None, None, None


class UnitScale(torch.autograd.Function):
    """x times a factor a channel, plus an offset a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, session: Session) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.parameters, ctx.session, ctx.units = (weight, bias), session, session.units

        def run(part: Tensor) -> Tensor:
            return torch.addcmul(bias[:, None, None], part, weight[:, None, None])

        with torch._C.DisableTorchFunction():
            return _joined(session.map(run, session.parts(x)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        session = ctx.session

        def run(part: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
            wide = gradient.double()
            by_weight = (wide * part).sum(dim=(0, 2, 3))
            back = gradient * weight[:, None, None].to(gradient.dtype)
            return back.to(part.dtype), by_weight, wide.sum(dim=(0, 2, 3))

        with torch._C.DisableTorchFunction():
            grad = gradients[0].contiguous(memory_format=_order_of(x))
            with _WithUnits(session, ctx.units):
                results = session.map(run, session.parts(x), session.parts(grad))
            for number, parameter in enumerate(ctx.parameters, 1):
                session.add_gradient(parameter, [result[number] for result in results])
        return _joined([result[0] for result in results]), None, None, None


class MaxPool(torch.autograd.Function):
    """A max pool whose way back adds in a fixed order: torch's on a GPU adds in any."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Pair, stride: Pair, padding: Pair, ceil: bool
    ) -> Tensor:
        y, places = functional.max_pool2d(
            x, kernel, stride, padding, ceil_mode=ceil, return_indices=True
        )
        ctx.save_for_backward(places)
        ctx.shape, ctx.cut = x.shape, (kernel, stride, padding)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        with torch._C.DisableTorchFunction():
            back = scatter_windows(gradients[0], places, ctx.shape, *ctx.cut)
        return back, None, None, None, None


def scatter_windows(
    grad: Tensor, places: Tensor, shape: torch.Size, kernel: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """Each window's gradient to the place that it took its maximum from: one offset inside the
    windows after another, for windows at one offset never meet."""
    height, width = shape[2:]
    rows = torch.arange(grad.shape[2], device=grad.device)[:, None] * stride[0] - padding[0]
    columns = torch.arange(grad.shape[3], device=grad.device) * stride[1] - padding[1]
    # Room for windows that hang over the edge.
    tall = max(int((grad.shape[2] - 1) * stride[0] + kernel[0]), height + padding[0])
    wide = max(int((grad.shape[3] - 1) * stride[1] + kernel[1]), width + padding[1])
    back = grad.new_zeros(*shape[:2], tall, wide)
    zero = grad.new_zeros(())
    for down in range(kernel[0]):
        for across in range(kernel[1]):
            here = (rows + down) * width + columns + across
            inside = (columns + across >= 0) & (columns + across < width) & (rows + down >= 0)
            chosen = torch.where((places == here) & inside, grad, zero)
            stop_down = down + (grad.shape[2] - 1) * stride[0] + 1
            stop_across = across + (grad.shape[3] - 1) * stride[1] + 1
            target = back[:, :, down : stop_down : stride[0], across : stop_across : stride[1]]
            target += chosen
    return back[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]


class _WithUnits:
    """The session with the units of the micro-batch that a layer saw forwards."""

    def __init__(self, session: Session, units: int) -> None:
        self.session, self.units = session, units

    def __enter__(self) -> None:
        self.session.units, self.units = self.units, self.session.units

    def __exit__(self, *_: object) -> None:
        self.session.units = self.units


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _order_of(x: Tensor) -> torch.memory_format:
    is_picture = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_picture else torch.contiguous_format
