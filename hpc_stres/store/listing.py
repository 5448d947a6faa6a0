"""A config's listing against the listing of its store: what was added, removed, relabelled,
moved or replaced."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.schema import Config, DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import sources, splits
from hpc_stres.listings.splits import Listing
from hpc_stres.store.fingerprint import UNKNOWN, QuickLook, read_seen
from hpc_stres.store.format import PREPARE, Source
from hpc_stres.store.location import data_of, home_of, relative_to, store_folder
from hpc_stres.store.writer import Catalogue

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

SHOWN = 3
# Of UCF101 and HMDB51, and of the demonstration, which is not made yet when it is submitted first.
OFFICIAL_SPLITS = (1, 2, 3)
# Videos of a split whose ids and contents are in memory at once.
DIGEST_ROWS = 16_384


def catalogue(data: DataConfig, listing: Listing, contents: Mapping[str, Source]) -> Catalogue:
    """The listing as a store keeps it."""
    home = home_of(data)
    return Catalogue(
        kind=data.kind,
        classes=list(listing.classes),
        labels={name: video.label for name, video in listing.videos.items()},
        paths={name: relative_to(video.path, home) for name, video in listing.videos.items()},
        sources={name: contents.get(name, UNKNOWN) for name in listing.videos},
        train=dict(listing.train),
        test=dict(listing.test),
        label_sets=listing.label_sets,
    )


def catalogue_of(store: "Store") -> Catalogue:
    """The listing of a store."""
    ids, paths, contents = store.read_listing()
    read = {
        kind: {
            int(split): [ids[row] for row in store.split_rows[a : a + n]]
            for split, (a, n) in spans.items()
        }
        for kind, spans in (("train", store.manifest["train"]), ("test", store.manifest["test"]))
    }
    return Catalogue(
        kind=store.manifest["kind"],
        classes=store.classes,
        labels=dict(zip(ids, store.labels.tolist(), strict=True)),
        paths=dict(zip(ids, paths, strict=True)),
        sources=dict(zip(ids, contents, strict=True)),
        train=read["train"],
        test=read["test"],
        label_sets=store.label_sets,
    )


def facts_of(store: "Store", split: int) -> dict[str, Any]:
    """What weights depend on: classes, how many videos train, and a digest of their ids,
    labels and contents.

    Test videos may change: they are tested as they are, and none of them has trained.
    """
    train = store.listed_in(split, "train")
    return {
        "split": split,
        "classes": store.classes,
        "train": len(train),
        "digest": _digest_of(store, train),
    }


def _digest_of(store: "Store", listed: NDArray[np.int32]) -> str:
    """`checksum` of the list of [id, label, content, whether it is prepared], a few thousand
    of them in memory."""
    digest = hashlib.sha256(b"[")
    for first in range(0, len(listed), DIGEST_ROWS):
        rows = listed[first : first + DIGEST_ROWS]
        facts = [
            [
                name,
                _label_of(store, int(store.labels[row])),
                source.sha256,
                bool(store.row_of_listed[row] >= 0),
            ]
            for row, (name, source) in zip(rows.tolist(), store.ids_and_sources(rows), strict=True)
        ]
        text = json.dumps(facts, ensure_ascii=False)[1:-1]
        digest.update(((", " if first else "") + text).encode())
    digest.update(b"]")
    return digest.hexdigest()


def _label_of(store: "Store", label: int) -> Any:
    """A class, or where videos have several the classes of one."""
    return label if store.label_sets is None else store.label_sets[label]


@dataclass
class Changes:
    """Ids by what happened to them, and lines on classes and splits."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def lines(self) -> list[str]:
        """One line for each kind of change, with the first ids."""
        words = {
            "added": "added",
            "removed": "removed",
            "relabelled": "relabelled",
            "moved": "moved between splits",
            "replaced": "whose video is another than before",
        }
        ids = {text: getattr(self, key) for key, text in words.items()}
        return [
            f"{len(ids[text])} {text}: {first_of(ids[text])}" for text in ids if ids[text]
        ] + self.other


