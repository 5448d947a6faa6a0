"""Crop, resize, flip and normalise decoded pictures: one arithmetic for CPU and GPU."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpc_stres.config.schema import FLOW_STACK

if TYPE_CHECKING:
    from torch import Tensor

    from hpc_stres.phases.train import TrainPhase

# The kernel's own limits (resize.cpp), and its answer when memory ran out.
MOST_PLANES, MOST_SIDE, MOST_BYTES = 64, 65535, 1 << 30
NO_MEMORY = 2
# Of a resized picture: a square's, or height and width.
Side = int | tuple[int, int]
CUBIC_A = -0.5
CUBIC_SUPPORT = 2.0
# Mean of the MSRA ImageNet models; torchvision's mean and deviation on the scale of 0..255.
MSRA_MEAN = (123.15, 115.90, 103.06)
TORCHVISION_MEAN = (123.675, 116.28, 103.53)
TORCHVISION_STD = (58.395, 57.12, 57.375)
FLOW_MEAN = 128.0
# Inception-v3 was trained on levels from -1 to 1.
INCEPTION, HALF_LEVEL = "inception_v3", 127.5
# Flow is brought to the scale of the RGB planes that conv1's filters were trained on.
FLOW_STD = {"msra": 1.0, "torchvision": 57.63}


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' kernel with a = -0.5, as MATLAB's and PIL's bicubic.

    With u the distance to 2 and v that to 1, none of them below 0: its outer piece is
    a u^2 (1 - u), and the inner one that plus v^2 (1 - 2 v).
    """
    x = np.abs(x)
    outer, inner = np.maximum(CUBIC_SUPPORT - x, 0.0), np.maximum(1.0 - x, 0.0)
    return CUBIC_A * outer * outer * (1.0 - outer) + inner * inner * (1.0 - 2.0 * inner)


