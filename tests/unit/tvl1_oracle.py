"""OpenCV 2.4's GPU TV-L1 once more, in NumPy and float64: slow, whole pictures, sharing no code.

Written from the description of the algorithm: pictures are halved by a 5x5 binomial filter with
mirrored borders, at most five scales of 16 pixels or more; five warps (Catmull-Rom, edge repeated)
of at most 300 iterations at each; the sum of squared changes is looked at in odd iterations only,
and not before it can have fallen under the tolerance; the flow is enlarged bilinearly with pixel 0
on pixel 0, and doubled.
"""

import itertools

import numpy as np

TAU, LAMBDA, THETA, EPSILON = 0.25, 0.15, 0.3, 0.01
SCALES, WARPS, ITERATIONS, SMALLEST = 5, 5, 300, 16


def tvl1_oracle(frames):
    """uint8 (T, H, W) to float64 (T-1, 2, H, W)."""
    pairs = itertools.pairwise(frames)
    return np.stack([_pair(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs])


def halve(picture):
    """Every second pixel under the filter 1 4 6 4 1, along both axes."""
    padded = np.pad(picture, 2, mode="reflect")
    for axis in (0, 1):
        length = picture.shape[axis]
        taps = [np.take(padded, np.arange(k, k + length), axis) for k in range(5)]
        padded = np.take(
            sum(w * t for w, t in zip((1, 4, 6, 4, 1), taps, strict=True)) / 16,
            np.arange(0, length, 2),
            axis,
        )
    return padded


def enlarge(field, shape):
    """Bilinear: pixel i of the target is at i * (source size / target size) of the source."""
    for axis in (0, 1):
        at = np.arange(shape[axis]) * (field.shape[axis] / shape[axis])
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, field.shape[axis] - 1)
        part = np.expand_dims(at - low, 1 - axis)
        field = np.take(field, low, axis) * (1 - part) + np.take(field, high, axis) * part
    return field


def central(picture, axis):
    """Half the difference of both neighbours; at the edge the pixel is its own neighbour."""
    last = picture.shape[axis] - 1
    index = np.arange(last + 1)
    after = np.take(picture, np.minimum(index + 1, last), axis)
    return (after - np.take(picture, np.maximum(index - 1, 0), axis)) / 2


def catmull_rom(distance):
    d = np.abs(distance)
    return np.where(
        d <= 1,
        1.5 * d**3 - 2.5 * d**2 + 1,
        np.where(d < 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0),
    )


def warp(picture, u, v):
    rows, cols = picture.shape
    y, x = np.mgrid[:rows, :cols] + np.stack([v, u])
    total, weights = 0.0, 0.0
    for j in range(-1, 3):
        for i in range(-1, 3):
            yy, xx = np.floor(y) + j, np.floor(x) + i
            weight = catmull_rom(y - yy) * catmull_rom(x - xx)
            line = np.clip(yy, 0, rows - 1).astype(int)
            seen = picture[line, np.clip(xx, 0, cols - 1).astype(int)]
            total, weights = total + weight * seen, weights + weight
    return total / weights


def forward(field, axis):
    """Difference to the next pixel; zero at the end."""
    return np.diff(field, axis=axis, append=np.take(field, [-1], axis))


def divergence(px, py):
    """Differences to the pixel before; before the first there is zero."""
    return np.diff(px, axis=1, prepend=0) + np.diff(py, axis=0, prepend=0)


def _pair(first, second):
    pyramid = [(first, second)]
    while len(pyramid) < SCALES:
        smaller = tuple(map(halve, pyramid[-1])) if min(pyramid[-1][0].shape) > 2 else None
        if smaller is None or min(smaller[0].shape) < SMALLEST:
            break
        pyramid.append(smaller)
    flow = np.zeros((2, *pyramid[-1][0].shape))
    for level, (i0, i1) in reversed(list(enumerate(pyramid))):
        flow = _scale(i0, i1, flow)
        if level:
            finer = pyramid[level - 1][0].shape
            flow = 2 * np.stack([enlarge(component, finer) for component in flow])
    return flow


def _scale(i0, i1, flow):
    gradients = central(i1, 1), central(i1, 0)
    dual = np.zeros((2, 2, *i0.shape))
    for _ in range(WARPS):
        wx, wy = (warp(gradient, *flow) for gradient in gradients)
        constant = warp(i1, *flow) - wx * flow[0] - wy * flow[1] - i0
        flow, dual = _iterate(wx, wy, constant, flow, dual)
    return flow


def _iterate(wx, wy, constant, flow, dual):
    tolerance = EPSILON**2 * wx.size
    squared = wx**2 + wy**2
    expected = 0.0
    for number in range(ITERATIONS):
        rho = constant + wx * flow[0] + wy * flow[1]
        bound = LAMBDA * THETA * squared
        with np.errstate(divide="ignore", invalid="ignore"):
            middle = np.where(squared > np.finfo(np.float32).eps, -rho / squared, 0.0)
        step = np.where(rho > bound, -LAMBDA * THETA, middle)
        step = np.where(rho < -bound, LAMBDA * THETA, step)
        new = np.stack([
            flow[0] + step * wx + THETA * divergence(*dual[0]),
            flow[1] + step * wy + THETA * divergence(*dual[1]),
        ])  # fmt: skip
        change, flow = float(((new - flow) ** 2).sum()), new
        looked = number % 2 == 1 and expected < tolerance
        expected = change if looked else expected - tolerance
        for component in (0, 1):
            slope = np.stack([forward(flow[component], 1), forward(flow[component], 0)])
            length = np.hypot(*slope)
            dual[component] = (dual[component] + TAU / THETA * slope) / (1 + TAU / THETA * length)
        if looked and change <= tolerance:
            break
    return flow, dual
