"""TV-L1 optical flow behind one name, and its 8-bit encoding."""

import ctypes
import itertools
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_stres.errors import UserError

BOUND = 20.0
ZERO_LEVEL = 128
Backend = Literal["native", "cuda", "dali", "opencv"]
BACKENDS: tuple[Backend, ...] = ("native", "cuda", "dali", "opencv")
Pyramid = Literal["paper", "opencv4"]
PYRAMIDS: tuple[Pyramid, ...] = ("paper", "opencv4")
# Pairs that a GPU is given at once; at 340x256 each takes 2 MB of its memory. How many of them it
# works on together is the kernels' choice (native/tvl1.cu).
GPU_BATCH = 256
# DALI's optical flow comes in quarter pixels of a grid; 1 is the finest grid, 0 the slowest
# and best preset.
DALI_GRID, DALI_PRESET = 1, 0.0


def tvl1(
    frames: NDArray[np.uint8], backend: str = "native", threads: int = 1, pyramid: str = "paper"
) -> NDArray[np.float32]:
    """Gray frames (T, H, W) to displacements (T-1, 2, H, W) in pixels a frame, u then v, from each
    frame to the next.

    `pyramid`: `paper` is the solver that the authors extracted their flow with, the GPU one of
    OpenCV 2.4.7 to 2.4.13: scales halved by pyrDown, no median; it follows motions of 18 pixels.
    `opencv4` is DualTVL1 of OpenCV 4 and 5: scales of 0.8 and a 5x5 median; on fine texture it
    loses motions beyond 6 pixels.

    `backend`: `native` is our own batched solver on the CPU, `cuda` the same arithmetic on a GPU.
    Without a C++ compiler `native` is computed by NumPy: the same solver, equal to rounding.
    `opencv` is OpenCV's DualTVL1: the reference for `opencv4`; with `paper` it is given that
    pyramid's parameters and comes close. `dali` is the optical-flow engine of NVIDIA GPUs: another
    algorithm, for speed, that `pyramid` does not concern.
    """
    _check_frames(frames)
    if backend not in BACKENDS:
        raise ValueError(f"no TV-L1 back end {backend!r}; there are {', '.join(BACKENDS)}")
    if backend != "dali" and pyramid not in PYRAMIDS:
        raise ValueError(f"no TV-L1 pyramid {pyramid!r}; there are {', '.join(PYRAMIDS)}")
    flow = np.empty((len(frames) - 1, 2, *frames.shape[1:]), np.float32)
    if len(flow) == 0:
        return flow
    frames = np.ascontiguousarray(frames)
    if backend == "native":
        _native(frames, flow, threads, pyramid)
    elif backend == "cuda":
        _cuda(frames, flow, pyramid)
    elif backend == "dali":
        flow[:] = _dali(frames)
    else:
        _opencv(frames, flow, pyramid)
    return flow


def _check_frames(frames: NDArray[np.uint8]) -> None:
    """Refuse what a kernel would read beyond its end, or as something that it is not."""
    if not isinstance(frames, np.ndarray) or frames.ndim != 3 or frames.dtype != np.uint8:
        had = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames)
        raise ValueError(f"tvl1 reads uint8 gray frames (T, H, W) of one size, got {had}")
    if frames.size == 0:
        raise ValueError(f"tvl1 reads uint8 gray frames (T, H, W), got none: {frames.shape}")


def _check_room(frames: NDArray[np.uint8], flow: NDArray[np.float32]) -> None:
    """Refuse an array that a kernel would write beyond."""
    _check_frames(frames)
    wanted = (len(frames) - 1, 2, *frames.shape[1:])
    if flow.shape != wanted or flow.dtype != np.float32:
        had = f"{flow.dtype} {flow.shape}"
        raise ValueError(f"flow of {frames.shape} frames is float32 {wanted}, not {had}")


def find_native() -> None:
    """Build or find the solver once, before several processes would."""
    from hpc_stres import native

    native.find("tvl1")


def _native(
    frames: NDArray[np.uint8],
    flow: NDArray[np.float32],
    threads: int,
    pyramid: str,
) -> None:
    from hpc_stres import native
    from hpc_stres.native import tvl1_numpy

    _check_room(frames, flow)
    count, _, rows, cols = flow.shape
    library = native.find("tvl1")
    if library is None:
        tvl1_numpy.tvl1_batch(frames, pyramid == "paper", threads, flow)
        return
    bytes_, floats = (np.ctypeslib.ndpointer(kind, flags="C") for kind in (np.uint8, np.float32))
    solve = library.tvl1_batch
    solve.argtypes = [bytes_, *[ctypes.c_int] * 5, floats]
    solve.restype = ctypes.c_int
    if solve(frames, count, rows, cols, pyramid == "paper", threads, flow) != 0:
        raise UserError(
            f"TV-L1: no memory left for frames of {cols}x{rows}\n"
            "Lower data.workers or data.short_side, or ask for more memory."
        )


