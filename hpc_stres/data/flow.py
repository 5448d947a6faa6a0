"""TV-L1 optical flow behind one name, and its 8-bit encoding."""

import ctypes
import itertools
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BOUND = 20.0
ZERO_LEVEL = 128
Backend = Literal["native", "opencv"]


def tvl1(frames: NDArray[np.uint8], backend: Backend = "native", threads: int = 1) -> NDArray[np.float32]:
    """Gray frames (T, H, W) to displacements (T-1, 2, H, W) in pixels a frame, u then v, from each frame to the next.

    `native` is our own batched solver, `opencv` the reference that it is compared with.
    """
    if frames.ndim != 3 or frames.dtype != np.uint8:
        raise ValueError(f"tvl1 reads uint8 gray frames (T, H, W), got {frames.dtype} {frames.shape}")
    if backend not in ("native", "opencv"):
        raise ValueError(f"no TV-L1 back end {backend!r}; there are native and opencv")
    flow = np.empty((max(len(frames) - 1, 0), 2, *frames.shape[1:]), np.float32)
    if len(flow) and backend == "native":
        _native(np.ascontiguousarray(frames), flow, threads)
    elif len(flow):
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
