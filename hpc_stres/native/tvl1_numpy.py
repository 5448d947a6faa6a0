"""TV-L1 in NumPy: the arithmetic of tvl1_pixel.h on whole pictures, for machines
without a compiler.

The algorithm, its constants and its rule of when a pair has come to rest are the kernel's; sums are
taken in another order, so that displacements agree to rounding and stored levels to one, seldom.
Several pairs go together, so that a call to NumPy has enough to do and its arrays still fit into
the processor's cache; a pair that has come to rest leaves the others. Each pair's numbers are its
own: they depend neither on the pairs beside it nor on the number of threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TAU, LAMBDA, THETA, EPSILON = 0.25, 0.15, 0.3, 0.01
SCALES, WARPS, SMALLEST_SIDE = 5, 5, 16
# How far outside of the picture a warp may look: all that lies further off is the same as this.
REACH = 4
# Pixels that are worked on together: their two dozen planes have to fit into the
# second-level cache.
PIXELS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Pyramid:
    """What tells the two pyramids apart."""

    coarser: Callable[[int], int]
    reduce: Callable[[Floats, int, int], Floats]
    enlarge: Callable[[Floats, int, int], Floats]
    cubic: Callable[[Floats], list[Floats]]
    repeats_edge: bool
    has_median: bool
    outer: int
    inner: int
    looks_always: bool


def tvl1_batch(frames: NDArray[np.uint8], paper: bool, threads: int, flow: Floats) -> None:
    """Flow of consecutive frames (T, H, W) into (T-1, 2, H, W)."""
    pyramid = PAPER if paper else OPENCV4
    count, area = len(flow), frames.shape[1] * frames.shape[2]
    size = max(1, PIXELS_AT_ONCE // area)

    def solve(start: int) -> None:
        stop = min(start + size, count)
        first, second = frames[start:stop], frames[start + 1 : stop + 1]
        flow[start:stop] = _solve(first.astype(np.float32), second.astype(np.float32), pyramid)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(solve, range(0, count, size)))


def _solve(first: Floats, second: Floats, pyramid: Pyramid) -> Floats:
    """Flow (pairs, 2, H, W) of some pairs, from the coarsest scale to the finest."""
    scales = [(first, second)]
    while len(scales) < SCALES:
        rows, cols = (pyramid.coarser(side) for side in scales[-1][0].shape[1:])
        if min(rows, cols) < SMALLEST_SIDE:
            break
        scales.append(tuple(pyramid.reduce(picture, rows, cols) for picture in scales[-1]))  # type: ignore[arg-type]
    flow = np.zeros((2, *scales[-1][0].shape), np.float32)
    while scales:
        i0, i1 = scales.pop()
        if flow.shape[2:] != i0.shape[1:]:
            flow = np.stack([pyramid.enlarge(component, *i0.shape[1:]) for component in flow])
        flow = _solve_scale(i0, i1, flow, pyramid)
    return flow.transpose(1, 0, 2, 3)


def _solve_scale(i0: Floats, i1: Floats, flow: Floats, pyramid: Pyramid) -> Floats:
    texture = _Texture(i1, pyramid)
    dual = np.zeros((2, 2, *i0.shape), np.float32)
    for _ in range(WARPS):
        seen, slope = texture.warped(flow)
        squared = slope[0] * slope[0] + slope[1] * slope[1]
        # Where nothing can be told, the step is as long as the threshold lets it be.
        no_slope = squared <= np.finfo(np.float32).eps
        inverse = np.asarray(1 / np.where(no_slope, 1, squared), np.float32)
        inverse[no_slope] = np.finfo(np.float32).max
        constant = seen - slope[0] * flow[0] - slope[1] * flow[1] - i0
        _Pairs(flow, dual, slope, -inverse, constant, pyramid).iterate()
    return flow


class _Pairs:
    """The pairs of a batch between two warps. `flow` and `dual` are changed in place."""

    def __init__(
        self, flow: Floats, dual: Floats, slope: Floats, minus_inverse: Floats, constant: Floats, pyramid: Pyramid
    ) -> None:  # fmt: skip
        self.flow, self.dual = flow, dual
        self.slope, self.minus_inverse, self.constant = slope, minus_inverse, constant
        self.pyramid = pyramid
        self.tolerance = float(np.float32(EPSILON)) ** 2 * constant[0].size

    def iterate(self) -> None:
        """Iterations until each pair has come to rest, or has had as many as it may."""
        pyramid = self.pyramid
        places = np.arange(len(self.constant))  # of the pairs that are under way
        expected = np.zeros(len(places))
        work = _Work(self, places)
        for number in range(pyramid.outer * pyramid.inner):
            if pyramid.has_median and number % pyramid.inner == 0:
                _median(work.flow)
            looks = (number % 2 == 1) & (expected < self.tolerance)
            if pyramid.looks_always:
                looks = np.ones(len(places), bool)
            change = work.step(measure=bool(looks.any()))
            expected = np.where(looks, change, expected - self.tolerance)
            at_rest = looks & (change <= self.tolerance)
            if at_rest.any():
                work.store(self, places)
                places, expected = places[~at_rest], expected[~at_rest]
                if not len(places):
                    return
                work = _Work(self, places)
        work.store(self, places)


class _Work:
    """The arrays of the pairs that are under way, and room for what an iteration needs."""

    def __init__(self, pairs: _Pairs, places: NDArray[np.int64]) -> None:
        self.flow = np.ascontiguousarray(pairs.flow[:, places])
        self.dual = np.ascontiguousarray(pairs.dual[:, :, places])
        self.slope = np.ascontiguousarray(pairs.slope[:, places])
        self.minus_inverse, self.constant = pairs.minus_inverse[places], pairs.constant[places]
        self.change, self.divergence = np.empty_like(self.flow), np.empty_like(self.flow)
        self.ahead = np.zeros_like(self.dual)  # forward differences; beyond the edge they stay zero
        self.rho = np.empty_like(self.constant)

    def store(self, pairs: _Pairs, places: NDArray[np.int64]) -> None:
        """Put the results where they came from."""
        pairs.flow[:, places], pairs.dual[:, :, places] = self.flow, self.dual

    def step(self, measure: bool) -> NDArray[np.float64]:
        """One iteration of every pair; the sums of squared changes, where they are asked for."""
        self._primal()
        self._dual()
        if not measure:
            return np.zeros(len(self.constant))
        squares = self.change * self.change
        sums = squares.reshape(2, len(self.constant), -1).sum(axis=2, dtype=np.float64)
        return np.asarray(sums[0] + sums[1], np.float64)

    def _primal(self) -> None:
        rho, change, divergence, bound = self.rho, self.change, self.divergence, LAMBDA * THETA
        np.multiply(self.slope, self.flow, out=change)
        np.add(change[0], change[1], out=rho)
        rho += self.constant
        with np.errstate(over="ignore"):  # an infinite step is as long as the bound
            rho *= self.minus_inverse
        np.clip(rho, -bound, bound, out=rho)
        np.multiply(self.slope, rho, out=change)
        across, down = self.dual[:, 0], self.dual[:, 1]
        np.add(across, down, out=divergence)
        divergence[..., 1:] -= across[..., :-1]
        divergence[..., 1:, :] -= down[..., :-1, :]
        divergence *= THETA
        change += divergence
        self.flow += change

    def _dual(self) -> None:
        flow, ahead, length = self.flow, self.ahead, self.divergence
        np.subtract(flow[..., 1:], flow[..., :-1], out=ahead[:, 0, ..., :-1])
        np.subtract(flow[..., 1:, :], flow[..., :-1, :], out=ahead[:, 1, ..., :-1, :])
        ahead *= TAU / THETA
        self.dual += ahead
        ahead *= ahead
        np.add(ahead[:, 0], ahead[:, 1], out=length)
        np.sqrt(length, out=length)
        length += 1
        self.dual /= length[:, None]


class _Texture:
    """Brightness and both gradients of the second frames, with a margin around them."""

    def __init__(self, images: Floats, pyramid: Pyramid) -> None:
        self.pyramid, (self.count, self.rows, self.cols) = pyramid, images.shape
        edged = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
        across = 0.5 * (edged[:, 1:-1, 2:] - edged[:, 1:-1, :-2])
        down = 0.5 * (edged[:, 2:, 1:-1] - edged[:, :-2, 1:-1])
        margin = ((0, 0), (0, 0), (REACH + 2, REACH + 2), (REACH + 2, REACH + 2))
        stacked = np.stack([images, across, down])
        self.planes = np.pad(stacked, margin, mode="edge" if pyramid.repeats_edge else "constant")
        self.y, self.x = np.mgrid[: self.rows, : self.cols].astype(np.float32)

    def warped(self, flow: Floats) -> tuple[Floats, Floats]:
        """Brightness (pairs, H, W) and gradient (2, pairs, H, W) where the flow leads, bicubic."""
        px = np.clip(self.x + flow[0], -REACH, self.cols + REACH - 1)
        py = np.clip(self.y + flow[1], -REACH, self.rows + REACH - 1)
        left, top = np.floor(px), np.floor(py)
        across, down = self.pyramid.cubic(px - left), self.pyramid.cubic(py - top)
        high, wide = self.planes.shape[2:]
        corner = (top.astype(np.int64) + REACH + 1) * wide + left.astype(np.int64) + REACH + 1
        corner += np.arange(self.count)[:, None, None] * (high * wide)
        flat = self.planes.reshape(3, -1)
        total = np.zeros((3, *px.shape), np.float32)
        for j in range(4):
            line = np.zeros_like(total)
            for i in range(4):
                line += flat[:, corner + (j * wide + i)] * across[i]
            total += line * down[j]
        return total[0], total[1:]


def _median(flow: Floats) -> None:
    """The 5x5 median of each plane, in place."""
    import cv2

    for plane in flow.reshape(-1, *flow.shape[2:]):
        plane[:] = cv2.medianBlur(plane, 5)


def _halve(pictures: Floats, rows: int, cols: int) -> Floats:
    """Every second pixel under the filter 1 4 6 4 1 along both axes; borders are mirrored about
    the edge's pixels."""
    kernel = np.array([0.0625, 0.25, 0.375, 0.25, 0.0625], np.float32)
    for axis, size in ((1, rows), (2, cols)):
        length = pictures.shape[axis]
        shape = list(pictures.shape)
        shape[axis] = size
        total = np.zeros(shape, np.float32)
        for tap, weight in enumerate(kernel):
            at = np.abs(2 * np.arange(size) + tap - 2)
            at = np.clip(np.where(at < length, at, 2 * length - 2 - at), 0, length - 1)
            total += weight * np.take(pictures, at, axis)
        pictures = total
    return pictures


