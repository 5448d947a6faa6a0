"""Data sets from their official lists: which videos there are, of which class, for what."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings.folders import read_folder, read_frame_folders
from hpc_stres.listings.listing import (
    UCF_CLIP,
    VIDEO_SUFFIXES,
    Listing,
    Video,
    printable,
    refuse_empty_classes,
    require_utf8,
    sorted_classes,
)
from hpc_stres.listings.textlists import read_lines, read_table
from hpc_stres.registry import DATA_SETS

__all__ = [
    "VIDEO_SUFFIXES",
    "Listing",
    "Video",
    "problems",
    "read_folder",
    "read_frame_folders",
    "read_listing",
]

# Any data set may have several splits; the official ones have three.
MOST_SPLITS = 99
SPLITS = range(1, MOST_SPLITS + 1)
HMDB51_TRAIN, HMDB51_TEST = "1", "2"
CSV_COLUMNS = ("path", "label")


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
    return data_folder(data) / DATA_SETS.get(data.kind).lists


def read_listing(data: DataConfig) -> Listing:
    """The listing of the configured data set."""
    listing: Listing = DATA_SETS.get(data.kind).read(data)
    return listing


def read_ucf101(videos: Path, lists: Path) -> Listing:
    """UCF101's classInd.txt, trainlist0k.txt and testlist0k.txt; the class is the folder part of a
    name.
    """
    numbers = _ucf101_classes(lists / "classInd.txt")
    listing = Listing(list(numbers))
    homes = {name: Video("", videos, label) for label, name in enumerate(numbers)}
    for split in SPLITS:
        if split > 1 and not (lists / f"trainlist{split:02d}.txt").is_file():
            continue
        for kind, target in (("train", listing.train), ("test", listing.test)):
            path = lists / f"{kind}list{split:02d}.txt"
            lines = read_lines(path)
            target[split] = [
                _ucf101_video(line, f"{path}:{n}", homes, numbers, listing) for n, line in lines
            ]
    return listing


def _ucf101_classes(path: Path) -> dict[str, int]:
    """Each class's number in the file; labels count classes in the order of lines."""
    numbers: dict[str, int] = {}
    for line_number, line in read_lines(path):
        match = re.fullmatch(r"([0-9]{1,9})\s+(\S.*)", line)
        if not match:
            raise UserError(
                f"{path}:{line_number}: {printable(line)!r}: expected a number and a class name"
            )
        number, name = int(match.group(1)), match.group(2)
        if name in numbers or number in numbers.values():
            raise UserError(
                f"{path}:{line_number}: {printable(line)!r}: this number or class is listed twice"
            )
        numbers[name] = number
    if not numbers:
        raise UserError(f"{path}: no classes\nSet data.lists to the folder of lists.")
    return numbers


def _ucf101_video(
    line: str, place: str, homes: dict[str, Video], numbers: dict[str, int], listing: Listing
) -> str:
    # Training lists end in a label; a file name may hold spaces of its own.
    match = re.fullmatch(r"(.*\S)\s+([0-9]{1,9})", line)
    name = match.group(1) if match else line
    folder, _, file = name.rpartition("/")
    if folder not in numbers:
        raise UserError(
            f"{place}: {printable(line)!r}: no class {printable(folder)!r} in classInd.txt"
        )
    if match and int(match.group(2)) != numbers[folder]:
        raise UserError(
            f"{place}: {printable(line)!r}: label {match.group(2)}, but {printable(folder)} is number "
            f"{numbers[folder]} in classInd.txt\nOne of the two lists is wrong."
        )
    stem = _stem(file, place)
    home = homes[folder]
    listing.add(Video(stem, home.path / name, home.label))
    return stem


def _stem(file: str, place: str) -> str:
    """A file name without its suffix."""
    stem = PurePosixPath(file).stem
    if not stem or stem == "..":
        raise UserError(f"{place}: {printable(file)!r} is not the name of a file")
    return stem


def read_hmdb51(videos: Path, lists: Path) -> Listing:
    """HMDB51's `<class>_test_split<k>.txt`: 1 trains, 2 tests, 0 is unused."""
    files = sorted(
        path for path in lists.glob("*_test_split1.txt") if not path.name.startswith(".")
    )
    if not files:
        raise UserError(
            f"{lists}: no *_test_split1.txt here\nSet data.lists to the folder of HMDB51's lists."
        )
    listing = Listing([path.name.removesuffix("_test_split1.txt") for path in files])
    for split in SPLITS:
        if split > 1 and not any(lists.glob(f"*_test_split{split}.txt")):
            continue
        listing.train[split], listing.test[split] = [], []
        for label, name in enumerate(listing.classes):
            require_utf8(name)
            path = lists / f"{name}_test_split{split}.txt"
            for number, line in read_lines(path):
                _hmdb51_line(
                    line, f"{path}:{number}", split, Video("", videos / name, label), listing
                )
    return listing


def _hmdb51_line(line: str, place: str, split: int, home: Video, listing: Listing) -> None:
    name, _, code = line.rpartition(" ")
    if code not in ("0", HMDB51_TRAIN, HMDB51_TEST):
        raise UserError(f"{place}: {printable(line)!r}: expected a file name and 0, 1 or 2")
    stem = _stem(name.strip(), place)
    listing.add(Video(stem, home.path / name.strip(), home.label))
    if code == HMDB51_TRAIN:
        listing.train[split].append(stem)
    elif code == HMDB51_TEST:
        listing.test[split].append(stem)


