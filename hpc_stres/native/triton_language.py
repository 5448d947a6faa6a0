"""Triton where it is installed, for the kernels of GPUs; without it they stay functions that nobody calls."""

import importlib
import sys
from functools import cache
from typing import Any

triton: Any
tl: Any
try:
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")
    jit = triton.jit
except ImportError:
    triton = tl = None

    def jit(function: Any) -> Any:
        """In place of triton.jit."""
        return function


@cache
def is_available(loss: str) -> bool:
    """Whether Triton is there; where it is not, what that costs is said once."""
    if triton is None:
        print(f"hpc-stres: {loss}, which is slower: no triton", file=sys.stderr)
    return triton is not None
