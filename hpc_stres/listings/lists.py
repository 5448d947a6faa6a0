"""A data set given by text lists of any number of splits: train.txt and test.txt, or train1.txt,
test1.txt and so on.

A line is a path, and after a space, tab or comma the class, by name or by number. `classes.txt` (or
classInd.txt) beside the lists gives the classes in their order, a name a line, with its number
before it where that does not count from 0. A line that ends with the name of a video file has no
class of its own: the first folder of its path is the class.
"""

import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hpc_stres.errors import UserError
from hpc_stres.listings.listing import (
    VIDEO_SUFFIXES,
    Listing,
    Video,
    printable,
    refuse_empty_classes,
    require_utf8,
    sorted_classes,
)
from hpc_stres.listings.textlists import read_lines

MOST_SPLITS = 99
CLASS_FILES = ("classes.txt", "classInd.txt")
# train.txt, test_2.csv, trainlist01.txt, val-split3.txt
LIST_NAME = re.compile(
    r"(train|test|val)(?:ing|idation)?[-_ ]?(?:list|split)?[-_ ]?0*([1-9]\d?)?\.(?:txt|csv|tsv|lst)",
    re.IGNORECASE,
)
NAMES_HINT = (
    "Expected train.txt and test.txt, or train1.txt, test1.txt, train2.txt, test2.txt and so on."
)

# A path that ends as videos do, then the class, which may hold spaces.
_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES, key=len, reverse=True))
AFTER_VIDEO = re.compile(rf'(.*(?:{_SUFFIXES}))"?[\s,]+(\S.*)', re.IGNORECASE)


@dataclass
class _Reading:
    """What is known while the lists are read."""

    videos: Path
    names: dict[str, str]
    """A class by what a list may write for it: its name or its number; empty: no
    file of classes."""
    labels: dict[str, str] = field(default_factory=dict)
    """Class of each video."""
    paths: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """Where each video's class was read first."""


def read_lists(videos: Path, lists: Path) -> Listing:
    """The listing of a folder of lists; paths are below `videos` where they are not absolute."""
    files, notes = _find_lists(lists)
    ordered = _read_classes(lists)
    reading = _Reading(videos, _spellings(ordered))
    splits: dict[str, dict[int, list[str]]] = {"train": {}, "test": {}}
    for (kind, split), path in files.items():
        ids = [_read_line(reading, line, f"{path}:{number}") for number, line in read_lines(path)]
        splits["train" if kind == "train" else "test"][split] = ids
    classes = [name for _, name in ordered] or sorted_classes(set(reading.labels.values()))
    numbers = {name: label for label, name in enumerate(classes)}
    listing = Listing(classes, train=splits["train"], test=splits["test"], notes=notes)
    for name, label in reading.labels.items():
        listing.add(Video(name, videos / reading.paths[name], numbers[label]))
    remedy = f"Edit the lists in {lists}, or take these classes out of them."
    refuse_empty_classes(listing, lists, {"training": remedy, "test": remedy})
    return listing


def _find_lists(lists: Path) -> tuple[dict[tuple[str, int], Path], list[str]]:
    """The files of lists by kind and number of the split, and notes on those that are not read."""
    if not lists.is_dir():
        raise UserError(f"{lists}: no such folder of lists\nSet data.lists to it. {NAMES_HINT}")
    files: dict[tuple[str, int], Path] = {}
    for path in sorted(lists.iterdir()):
        match = LIST_NAME.fullmatch(path.name)
        if match is None or not path.is_file():
            continue
        key = (match[1].lower(), int(match[2] or 1))
        if key in files:
            raise UserError(
                f"{lists}: both {files[key].name} and {path.name} are the {key[0]} list of split {key[1]}"
            )
        files[key] = path
    notes = []
    for split in sorted({split for _, split in files}):
        if ("val", split) in files and ("test", split) in files:
            notes.append(
                f"{files.pop(('val', split))}: not read: {files['test', split].name} tests split {split}"
            )
    _refuse_half_splits(lists, files)
    return dict(sorted(files.items(), key=lambda item: (item[0][1], item[0][0] != "train"))), notes


