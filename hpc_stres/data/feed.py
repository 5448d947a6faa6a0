"""Requests to tensors on the device: DALI decodes JPEG slices of the store, a thread works ahead
of the training."""

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpc_stres import native
from hpc_stres.data import augment
from hpc_stres.data.buffers import Buffers
from hpc_stres.data.decoder import DecodeError, Decoder, Decoders, Picture
from hpc_stres.data.device_feed import DeviceFeed, Order, wait_for
from hpc_stres.data.requests import Request
from hpc_stres.errors import UserError
from hpc_stres.store.reader import VideoRow

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")
# Pictures of one stack, what their levels are multiplied by and shifted by, and whether
# they are mirrored.
ScaleShift = tuple[NDArray[np.float32], NDArray[np.float32]]
Stack = tuple[list[Picture], ScaleShift, bool]
log = logging.getLogger(__name__)


@dataclass
class Clips:
    """A micro-batch: rgb (N, T, 3, side, side), flow (N, T, 20, side, side), labels (N); None for
    an unused stream."""

    rgb: "Tensor | None"
    flow: "Tensor | None"
    labels: "Tensor"
    ids: list[str]


class FrameSource(Protocol):
    """What clips are read from: a store, or one video in memory."""

    @property
    def rows(self) -> Sequence[VideoRow]:
        """One row a video."""

    @property
    def place(self) -> str:
        """Name for messages."""

    def rgb(self, video: int, frame: int) -> NDArray[np.uint8]:
        """JPEG bytes of one RGB frame."""

    def flow(self, video: int, pair: int, axis: int) -> NDArray[np.uint8]:
        """JPEG bytes of one plane of a flow pair."""


