"""Exact sums of a set of tensors, over units, micro-steps and ranks, in one flat
buffer of int64."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hpc_stres.models.exact.digits import Form, digits_of, number_of

# Numbers that are turned into digits at once on a processor.
PIECE_NUMBERS = 1 << 14


class ExactSums:
    """One sum for each name. Terms are added in any order, on any rank; the totals are the same."""

    def __init__(
        self, shapes: Mapping[str, torch.Size], form: Form, device: torch.device | str
    ) -> None:
        self.form, self.shapes = form, dict(shapes)
        count = form[1]
        ends, end = {}, 0
        for name, shape in self.shapes.items():
            ends[name] = (end, end + count * shape.numel())
            end = ends[name][1]
        # The last number counts the terms that did not fit into their digits.
        self.flat = torch.zeros(end + 1, dtype=torch.int64, device=device)
        self.misfits = self.flat[-1:]
        self.digits = {
            name: self.flat[start:stop].view(count, *self.shapes[name])
            for name, (start, stop) in ends.items()
        }

    def add(self, name: str, value: Tensor) -> None:
        """One term."""
        numbers, sums = value.detach().reshape(-1), self.digits[name].view(self.form[1], -1)
        # Piece by piece, for a dozen operations follow each other: what lies between them
        # stays in the cache.
        step = PIECE_NUMBERS if numbers.device.type == "cpu" else max(len(numbers), 1)
        for start in range(0, len(numbers), step):
            digits, misfits = digits_of(numbers[start : start + step], self.form)
            sums[:, start : start + step] += digits
            self.misfits += misfits

    def add_rows(self, name: str, values: Tensor) -> None:
        """A term a row."""
        digits, misfits = digits_of(values, self.form)
        self.digits[name] += digits.sum(dim=1)
        self.misfits += misfits

    def reduce(self, group: object = None) -> None:
        """Add up all ranks' sums."""
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(self.flat, group=group)

    def total(self, name: str) -> Tensor:
        """A sum in float64; NaN where any term did not fit."""
        return number_of(self.digits[name], self.misfits, self.form)

    def clear(self) -> None:
        """Begin anew."""
        self.flat.zero_()


def group_sums(values: Tensor, owner: Tensor, groups: int, form: Form) -> Tensor:
    """Digits (digits, groups, columns) of the sums of rows by group, and in a last row how many
    terms did not fit: what ranks may add up, and `group_totals` reads."""
    digits, misfits = digits_of(values, form)
    sums = torch.zeros(
        form[1], groups + 1, values.shape[1], dtype=torch.int64, device=values.device
    )
    sums.index_add_(1, owner, digits)
    sums[0, -1] += misfits
    return sums


def group_totals(sums: Tensor, form: Form) -> Tensor:
    """The sums (groups, columns) in float64."""
    return number_of(sums[:, :-1], sums[0, -1].max(), form)
