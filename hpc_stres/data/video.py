"""Reading and writing video files with PyAV; the frames that decode are the truth, whatever the header says."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]


class UndecodableError(Exception):
    """A video of which no frame decodes, or whose stream breaks off with an error."""


def decode(path: Path) -> Iterator[Frame]:
    """RGB frames of a video in display order, turned upright; raises UndecodableError where decoding fails."""
    for frame in _decoded(path):
        yield _upright(frame)


def _decoded(path: Path) -> Iterator[Any]:
    import av

    av.logging.set_level(av.logging.PANIC)
    count = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UndecodableError("no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for frame in container.decode(stream):
                yield frame
                count += 1
    except (av.FFmpegError, ValueError, OSError) as error:
        raise UndecodableError(f"{type(error).__name__} after {count} frames: {error}") from None
    if count == 0:
        raise UndecodableError("no frame decodes")


def count_frames(path: Path) -> int:
    """Frames that decode; raises UndecodableError like `decode`, but makes no pictures."""
    return sum(1 for _ in _decoded(path))


def _upright(frame: Any) -> Frame:
    picture: Frame = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4
    return np.rot90(picture, quarter_turns) if quarter_turns else picture


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with the shorter side at `short_side`, aspect kept, both even, rounded down."""
    factor = max(short_side / width, short_side / height)
    return tuple(max(2, int(side * factor + 1e-6) // 2 * 2) for side in (height, width))  # type: ignore[return-value]


def resize(picture: Frame, height: int, width: int) -> Frame:
    """Bicubic resize."""
    import cv2

    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def gray(picture: Frame) -> Frame:
    """Luminance of an RGB frame."""
    import cv2

    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def encode_jpeg(picture: Frame, quality: int) -> bytes:
    """A JPEG of an RGB or gray frame."""
    import cv2

    stored = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, data = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"cannot encode a picture of shape {picture.shape}")
    return data.tobytes()


def write_video(path: Path, frames: Iterable[Frame], frames_per_second: int) -> None:
    """An AVI with MPEG-4 part 2, as UCF101's and HMDB51's files are."""
    import av

    stream: Any = None
    with av.open(str(path), "w", format="avi") as container:
        for picture in frames:
            if stream is None:
                stream = container.add_stream("mpeg4", rate=frames_per_second)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                # A fixed quantiser near the best: the sizes are small and the colours must survive.
                stream.codec_context.flags |= 0x0002
                stream.codec_context.global_quality = 3 * 118
                stream.codec_context.thread_count = 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
