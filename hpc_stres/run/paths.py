"""The one place that knows file names in a run folder, and the one way in which
files are written."""

import errno
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres.errors import UserError

# What linking ends with on a file system that has no links.
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

# The key under which a JSON object carries its own checksum.
SEAL = "checksum"


@dataclass(frozen=True)
class RunPaths:
    """File names of a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def extensions(self) -> Path:
        return self.root / "extensions"

    @property
    def data_set(self) -> Path:
        return self.root / "data_set.json"

    @property
    def provenance(self) -> Path:
        return self.root / "provenance.json"

    @property
    def code_diff(self) -> Path:
        return self.root / "code.diff"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs.json"

    @property
    def code(self) -> Path:
        """Which code the run is of."""
        return self.root / "code.json"

    @property
    def runs(self) -> Path:
        """Of a folder of runs that were submitted together: their names, in the order
        of their indices."""
        return self.root / "runs.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def preflight(self) -> Path:
        return self.root / "preflight.json"

    @property
    def nodes(self) -> Path:
        return self.root / "nodes.jsonl"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def lock(self) -> Path:
        return self.root / "submit.lock"

    def scores(self, split: int, phase: str) -> Path:
        return self.root / "scores" / f"split{split}_{phase}.npz"

    def junctions(self, phase: str) -> Path:
        return self.root / "scores" / f"junctions_{phase}.json"

    def phase(self, name: str) -> "PhasePaths":
        return PhasePaths(self.root / "phases" / name)


@dataclass(frozen=True)
class PhasePaths:
    """File names of one phase."""

    root: Path

    @property
    def weights(self) -> Path:
        return self.root / "weights.safetensors"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def done(self) -> Path:
        return self.root / "done.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def latest(self) -> Path:
        return self.checkpoints / "latest"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step{step:08d}"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def lock(self) -> Path:
        return self.root / "owner.lock"

    @property
    def stall(self) -> Path:
        return self.root / "stall"

    def stack(self, rank: int) -> Path:
        return self.stall / f"rank{rank:05d}.txt"

    def heartbeat(self, rank: int) -> Path:
        return self.root / "heartbeat" / f"rank{rank:05d}.json"


def split_folders(root: Path) -> list[Path]:
    """Run folders of single splits under the folder that `submit.py --split all` was
    given; none elsewhere."""
    if RunPaths(root).config.is_file():
        return []
    return [path for path in _numbered(root) if RunPaths(path).config.is_file()]


def runs_together(root: Path) -> list[Path]:
    """Run folders that were submitted together under this folder, or its splits; none where it
    is a run itself."""
    if RunPaths(root).config.is_file():
        return []
    named = [root / str(name) for name in read_json(RunPaths(root).runs).get("runs", [])]
    folders = [folder for folder in named if RunPaths(folder).config.is_file()]
    return folders or split_folders(root)


def study_folder(run_dir: Path) -> Path | None:
    """The folder of runs that a run was submitted with; none for a run of its own."""
    for above in list(run_dir.parents)[:2]:
        names = read_json(RunPaths(above).runs).get("runs", [])
        if run_dir.relative_to(above).as_posix() in names:
            return above
    return None


def _numbered(root: Path) -> list[Path]:
    """Its folders split1, split2 and so on, in the order of their numbers."""
    folders = [path for path in root.glob("split*") if re.fullmatch(r"split[1-9]\d?", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("split")))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; synced and renamed to it when the block ends,
    removed when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with naming(path):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        with suppress(OSError):  # what failed first must be said
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """The kernel's errors know no name where a file is open already: give them this one, for
    whoever tells the user. Some libraries name their files in bytes."""
    try:
        yield
    except OSError as error:
        error.filename = str(path) if error.filename is None else os.fsdecode(error.filename)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_first(path: Path, value: Any) -> None:
    """JSON where no file is yet: of several writers at once one wins, whole, and the others leave
    its file."""
    if path.is_file():
        return
    own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.first")
    try:
        write_json(own, value)
        os.link(own, path)  # refused where the name is taken, unlike a rename
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        write_json(path, value)
    finally:
        own.unlink(missing_ok=True)


def write_with(path: Path, writer: Callable[[Path], None]) -> None:
    """Atomic write through a function that wants a file name."""
    with atomic_path(path) as temporary:
        writer(temporary)


def checksum(value: Any) -> str:
    """Hex digest of a JSON value, whatever the order of its keys and however it is
    laid out in a file."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
    ).hexdigest()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum as its last key."""
    # Through JSON first: what is read back has text for keys and lists for tuples.
    bare = json.loads(json.dumps({key: item for key, item in value.items() if key != SEAL}))
    return {**bare, SEAL: checksum(bare)}


def unsealed(value: Any, where: str, remedy: str) -> dict[str, Any]:
    """What `sealed` was given; a UserError that names the place and the remedy when a bit
    of it has changed."""
    if isinstance(value, dict) and SEAL in value:
        bare = {key: item for key, item in value.items() if key != SEAL}
        if value[SEAL] == checksum(bare):
            return bare
    without = isinstance(value, dict) and SEAL not in value
    what = (
        "it has no checksum (written by hand, or by version 0.2)"
        if without
        else "damaged: its checksum is wrong"
    )
    raise UserError(f"{where}: {what}\n{remedy}")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` with a checksum inside, for what is read back and believed."""
    write_json(path, sealed(value))


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """The way back from `write_sealed`; a missing or damaged file is a UserError that
    says what to do."""
    try:
        text = path.read_bytes().decode("utf-8")
        value = json.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}\n{remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}\n{remedy}") from None
    return unsealed(value, str(path), remedy)


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with naming(path), path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object, or an empty one where the file is not written yet."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError):
        return {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            # Only a line without its newline can be torn; anything else is damage
            # that must be seen.
            if number != len(lines) - 1:
                raise
    return rows
