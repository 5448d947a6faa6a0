"""Schedules that fall smoothly."""

import math

from hpc_stres.registry import SCHEDULES
from hpc_stres.registry.schedule import Schedule


def cosine(step: int, steps: int, *, rate: float, last: float = 0.0, warmup: float = 0.0) -> float:
    """From `rate` to `last` along half a cosine, after `warmup` steps that rise to it evenly."""
    if step < warmup:
        return rate * (step + 1) / warmup
    share = (step - warmup) / max(1.0, steps - warmup)
    return last + (rate - last) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


SCHEDULES.register(Schedule(name="cosine", rate=cosine))
