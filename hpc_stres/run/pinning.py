"""Kernels of one level on every x86 processor with AVX2: variables that libraries read when they
are loaded. Pure."""

import os
import platform
import sys

from hpc_stres.config.schema import TrainingConfig

# What bits depend on beside versions: the vectors that torch, oneDNN and MKL compute with. AVX2 is
# the widest level that every processor of the last ten years has. cuBLAS needs a fixed workspace.
LEVEL = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2,STRICT",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def pin_kernels(training: TrainingConfig) -> None:
    """For a bitwise config: fix the level, unless the environment names one already.

    It must be called before torch is loaded; after that it leaves things as they are.
    """
    if training.reproducible == "bitwise" and "torch" not in sys.modules:
        for name, value in LEVEL.items():
            os.environ.setdefault(name, value)


def level() -> dict[str, str]:
    """What must be equal for equal bits and is not a package's version."""
    return {
        "processor": platform.machine(),
        **{name: os.environ.get(name, "as wide as it goes") for name in LEVEL},
    }
