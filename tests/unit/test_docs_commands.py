"""The quick commands that README and docs print run as printed, in a copy of the checkout."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.unit.test_docs import PAGES, QUICK, page_name, shell_lines


def is_quick(line):
    words = shlex.split(line, comments=True)
    if words[0] in ("source", "cp") or "--help" in words:
        return True
    if words[0] == "hpc-stres":
        return words[1] in QUICK
    return words[:2] == ["python", "launch/submit.py"] and "--dry-run" in words


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository whose .venv is this environment, as `make setup` leaves it."""
    if not (Path(sys.prefix) / "bin" / "activate").is_file():
        pytest.skip("this Python is in no virtual environment that could be activated")
    root = tmp_path_factory.mktemp("docs") / "a checkout"
    for folder in ("hpc_stres", "launch", "configs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".venv").symlink_to(sys.prefix)
    return root


def run_literally(lines, root):
    """Run commands as printed, one after another in one shell; the first that fails is named."""
    script = "\n".join(["set -eE", "trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR", *lines])
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": os.environ.get("HOME", str(root)),
        "PYTHONPATH": str(root),
    }
    command = ["bash", "-c", script]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_quick_commands_run_as_printed(page, checkout):
    lines = [line for line in shell_lines(page.read_text(encoding="utf-8")) if is_quick(line)]
    result = run_literally(lines, checkout)
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_printed_command_that_fails_is_named(checkout):
    lines = ["source .venv/bin/activate", "hpc-stres config --config none.yaml", "touch reached"]
    result = run_literally(lines, checkout)
    assert result.returncode != 0
    assert "failed: hpc-stres config --config none.yaml" in result.stderr
    assert not (checkout / "reached").exists()
