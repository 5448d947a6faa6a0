"""TV-L1 against OpenCV's; on a GPU against its roofline as well."""

import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hpc_stres.tools.bench.figures import Figure, Timing, interleaved, quotients, rate, ratio
from hpc_stres.tools.bench.scene import moving_frames

if TYPE_CHECKING:
    from hpc_stres.training.profile import Limits

FLOW_TARGET = 3.0
# One update of a pixel (tvl1_pixel.h): 26 floating-point operations of `primal` and its divergences,
# 32 of `dual` and its differences; a division or a square root counts as one.
UPDATE_FLOP = 58
# Planes of 4 bytes that pass for an update where each iteration goes over memory alone: `primal` reads
# 10 and writes 2, `dual` reads 6 and writes 4.
PLANES_ONE_BY_ONE = 22
# Of a launch over tiles: 10 planes are read with their borders, 6 are written.
PLANES_READ, PLANES_WRITTEN = 10, 6
# As in tvl1_tile.h and tvl1.cu: sides of a tile, iterations of a launch.
TILE, DEPTH = (32, 64), 5
CACHED_BYTES, ROUNDS = 4 << 20, 50
GPU_PAIRS = 64


class Roofline(NamedTuple):
    """Seconds of some updates that no program can go below, by what holds it up."""

    memory_one_by_one: float  # each iteration reads and writes memory
    cache: float  # tiles come from the second-level cache
    arithmetic: float  # and are computed with their borders

    @property
    def tiles_s(self) -> float:
        """Of the way that the kernels go."""
        return max(self.cache, self.arithmetic)


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
        ours, reference = interleaved(repeats, own, opencv)
        figures += [
            rate("flow", f"{pyramid}: ours", count, ours, "frames/s"),
            rate("flow", f"{pyramid}: OpenCV", count, reference, "frames/s"),
            ratio("flow", f"{pyramid}: ours over OpenCV", quotients(reference, ours), FLOW_TARGET),
        ]
    return [*figures, *_on_gpu(repeats)]


def _on_gpu(repeats: int) -> list[Figure]:
    """The kernels of the GPU that is here, if one is, beside what it can do at best."""
    import torch

    if not torch.cuda.is_available():
        return []
    from hpc_stres import native
    from hpc_stres.data.flow import PYRAMIDS, run_kernels
    from hpc_stres.prepare.video import gray
    from hpc_stres.training.profile import measure_limits

    major, minor = torch.cuda.get_device_capability()
    library = native.load_cuda("tvl1", f"sm_{major}{minor}")
    limits = measure_limits(torch.device("cuda"), torch.float32)
    cache = cache_bytes_per_s(torch.device("cuda"))
    frames = np.stack([gray(frame) for frame in moving_frames(GPU_PAIRS + 1)])
    flow = np.empty((GPU_PAIRS, 2, *frames.shape[1:]), np.float32)
    figures = []
    for pyramid in PYRAMIDS:
        work = functools.partial(run_kernels, library, frames, flow, pyramid)
        (ours,) = interleaved(repeats, work)
        roof = roofline(work().updates, limits, cache)
        figures += gpu_figures(pyramid, ours, roof)
    return figures


def gpu_figures(pyramid: str, ours: Timing, roof: Roofline) -> list[Figure]:
    """The measured speed, the limits that it stands below, and its share of them."""
    what = f"{pyramid} on the GPU"
    return [
        rate("flow", f"{what}: ours", GPU_PAIRS, ours, "frames/s"),
        Figure("flow", f"{what}: roofline of tiles", GPU_PAIRS / roof.tiles_s, "frames/s"),
        Figure(
            "flow",
            f"{what}: roofline of one iteration after the other",
            GPU_PAIRS / roof.memory_one_by_one,
            "frames/s",
        ),
        ratio("flow", f"{what}: of the roofline of tiles", roof.tiles_s / ours.median_s),
    ]


def roofline(updates: float, limits: "Limits", cache_bytes_per_s: float) -> Roofline:
    """Of so many updates of a pixel, by what this device was measured to do."""
    kept = np.prod([side - 2 * DEPTH for side in TILE]) / np.prod(TILE)
    planes = (PLANES_READ / kept + PLANES_WRITTEN) / DEPTH
    return Roofline(
        updates * 4 * PLANES_ONE_BY_ONE / limits.bytes_per_s,
        updates * 4 * planes / cache_bytes_per_s,
        updates * UPDATE_FLOP / kept / limits.flop_per_s,
    )


def cache_bytes_per_s(device: Any) -> float:
    """Bytes read and written in a second by copies that stay in the second-level cache."""
    import torch

    source = torch.ones(CACHED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(ROUNDS):
            target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * CACHED_BYTES * ROUNDS / sorted(seconds)[ROUNDS // 2]
