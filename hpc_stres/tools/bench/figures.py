"""What a measurement is: a figure with its unit and spread, taken in turns with its reference."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hpc_stres.errors import UserError

Contestant = Callable[[], object]


class Figure(NamedTuple):
    """One measured figure; `target` and `verdict` are empty where none is set.

    `spread` is half the distance between the quartiles of its repetitions, as a share
    of their median.
    """

    part: str
    what: str
    value: float
    unit: str
    target: str = ""
    verdict: str = ""
    spread: float = 0.0


class Timing(NamedTuple):
    """Seconds of the repetitions of one contestant."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        return spread(self.seconds)


def spread(values: tuple[float, ...]) -> float:
    """Half the distance between the quartiles over the median; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / middle if middle else 0.0


def interleaved(
    repeats: int, *contestants: Contestant, clock: Callable[[], float] = time.perf_counter
) -> list[Timing]:
    """Seconds of each contestant in rounds in which all take turns, so that a busy minute of the
    machine meets all.

    With `time.thread_time` as the clock they are this thread's on a core: what a busy machine does
    not change. Each runs once untimed before its turn: a contestant would pay for its predecessor
    else. A DataLoader forks, and every page that this process writes next is copied.
    """
    seconds: list[list[float]] = [[] for _ in contestants]
    for _ in range(repeats):
        for number, contestant in enumerate(contestants):
            contestant()
            started = clock()
            contestant()
            seconds[number].append(clock() - started)
    return [Timing(tuple(one)) for one in seconds]


def rate(part: str, what: str, count: float, timing: Timing, unit: str) -> Figure:
    """So many things in the time of a turn."""
    return Figure(part, what, count / timing.median_s, unit, spread=timing.spread)


def quotients(over: Timing, under: Timing) -> tuple[float, ...]:
    """Of the same round each: what a busy minute does to both cancels."""
    return tuple(a / b for a, b in zip(over.seconds, under.seconds, strict=True))


def ratio(
    part: str,
    what: str,
    value: float | tuple[float, ...],
    target: float | None = None,
    at_most: bool = False,
) -> Figure:
    """A ratio, or the median of several, and whether it meets its target."""
    values = value if isinstance(value, tuple) else (value,)
    middle = statistics.median(values)
    if target is None:
        return Figure(part, what, middle, "x", spread=spread(values))
    word, is_met = ("less", middle <= target) if at_most else ("more", middle >= target)
    verdict = "met" if is_met else "MISSED"
    return Figure(part, what, middle, "x", f"{target:g} x or {word}", verdict, spread(values))


def judged(figure: Figure, target: float, at_most: bool = True) -> Figure:
    """A figure in its own unit against a target."""
    word, is_met = ("less", figure.value <= target) if at_most else ("more", figure.value >= target)
    return figure._replace(
        target=f"{target:g} {figure.unit} or {word}", verdict="met" if is_met else "MISSED"
    )


def machine(threads: int) -> dict[str, Any]:
    """Where the figures were measured."""
    import torch

    cpu = next(_processors(), platform.processor() or platform.machine())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "gpu": gpu,
        "torch": torch.__version__,
        # What else ran: figures of a busy machine spread.
        "load": round(os.getloadavg()[0], 1),
    }


def _processors() -> Iterator[str]:
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            yield line.split(":", 1)[1].strip()


def peak_kib() -> int:
    """This program's own peak: getrusage would count what the process had before it
    became this program."""
    (line,) = [
        row
        for row in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if "VmHWM" in row
    ]
    return int(line.split()[1])


def read_figure(path: Path, part: str, what: str) -> float:
    """One figure out of a file that `hpc-stres bench --json` wrote; a UserError where
    it is not there."""
    remedy = f"Write it with `hpc-stres bench {part} --json {path}`."
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        values = [
            float(one["value"]) for one in figures if one["part"] == part and one["what"] == what
        ]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}\n{remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the figures of a bench: {error!r}\n{remedy}") from None
    if not values or not 0 < values[0] < math.inf:
        raise UserError(f"{path}: it has no figure `{what}` of part {part}\n{remedy}")
    return values[0]


def text_row(figure: Figure) -> list[str]:
    """A figure as a line of the table."""
    shown = f"{100 * figure.spread:.0f} %" if figure.spread else ""
    return [
        figure.part,
        figure.what,
        f"{figure.value:.4g} {figure.unit}",
        shown,
        figure.target,
        figure.verdict,
    ]
