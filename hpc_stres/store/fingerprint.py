"""Whether a source is still the file, or the folders of frames, that a video was prepared from.

A stamp (size and times) says cheaply that nothing has changed; where it differs, the content's hash
decides. Stamps are kept beside the store and not inside: a store's bytes depend on contents, not on
when files were copied.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings.splits import Video
from hpc_stres.run.paths import read_sealed, sha256, write_sealed
from hpc_stres.store.format import NO_SHA256, Source, Stamp, StorePaths

# Content that a check may read, so that it stays quick.
QUICK_BYTES = 256 << 20
UNKNOWN = Source(0, NO_SHA256)
Seen = dict[str, tuple[Stamp, str]]


def folders_of(video: Video, flow_frames: str | None) -> list[Path]:
    """The folders that a video is imported from: its frames, then its flow."""
    if flow_frames is None:
        return [video.path]
    root, label = Path(flow_frames), video.path.parent.name
    roots = [root / letter for letter in "uv" if (root / letter).is_dir()] or [root]
    nested = [home / label / video.path.name for home in roots]
    flat = [home / video.path.name for home in roots]
    return [video.path, *(n if n.is_dir() else f for n, f in zip(nested, flat, strict=True))]


def _files(video: Video, flow_frames: str | None) -> Iterator[tuple[str, Path]]:
    for number, folder in enumerate(folders_of(video, flow_frames)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_file():
                yield f"{number}/{path.name}", path


def stamp_of(video: Video, data: DataConfig) -> Stamp:
    """The stamp of a source as it is now; an OSError where it is gone."""
    own = video.path.stat()
    if not video.path.is_dir():
        return Stamp(own.st_size, own.st_mtime_ns, own.st_ctime_ns)
    stats = [path.stat() for _, path in _files(video, data.flow_frames)]
    stats += [folder.stat() for folder in folders_of(video, data.flow_frames) if folder.is_dir()]
    size = sum(stat.st_size for stat in stats)
    return Stamp(size, max(s.st_mtime_ns for s in stats), max(s.st_ctime_ns for s in stats))


def content_of(video: Video, data: DataConfig) -> Source:
    """Size and hash of a source's content; an OSError where it cannot be read."""
    if not video.path.is_dir():
        status = video.path.stat()
        # A pipe or a device may have no end, and opening one may wait for ever.
        if not S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(video.path))
        return Source(status.st_size, sha256(video.path))
    digest, size = hashlib.sha256(), 0
    for name, path in _files(video, data.flow_frames):
        size += path.stat().st_size
        digest.update(f"{name}\0{sha256(path)}\n".encode("utf-8", "surrogateescape"))
    return Source(size, digest.hexdigest())


def read_seen(store: StorePaths) -> Seen:
    """Stamps and hashes of the sources when they were last prepared; nothing where the file is
    gone or damaged."""
    try:
        seen = read_sealed(store.seen, "")
        return {name: (Stamp(*row[:3]), str(row[3])) for name, row in seen["sources"].items()}
    except (UserError, KeyError, TypeError):
        return {}  # contents are then compared in place of times


def write_seen(store: StorePaths, seen: Seen) -> None:
    """The way back of `read_seen`; nothing is written where nothing has changed."""
    if seen != read_seen(store):
        rows: dict[str, Any] = {name: [*stamp, digest] for name, (stamp, digest) in seen.items()}
        write_sealed(store.seen, {"sources": rows})


class QuickLook:
    """Whether sources have changed, by their times; contents are read up to a
    small sum of bytes."""

    def __init__(self, data: DataConfig, seen: Seen) -> None:
        self.data, self.seen, self.left = data, seen, QUICK_BYTES

    def has_changed(self, video: Video, source: Source) -> bool:
        """Whether a video is another than it was; one that is gone is as it was."""
        try:
            stat = os.stat(video.path)
        except OSError:
            return False
        known = self.seen.get(video.id, (None, ""))[0]
        if video.path.is_dir():
            folders = folders_of(video, self.data.flow_frames)
            newest = max((f.stat().st_mtime_ns for f in folders if f.is_dir()), default=0)
            return known is not None and newest > known.mtime_ns and self._differs(video, source)
        if stat.st_size != source.size:
            return True
        if known is None or stat.st_mtime_ns == known.mtime_ns:
            return False
        return self._differs(video, source)

    def _differs(self, video: Video, source: Source) -> bool:
        """By content while that is quick; beyond it another time is taken for another content."""
        self.left -= source.size
        try:
            return self.left < 0 or content_of(video, self.data).sha256 != source.sha256
        except OSError:
            return False
