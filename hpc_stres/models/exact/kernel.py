"""The C++ kernel of exact sums (native/exact.cpp), called on torch's CPU tensors: the bits of
exact/digits.py in one pass."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpc_stres import native
from hpc_stres.models.exact.digits import Form

# As in exact.cpp.
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
TOTALS = (torch.float32, torch.float64)
DIGITS = (2, 4)
NUMBERS = ("rows", "columns", "groups", "kind", "first", "digits", "plane", "fresh", "begin", "end")
POINTERS = ("values", "owner", "sums", "misfits", "result")


class Call(ctypes.Structure):
    """exact.cpp's ExactCall, field for field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in NUMBERS),
        *((name, ctypes.c_void_p) for name in POINTERS),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None, said once, where it cannot be had."""
    return native.find_with_calls("exact", Call)


def suits(form: Form, *tensors: Tensor) -> bool:
    """Whether the kernel takes these tensors, and sums of this form."""
    is_known = form[1] in DIGITS and all(
        tensor.device.type == "cpu" and (tensor.dtype in KINDS or tensor.dtype == torch.int64)
        for tensor in tensors
    )
    return is_known and library() is not None


def add(
    rows: Sequence[Tensor], sums: Tensor, misfits: Tensor, form: Form, owner: Tensor | None = None, *,
    fresh: bool = False, columns: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Add rows of terms of one type, each in a row in memory, to sums (digits, groups, columns) or
    (digits, columns), whose digits may lie apart; only to some columns where they are given.

    `owner` (int64) has the group of each row. Fresh sums hold nothing that is kept.
    """
    if not rows:
        return
    pointers = (ctypes.c_void_p * len(rows))(*[row.data_ptr() for row in rows])
    _run(
        "add", sums, misfits, form, columns or (0, sums.shape[-1]), rows=len(rows),
        kind=KINDS[rows[0].dtype], values=ctypes.addressof(pointers), fresh=int(fresh),
        **({} if owner is None else {"owner": owner.data_ptr()}),
    )  # fmt: skip


def total(sums: Tensor, misfits: Tensor, form: Form, result: Tensor) -> None:
    """Write the sums as numbers into a result of one of TOTALS, which lies in their order."""
    columns = (0, sums.shape[-1])
    fields = {"kind": KINDS[result.dtype], "result": result.data_ptr()}
    _run("total", sums, misfits, form, columns, **fields)


def _run(
    name: str, sums: Tensor, misfits: Tensor, form: Form, columns: tuple[int, int], **fields: Any
) -> None:
    """One function of exact.cpp."""
    kernels = library()
    assert kernels is not None, "the caller has asked for the library"
    call = Call(
        first=form[0], digits=form[1], plane=sums.stride(0), sums=sums.data_ptr(),
        groups=sums.shape[1] if sums.ndim == 3 else 1, columns=sums.shape[-1], begin=columns[0],
        end=columns[1], misfits=misfits.data_ptr(), **fields,
    )  # fmt: skip
    if getattr(kernels, f"exact_{name}")(ctypes.byref(call)):
        raise ValueError(
            f"exact sums of {tuple(sums.shape)}: a row's group is none of them, or there are no rows"
        )
