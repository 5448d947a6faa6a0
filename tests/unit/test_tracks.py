"""Trajectories: what is followed, what is dropped, and that a camera's motion is taken out."""

import functools

import numpy as np
import pytest

from hpc_stres.handcrafted import camera
from hpc_stres.handcrafted.tracks import Film, chained, describe, is_motion, pyramid
from hpc_stres.phases.handcrafted import TrackOptions
from tests.unit.scenes import film, texture

VELOCITY = (3, 1)


def shapes_of(pan, **options):
    gray, flow = film(VELOCITY, pan)
    return describe(Film(gray, flow), TrackOptions(**options)).arrays["trajectory"]


def with_the_disc(shapes, velocity=VELOCITY):
    """Share of trajectories whose every move is along the disc's way, or none: it may be passed over by the disc."""
    moves, (u, v) = shapes.reshape(-1, 15, 2), np.array(velocity) / np.hypot(*velocity)
    along, across = moves @ (u, v), moves @ (-v, u)
    return float(((np.abs(across) < 0.003) & (along > -0.003)).all(axis=1).mean())


@pytest.mark.parametrize("pan", [(0, 0), (4, 0), (-2, 3), (3, 1)])
def test_a_panning_camera_changes_no_trajectory(pan):
    shapes = shapes_of(pan)
    assert len(shapes) > 15
    assert with_the_disc(shapes) > 0.95


@pytest.mark.parametrize(
    ("velocity", "pan", "side", "frames", "radius"),
    [((3, 1), (-3, 2), 128, 20, 24), ((4, -1), (1, -4), 112, 17, 22)],
)
def test_other_sizes_speeds_and_lengths_pan_as_well(velocity, pan, side, frames, radius):
    made = [
        describe(Film(*film(velocity, p, side, frames, radius, seed=7)), TrackOptions()).arrays
        for p in (pan, (0, 0))
    ]
    assert min(len(one["hog"]) for one in made) > 100
    assert all(with_the_disc(one["trajectory"], velocity) > 0.95 for one in made)
    for name in ("hof", "mbhx", "mbhy"):
        panned, still = (one[name].mean(axis=0) for one in made)
        assert np.abs(panned - still).max() < 0.05, name


def test_without_the_homography_a_panning_camera_is_seen():
    assert with_the_disc(shapes_of((0, 0), camera="none")) > 0.95
    assert with_the_disc(shapes_of((-2, 3), camera="none")) == 0
    # One that follows the object hides it.
    assert len(shapes_of(VELOCITY, camera="none")) > 100
    assert with_the_disc(shapes_of(VELOCITY, camera="none")) == 0


def test_flow_histograms_are_those_of_the_object_under_a_panning_camera():
    still, panned = (
        describe(Film(*film(VELOCITY, pan)), TrackOptions()).arrays["hof"].mean(axis=0)
        for pan in ((0, 0), (4, 0))
    )
    seen = (
        describe(Film(*film(VELOCITY, (4, 0))), TrackOptions(camera="none"))
        .arrays["hof"]
        .mean(axis=0)
    )
    assert np.abs(still - panned).max() < 0.05
    assert np.abs(still - seen).max() > 0.2


def matches(share, count=200, seed=3):
    """Matches of which a share follow a known homography."""
    rng = np.random.default_rng(seed)
    matrix = np.array([[1.02, 0.03, 4.0], [-0.02, 0.99, -3.0], [1e-4, -5e-5, 1.0]])
    here = rng.uniform(0, 300, (count, 2))
    there = np.c_[here, np.ones(count)] @ matrix.T
    there = there[:, :2] / there[:, 2:]
    strays = rng.permutation(count)[: round(count * (1 - share))]
    there[strays] += rng.uniform(10, 60, (len(strays), 2))
    return matrix, here.astype(np.float32), there.astype(np.float32)


def test_the_camera_is_what_most_matches_say():
    matrix, here, there = matches(0.65)
    got = camera.field(camera.fitted([here], [there]), 200, 300)
    assert np.abs(got - camera.field(matrix, 200, 300)).max() < 0.2
    # The field is the motion of a pixel.
    corner = matrix @ np.array([299, 199, 1])
    np.testing.assert_allclose(
        camera.field(matrix, 200, 300)[199, 299], corner[:2] / corner[2] - (299, 199), atol=1e-4
    )


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_camera_that_few_matches_follow_is_not_believed(share):
    _, here, there = matches(share)
    np.testing.assert_array_equal(camera.fitted([here], [there]), np.eye(3))


def test_few_matches_are_no_camera():
    _, here, there = matches(1.0, count=15)
    np.testing.assert_array_equal(camera.fitted([here], [there]), np.eye(3))


def test_pictures_alone_tell_the_camera_where_flow_has_no_corners():
    world = texture(5, 200, 200, 3.0)
    looker = camera.Camera()
    here, there = looker._alike(world[20:148, 30:158], world[23:151, 25:153])
    matrix = camera.fitted([here], [there])
    np.testing.assert_allclose(camera.field(matrix, 128, 128).mean(axis=(0, 1)), (5, -3), atol=0.1)


