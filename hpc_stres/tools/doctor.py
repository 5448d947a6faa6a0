"""What is on a machine and what would go wrong on it."""

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

INSTALL = "run env/setup.sh"
# What `prepare`, the feed and training on processors cannot do quickly without.
KERNELS = ("tvl1", "resize", "norm", "pool", "exact")
MIN_OPEN_FILES, MIN_SHM_MIB, MIN_FREE_GIB, MIN_INODES, MIN_MEMORY_GIB = 1024, 64, 5, 20_000, 4


@dataclass(frozen=True)
class Finding:
    """One line: what, its state, what was found, what to do; `fatal` if the main job
    cannot do without."""

    what: str
    state: Literal["ok", "warning", "missing"]
    text: str
    remedy: str = ""
    fatal: bool = False


def examine(data_root: Path) -> list[Finding]:
    """All findings, in the order in which a person would fix them."""
    checks: list[Callable[[], Finding]] = [
        _python, _torch, _gpus, _dali, _deepspeed, _compiler, _video, _opencv, _submitit, _mpi, _slurm, _open_files,
        _shared_memory, lambda: _disk(data_root), lambda: _inodes(data_root), _memory, _cores,
    ]  # fmt: skip
    return [check() for check in checks]


def _package(what: str, module: str, distribution: str, fatal: bool) -> Finding:
    try:
        importlib.import_module(module)
        return Finding(what, "ok", importlib.metadata.version(distribution))
    except Exception as error:  # an import can fail in any way; the line says how
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Finding(what, "missing", f"{module} does not import: {reason}", INSTALL, fatal)


def _python() -> Finding:
    text = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding("Python", "ok" if good else "missing", text, "use Python 3.11 to 3.13", not good)


def _torch() -> Finding:
    package = _package("torch", "torch", "torch", True)
    if package.state != "ok":
        return package
    import torch

    cuda = torch.version.cuda
    if cuda is None and shutil.which("nvidia-smi"):
        return Finding(
            "torch",
            "warning",
            f"{package.text} without CUDA beside an NVIDIA driver",
            "install torch's CUDA build",
        )
    return Finding("torch", "ok", f"{package.text}, " + (f"CUDA {cuda}" if cuda else "CPU build"))


def _gpus() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPUs", "warning", "unknown without torch", INSTALL)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("GPUs", "ok", f"{len(names)}: {', '.join(sorted(set(names)))}")
    if torch.version.cuda and shutil.which("nvidia-smi"):
        return Finding(
            "GPUs",
            "warning",
            "torch sees none beside an NVIDIA driver",
            "compare the driver's CUDA with torch's",
        )
    return Finding(
        "GPUs",
        "warning",
        "none: everything runs on the CPU",
        "real training wants GPUs; the demo does not",
    )


