"""Max pools over space as an operator of torch: `hpc_stres::max_pool`.

torch's own keeps a place of eight bytes for each maximum of two, and its way back clears a whole
gradient and then adds to it channel by channel. The C++ kernels (native/pool.cpp) keep one byte and
write each gradient once. Values, places and gradients are torch's; in bfloat16 what several windows
send to one place is added up in float32.

They take channels-last activations on a CPU. All else goes through torch, and so does a network
that is traced to run elsewhere.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpc_stres import native
from hpc_stres.models.norm_cpu import KINDS

COUNTS = (
    "frames", "height", "width", "channels", "rows", "columns", "kernel", "stride", "padding", "kind", "threads",
)  # fmt: skip
POINTERS = ("x", "y", "places", "grad", "result")
# As in pool.cpp: a place in a window has to fit into a byte.
LARGEST_KERNEL = 16
LAST = torch.channels_last


class Call(ctypes.Structure):
    """pool.cpp's PoolCall, field for field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in COUNTS),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, said once, where they cannot be had."""
    return native.find_with_calls("pool", Call)


def run(
    step: str, sizes: torch.Size, cut: Sequence[int], tensors: dict[str, Tensor], *, wide: bool = True
) -> None:  # fmt: skip
    """One step of pool.cpp on an input of these sizes.

    `cut` is kernel, stride, padding, and the result's rows and columns; `tensors` are what it reads
    and writes. `wide` allows the widest vectors of this processor; the bytes are the same without.
    """
    kernels = library()
    assert kernels is not None, "the caller has asked for the library"
    frames, channels, height, width = sizes
    call = Call(
        frames, height, width, channels, cut[3], cut[4], *cut[:3], KINDS[next(iter(tensors.values())).dtype],
        torch.get_num_threads(), **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )  # fmt: skip
    if getattr(kernels, f"pool_{step}")(ctypes.byref(call), int(wide)):
        raise ValueError(f"no max pool of {tuple(sizes)} with the cut {tuple(cut)}")


def suits(x: Tensor, kernel: int) -> bool:
    """Whether the kernels take this tensor: a channels-last one on the CPU, of a type they know."""
    known = x.ndim == 4 and x.device.type == "cpu" and x.dtype in KINDS and x.numel() > 0
    if not known or kernel > LARGEST_KERNEL:
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and _kernels_are_there()


@torch.compiler.assume_constant_result
def _kernels_are_there() -> bool:
    return library() is not None


def windows(length: int, kernel: int, stride: int, padding: int, ceil: bool) -> int:
    """How many windows an axis has. With `ceil` the last one may hang over the end, but not begin
    there."""
    span = length + 2 * padding - kernel
    last = -(-span // stride) if ceil else span // stride
    return last if ceil and last * stride >= length + padding else last + 1


def _results(x: Tensor, rows: int, columns: int, keeps: bool) -> tuple[Tensor, Tensor]:
    """Room for the maxima and, where they are kept, their places."""
    sizes = (x.shape[0], x.shape[1], rows, columns)
    y = torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=LAST)
    return y, torch.empty_like(y, dtype=torch.uint8) if keeps else x.new_empty(0, dtype=torch.uint8)


def _forward(
    x: Tensor, kernel: int, stride: int, padding: int, rows: int, columns: int, keeps: bool
) -> tuple[Tensor, Tensor]:
    x = x.contiguous(memory_format=LAST)
    y, places = _results(x, rows, columns, keeps)
    tensors = {"x": x, "y": y, "places": places} if keeps else {"x": x, "y": y}
    run("forward", x.shape, (kernel, stride, padding, rows, columns), tensors)
    return y, places


def _backward(
    grad: Tensor, places: Tensor, kernel: int, stride: int, padding: int, height: int, width: int
) -> Tensor:
    if places.shape != grad.shape:
        raise ValueError("this max pool has kept no places to go back by")
    grad, places = (value.contiguous(memory_format=LAST) for value in (grad, places))
    result, _ = _results(grad, height, width, False)
    cut = (kernel, stride, padding, *grad.shape[2:])
    run("backward", result.shape, cut, {"grad": grad, "places": places, "result": result})
    return result


# -- what torch is told ---------------------------------------------------------------------------

_library = torch.library.Library("hpc_stres", "FRAGMENT")
_library.define(
    "max_pool(Tensor x, int kernel, int stride, int padding, SymInt rows, SymInt columns, bool keeps) "
    "-> (Tensor, Tensor)"
)
_library.define(
    "max_pool_backward(Tensor grad, Tensor places, int kernel, int stride, int padding, SymInt height, "
    "SymInt width) -> Tensor"
)
_library.impl("max_pool", _forward, "CPU")
_library.impl("max_pool_backward", _backward, "CPU")


@torch.library.register_fake("hpc_stres::max_pool", lib=_library)
def _(x: Tensor, *cut: Any) -> tuple[Tensor, Tensor]:
    return _results(x, *cut[3:])


@torch.library.register_fake("hpc_stres::max_pool_backward", lib=_library)
def _(grad: Tensor, places: Tensor, *cut: Any) -> Tensor:
    return _results(grad, cut[3], cut[4], False)[0]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.cut = inputs[:4]
    ctx.sides = x.shape[2:]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _way_back(ctx: Any, grad: Tensor | None, *others: Any) -> tuple[Tensor | None, ...]:
    back = None
    if grad is not None:
        (places,) = ctx.saved_tensors
        back = torch.ops.hpc_stres.max_pool_backward(grad, places, *ctx.cut, *ctx.sides)
    return (back,) + (None,) * 6


torch.library.register_autograd("hpc_stres::max_pool", _way_back, setup_context=_keep, lib=_library)


def max_pool(x: Tensor, kernel: int, stride: int, padding: int = 0, ceil: bool = False) -> Tensor:
    """Maxima over square windows, as torch's max_pool2d."""
    # A traced network is to run elsewhere, without our kernels.
    traced = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if traced or not suits(x, kernel):
        return functional.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)
    rows, columns = (windows(side, kernel, stride, padding, ceil) for side in x.shape[2:])
    if min(rows, columns) < 1 or 2 * padding > kernel:
        # Torch says what is wrong with that.
        return functional.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)
    keeps = torch.is_grad_enabled() and x.requires_grad
    y: Tensor = torch.ops.hpc_stres.max_pool(x, kernel, stride, padding, rows, columns, keeps)[0]
    return y
