"""The resize kernel against a matrix product in float64, whose weights come from the definition of the filter."""

import ctypes
import os
from collections import defaultdict
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from hpc_stres import native
from hpc_stres.data.augment import finish_on_cpu, resize_planes, resize_taps, windows

SOURCES, TARGETS = range(8, 401), range(32, 321)
BOTH = (True, False)
GREY_LEVELS = 1e-3
ALL_SIZES = "HPC_STRES_ALL_SIZES"
# Sizes where an output's centre falls on a source pixel, with more or fewer taps around it.
ON_A_PIXEL = [
    (224, 160),
    (56, 40),
    (112, 80),
    (200, 120),
    (225, 175),
    (227, 153),
    (240, 144),
    (299, 115),
    (32, 96),
]


def bicubic(x):
    """Keys' filter with a = -0.5, for distances in pixels."""
    x = np.abs(x)
    return np.select(
        [x < 1, x < 2], [1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2]
    )


def bicubic_at_once(x):
    """The same without cases, for many."""
    x = np.abs(x)
    near, far = np.maximum(1 - x, 0), np.maximum(2 - x, 0)
    far *= 0.5 * far * (far - 1)
    near *= near * (1 - 2 * near)
    return far + near


def matrix(source, target, antialias):
    """(target, source) in float64: every pixel's weight in every output, zeros included."""
    if source == target:
        return np.eye(source)
    centres = ((np.arange(target) + 0.5) * (source / target))[:, None]
    if antialias:
        weights = bicubic((np.arange(source) + 0.5 - centres) / max(source / target, 1))
        return weights / weights.sum(axis=1, keepdims=True)
    # The picture is continued by its border pixels: what falls on those belongs to the border.
    weights = bicubic(np.arange(-3, source + 3) + 0.5 - centres)
    weights[:, 3] += weights[:, :3].sum(axis=1)
    weights[:, -4] += weights[:, -3:].sum(axis=1)
    return weights[:, 3:-3]


def expected(planes, side, antialias, scale, shift, flip):
    """(planes, h, w) in float64 to (side, side, planes)."""
    rows, columns = (matrix(size, side or size, antialias) for size in planes.shape[1:])
    resized = np.clip(rows @ planes @ columns.T, 0, 255)
    if flip:
        resized = resized[:, :, ::-1]
    return (resized * scale[:, None, None].astype(np.float64) + shift[:, None, None]).transpose(
        1, 2, 0
    )


def kinds(planes):
    """One stack of planes in each form that the kernel takes."""
    yield [np.ascontiguousarray(plane) for plane in planes]
    yield [np.ascontiguousarray(planes.transpose(1, 2, 0))]


def worst_error(rng, height, width, side, antialias, count, packed, flip):
    planes = rng.integers(0, 256, (count, height, width), dtype=np.uint8)
    scale, shift = (
        rng.uniform(low, high, count).astype(np.float32) for low, high in ((0.5, 1.0), (-128, 128))
    )
    out = np.full((side or height, side or width, count), np.nan, np.float32)
    pictures = list(kinds(planes))[packed]
    finish_on_cpu(pictures, side, antialias, (scale, shift), flip, out)
    return np.abs(
        out - expected(planes.astype(np.float64), side, antialias, scale, shift, flip)
    ).max()


@pytest.mark.parametrize("antialias", BOTH)
@pytest.mark.parametrize("source", [8, 33, 160, 175, 400])
@pytest.mark.parametrize("side", [32, 101, 224, 320])
def test_the_oracle_itself_is_pils_and_torchs_filter(source, side, antialias):
    picture = np.random.default_rng(0).integers(0, 256, (source, source), dtype=np.uint8)
    one = matrix(source, side, antialias)
    ours = np.clip(one @ picture @ one.T, 0, 255)
    if antialias:
        floats = Image.fromarray(picture.astype(np.float32))
        pils = np.asarray(floats.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 255)
        assert np.abs(ours - pils).max() <= 1e-4
        interpolate = torch.nn.functional.interpolate
        tensor = torch.from_numpy(picture.astype(np.float64))[None, None]
        torchs = (
            interpolate(tensor, (side, side), mode="bicubic", antialias=True)
            .clamp(0, 255)[0, 0]
            .numpy()
        )
        assert np.abs(ours - torchs).max() <= 1e-6
    np.testing.assert_allclose(one.sum(axis=1), 1)
    distances = np.linspace(-3, 3, 6001)
    np.testing.assert_allclose(bicubic_at_once(distances), bicubic(distances), rtol=0, atol=1e-14)


def together(source, antialias):
    """Groups of targets whose windows are equally long, so that many are checked at once."""
    groups = defaultdict(list)
    for target in TARGETS:
        groups[np.ceil(4 * source / target) if antialias and target < source else 4].append(target)
    return groups.values()


