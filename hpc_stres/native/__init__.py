"""Small C++ and CUDA kernels, compiled once with the machine's compilers into a cache and called through ctypes."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.native.cache import cache_folder, cached

__all__ = ["cache_folder", "compiler", "cuda_compiler", "load", "load_cuda", "load_emulated"]

_lock = threading.Lock()
SOURCES = Path(__file__).parent
# What the kernels need of -ffast-math, one by one: sums in any order, no error numbers, no traps.
# The flag itself (and -funsafe-math-optimizations, -Ofast) links code into a shared library that
# makes the thread which loads it, and all that it starts, flush denormal numbers to zero: torch's
# and NumPy's arithmetic too. A kernel that wants that sets it for its own threads while it runs.
ARITHMETIC_FLAGS = (
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-freciprocal-math",
)
FLAGS = ("-O3", "-std=c++17", *ARITHMETIC_FLAGS, "-fPIC", "-shared", "-pthread")
# One fixed level, never -march=native: what a login node computes must be, byte for byte, what a compute node does.
MODERN_FLAGS = ("-march=x86-64-v3",)
NVCC_FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-shared")


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def cuda_compiler() -> str | None:
    """nvcc, if there is one: on the PATH, or where CUDA_HOME points."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


# A process may fork while one of its threads compiles: that thread stays in the parent, and its
# hold on the lock would never end in the child.
os.register_at_fork(after_in_child=_renew_lock)


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
    return _built(
        SOURCES / f"{name}.cu",
        f"{name}-{architecture}",
        (found, *NVCC_FLAGS, f"-arch={architecture}"),
    )


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
    parts = {path.name: path.read_bytes() for path in (source, *sorted(SOURCES.glob("*.h")))}
    digest = hashlib.sha256()
    # A home folder may be shared by machines of several kinds.
    words = (name, platform.machine(), *command[1:])
    for part in (*(word.encode() for word in words), *parts.values()):
        digest.update(b"%d " % len(part) + part)
    return cached(name, digest.hexdigest(), lambda: _compiled(source, parts, command))


def _compiled(source: Path, parts: dict[str, bytes], command: tuple[str, ...]) -> bytes:
    """What the compiler makes of the very bytes that the library is named by."""
    try:
        with tempfile.TemporaryDirectory(prefix="hpc_stres-build-") as folder:
            for file, data in parts.items():
                Path(folder, file).write_bytes(data)
            result = Path(folder, "library.so")
            run = subprocess.run(
                [*command, "-o", str(result), str(Path(folder, source.name))],
                env={**os.environ, "TMPDIR": folder},
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if run.returncode == 0:
                return result.read_bytes()
    except OSError as error:
        remedy = "Set TMPDIR to a folder with room."
        raise UserError(f"{source.name} cannot be built: {error}\n{remedy}") from None
    said = run.stderr.strip() or run.stdout.strip() or f"exit status {run.returncode}"
    lines = said.replace(folder, str(source.parent)).splitlines()
    line = next((line for line in lines if "error" in line), lines[-1])
    raise UserError(f"{command[0]} cannot build {source}:\n{line}")


def _is_modern() -> bool:
    """Whether this processor has what x86-64-v3 asks for (AVX2 and fused multiply-add: any since 2013)."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file():
        return False
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    return {"avx2", "fma", "bmi2"} <= set(flags)
