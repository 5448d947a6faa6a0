"""Learning rate as a pure function of the step."""

from collections.abc import Sequence
from typing import NamedTuple


class Plateau(NamedTuple):
    """`steps` SGD steps at one learning rate."""

    steps: int
    rate: float


def total_steps(schedule: Sequence[Plateau], max_steps: int | None = None) -> int:
    """Length of a schedule, shortened to `max_steps` where that is given."""
    length = sum(plateau.steps for plateau in schedule)
    return length if max_steps is None else min(length, max_steps)


def learning_rate(schedule: Sequence[Plateau], step: int) -> float:
    """Rate of SGD step number `step`, counted from 0; the last plateau goes on for ever."""
    if step < 0:
        raise ValueError(f"step {step} is negative")
    for plateau in schedule:
        if step < plateau.steps:
            return plateau.rate
        step -= plateau.steps
    return schedule[-1].rate
