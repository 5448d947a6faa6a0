"""The network's own speed: the fused normalisation against torch's, a step against
its convolutions."""

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from hpc_stres.tools.bench.figures import Figure, Timing, quotients, ratio
from hpc_stres.tools.bench.scene import SIDE

# (frames, channels, height, width) of the published network, and videos in a group.
NORM_SHAPES = ((32, 64, 56, 56), (40, 256, 56, 56), (40, 1024, 14, 14))
GROUP = 4
NORM_TARGETS = {"float32": 0.75, "bfloat16": 0.5}
STEP_TARGET = 1.2
VIDEOS, CHUNKS = 2, 5
# A process takes memory from the system in its first steps: activations, then gradients that stay.
# Each page of it is cleared by the system, which no later step waits for, and which the
# convolutions alone, whose memory is there from the beginning, never do.
STEPS_TO_GROW = 3


def rounds(repeats: int, *contestants: Callable[[], object], uncounted: int = 1) -> list[Timing]:
    """Seconds of each contestant in each round; all take turns, after rounds
    that do not count."""
    import torch

    seconds: list[list[float]] = [[] for _ in contestants]
    turns = range(uncounted + repeats)
    for turn, (number, contestant) in itertools.product(turns, enumerate(contestants)):
        started = time.perf_counter()
        contestant()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if turn >= uncounted:
            seconds[number].append(time.perf_counter() - started)
    return [Timing(tuple(one)) for one in seconds]


def at_most(part: str, what: str, ours: Timing, theirs: Timing, target: float) -> Figure:
    """The median over rounds of a share that should be small."""
    return ratio(part, what, quotients(ours, theirs), target, at_most=True)


def timed(part: str, what: str, timing: Timing, unit: str, scale: float = 1.0) -> Figure:
    """Seconds of a turn, as so many of a unit."""
    return Figure(part, what, scale * timing.median_s, unit, spread=timing.spread)


def bench_norm(threads: int, repeats: int) -> list[Figure]:
    """Normalisation in groups of four and ReLU, forwards and backwards, over torch's
    BatchNorm2d and ReLU."""
    import torch

    from hpc_stres.models import SubBatchNorm2d, assign_groups

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = []
    for shape, name in itertools.product(NORM_SHAPES, NORM_TARGETS):
        dtype = getattr(torch, name)
        order = torch.channels_last
        x = torch.randn(shape, device=device).to(dtype).to(memory_format=order).requires_grad_()
        grad = torch.randn(shape, device=device).to(dtype).to(memory_format=order)
        count = shape[0] // GROUP
        groups = assign_groups(
            torch.arange(shape[0], device=device) % count, count, 1, torch.float32
        )
        own = SubBatchNorm2d(shape[1], GROUP, relu=True).to(device)
        reference = torch.nn.BatchNorm2d(shape[1]).to(device)

        def run(
            call: Callable[[Any], Any], leaves: list[Any], x: Any = x, grad: Any = grad
        ) -> None:
            torch.autograd.grad(call(x), [x, *leaves], grad)

        def torchs(value: Any, layer: Any = reference) -> Any:
            return torch.relu(layer(value))

        ours, theirs = rounds(
            max(repeats, 5),
            functools.partial(run, functools.partial(own, groups=groups), list(own.parameters())),
            functools.partial(run, torchs, list(reference.parameters())),
        )
        text = f"{shape} {name}"
        figures.append(timed("norm", f"{text}: ours", ours, "ms", 1e3))
        figures.append(
            at_most("norm", f"{text}: ours over BatchNorm + ReLU", ours, theirs, NORM_TARGETS[name])
        )
    return figures


class Convolution(NamedTuple):
    """One convolution of a step: its input and weight, and how it is taken."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    first: bool  # nothing before it wants a gradient


def convolutions_of(model: Any, rgb: Any, flow: Any) -> Counter[Convolution]:
    """Which convolutions one pass runs, and how often."""
    import torch
    from torch.overrides import TorchFunctionMode

    seen: Counter[Convolution] = Counter()

    class Watch(TorchFunctionMode):
        """Notes every call of conv2d."""

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function in (torch.conv2d, torch.nn.functional.conv2d):
                names = ("input", "weight", "bias", "stride", "padding")
                given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
                pair = (_pair(given.get("stride", 1)), _pair(given.get("padding", 0)))
                x = given["input"]
                seen[
                    Convolution(
                        tuple(x.shape), tuple(given["weight"].shape), *pair, not x.requires_grad
                    )
                ] += 1
            return function(*args, **(kwargs or {}))

    with Watch():
        model(rgb, flow)
    return seen


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def only_convolutions(counts: Counter[Convolution], dtype: Any, device: Any) -> Callable[[], None]:
    """A function that runs them, forwards and backwards, and nothing else."""
    import torch

    order = torch.channels_last
    jobs = []
    for one, count in counts.items():
        x = (
            torch.randn(one.x, device=device)
            .to(dtype)
            .to(memory_format=order)
            .requires_grad_(not one.first)
        )
        weight = (
            torch.randn(one.weight, device=device)
            .to(dtype)
            .to(memory_format=order)
            .requires_grad_()
        )
        grad = torch.ones_like(torch.conv2d(x, weight, None, one.stride, one.padding))
        jobs.append((one, count, x, weight, grad))

    def run() -> None:
        for one, count, x, weight, grad in jobs:
            for _ in range(count):
                y = torch.conv2d(x, weight, None, one.stride, one.padding)
                torch.autograd.grad(y, [weight] if one.first else [x, weight], grad)

    return run


def bench_step(threads: int, repeats: int) -> list[Figure]:
    """One training step of ST-ResNet-50 in bfloat16 at 224 pixels over its convolutions alone."""
    import torch

    from hpc_stres.models import build_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model("st_resnet", 101, norm_group=VIDEOS).to(device)
    rgb, flow = (_clips(VIDEOS, CHUNKS, planes, device).bfloat16() for planes in (3, 20))
    low = torch.autocast(device.type, torch.bfloat16)

    def step() -> None:
        with low:
            output = model(rgb, flow)
        (output.appearance.float().sum() + output.motion.float().sum()).backward()

    with low:
        counts = convolutions_of(model, rgb, flow)
    convolve = only_convolutions(counts, torch.bfloat16, device)
    whole, alone = rounds(repeats, step, convolve, uncounted=STEPS_TO_GROW)
    return [
        timed("step", "bfloat16 at 224", whole, "s/video", 1 / VIDEOS),
        timed("step", "its convolutions alone", alone, "s/video", 1 / VIDEOS),
        at_most("step", "step over its convolutions", whole, alone, STEP_TARGET),
    ]


def _clips(videos: int, frames: int, planes: int, device: Any) -> Any:
    """Random clips in the feed's order; its type is the network's."""
    import torch

    flat = torch.randn(videos * frames, planes, SIDE, SIDE, device=device).to(
        memory_format=torch.channels_last
    )
    return flat.unflatten(0, (videos, frames))
