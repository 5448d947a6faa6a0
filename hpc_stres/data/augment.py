"""Crop, resize, flip and normalise decoded pictures: one arithmetic for CPU and GPU."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config import FLOW_STACK

if TYPE_CHECKING:
    from torch import Tensor

CUBIC_A = -0.5
CUBIC_SUPPORT = 2.0
# Mean of the MSRA ImageNet models; torchvision's mean and deviation on the scale of 0..255.
MSRA_MEAN = (123.15, 115.90, 103.06)
TORCHVISION_MEAN = (123.675, 116.28, 103.53)
TORCHVISION_STD = (58.395, 57.12, 57.375)
FLOW_MEAN = 128.0
# Flow is brought to the scale of the RGB planes that conv1's filters were trained on.
FLOW_STD = {"msra": 1.0, "torchvision": 57.63}


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5, as MATLAB's and PIL's bicubic."""
    x = np.abs(x)
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@lru_cache(maxsize=1024)
def resize_weights(source: int, target: int, antialias: bool) -> NDArray[np.float32]:
    """The (target, source) matrix of a bicubic resize along one axis; with antialias shrinking widens the kernel."""
    scale = source / target
    widen = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(target) + 0.5) * scale
    if antialias:
        # Taps beyond the border are left out and the rest rescaled, as PIL does.
        places = np.arange(source) + 0.5
        weights = _cubic((places[None, :] - centres[:, None]) / widen)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
    weights = np.zeros((target, source))
    first = np.floor(centres - 0.5).astype(int) - 1
    for tap in range(4):
        index = first + tap
        value = _cubic(index + 0.5 - centres)
        np.add.at(weights, (np.arange(target), np.clip(index, 0, source - 1)), value)
    return np.asarray(weights, np.float32)


def resize_planes(planes: "Tensor", side: int, antialias: bool) -> "Tensor":
    """uint8 planes (..., h, w) to float32 (..., side, side) in 0..255: two matrix products."""
    import torch

    height, width = planes.shape[-2:]
    if (height, width) == (side, side):
        return planes.float()
    rows = torch.from_numpy(resize_weights(height, side, antialias)).to(planes.device)
    columns = torch.from_numpy(resize_weights(width, side, antialias)).to(planes.device)
    return (rows @ planes.float() @ columns.t()).clamp_(0.0, 255.0)


def rgb_scale_and_shift(variant: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a grey level of each RGB channel is multiplied by, and what is added then: mean off, deviation to one."""
    mean, std = (MSRA_MEAN, (1.0, 1.0, 1.0)) if variant == "msra" else (TORCHVISION_MEAN, TORCHVISION_STD)
    scale = 1.0 / np.array(std, np.float32)
    return scale, -np.array(mean, np.float32) * scale


def flow_scale_and_shift(variant: str, flip: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same for the planes of a stack, u and v in turn: under a flip u becomes 255 - u before its mean goes."""
    scale = np.full(2 * FLOW_STACK, 1.0 / FLOW_STD[variant], np.float32)
    shift = np.full(2 * FLOW_STACK, -FLOW_MEAN / FLOW_STD[variant], np.float32)
    if flip:
        scale[0::2] *= -1
        shift[0::2] = (255.0 - FLOW_MEAN) / FLOW_STD[variant]
    return scale, shift


def finish_planes(
    planes: "Tensor", side: int | None, antialias: bool, scale_shift: tuple[NDArray[np.float32], NDArray[np.float32]],
    flip: bool,
) -> "Tensor":  # fmt: skip
    """uint8 planes (..., channels, h, w) to floats: resized, mirrored, scaled. The arithmetic of both processors."""
    import torch

    resized = planes.float() if side is None else resize_planes(planes, side, antialias)
    if flip:
        resized = resized.flip(-1)
    scale, shift = (torch.from_numpy(value).to(planes.device)[:, None, None] for value in scale_shift)
    return resized * scale + shift


@lru_cache(maxsize=1024)
def _taps(source: int, target: int, antialias: bool) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The rows of `resize_weights` without their zeros: the first input of each output, and its weights."""
    if source == target:
        return np.arange(target, dtype=np.int32), np.ones((target, 1), np.float32)
    weights = resize_weights(source, target, antialias)
    used = weights != 0
    first = used.argmax(axis=1)
    span = int((source - used[:, ::-1].argmax(axis=1) - first).max())
    first = np.minimum(first, source - span)
    taps = np.stack([weights[row, start : start + span] for row, start in enumerate(first)])
    return first.astype(np.int32), np.ascontiguousarray(taps)


def finish_on_cpu(
    pictures: "list[NDArray[np.uint8]]", side: int | None, antialias: bool,
    scale_shift: tuple[NDArray[np.float32], NDArray[np.float32]], flip: bool, out: NDArray[np.float32],
) -> None:  # fmt: skip
    """`finish_planes` of one stack in one go: gray pictures (h, w) or (h, w, 1), or one with channels last, to `out`
    (h, w, channels)."""
    import ctypes

    from hpc_stres import native

    height, width = pictures[0].shape[:2]
    packed = len(pictures) == 1 and pictures[0].ndim == 3 and pictures[0].shape[2] > 1
    count = pictures[0].shape[2] if packed else len(pictures)
    down, across = (_taps(size, side or size, antialias) for size in (height, width))
    scale, shift = scale_shift
    pointers = (ctypes.c_void_p * len(pictures))(*[p.__array_interface__["data"][0] for p in pictures])

    def at(array: NDArray[Any]) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    native.load("resize").resize_stack(
        pointers, int(packed), count, height, width, side or height, side or width,
        at(down[0]), at(down[1]), down[1].shape[1], at(across[0]), at(across[1]), across[1].shape[1],
        at(scale), at(shift), int(flip), at(out),
    )  # fmt: skip
