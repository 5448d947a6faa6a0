"""Memory for activations in large pages.

A tensor of a hundred megabytes is new memory in each step. In pages of 4 KiB the system hands it
out in 25,000 faults, which on a CPU takes longer than what is then computed in it; in pages of
2 MiB in fifty. Linux gives large pages to programs that ask; torch asks when this variable is set.
"""

import os

VARIABLE = "THP_MEM_ALLOC_ENABLE"


def use_large_pages() -> None:
    """To be called before torch is imported, which reads this once. A user's own value stays."""
    os.environ.setdefault(VARIABLE, "1")
