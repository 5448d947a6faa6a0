"""Guards of the product that the campaign can take away, to show that it would notice: `--without NAME`.

They are taken away in the campaign's own children only; the product has no such switch.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _no_sync() -> None:
    from hpc_stres.run import paths

    paths._sync = lambda path: None  # type: ignore[assignment]


def _no_atomic_names() -> None:
    """Files are written in place: a reader, and a resumed run, can see half of one."""
    from hpc_stres.run import paths

    def write_bytes(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    for module in _modules_with("write_bytes", paths.write_bytes):
        module.write_bytes = write_bytes


def _no_checksum_of_checkpoints() -> None:
    from hpc_stres.training import checkpoint

    checkpoint.find_damage = lambda path: None


def _no_seals() -> None:
    """What is read back is believed, whatever its checksum says."""
    from hpc_stres.run import paths

    def unsealed(value: Any, where: str, remedy: str) -> dict[str, Any]:
        return {key: item for key, item in value.items() if key != paths.SEAL}

    for module in _modules_with("unsealed", paths.unsealed):
        module.unsealed = unsealed


def _no_owner() -> None:
    from hpc_stres.run import ownership

    @contextlib.contextmanager
    def owned(*_: Any, **__: Any) -> Iterator[None]:
        yield

    for module in _modules_with("owned", ownership.owned):
        module.owned = owned


def _no_sync_of_metrics() -> None:
    from hpc_stres.training.metrics import MetricsLog

    MetricsLog.sync = lambda self: None


def _no_checksum_of_the_index() -> None:
    """The store's index is believed where its numbers are inside their ranges."""
    from hpc_stres.store.table import Table

    def check(self: Table, look: Any = None) -> None:
        for first, block in self.blocks():
            if look is not None:
                look(first, block)

    Table.check = check  # type: ignore[method-assign]


def _modules_with(name: str, value: Any) -> list[Any]:
    """Modules that hold a function under its name."""
    import sys

    known = [module for key, module in list(sys.modules.items()) if key.startswith("hpc_stres")]
    return [module for module in known if getattr(module, name, None) is value]


@dataclass(frozen=True)
class Guard:
    """How it is taken away, and the kinds of rounds, or the part of the campaign, that it is against."""

    take_away: Callable[[], None]
    against: tuple[str, ...]


GUARDS = {
    "sync": Guard(_no_sync, ("power",)),
    "atomic": Guard(_no_atomic_names, ("power", "torn", "kill")),
    "checkpoint": Guard(_no_checksum_of_checkpoints, ("damage",)),
    "seal": Guard(_no_seals, ("damage",)),
    "owner": Guard(_no_owner, ("together",)),
    "metrics": Guard(_no_sync_of_metrics, ("power",)),
    "index": Guard(_no_checksum_of_the_index, ("flips",)),
}


def remove(name: str) -> None:
    """Take a guard away in this process."""
    if name:
        os.environ["CAMPAIGN_WITHOUT"] = name
        GUARDS[name].take_away()
