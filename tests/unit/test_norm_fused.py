"""The fused normalisation's kernels against torch's BatchNorm2d on each group, and against each other."""

import itertools

import pytest
import torch
from torch.nn import functional

from hpc_stres import native
from hpc_stres.models import SubBatchNorm2d, assign_groups, norm, norm_cpu, norm_fused, norm_plain

needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="no g++ on this machine")
EPS = 1e-5
# (frames, channels, height, width), groups: whole vectors and what is left of them, one pixel, one
# channel, several pieces of a frame, groups that differ in size.
SHAPES = [
    ((4, 16, 4, 4), 2),
    ((5, 3, 3, 5), 2),
    ((14, 37, 7, 7), 5),
    ((3, 1, 1, 2), 1),
    ((6, 8, 1, 1), 2),
    ((2, 130, 33, 17), 2),
]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def draw(shape, groups, dtype, seed=0, mean=3.0):
    """x, residual, gradient, weight, bias, owners; activations channels-last."""
    generator = torch.Generator().manual_seed(seed)

    def activations(scale, shift):
        value = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
        return value.to(dtype).contiguous(memory_format=torch.channels_last)

    x, residual, grad = activations(2.0, mean), activations(1.0, 0.0), activations(1.0, 0.0)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.rand(shape[1], generator=generator, dtype=torch.float64).add(0.5).to(kind)
    bias = torch.randn(shape[1], generator=generator, dtype=torch.float64).to(kind)
    owner = (torch.arange(shape[0]) % groups).to(torch.int32)
    return x, residual, grad, weight, bias, owner


def torch_result(x, residual, grad, weight, bias, owner, relu):
    """Values and gradients by torch's own batch_norm on each group, in float64."""
    leaves = [
        None if v is None else v.double().detach().requires_grad_()
        for v in (x, residual, weight, bias)
    ]
    wide_x, wide_residual, wide_weight, wide_bias = leaves
    y = torch.empty(x.shape, dtype=torch.float64)
    for group in owner.unique():
        mine = owner == group
        y[mine] = functional.batch_norm(
            wide_x[mine], None, None, wide_weight, wide_bias, True, 0.0, EPS
        )
    y = y if residual is None else y + wide_residual
    y = y.relu() if relu else y
    gradients = torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad.double())
    return y.detach(), gradients


def fused_result(x, residual, grad, weight, bias, owner, relu):
    leaves = [
        None if v is None else v.detach().requires_grad_() for v in (x, residual, weight, bias)
    ]
    groups = int(owner.max()) + 1
    y, *_ = norm_fused.sub_batch_norm(*leaves, owner, groups, EPS, relu, "")
    return y.detach(), torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], grad)


def assert_close(given, expected, tolerance):
    scale = max(1.0, expected.abs().max().item())
    assert (given.double() - expected).abs().max().item() <= tolerance * scale


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize(
    ("with_residual", "relu"), [(False, False), (False, True), (True, False), (True, True)]
)
def test_values_and_gradients_equal_torch(shape, groups, dtype, with_residual, relu):
    x, residual, grad, weight, bias, owner = draw(shape, groups, dtype)
    if shape[2] * shape[3] == 1 and not with_residual:
        grad = grad * 0.5
    drawn = x, residual if with_residual else None, grad, weight, bias, owner, relu
    assert norm_fused.suits(x, weight, drawn[1])
    y, gradients = fused_result(*drawn)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected, expected_gradients = torch_result(*drawn)
    assert_close(y, expected, TOLERANCES[dtype])
    if dtype == torch.float64:
        for mine, theirs in zip(gradients, expected_gradients, strict=True):
            assert_close(mine, theirs, 1e-12)
        return
    # A value that rounding moves over the edge of the ReLU has another gradient: few have.
    off = (gradients[0].double() - expected_gradients[0]).abs() > TOLERANCES[dtype] * 4
    assert off.double().mean().item() <= (0.02 if relu else 0.0)
    for mine, theirs in zip(gradients[-2:], expected_gradients[-2:], strict=True):
        assert_close(mine, theirs, TOLERANCES[dtype] * (20 if relu else 2))


@needs_compiler
@pytest.mark.parametrize("with_residual", [False, True])
def test_gradients_equal_finite_differences(with_residual):
    x, residual, _, weight, bias, owner = draw((5, 3, 3, 2), 2, torch.float64, seed=7)
    leaves = [v.requires_grad_() for v in (x, residual, weight, bias)]

    def run(x, residual, weight, bias):
        given = residual if with_residual else None
        return norm_fused.sub_batch_norm(x, given, weight, bias, owner, 2, EPS, True, "")[0]

    assert torch.autograd.gradcheck(run, leaves)


