"""The kernel of exact sums writes, bit for bit, what plain torch does: on any numbers, orders in memory, threads."""

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_stres.models.exact import kernel
from hpc_stres.models.exact import sums as exact_sums
from hpc_stres.models.exact.digits import GRADIENT, MOMENT, digits_of, number_of
from hpc_stres.models.exact.session import Session
from hpc_stres.models.exact.sums import ExactSums, group_sums, group_totals
from tests.unit.test_exact import clips, exact_gradients, network

FORMS = [GRADIENT, MOMENT, (0, 2), (-7, 4)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
MANY = settings(max_examples=80, deadline=None)

# Any number that there is, by its bits; and those about which a digit is decided: halves, the edge
# of what fits, the smallest, none.
ANY = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("d", struct.pack("Q", bits))[0])
EDGES = st.builds(
    lambda sign, mantissa, exponent: sign * math.ldexp(mantissa, exponent),
    st.sampled_from([1.0, -1.0]),
    st.sampled_from([1.0, 0.5, 1.5, 2.5, 1 - 2**-53, 1 + 2**-23, 1 - 2**-24, 1 / 3, 0.0]),
    st.integers(-150, 80),
)
ODD = st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 2.0**-149, 2.0**30, -(2.0**70)])
NUMBERS = st.lists(st.one_of(ANY, EDGES, ODD), min_size=1, max_size=40)


@pytest.fixture(scope="module", autouse=True)
def there_is_a_kernel():
    if kernel.library() is None:
        pytest.skip("no compiler on this machine")


def in_plain_torch(monkeypatch):
    monkeypatch.setattr(kernel, "suits", lambda *_: False)


@MANY
@given(NUMBERS, st.sampled_from(FORMS), st.sampled_from(DTYPES), st.booleans())
def test_terms_get_the_digits_that_plain_torch_gives_them(numbers, form, dtype, fresh):
    values = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    wanted, misfits = digits_of(values, form)
    begun = torch.arange(wanted.numel()).view_as(wanted) * 12345
    got, bad = begun.clone(), torch.tensor([7])
    kernel.add([values, values], got, bad, form, fresh=fresh)
    assert torch.equal(got, wanted * 2 + (0 if fresh else begun))
    assert int(bad) == 7 + 2 * int(misfits)


@MANY
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=64),
    st.sampled_from(FORMS),
    st.sampled_from(kernel.TOTALS),
    st.sampled_from([0, 0, 3]),
)
def test_any_digits_are_the_number_that_plain_torch_makes_of_them(digits, form, dtype, misfits):
    count = len(digits) // form[1]
    sums = torch.tensor(digits[: count * form[1]]).view(form[1], count)
    result = torch.empty(count, dtype=dtype)
    kernel.total(sums, torch.tensor([misfits]), form, result)
    wanted = number_of(sums, torch.tensor(misfits), form).to(dtype)
    assert torch.equal(result.view(torch.uint8), wanted.view(torch.uint8))


@MANY
@given(st.data(), st.integers(1, 5), st.integers(1, 7), st.sampled_from([GRADIENT, MOMENT]))
def test_groups_get_the_sums_of_plain_torch(data, groups, columns, form):
    owner = data.draw(st.lists(st.integers(0, groups - 1), min_size=1, max_size=9))
    some = st.one_of(st.floats(-9, 9), EDGES, ODD) if data.draw(st.booleans()) else EDGES
    size = len(owner) * columns
    values = torch.tensor(
        data.draw(st.lists(some, min_size=size, max_size=size)), dtype=torch.float64
    )
    rows, owners = values.view(-1, columns), torch.tensor(owner)
    ours = group_sums(rows, owners, groups, form)
    with pytest.MonkeyPatch.context() as patch:
        in_plain_torch(patch)
        theirs = group_sums(rows, owners, groups, form)
        wanted = group_totals(theirs, form)
    assert torch.equal(ours, theirs)
    assert torch.equal(group_totals(ours, form).nan_to_num(123.0), wanted.nan_to_num(123.0))


