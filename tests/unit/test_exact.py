"""Exact sums, units and their guard: against fractions and ordinary float64 gradients, in other cuts and orders."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.layout import group_sizes, plan
from hpc_stres.models import assign_groups, build_model, norm_cpu, pool
from hpc_stres.models.exact.digits import GRADIENT, MOMENT, MOST_TERMS, digits_of, number_of
from hpc_stres.models.exact.layers import scatter_windows
from hpc_stres.models.exact.mode import UnitByUnit
from hpc_stres.models.exact.session import Session
from hpc_stres.models.exact.sums import ExactSums
from hpc_stres.models.exact_network import attach
from hpc_stres.training.exact import kernels_of
from hpc_stres.training.hashes import state_hashes
from hpc_stres.training.trainable import freeze, set_training_mode

# -- sums ----------------------------------------------------------------------------------------


def exact_sum(values, form):
    sums = ExactSums({"all": torch.Size(())}, form, "cpu")
    sums.add("all", *torch.as_tensor(values, dtype=torch.float64))
    return float(sums.total("all"))


@pytest.mark.parametrize("form", [GRADIENT, MOMENT])
@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
def test_a_sum_is_the_fractions_sum_in_any_order(form, scale):
    random = np.random.default_rng(int(1 / scale) % 97)
    values = (random.standard_normal(999) * scale).astype(np.float32).astype(np.float64)
    grain = Fraction(2) ** (form[0] - 40 * (form[1] - 1))
    wanted = sum(round(Fraction(v) / grain) for v in values) * grain
    sums = {exact_sum(values[random.permutation(999)], form) for _ in range(5)}
    assert sums == {float(wanted)}
    assert abs(float(wanted) - math.fsum(values)) <= 999 * grain / 2
    # Else this would show nothing: float32 sums of the same numbers do depend on their order.
    floats = {
        float(np.cumsum(values[random.permutation(999)], dtype=np.float32)[-1]) for _ in range(5)
    }
    assert len(floats) > 1


@pytest.mark.parametrize("form", [GRADIENT, MOMENT])
def test_as_many_terms_as_are_allowed_do_not_overflow(form):
    largest = math.nextafter(2.0 ** (form[0] + 50), 0)
    for sign in (1, -1):
        assert exact_sum([sign * largest] * MOST_TERMS, form) == sign * largest * MOST_TERMS


@pytest.mark.parametrize("form", [GRADIENT, MOMENT])
@pytest.mark.parametrize("bad", ["too large", math.inf, -math.inf, math.nan])
def test_a_term_that_does_not_fit_makes_the_sum_nan(form, bad):
    value = 2.0 ** (form[0] + 50) if bad == "too large" else bad
    assert math.isnan(exact_sum([1.0, value, 2.0], form))


def test_digits_are_the_number():
    values = torch.tensor([0.1, -3.0, 2.0**29, 1e-9, -0.0], dtype=torch.float32)
    digits, misfits = digits_of(values, GRADIENT)
    assert torch.equal(number_of(digits, misfits, GRADIENT).float(), values)


# -- layouts -------------------------------------------------------------------------------------


def test_no_layout_cuts_a_unit():
    """Every batch, group, unit and world up to a size: units are whole and on one rank, everyone is there once."""
    tried = 0
    for batch in range(1, 19):
        for group in range(1, batch + 1):
            sizes = group_sizes(batch, group)
            common = math.gcd(*sizes)
            for unit in (u for u in range(1, common + 1) if common % u == 0):
                for world in (1, 2, 3, 4, 6):
                    for limit in (None, max(sizes)):
                        try:
                            layout = plan(batch, group, world, limit, unit)
                        except ConfigError:
                            continue
                        tried += 1
                        assert_units_are_whole(layout, len(sizes), unit)
    assert tried > 500


def assert_units_are_whole(layout, groups, unit):
    everyone = []
    for shares in layout.shares:
        for share in shares:
            everyone += share.positions
            for start in range(0, len(share.positions), unit):
                one = share.positions[start : start + unit]
                # The n-th video of a group is at position group + n * groups.
                number = one[0] // groups
                assert number % unit == 0
                assert one == tuple(one[0] + n * groups for n in range(unit))
    assert sorted(everyone) == list(range(layout.global_batch))


def test_a_unit_that_does_not_divide_the_groups_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError,
        match=r"8 videos are not whole numbers of units of 3.\nNearest training.unit: 2, 4",
    ):
        plan(32, 8, 1, None, 3)
    with pytest.raises(ConfigError, match=r"5/4 videos .* units of 2"):
        plan(14, 5, 1, None, 2)
    with pytest.raises(ConfigError, match=r"training.unit 4"):
        plan(8, 8, 2, None, 8)


# -- networks ------------------------------------------------------------------------------------

TRUNK = {"stages": (2, 2), "width": 4}
VIDEOS, TIMES, GROUP = 8, 5, 4


def network(name):
    torch.manual_seed(5)
    if name == "stfn":
        return build_model("stfn", 3, norm_group=GROUP, **TRUNK)
    more = {"stm_resnet": {"learned_scale": True}, "concatenate": {"operation": "concatenate"}}
    real = "stm_resnet" if name in more else name
    return build_model(real, 3, norm_group=GROUP, **TRUNK, **more.get(name, {}))


def clips(side=16):
    random = torch.Generator().manual_seed(2)
    made = [torch.randn(VIDEOS, TIMES, planes, side, side, generator=random) for planes in (3, 20)]
    return [
        c.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (VIDEOS, TIMES))
        for c in made
    ]


def groups_of(videos, dtype):
    return assign_groups(torch.arange(videos) // GROUP, videos // GROUP, TIMES, dtype)


def ordinary_gradients(model, rgb, flow):
    set_training_mode(model)
    logits = model(rgb, flow, groups_of(VIDEOS, rgb.dtype))
    weighted_sum(logits).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def weighted_sum(logits):
    """Something whose gradient differs from number to number."""
    total = 0.0
    for scores in logits:
        if scores is not None:
            total = total + (scores.double() ** 2 + scores.double()).sum()
    return total


def exact_gradients(model, rgb, flow, cuts, unit=1, low=None, threads=1):
    """In micro-batches of whole groups, unit by unit."""
    set_training_mode(model)
    session = Session(model, torch.device("cpu"), threads)
    mode = UnitByUnit(session, low)
    layers = attach(model, session, mode)
    for start, stop in cuts:
        session.units = (stop - start) // unit
        given = (rgb[start:stop], flow[start:stop], groups_of(stop - start, torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=low is not None), mode:
            logits = model(*given)
        losses = [weighted_sum(part) for part in by_unit(logits, unit)]
        torch.autograd.backward(losses)
    assert all(p.grad is None for p in model.parameters())
    totals = {name: session.gradients.total(name) for name in session.parameters}
    statistics = {name: session.statistics.total(name) for name in layers}
    session.close()
    return totals | statistics


def by_unit(logits, unit):
    return list(zip(*(scores.split(unit) for scores in logits), strict=True))


@pytest.mark.parametrize("name", ["st_resnet", "stm_resnet", "concatenate", "stfn"])
@pytest.mark.parametrize("order", ["channels last", "contiguous"])
def test_gradients_of_units_are_the_gradient(name, order):
    """In float64 to rounding, of every parameter, for fused and plain normalisation."""
    rgb, flow = (c.double() for c in clips())
    if order == "contiguous":
        rgb, flow = rgb.contiguous(), flow.contiguous()
    wanted = ordinary_gradients(network(name).double(), rgb, flow)
    for unit in (1, 4):
        got = exact_gradients(network(name).double(), rgb, flow, [(0, 8)], unit)
        for key, value in wanted.items():
            scale = max(float(value.abs().max()), 1e-3)
            assert float((got[key] - value).abs().max()) < 1e-9 * scale, key


@pytest.mark.parametrize("part", ["head", "last_stage"])
def test_gradients_of_a_part_are_its_gradients(part):
    """The rest is frozen, and its normalisations use their running statistics."""
    rgb, flow = (c.double() for c in clips())
    one, other = network("st_resnet").double(), network("st_resnet").double()
    for model in (one, other):
        freeze(model, part)
    wanted = ordinary_gradients(one, rgb, flow)
    got = exact_gradients(other, rgb, flow, [(0, 4), (4, 8)])
    assert len(wanted) < len(list(one.parameters()))
    for key, value in wanted.items():
        scale = max(float(value.abs().max()), 1e-3)
        assert float((got[key] - value).abs().max()) < 1e-9 * scale, key


@pytest.mark.parametrize(
    ("name", "low"), [("st_resnet", None), ("st_resnet", torch.bfloat16), ("stm_resnet", None)]
)
def test_micro_batches_and_threads_do_not_show_in_any_bit(name, low):
    rgb, flow = clips()
    whole = exact_gradients(network(name), rgb, flow, [(0, 8)], 2, low)
    for cuts, threads in (([(0, 4), (4, 8)], 1), ([(4, 8), (0, 4)], 1), ([(0, 8)], 3)):
        other = exact_gradients(network(name), rgb, flow, cuts, 2, low, threads)
        for key, value in whole.items():
            assert torch.equal(value, other[key]), (key, cuts, threads)


def test_ordinary_gradients_do_show_the_micro_batches():
    """Else the test above would show nothing."""
    rgb, flow = clips()
    whole = ordinary_gradients(network("st_resnet"), rgb, flow)
    model = network("st_resnet").train()
    for start in (0, 4):
        logits = model(rgb[start : start + 4], flow[start : start + 4], groups_of(4, torch.float32))
        weighted_sum(logits).backward()
    assert any(not torch.equal(p.grad, whole[n]) for n, p in model.named_parameters())


def test_one_bit_of_one_number_is_another_hash():
    model = network("st_resnet")
    first = state_hashes(model)
    assert state_hashes(network("st_resnet")) == first
    for name, tensor in [
        *model.named_parameters(),
        ("motion.bn1.running_var", model.motion.bn1.running_var),
    ]:
        tensor.detach().reshape(-1).view(torch.int32)[-1] ^= 1
        changed = state_hashes(model)
        differing = [n for n in first["tensors"] if changed["tensors"][n] != first["tensors"][n]]
        assert differing == [name]
        assert changed["weights_sha256"] != first["weights_sha256"]
        tensor.detach().reshape(-1).view(torch.int32)[-1] ^= 1


@pytest.mark.parametrize("missing", [norm_cpu, pool])
def test_ranks_with_and_without_compiled_kernels_are_unlike(missing, monkeypatch):
    """Plain torch rounds otherwise: such ranks must not train together."""
    for kernels in (norm_cpu, pool):
        monkeypatch.setattr(kernels, "library", object)
    whole = kernels_of(torch.device("cpu"))
    monkeypatch.setattr(missing, "library", lambda: None)
    assert kernels_of(torch.device("cpu")) != whole


# -- the guard -----------------------------------------------------------------------------------


class Mixed(torch.nn.Module):
    """A layer that does one thing to a batch."""

    def __init__(self, work):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(4, 1, 1))
        self.norm = torch.nn.BatchNorm2d(4)
        self.work = work

    def forward(self, x):
        return self.work(self, x)


@pytest.mark.parametrize(
    ("work", "named"),
    [
        (lambda layer, x: x.cumsum(0), "cumsum"),
        (lambda layer, x: layer.norm(x), "batch_norm"),
        (lambda layer, x: x * layer.factor, "factor is used by torch's mul"),
        (lambda layer, x: x + layer.factor[:1], "factor is used by torch's __getitem__"),
        (lambda layer, x: x - x.mean(), "mean over all videos"),
        (lambda layer, x: x - x.mean(dim=(0, 2), keepdim=True), "mean over all videos"),
        (lambda layer, x: torch.add(x, x, alpha=0.3), "add"),
        (lambda layer, x: x[:3].exp(), "not a whole number of rows"),
        (lambda layer, x: torch.conv1d(x[0], x[0, :, :, :1]), "conv1d"),
        (lambda layer, x: x.flatten(1) @ x.flatten(1).t(), "matmul"),
    ],
)
def test_what_might_mix_videos_is_refused_by_its_name(work, named):
    layer = Mixed(work)
    session = Session(layer, torch.device("cpu"))
    session.units = 4
    with pytest.raises(UserError, match=named), UnitByUnit(session):
        layer(torch.ones(4, 4, 3, 3))


def test_sums_of_a_stack_are_over_branches_and_not_over_videos():
    session = Session(Mixed(None), torch.device("cpu"))
    session.units = 4
    x = torch.randn(8, 4, 3, 3)
    with UnitByUnit(session):
        y = x + torch.stack([x, x * 2]).sum(dim=0)
    assert torch.equal(y, x + torch.stack([x, x * 2]).sum(dim=0))


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "ceil"), [
    (9, 3, 2, 1, False), (9, 3, 2, 0, True), (10, 3, 2, 0, False), (7, 2, 2, 0, False), (6, 3, 1, 1, False),
])  # fmt: skip
def test_the_max_pools_way_back_is_torchs(size, kernel, stride, padding, ceil):
    # Few different numbers: windows share their maxima, and several places of one have it.
    x = torch.randint(0, 3, (2, 3, size, size + 1)).double().requires_grad_()
    y, places = torch.nn.functional.max_pool2d(
        x, kernel, stride, padding, ceil_mode=ceil, return_indices=True
    )
    grad = torch.randint(-9, 9, y.shape).double()
    y.backward(grad)
    pairs = [(value, value) for value in (kernel, stride, padding)]
    assert torch.equal(scatter_windows(grad, places, x.shape, *pairs), x.grad)