def _bilinear(pictures: Floats, rows: Floats, cols: Floats) -> Floats:
    """Pictures at these rows and columns; outside, the pixels of the edge are repeated."""
    for axis, places in ((2, cols), (1, rows)):
        before = np.floor(places).astype(np.int64)
        last = pictures.shape[axis] - 1
        low = np.take(pictures, np.clip(before, 0, last), axis)
        high = np.take(pictures, np.clip(before + 1, 0, last), axis)
        part = (places - before).astype(np.float32)
        pictures = low + (high - low) * (part if axis == 2 else part[:, None])
    return pictures


def _double(flow: Floats, rows: int, cols: int) -> Floats:
    """The coarser flow at a finer scale; pixel 0 lies on pixel 0, as it does in `_halve`."""
    steps = flow.shape[1] / rows, flow.shape[2] / cols
    places = (
        np.arange(size, dtype=np.float32) * np.float32(s)
        for size, s in zip((rows, cols), steps, strict=True)
    )
    return 2 * _bilinear(flow, *places)


def _resize(pictures: Floats, rows: int, cols: int, step_y: float, step_x: float) -> Floats:
    """Bilinear with the centres of pixels aligned; `step_*` is source pixels per target pixel."""
    places = ((np.arange(n) + 0.5) * step - 0.5 for n, step in ((rows, step_y), (cols, step_x)))
    return _bilinear(pictures, *places)


