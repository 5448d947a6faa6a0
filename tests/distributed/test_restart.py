"""A start leaves no mark: on three ranks the first step after it adds up as every later one does."""

import pytest

from tests.conftest import run_python
from tests.distributed.launching import free_port

pytestmark = pytest.mark.distributed


def test_on_three_ranks_a_restarted_engine_goes_on_bit_for_bit():
    done = run_python("-m", "tests.distributed.engine_worker", free_port(), timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
