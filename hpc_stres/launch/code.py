"""The code that jobs run is the code that was submitted: a read-only copy, named by its content.

A chain of phases takes days, and a `git pull` between two of them must not mix code. So a submit
copies the package and its configs to RUNS/.code/DIGEST, beside the run folders, and every job
imports from there; submissions of the same code share a copy. The run notes which code it is of
(code.json); another one is taken only when it is asked for.

What is copied is Python, C++, CUDA, shell and YAML of the package, and of configs/ beside it:
nothing else that lies about, and no more than MOST_BYTES. A copy lists the checksums of all its
files, of what Python and the compiler made of them too; the first rank of each job compares.
"""

import compileall
import contextlib
import hashlib
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_stres import SOURCES, __version__
from hpc_stres.config.loading import CONFIGS
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.run.ownership import owned
from hpc_stres.run.paths import (
    RunPaths,
    read_json,
    read_sealed,
    study_folder,
    write_json,
    write_sealed,
)
from hpc_stres.run.tables import size_text
from hpc_stres.tools.kernels import carry_kernels

# What the package is made of; anything else that lies about in a checkout is not copied.
SUFFIXES = (".py", ".typed", ".cpp", ".h", ".cu", ".sh", ".yaml")
MOST_NAMED = 5
DIGEST_LETTERS = 16
# The package is a tenth of this.
MOST_BYTES = 64 << 20
LIST = "files.json"
LOCK = "lock"
LOCK_SECONDS = 120.0
LEFTOVER_SECONDS = 3600.0
REMEDY = "Move that file away to submit this run with the code of today."


