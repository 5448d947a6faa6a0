"""Small C++ and CUDA kernels, called through ctypes.

A kernel of the CPU comes from the first of these that has it: the package itself (a wheel that was
built beside a compiler carries its kernels, see setup.py), this user's cache, the machine's
compiler, whose result the cache keeps. Where none has it, `find` gives None, says so once, and the
caller takes its own slower way to the same numbers.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from hpc_stres.errors import UserError
from hpc_stres.native.cache import (
    cache_folder,
    cached,
    load_from_memory,
    pack,
    read_library,
    unpack,
)

__all__ = [
    "cache_folder",
    "carry",
    "compiler",
    "cuda_compiler",
    "find",
    "find_with_calls",
    "is_prebuilt",
    "load",
    "load_cuda",
    "load_emulated",
    "prebuild",
]

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
# One fixed level, never -march=native: what a login node computes must be, byte for byte, what a
# compute node does.
MODERN_FLAGS = ("-march=x86-64-v3",)
PREBUILT = "prebuilt"  # the folder beside the sources
# Who has said already that a kernel is missing: the processes that this one starts keep silent.
TOLD_VARIABLE = "HPC_STRES_TOLD_OF_KERNELS"
# Ranks other than the first keep silent as well.
RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
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
    """The library of `name`.cpp, compiled now if the cache has none of this source. Threads
    compile it once."""
    with _lock:
        return _load(name)


def load_cuda(name: str, architecture: str) -> ctypes.CDLL:
    """The library of `name`.cu for one GPU architecture (`sm_90`)."""
    with _lock:
        return _load_cuda(name, architecture)


def load_emulated(name: str) -> ctypes.CDLL:
    """`name`.cu as plain C++, its kernels run pixel after pixel: for tests where
    there is no GPU."""
    with _lock:
        return _load_emulated(name)


@functools.cache
def find(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp; None where it can neither be found nor built,
    which is said once."""
    try:
        return load(name)
    except UserError as error:
        _tell(str(error).splitlines()[0])
        return None


def find_with_calls(name: str, call: type[ctypes.Structure]) -> ctypes.CDLL | None:
    """`find` for a library that is told its work in one structure; its own has to be as long."""
    library = find(name)
    if library is not None and getattr(library, f"{name}_call_bytes")() != ctypes.sizeof(call):
        raise AssertionError(f"{name}.cpp and {call.__module__} differ in what a call is")
    return library


def _tell(reason: str) -> None:
    is_first = all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)
    if is_first and TOLD_VARIABLE not in os.environ:
        print(
            f"hpc-stres: {reason}: NumPy and torch compute instead, several times slower "
            "(`hpc-stres doctor` says what a compiler gains)",
            file=sys.stderr,
        )
    os.environ[TOLD_VARIABLE] = "1"


@functools.lru_cache
def _load(name: str) -> ctypes.CDLL:
    source = SOURCES / f"{name}.cpp"
    parts, key = _parts_and_key(source, name, _cpp_flags(_is_modern()))
    return _prebuilt(name, key) or _built(source, name, parts, key, _cpp_flags(_is_modern()))


def _prebuilt(name: str, key: str) -> ctypes.CDLL | None:
    """The library that came with the package, if it was made of these very
    sources and runs here."""
    file = _prebuilt_file(SOURCES / PREBUILT, name, key)
    library = unpack(file.read_bytes(), key) if file.is_file() else None
    if library is not None:
        # One that was made on a machine with a newer system may not load here: it is built anew.
        with contextlib.suppress(UserError):
            return load_from_memory(library, name)
    return None


def is_prebuilt(name: str) -> bool:
    """Whether the package carries a kernel for this machine."""
    _, key = _parts_and_key(SOURCES / f"{name}.cpp", name, _cpp_flags(_is_modern()))
    return _prebuilt_file(SOURCES / PREBUILT, name, key).is_file()


