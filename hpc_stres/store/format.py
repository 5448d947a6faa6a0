"""What a clip store is made of: its file names, its tables, and the tar members of one video.

    STORE/manifest.json             sealed: what made it, its classes, a checksum per file of the
                                    index and per shard
    STORE/index/ROLE-HASH.*         the index, each file named by its content (see ROLES)
    STORE/shards/00000.tar          members ID.rgb.mjpeg, ID.flow.mjpeg (u and v of each frame
                                    in turn), ID.json
    STORE/parts/                    prepared videos on their way into a shard; gone when the
                                    store is complete
    STORE/owner.lock                who prepares, repairs or copies it just now

What a video is called, its label and its splits are in the index's listing only. A shard holds what
depends on nothing but a source file and the settings of preparing, so that another label or split
costs no shard. A video of one frame has no flow; it is stored with one pair of planes at rest.
"""

import hashlib
import io
import json
import tarfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError
from hpc_stres.run.paths import atomic_path

Stream = Literal["rgb", "flow"]
FORMAT = 2
PREPARE = "Run `hpc-stres prepare` with the same config."
REPAIR = "`hpc-stres verify --repair` with the same config repairs it."
# Files of the index. `listing` is the truth about ids, labels and sources, `names` holds its texts,
# `splits` rows of the listing, `videos` what was prepared, `offsets` where each frame is,
# `remarks` which videos were rejected and why, and which are shorter than their header says.
ROLES = {
    "listing": ".npy",
    "names": ".npy",
    "splits": ".npy",
    "videos": ".npy",
    "offsets": ".npy",
    "remarks": ".jsonl",
}
SHA256_BYTES = 32
NO_SHA256 = "0" * (2 * SHA256_BYTES)
# One row a listed video, sorted by id. Its id and then its path are at `start` of the names.
LISTING = np.dtype(
    [
        ("start", "<i8"),
        ("source_bytes", "<i8"),
        ("id_bytes", "<i4"),
        ("path_bytes", "<i4"),
        ("label", "<i4"),
        ("source_sha256", "V32"),
    ]
)
# One row a prepared video, sorted by id; `listed` is its row of the listing.
VIDEOS = np.dtype(
    [
        ("rgb_first", "<i8"),
        ("flow_first", "<i8"),
        ("listed", "<i4"),
        ("frames", "<i4"),
        ("flow_pairs", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("shard", "<i4"),
        ("places_crc", "<u4"),
        ("rgb_sha256", "V32"),
        ("flow_sha256", "V32"),
    ]
)
DTYPES = {
    "listing": LISTING,
    "names": np.dtype("u1"),
    "splits": np.dtype("<i4"),
    "videos": VIDEOS,
    "offsets": np.dtype("<i8"),
}
Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class StorePaths:
    """File names of a store."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def lock(self) -> Path:
        return self.root / "owner.lock"

    @property
    def seen(self) -> Path:
        """Times of the sources; beside the store, whose bytes must not depend on them."""
        return self.root.with_name(f"{self.root.name}.seen.json")

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def shard(self, number: int) -> Path:
        return self.shards / f"{number:05d}.tar"

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    def part(self, video_id: str) -> Path:
        """A prepared video that is not packed yet; hashed, because ids hold any character."""
        return self.parts / f"{hashlib.sha256(video_id.encode()).hexdigest()[:24]}.tar"

    def rejection(self, video_id: str) -> Path:
        return self.part(video_id).with_suffix(".rejected.json")

    def packed(self, number: int) -> Path:
        """What a finished shard holds, until the index does."""
        return self.parts / f"packed-{number:05d}.npz"


@dataclass(frozen=True, kw_only=True)
class VideoRow:
    """One video of the store; `rgb_first` and `flow_first` are rows of the offsets."""

    id: str
    label: int
    frames: int
    flow_pairs: int
    height: int
    width: int
    shard: int
    rgb_first: int
    flow_first: int
    rgb_sha256: str
    flow_sha256: str


class Stamp(NamedTuple):
    """What tells cheaply that a source is as it was; of folders, the sum of sizes and
    the newest times."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Source(NamedTuple):
    """The content that a video was prepared from."""

    size: int
    sha256: str


@dataclass(frozen=True)
class PreparedVideo:
    """The JPEG frames of one video before they are packed; `note` says what a person
    should know of it."""

    id: str
    label: int
    height: int
    width: int
    rgb: list[bytes]
    flow: list[bytes]
    note: str | None = None

    def write_part(
        self,
        path: Path,
        source: Source | None = None,
        settings: dict[str, Any] | None = None,
        stamp: Stamp | None = None,
    ) -> None:
        """A tar with this video's three members, after a first one that stays behind
        when it is packed."""
        meta = Meta(
            id=self.id,
            height=self.height,
            width=self.width,
            rgb_bytes=[len(frame) for frame in self.rgb],
            flow_bytes=[len(plane) for plane in self.flow],
            rgb_sha256=hashlib.sha256(b"".join(self.rgb)).hexdigest(),
            flow_sha256=hashlib.sha256(b"".join(self.flow)).hexdigest(),
            source=source or Source(0, NO_SHA256),
            settings=settings or {},
            note=self.note,
        )
        with (
            atomic_path(path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar,
        ):
            add_member(tar, "stamp.json", json.dumps(list(stamp or ())).encode())
            add_member(tar, f"{self.id}.json", meta.as_json())
            add_member(tar, f"{self.id}.rgb.mjpeg", b"".join(self.rgb))
            add_member(tar, f"{self.id}.flow.mjpeg", b"".join(self.flow))


@dataclass(frozen=True)
class Meta:
    """The .json member of a video: all that is known of it without its listing."""

    id: str
    height: int
    width: int
    rgb_bytes: list[int]
    flow_bytes: list[int]
    rgb_sha256: str
    flow_sha256: str
    source: Source
    settings: dict[str, Any] = field(default_factory=dict)
    note: str | None = None

    def as_json(self) -> bytes:
        """The member's bytes."""
        return json.dumps(
            {**asdict(self), "source": list(self.source)}, ensure_ascii=False
        ).encode()

    @classmethod
    def read(cls, data: bytes) -> "Meta":
        """The way back; a ValueError where it is damaged."""
        try:
            value = json.loads(data)
            meta = cls(**{**value, "source": Source(*value["source"])})
            numbers = [meta.height, meta.width, *meta.rgb_bytes, *meta.flow_bytes]
            if not meta.rgb_bytes or len(meta.flow_bytes) < 2 or min(map(int, numbers)) <= 0:
                raise ValueError("a size of 0")
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not the description of a video: {error}") from None
        return meta

    @property
    def payload_bytes(self) -> int:
        """Bytes of pictures."""
        return sum(self.rgb_bytes) + sum(self.flow_bytes)

    def row(self, shard: int, rgb_first: int, flow_first: int) -> VideoRow:
        """The row of this video where its frames are at these rows of the offsets; the label
        is the listing's."""
        return VideoRow(
            id=self.id,
            label=-1,
            frames=len(self.rgb_bytes),
            flow_pairs=len(self.flow_bytes) // 2,
            height=self.height,
            width=self.width,
            shard=shard,
            rgb_first=rgb_first,
            flow_first=flow_first,
            rgb_sha256=self.rgb_sha256,
            flow_sha256=self.flow_sha256,
        )


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; returns where its bytes begin."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(data))
    # What was just added ends at the tar's current offset, rounded up to whole blocks.
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of a member; a ValueError where the file ends before it."""
    stream = tar.extractfile(member)
    data = stream.read() if stream is not None else b""
    if len(data) != member.size:
        raise ValueError(f"{member.name} is cut off")
    return data


def read_part(path: Path) -> tuple[Stamp | None, Meta]:
    """A part's stamp and description; a ValueError where it is damaged or of another version."""
    try:
        with tarfile.open(path) as tar:
            first, second = tar.next(), tar.next()
            if first is None or second is None or first.name != "stamp.json":
                raise ValueError("no part of this version")
            stamp = json.loads(member_bytes(tar, first))
            return (Stamp(*map(int, stamp)) if stamp else None), Meta.read(
                member_bytes(tar, second)
            )
    except (tarfile.TarError, TypeError) as error:
        raise ValueError(str(error)) from None


def places_crc(rgb: Offsets, flow: Offsets) -> int:
    """Checksum of one video's offsets, so that they can be checked without reading
    those of all videos."""
    return zlib.crc32(flow.astype("<i8").tobytes(), zlib.crc32(rgb.astype("<i8").tobytes()))


def check_id(video_id: str) -> None:
    """Refuse an id that no file can hold."""
    try:
        video_id.encode()
    except UnicodeEncodeError:
        raise UserError(f"{video_id!r}: this name is not UTF-8\nRename the video.") from None
