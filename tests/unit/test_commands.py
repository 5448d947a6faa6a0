"""The quick form of `make test-commands`: every printed command has its place, and set-up leads to an environment."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from hpc_stres.config.loading import load_config
from tests import commands
from tests.conftest import ROOT

USER = commands.NOBODY if os.geteuid() == 0 else None


@pytest.mark.parametrize("page", commands.pages([]), ids=lambda page: page.name)
def test_each_printed_command_is_run_as_it_is_or_has_a_reason(page):
    text = page.read_text("utf-8")
    planned = commands.plan(page.name, text)
    assert len(planned) == len(commands.printed_lines(text))
    for command in planned:
        assert command.run == command.line or command.why


def test_commands_are_read_out_of_blocks_with_comments_and_continued_lines():
    text = (
        "```sh\nmake demo   # all\n# only this\nhpc-stres config \\\n  --config a.yaml\n"
        "```\n```python\nimport x\n```\n"
    )
    assert [command.run for command in commands.plan("p", text)] == [
        "make demo",
        "hpc-stres config    --config a.yaml",
    ]
    queued = (
        "```sh\npython launch/submit.py --config configs/ucf101.yaml --split all\n"
        "sbatch --nodes 2 slurm/eval.sh\n```"
    )
    one, two = commands.plan("p", queued)
    assert one.run == f"{one.line} --dry-run --cluster slurm"
    assert two.run == "bash -n slurm/eval.sh"


def test_the_small_configs_load(tmp_path):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for path in sorted((tmp_path / "configs").glob("*.yaml")):
        small = commands.small(yaml.safe_load(path.read_text("utf-8")))
        path.write_text(yaml.safe_dump(small, sort_keys=False), "utf-8")
        assert load_config(path).model.width == 4


@pytest.fixture(scope="module")
def checkout():
    """A copy in a folder with a space and an umlaut, with an environment that set-up takes for whole."""
    # Not below pytest's own folder, which is closed to other users.
    base = Path(tempfile.mkdtemp(prefix="commands-"))
    base.chmod(0o755)
    python = commands.interpreter(USER)
    user = USER if python else None
    place, home = base / "für alle" / "hpc stres", base / "home"
    place.mkdir(parents=True)
    home.mkdir()
    commands.copy_checkout(place)
    commands.make_environment(python or commands.interpreter(None), place / ".venv", place)
    if user is not None:
        subprocess.run(["chown", "-R", f"{user}:{user}", str(base)], check=True)
    yield place, user, home
    shutil.rmtree(base)


def run_in(checkout, text, folder=None, **more):
    place, user, home = checkout
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8", **more}
    return subprocess.run(
        ["bash", "-ec", text], cwd=folder or place, env=env, user=user, group=user,
        extra_groups=[] if user else None, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_set_up_ends_with_the_line_that_activates(checkout):
    place, _, home = checkout
    for folder, call, more in (
        (place, "bash env/setup.sh", {}),
        (place / "docs", "bash ../env/setup.sh", {}),
        (home, f"bash '{place}/env/setup.sh'", {"HPC_STRES_VENV": str(place / ".venv")}),
    ):
        result = run_in(checkout, call, folder, **more)
        assert result.returncode == 0, result.stderr
        line = result.stdout.splitlines()[-1]
        assert line.startswith("source ")
        found = run_in(checkout, f"{line}\ncommand -v hpc-stres\nhpc-stres --version", folder)
        assert found.returncode == 0, found.stderr
        assert found.stdout.splitlines()[0] == str(place / ".venv" / "bin" / "hpc-stres")
    assert (
        run_in(checkout, "bash env/setup.sh").stdout.splitlines()[-1] == "source .venv/bin/activate"
    )
    assert run_in(checkout, "bash env/setup.sh --nonsense").returncode == 2


def test_make_and_job_scripts_take_the_environment_from_its_variable(checkout):
    elsewhere = {"HPC_STRES_VENV": "/else where/venv"}
    for target in ("demo", "test", "unit", "lint"):
        assert (
            '"/else where/venv"/bin/python'
            in run_in(checkout, f"make -n {target}", **elsewhere).stdout
        )
        assert '".venv"/bin/python' in run_in(checkout, f"make -n {target}").stdout
    job = run_in(checkout, "source slurm/common.sh; run_ranks doctor", **elsewhere)
    assert job.returncode == 2
    assert job.stderr.startswith("/else where/venv/bin/python is not there")


def test_a_page_is_run_and_its_failures_are_named(checkout, capsys):
    place, user, home = checkout
    page = (
        "```sh\nsource .venv/bin/activate\nhpc-stres --version\n"
        "hpc-stres config --config none.yaml\ntouch reached\n```"
    )
    planned = commands.plan("page.md", page)
    failed = commands.run_page(planned, place, user, home, "/usr/local/bin:/usr/bin:/bin")
    assert len(failed) == 1
    assert failed[0].startswith("page.md: hpc-stres config --config none.yaml\n")
    assert "none.yaml" in failed[0].splitlines()[1]
    assert capsys.readouterr().out.count("FAILED") == 1
    assert (place / "reached").is_file()


def test_a_machine_without_a_compiler_has_everything_else(tmp_path):
    (tmp_path / "with").mkdir()
    with_one, without = (
        commands.link_tools(tmp_path / "with", False),
        commands.link_tools(tmp_path, True),
    )
    for name in ("bash", "env", "make", "git", "mpirun"):
        assert (shutil.which(name, path=without) is None) == (shutil.which(name) is None)
    assert shutil.which("g++", path=with_one)
    for name in ("g++", "c++", "gcc", "cc", "sbatch", "squeue"):
        assert shutil.which(name, path=without) is None


def test_a_command_that_takes_too_long_is_ended_with_its_children_and_has_failed(tmp_path):
    words = ["bash", "-c", "sleep 600 & echo $! > child; echo begun; wait"]
    begun = time.monotonic()
    code, output = commands.run_limited(words, 3, None, cwd=tmp_path)
    assert code == 124
    assert "ended after 3 seconds" in output
    assert time.monotonic() - begun < 300
    child = (tmp_path / "child").read_text().strip() if (tmp_path / "child").is_file() else "0"
    assert (
        not Path(f"/proc/{child}/cmdline").is_file()
        or not Path(f"/proc/{child}/cmdline").read_bytes()
    )
    assert commands.run_limited(["bash", "-c", "echo said; exit 3"], 300, None, cwd=tmp_path) == (
        3,
        "said\n",
    )