@dataclass(frozen=True)
class Code:
    """A version of the package: a checksum for each of its files."""

    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Its name."""
        text = "".join(f"{name} {digest}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LETTERS]

    def differences(self, old: Mapping[str, str]) -> list[str]:
        """What is other than in an older version; recipes and profiles are configs, which a run
        compares by value."""
        names = [name for name in sorted({*old, *self.files}) if not is_config(name)]
        words = {(True, False): "added", (False, True): "removed", (True, True): "changed"}
        return [
            f"{words[name in self.files, name in old]} {name}"
            for name in names
            if self.files.get(name) != old.get(name)
        ]


def is_config(name: str) -> bool:
    """Whether a file of the package is one of configs/."""
    return name.startswith(("configs/", "hpc_stres/configs/"))


def code_of(folder: Path) -> Code:
    """The code under a folder that holds the package."""
    places = [folder / "hpc_stres", *([folder / "configs"] if _has_own_configs(folder) else [])]
    files = [path for place in places for path in _package_files(place)]
    _refuse_large(folder, files)
    return Code({path.relative_to(folder).as_posix(): _checksum(path) for path in files})


def _refuse_large(folder: Path, files: Sequence[Path]) -> None:
    """Something else than code has got into the package; each submission would copy it."""
    sizes = {path: path.stat().st_size for path in files}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=lambda path: sizes[path])
        raise UserError(
            f"{folder}: {size_text(sum(sizes.values()))} of code, {size_text(MOST_BYTES)} at most are copied for a "
            f"submission; the largest file: {largest} ({size_text(sizes[largest])})\nMove what is no code elsewhere."
        )


def _has_own_configs(folder: Path) -> bool:
    return folder != SOURCES or CONFIGS == SOURCES / "configs"


def _package_files(place: Path) -> Iterator[Path]:
    for home, folders, names in os.walk(place):
        folders[:] = [name for name in folders if name != "__pycache__" and name[0] != "."]
        paths = (Path(home, name) for name in names if name.endswith(SUFFIXES) and name[0] != ".")
        # No link without a target, no pipe that would be read for ever.
        yield from (path for path in paths if path.is_file())


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGEST_LETTERS]


def copies_folder(run_dir: Path) -> Path:
    """Where the copies for a run, or for a folder of runs, are kept: beside it, or in it where
    this user may not write beside it, or not into the copies that somebody else began there."""
    top = study_folder(run_dir) or run_dir
    shared = top.parent / ".code"
    above = next(folder for folder in (shared, *shared.parents) if folder.exists())
    lock = shared / LOCK
    may_write = os.access(above, os.W_OK | os.X_OK) and (
        not lock.exists() or os.access(lock, os.W_OK)
    )
    return shared if may_write else top / ".code"


def take_code(
    place: Path, run_dirs: Sequence[Path], adopt: bool, queued: Mapping[Path, Collection[str]]
) -> Path:
    """The folder of code for jobs that are about to be submitted; the runs are noted to be of it. A
    run of other code is refused unless it is to `adopt` this one; `queued` holds ids of jobs that
    would go on with the other."""
    code, copies = _own_code(), copies_folder(place)
    _refuse_odd_place(copies)
    # One who removes old copies must not come between the making of a copy and the note
    # that it is in use.
    with owned(copies / LOCK, "code is being copied", LOCK_SECONDS):
        for run_dir in run_dirs:
            refuse_other_code(run_dir, code, copies, adopt, queued.get(run_dir, ()))
        folder = _copy(code, copies)
        for run_dir in run_dirs:
            _note(run_dir, code, folder)
    return folder


def _own_code() -> Code:
    """The code that runs now."""
    code = code_of(SOURCES)
    if "hpc_stres/__init__.py" not in code.files:
        raise ConfigError(
            f"hpc_stres is imported from {SOURCES}, which is no folder of files that jobs could import\n"
            "Install it (pip install), or submit from a checkout."
        )
    return code


def _refuse_odd_place(copies: Path) -> None:
    """PYTHONPATH is a list with colons between, and has no way to write one that is in a name."""
    if os.pathsep in str(copies):
        raise ConfigError(
            f"{copies}: jobs import their code from there, and PYTHONPATH cannot hold a name with {os.pathsep!r}\n"
            "Use another --run-dir."
        )


def refuse_other_code(
    run_dir: Path, code: Code, copies: Path, adopt: bool, queued: Collection[str]
) -> None:
    """Refuse to go on with other code than a run began with, and name the files."""
    path = RunPaths(run_dir).code
    if not path.is_file():
        return
    before = read_sealed(path, REMEDY)
    changed = code.differences(before["files"])
    if not changed:
        return
    shown = ", ".join(changed[:MOST_NAMED])
    shown += f" and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
    where = f"{run_dir}: this run is of other code, {before['digest']}; now {code.digest}: {shown}"
    if not adopt:
        old = copies / before["digest"]
        again = (
            f" With the old: PYTHONPATH={shlex.quote(str(old))} python -P -m hpc_stres submit ..."
        )
        raise UserError(
            f"{where}\nResume with the code of today: --adopt-code.{again if old.is_dir() else ''}"
        )
    if queued:
        raise UserError(
            f"{where}\nJobs {', '.join(queued)} are in the queue with the old code; first: "
            f"python launch/submit.py --cancel {shlex.quote(str(run_dir))}"
        )


def _note(run_dir: Path, code: Code, folder: Path) -> None:
    """Write down which code a run is of, and which it was of before."""
    path = RunPaths(run_dir).code
    before = read_sealed(path, REMEDY) if path.is_file() else {"history": []}
    if before.get("digest") != code.digest:
        entry = {"digest": code.digest, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        note = {"digest": code.digest, "folder": str(folder), "version": __version__}
        history = [*before["history"], entry]
        write_sealed(path, note | {"history": history, "files": dict(code.files)})
    provenance = read_json(RunPaths(run_dir).provenance)
    told = {key: value for key, value in read_sealed(path, REMEDY).items() if key != "files"}
    if provenance and provenance.get("code") != told:
        write_json(RunPaths(run_dir).provenance, provenance | {"code": told})


def _copy(code: Code, copies: Path) -> Path:
    """The copy of this code: the one that is there, if it is whole, or a new one."""
    folder = copies / code.digest
    if folder.is_dir() and not changes_in(folder):
        return folder
    temporary = copies / f".{code.digest}.{os.getpid()}.tmp"
    old = copies / f".{code.digest}.{os.getpid()}.old.tmp"
    try:
        for name in code.files:
            _copy_file(SOURCES / name, temporary / name)
        carry_kernels(temporary / "hpc_stres" / "native")
        # Nobody can write there later, so Python's own files are made now: those that
        # came along are kept.
        compileall.compile_dir(temporary / "hpc_stres", quiet=2)
        if code_of(temporary).files != code.files:
            raise UserError(f"{SOURCES}: its files changed while they were copied\nSubmit again.")
        write_sealed(temporary / LIST, {"files": _all_files(temporary)})
        _lock(temporary)
        if folder.exists():
            # A damaged one is out of the way for a moment only: jobs import from there.
            os.rename(folder, old)
        os.rename(temporary, folder)
    finally:
        _remove(temporary)
        _remove(old)
    return folder


def _all_files(folder: Path) -> dict[str, str]:
    """Checksums of everything in a copy."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _checksum(path) for path in paths}