ORDERS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (7, 4, 1, 1), (1, 3, 2, 5), (6,), ()])
def test_a_sum_lies_as_its_parameter_does_and_takes_terms_of_any_order(shape, order):
    parameter = torch.empty(shape)
    if len(shape) == 4:
        parameter = parameter.to(memory_format=order)
    sums = ExactSums({"w": parameter.shape}, GRADIENT, "cpu", {"w": parameter.stride()})
    terms = [torch.randn(shape) for _ in range(3)]
    wanted = sum(term.double() for term in terms)
    for term in terms:
        for other in ORDERS:
            sums.add("w", term.to(memory_format=other) if len(shape) == 4 else term)
    torch.testing.assert_close(sums.total("w"), wanted * 2, rtol=1e-12, atol=1e-12)
    assert sums.total("w").stride() == parameter.stride()
    # Every second number of something larger.
    sums.clear()
    sums.add("w", torch.stack([terms[0], terms[1]], dim=-1)[..., 0])
    assert torch.equal(sums.total("w"), terms[0].double())


def test_what_was_added_before_clearing_does_not_come_back():
    sums = ExactSums({"a": torch.Size([3]), "b": torch.Size([3])}, GRADIENT, "cpu")
    for name in ("a", "b"):
        sums.add(name, torch.tensor([1.0, math.nan, 2.0]), torch.ones(3))
    assert sums.total("b").isnan().all()
    sums.clear()
    sums.add("a", torch.ones(3))
    sums.reduce()
    assert sums.total("a").tolist() == [1.0] * 3
    assert sums.total("b").tolist() == [0.0] * 3
    assert int(sums.flat.abs().sum()) == 3 << 20


def test_a_term_of_another_shape_is_no_term():
    with pytest.raises(ValueError, match=r"a term of \(1, 3\) for a sum of \(3,\)"):
        ExactSums({"a": torch.Size([3])}, GRADIENT, "cpu").add("a", torch.ones(1, 3))


@pytest.mark.parametrize("owner", [[0, 2], [-1, 0]])
def test_the_kernel_refuses_a_group_that_is_none(owner):
    terms = [torch.ones(3), torch.ones(3)]
    to, misfits = torch.zeros(2, 2, 3, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    kernel.add(terms, to, misfits, GRADIENT, torch.tensor([0, 1]))
    before = to.clone()
    with pytest.raises(ValueError, match=r"exact sums of \(2, 2, 3\)"):
        kernel.add(terms, to, misfits, GRADIENT, torch.tensor(owner))
    assert torch.equal(to, before)


def test_a_network_gets_the_same_bits_from_plain_torch(monkeypatch):
    rgb, flow = clips()
    ours = exact_gradients(network("st_resnet"), rgb, flow, [(0, 8)], 2, torch.bfloat16)
    in_plain_torch(monkeypatch)
    theirs = exact_gradients(network("st_resnet"), rgb, flow, [(0, 4), (4, 8)], 2, torch.bfloat16)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_threads_share_a_long_sum_and_its_misfits(monkeypatch):
    """Each takes some columns of all terms; every misfit is counted once."""
    monkeypatch.setattr(exact_sums, "SHARE_NUMBERS", 64)
    layer = torch.nn.Linear(50, 40, bias=False)
    session = Session(layer, torch.device("cpu"), threads=3)
    terms = [torch.randn(40, 50) * 1e-3 for _ in range(4)]
    session.add_gradient(layer.weight, terms)
    wanted = sum(digits_of(term.double(), GRADIENT)[0] for term in terms)
    assert torch.equal(session.gradients.digits["weight"], wanted.view(2, -1))
    for term in terms:
        term[::7, ::11] = math.inf
    session.add_gradient(layer.weight, terms)
    assert int(session.gradients.misfits) == sum(int(term.isinf().sum()) for term in terms) > 64
    session.write_gradients()
    assert layer.weight.grad.isnan().all()
    session.close()
