"""The camera's motion from one frame to the next: a homography that most of the
picture agrees with.

Two kinds of matches vote, because each fails where the other works: SIFT points that look alike in
both frames, and corners that flow carries along. RANSAC leaves out those that move by themselves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.uint8]
Flow = NDArray[np.float32]
Matrix = NDArray[np.float64]
Matches = tuple[NDArray[np.float32], NDArray[np.float32]]
# A match is with the camera when it is this near, in pixels, to where the homography takes it.
NEAR_PIXELS = 1.0
# A camera is believed when at least so many matches, and this share of all, are with it.
LEAST_MATCHES, LEAST_SHARE = 16, 0.5
MOST_CORNERS, CORNER_QUALITY, CORNER_DISTANCE = 1000, 0.001, 3


class Camera:
    """Homographies between frames that follow each other; the points of a frame are
    looked for once."""

    def __init__(self) -> None:
        import cv2

        self._sift: Any = cv2.SIFT.create(nfeatures=1000)
        self._matcher = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)
        self._last: tuple[Gray, Any] | None = None

    def homography(self, first: Gray, second: Gray, flow: Flow) -> Matrix:
        """Where the camera takes a pixel of the first frame in the second; the identity where
        that is in doubt."""
        pairs = [self._alike(first, second), carried_corners(first, flow)]
        return fitted([a for a, _ in pairs], [b for _, b in pairs])

    def _points(self, gray: Gray) -> Any:
        if self._last is None or self._last[0] is not gray:
            self._last = gray, self._sift.detectAndCompute(gray, None)
        return self._last[1]

    def _alike(self, first: Gray, second: Gray) -> Matches:
        (points, looks), (others, other_looks) = self._points(first), self._points(second)
        if looks is None or other_looks is None:
            return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
        matches = self._matcher.match(looks, other_looks)
        here = np.array([points[m.queryIdx].pt for m in matches], np.float32).reshape(-1, 2)
        there = np.array([others[m.trainIdx].pt for m in matches], np.float32).reshape(-1, 2)
        return here, there


def carried_corners(gray: Gray, flow: Flow) -> Matches:
    """Corners of a frame and where flow takes them."""
    import cv2

    corners = cv2.goodFeaturesToTrack(gray, MOST_CORNERS, CORNER_QUALITY, CORNER_DISTANCE)
    here = (
        np.zeros((0, 2), np.float32)
        if corners is None
        else corners.reshape(-1, 2).astype(np.float32)
    )
    x, y = np.rint(here).astype(np.intp).T
    return here, here + flow[y, x]


def fitted(here: Sequence[NDArray[np.float32]], there: Sequence[NDArray[np.float32]]) -> Matrix:
    """The homography of the majority of matches; the identity where there is none."""
    import cv2

    first, second = np.concatenate(here), np.concatenate(there)
    if len(first) < LEAST_MATCHES:
        return np.eye(3)
    matrix, inside = cv2.findHomography(first, second, cv2.RANSAC, NEAR_PIXELS)
    agreed = 0 if matrix is None else int(inside.sum())
    if agreed < max(LEAST_MATCHES, LEAST_SHARE * len(first)) or not np.isfinite(matrix).all():
        return np.eye(3)
    return np.asarray(matrix, np.float64)


def field(matrix: Matrix, height: int, width: int) -> Flow:
    """The motion of each pixel under a homography: (height, width, 2)."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    moved = np.stack([x, y, np.ones_like(x)], axis=-1) @ matrix.T
    if (moved[..., 2] <= 1e-3).any():
        return np.zeros(
            (height, width, 2), np.float32
        )  # a horizon inside the frame: no camera does that
    return (moved[..., :2] / moved[..., 2:] - np.stack([x, y], axis=-1)).astype(np.float32)
