"""Exact sums of a set of tensors, over units, micro-steps and ranks, in one flat
buffer of int64."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hpc_stres.models.exact import kernel
from hpc_stres.models.exact.digits import Form, digits_of, number_of

# Numbers that plain torch turns into digits at once on a processor: a dozen operations follow each
# other, and what lies between them stays in the cache.
PIECE_NUMBERS = 1 << 14
# Numbers that one thread adds up while others add up others.
SHARE_NUMBERS = 1 << 18
Strides = tuple[int, ...]
Everyone = Callable[[Sequence[Callable[[], None]]], None]


def in_turn(works: Sequence[Callable[[], None]]) -> None:
    """Do one after another."""
    for work in works:
        work()


class ExactSums:
    """One sum for each name. Terms are added in any order, on any rank; the totals are the same.

    Sums lie in memory as their parameter does (`strides`), so that a term which lies so as well is
    read from one end to the other. Where nothing was added yet the buffer holds what it held before
    `clear`, and the first term is written over it: clearing would be one more way through memory.
    """

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        form: Form,
        device: torch.device | str,
        strides: Mapping[str, Strides] | None = None,
    ) -> None:
        self.form, self.shapes = form, dict(shapes)
        self.strides = {
            name: (strides or {}).get(name) or _in_a_row(shape)
            for name, shape in self.shapes.items()
        }
        ends, end = {}, 0
        for name, shape in self.shapes.items():
            ends[name] = (end, end + form[1] * shape.numel())
            end = ends[name][1]
        # The last number counts the terms that did not fit into their digits.
        self.flat = torch.zeros(end + 1, dtype=torch.int64, device=device)
        self.misfits = self.flat[-1:]
        self.digits = {
            name: self.flat[start:stop].view(form[1], -1) for name, (start, stop) in ends.items()
        }
        # Names whose digits are sums, and not what was there before.
        self.held: set[str] = set()

    def add(self, name: str, *values: Tensor, each: Everyone = in_turn) -> None:
        """Some terms; `each` does pieces of the work, which touch different numbers."""
        rows = [self._in_order(name, value.detach()) for value in values]
        count = self.shapes[name].numel()
        works = [
            partial(self._add, name, rows, start, min(start + SHARE_NUMBERS, count))
            for start in range(0, count if rows else 0, SHARE_NUMBERS)
        ]
        # Plain torch counts misfits in a way that threads must not share.
        (each if kernel.suits(self.form, *rows) else in_turn)(works)
        if works:
            self.held.add(name)

    def _add(self, name: str, rows: Sequence[Tensor], begin: int, end: int) -> None:
        """Some numbers of terms that lie as the sums do."""
        sums, fresh = self.digits[name], name not in self.held
        if kernel.suits(self.form, *rows):
            kernel.add(rows, sums, self.misfits, self.form, fresh=fresh, columns=(begin, end))
            return
        if fresh:
            sums[:, begin:end].zero_()
        step = PIECE_NUMBERS if sums.device.type == "cpu" else max(end - begin, 1)
        for start in range(begin, end, step):
            stop = min(start + step, end)
            for row in rows:
                digits, misfits = digits_of(row[start:stop], self.form)
                sums[:, start:stop] += digits
                self.misfits += misfits

    def _in_order(self, name: str, value: Tensor) -> Tensor:
        """A term's numbers in the order of its sum, in a row."""
        shape, strides = self.shapes[name], self.strides[name]
        if value.shape != shape:
            raise ValueError(f"{name}: a term of {tuple(value.shape)} for a sum of {tuple(shape)}")
        if not _is_alike(value, strides):
            other = torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)
            value = other.copy_(value)
        return value.as_strided((shape.numel(),), (1,))

    def settle(self) -> None:
        """Sums that nothing was added to become zeros."""
        for name in self.shapes.keys() - self.held:
            self.digits[name].zero_()
        self.held.update(self.shapes)

    def reduce(self, group: object = None) -> None:
        """Add up all ranks' sums."""
        self.settle()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(self.flat, group=group)

    def total(self, name: str) -> Tensor:
        """A sum in float64; NaN where any term did not fit."""
        return self.write_total(name, self.room(name, torch.float64))

    def room(self, name: str, dtype: torch.dtype) -> Tensor:
        """An empty tensor that lies as a sum does."""
        return torch.empty_strided(
            self.shapes[name], self.strides[name], dtype=dtype, device=self.flat.device
        )

    def write_total(self, name: str, result: Tensor) -> Tensor:
        """A sum, written into a tensor of its `room`."""
        digits = self.digits[name]
        if name not in self.held:
            digits.zero_()
            self.held.add(name)
        numbers = result.as_strided((digits.shape[1],), (1,))
        if kernel.suits(self.form, digits) and result.dtype in kernel.TOTALS:
            kernel.total(digits, self.misfits, self.form, numbers)
        else:
            numbers.copy_(number_of(digits, self.misfits, self.form))
        return result

    def clear(self) -> None:
        """Begin anew."""
        self.held.clear()
        self.misfits.zero_()


def _in_a_row(shape: torch.Size) -> Strides:
    return torch.empty(shape, device="meta").stride()


def _is_alike(value: Tensor, strides: Strides) -> bool:
    """Whether a tensor lies in memory by these strides; those of a size of 1 say nothing."""
    return all(
        one == other or size == 1
        for one, other, size in zip(value.stride(), strides, value.shape, strict=True)
    )


def group_sums(values: Tensor, owner: Tensor, groups: int, form: Form) -> Tensor:
    """Digits (digits, groups, columns) of the sums of rows by group, and in a last row how many
    terms did not fit: what ranks may add up, and `group_totals` reads."""
    columns = values.shape[1]
    sums = torch.zeros(form[1], groups + 1, columns, dtype=torch.int64, device=values.device)
    if kernel.suits(form, values) and values.is_contiguous():
        kernel.add(values.unbind(), sums[:, :-1], sums[0, -1], form, owner)
    else:
        digits, misfits = digits_of(values, form)
        sums.index_add_(1, owner, digits)
        sums[0, -1, 0] += misfits
    return sums


def group_totals(sums: Tensor, form: Form) -> Tensor:
    """The sums (groups, columns) in float64."""
    digits, misfits = sums[:, :-1], sums[0, -1, :1]
    if not kernel.suits(form, sums):
        return number_of(digits, misfits, form)
    result = torch.empty(digits.shape[1:], dtype=torch.float64)
    kernel.total(digits, misfits, form, result)
    return result