def _catmull_rom(part: Floats) -> list[Floats]:
    """Weights of the four pixels around a place, `part` behind the second of them."""
    a, b, c = 1 + part, 1 - part, 2 - part
    return [
        a * (a * (-0.5 * a + 2.5) - 4) + 2,
        part * part * (1.5 * part - 2.5) + 1,
        b * b * (1.5 * b - 2.5) + 1,
        c * (c * (-0.5 * c + 2.5) - 4) + 2,
    ]


def _keys(part: Floats) -> list[Floats]:
    """Keys' weights with a = -0.75, as OpenCV's."""
    a, b = -0.75, 1 - part
    first = ((a * (part + 1) - 5 * a) * (part + 1) + 8 * a) * (part + 1) - 4 * a
    second = ((a + 2) * part - (a + 3)) * part * part + 1
    third = ((a + 2) * b - (a + 3)) * b * b + 1
    return [first, second, third, 1 - first - second - third]


STEP = 0.8
PAPER = Pyramid(
    lambda side: (side + 1) // 2, _halve, _double, _catmull_rom, True, False, 1, 300, False
)
OPENCV4 = Pyramid(
    lambda side: round(side * float(np.float32(STEP))),
    lambda pictures, rows, cols: _resize(pictures, rows, cols, 1 / STEP, 1 / STEP),
    lambda flow, rows, cols: _resize(flow, rows, cols, flow.shape[1] / rows, flow.shape[2] / cols) / np.float32(STEP),
    _keys, False, True, 10, 30, True,
)  # fmt: skip
