"""The house rules: short files, short functions, nothing that imports more than it needs."""

import ast
import dataclasses
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy
import pytest
import yaml

from hpc_stres.config.schema import Config
from tests.conftest import ROOT

FILES = sorted(
    path
    for folder in ("hpc_stres", "launch", "tests", "slurm", "env", "docs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sh", ".cpp") and "__pycache__" not in path.parts
)
MOST_LINES, MOST_FUNCTION_LINES = 400, 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_and_no_function_is_too_long(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno + 1 <= MOST_FUNCTION_LINES, node.name


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python that has numpy, pyyaml and this repository, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    for package in (numpy, yaml):
        home = Path(package.__file__).parent
        (site / home.name).symlink_to(home)
        for extra in home.parent.glob(f"{home.name}.libs"):
            (site / extra.name).symlink_to(extra)
    return folder / "bin" / "python"


def bare_run(python, *arguments):
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, env=env, cwd=ROOT, check=False
    )


def test_every_help_works_with_numpy_and_yaml_alone(bare_python):
    from hpc_stres.__main__ import COMMANDS

    assert bare_run(bare_python, "-c", "import torch").returncode != 0
    assert bare_run(bare_python, "-c", "import hpc_stres").returncode == 0
    for command in COMMANDS:
        result = bare_run(bare_python, "-m", "hpc_stres", command, "--help")
        assert result.returncode == 0, result.stderr
        assert "usage: hpc-stres" in result.stdout
    for script in ("submit.py", "status.py"):
        result = bare_run(bare_python, f"launch/{script}", "--help")
        assert result.returncode == 0, result.stderr


def test_pure_parts_do_not_import_torch():
    modules = [
        "config.schema", "config.loading", "config.recipe", "config.schedule", "layout", "counter", "parallel.world",
        "run.paths", "run.product", "run.experiment", "listings.splits", "listings.sources", "store.location",
        "store.reader", "store.listing", "data.requests", "launch.jobs", "launch.slurm", "launch.chain",
    ]  # fmt: skip
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module('hpc_stres.' + name)\n"
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# What the registry calls in each kind of phase has one form for all kinds.
OF_A_CONTRACT = ("scores",)


def read_sections(source: str) -> dict[str, set[str]]:
    """Functions of a file that take a whole config and never pass it on: what they read of it."""
    found = {}
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for argument in [*function.args.args, *function.args.kwonlyargs]:
            if (
                argument.annotation is None
                or ast.unparse(argument.annotation).strip("'") != "Config"
            ):
                continue
            uses = [
                n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id == argument.arg
            ]
            read = [
                n for n in ast.walk(function) if isinstance(n, ast.Attribute) and n.value in uses
            ]
            if len(read) == len(uses):
                found[function.name] = {node.attr for node in read}
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "hpc_stres").rglob("*.py")), ids=lambda path: path.name
)
def test_a_function_takes_the_section_that_it_reads(path):
    sections = {field.name for field in dataclasses.fields(Config)}
    for name, read in read_sections(path.read_text(encoding="utf-8")).items():
        assert len(read) > 1 or read - sections or name in OF_A_CONTRACT, f"{name} reads {read}"


@pytest.mark.parametrize("body", ["config.data.root", "f(config.data) + config.data.split"])
def test_a_whole_config_for_one_section_is_noticed(body):
    assert read_sections(f"def f(config: 'Config'):\n    return {body}") == {"f": {"data"}}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "hpc_stres").rglob("*.py")), ids=lambda path: path.name
)
def test_a_name_says_the_thing(path):
    tree = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    names = {n.id for n in tree if isinstance(n, ast.Name)} | {
        n.arg for n in tree if isinstance(n, ast.arg)
    }
    assert "found" not in names