def read_csv(videos: Path, table: Path, several: bool = False) -> Listing:
    """A table with the columns path, label and split (train or test), and group where recordings
    are known.

    Columns split1, split2 and so on in place of split give several splits; an empty cell leaves a
    video out. With `several`, a cell of labels holds one class or more: `run|wave`.
    """
    rows = read_table(table, CSV_COLUMNS)
    if not rows:
        raise UserError(
            f"{table}: no rows under the header\nWrite one for each video: its path, label and split."
        )
    columns = _split_columns(table, set(rows[0][1]))
    for number, row in rows:
        for name in CSV_COLUMNS:
            if not row[name]:
                raise UserError(f"{table}:{number}: the {name} is empty")
    sets = {
        row["label"]: _classes_in(row["label"], several, f"{table}:{number}")
        for number, row in rows
    }
    listing = Listing(sorted_classes({name for names in sets.values() for name in names}))
    listing.train, listing.test = {split: [] for split in columns}, {split: [] for split in columns}
    numbers = {name: number for number, name in enumerate(listing.classes)}
    if several:
        members = {cell: sorted(numbers[name] for name in names) for cell, names in sets.items()}
        listing.label_sets = sorted({tuple(one): one for one in members.values()}.values())
        labels = {cell: listing.label_sets.index(one) for cell, one in members.items()}
    else:
        labels = numbers
    for number, row in rows:
        video = _csv_video(row, f"{table}:{number}", videos, labels)
        listing.add(video)
        for split, column in columns.items():
            kind = row[column].lower()
            if kind not in ("train", "test") and (kind or column == "split"):
                raise UserError(
                    f"{table}:{number}: {column} is {printable(row[column])!r}; expected train or test"
                )
            if kind:
                (listing.train if kind == "train" else listing.test)[split].append(video.id)
    remedy = f"Edit column {' or '.join(columns.values())}, or remove the rows of these classes."
    refuse_empty_classes(listing, table, {"training": remedy, "test": remedy})
    return listing


def _classes_in(cell: str, several: bool, place: str) -> list[str]:
    """Class names of a cell; each must stand there once."""
    if not several:
        return [cell]
    names = [name.strip() for name in cell.split("|")]
    if not all(names) or len(set(names)) != len(names):
        raise UserError(
            f"{place}: label is {printable(cell)!r}; expected names with | between, each once"
        )
    return names


def _split_columns(table: Path, names: set[str]) -> dict[int, str]:
    numbered = {split: f"split{split}" for split in SPLITS if f"split{split}" in names}
    if ("split" in names) == bool(numbered):
        raise UserError(
            f"{table}:1: expected a column split, or columns split1, split2 and so on in its place"
        )
    return numbered or {1: "split"}


def _csv_video(row: dict[str, str], place: str, videos: Path, labels: dict[str, int]) -> Video:
    # Two spellings of one path are one video: ./a.mp4 is a.mp4.
    path = PurePosixPath(posixpath.normpath(row["path"]))
    _stem(path.name, place)
    identity = path.with_suffix("").as_posix().lstrip("/")
    group = row.get("group") or None
    # The file is opened under the path as it is written: a link may lead elsewhere than `..`
    # suggests.
    return Video(identity, videos / row["path"], labels[row["label"]], group)


def problems(listing: Listing) -> list[str]:
    """What is wrong with a listing, a line each: missing files, doubles, recordings and files that
    train and test.
    """
    faults: list[str] = []
    files: dict[tuple[int, int], list[str]] = {}
    for video in listing.videos.values():
        identity = _file_identity(video.path)
        if identity is None:
            faults.append(f"missing: {printable(video.path)}")
        elif identity[1]:
            files.setdefault(identity, []).append(video.id)
    for split in listing.train:
        train, test = listing.train[split], listing.test[split]
        for kind, ids in (("train", train), ("test", test)):
            faults += [
                f"split {split}: {name} is {n} times in {kind}"
                for name, n in Counter(ids).items()
                if n > 1
            ]
        faults += [
            f"split {split}: {name} is in train and test" for name in sorted(set(train) & set(test))
        ]
        shared = _groups(listing, train) & _groups(listing, test)
        faults += [f"split {split}: group {name} is in train and test" for name in sorted(shared)]
        faults += _same_files(listing, split, [names for names in files.values() if len(names) > 1])
    return faults


def _file_identity(path: Path) -> tuple[int, int] | None:
    """What is the same for every name of one file; None where there is none that
    can be read about."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _same_files(listing: Listing, split: int, doubles: list[list[str]]) -> list[str]:
    """Files that a split has under two ids: by links, or by letters that the file system does not
    tell apart.
    """
    used = {*listing.train[split], *listing.test[split]}
    faults = []
    for names in doubles:
        here = [str(listing.videos[name].path) for name in names if name in used]
        if len(here) > 1:
            faults.append(
                f"split {split}: one file under two names: {printable(here[0])} and {printable(here[1])}"
            )
    return faults


def _groups(listing: Listing, ids: list[str]) -> set[str]:
    """The recordings of videos, as a column or the folder's names give them, else by UCF101's names
    of clips.
    """
    return set(_known_groups(listing, ids))


def _known_groups(listing: Listing, ids: list[str]) -> Iterator[str]:
    for name in ids:
        group = listing.videos[name].group
        match = None if group else UCF_CLIP.match(name)
        if group or match:
            yield group or match.group(1)  # type: ignore[union-attr]