def _dali() -> Finding:
    names = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
    present = [name for name in names if _version(name)]
    if not present:
        return Finding("DALI", "missing", "no nvidia-dali package", INSTALL, True)
    package = _package("DALI", "nvidia.dali", present[0], True)
    if package.state != "ok":
        return package
    import torch

    cuda = (torch.version.cuda or "").split(".")[0]
    if cuda and not present[0].endswith(f"{cuda}0"):
        return Finding("DALI", "warning", f"{present[0]} beside torch for CUDA {cuda}", INSTALL)
    return Finding("DALI", "ok", f"{present[0]} {package.text}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _deepspeed() -> Finding:
    if not _version("deepspeed"):
        return Finding(
            "DeepSpeed", "missing", "not installed", f"{INSTALL}, or set training.engine=ddp", True
        )
    return Finding("DeepSpeed", "ok", str(_version("deepspeed")))


def _compiler() -> Finding:
    from hpc_stres import native

    program = native.compiler()
    if program:
        return Finding("C++ compiler", "ok", program)
    if all(native.is_prebuilt(name) for name in KERNELS):
        return Finding(
            "C++ compiler", "ok", "none, and none is needed: the kernels came with the package"
        )
    remedy = "install g++, load a compiler module or set CXX: flow becomes 8 times as fast, and so do crops and resizes"
    return Finding(
        "C++ compiler",
        "warning",
        "no g++: NumPy computes flow, torch resizes; the same numbers",
        remedy,
    )


def tell_of_missing_kernels() -> None:
    """One line where jobs that are started here will have to do without kernels."""
    from hpc_stres import native

    if _compiler().state != "ok":
        native.find(KERNELS[0])  # one from the cache will do


def _video() -> Finding:
    return _package("PyAV (ffmpeg)", "av", "av", True)


def _opencv() -> Finding:
    return _package("OpenCV", "cv2", "opencv-contrib-python-headless", True)


def _submitit() -> Finding:
    return _package("submitit", "submitit", "submitit", True)


def _mpi() -> Finding:
    package = _package("MPI", "mpi4py.MPI", "mpi4py", False)
    if package.state == "ok":
        return Finding(
            "MPI", "ok", f"mpi4py {package.text}, {shutil.which('mpirun') or 'no mpirun'}"
        )
    return Finding(
        "MPI",
        "warning",
        package.text,
        "only `prepare` over several nodes needs it: install openmpi-bin",
    )


def _slurm() -> Finding:
    if not shutil.which("sinfo"):
        return Finding(
            "Slurm", "warning", "no sinfo here", "jobs run on this machine (--cluster local)"
        )
    try:
        run = subprocess.run(
            ["sinfo", "-h", "-o", "%P %D %G"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except subprocess.TimeoutExpired:
        return Finding("Slurm", "warning", "sinfo does not answer", "ask whoever runs the cluster")
    if run.returncode != 0:
        said = " ".join(run.stderr.split())[:80]
        return Finding("Slurm", "warning", f"sinfo: {said}", "ask whoever runs the cluster")
    return Finding(
        "Slurm",
        "ok",
        "partitions (nodes, GPUs): " + "; ".join(run.stdout.split("\n")[:6]).strip("; "),
    )


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= MIN_OPEN_FILES
    return Finding(
        "open files",
        "ok" if enough else "warning",
        f"{soft} (most {hard})",
        f"ulimit -n {MIN_OPEN_FILES}",
    )


def _shared_memory() -> Finding:
    if not Path("/dev/shm").is_dir():
        return Finding(
            "/dev/shm", "warning", "not there", "ranks of one node talk over sockets then"
        )
    free = shutil.disk_usage("/dev/shm").free >> 20
    return Finding(
        "/dev/shm",
        "ok" if free >= MIN_SHM_MIB else "warning",
        f"{free} MiB free",
        "enlarge it for NCCL",
    )


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _disk(data_root: Path) -> Finding:
    free = shutil.disk_usage(_existing(data_root)).free / 2**30
    state: Literal["ok", "warning"] = "ok" if free >= MIN_FREE_GIB else "warning"
    return Finding(
        "data folder",
        state,
        f"{free:.0f} GiB free under {data_root}",
        "UCF101's store takes about 120 GiB",
    )


def _inodes(data_root: Path) -> Finding:
    status = os.statvfs(_existing(data_root))
    if status.f_files == 0:
        return Finding("inodes", "ok", "this file system does not count them")
    enough = status.f_favail >= MIN_INODES
    remedy = "while it runs, `prepare` takes a file a video"
    return Finding("inodes", "ok" if enough else "warning", f"{status.f_favail} free", remedy)


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()) / 2**30)
    state: Literal["ok", "warning"] = "ok" if total >= MIN_MEMORY_GIB else "warning"
    return Finding(
        "memory", state, f"{total:.1f} GiB for this process and its like", "ask for more in the job"
    )


def _cores() -> Finding:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    remedy = "ask for cores: --cpus-per-task on sbatch and on srun"
    state: Literal["ok", "warning"] = "warning" if usable == 1 < there else "ok"
    return Finding("cores", state, f"{usable} usable of {there}", remedy)
