"""Memory that comes back: a fresh 80 MB costs more in page faults than the pictures that are
written into it."""

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Buffers that wait for their next use; a feed has as many under way as it works ahead.
MOST_WAITING = 4


class _Loan:
    """What every array of one `take` hangs on, however it was sliced.

    NumPy makes a view of a view hang on the array that owns the memory, and passes over those in
    between, but not over this.
    """

    def __init__(self, memory: NDArray[np.float32]) -> None:
        self.__array_interface__ = memory.__array_interface__


class Buffers:
    """Arrays whose memory is used again once nobody holds the array, a view of it or a
    tensor made of either any more.

    There is no lock: memory comes back in the middle of whatever Python does just then, in `take`
    too, when the collector finds a forgotten array. A deque takes and gives one entry at a time.
    """

    def __init__(self) -> None:
        # When one too many comes back, the one that has waited longest goes.
        self._waiting: deque[NDArray[np.float32]] = deque(maxlen=MOST_WAITING)

    def take(self, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """An array of a shape; its content means nothing."""
        count = math.prod(shape)
        size = -(-count * np.dtype(dtype).itemsize // np.dtype(np.float32).itemsize)
        memory = self._fitting(size)
        if memory is None:
            memory = np.empty(size, np.float32)
        loan = _Loan(memory)
        weakref.finalize(loan, self._waiting.append, memory).atexit = False
        return np.asarray(loan)[:size].view(dtype)[:count].reshape(shape)

    def _fitting(self, size: int) -> NDArray[np.float32] | None:
        """Waiting memory that is large enough, and not much too large; it waits no longer then."""
        for _ in range(len(self._waiting)):
            try:
                memory = self._waiting.popleft()
            except IndexError:
                break  # another thread was faster
            if size <= memory.size <= 2 * size:
                return memory
            self._waiting.append(memory)
        return None
