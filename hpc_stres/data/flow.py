"""TV-L1 optical flow behind one name, and its 8-bit encoding."""

import ctypes
import itertools
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError

BOUND = 20.0
ZERO_LEVEL = 128
Backend = Literal["native", "cuda", "dali", "opencv"]
BACKENDS: tuple[Backend, ...] = ("native", "cuda", "dali", "opencv")
# Pairs that go through a GPU together; the memory of a pair at 340x256 is 6 MB.
GPU_BATCH = 128
# DALI's optical flow comes in quarter pixels of a grid; 1 is the finest grid, 0 the slowest and best preset.
DALI_GRID, DALI_PRESET = 1, 0.0


def tvl1(frames: NDArray[np.uint8], backend: Backend = "native", threads: int = 1) -> NDArray[np.float32]:
    """Gray frames (T, H, W) to displacements (T-1, 2, H, W) in pixels a frame, u then v, from each frame to the next.

    `native` is our own batched solver on the CPU, `cuda` the same arithmetic on a GPU, `opencv` the reference that both
    are compared with, `dali` the optical-flow engine of NVIDIA GPUs (another algorithm, for speed).
    """
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"tvl1 reads uint8 gray frames (T, H, W), got {frames.dtype} {frames.shape}")
    if backend not in BACKENDS:
        raise ValueError(f"no TV-L1 back end {backend!r}; there are {', '.join(BACKENDS)}")
    flow = np.empty((max(len(frames) - 1, 0), 2, *frames.shape[1:]), np.float32)
    if len(flow) == 0:
        return flow
    if backend == "native":
        _native(np.ascontiguousarray(frames), flow, threads)
    elif backend == "cuda":
        _cuda(np.ascontiguousarray(frames), flow)
    elif backend == "dali":
        flow[:] = _dali(frames)
    else:
        solver = _opencv_solver()
        for number, (first, second) in enumerate(itertools.pairwise(frames)):
            flow[number] = solver.calc(first, second, None).transpose(2, 0, 1)
    return flow


def _native(frames: NDArray[np.uint8], flow: NDArray[np.float32], threads: int) -> None:
    from hpc_stres import native

    count, _, rows, cols = flow.shape
    bytes_, floats = (np.ctypeslib.ndpointer(kind, flags="C") for kind in (np.uint8, np.float32))
    solve = native.load("tvl1").tvl1_batch
    solve.argtypes = [bytes_, *[ctypes.c_int] * 4, floats]
    solve.restype = None
    solve(frames, count, rows, cols, threads, flow)


def _require_gpu(backend: str) -> Any:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"flow back end {backend}: there is no CUDA GPU here\nChoose data.flow_backend=native, the CPU's."
        )
    return torch


def _cuda(frames: NDArray[np.uint8], flow: NDArray[np.float32]) -> None:
    from hpc_stres import native

    torch = _require_gpu("cuda")
    major, minor = torch.cuda.get_device_capability()
    run_kernels(native.load_cuda("tvl1", f"sm_{major}{minor}"), frames, flow)


def run_kernels(library: Any, frames: NDArray[np.uint8], flow: NDArray[np.float32], batch: int = GPU_BATCH) -> None:
    """The GPU's kernels, from a library made by nvcc or, in tests, by a C++ compiler; a batch of pairs at once."""
    bytes_, floats = (np.ctypeslib.ndpointer(kind, flags="C") for kind in (np.uint8, np.float32))
    solve = library.tvl1_batch_gpu
    solve.argtypes = [bytes_, *[ctypes.c_int] * 3, floats]
    solve.restype = ctypes.c_int
    rows, cols = frames.shape[1:]
    for start in range(0, len(flow), batch):
        count = min(batch, len(flow) - start)
        if solve(frames[start : start + count + 1], count, rows, cols, flow[start : start + count]) != 0:
            raise UserError(f"TV-L1 on the GPU: {count} pairs of {cols}x{rows} do not fit, or the device failed")


def _dali(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The hardware's flow, brought to our size, order and unit."""
    from nvidia.dali import fn, pipeline_def, types

    _require_gpu("dali")

    @pipeline_def(batch_size=1, num_threads=1, device_id=0, prefetch_queue_depth=1)
    def estimate() -> Any:
        pictures = fn.external_source(name="frames", dtype=types.UINT8, layout="FHWC", device="cpu").gpu()
        return fn.optical_flow(pictures, output_grid=DALI_GRID, preset=DALI_PRESET, image_type=types.GRAY)

    pipeline = estimate()
    pipeline.build()
    pipeline.feed_input("frames", [frames[..., None]])
    (found,) = pipeline.run()
    return from_dali(np.asarray(found.as_cpu()[0]), frames.shape[1:])


def from_dali(found: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """(pairs, rows, cols, 2) on a grid that may be coarser or padded, as (pairs, 2, H, W) in pixels."""
    import cv2

    height, width = size
    if found.shape[1:3] == (height, width):
        return np.ascontiguousarray(found.transpose(0, 3, 1, 2))
    # A grid of 4 has a place for every begun block of 4 pixels.
    grid = -(-height // found.shape[1])
    full = (found.shape[2] * grid, found.shape[1] * grid)
    large = [cv2.resize(pair, full, interpolation=cv2.INTER_LINEAR)[:height, :width] for pair in found]
    return np.ascontiguousarray(np.stack(large).transpose(0, 3, 1, 2))


def _opencv_solver() -> Any:
    import cv2

    return cv2.optflow.createOptFlow_DualTVL1()


def encode_flow(flow: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Displacement clipped to +-20 pixels as round(255 (v + 20) / 40); halves are rounded up, so that 0 is 128."""
    clipped = np.clip(flow, -BOUND, BOUND)
    return np.floor((clipped + BOUND) * (255.0 / (2 * BOUND)) + 0.5).astype(np.uint8)


def decode_flow(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Displacement in pixels of stored levels."""
    return (levels.astype(np.float32) * (2 * BOUND / 255.0) - BOUND).astype(np.float32)
