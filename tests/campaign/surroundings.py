"""Faults of what surrounds a command: limits, full disks that are not its own, odd names, links, what is read-only.

The command is a forked child that does this to itself last, so that it is the kernel that refuses.
"""

import contextlib
import functools
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.campaign import children, namespaces, programs
from tests.campaign.children import End, Start, fork
from tests.campaign.judge import CRASHED, STOPPED, SURVIVED, Failure, Outcome, check_end
from tests.campaign.plan import Experiment
from tests.campaign.shim import Orders

if TYPE_CHECKING:
    from tests.campaign.rounds import Place

MIB = 1 << 20
# What users call their folders.
ODD_NAMES = (
    "räume mit raum",
    "a'b\"c",
    "{x}%d#=,",
    "$HOME",
    "x" * 200,
    "-o",
    " two  spaces ",
    "[1]*?",
)
COMPUTES_OTHERWISE = "NumPy and torch compute instead"
MAY_MOUNT = functools.cache(namespaces.may_mount)


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _limit_memory(mib: int) -> None:
    """So much more address space than this process has now."""
    _limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + mib * MIB)


def _fill(folder: Path, kept: Path) -> None:
    tempfile.tempdir = None  # what the campaign itself has looked up before
    namespaces.be_alone()
    namespaces.full(folder, kept, programs.ROOT)


def limits(place: "Place") -> Outcome:
    """Few open files, little memory, small files, a full /tmp or /dev/shm: of each process of the command."""
    what, value = place.plan.fault["what"], place.plan.fault["value"]
    actions: dict[str, Callable[[], None]] = {
        "open_files": lambda: _limit(resource.RLIMIT_NOFILE, value),
        "file_bytes": lambda: _limit(resource.RLIMIT_FSIZE, value),
        "memory_mib": lambda: _limit_memory(value),
        "tmp": lambda: _fill(Path("/tmp"), place.shop.base),
        "shm": lambda: _fill(Path("/dev/shm"), place.shop.base),
    }
    if what in ("tmp", "shm") and not MAY_MOUNT():
        full = Orders(root="/dev/shm", at=1, errno=28, sticky=1)
        return place.conclude(place.run(orders={0: full}))
    names = (str(place.folder),) if what == "file_bytes" and place.experiment.ranks == 1 else ()
    end = place.run(before=actions[what])
    if COMPUTES_OTHERWISE in end.text:
        # The compiled kernels could not be loaded, which it said: the end may differ by rounding.
        check_end(end, "without compiled kernels", names=names)
        place.go_on(compares=False)
        return Outcome(STOPPED, f"it said: {COMPUTES_OTHERWISE}")
    return place.conclude(end, names=names)


def _leave_nothing(folder: Path) -> None:
    """The working folder is removed under the command."""
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def folders(place: "Place") -> Outcome:
    """Odd names, links in the place of folders, links that lead to themselves, a working folder that is gone."""
    what, more = place.plan.fault["what"], dict[str, object]()
    if what == "no_folder":
        more["before"] = lambda: _leave_nothing(place.folder / "gone")
    elif what == "run_is_link":
        _as_link(place.run_dir, place.folder / "elsewhere" / "run")
    elif what == "root_is_link":
        _as_link(place.root, place.folder / "elsewhere" / "data")
    elif what == "loop":
        return _with_loop(place)
    else:
        place.rename(ODD_NAMES[place.plan.fault["name"] % len(ODD_NAMES)])
    return place.conclude(place.run(**more))


