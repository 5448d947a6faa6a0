"""Where each rank's seconds go, and which rank makes the others wait.

All ranks wait for the slowest in the reduction, so that a whole step takes every rank the same
time. What tells them apart is the time before it: from the begin of a step to the moment at which
the rank's last gradient is there (a hook on the first trainable parameter of each stream, the last
to get one). On a GPU these moments are events on its stream, which are read when a row of metrics
is written: nothing waits for the device.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hpc_stres.run.bad_nodes import node_name
from hpc_stres.run.waits import Waits

PARTS = ("data", "forward", "backward", "reduce", "checkpoint")
# A rank is slow when it takes so many times as long as the others for so many steps, and by
# no less than this.
SLOW_RATIO, SLOW_STEPS, SLOW_EXCESS_SECONDS = 1.5, 20, 0.02


@dataclass(frozen=True)
class Lap:
    """One rank's steps between two looks: mean seconds of each part, and its median
    own time of a step."""

    parts: tuple[float, ...]
    own: float
    videos: float

    def as_tensor(self) -> torch.Tensor:
        """As ranks exchange it."""
        return torch.tensor([*self.parts, self.own, self.videos], dtype=torch.float64)


class RankClock:
    """Marks of this rank's steps."""

    def __init__(self, device: torch.device, model: nn.Module, videos: int) -> None:
        self.on_gpu, self.videos = device.type == "cuda", videos
        self.steps: list[dict[str, list[tuple[Any, Any, float]]]] = []
        self.current: dict[str, list[tuple[Any, Any, float]]] = {}
        self.data_s = self.checkpoint_s = 0.0
        self.data_of_steps: list[float] = []
        self.last_gradient: Any = None
        self.waited_at_gradient = 0.0
        self.step_mark: Any = None
        self.waited_at_step = 0.0
        self.handles = [
            parameter.register_post_accumulate_grad_hook(self._note_gradient)
            for parameter in first_trainable(model)
        ]

    def mark(self) -> Any:
        """This moment: of the host, or of the device's stream."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _note_gradient(self, parameter: torch.Tensor) -> None:
        self.last_gradient, self.waited_at_gradient = self.mark(), Waits.seconds

    def begin_step(self) -> None:
        """A step begins; what other ranks do has no part in it until its gradients are reduced."""
        self.step_mark, self.waited_at_step = self.mark(), Waits.seconds

    def part(self, name: str, start: Any, end: Any, waited: float = 0.0) -> None:
        """Count from one mark to another, less what of it was waiting for other ranks."""
        self.current.setdefault(name, []).append((start, end, waited))
        if waited:
            self.current.setdefault("reduce", []).append((0.0, 0.0, -waited))

    def forward(self, start: Any, waited_before: float) -> Any:
        """The forward pass that began at a mark ends now; returns this moment."""
        end = self.mark()
        self.part("forward", start, end, Waits.seconds - waited_before)
        self.last_gradient = None
        return end

    def backward(self, start: Any, waited_before: float, last: bool) -> None:
        """A backward pass ends now; after the last gradient of the last one there is
        only the reduction."""
        end = self.mark()
        ready = self.last_gradient if last and self.last_gradient is not None else end
        waited = (self.waited_at_gradient if ready is not end else Waits.seconds) - waited_before
        self.part("backward", start, ready, waited)
        if last:
            own = (
                self.waited_at_gradient if ready is not end else Waits.seconds
            ) - self.waited_at_step
            self.current["own"] = [(self.step_mark, ready, own)]
        if ready is not end:
            self.part("reduce", ready, end)

    def step(self, reduce_from: Any, data_s: float) -> None:
        """A step ends now: the engine's part of it began at a mark, and so long was
        waited for data."""
        self.part("reduce", reduce_from, self.mark())
        self.steps.append(self.current)
        self.data_of_steps.append(data_s)
        self.current = {}

    def saved(self, seconds: float) -> None:
        """A checkpoint held training up for so long."""
        self.checkpoint_s += seconds

    def lap(self) -> Lap:
        """The steps since the last call."""
        steps = [
            {name: sum(self._seconds(*one) for one in marks) for name, marks in step.items()}
            for step in self.steps
        ]
        count = max(1, len(steps))
        means = {name: sum(step.get(name, 0.0) for step in steps) / count for name in PARTS[1:4]}
        means |= {"data": sum(self.data_of_steps) / count, "checkpoint": self.checkpoint_s / count}
        own = [step["own"] for step in steps if "own" in step]
        self.steps, self.data_of_steps, self.checkpoint_s = [], [], 0.0
        median = statistics.median(own) if own else 0.0
        return Lap(tuple(max(0.0, means[name]) for name in PARTS), median, float(self.videos))

    def _seconds(self, start: Any, end: Any, waited: float) -> float:
        if not self.on_gpu or isinstance(end, float):
            return float(end - start) - waited
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 - waited

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            with suppress(RuntimeError):
                handle.remove()


def first_trainable(model: nn.Module) -> list[nn.Parameter]:
    """The first trainable parameter of each stream: the last ones to get their gradients."""
    parameters = []
    for child in model.children():
        first = next((p for p in child.parameters() if p.requires_grad), None)
        if first is not None:
            parameters.append(first)
    return parameters


class Stragglers:
    """The laps of all ranks, side by side."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = list(nodes)
        self.slow_steps = [0] * len(nodes)
        self.named: set[int] = set()

    def who(self, rank: int) -> str:
        """`rank 2 on n3`."""
        return f"rank {rank} on {self.nodes[rank]}"

    def row(self, laps: Sequence[Lap]) -> dict[str, Any]:
        """What metrics.jsonl says of a lap: seconds a step of each part, mean, worst, and whose."""
        timings: dict[str, Any] = {}
        for number, part in enumerate(PARTS):
            values = [lap.parts[number] for lap in laps]
            worst = max(range(len(values)), key=values.__getitem__)
            timings[f"{part}_s"] = sum(values) / len(values)
            timings[f"{part}_s_worst"] = values[worst]
            timings[f"{part}_s_worst_rank"] = worst
            timings[f"{part}_s_worst_host"] = self.nodes[worst]
        return timings

    def find(self, laps: Sequence[Lap], steps: int) -> list[tuple[int, str]]:
        """Ranks that have now been slow for long enough, each once, with a sentence."""
        stragglers = []
        for rank, lap in enumerate(laps):
            ratio, others = slowness(rank, laps)
            is_slow = ratio >= SLOW_RATIO and lap.own - others >= SLOW_EXCESS_SECONDS
            self.slow_steps[rank] = self.slow_steps[rank] + steps if is_slow else 0
            if self.slow_steps[rank] >= SLOW_STEPS and rank not in self.named:
                self.named.add(rank)
                stragglers.append(
                    (
                        rank,
                        f"{self.who(rank)} is {lap.own / others:.1f} times slower than the others for "
                        f"{self.slow_steps[rank]} steps ({lap.own:.3f} s a step before the reduction, "
                        f"the others {others:.3f} s; data {lap.parts[0]:.3f}, forward {lap.parts[1]:.3f}, "
                        f"backward {lap.parts[2]:.3f} s)",
                    )
                )
        return stragglers


def slowness(rank: int, laps: Sequence[Lap]) -> tuple[float, float]:
    """How many times as long as the others a rank takes, and how long these take. Ranks with
    more videos than others have a right to be slower: the smaller of the ratios by step and
    by video counts."""
    others = [
        lap for number, lap in enumerate(laps) if number != rank and lap.videos > 0 and lap.own > 0
    ]
    mine = laps[rank]
    if not others or mine.videos <= 0:
        return 0.0, 0.0
    by_step = statistics.median(lap.own for lap in others)
    by_video = statistics.median(lap.own / lap.videos for lap in others)
    return min(mine.own / by_step, mine.own / mine.videos / by_video), by_step


def gather_nodes(control: Any) -> list[str]:
    """Each rank's node; every rank takes part."""
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, node_name(), group=control)
    return [str(name) for name in names]


def gather(lap: Lap, control: Any) -> list[Lap]:
    """The laps of all ranks; every rank takes part."""
    mine = lap.as_tensor()
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine, group=control)
    return [
        Lap(tuple(map(float, one[: len(PARTS)])), float(one[-2]), float(one[-1]))
        for one in everyone
    ]
