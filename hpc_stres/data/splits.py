"""Data sets from their official lists: which videos there are, of which class, for training or for testing."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hpc_stres.config import DataConfig
from hpc_stres.errors import UserError

SPLITS = (1, 2, 3)
VIDEO_SUFFIXES = {".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv"}
HMDB51_TRAIN, HMDB51_TEST = "1", "2"


@dataclass(frozen=True)
class Video:
    """One video of a data set."""

    id: str
    path: Path
    label: int


@dataclass
class Listing:
    """A data set's classes and videos, and each split's training and test ids, as the lists give them."""

    classes: list[str]
    videos: dict[str, Video] = field(default_factory=dict)
    train: dict[int, list[str]] = field(default_factory=dict)
    test: dict[int, list[str]] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def add(self, video: Video) -> None:
        """Enter a video; the same id must mean the same file."""
        known = self.videos.setdefault(video.id, video)
        if known != video:
            raise UserError(f"two videos have the id {video.id}: {known.path} and {video.path}\nRename one of them.")


def data_folder(data: DataConfig) -> Path:
    """Folder of one data set."""
    return Path(data.root) / data.kind


def video_folder(data: DataConfig) -> Path:
    """Folder of the original videos."""
    return Path(data.videos) if data.videos else data_folder(data) / "videos"


def list_folder(data: DataConfig) -> Path:
    """Folder of the official lists, or the CSV file."""
    if data.lists:
        return Path(data.lists)
    return data_folder(data) / ("videos.csv" if data.kind == "csv" else "splits")


def read_listing(data: DataConfig) -> Listing:
    """The listing of the configured data set."""
    videos, lists = video_folder(data), list_folder(data)
    if data.kind in ("binding", "ucf101"):
        return read_ucf101(videos, lists)
    if data.kind == "hmdb51":
        return read_hmdb51(videos, lists)
    if data.kind == "csv":
        return read_csv(videos, lists)
    return read_folder(videos, data.test_fraction)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the list: {error.strerror}\nSet data.lists to the folder of lists."
        ) from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_ucf101(videos: Path, lists: Path) -> Listing:
    """UCF101's classInd.txt, trainlist0k.txt and testlist0k.txt; the class is the folder part of a name."""
    classes = [line.split(maxsplit=1)[1] for line in _lines(lists / "classInd.txt")]
    numbers = {name: number for number, name in enumerate(classes)}
    listing = Listing(classes)
    for split in SPLITS:
        if split > 1 and not (lists / f"trainlist0{split}.txt").is_file():
            continue
        for kind, target in (("train", listing.train), ("test", listing.test)):
            path = lists / f"{kind}list0{split}.txt"
            target[split] = [_ucf101_video(line, path, videos, numbers, listing) for line in _lines(path)]
    return listing


def _ucf101_video(line: str, path: Path, videos: Path, numbers: dict[str, int], listing: Listing) -> str:
    # Training lists end in a label; a file name may hold spaces of its own.
    name = re.sub(r"\s+\d+$", "", line)
    folder, _, stem = name.rpartition("/")
    if folder not in numbers:
        raise UserError(f"{path}: {line!r}: no class '{folder}' in classInd.txt")
    listing.add(Video(Path(stem).stem, videos / name, numbers[folder]))
    return Path(stem).stem


def read_hmdb51(videos: Path, lists: Path) -> Listing:
    """HMDB51's `<class>_test_split<k>.txt`: 1 trains, 2 tests, 0 is unused."""
    found = sorted(lists.glob("*_test_split1.txt"))
    if not found:
        raise UserError(f"{lists}: no *_test_split1.txt here\nSet data.lists to the folder of HMDB51's lists.")
    listing = Listing([path.name.removesuffix("_test_split1.txt") for path in found])
    for split in SPLITS:
        listing.train[split], listing.test[split] = [], []
        for label, name in enumerate(listing.classes):
            path = lists / f"{name}_test_split{split}.txt"
            for line in _lines(path):
                _hmdb51_line(line, path, split, Video("", videos / name, label), listing)
    return listing