class ClipReader:
    """Requests to clips: slices of the store, decoded, cropped, resized, flipped and normalised."""

    def __init__(
        self,
        store: FrameSource,
        side: int | None,
        levels: augment.Levels | str,
        antialias: bool = True,
        streams: tuple[bool, bool] = (True, True),
        threads: int = 1,
        device_id: int | None = None,
        most: int = 2048,
        scale: float | None = None,
        dtype: "torch.dtype | None" = None,
        decode_on: str = "device",
    ) -> None:
        """Crops become squares of `side` pixels, or `scale` times as large, or stay as they are.
        With `decode_on` both, the CPU decodes a share of what a GPU is fed with."""
        self.store, self.side, self.antialias, self.scale = store, side, antialias, scale
        # By a variant's name: the levels that its published weights were trained with.
        self.levels = augment.Levels.of(levels) if isinstance(levels, str) else levels
        self.device_id = device_id
        # What clips are delivered in; float32 where nothing is said. The kernel writes float32 and
        # bfloat16 itself.
        self.dtype = dtype
        self.buffers = Buffers()
        # The kernels let go of Python's lock, so that plain threads share them out.
        self.pool = ThreadPoolExecutor(threads)
        self.most = most
        self.feed = self._device_feed()
        self.rgb, self.flow = (
            self._decoders(is_gray, threads, decode_on) if used else None
            for is_gray, used in zip((False, True), streams, strict=True)
        )

    def _device_feed(self) -> DeviceFeed | None:
        """The way over a GPU and its one kernel; none on a CPU, and without Triton."""
        if self.device_id is None:
            return None
        import torch

        from hpc_stres.data import resize_triton

        device = torch.device("cuda", self.device_id)
        return DeviceFeed(device) if resize_triton.is_available() else None

    def _decoders(self, is_gray: bool, threads: int, decode_on: str) -> Decoders:
        most = self.most if is_gray else min(self.most, 512)
        here = Decoder(is_gray, most, threads, self.device_id)
        is_mixed = decode_on == "both" and self.feed is not None
        return Decoders(here, Decoder(is_gray, most, threads, None) if is_mixed else None)

    def read(self, batch: Sequence[Request]) -> Clips:
        """The clips of some requests of one shape."""
        import torch

        device = torch.device("cpu" if self.device_id is None else f"cuda:{self.device_id}")
        try:
            rgb = self._read_rgb(batch) if self.rgb else None
            flow = self._read_flow(batch) if self.flow else None
        except DecodeError as error:
            raise UserError(_find_damage(self.store, batch, str(error))) from None
        labels = torch.tensor([request.label for request in batch], device=device)
        return Clips(rgb, flow, labels, [self.store.rows[request.video].id for request in batch])

    def _read_rgb(self, batch: Sequence[Request]) -> "Tensor":
        assert self.rgb is not None
        scale_shift = augment.rgb_scale_and_shift(self.levels)
        return self._clips(self._rgb_orders(batch), self.rgb, (scale_shift, scale_shift))

    def _read_flow(self, batch: Sequence[Request]) -> "Tensor":
        assert self.flow is not None
        plain, mirrored = (
            augment.flow_scale_and_shift(self.levels, flip) for flip in (False, True)
        )
        return self._clips(self._flow_orders(batch), self.flow, (plain, mirrored))

    def _rgb_orders(self, batch: Sequence[Request]) -> list[Order]:
        return [
            Order(
                [self.store.rgb(request.video, frame) for frame in request.frames],
                request.box,
                [[number] for number in range(len(request.frames))],
                request.flip,
                3 * self._area(request),
            )
            for request in batch
        ]

    def _flow_orders(self, batch: Sequence[Request]) -> list[Order]:
        orders = []
        for request in batch:
            # Chunks overlap at small strides: each plane is decoded once.
            pairs = sorted({pair for stack in request.flow for pair in stack})
            number = {pair: 2 * n for n, pair in enumerate(pairs)}
            jpegs = [
                self.store.flow(request.video, pair, axis) for pair in pairs for axis in (0, 1)
            ]
            stacks = [
                [number[pair] + axis for pair in stack for axis in (0, 1)] for stack in request.flow
            ]
            orders.append(Order(jpegs, request.box, stacks, request.flip, self._area(request)))
        return orders

    def _area(self, request: Request) -> int:
        row = self.store.rows[request.video]
        return row.height * row.width

    def _clips(
        self, orders: list[Order], decoders: Decoders, scales: "tuple[ScaleShift, ScaleShift]"
    ) -> "Tensor":
        """One stream's clips (videos, time, channels, side, side) in channels-last order; `scales`
        are those of pictures as they are and of mirrored ones."""
        if self.feed is not None:
            flat = self._clips_on_device(orders, decoders, scales)
        else:
            jpegs = [jpeg for order in orders for jpeg in order.jpegs]
            boxes = [order.box for order in orders for _ in order.jpegs]
            pictures = iter(decoders.here(jpegs, boxes))
            work: list[Stack] = []
            for order in orders:
                own = [next(pictures) for _ in order.jpegs]
                stacks = ([own[n] for n in stack] for stack in order.stacks)
                work += [(stack, scales[order.flip], order.flip) for stack in stacks]
            flat = self._finish(work)
            wait_for(flat.device)  # the decoder's buffer is used again
        each = len(orders[0].stacks)
        return flat.to(self.dtype or flat.dtype).unflatten(0, (len(orders), each))

    def _clips_on_device(
        self, orders: list[Order], decoders: Decoders, scales: "tuple[ScaleShift, ScaleShift]"
    ) -> "Tensor":
        """The pictures of a run become clips in one kernel, in their places of the batch."""
        import torch

        from hpc_stres.data import resize_triton

        assert self.feed is not None
        out, place = None, 0
        dtype = torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32
        for part in self.feed.parts(orders, decoders.here, decoders.on_cores, decoders.here.most):
            pictures = iter(part.pictures)
            stacks = []
            for order in part.orders:
                own = [next(pictures) for _ in order.jpegs]
                stacks += [
                    resize_triton.Stack([own[n] for n in stack], order.flip)
                    for stack in order.stacks
                ]
            if out is None:
                count, first = sum(len(order.stacks) for order in orders), stacks[0]
                target = self._target(first.size) or first.size
                high, wide = target if isinstance(target, tuple) else (target, target)
                shape = (count, high, wide, first.channels)
                out = torch.empty(shape, dtype=dtype, device=self.feed.device)
            room = out[place : place + len(stacks)]
            resize_triton.finish(stacks, self.antialias, scales, room)
            place += len(stacks)
        assert out is not None
        return out.permute(0, 3, 1, 2)

    def _finish(self, work: "list[Stack]") -> "Tensor":
        """Stacks to clips (stacks, channels, side, side) in channels-last order."""
        import torch

        if self.device_id is None and native.find("resize") is not None:
            return self._finish_on_cpu(work)
        work = [
            ([torch.as_tensor(p) for p in s], scale_shift, flip) for s, scale_shift, flip in work
        ]
        planes = [
            (torch.stack([p[..., 0] for p in s]) if len(s) > 1 else s[0].permute(2, 0, 1))
            for s, _, _ in work
        ]
        stacks = [
            augment.finish_planes(
                plane, self._target(plane.shape[-2:]), self.antialias, scale_shift, flip
            )
            for plane, (_, scale_shift, flip) in zip(planes, work, strict=True)
        ]
        return torch.stack(stacks).contiguous(memory_format=torch.channels_last)

    def _target(self, shape: Sequence[int]) -> augment.Side | None:
        """What pictures of (height, width) are resized to; none where they stay."""
        if self.side is not None or self.scale is None:
            return self.side
        height, width = (round(self.scale * length) for length in shape)
        return height, width

    def _finish_on_cpu(self, work: "list[Stack]") -> "Tensor":
        import torch

        pictures, _, _ = work[0]
        channels = len(pictures) if len(pictures) > 1 else pictures[0].shape[2]
        target = self._target(pictures[0].shape[:2]) or pictures[0].shape[:2]
        height, width = target if isinstance(target, tuple) else (target, target)
        is_half = self.dtype == torch.bfloat16
        arrays = self.buffers.take(
            (len(work), height, width, channels), np.uint16 if is_half else np.float32
        )
        out = torch.from_numpy(arrays)
        if is_half:
            out = out.view(torch.bfloat16)

        def finish(number: int) -> None:
            stack, scale_shift, flip = work[number]
            augment.finish_on_cpu(
                stack, (height, width), self.antialias, scale_shift, flip, arrays[number]
            )

        list(self.pool.map(finish, range(len(work))))
        return out.permute(0, 3, 1, 2)


