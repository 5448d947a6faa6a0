"""Training videos that are not trained on: `evaluation.validation_share` of each class's recordings. Pure.

Which they are depends on nothing but names: recordings are ranked by a hash, and the first share of each class is held
out, at least one and never all. So every phase, every world size and every later evaluation holds out the same videos.
"""

import hashlib
import re
import unicodedata
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.schema import Config
from hpc_stres.errors import ConfigError
from hpc_stres.listings.listing import recording_of

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

WORDS = ("auto", "names", "none")


def held_out(store: "Store", config: Config) -> list[int]:
    """Row numbers of the held-out videos of the configured split, in the order of its training list."""
    share = config.evaluation.validation_share
    if not share:
        return []
    wanted = config.evaluation.groups
    if wanted == "column":
        raise ConfigError(
            "evaluation.validation_share: held-out recordings are known by names or a pattern, not by a column\n"
            "Set evaluation.groups to a pattern over ids, or to none."
        )
    rows = store.present(config.data.split, "train")
    by_class: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        video = store.rows[row]
        label = store.classes[video.label] if store.label_sets is None else ""
        by_class.setdefault(label, {}).setdefault(_recording(video.id, label, wanted), []).append(
            row
        )
    chosen: set[int] = set()
    for recordings in by_class.values():
        ranked = sorted(recordings, key=lambda name: (_hash(name), name))
        # Halves are rounded up, as fractions: the product of two floats would depend on their rounding.
        count = int(Fraction(str(share)) * len(ranked) + Fraction(1, 2))
        for name in ranked[: max(1, min(count, len(ranked) - 1))] if len(ranked) > 1 else []:
            chosen.update(recordings[name])
    return [row for row in rows if row in chosen]


def trained_on(store: "Store", config: Config) -> NDArray[np.int32]:
    """Row numbers of the training videos that are trained on, as an array: there may be millions."""
    rows = store.present_rows(config.data.split, "train")
    left_out = held_out(store, config)
    return rows[~np.isin(rows, left_out)] if left_out else rows


def _recording(video_id: str, label: str, wanted: str) -> str:
    """A name of the recording; a video that is known to share none is its own."""
    own = f"\0{video_id}"
    if wanted == "none":
        return own
    if wanted in WORDS:
        return (
            recording_of(video_id, label) or recording_of(video_id.rpartition("/")[2], label) or own
        )
    match = re.search(wanted, video_id)
    return "\0".join(part or "" for part in match.groups()) if match else own


def _hash(name: str) -> bytes:
    return hashlib.sha256(b"validation" + unicodedata.normalize("NFC", name).encode()).digest()
