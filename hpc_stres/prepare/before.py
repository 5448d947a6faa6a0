"""What a store holds before it is prepared again, and who owns it meanwhile."""

import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError
from hpc_stres.prepare import disk
from hpc_stres.run.ownership import owned
from hpc_stres.store import writer
from hpc_stres.store.format import Source, StorePaths
from hpc_stres.store.reader import Store
from hpc_stres.store.writer import Contents, Packed

# As long as it takes another process to prepare a large data set.
PATIENCE_SECONDS = 30 * 86400.0


@contextmanager
def named_errors(root: Path) -> Iterator[None]:
    """What the file system refuses becomes a sentence with the path in it."""
    try:
        yield
    except OSError as error:
        raise disk.disk_error(error, root) from None
    except BrokenProcessPool:
        raise UserError(
            f"{root}: a worker was killed, mostly for want of memory\n"
            "The same command resumes; fewer data.workers take less memory."
        ) from None


@contextmanager
def owning(store: StorePaths, what: str) -> Iterator[None]:
    """Own a store; a second comer says whom it waits for. Leftovers of killed owners go."""
    with ExitStack() as stack:
        try:
            stack.enter_context(owned(store.lock, what))
        except UserError as busy:
            print(f"{str(busy).splitlines()[0]}; waiting for it", file=sys.stderr, flush=True)
            stack.enter_context(owned(store.lock, what, PATIENCE_SECONDS))
        writer.remove_temporaries(store)
        yield


def contents_of(store: StorePaths) -> Store | None:
    """The store as it is, if there is one."""
    return Store(store.root) if store.manifest.is_file() else None


@dataclass
class Old:
    """What there was before: videos in shards, rejections, and the listing to compare with."""

    contents: Contents = field(default_factory=Contents)
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)
    store: Store | None = None

    @classmethod
    def of(cls, store: Store | None) -> "Old":
        if store is None:
            return cls()
        notes = {row["id"]: row["note"] for row in store.remarks if "note" in row}
        videos = {}
        for number, row in enumerate(store.rows):
            source = store.source_of(int(store.videos[number]["listed"]))
            videos[row.id] = Packed(row, source, notes.get(row.id))
        rejected = {row["id"]: row for row in store.remarks if "reason" in row}
        contents = Contents(
            videos, dict(store.manifest["shards"]), lambda row: store.places(store.number[row.id])
        )
        return cls(contents, rejected, store)


def source_of(rejection: dict[str, Any] | None) -> Source | None:
    """The content of a source that was rejected."""
    return None if rejection is None else Source(*rejection["source"])
