"""The Triton kernels of the fused normalisation, for GPUs; the same steps as native/norm.cpp.

Channels-last activations are a table of (frames * pixels) rows by channels. A program takes a piece
of one frame and some channels; sums are taken in float32 within a piece and in float64 over a
group's pieces, piece after piece, so that the bytes are the same in each run. Triton comes with
torch's CUDA builds; its interpreter (TRITON_INTERPRET=1) runs the same kernels without a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpc_stres.native import triton_language
from hpc_stres.native.triton_language import jit, tl

GATES = {"open": 0, "computed": 1, "read": 2}
# Rows of a piece, rows that are in registers at once, channels of a program.
PIECE_ROWS, BLOCK_ROWS, BLOCK_CHANNELS = 256, 32, 64
MERGED_PIECES = 32
WARPS = 4


def is_available() -> bool:
    """Whether Triton is there; said once where it is not."""
    return triton_language.is_available("normalisation without its GPU kernels")


# -- kernels --------------------------------------------------------------------------------------
# Each loads a block (rows, channels); `inside` masks what lies beyond the piece or the channels.


@jit
def moments_kernel(  # type: ignore[no-untyped-def]
    x,
    parts,
    pixels,
    channels,
    per_frame,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Mean of a piece, and squares about it, by channel: block by block, each
    about its own mean."""
    piece = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    first = piece % per_frame * PIECE
    start = (piece // per_frame * pixels + first) * channels
    size = tl.minimum(pixels - first, PIECE).to(tl.int32)
    mean = tl.zeros([CHANNELS], tl.float32)
    squares = tl.zeros([CHANNELS], tl.float32)
    for row in range(0, size, ROWS):
        r = row + tl.arange(0, ROWS)
        inside = (r < size)[:, None] & (c < channels)[None, :]
        v = tl.load(
            x + start + r[:, None].to(tl.int64) * channels + c[None, :], mask=inside, other=0.0
        ).to(tl.float32)
        count = tl.minimum(size - row, ROWS).to(tl.float32)
        middle = tl.sum(v, axis=0) / count
        off = tl.where(inside, v - middle[None, :], 0.0)
        step = middle - mean
        part = count / (row + count)
        mean += step * part
        squares += tl.sum(off * off, axis=0) + step * step * (row * part)
    to = parts + piece * 2 * channels + c
    tl.store(to, mean, mask=c < channels)
    tl.store(to + channels, squares, mask=c < channels)


@jit
def merge_moments_kernel(  # type: ignore[no-untyped-def]
    parts, owner, count, mean, variance, frames, pixels, channels, per_frame,
    PIECE: tl.constexpr, MERGED: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Moments of a group from those of its pieces."""
    group = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float64)
    rows_total = tl.zeros([MERGED], tl.float64)
    for k in range(0, frames * per_frame, MERGED):
        piece = k + tl.arange(0, MERGED)
        mine = (
            tl.load(owner + piece // per_frame, mask=piece < frames * per_frame, other=-1) == group
        )
        rows = tl.where(mine, tl.minimum(pixels - piece % per_frame * PIECE, PIECE), 0).to(
            tl.float64
        )
        inside = mine[:, None] & (c < channels)[None, :]
        at = parts + piece[:, None].to(tl.int64) * 2 * channels + c[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0).to(tl.float64) * rows[:, None], axis=0)
        rows_total += rows
    counted = tl.sum(rows_total, axis=0)
    divisor = tl.where(counted > 0, counted, 1.0)
    middle = total / divisor
    squares = tl.zeros([CHANNELS], tl.float64)
    for k in range(0, frames * per_frame, MERGED):
        piece = k + tl.arange(0, MERGED)
        mine = (
            tl.load(owner + piece // per_frame, mask=piece < frames * per_frame, other=-1) == group
        )
        rows = tl.where(mine, tl.minimum(pixels - piece % per_frame * PIECE, PIECE), 0).to(
            tl.float64
        )
        inside = mine[:, None] & (c < channels)[None, :]
        at = parts + piece[:, None].to(tl.int64) * 2 * channels + c[None, :]
        off = tl.load(at, mask=inside, other=0.0).to(tl.float64) - middle[None, :]
        own = tl.load(at + channels, mask=inside, other=0.0).to(tl.float64)
        squares += tl.sum(tl.where(inside, own + off * off * rows[:, None], 0.0), axis=0)
    to = group.to(tl.int64) * channels + c
    tl.store(mean + to, middle, mask=c < channels)
    tl.store(variance + to, squares / divisor, mask=c < channels)
    tl.store(count + group, counted, mask=tl.program_id(1) == 0)


@jit
def coefficients(mean, variance, weight, group, c, channels, eps):  # type: ignore[no-untyped-def]
    """Mean and slope of a group's channels, in float32."""
    at = group.to(tl.int64) * channels + c
    middle = tl.load(mean + at, mask=c < channels, other=0.0)
    spread = tl.sqrt(tl.load(variance + at, mask=c < channels, other=1.0) + eps)
    slope = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float64) / spread
    return middle.to(tl.float32), slope.to(tl.float32)


@jit
def values_kernel(  # type: ignore[no-untyped-def]
    x, residual, y, weight, bias, owner, mean, variance, eps, pixels, channels, per_frame,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) * slope + bias, + residual, rectified."""
    block = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    frame = block // per_frame
    r = block % per_frame * ROWS + tl.arange(0, ROWS)
    inside = (r < pixels)[:, None] & (c < channels)[None, :]
    at = (frame * pixels + r)[:, None] * channels + c[None, :]
    middle, slope = coefficients(mean, variance, weight, tl.load(owner + frame), c, channels, eps)
    shift = tl.load(bias + c, mask=c < channels, other=0.0)
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    v = (v - middle[None, :]) * slope[None, :] + shift[None, :]
    if RESIDUAL:
        v += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        # What is not a number stays that.
        v = tl.where(v < 0, 0.0, v)
    tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)


@jit
def sums_kernel(  # type: ignore[no-untyped-def]
    x, grad, out, passed, parts, weight, bias, owner, mean, variance, eps, pixels, channels, per_frame,
    GATE: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Sums over a piece of the gradient behind the ReLU, and of its product with centred x."""
    piece = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    frame = piece // per_frame
    first = piece % per_frame * PIECE
    start = (frame * pixels + first) * channels
    size = tl.minimum(pixels - first, PIECE).to(tl.int32)
    middle, slope = coefficients(mean, variance, weight, tl.load(owner + frame), c, channels, eps)
    shift = tl.load(bias + c, mask=c < channels, other=0.0)
    sums = tl.zeros([CHANNELS], tl.float32)
    products = tl.zeros([CHANNELS], tl.float32)
    for row in range(0, size, ROWS):
        r = row + tl.arange(0, ROWS)
        inside = (r < size)[:, None] & (c < channels)[None, :]
        at = start + r[:, None].to(tl.int64) * channels + c[None, :]
        off = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - middle[None, :]
        g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if GATE == 1:
            g = tl.where(off * slope[None, :] + shift[None, :] <= 0, 0.0, g)
        if GATE == 2:
            g = tl.where(tl.load(out + at, mask=inside, other=0.0).to(tl.float32) <= 0, 0.0, g)
            tl.store(passed + at, g.to(passed.dtype.element_ty), mask=inside)
        sums += tl.sum(g, axis=0)
        products += tl.sum(tl.where(inside, g * off, 0.0), axis=0)
    to = parts + piece * 2 * channels + c
    tl.store(to, sums, mask=c < channels)
    tl.store(to + channels, products, mask=c < channels)


@jit
def merge_sums_kernel(  # type: ignore[no-untyped-def]
    parts,
    owner,
    sums,
    products,
    frames,
    channels,
    per_frame,
    MERGED: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Two sums of a group from those of its pieces."""
    group = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.zeros([CHANNELS], tl.float64)
    second = tl.zeros([CHANNELS], tl.float64)
    for k in range(0, frames * per_frame, MERGED):
        piece = k + tl.arange(0, MERGED)
        mine = (
            tl.load(owner + piece // per_frame, mask=piece < frames * per_frame, other=-1) == group
        )
        inside = mine[:, None] & (c < channels)[None, :]
        at = parts + piece[:, None].to(tl.int64) * 2 * channels + c[None, :]
        first += tl.sum(tl.load(at, mask=inside, other=0.0).to(tl.float64), axis=0)
        second += tl.sum(tl.load(at + channels, mask=inside, other=0.0).to(tl.float64), axis=0)
    to = group.to(tl.int64) * channels + c
    tl.store(sums + to, first, mask=c < channels)
    tl.store(products + to, second, mask=c < channels)


@jit
def gradient_kernel(  # type: ignore[no-untyped-def]
    x, grad, result, weight, bias, owner, count, mean, variance, sums, products, eps, pixels, channels, per_frame,
    GATE: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """result = gradient * slope - shift - (x - mean) * curve: the moments feel every x."""
    block = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    frame = block // per_frame
    r = block % per_frame * ROWS + tl.arange(0, ROWS)
    inside = (r < pixels)[:, None] & (c < channels)[None, :]
    at = (frame * pixels + r)[:, None] * channels + c[None, :]
    group = tl.load(owner + frame)
    middle, slope = coefficients(mean, variance, weight, group, c, channels, eps)
    by_group = group.to(tl.int64) * channels + c
    share = slope.to(tl.float64) / tl.maximum(tl.load(count + group), 1.0)
    square = tl.load(variance + by_group, mask=c < channels, other=1.0) + eps
    shift = (tl.load(sums + by_group, mask=c < channels, other=0.0) * share).to(tl.float32)
    curve = (tl.load(products + by_group, mask=c < channels, other=0.0) * share / square).to(
        tl.float32
    )
    off = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - middle[None, :]
    g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if GATE == 1:
        edge = tl.load(bias + c, mask=c < channels, other=0.0)
        g = tl.where(off * slope[None, :] + edge[None, :] <= 0, 0.0, g)
    v = g * slope[None, :] - shift[None, :] - off * curve[None, :]
    tl.store(result + at, v.to(result.dtype.element_ty), mask=inside)


# -- their calls ----------------------------------------------------------------------------------


class Grid:
    """How a tensor is cut: pieces for sums, blocks of rows for values, tiles of channels."""

    def __init__(self, x: Tensor) -> None:
        self.frames, self.channels, height, width = x.shape
        self.pixels = height * width
        self.pieces, self.blocks = -(-self.pixels // PIECE_ROWS), -(-self.pixels // BLOCK_ROWS)
        self.tiles = -(-self.channels // BLOCK_CHANNELS)

    def parts(self, x: Tensor) -> Tensor:
        """Room for two sums of each piece."""
        return torch.empty(
            self.frames * self.pieces, 2, self.channels, dtype=torch.float32, device=x.device
        )

    @property
    def by_piece(self) -> tuple[int, int]:
        """Programs that sum."""
        return self.frames * self.pieces, self.tiles

    @property
    def by_block(self) -> tuple[int, int]:
        """Programs that write values."""
        return self.frames * self.blocks, self.tiles


def moments(x: Tensor, owner: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Count (groups), mean and variance (groups, channels) of each group, in float64."""
    grid = Grid(x)
    count = torch.empty(groups, dtype=torch.float64, device=x.device)
    mean, variance = (
        torch.empty(groups, grid.channels, dtype=torch.float64, device=x.device) for _ in range(2)
    )
    parts = grid.parts(x)
    moments_kernel[grid.by_piece](
        x, parts, grid.pixels, grid.channels, grid.pieces, PIECE=PIECE_ROWS, ROWS=BLOCK_ROWS,
        CHANNELS=BLOCK_CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    merge_moments_kernel[(groups, grid.tiles)](
        parts, owner, count, mean, variance, grid.frames, grid.pixels, grid.channels, grid.pieces, PIECE=PIECE_ROWS,
        MERGED=MERGED_PIECES, CHANNELS=BLOCK_CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    return count, mean, variance


def values(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor, mean: Tensor,
    variance: Tensor, eps: float, relu: bool,
) -> Tensor:  # fmt: skip
    """Normalised values, + the residual, rectified where asked for; by given moments."""
    grid, y = Grid(x), torch.empty_like(x)
    other = x if residual is None else residual
    values_kernel[grid.by_block](
        x, other, y, weight, bias, owner, mean, variance, eps, grid.pixels, grid.channels, grid.blocks,
        RESIDUAL=residual is not None, RELU=relu, ROWS=BLOCK_ROWS, CHANNELS=BLOCK_CHANNELS, num_warps=WARPS,
    )  # fmt: skip
    return y


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor, groups: int, eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`moments` and `values` in one go: (values, count, mean, variance)."""
    count, mean, variance = moments(x, owner, groups)
    return (
        values(x, residual, weight, bias, owner, mean, variance, eps, relu),
        count,
        mean,
        variance,
    )


class Backward:
    """The way back through one normalisation."""

    def __init__(
        self, grad: Tensor, x: Tensor, out: Tensor | None, weight: Tensor, bias: Tensor, owner: Tensor,
        count: Tensor, mean: Tensor, variance: Tensor, eps: float, gate: str,
    ) -> None:  # fmt: skip
        self.grad, self.x, self.out, self.owner, self.count = grad, x, out, owner, count
        self.weight, self.bias, self.mean, self.variance = weight, bias, mean, variance
        self.eps, self.gate = eps, GATES[gate]
        self.sums, self.products = torch.empty_like(mean), torch.empty_like(mean)
        # What passed the ReLU; the residual's gradient.
        self.passed = torch.empty_like(x) if gate == "read" else None
        self.grad_x = torch.empty_like(x)

    def step(self, name: str) -> None:
        """`backward_sums`, `backward_values`, or `backward`, which is both."""
        if name in ("backward", "backward_sums"):
            self._sum_up()
        if name in ("backward", "backward_values"):
            self._write()

    def _sum_up(self) -> None:
        grid, x = Grid(self.x), self.x
        parts = grid.parts(x)
        sums_kernel[grid.by_piece](
            x, self.grad, x if self.out is None else self.out, x if self.passed is None else self.passed, parts,
            self.weight, self.bias, self.owner, self.mean, self.variance, self.eps, grid.pixels, grid.channels,
            grid.pieces, GATE=self.gate, PIECE=PIECE_ROWS, ROWS=BLOCK_ROWS, CHANNELS=BLOCK_CHANNELS, num_warps=WARPS,
        )  # fmt: skip
        merge_sums_kernel[(len(self.mean), grid.tiles)](
            parts, self.owner, self.sums, self.products, grid.frames, grid.channels, grid.pieces,
            MERGED=MERGED_PIECES, CHANNELS=BLOCK_CHANNELS, num_warps=WARPS,
        )  # fmt: skip

    def _write(self) -> None:
        grid = Grid(self.x)
        # Behind a ReLU that was read from memory the first pass has left what passed it.
        given, gate = (
            (self.grad, self.gate) if self.passed is None else (self.passed, GATES["open"])
        )
        gradient_kernel[grid.by_block](
            self.x, given, self.grad_x, self.weight, self.bias, self.owner, self.count, self.mean, self.variance,
            self.sums, self.products, self.eps, grid.pixels, grid.channels, grid.blocks, GATE=gate, ROWS=BLOCK_ROWS,
            CHANNELS=BLOCK_CHANNELS, num_warps=WARPS,
        )  # fmt: skip
