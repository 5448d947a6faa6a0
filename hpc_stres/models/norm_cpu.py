"""The C++ kernels of the fused normalisation (native/norm.cpp), called on torch's CPU tensors."""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from hpc_stres import native

# As in norm.cpp.
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
GATES = ("open", "computed", "read")
BAD_CALL, NO_MEMORY = 1, 2
COUNTS = ("frames", "pixels", "channels", "groups", "kind", "threads", "gate", "relu")
POINTERS = (
    "owner", "x", "residual", "grad", "out", "result", "passed", "weight", "bias", "count", "mean", "variance",
    "sums", "products",
)  # fmt: skip


class Call(ctypes.Structure):
    """norm.cpp's NormCall, field for field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in COUNTS),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None, said once, where they cannot be had."""
    return native.find_with_calls("norm", Call)


def run(
    step: str, x: Tensor, owner: Tensor, groups: int, *, wide: bool = True, **fields: Any
) -> None:
    """One step of norm.cpp on channels-last activations.

    `fields` are the other fields of a call: numbers, and tensors that it reads or writes. `wide`
    allows the widest vectors of this processor; the bytes are the same without.
    """
    kernels = library()
    assert kernels is not None, "the caller has asked for the library"
    frames, channels, height, width = x.shape
    call = Call(
        frames=frames, pixels=height * width, channels=channels, groups=groups, kind=KINDS[x.dtype],
        threads=torch.get_num_threads(), owner=owner.data_ptr(), x=x.data_ptr(),
    )  # fmt: skip
    for name, value in fields.items():
        setattr(call, name, value.data_ptr() if isinstance(value, Tensor) else value)
    answer = getattr(kernels, f"norm_{step}")(ctypes.byref(call), int(wide))
    if answer == NO_MEMORY:
        raise MemoryError(f"no memory to normalise {tuple(x.shape)}")
    if answer:
        raise ValueError(f"normalisation of {tuple(x.shape)}: a frame's group is none of {groups}")


def moments(x: Tensor, owner: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count (groups), mean and variance (groups, channels) of each group, in float64."""
    count, mean, variance = empty_moments(x, groups)
    run("moments", x, owner, groups, count=count, mean=mean, variance=variance)
    return count, mean, variance


def empty_moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what `moments` gives."""
    by_group = (groups, x.shape[1])
    mean, variance = (torch.empty(by_group, dtype=torch.float64, device=x.device) for _ in range(2))
    return torch.empty(groups, dtype=torch.float64, device=x.device), mean, variance


def values(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor, mean: Tensor,
    variance: Tensor, eps: float, relu: bool,
) -> Tensor:  # fmt: skip
    """Normalised values, + the residual, rectified where asked for; by given moments."""
    y = torch.empty_like(x)
    run(
        "values", x, owner, len(mean), weight=weight, bias=bias, mean=mean, variance=variance, eps=eps,
        relu=int(relu), result=y, **_present(residual=residual),
    )  # fmt: skip
    return y


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor, groups: int, eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`moments` and `values` in one go: (values, count, mean, variance)."""
    y = torch.empty_like(x)
    count, mean, variance = empty_moments(x, groups)
    run(
        "forward", x, owner, groups, weight=weight, bias=bias, count=count, mean=mean, variance=variance,
        eps=eps, relu=int(relu), result=y, **_present(residual=residual),
    )  # fmt: skip
    return y, count, mean, variance


class Backward:
    """The way back through one normalisation."""

    def __init__(
        self, grad: Tensor, x: Tensor, out: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor,
        count: Tensor, mean: Tensor, variance: Tensor, eps: float, gate: str,
    ) -> None:  # fmt: skip
        self.x, self.owner, self.groups = x, owner, len(mean)
        self.sums, self.products = torch.empty_like(mean), torch.empty_like(mean)
        # What passed the ReLU; the residual's gradient.
        self.passed = torch.empty_like(x) if gate == "read" else None
        self.grad_x = torch.empty_like(x)
        self.fields: dict[str, Any] = {
            "grad": grad, "weight": weight, "bias": bias, "count": count, "mean": mean, "variance": variance,
            "eps": eps, "gate": GATES.index(gate), "sums": self.sums, "products": self.products,
            "result": self.grad_x, **_present(out=out, passed=self.passed),
        }  # fmt: skip

    def step(self, name: str) -> None:
        """`backward_sums`, `backward_values`, or `backward`, which is both."""
        run(name, self.x, self.owner, self.groups, **self.fields)


def _present(**tensors: Tensor | None) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
