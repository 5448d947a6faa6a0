"""What is checked of a store: the index whenever it is opened, every byte by `hpc-stres verify`."""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.run.paths import read_sealed, sha256
from hpc_stres.store.format import FORMAT, PREPARE, REPAIR, ROLES, StorePaths
from hpc_stres.store.table import CHECKED_BYTES, Table

if TYPE_CHECKING:
    from hpc_stres.store.reader import Store

Array = NDArray[Any]


def read_manifest(store: StorePaths) -> dict[str, Any]:
    """The manifest; refuses a folder without one, one of another format, and a damaged one."""
    if not store.manifest.is_file():
        raise UserError(f"{store.root}: no prepared store here\n{PREPARE}")
    old = _old_format(store)
    if old is not None:
        raise UserError(
            f"{store.root}: store format {old}; this version reads {FORMAT}: prepare again\n{PREPARE}"
        )
    manifest = read_sealed(store.manifest, REPAIR)
    if manifest.get("format") != FORMAT or set(manifest.get("index", ())) != set(ROLES):
        raise UserError(
            f"{store.manifest}: not the manifest of a store of format {FORMAT}\n{REPAIR}"
        )
    return manifest


def _old_format(store: StorePaths) -> Any:
    """The number of an older format, which has no checksum; None where this is none."""
    try:
        manifest = json.loads(store.manifest.read_bytes())
        number = manifest["format"] if "checksum" not in manifest else FORMAT
    except (ValueError, KeyError, TypeError, OSError):
        return None
    return None if number == FORMAT else number


def _refuse(table: Table, what: str) -> NoReturn:
    raise UserError(f"{table.path}: {what}\n{REPAIR}")


