"""Seconds that this process has waited for others inside its own forward and backward passes.

Norm groups that lie over several ranks are reduced in the middle of a pass. Without this a slow
rank would make every rank of its team look as slow as it is.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """A sum that only grows; whoever measures takes the difference."""

    seconds = 0.0


@contextmanager
def waiting() -> Iterator[None]:
    """Count the block as waiting for other ranks."""
    started = time.perf_counter()
    try:
        yield
    finally:
        Waits.seconds += time.perf_counter() - started
