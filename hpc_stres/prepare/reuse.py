"""Frames and flow that another store under the same root holds already: they are
copied, not made again."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from hpc_stres.errors import UserError
from hpc_stres.listings.splits import Video
from hpc_stres.run.paths import read_json
from hpc_stres.store.format import REPAIR, PreparedVideo, Source, Stamp, StorePaths
from hpc_stres.store.location import Settings

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

Hasher = Callable[[Iterable[Video]], Mapping[str, Source]]


def read_back(store: "Store", number: int) -> PreparedVideo:
    """A whole video of a store as it was before it was packed; refused where a bit
    of it has changed."""
    row, (rgb, flow) = store.rows[number], store.places(number)
    streams: list[list[bytes]] = []
    for stream, places, expected in (("rgb", rgb, row.rgb_sha256), ("flow", flow, row.flow_sha256)):
        data = store.member(number, stream).tobytes()  # type: ignore[arg-type]
        if hashlib.sha256(data).hexdigest() != expected:
            raise UserError(f"{store.place}: {row.id}.{stream}.mjpeg is damaged\n{REPAIR}")
        cuts = [int(place - places[0]) for place in places]
        streams.append([data[a:b] for a, b in itertools.pairwise(cuts)])
    note = next((r["note"] for r in store.remarks if r["id"] == row.id and "note" in r), None)
    return PreparedVideo(row.id, row.label, row.height, row.width, streams[0], streams[1], note)


def siblings(paths: StorePaths, settings: Settings) -> "list[Store]":
    """The other whole stores under this root that were prepared in the same way."""
    from hpc_stres.store.reader import Store

    stores = []
    for manifest in sorted(paths.root.parent.glob("*/manifest.json")):
        if (
            manifest.parent == paths.root
            or read_json(manifest).get("settings") != settings.as_json()
        ):
            continue
        try:
            stores.append(Store(manifest.parent))
        except UserError:
            continue  # damaged, or being replaced: what it holds is prepared from the originals
    return stores


def copy_from_siblings(
    paths: StorePaths,
    settings: Settings,
    wanted: Mapping[str, tuple[Video, Stamp]],
    hash_all: Hasher,
) -> list[str]:
    """Write parts of the wanted videos that siblings hold; returns their ids. Only sizes that
    occur are hashed."""
    done: list[str] = []
    for store in siblings(paths, settings):
        rows: dict[Source, int] = {}
        for listed, row in enumerate(store.row_of_listed.tolist()):
            if row >= 0:
                rows[store.source_of(listed)] = row
        sizes = {source.size for source in rows if source.size}
        left = {name: item for name, item in wanted.items() if name not in done}
        candidates = [
            video for video, stamp in left.values() if video.path.is_dir() or stamp.size in sizes
        ]
        for name, source in hash_all(candidates).items():
            if source in rows and _copy(paths, store, rows[source], left[name], source, settings):
                done.append(name)
    return done


def _copy(
    paths: StorePaths,
    store: "Store",
    row: int,
    wanted: tuple[Video, Stamp],
    source: Source,
    settings: Settings,
) -> bool:
    video, stamp = wanted
    try:
        stored = read_back(store, row)
    except UserError:
        return False  # damaged there: prepared here
    own = PreparedVideo(
        video.id, video.label, stored.height, stored.width, stored.rgb, stored.flow, stored.note
    )
    own.write_part(paths.part(video.id), source, settings.as_json(), stamp)
    return True