def first_of(ids: Iterable[str]) -> str:
    """The first names of many."""
    names = list(ids)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def difference(old: Catalogue, new: Catalogue) -> Changes:
    """What a new listing changes in an old one; contents are compared elsewhere."""
    shared = old.labels.keys() & new.labels.keys()
    before, after = _memberships(old), _memberships(new)
    changes = Changes(
        added=sorted(new.labels.keys() - shared),
        removed=sorted(old.labels.keys() - shared),
        relabelled=sorted(n for n in shared if old.names_of(n) != new.names_of(n)),
        moved=sorted(n for n in shared if before.get(n) != after.get(n)),
    )
    if (old.label_sets is None) != (new.label_sets is None):
        changes.other.append("data.labels is another")
    if old.classes != new.classes:
        gained = [name for name in new.classes if name not in old.classes]
        lost = [name for name in old.classes if name not in new.classes]
        parts = [f"{len(x)} {w}: {first_of(x)}" for w, x in (("new", gained), ("gone", lost)) if x]
        changes.other.append("classes: " + (", ".join(parts) or "in another order"))
    in_order = (old.train, old.test) == (new.train, new.test)
    if not in_order and not (changes.added or changes.removed or changes.moved):
        changes.other.append("the lists are in another order")
    return changes


def _memberships(listing: Catalogue) -> dict[str, list[tuple[str, int]]]:
    memberships: dict[str, list[tuple[str, int]]] = {}
    for kind, lists in (("train", listing.train), ("test", listing.test)):
        for split in sorted(lists):
            for name in lists[split]:
                memberships.setdefault(name, []).append((kind, split))
    return memberships


def find_difference(store: "Store", config: Config) -> Changes | None:
    """What has changed since the store was prepared, without reading videos; None where the
    originals are gone."""
    data = data_of(config)
    if not originals_are_there(data):
        return None
    listing = sources.read_listing(data)
    old, new = catalogue_of(store), catalogue(data, listing, {})
    changes = difference(old, new)
    look = QuickLook(data, read_seen(store.paths))
    changes.replaced = sorted(
        name
        for name, video in listing.videos.items()
        if name in old.sources and look.has_changed(video, old.sources[name])
    )
    return changes


def originals_are_there(data: DataConfig) -> bool:
    """Whether the listing can be read: the lists, or where there are none the folders of
    videos, are there."""
    if data.kind == "folder":
        home = Path(data.frames) if data.frames is not None else splits.video_folder(data)
        return home.is_dir() and any(entry.is_dir() for entry in os.scandir(home))
    if data.frames is not None and not Path(data.frames).is_dir():
        return False
    lists = splits.list_folder(data)
    return lists.is_file() if data.kind == "csv" else lists.is_dir() and any(lists.iterdir())


def splits_of(config: Config) -> list[int]:
    """Numbers of the splits of a config's data set: as its lists say, else its store, else
    the official three."""
    from hpc_stres.store.reader import Store

    data = data_of(config)
    if originals_are_there(data):
        return sorted(sources.read_listing(data).train)
    try:
        return sorted(map(int, Store(store_folder(config)).manifest["train"]))
    except UserError:
        return list(OFFICIAL_SPLITS)


def missing_originals(data: DataConfig) -> list[str]:
    """What preparing this data set's store would fail for, a sentence each: lists, videos, a split
    that is not here."""
    if sources.is_made_here(data):
        return []
    if not originals_are_there(data):
        lists = "" if data.kind == "folder" else f" and its lists at {splits.list_folder(data)}"
        return [
            f"data: the videos are expected in {data.frames or splits.video_folder(data)}{lists}: not here"
        ]
    listing = sources.read_listing(data)
    problems = []
    if data.split not in listing.train:
        problems.append(
            f"data.split: {data.split}: the data set has split {', '.join(map(str, listing.train))}"
        )
    gone = [video for video in listing.videos.values() if not sources.exists(video)]
    if gone:
        problems.append(
            f"{len(gone)} of {len(listing.videos)} videos are not here, the first: {gone[0].path}: "
            "bring them, or take them out of the lists"
        )
    faults = [line for line in splits.problems(listing) if not line.startswith("missing: ")]
    return problems + [f"{line}: correct the lists or the folders" for line in faults]


def check_matches(store: "Store", config: Config) -> None:
    """Refuse to train on a store that is not the data set of its config, and say the difference."""
    changes = find_difference(store, config)
    if changes is None:
        print(
            f"note: {store.place}: the lists and videos that it was prepared from are not here to compare with",
            file=sys.stderr,
        )
    elif changes:
        lines = changes.lines()
        more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
        raise UserError(
            f"{store.place}: the data set has changed since it was prepared: {'; '.join(lines[:3])}{more}\n{PREPARE}"
        )
