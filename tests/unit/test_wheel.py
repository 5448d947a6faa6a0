"""An installed wheel works from any folder: configs and launcher are inside, and extras name every import."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT, run_python
from tests.waiting import PATIENCE_SECONDS

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
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, base / "tree" / name)
    # What the kernels compute is tested elsewhere: here they are compiled quickly.
    quick = base / "quick-g++"
    quick.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    quick.chmod(0o755)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    for words in (
        ["wheel", "--no-deps", "--no-build-isolation", "-w", base / "made", base / "tree"],
        [
            "install",
            "--no-deps",
            "--no-index",
            "--find-links",
            base / "made",
            "--target",
            base / "site",
            "hpc_stres",
        ],
    ):
        run = subprocess.run([*pip, *map(str, words)], capture_output=True, text=True, check=False,
                             timeout=PATIENCE_SECONDS, env={**os.environ, "CXX": str(quick)})  # fmt: skip
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
    result = run_python(
        installed / "bin" / "hpc-stres", *words, env={"PYTHONPATH": str(installed)}, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
    for folder in ("hpc_stres", "configs", "launch"):
        assert str(ROOT / folder) not in result.stdout


KERNELS = {"norm", "tvl1", "resize", "exact", "pool"}
LOAD = f"from hpc_stres import native; print(native.__file__); [native.load(n) for n in {KERNELS}]"


def load_kernels(site, cache, **environment):
    env = {
        "PYTHONPATH": str(site),
        "HPC_STRES_CACHE": str(cache),
        "TMPDIR": str(cache),
        **environment,
    }
    cache.mkdir(exist_ok=True)
    result = run_python("-c", LOAD, env=env, cwd=cache)
    return result.returncode, result.stdout, list(cache.rglob("*.so"))


def test_a_wheel_carries_its_kernels(installed, tmp_path):
    """Neither a compiler nor a cache is used; a kernel that is damaged or of other sources is not loaded."""
    code, told, cached = load_kernels(installed, tmp_path / "one", CXX="no-such-compiler")
    assert code == 0
    assert str(installed) in told
    assert not cached
    copy = shutil.copytree(installed, tmp_path / "copy")
    kernels = sorted((copy / "hpc_stres" / "native" / "prebuilt").iterdir())
    assert {file.name.split("-")[0] for file in kernels} == KERNELS
    for file in kernels:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    assert load_kernels(copy, tmp_path / "two", CXX="no-such-compiler")[0] != 0
    assert len(load_kernels(copy, tmp_path / "three")[2]) == len(KERNELS)
    shutil.rmtree(copy / "hpc_stres" / "native" / "prebuilt")
    shutil.copytree(
        installed / "hpc_stres" / "native" / "prebuilt", copy / "hpc_stres" / "native" / "prebuilt"
    )
    source = copy / "hpc_stres" / "native" / "resize.cpp"
    source.write_text(source.read_text() + "// changed\n")
    assert load_kernels(copy, tmp_path / "four", CXX="no-such-compiler")[0] != 0


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


def test_every_folder_of_code_is_a_package_of_the_wheel():
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "hpc_stres").rglob("*.py")}
    assert set(named) - {"hpc_stres.configs"} == {".".join(folder.parts) for folder in folders}
