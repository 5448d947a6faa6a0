"""Crop, resize, flip and normalise decoded pictures: one arithmetic for CPU and GPU."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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


def normalise_rgb(frames: "Tensor", variant: str, flip: bool) -> "Tensor":
    """(..., 3, h, w) in 0..255: mirrored where asked, mean taken off, scaled as the weights expect."""
    import torch

    mean, std = (MSRA_MEAN, (1.0, 1.0, 1.0)) if variant == "msra" else (TORCHVISION_MEAN, TORCHVISION_STD)
    if flip:
        frames = frames.flip(-1)
    shift = torch.tensor(mean, device=frames.device)[:, None, None]
    return (frames - shift) / torch.tensor(std, device=frames.device)[:, None, None]


def normalise_flow(stacks: "Tensor", variant: str, flip: bool) -> "Tensor":
    """(..., 20, h, w) in 0..255, u and v in turn: under a flip mirrored, and u becomes 255 - u."""
    if flip:
        stacks = stacks.flip(-1)
        stacks[..., 0::2, :, :] = 255.0 - stacks[..., 0::2, :, :]
    return (stacks - FLOW_MEAN) / FLOW_STD[variant]