@lru_cache(maxsize=1024)
def resize_taps(
    source: int, target: int, antialias: bool
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A bicubic resize along one axis: output i is the sum of weights[i, n] * input[first[i] + n].

    With antialias, shrinking widens the kernel. `first` never falls and each window lies inside
    the picture: where a centre falls on a source pixel an output has fewer weights than its
    neighbours; it gets zeros, no later start.
    """
    if source == target:
        return np.arange(target, dtype=np.int32), np.ones((target, 1), np.float32)
    scale = source / target
    # Places are counted from the middle of the first pixel.
    centres = np.asarray((np.arange(target) + 0.5) * scale - 0.5, np.float64)
    first, weights = windows(source, centres, max(scale, 1.0) if antialias else 1.0, antialias)
    used = int(np.flatnonzero(weights.any(axis=0))[-1]) + 1
    return first.astype(np.int32), np.ascontiguousarray(weights[:, :used], np.float32)


def windows(
    source: int, centres: NDArray[np.float64], widen: float | NDArray[np.float64], antialias: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """First pixels and weights of outputs with these centres, for each of which the kernel is
    wider by `widen`."""
    reach = CUBIC_SUPPORT * widen
    # The first pixel that is nearer than `reach`; `span` from it on are all that can be.
    start = np.floor(centres - reach).astype(np.int64) + 1
    span = int(np.ceil(2 * np.max(reach)))
    kept = min(span, source)
    first = np.minimum(np.maximum(start, 0), source - kept)
    if antialias:
        # Taps beyond the border are left out and the rest rescaled, as PIL does.
        distances = (first - centres)[:, None] + np.arange(kept)
        weights = _cubic(distances / np.asarray(widen)[..., None])
        return first, weights / weights.sum(axis=1, keepdims=True)
    # Taps beyond the border read the pixel at the border, as MATLAB does.
    places = start[:, None] + np.arange(span)
    columns = np.minimum(np.maximum(places, 0), source - 1) - first[:, None]
    cells = (np.arange(0, len(centres) * kept, kept)[:, None] + columns).ravel()
    values = _cubic(places - centres[:, None]).ravel()
    sums = np.asarray(np.bincount(cells, values, len(centres) * kept), np.float64)
    return first, sums.reshape(-1, kept)


@lru_cache(maxsize=1024)
def resize_weights(source: int, target: int, antialias: bool) -> NDArray[np.float32]:
    """`resize_taps` as a (target, source) matrix."""
    first, taps = resize_taps(source, target, antialias)
    weights = np.zeros((target, source), np.float32)
    np.put_along_axis(weights, first[:, None] + np.arange(taps.shape[1]), taps, axis=1)
    return weights


def resize_planes(planes: "Tensor", side: Side, antialias: bool) -> "Tensor":
    """uint8 planes (..., h, w) to float32 (..., side, side) in 0..255: two matrix products."""
    import torch

    height, width = planes.shape[-2:]
    high, wide = side if isinstance(side, tuple) else (side, side)
    if (height, width) == (high, wide):
        return planes.float()
    rows = torch.from_numpy(resize_weights(height, high, antialias)).to(planes.device)
    columns = torch.from_numpy(resize_weights(width, wide, antialias)).to(planes.device)
    return (rows @ planes.float() @ columns.t()).clamp_(0.0, 255.0)


class Levels(NamedTuple):
    """Grey levels that become zero, and distances from them that become one, for
    RGB and for flow."""

    rgb_mean: tuple[float, ...]
    rgb_deviation: tuple[float, ...]
    flow_mean: float
    flow_deviation: float

    @classmethod
    def of(cls, variant: str) -> "Levels":
        """Those that a variant's, or Inception-v3's, published weights were trained with."""
        if variant == INCEPTION:
            return cls((HALF_LEVEL,) * 3, (HALF_LEVEL,) * 3, FLOW_MEAN, HALF_LEVEL)
        if variant == "msra":
            return cls(MSRA_MEAN, (1.0, 1.0, 1.0), FLOW_MEAN, FLOW_STD["msra"])
        return cls(TORCHVISION_MEAN, TORCHVISION_STD, FLOW_MEAN, FLOW_STD[variant])

    @classmethod
    def of_phase(cls, phase: "TrainPhase") -> "Levels":
        """Those of a phase's trunks: their variants', or their own."""
        appearance, motion = phase.trunk("appearance"), phase.trunk("motion")
        rgb, flow = (
            cls.of(INCEPTION if trunk.family == INCEPTION else trunk.variant or "torchvision")
            for trunk in (appearance, motion)
        )
        return cls(
            appearance.mean or rgb.rgb_mean,
            appearance.deviation or rgb.rgb_deviation,
            motion.mean[0] if motion.mean else flow.flow_mean,
            motion.deviation[0] if motion.deviation else flow.flow_deviation,
        )


def rgb_scale_and_shift(levels: Levels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a grey level of each RGB channel is multiplied by, and what is added then: mean off,
    deviation to one."""
    scale = 1.0 / np.array(levels.rgb_deviation, np.float32)
    return scale, -np.array(levels.rgb_mean, np.float32) * scale


def flow_scale_and_shift(
    levels: Levels, flip: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The same for the planes of a stack, u and v in turn: under a flip u becomes 255 - u
    before its mean goes."""
    mean, deviation = levels.flow_mean, levels.flow_deviation
    scale = np.full(2 * FLOW_STACK, 1.0 / deviation, np.float32)
    shift = np.full(2 * FLOW_STACK, -mean / deviation, np.float32)
    if flip:
        scale[0::2] *= -1
        shift[0::2] = (255.0 - mean) / deviation
    return scale, shift


def finish_planes(
    planes: "Tensor", side: Side | None, antialias: bool, scale_shift: tuple[NDArray[np.float32], NDArray[np.float32]],
    flip: bool,
) -> "Tensor":  # fmt: skip
    """uint8 planes (..., channels, h, w) to floats: resized, mirrored, scaled. The arithmetic of
    both processors."""
    import torch

    resized = planes.float() if side is None else resize_planes(planes, side, antialias)
    if flip:
        resized = resized.flip(-1)
    scale, shift = (
        torch.from_numpy(value).to(planes.device)[:, None, None] for value in scale_shift
    )
    return resized * scale + shift


def finish_on_cpu(
    pictures: "list[NDArray[np.uint8]]", side: Side | None, antialias: bool,
    scale_shift: tuple[NDArray[np.float32], NDArray[np.float32]], flip: bool,
    out: "NDArray[np.float32] | NDArray[np.uint16]",
) -> None:  # fmt: skip
    """`finish_planes` of one stack in one go: gray pictures (h, w) or (h, w, 1), or one with
    channels last, to `out` (h, w, channels): float32, or the bits of bfloat16 as uint16, rounded as
    torch rounds. Pictures may have any strides; what the kernel cannot take is a ValueError."""
    import ctypes

    from hpc_stres import native

    pictures = _checked_pictures(pictures)
    height, width = pictures[0].shape[:2]
    packed = pictures[0].ndim == 3 and pictures[0].shape[2] > 1
    count = pictures[0].shape[2] if packed else len(pictures)
    high, wide = side if isinstance(side, tuple) else (side, side)
    rows, columns = _checked_side(high, height), _checked_side(wide, width)
    scale, shift = scale_shift
    _check_floats("scale", scale, (count,))
    _check_floats("shift", shift, (count,))
    is_half = isinstance(out, np.ndarray) and out.dtype == np.uint16
    _check_floats("out", out, (rows, columns, count), np.uint16 if is_half else np.float32)
    if not out.flags.writeable:
        raise ValueError("out: this array is read-only")
    down, across = resize_taps(height, rows, antialias), resize_taps(width, columns, antialias)
    pointers = (ctypes.c_void_p * len(pictures))(
        *[p.__array_interface__["data"][0] for p in pictures]
    )

    def at(array: NDArray[Any]) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.__array_interface__["data"][0])

    kernels = native.load("resize")
    refused = (kernels.resize_stack_bfloat16 if is_half else kernels.resize_stack)(
        pointers, int(packed), count, height, width, rows, columns,
        at(down[0]), at(down[1]), down[1].shape[1], at(across[0]), at(across[1]), across[1].shape[1],
        at(scale), at(shift), int(bool(flip)), at(out),
    )  # fmt: skip
    if refused == NO_MEMORY:
        raise MemoryError(f"no memory to resize {count} planes of {width}x{height}")
    if refused:
        sizes = f"{width}x{height} for {columns}x{rows}"
        raise ValueError(f"the kernel refused {count} planes of {sizes}")


def _checked_pictures(pictures: "list[NDArray[np.uint8]]") -> "list[NDArray[np.uint8]]":
    """The pictures as the kernel reads them: each in one piece; refused where sizes differ or do
    not suit it."""
    if not len(pictures):
        raise ValueError("pictures: there is none")
    first = pictures[0]
    shape: tuple[int, ...] = getattr(first, "shape", ())
    for picture in pictures:
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            kind = getattr(picture, "dtype", type(picture).__name__)
            raise ValueError(f"pictures: the kernel reads arrays of uint8, got {kind}")
        if picture.shape != shape:
            raise ValueError(f"pictures: their sizes differ: {shape} and {picture.shape}")
    if len(shape) not in (2, 3) or (len(shape) == 3 and len(pictures) > 1 and shape[2] != 1):
        what = f"{len(pictures)} of {shape}"
        raise ValueError(f"pictures: gray ones (h, w) or one (h, w, channels), got {what}")
    planes = max(len(pictures), shape[2] if len(shape) == 3 else 1)
    if not 1 <= planes <= MOST_PLANES or 0 in shape:
        what = f"{len(pictures)} of {shape}"
        raise ValueError(f"pictures: 1 to {MOST_PLANES} planes of at least one pixel, got {what}")
    if max(shape) > MOST_SIDE or shape[0] * shape[1] * planes > MOST_BYTES:
        raise ValueError(f"pictures: {planes} planes of {shape[1]}x{shape[0]} are too large")
    return [p if p.flags.c_contiguous else np.ascontiguousarray(p) for p in pictures]


def _checked_side(side: int | None, source: int) -> int:
    """The target's length of an axis; None leaves it as it is."""
    if side is None:
        return source
    is_number = isinstance(side, (int, np.integer)) and not isinstance(side, bool)
    if not is_number or not 1 <= side <= MOST_SIDE:
        raise ValueError(f"side: a number of pixels from 1 to {MOST_SIDE}, or None, not {side!r}")
    return int(side)


def _check_floats(name: str, array: Any, shape: tuple[int, ...], dtype: Any = np.float32) -> None:
    """Whether the kernel may go through an array of floats of this shape from its first byte on."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name}: an array of float32, got {kind}")
    if array.shape != shape:
        raise ValueError(f"{name}: its shape must be {shape}, got {array.shape}")
    if not array.flags.c_contiguous or not array.flags.aligned:
        raise ValueError(f"{name}: the array must lie in one piece, aligned")