def check_index(
    paths: StorePaths, manifest: dict[str, Any], tables: dict[str, Table]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Read the index once: checksums, and every number inside the range that it may have.

    Returns the label of each listed video, the rows of the splits, and the row of each listed
    video (-1: none).
    """
    listing, videos = tables["listing"], tables["videos"]
    labels = np.zeros(len(listing), np.int32)
    row_of_listed = np.full(len(listing), -1, np.int32)
    splits: list[Array] = []
    problems: dict[str, str] = {}
    last = [-1]

    def look_at_listing(first: int, block: Array) -> None:
        labels[first : first + len(block)] = block["label"]
        known = manifest.get("label_sets", manifest["classes"])
        if not _all_inside(block["label"], 0, len(known)):
            problems["listing"] = f"labels outside of the {len(known)} classes"
        ends = block["start"] + block["id_bytes"] + block["path_bytes"]
        if not _all_inside(block["start"], 0, len(tables["names"])) or ends.max() > len(
            tables["names"]
        ):
            problems["listing"] = "names outside of the file of names"

    def look_at_videos(first: int, block: Array) -> None:
        listed = block["listed"]
        after = np.append(last[-1:], listed)
        if not _all_inside(listed, 0, len(listing)) or not (np.diff(after) > 0).all():
            problems["videos"] = "rows of videos that the listing does not have, or twice the same"
            return
        last.append(int(listed[-1]))
        row_of_listed[listed] = np.arange(first, first + len(block), dtype=np.int32)
        problem = _row_problem(block, len(tables["offsets"]), manifest["shards"])
        if problem:
            problems["videos"] = problem

    tables["names"].check()
    listing.check(look_at_listing)
    videos.check(look_at_videos)
    tables["splits"].check(lambda _, block: splits.append(block))
    if (paths.index / manifest["index"]["offsets"]["name"]).stat().st_size <= CHECKED_BYTES:
        tables["offsets"].check()
    for role, problem in problems.items():
        _refuse(tables[role], problem)
    rows = np.concatenate([*splits, np.zeros(0, np.int32)])
    if not _all_inside(rows, 0, len(listing)):
        _refuse(tables["splits"], "videos that the listing does not have")
    return labels, rows, row_of_listed


def _all_inside(values: Array, low: int, high: int) -> bool:
    return not len(values) or bool(values.min() >= low and values.max() < high)


def _row_problem(block: Array, offsets: int, shards: dict[str, Any]) -> str | None:
    numbers = {int(name.split(".")[0]) for name in shards}
    if not np.isin(block["shard"], list(numbers)).all():
        return "rows of shards that the store does not have"
    for first, count in (("rgb_first", block["frames"]), ("flow_first", 2 * block["flow_pairs"])):
        if not _all_inside(block[first], 0, offsets) or (block[first] + count >= offsets).any():
            return "rows of offsets that are not there"
    sizes = [block[name].min() for name in ("frames", "flow_pairs", "height", "width")]
    return "videos without frames or size" if len(block) and min(sizes) < 1 else None


def shard_sizes(paths: StorePaths, manifest: dict[str, Any], strict: bool) -> dict[int, int]:
    """Bytes of each shard as written; where that is asked for, each must be there and as long."""
    sizes = {}
    for name, sums in manifest["shards"].items():
        if not re.fullmatch(r"\d{5,}\.tar", name):
            raise UserError(f"{paths.manifest}: {name!r} is no shard\n{REPAIR}")
        problem = _size_problem(paths, name, sums) if strict else None
        if problem:
            raise UserError(f"{paths.shards / name}: {problem}\n{REPAIR}")
        sizes[int(name.split(".")[0])] = int(sums["bytes"])
    return sizes


def _size_problem(paths: StorePaths, name: str, sums: dict[str, Any]) -> str | None:
    try:
        size = (paths.shards / name).stat().st_size
    except OSError:
        return "the shard is missing"
    return None if size == sums["bytes"] else f"{size} bytes long, not {sums['bytes']}"


def check_complete(store: "Store") -> None:
    """Each listed video was prepared or rejected."""
    missing = np.flatnonzero(store.row_of_listed < 0).tolist()
    rejected = store.rejected if len(missing) else {}
    lost = [name for name in map(store.id_of, missing) if name not in rejected]
    if lost:
        raise UserError(
            f"{store.place}: {len(lost)} videos are listed, but neither prepared nor rejected: "
            f"{', '.join(lost[:3])}\n{REPAIR}"
        )


@dataclass(frozen=True)
class Damage:
    """What is not as it was written: videos with a line for each member, and shards by number."""

    videos: dict[str, list[str]]
    shards: dict[int, str]

    def is_missing(self, shard: int) -> bool:
        return self.shards.get(shard, "").endswith("missing")

    def lines(self) -> list[str]:
        """One line for each damaged member or shard."""
        return [line for lines in self.videos.values() for line in lines] + list(
            self.shards.values()
        )


def find_damage(store: "Store") -> Damage:
    """Re-read everything. The members of a shard are read one by one only where the whole has
    another checksum."""
    store.offsets.check()
    videos: dict[str, list[str]] = {}
    broken: dict[int, str] = {}
    bad: set[int] = set()
    for name, sums in store.manifest["shards"].items():
        number, problem = int(name.split(".")[0]), _size_problem(store.paths, name, sums)
        if problem:
            broken[number] = f"{name}: {problem}"
        if (
            not (problem or "").endswith("missing")
            and sha256(store.paths.shards / name) != sums["sha256"]
        ):
            bad.add(number)
    for number, row in enumerate(store.rows):
        if row.shard in bad:
            lines = [
                f"{row.shard:05d}.tar: {row.id}.{s}.mjpeg is damaged"
                for s in _damaged_members(store, number)
            ]
            if lines:
                videos[row.id] = lines
        elif row.shard not in broken:
            store.places(number)  # refuses offsets that lie outside
    touched = {store.rows[store.number[name]].shard for name in videos} | set(broken)
    for number in sorted(bad - touched):
        broken[number] = f"{number:05d}.tar: a header or padding between members is damaged"
    return Damage(videos, broken)


def _damaged_members(store: "Store", number: int) -> list[str]:
    row, damaged = store.rows[number], []
    for stream, expected in (("rgb", row.rgb_sha256), ("flow", row.flow_sha256)):
        try:
            digest = hashlib.sha256(store.member(number, stream)).hexdigest()  # type: ignore[arg-type]
        except UserError:  # the shard ends before it
            digest = ""
        if digest != expected:
            damaged.append(stream)
    return damaged