def changes_in(folder: Path) -> list[str]:
    """What is other in a copy than when it was made, in words; nothing where it is whole. What
    another version of Python has compiled there since is no change."""
    try:
        listed = read_sealed(folder / LIST, "")["files"]
        now = _all_files(folder)
        code = code_of(folder)
    except (UserError, OSError) as error:
        return [str(error).splitlines()[0]]
    gone = [f"{name} is gone" for name in listed if name not in now]
    changed = [
        f"{name} is changed" for name in listed if now.get(name, listed[name]) != listed[name]
    ]
    added = [f"{name} is new" for name in code.files if name not in listed]
    other = [] if code.digest == folder.name else [f"it is the code {code.digest}"]
    return [*gone, *changed, *added, *other]


def _copy_file(source: Path, target: Path) -> None:
    """A file, and what Python made of it for this version."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
    compiled = Path(compiled_name(source))
    if source.suffix == ".py" and compiled.is_file():
        target = Path(compiled_name(target))
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(compiled, target)


def compiled_name(source: Path) -> str:
    """Where Python keeps what it made of a file."""
    import importlib.util

    return importlib.util.cache_from_source(str(source)) if source.suffix == ".py" else ""


def _lock(folder: Path) -> None:
    """Take everybody's right to write away."""
    for home, _, names in os.walk(folder, topdown=False):
        for path in (*(Path(home, name) for name in names), Path(home)):
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def _remove(folder: Path) -> None:
    """Remove a copy, or what there is of it."""
    for home, _, _ in os.walk(folder):
        Path(home).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def refuse_changed_copy(folder: Path) -> None:
    """Refuse to run in a copy that somebody has changed, or in another place than the one
    that was submitted."""
    if folder != SOURCES:
        raise ConfigError(
            f"this job was submitted with the code in {folder}, and Python finds {SOURCES}\n"
            "Leave PYTHONPATH alone in cluster.setup and cluster.environment."
        )
    if changes := changes_in(folder):
        more = f" and {len(changes) - MOST_NAMED} more" if len(changes) > MOST_NAMED else ""
        raise UserError(
            f"{folder}: somebody has changed this copy of the code: {', '.join(changes[:MOST_NAMED])}{more}\n"
            "Submit the run again: that makes the copy anew."
        )


def remove_old_code(runs: Path) -> None:
    """Remove copies under a folder of runs that no run in it names; says what is gone."""
    copies = runs / ".code"
    if not copies.is_dir():
        raise ConfigError(f"{runs}: there are no copies of code: it has no folder .code")
    with owned(copies / LOCK, "code is being copied", LOCK_SECONDS):
        named = _named(runs)
        removed = 0
        for folder in sorted(copies.iterdir()):
            is_copy = re.fullmatch(rf"[0-9a-f]{{{DIGEST_LETTERS}}}", folder.name)
            is_leftover = folder.name.endswith(".tmp") and _age_seconds(folder) > LEFTOVER_SECONDS
            if (is_copy and folder.name not in named) or is_leftover:
                _remove(folder)
                removed += 1
                print(f"  {folder} removed")
    print(f"{copies}: {removed} removed, {len(named)} in use")


def _named(runs: Path) -> set[str]:
    """Digests that a run under a folder names, now or in its history. One that cannot be read ends
    the search: what it names is not known."""
    digests: set[str] = set()
    for pattern in ("code.json", "*/code.json", "*/*/code.json", "*/*/*/code.json"):
        for path in runs.glob(pattern):
            note: dict[str, Any] = read_sealed(path, "Nothing was removed. " + REMEDY)
            digests |= {note["digest"], *(entry["digest"] for entry in note["history"])}
    return digests


def _age_seconds(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - folder.stat().st_mtime
    return 0.0
