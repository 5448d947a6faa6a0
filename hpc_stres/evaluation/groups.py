"""Which recording a test video was cut from: by official names, by the CSV's column,
or by a pattern."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import sources
from hpc_stres.listings.listing import printable, recording_by_pattern, recording_of
from hpc_stres.store.listing import originals_are_there

NAMES, COLUMN, PATTERN, NONE = "names", "column", "pattern", "none"
WORDS = {
    NAMES: "from the names of clips",
    COLUMN: "from the list's column",
    PATTERN: "by evaluation.groups",
    NONE: "",
}


@dataclass(frozen=True)
class Groups:
    """The recording of each video, empty where a video is one of its own, and how that is known."""

    names: list[str]
    source: str

    @property
    def count(self) -> int:
        """How many recordings there are."""
        named = [name for name in self.names if name]
        return len(set(named)) + len(self.names) - len(named)

    @property
    def words(self) -> str:
        """`707 recordings (from the names of clips)`."""
        if self.count == len(self.names):
            return "each clip a recording of its own"
        return f"{self.count} recordings ({WORDS[self.source]})"


def by_names(ids: Sequence[str], labels: Sequence[str]) -> Groups:
    """UCF101's and HMDB51's names of clips; a video with any other name is a
    recording of its own."""
    recordings = [recording_of(name, label) or recording_of(PurePosixPath(name).name, label) or ""
             for name, label in zip(ids, labels, strict=True)]  # fmt: skip
    return Groups(recordings, NAMES if any(recordings) else NONE)


def by_pattern(ids: Sequence[str], pattern: str) -> Groups:
    """What a regular expression's parts in parentheses hold; refuses one that fits
    no video at all."""
    recordings = [recording_by_pattern(name, pattern) or "" for name in ids]
    if not any(recordings):
        raise UserError(
            f"evaluation.groups: {pattern!r} fits none of {len(ids)} videos: {', '.join(map(printable, ids[:3]))}\n"
            "Give a pattern whose part in parentheses is the recording's name, as (.*)_clip[0-9]+."
        )
    return Groups(recordings, PATTERN)


def by_column(ids: Sequence[str], column: Mapping[str, str | None]) -> Groups:
    """A list's own column; a video without an entry is a recording of its own."""
    return Groups([column.get(name) or "" for name in ids], COLUMN)


def groups_of(
    wanted: str,
    data: DataConfig,
    ids: Sequence[str],
    labels: Sequence[str],
    kept: Groups | None = None,
) -> Groups:
    """Recordings of a data set's videos, as `evaluation.groups` asks for them; `labels`
    are class names.

    `kept`: what a score file says, which holds where a CSV that had a column is here no more.
    """
    if wanted == NONE:
        return Groups([""] * len(ids), NONE)
    if wanted == NAMES:
        return by_names(ids, labels)
    if wanted not in ("auto", COLUMN):
        return by_pattern(ids, wanted)
    column = _column(data)
    if column is not None and any(column.get(name) for name in ids):
        return by_column(ids, column)
    if column is None and kept is not None and kept.source == COLUMN:
        return kept
    if wanted == COLUMN:
        raise UserError(
            "evaluation.groups=column: the list has no column `group` with an entry for these videos, or is not here\n"
            "Set data.lists to the CSV file, or evaluation.groups to a pattern."
        )
    if column is None and data.kind == "csv":
        print(
            "note: the CSV is not here: recordings are known by the names of clips only",
            file=sys.stderr,
        )
    return by_names(ids, labels)


def _column(data: DataConfig) -> dict[str, str | None] | None:
    """The recording of each listed video; none where lists have no such column or are not here."""
    if data.kind != "csv" or not originals_are_there(data):
        return None
    return {name: video.group for name, video in sources.read_listing(data).videos.items()}
