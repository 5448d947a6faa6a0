"""The library that puts faults between libc and a program (shim.c): built, loaded, told what to do."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
LOADED = "CAMPAIGN_LOADED"


@dataclass(frozen=True)
class Orders:
    """What the shim is told; the names are those of shim.c."""

    root: str = ""
    log: str = ""
    count: str = ""
    at: int = 0
    errno: int = 0
    sticky: int = 0
    signal: int = 0
    torn: int = 0
    reads: int = 0
    clock: int = 0
    clock_at: int = 0
    slow_us: int = 0

    def __str__(self) -> str:
        return ";".join(f"{name}={value}" for name, value in asdict(self).items() if value)


def build(folder: Path) -> Path:
    """The compiled shim; built once for each version of its source."""
    version = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    library = folder / f"shim-{version}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*command, "-o", str(made), str(SOURCE), "-lpthread"], check=True)
        made.replace(library)
    return library


def restart_with_shim(folder: Path) -> None:
    """Start this program again with the shim in it, unless it is there already. Forked children have it too."""
    if os.environ.get(LOADED):
        return
    if shutil.which("gcc") is None:
        sys.exit(
            "the campaign needs gcc for the library that faults come from: apt-get install gcc libc6-dev"
        )
    environment = {
        **os.environ, "LD_PRELOAD": str(build(folder)), LOADED: "1",
        # One thread: a process with threads cannot be forked.
        "OMP_NUM_THREADS": "1", "HPC_STRES_THREADS": "1", "MKL_NUM_THREADS": "1",
    }  # fmt: skip
    os.execve(sys.executable, sys.orig_argv, environment)


def arm(orders: Orders) -> None:
    """Tell the shim of this process."""
    ctypes.CDLL(None).campaign_arm(str(orders).encode())


def calls() -> int:
    """Calls that this process's shim has counted."""
    ask = ctypes.CDLL(None).campaign_calls
    ask.restype = ctypes.c_long
    return int(ask())