def _refuse_half_splits(lists: Path, files: dict[tuple[str, int], Path]) -> None:
    """Every split has a list that trains and one that tests, and they are numbered from
    1 without a gap."""
    numbers = sorted({split for _, split in files})
    if not numbers:
        raise UserError(f"{lists}: no lists here\n{NAMES_HINT}")
    for split in range(1, numbers[-1] + 1):
        kinds = {kind for kind, number in files if number == split}
        missing = [
            word
            for word, own in (("train", {"train"}), ("test", {"test", "val"}))
            if not kinds & own
        ]
        if missing:
            raise UserError(
                f"{lists}: split {split} has no {' and no '.join(missing)} list\n{NAMES_HINT}"
            )


def _read_classes(lists: Path) -> list[tuple[str, str]]:
    """Number and name of each class, in the file's order; nothing where there is no
    file of classes."""
    path = next((lists / name for name in CLASS_FILES if (lists / name).is_file()), None)
    if path is None:
        return []
    lines = read_lines(path)
    numbered = [re.fullmatch(r"(\d{1,9})[\s,]+(\S.*)", line) for _, line in lines]
    # Classes may be named by numbers and more ("50 metres"): only where every line has
    # one it is a number.
    are_numbered = all(numbered) and len({int(m[1]) for m in numbered if m}) == len(lines)
    classes: list[tuple[str, str]] = []
    for count, ((number, line), match) in enumerate(zip(lines, numbered, strict=True)):
        own = (str(int(match[1])), match[2]) if are_numbered and match else (str(count), line)
        require_utf8(own[1])
        if any(own[1] == name for _, name in classes):
            raise UserError(f"{path}:{number}: the class {printable(own[1])} is listed twice")
        classes.append(own)
    if not classes:
        raise UserError(
            f"{path}: no classes\nWrite a class's name into each line, or remove the file."
        )
    return classes


def _spellings(ordered: list[tuple[str, str]]) -> dict[str, str]:
    """What a list may write for each class; a name wins over the number of another class."""
    return {number: name for number, name in ordered} | {name: name for _, name in ordered}


def _read_line(reading: _Reading, line: str, place: str) -> str:
    """Enter the video of a line; returns its id."""
    path, label = _path_and_label(line, place)
    if reading.names:
        if label not in reading.names:
            raise UserError(
                f"{place}: {printable(label)!r} is no class of the file of classes, by name or by number"
            )
        label = reading.names[label]
    require_utf8(path)
    identity = PurePosixPath(posixpath.normpath(path)).with_suffix("").as_posix().lstrip("/")
    first = reading.places.setdefault(identity, place)
    if reading.labels.setdefault(identity, label) != label:
        raise UserError(
            f"{place}: {printable(path)} is of class {printable(label)} here, of {printable(reading.labels[identity])} "
            f"in {first}\nOne of the two lines is wrong."
        )
    if reading.paths.setdefault(identity, path) != path and posixpath.normpath(
        reading.paths[identity]
    ) != posixpath.normpath(path):
        raise UserError(
            f"{place}: {printable(path)} and {printable(reading.paths[identity])} ({first}) have one name"
        )
    return identity


def _path_and_label(line: str, place: str) -> tuple[str, str]:
    """The two parts of a line; the class is the first folder where the line ends
    with a video's name."""
    whole = line.strip().strip('"')
    if PurePosixPath(whole).suffix.lower() in VIDEO_SUFFIXES:
        folder = posixpath.normpath(whole).lstrip("/").split("/")[0]
        if "/" not in posixpath.normpath(whole) or posixpath.isabs(whole):
            raise UserError(
                f"{place}: {printable(line)!r}: no class, neither after the path nor as its first folder"
            )
        return whole, folder
    match = AFTER_VIDEO.fullmatch(whole) or re.fullmatch(r"(.*\S)\s*[,\t]\s*([^,\t]+)", whole)
    match = match or re.fullmatch(r"(.*\S)\s+(\S+)", whole)
    path = match[1].strip(' "') if match else ""
    if not match or PurePosixPath(posixpath.normpath(path)).name in ("", "..", "."):
        raise UserError(f"{place}: {printable(line)!r}: expected a path and a class")
    label = match[2].strip(' "')
    return path, str(int(label)) if label.isdecimal() else label
