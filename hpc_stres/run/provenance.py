"""What a run was made with: config, code, packages, machine. Everything a stranger
needs to repeat it.

Run folders are shared, and report.html shows what is written here: of the environment only
variables on a list are kept, and values that look like secrets are left out of command lines.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpc_stres import SOURCES, __version__
from hpc_stres.config.loading import dump
from hpc_stres.config.schema import Config
from hpc_stres.config.seal import sealed_text
from hpc_stres.run.paths import RunPaths, write_json, write_text
from hpc_stres.run.pinning import level

PACKAGES = (
    "torch", "deepspeed", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "submitit", "mpi4py", "numpy",
    "opencv-contrib-python-headless", "av", "safetensors",
)  # fmt: skip
# Variables that decide where and how a job runs, by name: any other may hold a secret
# (SLURM_JWT does).
ENVIRONMENT = frozenset((
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_JOB_PARTITION",
    "SLURM_JOB_QOS", "SLURM_JOB_CPUS_PER_NODE", "SLURM_JOB_GPUS", "SLURM_JOB_END_TIME", "SLURM_CLUSTER_NAME",
    "SLURM_NNODES", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_STEP_NODELIST", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_CPU_BIND", "SLURM_GPUS_ON_NODE",
    "SLURM_GPUS_PER_NODE", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_MPI_TYPE", "SLURM_RESTART_COUNT",
    "SLURM_EXPORT_ENV", "SLURMD_NODENAME",
    "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
    "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID",
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_BLOCKING_WAIT",
    "TORCH_CUDNN_V8_API_DISABLED", "TORCH_CUDA_ARCH_LIST",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING",
    "CUDA_HOME", "CUDA_MODULE_LOADING", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "MKL_NUM_THREADS", "MKL_CBWR", "OPENBLAS_NUM_THREADS",
    "NCCL_ALGO", "NCCL_PROTO", "NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_SOCKET_IFNAME", "NCCL_SOCKET_FAMILY",
    "NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_IB_GID_INDEX", "NCCL_IB_TIMEOUT", "NCCL_NET", "NCCL_NET_GDR_LEVEL",
    "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_CROSS_NIC", "NCCL_MIN_NCHANNELS",
    "NCCL_MAX_NCHANNELS", "NCCL_NVLS_ENABLE", "NCCL_TOPO_FILE", "GLOO_SOCKET_IFNAME",
    "HPC_STRES_THREADS", "HPC_STRES_PROGRESS", "HPC_STRES_END_TIME", "HPC_STRES_CACHE", "HPC_STRES_PROFILE",
    "HPC_STRES_VENV",
))  # fmt: skip
SECRET = re.compile(
    r"token|secret|passw|passphrase|credential|jwt|bearer|auth(?!or)|apikey|(^|[_.-])(key|pat)($|[^a-z])",
    re.IGNORECASE,
)
HIDDEN = "***"
MOST_DIFF_BYTES, MOST_CHANGED_FILES, MOST_VALUE_LETTERS, GIT_SECONDS = 1 << 20, 200, 1000, 30


def write_provenance(run_dir: Path, config: Config) -> None:
    """Write the resolved config and the provenance where they are missing; the
    first writer stays."""
    paths = RunPaths(run_dir)
    if not paths.config.is_file():
        write_text(paths.config, sealed_text(dump(config)))
    if not paths.provenance.is_file():
        write_text(paths.code_diff, code_diff())
        write_json(paths.provenance, provenance(config))


def provenance(config: Config) -> dict[str, Any]:
    """Code version, package versions, machine and environment."""
    changed = (_git("status", "--porcelain") or "").splitlines()
    return {
        "hpc_stres": __version__,
        "commit": (_git("rev-parse", "HEAD") or "unknown").strip(),
        "changed_files": changed[:MOST_CHANGED_FILES],
        "recipe": config.recipe,
        "seed": config.seed,
        "command": [without_secret(word) for word in sys.argv],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        },
        "packages": package_versions(),
        "kernels": level(),
        "environment": kept_environment(os.environ),
    }


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables on the list, as printable text."""
    kept = sorted(ENVIRONMENT & environment.keys())
    return {name: _printable(environment[name])[:MOST_VALUE_LETTERS] for name in kept}


def without_secret(word: str) -> str:
    """A word of a command line; of `KEY=VALUE` only the key where either looks like a secret,
    no URL's password."""
    text = re.sub(r"//[^/@\s]+@", f"//{HIDDEN}@", _printable(word))
    key, equals, _ = text.partition("=")
    return f"{key}={HIDDEN}" if equals and SECRET.search(text) else text


def without_secrets(config: Config) -> Config:
    """The config as it may be shown: no values of job variables whose names look like secrets."""
    shown = {k: HIDDEN if SECRET.search(k) else v for k, v in config.cluster.environment.items()}
    return replace(config, cluster=replace(config.cluster, environment=shown))


def code_diff() -> str:
    """Changes of the code against its commit; cut off, and said to be, where
    they are very large."""
    text = _git("diff", "--no-ext-diff", "--no-textconv", "HEAD") or ""
    if len(text) <= MOST_DIFF_BYTES:
        return text
    return (
        f"{text[:MOST_DIFF_BYTES]}\n# cut off here: the whole difference has {len(text)} letters\n"
    )


def _printable(text: str) -> str:
    """Text that can be written as UTF-8: names of files may hold other bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on, as installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str | None:
    """Output of git about this package's own repository; none where the package was
    installed without one."""
    top = _run_git("rev-parse", "--show-toplevel")
    # An installed package may lie inside somebody else's repository, whose changes
    # are none of ours.
    if top is None or Path(top.strip()).resolve() != SOURCES:
        return None
    return _run_git(*arguments)


def _run_git(*arguments: str) -> str | None:
    words = ["git", "-C", str(SOURCES), *arguments]
    try:
        run = subprocess.run(words, capture_output=True, check=False, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.decode("utf-8", "backslashreplace") if run.returncode == 0 else None
