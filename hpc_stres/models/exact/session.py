"""What a bitwise training shares between its layers: the units, the threads they run
on, the exact sums.

A unit is a fixed number of videos. It goes through each kernel alone, so that every kernel sees the
same shape, in the same memory order, at an aligned address, on one thread, whatever the number of
ranks and micro-steps. Units run side by side on as many threads as the rank has.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hpc_stres.models.exact.digits import GRADIENT, MOMENT
from hpc_stres.models.exact.sums import ExactSums

# Kernels may choose another way for data that does not begin on a cache line.
LINE_BYTES = 64
Result = TypeVar("Result")


class Session:
    """One network's training: gradients and statistics as exact sums."""

    def __init__(self, model: nn.Module, device: torch.device, threads: int = 1) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        strides = {name: torch.empty_like(p).stride() for name, p in self.parameters.items()}
        self.gradients = ExactSums(shapes, GRADIENT, device, strides)
        # What `write_gradients` writes into, step after step.
        self.written: dict[str, Tensor] = {}
        self.statistics: ExactSums | None = None
        self.device, self.threads = device, threads
        # Units of the micro-batch that is in the network.
        self.units = 1
        self.pool: ThreadPoolExecutor | None = None
        if threads > 1 and device.type == "cpu":
            self.pool = ThreadPoolExecutor(threads, "unit", initializer=_one_thread)
        elif device.type == "cpu":
            _one_thread()  # units run in the calling thread then

    def rows(self, x: Tensor) -> int:
        """Rows of x that belong to one unit."""
        rows, rest = divmod(len(x), self.units)
        if rest or not rows:
            raise ValueError(f"{len(x)} rows are not a whole number for each of {self.units} units")
        return rows

    def owners(self, x: Tensor) -> Tensor:
        """The unit of each row of x, as the fused kernels read it."""
        numbers = torch.arange(self.units, dtype=torch.int32, device=x.device)
        return numbers.repeat_interleave(self.rows(x))

    def parts(self, x: Tensor) -> Sequence[Tensor]:
        """x unit by unit, each in the order in memory that x has, at an aligned address."""
        order = _order(x)
        return [_in_order(part, order) for part in x.split(self.rows(x))]

    def map(self, work: Callable[..., Result], *lists: Sequence[Any]) -> list[Result]:
        """work(unit) for all units, in their order; side by side where there are threads for it."""
        if self.pool is None or len(lists[0]) == 1:
            return [work(*unit) for unit in zip(*lists, strict=True)]
        return list(self.pool.map(_without_gradients(work), *lists))

    def add_gradient(self, parameter: Tensor, values: Sequence[Tensor]) -> None:
        """Units' gradients of a parameter, where it is trained."""
        if parameter.requires_grad:
            self.gradients.add(self.name_of(parameter), *values, each=self._side_by_side)

    def name_of(self, parameter: Tensor) -> str:
        """The name of a parameter that is trained."""
        return self.names[id(parameter)]

    def make_statistics(self, channels: dict[str, int]) -> None:
        """Room for the running statistics' sums by layer: of means, of variances (or
        sigmas), of units."""
        shapes = {name: torch.Size((3, count)) for name, count in channels.items()}
        self.statistics = ExactSums(shapes, MOMENT, self.device)

    def add_statistics(self, layer: str, means: Tensor, spreads: Tensor) -> None:
        """Each unit's share of a layer's statistics, a row each."""
        assert self.statistics is not None
        # Layers that are computed again in the backward pass count twice: hence the units' own sum.
        rows = torch.stack([means, spreads, torch.ones_like(means)], dim=1)
        self.statistics.add(layer, *rows.unbind())

    def write_gradients(self) -> None:
        """Add up the ranks' gradients and give them to their parameters; begin anew."""
        self.gradients.reduce()
        if not self.written:
            self.written = {name: torch.empty_like(p) for name, p in self.parameters.items()}
        totals = self.written.items()
        self._side_by_side([partial(self.gradients.write_total, *one) for one in totals])
        for name, parameter in self.parameters.items():
            parameter.grad = self.written[name]
        self.gradients.clear()

    def _side_by_side(self, works: Sequence[Callable[[], Any]]) -> None:
        """Do them all, in any order, on as many threads as there are."""
        if self.pool is None or len(works) < 2:
            for work in works:
                work()
        else:
            list(self.pool.map(lambda work: work(), works))

    def close(self) -> None:
        """End the threads."""
        if self.pool is not None:
            self.pool.shutdown()


def _one_thread() -> None:
    torch.set_num_threads(1)


def _without_gradients(work: Callable[..., Result]) -> Callable[..., Result]:
    """Threads of the pool begin with gradients on, whatever the thread that calls has."""

    def quiet(*arguments: Any) -> Result:
        with torch.no_grad():
            return work(*arguments)

    return quiet


def _order(x: Tensor) -> torch.memory_format:
    is_picture = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_picture else torch.contiguous_format


def _in_order(part: Tensor, order: torch.memory_format) -> Tensor:
    """A part with the strides that a tensor of its shape is born with: where a size is 1 others
    mean the same, but a kernel may choose by them."""
    is_aligned = part.data_ptr() % LINE_BYTES == 0
    if is_aligned and part.stride() == _strides(part.shape, order):
        return part
    return torch.empty(part.shape, dtype=part.dtype, device=part.device, memory_format=order).copy_(
        part
    )


def _strides(shape: torch.Size, order: torch.memory_format) -> tuple[int, ...]:
    if order == torch.channels_last:
        _, channels, height, width = shape
        return (channels * height * width, 1, width * channels, channels)
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