def all_steps(x, residual, grad, weight, bias, owner, gate, wide=True):
    """Every tensor that the kernels write, by single steps and by both in one."""
    groups = int(owner.max()) + 1
    written = []
    for steps in (
        ("moments", "values", "backward_sums", "backward_values"),
        ("forward", "backward"),
    ):
        count, mean, variance = norm_cpu.empty_moments(x, groups)
        y, grad_x, passed = (torch.zeros_like(x) for _ in range(3))
        sums, products = torch.empty_like(mean), torch.empty_like(mean)
        fields = {
            "weight": weight, "bias": bias, "count": count, "mean": mean, "variance": variance, "eps": EPS,
            "sums": sums, "products": products, "relu": int(gate != "open"), "gate": norm_cpu.GATES.index(gate),
        }  # fmt: skip
        if gate == "read":
            fields |= {"residual": residual, "out": y, "passed": passed}
        for step in steps:
            back = {"grad": grad, "result": grad_x} if "backward" in step else {"result": y}
            norm_cpu.run(step, x, owner, groups, wide=wide, **fields, **back)
        written.append([count, mean, variance, y, sums, products, passed, grad_x])
    return written


def assert_same_bytes(one, two):
    for number, (a, b) in enumerate(zip(one, two, strict=True)):
        assert torch.equal(a, b), f"tensor {number}"


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("gate", norm_cpu.GATES)
def test_bytes_depend_neither_on_threads_nor_on_vectors_nor_on_the_cut(dtype, gate, monkeypatch):
    drawn = draw((6, 75, 29, 31), 3, dtype)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    single, both = all_steps(*drawn, gate)
    assert_same_bytes(single, both)
    for narrow in all_steps(*drawn, gate, wide=False):
        assert_same_bytes(single, narrow)
    # Three threads take a group each, two share every piece of all groups.
    for threads in (2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for threaded in all_steps(*drawn, gate):
            assert_same_bytes(single, threaded)


@needs_compiler
def test_a_group_does_not_feel_the_others():
    x, residual, grad, weight, bias, owner = draw((7, 20, 9, 5), 3, torch.float32)
    y, gradients = fused_result(x, residual, grad, weight, bias, owner, True)
    mine = owner == 1
    order = torch.channels_last
    alone = [value[mine].contiguous(memory_format=order) for value in (x, residual, grad)]
    y_alone, gradients_alone = fused_result(*alone, weight, bias, owner[mine] - 1, True)
    assert torch.equal(y[mine], y_alone)
    assert torch.equal(gradients[0][mine], gradients_alone[0])


@needs_compiler
@pytest.mark.parametrize("outlier", [0.0, -2e4])
def test_large_means_and_outliers_cost_no_digits(outlier):
    """Neither a mean of thousands of deviations nor a first pixel far off is a bad place to sum from."""
    x, *_, owner = draw((4, 5, 40, 40), 2, torch.float32, mean=3000.0)
    x[:, :, 0, 0] += outlier
    _, mean, variance = norm_cpu.moments(x, owner, 2)
    for group in (0, 1):
        wide = x[owner == group].double()
        torch.testing.assert_close(mean[group], wide.mean((0, 2, 3)), rtol=4e-7, atol=0)
        torch.testing.assert_close(
            variance[group], wide.var((0, 2, 3), correction=0), rtol=2e-5, atol=0
        )


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_what_is_not_a_number_stays_that_and_stays_in_its_group(dtype):
    x, _, grad, weight, bias, owner = draw((4, 17, 3, 3), 2, dtype)
    x[0, 2, 1, 1] = torch.nan
    y, gradients = fused_result(x, None, grad, weight, bias, owner, True)
    assert y[owner == 0][:, 2].isnan().all()
    assert gradients[0][owner == 0][:, 2].isnan().all()
    assert not y[owner == 1].isnan().any()
    assert not y[:, [0, 1, *range(3, 17)]].isnan().any()


@needs_compiler
def test_bfloat16_rounds_to_even_as_torch_does():
    """Values by given moments that leave x as it is, at every exponent, in the middle and beside it."""
    bits = torch.arange(0, 1 << 16, dtype=torch.int32) << 16
    given = (bits | 0x8000 | (torch.arange(1 << 16, dtype=torch.int32) % 3 - 1)).view(torch.float32)
    x = given.reshape(1, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    low = x.bfloat16()
    one, zero = torch.ones(16), torch.zeros(16)
    # Products with bits beyond bfloat16's: powers of two fall into the middle, others beside it.
    for slope in (1 + 2**-8, 1 + 2**-9, 1 - 2**-9):
        y = norm_fused.normalise_by(low, None, one * slope, zero, zero, one, 0.0, False)
        expected = (low.float() * slope).bfloat16()
        same = (y == expected) | (y.isnan() & expected.isnan())
        assert same.all()


@needs_compiler
@pytest.mark.parametrize(("residual", "relu"), [(False, True), (True, True), (True, False)])
def test_torch_finds_the_operator_sound(residual, relu):
    """Its shapes without data, its gradient under tracing, and that it changes no input."""
    x, other, _, weight, bias, owner = draw((4, 8, 3, 3), 2, torch.float32)
    leaves = [v.requires_grad_() for v in (x, other, weight, bias)]
    given = (leaves[0], leaves[1] if residual else None, *leaves[2:], owner, 2, EPS, relu, "")
    torch.library.opcheck(torch.ops.hpc_stres.sub_batch_norm.default, given)


@needs_compiler
def test_test_time_equals_plain_torch():
    x, residual, _, weight, bias, _ = draw((4, 19, 5, 3), 1, torch.float32)
    mean, variance = torch.randn(19), torch.rand(19) + 0.1
    for other in (None, residual):
        for relu in (False, True):
            given = x, other, weight, bias, mean, variance, EPS, relu
            torch.testing.assert_close(
                norm_fused.normalise_by(*given), norm_plain.normalise_by(*given)
            )


@needs_compiler
@pytest.mark.parametrize("team_size", [2, 3])
def test_moments_of_ranks_add_up(team_size, monkeypatch):
    """Uneven shares of two groups: what `_moments_over` makes of each rank's own is what one rank has."""
    x, *_, owner = draw((9, 6, 5, 4), 2, torch.float64, mean=50.0)
    cuts = [0, 4, 9] if team_size == 2 else [0, 2, 5, 9]
    own = [norm_cpu.moments(x[a:b], owner[a:b], 2) for a, b in itertools.pairwise(cuts)]
    calls = []

    def added(team, value):
        """The sum over ranks of what each puts in: the first reduction's inputs are known, the second's follow."""
        calls.append(value)
        parts = [torch.cat([n[:, None], n[:, None] * m], dim=1) for n, m, _ in own]
        if len(calls) % 2 == 1:
            return sum(parts)
        middle = sum(parts)[:, 1:] / sum(parts)[:, :1]
        return sum(n[:, None] * (v + (m - middle).square()) for n, m, v in own)

    monkeypatch.setattr(norm_fused, "_sum_over", added)
    for given, expected in zip(
        norm_fused._moments_over("t", *own[0]), norm_cpu.moments(x, owner, 2), strict=True
    ):
        torch.testing.assert_close(given, expected, rtol=1e-12, atol=0)


def layer_result(layer, x, groups):
    x = x.detach().requires_grad_()
    y = layer(x, groups)
    (y.float() ** 2).sum().backward()
    return y.detach(), x.grad, layer.running_mean.clone(), layer.running_var.clone()


@needs_compiler
@pytest.mark.parametrize("average", ["variance", "sigma"])
def test_a_layer_without_its_kernels_computes_the_same_and_says_so(
    average, monkeypatch, capsys, tmp_path
):
    x, *_ = draw((10, 12, 6, 5), 1, torch.float32)
    groups = assign_groups(torch.tensor([0, 1, 1, 0, 1]), 2, 2, torch.float32)
    fused = layer_result(SubBatchNorm2d(12, relu=True, average=average), x, groups)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path))
    monkeypatch.delenv(native.TOLD_VARIABLE, raising=False)
    monkeypatch.setattr(native, "_load", native._load.__wrapped__)
    norm_cpu.library.cache_clear()
    native.find.cache_clear()
    try:
        assert not norm_fused.suits(x, torch.ones(12))
        plain = layer_result(SubBatchNorm2d(12, relu=True, average=average), x, groups)
        layer_result(SubBatchNorm2d(12, relu=True), x, groups)
        (line,) = capsys.readouterr().err.splitlines()
        assert "torch compute instead" in line
    finally:
        norm_cpu.library.cache_clear()
        native.find.cache_clear()
    for one, two in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_what_the_kernels_do_not_take_goes_through_plain_torch():
    x, residual, _, weight, *_ = draw((4, 6, 3, 3), 2, torch.float32)
    assert not norm_fused.suits(x.contiguous(), weight)
    assert not norm_fused.suits(x.half(), weight)
    assert not norm_fused.suits(x[:0], weight)
    assert not norm_fused.suits(x, weight.double())
    assert not norm_fused.suits(x, weight, residual.double())
    assert not norm_fused.suits(x, weight, residual.contiguous())
    assert not norm_fused.suits(x[0], weight)