def _hmdb51_line(line: str, path: Path, split: int, home: Video, listing: Listing) -> None:
    name, _, code = line.rpartition(" ")
    if code not in ("0", HMDB51_TRAIN, HMDB51_TEST):
        raise UserError(f"{path}: {line!r}: expected a file name and 0, 1 or 2")
    stem = Path(name.strip()).stem
    listing.add(Video(stem, home.path / name.strip(), home.label))
    if code == HMDB51_TRAIN:
        listing.train[split].append(stem)
    elif code == HMDB51_TEST:
        listing.test[split].append(stem)


def read_folder(videos: Path, test_fraction: float) -> Listing:
    """One folder a class; which videos test is a hash of their names, so that it never changes as videos are added."""
    classes = sorted(path.name for path in videos.iterdir() if path.is_dir()) if videos.is_dir() else []
    if not classes:
        raise UserError(f"{videos}: no class folders here\nPut each class's videos into a folder of its own.")
    listing = Listing(classes, train={1: []}, test={1: []})
    for label, name in enumerate(classes):
        for path in sorted((videos / name).rglob("*")):
            if path.suffix.lower() not in VIDEO_SUFFIXES:
                continue
            identity = path.relative_to(videos).with_suffix("").as_posix()
            _add_by_hash(listing, Video(identity, path, label), test_fraction)
    return listing


def read_frame_folders(frames: Path, test_fraction: float) -> Listing:
    """`read_folder` for folders of frames: FRAMES/CLASS/VIDEO/*.jpg."""
    classes = sorted(path.name for path in frames.iterdir() if path.is_dir())
    listing = Listing(classes, train={1: []}, test={1: []})
    for label, name in enumerate(classes):
        for path in sorted(p for p in (frames / name).iterdir() if p.is_dir()):
            _add_by_hash(listing, Video(f"{name}/{path.name}", path, label), test_fraction)
    return listing


def _add_by_hash(listing: Listing, video: Video, test_fraction: float) -> None:
    """Which videos test is a hash of their names, so that it never changes as videos are added."""
    listing.add(video)
    share = int.from_bytes(hashlib.sha256(video.id.encode()).digest()[:4], "big") / 2**32
    (listing.test if share < test_fraction else listing.train)[1].append(video.id)


def read_csv(videos: Path, table: Path) -> Listing:
    """A table with the columns path, label and split (train or test)."""
    rows = list(csv.DictReader(_lines(table)))
    if not rows or not {"path", "label", "split"} <= set(rows[0]):
        raise UserError(f"{table}: expected a header line with path, label and split, and rows under it")
    classes = sorted({row["label"].strip() for row in rows})
    listing = Listing(classes, train={1: []}, test={1: []})
    for number, row in enumerate(rows, start=2):
        kind = row["split"].strip()
        if kind not in ("train", "test"):
            raise UserError(f"{table}:{number}: split is {kind!r}; expected train or test")
        path = Path(row["path"].strip())
        identity = path.with_suffix("").as_posix().lstrip("/")
        listing.add(Video(identity, path if path.is_absolute() else videos / path, classes.index(row["label"].strip())))
        (listing.train if kind == "train" else listing.test)[1].append(identity)
    return listing


def problems(listing: Listing) -> list[str]:
    """What is wrong with a listing, a line each: missing files, doubles, groups that train and test."""
    found = [f"missing: {video.path}" for video in listing.videos.values() if not video.path.exists()]
    for split in listing.train:
        train, test = listing.train[split], listing.test[split]
        for kind, ids in (("train", train), ("test", test)):
            found += [f"split {split}: {name} stands {n} times in {kind}" for name, n in Counter(ids).items() if n > 1]
        found += [f"split {split}: {name} stands in train and test" for name in sorted(set(train) & set(test))]
        shared = _groups(listing, train) & _groups(listing, test)
        found += [f"split {split}: group {name} stands in train and test" for name in sorted(shared)]
    return found


def _groups(listing: Listing, ids: Iterable[str]) -> set[str]:
    """UCF101's groups of clips cut from one video: v_Archery_g07_c03 belongs to v_Archery_g07."""
    matches = (re.match(r"(.+_g\d+)_c\d+$", name) for name in ids)
    return {match.group(1) for match in matches if match}
