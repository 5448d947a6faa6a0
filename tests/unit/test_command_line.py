"""The command line for people: misspelt words, narrow terminals, completion, Ctrl-C."""

import argparse
import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_stres.__main__ import COMMANDS, build_parser, main
from hpc_stres.commands import completion
from hpc_stres.run.tables import text_table
from tests.conftest import ROOT, TINY

EVERY = sorted(COMMANDS)


def said(*words):
    """Exit status, stdout and stderr of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("name", EVERY)
def test_a_misspelt_command_gets_the_right_one(name):
    for wrong in (name[:-1], name[0] + name[2:], name + name[-1], name[1] + name[0] + name[2:]):
        if wrong in COMMANDS:
            continue
        code, _, err = said(wrong)
        assert code == 2
        assert re.search(r"did you mean ([a-z-]+)\?", err)[1] in COMMANDS
        assert len(err.splitlines()) == 2
    assert said("xyzzy")[2].startswith("hpc-stres: no command 'xyzzy'\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["train", "--conifg", "x", "--phase", "p", "--run-dir", "d"],
            "no option --conifg; did you mean --config?",
        ),
        (["submit", "--phases=motion"], "no option --phases; did you mean --phase?"),
        (["train", "--phase", "p", "--run-dir", "d", "--zzz"], "no option --zzz\n"),
        (["describe", "st_resnet", "--variant", "torchvison"], "did you mean torchvision?"),
        (["train"], "the following arguments are required: --phase, --run-dir"),
        (["completion", "basch"], "did you mean bash?"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_a_wrong_command_line_is_two_lines(words, expected):
    code, out, err = said(*words)
    assert code == 2
    assert expected in err
    assert len(err.splitlines()) == 2
    assert out == ""


@pytest.mark.parametrize("columns", [60, 200])
@pytest.mark.parametrize("name", ["", *EVERY])
def test_help_fits_the_terminal(name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = said(*([name] if name else []), "--help")
    assert code == 0
    for line in out.splitlines():
        # A word that is longer than the line stays whole.
        assert len(line) <= columns or len(line.split()) <= 2, line


def test_examples_in_help_stay_commands_that_can_be_pasted(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    _, out, _ = said("train", "--help")
    text = re.sub(r" \\\n +", " ", out)
    assert "hpc-stres train --config configs/binding.yaml --phase motion --run-dir runs/try" in text


def test_a_table_wider_than_the_terminal_is_a_block_for_each_row():
    header, rows = (
        ["phase", "state", "", "error"],
        [["motion", "running", "step 3 of 9", ""], ["st", "x", "", "no " * 30]],
    )
    wide = text_table(header, rows, 200)
    assert wide == text_table(header, rows)
    assert wide.splitlines()[1] == "-" * max(map(len, wide.splitlines()))
    narrow = text_table(header, rows, 40)
    assert max(map(len, narrow.splitlines())) <= 40
    assert narrow.splitlines()[:3] == ["motion", "  state: running", "  step 3 of 9"]
    assert narrow.count("no") == 30


# ---- completion


def test_every_command_and_option_is_completed():
    commands = list(completion.commands_of(build_parser()))
    assert [command.name for command in commands] == list(COMMANDS)
    for write in (completion.bash, completion.zsh, completion.fish):
        text = write(commands)
        for command in commands:
            assert command.name in text
            for option in command.options:
                for name in option.names:
                    assert name.lstrip("-") in text, (write.__name__, command.name, name)


def completed(script, *words):
    lines = f'source "{script}"; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _hpc_stres 2>/dev/null'
    show = f"{lines}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    return subprocess.run(
        ["bash", "-c", show, "x", *words], capture_output=True, text=True, check=True
    ).stdout.split("\n")


def test_bash_completes(tmp_path):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file.yaml").touch()
    script = tmp_path / "completion.bash"
    script.write_text(said("completion", "bash")[1])
    assert completed(script, "hpc-stres", "tr")[:-1] == ["train"]
    assert completed(script, "hpc-stres", "train", "--max")[:-1] == ["--max-micro-batch"]
    assert completed(script, "hpc-stres", "describe", "--variant", "")[:-1] == [
        "torchvision",
        "msra",
    ]
    assert completed(script, "hpc-stres", "completion", "z")[:-1] == ["zsh"]
    assert completed(script, "hpc-stres", "train", "--run-dir", f"{tmp_path}/a")[:-1] == [
        f"{tmp_path}/a folder"
    ]
    assert f"{tmp_path}/a file.yaml" in completed(
        script, "hpc-stres", "train", "--config", f"{tmp_path}/a f"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_itself_reads_the_script(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    path = tmp_path / "script"
    path.write_text(said("completion", shell)[1])
    subprocess.run([shell, "-n", path], check=True)


# ---- Ctrl-C


ENDLESS = ["--set", "phases.motion.optimise.schedule=[[9999999, 0.001]]"]
MANY = ["--set", "data.binding.train_videos=2000"]


def _interrupted(
    words: list[str], log: Path, is_under_way: Callable[[str], bool]
) -> tuple[int, str]:
    """Exit code of a command that gets Ctrl-C as a terminal sends it, once it is under way, and what it wrote then.

    It waits for a sign, not for a time: how far a command is after two seconds depends on the machine.
    """
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "hpc_stres", *words],
            start_new_session=True,
            # Tests may run in the background of a script, where this signal is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        ) as process,
    ):
        deadline = time.monotonic() + 120
        while not is_under_way(log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        before = len(log.read_text())
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    return process.returncode, log.read_text()[before:]


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    """A data root with the prepared store of tests/tiny.yaml."""
    root = tmp_path_factory.mktemp("tiny data")
    assert main(["prepare", "--config", str(TINY), "--set", f"data.root={root}"]) == 0
    return root


@pytest.mark.parametrize(
    "words",
    [
        ["prepare", *MANY],
        ["train", "--phase", "motion", "--run-dir", "RUN", *ENDLESS],
        ["submit", "--cluster", "local", "--run-dir", "RUN", *MANY],
    ],
    ids=lambda words: words[0],
)
def test_ctrl_c_is_one_sentence(tmp_path, tiny_data, words):
    training = words[0] == "train"
    root = tiny_data if training else tmp_path / "data"
    words = [str(tmp_path / "run") if word == "RUN" else word for word in words]

    def is_under_way(output: str) -> bool:
        return "steps/s" in output if training else any(root.rglob("*.avi"))

    code, output = _interrupted(
        [*words, "--config", str(TINY), "--set", f"data.root={root}"],
        tmp_path / "log",
        is_under_way,
    )
    # Python ends itself by the signal where that met it in the midst of an import: a shell sees 130 both times.
    assert code in (130, -signal.SIGINT), output
    lines = [line for line in output.splitlines() if "/s" not in line]
    assert 1 <= len(lines) <= 2, output
    assert "interrupted" in lines[0]
    assert "Traceback" not in output


def test_ctrl_c_before_a_command_has_begun_is_one_sentence(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("hpc_stres.__main__.build_parser", interrupt)
    code, _, err = said("train")
    assert code == 130
    assert err == "hpc-stres: interrupted; the same command resumes from here\n"


# ---- names and places that nobody thought of


def test_a_name_of_any_bytes_is_printed_on_any_terminal(tmp_path):
    """In a terminal of few letters, and with bytes that are no letters in any."""
    name = os.fsdecode("ü \N{SNOWMAN}".encode() + b"\xe9.avi")
    (tmp_path / name).write_bytes(b"no video")
    code = "import sys; from hpc_stres.__main__ import main, say_any_name; say_any_name(); print(sys.argv[1])"
    for encoding in ("utf-8", "ascii", "latin-1"):
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, cwd=tmp_path, check=True,
            env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert done.stdout.decode(encoding).endswith("\\udce9.avi\n"), encoding


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied", "/a place"), OSError(28, "No space left on device")],
)
def test_what_a_disk_refuses_is_said_with_its_place(error, monkeypatch):
    def refuse(args):
        raise error

    monkeypatch.setattr("hpc_stres.commands.doctor.run", refuse)
    code, _, err = said("doctor")
    assert code == 1
    first, second = err.splitlines()
    where = error.filename or "the disk"
    assert first == f"hpc-stres doctor: {where}: cannot be read or written: {error.strerror}"
    assert "name a place that is there" in second


# ---- one name for one thing


def parser_of(name):
    """The parser of one command."""
    (subparsers,) = (
        a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)
    )
    return subparsers.choices[name]


@pytest.mark.parametrize("name", EVERY)
def test_no_argument_takes_the_place_of_the_command_itself(name):
    """An argument of the same name would be called in place of the command."""
    sub = parser_of(name)
    assert not {action.dest for action in sub._actions} & set(sub._defaults)


@pytest.mark.parametrize("name", sorted({*EVERY} - {"bench", "completion", "demo", "doctor"}))
def test_a_path_where_nothing_is_costs_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [name]
    for action in parser_of(name)._actions:
        is_path = action.dest in ("config", "run_dir")
        if not (is_path or action.required) or isinstance(action, argparse._HelpAction):
            continue
        value = str(next(iter(action.choices), "nothing")) if action.choices else "nothing"
        words += [*action.option_strings[-1:], value]
    code, _, err = said(*words)
    assert code in (1, 2), err
    assert 1 <= len(err.splitlines()) <= 3, err
    assert "unexpected" not in err
