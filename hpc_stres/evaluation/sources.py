"""The videos that a command line names: files, and folders of them at any depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc_stres.errors import ConfigError
from hpc_stres.listings.folders import videos_below
from hpc_stres.listings.listing import printable, require_utf8


@dataclass(frozen=True)
class Source:
    """A video and the name of its files."""

    path: Path
    name: str


def find_videos(given: Sequence[Path]) -> list[Source]:
    """Videos that were named, and those in folders that were named, under names
    that do not meet."""
    sources: list[Source] = []
    for path in given:
        if path.is_dir():
            inside = videos_below(path)
            if not inside:
                raise ConfigError(f"{printable(path)}: no videos in this folder")
            sources += [Source(p, str(p.relative_to(path).with_suffix(""))) for p in inside]
        elif path.is_file():
            sources.append(Source(path, path.stem))
        else:
            raise ConfigError(f"{printable(path)}: no such file or folder")
    taken: dict[str, Path] = {}
    for source in sources:
        require_utf8(source.path)
        other = taken.setdefault(source.name, source.path)
        if other.resolve() != source.path.resolve():
            raise ConfigError(
                f"{printable(other)} and {printable(source.path)} would both be written as {printable(source.name)}\n"
                "Rename one of them, name the folder above both, or extract them into two folders."
            )
    return list({source.name: source for source in sources}.values())
