"""Fixtures that more than one file of these tests uses."""

from tests.unit.kernels import kernel
from tests.unit.listed import root, work

__all__ = ["kernel", "root", "work"]
