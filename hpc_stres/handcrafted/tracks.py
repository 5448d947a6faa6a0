"""Trajectories of densely sampled points, followed through flow, and their descriptors.

A video is looked at in several sizes. In each, points are set on a grid wherever no trajectory
passes and the picture has enough structure to be followed. Each moves with the median-filtered flow
for `length` frames; the histograms of the patch around it are summed on the way. Its shape, its
flow and what it is kept or dropped for are all taken after the camera's motion: a panning camera
makes no trajectories, and an object that keeps still in a panning picture does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_stres.handcrafted import descriptors
from hpc_stres.handcrafted.camera import Camera, field
from hpc_stres.handcrafted.descriptors import CHANNELS, Described
from hpc_stres.phases.handcrafted import CELLS_IN_SPACE, CELLS_IN_TIME, DESCRIPTORS, TrackOptions

Picture = NDArray[np.uint8]
Array = NDArray[np.float32]
SCALE_STEP = 2**-0.5
# A point is followed where the smaller eigenvalue of its structure is this share of the
# frame's largest.
LEAST_QUALITY = 0.001
# In pixels of the stored frame: trajectories that keep to one spot, and those that jump, are no
# motion of an object.
LEAST_SPREAD, MOST_SPREAD = 3**0.5, 50.0
MOST_JUMP, MOST_JUMP_SHARE = 20.0, 0.7


@dataclass(frozen=True)
class Step:
    """One frame in one size and its pixels.

    `picture` is what HOG sees (height, width, channels); `flow` is the way to the next frame,
    `camera` its part in it.
    """

    gray: Picture
    picture: Picture
    flow: Array
    camera: Array


@dataclass(frozen=True)
class Film:
    """A video: T gray frames, the T - 1 flows between them (height, width, 2), and frames with
    colours for HOG."""

    gray: Sequence[Picture]
    flow: Sequence[Array]
    colour: Sequence[Picture] | None = None


def describe(film: Film, options: TrackOptions) -> Described:
    """Descriptors of the trajectories of one video."""
    # The darkest pixel becomes 0, so that no rounding on the way sees a brightness that is added.
    gray = [frame - frame.min() for frame in film.gray]
    pictures = gray if film.colour is None else [frame - frame.min() for frame in film.colour]
    height, width = gray[0].shape
    sizes = pyramid(height, width, options)
    kept = [
        [np.zeros((0, descriptors.numbers_of(name, options.length)), np.float32)]
        for name in DESCRIPTORS
    ]
    for skip in options.skips:
        growing = [Growing(width / size[1], options) for size in sizes]
        for frame in steps(gray[::skip], pictures[::skip], chained(film.flow, skip), options):
            for size, tracks in zip(sizes, growing, strict=True):
                finished = tracks.follow(resized(frame, *size))
                for name, rows in zip(DESCRIPTORS, kept, strict=True):
                    rows.append(finished[name])
    return Described(
        {name: np.concatenate(rows) for name, rows in zip(DESCRIPTORS, kept, strict=True)}
    )


def pyramid(height: int, width: int, options: TrackOptions) -> list[tuple[int, int]]:
    """Heights and widths of a frame's sizes; a frame that is smaller than a patch has one."""
    sizes = [(height, width)]
    for number in range(1, options.scales):
        size = round(height * SCALE_STEP**number), round(width * SCALE_STEP**number)
        if min(size) < options.patch:
            break
        sizes.append(size)
    return sizes


def chained(flow: Sequence[Array], skip: int) -> Iterator[Array]:
    """Flow from every `skip`-th frame to the next of them: each point is taken along
    flow after flow."""
    for start in range(0, len(flow) - skip + 1, skip):
        total = flow[start]
        for following in flow[start + 1 : start + skip]:
            total = total + _at_moved_points(following, total)
        yield total


