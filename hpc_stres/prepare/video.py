"""Reading and writing video files with PyAV; the frames that decode are the truth."""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.listings.listing import printable

Frame = NDArray[np.uint8]
# The default of data.max_pixels: four times a frame of 8K television.
MAX_PIXELS = 8192 * 8192
# libjpeg writes no longer side.
MAX_JPEG_SIDE = 65_500
# Formats that FFmpeg reads and that are no video: one picture, a text drawn as pictures, a list of
# other files.
PICTURE_FORMATS = frozenset({"image2", "ico", "tty", "bin", "xbin", "adf", "idf"})
PLAYLIST_FORMATS = frozenset({"concat", "dash", "hls", "imf", "rtp", "rtsp", "sdp"})
# A header may promise so many frames, or so much of them, more than decode before that is noted.
MISSING_FRAMES, MISSING_SHARE = 1, 0.05
OPENCV_NO_MEMORY = -4
# What the machine says of a read, and not the file of itself: the video is tried again next time.
OF_THE_MACHINE = (
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETIMEDOUT,
)
CANNOT_BE_READ = "cannot be read: "
EDGE_PIXELS = 1 << 22


class UndecodableError(Exception):
    """Why a video is rejected: nothing in it decodes, it breaks off with an error, or it is beyond
    a limit.
    """


def reason_of(error: Exception) -> str:
    """An error as the reason of a rejection."""
    # OpenCV's own error of memory is its number -4.
    if isinstance(error, MemoryError) or getattr(error, "code", None) == OPENCV_NO_MEMORY:
        return "it needs more memory than data.video_memory_gib allows"
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return f"{CANNOT_BE_READ}{os.strerror(error.errno)}"
    words = str(error).strip()
    if (number := getattr(error, "errno", None)) is not None:
        # FFmpeg's own numbers say nothing, and the file is named by whoever prints this.
        place = getattr(error, "filename", None)
        words = words.removeprefix(f"[Errno {number}] ").replace(f": {place!r}", "")
    text = [printable(line) for line in words.splitlines()]
    return f"{type(error).__name__}: {text[-1]}" if text else type(error).__name__


