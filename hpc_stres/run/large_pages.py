"""Memory for activations: in large pages, and taken from the system once.

A tensor of a hundred megabytes is new memory in each step. In pages of 4 KiB the system hands it
out in 25,000 faults, which on a CPU takes longer than what is then computed in it; in pages of
2 MiB in fifty. Linux gives large pages to programs that ask; torch asks when this variable is set.

Each new page is cleared by the system first, whatever its size. What a step has freed is therefore
kept for the next one, which needs as much again: the C library is told not to give it back.
"""

import ctypes
import os
from typing import Any

VARIABLE = "THP_MEM_ALLOC_ENABLE"
# What a user may have chosen for the C library's allocator, which reads them at a program's start.
CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# Of <malloc.h>, and what they are set to: no memory of its own for a large tensor, and no freed end
# of the heap that is large enough to be given back.
M_MMAP_MAX, NONE = -4, 0
M_TRIM_THRESHOLD, NEVER = -1, -1


def use_large_pages() -> None:
    """To be called before torch is imported, which reads this once. A user's own value stays."""
    os.environ.setdefault(VARIABLE, "1")


def keep_freed_memory() -> None:
    """From now on memory that was freed stays with this process, for its next step.

    A user's own choice stays; where the C library is another than glibc, nothing changes.
    """
    set_option = _of_the_c_library("mallopt")
    if set_option is not None and not any(name in os.environ for name in CHOICES):
        set_option(M_MMAP_MAX, NONE)
        set_option(M_TRIM_THRESHOLD, NEVER)


def give_back_freed_memory() -> None:
    """Give back what was kept so far, so that the system counts as free what is free."""
    trim = _of_the_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_the_c_library(name: str) -> Any:
    """A function of the C library; None where it has no such one."""
    return getattr(ctypes.CDLL(None), name, None)
