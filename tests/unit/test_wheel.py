"""An installed wheel works from any folder: configs and launcher are inside, and extras name every import."""

import ast
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT, run_python

# Import name and the package that brings it, where they differ.
BROUGHT_BY = {
    "cv2": "opencv-contrib-python-headless", "yaml": "pyyaml", "nvidia": "nvidia-dali-cuda120", "mpi4py": "mpi4py",
    "sklearn": "scikit-learn",
}  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what pip installs out of a wheel of this tree."""
    base = tmp_path_factory.mktemp("wheel")
    (base / "tree").mkdir()
    for name in ("hpc_stres", "configs"):
        shutil.copytree(ROOT / name, base / "tree" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, base / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    for words in (
        ["wheel", "--no-deps", "--no-build-isolation", "-w", base / "made", base / "tree"],
        ["install", "--no-deps", "--no-index", "--find-links", base / "made", "--target", base / "site", "hpc_stres"],
    ):
        run = subprocess.run([*pip, *map(str, words)], capture_output=True, text=True, check=False, timeout=300)
        assert run.returncode == 0, run.stderr[-2000:]
    shutil.rmtree(base / "tree")
    return base / "site"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["config"], "recipe = nips2016"),
        (["submit", "--dry-run", "--cluster", "local"], "32 = 4 groups of 8/8/8/8"),
        (["submit", "--dry-run", "--cluster", "slurm", "--nodes", "2"], "#!/bin/bash"),
        (["demo", "--help"], "usage: hpc-stres demo"),
        (["status", "--help"], "usage: hpc-stres status"),
    ],
)
def test_commands_work_without_a_checkout(installed, tmp_path, words, said):
    result = run_python(installed / "bin" / "hpc-stres", *words, env={"PYTHONPATH": str(installed)}, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
    for folder in ("hpc_stres", "configs", "launch"):
        assert str(ROOT / folder) not in result.stdout


def test_extras_name_everything_that_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["all"]]
    known = {text.split(">")[0].split("=")[0].strip().lower() for text in named}
    imported = set()
    for path in (ROOT / "hpc_stres").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"hpc_stres"}
    assert {BROUGHT_BY.get(name, name).lower() for name in foreign} <= known
