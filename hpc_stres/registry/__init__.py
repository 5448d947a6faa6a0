"""What can be added with one file: models, kinds of phases, data sets, schedules. Pure: nothing
heavy is imported.

Each registry finds the built-in entries in a folder of this package, one file each, and takes those
of a config's `extensions` beside them. A file registers its entry when it is imported; what is
heavy (torch above all) is imported inside the functions that the entry names.
"""

import difflib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from hpc_stres.errors import ConfigError
from hpc_stres.registry.dataset import DataSet
from hpc_stres.registry.model import ModelFamily
from hpc_stres.registry.phase import PhaseKind
from hpc_stres.registry.schedule import Schedule

__all__ = ["DATA_SETS", "MODELS", "PHASE_KINDS", "SCHEDULES", "Registry", "load_extension"]

# Names of the modules that extensions become.
PREFIX = "hpc_stres_extension_"
# Nearest name that is worth a hint.
NEAR = 0.6


class Named(Protocol):
    """What a registry holds has a name."""

    @property
    def name(self) -> str:
        """The name that a config writes."""


Entry = TypeVar("Entry", bound=Named)


class Registry(Generic[Entry]):
    """Entries by name; the built-in ones are imported when somebody asks for the first time."""

    def __init__(self, what: str, package: str) -> None:
        self.what, self.package = what, package
        self._entries: dict[str, Entry] = {}
        self._origins: dict[str, str] = {}
        self._is_complete = False

    def register(self, entry: Entry) -> Entry:
        """Add an entry. The same file may do so again; a name that another file has is refused."""
        origin = sys._getframe(1).f_globals.get("__file__", "?")
        other = self._origins.get(entry.name, origin)
        if other != origin:
            raise ConfigError(
                f"{origin}: there is another {self.what} of the name {entry.name}: {other}"
            )
        self._entries[entry.name], self._origins[entry.name] = entry, origin
        return entry

    def get(self, name: str) -> Entry:
        """An entry; an unknown name is a ConfigError with the nearest known one."""
        self._complete()
        if name not in self._entries:
            raise ConfigError(self.refusal(name))
        return self._entries[name]

    def refusal(self, name: str) -> str:
        """What to say of a name that nothing has."""
        nearest = difflib.get_close_matches(name, self.names(), 1, NEAR)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        return f"no {self.what} {name!r:.60}; there are {', '.join(self.names())}{hint}"

    def names(self) -> list[str]:
        """All names, the built-in ones first."""
        self._complete()
        return list(self._entries)

    def entries(self) -> list[Entry]:
        """All entries."""
        self._complete()
        return list(self._entries.values())

    def __contains__(self, name: object) -> bool:
        self._complete()
        return name in self._entries

    def forget(self, origin: str) -> None:
        """Remove what one file has registered."""
        for name in [name for name, file in self._origins.items() if file == origin]:
            del self._entries[name], self._origins[name]

    def _complete(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True
        folder = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(folder.__path__):
            importlib.import_module(f"{self.package}.{module.name}")


MODELS: Registry[ModelFamily] = Registry("model", "hpc_stres.models.families")
PHASE_KINDS: Registry[PhaseKind] = Registry("kind of phase", "hpc_stres.phases")
DATA_SETS: Registry[DataSet] = Registry("data set", "hpc_stres.listings.kinds")
SCHEDULES: Registry[Schedule] = Registry("schedule", "hpc_stres.registry.schedules")
_ALL: tuple[Registry[Any], ...] = (MODELS, PHASE_KINDS, DATA_SETS, SCHEDULES)


def load_extension(path: Path) -> None:
    """Import a file of the user's own, which registers what it adds. Its code runs as
    the user's does."""
    if not path.is_file():
        raise ConfigError(f"extensions: {path}: no such file")
    content = path.read_bytes()
    # By its content: a run's copy of a file is that file, and an edited one is another.
    name = f"{PREFIX}{hashlib.sha256(content).hexdigest()[:16]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"extensions: {path}: this is no Python file")
    for registry in _ALL:
        registry.entries()
        registry.forget(str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ConfigError) or not isinstance(error, Exception):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise ConfigError(f"extensions: {path}: cannot be imported: {reason}") from error


@contextmanager
def temporarily() -> Iterator[None]:
    """What is registered inside is gone afterwards, for tests."""
    modules = set(sys.modules)
    before = [(dict(r._entries), dict(r._origins)) for r in _ALL if r.names() is not None]
    try:
        yield
    finally:
        for registry, (entries, origins) in zip(_ALL, before, strict=True):
            registry._entries, registry._origins = entries, origins
        for name in set(sys.modules) - modules:
            if name.startswith(PREFIX):
                del sys.modules[name]
