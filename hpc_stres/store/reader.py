"""The clip store, opened for reading: any frame of any video is one slice of one file.

What a store is made of is told in `storeformat`. Opening reads and checks the index, a few bytes a
video, and keeps of it what each lookup needs: opening a million videos takes about a second and
some ten megabytes. Rows are made when they are asked for.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.run.paths import sha256
from hpc_stres.store import checks
from hpc_stres.store.format import (
    REPAIR,
    Offsets,
    PreparedVideo,
    Source,
    StorePaths,
    Stream,
    VideoRow,
    places_crc,
)
from hpc_stres.store.packing import write_store
from hpc_stres.store.table import OpenFile, Table

__all__ = ["PreparedVideo", "Store", "StorePaths", "Stream", "VideoRow", "verify", "write_store"]

Kind = Literal["train", "test"]
Item = TypeVar("Item")
# Rows, offsets of videos and open shards that are kept at hand.
KEPT_ROWS, KEPT_PLACES, KEPT_FILES = 16384, 2048, 256
# Rows of the listing are read one by one where so many others lie between them.
SPARSE = 4


class Kept(Generic[Item]):
    """The values of a function that were used last."""

    def __init__(self, make: Callable[[int], Item], most: int) -> None:
        self._make, self._most = make, most
        self._items: OrderedDict[int, Item] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, key: int) -> Item:
        try:
            return self._items[key]
        except KeyError:
            item = self._make(key)
        with self._lock:
            self._items[key] = item
            # The oldest goes. Whoever still reads an open file holds it until he is done.
            while len(self._items) > self._most:
                self._items.popitem(last=False)
        return item


class Rows(Sequence[VideoRow]):
    """The prepared videos, sorted by id."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._kept = Kept(store.make_row, KEPT_ROWS)

    def __len__(self) -> int:
        return len(self._store.videos)

    @overload
    def __getitem__(self, index: int) -> VideoRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[VideoRow]: ...
    def __getitem__(self, index: int | slice) -> VideoRow | list[VideoRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"no row {index}: the store has {len(self)} videos")
        return self._kept(number)


