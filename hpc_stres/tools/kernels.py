"""Compiled kernels beside a copy of the package's sources."""

from pathlib import Path

from hpc_stres import native


def carry_kernels(folder: Path) -> None:
    """Put the kernels that this user's cache has into the `native` folder of a copy, so that its
    jobs need neither a compiler nor that cache. Those that it lacks are built by the first job that
    wants them, as everywhere."""
    native.carry(folder / native.PREBUILT)
