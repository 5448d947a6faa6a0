"""Where a video comes from: a video file, or folders of JPEG frames and flow that another tool extracted.

Layouts of folders, found by what is in them (VIDEO is the video's id, alone or under its class):
    FRAMES/VIDEO/frame000001.jpg      or img_00001.jpg, image_00001.jpg: RGB, numbered from any start
    FLOW/VIDEO/x_0001.jpg, y_0001.jpg or flow_x_00001.jpg, flow_y_00001.jpg; may be the same folder as the frames
    FLOW/u/VIDEO/frame000001.jpg      and FLOW/v/VIDEO/...
Imported flow holds round(255 (v + 20) / 40), as ours does; a JPEG that has the right size is kept byte for byte.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config import DataConfig
from hpc_stres.data import splits
from hpc_stres.data.extract import flow_of, prepare_video
from hpc_stres.data.flow import decode_flow, encode_flow
from hpc_stres.data.shards import PreparedVideo
from hpc_stres.data.splits import Listing, Video
from hpc_stres.data.storepath import Settings
from hpc_stres.data.video import UndecodableError, encode_jpeg, gray, resize, target_size
from hpc_stres.errors import UserError

NUMBER = re.compile(r"(\d+)\.jpe?g$", re.IGNORECASE)
Picture = NDArray[np.uint8]


def read_listing(data: DataConfig) -> Listing:
    """The listing of a data set; with `data.frames` each video's path is its folder of frames."""
    if data.frames is None:
        return splits.read_listing(data)
    root = Path(data.frames)
    if not root.is_dir():
        raise UserError(f"data.frames: {root}: no such folder")
    if data.kind == "folder":
        return splits.read_frame_folders(root, data.test_fraction)
    listing = splits.read_listing(data)
    for name, video in listing.videos.items():
        listing.videos[name] = Video(name, _folder(root, name, listing.classes[video.label]), video.label)
    return listing


def _folder(root: Path, name: str, label: str) -> Path:
    nested = root / label / name
    return nested if nested.is_dir() else root / name


def exists(video: Video) -> bool:
    """Whether the original is there."""
    return video.path.exists()


def size(video: Video) -> int:
    """What the time of preparing a video goes with: bytes of a file, entries of a folder."""
    return sum(1 for _ in video.path.iterdir()) if video.path.is_dir() else video.path.stat().st_size


def prepare_one(video: Video, settings: Settings, data: DataConfig) -> PreparedVideo:
    """A video from wherever it comes; raises UndecodableError with the reason where that fails."""
    return prepare_video(video, settings) if data.frames is None else import_video(video, settings, data.flow_frames)


def import_video(video: Video, settings: Settings, flow_root: str | None) -> PreparedVideo:
    """A video from its folders of JPEG files."""
    files = numbered(video.path, ("frame", "img_", "image_", "img", "image"))
    first = _read(files[0], color=True)
    height, width = target_size(first.shape[0], first.shape[1], settings.short_side)
    rgb = [_stored_rgb(path, (height, width), settings) for path in files]
    if flow_root is None:
        frames = (gray(resize(_read(path, color=True), height, width)) for path in files)
        flow = flow_of(frames, settings)
    else:
        flow = _import_flow(video, Path(flow_root), len(files), (height, width), settings)
    return PreparedVideo(video.id, video.label, height, width, rgb, flow)


def numbered(folder: Path, prefixes: Sequence[str]) -> list[Path]:
    """Files of one prefix in the order of their numbers; a gap or a missing folder is an error."""
    if not folder.is_dir():
        raise UndecodableError(f"no folder {folder}")
    for prefix in prefixes:
        found = {}
        for path in folder.iterdir():
            match = NUMBER.search(path.name)
            if match and path.name[: match.start()] == prefix:
                found[int(match.group(1))] = path
        if found:
            numbers = sorted(found)
            gap = next((a + 1 for a, b in itertools.pairwise(numbers) if b != a + 1), None)
            if gap is not None:
                raise UndecodableError(f"{folder}: number {gap} is missing")
            return [found[number] for number in numbers]
    raise UndecodableError(f"{folder}: no files {' or '.join(f'{p}NUMBER.jpg' for p in prefixes)}")


def _import_flow(video: Video, root: Path, frames: int, wanted: tuple[int, int], settings: Settings) -> list[bytes]:
    """u and v of each pair in turn. Tools that write a pair for the last frame as well repeat one: it goes."""
    both = [_flow_files(root, video, axis) for axis in (0, 1)]
    if len(both[0]) != len(both[1]):
        raise UndecodableError(f"{len(both[0])} files of x or u flow, but {len(both[1])} of y or v")
    if len(both[0]) not in (frames - 1, frames):
        raise UndecodableError(f"{frames} frames want {frames - 1} flow pairs, but there are {len(both[0])}")
    pairs = list(zip(*both, strict=True))[: max(1, frames - 1)]
    return [_stored_flow(path, axis, wanted, settings) for pair in pairs for axis, path in enumerate(pair)]


def _flow_files(root: Path, video: Video, axis: int) -> list[Path]:
    label = video.path.parent.name
    letter = "uv"[axis]
    if (root / letter).is_dir():
        return numbered(_folder(root / letter, video.path.name, label), ("frame", "img_", ""))
    letter = "xy"[axis]
    return numbered(_folder(root, video.path.name, label), (f"{letter}_", f"flow_{letter}_", f"flow_{letter}"))


def _read(path: Path, color: bool) -> Picture:
    import cv2

    picture = cv2.imread(str(path), cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise UndecodableError(f"{path} does not decode")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if color else picture, dtype=np.uint8)


def _stored_rgb(path: Path, wanted: tuple[int, int], settings: Settings) -> bytes:
    picture = _read(path, color=True)
    if picture.shape[:2] == wanted:
        return path.read_bytes()
    return encode_jpeg(resize(picture, *wanted), settings.jpeg_quality)


def _stored_flow(path: Path, axis: int, wanted: tuple[int, int], settings: Settings) -> bytes:
    """Another size means other pixels: the displacement grows with the picture."""
    import cv2

    picture = _read(path, color=False)
    if picture.shape == wanted and _is_gray(path):
        return path.read_bytes()
    factor = wanted[1 - axis] / picture.shape[1 - axis]
    pixels = cv2.resize(decode_flow(picture), (wanted[1], wanted[0]), interpolation=cv2.INTER_LINEAR) * factor
    return encode_jpeg(encode_flow(np.asarray(pixels, np.float32)), settings.jpeg_quality)


def _is_gray(path: Path) -> bool:
    """Whether a JPEG has one component; some tools write flow as three alike."""
    import cv2

    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return picture is not None and picture.ndim == 2
