"""Every random number of a run, from a counter and never from a global generator. Pure NumPy.

The key is the run's seed and a name (of a phase), the counter is the kind of number, the step and
the position in the global batch. So a number does not depend on what was drawn before it, on which
rank draws it, or in which micro-step.
"""

import hashlib

import numpy as np

# Kinds of random numbers, which must never meet. Their values are part of what a seed means: do not
# change them.
SAMPLE, GROUP, ORDER, WEIGHTS, SEGMENTS = 0, 1, 2, 3, 4
DROPOUT = {"appearance": 16, "motion": 17}


def generator(seed: int, name: str, kind: int, step: int = 0, position: int = 0) -> np.random.Generator:
    """The random numbers of one kind, for one position of one step of the phase `name`."""
    name_key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    bits = np.random.Philox(key=[seed, name_key], counter=[0, kind, position, step])
    return np.random.Generator(bits)