def wrong_targets(source, antialias):
    """Targets whose windows are not the matrix without its zeros."""
    for group in together(source, antialias):
        targets = np.repeat(group, group)
        widen = np.maximum(source / targets, 1) if antialias else np.ones(len(targets))
        centres = np.concatenate(
            [(np.arange(target) + 0.5) * (source / target) - 0.5 for target in group]
        )
        first, weights = windows(source, centres, widen, antialias)
        taps = weights.shape[1]
        off = (first < 0) | (first + taps > source)
        off[1:] |= (first[1:] < first[:-1]) & (targets[1:] == targets[:-1])
        # No pixel before or behind a window has a weight. The next two tell: at distance 1 a weight is 0 as well.
        for step in (1, 2):
            for place in (first - step, first + taps - 1 + step):
                is_inside = (place >= 0) & (place < source)
                off |= is_inside & (np.abs(bicubic_at_once((place - centres) / widen)) > 1e-9)
        distances = (first - centres)[:, None] + np.arange(taps)
        right = bicubic_at_once(distances / widen[:, None])
        if antialias:
            right /= right.sum(axis=1, keepdims=True)
        else:
            # What falls beyond a border belongs to the pixel at the border.
            for border, step in ((0, -1), (source - 1, 1)):
                rows = np.flatnonzero((first <= border) & (border < first + taps))
                columns = border - first[rows]
                for beyond in (1, 2, 3):
                    right[rows, columns] += bicubic_at_once(
                        distances[rows, columns] + step * beyond
                    )
        off |= (np.abs(weights - right) > 1e-9).any(axis=1)
        yield from np.unique(targets[off])


@pytest.mark.parametrize("antialias", BOTH)
def test_the_windows_of_all_sizes_are_the_matrix_without_its_zeros(antialias):
    """All 113,577 pairs of a source and a target."""
    wrong = {source: list(wrong_targets(source, antialias)) for source in SOURCES}
    assert {source: targets for source, targets in wrong.items() if targets} == {}


def test_taps_are_windows_without_the_columns_that_nobody_uses():
    rng = np.random.default_rng(8)
    for source, target in [
        (8, 320),
        (160, 224),
        (96, 32),
        (400, 400),
        *rng.integers(8, 321, (150, 2)),
    ]:
        for antialias in BOTH:
            first, weights = resize_taps(int(source), int(target), antialias)
            assert (np.diff(first) >= 0).all()
            dense = np.zeros((target, source))
            np.put_along_axis(
                dense, first[:, None] + np.arange(weights.shape[1]), weights.astype(float), axis=1
            )
            assert np.abs(dense - matrix(source, target, antialias)).max() <= 1e-7


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("antialias", BOTH)
@pytest.mark.parametrize(("side", "source"), ON_A_PIXEL)
def test_an_output_that_falls_on_a_pixel_is_right(side, source, antialias, flip):
    rng = np.random.default_rng(side)
    size = (source, source - 5 if flip else source + 7)
    for count, packed in ((3, True), (20, False), (1, False)):
        assert worst_error(rng, *size, side, antialias, count, packed, flip) <= GREY_LEVELS