def _find_damage(store: FrameSource, batch: Sequence[Request], message: str) -> str:
    """The first frame of a batch that another decoder refuses, by video and frame."""
    import cv2

    for request in batch:
        name = store.rows[request.video].id
        jpegs = [
            (f"RGB frame {frame}", store.rgb(request.video, frame)) for frame in request.frames
        ]
        pairs = sorted({pair for stack in request.flow for pair in stack})
        jpegs += [
            (f"flow pair {p}", store.flow(request.video, p, axis)) for p in pairs for axis in (0, 1)
        ]
        for what, jpeg in jpegs:
            row = store.rows[request.video]
            picture = cv2.imdecode(np.array(jpeg), cv2.IMREAD_UNCHANGED)
            if picture is None or picture.shape[:2] != (row.height, row.width):
                return (
                    f"{store.place}: {what} of video {name} does not decode\n"
                    "`hpc-stres verify --config F` names all damage; with --repair it prepares what is damaged again."
                )
    last = message.strip().splitlines()[-1] if message.strip() else "no message"
    return f"{store.place}: DALI refused a batch in which each frame decodes elsewhere: {last}"


class Ahead(Generic[Item]):
    """Runs an iterator in a thread, at most `depth` items ahead; its errors come out where
    items are taken."""

    def __init__(self, items: Iterator[Item], depth: int) -> None:
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), daemon=True, name="feed")
        self._thread.start()

    def _fill(self, items: Iterator[Item]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # handed to the taker, whatever it is
            self._put((None, error))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item, error = self._queue.get()
        if error is not None:
            raise error
        return item  # type: ignore[return-value]

    def __enter__(self) -> "Ahead[Item]":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
