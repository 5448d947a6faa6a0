"""The last lines of `prepare`: what the store holds, and what a person should know of it."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from hpc_stres.listings.splits import Listing
from hpc_stres.store.labels import class_counts

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

SHOWN_REMARKS = 5


def summary(store: "Store", listing: Listing) -> list[str]:
    """Videos, training and test by class, rejections with reasons, short videos, ignored files."""
    frames = sum(int(block["frames"].sum(dtype=np.int64)) for _, block in store.videos.blocks())
    lines = [f"{len(store.rows)} videos of {len(store.classes)} classes, {frames} frames"]
    for split in store.manifest["train"]:
        parts = [_by_class(store, split, kind) for kind in ("train", "test")]
        lines.append(f"split {split}: {'; '.join(parts)}")
    lines += _rejections(store)
    notes = [f"{row['id']}: {row['note']}" for row in store.remarks if "note" in row]
    lines += _some(notes, "videos with a note", store)
    lines += [f"note: {note}" for note in listing.notes]
    if listing.ignored:
        counts = ", ".join(
            f"{n} {suffix or 'without suffix'}" for suffix, n in sorted(listing.ignored.items())
        )
        lines.append(f"files ignored: {counts}")
    return lines


def _by_class(store: "Store", split: str, kind: str) -> str:
    first, count = store.manifest[kind][split]
    rows = store.split_rows[first : first + count]
    there = store.labels[rows[store.row_of_listed[rows] >= 0]]
    if not len(there):
        return f"0 {kind}"
    counts = class_counts(store, there)
    small, large = int(counts.argmin()), int(counts.argmax())
    if counts[small] == counts[large]:
        return f"{len(there)} {kind} ({counts[small]} of each class)"
    return (
        f"{len(there)} {kind} (smallest class {store.classes[small]}: {counts[small]}, "
        f"largest {store.classes[large]}: {counts[large]})"
    )


def _rejections(store: "Store") -> list[str]:
    rows = [row for row in store.remarks if "reason" in row]
    lines = _some([f"{row['path']}: {row['reason']}" for row in rows], "rejected", store)
    rejected = {row["id"] for row in rows}
    tested = Counter(
        {s: len(rejected.intersection(store.ids(int(s), "test"))) for s in store.manifest["test"]}
    )
    hit = ", ".join(f"{count} of split {split}" for split, count in tested.items() if count)
    if rejected and hit:
        lines.append(
            f"test videos among them: {hit}; evaluation will refuse unless evaluation.allow_missing is set"
        )
    return lines


def _some(texts: list[str], what: str, store: "Store") -> list[str]:
    if not texts:
        return []
    path = store.paths.index / store.manifest["index"]["remarks"]["name"]
    more = (
        [f"  and {len(texts) - SHOWN_REMARKS} more in {path}"] if len(texts) > SHOWN_REMARKS else []
    )
    return [f"{len(texts)} {what}:"] + [f"  {text}" for text in texts[:SHOWN_REMARKS]] + more
