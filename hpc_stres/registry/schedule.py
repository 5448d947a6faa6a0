"""What a schedule is: a function of the step, and its own options as keyword arguments."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hpc_stres.errors import FieldError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule of the registry: the rate of step `step` of `steps`, both counted from 0."""

    name: str
    rate: Callable[..., float]
    """Called as (step, steps, **options); options are its keyword-only arguments."""

    def checked(self, options: dict[str, Any]) -> dict[str, float]:
        """Options as numbers; refuses unknown, missing and infinite ones."""
        wanted = {
            name: parameter
            for name, parameter in inspect.signature(self.rate).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }
        for name, value in options.items():
            if name not in wanted:
                raise FieldError(
                    "schedule", f"{self.name} has no {name}; it has {', '.join(wanted)}"
                )
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
            ):
                raise FieldError("schedule", f"expected a finite number for {self.name}'s {name}")
        for name, parameter in wanted.items():
            if parameter.default is inspect.Parameter.empty and name not in options:
                raise FieldError("schedule", f"{self.name} needs {name}")
        return {name: float(value) for name, value in options.items()}
