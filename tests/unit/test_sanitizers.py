"""The CPU kernels under the compiler's sanitizers, on thousands of small random calls and on several threads."""

import functools
import os

import pytest

from tests.campaign import sanitizers

# Compiling every width of vectors under a sanitizer takes a minute of its own.
MORE = "HPC_STRES_ALL_SANITIZERS"
SLOW = pytest.mark.skipif(
    MORE not in os.environ,
    reason=f"{MORE}=1, or tests.campaign.sanitizers, runs the normalisation and the pool (a minute)",
)
RUNS = [
    pytest.param(
        one, marks=[SLOW] if one.kernel in ("norm", "pool") else [], id=f"{one.kernel}-{one.kind}"
    )
    for one in sanitizers.RUNS
]


@pytest.fixture(scope="module")
def lacking(tmp_path_factory):
    """Why a sanitizer cannot be used here; one that can is seen to notice a fault."""
    return functools.cache(lambda kind: sanitizers.missing(kind, tmp_path_factory.mktemp(kind)))


@pytest.mark.parametrize("one", RUNS)
def test_kernels_pass_their_fuzz(lacking, tmp_path, one):
    if lacking(one.kind):
        pytest.skip(lacking(one.kind))
    assert sanitizers.fuzz(one, tmp_path) == ""
