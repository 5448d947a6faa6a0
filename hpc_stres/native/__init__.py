"""Small C++ kernels, compiled once with the machine's g++ into a cache and called through ctypes."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import threading
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.runpaths import atomic_path

_lock = threading.Lock()
SOURCES = Path(__file__).parent
FLAGS = ("-O3", "-std=c++17", "-ffast-math", "-fno-finite-math-only", "-fPIC", "-shared", "-pthread")
# One fixed level, never -march=native: what a login node computes must be, byte for byte, what a compute node does.
MODERN_FLAGS = ("-march=x86-64-v3",)


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("HPC_STRES_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hpc_stres"
    )
    return Path(base)


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def load(name: str) -> ctypes.CDLL:
    """The library of `name`.cpp, compiled now if the cache has none of this source. Threads compile it once."""
    with _lock:
        return _load(name)


@functools.lru_cache
def _load(name: str) -> ctypes.CDLL:
    source = SOURCES / f"{name}.cpp"
    flags = FLAGS + (MODERN_FLAGS if _is_modern() else ())
    text = source.read_bytes() + " ".join(flags).encode()
    library = cache_folder() / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not library.is_file():
        _compile(source, library, flags)
    return ctypes.CDLL(str(library))


def _is_modern() -> bool:
    """Whether this processor has what x86-64-v3 asks for (AVX2 and fused multiply-add: any since 2013)."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file():
        return False
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    return {"avx2", "fma", "bmi2"} <= set(flags)


def _compile(source: Path, library: Path, flags: tuple[str, ...]) -> None:
    found = compiler()
    if found is None:
        raise UserError(
            f"no C++ compiler to build {source.name}\nInstall g++ (or load a compiler module), "
            "or choose data.flow_backend=opencv."
        )
    with atomic_path(library) as temporary:
        run = subprocess.run(
            [found, *flags, "-o", str(temporary), str(source)], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise UserError(f"{found} cannot build {source}:\n{run.stderr.strip().splitlines()[-1]}")
