"""Training videos that are not trained on: a share of each class's recordings, or those that a
CSV's column names.

A share depends on nothing but names: recordings are ranked by a hash, and the first share of each
class is held out, whole, at least one and never all. So every phase, every world size and every later
evaluation holds out the same videos. Where recordings or the videos themselves are known by a
column of the CSV, which the store does not keep, their digest goes into what a run remembers of its
data set: another list is refused.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.schema import Config, DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import columns, sources
from hpc_stres.listings.listing import recording_by_pattern, recording_of
from hpc_stres.run.paths import checksum
from hpc_stres.store.listing import facts_of, originals_are_there

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

COLUMN, NONE = "column", "none"
WORDS = ("auto", COLUMN, "names", NONE)
Column = Mapping[str, str | None]


def held_out(store: "Store", config: Config) -> list[int]:
    """Row numbers of the held-out videos of the configured split, in the order of
    its training list."""
    if not config.evaluation.holds_out:
        return []
    rows = store.present(config.data.split, "train")
    if config.evaluation.validation_column is not None:
        chosen = _named_by_column(store, config, rows)
    else:
        chosen = _share(store, config, rows)
    return [row for row in rows if row in chosen]


def trained_on(store: "Store", config: Config) -> NDArray[np.int32]:
    """Row numbers of the training videos that are trained on, as an array: there
    may be millions."""
    rows = store.present_rows(config.data.split, "train")
    left_out = held_out(store, config)
    return rows[~np.isin(rows, left_out)] if left_out else rows


def trained_facts(store: "Store", config: Config) -> dict[str, Any]:
    """What weights depend on of a data set; with a digest of what is held out where a
    column decides it."""
    facts = facts_of(store, config.data.split)
    if config.evaluation.holds_out and _is_by_column(config):
        facts["held_out"] = checksum([store.rows[row].id for row in held_out(store, config)])
    return facts


def _is_by_column(config: Config) -> bool:
    if config.evaluation.validation_column is not None:
        return True
    return recordings_column(config.data, config.evaluation.groups) is not None


def recordings_column(data: DataConfig, wanted: str) -> Column | None:
    """The recording of each listed video by the CSV's column `group`, where
    `evaluation.groups` asks for it.

    None where it asks for something else, or asks for nothing (auto) and the list has no such
    column or is not here.
    """
    if wanted not in ("auto", COLUMN):
        return None
    if data.kind == "csv" and originals_are_there(data):
        column = {name: video.group for name, video in sources.read_listing(data).videos.items()}
        if any(column.values()):
            return column
    if wanted == COLUMN:
        raise UserError(
            "evaluation.groups=column: the list has no column `group` with an entry, or is not here\n"
            "Set data.lists to the CSV file, or evaluation.groups to a pattern."
        )
    return None


def _named_by_column(store: "Store", config: Config, rows: list[int]) -> set[int]:
    """Training videos that are marked; refuses a class that would be left with none to train on."""
    name = str(config.evaluation.validation_column)
    marked = columns.marked(config.data, name)
    chosen = {row for row in rows if store.rows[row].id in marked}
    if not chosen:
        raise UserError(
            f"evaluation.validation_column={name}: it marks no training video of split {config.data.split}\n"
            "Write val into the cells of the videos to hold out, or leave the option out."
        )
    left = {label for row in rows if row not in chosen for label in _classes_of(store, row)}
    bare = [n for n in range(len(store.classes)) if n not in left]
    if bare:
        raise UserError(
            f"evaluation.validation_column={name}: it holds out every training video of "
            f"{store.classes[bare[0]]}\nLeave some of each class to train on."
        )
    return chosen


def _classes_of(store: "Store", row: int) -> list[int]:
    label = store.rows[row].label
    return [label] if store.label_sets is None else store.label_sets[label]


def _share(store: "Store", config: Config, rows: list[int]) -> set[int]:
    """The first share of each class's recordings in the order of their hashes.

    A recording of several classes is held out of all of them or of none: with half of it trained
    on, the other half would be no test. The last recording of a class is never held out.
    """
    recordings = _recordings(store, config, rows)
    classes = {
        name: {label for row in own for label in _classes_of(store, row)}
        for name, own in recordings.items()
    }
    # Of videos that have several classes the share is one of all, not one of each class.
    strata = classes if store.label_sets is None else {name: {0} for name in classes}
    wanted = Counter(
        {
            stratum: _share_of(config.evaluation.validation_share, total)
            for stratum, total in _count(strata).items()
        }
    )
    left = _count(classes)
    chosen: set[int] = set()
    for name in sorted(recordings, key=lambda name: (_hash(name), name)):
        is_wanted = any(wanted[stratum] > 0 for stratum in strata[name])
        if is_wanted and all(left[label] > 1 for label in classes[name]):
            chosen.update(recordings[name])
            wanted.subtract(strata[name])
            left.subtract(classes[name])
    return chosen


def _recordings(store: "Store", config: Config, rows: list[int]) -> dict[str, list[int]]:
    """The rows of each recording."""
    wanted = config.evaluation.groups
    column = recordings_column(config.data, wanted)
    recordings: dict[str, list[int]] = {}
    for row in rows:
        video = store.rows[row]
        label = store.classes[video.label] if store.label_sets is None else ""
        recordings.setdefault(_recording(video.id, label, wanted, column), []).append(row)
    return recordings


def _count(members: Mapping[str, set[int]]) -> Counter[int]:
    """How many recordings each class (or stratum) has."""
    return Counter(label for labels in members.values() for label in labels)


def _share_of(share: float, total: int) -> int:
    """So many of some recordings: at least one, and never all."""
    # Halves are rounded up, as fractions: the product of two floats would depend on their rounding.
    count = int(Fraction(str(share)) * total + Fraction(1, 2))
    return max(1, min(count, total - 1)) if total > 1 else 0


def _recording(video_id: str, label: str, wanted: str, column: Column | None) -> str:
    """A name of the recording; a video that is known to share none is its own."""
    own = f"\0{video_id}"
    if wanted == NONE:
        return own
    if column is not None:
        return column.get(video_id) or own
    if wanted in WORDS:
        return (
            recording_of(video_id, label) or recording_of(video_id.rpartition("/")[2], label) or own
        )
    return recording_by_pattern(video_id, wanted) or own


def _hash(name: str) -> bytes:
    return hashlib.sha256(b"validation" + unicodedata.normalize("NFC", name).encode()).digest()
