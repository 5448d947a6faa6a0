"""The listing of a config's data set, and the files or folders that its videos come from."""

from pathlib import Path

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import splits
from hpc_stres.listings.listing import Listing, Video
from hpc_stres.registry import DATA_SETS


def read_listing(data: DataConfig) -> Listing:
    """The listing of a data set; with `data.frames` each video's path is its folder of frames."""
    if data.frames is None:
        return splits.read_listing(data)
    root = Path(data.frames)
    if not root.is_dir():
        raise UserError(f"data.frames: {root}: no such folder")
    if DATA_SETS.get(data.kind).is_folder:
        return splits.read_frame_folders(root, data.test_fraction, data.folds)
    listing = splits.read_listing(data)
    for name, video in listing.videos.items():
        label = listing.classes[video.label] if listing.label_sets is None else ""
        folder = _folder(root, name, label)
        listing.videos[name] = Video(name, folder, video.label, video.group)
    return listing


def _folder(root: Path, name: str, label: str) -> Path:
    nested = root / label / name
    return nested if nested.is_dir() else root / name


def is_made_here(data: DataConfig) -> bool:
    """Whether this package makes the videos itself, so that none have to be there."""
    return DATA_SETS.get(data.kind).make is not None


def exists(video: Video) -> bool:
    """Whether the original is there and may be read about."""
    try:
        return video.path.exists()
    except OSError:
        return False


def size(video: Video) -> int:
    """What the time of preparing a video goes with: bytes of a file, entries of a folder; 0 where
    neither is known.
    """
    try:
        return (
            sum(1 for _ in video.path.iterdir())
            if video.path.is_dir()
            else video.path.stat().st_size
        )
    except OSError:
        return 0
