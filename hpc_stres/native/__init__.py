"""Small C++ and CUDA kernels, compiled once with the machine's compilers into a cache and called through ctypes."""

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
NVCC_FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-shared")


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("HPC_STRES_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hpc_stres"
    )
    return Path(base)


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def cuda_compiler() -> str | None:
    """nvcc, if there is one: on the PATH, or where CUDA_HOME points."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def load(name: str) -> ctypes.CDLL:
    """The library of `name`.cpp, compiled now if the cache has none of this source. Threads compile it once."""
    with _lock:
        return _load(name)


def load_cuda(name: str, architecture: str) -> ctypes.CDLL:
    """The library of `name`.cu for one GPU architecture (`sm_90`)."""
    with _lock:
        return _load_cuda(name, architecture)


def load_emulated(name: str) -> ctypes.CDLL:
    """`name`.cu as plain C++, its kernels run pixel after pixel: for tests where there is no GPU."""
    with _lock:
        return _load_emulated(name)


@functools.lru_cache
def _load(name: str) -> ctypes.CDLL:
    return _built(SOURCES / f"{name}.cpp", name, _cpp_command())


@functools.lru_cache
def _load_cuda(name: str, architecture: str) -> ctypes.CDLL:
    found = cuda_compiler()
    if found is None:
        raise UserError(
            f"no nvcc to build {name}.cu\nLoad a CUDA module, or choose data.flow_backend=native (the CPU's)."
        )
    return _built(SOURCES / f"{name}.cu", f"{name}-{architecture}", (found, *NVCC_FLAGS, f"-arch={architecture}"))


@functools.lru_cache
def _load_emulated(name: str) -> ctypes.CDLL:
    command = (*_cpp_command(), "-include", "cmath", "-x", "c++")
    return _built(SOURCES / f"{name}.cu", f"{name}-emulated", command)


def _cpp_command() -> tuple[str, ...]:
    found = compiler()
    if found is None:
        raise UserError(
            "no C++ compiler to build the kernels\nInstall g++ (or load a compiler module), "
            "or choose data.flow_backend=opencv."
        )
    return (found, *FLAGS, *(MODERN_FLAGS if _is_modern() else ()))


def _built(source: Path, name: str, command: tuple[str, ...]) -> ctypes.CDLL:
    """The library of a source and its headers, from the cache or made now."""
    parts = [source, *sorted(SOURCES.glob("*.h"))]
    text = b"".join(path.read_bytes() for path in parts) + " ".join(command[1:]).encode()
    library = cache_folder() / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not library.is_file():
        with atomic_path(library) as temporary:
            run = subprocess.run(
                [*command, "-o", str(temporary), str(source)], capture_output=True, text=True, check=False
            )
            if run.returncode != 0:
                lines = (run.stderr.strip() or run.stdout.strip() or "no message").splitlines()
                raise UserError(f"{command[0]} cannot build {source}:\n{lines[-1]}")
    return ctypes.CDLL(str(library))


def _is_modern() -> bool:
    """Whether this processor has what x86-64-v3 asks for (AVX2 and fused multiply-add: any since 2013)."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file():
        return False
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    return {"avx2", "fma", "bmi2"} <= set(flags)
