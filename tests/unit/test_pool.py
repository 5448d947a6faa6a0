"""The max pool's kernels against torch's own: values, places, gradients, whatever the sizes."""

import ctypes
import itertools

import pytest
import torch
from torch.nn import functional

from hpc_stres import native
from hpc_stres.models import pool

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no g++ on this machine")
LAST = torch.channels_last
# Kernel, stride, padding, ceil: the networks' own first; windows that overlap twice, touch, or
# leave gaps, and the largest one.
CUTS = [
    (3, 2, 1, False), (3, 2, 0, True), (3, 2, 0, False), (5, 2, 2, True), (2, 2, 0, True), (2, 3, 1, True),
    (1, 2, 0, False), (16, 5, 8, True),
]  # fmt: skip
# (frames, channels, height, width): whole vectors and what is left of them, odd sides, one place.
SHAPES = [(2, 16, 8, 8), (3, 37, 17, 31), (1, 1, 16, 17), (2, 130, 16, 33)]


def draw(shape, dtype, seed=0, kinds=1000):
    """Values with few or many that are equal, and a gradient's generator."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-kinds, kinds, shape, generator=generator).to(torch.float64) / 64
    return x.to(dtype).contiguous(memory_format=LAST), generator


def both(function, x, grad_generator, *cut):
    """Values and the gradient of x by a pool."""
    leaf = x.detach().requires_grad_()
    y = function(leaf, *cut)
    grad = torch.randn(y.shape, generator=grad_generator, dtype=torch.float64).to(x.dtype)
    return y.detach(), torch.autograd.grad(y, leaf, grad)[0]


def torchs(x, kernel, stride, padding, ceil):
    return functional.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_bits_are_torchs(cut, dtype):
    for number, shape in enumerate(SHAPES):
        for kinds in (2, 1000):
            x, generator = draw(shape, dtype, number, kinds)
            assert pool.suits(x, cut[0])
            state = generator.get_state()
            y, grad = both(pool.max_pool, x, generator, *cut)
            expected, expected_grad = both(torchs, x, generator.set_state(state), *cut)
            assert torch.equal(y, expected)
            assert torch.equal(grad, expected_grad), (shape, kinds)
            assert y.is_contiguous(memory_format=LAST)
            assert grad.is_contiguous(memory_format=LAST)


@needs_compiler
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_bfloat16_rounds_each_gradient_once(cut):
    for number, shape in enumerate(SHAPES):
        x, generator = draw(shape, torch.bfloat16, number, 100)
        state = generator.get_state()
        y, grad = both(pool.max_pool, x, generator, *cut)
        assert torch.equal(y, torchs(x, *cut))
        wide = x.double().requires_grad_()
        back = torch.randn(y.shape, generator=generator.set_state(state), dtype=torch.float64)
        (exact,) = torch.autograd.grad(torchs(wide, *cut), wide, back.bfloat16().double())
        # One rounding of a sum in float32: half a unit in the last place, and a little.
        assert ((grad.double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-6).all()


@needs_compiler
def test_what_is_not_a_number_is_larger_than_all_and_nothing_may_be_smallest():
    x, generator = draw((2, 19, 9, 11), torch.float32)
    x[0, 3, 2:4, 5] = torch.nan
    x[1, :, 4:, :] = -torch.inf
    state = generator.get_state()
    y, grad = both(pool.max_pool, x, generator, 3, 2, 1, False)
    expected, expected_grad = both(torchs, x, generator.set_state(state), 3, 2, 1, False)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(grad, expected_grad)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_bytes_depend_neither_on_threads_nor_on_vectors(dtype, monkeypatch):
    x, generator = draw((3, 75, 29, 31), dtype, kinds=5)
    cut = (3, 2, 1, 15, 16)
    grad = (
        torch.randn((3, 75, 15, 16), generator=generator).to(dtype).contiguous(memory_format=LAST)
    )
    results = []
    for threads, wide in itertools.product((1, 3), (True, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        y, places = torch.empty_like(grad), torch.empty_like(grad, dtype=torch.uint8)
        back = torch.empty_like(x)
        pool.run("forward", x.shape, cut, {"x": x, "y": y, "places": places}, wide=wide)
        pool.run(
            "backward", x.shape, cut, {"grad": grad, "places": places, "result": back}, wide=wide
        )
        results.append((y, places, back))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_an_axis_has_as_many_windows_as_torch_gives_it():
    for length, kernel, stride, padding in itertools.product(
        range(1, 12), (1, 2, 3, 5), (1, 2, 3, 4), (0, 1, 2)
    ):
        if 2 * padding > kernel or length + 2 * padding < kernel:
            continue
        for ceil in (False, True):
            expected = torchs(torch.zeros(1, 1, length, length), kernel, stride, padding, ceil)
            assert pool.windows(length, kernel, stride, padding, ceil) == expected.shape[2]


@needs_compiler
@pytest.mark.parametrize(
    "cut",
    [
        (3, 2, 3, 4, 4),
        (17, 2, 1, 4, 4),
        (3, 0, 1, 4, 4),
        (3, 2, -1, 4, 4),
        (3, 2, 1, 9, 4),
        (3, 2, 1, 4, 0),
    ],
)
def test_a_cut_that_would_read_elsewhere_is_refused(cut):
    x, _ = draw((1, 4, 7, 7), torch.float32)
    with pytest.raises(ValueError, match="no max pool"):
        pool.run("forward", x.shape, cut, {"x": x, "y": torch.empty(0)})


def test_what_the_kernels_do_not_take_goes_through_torch(monkeypatch):
    x, _ = draw((2, 6, 9, 9), torch.float32)
    others = [x.contiguous(), x.half(), x[:0], x[0]]
    for other in others:
        assert not pool.suits(other, 3)
        assert torch.equal(pool.max_pool(other, 3, 2, 1), torchs(other, 3, 2, 1, False))
    assert not pool.suits(x, 17)
    monkeypatch.setattr(pool, "library", lambda: None)
    assert not pool.suits(x, 3)
    with pytest.raises(RuntimeError, match="too small"):
        pool.max_pool(x[:, :, :2], 3, 2)


@needs_compiler
def test_a_window_larger_than_the_map_is_refused_as_torch_does():
    x, _ = draw((2, 6, 2, 9), torch.float32)
    assert pool.suits(x, 3)
    with pytest.raises(RuntimeError, match="too small"):
        pool.max_pool(x, 3, 2)
    with pytest.raises(RuntimeError, match="half"):
        pool.max_pool(x, 2, 2, 2)


@needs_compiler
def test_there_is_no_way_back_without_places():
    x, _ = draw((1, 4, 8, 8), torch.float32)
    y, _ = torch.ops.hpc_stres.max_pool(x.requires_grad_(), 3, 2, 1, 4, 4, False)
    with pytest.raises(ValueError, match="no places"):
        y.sum().backward()


@needs_compiler
def test_torch_finds_the_operator_sound():
    x, _ = draw((2, 5, 7, 6), torch.float32)
    given = (x.requires_grad_(), 3, 2, 1, 4, 3, True)
    torch.library.opcheck(torch.ops.hpc_stres.max_pool.default, given)


@needs_compiler
def test_networks_take_the_kernels_and_keep_places_for_training_alone(monkeypatch):
    from hpc_stres.models import build_model

    calls, real = [], pool.run

    def noted(step, sizes, cut, tensors):
        calls.append((step, "places" in tensors))
        real(step, sizes, cut, tensors)

    monkeypatch.setattr(pool, "run", noted)
    clip = torch.randn(2, 3, 16, 16).contiguous(memory_format=LAST)[:, None]
    for variant in ("msra", "torchvision"):
        model = build_model("appearance", 3, stages=(2,), width=4, variant=variant)
        model(clip, None).appearance.sum().backward()
        assert calls == [("forward", True), ("backward", True)]
        calls.clear()
        with torch.no_grad():
            model.eval()(clip, None)
        assert calls == [("forward", False)]
        calls.clear()


@needs_compiler
@pytest.mark.parametrize("name", ["norm", "exact", "pool"])
def test_a_library_that_means_another_call_is_refused(name):
    class Shorter(ctypes.Structure):
        _fields_ = (("kind", ctypes.c_int64),)

    with pytest.raises(AssertionError, match=f"{name}.cpp and .* differ in what a call is"):
        native.find_with_calls(name, Shorter)
