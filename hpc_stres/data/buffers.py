"""Memory that comes back: a fresh 80 MB costs more in page faults than the pictures that are written into it."""

import threading
import weakref

import numpy as np
from numpy.typing import NDArray

# Buffers that wait for their next use; a feed has as many under way as it works ahead.
MOST_WAITING = 4


class Buffers:
    """Arrays of floats whose memory is used again once nobody holds the array, or a tensor made of it, any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[NDArray[np.float32]] = []

    def take(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array of a shape; what stands in it is of no meaning."""
        size = int(np.prod(shape))
        with self._lock:
            fitting = [n for n, memory in enumerate(self._waiting) if size <= memory.size <= 2 * size]
            memory = self._waiting.pop(fitting[0]) if fitting else np.empty(size, np.float32)
        array = memory[:size].reshape(shape)
        weakref.finalize(array, self._give_back, memory).atexit = False
        return array

    def _give_back(self, memory: NDArray[np.float32]) -> None:
        with self._lock:
            if len(self._waiting) < MOST_WAITING:
                self._waiting.append(memory)
