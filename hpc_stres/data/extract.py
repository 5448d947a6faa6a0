"""A video file to JPEG frames and flow planes, streamed, so that memory does not grow with the video's length."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from hpc_stres.data.flow import ZERO_LEVEL, encode_flow, tvl1
from hpc_stres.data.shards import PreparedVideo
from hpc_stres.data.splits import Video
from hpc_stres.data.storepath import IMPORTED, Settings
from hpc_stres.data.video import decode, encode_jpeg, gray, resize, target_size
from hpc_stres.errors import UserError

FLOW_BATCH = 16


def prepare_video(video: Video, settings: Settings, wanted: Collection[int] | None = None) -> PreparedVideo:
    """Decode, resize, flow, encode; frames stream through, so that memory does not grow with the video's length.

    `wanted`: the flow pairs that will be read; the others are stored as planes at rest, without work.
    """
    rgb: list[bytes] = []
    flow: list[bytes] = []
    waiting: list[Any] = []
    size: tuple[int, int] | None = None
    for frame in decode(video.path):
        size = size or target_size(frame.shape[0], frame.shape[1], settings.short_side)
        small = resize(frame, *size)
        rgb.append(encode_jpeg(small, settings.jpeg_quality))
        waiting.append(gray(small))
        if len(waiting) > FLOW_BATCH:
            flow += _encode_planes(waiting, settings, len(flow) // 2, wanted)
            waiting = waiting[-1:]
    flow += _encode_planes(waiting, settings, len(flow) // 2, wanted)
    assert size is not None
    if not flow:
        flow = [_rest(size, settings)] * 2
    return PreparedVideo(video.id, video.label, *size, rgb, flow)


def _rest(size: tuple[int, int], settings: Settings) -> bytes:
    return encode_jpeg(np.full(size, ZERO_LEVEL, np.uint8), settings.jpeg_quality)


def _encode_planes(frames: list[Any], settings: Settings, first: int, wanted: Collection[int] | None) -> list[bytes]:
    if wanted is not None and not any(pair in wanted for pair in range(first, first + len(frames) - 1)):
        return [_rest(frames[0].shape, settings)] * (2 * (len(frames) - 1))
    if settings.flow_backend == IMPORTED:
        raise UserError(
            "this needs the flow of a video, but its settings say that another tool extracts it\n"
            "Have ours computed: --set data.flow_frames=null, with the data.flow_pyramid of choice."
        )
    pixels = tvl1(np.stack(frames), settings.flow_backend, pyramid=settings.flow_pyramid)
    planes = [plane for pair in encode_flow(pixels) for plane in pair]
    return [encode_jpeg(plane, settings.jpeg_quality) for plane in planes]


def flow_of(frames: Iterable[Any], settings: Settings) -> list[bytes]:
    """Flow planes of gray frames that stream by; a single frame gets one pair at rest."""
    flow: list[bytes] = []
    waiting: list[Any] = []
    size: tuple[int, int] | None = None
    for frame in frames:
        size = frame.shape
        waiting.append(frame)
        if len(waiting) > FLOW_BATCH:
            flow += _encode_planes(waiting, settings, 0, None)
            waiting = waiting[-1:]
    flow += _encode_planes(waiting, settings, 0, None)
    assert size is not None
    return flow or [_rest(size, settings)] * 2
