"""Where a step's time goes: `hpc-stres train --profile`.

A few steps of a real training are recorded by torch's profiler, after one or two that are not,
because they still allocate and choose algorithms. Training goes on as usual. Written next to the
phase's other files, by the first rank:

    profile/trace.json.gz   every operation, for ui.perfetto.dev or chrome://tracing
    profile/summary.txt     one page: each kind of work, its share, its bytes and
                            operations a second, and how much of what this machine was just
                            measured to do that is
"""

import gzip
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hpc_stres.run.paths import PhasePaths, write_bytes, write_text
from hpc_stres.run.tables import text_table

if TYPE_CHECKING:
    from hpc_stres.training.trainer import Trainer

WARM_UP, RECORDED = 2, 3
# What one line of the page is about, and how its operations are called; the first that fits.
KINDS = (
    ("convolution", ("conv",)),
    ("normalisation, ReLU, residual sum", ("sub_batch_norm", "normalise_by", "batch_norm")),
    ("optimiser", ("_foreach", "optimizer", "fused_sgd", "multi_tensor")),
    ("pools", ("pool",)),
    ("ReLU on its own", ("relu", "threshold", "clamp_min")),
    ("classifier and loss", ("addmm", "aten::mm", "softmax", "nll", "gemm", "linear")),
    ("exchange between ranks", ("allreduce", "all_reduce", "nccl", "gloo", "broadcast", "c10d")),
    ("copies and changes of type", ("copy", "aten::to", "memcpy", "cat", "contiguous")),
    (
        "sums and products",
        ("aten::add", "aten::mul", "aten::sum", "aten::div", "aten::sub", "elementwise", "reduce"),
    ),
    ("memory taken and cleared", ("empty", "zero", "fill", "memset", "resize")),
)
REST = "other operations"
LONGEST = 12
# The operation that is counted for work, and how many times a step does that work (once forwards,
# twice backwards).
COUNTED, DIRECTIONS = ("aten::conv2d", "aten::addmm", "aten::linear"), 3
LIMIT_BYTES, LIMIT_SIDE, LIMIT_ROUNDS = 1 << 28, 2048, 5


@dataclass
class Work:
    """What operations of one kind took, of all recorded steps."""

    seconds: float = 0.0
    calls: int = 0
    flop: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Limits:
    """What this machine does at best, measured now: a large copy, a large product of matrices."""

    bytes_per_s: float
    flop_per_s: float


@dataclass
class StepProfile:
    """Records some steps of a phase; `facts` are the page's first lines."""

    paths: PhasePaths
    device: torch.device
    dtype: torch.dtype
    videos: int
    facts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.profiler: Any = None
        self.seconds = 0.0
        self.start_at = self.stop_at = -1

    @property
    def folder(self) -> Path:
        """Where both files lie."""
        return self.paths.root / "profile"

    def begin(self, step: int, last_step: int) -> None:
        """Training is about to do the steps behind `step`, up to `last_step`; short ones
        are recorded whole."""
        left = last_step - step
        self.start_at = step + max(0, min(WARM_UP, left - 1))
        self.stop_at = min(self.start_at + RECORDED, last_step)
        self.step_done(step)

    def step_done(self, step: int) -> None:
        """So many steps are done: starts and ends the recording."""
        if self.profiler is not None and step >= self.stop_at:
            self.end(step)
        elif self.profiler is None and step == self.start_at < self.stop_at:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.profiler = torch.profiler.profile(
                activities=activities, record_shapes=True, with_flops=True
            )
            self.profiler.start()
            self.seconds = -time.perf_counter()

    def end(self, step: int) -> None:
        """Write what was recorded; also where training stops before the recording's end."""
        if self.profiler is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter()
        steps, profiler = step - self.start_at, self.profiler
        self.profiler, self.start_at = None, -1
        profiler.stop()
        if steps < 1:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write_trace(profiler)
        on_gpu = self.device.type == "cuda"
        kinds, names = sort_work(
            busiest_thread(profiler.events(), on_gpu), on_gpu, self.dtype.itemsize
        )
        limits = measure_limits(self.device, self.dtype)
        page = summary(self.facts, kinds, names, self.seconds, steps, self.videos, limits)
        write_text(self.folder / "summary.txt", page)
        print(f"{page}\nwritten: {self.folder}/summary.txt, trace.json.gz", flush=True)

    def _write_trace(self, profiler: Any) -> None:
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            raw = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(raw))
            write_bytes(self.folder / "trace.json.gz", gzip.compress(raw.read_bytes(), 6))


def busiest_thread(events: Iterable[Any], on_gpu: bool) -> list[Any]:
    """The events of the step. On a GPU its kernels are there whatever thread asked for them; on a
    CPU the feed's threads work beside the step and take no time of it."""
    events = list(events)
    if on_gpu:
        return events
    seconds: defaultdict[int, float] = defaultdict(float)
    for event in events:
        if "conv" in event.name:
            seconds[event.thread] += event.self_cpu_time_total
    if not seconds:
        return events
    chosen = max(seconds, key=lambda thread: seconds[thread])
    return [event for event in events if event.thread == chosen]


def kind_of(name: str) -> str:
    """The line of the page that an operation belongs to."""
    lower = name.lower()
    return next((kind for kind, words in KINDS if any(word in lower for word in words)), REST)