def _at_moved_points(flow: Array, moved: Array) -> Array:
    """Flow at the points that have moved so far; beyond the border it is the border's."""
    import cv2

    height, width = moved.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    sampled = cv2.remap(
        flow,
        x + moved[..., 0],
        y + moved[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(sampled, np.float32)


def steps(
    gray: Sequence[Picture],
    pictures: Sequence[Picture],
    flow: Iterator[Array],
    options: TrackOptions,
) -> Iterator[Step]:
    """Frames with their flow and the camera's part in it."""
    camera = Camera() if options.camera == "homography" else None
    still = np.zeros((*gray[0].shape, 2), np.float32)
    for number, moved in enumerate(flow):
        first, second = gray[number], gray[number + 1]
        part = (
            still
            if camera is None
            else field(camera.homography(first, second, moved), *first.shape)
        )
        yield Step(first, np.atleast_3d(pictures[number]), moved, part)


def resized(frame: Step, height: int, width: int) -> Step:
    """A frame in another size, its flow median-filtered and in pixels of that size."""
    import cv2

    own_height, own_width = frame.gray.shape
    gray, picture, flow, camera = frame.gray, frame.picture, frame.flow, frame.camera
    if (height, width) != (own_height, own_width):
        scale = np.array([width / own_width, height / own_height], np.float32)
        gray = cv2.resize(gray, (width, height), interpolation=cv2.INTER_LINEAR)
        picture = np.atleast_3d(
            cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        )
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR) * scale
        camera = cv2.resize(camera, (width, height), interpolation=cv2.INTER_LINEAR) * scale
    smooth = [cv2.medianBlur(np.ascontiguousarray(flow[..., axis]), 5) for axis in (0, 1)]
    return Step(gray, picture, np.stack(smooth, axis=-1), camera)


class Growing:
    """The trajectories of one size of a video that are being followed, one row each."""

    def __init__(self, scale: float, options: TrackOptions) -> None:
        # `scale`: pixels of the stored frame in one of this size.
        self.scale, self.options = scale, options
        self.points = np.zeros((0, 2), np.float32)
        self.age = np.zeros(0, np.intp)
        self.moves = np.zeros((0, options.length, 2), np.float32)
        self.volumes = np.zeros((0, CELLS_IN_TIME, CELLS_IN_SPACE**2, CHANNELS), np.float32)

    def follow(self, frame: Step) -> dict[str, Array]:
        """Set new points, take all to the next frame, and hand out the descriptors of
        those at their end."""
        self._begin(new_points(frame.gray, self.points, self.options.step))
        if len(self.points):
            self._describe(frame)
            self._move(frame)
        return self._finish(frame.gray.shape)

    def _begin(self, points: Array) -> None:
        count = len(points)
        self.points = np.concatenate([self.points, points])
        self.age = np.concatenate([self.age, np.zeros(count, np.intp)])
        self.moves = np.concatenate(
            [self.moves, np.zeros((count, *self.moves.shape[1:]), np.float32)]
        )
        self.volumes = np.concatenate(
            [self.volumes, np.zeros((count, *self.volumes.shape[1:]), np.float32)]
        )

    def _describe(self, frame: Step) -> None:
        sums = descriptors.table_of_sums(frame.picture, frame.flow - frame.camera)
        cells = descriptors.cells_around(sums, self.points, self.options.patch)
        rows = np.arange(len(self.points))
        self.volumes[rows, self.age * CELLS_IN_TIME // self.options.length] += cells

    def _move(self, frame: Step) -> None:
        x, y = np.rint(self.points).astype(np.intp).T
        moved = frame.flow[y, x]
        self.moves[np.arange(len(self.points)), self.age] = moved - frame.camera[y, x]
        self.points = self.points + moved
        self.age = self.age + 1

    def _finish(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Take out trajectories that left the frame or reached their length; descriptors of the
        good among these."""
        at_end = self.age == self.options.length
        moves, volumes = self.moves[at_end] * np.float32(self.scale), self.volumes[at_end]
        good = is_motion(moves, self.options.least_motion_pixels)
        finished = {"trajectory": shapes(moves[good]), **descriptors.by_name(volumes[good])}
        nearest = np.rint(self.points)
        inside = ((nearest >= 0) & (nearest <= np.array([shape[1] - 1, shape[0] - 1]))).all(axis=1)
        going = inside & ~at_end
        self.points, self.age = self.points[going], self.age[going]
        self.moves, self.volumes = self.moves[going], self.volumes[going]
        return finished


def new_points(gray: Picture, taken: Array, step: int) -> Array:
    """Centres (x, y) of grid squares that have structure and no trajectory yet."""
    import cv2

    height, width = gray.shape
    rows, columns = height // step, width // step
    if not rows or not columns:
        return np.zeros((0, 2), np.float32)
    quality = cv2.cornerMinEigenVal(gray, 3, ksize=3)
    y, x = np.mgrid[0:rows, 0:columns] * step + step // 2
    wanted = quality[y, x] > LEAST_QUALITY * quality.max()
    square = np.rint(taken).astype(np.intp) // step
    square = square[(square[:, 0] < columns) & (square[:, 1] < rows)]
    wanted[square[:, 1], square[:, 0]] = False
    return np.stack([x[wanted], y[wanted]], axis=-1).astype(np.float32)


def is_motion(moves: Array, least_motion: float) -> NDArray[np.bool_]:
    """Whether each trajectory is the motion of something: it leaves its spot, does not jump,
    and is no noise."""
    lengths = np.hypot(moves[..., 0], moves[..., 1])
    path = np.concatenate([np.zeros_like(moves[:, :1]), moves.cumsum(axis=1)], axis=1)
    spread = path.std(axis=1)
    jumps = (lengths.max(axis=1) > MOST_JUMP) & (
        lengths.max(axis=1) > MOST_JUMP_SHARE * lengths.sum(axis=1)
    )
    keeps_to_spot = (spread < LEAST_SPREAD).all(axis=1)
    strays = (spread > MOST_SPREAD).any(axis=1)
    return np.asarray(~keeps_to_spot & ~strays & ~jumps & (lengths.max(axis=1) >= least_motion))


def shapes(moves: Array) -> Array:
    """The moves of each trajectory over the sum of their lengths: (trajectories, 2 * length)."""
    total = np.hypot(moves[..., 0], moves[..., 1]).sum(axis=1)[:, None, None]
    return np.asarray(
        (moves / np.maximum(total, 1e-9)).reshape(len(moves), 2 * moves.shape[1]), np.float32
    )