def _as_link(path: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if path.is_dir():
        path.rename(target)
    else:
        target.mkdir()
    path.symlink_to(target)


def _with_loop(place: "Place") -> Outcome:
    """A link to itself where the command looks for something; afterwards it is removed."""
    where = {"train": place.root / "stores", "evaluate": place.root / "stores", "stage": place.root / "stores",
             "prepare": place.root}[place.experiment.command]  # fmt: skip
    if place.experiment.command == "prepare":
        folder = next(path for path in where.rglob("*.avi")).parent
        looped = folder / "again.avi"
    else:
        looped = next(path for path in where.iterdir() if path.is_dir())
        looped.rename(place.folder / "aside")
    looped.symlink_to(looped)
    end = place.run()
    sentence = check_end(end, "with a link to itself", names=place.names)
    looped.unlink()
    if place.experiment.command != "prepare":
        if end.ok:
            raise Failure(CRASHED, f"{looped} led to itself, and the command succeeded")
        (place.folder / "aside").rename(looped)
    place.go_on()
    return Outcome(STOPPED, sentence) if sentence else Outcome(SURVIVED, "")


# What people do with a run of somebody else's: the words after the command, by its name.
READERS: dict[str, Callable[["Place"], list[str]]] = {
    "status": lambda place: [str(place.run_dir)],
    "report": lambda place: [str(place.run_dir)],
    "evaluate": lambda place: ["--run-dir", str(place.run_dir)],
    "compare": lambda place: [str(place.run_dir), str(place.run_dir)],
    "table": lambda place: ["--run-dir", str(place.run_dir)],
    "study": lambda place: [str(place.run_dir)],
    "export": lambda place: _export_words(place, place.folder / "export"),
    "export_inside": lambda place: _export_words(place, place.run_dir / "export"),
    "train": lambda place: place.shop.argv(Experiment("train", place.experiment.data), place.root,
                                           place.run_dir)[1:],
    "new_phase": lambda place: place.shop.argv(
        Experiment("train", place.experiment.data, "st_resnet"), place.root, place.run_dir)[1:],
    "verify": lambda place: place.shop.argv(Experiment("prepare", place.experiment.data), place.root,
                                            place.run_dir)[1:],
    "prepare": lambda place: place.shop.argv(Experiment("prepare", place.experiment.data), place.root,
                                             place.run_dir)[1:],
}  # fmt: skip
COMMAND_OF = {"export_inside": "export", "new_phase": "train"}


def _export_words(place: "Place", out: Path) -> list[str]:
    return ["--run-dir", str(place.run_dir), "--phase", "motion", "--out", str(out)]


def _make_read_only(folders_: tuple[Path, ...]) -> None:
    namespaces.be_alone()
    for folder in folders_:
        namespaces.read_only(folder)


def readonly(place: "Place") -> Outcome:
    """A finished run and its store that cannot be written: each command serves, or says what it cannot write."""
    reader = place.plan.fault["reader"]
    finished = place.shop.folder_of(place.experiment)
    shutil.rmtree(place.run_dir)
    shutil.copytree(finished / "run", place.run_dir)
    words = [COMMAND_OF.get(reader, reader), *READERS[reader](place)]
    before = tree(place.run_dir), tree(place.root)
    end = _read(place, words, is_writable=False)
    sentence = check_end(end, f"{reader} of what is read-only", names=place.names)
    if before != (tree(place.run_dir), tree(place.root)):
        raise Failure(CRASHED, f"{reader} changed what is read-only")
    again = _read(place, words, is_writable=True)
    refused = check_end(again, f"{reader}, writable again", names=place.names)
    if refused:
        raise Failure(CRASHED, f"{reader}, writable again, was refused: {refused}")
    place.compare(place.experiment)
    return Outcome(STOPPED, f"{reader}: {sentence}") if sentence else Outcome(SURVIVED, "")


def _read(place: "Place", words: list[str], is_writable: bool) -> End:
    watched = (place.run_dir, place.root)
    before, orders = None, Orders()
    if not is_writable and MAY_MOUNT():
        before = functools.partial(_make_read_only, watched)
    elif not is_writable:
        orders = Orders(root=str(place.folder), at=1, errno=30, sticky=1)
    place.shop.outputs += 1
    output = place.shop.base / "outputs" / f"{place.shop.outputs:05d}.txt"
    start = Start(words, before=before, orders=orders, without=place.shop.without)
    return children.wait([fork(start, output)])


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Sizes and times of all files below a folder."""
    entries = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            entries[str(path)] = status.st_size, status.st_mtime_ns
    return entries


def place_of_work(place: "Place") -> Outcome:
    """A program of its own with another umask, locale, home and working folder."""
    end = programs.train_elsewhere(
        place.shop, place.experiment, place.root, place.run_dir, place.plan.fault
    )
    return place.conclude(end)


KINDS: dict[str, Callable[["Place"], Outcome]] = {
    "limits": limits, "folders": folders, "readonly": readonly, "place": place_of_work,
}  # fmt: skip