def tap_counts():
    """A source and a target for each number of taps that there is, with and without antialias."""
    found = defaultdict(list)
    for source, target, antialias in product(range(1, 401, 3), (32, 223), BOTH):
        taps = resize_taps(source, target, antialias)[1].shape[1]
        found[taps, antialias].append((source, target))
    return [(*sizes[len(sizes) // 2], antialias) for (_, antialias), sizes in sorted(found.items())]


def test_every_number_of_taps_goes_right_down_every_path_of_the_kernel():
    """20 gray pictures, three colours, other stacks, other packed pictures; on both axes in turn."""
    rng = np.random.default_rng(1)
    sizes = tap_counts()
    assert len(sizes) > 50
    paths = ((20, False), (3, True), (1, False), (3, False), (20, True), (5, True), (2, False))
    for number, ((source, side, antialias), path) in enumerate(product(sizes, paths)):
        size = (source, 1 + number % 40) if number % 2 else (1 + number % 40, source)
        error = worst_error(rng, *size, side, antialias, *path, bool(number % 3))
        assert error <= GREY_LEVELS, f"{side} from {size}, {path=}"


def test_any_number_of_planes_goes_right():
    rng = np.random.default_rng(2)
    for count, packed in product(range(1, 65), (False, True)):
        side = [None, 32, 37][count % 3]
        height, width = rng.integers(1, 70, 2)
        assert (
            worst_error(rng, height, width, side, True, count, packed, bool(count % 2))
            <= GREY_LEVELS
        )


@pytest.mark.parametrize("part", range(4))
def test_sizes_drawn_at_random_go_right(part):
    rng = np.random.default_rng([3, part])
    for _ in range(15):
        height, width = rng.integers(8, 401, 2)
        side, antialias, flip = (
            int(rng.integers(32, 321)),
            bool(rng.integers(2)),
            bool(rng.integers(2)),
        )
        count, packed = [(3, True), (20, False), (1, False)][rng.choice(3, p=[0.5, 0.2, 0.3])]
        error = worst_error(rng, height, width, side, antialias, count, packed, flip)
        assert error <= GREY_LEVELS, (
            f"{side} from {width}x{height}, {count} planes, {antialias=}, {flip=}"
        )


@pytest.mark.skipif(
    ALL_SIZES not in os.environ,
    reason=f"{ALL_SIZES}=1 runs the kernel itself on all sizes (minutes)",
)
@pytest.mark.parametrize("antialias", BOTH)
def test_the_kernel_on_all_sizes(antialias):
    rng = np.random.default_rng(4)
    for number, (source, side) in enumerate(product(SOURCES, TARGETS)):
        height, width = (source, 9) if number % 2 else (9, source)
        count, packed = [(3, True), (20, False), (2, False)][number % 3]
        error = worst_error(rng, height, width, side, antialias, count, packed, bool(number % 5))
        assert error <= GREY_LEVELS, f"{side} from {width}x{height}, {count} planes"


def test_pictures_of_any_strides_are_read_as_they_are():
    rng = np.random.default_rng(5)
    wide = rng.integers(0, 256, (60, 140, 3), dtype=np.uint8)
    gray = [rng.integers(0, 256, (91, 77), dtype=np.uint8) for _ in range(20)]
    floats = (np.ones(20, np.float32), np.zeros(20, np.float32))
    views = [
        [wide[3:50, 5:98]],
        [wide[:, ::2]],
        [wide[::-1, ::-1]],
        [wide.transpose(1, 0, 2)],
        [np.asfortranarray(wide)],
        [wide[..., :2]],
        [plane[1:34, 3:70:2] for plane in gray],
        [plane.T[:, ::-3] for plane in gray],
        [np.broadcast_to(plane[:1], (40, 77)) for plane in gray],
    ]
    for view in views:
        planes = np.stack(view) if len(view) > 1 else view[0].transpose(2, 0, 1)
        scale, shift = (value[: len(planes)].copy() for value in floats)
        out = np.empty((32, 32, len(planes)), np.float32)
        finish_on_cpu(view, 32, True, (scale, shift), False, out)
        right = expected(planes.astype(np.float64), 32, True, scale, shift, False)
        assert np.abs(out - right).max() <= GREY_LEVELS


def call(down, across, picture, out, count=1, **sizes):
    """The C function itself, with one gray picture."""
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    height, width = ({"height": picture.shape[0], "width": picture.shape[1]} | sizes).values()

    def at(array):
        return ctypes.c_void_p(array.ctypes.data)

    return native.load("resize").resize_stack(
        (ctypes.c_void_p * 1)(picture.ctypes.data), 0, count, height, width,
        len(down[0]), len(across[0]), at(down[0]), at(down[1]), down[1].shape[1], at(across[0]), at(across[1]),
        across[1].shape[1], at(one), at(zero), 0, at(out),
    )  # fmt: skip


def test_windows_that_step_back_read_the_right_rows():
    """The kernel keeps the last rows that it read; a window may begin above them all the same."""
    rng = np.random.default_rng(6)
    picture = rng.integers(0, 256, (30, 6), dtype=np.uint8)
    across = resize_taps(6, 6, True)
    for taps in (1, 2, 4, 5, 6, 7, 9):
        first = rng.integers(0, 31 - taps, 25).astype(np.int32)
        weights = rng.uniform(0, 1 / taps, (25, taps)).astype(np.float32)
        out = np.empty((25, 6, 1), np.float32)
        assert call((first, weights), across, picture, out) == 0
        right = np.stack(
            [
                w.astype(np.float64) @ picture[f : f + taps]
                for f, w in zip(first, weights, strict=True)
            ]
        )
        assert np.abs(out[..., 0] - right).max() <= GREY_LEVELS


@pytest.mark.parametrize("antialias", BOTH)
@pytest.mark.parametrize(("side", "source"), [*ON_A_PIXEL, (224, 224)])
def test_the_matrices_for_a_gpu_are_the_same(side, source, antialias):
    planes = np.random.default_rng(7).integers(0, 256, (2, source, source + 3), dtype=np.uint8)
    ones = np.ones(2)
    right = expected(planes.astype(np.float64), side, antialias, ones, 0 * ones, False).transpose(
        2, 0, 1
    )
    ours = resize_planes(torch.from_numpy(planes), side, antialias).numpy()
    assert np.abs(ours - right).max() <= GREY_LEVELS
