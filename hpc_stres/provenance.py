"""What a run was made with: config, code, packages, machine. Everything a stranger needs to repeat it."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hpc_stres import __version__
from hpc_stres.config import Config
from hpc_stres.configfile import dump
from hpc_stres.runpaths import RunPaths, write_json, write_text

PACKAGES = (
    "torch", "deepspeed", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "submitit", "mpi4py", "numpy",
    "opencv-contrib-python-headless", "av", "safetensors",
)  # fmt: skip
REPOSITORY = Path(__file__).resolve().parent.parent
# Variables that decide where and how a job runs; others may hold secrets and stay out.
ENVIRONMENT_PREFIXES = ("SLURM_", "OMPI_", "NCCL_", "CUDA_", "OMP_", "MASTER_", "HPC_STRES_", "TORCH_")


def write_provenance(run_dir: Path, config: Config) -> None:
    """Write the resolved config and the provenance where they are missing; the first writer stays."""
    paths = RunPaths(run_dir)
    if not paths.config.is_file():
        write_text(paths.config, dump(config))
    if not paths.provenance.is_file():
        write_text(paths.code_diff, _git("diff", "HEAD") or "")
        write_json(paths.provenance, provenance(config))


def provenance(config: Config) -> dict[str, Any]:
    """Code version, package versions, machine and environment."""
    return {
        "hpc_stres": __version__,
        "commit": (_git("rev-parse", "HEAD") or "unknown").strip(),
        "changed_files": (_git("status", "--porcelain") or "").splitlines(),
        "recipe": config.recipe,
        "seed": config.seed,
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "machine": {"host": platform.node(), "system": platform.platform(), "cores": os.cpu_count()},
        "packages": package_versions(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT_PREFIXES)},
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on, as installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return run.stdout if run.returncode == 0 else None
