"""What a data set is made of: classes, videos, and each split's training and test ids. Pure."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.listings import official

# The one list of video suffixes; a file of another suffix in a folder data set is counted, not
# read.
VIDEO_SUFFIXES = frozenset(
    (
        *(
            ".3g2",
            ".3gp",
            ".asf",
            ".avi",
            ".dv",
            ".f4v",
            ".flv",
            ".gif",
            ".m2ts",
            ".m2v",
            ".m4v",
            ".mj2",
            ".mkv",
        ),
        *(
            ".mov",
            ".mp4",
            ".mpeg",
            ".mpg",
            ".mts",
            ".mxf",
            ".ogm",
            ".ogv",
            ".qt",
            ".rm",
            ".rmvb",
            ".ts",
            ".vob",
        ),
        *(".webm", ".wmv", ".y4m"),
    )
)
# UCF101's names of clips that were cut from one recording: v_Archery_g07_c03.
UCF_CLIP = re.compile(r"(.+_g\d+)_c\d+$", re.DOTALL)
# HMDB51's: ORIGIN_CLASS_f_nm_np1_fr_goo_37. The five codes are its own, so that no other name looks
# like one by chance.
HMDB_CLIP = re.compile(
    r"(.+)_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+$", re.DOTALL
)


@dataclass(frozen=True)
class Video:
    """One video of a data set, its label the number of a class (or of a set of them); `group` names
    the recording that it was cut from, where that is known.
    """

    id: str
    path: Path
    label: int
    group: str | None = None


@dataclass
class Listing:
    """A data set's classes and videos, and each split's training and test ids, as the lists give
    them.
    """

    classes: list[str]
    videos: dict[str, Video] = field(default_factory=dict)
    train: dict[int, list[str]] = field(default_factory=dict)
    test: dict[int, list[str]] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    """Files of a folder data set that are not read: how many of each suffix."""
    notes: list[str] = field(default_factory=list)
    """What was understood and should be said, a line each."""
    label_sets: list[list[int]] | None = None
    """Where videos may have several classes: a label's classes, by numbers; none: a
    label is a class."""

    def classes_of(self, label: int) -> list[int]:
        """The classes of a label."""
        return [label] if self.label_sets is None else self.label_sets[label]

    def add(self, video: Video) -> None:
        """Enter a video; the same id must mean the same file."""
        known = self.videos.setdefault(video.id, video)
        if known != video:
            raise UserError(
                f"two videos have the id {printable(video.id)}: {printable(known.path)} and {printable(video.path)}\n"
                "Rename one of them."
            )

    @property
    def is_official(self) -> str | None:
        """`ucf101` or `hmdb51` where every split of this listing is that data
        set's official one."""
        labels = {name: video.label for name, video in self.videos.items()}
        names = {
            official.official_name(self.classes, self.train[split], self.test[split], split, labels)
            for split in self.train
        }
        return names.pop() if len(names) == 1 else None


def printable(name: object) -> str:
    """A file name as it can be printed anywhere: bytes that are not UTF-8 and control characters
    escaped.
    """
    text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def require_utf8(name: object) -> None:
    """Refuse a file name that is not UTF-8: it could be written into no list and no store."""
    try:
        str(name).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{printable(name)}: this file name is not UTF-8\nRename the file."
        ) from None


def sorted_classes(names: set[str]) -> list[str]:
    """Class names in their order: by value where all are whole numbers (1, 2, 10), else by name."""
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def recording_of(name: str, label: str) -> str | None:
    """The recording that a clip was cut from, as UCF101's and HMDB51's names tell it; none: they do
    not.
    """
    match = UCF_CLIP.match(name)
    if match:
        return match.group(1)
    match = HMDB_CLIP.match(name)
    return match.group(1) if match and match.group(1).endswith(f"_{label}") else None


def recording_by_pattern(name: str, pattern: str) -> str | None:
    """What the parts in parentheses of a regular expression hold in a name; none where it does not
    fit, or they are empty."""
    match = re.search(pattern, name)
    parts = match.groups() if match else ()
    return "\0".join(part or "" for part in parts) if any(parts) else None


def split_by_hash(listing: Listing, ids: list[str], test_fraction: float) -> None:
    """Give the videos of one class to split 1's train and test, whole recordings at a time.

    Recordings are ranked by a hash of their name and the first round(test_fraction * n) of n test:
    at least one, and never all. So the split depends on no order of files and not on other classes,
    and a recording that is added moves at most one other.
    """
    recordings: dict[str, list[str]] = {}
    for name in ids:
        recordings.setdefault(listing.videos[name].group or name, []).append(name)
    ranked = sorted(recordings, key=lambda name: (_hash(name), name))
    # Halves are rounded up; a fraction, because 0.15 * 10 as floats would depend on their rounding.
    wanted = int(Fraction(str(test_fraction)) * len(ranked) + Fraction(1, 2))
    tests = set(ranked[: max(1, min(wanted, len(ranked) - 1))])
    for recording, names in sorted(recordings.items()):
        (listing.test if recording in tests else listing.train)[1].extend(sorted(names))


def split_in_folds(listing: Listing, ids: list[str], folds: int) -> None:
    """Give the videos of one class to as many splits: each recording tests in one of them and
    trains in the others.

    Recordings are ranked by a hash of their name and dealt out in turn.
    """
    recordings: dict[str, list[str]] = {}
    for name in ids:
        recordings.setdefault(listing.videos[name].group or name, []).append(name)
    ranked = sorted(recordings, key=lambda name: (_hash(name), name))
    for place, recording in enumerate(ranked):
        for split in range(1, folds + 1):
            tests = place % folds == split - 1
            (listing.test if tests else listing.train)[split].extend(sorted(recordings[recording]))
    for split in range(1, folds + 1):
        listing.train[split].sort()
        listing.test[split].sort()


def _hash(name: str) -> bytes:
    # The same name in both of Unicode's spellings: some file systems change one into the other.
    return hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()


def refuse_empty_classes(listing: Listing, place: object, remedy: Mapping[str, str]) -> None:
    """Refuse classes without a training or without a test video, by name; `remedy` by what is
    missing.
    """
    for kind, ids in (("training", listing.train), ("test", listing.test)):
        for split, names in ids.items():
            have = {
                label for name in names for label in listing.classes_of(listing.videos[name].label)
            }
            empty = [name for label, name in enumerate(listing.classes) if label not in have]
            if empty:
                shown = ", ".join(map(printable, empty[:5])) + (
                    f" and {len(empty) - 5} more" if len(empty) > 5 else ""
                )
                raise UserError(
                    f"{place}: no {kind} video in split {split} of: {shown}\n{remedy[kind]}"
                )