class Numbers(Mapping[str, int]):
    """The row number of each prepared video by its id, found by bisection."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    def __getitem__(self, video_id: str) -> int:
        row = self._find(video_id)
        if row < 0:
            raise KeyError(video_id)
        return row

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and self._find(video_id) >= 0

    def _find(self, video_id: str) -> int:
        listed = self._store.listed(video_id)
        return -1 if listed is None else int(self._store.row_of_listed[listed])

    def __len__(self) -> int:
        return len(self._store.videos)

    def __iter__(self) -> Iterator[str]:
        return (row.id for row in self._store.rows)


class Store:
    """A complete store. `check_shards=False` opens one whose shards may be missing or
    cut, to repair it."""

    def __init__(self, root: Path, check_shards: bool = True) -> None:
        self.paths = StorePaths(root)
        self.manifest = checks.read_manifest(self.paths)
        tables = {
            role: Table(self.paths.index / entry["name"], role, entry)
            for role, entry in self.manifest["index"].items()
            if role != "remarks"
        }
        self.listing, self.names = tables["listing"], tables["names"]
        self.videos, self.offsets = tables["videos"], tables["offsets"]
        checked = checks.check_index(self.paths, self.manifest, tables)
        self.labels, self.split_rows, self.row_of_listed = checked
        self.shard_bytes = checks.shard_sizes(self.paths, self.manifest, check_shards)
        checks.check_complete(self)
        self.rows = Rows(self)
        self.number = Numbers(self)
        self._places = Kept(self._read_places, KEPT_PLACES)
        self._files = Kept(lambda number: OpenFile(self.paths.shard(number)), KEPT_FILES)
        # Open files stay readable when the store is prepared again meanwhile and old
        # shards are removed.
        for number in (
            self.shard_bytes if check_shards and len(self.shard_bytes) <= KEPT_FILES else ()
        ):
            self._files(number)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.paths.root,)

    @property
    def place(self) -> str:
        """Name for messages."""
        return str(self.paths.root)

    @property
    def classes(self) -> list[str]:
        return list(self.manifest["classes"])

    @property
    def label_sets(self) -> list[list[int]] | None:
        """The classes of each label, where videos may have several; none where a
        label is a class."""
        return self.manifest.get("label_sets")

    # -- the listing -------------------------------------------------------------------------------

    def id_of(self, listed: int) -> str:
        """The id at a row of the listing."""
        row = self.listing[listed]
        start = int(row["start"])
        return self._text(start, start + int(row["id_bytes"]))

    def read_listing(self) -> tuple[list[str], list[str], list[Source]]:
        """Ids, paths (relative to the folder of videos where they are inside) and
        contents, all at once."""
        texts, ids, paths, sources = self.names[:].tobytes(), [], [], []
        for start, size, id_bytes, path_bytes, _, digest in self.listing[:].tolist():
            middle = start + id_bytes
            ids.append(texts[start:middle].decode())
            paths.append(texts[middle : middle + path_bytes].decode())
            sources.append(Source(size, digest.hex()))
        return ids, paths, sources

    def ids_and_sources(self, listed: NDArray[np.int32]) -> Iterator[tuple[str, Source]]:
        """Id and content at some rows of the listing; read in one piece where they lie together."""
        if not len(listed):
            return
        low, high = int(listed.min()), int(listed.max()) + 1
        if high - low > SPARSE * len(listed):
            yield from ((self.id_of(int(row)), self.source_of(int(row))) for row in listed)
            return
        rows = self.listing.part(low, high)
        start = int(rows["start"].min())
        texts = self.names.part(start, int((rows["start"] + rows["id_bytes"]).max())).tobytes()
        for row in rows[listed - low]:
            first = int(row["start"]) - start
            name = texts[first : first + int(row["id_bytes"])].decode()
            yield name, Source(int(row["source_bytes"]), row["source_sha256"].tobytes().hex())

    def source_of(self, listed: int) -> Source:
        """The content that a listed video had when it was prepared."""
        row = self.listing[listed]
        return Source(int(row["source_bytes"]), row["source_sha256"].tobytes().hex())

    def _text(self, start: int, stop: int) -> str:
        try:
            return self.names.part(start, stop).tobytes().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.names.path}: damaged: {error}\n{REPAIR}") from None

    def listed(self, video_id: str) -> int | None:
        """The row of the listing with an id."""
        low, high = 0, len(self.listing)
        while low < high:
            middle = (low + high) // 2
            if self.id_of(middle) < video_id:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.listing) and self.id_of(low) == video_id else None

    def listed_in(self, split: int, kind: Kind) -> NDArray[np.int32]:
        """Rows of the listing that a split trains or tests on, rejected videos included."""
        if str(split) not in self.manifest[kind]:
            there = ", ".join(self.manifest[kind])
            raise UserError(f"{self.paths.root}: the store has no split {split}; it has {there}")
        first, count = self.manifest[kind][str(split)]
        return self.split_rows[first : first + count]

    def ids(self, split: int, kind: Kind) -> list[str]:
        """Ids of a split as its list gives them, rejected videos included."""
        return [self.id_of(int(listed)) for listed in self.listed_in(split, kind)]

    def present(self, split: int, kind: Kind) -> list[int]:
        """Row numbers of a split's videos that were prepared."""
        return self.present_rows(split, kind).tolist()

    def present_rows(self, split: int, kind: Kind) -> NDArray[np.int32]:
        """The same in four bytes a video."""
        rows = self.row_of_listed[self.listed_in(split, kind)]
        return rows[rows >= 0]

    @cached_property
    def remarks(self) -> list[dict[str, Any]]:
        """Rejected videos (`reason`) and those to know something of (`note`)."""
        entry = self.manifest["index"]["remarks"]
        path = self.paths.index / entry["name"]
        if not path.is_file() or sha256(path) != entry["sha256"]:
            raise UserError(f"{path}: missing or damaged\n{REPAIR}")
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    @property
    def rejected(self) -> dict[str, str]:
        """Ids and reasons of videos that did not decode."""
        return {row["id"]: row["reason"] for row in self.remarks if "reason" in row}

    # -- frames ------------------------------------------------------------------------------------

    def make_row(self, number: int) -> VideoRow:
        """A row out of the tables."""
        row = self.videos[number]
        listed = int(row["listed"])
        return VideoRow(
            id=self.id_of(listed),
            label=int(self.labels[listed]),
            frames=int(row["frames"]),
            flow_pairs=int(row["flow_pairs"]),
            height=int(row["height"]),
            width=int(row["width"]),
            shard=int(row["shard"]),
            rgb_first=int(row["rgb_first"]),
            flow_first=int(row["flow_first"]),
            rgb_sha256=row["rgb_sha256"].tobytes().hex(),
            flow_sha256=row["flow_sha256"].tobytes().hex(),
        )

    def _read_places(self, number: int) -> tuple[VideoRow, Offsets, Offsets]:
        """A video's offsets, checked once: they increase, lie inside the shard and
        have their checksum."""
        row = self.rows[number]
        rgb = self.offsets.part(row.rgb_first, row.rgb_first + row.frames + 1)
        flow = self.offsets.part(row.flow_first, row.flow_first + 2 * row.flow_pairs + 1)
        inside = all(
            places[0] >= 0
            and places[-1] <= self.shard_bytes[row.shard]
            and (np.diff(places) > 0).all()
            for places in (rgb, flow)
        )
        if not inside or places_crc(rgb, flow) != int(self.videos[number]["places_crc"]):
            raise UserError(
                f"{self.offsets.path}: the offsets of video {row.id} are damaged\n{REPAIR}"
            )
        return row, rgb, flow

    def places(self, number: int) -> tuple[Offsets, Offsets]:
        """Where each RGB frame and each flow plane of a video begins in its shard, and
        the last one ends."""
        return self._places(number)[1:]

    def rgb(self, video: int, frame: int) -> NDArray[np.uint8]:
        """JPEG bytes of one RGB frame."""
        row, places, _ = self._places(video)
        return self._slice(row, places, self._inside(frame, row.frames, row))

    def flow(self, video: int, pair: int, axis: int) -> NDArray[np.uint8]:
        """JPEG bytes of the u (axis 0) or v (axis 1) plane from frame `pair` to the next."""
        row, _, places = self._places(video)
        return self._slice(row, places, 2 * self._inside(pair, row.flow_pairs, row) + axis)

    @staticmethod
    def _inside(index: int, count: int, row: VideoRow) -> int:
        if not 0 <= index < count:
            raise IndexError(f"video {row.id} has no frame {index}: there are {count}")
        return index

    def _slice(
        self, row: VideoRow, places: Offsets, first: int, last: int | None = None
    ) -> NDArray[np.uint8]:
        start, stop = int(places[first]), int(places[first + 1 if last is None else last])
        return np.frombuffer(self._files(row.shard).read(start, stop - start), np.uint8)

    def member(self, video: int, stream: Stream) -> NDArray[np.uint8]:
        """All bytes of one member."""
        row, rgb, flow = self._places(video)
        places = rgb if stream == "rgb" else flow
        return self._slice(row, places, 0, len(places) - 1)


def verify(store: Store) -> list[str]:
    """One line for each damaged member, or shard where the damage lies between members."""
    return checks.find_damage(store).lines()
