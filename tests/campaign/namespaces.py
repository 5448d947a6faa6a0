"""A child's own view of the file systems: disks that are full or read-only for it alone, and gone with it.

Linux's mount namespaces, of which only root may make one. Whoever is not root gets the shim's errors in
their place (`surroundings.py`).
"""

import contextlib
import ctypes
import os
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000


def may_mount() -> bool:
    """Whether this user can have a namespace with mounts of its own."""
    if os.geteuid() != 0:
        return False
    pid = os.fork()
    if not pid:
        status = 1
        with contextlib.suppress(OSError):
            be_alone()
            status = 0
        os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def be_alone() -> None:
    """From here on, what this process mounts is seen by it and its children alone."""
    _call("unshare", CLONE_NEWNS)
    _call("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)


def read_only(folder: Path) -> None:
    """A folder that cannot be written."""
    name = os.fsencode(folder)
    _call("mount", name, name, None, ctypes.c_ulong(MS_BIND), None)
    flags = ctypes.c_ulong(MS_REMOUNT | MS_BIND | MS_RDONLY)
    _call("mount", b"none", name, None, flags, None)


def full(folder: Path, *kept: Path) -> None:
    """Another, full file system in the place of a folder; what is `kept`, which may lie in it, is as it was."""
    before = {path: os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in kept}
    size = b"size=256k,mode=1777"
    _call("mount", b"campaign", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), size)
    for path, descriptor in before.items():
        if path.is_relative_to(folder):
            path.mkdir(parents=True, exist_ok=True)
            source = f"/proc/self/fd/{descriptor}".encode()
            _call("mount", source, os.fsencode(path), None, ctypes.c_ulong(MS_BIND), None)
        os.close(descriptor)
    with contextlib.suppress(OSError), (folder / "filled").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
