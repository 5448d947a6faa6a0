"""Measurements, each a ratio against a reference on the same cores in the same run."""

import functools
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH, SIDE = 256, 340, 224
FLOW_TARGET, LOADER_TARGET, DECODE_TARGET = 3.0, 3.0, 0.6
# A DataLoader starts its workers anew for each pass: long enough that this does not count.
LOADER_BATCHES = 8


class Figure(NamedTuple):
    """One measured figure; `target` and `verdict` are empty where none is set."""

    part: str
    what: str
    value: float
    unit: str
    target: str = ""
    verdict: str = ""


def machine(threads: int) -> dict[str, Any]:
    """Where the figures were measured."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "gpu": gpu,
        "torch": torch.__version__,
    }


def measure(part: str, threads: int, repeats: int) -> list[Figure]:
    """The figures of one part."""
    import cv2
    import torch

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    if part in ("evaluate", "plan"):
        from hpc_stres.tools.bench import runs

        return runs.bench_evaluate(threads) if part == "evaluate" else runs.bench_plan(threads)
    if part in ("norm", "step"):
        from hpc_stres.tools.bench import network

        return {"norm": network.bench_norm, "step": network.bench_step}[part](threads, repeats)
    return {"flow": bench_flow, "feed": bench_feed}[part](threads, repeats)


def best_of(repeats: int, *contestants: Callable[[], object]) -> list[float]:
    """Seconds of each contestant, the best of some rounds in which all take turns; each goes once untimed before.

    Without that call a contestant would pay for its predecessor: a DataLoader forks, and every page that this process
    writes next is copied.
    """
    seconds = [[] for _ in contestants]  # type: list[list[float]]
    for _, (number, contestant) in itertools.product(range(repeats), enumerate(contestants)):
        contestant()
        started = time.perf_counter()
        contestant()
        seconds[number].append(time.perf_counter() - started)
    return [min(found) for found in seconds]


def ratio(part: str, what: str, value: float, target: float | None = None) -> Figure:
    """A ratio and whether it meets its target."""
    if target is None:
        return Figure(part, what, value, "x")
    return Figure(part, what, value, "x", f"{target:g} x or more", "met" if value >= target else "MISSED")


def moving_frames(count: int) -> NDArray[np.uint8]:
    """RGB frames with detail and motion, about as hard as a natural video."""
    import cv2

    random = np.random.default_rng(0)
    scene = cv2.GaussianBlur(random.integers(0, 256, (HEIGHT + 64, WIDTH + 64, 3)).astype(np.float32), (0, 0), 3)
    scene = np.clip(128 + (scene - 128) * 5, 0, 255).astype(np.uint8)
    shifts = [(round(8 + 6 * np.sin(n / 3)), 2 * n % 60) for n in range(count)]
    return np.stack([scene[y : y + HEIGHT, x : x + WIDTH] for y, x in shifts])


def bench_flow(threads: int, repeats: int) -> list[Figure]:
    """Our TV-L1 against OpenCV's with the same parameters and threads, for both pyramids."""
    from hpc_stres.data.flow import PYRAMIDS, tvl1
    from hpc_stres.prepare.video import gray

    frames = np.stack([gray(frame) for frame in moving_frames(5)])
    count = len(frames) - 1
    figures = []
    for pyramid in PYRAMIDS:
        own = functools.partial(tvl1, frames, "native", threads, pyramid)
        opencv = functools.partial(tvl1, frames, "opencv", threads, pyramid)
        ours, reference = best_of(repeats, own, opencv)
        figures += [
            Figure("flow", f"{pyramid}: ours", count / ours, "frames/s"),
            Figure("flow", f"{pyramid}: OpenCV", count / reference, "frames/s"),
            ratio("flow", f"{pyramid}: ours over OpenCV", reference / ours, FLOW_TARGET),
        ]
    return figures


