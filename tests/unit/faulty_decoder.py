"""The child of `guard` with faults put in by the name of the video, for tests: what broken libraries do."""

import ctypes
import os
import signal
import time
from pathlib import Path

from hpc_stres.prepare import guarded
from hpc_stres.prepare.extract import extract as real_extract

served = 0


def hang():
    while True:
        pass


def eat():
    kept = []
    while True:
        kept.append(bytearray(1 << 24))


def strange():
    raise KeyError("no such thing\nand a second line")


FAULTS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "leaves": lambda: os._exit(3),
    "hang": hang,
    "sleep": lambda: time.sleep(1e6),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "eats": eat,
    "strange": strange,
}


def extract(path, settings, emit, *more):
    """Do what the file's name says, and otherwise prepare the video."""
    global served
    served += 1
    name = path.stem
    if name == "sleep":
        Path(f"{path}.pid").write_text(str(os.getpid()))
    if name in FAULTS:
        FAULTS[name]()
    if name == "kill_once" and mark(path):
        FAULTS["kill"]()
    if name == "only_fresh" and served > 1:
        FAULTS["segfault"]()
    while name == "endless":
        emit("rgb", bytes(1 << 16))
    height, width, note = real_extract(path, settings, emit, *more)
    return height, width, str(os.getpid()) if name == "tells" else note


def mark(path):
    """Whether this is the first call for a video."""
    first = Path(f"{path}.marked")
    if first.exists():
        return False
    first.touch()
    return True


def main(results_fd):
    """`guarded.main` with these faults."""
    guarded.extract = extract
    guarded.main(results_fd)