def sort_work(
    events: Iterable[Any], on_gpu: bool, itemsize: int
) -> tuple[dict[str, Work], dict[str, Work]]:
    """What was done by kind, and by the operations' own names. No moment counts twice: an operation
    has the time that those which it calls do not have."""
    kinds: defaultdict[str, Work] = defaultdict(Work)
    names: defaultdict[str, Work] = defaultdict(Work)
    for event in events:
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if event.name in COUNTED:
            kinds[kind_of(event.name)].flop += DIRECTIONS * float(event.flops or 0)
        if micros <= 0:
            continue
        for work in (kinds[kind_of(event.name)], names[event.name]):
            work.seconds += micros / 1e6
            work.calls += 1
            work.bytes += touched_bytes(event, itemsize)
    return dict(kinds), dict(names)


def touched_bytes(event: Any, itemsize: int) -> float:
    """Bytes that an operation reads and writes, about: its inputs, and a result as large as the
    largest of them. The fused normalisation reads x, and backwards the gradient, twice."""
    sizes = [
        math.prod(shape) for shape in event.input_shapes or [] if isinstance(shape, list) and shape
    ]
    if not sizes:
        return 0.0
    again = 0
    if event.name == "hpc_stres::sub_batch_norm":
        again = sizes[0]
    elif event.name == "hpc_stres::sub_batch_norm_backward":
        again = 2 * sizes[0]
    return float(itemsize * (sum(sizes) + max(sizes) + again))


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """What this machine does at best with the threads that training has."""
    source = torch.ones(LIMIT_BYTES // 4, device=device)
    target = torch.empty_like(source)
    left = torch.ones(LIMIT_SIDE, LIMIT_SIDE, dtype=dtype, device=device)
    copy_s = _median_seconds(lambda: target.copy_(source), device)
    product_s = _median_seconds(lambda: left @ left, device)
    return Limits(2 * source.numel() * 4 / copy_s, 2 * LIMIT_SIDE**3 / product_s)


def _median_seconds(function: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(LIMIT_ROUNDS + 1):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def summary(
    facts: list[str], kinds: dict[str, Work], names: dict[str, Work], seconds: float, steps: int, videos: int,
    limits: Limits,
) -> str:  # fmt: skip
    """The page."""
    idle = Work(max(seconds - sum(work.seconds for work in kinds.values()), 0.0))
    lines = [
        *facts,
        f"{steps} steps recorded: {seconds / steps:.4g} s a step, {videos * steps / seconds:.4g} videos/s on this rank"
        " (recording itself slows small steps)",
        f"This machine, just measured: {limits.bytes_per_s / 1e9:.4g} GB/s (a copy, read and written), "
        f"{limits.flop_per_s / 1e9:.4g} GFLOP/s (a product of matrices)",
        "",
    ]
    rows = [
        _row(kind, work, seconds, steps, limits)
        for kind, work in sorted(kinds.items(), key=lambda item: -item[1].seconds)
    ]
    rows.append(_row("between operations: waiting for data, Python", idle, seconds, steps, limits))
    header = ["work", "s/step", "share", "calls/step", "speed", "of the limit"]
    lines += [text_table(header, rows), "", "The longest operations:"]
    longest = sorted(names.items(), key=lambda item: -item[1].seconds)[:LONGEST]
    rows = [
        [
            name[:60],
            f"{w.seconds / steps:.4g}",
            f"{w.seconds / seconds:.1%}",
            f"{w.calls / steps:.4g}",
        ]
        for name, w in longest
    ]
    lines.append(text_table(["operation", "s/step", "share", "calls/step"], rows))
    return "\n".join([*lines, ""])


def _row(kind: str, work: Work, seconds: float, steps: int, limits: Limits) -> list[str]:
    """One line: work that multiplies is held to the product's speed, all other to the copy's."""
    speed = share = ""
    if work.seconds > 0 and work.flop:
        rate = work.flop / work.seconds
        speed, share = f"{rate / 1e9:.4g} GFLOP/s", f"{rate / limits.flop_per_s:.0%}"
    elif work.seconds > 0 and work.bytes:
        rate = work.bytes / work.seconds
        speed, share = f"{rate / 1e9:.4g} GB/s", f"{rate / limits.bytes_per_s:.0%}"
    calls = f"{work.calls / steps:.4g}" if work.calls else ""
    return [
        kind,
        f"{work.seconds / steps:.4g}",
        f"{work.seconds / seconds:.1%}",
        calls,
        speed,
        share,
    ]


def profile_of(trainer: "Trainer") -> StepProfile:
    """What records some steps of a training that is set up, on its first rank."""
    training, layout = trainer.config.training, trainer.layout
    share = sum(len(share.positions) for share in layout.shares[trainer.world.rank])
    facts = [
        f"{trainer.name}: {training.precision} on {trainer.device}, {torch.get_num_threads()} threads, "
        f"{trainer.world.size} ranks; {share} videos a step on this rank in {layout.micro_steps} micro-steps "
        f"of {layout.largest_micro_batch} or fewer",
    ]
    low = torch.bfloat16 if training.precision == "bfloat16" else trainer.dtype
    return StepProfile(trainer.paths, trainer.device, low, share, facts)