def decode(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
    """RGB frames of a video in display order, turned upright; raises UndecodableError where
    decoding fails.
    """
    return iter(Decoder(path, max_pixels))


def count_frames(path: Path, max_pixels: int = MAX_PIXELS) -> int:
    """Frames that decode; raises UndecodableError like `decode`, but makes no pictures."""
    return sum(1 for _ in Decoder(path, max_pixels).raw())


class Decoder:
    """The frames of one video file. After the last one, `note` says what the header promised beyond
    them.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.max_pixels = path, max_pixels
        self.note: str | None = None
        # Known once a frame was read, where the file says it.
        self.frame_rate: float | None = None

    def __iter__(self) -> Iterator[Frame]:
        for number, frame in enumerate(self.raw()):
            try:
                picture = _upright(frame)
            except Exception as error:
                raise UndecodableError(f"{reason_of(error)} (after {number} frames)") from None
            yield picture

    def raw(self) -> Iterator[Any]:
        """Frames as FFmpeg has them; whatever goes wrong inside it is an UndecodableError."""
        import av

        av.logging.set_level(av.logging.PANIC)
        count = 0
        try:
            require_regular_file(self.path)
            # An absolute path is never taken for a protocol (concat:...), nor does a playlist lead
            # to the network.
            place, options = str(self.path.absolute()), {"protocol_whitelist": "file"}
            with av.open(place, metadata_errors="replace", container_options=options) as container:
                stream = self._stream(container)
                self.frame_rate = float(stream.average_rate) if stream.average_rate else None
                last = None
                for frame in container.decode(stream):
                    refuse_size(frame.width, frame.height, self.max_pixels)
                    yield frame
                    count += 1
                    last = frame
                self.note = _shortfall(container, stream, count, last)
        except UndecodableError:
            raise
        except Exception as error:
            raise UndecodableError(f"{reason_of(error)} (after {count} frames)") from None
        if count == 0:
            raise UndecodableError("no frame decodes")

    def _stream(self, container: Any) -> Any:
        """The video stream, its size checked before a frame is decoded."""
        names = container.format.name.split(",")
        if any(name in PICTURE_FORMATS or name.endswith("_pipe") for name in names):
            raise UndecodableError(f"a still picture or a text ({names[0]}), not a video")
        if any(name in PLAYLIST_FORMATS for name in names):
            raise UndecodableError(f"a list of other files ({names[0]}), not a video")
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            raise UndecodableError("no video stream")
        stream = streams[0]
        refuse_size(stream.codec_context.width, stream.codec_context.height, self.max_pixels)
        # The decoder's own limit, for sizes that change on the way; its buffers have edges around a
        # frame.
        stream.codec_context.options = {
            "max_pixels": str(min(4 * self.max_pixels + EDGE_PIXELS, 2**31 - 1))
        }
        stream.thread_type = "NONE"
        return stream


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the one picture on the cover of a sound file."""
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def require_regular_file(path: Path) -> None:
    """Refuse what is there but has no end or no bytes: pipes, devices, folders, empty files."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UndecodableError("not a regular file")
    if status.st_size == 0:
        raise UndecodableError("an empty file")


def refuse_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse a picture of more pixels than are allowed."""
    if width * height > max_pixels:
        raise UndecodableError(
            f"{width} x {height} pixels are more than data.max_pixels={max_pixels}"
        )


def _shortfall(container: Any, stream: Any, count: int, last: Any) -> str | None:
    """What is missing from what the header promises: frames where it counts them, else seconds."""
    if stream.frames:
        missing = stream.frames - count
        # A file that was cut in half. Encoders often count one frame too many, and empty ones.
        if missing > max(MISSING_FRAMES, MISSING_SHARE * stream.frames):
            return f"{count} of {stream.frames} frames: its header promises more than decodes"
        return None
    if last is None or last.pts is None or not stream.average_rate or not container.duration:
        return None
    frame_seconds = 1 / float(stream.average_rate)
    start = (container.start_time or 0) / 1e6
    seconds = float(last.pts * last.time_base) - start + frame_seconds
    promised = container.duration / 1e6
    alone = len(container.streams) == 1
    # Sound may continue after the last frame.
    slack = (
        max((1 + MISSING_FRAMES) * frame_seconds, MISSING_SHARE * promised)
        if alone
        else max(1.0, 0.2 * promised)
    )
    if promised - seconds > slack:
        return f"{seconds:.1f} of {promised:.1f} seconds: its header promises more than decodes"
    return None


def _upright(frame: Any) -> Frame:
    picture: Frame = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4
    return np.rot90(picture, quarter_turns) if quarter_turns else picture


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with the shorter side at `short_side`, aspect kept, both
    even, rounded down."""
    factor = max(short_side / width, short_side / height)
    return tuple(max(2, int(side * factor + 1e-6) // 2 * 2) for side in (height, width))  # type: ignore[return-value]


def stored_size(height: int, width: int, short_side: int, max_pixels: int) -> tuple[int, int]:
    """`target_size`, or UndecodableError where a picture is so narrow that its other side grows
    beyond a JPEG.
    """
    if height < 1 or width < 1:
        raise UndecodableError(f"{width} x {height} pixels are no picture")
    rows, columns = target_size(height, width, short_side)
    if max(rows, columns) > MAX_JPEG_SIDE or rows * columns > max_pixels:
        raise UndecodableError(
            f"{width} x {height} pixels would be stored as {columns} x {rows} (data.short_side={short_side}), "
            f"beyond {MAX_JPEG_SIDE} a side or data.max_pixels={max_pixels}"
        )
    return rows, columns


def resize(picture: Frame, height: int, width: int) -> Frame:
    """Bicubic resize."""
    import cv2

    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    return np.asarray(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8
    )


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
