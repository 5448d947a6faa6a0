"""The trail of what was read: the same for every cut of the batches, every world size and every resume."""

from dataclasses import replace

import pytest

from hpc_stres.data.requests import MARK_BITS, requests, requests_at, total
from hpc_stres.layout import plan
from hpc_stres.training.trail import Trail
from tests.conftest import altered
from tests.unit.test_requests import make

STEPS = 4
BATCH, GROUP = 30, 7


@pytest.fixture(scope="module")
def source():
    plain = make("motion")
    return replace(plain, phase=altered(plain.phase, global_batch=BATCH, norm_group=GROUP))


@pytest.fixture(scope="module")
def expected(source):
    """After each step, from whole batches alone."""
    sums = [0]
    for step in range(STEPS):
        sums.append((sums[-1] + total(step, requests(source, step))) % 2**MARK_BITS)
    return [f"{value:016x}" for value in sums]


def run(source, world, limit, first=0, last=STEPS, text="", ahead=2):
    """What each rank writes after each step; the feed is some steps ahead of the training."""
    layout = plan(BATCH, GROUP, world, limit)
    trails = [Trail(first, text) for _ in range(world)]
    read, found = first, {}
    for step in range(first + 1, last + 1):
        while read < min(step + ahead, STEPS):
            for rank, trail in enumerate(trails):
                for share in layout.shares[rank]:
                    trail.add(read, requests_at(source, read, share.positions))
            read += 1
        pieces = [trail.pieces(step) for trail in trails]
        assert pieces == [trail.pieces(step) for trail in trails], "logged and saved at one step"
        summed = [sum(column) for column in zip(*pieces, strict=True)]
        texts = {trail.joined(summed) for trail in trails}
        assert len(texts) == 1
        (found[step],) = texts
    return found


@pytest.mark.parametrize(("world", "limit"), [(1, 30), (1, 8), (2, 30), (3, 4), (5, 30), (6, 3)])
def test_every_layout_leaves_the_same_trail(source, expected, world, limit):
    assert run(source, world, limit) == dict(enumerate(expected[1:], 1))


@pytest.mark.parametrize(("before", "after"), [(1, 5), (5, 1), (2, 3)])
def test_a_run_that_is_resumed_over_other_ranks_leaves_it_too(source, expected, before, after):
    first = run(source, before, 30, last=2)
    assert run(source, after, 30, first=2, text=first[2])[STEPS] == expected[STEPS]


def test_one_position_that_is_missed_read_twice_or_at_another_step_is_noticed(source, expected):
    whole = list(range(BATCH))
    for positions in (whole[1:], [*whole, 3], [0, *whole[1:29], 28]):
        trail = Trail()
        trail.add(0, requests_at(source, 0, positions))
        assert trail.joined(trail.pieces(1)) != expected[1]
    late = Trail()
    late.add(0, requests_at(source, 1, whole))
    assert late.joined(late.pieces(1)) != expected[1]


def test_it_keeps_numbers_of_the_steps_ahead_only(source):
    trail = Trail()
    for step in range(500):
        trail.add(step, [])
        trail.pieces(max(0, step - 1))
    assert len(trail._after_step) <= 3


def test_many_ranks_of_the_largest_sums_add_up_exactly():
    trail = Trail()
    trail._after_step[0] = 2**MARK_BITS - 1
    pieces = trail.pieces(0)
    ranks = 100_000
    assert trail.joined([ranks * piece for piece in pieces]) == f"{-ranks % 2**MARK_BITS:016x}"