def test_skipped_frames_follow_the_flow_in_between():
    velocity = np.array([2.0, -1.0], np.float32)
    flow = [np.broadcast_to(velocity * (1 + number % 2), (20, 30, 2)).copy() for number in range(7)]
    got = list(chained(flow, 3))
    assert len(got) == 2
    np.testing.assert_allclose(got[0][5, 5], velocity * 4)
    np.testing.assert_allclose(got[1][5, 5], velocity * 5)
    # A point is taken along: flow is read where it has come to.
    ramp = np.zeros((10, 40, 2), np.float32)
    ramp[..., 0] = np.arange(40) * 0.25
    (two,) = chained([ramp, ramp], 2)
    np.testing.assert_allclose(two[5, 8, 0], 2 + 10 * 0.25)


def test_features_of_skip_levels_are_stacked():
    gray, flow = film((2, 0), side=64, frames=31, radius=12)
    alone = [describe(Film(gray, flow), TrackOptions(skips=(skip,))).arrays for skip in (1, 2)]
    both = describe(Film(gray, flow), TrackOptions(skips=(1, 2))).arrays
    assert min(len(one["hog"]) for one in alone) > 2
    for name, rows in both.items():
        np.testing.assert_array_equal(rows, np.concatenate([one[name] for one in alone]))


def moves(*steps):
    return np.array([steps], np.float32)


def test_what_keeps_to_its_spot_jumps_or_strays_is_no_motion():
    walk = moves(*[(1.0, 0.2)] * 15)
    assert is_motion(walk, 1.0).all()
    assert not is_motion(walk, 1.1).any()
    assert not is_motion(moves(*[(1.5, 0.0), (-1.5, 0.0)] * 7, (1.5, 0)), 1.0).any()
    assert not is_motion(moves((30.0, 0.0), *[(0.5, 0.0)] * 14), 1.0).any()
    assert is_motion(moves((30.0, 0.0), *[(3.0, 0.0)] * 14), 1.0).all()
    assert not is_motion(moves(*[(15.0, 0.0)] * 15), 1.0).any()


@pytest.mark.parametrize(
    ("height", "width", "frames"),
    [(16, 16, 20), (16, 200, 17), (40, 33, 1), (40, 33, 2), (40, 33, 15), (7, 7, 18)],
)
def test_any_video_has_descriptors_of_the_right_sizes_perhaps_none(height, width, frames):
    gray = [np.roll(texture(1, height, width), number * 2, axis=1) for number in range(frames)]
    flow = [np.full((height, width, 2), (2.0, 0.0), np.float32)] * (frames - 1)
    for options in (TrackOptions(), TrackOptions(camera="none", skips=(1, 2, 40), step=3)):
        got = describe(Film(gray, flow), options).arrays
        sizes = {name: rows.shape[1] for name, rows in got.items()}
        assert sizes == {"trajectory": 30, "hog": 96, "hof": 108, "mbhx": 96, "mbhy": 96}
        assert len({len(rows) for rows in got.values()}) == 1
        assert all(np.isfinite(rows).all() for rows in got.values())
    assert len(got["hog"]) > 0 or frames < 16 or width < 40


def test_a_picture_of_nothing_has_no_trajectory():
    gray = [np.full((64, 64), 90, np.uint8)] * 17
    flow = [np.full((64, 64, 2), 3.0, np.float32)] * 16
    assert len(describe(Film(gray, flow), TrackOptions())) == 0


def test_sizes_are_each_smaller_by_the_root_of_two_until_a_patch_fills_them():
    assert pyramid(240, 320, TrackOptions()) == [
        (240, 320), (170, 226), (120, 160), (85, 113), (60, 80), (42, 57),
    ]  # fmt: skip
    assert len(pyramid(1000, 1000, TrackOptions())) == 8
    assert pyramid(20, 20, TrackOptions()) == [(20, 20)]


@pytest.mark.parametrize(
    "change",
    [
        {"scales": 1}, {"step": 6}, {"length": 12}, {"patch": 24}, {"hog": "colour"}, {"camera": "none"},
        {"least_motion_pixels": 3.0}, {"skips": (2,)},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_has_an_effect(change):
    before, after = described(), described(**change)
    assert len(before) > 1000
    assert before.shape != after.shape or np.abs(before - after).max() > 0.01


@functools.cache
def described(**options):
    """All descriptors of a film with these options, in one row."""
    gray, flow = film((2, 1), (1, 0), side=64, frames=31, radius=12)
    colour = [np.stack([frame, frame // 2, 255 - frame], axis=-1) for frame in gray]
    chosen = TrackOptions(**options)
    made = describe(Film(gray, flow, colour if chosen.hog == "colour" else None), chosen).arrays
    return np.concatenate([rows.ravel() for rows in made.values()])
