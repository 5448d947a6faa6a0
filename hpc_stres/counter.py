"""Every random number of a run, from a counter and never from a global generator. Pure NumPy.

The key is the run's seed and a name (of a phase), the counter is the kind of number, the step and
the position in the global batch. So a number does not depend on what was drawn before it, on which
rank draws it, or in which micro-step.
"""

import hashlib
import threading
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Kinds of random numbers, which must never meet. Their values are part of what a seed means: do not
# change them.
SAMPLE, GROUP, ORDER, WEIGHTS, SEGMENTS = 0, 1, 2, 3, 4
DROPOUT = {"appearance": 16, "motion": 17}


def generator(
    seed: int, name: str, kind: int, step: int = 0, position: int = 0
) -> np.random.Generator:
    """The random numbers of one kind, for one position of one step of the phase `name`."""
    name_key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    bits = np.random.Philox(key=[seed, name_key], counter=[0, kind, position, step])
    return np.random.Generator(bits)


@lru_cache(maxsize=256)
def _key(seed: int, name: str) -> NDArray[np.uint64]:
    """The key as NumPy reads it out of a list, which rounds a number above 2^63: to make it here
    would draw others."""
    key: NDArray[np.uint64] = generator(seed, name, 0).bit_generator.state["state"]["key"]
    return key


class _Reused(threading.local):
    """One generator a thread, set to another counter before each use: that costs a
    third of making one."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=[0, 0], counter=[0, 0, 0, 0])
        self.generator = np.random.Generator(self.bits)
        # Its buffer is marked as used up, as in a new one, so that the next number comes
        # from the counter.
        self.state: Any = self.bits.state


_reused = _Reused()


def uniforms(seed: int, name: str, kind: int, step: int, position: int, count: int) -> list[float]:
    """The first numbers from 0 to 1 of `generator` with the same arguments, without making one."""
    _reused.state["state"] = {"counter": (0, kind, position, step), "key": _key(seed, name)}
    _reused.bits.state = _reused.state
    numbers: list[float] = _reused.generator.random(count).tolist()
    return numbers
