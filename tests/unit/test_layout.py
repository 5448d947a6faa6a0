"""Layouts: every position once, groups never cut by a micro-step, nothing above the limit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc_stres.errors import ConfigError
from hpc_stres.layout import group_sizes, plan


def test_group_sizes_are_interleaved():
    assert group_sizes(256, 86) == [86, 85, 85]
    assert group_sizes(256, 8) == [8] * 32
    assert group_sizes(128, 4) == [4] * 32


def test_the_example_explains_itself():
    text = plan(256, 86, 16, 8).explain()
    assert text.startswith(
        "256 = 3 groups of 86/85/85, one group a micro-step over 16 ranks, 5 or 6 a rank"
    )


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 80),
    st.integers(1, 80),
    st.integers(1, 12),
    st.one_of(st.none(), st.integers(1, 80)),
)
def test_any_plan_keeps_the_contract(batch, group, world, limit):
    group = min(group, batch)
    try:
        layout = plan(batch, group, world, limit)
    except ConfigError:
        with pytest.raises(ConfigError, match="Nearest that can"):
            plan(batch, group, world, limit)
        return
    sizes = group_sizes(batch, group)
    held = sorted(p for shares in layout.shares for share in shares for p in share.positions)
    assert held == list(range(batch))
    assert len({len(shares) for shares in layout.shares}) == 1
    assert layout.largest_micro_batch <= (limit or batch)
    for team in layout.teams:
        for micro in range(layout.micro_steps):
            counts = {}
            for rank in team:
                share = layout.shares[rank][micro]
                assert all(
                    p % len(sizes) == g for p, g in zip(share.positions, share.groups, strict=True)
                )
                for owner in share.groups:
                    counts[owner] = counts.get(owner, 0) + 1
            # Whole groups: never cut by a micro-step, never over two teams.
            assert all(count == sizes[owner] for owner, count in counts.items())
    for shares in layout.shares:
        assert shares[-1].positions, (
            "a rank without work in the last micro-step would miss the reduction"
        )


def test_whole_groups_on_one_rank_come_first():
    assert plan(256, 8, 4).team_size == 1
    assert plan(128, 4, 32).team_size == 1
    assert plan(128, 4, 64).team_size == 2
    assert plan(256, 86, 3).team_size == 1


def test_fewest_micro_steps_within_the_limit():
    assert plan(256, 8, 1, 64).micro_steps == 4
    assert plan(256, 8, 1, 63).micro_steps == 5
    assert plan(256, 86, 1, 256).micro_steps == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((4, 2, 7, None), "4 ranks"),
        ((256, 86, 1, 8), "max_micro_batch 86"),
        ((10, 3, 5, None), "norm_group 2"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_nearest_that_can(arguments, hint):
    with pytest.raises(ConfigError, match="cannot be cut") as caught:
        plan(*arguments)
    assert hint in str(caught.value)


@pytest.mark.parametrize("arguments", [(0, 1, 1), (4, 5, 1), (4, 2, 0), (4, 2, 1, 0)])
def test_impossible_numbers_are_refused(arguments):
    with pytest.raises(ConfigError):
        plan(*arguments)
