"""Learning rate as a pure function of the step: plateaus, or a named curve of the registry."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hpc_stres.errors import ConfigError, FieldError, check_field
from hpc_stres.registry import SCHEDULES


class Plateau(NamedTuple):
    """`steps` SGD steps at one learning rate."""

    steps: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A schedule of the registry: `{name: cosine, steps: 1000, options: {rate: 0.01}}`."""

    name: str
    """Name of the schedule."""
    steps: int
    """SGD steps of the phase."""
    options: dict[str, float] = field(default_factory=dict)
    """The schedule's own numbers."""

    def __post_init__(self) -> None:
        check_field(self.steps >= 1, "steps", "expected 1 or more")
        try:
            SCHEDULES.get(self.name).checked(dict(self.options))
        except ConfigError as error:
            raise FieldError("name", str(error)) from None
        except FieldError as error:
            raise FieldError("options", error.message) from None
        first, last = self.rate(0), self.rate(self.steps - 1)
        check_field(
            min(first, last) >= 0,
            "options",
            f"expected rates of 0 or more, not {min(first, last):g}",
        )

    def rate(self, step: int) -> float:
        """Rate of one step; after the last step, the last one's."""
        return SCHEDULES.get(self.name).rate(min(step, self.steps - 1), self.steps, **self.options)


Schedule = Sequence[Plateau] | Curve


def scaled_steps(steps: int, scale: float) -> int:
    """So many times as many steps: the nearest whole number, at least one."""
    return max(1, round(steps * scale))


def scaled(schedule: tuple[Plateau, ...] | Curve, scale: float) -> tuple[Plateau, ...] | Curve:
    """A schedule of the same shape that is so many times as long: every plateau is
    kept, and its rate."""
    if scale == 1.0:
        return schedule
    if isinstance(schedule, Curve):
        return replace(schedule, steps=scaled_steps(schedule.steps, scale))
    return tuple(Plateau(scaled_steps(steps, scale), rate) for steps, rate in schedule)


def total_steps(schedule: Schedule, max_steps: int | None = None) -> int:
    """Length of a schedule, shortened to `max_steps` where that is given."""
    length = schedule.steps if isinstance(schedule, Curve) else sum(steps for steps, _ in schedule)
    return length if max_steps is None else min(length, max_steps)


def learning_rate(schedule: Schedule, step: int) -> float:
    """Rate of SGD step number `step`, counted from 0; after the last step, the last one's."""
    if step < 0:
        raise ValueError(f"step {step} is negative")
    if isinstance(schedule, Curve):
        return schedule.rate(step)
    for plateau in schedule:
        if step < plateau.steps:
            return plateau.rate
        step -= plateau.steps
    return schedule[-1].rate
