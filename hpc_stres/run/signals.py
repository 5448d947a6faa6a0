"""When to stop early: a signal or the wall clock sets a flag, nothing else; the loop
asks at each step."""

import os
import signal
import time
from collections.abc import Mapping
from types import FrameType

# sysexits' "try again later": the launcher starts the phase again.
EXIT_CONTINUE = 75
SAFETY = 1.5
_early: list[str] = []


def catch_early() -> None:
    """Remember a request to stop that comes while a job still imports and reads; the StopFlag made
    later honours it."""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda caught, frame: _early.append(signal.Signals(caught).name))


class StopFlag:
    """Set by SIGUSR2 and SIGTERM, or when the time left is short."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        end = env.get("HPC_STRES_END_TIME") or env.get("SLURM_JOB_END_TIME")
        self.end_time = float(end) if end else None
        self.signal_name: str | None = _early[0] if _early else None
        self.slowest_step_s = 0.0
        self.save_s = 5.0

    def install(self) -> None:
        """Catch the signals that ask for an early end."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    def step_took(self, seconds: float) -> None:
        """Remember the slowest step for the decision by the clock."""
        self.slowest_step_s = max(self.slowest_step_s, seconds)

    def wanted(self) -> bool:
        """Whether this rank wants to stop after the current step."""
        if self.signal_name is not None:
            return True
        if self.end_time is None:
            return False
        return self.end_time - time.time() < SAFETY * (self.save_s + self.slowest_step_s)

    def reason(self) -> str:
        """Why, in words."""
        return (
            f"{self.signal_name} received"
            if self.signal_name
            else "the wall time is nearly used up"
        )
