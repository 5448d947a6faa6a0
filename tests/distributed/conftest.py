"""A finished chain of the tiny config, for all tests that look at what comes after training."""

import pytest

from tests.conftest import TINY, run_python


def submit(data_root, run_dir, *more):
    arguments = ["--config", TINY, "--phase", "all", "--cluster", "local", "--run-dir", run_dir]
    return run_python("launch/submit.py", *arguments, "--set", f"data.root={data_root}", *more)


@pytest.fixture(scope="session")
def chain(data_root, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "odd näme"
    result = submit(data_root, run_dir)
    assert result.returncode == 0, result.stdout + result.stderr
    return run_dir, result.stdout
