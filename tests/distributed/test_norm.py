"""One norm group over several ranks equals the same group on one."""

import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.distributed.launching import clean_environment

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("world", [2, 3])
def test_a_group_over_ranks_has_the_same_output_gradients_and_statistics(world):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        env = clean_environment(
            RANK=str(rank),
            WORLD_SIZE=str(world),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.norm_worker"],
                env=env,
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