@needs_compiler
def test_a_frame_without_a_group_is_refused():
    x, *_, owner = draw((4, 6, 3, 3), 2, torch.float32)
    with pytest.raises(ValueError, match="a frame's group is none of 1"):
        norm_cpu.moments(x, owner, 1)


@needs_compiler
def test_training_and_testing_take_the_fused_way(monkeypatch):
    """Every normalisation of a network, in each direction."""
    from hpc_stres.models import build_model

    calls = []
    real = norm_cpu.run
    monkeypatch.setattr(
        norm_cpu, "run", lambda step, *a, **k: calls.append(step) or real(step, *a, **k)
    )
    model = build_model("st_resnet", 3, stages=(2,), width=4, norm_group=2)
    clips = [torch.randn(2, 3, planes, 16, 16) for planes in (3, 20)]
    rgb, flow = (
        c.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 3))
        for c in clips
    )
    layers = len(norm.norm_layers(model))
    output = model(rgb, flow)
    assert calls == ["forward"] * layers
    calls.clear()
    (output.appearance.sum() + output.motion.sum()).backward()
    assert calls == ["backward"] * layers
    calls.clear()
    with torch.no_grad():
        model.eval()(rgb, flow)
    assert set(calls) == {"values"}
    assert len(calls) >= layers
