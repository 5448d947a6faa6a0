"""Data sets that are folders: CLASS/VIDEO, or train/CLASS/VIDEO and test/CLASS/VIDEO.

Names that begin with a dot, and the folders that archivers and editors leave behind, are neither
classes nor videos.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.listings.listing import (
    VIDEO_SUFFIXES,
    Listing,
    Video,
    printable,
    recording_of,
    refuse_empty_classes,
    require_utf8,
    sorted_classes,
    split_by_hash,
    split_in_folds,
)

SYSTEM_FOLDERS = frozenset(
    {"__macosx", "__pycache__", "$recycle.bin", "system volume information", "lost+found", "@eadir"}
)
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
MORE_VIDEOS = "Put more videos into each class's folder (a class needs two recordings), or remove the class's folder."
Walk = Callable[[Path], Iterator[Path]]


def read_folder(videos: Path, test_fraction: float, folds: int = 1) -> Listing:
    """One folder a class, split by a hash of the recordings' names, once or (`folds`) so that each
    recording tests in one of so many splits; or one folder a split, then one a class.
    """
    ignored: Counter[str] = Counter()

    def files(folder: Path) -> Iterator[Path]:
        for path in _files(folder):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                yield path
            else:
                ignored[path.suffix.lower() or "(no suffix)"] += 1

    listing = _read(videos, (test_fraction, folds), files, _files)
    listing.ignored = dict(sorted(ignored.items()))
    if not listing.videos:
        there = (
            ", ".join(f"{count} x {suffix}" for suffix, count in listing.ignored.items())
            or "no files"
        )
        raise UserError(
            f"{videos}: no videos in the class folders ({printable(there)})\nSet data.videos."
        )
    loose = [
        path.name
        for path in _entries(videos)
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()
    ]
    if loose:
        listing.notes.append(
            f"{videos}: {len(loose)} videos lie in no class folder: not read: {printable(loose[0])} ..."
        )
    return listing


def videos_below(folder: Path) -> list[Path]:
    """Files with a video's name at any depth, as `read_folder` finds them."""
    return [path for path in _files(folder) if path.suffix.lower() in VIDEO_SUFFIXES]


def read_frame_folders(frames: Path, test_fraction: float, folds: int = 1) -> Listing:
    """`read_folder` for folders of frames: FRAMES/CLASS/VIDEO/*.jpg."""
    listing = _read(frames, (test_fraction, folds), _folders, _folders)
    if not listing.videos:
        raise UserError(f"{frames}: no folders of frames in the class folders\nSet data.frames.")
    return listing


def _read(root: Path, cut: tuple[float, int], walk: Walk, probe: Walk) -> Listing:
    """`cut` is the test fraction and the number of folds; `walk` gives the videos of a class's
    folder, `probe` the same without counting what it leaves out.
    """
    test_fraction, folds = cut
    folders = list(_folders(root))
    if not folders:
        raise UserError(
            f"{root}: no class folders here\nPut each class's videos into a folder of its own."
        )
    by_split = _split_folders(folders, probe)
    if by_split and folds > 1:
        names = " and ".join(sorted(path.name + "/" for path in by_split.values()))
        raise UserError(f"{root}: {names} are the one split of this data set\nSet data.folds to 1.")
    if by_split:
        return _read_splits(root, by_split, walk)
    listing = Listing([path.name for path in folders])
    listing.train = {split: [] for split in range(1, folds + 1)}
    listing.test = {split: [] for split in range(1, folds + 1)}
    # Numbers are put in order by their value.
    listing.classes = sorted_classes(set(listing.classes))
    for label, name in enumerate(listing.classes):
        ids = [_add(listing, path, root, root / name, label) for path in walk(root / name)]
        if ids and folds > 1:
            split_in_folds(listing, ids, folds)
        elif ids:
            split_by_hash(listing, ids, test_fraction)
    if listing.videos and folds > 1:
        few = f"data.folds is {folds}: each class needs as many recordings. {MORE_VIDEOS}"
        refuse_empty_classes(listing, root, {"training": few, "test": few})
    elif listing.videos:
        fraction = f"data.test_fraction is {test_fraction:g}. "
        refuse_empty_classes(
            listing, root, {"training": fraction + MORE_VIDEOS, "test": fraction + MORE_VIDEOS}
        )
    return listing


def _split_folders(folders: list[Path], probe: Walk) -> dict[str, Path]:
    """Folders by what they are for, where train and test (or val) folders of class folders are all
    that there is.
    """
    kinds = {path: SPLIT_FOLDERS.get(path.name.lower()) for path in folders}
    names = [kind for kind in kinds.values() if kind]
    if len(names) != len(folders) or len(set(names)) != len(names) or not {"train"} < set(names):
        return {}
    # Classes that are named train and test hold videos, not folders of classes.
    if any(_has_videos(path) or not any(map(_any, map(probe, _folders(path)))) for path in folders):
        return {}
    return {kind: path for path, kind in kinds.items() if kind}


def _read_splits(root: Path, by_split: dict[str, Path], walk: Walk) -> Listing:
    """train/CLASS and test/CLASS; val/CLASS tests where there is no test, and else is not read."""
    test = by_split.get("test", by_split.get("val"))
    assert test is not None
    chosen = {"train": by_split["train"], "test": test}
    classes = sorted_classes({path.name for folder in chosen.values() for path in _folders(folder)})
    listing = Listing(classes, train={1: []}, test={1: []})
    for label, name in enumerate(classes):
        for kind, folder in chosen.items():
            ids = [_add(listing, path, root, folder / name, label) for path in walk(folder / name)]
            (listing.train if kind == "train" else listing.test)[1].extend(ids)
    unused = (
        f"; {by_split['val'].name}/ is not read" if "test" in by_split and "val" in by_split else ""
    )
    listing.notes.append(
        f"{root}: {chosen['train'].name}/ trains ({len(listing.train[1])} videos), "
        f"{test.name}/ tests ({len(listing.test[1])}){unused}"
    )
    if listing.videos:
        remedy = {
            kind: f"Put its videos into {chosen[kind[:5]]}/CLASS." for kind in ("train", "test")
        }
        refuse_empty_classes(listing, root, {"training": remedy["train"], "test": remedy["test"]})
    return listing


def _add(listing: Listing, path: Path, root: Path, home: Path, label: int) -> str:
    """Enter a video under its path without the suffix; its recording has the same name under train
    and test.
    """
    require_utf8(path)
    bare = path if path.is_dir() else path.with_suffix("")
    identity = bare.relative_to(root).as_posix()
    group = recording_of(bare.relative_to(home.parent).as_posix(), home.name)
    listing.add(Video(identity, path, label, group))
    return identity


def _any(paths: Iterator[Path]) -> bool:
    return next(paths, None) is not None


def _folders(folder: Path) -> Iterator[Path]:
    return (path for path in _entries(folder) if path.is_dir())


def _has_videos(folder: Path) -> bool:
    return any(
        path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir() for path in _entries(folder)
    )


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name; hidden and system names left out."""
    if not folder.is_dir():
        return []
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{printable(folder)}: cannot read this folder: {error.strerror}") from None
    return [
        folder / name
        for name in names
        if not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS
    ]


def _files(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Files below a folder at any depth; links to folders are followed, but not in a circle."""
    entries = _entries(folder)
    if not entries:
        return
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for path in entries:
        if path.is_dir():
            yield from _files(path, (*above, here))
        else:
            yield path
