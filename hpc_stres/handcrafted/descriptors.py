"""Histograms of directions in cells: HOG of the picture, HOF of flow, MBH of the flow's gradients.

Each pixel votes for the two directions nearest to its vector's with the vector's length. Histograms
of any rectangle come from one table of sums a frame, so that a thousand overlapping patches cost no
more than ten. A patch that would reach over the frame's border is moved inside. Over time a
trajectory's cells are sums of its frames' cells.

All are differences or ratios: HOG does not see a brightness that is added, MBH not a motion that
all pixels share.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_stres.phases.handcrafted import CELLS_IN_SPACE, CELLS_IN_TIME

Array = NDArray[np.float32]
Sums = NDArray[np.float64]
BINS = 8
# Flow below this many pixels is no motion: it votes for a bin of its own.
LEAST_FLOW_PIXELS = 0.4
# Bins of each histogram in the table of sums.
LAYOUT = {"hog": BINS, "hof": BINS + 1, "mbhx": BINS, "mbhy": BINS}
CHANNELS = sum(LAYOUT.values())


def directions(dx: Array, dy: Array) -> Array:
    """Each vector's length, split over the two nearest of 8 directions: (height, width, 8)."""
    length = np.hypot(dx, dy)
    place = np.arctan2(dy, dx) * (BINS / (2 * np.pi)) % BINS
    below = np.floor(place)
    share = place - below
    votes = np.zeros((*dx.shape, BINS), np.float32)
    first = below.astype(np.intp)[..., None] % BINS
    np.put_along_axis(votes, first, (length * (1 - share))[..., None], -1)
    np.put_along_axis(votes, (first + 1) % BINS, (length * share)[..., None], -1)
    return votes


def directions_and_rest(dx: Array, dy: Array) -> Array:
    """`directions`, and a ninth bin that counts the pixels that do not move: (height, width, 9)."""
    at_rest = np.hypot(dx, dy) < LEAST_FLOW_PIXELS
    votes = directions(dx, dy)
    votes[at_rest] = 0
    return np.concatenate([votes, at_rest[..., None].astype(np.float32)], axis=-1)


def gradient(plane: NDArray[np.generic]) -> tuple[Array, Array]:
    """Differences of the two neighbours along x and y; beyond the border a pixel is
    its own neighbour."""
    padded = np.pad(plane.astype(np.float32), 1, mode="edge")
    return padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]


def strongest_gradient(picture: NDArray[np.uint8]) -> tuple[Array, Array]:
    """At each pixel the gradient of the channel in which it is longest; the picture is (height,
    width, channels)."""
    if picture.shape[2] == 1:
        return gradient(picture[..., 0])
    channels = [gradient(picture[..., channel]) for channel in range(picture.shape[2])]
    x, y = (np.stack([channel[axis] for channel in channels], axis=-1) for axis in (0, 1))
    longest = np.hypot(x, y).argmax(axis=-1)[..., None]
    return np.take_along_axis(x, longest, -1)[..., 0], np.take_along_axis(y, longest, -1)[..., 0]


def table_of_sums(picture: NDArray[np.uint8], flow: Array) -> Sums:
    """All votes of a frame summed from the top left corner: (height + 1, width + 1, CHANNELS)."""
    import cv2

    u, v = np.ascontiguousarray(flow[..., 0]), np.ascontiguousarray(flow[..., 1])
    votes = np.concatenate(
        [
            directions(*strongest_gradient(picture)),
            directions_and_rest(u, v),
            directions(*gradient(u)),
            directions(*gradient(v)),
        ],
        axis=-1,
    )
    # Double precision: a cell is a small difference of large sums.
    return np.asarray(cv2.integral(votes, sdepth=cv2.CV_64F))


def cells_around(sums: Sums, points: Array, patch: int) -> Array:
    """Histograms in the 2 x 2 cells around each (x, y): (points, 4, CHANNELS),
    rows of cells first."""
    edges = []
    for axis, limit in ((0, sums.shape[1] - 1), (1, sums.shape[0] - 1)):
        side = min(patch, limit)
        start = np.clip(np.rint(points[:, axis]).astype(np.intp) - side // 2, 0, limit - side)
        edges.append([start + side * cell // CELLS_IN_SPACE for cell in range(CELLS_IN_SPACE + 1)])
    xs, ys = edges
    corners = [[sums[y, x] for x in xs] for y in ys]
    cells = [
        corners[row + 1][column + 1]
        - corners[row][column + 1]
        - corners[row + 1][column]
        + corners[row][column]
        for row in range(CELLS_IN_SPACE)
        for column in range(CELLS_IN_SPACE)
    ]
    # Votes are not negative; their differences may be by a rounding.
    return np.maximum(np.stack(cells, axis=1), 0).astype(np.float32)


def normalised(histograms: Array) -> Array:
    """The square root of each row over its sum; a row of nothing stays nothing."""
    total = histograms.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.sqrt(
        np.divide(histograms, total, out=np.zeros(histograms.shape), where=total > 0)
    ).astype(np.float32)


def by_name(volumes: Array) -> dict[str, Array]:
    """Descriptors of trajectories from their volumes (trajectories, 3, 4, CHANNELS)."""
    count, start, parts = len(volumes), 0, {}
    for name, bins in LAYOUT.items():
        cells = volumes[..., start : start + bins]
        parts[name] = normalised(cells.reshape(count, CELLS_IN_TIME * CELLS_IN_SPACE**2 * bins))
        start += bins
    return parts


@dataclass(frozen=True)
class Described:
    """Descriptors of a video's trajectories by name; each is (trajectories, numbers)."""

    arrays: dict[str, Array]

    def __len__(self) -> int:
        return len(self.arrays["hog"])


def numbers_of(name: str, length: int) -> int:
    """How many numbers a descriptor has."""
    return 2 * length if name == "trajectory" else CELLS_IN_TIME * CELLS_IN_SPACE**2 * LAYOUT[name]
