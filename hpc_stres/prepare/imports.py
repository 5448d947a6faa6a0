"""Where a video comes from: a video file, or folders of frames and flow of another tool.

Layouts of folders, found by what is in them (VIDEO is the video's id, alone or under its class):
    FRAMES/VIDEO/frame000001.jpg      or img_00001.jpg, image_00001.jpg: RGB, numbered from any
                                      start; .png as well
    FLOW/VIDEO/x_0001.jpg, y_0001.jpg or flow_x_00001.jpg, flow_y_00001.jpg; may be the same folder as the frames
    FLOW/u/VIDEO/frame000001.jpg      and FLOW/v/VIDEO/...
Imported flow holds round(255 (v + 20) / 40), as ours does; a JPEG that has the right size is kept
byte for byte. Every file's header is read before its pixels, and all pictures of a video must be of
one size.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.schema import DataConfig
from hpc_stres.data.flow import decode_flow, encode_flow
from hpc_stres.listings.listing import Video
from hpc_stres.prepare import guard
from hpc_stres.prepare.extract import Emit, emit_flow_of, failures_reject
from hpc_stres.prepare.picture_header import PictureHeader, read_header
from hpc_stres.prepare.video import (
    MAX_PIXELS,
    UndecodableError,
    encode_jpeg,
    gray,
    refuse_size,
    require_regular_file,
    resize,
    stored_size,
)
from hpc_stres.store.location import Settings
from hpc_stres.store.reader import PreparedVideo

NUMBER = re.compile(r"([0-9]{1,18})\.(?:jpe?g|png)$", re.IGNORECASE)
Picture = NDArray[np.uint8]


def prepare_one(video: Video, settings: Settings, data: DataConfig) -> PreparedVideo:
    """A video from wherever it comes, decoded in a child process with limits; UndecodableError says
    why not.

    Whatever one video does to its decoder costs that video only. A UserError is what no video is to
    blame for.
    """
    return guard.prepare(
        video, settings, guard.Limits.of(data), data.frames is not None, data.flow_frames
    )


def import_video(
    video: Video, settings: Settings, flow_root: str | None, max_pixels: int = MAX_PIXELS
) -> PreparedVideo:
    """A video from its folders of pictures, in this process."""
    made: dict[str, list[bytes]] = {"rgb": [], "flow": []}

    def emit(stream: str, jpeg: bytes) -> None:
        made[stream].append(jpeg)

    height, width = import_frames(video.path, settings, emit, flow_root, max_pixels)
    return PreparedVideo(video.id, video.label, height, width, made["rgb"], made["flow"])


@failures_reject()
def import_frames(
    folder: Path,
    settings: Settings,
    emit: Emit,
    flow_root: str | None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """Give the pictures of one video's folder, and its flow, to `emit`; returns stored height and
    width.
    """
    files = numbered(folder, ("frame", "img_", "image_", "img", "image"))
    given: tuple[int, ...] | None = None
    for path in files:
        image = _read(path, max_pixels, color=True)
        if given is None:
            given = image.pixels.shape[:2]
            wanted = stored_size(given[0], given[1], settings.short_side, max_pixels)
        _require_size(image, given)
        emit("rgb", _stored_rgb(image, wanted, settings))
    if flow_root is None:
        pictures = (_read(path, max_pixels, color=True).pixels for path in files)
        emit_flow_of((gray(resize(picture, *wanted)) for picture in pictures), settings, emit)
    else:
        for plane in _import_flow(
            folder, Path(flow_root), len(files), wanted, settings, max_pixels
        ):
            emit("flow", plane)
    return wanted


def numbered(folder: Path, prefixes: Sequence[str]) -> list[Path]:
    """Files of one prefix in the order of their numbers; a gap, a double or a missing folder is an
    error.
    """
    if not folder.is_dir():
        raise UndecodableError(f"no folder {folder}")
    for prefix in prefixes:
        by_number: dict[int, Path] = {}
        for path in sorted(folder.iterdir()):
            match = NUMBER.search(path.name)
            if match and path.name[: match.start()] == prefix:
                number = int(match.group(1))
                if number in by_number:
                    raise UndecodableError(
                        f"{folder}: {by_number[number].name} and {path.name} have one number"
                    )
                by_number[number] = path
        if by_number:
            numbers = sorted(by_number)
            gap = next((a + 1 for a, b in itertools.pairwise(numbers) if b != a + 1), None)
            if gap is not None:
                raise UndecodableError(f"{folder}: number {gap} is missing")
            return [by_number[number] for number in numbers]
    raise UndecodableError(f"{folder}: no files {' or '.join(f'{p}NUMBER.jpg' for p in prefixes)}")


def _import_flow(
    folder: Path,
    root: Path,
    frames: int,
    wanted: tuple[int, int],
    settings: Settings,
    max_pixels: int,
) -> Iterator[bytes]:
    """u and v of each pair in turn. Tools that write a pair for the last frame as well repeat one:
    it goes.
    """
    both = [_flow_files(root, folder, axis) for axis in (0, 1)]
    if len(both[0]) != len(both[1]):
        raise UndecodableError(f"{len(both[0])} files of x or u flow, but {len(both[1])} of y or v")
    if len(both[0]) not in (frames - 1, frames):
        raise UndecodableError(
            f"{frames} frames want {frames - 1} flow pairs, but there are {len(both[0])}"
        )
    given: tuple[int, ...] | None = None
    for pair in list(zip(*both, strict=True))[: max(1, frames - 1)]:
        for axis, path in enumerate(pair):
            image = _read(path, max_pixels, color=False)
            given = given or image.pixels.shape
            _require_size(image, given)
            yield _stored_flow(image, axis, wanted, settings)


def _flow_files(root: Path, folder: Path, axis: int) -> list[Path]:
    letter = "uv"[axis]
    if (root / letter).is_dir():
        return numbered(_same_place(root / letter, folder), ("frame", "img_", ""))
    letter = "xy"[axis]
    return numbered(_same_place(root, folder), (f"{letter}_", f"flow_{letter}_", f"flow_{letter}"))


def _same_place(root: Path, folder: Path) -> Path:
    """The folder of one video under another root: below its split and class, below its class, or by
    its name alone.
    """
    places = [root.joinpath(*folder.parts[-depth:]) for depth in (3, 2, 1)]
    return next((place for place in places if place.is_dir()), places[-1])


@dataclass(frozen=True)
class _Read:
    """A picture file: its bytes, its header and its pixels."""

    path: Path
    data: bytes
    header: PictureHeader
    pixels: Picture


def _read(path: Path, max_pixels: int, color: bool) -> _Read:
    import cv2

    try:
        require_regular_file(path)
        data = path.read_bytes()
    except (OSError, UndecodableError) as error:
        raise UndecodableError(f"{path}: {error}") from None
    header = read_header(data, path)
    try:
        refuse_size(header.width, header.height, max_pixels)
    except UndecodableError as error:
        raise UndecodableError(f"{path}: {error}") from None
    kind = cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), kind)
    if picture is None:
        raise UndecodableError(f"{path} does not decode")
    pixels = np.asarray(
        cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if color else picture, dtype=np.uint8
    )
    return _Read(path, data, header, pixels)


def _require_size(image: _Read, given: tuple[int, ...]) -> None:
    height, width = image.pixels.shape[:2]
    if (height, width) != given[:2]:
        raise UndecodableError(
            f"{image.path}: {width} x {height} pixels, but the first has {given[1]} x {given[0]}"
        )


def _stored_rgb(image: _Read, wanted: tuple[int, int], settings: Settings) -> bytes:
    # Only what every decoder reads alike is kept: no picture that its EXIF block turns, no inks in
    # place of colours.
    if (
        image.pixels.shape[:2] == wanted
        and image.header.is_plain_jpeg
        and image.header.channels in (1, 3)
    ):
        return image.data
    return encode_jpeg(resize(image.pixels, *wanted), settings.jpeg_quality)


def _stored_flow(image: _Read, axis: int, wanted: tuple[int, int], settings: Settings) -> bytes:
    """Another size means other pixels: the displacement grows with the picture."""
    import cv2

    if image.header.bits != 8:
        raise UndecodableError(f"{image.path}: {image.header.bits} bits; flow is read from 8 bits")
    picture = image.pixels
    if picture.shape == wanted and image.header.is_plain_jpeg and image.header.channels == 1:
        return image.data
    factor = wanted[1 - axis] / picture.shape[1 - axis]
    pixels = (
        cv2.resize(decode_flow(picture), (wanted[1], wanted[0]), interpolation=cv2.INTER_LINEAR)
        * factor
    )
    return encode_jpeg(encode_flow(np.asarray(pixels, np.float32)), settings.jpeg_quality)
