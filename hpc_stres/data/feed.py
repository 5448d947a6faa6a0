"""Requests to tensors on the device: DALI decodes JPEG slices of the store, a thread works ahead
of the training."""

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hpc_stres import native
from hpc_stres.data import augment
from hpc_stres.data.buffers import Buffers
from hpc_stres.data.requests import Box, Request
from hpc_stres.errors import UserError
from hpc_stres.store.reader import VideoRow

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")
# Pictures of one stack, what their levels are multiplied by and shifted by, and whether
# they are mirrored.
Picture = Any  # a NumPy array where DALI decodes on the CPU, a tensor on the device elsewhere
Stack = tuple[list[Picture], tuple[NDArray[np.float32], NDArray[np.float32]], bool]
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


class Decoder:
    """A DALI pipeline that decodes a region of each JPEG of a list, on the CPU or with
    nvJPEG on a GPU."""

    def __init__(self, gray: bool, most: int, threads: int, device_id: int | None) -> None:
        self.gray, self.most, self.threads, self.device_id = gray, most, threads, device_id
        self.pipeline = self._build()

    def _build(self) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def
        def decode() -> Any:
            jpeg = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1)
            anchor = fn.external_source(name="anchor", dtype=types.INT32, ndim=1)
            shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
            return fn.decoders.image_slice(
                jpeg,
                anchor,
                shape,
                device="cpu" if self.device_id is None else "mixed",
                axis_names="HW",
                normalized_anchor=False,
                normalized_shape=False,
                output_type=types.GRAY if self.gray else types.RGB,
            )

        pipeline = decode(
            batch_size=self.most,
            num_threads=self.threads,
            device_id=self.device_id,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        pipeline.build()
        return pipeline

    def __call__(self, jpegs: Sequence[NDArray[np.uint8]], boxes: Sequence[Box]) -> list[Picture]:
        """uint8 pictures (h, w, channels) of the boxes, to be used before the next call."""
        pictures: list[Picture] = []
        for start in range(0, len(jpegs), self.most):
            stop = start + self.most
            pictures += self._run(jpegs[start:stop], boxes[start:stop], last=stop >= len(jpegs))
        return pictures

    def _run(
        self, jpegs: Sequence[NDArray[np.uint8]], boxes: Sequence[Box], last: bool
    ) -> list[Picture]:
        import torch

        self.pipeline.feed_input("jpeg", list(jpegs))
        corners = np.array(boxes, np.int32)
        self.pipeline.feed_input("anchor", np.ascontiguousarray(corners[:, :2]))
        self.pipeline.feed_input("shape", np.ascontiguousarray(corners[:, 2:]))
        try:
            (decoded,) = self.pipeline.run()
        except RuntimeError as error:
            # DALI names no input and its pipeline is dead from here on: the caller finds the frame.
            raise DecodeError(str(error)) from None
        if self.device_id is None:
            pictures = [np.asarray(decoded[n]) for n in range(len(jpegs))]
            if last:
                self.shown = decoded  # keeps the pipeline's buffer, of which the pictures are views
                return pictures
            # The pipeline uses its buffer again for the next run: one copy of all pictures,
            # then views of it.
            edges = np.cumsum([0, *(picture.size for picture in pictures)])
            copy = np.concatenate([picture.ravel() for picture in pictures])
            return [
                copy[a:b].reshape(p.shape)
                for a, b, p in zip(edges, edges[1:], pictures, strict=False)
            ]
        return [torch.utils.dlpack.from_dlpack(decoded[n]).clone() for n in range(len(jpegs))]


class DecodeError(Exception):
    """DALI could not decode a batch."""


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
    ) -> None:
        """Crops become squares of `side` pixels, or `scale` times as large, or stay as they are."""
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
        self.rgb = Decoder(False, min(most, 512), threads, device_id) if streams[0] else None
        self.flow = Decoder(True, most, threads, device_id) if streams[1] else None

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
        jpegs = [
            self.store.rgb(request.video, frame) for request in batch for frame in request.frames
        ]
        pictures = self.rgb(jpegs, [request.box for request in batch for _ in request.frames])
        scale_shift = augment.rgb_scale_and_shift(self.levels)
        work = [
            ([picture], scale_shift, flip)
            for picture, flip in zip(
                pictures, (r.flip for r in batch for _ in r.frames), strict=True
            )
        ]
        return self._finish(batch, work)

    def _read_flow(self, batch: Sequence[Request]) -> "Tensor":
        assert self.flow is not None
        jpegs: list[NDArray[np.uint8]] = []
        boxes: list[Box] = []
        places: list[dict[tuple[int, int], int]] = []
        for request in batch:
            # Chunks overlap at small strides: each plane is decoded once.
            pairs = sorted({pair for stack in request.flow for pair in stack})
            places.append(
                {
                    (pair, axis): len(jpegs) + 2 * n + axis
                    for n, pair in enumerate(pairs)
                    for axis in (0, 1)
                }
            )
            jpegs += [
                self.store.flow(request.video, pair, axis) for pair in pairs for axis in (0, 1)
            ]
            boxes += [request.box] * (2 * len(pairs))
        pictures = self.flow(jpegs, boxes)
        work = [
            (
                [pictures[place[pair, axis]] for pair in stack for axis in (0, 1)],
                augment.flow_scale_and_shift(self.levels, request.flip),
                request.flip,
            )
            for request, place in zip(batch, places, strict=True)
            for stack in request.flow
        ]
        return self._finish(batch, work)

    def _finish(self, batch: Sequence[Request], work: "list[Stack]") -> "Tensor":
        """Stacks to clips (videos, time, channels, side, side) in channels-last order."""
        import torch

        if self.device_id is None and native.find("resize") is not None:
            flat = self._finish_on_cpu(work)
        else:
            work = [
                ([torch.as_tensor(p) for p in s], scale_shift, flip)
                for s, scale_shift, flip in work
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
            flat = torch.stack(stacks).contiguous(memory_format=torch.channels_last)
        return flat.to(self.dtype or torch.float32).unflatten(
            0, (len(batch), len(work) // len(batch))
        )

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
