"""How a wheel is built beside a compiler: with the kernels in it. Everything else is in pyproject.toml.

Such a wheel is one for this kind of machine (`py3-none-linux_x86_64`) and wants no compiler where it
is installed. Without a compiler here the wheel is one for all machines, and holds the sources only.
An editable install builds nothing: its kernels come from the cache of whoever uses them.
"""

import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# The tree that is being built, and no other that may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from hpc_stres import native
from hpc_stres.errors import UserError


class BuildKernels(build_py):
    """`build_py`, and the kernels beside their sources."""

    def run(self) -> None:
        """Copy the package, then build into the copy."""
        super().run()
        if self.editable_mode or native.compiler() is None:
            return
        try:
            native.prebuild(Path(self.build_lib, *native.__name__.split("."), native.PREBUILT))
        except UserError as error:
            raise SystemExit(
                f"{error}\nSet CXX to a compiler of C++17; CXX=none leaves the kernels out."
            ) from None


class KernelWheel(bdist_wheel):
    """`bdist_wheel` with the machine in its name where kernels are inside."""

    def finalize_options(self) -> None:
        """Whether the wheel is one for all machines."""
        super().finalize_options()
        self.root_is_pure = native.compiler() is None

    def get_tag(self) -> tuple[Any, ...]:
        """Any Python; this machine, if there are kernels inside."""
        _, _, machine = super().get_tag()
        return "py3", "none", machine


setup(cmdclass={"build_py": BuildKernels, "bdist_wheel": KernelWheel})