def _opencv(frames: NDArray[np.uint8], flow: NDArray[np.float32], pyramid: str) -> None:
    import cv2

    solver = _opencv_solver(pyramid)
    try:
        for number, (first, second) in enumerate(itertools.pairwise(frames)):
            flow[number] = solver.calc(first, second, None).transpose(2, 0, 1)
    except cv2.error as error:
        size, reason = f"{frames.shape[2]}x{frames.shape[1]}", str(error).strip().splitlines()[-1]
        raise UserError(
            f"OpenCV's TV-L1 does not take frames of {size}: {reason}\nChoose data.flow_backend=native."
        ) from None


def _require_gpu(backend: str) -> Any:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"flow back end {backend}: there is no CUDA GPU here\nChoose data.flow_backend=native, the CPU's."
        )
    return torch


def _cuda(frames: NDArray[np.uint8], flow: NDArray[np.float32], pyramid: str) -> None:
    from hpc_stres import native

    torch = _require_gpu("cuda")
    major, minor = torch.cuda.get_device_capability()
    run_kernels(native.load_cuda("tvl1", f"sm_{major}{minor}"), frames, flow, pyramid)


class Work(NamedTuple):
    """What the GPU's kernels did: updates of a pixel, and places for a pair that their chunks of 30
    iterations were started with."""

    updates: float
    places: float


def run_kernels(
    library: Any,
    frames: NDArray[np.uint8],
    flow: NDArray[np.float32],
    pyramid: str,
    batch: int = GPU_BATCH,
    depth: int = 0,
    cache_bytes: int = 0,
) -> Work:
    """The GPU's kernels, from a library made by nvcc or, in tests, by a C++ compiler; `batch` pairs
    at once.

    `depth` iterations go into a launch, and pairs that fit into `cache_bytes` together; 0 is the
    device's own choice. Neither changes the flow.
    """
    _check_room(frames, flow)
    bytes_, floats = (np.ctypeslib.ndpointer(kind, flags="C") for kind in (np.uint8, np.float32))
    solve = library.tvl1_batch_gpu_in
    work, total = (ctypes.c_double * 2)(), Work(0.0, 0.0)
    solve.argtypes = [bytes_, *[ctypes.c_int] * 5, ctypes.c_size_t, floats, type(work)]
    solve.restype = ctypes.c_int
    rows, cols = frames.shape[1:]
    for start in range(0, len(flow), batch):
        count = min(batch, len(flow) - start)
        some, room = frames[start : start + count + 1], flow[start : start + count]
        size = count, rows, cols, pyramid == "paper"
        if solve(some, *size, depth, cache_bytes, room, work) != 0:
            raise UserError(
                f"TV-L1 on the GPU: {count} pairs of {cols}x{rows} do not fit, or the device failed"
            )
        total = Work(total.updates + work[0], total.places + work[1])
    return total


def _dali(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The hardware's flow, brought to our size, order and unit."""
    from nvidia.dali import fn, pipeline_def, types

    _require_gpu("dali")

    @pipeline_def(batch_size=1, num_threads=1, device_id=0, prefetch_queue_depth=1)
    def estimate() -> Any:
        pictures = fn.external_source(
            name="frames", dtype=types.UINT8, layout="FHWC", device="cpu"
        ).gpu()
        return fn.optical_flow(
            pictures, output_grid=DALI_GRID, preset=DALI_PRESET, image_type=types.GRAY
        )

    pipeline = estimate()
    pipeline.build()
    pipeline.feed_input("frames", [frames[..., None]])
    (vectors,) = pipeline.run()
    return from_dali(np.asarray(vectors.as_cpu()[0]), frames.shape[1:])


def from_dali(vectors: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    """(pairs, rows, cols, 2) on a grid that may be coarser or padded, as (pairs, 2,
    H, W) in pixels."""
    import cv2

    height, width = size
    if vectors.shape[1:3] == (height, width):
        return np.ascontiguousarray(vectors.transpose(0, 3, 1, 2))
    # A grid of 4 has a place for every begun block of 4 pixels.
    grid = -(-height // vectors.shape[1])
    full = (vectors.shape[2] * grid, vectors.shape[1] * grid)
    large = [
        cv2.resize(pair, full, interpolation=cv2.INTER_LINEAR)[:height, :width] for pair in vectors
    ]
    return np.ascontiguousarray(np.stack(large).transpose(0, 3, 1, 2))


def _opencv_solver(pyramid: str) -> Any:
    """OpenCV's DualTVL1; for `paper` with scales halved and no median within its 300 iterations.

    What stays different there: pictures are halved by a bilinear resize, and are black outside.
    """
    import cv2

    solver = cv2.optflow.createOptFlow_DualTVL1()
    if pyramid == "paper":
        solver.setScaleStep(0.5)
        solver.setMedianFiltering(1)
    return solver


def encode_flow(flow: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Displacement clipped to +-20 pixels as round(255 (v + 20) / 40); halves are rounded up,
    so that 0 is 128."""
    clipped = np.clip(flow, -BOUND, BOUND)
    return np.floor((clipped + BOUND) * (255.0 / (2 * BOUND)) + 0.5).astype(np.uint8)


def decode_flow(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Displacement in pixels of stored levels."""
    return (levels.astype(np.float32) * (2 * BOUND / 255.0) - BOUND).astype(np.float32)