def prebuild(folder: Path) -> list[Path]:
    """Build each kernel of the CPU, for every kind of processor, into a folder; the files."""
    made = []
    levels = (False, True) if platform.machine() == "x86_64" else (False,)
    for source in sorted(SOURCES.glob("*.cpp")):
        for is_modern in levels:
            flags = _cpp_flags(is_modern)
            parts, key = _parts_and_key(source, source.stem, flags)
            folder.mkdir(parents=True, exist_ok=True)
            file = _prebuilt_file(folder, source.stem, key)
            file.write_bytes(pack(_compiled(source, parts, (_require_compiler(), *flags)), key))
            made.append(file)
    return made


def carry(folder: Path) -> None:
    """Copy the kernels that came with the package, or that this user's cache has, into a folder."""
    for source in sorted(SOURCES.glob("*.cpp")):
        for is_modern in (False, True):
            _, key = _parts_and_key(source, source.stem, _cpp_flags(is_modern))
            came = _prebuilt_file(SOURCES / PREBUILT, source.stem, key)
            library = unpack(came.read_bytes(), key) if came.is_file() else None
            library = library or read_library(_prebuilt_file(cache_folder(), source.stem, key), key)
            if library is not None:
                folder.mkdir(parents=True, exist_ok=True)
                _prebuilt_file(folder, source.stem, key).write_bytes(pack(library, key))


def _prebuilt_file(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key[:16]}.so"


@functools.lru_cache
def _load_cuda(name: str, architecture: str) -> ctypes.CDLL:
    nvcc = cuda_compiler()
    if nvcc is None:
        raise UserError(
            f"no nvcc to build {name}.cu\nLoad a CUDA module, or choose data.flow_backend=native (the CPU's)."
        )
    source, name = SOURCES / f"{name}.cu", f"{name}-{architecture}"
    flags = (*NVCC_FLAGS, f"-arch={architecture}")
    return _built(source, name, *_parts_and_key(source, name, flags), flags, nvcc)


@functools.lru_cache
def _load_emulated(name: str) -> ctypes.CDLL:
    source, name = SOURCES / f"{name}.cu", f"{name}-emulated"
    flags = (*_cpp_flags(_is_modern()), "-include", "cmath", "-x", "c++")
    return _built(source, name, *_parts_and_key(source, name, flags), flags)


def _cpp_flags(is_modern: bool) -> tuple[str, ...]:
    return (*FLAGS, *(MODERN_FLAGS if is_modern else ()))


def _require_compiler() -> str:
    program = compiler()
    if program is None:
        raise UserError(
            "no C++ compiler to build the kernels\nInstall g++ (or load a compiler module); CXX names another one."
        )
    return program


def _parts_and_key(source: Path, name: str, flags: tuple[str, ...]) -> tuple[dict[str, bytes], str]:
    """A source and its headers, and a checksum over all that decides the library made of them."""
    parts = {path.name: path.read_bytes() for path in (source, *sorted(SOURCES.glob("*.h")))}
    digest = hashlib.sha256()
    # A home folder may be shared by machines of several kinds.
    words = (name, platform.machine(), *flags)
    for part in (*(word.encode() for word in words), *parts.values()):
        digest.update(b"%d " % len(part) + part)
    return parts, digest.hexdigest()


def _built(
    source: Path, name: str, parts: dict[str, bytes], key: str, flags: tuple[str, ...], program: str | None = None
) -> ctypes.CDLL:  # fmt: skip
    """A library from the cache, where a compiler is not needed, or made now."""
    return cached(
        name, key, lambda: _compiled(source, parts, (program or _require_compiler(), *flags))
    )


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
    """Whether this processor has what x86-64-v3 asks for (AVX2 and fused multiply-add:
    any since 2013)."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").is_file():
        return False
    flags = (
        Path("/proc/cpuinfo")
        .read_text(encoding="utf-8")
        .partition("flags")[2]
        .partition("\n")[0]
        .split()
    )
    return {"avx2", "fma", "bmi2"} <= set(flags)
