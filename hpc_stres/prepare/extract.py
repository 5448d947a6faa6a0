"""A video file to JPEG frames and flow planes, streamed: memory does not grow with its length."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpc_stres.data.flow import ZERO_LEVEL, encode_flow, tvl1
from hpc_stres.errors import UserError
from hpc_stres.listings.splits import Video
from hpc_stres.prepare.video import (
    MAX_PIXELS,
    Decoder,
    UndecodableError,
    encode_jpeg,
    gray,
    reason_of,
    resize,
    stored_size,
)
from hpc_stres.store.location import IMPORTED, Settings
from hpc_stres.store.reader import PreparedVideo

FLOW_BATCH = 16
# Who takes the JPEG files as they are made, frames and flow planes each in their order.
Emit = Callable[[Literal["rgb", "flow"], bytes], None]


def prepare_video(
    video: Video,
    settings: Settings,
    wanted: Collection[int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> PreparedVideo:
    """Decode, resize, flow, encode, in this process and without limits on memory and time (`guard`
    sets those).

    `wanted`: the flow pairs that will be read; the others are stored as planes at rest, without
    work.
    """
    made: dict[str, list[bytes]] = {"rgb": [], "flow": []}

    def emit(stream: str, jpeg: bytes) -> None:
        made[stream].append(jpeg)

    height, width, note = extract(video.path, settings, emit, wanted, max_pixels)
    return PreparedVideo(video.id, video.label, height, width, made["rgb"], made["flow"], note)


def warm_up(settings: Settings) -> None:
    """Load all that preparing a video needs; what fails here is no video's fault."""
    import av  # noqa: F401

    first = np.zeros((32, 32, 3), np.uint8)
    if settings.flow_backend == IMPORTED:
        encode_jpeg(resize(first, 16, 16), settings.jpeg_quality)
    else:
        _encode_planes([gray(first), gray(first)], settings, 0, None)


@contextmanager
def failures_reject() -> Iterator[None]:
    """Whatever goes wrong with one video is the reason of its rejection; what is wrong with the
    machine is not.
    """
    try:
        yield
    except (UndecodableError, UserError):
        raise
    except Exception as error:
        raise UndecodableError(reason_of(error)) from None


@failures_reject()
def extract(
    path: Path,
    settings: Settings,
    emit: Emit,
    wanted: Collection[int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int, str | None]:
    """Give a video file's frames and flow to `emit` as they are made; returns stored height, width
    and the note.
    """
    decoder = Decoder(path, max_pixels)

    def grays() -> Iterator[Any]:
        size: tuple[int, int] | None = None
        for frame in decoder:
            size = size or stored_size(
                frame.shape[0], frame.shape[1], settings.short_side, max_pixels
            )
            small = resize(frame, *size)
            emit("rgb", encode_jpeg(small, settings.jpeg_quality))
            yield gray(small)

    size = emit_flow_of(grays(), settings, emit, wanted)
    return *size, decoder.note


def _emit_planes(
    frames: list[Any], settings: Settings, first: int, wanted: Collection[int] | None, emit: Emit
) -> int:
    """The flow of a batch of frames; returns its pairs."""
    planes = _encode_planes(frames, settings, first, wanted)
    for plane in planes:
        emit("flow", plane)
    return len(planes) // 2


def _rest(size: tuple[int, int], settings: Settings) -> bytes:
    return encode_jpeg(np.full(size, ZERO_LEVEL, np.uint8), settings.jpeg_quality)


def _encode_planes(
    frames: list[Any], settings: Settings, first: int, wanted: Collection[int] | None
) -> list[bytes]:
    if wanted is not None and not any(
        pair in wanted for pair in range(first, first + len(frames) - 1)
    ):
        return [_rest(frames[0].shape, settings)] * (2 * (len(frames) - 1))
    if settings.flow_backend == IMPORTED:
        raise UserError(
            "this needs the flow of a video, but its settings say that another tool extracts it\n"
            "Have ours computed: --set data.flow_frames=null, with the data.flow_pyramid of choice."
        )
    pixels = tvl1(np.stack(frames), settings.flow_backend, pyramid=settings.flow_pyramid)
    planes = [plane for pair in encode_flow(pixels) for plane in pair]
    return [encode_jpeg(plane, settings.jpeg_quality) for plane in planes]


def emit_flow_of(
    frames: Iterable[Any], settings: Settings, emit: Emit, wanted: Collection[int] | None = None
) -> tuple[int, int]:
    """Flow planes of gray frames that stream by; a single frame gets one pair at rest. Returns the
    frames' size.
    """
    waiting: list[Any] = []
    pairs = 0
    size: tuple[int, int] | None = None
    for frame in frames:
        size = frame.shape
        waiting.append(frame)
        if len(waiting) > FLOW_BATCH:
            pairs += _emit_planes(waiting, settings, pairs, wanted, emit)
            waiting = waiting[-1:]
    pairs += _emit_planes(waiting, settings, pairs, wanted, emit)
    assert size is not None
    if not pairs:
        for _ in range(2):
            emit("flow", _rest(size, settings))
    return size
