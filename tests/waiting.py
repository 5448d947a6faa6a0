"""Waiting for a sign. No test says how long something takes: that depends on the machine."""

import time

# What passes never waits this long, on the slowest machine.
PATIENCE_SECONDS = 900.0
LOOK_SECONDS = 0.02


def wait_until(condition, what, seconds=PATIENCE_SECONDS):
    """Until a condition holds, and its value; what did not come is named, or told by a function."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            told = what() if callable(what) else what
            raise AssertionError(f"not within {seconds:.0f} s: {told}")
        time.sleep(LOOK_SECONDS)
    return value
