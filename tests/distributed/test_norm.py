"""One norm group over several ranks equals the same group on one."""

import pytest

from tests.distributed.launching import finish, start_ranks

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("world", [2, 3, 4])
def test_a_group_over_ranks_has_the_same_output_gradients_and_statistics(world):
    """Over all ranks, and with four of them also two groups, over two ranks each, side by side."""
    finish(start_ranks(["-m", "tests.distributed.norm_worker"], world))
