"""The feed on a GPU: requests go through it in runs whose decoded pictures fit a budget of its memory.

Within a run nvJPEG decodes on the GPU. Where that alone cannot keep up with the network, the CPU's
cores decode a share of the videos meanwhile (`training.decode_on: both`), so large that both end
together by the rates that were measured last; their pictures go up through pinned memory. Two
decoders differ by a grey level here and there, and the share follows the clock: whoever wants the
same clips in each run leaves it to the GPU.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_stres.data.requests import Box

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Decoded pictures of a run. What nvJPEG needs besides grows with them.
RUN_BYTES = 512 << 20
# How much of an older rate stays when a new one is measured, and the CPU's share before any is.
MEMORY, FIRST_SHARE = 0.7, 0.1
Decode = Callable[[Sequence[NDArray[np.uint8]], Sequence[Box]], Sequence[Any]]


class Order(NamedTuple):
    """What one request wants of one stream: JPEGs that share a crop, and which of them, by number,
    make each of its stacks."""

    jpegs: list[NDArray[np.uint8]]
    box: Box
    stacks: list[list[int]]
    flip: bool
    picture_bytes: int  # of one decoded frame, uncut

    @property
    def bytes(self) -> int:
        """Of all its frames, decoded."""
        return len(self.jpegs) * self.picture_bytes


class Part(NamedTuple):
    """Orders whose pictures are on the device until the next part is asked for."""

    orders: Sequence[Order]
    pictures: Sequence["Tensor"]  # of all orders, one after the other


def runs(
    orders: Sequence[Order], most_bytes: int = RUN_BYTES, most_pictures: int = 2048
) -> Iterator[Sequence[Order]]:
    """Neighbours that fit into the budgets together; one that does not fit goes alone."""
    start, size, pictures = 0, 0, 0
    for number, order in enumerate(orders):
        size, pictures = size + order.bytes, pictures + len(order.jpegs)
        if number > start and (size > most_bytes or pictures > most_pictures):
            yield orders[start:number]
            start, size, pictures = number, order.bytes, len(order.jpegs)
    if orders:
        yield orders[start:]


@dataclass
class Split:
    """The CPU's share of the pictures, so that it and the GPU end together."""

    gpu_per_s: float = 0.0
    cpu_per_s: float = 0.0

    @property
    def cpu_share(self) -> float:
        """By the rates, once both are known."""
        if not (self.gpu_per_s and self.cpu_per_s):
            return FIRST_SHARE
        return self.cpu_per_s / (self.cpu_per_s + self.gpu_per_s)

    def cpu_orders(self, orders: Sequence[Order]) -> int:
        """How many of the last orders the CPU takes: as many as fit its share, and of two or more
        one at least, or its rate would be forgotten; never all."""
        if len(orders) < 2:
            return 0
        room, taken = self.cpu_share * sum(len(order.jpegs) for order in orders), 0
        for order in reversed(orders):
            room -= len(order.jpegs)
            if room < 0:
                break
            taken += 1
        return min(max(taken, 1), len(orders) - 1)

    def measured(self, gpu: tuple[int, float], cpu: tuple[int, float]) -> None:
        """Pictures and seconds of both, in a run that they shared."""
        self.gpu_per_s = _mixed(self.gpu_per_s, *gpu)
        self.cpu_per_s = _mixed(self.cpu_per_s, *cpu)


def _mixed(before: float, pictures: int, seconds: float) -> float:
    now = pictures / max(seconds, 1e-9)
    return now if not before else MEMORY * before + (1 - MEMORY) * now


class DeviceFeed:
    """Decoded pictures on a device, run by run."""

    def __init__(self, device: "torch.device", most_bytes: int = RUN_BYTES) -> None:
        self.device, self.most_bytes, self.split = device, most_bytes, Split()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def parts(
        self, orders: Sequence[Order], decode: Decode, on_cores: Decode | None, most_pictures: int
    ) -> Iterator[Part]:
        """All orders, in order. `decode` leaves its pictures on the device until its next call;
        `on_cores`, where it is given, decodes in the CPU's memory."""
        for some in runs(orders, self.most_bytes, most_pictures):
            count = self.split.cpu_orders(some) if on_cores else 0
            mine, others = some[: len(some) - count], some[len(some) - count :]
            waiting = self.pool.submit(_timed, on_cores, others) if others else None
            pictures, gpu_s = _timed(decode, mine, self.device)
            if waiting is not None:
                more, cpu_s = waiting.result()
                self.split.measured((len(pictures), gpu_s), (len(more), cpu_s))
                pictures = [*pictures, *upload(more, self.device)]
            yield Part(some, pictures)
            wait_for(self.device)  # the decoder's buffer is used again


def _timed(
    decode: Any, orders: Sequence[Order], device: "torch.device | None" = None
) -> tuple[Sequence[Any], float]:
    """Pictures of some orders, and the seconds until a device had them."""
    started = time.perf_counter()
    jpegs = [jpeg for order in orders for jpeg in order.jpegs]
    pictures = decode(jpegs, [order.box for order in orders for _ in order.jpegs])
    if device is not None:
        wait_for(device)
    return pictures, time.perf_counter() - started


def wait_for(device: "torch.device") -> None:
    """Until a device has done what the current stream was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.current_stream(device).synchronize()


def upload(pictures: Sequence[NDArray[np.uint8]], device: "torch.device") -> "list[Tensor]":
    """Pictures on a device, in one copy out of memory from which a GPU fetches by itself."""
    import torch

    edges = np.cumsum([0, *(picture.size for picture in pictures)])
    room = torch.empty(int(edges[-1]), dtype=torch.uint8, pin_memory=device.type == "cuda")
    flat = room.numpy()
    for picture, start, stop in zip(pictures, edges, edges[1:], strict=False):
        flat[start:stop] = picture.ravel()
    there = room.to(device, non_blocking=True)
    return [
        there[start:stop].view(picture.shape)
        for picture, start, stop in zip(pictures, edges, edges[1:], strict=False)
    ]
