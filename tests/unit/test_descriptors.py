"""HOG, HOF and MBH along trajectories against a slow computation of their definitions, and what they must not see."""

import math

import numpy as np
import pytest

from hpc_stres.handcrafted import descriptors
from hpc_stres.handcrafted.tracks import Film, describe
from hpc_stres.phases.handcrafted import TrackOptions
from tests.unit.scenes import film, texture

HOG, HOF = slice(0, 8), slice(8, 17)
MBH = slice(17, 33)


def neighbours(plane, y, x):
    """Central differences with the border repeated."""
    h, w = len(plane), len(plane[0])
    dx = float(plane[y][min(x + 1, w - 1)]) - float(plane[y][max(x - 1, 0)])
    dy = float(plane[min(y + 1, h - 1)][x]) - float(plane[max(y - 1, 0)][x])
    return dx, dy


def vote(histogram, dx, dy):
    turn = math.atan2(dy, dx) / (2 * math.pi)
    place = 8 * (turn if turn >= 0 else turn + 1)
    share = place - int(place)
    histogram[int(place) % 8] += (1 - share) * math.hypot(dx, dy)
    histogram[(int(place) + 1) % 8] += share * math.hypot(dx, dy)


def slow_cells(gray, flow, x, y, patch):
    """The 33 numbers of each of the four cells around a point, pixel by pixel."""
    height, width = gray.shape
    high, wide = min(patch, height), min(patch, width)
    top = min(max(round(float(y)) - high // 2, 0), height - high)
    left = min(max(round(float(x)) - wide // 2, 0), width - wide)
    cells = np.zeros((4, 33))
    for row in range(high):
        for column in range(wide):
            py, px = top + row, left + column
            cell = cells[2 * (row >= high // 2) + (column >= wide // 2)]
            vote(cell[0:8], *neighbours(gray, py, px))
            u, v = map(float, flow[py, px])
            if math.hypot(u, v) < 0.4:
                cell[16] += 1
            else:
                vote(cell[8:16], u, v)
            vote(cell[17:25], *neighbours(flow[..., 0], py, px))
            vote(cell[25:33], *neighbours(flow[..., 1], py, px))
    return cells


def slow_median(plane):
    padded = np.pad(plane, 2, mode="edge")
    return np.array(
        [
            [np.median(padded[y : y + 5, x : x + 5]) for x in range(plane.shape[1])]
            for y in range(plane.shape[0])
        ]
    )


def slow_tracks(gray, flow, points, options):
    """The trajectories that begin at points of the first frame, described one by one."""
    smooth = [np.stack([slow_median(f[..., 0]), slow_median(f[..., 1])], axis=-1) for f in flow]
    rows = []
    for x, y in points:
        volume, moves = np.zeros((3, 4, 33)), []
        for number in range(options.length):
            volume[3 * number // options.length] += slow_cells(
                gray[number], smooth[number], x, y, options.patch
            )
            moves.append(smooth[number][round(float(y)), round(float(x))])
            x, y = x + moves[-1][0], y + moves[-1][1]
        total = sum(math.hypot(*move) for move in moves)
        parts = [np.array(moves).ravel() / total]
        for start, stop in ((0, 8), (8, 17), (17, 25), (25, 33)):
            flat = volume[..., start:stop].ravel()
            parts.append(np.sqrt(flat / flat.sum()) if flat.sum() else flat)
        rows.append(np.concatenate(parts))
    return np.array(rows)


def rough_film(frames=4, height=26, width=31):
    """Frames and smooth flow that have nothing to do with each other."""
    gray = [texture(number, height, width, 1.0) for number in range(frames)]
    flow = [
        np.stack([texture(9 + n, height, width), texture(20 + n, height, width)], axis=-1).astype(
            np.float32
        )
        / 25
        - 3
        for n in range(frames - 1)
    ]
    return gray, flow


@pytest.mark.parametrize("patch", [8, 12, 40])
def test_trajectories_are_described_as_their_definitions_say(patch):
    gray, flow = rough_film()
    options = TrackOptions(
        scales=1, step=9, length=3, patch=patch, camera="none", least_motion_pixels=0.0
    )  # fmt: skip
    got = describe(Film(gray, flow), options).arrays
    # What begins in the first frame is alone to reach the third move.
    points = [(x, y) for y in (4, 13) for x in (4, 13, 22)]
    want = slow_tracks(gray, flow, points, options)
    path = want[:, :6].reshape(-1, 3, 2)
    assert len(got["hog"]) >= 3
    rows = np.concatenate(
        [got[name] for name in ("trajectory", "hog", "hof", "mbhx", "mbhy")], axis=1
    )
    assert rows.shape[1] == path.shape[1] * 2 + 96 + 108 + 96 + 96
    for row in rows:
        assert np.abs(want - row).max(axis=1).min() < 2e-4


@pytest.mark.parametrize("offset", [1, 60])
def test_hog_does_not_see_an_added_brightness(offset):
    gray, flow = film()
    options = TrackOptions(camera="none")
    one = describe(Film(gray, flow), options).arrays
    brighter = describe(Film([frame + np.uint8(offset) for frame in gray], flow), options).arrays
    stripes = [frame + 9 * (np.arange(96) % 7 > 3).astype(np.uint8) for frame in gray]
    striped = describe(Film(stripes, flow), options).arrays
    assert len(one["hog"]) > 20
    np.testing.assert_array_equal(one["hog"], brighter["hog"])
    # The comparison can fail.
    assert np.abs(one["hog"].mean(axis=0) - striped["hog"].mean(axis=0)).max() > 0.002


def test_mbh_does_not_see_a_motion_that_all_pixels_share_and_hof_does():
    gray, flow = film()
    points = np.array([[20, 30], [48, 48], [60, 40]], np.float32)
    still, moved = (
        descriptors.cells_around(descriptors.table_of_sums(gray[0][..., None], one), points, 32)
        for one in (flow[0], flow[0] + np.array([1.75, -4.5], np.float32))
    )
    assert still[..., MBH].sum() > 10
    np.testing.assert_allclose(still[..., MBH], moved[..., MBH], atol=1e-3)
    np.testing.assert_array_equal(still[..., HOG], moved[..., HOG])
    assert np.abs(still[..., HOF] - moved[..., HOF]).max() > 10


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 50), (16, 16), (33, 20)])
def test_sums_over_any_patch_of_any_frame_are_those_of_its_pixels(height, width):
    rng = np.random.default_rng(height)
    gray = rng.integers(0, 256, (height, width), dtype=np.uint8)
    flow = rng.standard_normal((height, width, 2)).astype(np.float32)
    points = rng.uniform(0, (width - 1, height - 1), (4, 2)).astype(np.float32)
    got = descriptors.cells_around(descriptors.table_of_sums(gray[..., None], flow), points, 10)
    want = np.stack([slow_cells(gray, flow, x, y, 10) for x, y in points])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_hog_of_colours_sees_edges_that_gray_does_not():
    gray, flow = film()
    left = np.arange(96) % 24 < 12
    # Red and green that cancel each other in gray: 0.299 of the one for 0.587 of the other.
    colour = [
        np.stack(
            [frame, frame - 15 * left.astype(np.uint8), frame + 30 * left.astype(np.uint8)], -1
        )
        for frame in gray
    ]
    picture = colour[0]
    dx, dy = descriptors.strongest_gradient(picture)
    for y, x in ((0, 0), (40, 11), (95, 95), (30, 12), (7, 50)):
        options = [neighbours(picture[..., channel].astype(int), y, x) for channel in range(3)]
        assert (dx[y, x], dy[y, x]) == max(options, key=lambda pair: math.hypot(*pair))
    plain, seen = (
        describe(Film(gray, flow, c), TrackOptions(camera="none")).arrays for c in (None, colour)
    )
    np.testing.assert_array_equal(plain["mbhx"], seen["mbhx"])
    assert np.abs(plain["hog"].mean(axis=0) - seen["hog"].mean(axis=0)).max() > 0.01