def bench_feed(threads: int, repeats: int) -> list[Figure]:
    """The ST-ResNet sample (5 RGB frames, 100 flow planes at 224) against bare decoding and a file-based DataLoader."""
    from hpc_stres.data import feed
    from hpc_stres.data.requests import Box, Request
    from hpc_stres.store.reader import Store

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = _write_bench_store(root)
        store = Store(root)
        starts = (6, 17, 28, 39, 50)
        stacks = tuple(tuple(range(start - 5, start + 5)) for start in starts)
        batch = [
            Request(n, 0, 0, starts, stacks, Box(8 * n, 9 * n, 200 + 10 * n, 210 + 9 * n), n % 2 == 1) for n in range(4)
        ]
        reader = feed.ClipReader(store, SIDE, "torchvision", threads=threads)
        gray, colour = feed.Decoder(True, 512, threads, None), feed.Decoder(False, 512, threads, None)
        flow = [store.flow(0, pair, axis) for r in batch for s in r.flow for pair in s for axis in (0, 1)]
        rgb = [store.rgb(0, frame) for r in batch for frame in r.frames]
        flow_boxes, rgb_boxes = ([r.box for r in batch for _ in range(count)] for count in (100, 5))

        def bare() -> None:
            gray(flow, flow_boxes)
            colour(rgb, rgb_boxes)

        def loader() -> None:
            _file_loader(files, batch, workers=threads)

        def loader_alone() -> None:
            _file_loader(files, batch, workers=0)

        ours, decode, files_s, alone = best_of(repeats, lambda: reader.read(batch), bare, loader, loader_alone)
        files_s /= LOADER_BATCHES
        alone /= LOADER_BATCHES
        if os.environ.get("HPC_STRES_PROFILE"):
            _profile(lambda: reader.read(batch))
    planes = len(batch) * 105
    return [
        Figure("feed", "ours", planes / ours, "planes/s"),
        Figure("feed", "bare JPEG decoding (DALI)", planes / decode, "planes/s"),
        Figure("feed", f"DataLoader, OpenCV, single files, {threads} workers", planes / files_s, "planes/s"),
        Figure("feed", "the same in the main process", planes / alone, "planes/s"),
        ratio("feed", "ours over DataLoader", files_s / ours, LOADER_TARGET),
        ratio("feed", "ours over bare decoding", decode / ours, DECODE_TARGET),
    ]


def _write_bench_store(root: Path) -> Path:
    """A store of one video, and the same pictures as single JPEG files."""
    from hpc_stres.data.flow import encode_flow, tvl1
    from hpc_stres.prepare.video import encode_jpeg, gray
    from hpc_stres.store.reader import PreparedVideo, write_store

    frames = moving_frames(60)
    planes = encode_flow(tvl1(np.stack([gray(frame) for frame in frames]), threads=os.cpu_count() or 1))
    rgb = [encode_jpeg(frame, 95) for frame in frames]
    flow = [encode_jpeg(plane, 95) for pair in planes for plane in pair]
    files = root / "files"
    files.mkdir()
    for number, data in enumerate(rgb):
        (files / f"rgb{number:03d}.jpg").write_bytes(data)
    for number, data in enumerate(flow):
        (files / f"flow{number:03d}.jpg").write_bytes(data)
    write_store(root, [PreparedVideo("v", 0, HEIGHT, WIDTH, rgb, flow)], ["a"], train=["v"])
    return files


def _file_loader(files: Path, batch: list[Any], workers: int) -> None:
    """The ordinary way: a DataLoader whose workers open, decode, crop and resize each picture with OpenCV."""
    import torch

    data: Any = _Files(files, batch * LOADER_BATCHES)
    for _ in torch.utils.data.DataLoader(data, batch_size=len(batch), num_workers=workers):
        pass


class _Files:
    """A map-style data set over single files."""

    def __init__(self, files: Path, batch: list[Any]) -> None:
        self.files, self.batch = files, batch

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: int) -> Any:
        import cv2
        import torch

        request = self.batch[index]

        def load(name: str, flags: int) -> Any:
            box = request.box
            picture = cv2.imread(str(self.files / name), flags)
            assert picture is not None
            cut = picture[box.top : box.top + box.height, box.left : box.left + box.width]
            small = cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            return torch.from_numpy(np.ascontiguousarray(small[:, ::-1] if request.flip else small)).float()

        rgb = [(load(f"rgb{n:03d}.jpg", cv2.IMREAD_COLOR) - 110) / 58 for n in request.frames]
        numbers = [2 * pair + axis for stack in request.flow for pair in stack for axis in (0, 1)]
        flow = [(load(f"flow{n:03d}.jpg", cv2.IMREAD_GRAYSCALE) - 128) / 58 for n in numbers]
        return torch.stack(rgb), torch.stack(flow)


def _profile(function: Callable[[], object]) -> None:
    """Where the time of ten calls goes (HPC_STRES_PROFILE=1): `Outputs` is DALI's decoding, `acquire` the kernels."""
    import cProfile
    import pstats

    profile = cProfile.Profile()
    profile.enable()
    for _ in range(10):
        function()
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(12)
