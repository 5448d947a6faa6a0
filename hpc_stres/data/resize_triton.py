"""Crops to clips in one kernel of a GPU for a whole batch: resized, mirrored, normalised, cast, channels-last.

The same arithmetic as native/resize.cpp: down first, then across, in float32. A program takes some
columns of one row of one stack, all of its planes. What differs from stack to stack (where its
planes are, their size, the taps of both axes, the mirror) is a line of numbers and addresses, so
that crops of any sizes go together. Triton's interpreter (TRITON_INTERPRET=1) runs the same kernel
without a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpc_stres.data.augment import resize_taps
from hpc_stres.native import triton_language
from hpc_stres.native.triton_language import jit, tl

COLUMNS, WARPS = 32, 8
# Numbers of a stack's line: width, mirror, taps and their addresses down, the same across.
LINE = 8
ScaleShift = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Stack:
    """Pictures that become one: gray ones (h, w) or (h, w, 1), or one (h, w, channels); uint8."""

    pictures: Sequence[Tensor]
    flip: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pictures[0].shape[:2]
        return height, width

    @property
    def channels(self) -> int:
        """Planes of the result."""
        first = self.pictures[0]
        return first.shape[2] if first.ndim == 3 and first.shape[2] > 1 else len(self.pictures)

    def addresses(self) -> list[int]:
        """Where each plane begins."""
        first = self.pictures[0].data_ptr()
        if self.channels > len(self.pictures):
            return [first + channel for channel in range(self.channels)]
        return [picture.data_ptr() for picture in self.pictures]


def is_available() -> bool:
    """Whether Triton is there; said once where it is not."""
    return triton_language.is_available("clips are made on the GPU stack by stack")


@jit
def finish_kernel(  # type: ignore[no-untyped-def]
    planes, lines, scale, shift, out, high, wide, channels,
    STEP: tl.constexpr, PLANES: tl.constexpr, COLUMNS: tl.constexpr, LINE: tl.constexpr,
):  # fmt: skip
    """STEP is the bytes from a plane's pixel to its next one: 1, or 3 where colours are interleaved."""
    stack = tl.program_id(0).to(tl.int64)
    y = tl.program_id(1)
    x = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    c = tl.arange(0, PLANES)
    line = lines + stack * LINE
    width = tl.load(line)
    mirror = tl.load(line + 1)
    taps_down = tl.load(line + 2).to(tl.int32)
    first_down = tl.load(line + 3).to(tl.pointer_type(tl.int32))
    weights_down = tl.load(line + 4).to(tl.pointer_type(tl.float32))
    taps_across = tl.load(line + 5).to(tl.int32)
    first_across = tl.load(line + 6).to(tl.pointer_type(tl.int32))
    weights_across = tl.load(line + 7).to(tl.pointer_type(tl.float32))
    plane = tl.load(planes + stack * channels + c, mask=c < channels, other=0)
    plane = plane.to(tl.pointer_type(tl.uint8))
    inside = (c < channels)[:, None] & (x < wide)[None, :]
    top = tl.load(first_down + y).to(tl.int64)
    left = tl.load(first_across + x, mask=x < wide, other=0).to(tl.int64)
    total = tl.zeros([PLANES, COLUMNS], tl.float32)
    for i in range(0, taps_across):
        column = tl.zeros([PLANES, COLUMNS], tl.float32)
        for j in range(0, taps_down):
            at = ((top + j) * width + left + i) * STEP
            level = tl.load(plane[:, None] + at[None, :], mask=inside, other=0).to(tl.float32)
            column += level * tl.load(weights_down + y * taps_down + j)
        weight = tl.load(weights_across + x * taps_across + i, mask=x < wide, other=0.0)
        total += column * weight[None, :]
    total = tl.minimum(tl.maximum(total, 0.0), 255.0)
    of_way = mirror * channels + c
    slope = tl.load(scale + of_way, mask=c < channels, other=0.0)
    middle = tl.load(shift + of_way, mask=c < channels, other=0.0)
    total = total * slope[:, None] + middle[:, None]
    to_x = tl.where(mirror != 0, wide - 1 - x, x)
    to = ((stack * high + y) * wide + to_x)[None, :] * channels + c[:, None]
    tl.store(out + to, total.to(out.dtype.element_ty), mask=inside)


@lru_cache(maxsize=1024)
def taps_on(
    source: int, target: int, antialias: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`resize_taps` on a device."""
    first, weights = resize_taps(source, target, antialias)
    return to_device(np.array(first, np.int32), device), to_device(np.array(weights), device)


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """An array there, through memory from which the GPU fetches it by itself."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def finish(
    stacks: Sequence[Stack], antialias: bool, scale_shifts: tuple[ScaleShift, ScaleShift], out: Tensor
) -> None:  # fmt: skip
    """Every stack to its place of `out` (stacks, height, width, channels), float32 or bfloat16.

    `scale_shifts` are those of stacks as they are and of mirrored ones. `out` lies in one piece. The
    pictures are read on the current stream: they stay as they are until it has come so far.
    """
    count, high, wide, channels = out.shape
    _check(stacks, out)
    device = out.device
    lines = np.empty((count, LINE), np.int64)
    kept = []  # what the kernel reads, until it is started
    for line, stack in zip(lines, stacks, strict=True):
        height, width = stack.size
        down, across = (
            taps_on(source, target, antialias, device)
            for source, target in ((height, high), (width, wide))
        )
        kept.append((down, across))
        line[:2] = width, stack.flip
        for start, (first, weights) in ((2, down), (5, across)):
            line[start : start + 3] = weights.shape[1], first.data_ptr(), weights.data_ptr()
    planes = np.array([stack.addresses() for stack in stacks], np.int64)
    scale, shift = (
        to_device(np.stack([way[n] for way in scale_shifts]).astype(np.float32), device)
        for n in (0, 1)
    )
    grid = (count, high, -(-wide // COLUMNS))
    is_packed = channels > len(stacks[0].pictures)
    finish_kernel[grid](
        to_device(planes, device), to_device(lines, device), scale, shift, out, high, wide, channels,
        STEP=channels if is_packed else 1, PLANES=max(1 << (channels - 1).bit_length(), 2),
        COLUMNS=COLUMNS, LINE=LINE, num_warps=WARPS,
    )  # fmt: skip


def _check(stacks: Sequence[Stack], out: Tensor) -> None:
    """Refuse what the kernel would read or write beyond."""
    if not out.is_contiguous() or out.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"out: float32 or bfloat16 in one piece, got {out.dtype} {out.stride()}")
    if len(stacks) != len(out):
        raise ValueError(f"out: room for {len(out)} stacks, got {len(stacks)}")
    for stack in stacks:
        if stack.channels != out.shape[3]:
            raise ValueError(f"a stack of {stack.channels} planes, out has {out.shape[3]}")
        for picture in stack.pictures:
            is_alike = picture.shape == stack.pictures[0].shape and picture.device == out.device
            if picture.dtype != torch.uint8 or not picture.is_contiguous() or not is_alike:
                raise ValueError(
                    f"pictures of one size, uint8, in one piece, on {out.device}; got "
                    f"{picture.dtype} {tuple(picture.shape)} on {picture.device}"
                )
